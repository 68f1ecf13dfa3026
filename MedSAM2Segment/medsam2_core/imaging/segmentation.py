"""The result: named objects as masks on the grid of a volume, and how they came about.

Objects may overlap. Masks are kept cropped to their bounding box, so that thirty organs of a 512 x 512 x 300
scan take tens of megabytes instead of gigabytes.
"""

from __future__ import annotations

import colorsys
import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, Note, VolumeError
from medsam2_core.imaging.geometry import Geometry, transform
from medsam2_core.imaging.terminology import TISSUE, Terminology

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bright on dark images, far apart in hue and lightness for the first, most frequent objects.
_COLOURS = (
    "3ddc5b", "ff5a5f", "4aa8ff", "ffd21f", "e45bff", "23e0e0", "ff9a2e", "b5f03c", "ff9ec7", "9c8cff",
    "f5e6b3", "3fb59a",
)  # fmt: skip
_GOLDEN_ANGLE = 0.618033988749895  # of a turn: successive hues never come close


def default_colour(number: int) -> tuple[float, float, float]:
    """Return red, green, blue (0 to 1) for a segment by number, from 0; the first hundred all differ."""
    if number < len(_COLOURS):
        code = _COLOURS[number]
        red, green, blue = (int(code[n : n + 2], 16) / 255 for n in (0, 2, 4))
        return red, green, blue
    extra = number - len(_COLOURS)
    saturation, value = ((0.55, 1.0), (0.9, 0.9), (0.35, 0.95), (0.7, 0.75))[extra % 4]
    red, green, blue = colorsys.hsv_to_rgb((0.03 + extra * _GOLDEN_ANGLE) % 1.0, saturation, value)
    # Deep blue looks black on black.
    lacking = max(0.0, 0.4 - (0.2126 * red + 0.7152 * green + 0.0722 * blue)) / 0.6
    return red + lacking * (1 - red), green + lacking * (1 - green), blue + lacking * (1 - blue)


