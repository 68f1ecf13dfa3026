"""Where voxels are in the patient: one matrix, and every conversion between index and patient space.

Inside this package a position is either an IJK index (continuous, voxel centres at integers, so a volume of I
voxels covers -0.5 .. I-0.5 along i) or millimetres in RAS (x to the patient's Right, y to Anterior, z to
Superior, the convention of 3D Slicer and NIfTI). LPS, the convention of DICOM, NRRD and ITK, appears only
where a file is read or written. Axis order of positions is always i, j, k; of arrays always k, j, i.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import GeometryError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Changes the sign of x and y: RAS to LPS and back (it is its own inverse).
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS_LPS.flags.writeable = False

#: RAS axis (0 Right-Left, 1 Anterior-Posterior, 2 Superior-Inferior) that slices of a plane are stacked
#: along.
PLANE_NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}
#: What slices can be stacked along: the array axis closest to an anatomical plane's normal, or one by name.
AXES = ("axial", "sagittal", "coronal", "i", "j", "k")

_CODES = ("LR", "PA", "IS")
_SHEAR_TOLERANCE = 1e-4  # cosine between two axes; 1e-4 moves a voxel by 0.05 mm over 500 mm


class Space(enum.Enum):
    """The space a position is given in."""

    IJK = "ijk"
    RAS = "ras"
    LPS = "lps"

    @classmethod
    def named(cls, name: str | Space) -> Space:
        """Return the space of that name; GeometryError names the known ones."""
        if isinstance(name, cls):
            return name
        for space in cls:
            if isinstance(name, str) and name.lower() == space.value:
                return space
        message = f"unknown space {name!r}: use one of {', '.join(s.value for s in cls)}"
        raise GeometryError(message, code="unknown-space", space=str(name))


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a volume are.

    Parameters
    ----------
    ijk_to_ras : (4, 4) float64
        Affine from index (voxel centres at integers) to RAS millimetres. May be oblique, left-handed or
        sheared.
    shape_ijk : (I, J, K)
        Number of voxels along each array axis, each at least 1.

    Raises
    ------
    GeometryError
        When the matrix is not a finite invertible affine or the shape is not positive.
    """

    ijk_to_ras: NDArray[np.float64]
    shape_ijk: tuple[int, int, int]

    def __post_init__(self) -> None:
        matrix = _checked_matrix(self.ijk_to_ras)
        ras_to_ijk = inverse(matrix)
        if not np.isfinite(ras_to_ijk).all():
            message = f"orientation cannot be inverted: voxel axes {matrix[:3, :3].tolist()}"
            raise GeometryError(message, code="singular-affine", matrix=matrix.tolist())
        shape = tuple(int(n) for n in self.shape_ijk)
        if len(shape) != 3 or min(shape) < 1:
            message = f"a volume needs three positive sizes (i, j, k), not {self.shape_ijk}"
            raise GeometryError(message, code="size-not-positive", sizes=list(self.shape_ijk))
        for array in (matrix, ras_to_ijk):
            array.flags.writeable = False
        object.__setattr__(self, "ijk_to_ras", matrix)
        object.__setattr__(self, "shape_ijk", shape)
        object.__setattr__(self, "_ras_to_ijk", ras_to_ijk)

    # Ways to make one ---------------------------------------------------------------------------------------

    @classmethod
    def from_lps(cls, ijk_to_lps: ArrayLike, shape_ijk: tuple[int, int, int]) -> Geometry:
        """Create from the matrix of a DICOM, NRRD or ITK file, whose millimetres are LPS."""
        return cls(RAS_LPS @ _checked_matrix(ijk_to_lps), shape_ijk)

    @classmethod
    def for_picture(
        cls, height: int, width: int, spacing: tuple[float, float] = (1.0, 1.0), *, frames: int = 1
    ) -> Geometry:
        """Create for a 2-D image, or a clip of frames, whose position in the patient is unknown.

        ``spacing`` is (between columns, between rows) in mm. Columns run to L and rows to P, so that the
        axial slice of a picture is the picture as it was stored.
        """
        return cls(np.diag([-float(spacing[0]), -float(spacing[1]), 1.0, 1.0]), (width, height, frames))

    # Properties ---------------------------------------------------------------------------------------------

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) distance in mm between neighbouring voxels along i, j, k."""
        return np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)

    def distance_between_planes(self, axis: int = 2) -> float:
        """Return the distance in mm of neighbouring slices along an axis, at right angles to them.

        It is shorter than the step between voxels in a sheared volume.
        """
        first, second = (self.ijk_to_ras[:3, other] for other in range(3) if other != axis)
        normal = np.cross(first, second)
        return float(abs(self.ijk_to_ras[:3, axis] @ normal) / np.linalg.norm(normal))

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3) unit columns: the RAS directions of i, j, k."""
        return self.ijk_to_ras[:3, :3] / self.spacing

    @property
    def origin_ras(self) -> NDArray[np.float64]:
        """(3,) RAS position of the centre of the first voxel."""
        return self.ijk_to_ras[:3, 3].copy()

    @property
    def is_sheared(self) -> bool:
        """Whether voxel axes are not at right angles (gantry tilt)."""
        cosines = self.directions.T @ self.directions
        return bool(np.abs(cosines - np.eye(3)).max() > _SHEAR_TOLERANCE)

    @property
    def axis_codes(self) -> str:
        """Direction of increasing i, j, k, such as ``"LPS"``; the closest one for an oblique volume."""
        assignment = self._ras_axis_of_array_axis()
        return "".join(
            _CODES[ras_axis][int(self.ijk_to_ras[ras_axis, axis] > 0)]
            for axis, ras_axis in enumerate(assignment)
        )

    @property
    def ijk_to_lps(self) -> NDArray[np.float64]:
        """(4, 4) affine to LPS, for file formats that use it."""
        return RAS_LPS @ self.ijk_to_ras

    @property
    def ras_to_ijk(self) -> NDArray[np.float64]:
        """(4, 4) inverse of ``ijk_to_ras``."""
        return self._ras_to_ijk  # type: ignore[attr-defined]

    def closest_axis(self, plane: str) -> int:
        """Return the array axis (0 i, 1 j, 2 k) that slices of this plane are stacked along.

        The three array axes are assigned to the three anatomical ones together, so that two planes never
        share one.
        """
        if plane not in PLANE_NORMAL:
            message = f"unknown plane {plane!r}: use one of axial, sagittal, coronal"
            raise GeometryError(message, code="unknown-plane", plane=plane)
        return self._ras_axis_of_array_axis().index(PLANE_NORMAL[plane])

    def plane_of_axis(self, axis: int) -> str:
        """Return the plane whose slices are stacked along an array axis; inverse of :meth:`closest_axis`."""
        normal = self._ras_axis_of_array_axis()[axis]
        return next(plane for plane, ras_axis in PLANE_NORMAL.items() if ras_axis == normal)

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Return whether shapes are equal and voxels in the same positions, within ``tolerance_mm``."""
        if self.shape_ijk != other.shape_ijk:
            return False
        # An affine differs most at a corner of the grid, so eight points decide for all voxels.
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.shape_ijk))), dtype=np.float64)
        return bool(np.abs(self.to_ras(corners) - other.to_ras(corners)).max() <= tolerance_mm)

    def index_mapping(self, other: Geometry, tolerance_mm: float) -> NDArray[np.float64] | None:
        """Return (4, 4) from indices of another grid to indices of this one, when they are whole numbers.

        None unless the axes are parallel, the spacing is equal and every voxel centre of the other grid is
        within ``tolerance_mm`` of one of this grid, or of where one would be outside.
        """
        exact = self.ras_to_ijk @ other.ijk_to_ras
        mapping = np.rint(exact)
        linear = np.abs(mapping[:3, :3])
        if not ((linear.sum(axis=0) == 1).all() and (linear.sum(axis=1) == 1).all()):
            return None
        # An affine differs most at a corner of the grid, so eight points decide for all voxels.
        corners = np.array(list(np.ndindex(2, 2, 2)), dtype=np.float64) * (np.array(other.shape_ijk) - 1)
        off = (transform(exact, corners) - transform(mapping, corners)) @ self.ijk_to_ras[:3, :3].T
        return mapping if np.linalg.norm(off, axis=1).max() <= tolerance_mm else None

    def same_positions(self, other: Geometry, tolerance_mm: float) -> bool:
        """Return whether both grids have voxels in the same positions, in whatever order they are stored."""
        mapping = self.index_mapping(other, tolerance_mm)
        if mapping is None:
            return False
        ends = transform(mapping, np.array([(0, 0, 0), np.array(other.shape_ijk) - 1]))
        first, last = ends.min(axis=0), ends.max(axis=0)
        return bool((first == 0).all() and (last == np.array(self.shape_ijk) - 1).all())

    def array_axis_towards(self, direction: str) -> tuple[int, int]:
        """Return the array axis (0 i, 1 j, 2 k) along ``"L"``, ``"P"``, ``"S"`` or opposites, and its sign.

        The sign is +1 where increasing index runs towards that direction, else -1.
        """
        ras_axis = next((n for n, pair in enumerate(_CODES) if direction in pair), None)
        if ras_axis is None or len(direction) != 1:
            message = f"unknown direction {direction!r}: use one of L, R, P, A, I, S"
            raise GeometryError(message, code="unknown-direction", direction=direction)
        axis = self._ras_axis_of_array_axis().index(ras_axis)
        return axis, 1 if self.axis_codes[axis] == direction else -1

    # Conversions --------------------------------------------------------------------------------------------

    def to_ras(self, points_ijk: ArrayLike) -> NDArray[np.float64]:
        """Convert (N, 3) indices to (N, 3) RAS millimetres."""
        return transform(self.ijk_to_ras, points_ijk)

    def to_ijk(self, points_ras: ArrayLike) -> NDArray[np.float64]:
        """Convert (N, 3) RAS millimetres to (N, 3) continuous indices."""
        return transform(self.ras_to_ijk, points_ras)

    def ijk_from(self, points: ArrayLike, space: Space | str) -> NDArray[np.float64]:
        """Convert (N, 3) points given in ``space`` to (N, 3) continuous indices."""
        space = Space.named(space)
        if space is Space.IJK:
            return as_points(points)
        return self.to_ijk(points if space is Space.RAS else transform(RAS_LPS, points))

    def ijk_to(self, points_ijk: ArrayLike, space: Space | str) -> NDArray[np.float64]:
        """Convert (N, 3) continuous indices to (N, 3) points in ``space``."""
        space = Space.named(space)
        if space is Space.IJK:
            return as_points(points_ijk)
        points_ras = self.to_ras(points_ijk)
        return points_ras if space is Space.RAS else transform(RAS_LPS, points_ras)

    def _ras_axis_of_array_axis(self) -> tuple[int, int, int]:
        cosines = np.abs(self.directions)  # (RAS axis, array axis)
        i, j, k = max(
            itertools.permutations(range(3)),
            key=lambda p: sum(cosines[ras, axis] for axis, ras in enumerate(p)),
        )
        return i, j, k


def as_points(points: ArrayLike) -> NDArray[np.float64]:
    """Return points as a new (N, 3) float64 array; a single point becomes (1, 3)."""
    array = np.array(points, dtype=np.float64, ndmin=2)
    if array.ndim != 2 or array.shape[1] != 3:
        message = f"points need the shape (N, 3), not {array.shape}"
        raise GeometryError(message, code="invalid-points", shape=list(array.shape))
    return array


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a (4, 4) affine."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def transform(matrix: NDArray[np.float64], points: ArrayLike) -> NDArray[np.float64]:
    """Apply a (4, 4) affine to (N, 3) points."""
    return as_points(points) @ matrix[:3, :3].T + matrix[:3, 3]


def _checked_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    array = np.array(matrix, dtype=np.float64)
    if array.shape != (4, 4):
        message = f"an orientation is a 4x4 matrix, not {array.shape}"
        raise GeometryError(message, code="invalid-affine", shape=list(array.shape))
    if not np.isfinite(array).all():
        message = f"orientation contains numbers that are not finite: {array.tolist()}"
        raise GeometryError(message, code="invalid-affine", matrix=array.tolist())
    if not np.allclose(array[3], (0, 0, 0, 1), atol=1e-9):
        message = f"the last row of an orientation must be 0 0 0 1, not {array[3].tolist()}"
        raise GeometryError(message, code="invalid-affine", matrix=array.tolist())
    spacing = np.linalg.norm(array[:3, :3], axis=0)
    if not (np.isfinite(spacing).all() and spacing.min() > 1e-9 and spacing.max() < 1e9):
        message = f"voxel spacing {spacing.tolist()} mm along i, j, k is not usable"
        raise GeometryError(message, code="invalid-spacing", spacing_mm=spacing.tolist())
    if abs(np.linalg.det(array[:3, :3] / spacing)) < 1e-3:
        message = f"voxel axes lie in one plane: {array[:3, :3].tolist()}"
        raise GeometryError(message, code="singular-affine", matrix=array.tolist())
    return array
