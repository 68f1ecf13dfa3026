"""Slices in any direction: sampled from the voxels, and masks mapped back voxel by voxel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError
from medsam2_core.imaging.geometry import Geometry, transform
from medsam2_core.imaging.slices import SliceStack, stack_key
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_EDGE = 1e-6  # voxels: rounding in the matrices must not push the outermost sample outside
_LARGEST_SLICE = 1 << 26  # pixels


class ObliqueStack(SliceStack):
    """Parallel slices along two given directions; see :meth:`SliceStack.oblique`.

    Pixels are interpolated linearly between voxels and rounded to the volume's type. Pixels outside the
    volume get the volume's lowest value (air). A mask goes back by asking for each voxel which pixel is
    nearest to its centre.
    """

    def __init__(
        self,
        volume: Volume,
        origin_ras: ArrayLike,
        row_direction_ras: ArrayLike,
        column_direction_ras: ArrayLike,
        spacing_mm: float | tuple[float, float, float] | None = None,
    ) -> None:
        self.volume = volume
        directions = _orthonormal(row_direction_ras, column_direction_ras)  # (3, 3) columns x, y, n in RAS
        spacing = _spacing(volume.geometry, directions, spacing_mm)  # (3,) of x, y, n
        origin = np.asarray(origin_ras, dtype=np.float64)
        if origin.shape != (3,) or not np.isfinite(origin).all():
            raise GeometryError(f"origin {origin_ras!r}: expected three finite millimetres in RAS")
        lattice = np.eye(4)  # from lattice steps around the origin to RAS
        lattice[:3, :3] = directions * spacing
        lattice[:3, 3] = origin
        first, last = _extent(volume.geometry, lattice)
        lattice[:3, 3] = transform(lattice, first)[0]
        width, height, self._depth = (int(n) for n in last - first + 1)
        self.shape_hw = (height, width)
        if height * width > _LARGEST_SLICE or self._depth > _LARGEST_SLICE:
            raise GeometryError(
                f"spacing {spacing.tolist()} mm is too fine: a slice would have {width} x {height} pixels"
            )
        self.pixel_mm = (float(spacing[1]), float(spacing[0]))
        self.slice_mm = float(spacing[2])
        self.xyn_to_ijk = volume.geometry.ras_to_ijk @ lattice
        self.ijk_to_xyn = np.linalg.inv(self.xyn_to_ijk)
        self.key = stack_key("oblique", self.xyn_to_ijk, (width, height, self._depth))

    def __len__(self) -> int:
        return self._depth

    @property
    def title(self) -> str:
        return "the oblique stack"

    @cached_property
    def _outside(self) -> Any:
        voxels = self.volume.voxels_kji
        if self.volume.is_colour:
            return voxels.dtype.type(0)
        lowest = min(slice_ji.min() for slice_ji in voxels)
        return voxels.dtype.type(0) if np.isnan(lowest) else lowest

    def image_hw(self, n: int) -> NDArray[Any]:
        points_ijk = self._pixel_positions(self.checked(n))
        voxels = self.volume.voxels_kji
        shape_ijk = np.array(self.volume.geometry.shape_ijk)
        # Half a voxel beyond the outermost centres still belongs to the volume; the nearest voxel's value
        # holds there.
        inside = ((points_ijk >= -0.5 - _EDGE) & (points_ijk <= shape_ijk - 0.5 + _EDGE)).all(axis=1)
        height, width = self.shape_hw
        image = np.full((height * width, *voxels.shape[3:]), self._outside, dtype=voxels.dtype)
        image[inside] = _interpolate(voxels, np.clip(points_ijk[inside], 0, shape_ijk - 1))
        return image.reshape(height, width, *voxels.shape[3:])

    def mask_of(
        self, mask_kji: NDArray[Any], n: int, offset_ijk: tuple[int, int, int] = (0, 0, 0)
    ) -> NDArray[np.bool_]:
        index = np.rint(self._pixel_positions(self.checked(n))).astype(np.int64) - np.array(offset_ijk)
        inside = ((index >= 0) & (index < np.array(mask_kji.shape[::-1]))).all(axis=1)
        mask = np.zeros(len(index), dtype=bool)
        i, j, k = index[inside].T
        mask[inside] = mask_kji[k, j, i]
        return mask.reshape(self.shape_hw)

    def put(self, mask_hw: NDArray[Any], n: int, volume_mask_kji: NDArray[np.bool_]) -> None:
        n = self.checked(n)
        self._map_back({n: self.checked_mask(mask_hw)}, np.array([[0, 0], self.shape_hw]), volume_mask_kji)

    def volume_mask(self, masks: Mapping[int, NDArray[Any]]) -> NDArray[np.bool_]:
        volume_mask_kji = np.zeros(self.volume.voxels_kji.shape[:3], dtype=bool)
        self._fill({self.checked(n): self.checked_mask(m) for n, m in masks.items()}, volume_mask_kji)
        return volume_mask_kji

    def volume_values(self, values: Iterable[tuple[int, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        volume_kji = np.zeros(self.volume.voxels_kji.shape[:3], dtype=np.uint8)
        self._fill({self.checked(n): self.checked_values(one) for n, one in values}, volume_kji)
        return volume_kji

    def _fill(self, slices: dict[int, NDArray[Any]], volume_mask_kji: NDArray[Any]) -> None:
        """Set the voxels of an empty volume from slices."""
        filled = {n: mask_hw for n, mask_hw in slices.items() if mask_hw.any()}
        if filled:
            rows, columns = (
                np.any([m.any(axis=1 - a) for m in filled.values()], axis=0).nonzero()[0] for a in (0, 1)
            )
            bounds = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]])
            self._map_back(filled, bounds, volume_mask_kji)

    def _map_back(
        self, masks: dict[int, NDArray[Any]], bounds: NDArray[Any], volume_mask_kji: NDArray[Any]
    ) -> None:
        """Set every voxel whose nearest pixel lies in one of the slices, looking only near ``bounds``."""
        self.check_grid(volume_mask_kji)
        order = np.array(sorted(masks))
        (top, left), (bottom, right) = bounds
        corners = itertools.product((left - 1, right), (top - 1, bottom), (order[0] - 1, order[-1] + 1))
        reach = self.to_ijk(np.array(list(corners), dtype=np.float64))
        shape_ijk = np.array(volume_mask_kji.shape[::-1])
        start = np.clip(np.floor(reach.min(axis=0)), 0, shape_ijk).astype(int)
        stop = np.clip(np.ceil(reach.max(axis=0)) + 1, 0, shape_ijk).astype(int)
        stacked = np.stack([masks[n] for n in order])  # (len(masks), H, W)
        position_of = np.full(len(self), -1)
        position_of[order] = np.arange(len(order))
        height, width = self.shape_hw
        j, i = np.mgrid[start[1] : stop[1], start[0] : stop[0]]
        for k in range(start[2], stop[2]):  # one slice of voxels at a time keeps positions small
            points = np.stack([i.ravel(), j.ravel(), np.full(i.size, k)], axis=1)
            x, y, n = np.rint(self.to_slice(points)).astype(np.int64).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (n >= 0) & (n < len(self))
            inside[inside] = position_of[n[inside]] >= 0
            values = stacked[position_of[n[inside]], y[inside], x[inside]]
            volume_mask_kji[k, j.ravel()[inside], i.ravel()[inside]] = values

    def _pixel_positions(self, n: int) -> NDArray[np.float64]:
        """(H * W, 3) continuous IJK of the pixel centres of slice n, row by row."""
        height, width = self.shape_hw
        y, x = np.mgrid[:height, :width]
        return self.to_ijk(np.stack([x.ravel(), y.ravel(), np.full(x.size, n)], axis=1))


def _interpolate(voxels_kji: NDArray[Any], points_ijk: NDArray[np.float64]) -> NDArray[Any]:
    """Trilinear values at (N, 3) positions inside the grid, in the voxels' own type."""
    upper = np.array(voxels_kji.shape[2::-1]) - 1
    low = np.minimum(np.floor(points_ijk + _EDGE).astype(np.int64), upper)
    high = np.minimum(low + 1, upper)
    weight = np.clip(points_ijk - low, 0, 1)  # (N, 3)
    weight[weight < _EDGE] = 0  # a pixel on a voxel centre is exactly that voxel
    total = np.zeros((len(points_ijk), *voxels_kji.shape[3:]))
    for take in itertools.product((0, 1), repeat=3):
        i, j, k = (np.where(take[axis], high[:, axis], low[:, axis]) for axis in range(3))
        factor = np.prod([weight[:, a] if take[a] else 1 - weight[:, a] for a in range(3)], axis=0)
        used = factor > 0  # a value that is not a number must not spread to pixels it has no part in
        values = voxels_kji[k[used], j[used], i[used]]
        total[used] += values * factor[used].reshape(-1, *[1] * (values.ndim - 1))
    if voxels_kji.dtype.kind == "f":
        return total.astype(voxels_kji.dtype)
    return np.rint(total).astype(voxels_kji.dtype)