@dataclass(frozen=True)
class Label:
    """Description of one segment in a label file, with nothing filled in.

    Attributes
    ----------
    name
        May be empty, and that of other segments, too.
    value, layer
        The voxels are those of the layer that have this value. Layers are for overlapping segments, and most
        files have one.
    colour
        RGB from 0 to 1; None where the file gives none.
    tags
        By name, such as ``DICOM.SegmentAlgorithmType``; with those of all segments.
    terminology
        None where the file gives no codes.
    """

    name: str
    value: int
    layer: int = 0
    colour: tuple[float, float, float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    terminology: Terminology | None = None


class Segment:
    """One object: its name, colour, voxels and meaning.

    Parameters
    ----------
    name : str
        Not empty.
    colour_rgb : three numbers from 0 to 1
    mask_kji : (K, J, I) bool or integers, any value but 0 belongs to the object; copied
    terminology : Terminology or None
        What it is in coded terms; None becomes "tissue", as in 3D Slicer for a new segment.
    tags : mapping of str to str
        More facts to be stored with this object, such as ``DICOM.SegmentAlgorithmType``.
    label : Label or None
        How the file it was read from describes it; None when it is from none.

    Raises
    ------
    VolumeError
        Naming the value that cannot be used.

    Attributes
    ----------
    part_kji : (k, j, i) bool, read-only: the smallest part of the grid that holds the object
    offset_ijk : index of the first voxel of ``part_kji``
    shape_ijk : the whole grid
    """

    def __init__(
        self,
        name: str,
        colour_rgb: Sequence[float],
        mask_kji: NDArray[Any],
        terminology: Terminology | None = None,
        tags: Mapping[str, str] | None = None,
        label: Label | None = None,
    ) -> None:
        mask = np.asarray(mask_kji)
        self._describe(name, colour_rgb, mask, terminology, tags, label)
        start, part = _cropped(mask, copied=True)
        self._hold(part, start, (mask.shape[2], mask.shape[1], mask.shape[0]))

    @classmethod
    def from_part(
        cls,
        name: str,
        colour_rgb: Sequence[float],
        part_kji: NDArray[np.bool_],
        offset_ijk: tuple[int, int, int],
        shape_ijk: tuple[int, int, int],
        terminology: Terminology | None = None,
        tags: Mapping[str, str] | None = None,
        label: Label | None = None,
    ) -> Segment:
        """Create from the part of the grid that holds the segment, without a mask of the whole.

        Parameters
        ----------
        part_kji : (k, j, i) bool or integers
            Taken over where it can be: neither copied nor to be changed afterwards.
        offset_ijk : index in the grid of its first voxel
        shape_ijk : the whole grid

        Raises
        ------
        VolumeError
            As for a whole mask, and for a part that reaches out of the grid.
        """
        segment = cls.__new__(cls)
        part = np.asarray(part_kji)
        segment._describe(name, colour_rgb, part, terminology, tags, label)
        ends = [(o, o + n, size) for o, n, size in zip(offset_ijk, part.shape[::-1], shape_ijk, strict=True)]
        if any(first < 0 or last > size for first, last, size in ends):
            message = (
                f"part of {name!r}: {part.shape[::-1]} voxels (i, j, k) from {tuple(offset_ijk)} on reach "
                f"out of the grid of {tuple(shape_ijk)}"
            )
            raise VolumeError(message, code="mask-outside-grid", segment=name)
        start, inner = _cropped(part, copied=False)
        i, j, k = offset_ijk
        segment._hold(inner, (k + start[0], j + start[1], i + start[2]), shape_ijk)
        return segment

    def _describe(
        self,
        name: str,
        colour_rgb: Sequence[float],
        mask: NDArray[Any],
        terminology: Terminology | None,
        tags: Mapping[str, str] | None,
        label: Label | None,
    ) -> None:
        if mask.ndim != 3 or mask.dtype.kind not in "bui":
            message = (
                f"mask of {name!r}: expected three axes (k, j, i) of true and false, not {mask.shape} of "
                f"{mask.dtype}"
            )
            raise VolumeError(message, code="invalid-mask", segment=name, shape=list(mask.shape))
        if not isinstance(name, str) or not name.strip():
            raise VolumeError(f"segment name {name!r}: give a name that is not empty", code="empty-name")
        self.name = name
        self.colour_rgb = _checked_colour(name, colour_rgb)
        self.terminology = TISSUE if terminology is None else terminology
        self.tags: Mapping[str, str] = MappingProxyType({str(k): str(v) for k, v in (tags or {}).items()})
        self.label = label

    def _hold(
        self, part: NDArray[np.bool_], start_kji: tuple[int, int, int], shape_ijk: tuple[int, int, int]
    ) -> None:
        part.flags.writeable = False
        self.part_kji: NDArray[np.bool_] = part
        self.offset_ijk: tuple[int, int, int] = start_kji[::-1] if part.size else (0, 0, 0)
        self.shape_ijk: tuple[int, int, int] = (shape_ijk[0], shape_ijk[1], shape_ijk[2])

    def described_as(self, terminology: Terminology, name: str) -> Segment:
        """Return the segment with another name and code; the voxels are shared."""
        other = copy.copy(self)
        other.terminology, other.name = terminology, name
        return other

    def reordered(self, mapping: NDArray[np.float64], shape_ijk: tuple[int, int, int]) -> Segment:
        """Return the segment on a grid that stores the same voxels in another order, or has more of them.

        Parameters
        ----------
        mapping : (4, 4) whole numbers, from index on this grid to index on the other
        shape_ijk : the other grid
        """
        axes = np.abs(mapping[:3, :3]).argmax(axis=1)  # of each axis there, the axis here
        steps = tuple(slice(None, None, int(mapping[n, axes[n]])) for n in (2, 1, 0))
        part = self.part_kji.transpose([2 - int(axes[n]) for n in (2, 1, 0)])[steps]
        ends = np.array([self.offset_ijk, np.array(self.offset_ijk) + self.part_kji.shape[::-1] - 1])
        first = transform(mapping, ends).min(axis=0) if part.size else np.zeros(3)
        i, j, k = (int(n) for n in np.rint(first))
        described = (self.terminology, self.tags, self.label)
        return Segment.from_part(self.name, self.colour_rgb, part, (i, j, k), shape_ijk, *described)

    @property
    def value(self) -> int | None:
        """Label value in the file it was read from, by which other files may name it; None if from none."""
        return None if self.label is None else self.label.value

    @property
    def mask_kji(self) -> NDArray[np.bool_]:
        """(K, J, I) bool on the whole grid; a new array each time."""
        mask = np.zeros(self.shape_ijk[::-1], dtype=bool)
        self.view_of(mask)[...] = self.part_kji
        return mask

    @property
    def voxel_count(self) -> int:
        """Number of voxels of the object."""
        return int(np.count_nonzero(self.part_kji))

    @property
    def is_empty(self) -> bool:
        """Whether the object has no voxel."""
        return not self.part_kji.any()

    def view_of(self, array_kji: NDArray[Any]) -> NDArray[Any]:
        """Return the part of an array on the whole grid that ``part_kji`` covers, as a view."""
        start = self.offset_ijk[::-1]
        return array_kji[tuple(slice(s, s + n) for s, n in zip(start, self.part_kji.shape, strict=True))]

    def on_slice(self, array_ji: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """Return the part of a (J, I) array of slice ``k`` that the segment may touch, and its mask."""
        i, j, first_k = self.offset_ijk
        depth, height, width = self.part_kji.shape
        if not first_k <= k < first_k + depth:
            return None
        return array_ji[j : j + height, i : i + width], self.part_kji[k - first_k]

    def overlap_with(self, other: Segment) -> int:
        """Count voxels that belong to both."""
        ours, theirs = [], []
        for axis in range(3):
            a, b = self.offset_ijk[2 - axis], other.offset_ijk[2 - axis]
            first = max(a, b)
            last = min(a + self.part_kji.shape[axis], b + other.part_kji.shape[axis])
            if first >= last:
                return 0
            ours.append(slice(first - a, last - a))
            theirs.append(slice(first - b, last - b))
        return int(np.count_nonzero(self.part_kji[tuple(ours)] & other.part_kji[tuple(theirs)]))

    def __repr__(self) -> str:
        return f"Segment({self.name!r}, {self.voxel_count} voxels)"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Objects on the grid of one volume.

    Parameters
    ----------
    geometry : Geometry
        The grid of the volume they were drawn on.
    segments : tuple of Segment
        In order; their names differ and their masks have the grid's shape. The label value of a segment is
        its place in this order, from 1.
    provenance : mapping of str to values JSON knows
        How it came about. Written with every object. Known keys: ``prompts`` (the JSON text of a PromptSet;
        each object is stored with its own prompts only), ``model``, ``weights_sha256`` (of the file),
        ``weights_key`` (see :class:`SegmentationModel`), ``window``, ``known_spacing`` (see
        :attr:`Volume.known_spacing`, when it is not all). Anything else is stored as it is.
    notes : tuple of Note
        What the user should know of how it was read from a file or resampled. Not written.
    kind : str
        The Segmentation Type of the DICOM SEG it was read from (``"BINARY"``, ``"FRACTIONAL"``,
        ``"LABELMAP"``), else empty.
    """

    geometry: Geometry
    segments: tuple[Segment, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        segments = tuple(self.segments)
        object.__setattr__(self, "segments", segments)
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        seen: set[str] = set()
        for segment in segments:
            if segment.shape_ijk != self.geometry.shape_ijk:
                raise VolumeError(
                    f"mask of {segment.name!r} has {segment.shape_ijk} voxels (i, j, k), "
                    f"the grid {self.geometry.shape_ijk}",
                    code="mask-on-another-grid",
                    segment=segment.name,
                    shape_ijk=list(segment.shape_ijk),
                    grid_shape_ijk=list(self.geometry.shape_ijk),
                )
            if segment.name in seen:
                message = f"two segments are named {segment.name!r}: give each its own name"
                raise VolumeError(message, code="duplicate-name", name=segment.name)
            seen.add(segment.name)

    @classmethod
    def from_masks(
        cls,
        geometry: Geometry,
        masks: Mapping[str, NDArray[Any]],
        provenance: Mapping[str, Any] | None = None,
    ) -> Segmentation:
        """Create from (K, J, I) masks by name, in default colours."""
        segments = (Segment(name, default_colour(n), mask) for n, (name, mask) in enumerate(masks.items()))
        return cls(geometry, tuple(segments), provenance or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments, in order."""
        return tuple(segment.name for segment in self.segments)

    @property
    def labels(self) -> tuple[Label, ...]:
        """How the file it was read from describes each segment; empty when it is from none."""
        return tuple(segment.label for segment in self.segments if segment.label is not None)

    def __getitem__(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        known = ", ".join(map(repr, self.names)) or "none"
        message = f"unknown segment {name!r}: known segments are {known}"
        raise VolumeError(message, code="unknown-segment", segment=name, known=list(self.names))

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def known_spacing(self) -> str:
        """What is known of the spacing of the volume it was drawn on, see :attr:`Volume.known_spacing`."""
        return str(self.provenance.get("known_spacing", "all"))

    def volume_ml(self, name: str) -> float:
        """Compute the volume of a segment in millilitres."""
        cubic_mm = abs(float(np.linalg.det(self.geometry.ijk_to_ras[:3, :3])))
        return self[name].voxel_count * cubic_mm / 1000.0

    def overlaps(self) -> Iterator[tuple[Segment, Segment, int]]:
        """Yield pairs of segments (earlier, later) that share voxels, and how many they share."""
        for n, later in enumerate(self.segments):
            for earlier in self.segments[:n]:
                if count := earlier.overlap_with(later):
                    yield earlier, later, count

    def layers(self) -> tuple[int, ...]:
        """Return for each segment the first layer, from 0, in which it overlaps no segment before it."""
        rivals: dict[str, list[str]] = {}
        for earlier, later, _ in self.overlaps():
            rivals.setdefault(later.name, []).append(earlier.name)
        layer_of: dict[str, int] = {}
        for name in self.names:
            taken = {layer_of[rival] for rival in rivals.get(name, ())}
            layer_of[name] = next(n for n in range(len(taken) + 1) if n not in taken)
        return tuple(layer_of.values())

    def on_grid(self, geometry: Geometry, tolerance_mm: float = 0.05) -> Segmentation:
        """Return it stored as a volume of that geometry is: axes turned and flipped, never resampled.

        Raises
        ------
        GeometryError
            When the voxels are not in the same positions, in whatever order they are stored.
        """
        own = self.geometry
        if own.same_grid(geometry, tolerance_mm):
            return replace(self, geometry=geometry)
        mapping = geometry.index_mapping(own, tolerance_mm)
        if mapping is None or not geometry.same_positions(own, tolerance_mm):
            differing = _differences(own, geometry)
            listed = "; ".join(f"{what} {ours}, the image's {theirs}" for what, (ours, theirs) in differing)
            raise GeometryError(
                f"the labels do not lie on the image's grid: {listed}. Resample them to the image",
                code="label-map-on-another-grid",
                shape_ijk=list(own.shape_ijk),
                image_shape_ijk=list(geometry.shape_ijk),
                differing=[what for what, _ in differing],
            )
        segments = tuple(segment.reordered(mapping, geometry.shape_ijk) for segment in self.segments)
        return replace(self, geometry=geometry, segments=segments)

    def labels_kji(self) -> NDArray[Any]:
        """Return (K, J, I) label values of the file it was read from, 0 where there is no segment.

        Raises
        ------
        VolumeError
            ``overlapping-labels`` when a voxel or a value belongs to several segments.
        """
        values = [0 if segment.value is None else segment.value for segment in self.segments]
        ends = min(values, default=0), max(values, default=0)
        dtype = np.result_type(*(np.min_scalar_type(end) for end in ends))
        labels_kji = np.zeros(self.geometry.shape_ijk[::-1], dtype=dtype)
        counts = Counter(values)
        for segment, value in zip(self.segments, values, strict=True):
            view = segment.view_of(labels_kji)
            if counts[value] > 1 or view[segment.part_kji].any():
                message = (
                    f"{segment.name!r} shares voxels or its value {value} with another segment: there is no "
                    "label map of all"
                )
                raise VolumeError(message, code="overlapping-labels", segment=segment.name, value=value)
            view[segment.part_kji] = value
        return labels_kji

    def stored_layers(self) -> tuple[int, ...]:
        """Return the layer of each segment in its file; a DICOM SEG has none, so those of :meth:`layers`."""
        return self.layers() if self.kind else tuple(label.layer for label in self.labels)

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """uint8 for up to 255 segments, else uint16."""
        if len(self.segments) > 65535:
            message = f"{len(self.segments)} segments: at most 65535 can be numbered"
            raise VolumeError(message, code="too-many-segments", count=len(self.segments))
        return np.dtype(np.uint8 if len(self.segments) <= 255 else np.uint16)

    def label_slice(self, k: int, numbers: Iterable[int] | None = None) -> NDArray[Any]:
        """Return (J, I) label values of slice ``k``; where segments overlap, the later one.

        ``numbers`` (from 0) restricts it to some of the segments.
        """
        labels_ji = np.zeros(self.geometry.shape_ijk[1::-1], dtype=self.label_dtype)
        for n in range(len(self.segments)) if numbers is None else numbers:
            touched = self.segments[n].on_slice(labels_ji, k)
            if touched is not None:
                view, mask = touched
                view[mask] = n + 1
        return labels_ji


def _differences(one: Geometry, other: Geometry) -> list[tuple[str, list[str]]]:
    """Return what differs between two grids, each with its text for both: size, spacing, axes, origin."""
    texts = []
    for grid in (one, other):
        axes = np.round(grid.directions, 3).tolist()
        texts.append(
            {
                "size": " x ".join(map(str, grid.shape_ijk)),
                "spacing": " x ".join(f"{mm:.4g}" for mm in grid.spacing) + " mm",
                "axes": f"{grid.axis_codes} {axes}" if not _is_upright(axes) else grid.axis_codes,
                "origin": "(" + ", ".join(f"{mm:.2f}" for mm in grid.origin_ras) + ") mm RAS",
            }
        )
    return [(what, [texts[0][what], texts[1][what]]) for what in texts[0] if texts[0][what] != texts[1][what]]


def _is_upright(axes: list[list[float]]) -> bool:
    return all(abs(part) in (0, 1) for row in axes for part in row)


def bounding_box(mask_kji: NDArray[Any]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return first and one past last index (k, j, i) of voxels that are not 0; all 0 for an empty mask."""
    filled_kj = np.empty(mask_kji.shape[:2], dtype=bool)
    filled_i = np.zeros(mask_kji.shape[2], dtype=bool)
    for k, mask_ji in enumerate(mask_kji):  # one pass in memory order, without a copy of the whole
        filled_kj[k] = mask_ji.any(axis=1)
        if filled_kj[k].any():
            filled_i |= mask_ji.any(axis=0)
    indices = [np.flatnonzero(f) for f in (filled_kj.any(axis=1), filled_kj.any(axis=0), filled_i)]
    if indices[0].size == 0:
        return (0, 0, 0), (0, 0, 0)
    start, stop = [int(n[0]) for n in indices], [int(n[-1]) + 1 for n in indices]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _cropped(mask_kji: NDArray[Any], *, copied: bool) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """Return the first index (k, j, i) of voxels that are not 0, and the smallest part that holds them.

    Unless it must be ``copied`` the part is a view of a bool mask that is no larger: of a larger one it would
    keep all of it alive.
    """
    start, stop = bounding_box(mask_kji)
    part = mask_kji[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    if not copied and part.dtype == bool and part.size == mask_kji.size:
        return start, part
    return start, part != 0


def _checked_colour(name: str, colour_rgb: Sequence[float]) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in colour_rgb)
    except (TypeError, ValueError) as error:
        message = f"colour {colour_rgb!r} of {name!r}: expected red, green and blue"
        raise VolumeError(message, code="invalid-colour", segment=name) from error
    if not all(math.isfinite(part) and 0 <= part <= 1 for part in (red, green, blue)):
        message = f"colour {tuple(colour_rgb)} of {name!r}: each part must be from 0 to 1"
        raise VolumeError(message, code="invalid-colour", segment=name)
    return red, green, blue
