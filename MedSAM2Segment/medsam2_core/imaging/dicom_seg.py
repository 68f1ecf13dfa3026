"""DICOM segmentations (PS3.3 A.51: binary, fractional, and label maps) into segments on one grid.

Frames are decoded one after the other and put where they belong at once, so that memory holds the packed
masks and one frame, however many segments there are. highdicom's readers are not used here: ``segread``
refuses files that lack what the standard asks for, and ``ImageFileReader`` those that are deflated; both
believe the size inside compressed data.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom_codestreams import check_decoder, check_frames
from medsam2_core.imaging.dicom_frames import frames_of
from medsam2_core.imaging.dicom_seg_grid import grid_of
from medsam2_core.imaging.segment_builder import SegmentBuilder
from medsam2_core.imaging.segmentation import Label, Segmentation
from medsam2_core.imaging.terminology import NO_CODE, Code, Terminology, parse_tags, tags_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # its tag, little endian
_MANUFACTURER = "MedSAM2Segment"  # as source of an algorithm, and how its name begins
# Parameters of the algorithm that have a tag of their own; PS3.3 10.16 leaves their form to the writer.
_PARAMETERS = {"model": "MedSAM2.model", "weights_sha256": "MedSAM2.weights_sha256"}


def is_segmentation(path: Path) -> bool:
    """Return whether a file is a DICOM segmentation; a damaged file is not."""
    import pydicom

    try:
        with files.reading(path, "DICOM"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
            return str(header.get("Modality", "")) == "SEG"
    except VolumeError:
        return False


def read(path: Path) -> Segmentation:
    """Read a SEG; slices whose frames it leaves out are empty.

    A voxel of a fractional segmentation belongs to the segment when its value is above half of the largest.

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
        described = {label.value: label for label in _labels(header)}
        builder = SegmentBuilder()
        _add_frames(path, header, kind, grid.slice_of, builder)
        # The boxes take little, but what is done with the segmentation goes through the whole grid.
        files.checked_bytes(path, grid.geometry.shape_ijk, 1, files.LARGEST_VOLUME)
        numbers = sorted({*described, *(value for _, value in builder.keys)})
        labels = [described.get(number) or Label(str(number), number) for number in numbers]
        return builder.build(labels, grid.geometry, kind, grid.notes)


def _add_frames(path: Path, header: Any, kind: str, slice_of: Sequence[int], builder: SegmentBuilder) -> None:
    """Add all frames; segments are on layer 0 of the builder, whether they overlap or not."""
    if kind == "LABELMAP":
        background = _background(path, header)
        for k, pixels_ji in zip(slice_of, _frames(path, header), strict=True):
            for value in set(np.unique(pixels_ji).tolist()) - {0, background}:
                builder.add((0, value), k, pixels_ji == value)
        return
    numbers = _segment_numbers(path, header)
    threshold = 0 if kind == "BINARY" else int(header.get("MaximumFractionalValue") or 255) / 2
    for number, k, pixels_ji in zip(numbers, slice_of, _frames(path, header), strict=True):
        builder.add((0, number), k, pixels_ji > threshold)


def _kind(path: Path, header: Any) -> str:
    if str(header.get("Modality", "")) != "SEG" or "SegmentSequence" not in header:
        raise files.error(path, "a DICOM image, not a segmentation (SEG)", "not-a-segmentation")
    kind = str(header.get("SegmentationType", ""))
    if kind not in KINDS:
        message = f"segmentation of type {kind!r} is not read: binary, fractional and label maps are"
        raise files.error(path, message, "unsupported-segmentation-type", type=kind)
    return kind


def _background(path: Path, header: Any) -> int:
    """Return the value of voxels that belong to no segment (PS3.3 C.8.20.2)."""
    background = int(header.get("PixelPaddingValue") or 0)
    if background and any(int(item.SegmentNumber) == 0 for item in header.SegmentSequence):
        message = f"a label map whose background is {background} and whose segment is 0"
        raise files.error(path, message, "ambiguous-background", background=background)
    return background


