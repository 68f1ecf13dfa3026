"""What all readers share: sizes that can be believed, and damaged files that end in one clear line."""

from __future__ import annotations

import bz2
import contextlib
import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import MedSAM2Error, VolumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Larger volumes are refused: four times 1024 x 1024 x 2000 voxels of 16 bits.
LARGEST_VOLUME = 16 << 30
#: Deflate (gzip, zlib) cannot do better than this, so a larger claim in a header is a lie.
DEFLATE_RATIO = 1032
_BLOCK = 1 << 20


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """The boundary between file format libraries and this package.

    Whatever a library raises on ``path`` becomes a VolumeError with one line. Everything is caught here on
    purpose: fed with damaged bytes, pydicom, nibabel, pynrrd, Pillow and tifffile raise nearly any exception
    of Python, from KeyError to struct.error and MemoryError, and document few. What they would print is kept
    off the screen as well.
    """
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "pydicom", "tifffile", "PIL")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
    except MedSAM2Error:
        raise
    except FileNotFoundError as error:
        raise VolumeError(f"{error.filename or path}: no such file") from error
    except PermissionError as error:
        raise VolumeError(f"{error.filename or path}: no permission to read it") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise VolumeError(
            f"{path}: cannot be read as {kind}, damaged or of another kind: {reason}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def checked_bytes(
    path: Path, sizes: Sequence[int], bytes_per_voxel: int, stored_bytes: int, ratio: float = 1.0
) -> int:
    """Bytes an array will take, before anything is allocated for it.

    ``ratio`` is how many times larger than the ``stored_bytes`` of the file the voxels can be at most. Raises
    VolumeError when the header claims more than that, more than :data:`LARGEST_VOLUME`, or a size that is not
    positive.
    """
    if not sizes or min(sizes) < 1:
        raise VolumeError(f"{path}: size {_times(sizes)} is not positive")
    wanted = math.prod(int(size) for size in sizes) * int(bytes_per_voxel)
    if wanted > LARGEST_VOLUME:
        raise VolumeError(
            f"{path}: {_times(sizes)} voxels need {wanted / 2**30:.1f} GiB, "
            f"more than the {LARGEST_VOLUME >> 30} GiB that are read"
        )
    if wanted > stored_bytes * ratio:
        raise VolumeError(
            f"{path}: truncated or damaged: {_times(sizes)} voxels need {wanted} bytes, "
            f"the file holds {stored_bytes}{' compressed' if ratio > 1 else ''}"
        )
    return wanted


def read_bytes(path: Path, stream: IO[bytes], wanted: int, compression: str | None) -> NDArray[np.uint8]:
    """Exactly ``wanted`` bytes from a stream that is raw (None), ``"gzip"``, ``"zlib"`` or ``"bzip2"``.

    Decompresses in blocks into the final array, so that neither a second copy nor a bomb can grow.
    """
    (result,) = read_parts(path, stream, 1, wanted, compression)
    return result


def read_parts(
    path: Path, stream: IO[bytes], count: int, size: int, compression: str | None
) -> Iterator[NDArray[np.uint8]]:
    """The same in ``count`` arrays of ``size`` bytes, one after the other."""
    blocks = _decompressed(stream, compression) if compression else iter(lambda: stream.read(_BLOCK), b"")
    waiting = memoryview(b"")
    for n in range(count):
        result = np.empty(size, dtype=np.uint8)
        target, filled = memoryview(result), 0
        while filled < size:
            if not waiting:
                block = next(blocks, None)
                if block is None:
                    there = n * size + filled
                    raise VolumeError(
                        f"{path}: truncated: voxels need {count * size} bytes, only {there} are there"
                    )
                waiting = memoryview(block)  # may be empty: a step of the decompressor need not yield a byte
            now = min(len(waiting), size - filled)
            target[filled : filled + now] = waiting[:now]
            filled, waiting = filled + now, waiting[now:]
        yield result


def _decompressed(stream: IO[bytes], compression: str) -> Iterator[bytes]:
    if compression == "bzip2":
        with bz2.BZ2File(stream) as unzipped:
            while block := unzipped.read(_BLOCK):
                yield block
        return
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)  # takes gzip and zlib headers
    while (stored := stream.read(_BLOCK)) and not unzip.eof:
        while stored:
            yield unzip.decompress(stored, _BLOCK)
            stored = unzip.unconsumed_tail
            if unzip.eof and unzip.unused_data[:2] == b"\x1f\x8b":  # the next member of a multi-member file
                stored, unzip = unzip.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
    yield unzip.flush()


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in this machine's byte order, swapped in place when they are not."""
    if array.dtype.isnative:
        return array
    return array.byteswap(inplace=array.flags.writeable).view(array.dtype.newbyteorder("="))


def rescaled(stored_kji: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """``stored * slope + intercept``, one slice at a time.

    Whole numbers stay whole numbers (int16 where they fit, as Hounsfield units do); anything else becomes
    float32.
    """
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise VolumeError(f"rescale slope {slope} and intercept {intercept} must be finite")
    if slope == 1 and intercept == 0:
        return stored_kji
    if stored_kji.dtype.kind in "bui" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(stored_kji.min()) * int(slope), int(stored_kji.max()) * int(slope)]
        dtype = smallest_integer(min(ends) + int(intercept), max(ends) + int(intercept))
        result = np.empty(stored_kji.shape, dtype=dtype)
        for k, stored_ji in enumerate(stored_kji):
            result[k] = stored_ji.astype(np.int64) * int(slope) + int(intercept)
        return result
    result = np.empty(stored_kji.shape, dtype=np.float32)
    for k, stored_ji in enumerate(stored_kji):
        result[k] = stored_ji * np.float64(slope) + intercept
    return result


def smallest_integer(low: int, high: int) -> np.dtype[Any]:
    """int16, else int32, else int64: the first that holds both."""
    for dtype in (np.int16, np.int32, np.int64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise VolumeError(f"values from {low} to {high} do not fit 64 bits")


def whole_numbers(path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
    """Label values as integers; VolumeError when some are not whole."""
    if voxels.dtype.kind in "ui":
        return voxels
    if voxels.dtype.kind == "b":
        return voxels.view(np.uint8)
    if not np.isfinite(voxels).all() or np.abs(voxels).max(initial=0) > 1 << 31:
        raise VolumeError(f"{path}: not a label map: it has values that are not finite or beyond 32 bits")
    labels = voxels.astype(smallest_integer(int(voxels.min(initial=0)), int(voxels.max(initial=0))))
    if not np.array_equal(labels, voxels):
        example = voxels[labels != voxels].flat[0]
        raise VolumeError(
            f"{path}: not a label map: it has values that are not whole numbers, such as {example:g}"
        )
    return labels


def without_suffixes(path: Path) -> str:
    """The name a volume gets from its file: without ``.nii.gz``, ``.seg.nrrd`` and the like."""
    name = path.name
    for suffix in (".seg.nrrd", ".nii.gz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def chosen(path: Path, series: str | None, count: int, what: str) -> int:
    """Index of the one of ``count`` volumes that ``series`` (a number from 1) names."""
    if series is None:
        if count == 1:
            return 0
        raise VolumeError(f"{path}: holds {count} {what}: choose one by its number, 1 to {count}")
    if not series.strip().isdecimal() or not 1 <= int(series) <= count:
        raise VolumeError(
            f"{path}: there is no {series!r} among {count} {what}: choose a number from 1 to {count}"
        )
    return int(series) - 1


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)
