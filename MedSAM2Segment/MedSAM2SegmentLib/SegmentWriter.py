"""Masks of slices into segments, through Slicer's own edit functions, without touching what the user made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from MedSAM2SegmentLib.Editors import ADD, REMOVE, SegmentEditor, SegmentError, transformToWorld
from MedSAM2SegmentLib.SegmentVoxels import SegmentVoxels, labelmapOf
from MedSAM2SegmentLib.TargetGrid import NOWHERE, Extent, SliceGrid, worldExtent

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

# What is noted about each voxel of a segment, as bits.
OURS = 1  # put there by us, and there when last looked
KNOWN = 2  # wanted by us and there when last looked: if it is missing now, somebody else took it
ERASED = 4  # taken away by the user: not ours to put back


@dataclass
class Change:
    """What one call of Slicer's edit functions changed in one segment.

    Attributes
    ----------
    segmentID, extent
        Where.
    before, after
        (K, J, I) masks of the extent.
    notesBefore, notesAfter
        (K, J, I) notes of the writer; None for a segment it never wrote to.
    """

    segmentID: str
    extent: Extent
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    notesBefore: NDArray[np.uint8] | None = None
    notesAfter: NDArray[np.uint8] | None = None


@dataclass
class _Notes:
    """Notes about the voxels of one segment, on the segmentation's grid."""

    indexToRAS: NDArray[np.float64]  # (4, 4)
    extent: Extent
    bits: NDArray[np.uint8] = field(init=False)  # (K, J, I); memory is only taken where something is noted
    used: Extent = NOWHERE

    def __post_init__(self) -> None:
        self.bits = np.zeros(self.extent.shape, dtype=np.uint8)

    def view(self, extent: Extent) -> NDArray[np.uint8]:
        """(K, J, I) of an extent; writing to it writes here."""
        return self.bits[extent.within(self.extent)]


