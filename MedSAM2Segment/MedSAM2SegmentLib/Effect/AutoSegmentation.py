"""Auto: segmentation by a model that needs no prompts; written when it is complete, as one step of undo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError
from medsam2_core.prompts import Box, Point, SlicePrompts
from medsam2_core.worker.job_messages import AutoRequest
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.Effect.Progress import Progress
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, Gesture, PointGesture
from MedSAM2SegmentLib.Segments.AlgorithmTags import TERMINOLOGY
from MedSAM2SegmentLib.Segments.Editors import neighboursKept
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VoxelOwnership import KNOWN

if TYPE_CHECKING:
    from medsam2_core.auto.predictions import AutoPrediction
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import Prompt
    from medsam2_core.worker.job_messages import AutoModelInfo, SearchRequest
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
    from MedSAM2SegmentLib.Panels.PanelState import Parameters

_MOST_PROMPTS = 12  # of one class: each is a node of the scene, with widgets in every view


@dataclass
class _Target:
    """Where the prediction of a class is written.

    Attributes
    ----------
    segmentID
        Empty until the segment is created.
    slices
        The slices of it that are replaced; None for all.
    """

    prediction: AutoPrediction
    segmentID: str
    slices: tuple[int, ...] | None = None
    isNew: bool = False


class AutoSegmentation:
    """At most one request to an Auto model at a time; what it predicts becomes segments with prompts.

    Attributes
    ----------
    problem, details
        Why the last request ended early; empty when all is well.
    isSearch
        Whether the last request was about another scan, not to an Auto model.
    beforeWriting, afterWriting
        Called before predictions become segments (the segmentation may have been undone), and after.
    """

    def __init__(
        self,
        edited: EditedSegmentation,
        session: WorkerSession,
        parameters: Parameters,
        clock: Callable[[], float],
    ) -> None:
        self._edited, self._session = edited, session
        self._parameters, self._clock = parameters, clock
        self._request: Any = None
        self._asked: Any = None  # the session of the request
        self.progress = Progress(clock)
        self.problem = self.details = self.summary = ""
        self.isSearch = False
        self.beforeWriting: Callable[[], None] = lambda: None
        self.afterWriting: Callable[[], None] = lambda: None

    # Models -------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[AutoModelInfo, ...]:
        """The models that suit the volume."""
        adapter, known = self._edited.adapter, self._session.autoModels or ()
        if adapter is None:
            return ()
        modality = adapter.volume.modality
        return tuple(one for one in known if one.fits(is_picture=adapter.isPicture, modality=modality))

    @property
    def chosen(self) -> AutoModelInfo | None:
        """The model the user has chosen, else the first that suits the volume; None when none does."""
        entries, wanted = self.entries, self._parameters.text("autoModel")
        return next((one for one in entries if one.file == wanted), entries[0] if entries else None)

    # Running ------------------------------------------------------------------------------------------------

    @property
    def isRunning(self) -> bool:
        """Whether a model is running; its request ends with its session."""
        return self._request is not None and self._asked is self._session.requested

    def start(self, n: int | None = None) -> None:
        """Segment slice ``n``, or all; a running request is cancelled.

        Raises
        ------
        PromptError
            There is no model, or no session.
        """
        self.abort()
        entry = self.chosen
        if entry is None:
            message = _("no Auto model suits this volume: train one from 10 labelled images")
            raise PromptError(message, code="no-auto-model")
        where = _("any slice") if n is None else _("slice {n}").format(n=n)
        nothing = _("{model!r} found nothing on {where}: is it the right model for this image?").format(
            model=entry.name, where=where
        )
        wanted = AutoRequest(entry.path, first=n, last=n)
        self.isSearch = False
        self._ask(lambda session, **calls: session.auto(wanted, **calls), entry.name, nothing, n)

    def search(self, wanted: SearchRequest, found_by: str, finished: Callable[[], None]) -> None:
        """Look for the objects of another scan; they become segments as what an Auto model finds does.

        Parameters
        ----------
        found_by
            "examples" or "prior", for the tags of the segments.

        Raises
        ------
        PromptError
            There is no session.
        """
        self.abort()
        self.isSearch = True
        nothing = _("no object of the other scan was found in this one")
        self._ask(lambda session, **calls: session.find(wanted, **calls), found_by, nothing, None, finished)

    def _ask(
        self,
        ask: Callable[..., Any],
        name: str,
        nothing: str,
        n: int | None,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a request; what it finds is written as made by ``name``, or the user told of ``nothing``."""
        session = self._session.session
        if session is None:
            message = self._session.problem or _("the worker is not there: restart it first")
            raise PromptError(message, code="no-session")
        self.summary, self.progress = "", Progress(self._clock)
        self.progress.total = 1 if n is not None else 0
        replaces = self._parameters.isOn("replaceSegments")

        def done(predictions: list[AutoPrediction]) -> None:
            if request is self._request:
                self._request = None
                if self._finish(predictions, name, nothing, n, replaces=replaces):
                    finished()

        def failed(error: MedSAM2Error) -> None:
            if request is self._request:
                self._request = None
                if not isinstance(error, Cancelled):
                    self.problem, self.details = str(error), getattr(error, "details", "")
                self.afterWriting()

        self._asked = session
        self._request = request = ask(session, slices=self._onSlices, done=done, failed=failed)

    def cancel(self) -> None:
        """Cancel the request. Nothing was written, so there is nothing to keep or discard."""
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def abort(self) -> None:
        """Cancel the request, and clear the message: another volume or segmentation is edited."""
        self.cancel()
        self.clearProblem()

    def clearProblem(self) -> None:
        """Clear the message about what went wrong: the user goes on."""
        self.problem = self.details = ""

    def clear(self) -> None:
        """Cancel the request, and clear the summary, too."""
        self.abort()
        self.summary = ""

    def _onSlices(self, _records: list[SliceMask], done: int, total: int | None) -> None:
        if self._request is not None:
            self.progress.update(done, total)

    def _finish(
        self, predictions: list[AutoPrediction], name: str, nothing: str, n: int | None, *, replaces: bool
    ) -> bool:
        """Write what was found; whether that was possible."""
        if self._edited.isOutOfDate:
            return False
        isWritten = False
        self.beforeWriting()
        try:
            self._write(predictions, name, replaces=replaces, n=n)
        except MedSAM2Error as error:
            self.problem = str(error)
        else:
            isWritten = True
            self.summary = summaryOf(predictions)
            if not any(one.is_found for one in predictions):
                self.problem = nothing
        self.afterWriting()
        return isWritten

    # Writing ------------------------------------------------------------------------------------------------

    def _write(
        self, predictions: Iterable[AutoPrediction], model: str, *, replaces: bool, n: int | None
    ) -> None:
        """Write the classes that were found, as one step of undo.

        A segment with the name of a class is filled where it is empty. Otherwise it is replaced if
        ``replaces`` is set, or another one is created beside it. No other segment changes, even where they
        overlap.

        Parameters
        ----------
        model
            The Auto model, as named in DICOM.
        n
            The only slice that was processed; None for all.

        Raises
        ------
        MedSAM2Error
            A segment cannot be edited, or is marked as completed.
        """
        found = [one for one in predictions if one.is_found]
        if not found:
            return
        edited, slices = self._edited, None if n is None else (n,)
        targets = [_Target(one, self._existing(one.name, slices, replaces=replaces), slices) for one in found]
        for target in targets:
            if target.segmentID:
                edited.checkEditable(target.segmentID)
        owner = object()  # of the step
        edited.openStep((), owner=owner, newUndo=False)
        try:
            with edited.writing(), neighboursKept(edited.editor.parameterSetNode()):
                edited.writer.beginStepNow()
                edited.addCreated([self._create(one) for one in targets if not one.segmentID])
                for target in targets:
                    self._fill(target, owner, model)
        finally:
            edited.closeStep()
        if edited.segment(edited.editor.selectedSegmentID()) is None:  # the user goes on with this one
            edited.editor.parameterSetNode().SetSelectedSegmentID(targets[0].segmentID)

    # Targets ------------------------------------------------------------------------------------------------

    def _existing(self, name: str, slices: tuple[int, ...] | None, *, replaces: bool) -> str:
        """The segment of that name which may be filled or replaced; empty when there is none."""
        segmentation = self._edited.segmentation.GetSegmentation()
        for segmentID in segmentation.GetSegmentIDs():
            isNamed = segmentation.GetSegment(segmentID).GetName() == name
            if isNamed and (replaces or not self._isInUse(segmentID, slices)):
                return segmentID
        return ""

    def _isInUse(self, segmentID: str, slices: tuple[int, ...] | None) -> bool:
        """Whether a segment has voxels or prompts on slices; None: anywhere."""
        try:
            prompts = self._edited.slicePrompts(segmentID)
        except PromptError:
            return True
        if slices is None:
            return bool(prompts) or self._hasVoxels(segmentID)
        masks = self._edited.writer.segmentMasks(segmentID, self._session.stack, slices)
        return any(n in prompts or masks[n].any() for n in slices)

    def _create(self, target: _Target) -> str:
        """Create a segment with name, colour and codes of a class, and return its ID."""
        segmentation, prediction = self._edited.segmentation.GetSegmentation(), target.prediction
        taken = {segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()}
        name, number = prediction.name, 1
        while name in taken:
            number += 1
            name = f"{prediction.name} {number}"
        target.isNew = True
        target.segmentID = segmentation.AddEmptySegment("", name, list(prediction.colour_rgb))
        if prediction.terminology:
            segmentation.GetSegment(target.segmentID).SetTag(TERMINOLOGY, prediction.terminology)
        return target.segmentID

    def _hasVoxels(self, segmentID: str) -> bool:
        return SegmentVoxels(self._edited.segmentation, np.eye(4)).hasAny(segmentID)

    # Filling ------------------------------------------------------------------------------------------------

    def _fill(self, target: _Target, owner: object, model: str) -> None:
        segmentID, prediction, stack = target.segmentID, target.prediction, self._session.stack
        edited, markups, writer = self._edited, self._edited.markups, self._edited.writer
        if not edited.isKnown(segmentID):
            edited.markApplied(segmentID, markups.snapshot(segmentID), {})
        edited.openStep([segmentID], owner=owner)
        tags = edited.tags
        isWhole = target.slices is None or tags.isAutomatic(segmentID) or not self._hasVoxels(segmentID)
        records = {n: replace(one, object=segmentID) for n, one in prediction.masks.items()}
        prompted = _evenlyChosen(sorted(set(prediction.prompts) & set(records)))
        self._replacePrompts(target, [prediction.prompts[n] for n in prompted])
        prompts = self._predictedPrompts(segmentID, records, prompted)
        records = {n: replace(one, prompted=n in prompts) for n, one in records.items()}
        self._updateSession(target, records, prompts)
        masks: dict[int, NDArray[np.bool_]] = {n: one.mask_hw for n, one in records.items()}
        if not target.isNew:
            replaced = range(len(stack)) if target.slices is None else target.slices
            writer.own(segmentID, replaced, stack)
            empty = np.zeros(stack.shape_hw, dtype=bool)
            masks = {**{n: empty for n in replaced}, **masks}
        edited.write(segmentID, masks, stack)
        shown = writer.masksOf(KNOWN, segmentID, stack, list(records))
        if not any(mask.any() for mask in shown.values()):
            return  # the masking of the Segment Editor kept all of it out: the segment is what it was
        isWhole = isWhole and not writer.showsKept(segmentID)
        tags.setAuto(segmentID, model, isAlone=isWhole and self._hasOnlyPredicted(segmentID))

    def _replacePrompts(self, target: _Target, predicted: Iterable[tuple[Prompt, ...]]) -> None:
        """Replace the prompts of the target's slices in the scene by those that were predicted."""
        markups, stack = self._edited.markups, self._session.stack
        with markups.silenced():
            if target.slices is None:
                markups.clear(target.segmentID)
            for n in target.slices or ():
                markups.clearSlice(target.segmentID, n, self._edited.adapter, stack)
            markups.addPredicted(target.segmentID, self._gestures(predicted))

    def _predictedPrompts(
        self, segmentID: str, records: Mapping[int, SliceMask], prompted: Sequence[int]
    ) -> dict[int, SlicePrompts]:
        """Return the predicted prompts as they are in the scene, with the masks the model found."""
        try:
            prompts = self._edited.slicePrompts(segmentID)
        except PromptError:  # one of the user's own on other slices; reported when it is sent
            return {}
        return {n: replace(prompts[n], known=records[n]) for n in prompted if n in prompts}

    def _hasOnlyPredicted(self, segmentID: str) -> bool:
        try:
            return self._edited.tags.arePredicted(segmentID, self._edited.slicePrompts(segmentID))
        except PromptError:
            return False

    def _updateSession(
        self, target: _Target, records: Mapping[int, SliceMask], prompts: Mapping[int, SlicePrompts]
    ) -> None:
        """Give the session the segment as it will be; prompts and masks of other slices stay."""
        segmentID, session = target.segmentID, self._session.session
        known = session.snapshot(segmentID) if session is not None else ObjectSnapshot()
        applied = self._edited.applied
        kept: dict[int, SlicePrompts] = {}
        if target.slices is not None:
            kept = {n: one for n, one in applied.get(segmentID, {}).items() if n not in target.slices}
        others = {n: one for n, one in known.masks.items() if target.slices and n not in target.slices}
        refined = {n: one for n, one in known.propagated.items() if n in kept}
        self._edited.loaded.discard(segmentID)
        self._session.removeObject(segmentID)
        if session is not None:
            session.restore(segmentID, ObjectSnapshot({**kept, **prompts}, {**others, **records}, refined))
        applied[segmentID] = {}
        snapshot = self._edited.markups.snapshot(segmentID)
        self._edited.markApplied(segmentID, snapshot, {**kept, **prompts})
        self._edited.tags.setPredicted(segmentID, prompts)

    def _gestures(self, predicted: Iterable[tuple[Prompt, ...]]) -> list[Gesture]:
        stack, geometry = self._session.stack, self._edited.adapter.geometry
        gestures: list[Gesture] = []
        for prompt in (one for prompts in predicted for one in prompts):
            if isinstance(prompt, Box):
                corners = _cornersOf(prompt, stack)
                gestures.append(BoxGesture(geometry.to_ras(stack.to_ijk(corners)), stack.slice_mm))
            elif isinstance(prompt, Point):
                gestures.append(PointGesture(geometry.to_ras([prompt.ijk])[0], prompt.positive))
        return gestures


def summaryOf(predictions: list[AutoPrediction]) -> str:
    """Return the confidence of every class: "liver 0.93, kidney 0.88; not found: spleen"."""
    found = ", ".join(f"{one.name} {one.confidence:.2f}" for one in predictions if one.is_found)
    names = ", ".join(one.name for one in predictions if not one.is_found)
    missing = _("not found: {names}").format(names=names) if names else ""
    return "; ".join(part for part in (found, missing) if part)


def _cornersOf(box: Box, stack: SliceStack) -> NDArray[np.float64]:
    """(4, 3) x, y, n of the corners of a box, in order round it."""
    (left, top, first), (right, bottom, last) = stack.to_slice([box.first_ijk, box.last_ijk])
    n = (first + last) / 2
    return np.array([[left, top, n], [right, top, n], [right, bottom, n], [left, bottom, n]])


def _evenlyChosen(slices: Sequence[int]) -> list[int]:
    """Return at most ``_MOST_PROMPTS`` slices, evenly spread."""
    if len(slices) <= _MOST_PROMPTS:
        return list(slices)
    chosen: Any = np.linspace(0, len(slices) - 1, _MOST_PROMPTS).round().astype(int)
    return [slices[index] for index in chosen]
