"""The voxels of a segmentation, and which pixel of which slice each of them is nearest to."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

# A voxel centre half-way between two pixels belongs to the one with the higher number, whatever the matrices
# were rounded to.
_TIE = 1e-6
_STRAIGHT = 1e-3  # pixels by which an axis may lean over the whole grid and still count as parallel


class Extent(NamedTuple):
    """First and last voxel index along i, j, k, as in VTK: both belong to it."""

    i0: int
    i1: int
    j0: int
    j1: int
    k0: int
    k1: int

    @classmethod
    def between(cls, first_ijk: NDArray, last_ijk: NDArray) -> Extent:
        """From first and last indices (3,)."""
        return cls(*(int(value) for pair in zip(first_ijk, last_ijk, strict=True) for value in pair))

    @property
    def isEmpty(self) -> bool:
        """Whether no voxel belongs to it."""
        return self.i0 > self.i1 or self.j0 > self.j1 or self.k0 > self.k1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, J, I) of an array of its voxels."""
        return (
            max(self.k1 - self.k0 + 1, 0),
            max(self.j1 - self.j0 + 1, 0),
            max(self.i1 - self.i0 + 1, 0),
        )

    def within(self, outer: Extent) -> tuple[slice, slice, slice]:
        """Where its voxels are in a (k, j, i) array of ``outer``."""
        return (
            slice(self.k0 - outer.k0, self.k1 - outer.k0 + 1),
            slice(self.j0 - outer.j0, self.j1 - outer.j0 + 1),
            slice(self.i0 - outer.i0, self.i1 - outer.i0 + 1),
        )

    def intersection(self, other: Extent) -> Extent:
        """The voxels of both; may be empty."""
        pairs = zip(self, other, (max, min) * 3, strict=True)
        return Extent(*(choose(mine, its) for mine, its, choose in pairs))

    def union(self, other: Extent) -> Extent:
        """The smallest extent that holds both; an empty one adds nothing."""
        if self.isEmpty or other.isEmpty:
            return other if self.isEmpty else self
        pairs = zip(self, other, (min, max) * 3, strict=True)
        return Extent(*(choose(mine, its) for mine, its, choose in pairs))

    def around(self, mask_kji: NDArray[np.bool_]) -> Extent:
        """The part of it that a mask of its voxels fills; empty when the mask is."""
        bounds = []
        for axis in (2, 1, 0):  # i, j, k
            others = tuple(other for other in range(3) if other != axis)
            filled = np.flatnonzero(mask_kji.any(axis=others))
            if not len(filled):
                return NOWHERE
            start = self[2 * (2 - axis)]
            bounds += [start + int(filled[0]), start + int(filled[-1])]
        return Extent(*bounds)


NOWHERE = Extent(0, -1, 0, -1, 0, -1)


