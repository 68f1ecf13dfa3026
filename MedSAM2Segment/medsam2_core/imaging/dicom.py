"""DICOM files and folders through pydicom: series are listed, chosen, put in order and decoded.

highdicom's ``get_volume_from_series`` is not used: it requires a frame of reference, which de-identified
files often lack (of the eleven real series of the tests it reads one), refuses a tilted gantry, and returns
float64 in more than twice the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.dicom_codestreams import check_decoder, check_frames
from medsam2_core.imaging.dicom_frames import (
    TAGS,
    EvenGrid,
    Frame,
    Irregular,
    Stack,
    evened,
    frames_of,
    ordered,
    stacks_of,
)
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry

#: Segmentations, and those that are label maps.
SEGMENTATION_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_MAGIC_AT = 128
#: The best codecs shrink an empty slice some thousand times; a header that claims more is damaged.
_CODEC_RATIO = 20_000.0
_MOST_LISTED = 4  # series in a message; `medsam2 info` lists all
# Values of these mean a physical quantity, so what is shown white is not for the reader to turn round.
_QUANTITATIVE = ("CT", "MR", "PT", "NM")


@dataclass(frozen=True)
class SeriesInfo:
    """One volume that a file or folder holds; ``number`` (from 1) or ``uid`` chooses it."""

    number: int
    uid: str
    description: str
    modality: str
    shape_ijk: tuple[int, int, int]

    @property
    def title(self) -> str:
        """Number, modality, description and size."""
        size = " x ".join(map(str, self.shape_ijk))
        what = f"{self.modality or '?'} {self.description or 'no description'}"
        return f"{self.number}: {what}, {size}"

    def __str__(self) -> str:
        return f"{self.title} ({self.uid})"


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"
    except OSError:
        return False


def list_series(path: Path, *, deep: bool = True) -> list[SeriesInfo]:
    """List the series in a DICOM file, or a folder; with its subfolders, if ``deep``."""
    with files.reading(path, "DICOM"):
        return [_info(number, stack) for number, stack in enumerate(_stacks(path, deep), start=1)]


def find_stack(path: Path, series: str | None = None) -> tuple[list[Frame], Geometry]:
    """Return the frames of one series in slice order and their grid; no pixels are read.

    Raises
    ------
    VolumeError
        There is no such series, or several and none is named.
    GeometryError
        Slices are missing, doubled or unevenly spaced.
    """
    with files.reading(path, "DICOM"):
        return ordered(_choose(path, _stacks(path), series))


def series_files(path: Path, series: str | None = None) -> list[Path]:
    """Return the files of one series in the order of their names; errors are those of :func:`find_stack`."""
    with files.reading(path, "DICOM"):
        return sorted({frame.path for frame in _choose(path, _stacks(path), series).frames})


def read_volume(
    path: Path, series: str | None = None, irregular: Irregular | str = Irregular.REFUSE
) -> Volume:
    """Read one series as a volume.

    Parameters
    ----------
    irregular
        What to do when slices are missing or not evenly spaced; what was done is in the metadata
        ``irregular``.
    """
    with files.reading(path, "DICOM"):
        stack = _choose(path, _stacks(path), series)
        grid: EvenGrid | None = None
        done: dict[str, Any] = {}
        try:
            frames, geometry = ordered(stack)
        except GeometryError as error:
            how = Irregular(irregular)
            if how is Irregular.REFUSE or error.code not in ("slices-missing", "slices-uneven"):
                raise
            grid = evened(stack, how)
            frames, geometry = grid.frames, grid.geometry
            done = {"irregular": how.value, "off_mm": round(grid.off_mm, 3), "reason": str(error)}
        voxels = _voxels(path, frames)
        if grid is not None and done["irregular"] == Irregular.RESAMPLE.value:
            voxels = _interpolated(voxels, grid.places)
        header = stack.header
        metadata: dict[str, Any] = {
            "format": "DICOM",
            "series_uid": stack.uid,
            "study_uid": str(header.get("StudyInstanceUID", "")),
            "frame_of_reference_uid": str(header.get("FrameOfReferenceUID", "")),
            "slice_files": [str(frame.path) for frame in frames],
            "slice_frames": [frame.index + 1 for frame in frames],
            "picture": len(frames) == 1 and not frames[0].is_placed,
            "orientation_known": frames[0].is_placed,
            **done,
        }
        if done.get("irregular") == Irregular.RESAMPLE.value:  # no slice is that of one file
            del metadata["slice_files"], metadata["slice_frames"]
        if not frames[0].is_placed:
            metadata["known_spacing"] = "in-plane" if frames[0].has_spacing else "none"
        name = str(header.get("SeriesDescription") or "").strip() or path.stem
        return Volume(voxels, geometry, str(header.get("Modality", "")), name, path, metadata)


def _interpolated(voxels: NDArray[Any], places: NDArray[np.float64]) -> NDArray[Any]:
    """Return slices at fractional places between those of (K, J, I[, 3]), in the same type."""
    result = np.empty((len(places), *voxels.shape[1:]), dtype=voxels.dtype)
    for k, place in enumerate(places):
        below = min(int(place), len(voxels) - 1)
        above, share = min(below + 1, len(voxels) - 1), place - int(place)
        mixed = voxels[below] * (1 - share) + voxels[above] * share
        result[k] = np.rint(mixed) if voxels.dtype.kind in "iu" else mixed
    return result


def _stacks(path: Path, deep: bool = True) -> list[Stack]:
    frames: list[Frame] = []
    others: list[str] = []
    seen: dict[str, Path] = {}
    for file, header in _headers(path, deep):
        if "Rows" not in header or "Columns" not in header:
            others.append(str(header.get("Modality", "")) or "no image")
        elif header.get("SOPClassUID") in SEGMENTATION_STORAGE:
            others.append("a segmentation (SEG), to be read as labels")
        elif not _is_copy(file, header, seen):
            _check_count(file, header)
            frames.extend(frames_of(file, header))
    if not frames:
        what = f": it holds {', '.join(sorted(set(others)))[:200]}" if others else ""
        found = sorted(set(others))
        raise files.error(path, f"no DICOM images found{what}", "no-dicom-images", found=found)
    return stacks_of(frames)


def _check_count(file: Path, header: Any) -> None:
    """Refuse a number of frames that the file cannot hold, before a list of them is made."""
    count = int(header.get("NumberOfFrames") or 1)
    if count > 1:
        sizes = (count, int(header.Rows), int(header.Columns))
        files.checked_bytes(file, sizes, 1, file.stat().st_size, _CODEC_RATIO)


def _is_copy(file: Path, header: Any, seen: dict[str, Path]) -> bool:
    """Return whether the same instance was already found with the same bytes: a copy adds nothing."""
    uid = str(header.get("SOPInstanceUID", ""))
    if not uid:
        return False
    first = seen.setdefault(uid, file)
    return first is not file and first.read_bytes() == file.read_bytes()


def _headers(path: Path, deep: bool) -> Iterator[tuple[Path, Any]]:
    """Yield headers of all DICOM files; other files in a folder are passed over, damaged DICOM is not."""
    import pydicom

    for file in _files(path, deep):
        if file.name.upper() == "DICOMDIR" or file.name.startswith("._"):  # a Mac's own notes on a file
            continue
        named = file.suffix.lower() in (".dcm", ".dicom", ".ima") or not path.is_dir()
        if not is_dicom(file) and not named:
            continue
        with files.reading(file, "DICOM"):
            # Files of old scanners lack the preamble; their data can be read all the same.
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
            if "SOPClassUID" not in header and "Rows" not in header and "Modality" not in header:
                raise files.error(file, "not a DICOM file", "not-dicom")
            yield file, header


def _files(path: Path, deep: bool) -> list[Path]:
    """Return the file, those of a folder and, if deep, its subfolders, or those a text file lists."""
    if path.suffix.lower() == ".txt" and path.is_file() and not is_dicom(path):
        lines = (line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n"))
        listed = [Path(line) for line in lines if line]
        for file in listed:
            if not file.is_file():
                message = f"{path}: lists {file}, which is not there"
                raise VolumeError(message, code="no-such-file", path=str(file))
        return listed
    if path.is_file():
        return [path]
    return sorted(p for p in (path.rglob("*") if deep else path.iterdir()) if p.is_file())


def _choose(path: Path, stacks: Sequence[Stack], series: str | None) -> Stack:
    if series is None and len(stacks) == 1:
        return stacks[0]
    infos = [_info(n, stack) for n, stack in enumerate(stacks, start=1)]
    facts, listed = [str(info) for info in infos], [info.title for info in infos[:_MOST_LISTED]]
    known = "; ".join([*listed, *(["…"] if len(infos) > len(listed) else [])])
    if series is None:
        message = f"holds {len(stacks)} series, choose one by number or UID: {known}"
        raise files.error(path, message, "series-needed", count=len(stacks), known=facts)
    wanted = series.strip()
    if wanted.isdecimal() and 1 <= int(wanted) <= len(stacks):
        return stacks[int(wanted) - 1]
    matching = [stack for stack in stacks if stack.uid == wanted]
    if len(matching) == 1:
        return matching[0]
    reason = "names several of" if matching else "is none of"
    message = f"series {series!r} {reason} the {len(stacks)}, choose one by number: {known}"
    raise files.error(path, message, "no-such-series", series=series, known=facts)


def _info(number: int, stack: Stack) -> SeriesInfo:
    header = stack.header
    rows, columns, _ = stack.frames[0].size
    description = str(header.get("SeriesDescription") or "").strip()
    shape = (columns, rows, len(stack.frames))
    return SeriesInfo(number, stack.uid, description, str(header.get("Modality", "")), shape)


def _voxels(path: Path, frames: Sequence[Frame]) -> NDArray[Any]:
    """Return (K, J, I) or (K, J, I, 3) voxels of frames in their order."""
    rows, columns, samples = frames[0].size
    stored = sum(file.stat().st_size for file in {frame.path for frame in frames})
    bits = int(frames[0].header.get("BitsAllocated", 8))
    wanted_bytes = max(1, bits // 8)
    files.checked_bytes(path, (len(frames), rows, columns, samples), wanted_bytes, stored, _CODEC_RATIO)
    whole = all(float(f.slope).is_integer() and float(f.intercept).is_integer() for f in frames)
    voxels: NDArray[Any] | None = None
    for k, image in _decoded(frames):
        frame = frames[k]
        if image.shape[:2] != (rows, columns) or image.ndim > 3:
            message = f"decoded to {image.shape}, expected {rows} x {columns} pixels"
            raise files.error(frame.path, message, "decoded-size-differs")
        if voxels is None:
            dtype = (
                np.uint8
                if image.ndim == 3
                else np.int16
                if whole and image.dtype.kind in "bui"
                else np.float32
            )
            voxels = np.empty((len(frames), *image.shape), dtype=dtype)
        if image.shape != voxels.shape[1:]:
            raise files.error(frame.path, "grey and colour images in one series", "mixed-series")
        if voxels.dtype.kind == "f":
            voxels[k] = image * np.float64(frame.slope) + frame.intercept
        elif image.ndim == 3:
            voxels[k] = image
        else:
            values = image.astype(np.int64) * int(frame.slope) + int(frame.intercept)
            needed = files.smallest_integer(int(values.min()), int(values.max()))
            if needed.itemsize > voxels.dtype.itemsize:
                voxels = voxels.astype(needed)
            voxels[k] = values
    assert voxels is not None
    return voxels


def _decoded(frames: Sequence[Frame]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield slice number and pixels, opening each file once."""
    import pydicom
    from pydicom.pixels import iter_pixels

    slices_of: dict[Path, dict[int, int]] = {}
    for k, frame in enumerate(frames):
        slices_of.setdefault(frame.path, {})[frame.index] = k
    for file, slice_of in slices_of.items():
        with files.reading(file, "DICOM"):
            dataset = pydicom.dcmread(file, force=True)
            _check_decoder(file, dataset)
            size, count = (int(dataset.Rows), int(dataset.Columns)), int(dataset.get("NumberOfFrames") or 1)
            pixels = dataset.get("PixelData") or b""
            check_frames(file, pixels, dataset.file_meta.TransferSyntaxUID, count, size)
            indices = sorted(slice_of)
            for index, pixels in zip(indices, iter_pixels(dataset, indices=indices), strict=True):
                yield slice_of[index], _presented(file, dataset, pixels)


