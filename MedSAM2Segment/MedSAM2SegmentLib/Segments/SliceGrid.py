"""Slices of a volume on the grid of a segmentation: the pixel that each voxel is nearest to."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, VoxelList, Voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

# A voxel centre half-way between two pixels belongs to the one with the higher number, however the matrices
# were rounded.
_HALF = 0.5 + 1e-6
_STRAIGHT = 1e-3  # pixels by which an axis may lean over the whole grid and still count as parallel


class SliceGrid:
    """Slices of a volume on the grid of a segmentation.

    One matrix takes a voxel index of the segmentation to ``[x, y, n]`` of the stack, through the world; it
    includes spacing, direction, crop, shear and parent transforms of both.

    Parameters
    ----------
    stack : SliceStack
        Of a volume whose geometry is in world RAS.
    indexToWorld : (4, 4)
        From voxel indices of the segmentation to world RAS.
    extent : Extent
        The voxels that may be written.
    """

    def __init__(self, stack: SliceStack, indexToWorld: NDArray[np.float64], extent: Extent) -> None:
        self.stack = stack
        self.extent = extent
        self.indexToSlice = stack.ijk_to_xyn @ stack.volume.geometry.ras_to_ijk @ indexToWorld  # (4, 4)
        self.sliceToIndex = np.linalg.inv(self.indexToSlice)
        self._axes = self._straightAxes()

    def extentOfPixels(self, first_xyn: NDArray[Any], last_xyn: NDArray[Any]) -> Extent:
        """Return a box round the voxels that are nearest to pixels from ``first_xyn`` to ``last_xyn``."""
        sides = [(first - 0.5, last + 0.5) for first, last in zip(first_xyn, last_xyn, strict=True)]
        points = np.array(list(itertools.product(*sides))) @ self.sliceToIndex[:3, :3].T
        points += self.sliceToIndex[:3, 3]
        first, last = np.ceil(points.min(axis=0) - 1e-4), np.floor(points.max(axis=0) + 1e-4)
        return Extent.between(first, last).intersection(self.extent)

    def extentOfMasks(self, masks: Mapping[int, NDArray[np.bool_]]) -> Extent:
        """Return a box round the voxels that masks of slices may fill."""
        filled = {n: mask_hw for n, mask_hw in masks.items() if mask_hw.any()}
        if not filled:
            return NOWHERE
        rows, columns = (
            np.flatnonzero(np.any([mask_hw.any(axis=axis) for mask_hw in filled.values()], axis=0))
            for axis in (1, 0)
        )
        return self.extentOfPixels((columns[0], rows[0], min(filled)), (columns[-1], rows[-1], max(filled)))

    def extentOfSlices(self, first: int, last: int) -> Extent:
        """Return a box round the voxels of slices from ``first`` to ``last``."""
        height, width = self.stack.shape_hw
        return self.extentOfPixels((0, 0, first), (width - 1, height - 1, last))

    def sample(
        self, masks: Mapping[int, NDArray[np.bool_]], extent: Extent
    ) -> tuple[Voxels, NDArray[np.bool_]]:
        """Sample masks of slices at voxels.

        Parameters
        ----------
        masks
            (H, W) by slice number; the numbers follow one another.
        extent
            The box to sample.

        Returns
        -------
        voxels, wanted
            All voxels of the box whose nearest pixel lies in one of the slices, and whether it is set.
        """
        first = min(masks)
        stacked = np.stack([masks[n] for n in sorted(masks)])  # (N, H, W)
        if self._axes is not None:
            return self._sampleStraight(stacked, first, extent, self._axes)
        return self._sampleAcross(stacked, first, extent)

    def masksOf(
        self, read: Callable[[Voxels], NDArray[np.bool_]], slices: Sequence[int], filled: Extent
    ) -> dict[int, NDArray[np.bool_]]:
        """Return (H, W) masks of slices: of each pixel, the voxel nearest to its centre.

        Parameters
        ----------
        read
            Returns of voxels whether each is set.
        filled
            A box round all voxels that are set: other pixels are not looked up.
        """
        masks = {}
        for n in slices:
            masks[n] = np.zeros(self.stack.shape_hw, dtype=bool)
            rows, columns = self._pixelsOf(filled, n)
            if len(rows) and len(columns):
                area = masks[n][rows.start : rows.stop, columns.start : columns.stop]
                if self._axes is not None:
                    self._readStraight(area, read, (columns, rows, range(n, n + 1)), self._axes)
                else:
                    self._readAcross(area, read, (columns, rows, range(n, n + 1)))
        return masks

    def _pixelsOf(self, filled: Extent, n: int) -> tuple[range, range]:
        """Return rows and columns of slice ``n`` whose nearest voxels may lie in a box."""
        left, right, top, bottom, first, last = filled.onLattice(self.indexToSlice)
        if not first <= n <= last:
            return range(0), range(0)
        height, width = self.stack.shape_hw
        return range(max(top, 0), min(bottom + 1, height)), range(max(left, 0), min(right + 1, width))

    def _readStraight(
        self, area: NDArray[np.bool_], read: Callable[[Voxels], Any], xyn: tuple[range, ...], axes: list[int]
    ) -> None:
        """Fill the part of a mask that shows pixels ``xyn``, a plane of the grid."""
        height, width = self.stack.shape_hw
        middle = ((width - 1) / 2, (height - 1) / 2, xyn[2].start)
        index: list[Any] = [None] * 3  # by i, j, k
        inside = []  # by x, y, n
        for row, pixels in enumerate(xyn):
            axis = axes[row]
            # As in `_sampleStraight`, the other axes do not matter.
            offset = self.sliceToIndex[axis, 3] + sum(
                self.sliceToIndex[axis, other] * middle[other] for other in range(3) if other != row
            )
            position = np.floor(self.sliceToIndex[axis, row] * np.asarray(pixels) + offset + _HALF).astype(
                int
            )
            low, high = self.extent[2 * axis], self.extent[2 * axis + 1]
            found = np.flatnonzero((position >= low) & (position <= high))
            if not len(found):
                return
            index[axis] = position[found]
            inside.append(slice(int(found[0]), int(found[-1]) + 1))
        box = Extent.between(*(np.array([end(one) for one in index]) for end in (np.min, np.max)))
        i, j, k = (one - start for one, start in zip(index, box[::2], strict=True))
        values_kji = _taken(read(box), (k, j, i))
        area[inside[1], inside[0]] = values_kji.transpose([2 - axis for axis in reversed(axes)])[0]

    def _readAcross(
        self, area: NDArray[np.bool_], read: Callable[[Voxels], Any], xyn: tuple[range, ...]
    ) -> None:
        """Fill the part of a mask that shows pixels ``xyn``, across the planes of the grid."""
        columns, rows = np.asarray(xyn[0])[None, :], np.asarray(xyn[1])[:, None]
        ijk = np.empty((*area.shape, 3), dtype=np.int64)
        for axis, row in enumerate(self.sliceToIndex[:3]):
            along = row[0] * columns + row[1] * rows + (row[2] * xyn[2].start + row[3])
            ijk[..., axis] = np.floor(along + _HALF)
        low, high = self.extent[::2], self.extent[1::2]
        inside = ((ijk >= low) & (ijk <= high)).all(axis=2)
        area[inside] = read(VoxelList(ijk[inside]))

    def _straightAxes(self) -> list[int] | None:
        """The index axis that each of x, y, n is parallel to; None when one is oblique."""
        reach = np.abs(self.indexToSlice[:3, :3]) * np.array(self.extent.shape[::-1])
        axes = [int(axis) for axis in np.abs(self.indexToSlice[:3, :3]).argmax(axis=1)]
        lean = reach.copy()
        lean[np.arange(3), axes] = 0
        return axes if lean.max() < _STRAIGHT and sorted(axes) == [0, 1, 2] else None

    def _sampleStraight(
        self, stacked: NDArray[np.bool_], first: int, extent: Extent, axes: list[int]
    ) -> tuple[Extent, NDArray[np.bool_]]:
        depth, height, width = stacked.shape
        middle = (np.array(extent[::2]) + np.array(extent[1::2])) / 2
        positions: list[Any] = [None] * 3
        bounds: list[Any] = [None] * 3
        for row, size, start in zip(range(3), (width, height, depth), (0, 0, first), strict=True):
            axis = axes[row]
            index = np.arange(extent[2 * axis], extent[2 * axis + 1] + 1)
            # The other axes move a position by less than _STRAIGHT: their middle stands for all.
            offset = self.indexToSlice[row, 3] + sum(
                self.indexToSlice[row, other] * middle[other] for other in range(3) if other != axis
            )
            position = np.floor(self.indexToSlice[row, axis] * index + offset + _HALF).astype(int) - start
            inside = np.flatnonzero((position >= 0) & (position < size))
            if not len(inside):
                return NOWHERE, np.zeros(NOWHERE.shape, dtype=bool)
            positions[row] = position[inside]
            bounds[axis] = (int(index[inside[0]]), int(index[inside[-1]]))
        order = [[axes[2], axes[1], axes[0]].index(axis) for axis in (2, 1, 0)]  # from n, y, x to k, j, i
        wanted = _taken(stacked, positions[::-1]).transpose(order)
        return Extent(*(value for pair in bounds for value in pair)), np.ascontiguousarray(wanted)

    def _sampleAcross(
        self, stacked: NDArray[np.bool_], first: int, extent: Extent
    ) -> tuple[VoxelList, NDArray[np.bool_]]:
        """Sample only voxels of the slices themselves, however large the box around them is."""
        depth, height, width = stacked.shape
        step = self.indexToSlice[2, :3]  # change of n along i, j, k
        along = int(np.abs(step).argmax())
        others = [axis for axis in range(3) if axis != along]
        index = [np.arange(extent[2 * axis], extent[2 * axis + 1] + 1, dtype=np.float64) for axis in others]
        across = dict(zip(others, (index[0][:, None], index[1][None, :]), strict=True))
        rest = self.indexToSlice[2, 3] + sum(step[axis] * across[axis] for axis in others)
        ends = [(edge - rest) / step[along] for edge in (first - 0.5, first + depth - 0.5)]
        start = np.ceil(np.minimum(*ends) - 1e-3)
        found, wanted = [], []
        for offset in range(int(depth / abs(step[along])) + 2):
            points = {**across, along: start + offset}
            inside = (points[along] >= extent[2 * along]) & (points[along] <= extent[2 * along + 1])
            xyn = []
            for row, size, begin in zip(
                self.indexToSlice, (width, height, depth), (0, 0, first), strict=False
            ):
                place = np.floor(
                    sum(row[axis] * points[axis] for axis in range(3)) + (row[3] + _HALF - begin)
                )
                inside &= (place >= 0) & (place < size)
                xyn.append(place)
            x, y, n = (place[inside].astype(np.int64) for place in xyn)
            wanted.append(stacked[n, y, x])
            found.append(
                np.stack([np.broadcast_to(points[axis], rest.shape)[inside] for axis in range(3)], axis=1)
            )
        return VoxelList(np.concatenate(found).astype(np.int64)), np.concatenate(wanted)


def _taken(values: NDArray[Any], indices: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """Return ``values[np.ix_(*indices)]``; a view where they are consecutive, as on the volume's own grid."""
    slices = []
    for index in indices:
        step = 1 if len(index) == 1 or index[1] > index[0] else -1
        if (np.diff(index) != step).any():
            return values[np.ix_(*indices)]
        stop = int(index[-1]) + step
        slices.append(slice(int(index[0]), stop if stop >= 0 else None, step))
    return values[tuple(slices)]