class SliceGrid:
    """Slices of a volume seen from the voxels of a segmentation.

    One matrix takes a voxel index of the segmentation to ``[x, y, n]`` of the stack, through the world: so
    neither side's spacing, direction, crop, shear or parent transform needs a thought of its own.

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

    def extentOfPixels(self, first_xyn: NDArray, last_xyn: NDArray) -> Extent:
        """The voxels that may be nearest to pixels from ``first_xyn`` to ``last_xyn`` (both belong to it)."""
        sides = [
            (first - 0.5, last + 0.5)
            for first, last in zip(np.asarray(first_xyn), np.asarray(last_xyn), strict=True)
        ]
        corners = np.array(list(itertools.product(*sides)))
        points = corners @ self.sliceToIndex[:3, :3].T + self.sliceToIndex[:3, 3]
        first, last = np.ceil(points.min(axis=0) - _TIE), np.floor(points.max(axis=0) + _TIE)
        return Extent.between(first, last).intersection(self.extent)

    def sample(
        self, masks: Mapping[int, NDArray[np.bool_]], extent: Extent
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
        """What masks of neighbouring slices say about voxels.

        Parameters
        ----------
        masks
            (H, W) by slice number; the numbers follow one another.
        extent
            The voxels asked about.

        Returns
        -------
        wanted, member
            (K, J, I) of ``extent``: whether the nearest pixel is set; whether the nearest pixel lies in one of
            the slices (None: all do).
        """
        first = min(masks)
        stacked = np.stack([masks[n] for n in sorted(masks)])  # (N, H, W)
        axes = self._straightAxes()
        if axes is not None:
            return self._sampleStraight(stacked, first, extent, axes)
        return self._sampleAnyhow(stacked, first, extent)

    def _straightAxes(self) -> list[int] | None:
        """The index axis that each of x, y, n runs along; None when one of them leans."""
        reach = np.abs(self.indexToSlice[:3, :3]) * np.array(self.extent.shape[::-1])
        axes = [int(axis) for axis in reach.argmax(axis=1)]
        lean = reach.copy()
        lean[np.arange(3), axes] = 0
        return axes if lean.max() < _STRAIGHT and sorted(axes) == [0, 1, 2] else None

    def _sampleStraight(
        self, stacked: NDArray[np.bool_], first: int, extent: Extent, axes: list[int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
        depth, height, width = stacked.shape
        # An index lies off its place along the other axes by less than _STRAIGHT: the middle of the grid decides.
        middle = np.array([(extent[2 * axis] + extent[2 * axis + 1]) / 2 for axis in range(3)])
        positions, inside = [], []
        for row, (axis, size, start) in enumerate(
            zip(axes, (width, height, depth), (0, 0, first), strict=True)
        ):
            index = np.arange(extent[2 * axis], extent[2 * axis + 1] + 1)
            points = np.tile(middle, (len(index), 1))
            points[:, axis] = index
            place = points @ self.indexToSlice[row, :3] + self.indexToSlice[row, 3]
            place = np.floor(place + 0.5 + _TIE).astype(np.int64) - start
            inside.append((place >= 0) & (place < size))
            positions.append(np.clip(place, 0, size - 1))
        order = [[axes[2], axes[1], axes[0]].index(axis) for axis in (2, 1, 0)]  # from (n, y, x) to (k, j, i)
        wanted = stacked[np.ix_(positions[2], positions[1], positions[0])].transpose(order)
        if all(one.all() for one in inside):
            return wanted, None
        member = np.zeros(wanted.shape, dtype=bool)
        member[np.ix_(*(inside[axes.index(axis)] for axis in (2, 1, 0)))] = True
        return wanted & member, member

    def _sampleAnyhow(
        self, stacked: NDArray[np.bool_], first: int, extent: Extent
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Only voxels of the slices themselves are looked at, however large the box around them is."""
        depth, height, width = stacked.shape
        wanted, member = np.zeros(extent.shape, dtype=bool), np.zeros(extent.shape, dtype=bool)
        step = self.indexToSlice[2, :3]  # change of n along i, j, k
        along = int(np.abs(step).argmax())
        index = [np.arange(extent[2 * axis], extent[2 * axis + 1] + 1, dtype=np.float64) for axis in range(3)]
        others = [axis for axis in range(3) if axis != along]
        grid = dict(zip(others, np.meshgrid(*(index[axis] for axis in others), indexing="ij"), strict=True))
        rest = self.indexToSlice[2, 3] + sum(step[axis] * grid[axis] for axis in others)
        ends = [(first - 0.5 - rest) / step[along], (first + depth - 0.5 - rest) / step[along]]
        start = np.ceil(np.minimum(*ends) - 1e-3)
        for offset in range(int(depth / abs(step[along])) + 2):
            points = {**grid, along: start + offset}
            x, y, n = (
                np.floor(sum(row[axis] * points[axis] for axis in range(3)) + row[3] + 0.5 + _TIE).astype(
                    np.int64
                )
                for row in self.indexToSlice[:3]
            )
            n -= first
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (n >= 0) & (n < depth)
            inside &= (points[along] >= extent[2 * along]) & (points[along] <= extent[2 * along + 1])
            i, j, k = ((points[axis][inside] - extent[2 * axis]).astype(np.int64) for axis in range(3))
            member[k, j, i] = True
            wanted[k, j, i] = stacked[n[inside], y[inside], x[inside]]
        return wanted, member


def worldExtent(masks: Mapping[int, NDArray[np.bool_]]) -> tuple[NDArray, NDArray] | None:
    """First and last ``[x, y, n]`` that masks fill; None when they are empty."""
    filled = {n: mask_hw for n, mask_hw in masks.items() if mask_hw.any()}
    if not filled:
        return None
    rows, columns = (
        np.flatnonzero(np.any([mask_hw.any(axis=axis) for mask_hw in filled.values()], axis=0))
        for axis in (1, 0)
    )
    return (
        np.array([columns[0], rows[0], min(filled)]),
        np.array([columns[-1], rows[-1], max(filled)]),
    )
