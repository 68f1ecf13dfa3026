"""Frames in the headers of DICOM files, and which of them make one stack.

A *frame* is one 2-D image: a file of a classic series, or one image of a multi-frame file. Frames of one
series with the same plane orientation, size and spacing form a *stack*; a series with several echoes or time
points forms several. Frames without a position in the patient (ultrasound, photographs) stay together file by
file.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging.geometry import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Everything the grouping looks at; other tags of a header are not even parsed.
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "BitsAllocated", "RescaleSlope", "RescaleIntercept", "FrameOfReferenceUID",
    "SequenceOfUltrasoundRegions", "InstanceNumber", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "PhotometricInterpretation", "EchoTime",
    "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime", "DiffusionBValue", "ImageType",
    "StudyInstanceUID", "BitsStored", "PixelRepresentation", "AcquisitionTime",
)  # fmt: skip
#: Attributes that may separate frames at one position, most specific first.
_SEPARATORS = (
    "StackID", "EchoTime", "EffectiveEchoTime", "TemporalPositionIdentifier", "TemporalPositionIndex",
    "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "ImageType", "FrameType",
    "ComplexImageComponent", "AcquisitionTime",
)  # fmt: skip
_SAME_ORIENTATION = 1e-3  # of a direction cosine
_CENTIMETRES = 3  # code of (0018,6024) and (0018,6026)


@dataclass(frozen=True)
class Frame:
    """One 2-D image in a file, and where it is (LPS millimetres)."""

    path: Path
    index: int
    header: Any = field(repr=False)
    position_lps: NDArray[np.float64] | None
    orientation_lps: NDArray[np.float64] | None  # (6,) directions of a row and of a column
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float
    slope: float
    intercept: float
    separators: dict[str, str]
    has_spacing: bool = True

    @property
    def is_placed(self) -> bool:
        """Whether the file has its position in the patient."""
        return self.position_lps is not None and self.orientation_lps is not None

    @property
    def normal_lps(self) -> NDArray[np.float64]:
        """Unit vector at right angles to the image."""
        assert self.orientation_lps is not None
        normal = np.cross(self.orientation_lps[:3], self.orientation_lps[3:])
        return normal / np.linalg.norm(normal)

    def height(self, normal_lps: NDArray[np.float64]) -> float:
        """Return the position along a normal in mm."""
        assert self.position_lps is not None
        return float(self.position_lps @ normal_lps)

    @property
    def size(self) -> tuple[int, int, int]:
        """Rows, columns, values per pixel."""
        return int(self.header.Rows), int(self.header.Columns), int(self.header.get("SamplesPerPixel", 1))

    def geometry_with(
        self, step_lps: NDArray[np.float64], position_lps: NDArray[np.float64], count: int
    ) -> Geometry:
        """Return the grid of ``count`` frames like this, the first at a position, a step from each to the
        next."""
        assert self.orientation_lps is not None
        matrix = np.eye(4)
        matrix[:3, 0] = self.orientation_lps[:3] * self.spacing[1]
        matrix[:3, 1] = self.orientation_lps[3:] * self.spacing[0]
        matrix[:3, 2], matrix[:3, 3] = step_lps, position_lps
        return Geometry.from_lps(matrix, (int(self.header.Columns), int(self.header.Rows), count))


@dataclass(frozen=True)
class Stack:
    """Frames that make one volume, not yet ordered."""

    uid: str
    frames: tuple[Frame, ...]

    @property
    def header(self) -> Any:
        """Header of its first frame."""
        return self.frames[0].header


def frames_of(path: Path, header: Any) -> list[Frame]:
    """Return all frames of one file; VolumeError when a value in the header cannot be used."""
    count = int(header.get("NumberOfFrames") or 1)
    if count < 1 or int(header.Rows) < 1 or int(header.Columns) < 1:
        message = f"{path}: {count} frames of {header.Rows} x {header.Columns} pixels is not a size"
        raise VolumeError(message, code="size-not-positive", path=str(path))
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    if not per_frame:
        placed = count == 1  # the position of a classic multi-frame file is that of its first frame only
        return [_frame(path, n, header, [header], placed) for n in range(count)]
    if len(per_frame) != count:
        message = f"{path}: {count} frames, but positions of {len(per_frame)}"
        raise VolumeError(
            message, code="frame-positions-mismatch", path=str(path), frames=count, positions=len(per_frame)
        )
    return [_frame(path, n, header, [group, *shared, header], True) for n, group in enumerate(per_frame)]


def stacks_of(frames: Sequence[Frame]) -> list[Stack]:
    """Group frames into stacks, in the order they were found."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _belong_together(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    parts = [part for group in groups for part in _separated(group)]
    return [Stack(str(part[0].header.get("SeriesInstanceUID", "")), tuple(part)) for part in parts]


