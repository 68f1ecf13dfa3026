"""What an Auto model has found becomes segments with prompts: one step of undo; nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.prompts import Box, Point, SlicePrompts
from medsam2_core.worker.messages import ObjectRecord

from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, Gesture, PointGesture
from MedSAM2SegmentLib.Segments.Editors import SegmentError, neighboursKept
from MedSAM2SegmentLib.Segments.SegmentTags import TERMINOLOGY
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.Whose import showsKept

if TYPE_CHECKING:
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import Prompt
    from medsam2_core.worker.findings import ClassFinding
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Steps import Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

_MOST_PROMPTS = 12  # of one class: each is a node of the scene, with widgets in every view


@dataclass
class _Place:
    """Where a finding goes.

    Attributes
    ----------
    segmentID
        Empty until the segment is made.
    slices
        Which slices of it are replaced; None all.
    """

    finding: ClassFinding
    segmentID: str
    slices: tuple[int, ...] | None = None


class FoundSegments:
    """Writes findings.

    Parameters
    ----------
    workplace, link, steps, conversation
        Segments and prompts; the session; the way to write; what the session is told.
    """

    def __init__(
        self, workplace: Workplace, link: SessionLink, steps: Steps, conversation: Conversation
    ) -> None:
        self._workplace, self._link = workplace, link
        self._steps, self._conversation = steps, conversation

    def write(
        self, findings: Iterable[ClassFinding], model: str, *, replaces: bool, n: int | None = None
    ) -> tuple[str, ...]:
        """Make segments of what was found; their IDs.

        A segment of a class's name is filled where it shows nothing; where it shows something it is replaced,
        if that is wished (``replaces``), or another one is made beside it. No other segment changes, also
        where they overlap.

        Parameters
        ----------
        model
            The Auto model, as DICOM shall name it.
        n
            The only slice that was looked at; None: all were.

        Raises
        ------
        MedSAM2Error
            When a segment cannot be edited, or shall not be.
        """
        found = [one for one in findings if one.is_found]
        if not found:
            return ()
        workplace, slices = self._workplace, None if n is None else (n,)
        places = [_Place(one, self._known(one.name, slices, replaces=replaces), slices) for one in found]
        for place in places:
            refusal = workplace.refusal(place.segmentID) if place.segmentID else ""
            if refusal:
                raise SegmentError(refusal)
        owner = object()  # of the step
        self._steps.begin((), owner=owner, newUndo=False)
        try:
            with workplace.writing(), neighboursKept(workplace.editor.parameterSetNode()):
                workplace.writer.beginStepNow()
                self._steps.made([self._make(place) for place in places if not place.segmentID])
                for place in places:
                    self._fill(place, owner, model)
        finally:
            self._steps.close()
        self._select(places[0].segmentID)
        return tuple(place.segmentID for place in places)

    # Where it goes ------------------------------------------------------------------------------------------

    def _known(self, name: str, slices: tuple[int, ...] | None, *, replaces: bool) -> str:
        """The segment of that name which may be filled, or replaced; empty when there is none."""
        segmentation = self._workplace.segmentation.GetSegmentation()
        for segmentID in segmentation.GetSegmentIDs():
            isNamed = segmentation.GetSegment(segmentID).GetName() == name
            if isNamed and (replaces or not self._shows(segmentID, slices)):
                return segmentID
        return ""

    def _shows(self, segmentID: str, slices: tuple[int, ...] | None) -> bool:
        """Whether a segment has voxels or prompts on slices; None: anywhere."""
        workplace, stack = self._workplace, self._link.stack
        try:
            said = self._conversation.words(segmentID)
        except PromptError:
            return True
        if slices is None:
            return bool(said) or SegmentVoxels(workplace.segmentation, np.eye(4)).hasAny(segmentID)
        masks = workplace.writer.segmentMasks(segmentID, stack, slices)
        return any(n in said or masks[n].any() for n in slices)

    def _make(self, place: _Place) -> str:
        """A new segment with name, colour and codes of a class; its ID."""
        segmentation, finding = self._workplace.segmentation.GetSegmentation(), place.finding
        taken = {segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()}
        name, number = finding.name, 1
        while name in taken:
            number += 1
            name = f"{finding.name} {number}"
        place.segmentID = segmentation.AddEmptySegment("", name, list(finding.colour_rgb))
        if finding.terminology:
            segmentation.GetSegment(place.segmentID).SetTag(TERMINOLOGY, finding.terminology)
        return place.segmentID

    def _select(self, segmentID: str) -> None:
        """Nobody has chosen a segment: the user goes on with this one."""
        editor = self._workplace.editor
        if self._workplace.segment(editor.selectedSegmentID()) is None:
            editor.parameterSetNode().SetSelectedSegmentID(segmentID)

    # Filling it ---------------------------------------------------------------------------------------------

    def _fill(self, place: _Place, owner: object, model: str) -> None:
        segmentID, finding, stack = place.segmentID, place.finding, self._link.stack
        steps, markups = self._steps, self._workplace.markups
        if not steps.knows(segmentID):
            steps.settle(segmentID, markups.snapshot(segmentID), {})
        steps.begin([segmentID], owner=owner)
        isWhole = place.slices is None or self._isAutosAlone(segmentID)
        records = {n: replace(one, object=segmentID) for n, one in finding.records.items()}
        chosen = _some(sorted(set(finding.prompts) & set(records)))
        with markups.silenced():
            if place.slices is None:
                markups.clear(segmentID)
            for n in place.slices or ():
                markups.clearSlice(segmentID, n, self._workplace.adapter, stack)
            markups.addPredicted(segmentID, self._gestures([finding.prompts[n] for n in chosen]))
        said = self._said(segmentID, records, chosen)
        records = {n: replace(one, prompted=n in said) for n, one in records.items()}
        self._tell(place, records, said)
        masks: dict[int, NDArray[np.bool_]] = {n: one.mask_hw for n, one in records.items()}
        if segmentID not in self._workplace.ledger.createdNow:
            replaced = range(len(stack)) if place.slices is None else place.slices
            self._workplace.writer.own(segmentID, replaced, stack)
            nothing = np.zeros(stack.shape_hw, dtype=bool)
            masks = {**{n: nothing for n in replaced}, **masks}
        steps.write(segmentID, masks, stack)
        shown = self._workplace.writer.knownMasks(segmentID, stack, list(records))
        if not any(mask.any() for mask in shown.values()):
            return  # the masking of the Segment Editor kept all of it out: the segment is what it was
        isWhole = isWhole and not showsKept(self._workplace.writer, segmentID)
        isAlone = isWhole and self._conversation.isAlone(segmentID)
        self._conversation.signing.found(segmentID, model, isAlone=isAlone)

    def _isAutosAlone(self, segmentID: str) -> bool:
        """Whether a segment shows nothing yet, or only what Auto has found."""
        isEmpty = not SegmentVoxels(self._workplace.segmentation, np.eye(4)).hasAny(segmentID)
        return isEmpty or self._conversation.signing.isAutomatic(segmentID)

    def _said(
        self, segmentID: str, records: Mapping[int, SliceMask], chosen: Sequence[int]
    ) -> dict[int, SlicePrompts]:
        """What the model's own prompts say as they stand in the scene, with the masks it found."""
        try:
            words = self._conversation.words(segmentID)
        except PromptError:  # of the user's own on other slices; told when it is said
            return {}
        return {n: replace(words[n], known=records[n]) for n in chosen if n in words}

    def _tell(
        self, place: _Place, records: Mapping[int, SliceMask], said: Mapping[int, SlicePrompts]
    ) -> None:
        """Let the session know the segment as it will stand; what else was said about it stays."""
        segmentID, session, steps = place.segmentID, self._link.session, self._steps
        known = session.snapshot(segmentID) if session is not None else ObjectRecord()
        kept: dict[int, SlicePrompts] = {}
        if place.slices is not None:
            kept = {n: one for n, one in steps.settled.get(segmentID, {}).items() if n not in place.slices}
        others = {n: one for n, one in known.records.items() if place.slices and n not in place.slices}
        refined = {n: one for n, one in known.refined.items() if n in kept}
        self._conversation.forget(segmentID)
        if session is not None:
            session.restore(segmentID, ObjectRecord({**kept, **said}, {**others, **records}, refined))
        steps.settled[segmentID] = {}
        steps.settle(segmentID, self._workplace.markups.snapshot(segmentID), {**kept, **said})
        self._conversation.predicted(segmentID, said)

    def _gestures(self, said: Iterable[tuple[Prompt, ...]]) -> list[Gesture]:
        stack, geometry = self._link.stack, self._workplace.adapter.geometry
        gestures: list[Gesture] = []
        for prompt in (one for prompts in said for one in prompts):
            if isinstance(prompt, Box):
                corners = _cornersOf(prompt, stack)
                gestures.append(BoxGesture(geometry.to_ras(stack.to_ijk(corners)), stack.slice_mm))
            elif isinstance(prompt, Point):
                gestures.append(PointGesture(geometry.to_ras([prompt.ijk])[0], prompt.positive))
        return gestures


def _cornersOf(box: Box, stack: SliceStack) -> NDArray[np.float64]:
    """(4, 3) x, y, n of the corners of a box, in order round it."""
    (left, top, first), (right, bottom, last) = stack.to_slice([box.first_ijk, box.last_ijk])
    n = (first + last) / 2
    return np.array([[left, top, n], [right, top, n], [right, bottom, n], [left, bottom, n]])


def _some(slices: Sequence[int]) -> list[int]:
    """At most so many of them, evenly spread."""
    if len(slices) <= _MOST_PROMPTS:
        return list(slices)
    places: Any = np.linspace(0, len(slices) - 1, _MOST_PROMPTS).round().astype(int)
    return [slices[place] for place in places]
