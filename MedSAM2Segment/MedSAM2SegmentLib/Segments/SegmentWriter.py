"""Writes masks of slices into segments, through Slicer's own edit functions; the user's voxels stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer

from MedSAM2SegmentLib.Segments.Editors import ADD, REMOVE, SegmentEditor, SegmentError, transformToWorld
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels, labelmapOf
from MedSAM2SegmentLib.Segments.SliceGrid import SliceGrid
from MedSAM2SegmentLib.Segments.VoxelOwnership import ERASED, KNOWN, OURS, VoxelOwnership, bitsAfterEdit
from MedSAM2SegmentLib.Segments.VoxelSets import Voxels

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

_LARGEST_GROUP = 1 << 23  # pixels: more at once costs more in fresh memory than it saves in calls


@dataclass
class Change:
    """What one edit changed in one segment.

    Attributes
    ----------
    segmentID, voxels
        Where, on the grid ``indexToRAS`` (4, 4).
    before, after
        Masks, as arrays of the voxels' shape.
    bitsBefore, bitsAfter
        Ownership bits, likewise; None for a segment that has none.
    """

    segmentID: str
    voxels: Voxels
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    bitsBefore: NDArray[np.uint8] | None = None
    bitsAfter: NDArray[np.uint8] | None = None
    indexToRAS: NDArray[np.float64] | None = None


class SegmentWriter:
    """Writes masks of slices into segments, and keeps which voxels are ours.

    What the user painted is never removed, and what the user erased is not added again: see
    :mod:`~MedSAM2SegmentLib.Segments.VoxelOwnership` for the contract.

    Parameters
    ----------
    editor : SegmentEditor
        The segmentation it edits now is the writer's, for good.

    Attributes
    ----------
    segmentation
        ``vtkMRMLSegmentationNode``.
    written : list of callables
        Called with a list of :class:`Change` after each edit.
    ownerships
        By segment; not to be changed.
    recall
        Returns, for a segment, its ownership from before there was this
        writer (see ``ProvenanceStore.recall``); None for nothing.
    """

    def __init__(self, editor: SegmentEditor) -> None:
        self.editor, self.segmentation = editor, editor.segmentationNode()
        self.written: list[Callable[[list[Change]], None]] = []
        self.recall: Callable[[str, SegmentVoxels], VoxelOwnership | None] = lambda segmentID, segments: None
        self.ownerships: dict[str, VoxelOwnership] = {}
        self._recalled: set[str] = set()
        self._isStepDue = False

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
        """Make the segment on some slices equal to masks, as far as the voxels are ours.

        Parameters
        ----------
        segmentID
            Any segment of the segmentation.
        masks
            (H, W) by slice number of ``stack``.
        stack : SliceStack
            Of a volume whose geometry is in world RAS.
        newStep
            Whether this begins a step of Slicer's undo. It begins when something really changes: with this
            call, or with a later one.
        revived
            (H, W) by slice number: where the user asked for voxels that were erased before (a foreground
            point there), so that they come back.

        Returns
        -------
        changed
            Whether any voxel was asked to change. Slicer's masking may have refused it.

        Raises
        ------
        SegmentError, GeometryError
            The segment is gone or cannot be edited, or the masks do not fit the stack: nothing is written.
        """
        self._isStepDue |= newStep
        checked = {stack.checked(n): stack.checked_mask(mask_hw) for n, mask_hw in masks.items()}
        segments, grid, ownership = self._target(segmentID, stack)
        changed = False
        for group in _groups(checked):
            asked = {n: revived[n] for n in group if n in revived} if revived else {}
            changed |= self._writeGroup(segmentID, group, asked, grid, segments, ownership)
        return changed

    def beginStep(self) -> None:
        """Let the next edit begin a step of Slicer's undo."""
        self._isStepDue = True

    def beginStepNow(self) -> None:
        """Begin a step of Slicer's undo, for more than edits."""
        self._isStepDue = False
        self.editor.saveStateForUndo()

    def revert(
        self,
        segmentID: str,
        indexToRAS: NDArray[np.float64],
        voxels: Voxels,
        masks: tuple[NDArray[np.bool_], NDArray[np.bool_]],
        bits: tuple[Voxels, NDArray[np.uint8]] | None,
    ) -> None:
        """Revert an edit where nobody changed the voxels since.

        Parameters
        ----------
        voxels, masks
            Where, and whether they were in the segment before and after the edit.
        bits
            Voxels and their ownership bits before the edit; None for none.
        """
        segments = SegmentVoxels(self.segmentation, indexToRAS)
        if segments.segmentation.GetSegment(segmentID) is None:
            return
        current = segments.mask(segmentID, voxels).copy()
        before, after = masks
        ours = (before != after) & (current == after)
        self._edit(segmentID, voxels, add=ours & before, remove=ours & ~before)
        changes = [Change(segmentID, voxels, current, segments.mask(segmentID, voxels).copy())]
        ownership = self.ownerships.get(segmentID)
        if bits is not None and ownership is not None:
            was = ownership.read(bits[0]).copy()
            self.restoreBits(segmentID, *bits)
            now = segments.mask(segmentID, bits[0])
            changes.append(Change(segmentID, bits[0], now, now, was, bits[1]))
        self._report(changes, indexToRAS)

    # Reading ------------------------------------------------------------------------------------------------

    def segmentMasks(
        self, segmentID: str, stack: SliceStack, slices: Sequence[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """Return (H, W) masks of slices of the segment: of each pixel, the voxel nearest to its centre.

        Raises
        ------
        SegmentError, GeometryError
            The segment is gone; there is no such slice.
        """
        segments, grid = self._checkedTarget(segmentID, stack)
        return grid.masksOf(
            lambda voxels: segments.mask(segmentID, voxels),
            [stack.checked(n) for n in slices],
            segments.filled(segmentID),
        )

    def maskOf(
        self, segmentID: str, voxels: Voxels, indexToRAS: NDArray[np.float64] | None = None
    ) -> NDArray[np.bool_] | None:
        """Return the segment at voxels of the segmentation's grid, or of another; None when it is gone."""
        if self.segmentation.GetSegmentation().GetSegment(segmentID) is None:
            return None
        if indexToRAS is None:
            indexToRAS, _ = self.editor.referenceGeometry()
        return SegmentVoxels(self.segmentation, indexToRAS).mask(segmentID, voxels)

    # Ownership ----------------------------------------------------------------------------------------------

    def adopt(self, segmentID: str, masks: Mapping[int, NDArray[np.bool_]], stack: SliceStack) -> None:
        """Take the voxels that (H, W) masks by slice and the segment have in common for ours.

        For a scene that was saved without ownership: what the model finds again, it had found before.
        """
        segments, grid, ownership = self._target(segmentID, stack)
        if segmentID in self._recalled:
            return
        for group in _groups({stack.checked(n): stack.checked_mask(mask) for n, mask in masks.items()}):
            box = grid.extentOfMasks(group)
            if box.isEmpty:
                continue
            voxels, wanted = grid.sample(group, box)
            if not voxels.isEmpty:
                bits = ownership.read(voxels).copy()
                bits[wanted & segments.mask(segmentID, voxels)] |= OURS | KNOWN
                ownership.write(voxels, bits)

    def own(self, segmentID: str, slices: Sequence[int], stack: SliceStack) -> None:
        """Take all of a segment on some slices for ours, without erasures: it is going to be replaced.

        Raises as :meth:`segmentMasks`.
        """
        segments, grid, ownership = self._target(segmentID, stack)
        everything = np.ones(stack.shape_hw, bool)
        for group in _groups({stack.checked(n): everything for n in slices}):
            box = grid.extentOfSlices(min(group), max(group))
            if box.isEmpty:
                continue
            voxels, inside = grid.sample(group, box)
            mask, before = segments.mask(segmentID, voxels), ownership.read(voxels)
            after = np.where(inside, mask * np.uint8(OURS | KNOWN), before)
            if (after != before).any():
                near, index = voxels.subset(after != before)
                mask, before = mask[index].copy(), before[index].copy()
                ownership.write(near, after[index])
                change = Change(segmentID, near, mask, mask, before, after[index])
                self._report([change], segments.indexToRAS)

    def disown(self, segmentID: str) -> None:
        """Take all of a segment for the user's own from now on, without erasures."""
        self.ownerships.pop(segmentID, None)
        self._recalled.discard(segmentID)

    def trust(self) -> None:
        """Take the present ownership as complete: nothing is adopted for these segments."""
        self._recalled |= set(self.ownerships)

    def hardened(self, matrix: NDArray[np.float64]) -> None:
        """Follow the segmentation's own RAS, and its voxels, through a transform (4, 4)."""
        for ownership in self.ownerships.values():
            ownership.indexToRAS = matrix @ ownership.indexToRAS
            ownership.stamp += 1

    def updateOwnership(self) -> None:
        """Compare the segments with their ownership: somebody else changed the segmentation."""
        for segmentID, ownership in self.ownerships.items():
            segments = SegmentVoxels(self.segmentation, ownership.indexToRAS)
            state = segments.state(segmentID)
            if state is not None and state != ownership.checked:
                if not ownership.used.isEmpty:
                    ownership.update(
                        lambda box, segments=segments, of=segmentID: segments.mask(of, box),
                        segments.filled(segmentID),
                    )
                ownership.checked = state

    def restoreBits(self, segmentID: str, voxels: Voxels, bits: NDArray[np.uint8]) -> None:
        """Restore ownership bits from before or after a change (undo and redo)."""
        ownership = self.ownerships.get(segmentID)
        if ownership is not None and voxels.extent.union(ownership.extent) == ownership.extent:
            ownership.write(voxels, bits)

    def masksOf(
        self, bit: int, segmentID: str, stack: SliceStack, slices: Sequence[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """Return (H, W) masks of slices: where a segment is ``OURS``, or what of us is ``KNOWN`` to be there.

        Raises as :meth:`segmentMasks`.
        """
        _, grid, ownership = self._target(segmentID, stack)
        return grid.masksOf(
            lambda voxels: ownership.read(voxels) & bit != 0,
            [stack.checked(n) for n in slices],
            ownership.used,
        )

    def showsOurs(self, segmentID: str) -> bool:
        """Whether a segment shows a voxel that we added; without ownership, whether it shows any."""
        if segmentID not in self.ownerships:
            return SegmentVoxels(self.segmentation, np.eye(4)).hasAny(segmentID)
        return self._shows(segmentID, lambda bits: bits & OURS != 0)

    def showsKept(self, segmentID: str) -> bool:
        """Whether a segment shows voxels that we were to remove, and Slicer's masking did not allow."""
        return self._shows(segmentID, lambda bits: bits & (OURS | KNOWN) == OURS)

    def wasEdited(self, segmentID: str) -> bool:
        """Whether somebody has certainly added voxels to ours, or erased some; False without ownership."""
        ownership = self.ownerships.get(segmentID)
        if ownership is None or ownership.used.isEmpty:
            return False
        isErased = bool((ownership.read(ownership.used) & ERASED).any())
        return isErased or self._shows(segmentID, lambda bits: bits & OURS == 0, isAnywhere=True)

    def _shows(
        self, segmentID: str, isMeant: Callable[[Any], NDArray[np.bool_]], *, isAnywhere: bool = False
    ) -> bool:
        """Whether a voxel of the segment has bits that are meant; mostly the first planes decide."""
        ownership = self.ownerships.get(segmentID)
        if ownership is None:
            return False
        segments = SegmentVoxels(self.segmentation, ownership.indexToRAS)
        box = ownership.extent if isAnywhere else ownership.used
        planes = () if box.isEmpty else box.planes()
        return any(
            bool((segments.mask(segmentID, plane) & isMeant(ownership.read(plane))).any()) for plane in planes
        )

    # Inside -------------------------------------------------------------------------------------------------

    def _checkedTarget(self, segmentID: str, stack: SliceStack) -> tuple[SegmentVoxels, SliceGrid]:
        node = self.segmentation
        if node is None or node is not self.editor.segmentationNode():
            raise SegmentError(
                "no segmentation is selected, or another one: choose it in the Segment Editor",
                code="no-segmentation",
            )
        indexToRAS, extent = self.editor.referenceGeometry()
        grid = SliceGrid(stack, transformToWorld(node) @ indexToRAS, extent)
        segments = SegmentVoxels(node, indexToRAS)
        segments.check(segmentID)
        return segments, grid

    def _target(self, segmentID: str, stack: SliceStack) -> tuple[SegmentVoxels, SliceGrid, VoxelOwnership]:
        segments, grid = self._checkedTarget(segmentID, stack)
        ownership = self.ownerships.get(segmentID)
        if ownership is None:
            ownership = self.recall(segmentID, segments)
            if ownership is not None:
                self._recalled.add(segmentID)
        ownership = ownership or VoxelOwnership(segments.indexToRAS, grid.extent)
        self.ownerships[segmentID] = ownership.onGrid(segments.indexToRAS, grid.extent)
        return segments, grid, self.ownerships[segmentID]

    def _edit(
        self, segmentID: str, voxels: Voxels, *, add: NDArray[np.bool_], remove: NDArray[np.bool_]
    ) -> None:
        """Edit voxels as Slicer's effects do, in a step that is already due or open."""
        indexToRAS, _ = self.editor.referenceGeometry()
        for mode, mask in ((REMOVE, remove), (ADD, add)):
            if mask.any():
                if self._isStepDue:
                    self.editor.saveStateForUndo()
                    self._isStepDue = False
                labelmap, _ = labelmapOf(mask, voxels, indexToRAS)
                self.editor.modifySegment(segmentID, labelmap, mode)

    def _writeGroup(
        self,
        segmentID: str,
        masks: dict[int, NDArray[np.bool_]],
        asked: dict[int, NDArray[np.bool_]],
        grid: SliceGrid,
        segments: SegmentVoxels,
        ownership: VoxelOwnership,
    ) -> bool:
        slices = grid.extentOfSlices(min(masks), max(masks))
        box = grid.extentOfMasks(masks).union(slices.intersection(ownership.used))
        voxels, wanted = (box, None) if box.isEmpty else grid.sample(masks, box)
        if voxels.isEmpty:
            return False
        before = segments.mask(segmentID, voxels).copy()  # what is read is Slicer's own memory
        bits = ownership.bitsFor(voxels, before)
        if asked:
            nowhere = np.zeros(grid.stack.shape_hw, dtype=bool)
            again = grid.sample({n: asked.get(n, nowhere) for n in masks}, box)[1]
            bits[again & (bits & ERASED != 0)] = 0
        add = wanted & ~before
        add &= bits & ERASED == 0
        remove = (bits & OURS != 0) & ~wanted
        touched = add | remove
        if not touched.any():
            ownership.write(voxels, bitsAfterEdit(bits, add, wanted, before))
            return False
        near, _ = voxels.subset(touched)
        others = self._others(segmentID, segments, near)
        bitsBefore = ownership.read(voxels).copy()
        here = self.ownerships
        upToDate = [one for one in here if here[one].checked == segments.state(one) or here[one].used.isEmpty]
        self._edit(segmentID, voxels, add=add, remove=remove)
        after = segments.mask(segmentID, voxels).copy()
        ownership.write(voxels, bitsAfterEdit(bits, add, wanted, after))
        change = Change(segmentID, voxels, before, after, bitsBefore, ownership.read(voxels).copy())
        taken = self._changesOfOthers(others, self._others(segmentID, segments, near), near)
        for one in upToDate:  # only we have changed anything
            here[one].checked = segments.state(one)
        self._report([change, *taken], segments.indexToRAS)
        return True

    def _others(
        self, segmentID: str, segments: SegmentVoxels, voxels: Voxels
    ) -> dict[str, NDArray[np.bool_]]:
        """Neighbours that this edit may change, as masks of their own; {} where Slicer leaves them alone."""
        node = self.editor.parameterSetNode()
        inside = slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
        if node.GetOverwriteMode() == node.OverwriteNone and node.GetMaskMode() != inside:
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
            ownership = self.ownerships.get(other)
            if ownership is not None and voxels.extent.union(ownership.extent) == ownership.extent:
                change.bitsBefore = ownership.read(voxels).copy()
                change.bitsAfter = np.where(was & ~now, np.uint8(0), change.bitsBefore)
                ownership.write(voxels, change.bitsAfter)
            yield change

    def _report(self, changes: list[Change], indexToRAS: NDArray[np.float64]) -> None:
        for change in changes:
            change.indexToRAS = indexToRAS
        for listener in self.written:
            listener(changes)


def _groups(masks: dict[int, NDArray[Any]]) -> Iterator[dict[int, NDArray[Any]]]:
    """Yield groups of consecutive slices: each becomes one labelmap, unless it were very large."""
    group: dict[int, NDArray[Any]] = {}
    for n in sorted(masks):
        if group and (n - 1 not in group or len(group) * masks[n].size > _LARGEST_GROUP):
            yield group
            group = {}
        group[n] = masks[n]
    if group:
        yield group
