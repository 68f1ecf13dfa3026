"""Masks of slices into segments, through Slicer's own edit functions, without touching what the user made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Segments.Editors import ADD, REMOVE, SegmentEditor, SegmentError, transformToWorld
from MedSAM2SegmentLib.Segments.EditSteps import AFTER, BEFORE, Change, Patch
from MedSAM2SegmentLib.Segments.SegmentNotes import ERASED, KNOWN, OURS, SegmentNotes, noted
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels, labelmapOf
from MedSAM2SegmentLib.Segments.TargetGrid import SliceGrid
from MedSAM2SegmentLib.Segments.VoxelSets import Extent, Voxels

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray


_LARGEST_GROUP = 1 << 23  # pixels: more at once costs more in fresh memory than it saves in calls


class SegmentWriter:
    """Writes masks of slices into segments, and knows afterwards what it wrote.

    What the user painted is never removed: only voxels that were not there before are ours. What the user
    erased is not put back, however often the same slice is written: a voxel that was there after we wrote and
    is missing later was erased. (Voxels that the user paints over ours cannot be told from them, and stay
    ours.)

    Parameters
    ----------
    editor : SegmentEditor

    Attributes
    ----------
    written : list of callables
        Called with a list of :class:`Change` after each edit.
    recall
        Gives, for a segment of the segmentation being edited, what was noted before there was this writer
        (see ``SegmentMemory.recall``); None for nothing.
    """

    def __init__(self, editor: SegmentEditor) -> None:
        self.editor = editor
        self.written: list[Callable[[list[Change]], None]] = []
        self.recall: Callable[[str, SegmentVoxels], SegmentNotes | None] = lambda segmentID, segments: None
        self._notes: dict[tuple[str, str], SegmentNotes] = {}  # by segmentation and segment
        self._recalled: set[tuple[str, str]] = set()
        self._stepDue = False

    # Writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        segmentID: str,
        masks: Mapping[int, NDArray[np.bool_]],
        stack: SliceStack,
        *,
        newStep: bool,
        revived: Mapping[int, NDArray[np.bool_]] | None = None,
    ) -> bool:
        """Make the segment on some slices what the masks say.

        Parameters
        ----------
        segmentID
            Any segment of the segmentation being edited.
        masks
            (H, W) by slice number of ``stack``.
        stack : SliceStack
            Of a volume whose geometry is in world RAS.
        newStep
            Whether this begins a step of Slicer's undo. It begins when something really changes: with this
            call, or with a later one.
        revived
            (H, W) by slice number: where the user asked for voxels that were erased before (a positive point
            there), so that they come back.

        Returns
        -------
        changed
            Whether any voxel was asked to change. Slicer's masks may have refused it.

        Raises
        ------
        SegmentError, GeometryError
            When the segment is gone or cannot be edited, or the masks do not fit the stack: nothing is
            written then.
        """
        self._stepDue |= newStep
        checked = {stack.checked(n): stack.checked_mask(mask_hw) for n, mask_hw in masks.items()}
        segments, grid = self._target(stack)
        segments.check(segmentID)
        notes = self._notesOf(segmentID, segments, grid.extent)
        changed = False
        for group in _groups(checked):
            asked = {n: revived[n] for n in group if n in revived} if revived else {}
            changed |= self._writeGroup(segmentID, group, asked, grid, segments, notes)
        return changed

    def apply(
        self, segmentID: str, voxels: Voxels, *, add: NDArray[np.bool_], remove: NDArray[np.bool_]
    ) -> None:
        """Edit voxels as Slicer's effects do, in a step that is already due or open; nothing is noted."""
        indexToRAS, _ = self.editor.referenceGeometry()
        for mode, mask in ((REMOVE, remove), (ADD, add)):
            if mask.any():
                if self._stepDue:
                    self.editor.saveStateForUndo()
                    self._stepDue = False
                labelmap, _ = labelmapOf(mask, voxels, indexToRAS)
                self.editor.modifySegment(segmentID, labelmap, mode)

    def beginStep(self) -> None:
        """Let the next edit begin a step of Slicer's undo."""
        self._stepDue = True

    def beginStepNow(self) -> None:
        """Begin a step of Slicer's undo: what follows is more than edits."""
        self._stepDue = False
        self.editor.saveStateForUndo()

    # Reading ------------------------------------------------------------------------------------------------

    def segmentMasks(
        self, segmentID: str, stack: SliceStack, slices: Sequence[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """(H, W) masks of slices of the segment as it stands: of each pixel, the voxel nearest to its centre.

        Raises SegmentError when the segment is gone, GeometryError when there is no such slice.
        """
        segments, grid = self._target(stack)
        segments.check(segmentID)
        return grid.masksOf(
            lambda voxels: segments.mask(segmentID, voxels), [stack.checked(n) for n in slices]
        )

    def maskOf(
        self, segmentID: str, voxels: Voxels, indexToRAS: NDArray[np.float64] | None = None
    ) -> NDArray[np.bool_] | None:
        """The segment at voxels of the segmentation's grid, or of another; None when it is gone."""
        node = self.editor.segmentationNode()
        if node is None or node.GetSegmentation().GetSegment(segmentID) is None:
            return None
        if indexToRAS is None:
            indexToRAS, _ = self.editor.referenceGeometry()
        return SegmentVoxels(node, indexToRAS).mask(segmentID, voxels)

    # What is ours -------------------------------------------------------------------------------------------

    def adopt(self, segmentID: str, masks: Mapping[int, NDArray[np.bool_]], stack: SliceStack) -> None:
        """Take what (H, W) masks by slice and the segment have in common for ours; nothing is changed.

        For a scene that was loaded without what was noted when it was made: what the model says again, it
        had said before.
        """
        segments, grid = self._target(stack)
        segments.check(segmentID)
        notes = self._notesOf(segmentID, segments, grid.extent)
        if (self.segmentationKey(), segmentID) in self._recalled:
            return
        for group in _groups({stack.checked(n): stack.checked_mask(mask) for n, mask in masks.items()}):
            box = grid.extentOfMasks(group)
            if box.isEmpty:
                continue
            voxels, wanted = grid.sample(group, box)
            if not voxels.isEmpty:
                bits = notes.read(voxels).copy()
                bits[wanted & segments.mask(segmentID, voxels)] |= OURS | KNOWN
                notes.write(voxels, bits)

    def own(self, segmentID: str, slices: Sequence[int], stack: SliceStack) -> None:
        """Take all of a segment on some slices for ours, its erasures for forgotten: what is written
        next takes its place. Raises as :meth:`segmentMasks`.
        """
        segments, grid = self._target(stack)
        segments.check(segmentID)
        notes, everything = self._notesOf(segmentID, segments, grid.extent), np.ones(stack.shape_hw, bool)
        for group in _groups({stack.checked(n): everything for n in slices}):
            box = grid.extentOfSlices(min(group), max(group))
            if box.isEmpty:
                continue
            voxels, inside = grid.sample(group, box)
            mask, before = segments.mask(segmentID, voxels), notes.read(voxels)
            after = np.where(inside, mask * np.uint8(OURS | KNOWN), before)
            if (after != before).any():
                near, index = voxels.subset(after != before)
                mask, before = mask[index].copy(), before[index].copy()
                notes.write(near, after[index])
                change = Change(segmentID, near, mask, mask, before, after[index])
                self._tell([change], segments.indexToRAS)

    def forget(self, segmentID: str) -> None:
        """Take all of a segment for the user's own from now on, and its erasures for forgotten."""
        key = (self.segmentationKey(), segmentID)
        self._notes.pop(key, None)
        self._recalled.discard(key)

    def trust(self) -> None:
        """What is noted is all there is to know: nothing is adopted for these segments."""
        self._recalled |= set(self._notes)

    def hardened(self, matrix: NDArray[np.float64]) -> None:
        """The segmentation's own RAS was taken through a transform (4, 4), its voxels with it."""
        for notes in self._notesHere().values():
            notes.indexToRAS = matrix @ notes.indexToRAS
            notes.stamp += 1

    def look(self) -> None:
        """Look at all that is noted: somebody else changed the segmentation."""
        node = self.editor.segmentationNode()
        for segmentID, notes in self._notesHere().items():
            segments = SegmentVoxels(node, notes.indexToRAS)
            state = segments.state(segmentID)
            if state is not None and state != notes.seen:
                if not notes.used.isEmpty:
                    notes.look(lambda box, segments=segments, of=segmentID: segments.mask(of, box))
                notes.seen = state

    def restoreNotes(self, segmentID: str, voxels: Voxels, notes: NDArray[np.uint8] | None) -> None:
        """Put notes back as they were before or after a change (undo and redo)."""
        kept = self._notes.get((self.segmentationKey(), segmentID))
        if kept is not None and notes is not None and voxels.extent.union(kept.extent) == kept.extent:
            kept.write(voxels, notes)

    def knownMasks(
        self, segmentID: str, stack: SliceStack, slices: Sequence[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """(H, W) what was written last on slices and is still there, as far as it is known.

        Raises as :meth:`segmentMasks`.
        """
        segments, grid = self._target(stack)
        segments.check(segmentID)
        notes = self._notesOf(segmentID, segments, grid.extent)
        return grid.masksOf(
            lambda voxels: notes.read(voxels) & KNOWN != 0, [stack.checked(n) for n in slices]
        )

    def oursMasks(
        self, segmentID: str, stack: SliceStack, slices: Sequence[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """(H, W) what we wrote on slices and is still there. Raises as :meth:`segmentMasks`."""
        segments, grid = self._target(stack)
        segments.check(segmentID)
        notes = self._notesOf(segmentID, segments, grid.extent)
        return grid.masksOf(lambda voxels: notes.read(voxels) & OURS != 0, [stack.checked(n) for n in slices])

    def noted(self, segmentationNode: Any) -> dict[str, SegmentNotes]:
        """The notes about segments of a segmentation, by segment; not to be changed."""
        key = self.segmentationKey(segmentationNode)
        return {segmentID: notes for (owner, segmentID), notes in self._notes.items() if owner == key}

    def segmentationKey(self, segmentationNode: Any = None) -> str:
        """Tells a segmentation, by default the one being edited, from every other; empty for none."""
        node = segmentationNode or self.editor.segmentationNode()
        return "" if node is None else f"{node.GetID()} {node.GetSegmentation().__this__}"

    def revert(self, patch: Patch) -> None:
        """Make what a patch changed, where nobody changed it since, what it was before."""
        if self.maskOf(patch.segmentID, patch.voxels) is None:
            return
        node, voxels = self.editor.segmentationNode(), patch.voxels
        segments = SegmentVoxels(node, patch.indexToRAS)
        current = segments.mask(patch.segmentID, voxels).copy()
        before, after = patch.mask(BEFORE), patch.mask(AFTER)
        ours = (before != after) & (current == after)
        self.apply(patch.segmentID, voxels, add=ours & before, remove=ours & ~before)
        change = Change(patch.segmentID, voxels, current, segments.mask(patch.segmentID, voxels).copy())
        notes, kept = patch.notes(BEFORE), self._notes.get((self.segmentationKey(), patch.segmentID))
        changes = [change]
        if notes is not None and kept is not None:
            was = kept.read(notes[0]).copy()
            self.restoreNotes(patch.segmentID, *notes)
            look = segments.mask(patch.segmentID, notes[0])
            changes.append(Change(patch.segmentID, notes[0], look, look, was, notes[1]))
        self._tell(changes, patch.indexToRAS)

    # Inside -------------------------------------------------------------------------------------------------

    def _target(self, stack: SliceStack) -> tuple[SegmentVoxels, SliceGrid]:
        node = self.editor.segmentationNode()
        if node is None:
            raise SegmentError("no segmentation is selected: choose one in the Segment Editor")
        indexToRAS, extent = self.editor.referenceGeometry()
        grid = SliceGrid(stack, transformToWorld(node) @ indexToRAS, Extent(*extent))
        return SegmentVoxels(node, indexToRAS), grid

    def _notesOf(self, segmentID: str, segments: SegmentVoxels, extent: Extent) -> SegmentNotes:
        key = (self.segmentationKey(), segmentID)
        notes = self._notes.get(key)
        if notes is None:
            notes = self.recall(segmentID, segments)
            if notes is not None:
                self._recalled.add(key)
        notes = notes or SegmentNotes(segments.indexToRAS, extent)
        self._notes[key] = notes.onGrid(segments.indexToRAS, extent)
        return self._notes[key]

    def _writeGroup(
        self,
        segmentID: str,
        masks: dict[int, NDArray[np.bool_]],
        asked: dict[int, NDArray[np.bool_]],
        grid: SliceGrid,
        segments: SegmentVoxels,
        notes: SegmentNotes,
    ) -> bool:
        slices = grid.extentOfSlices(min(masks), max(masks))
        box = grid.extentOfMasks(masks).union(slices.intersection(notes.used))
        voxels, wanted = (box, None) if box.isEmpty else grid.sample(masks, box)
        if voxels.isEmpty:
            return False
        before = segments.mask(segmentID, voxels).copy()  # what is read is Slicer's own memory
        bits = notes.looked(voxels, before)
        if asked:
            nowhere = np.zeros(grid.stack.shape_hw, dtype=bool)
            again = grid.sample({n: asked.get(n, nowhere) for n in masks}, box)[1]
            bits[again & (bits & ERASED != 0)] = 0
        add = wanted & ~before
        add &= bits & ERASED == 0
        remove = (bits & OURS != 0) & ~wanted
        touched = add | remove
        if not touched.any():
            notes.write(voxels, noted(bits, add, wanted, before))
            return False
        near, _ = voxels.subset(touched)
        others = self._others(segmentID, segments, near)
        notesBefore = notes.read(voxels).copy()
        here = self._notesHere()
        upToDate = [one for one in here if here[one].seen == segments.state(one) or here[one].used.isEmpty]
        self.apply(segmentID, voxels, add=add, remove=remove)
        after = segments.mask(segmentID, voxels).copy()
        notes.write(voxels, noted(bits, add, wanted, after))
        change = Change(segmentID, voxels, before, after, notesBefore, notes.read(voxels).copy())
        taken = self._changesOfOthers(others, self._others(segmentID, segments, near), near)
        for one in upToDate:  # only we have changed anything
            here[one].seen = segments.state(one)
        self._tell([change, *taken], segments.indexToRAS)
        return True

    def _notesHere(self) -> dict[str, SegmentNotes]:
        """By segment of the segmentation being edited."""
        return self.noted(None)

    def _others(
        self, segmentID: str, segments: SegmentVoxels, voxels: Voxels
    ) -> dict[str, NDArray[np.bool_]]:
        """Neighbours that this edit may change, as masks of their own; {} where Slicer leaves them alone."""
        node = self.editor.parameterSetNode()
        insideOne = node.GetMaskMode() == _insideSingleSegment()
        if node.GetOverwriteMode() == node.OverwriteNone and not insideOne:
            return {}
        return segments.others(segmentID, voxels)

    def _changesOfOthers(
        self, before: dict[str, NDArray[np.bool_]], after: dict[str, NDArray[np.bool_]], voxels: Voxels
    ) -> Iterator[Change]:
        """What overwriting took from neighbours; what we take from our own is no erasure of the user's."""
        for other in sorted({*before, *after}):
            was = before.get(other, np.zeros(voxels.shape, dtype=bool))
            now = after.get(other, np.zeros(voxels.shape, dtype=bool))
            if np.array_equal(was, now):
                continue
            change = Change(other, voxels, was, now)
            notes = self._notes.get((self.segmentationKey(), other))
            if notes is not None and voxels.extent.union(notes.extent) == notes.extent:
                change.notesBefore = notes.read(voxels).copy()
                change.notesAfter = np.where(was & ~now, np.uint8(0), change.notesBefore)
                notes.write(voxels, change.notesAfter)
            yield change

    def _tell(self, changes: list[Change], indexToRAS: NDArray[np.float64]) -> None:
        for change in changes:
            change.indexToRAS = indexToRAS
        for listener in self.written:
            listener(changes)


def _groups(masks: dict[int, NDArray[Any]]) -> Iterator[dict[int, NDArray[Any]]]:
    """Slices that follow one another: each group becomes one labelmap, unless it were very large."""
    group: dict[int, NDArray[Any]] = {}
    for n in sorted(masks):
        if group and (n - 1 not in group or len(group) * masks[n].size > _LARGEST_GROUP):
            yield group
            group = {}
        group[n] = masks[n]
    if group:
        yield group


def _insideSingleSegment() -> int:
    import slicer

    return slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
