"""Keeps the session in step with the prompts in the scene, and the segments with its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts.shapes import kept_slices
from medsam2_core.prompts.slice_prompts import mask_on_slice, resolve

from MedSAM2SegmentLib.Effect.WorkerSession import changedSlices
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.VoxelOwnership import KNOWN, OURS

if TYPE_CHECKING:
    from medsam2_core.prompts import PixelPrompts, SlicePrompts
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation, UndoState
    from MedSAM2SegmentLib.Effect.WorkerSession import Answer, WorkerSession

#: Pixels round a foreground point in which voxels the user had erased may come back.
_REVIVED_RADIUS = 10


class PromptSync:
    """Compares the prompts in the scene with those of the session, and sends the difference.

    The scene is the truth. Where the session has to be given prompts again whose answer the segment already
    shows (a scene was loaded, Slicer undid a step, the volume changed), the segment itself is sent as the
    answer, and not a voxel changes.
    """

    def __init__(self, edited: EditedSegmentation, session: WorkerSession) -> None:
        self._edited, self._session = edited, session
        self._refused: dict[tuple[str, int], SlicePrompts] = {}
        self._removed: set[str] = set()  # segments that were removed

        # Slices on which the segment became a prompt beside others, with the segment.
        self._asShown: dict[tuple[str, int], SlicePrompts] = {}

    # Sending ------------------------------------------------------------------------------------------------

    def sync(self, segmentIDs: Iterable[str] | None = None) -> str:
        """Send the changed prompts of segments, by default of all; return why some could not be sent.

        Without a session nothing is sent: it is when there is one.
        """
        problem = ""
        self._removed |= {one for one in segmentIDs or () if self._edited.segment(one) is None}
        if self._session.session is None or self._edited.adapter is None:
            return problem
        for segmentID in self._promptedSegments() if segmentIDs is None else segmentIDs:
            try:
                self.send(segmentID)
            except PromptError as error:
                problem = str(error)
        return problem

    def send(self, segmentID: str) -> None:
        """Send the changed prompts of a segment. PromptError names the prompt that cannot be used."""
        if self._session.session is None or self._edited.adapter is None:
            return  # sent when there is a session
        wanted = self._edited.slicePrompts(segmentID)
        if self._edited.segment(segmentID) is None:
            self.removeFromSession(segmentID)
            return
        snapshot = self._edited.markups.snapshot(segmentID)
        if segmentID in self._removed:  # undo has brought it back with its prompts: it is as it was
            self._removed.discard(segmentID)
            self._edited.markApplied(segmentID, snapshot, wanted)
        changed = {
            n: prompts
            for n, prompts in changedSlices(self._session.session.prompts(segmentID), wanted).items()
            if (segmentID, n) not in self._refused or not prompts.asks_same(self._refused[segmentID, n])
        }
        outdated = changedSlices(self._edited.applied.get(segmentID, {}), wanted)
        replay = self._replayed(segmentID, {n: p for n, p in changed.items() if n not in outdated})
        new = {n: prompts for n, prompts in changed.items() if n not in replay}
        new.update(self._withPrediction(segmentID, new))
        shown = {n: self._asShown.get((segmentID, n)) for n in new}
        new.update({n: one for n, one in shown.items() if one is not None and new[n].asks_same(one)})
        new.update(self._withSegment(segmentID, {n: prompts for n, prompts in new.items() if prompts.final}))
        if replay:
            self._session.setPrompts(segmentID, replay, snapshot, isReplay=True)
        if new:
            self._session.setPrompts(segmentID, new, snapshot)

    def markAllApplied(self, *, areLoaded: bool = False) -> None:
        """Mark all segments as in sync with their prompts; ``areLoaded``: as they were in the scene."""
        markups = self._edited.markups
        for segmentID in markups.segmentIDs():
            try:
                prompts = self._edited.slicePrompts(segmentID)
            except PromptError:
                continue  # reported when it is sent
            self._edited.applied.pop(segmentID, None)
            self._edited.markApplied(segmentID, markups.snapshot(segmentID), prompts)
            if areLoaded:
                self._edited.loaded.add(segmentID)

    def removeFromSession(self, segmentID: str) -> None:
        """Remove a segment from the session: it was deleted, or its prompts were cleared."""
        self._edited.loaded.discard(segmentID)
        self._session.removeObject(segmentID)

    def clear(self) -> None:
        """Remove everything: another segmentation is edited, whose segments may have the same IDs."""
        for known in (self._refused, self._removed, self._asShown):
            known.clear()

    def markRefused(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> None:
        """Record prompts that got no answer: they are not sent again until they change."""
        self._refused.update({(segmentID, n): onSlice for n, onSlice in prompts.items()})

    def retryRefused(self) -> None:
        """Let prompts that got no answer be sent again: to another session, or in another attempt."""
        self._refused.clear()

    def _replayed(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        """Return prompts that need no new answer, with the segment as it stands as the answer.

        Those of a loaded scene are answered by the model, so that it is known what it had found; unless the
        segment was saved without its voxels and needs them again.
        """
        known = self._withSegment(segmentID, prompts)
        answered = [onSlice.known for onSlice in known.values() if onSlice.known is not None]
        if segmentID not in self._edited.loaded or not answered:
            return known
        if all(record.is_empty for record in answered):
            return {}
        return {n: known[n] if one.final or one.needs_known else one for n, one in prompts.items()}

    def _withPrediction(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        """Return the predicted prompts among these, with the masks the model found: they would not give them.

        Where these are not known, with the segment as it stands.
        """
        alone = {n: one for n, one in prompts.items() if one.needs_known and len(one.prompts) == 1}
        known = {n: self._edited.tags.predicted(segmentID, n) for n in alone}
        predicted = {n: one for n, one in known.items() if one is not None and alone[n].asks_same(one)}
        applied = self._edited.applied.get(segmentID, {})
        unknown = {n: one for n, one in alone.items() if n not in predicted and n not in applied}
        return {**predicted, **self._withSegment(segmentID, unknown)}

    def _withSegment(self, segmentID: str, prompts: Mapping[int, SlicePrompts]) -> dict[int, SlicePrompts]:
        """Return prompts with the segment as it stands as their answer."""
        slices = [n for n, onSlice in prompts.items() if onSlice]
        masks = self._edited.writer.segmentMasks(segmentID, self._session.stack, slices) if slices else {}
        answered = dict(prompts)
        for n, mask_hw in masks.items():
            final = prompts[n].final
            known = SliceMask.from_mask(segmentID, n, mask_hw, prompted=True, final=final)
            answered[n] = replace(prompts[n], known=known)
        return answered

    def _promptedSegments(self) -> list[str]:
        """Segments with prompts, and those whose prompts are gone from the scene but not from the session."""
        session = self._session.session
        known = [segmentID for segmentID in self._edited.applied if session.prompts(segmentID)]
        return list(dict.fromkeys([*self._edited.markups.segmentIDs(), *known]))

    # The segment as a prompt --------------------------------------------------------------------------------

    def toggleFinal(self, n: int) -> None:
        """Mark the selected segment on slice ``n`` as final, or, if it is, not any more."""
        segmentID, markups, stack = self._edited.segmentID, self._edited.markups, self._session.stack
        applied = self._edited.applied.get(segmentID, {}).get(n)
        final = applied is None or not applied.final
        with markups.silenced():
            if final:
                mask = self._edited.writer.segmentMasks(segmentID, stack, [n])[n]
                prompt = mask_on_slice(mask, n, stack)
                if prompt is not None:
                    markups.addMask(segmentID, n, prompt, stack.key)
            markups.setFinal(segmentID, stack.key, n, final)

    def useAsPrompt(self, n: int, keep: str) -> None:
        """Add the selected segment as mask prompts, which the caller sends; PromptError when it is empty.

        Of slice ``n`` if ``keep`` is "slice", else of the slices that :func:`kept_slices` chooses.
        """
        segmentID, stack = self._edited.segmentID, self._session.stack
        slices = [n] if keep == "slice" else range(len(stack))
        masks = self._edited.writer.segmentMasks(segmentID, stack, slices)
        shown = [k for k, mask in masks.items() if mask.any()]
        kept = shown if keep == "slice" else kept_slices(shown, keep)
        if not kept:
            message = _("the segment is empty: paint it first, or click instead")
            if keep == "slice":
                message = _("the segment is empty on this slice: paint it first, or click instead")
            raise PromptError(message, code="segment-empty")
        self._addShown({k: masks[k] for k in kept})

    def _addShown(self, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        """Add the segment's own (H, W) masks by slice: beside other prompts, too, it stays as it is there."""
        segmentID = self._edited.segmentID
        with self._edited.markups.silenced():
            self.addMasks(masks)
        for n, onSlice in self._edited.slicePrompts(segmentID).items():
            if n in masks and len(onSlice.prompts) > 1:
                known = SliceMask.from_mask(segmentID, n, masks[n], prompted=True, final=onSlice.final)
                self._asShown[segmentID, n] = replace(onSlice, known=known)

    def addMasks(self, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        """Add (H, W) masks by slice as prompts of the selected segment."""
        stack = self._session.stack
        prompts = {n: mask_on_slice(mask, n, stack) for n, mask in masks.items()}
        placed = {n: prompt for n, prompt in prompts.items() if prompt is not None}
        if len(placed) < len(prompts):
            raise PromptError(
                _(
                    "on oblique slices a segment cannot be a prompt: take the slice as final, or click "
                    "instead"
                ),
                code="mask-prompt-on-oblique-slice",
                slice=min(prompts),
            )
        self._edited.markups.addMasks(self._edited.segmentID, placed, stack.key)

    def clearPrompts(self) -> None:
        """Delete all prompts of the selected segment; its voxels are the user's own from now on."""
        segmentID, markups = self._edited.segmentID, self._edited.markups
        with markups.silenced():
            markups.clear(segmentID)
        self.removeFromSession(segmentID)
        self._edited.removePrompts(segmentID)
        self._edited.markApplied(segmentID, (), {})
        self._edited.writer.disown(segmentID)

    # Answers ------------------------------------------------------------------------------------------------

    def apply(self, answer: Answer) -> bool:
        """Write an answer as a step that is left open; whether there was anything to write.

        Raises
        ------
        MedSAM2Error
            The segment cannot be edited, or is marked as completed: its voxels stay as they are.
        """
        segmentID, stack = answer.segmentID, self._session.stack
        if self._edited.segment(segmentID) is None or not answer.prompts:
            return False
        if answer.isReplay:
            if segmentID in self._edited.loaded:
                known = {n: record.mask_hw for n, record in answer.masks.items()}
                self._edited.writer.adopt(segmentID, known, stack)
                if self._session.session is not None:
                    origin = self._session.origin
                    self._edited.store.restore(segmentID, self._session.session, stack, origin)
            self._edited.markApplied(segmentID, answer.snapshot, answer.prompts)
            return False
        self._edited.loaded.discard(segmentID)
        if not self._edited.isEditable(segmentID):
            self._edited.markApplied(segmentID, answer.snapshot, answer.prompts)
            self._edited.checkEditable(segmentID)
        revived = self._revived(answer)
        masks = {n: np.zeros(stack.shape_hw, dtype=bool) for n, one in answer.prompts.items() if not one}
        masks |= {n: record.mask_hw for n, record in answer.masks.items() if not answer.prompts[n].final}
        self._edited.openStep([segmentID])
        self._edited.markApplied(segmentID, answer.snapshot, answer.prompts)
        if masks:
            self._edited.write(segmentID, masks, stack, revived)
            if self._showsOurs(segmentID, list(masks)):
                self.updateTags(segmentID)
        finals = [n for n, one in answer.prompts.items() if one.final]
        isAutomatic = bool(finals) and self._edited.tags.isAutomatic(segmentID)
        if isAutomatic and any(self._isPainted(segmentID, n) for n in finals):
            self._edited.tags.setSemiautomatic(segmentID)
        return True

    def _revived(self, answer: Answer) -> dict[int, NDArray[np.bool_]]:
        """(H, W) by slice: where new prompts ask for voxels even if the user had erased them."""
        stack, applied = self._session.stack, self._edited.applied.get(answer.segmentID, {})
        revived = {}
        for n, onSlice in answer.prompts.items():
            before = applied[n].prompts if n in applied else ()
            new = [one for one in onSlice.prompts if one not in before]
            pixels = resolve(new, stack).get(n) if new else None
            if pixels is not None:
                revived[n] = _promptedArea(pixels, stack.shape_hw)
        return revived

    def restore(self, state: UndoState) -> None:
        """Bring prompts and session to the voxels that Slicer's undo has restored; no voxel changes."""
        session = self._session.session
        for segmentID, snapshot in state.prompts.items():
            self._session.discardAnswers(segmentID)
            self._edited.loaded.discard(segmentID)
            self._edited.markups.restore(snapshot, segmentID)
            known = state.objects[segmentID]
            if session is not None and known is not None and state.session is session:
                if known:
                    session.restore(segmentID, known)
                else:
                    self.removeFromSession(segmentID)
            self._edited.applied[segmentID] = {}
            if self._session.stack is None or self._edited.adapter is None:
                continue
            try:
                self._edited.applied[segmentID] = dict(self._edited.slicePrompts(segmentID))
            except PromptError:
                continue  # reported when it is sent

    # Algorithm tags -----------------------------------------------------------------------------------------

    def updateTags(self, segmentID: str, *, isPropagated: bool = False) -> None:
        """Tag a segment with the model that answered its prompts.

        A segment without prompts, that shows nothing of a model's masks, gets the tags it had before.
        ``isPropagated``: the masks went on to other slices.
        """
        try:
            prompts = self._edited.slicePrompts(segmentID)
        except PromptError:  # one of the user's own; reported when it is sent
            self._edited.tags.setModel(segmentID, isAlone=False, isPropagated=isPropagated)
            return
        if prompts or self._edited.writer.showsOurs(segmentID):
            isAlone = self._edited.tags.arePredicted(segmentID, prompts)
            self._edited.tags.setModel(segmentID, isAlone=isAlone, isPropagated=isPropagated)
        else:
            self._edited.tags.clear(segmentID)

    def onEdited(self) -> None:
        """Tag the selected segment as semiautomatic if somebody else edited what Auto had found.

        Other segments are not checked: with many it would take long, at every stroke of the brush.
        """
        segmentID = self._edited.segmentID
        isThere = self._edited.segment(segmentID) is not None
        if isThere and self._edited.tags.isAutomatic(segmentID) and self._edited.writer.wasEdited(segmentID):
            self._edited.tags.setSemiautomatic(segmentID)

    def _isPainted(self, segmentID: str, n: int) -> bool:
        """Whether a slice of a segment has voxels that are not from a model."""
        stack, writer = self._session.stack, self._edited.writer
        mask_hw = writer.segmentMasks(segmentID, stack, [n])[n]
        return bool((mask_hw & ~writer.masksOf(OURS, segmentID, stack, [n])[n]).any())

    def _showsOurs(self, segmentID: str, slices: list[int]) -> bool:
        """Whether a segment shows a model's masks: on these slices now, or anywhere before."""
        if self._edited.tags.isOurs(segmentID):
            return True
        known = self._edited.writer.masksOf(KNOWN, segmentID, self._session.stack, slices)
        return any(mask_hw.any() for mask_hw in known.values())


def _promptedArea(pixels: PixelPrompts, shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) pixels near foreground points, in the box, and in the mask."""
    area = np.zeros(shape_hw, dtype=bool) if pixels.mask_hw is None else pixels.mask_hw.copy()
    for (x, y), label in zip(pixels.points_xy, pixels.labels, strict=True):
        if label:
            rows, columns = _within(y, shape_hw[0]), _within(x, shape_hw[1])
            disc = (columns[None, :] - x) ** 2 + (rows[:, None] - y) ** 2 <= _REVIVED_RADIUS**2
            area[np.ix_(rows, columns)] |= disc
    if pixels.box_xyxy is not None:
        left, top = np.maximum(np.ceil(pixels.box_xyxy[:2]), 0).astype(int)
        right, bottom = np.floor(pixels.box_xyxy[2:]).astype(int)
        area[top : bottom + 1, left : right + 1] = True
    return area


def _within(centre: float, size: int) -> NDArray[np.int64]:
    """Return the rows or columns of an image that are near a point."""
    first, last = np.ceil(centre - _REVIVED_RADIUS), np.floor(centre + _REVIVED_RADIUS)
    return np.arange(max(int(first), 0), min(int(last) + 1, size))
