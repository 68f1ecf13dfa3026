"""A volume as an ordered stack of 2-D slices, and the way back from slice pixels to voxels.

Every stack shows slices the way a radiologist expects, whatever the storage order of the file, so that the
same anatomy stored in another axis order gives bit-equal slices in the same order:

========  ==================  ===================  ==================
plane     columns run (x)     rows run (y)         slices run (n)
========  ==================  ===================  ==================
axial     to Left             to Posterior         to Superior
coronal   to Left             to Inferior          to Posterior
sagittal  to Posterior        to Inferior          to Left
========  ==================  ===================  ==================

``"i"``, ``"j"`` and ``"k"`` choose an array axis; its slices look like those of the plane closest to it.
Pictures appear as they were stored. A position in a stack is ``[x, y, n]``: column, row and slice, pixel
centres at integers.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError
from medsam2_core.imaging.geometry import AXES, Geometry, inverse, transform
from medsam2_core.imaging.volume import Volume, canonical_view

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

#: Directions of x, y, n for each plane.
_DISPLAY = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}


class SliceStack(ABC):
    """Ordered 2-D slices of a volume; made by :meth:`along` or :meth:`oblique`.

    Attributes
    ----------
    volume : Volume
    shape_hw : (H, W), rows and columns of every slice
    pixel_mm : (between rows, between columns) in mm
    slice_mm : distance between the planes of neighbouring slices in mm
    key : equal for stacks that cut a volume in the same way
    array_axis : the axis of I, J, K that the slices follow one another along, every pixel being a voxel; None
        on oblique slices
    """

    volume: Volume
    shape_hw: tuple[int, int]
    pixel_mm: tuple[float, float]
    slice_mm: float
    key: str
    array_axis: int | None = None
    ijk_to_xyn: NDArray[np.float64]  # (4, 4)
    xyn_to_ijk: NDArray[np.float64]  # (4, 4)

    @staticmethod
    def cut(volume: Volume, axis: str = "axial", **plane: Any) -> SliceStack:
        """Create slices :meth:`along` an axis; :meth:`oblique` ones, given by ``plane``, when it is empty."""
        return AxisStack(volume, axis) if axis else SliceStack.oblique(volume, **plane)

    @staticmethod
    def along(volume: Volume, axis: str = "axial") -> AxisStack:
        """Create slices along an anatomical plane (its closest array axis) or ``"i"``, ``"j"``, ``"k"``."""
        return AxisStack(volume, axis)

    @staticmethod
    def oblique(
        volume: Volume,
        origin_ras: ArrayLike,
        row_direction_ras: ArrayLike,
        column_direction_ras: ArrayLike,
        spacing_mm: float | tuple[float, float, float] | None = None,
    ) -> SliceStack:
        """Create parallel slices in any direction that together cover the volume.

        Parameters
        ----------
        origin_ras : (3,) a point in mm; one of the slices has a pixel centre exactly there
        row_direction_ras : (3,) the direction columns run to (x)
        column_direction_ras : (3,) the direction rows run to (y), at a right angle to the former
        spacing_mm : pixel and slice size: one number, or (x, y, n); by default the size of a voxel in each
            of the three directions, so pixels may be non-square as the voxels are
        """
        return ObliqueStack(volume, origin_ras, row_direction_ras, column_direction_ras, spacing_mm)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of slices."""

    @abstractmethod
    def image_hw(self, n: int) -> NDArray[Any]:
        """Return slice ``n`` in the volume's own type: (H, W), or (H, W, 3) for colour.

        A copy that may be changed.
        """

    @abstractmethod
    def mask_of(
        self, mask_kji: NDArray[Any], n: int, offset_ijk: tuple[int, int, int] = (0, 0, 0)
    ) -> NDArray[np.bool_]:
        """Return the (H, W) mask of slice ``n`` from a mask of voxels.

        ``mask_kji`` may be the whole grid or a part of it whose first voxel is ``offset_ijk``.
        """

    def volume_mask(self, masks: Mapping[int, NDArray[Any]]) -> NDArray[np.bool_]:
        """Return the (K, J, I) mask from masks of slices; slices that are not given stay empty."""
        return self.volume_values(masks.items(), bool)

    @abstractmethod
    def volume_values(
        self, values: Iterable[tuple[int, NDArray[Any]]], dtype: DTypeLike = np.uint8
    ) -> NDArray[Any]:
        """Return (K, J, I) from slices ``n`` and their values (H, W); voxels of other slices are 0.

        Every voxel has the value of the pixel that :meth:`volume_mask` takes its mask from.
        """

    def shape_of(self, n: int) -> tuple[int, int]:
        """Return (H, W) of slice ``n``."""
        return self.shape_hw

    def extent_ijk(self, ijk: ArrayLike) -> tuple[int, int, int]:
        """Return (I, J, K), the size of the grid that a position has to lie in."""
        return self.volume.geometry.shape_ijk

    def part_of(self, mask_hw: NDArray[np.bool_], n: int) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
        """Return voxels (K, J, I) that hold the mask of a slice, and the index of the first of them."""
        return self.volume_mask({n: mask_hw}), (0, 0, 0)

    def to_slice(self, points_ijk: ArrayLike) -> NDArray[np.float64]:
        """Convert (N, 3) continuous IJK to (N, 3) ``[x, y, n]``."""
        return transform(self.ijk_to_xyn, points_ijk)

    def to_ijk(self, points_xyn: ArrayLike) -> NDArray[np.float64]:
        """Convert (N, 3) ``[x, y, n]`` to (N, 3) continuous IJK."""
        return transform(self.xyn_to_ijk, points_xyn)

    def __iter__(self) -> Any:
        return (self.image_hw(n) for n in range(len(self)))

    def checked(self, n: int) -> int:
        """Return ``n`` when there is such a slice, else raise GeometryError.

        Negative numbers do not count from the end.
        """
        if not 0 <= int(n) < len(self):
            message = f"slice {n} does not exist: {self.title} has slices 0 to {len(self) - 1}"
            raise GeometryError(message, code="no-such-slice", n=int(n), slices=len(self))
        return int(n)

    def checked_mask(self, mask_hw: NDArray[Any]) -> NDArray[np.bool_]:
        """Return a mask of a slice as bool, or raise GeometryError when it has another shape."""
        return self.checked_values(mask_hw).astype(bool, copy=False)

    def checked_values(self, values_hw: NDArray[Any]) -> NDArray[Any]:
        """Return values of a slice as they are, or raise GeometryError when they have another shape."""
        if values_hw.shape != self.shape_hw:
            message = f"a mask of {values_hw.shape} pixels does not fit slices of {self.shape_hw}"
            raise GeometryError(
                message, code="mask-shape", shape=list(values_hw.shape), expected=list(self.shape_hw)
            )
        return values_hw

    def check_grid(self, mask_kji: NDArray[Any]) -> None:
        """Raise GeometryError when a mask of voxels does not have the volume's shape."""
        grid = self.volume.voxels_kji.shape[:3]
        if mask_kji.shape != grid:
            message = f"a mask of {mask_kji.shape} voxels does not fit the volume {grid}"
            raise GeometryError(message, code="mask-shape", shape=list(mask_kji.shape), expected=list(grid))

    @property
    def title(self) -> str:
        """What to call this stack in messages."""
        return "the stack"