def _orthonormal(row_direction_ras: ArrayLike, column_direction_ras: ArrayLike) -> NDArray[np.float64]:
    directions = []
    for name, value in (("row", row_direction_ras), ("column", column_direction_ras)):
        vector = np.asarray(value, dtype=np.float64)
        if vector.shape != (3,) or not np.isfinite(vector).all() or np.linalg.norm(vector) < 1e-9:
            raise GeometryError(
                f"{name} direction {value!r}: expected three finite numbers that are not all 0"
            )
        directions.append(vector / np.linalg.norm(vector))
    row, column = directions
    if abs(row @ column) > 1e-3:
        angle = np.degrees(np.arccos(np.clip(row @ column, -1, 1)))
        raise GeometryError(
            f"row and column directions meet at {angle:.1f} degrees: a plane needs a right angle"
        )
    column = column - (row @ column) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def _spacing(
    geometry: Geometry, directions: NDArray[np.float64], spacing_mm: float | tuple[float, float, float] | None
) -> NDArray[np.float64]:
    if spacing_mm is None:  # the length of a step that crosses one voxel in each direction
        return np.asarray(1 / np.linalg.norm(geometry.ras_to_ijk[:3, :3] @ directions, axis=0))
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,)).copy()
    if not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise GeometryError(f"spacing {spacing_mm!r} mm: must be finite and greater than 0")
    return spacing


def _extent(
    geometry: Geometry, lattice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last lattice index along x, y, n whose pixel can be the nearest to some voxel centre."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in geometry.shape_ijk))), dtype=np.float64)
    steps = transform(np.linalg.inv(lattice), geometry.to_ras(corners))
    return np.rint(steps.min(axis=0) - _EDGE), np.rint(steps.max(axis=0) + _EDGE)