def _segment_numbers(path: Path, header: Any) -> list[int]:
    """Return the segment of each frame; with a single segment it may be given once, for all frames."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    numbers = []
    for group in header.get("PerFrameFunctionalGroupsSequence") or []:
        number = next((found for one in (group, *shared) if (found := _named(one)) is not None), None)
        if number is None:
            message = "a frame does not say which segment it belongs to"
            raise files.error(path, message, "frame-without-segment")
        if not 1 <= number <= 65535:
            message = f"a frame of segment {number}: segments are numbered from 1 to 65535"
            raise files.error(path, message, "invalid-segment-number", segment=number)
        numbers.append(number)
    return numbers


def _named(group: Any) -> int | None:
    found = group.get("SegmentIdentificationSequence")
    return int(found[0].ReferencedSegmentNumber) if found and "ReferencedSegmentNumber" in found[0] else None


# Pixels -----------------------------------------------------------------------------------------------------


def _frames(path: Path, header: Any) -> Iterator[NDArray[Any]]:
    """Yield (J, I) stored values of each frame, in the order of the file."""
    from pydicom.pixels import iter_pixels

    size = (int(header.Rows), int(header.Columns))
    if int(header.get("SamplesPerPixel") or 1) != 1:
        message = f"{header.SamplesPerPixel} values per pixel: a segmentation has one"
        raise files.error(path, message, "unsupported-pixel-type")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        check_decoder(path, syntax)
        with path.open("rb") as stream:
            _seek_pixels(path, stream, header)
            check_frames(path, stream, syntax, int(header.get("NumberOfFrames") or 1), size)
    elif int(header.BitsAllocated) == 1 and syntax.is_little_endian:
        yield from _bits(path, header, size)
        return
    # A deflated file is one compressed block: there is no reading it frame by frame.
    for pixels in iter_pixels(_whole(path) if syntax.is_deflated else path):
        if pixels.shape != size:
            message = f"decoded to {pixels.shape}, expected {size[0]} x {size[1]} pixels"
            raise files.error(path, message, "decoded-size-differs")
        yield pixels


def _bits(path: Path, header: Any, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield frames of one bit a pixel. One may begin within a byte, which
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
                message = f"truncated: some bits of frame {n + 1} are missing"
                raise files.error(path, message, "truncated", frame=n + 1)
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
        raise files.error(path, "truncated or without pixels: the pixel data is missing", "no-pixel-data")


# Descriptions of segments (PS3.3 C.8.20.4) ------------------------------------------------------------------


def _labels(header: Any) -> Iterator[Label]:
    """Yield the segments of a header by ascending number; background (0) is not one."""
    items = {int(item.SegmentNumber): item for item in header.SegmentSequence}
    palette = _palette(header, [number for number in items if number > 0])
    for number in sorted(number for number in items if number > 0):
        item, terminology = items[number], _terminology(items[number])
        yield Label(
            str(item.get("SegmentLabel") or "").strip() or str(number),
            number,
            colour=_colour(item) or palette.get(number),
            tags=parse_tags(tags_text(_tags(item, terminology))),
            terminology=terminology,
        )


def _terminology(item: Any) -> Terminology | None:
    """Return the codes as they are, those of retired schemes (SRT) too."""
    category = _first(item, "SegmentedPropertyCategoryCodeSequence")
    kind = _first(item, "SegmentedPropertyTypeCodeSequence")
    if category is None or kind is None:
        return None
    region = _first(item, "AnatomicRegionSequence")
    modifier = _first(kind, "SegmentedPropertyTypeModifierCodeSequence")
    region_modifier = _first(region, "AnatomicRegionModifierSequence")
    codes = [_code(item) for item in (category, kind, modifier, region, region_modifier)]
    return Terminology(codes[0], codes[1], codes[2], codes[3], codes[4])


def _first(item: Any, sequence: str) -> Any:
    found = item.get(sequence) if item is not None else None
    return found[0] if found else None


def _code(item: Any) -> Code:
    if item is None:
        return NO_CODE
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    scheme, meaning = item.get("CodingSchemeDesignator") or "", item.get("CodeMeaning") or ""
    return Code(*(_printable(str(text)) for text in (scheme, value, meaning)))


def _printable(text: str) -> str:
    """Return text without what divides the parts of a terminology entry, or ends a line."""
    return "".join(" " if one in "^~|" or not one.isprintable() else one for one in text).strip()


def _tags(item: Any, terminology: Terminology | None) -> dict[str, str]:
    tags = {} if terminology is None else {"TerminologyEntry": str(terminology)}
    made_by = _first(item, "SegmentationAlgorithmIdentificationSequence")
    name = item.get("SegmentAlgorithmName") or (made_by.get("AlgorithmName") if made_by else "")
    if kind := str(item.get("SegmentAlgorithmType") or "").strip():
        tags["DICOM.SegmentAlgorithmType"] = kind
        # An empty name means that there is none; without a tag, writers would put in their own.
        tags["DICOM.SegmentAlgorithmName"] = ""
    if name:
        tags["DICOM.SegmentAlgorithmName"] = " ".join(str(name).split())
    if made_by is not None:
        tags |= _algorithm(made_by, tags.get("DICOM.SegmentAlgorithmName", ""))
    if uid := str(item.get("TrackingUID") or "").strip():
        tags["MedSAM2.tracking_uid"] = uid
    if tracked := str(item.get("TrackingID") or "").strip():
        tags["MedSAM2.tracking_id"] = tracked
    if text := "\n".join(str(item.get("SegmentDescription") or "").splitlines()).strip():
        tags["MedSAM2.description"] = text
    return tags


def _algorithm(made_by: Any, name: str) -> dict[str, str]:
    """Return tags of an algorithm (PS3.3 10.16); of our own none that its name has already."""
    tags: dict[str, str] = {}
    others = []
    for part in _parameters(str(made_by.get("AlgorithmParameters") or "")):
        key, equals, value = (text.strip() for text in part.partition("="))
        if equals and key in _PARAMETERS:
            if value:
                tags.setdefault(_PARAMETERS[key], value)
        else:
            others.append(part)
    version = " ".join(str(made_by.get("AlgorithmVersion") or "").split())
    source = " ".join(str(made_by.get("AlgorithmSource") or "").split())
    if source != _MANUFACTURER or not f"{name} ".startswith(f"{_MANUFACTURER} {version} "):
        tags |= {"MedSAM2.algorithm_version": version, "MedSAM2.algorithm_source": source}
    tags["MedSAM2.algorithm_parameters"] = ",".join(others)
    return {tag: value for tag, value in tags.items() if value}


def _parameters(text: str) -> Iterator[str]:
    """Yield parts ``name=value``, divided by commas, semicolons, backslashes or lines."""
    for part in re.split(r"[,;\\\r\n]+(?=\s*[\w.]+\s*=)", text):
        if kept := part.strip().rstrip(",;"):
            yield kept


def _colour(item: Any) -> tuple[float, float, float] | None:
    lab = item.get("RecommendedDisplayCIELabValue")
    if lab is None or len(lab) != 3:
        return None
    from highdicom.color import CIELabColor

    # Programs choose colours of 8 bits a channel: the nearest is what was meant, to the digit.
    red, green, blue = CIELabColor.from_dicom_value([int(part) for part in lab]).to_rgb(clip=True)
    return red / 255, green / 255, blue / 255


def _palette(header: Any, numbers: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Return colours from the palette of a label map (PS3.3 C.7.6.3.1.5 and .6)."""
    if str(header.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
        return {}
    try:
        channels = [_channel(header, name, numbers) for name in ("Red", "Green", "Blue")]
    except (ValueError, TypeError, IndexError):
        return {}  # a damaged colour is no reason to refuse the voxels
    return {n: (red, green, blue) for n, red, green, blue in zip(numbers, *channels, strict=True)}


def _channel(header: Any, name: str, numbers: Sequence[int]) -> list[float]:
    """Return one channel of the colours of segments, from 0 to 1."""
    entries, first, bits = (int(part) for part in header.get(f"{name}PaletteColorLookupTableDescriptor"))
    entries = entries or 1 << 16
    data = bytes(header.get(f"{name}PaletteColorLookupTableData"))
    # Entries of 8 bits are packed, and then padded to an even length, or stand in words of 16 bits.
    table = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if len(data) >= 2 * entries else np.uint8)
    top = 255 if bits == 8 else 65535
    values = table[:entries][np.clip(np.array(numbers, dtype=int) - first, 0, entries - 1)]
    # Programs choose colours of 8 bits a channel.
    return [round(min(1.0, float(value) / top) * 255) / 255 for value in values]
