"""Sets of voxels of a grid: a box, or a list where a box would hold mostly others.

Both have the same interface: values at the voxels are an array of the set's shape, and ``read`` and ``write``
copy between it and a (k, j, i) array of a larger extent.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_SAME = 1e-4  # voxels by which two lattices may differ and still count as one


class Extent(NamedTuple):
    """A box: first and last voxel index along i, j, k, inclusive, as in VTK."""

    i0: int
    i1: int
    j0: int
    j1: int
    k0: int
    k1: int

    @classmethod
    def between(cls, first_ijk: NDArray[Any], last_ijk: NDArray[Any]) -> Extent:
        """Create a box from first and last indices (3,)."""
        return cls(*(int(value) for pair in zip(first_ijk, last_ijk, strict=True) for value in pair))

    @property
    def isEmpty(self) -> bool:
        """Whether it holds no voxel."""
        return self.i0 > self.i1 or self.j0 > self.j1 or self.k0 > self.k1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, J, I)."""
        return max(self.k1 - self.k0 + 1, 0), max(self.j1 - self.j0 + 1, 0), max(self.i1 - self.i0 + 1, 0)

    @property
    def extent(self) -> Extent:
        """The box around all voxels: itself."""
        return self

    def within(self, outer: Extent) -> tuple[slice, slice, slice]:
        """Return the slices of its voxels in a (k, j, i) array of ``outer``, which holds all of them."""
        return (
            slice(self.k0 - outer.k0, self.k1 - outer.k0 + 1),
            slice(self.j0 - outer.j0, self.j1 - outer.j0 + 1),
            slice(self.i0 - outer.i0, self.i1 - outer.i0 + 1),
        )

    def intersection(self, other: Extent) -> Extent:
        """Return the voxels of both; may be empty."""
        pairs = zip(self, other, (max, min) * 3, strict=True)
        return Extent(*(choose(mine, its) for mine, its, choose in pairs))

    def union(self, other: Extent) -> Extent:
        """Return the smallest box that holds both; an empty one adds nothing."""
        if self.isEmpty or other.isEmpty:
            return other if self.isEmpty else self
        pairs = zip(self, other, (min, max) * 3, strict=True)
        return Extent(*(choose(mine, its) for mine, its, choose in pairs))

    def grown(self) -> Extent:
        """Return the box with one voxel more on each side; an empty one stays empty."""
        steps = (0,) * 6 if self.isEmpty else (-1, 1) * 3
        return Extent(*(at + step for at, step in zip(self, steps, strict=True)))

    def around(self, mask: NDArray[np.bool_]) -> Extent:
        """Return the smallest box that holds the voxels of a mask; empty when the mask is."""
        bounds = []
        for axis in (2, 1, 0):  # i, j, k
            others = tuple(other for other in range(3) if other != axis)
            filled = np.flatnonzero(mask.any(axis=others))
            if not len(filled):
                return NOWHERE
            start = self[2 * (2 - axis)]
            bounds += [start + int(filled[0]), start + int(filled[-1])]
        return Extent(*bounds)

    def subset(self, mask: NDArray[np.bool_]) -> tuple[Extent, Any]:
        """Return a set that holds the voxels of a mask, and the index of their values in an array."""
        around = self.around(mask)
        return around, around.within(self)

    def read(self, values_kji: NDArray[Any], outer: Extent) -> NDArray[Any]:
        """Return values at the voxels, of an array of ``outer``, 0 outside it; a view where possible."""
        shared = self.intersection(outer)
        if shared == self:
            return values_kji[self.within(outer)]
        values = np.zeros(self.shape, dtype=values_kji.dtype)
        if not shared.isEmpty:
            values[shared.within(self)] = values_kji[shared.within(outer)]
        return values

    def write(self, values: NDArray[Any], values_kji: NDArray[Any], outer: Extent) -> None:
        """Write values at the voxels to an array of ``outer``, which holds all of them."""
        values_kji[self.within(outer)] = values

    def onLattice(self, toOther: NDArray[np.float64]) -> Extent:
        """Return a box round its voxels on another lattice; ``toOther`` (4, 4) takes indices there."""
        if self.isEmpty:
            return NOWHERE
        sides = [(self[2 * axis] - 0.5, self[2 * axis + 1] + 0.5) for axis in range(3)]
        corners = np.array(list(itertools.product(*sides))) @ toOther[:3, :3].T + toOther[:3, 3]
        return Extent.between(np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0)))

    def positions(self, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return (N, 3) i, j, k of the voxels of a mask, or of all."""
        mask = np.ones(self.shape, dtype=bool) if mask is None else mask
        return np.argwhere(mask)[:, ::-1] + np.array([self.i0, self.j0, self.k0])

    def planes(self) -> Iterator[Extent]:
        """Yield its planes along k."""
        return (self._replace(k0=k, k1=k) for k in range(self.k0, self.k1 + 1))


NOWHERE = Extent(0, -1, 0, -1, 0, -1)


class VoxelList:
    """Voxels one by one, for slices that lie across the grid.

    Parameters
    ----------
    ijk : (N, 3) int64
    """

    def __init__(self, ijk: NDArray[np.int64]) -> None:
        self.ijk = ijk

    @property
    def shape(self) -> tuple[int]:
        """(N,)."""
        return (len(self.ijk),)

    @property
    def isEmpty(self) -> bool:
        """Whether it holds no voxel."""
        return len(self.ijk) == 0

    @property
    def extent(self) -> Extent:
        """The box around all voxels."""
        return self.around(np.ones(self.shape, dtype=bool))

    def around(self, mask: NDArray[np.bool_]) -> Extent:
        """Return the smallest box that holds the voxels of a mask; empty when the mask is."""
        chosen = self.ijk[mask]
        return Extent.between(chosen.min(axis=0), chosen.max(axis=0)) if len(chosen) else NOWHERE

    def subset(self, mask: NDArray[np.bool_]) -> tuple[VoxelList, Any]:
        """Return the voxels of a mask, and the index of their values in an array."""
        return VoxelList(self.ijk[mask]), mask

    def read(self, values_kji: NDArray[Any], outer: Extent) -> NDArray[Any]:
        """Return values at the voxels, of an array of ``outer``, 0 outside it."""
        i, j, k = (self.ijk - [outer.i0, outer.j0, outer.k0]).T
        depth, height, width = outer.shape
        inside = (i >= 0) & (i < width) & (j >= 0) & (j < height) & (k >= 0) & (k < depth)
        if inside.all():
            return values_kji[k, j, i]
        values = np.zeros(self.shape, dtype=values_kji.dtype)
        values[inside] = values_kji[k[inside], j[inside], i[inside]]
        return values

    def write(self, values: NDArray[Any], values_kji: NDArray[Any], outer: Extent) -> None:
        """Write values at the voxels to an array of ``outer``, which holds all of them."""
        i, j, k = (self.ijk - [outer.i0, outer.j0, outer.k0]).T
        values_kji[k, j, i] = values

    def positions(self, mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Return (N, 3) i, j, k of the voxels of a mask, or of all."""
        return self.ijk if mask is None else self.ijk[mask]


Voxels = Extent | VoxelList


class PackedVoxels:
    """Voxels, compressed, with arrays of values at them."""

    def __init__(self, voxels: Voxels, *values: NDArray[Any]) -> None:
        self._box = voxels if isinstance(voxels, Extent) else None
        isList = isinstance(voxels, VoxelList)
        ijk = (np.diff(voxels.ijk.T.astype(np.int32), prepend=0),) if isList else ()
        self._arrays = [(one.shape, one.dtype, _compressed(one)) for one in (*values, *ijk)]

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return sum(len(data) for _, _, data in self._arrays)

    @property
    def voxels(self) -> Voxels:
        """The voxels."""
        return self._box or VoxelList(np.cumsum(self.values(-1), axis=1, dtype=np.int64).T)

    def values(self, n: int) -> NDArray[Any]:
        """Return the values at the voxels that were given as the ``n``th."""
        shape, dtype, data = self._arrays[n]
        if dtype.kind != "b":
            return np.frombuffer(zlib.decompress(data), dtype).reshape(shape)
        bits = np.unpackbits(np.frombuffer(zlib.decompress(data), np.uint8), count=int(np.prod(shape)))
        return bits.view(bool).reshape(shape)


def _compressed(values: NDArray[Any]) -> bytes:
    return zlib.compress((np.packbits(values) if values.dtype == bool else values).tobytes(), 1)


def nearest(
    values_kji: NDArray[Any], outer: Extent, toOuter: NDArray[np.float64], voxels: Voxels
) -> NDArray[Any]:
    """Return values at voxels of another lattice, each of the nearest voxel of ``outer``; 0 outside.

    ``toOuter`` (4, 4) takes indices of ``voxels`` to indices of ``outer``.
    """
    values = np.zeros(voxels.shape, dtype=values_kji.dtype)
    parts: Any = enumerate(voxels.planes()) if isinstance(voxels, Extent) else [(slice(None), voxels)]
    for index, part in parts:  # plane by plane, to keep positions small
        points = part.positions() @ toOuter[:3, :3].T + toOuter[:3, 3]
        found = VoxelList(np.floor(points + 0.5 + 1e-6).astype(np.int64)).read(values_kji, outer)
        values[index] = found.reshape(values[index].shape)
    return values


def latticeShift(toOther: NDArray[np.float64], extent: Extent) -> tuple[int, int, int] | None:
    """Return by how many voxels indices are shifted on another lattice; None when it is not the same.

    Parameters
    ----------
    extent
        Over which the two may differ by a small part of a voxel.
    """
    shift = np.rint(toOther[:3, 3])
    lean = np.abs(toOther[:3, :3] - np.eye(3)).max() * max(1, *map(abs, extent))
    if lean + np.abs(toOther[:3, 3] - shift).max() >= _SAME:
        return None
    return int(shift[0]), int(shift[1]), int(shift[2])
