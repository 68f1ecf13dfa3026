"""Checks all readers share: plausible sizes before anything is allocated, one clear error for bad files."""

from __future__ import annotations

import bz2
import contextlib
import logging
import math
import re
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import MedSAM2Error, MissingPackageError, VolumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Larger volumes are refused: four times 1024 x 1024 x 2000 voxels of 16 bits.
LARGEST_VOLUME = 16 << 30
#: Deflate (gzip, zlib) cannot do better than this, so a larger claim in a header is a lie.
DEFLATE_RATIO = 1032
# bzip2 compresses constant data without a bound; beyond a factor of a million it is not a volume.
_RATIOS = {None: 1.0, "gzip": DEFLATE_RATIO, "zlib": DEFLATE_RATIO, "bzip2": 1e6}
_BLOCK = 1 << 20
_LOGGERS = ("nibabel.global", "pydicom", "tifffile", "PIL")
# Path() makes one slash of two; a drive of Windows is one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_WRONG_CALL = re.compile(r"\(\) (got an? |missing \d|takes )")


class _Silence:
    """Keeps what libraries log and warn off the screen while at least one reader is at work.

    Contexts may overlap in any order (generators that read are closed when their user likes), so they are
    counted: the first to come silences, the last to leave restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._levels: dict[str, int] = {}
        self._warnings: warnings.catch_warnings[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._active += 1
            if self._active > 1:
                return
            self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._active -= 1
            if self._active:
                return
            assert self._warnings is not None
            self._warnings.__exit__(None, None, None)
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)


_silence = _Silence()


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a file format library raises on ``path`` into a VolumeError with one line.

    Nearly everything is caught here on purpose: fed with damaged bytes, pydicom, nibabel, pynrrd, Pillow and
    tifffile raise any exception of Python, from KeyError to struct.error and MemoryError, and document few.
    What can only be a bug of this package is not: see :func:`_is_bug`.

    Raises
    ------
    VolumeError
        ``no-such-file``, ``no-permission``, or ``unreadable-file`` with the reason.
    MissingPackageError
        A library that the format needs is not installed.
    """
    try:
        with _silence:
            yield
    except MedSAM2Error:
        raise
    except FileNotFoundError as error:
        missing = str(error.filename or path)
        raise VolumeError(f"{missing}: no such file", code="no-such-file", path=missing) from error
    except PermissionError as error:
        refused = str(error.filename or path)
        message = f"{refused}: no permission to read it"
        raise VolumeError(message, code="no-permission", path=refused) from error
    except ImportError as error:
        message = f"{path}: reading {kind} needs the package {error.name}: install it"
        raise MissingPackageError(
            message, code="missing-package", path=str(path), package=error.name
        ) from error
    except Exception as error:
        if _is_bug(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        message = f"{path}: cannot be read as {kind}, damaged or of another kind: {reason}"
        raise VolumeError(
            message, code="unreadable-file", path=str(path), kind=kind, reason=reason
        ) from error


def _is_bug(error: Exception) -> bool:
    """Return whether an exception was raised by this package's own code and cannot come from the data.

    ValueError, KeyError and similar errors do not show that: damaged headers cause them here as in libraries.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not _is_ours(traceback.tb_frame.f_globals.get("__name__")):
        return False
    if isinstance(error, AttributeError):  # of a module or of our classes; values of a header may be anything
        owner = error.obj if isinstance(error.obj, type) else type(error.obj)
        return isinstance(error.obj, ModuleType) or _is_ours(owner.__module__)
    if isinstance(error, TypeError):
        return _WRONG_CALL.search(str(error)) is not None
    return isinstance(error, NameError | AssertionError)


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == __name__.partition(".")[0]


def error(path: Path, problem: str, code: str, **fields: Any) -> VolumeError:
    """Return the error to raise for a problem with a file, with its path in message and fields."""
    return VolumeError(f"{path}: {problem}", code=code, path=str(path), **fields)


def existing(path: str | Path) -> Path:
    """Return a path that can be read: a file with content, or a folder.

    Raises
    ------
    VolumeError
        ``url-not-read``, ``no-such-file``, ``empty-file``; ``not-a-file`` for a pipe, socket or device, which
        would block, or could not be read twice.
    """
    if found := _URL.match(str(path)):
        address = str(path).replace(":/", "://", 1).replace(":///", "://")
        message = f"{address}: addresses (URLs) are not read: download the file and give its path"
        raise VolumeError(message, code="url-not-read", path=str(path), scheme=found[1])
    path = Path(path).expanduser()
    if not path.exists():
        raise error(path, "no such file or folder", "no-such-file")
    if not path.is_dir() and not path.is_file():
        raise error(path, "a pipe, socket or device: only files and folders are read", "not-a-file")
    if path.is_file() and path.stat().st_size == 0:
        raise error(path, "the file is empty", "empty-file")
    return path


def checked_bytes(
    path: Path, sizes: Sequence[int], bytes_per_voxel: int, stored_bytes: int, ratio: float = 1.0
) -> int:
    """Return the bytes an array will take, before anything is allocated for it.

    ``ratio`` is how many times larger than the ``stored_bytes`` of the file the voxels can be at most.

    Raises
    ------
    VolumeError
        The header claims more than that, more than :data:`LARGEST_VOLUME`, or a size that is not positive.
    """
    fields: dict[str, Any] = {"path": str(path), "sizes": [int(size) for size in sizes]}
    if not sizes or min(sizes) < 1:
        raise VolumeError(f"{path}: size {_times(sizes)} is not positive", code="size-not-positive", **fields)
    wanted = math.prod(int(size) for size in sizes) * int(bytes_per_voxel)
    if wanted > LARGEST_VOLUME:
        message = (
            f"{path}: {_times(sizes)} voxels need {wanted / 2**30:.1f} GiB, more than the "
            f"{LARGEST_VOLUME >> 30} GiB that are read"
        )
        raise VolumeError(message, code="volume-too-large", bytes=wanted, **fields)
    if wanted > stored_bytes * ratio:
        message = (
            f"{path}: truncated or damaged: {_times(sizes)} voxels need {wanted} bytes, the file holds "
            f"{stored_bytes}{' compressed' if ratio > 1 else ''}"
        )
        raise VolumeError(message, code="truncated", bytes=wanted, stored_bytes=stored_bytes, **fields)
    return wanted


@dataclass(frozen=True)
class StoredVoxels:
    """Voxels in a file, as a header describes them. NRRD and MetaImage are read through this.

    (pynrrd inflates whatever there is, without a limit. SimpleITK allocates what a header claims before it
    reads, prints to the terminal, knows no bzip2, and is 260 MB installed.)

    Attributes
    ----------
    path, start
        The file that holds them, and where they begin.
    sizes
        From the fastest axis to the slowest.
    compression
        None, ``"gzip"``, ``"zlib"`` or ``"bzip2"``.
    skip_lines, skip_bytes
        What to skip from ``start``; -1 bytes: the voxels are the last of the file.
    """

    path: Path
    start: int
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    compression: str | None = None
    skip_lines: int = 0
    skip_bytes: int = 0

    def read(self) -> NDArray[Any]:
        """Return the voxels, slowest axis first."""
        (voxels,) = self.read_in(1)
        return voxels.reshape(self.sizes[::-1])

    def read_in(self, count: int) -> Iterator[NDArray[Any]]:
        """Yield ``count`` flat arrays of equal size, decompressing no more than the header claims."""
        stored = self.path.stat().st_size - self.start
        ratio = _RATIOS[self.compression]
        wanted = checked_bytes(self.path, self.sizes, self.dtype.itemsize, stored, ratio)
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            for _ in range(self.skip_lines):
                if not stream.readline():
                    message = f"truncated: fewer than {self.skip_lines} lines to skip"
                    raise error(self.path, message, "truncated")
            if self.skip_bytes < 0:
                stream.seek(-wanted, 2)
            else:
                stream.seek(self.skip_bytes, 1)
            for data in read_parts(self.path, stream, count, wanted // count, self.compression):
                yield native(data.view(self.dtype))


def read_parts(
    path: Path, stream: IO[bytes], count: int, size: int, compression: str | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield ``count`` arrays of ``size`` bytes from a stream.

    Decompresses in blocks into the final arrays, so that neither a second copy nor a bomb can grow.
    """
    blocks = _decompressed(stream, compression) if compression else iter(lambda: stream.read(_BLOCK), b"")
    waiting = memoryview(b"")
    for n in range(count):
        result = np.empty(size, dtype=np.uint8)
        target, filled = result.data, 0
        while filled < size:
            if not waiting:
                block = next(blocks, None)
                if block is None:
                    there = n * size + filled
                    message = f"{path}: truncated: voxels need {count * size} bytes, only {there} are there"
                    raise VolumeError(
                        message, code="truncated", path=str(path), bytes=count * size, stored_bytes=there
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
    """Return the values in this machine's byte order, swapped in place when they are not."""
    if array.dtype.isnative:
        return array
    return array.byteswap(inplace=array.flags.writeable).view(array.dtype.newbyteorder("="))


def rescaled(stored_kji: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Return ``stored * slope + intercept``, computed one slice at a time.

    Whole numbers stay whole numbers (int16 where they fit, as Hounsfield units do); anything else becomes
    float32.
    """
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        message = f"rescale slope {slope} and intercept {intercept} must be finite"
        raise VolumeError(message, code="rescale-not-finite", slope=slope, intercept=intercept)
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
    """Return int16, else int32, else int64: the first that holds both."""
    for dtype in (np.int16, np.int32, np.int64):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise VolumeError(f"values from {low} to {high} do not fit 64 bits", code="values-too-large")


def whole_numbers(path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
    """Return label values as integers; VolumeError when some are not whole."""
    if voxels.dtype.kind in "ui":
        return voxels
    if voxels.dtype.kind == "b":
        return voxels.view(np.uint8)
    if not np.isfinite(voxels).all() or np.abs(voxels).max(initial=0) > 1 << 31:
        message = f"{path}: not a label map: it has values that are not finite or beyond 32 bits"
        raise VolumeError(message, code="not-a-label-map", path=str(path))
    labels = voxels.astype(smallest_integer(int(voxels.min(initial=0)), int(voxels.max(initial=0))))
    if not np.array_equal(labels, voxels):
        example = voxels[labels != voxels].flat[0]
        message = f"{path}: not a label map: it has values that are not whole numbers, such as {example:g}"
        raise VolumeError(message, code="not-a-label-map", path=str(path), value=float(example))
    return labels


def without_suffixes(path: Path) -> str:
    """Return the name a volume gets from its file: without ``.nii.gz``, ``.seg.nrrd`` and the like."""
    name = path.name
    for suffix in (".seg.nrrd", ".nii.gz"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def chosen(path: Path, series: str | None, count: int, what: str) -> int:
    """Return the index of the one of ``count`` volumes that ``series`` (a number from 1) names."""
    fields = {"path": str(path), "count": count, "series": series}
    if series is None:
        if count == 1:
            return 0
        message = f"{path}: holds {count} {what}: choose one by its number, 1 to {count}"
        raise VolumeError(message, code="series-needed", **fields)
    if not series.strip().isdecimal() or not 1 <= int(series) <= count:
        message = f"{path}: there is no {series!r} among {count} {what}: choose a number from 1 to {count}"
        raise VolumeError(message, code="no-such-series", **fields)
    return int(series) - 1


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)