def _check_decoder(file: Path, dataset: Any) -> None:
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise files.error(file, "truncated or without pixels: the pixel data is missing", "no-pixel-data")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        # A file without a header; pydicom found out how its values are encoded and reports it here.
        implicit, little = dataset.original_encoding
        names = {(True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1"}
        if (implicit, little) not in names:
            raise files.error(file, "does not say how its pixels are encoded", "no-transfer-syntax")
        dataset.file_meta.TransferSyntaxUID = names[implicit, little]
    elif syntax.is_compressed and syntax.is_encapsulated:
        check_decoder(file, syntax)


def _presented(file: Path, dataset: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels as grey where more is brighter, or RGB of 8 bits."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        if pixels.dtype != np.uint8:
            # palettes of 16 bits fill their range, whatever the index depth
            pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3:
        if pixels.shape[2] < 3 or pixels.dtype != np.uint8:
            message = f"{pixels.shape[2]} values of {pixels.dtype} per pixel are not read as colour"
            raise files.error(file, message, "unsupported-pixel-type")
        return pixels[..., :3]
    if "ModalityLUTSequence" in dataset:
        return np.asarray(apply_modality_lut(pixels, dataset))
    if photometric == "MONOCHROME1" and str(dataset.get("Modality", "")) not in _QUANTITATIVE:
        top = (1 << int(dataset.BitsStored)) - 1 if int(dataset.PixelRepresentation) == 0 else -1
        return top - pixels.astype(np.int32)
    return pixels
