"""The worker's process and machine: standard streams, log, memory, processor and graphics card."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import DeviceError

if TYPE_CHECKING:
    import torch

_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which is not in every Python 3.10
_LOG_BYTES = 1 << 20  # of one file; two old ones are kept
_UNKNOWN_MEMORY = 8 << 30  # bytes; assumed where the system does not report it


def take_standard_streams() -> tuple[int, int]:
    """Return file descriptors for incoming and outgoing frames; to be called before anything can print.

    Redirects descriptor 1 to standard error and 0 to the null device, so that libraries and child processes
    can neither write between frames nor read them.
    """
    frames_in, frames_out = os.dup(0), os.dup(1)  # not inherited by child processes
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without standard error, as by pythonw
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)
    os.close(nothing)
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = sys.stderr
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (frames_in, frames_out):
            msvcrt.setmode(descriptor, os.O_BINARY)
    elif sys.platform.startswith("linux"):
        import fcntl

        with contextlib.suppress(OSError):  # not a pipe, or beyond the limit of the system
            fcntl.fcntl(frames_in, _SET_PIPE_SIZE, 1 << 20)  # fewer reads per volume
    return frames_in, frames_out


def remove_present_folder(path: list[str], version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Remove the current folder from the import path if ``PYTHONSAFEPATH`` is set.

    Python 3.10 does not support the variable. A folder of data must not provide modules.
    """
    if version < (3, 11) and os.environ.get("PYTHONSAFEPATH") and path and path[0] == os.getcwd():
        del path[0]


def end_on_signals() -> None:
    """Let signals end the process at once: it needs no clean-up."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


# The log ----------------------------------------------------------------------------------------------------


class _BestEffortHandler(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a message that cannot be written, as on a full disk."""


def start_log(verbose: bool = False) -> Path | None:
    """Log messages of this package to a file of limited size.

    Messages never contain names of patients, objects or files: requests are logged by type and number, errors
    by class, bugs with their traceback.

    Returns
    -------
    Path or None
        The file: ``MEDSAM2_LOG``, or in the user's log folder; None when it cannot be written.
    """
    ours = logging.getLogger("medsam2_core")
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    ours.propagate = False
    path = Path(os.environ.get("MEDSAM2_LOG") or _default_log())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _BestEffortHandler(
            path, maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8", errors="replace"
        )
    except OSError:
        ours.addHandler(logging.NullHandler())
        return None
    handler.setFormatter(logging.Formatter(f"%(asctime)s {os.getpid()} %(levelname)s %(message)s"))
    ours.addHandler(handler)
    return path


def _default_log() -> Path:
    from platformdirs import user_log_dir

    return Path(user_log_dir("MedSAM2Segment", appauthor=False)) / "worker.log"


# Memory and devices -----------------------------------------------------------------------------------------


def rss_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where it is unknown."""
    if sys.platform.startswith("linux"):
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return _windows_rss()
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: peak, in bytes


def memory() -> tuple[int, int]:
    """Return free and total memory of this machine or container, in bytes."""
    if sys.platform == "win32":
        return _windows_memory()
    if not sys.platform.startswith("linux"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total // 2, total  # macOS frees memory on demand: assume half
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        free, total = facts["MemAvailable"], facts["MemTotal"]
    except (OSError, ValueError, IndexError, KeyError):
        return _UNKNOWN_MEMORY // 2, _UNKNOWN_MEMORY
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def peak_memory_mb() -> float | None:
    """Return the peak resident memory of this process in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def device_facts(device: torch.device) -> dict[str, Any]:
    """Return ``name``, ``title``, ``free_bytes`` and ``total_bytes`` of a device."""
    from medsam2_core.engine.devices import processor_name

    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        title = torch.cuda.get_device_name(device)
    else:
        free, total = memory()
        title = processor_name() if device.type == "cpu" else f"{platform.machine()} GPU"
    return {"name": str(device), "title": title, "free_bytes": free, "total_bytes": total}


def check_memory(
    model: str | Path, device: torch.device, volume_bytes: int, image_size: int | None = None
) -> str:
    """Compare the memory that segmentation needs with what the device has.

    Parameters
    ----------
    image_size
        Another side of the model's input than its own.

    Returns
    -------
    str
        A warning when it needs more than is free; empty otherwise, and when the need is unknown.

    Raises
    ------
    DeviceError
        ``memory-too-small``: it needs more than the device has.
    """
    from medsam2_core.engine.catalogue import Catalogue

    entry, facts = Catalogue.load().find(model), device_facts(device)
    needed = entry.needed_bytes(volume_bytes, image_size)
    if needed is None or needed <= facts["free_bytes"]:
        return ""
    free_bytes, total_bytes = facts["free_bytes"], facts["total_bytes"]
    needs, free, total = (f"{size / 1e9:.1f} GB" for size in (needed, free_bytes, total_bytes))
    elsewhere = "another computer" if device.type == "cpu" else "the CPU"
    way_out = (
        f"take a smaller model or a smaller image size (512 px), crop the volume, or compute on {elsewhere}"
    )
    if needed > total_bytes:
        message = (
            f"{entry.name} needs about {needs} of memory for this volume, {device} has {total}: {way_out}"
        )
        raise DeviceError(
            message, code="memory-too-small", model=entry.name, device=str(device),
            needed_bytes=needed, free_bytes=free_bytes, total_bytes=total_bytes,
        )  # fmt: skip
    return (
        f"{entry.name} needs about {needs} of memory for this volume, {free} are free on {device}: {way_out}"
    )


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # missing, or "max"
        return None


def _windows_memory() -> tuple[int, int]:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "c", "d", "e", "f", "g")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = vars(ctypes)["windll"]  # only there on Windows
    if not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return _UNKNOWN_MEMORY // 2, _UNKNOWN_MEMORY
    return status.free, status.total


def _windows_rss() -> int:
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_ulong),
            ("faults", ctypes.c_ulong),
            *((name, ctypes.c_size_t) for name in ("peak", "rss", "a", "b", "c", "d", "e", "f")),
        ]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel: Any = vars(ctypes)["windll"].kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong]
    return counters.rss if ask(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size) else 0