class AxisStack(SliceStack):
    """Slices along an array axis: every pixel is a voxel."""

    array_axis: int

    def __init__(self, volume: Volume, axis: str) -> None:
        if axis not in AXES:
            message = f"unknown axis {axis!r}: use one of {', '.join(AXES)}"
            raise GeometryError(message, code="unknown-axis", axis=str(axis), known=list(AXES))
        geometry = volume.geometry
        self.volume = volume
        self.array_axis = "ijk".index(axis) if len(axis) == 1 else geometry.closest_axis(axis)
        self.plane = geometry.plane_of_axis(self.array_axis)
        self._towards = [
            geometry.array_axis_towards(direction) for direction in _DISPLAY[self.plane]
        ]  # of x, y, n
        width, height, self._depth = (geometry.shape_ijk[array_axis] for array_axis, _ in self._towards)
        self.shape_hw = (height, width)
        spacing = geometry.spacing
        self.pixel_mm = (float(spacing[self._towards[1][0]]), float(spacing[self._towards[0][0]]))
        self.slice_mm = geometry.distance_between_planes(self.array_axis)
        self.xyn_to_ijk = _axis_affine(geometry, self._towards)
        self.ijk_to_xyn = inverse(self.xyn_to_ijk)
        signs = "".join(f"{'-+'[sign > 0]}{'ijk'[array_axis]}" for array_axis, sign in self._towards)
        self.key = f"{self.plane}:{signs}"

    def __len__(self) -> int:
        return self._depth

    @property
    def title(self) -> str:
        return f"the {self.plane} stack along {'ijk'[self.array_axis]}"

    def image_hw(self, n: int) -> NDArray[Any]:
        return np.array(self._slice(self.volume.voxels_kji, self.checked(n)), order="C")

    def mask_of(
        self, mask_kji: NDArray[Any], n: int, offset_ijk: tuple[int, int, int] = (0, 0, 0)
    ) -> NDArray[np.bool_]:
        n = self.checked(n)
        full_shape = self.volume.voxels_kji.shape[:3]
        if mask_kji.shape == full_shape and not any(offset_ijk):
            return np.array(self._slice(mask_kji, n), dtype=bool, order="C")
        index = (n if self._towards[2][1] > 0 else self._depth - 1 - n) - offset_ijk[self.array_axis]
        flat_shape = list(full_shape)
        flat_shape[2 - self.array_axis] = 1
        flat_kji = np.zeros(flat_shape, dtype=bool)  # the one slice in voxel order
        if 0 <= index < mask_kji.shape[2 - self.array_axis]:
            part = np.take(mask_kji, [index], axis=2 - self.array_axis)
            start = [0 if axis == self.array_axis else offset_ijk[axis] for axis in (2, 1, 0)]
            flat_kji[tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))] = part
        return np.array(self._slice(flat_kji, 0), order="C")

    def volume_values(
        self, values: Iterable[tuple[int, NDArray[Any]]], dtype: DTypeLike = np.uint8
    ) -> NDArray[Any]:
        volume_kji = np.zeros(self.volume.voxels_kji.shape[:3], dtype)
        for n, values_hw in values:
            self._slice(volume_kji, self.checked(n))[...] = self.checked_values(values_hw)
        return volume_kji

    def _slice(self, array_kji: NDArray[Any], n: int) -> NDArray[Any]:
        """Return a view (H, W, …) of slice n of an array on the volume's grid, or flat along the axis."""
        view = canonical_view(array_kji, self.volume.geometry)  # axes S, P, L
        if self.plane == "axial":
            return view[n]
        flipped = view[::-1]  # rows run to Inferior
        return flipped[:, n] if self.plane == "coronal" else flipped[:, :, n]