class SegmentWriter:
    """Writes masks of slices into segments, and knows afterwards what it wrote.

    What the user painted is never removed, and what the user erased is not put back, however often the same
    slice is written: voxels are noted as ours only when they were not there before, and a voxel that was
    there after we wrote and is missing now was erased by somebody.

    Parameters
    ----------
    editor : SegmentEditor

    Attributes
    ----------
    written : list of callables
        Called with a list of :class:`Change` after each change.
    """

    def __init__(self, editor: SegmentEditor) -> None:
        self.editor = editor
        self.written: list[Callable[[list[Change]], None]] = []
        self._notes: dict[str, _Notes] = {}
        self._stepDue = False

    def write(
        self, segmentID: str, masks: Mapping[int, NDArray[np.bool_]], stack: SliceStack, *, newStep: bool
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

        Returns
        -------
        changed
            Whether any voxel was asked to change.

        Raises
        ------
        SegmentError, GeometryError
            When the segment is gone or cannot be edited. What other slices have been written stays.
        """
        self._stepDue |= newStep
        checked = {stack.checked(n): stack.checked_mask(mask_hw) for n, mask_hw in masks.items()}
        voxels, grid = self._target(stack)
        voxels.check(segmentID)
        notes = self._notesOf(segmentID, voxels, grid.extent)
        changed = [self._writeGroup(segmentID, group, grid, voxels, notes) for group in _groups(checked)]
        return any(changed)

    def segmentMasks(
        self, segmentID: str, stack: SliceStack, slices: list[int]
    ) -> dict[int, NDArray[np.bool_]]:
        """(H, W) masks of slices of the segment as it stands: of each pixel, the voxel nearest to its centre."""
        voxels, grid = self._target(stack)
        voxels.check(segmentID)
        height, width = stack.shape_hw
        masks = {}
        y, x = np.mgrid[:height, :width]
        for n in slices:
            points = np.stack([x.ravel(), y.ravel(), np.full(x.size, stack.checked(n))], axis=1)
            points = points @ grid.sliceToIndex[:3, :3].T + grid.sliceToIndex[:3, 3]
            index = np.floor(points + 0.5 + 1e-6).astype(np.int64)
            extent = Extent.between(index.min(axis=0), index.max(axis=0)).intersection(grid.extent)
            mask_hw = np.zeros(height * width, dtype=bool)
            if not extent.isEmpty:
                i, j, k = (index - [extent.i0, extent.j0, extent.k0]).T
                depth, rows, columns = extent.shape
                inside = (i >= 0) & (i < columns) & (j >= 0) & (j < rows) & (k >= 0) & (k < depth)
                mask_hw[inside] = voxels.mask(segmentID, extent)[k[inside], j[inside], i[inside]]
            masks[n] = mask_hw.reshape(height, width)
        return masks

    def forget(self, segmentID: str) -> None:
        """Take all of a segment for the user's own from now on."""
        self._notes.pop(segmentID, None)

    def maskOf(self, segmentID: str, extent: Extent) -> NDArray[np.bool_] | None:
        """(K, J, I) of the segment as it stands on its own grid; None when it is gone."""
        node = self.editor.segmentationNode()
        if node is None or node.GetSegmentation().GetSegment(segmentID) is None:
            return None
        return SegmentVoxels(node, self.editor.referenceGeometry()[0]).mask(segmentID, extent)

    def restoreNotes(self, segmentID: str, extent: Extent, notes_kji: NDArray[np.uint8] | None) -> None:
        """Put notes back as they were before or after a change (undo and redo)."""
        kept = self._notes.get(segmentID)
        if kept is not None and notes_kji is not None:
            kept.view(extent)[...] = notes_kji

    def _target(self, stack: SliceStack) -> tuple[SegmentVoxels, SliceGrid]:
        node = self.editor.segmentationNode()
        if node is None:
            raise SegmentError("no segmentation is selected: choose one in the Segment Editor")
        indexToRAS, extent = self.editor.referenceGeometry()
        grid = SliceGrid(stack, transformToWorld(node) @ indexToRAS, Extent(*extent))
        return SegmentVoxels(node, indexToRAS), grid

    def _notesOf(self, segmentID: str, voxels: SegmentVoxels, extent: Extent) -> _Notes:
        notes = self._notes.get(segmentID)
        if notes is None or notes.extent != extent or not np.allclose(notes.indexToRAS, voxels.indexToRAS):
            notes = self._notes[segmentID] = _Notes(voxels.indexToRAS, extent)
        return notes

    def _writeGroup(
        self,
        segmentID: str,
        masks: dict[int, NDArray[np.bool_]],
        grid: SliceGrid,
        voxels: SegmentVoxels,
        notes: _Notes,
    ) -> bool:
        extent = _extentOf(masks, grid, notes.used)
        if extent.isEmpty:
            return False
        wanted, member = grid.sample(masks, extent)
        current = voxels.mask(segmentID, extent)
        bits = notes.view(extent)
        gone = (bits & KNOWN).astype(bool) & ~current
        bits[gone] = ERASED
        bits[(bits & ERASED).astype(bool) & current] = 0  # painted again by the user
        add = wanted & ~current & ~(bits & ERASED).astype(bool)
        remove = (bits & OURS).astype(bool) & current & ~wanted
        if member is not None:
            remove &= member
        notes.used = notes.used.union(extent)
        if not add.any() and not remove.any():
            bits[wanted & current] |= KNOWN
            return False
        others = voxels.others(segmentID, extent)
        change = Change(segmentID, extent, current.copy(), current, bits.copy())
        self._apply(segmentID, extent, {REMOVE: remove, ADD: add}, voxels.indexToRAS)
        change.after = voxels.mask(segmentID, extent).copy()
        bits[add & change.after] |= OURS
        bits[~change.after & ~(bits & ERASED).astype(bool)] = 0
        bits[wanted & change.after] |= KNOWN
        if member is None:
            member = np.ones_like(wanted)
        bits[member & ~wanted] &= ~np.uint8(KNOWN)
        change.notesAfter = bits.copy()
        self._tell([change, *self._changesOfOthers(others, voxels.others(segmentID, extent), extent)])
        return True

    def _apply(
        self,
        segmentID: str,
        extent: Extent,
        masks: Mapping[str, NDArray[np.bool_]],
        indexToRAS: NDArray[np.float64],
    ) -> None:
        if self._stepDue:
            self.editor.saveStateForUndo()
            self._stepDue = False
        for mode, mask_kji in masks.items():
            if mask_kji.any():
                labelmap, _ = labelmapOf(mask_kji, extent, indexToRAS)
                self.editor.modifySegment(segmentID, labelmap, mode)

    def _changesOfOthers(
        self, before: dict[str, NDArray[np.bool_]], after: dict[str, NDArray[np.bool_]], extent: Extent
    ) -> Iterator[Change]:
        """Segments that overwriting took voxels from; what we took from our own is not the user's erasure."""
        for other in sorted({*before, *after}):
            was = before.get(other, np.zeros(extent.shape, dtype=bool))
            now = after.get(other, np.zeros(extent.shape, dtype=bool))
            if np.array_equal(was, now):
                continue
            change = Change(other, extent, was, now)
            notes = self._notes.get(other)
            if notes is not None:
                bits = notes.view(extent)
                change.notesBefore = bits.copy()
                bits[was & ~now] = 0
                change.notesAfter = bits.copy()
            yield change

    def _tell(self, changes: list[Change]) -> None:
        for listener in self.written:
            listener(changes)


def _groups(masks: dict[int, NDArray[np.bool_]]) -> Iterator[dict[int, NDArray[np.bool_]]]:
    """Slices that follow one another: each group becomes one labelmap."""
    group: dict[int, NDArray[np.bool_]] = {}
    for n in sorted(masks):
        if group and n - 1 not in group:
            yield group
            group = {}
        group[n] = masks[n]
    if group:
        yield group


def _extentOf(masks: dict[int, NDArray[np.bool_]], grid: SliceGrid, used: Extent) -> Extent:
    """Voxels that may change: those of the masks, and those of the slices that something is noted about."""
    height, width = grid.stack.shape_hw
    slices = grid.extentOfPixels(np.array([0, 0, min(masks)]), np.array([width - 1, height - 1, max(masks)]))
    filled = worldExtent(masks)
    extent = NOWHERE if filled is None else grid.extentOfPixels(*filled)
    return extent.union(slices.intersection(used) if not used.isEmpty else NOWHERE)
