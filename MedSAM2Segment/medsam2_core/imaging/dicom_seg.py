"""DICOM segmentations (PS3.3 A.51: binary, fractional, and label maps) into layers on one grid.

Frames are decoded one after the other and put where they belong at once, so that memory holds the layers and
one frame, however many segments there are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.codestreams import check_size
from medsam2_core.imaging.dicom_frames import Frame, frames_of
from medsam2_core.imaging.dicom_seg_segments import Described, described
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.layers import Layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # its tag, little endian
_MOST_OFF = 0.05  # of the spacing: how far a frame may lie off the grid that the file declares


@dataclass(frozen=True, eq=False)
class DicomSegmentation:
    """What a DICOM SEG holds.

    Attributes
    ----------
    kind : ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``
    layers_lkji : (L, K, J, I) uint8 or uint16; a voxel of a segment has its number
    segments : what each segment is, by number, ascending; those without voxels too
    layer_of : the layer of each segment
    """

    kind: str
    layers_lkji: NDArray[Any]
    segments: dict[int, Described]
    layer_of: dict[int, int]
    geometry: Geometry


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation; a damaged file is none."""
    import pydicom

    try:
        with files.reading(path, "DICOM"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
            return str(header.get("Modality", "")) == "SEG"
    except VolumeError:
        return False


def read(path: Path) -> DicomSegmentation:
    """Read a SEG; slices whose frames it leaves out are empty.

    A voxel of a fractional segmentation belongs to the segment when its value is above half of the largest.

    Raises
    ------
    VolumeError
        When the file is another kind of DICOM, damaged, or compressed in a way nothing here decodes.
    GeometryError
        When frames have no place in the patient, or lie on no even grid.
    """
    import pydicom

    with files.reading(path, "DICOM SEG"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kind = _kind(path, header)
        frames = frames_of(path, header)
        slice_of, geometry = _grid(path, frames, _declared_spacing(header))
        segments = described(header)
        shape_kji = (geometry.shape_ijk[2], int(header.Rows), int(header.Columns))
        layers = Layers(path, shape_kji)
        if kind == "LABELMAP":
            background = _background(path, header)
            for k, pixels in zip(slice_of, _pixels(path, header), strict=True):
                layers.put_labels(k, pixels, background)
        else:
            numbers = _segment_numbers(path, header)
            least = 0 if kind == "BINARY" else int(header.get("MaximumFractionalValue") or 255) / 2
            for number, k, pixels in zip(numbers, slice_of, _pixels(path, header), strict=True):
                layers.put(number, k, pixels > least)
        layer_of = dict.fromkeys(segments, 0) | layers.layer_of
        known = {number: segments.get(number) or Described(str(number)) for number in sorted(layer_of)}
        return DicomSegmentation(kind, layers.stacked(), known, layer_of, geometry)


def _kind(path: Path, header: Any) -> str:
    if str(header.get("Modality", "")) != "SEG" or "SegmentSequence" not in header:
        raise VolumeError(f"{path}: a DICOM image, not a segmentation (SEG)")
    kind = str(header.get("SegmentationType", ""))
    if kind not in KINDS:
        raise VolumeError(
            f"{path}: segmentation of type {kind!r} is not read: binary, fractional and label maps are"
        )
    return kind


def _background(path: Path, header: Any) -> int:
    """The value of voxels that belong to nothing (PS3.3 C.8.20.2)."""
    background = int(header.get("PixelPaddingValue") or 0)
    if background and any(int(item.SegmentNumber) == 0 for item in header.SegmentSequence):
        raise VolumeError(f"{path}: a label map whose background is {background} and whose segment is 0")
    return background


def _segment_numbers(path: Path, header: Any) -> list[int]:
    """The segment of each frame; with a single segment files say it once, for all frames."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    numbers = []
    for group in header.get("PerFrameFunctionalGroupsSequence") or []:
        number = next((found for one in (group, *shared) if (found := _named(one)) is not None), None)
        if number is None:
            raise VolumeError(f"{path}: a frame does not say which segment it belongs to")
        if not 1 <= number <= 65535:
            raise VolumeError(f"{path}: a frame of segment {number}: segments are numbered from 1 to 65535")
        numbers.append(number)
    return numbers


def _named(group: Any) -> int | None:
    found = group.get("SegmentIdentificationSequence")
    return int(found[0].ReferencedSegmentNumber) if found and "ReferencedSegmentNumber" in found[0] else None


# Pixels -----------------------------------------------------------------------------------------------------


def _pixels(path: Path, header: Any) -> Iterator[NDArray[Any]]:
    """(J, I) stored values of each frame, in the order of the file."""
    from pydicom.pixels import get_decoder, iter_pixels

    size = (int(header.Rows), int(header.Columns))
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise VolumeError(f"{path}: {header.SamplesPerPixel} values per pixel: a segmentation has one")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise VolumeError(f"{path}: no decoder for pixels compressed as {syntax.name!r} is installed")
        _check_codestreams(path, header, size)
    elif int(header.BitsAllocated) == 1 and syntax.is_little_endian:
        yield from _bits(path, header, size)
        return
    # A deflated file is one compressed block: there is no reading it frame by frame.
    for pixels in iter_pixels(_whole(path) if syntax.is_deflated else path):
        if pixels.shape != size:
            raise VolumeError(f"{path}: decoded to {pixels.shape}, expected {size[0]} x {size[1]} pixels")
        yield pixels


def _bits(path: Path, header: Any, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Frames of one bit a pixel. Nothing stands between them, so that one may begin within a byte, which
    pydicom's decoder does not know of.
    """
    with contextlib.ExitStack() as stack:
        if header.file_meta.TransferSyntaxUID.is_deflated:
            stream: Any = io.BytesIO(_whole(path).PixelData)
        else:
            stream = stack.enter_context(path.open("rb"))
            _seek_pixels(path, stream, header)
        start, pixels = stream.tell(), size[0] * size[1]
        for n in range(int(header.get("NumberOfFrames") or 1)):
            first, last = n * pixels, (n + 1) * pixels
            stream.seek(start + first // 8)
            data = np.frombuffer(stream.read((last + 7) // 8 - first // 8), dtype=np.uint8)
            bits = np.unpackbits(data, bitorder="little")[first % 8 :][:pixels]
            if bits.size < pixels:
                raise VolumeError(f"{path}: truncated: the bits of frame {n + 1} are not all there")
            yield bits.reshape(size)


def _whole(path: Path) -> Any:
    import pydicom

    return pydicom.dcmread(path)


def _seek_pixels(path: Path, stream: Any, header: Any) -> None:
    """Move to the first byte of the pixel data's value."""
    import pydicom

    pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["Rows"])
    implicit = header.file_meta.TransferSyntaxUID.is_implicit_VR
    if not stream.read(8 if implicit else 12).startswith(_PIXEL_DATA):
        raise VolumeError(f"{path}: truncated or without pixels: the pixel data is missing")


def _check_codestreams(path: Path, header: Any, size: tuple[int, int]) -> None:
    """Decoders believe what compressed frames say about themselves, so that is looked at first."""
    from pydicom.encaps import generate_frames
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    checked = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
    if header.file_meta.TransferSyntaxUID not in checked:
        return
    with path.open("rb") as stream:
        _seek_pixels(path, stream, header)
        for frame in generate_frames(stream, number_of_frames=int(header.get("NumberOfFrames") or 1)):
            try:
                check_size(frame, *size)
            except VolumeError as error:
                raise VolumeError(f"{path}: {error}") from error


# Grid -------------------------------------------------------------------------------------------------------


def _declared_spacing(header: Any) -> float | None:
    """Distance in mm between slices, also those without a frame, where the file tells it for all frames."""
    for group in header.get("SharedFunctionalGroupsSequence") or []:
        for measures in group.get("PixelMeasuresSequence") or []:
            spacing = abs(float(measures.get("SpacingBetweenSlices") or 0))
            if np.isfinite(spacing) and spacing > 1e-3:
                return spacing
    return None


def _grid(path: Path, frames: Sequence[Frame], declared: float | None) -> tuple[list[int], Geometry]:
    """Slice number of each frame, and the grid that holds them all."""
    first = frames[0]
    if any(not frame.is_placed for frame in frames):
        raise GeometryError(f"{path}: frames without a position in the patient")
    normal = first.normal_lps
    positions = np.array([frame.position_lps for frame in frames])
    heights = positions @ normal
    lowest, highest = int(heights.argmin()), int(heights.argmax())
    above = heights - heights[lowest]
    steps = np.diff(np.sort(above))
    steps = steps[steps > 1e-3]
    spacing = float(steps.min()) if steps.size else first.thickness
    if declared is not None and steps.size and _fits(above, declared, spacing):
        spacing = declared
    numbers = np.rint(above / spacing).astype(int)
    count = int(numbers.max()) + 1
    step = normal * spacing if count == 1 else (positions[highest] - positions[lowest]) / (count - 1)
    wrong = np.linalg.norm(positions - (positions[lowest] + numbers[:, np.newaxis] * step), axis=1).max()
    if wrong > max(0.05, 0.02 * spacing):
        raise GeometryError(
            f"{path}: frames are not evenly spaced: one is {wrong:.3g} mm off a grid of {spacing:.4g} mm"
        )
    assert first.orientation_lps is not None
    matrix = np.eye(4)
    matrix[:3, 0] = first.orientation_lps[:3] * first.spacing[1]
    matrix[:3, 1] = first.orientation_lps[3:] * first.spacing[0]
    matrix[:3, 2] = step
    matrix[:3, 3] = positions[lowest]
    rows, columns, _ = first.size
    return numbers.tolist(), Geometry.from_lps(matrix, (columns, rows, count))


def _fits(above: NDArray[np.float64], declared: float, smallest_step: float) -> bool:
    """Whether frames lie on slices of the declared spacing, closer than any two of them are.

    Where slices were left out everywhere the smallest step is too long; but a spacing the frames do not
    follow was not meant.
    """
    if declared > 0.999 * smallest_step:
        return False
    numbers = np.rint(above / declared)
    refined = above.max() / numbers.max()  # rounded digits of the declared one add up over many slices
    return bool(np.abs(above / refined - numbers).max() <= _MOST_OFF)