def _axis_affine(geometry: Geometry, towards: list[tuple[int, int]]) -> NDArray[np.float64]:
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for column, (array_axis, sign) in enumerate(towards):
        matrix[array_axis, column] = sign
        if sign < 0:
            matrix[array_axis, 3] = geometry.shape_ijk[array_axis] - 1
    return matrix


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
            message = f"origin {origin_ras!r}: expected three finite millimetres in RAS"
            raise GeometryError(message, code="invalid-origin")
        lattice = np.eye(4)  # from lattice steps around the origin to RAS
        lattice[:3, :3] = directions * spacing
        lattice[:3, 3] = origin
        first, last = _extent(volume.geometry, lattice)
        lattice[:3, 3] = transform(lattice, first)[0]
        width, height, self._depth = (int(n) for n in last - first + 1)
        self.shape_hw = (height, width)
        if height * width > _LARGEST_SLICE or self._depth > _LARGEST_SLICE:
            message = (
                f"spacing {spacing.tolist()} mm is too fine: a slice would have {width} x {height} pixels"
            )
            raise GeometryError(message, code="spacing-too-fine", spacing_mm=spacing.tolist())
        self.pixel_mm = (float(spacing[1]), float(spacing[0]))
        self.slice_mm = float(spacing[2])
        self.xyn_to_ijk = volume.geometry.ras_to_ijk @ lattice
        self.ijk_to_xyn = inverse(self.xyn_to_ijk)
        content = (
            np.round(self.xyn_to_ijk, 9).astype("<f8").tobytes() + repr((width, height, self._depth)).encode()
        )
        self.key = f"oblique:{hashlib.sha256(content).hexdigest()[:16]}"

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

    def volume_values(
        self, values: Iterable[tuple[int, NDArray[Any]]], dtype: DTypeLike = np.uint8
    ) -> NDArray[Any]:
        volume_kji = np.zeros(self.volume.voxels_kji.shape[:3], dtype)
        slices = {self.checked(n): self.checked_values(one) for n, one in values}
        filled = {n: values_hw for n, values_hw in slices.items() if values_hw.any()}
        if filled:
            self._map_back(filled, volume_kji)
        return volume_kji

    def _map_back(self, slices: dict[int, NDArray[Any]], volume_kji: NDArray[Any]) -> None:
        """Set every voxel whose nearest pixel lies in one of the slices, looking only near what they hold."""
        order = np.array(sorted(slices))
        rows, columns = (
            np.any([one.any(axis=1 - a) for one in slices.values()], axis=0).nonzero()[0] for a in (0, 1)
        )
        corners = itertools.product(
            (columns[0] - 1, columns[-1] + 1), (rows[0] - 1, rows[-1] + 1), (order[0] - 1, order[-1] + 1)
        )
        reach = self.to_ijk(np.array(list(corners), dtype=np.float64))
        shape_ijk = np.array(volume_kji.shape[::-1])
        start = np.clip(np.floor(reach.min(axis=0)), 0, shape_ijk).astype(int)
        stop = np.clip(np.ceil(reach.max(axis=0)) + 1, 0, shape_ijk).astype(int)
        stacked = np.stack([slices[n] for n in order])  # (len(slices), H, W)
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
            volume_kji[k, j.ravel()[inside], i.ravel()[inside]] = values

    def _pixel_positions(self, n: int) -> NDArray[np.float64]:
        """Return (H * W, 3) continuous IJK of the pixel centres of slice n, row by row."""
        height, width = self.shape_hw
        y, x = np.mgrid[:height, :width]
        return self.to_ijk(np.stack([x.ravel(), y.ravel(), np.full(x.size, n)], axis=1))