class Irregular(str, enum.Enum):
    """What to do with a series whose slices are missing or not evenly spaced.

    ``REFUSE``; ``RESAMPLE``: interpolate between its slices where even spacing puts them; ``AS_IS``: take the
    slices as evenly spaced, so that they are not where the scanner made them.
    """

    REFUSE = "refuse"
    RESAMPLE = "resample"
    AS_IS = "as-is"


@dataclass(frozen=True)
class EvenGrid:
    """Even spacing for frames that lack it.

    Attributes
    ----------
    frames
        In the order of their positions.
    places
        (K,) which frame each slice of the volume lies on; between two for one that is interpolated.
    off_mm
        How far a frame is at most from where the volume has it.
    """

    frames: list[Frame]
    geometry: Geometry
    places: NDArray[np.float64]
    off_mm: float


def evened(stack: Stack, how: Irregular) -> EvenGrid:
    """Return even spacing for a stack that :func:`ordered` refuses.

    Raises
    ------
    GeometryError
        When slices share a position, or do not lie on one line.
    """
    first = stack.frames[0]
    normal = first.normal_lps
    along = sorted(stack.frames, key=lambda frame: frame.height(normal))
    positions = np.array([frame.position_lps for frame in along])  # (K, 3)
    distances = np.diff(positions @ normal)
    # The lower median: of two distances the smaller one, since a larger one may be a gap.
    usual = float(np.sort(distances)[(len(distances) - 1) // 2])
    _check_doubles(along, positions, distances, usual)
    way = positions[-1] - positions[0]
    heights = (positions - positions[0]) @ way / float(way @ way)  # 0 to 1
    beside = float(np.linalg.norm(positions - positions[0] - heights[:, np.newaxis] * way, axis=1).max())
    if beside > tolerance_mm(usual):
        message = f"slices do not lie on one line: one is {beside:.3g} mm beside it"
        raise GeometryError(message, code="slices-uneven", off_mm=beside)
    count = len(along)
    if how is Irregular.RESAMPLE:
        count = round(float(np.linalg.norm(way)) / usual) + 1
    even = np.linspace(0, 1, count)
    places = np.interp(even, heights, np.arange(len(along)))
    off = 0.0
    if how is Irregular.AS_IS:
        places = np.arange(count, dtype=np.float64)
        off = float(np.abs(heights - even).max() * np.linalg.norm(way))
    geometry = first.geometry_with(way / max(1, count - 1), positions[0], count)
    return EvenGrid(along, geometry, places, off)


def ordered(stack: Stack) -> tuple[list[Frame], Geometry]:
    """Return frames in the order of their positions, and the geometry of the volume they make.

    The step from slice to slice is that of the positions, so a stack of a tilted gantry becomes a sheared
    geometry.

    Raises
    ------
    GeometryError
        When slices are missing, doubled or not evenly spaced, naming the positions.
    """
    first = stack.frames[0]
    if not first.is_placed:
        (rows, columns, _), spacing = first.size, (first.spacing[1], first.spacing[0])
        return list(stack.frames), Geometry.for_picture(rows, columns, spacing, frames=len(stack.frames))
    normal = first.normal_lps
    along = sorted(stack.frames, key=lambda frame: frame.height(normal))
    positions = np.array([frame.position_lps for frame in along])  # (K, 3)
    step = normal * first.thickness if len(along) == 1 else _even_step(along, positions, normal)
    return along, first.geometry_with(step, positions[0], len(along))


def tolerance_mm(spacing: float) -> float:
    """Return how far (mm) a slice may lie from where even spacing of that many mm puts it."""
    return max(0.05, 0.02 * spacing)


def same_orientation(one: Frame, other: Frame) -> bool:
    """Return whether two placed frames run in the same directions."""
    assert one.orientation_lps is not None
    assert other.orientation_lps is not None
    return bool(np.abs(one.orientation_lps - other.orientation_lps).max() < _SAME_ORIENTATION)


def same_spacing(one: Frame, other: Frame) -> bool:
    """Return whether pixels of two frames have the same size."""
    return bool(np.allclose(one.spacing, other.spacing, rtol=1e-3))


def _check_doubles(
    frames: Sequence[Frame], positions: NDArray[np.float64], distances: NDArray[np.float64], usual: float
) -> None:
    doubled = np.flatnonzero(distances < max(1e-3, 0.02 * usual))
    if doubled.size:
        n = int(doubled[0])
        raise GeometryError(
            f"slices share a position {doubled.size} times, first at {_position_text(positions[n])}: "
            f"{_frame_name(frames[n])} and {_frame_name(frames[n + 1])}. Remove the doubled ones",
            code="slices-doubled",
            count=int(doubled.size),
            positions_lps=[positions[n].tolist() for n in doubled[:3]],
        )


def _even_step(
    frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (3,) from one slice to the next, or raise GeometryError."""
    distances = np.diff(positions @ normal)
    usual = float(np.median(distances))
    _check_doubles(frames, positions, distances, usual)
    gaps = np.flatnonzero(distances > 1.5 * usual)
    if gaps.size:
        listed = "; ".join(
            f"{distances[n]:.3g} mm between slice {n + 1} at {_position_text(positions[n])} and slice "
            f"{n + 2} at {_position_text(positions[n + 1])}"
            for n in gaps[:3]
        )
        more = f" and {gaps.size - 3} more" if gaps.size > 3 else ""
        raise GeometryError(
            f"slices are missing: spacing is {usual:.3g} mm, but {listed}{more}. Look for the missing images",
            code="slices-missing",
            spacing_mm=usual,
            gaps_mm=[float(distances[n]) for n in gaps],
            after=[int(n) + 1 for n in gaps],
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    wrong = np.linalg.norm(
        positions - (positions[0] + np.arange(len(positions))[:, np.newaxis] * step), axis=1
    )
    if wrong.max() > tolerance_mm(usual):
        n = int(wrong.argmax())
        message = (
            f"slices are not evenly spaced: slice {n + 1} at {_position_text(positions[n])} "
            f"({_frame_name(frames[n])}) is {wrong[n]:.3g} mm from where even spacing of "
            f"{np.linalg.norm(step):.4g} mm puts it"
        )
        raise GeometryError(message, code="slices-uneven", slice=n + 1, off_mm=float(wrong[n]))
    return np.asarray(step)


def _frame(path: Path, index: int, header: Any, groups: Sequence[Any], placed: bool) -> Frame:
    """Return a frame from the functional groups that describe it, most specific first."""
    position = _numbers(path, _find(groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _numbers(path, _find(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    placed = placed and position is not None and orientation is not None
    if placed and not _is_plane(orientation):
        message = f"{path}: image orientation {orientation} is not two directions at a right angle"
        raise GeometryError(message, code="invalid-orientation", path=str(path))
    spacing = _numbers(path, _find(groups, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None:
        spacing = _numbers(path, header.get("ImagerPixelSpacing"), 2)
    if spacing is None:
        spacing = _ultrasound_spacing(header)
    if spacing is None and placed:
        message = f"{path}: has a position in the patient but no pixel spacing"
        raise GeometryError(message, code="no-pixel-spacing", path=str(path))
    measures = "PixelMeasuresSequence"
    thickness = _find(groups, measures, "SpacingBetweenSlices") or _find(groups, measures, "SliceThickness")
    slope = _find(groups, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _find(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    return Frame(
        path=path,
        index=index,
        header=header,
        position_lps=position if placed else None,
        orientation_lps=orientation if placed else None,
        spacing=(1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness=abs(float(thickness or 1.0)) or 1.0,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        separators=_separators(groups),
        has_spacing=spacing is not None,
    )


def _find(groups: Iterable[Any], sequence: str, keyword: str) -> Any:
    """Return a value from the first functional group that has it, or from the plain header."""
    for group in groups:
        for item in [*(group.get(sequence) or []), group]:
            value = item.get(keyword)
            if value is not None and value != "":
                return value
    return None


def _separators(groups: Sequence[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for group in groups:
        nested = ("FrameContentSequence", "MREchoSequence", "MRDiffusionSequence", "MRImageFrameTypeSequence")
        for item in [*(part for name in nested for part in (group.get(name) or [])), group]:
            for keyword in _SEPARATORS:
                value = item.get(keyword)
                if value is not None and keyword not in found:
                    found[keyword] = str(value)
    return found


def _numbers(path: Path, value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or value == "":
        return None
    try:
        numbers = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.size != count or not np.isfinite(numbers).all():
        message = f"{path}: {str(value)[:80]!r} should be {count} finite numbers"
        raise GeometryError(message, code="invalid-numbers", path=str(path), count=count)
    return numbers


def _is_plane(orientation: NDArray[np.float64] | None) -> bool:
    if orientation is None:
        return False
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    return bool(np.abs(lengths - 1).max() < 0.01 and abs(row @ column) < 0.01)


def _ultrasound_spacing(header: Any) -> NDArray[np.float64] | None:
    """Return pixel spacing in mm (rows, columns) from a single region calibrated in centimetres."""
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if len(regions) != 1:
        return None
    region = regions[0]
    units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
    # A clip that was scaled down after calibration keeps the old region, whose pixel size is then wrong.
    fits = int(region.get("RegionLocationMaxX1", 0)) <= int(header.Columns) and int(
        region.get("RegionLocationMaxY1", 0)
    ) <= int(header.Rows)
    deltas = [abs(float(region.get(name) or 0)) * 10 for name in ("PhysicalDeltaY", "PhysicalDeltaX")]
    if units != (_CENTIMETRES, _CENTIMETRES) or not fits or min(deltas) <= 0:
        return None
    return np.array(deltas)


def _belong_together(one: Frame, other: Frame) -> bool:
    if one.header.get("SeriesInstanceUID") != other.header.get("SeriesInstanceUID"):
        return False
    if one.is_placed != other.is_placed or one.size != other.size:
        return False
    if one.orientation_lps is None or other.orientation_lps is None:
        return one.path == other.path
    return same_orientation(one, other) and same_spacing(one, other)


def _separated(frames: list[Frame]) -> list[list[Frame]]:
    """Split frames that share positions into stacks that do not, when a header value separates them."""
    if not frames[0].is_placed or not _have_doubles(frames):
        return [frames]
    for keyword in _SEPARATORS:
        parts: dict[str, list[Frame]] = {}
        for frame in frames:
            parts.setdefault(frame.separators.get(keyword, ""), []).append(frame)
        sizes = {len(part) for part in parts.values()}
        if len(parts) > 1 and len(sizes) == 1 and not any(_have_doubles(part) for part in parts.values()):
            return list(parts.values())
    return [frames]


def _have_doubles(frames: Sequence[Frame]) -> bool:
    heights = np.sort([frame.height(frames[0].normal_lps) for frame in frames])
    return len(heights) > 1 and bool(np.diff(heights).min() < 1e-3)


def _position_text(position_lps: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in position_lps) + ") mm LPS"


def _frame_name(frame: Frame) -> str:
    return frame.path.name if frame.index == 0 else f"{frame.path.name} frame {frame.index + 1}"
