"""DICOM segmentations (PS3.3 A.51: binary, fractional, and label maps) into objects on one grid.

Frames are decoded one after the other and put where they belong at once, so that memory holds what they are
gathered in and one frame, however many segments there are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from medsam2_core.errors import Note, VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom_codestreams import check_frames
from medsam2_core.imaging.dicom_frames import frames_of
from medsam2_core.imaging.dicom_seg_grid import grid_of
from medsam2_core.imaging.dicom_seg_segments import Described, described
from medsam2_core.imaging.geometry import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # its tag, little endian


class Gatherer(Protocol):
    """What takes the objects slice by slice: :class:`~medsam2_core.imaging.layers.Layers` or ``Parts``."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Objects that have a voxel."""

    def put(self, number: int, k: int, mask_ji: NDArray[np.bool_]) -> None:
        """Add voxels of one object."""

    def put_labels(self, k: int, labels_ji: NDArray[Any], background: int = 0) -> None:
        """Add a slice of a label map."""


G = TypeVar("G", bound=Gatherer)


@dataclass(frozen=True, eq=False)
class DicomSegmentation(Generic[G]):
    """What a DICOM SEG holds.

    Attributes
    ----------
    kind : ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``
    voxels : those of each segment, under its number
    segments : what each segment is, by number, ascending; those without voxels too
    notes : what the user should know of the grid: one sentence each
    """

    kind: str
    voxels: G
    segments: dict[int, Described]
    geometry: Geometry
    notes: tuple[Note, ...] = ()


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation; a damaged file is none."""
    import pydicom

    try:
        with files.reading(path, "DICOM"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
            return str(header.get("Modality", "")) == "SEG"
    except VolumeError:
        return False


def read(path: Path, gatherer: Callable[[Path, tuple[int, int, int]], G]) -> DicomSegmentation[G]:
    """Read a SEG; slices whose frames it leaves out are empty.

    A voxel of a fractional segmentation belongs to the segment when its value is above half of the largest.

    Parameters
    ----------
    gatherer
        Makes what takes the voxels, from the path and the grid's (K, J, I).

    Raises
    ------
    VolumeError
        When the file is another kind of DICOM, damaged, or compressed in a way nothing here decodes.
    GeometryError
        When frames lie on no common even grid.
    """
    import pydicom

    with files.reading(path, "DICOM SEG"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kind = _kind(path, header)
        grid = grid_of(path, header, frames_of(path, header))
        segments = described(header)
        voxels = gatherer(path, (grid.geometry.shape_ijk[2], int(header.Rows), int(header.Columns)))
        _gather(path, header, kind, grid.slice_of, voxels)
        known = {n: segments.get(n) or Described(str(n)) for n in sorted({*segments, *voxels.numbers})}
        return DicomSegmentation(kind, voxels, known, grid.geometry, grid.notes)


def _gather(path: Path, header: Any, kind: str, slice_of: Sequence[int], voxels: Gatherer) -> None:
    if kind == "LABELMAP":
        background = _background(path, header)
        for k, pixels in zip(slice_of, _pixels(path, header), strict=True):
            voxels.put_labels(k, pixels, background)
        return
    numbers = _segment_numbers(path, header)
    least = 0 if kind == "BINARY" else int(header.get("MaximumFractionalValue") or 255) / 2
    for number, k, pixels in zip(numbers, slice_of, _pixels(path, header), strict=True):
        voxels.put(number, k, pixels > least)


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
        with path.open("rb") as stream:
            _seek_pixels(path, stream, header)
            check_frames(path, stream, syntax, int(header.get("NumberOfFrames") or 1), size)
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