def _interpolate(voxels_kji: NDArray[Any], points_ijk: NDArray[np.float64]) -> NDArray[Any]:
    """Interpolate linearly at (N, 3) positions inside the grid, in the voxels' own type."""
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
            message = f"{name} direction {value!r}: expected three finite numbers that are not all 0"
            raise GeometryError(message, code="invalid-direction", direction=name)
        directions.append(vector / np.linalg.norm(vector))
    row, column = directions
    if abs(row @ column) > 1e-3:
        angle = np.degrees(np.arccos(np.clip(row @ column, -1, 1)))
        message = f"row and column directions meet at {angle:.1f} degrees: a plane needs a right angle"
        raise GeometryError(message, code="plane-not-orthogonal", degrees=float(angle))
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
        message = f"spacing {spacing_mm!r} mm: must be finite and greater than 0"
        raise GeometryError(message, code="invalid-spacing")
    return spacing


def _extent(
    geometry: Geometry, lattice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return first and last lattice index (x, y, n) whose pixel can be the nearest to some voxel."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in geometry.shape_ijk))), dtype=np.float64)
    steps = transform(inverse(lattice), geometry.to_ras(corners))
    return np.rint(steps.min(axis=0) - _EDGE), np.rint(steps.max(axis=0) + _EDGE)
