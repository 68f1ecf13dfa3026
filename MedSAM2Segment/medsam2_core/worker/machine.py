"""What this machine and this process have: memory, processor, graphics card."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_UNKNOWN = 8 << 30  # bytes; what to count with where the system does not tell


def rss_bytes() -> int:
    """Memory this process holds now; 0 where the system does not tell."""
    if sys.platform.startswith("linux"):
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return _windows_rss()
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: bytes, the most there ever were


def memory() -> tuple[int, int]:
    """(free, total) bytes of this machine; within a container those of the container."""
    if sys.platform.startswith("linux"):
        return _linux_memory()
    if sys.platform == "win32":
        return _windows_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // 2, total  # macOS gives memory back on demand: half is a fair guess


def device_facts(device: torch.device) -> dict[str, Any]:
    """``name``, ``title``, ``free_bytes`` and ``total_bytes`` of what computes."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        title = torch.cuda.get_device_name(device)
    else:
        free, total = memory()
        title = _processor() if device.type == "cpu" else f"{platform.machine()} GPU"
    return {"name": str(device), "title": title, "free_bytes": free, "total_bytes": total}


def _linux_memory() -> tuple[int, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        free, total = facts["MemAvailable"], facts["MemTotal"]
    except (OSError, ValueError, IndexError, KeyError):
        return _UNKNOWN // 2, _UNKNOWN
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # none, or "max"
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
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return _UNKNOWN // 2, _UNKNOWN
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
    kernel = ctypes.windll.kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong]
    return counters.rss if ask(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size) else 0


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
