"""The worker's standard streams: frames have them for themselves, whatever else wants to print or read."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which Python 3.10 has not got everywhere


def take_standard_streams() -> tuple[int, int]:
    """File descriptors for frames coming in and going out; to be called before anything else can print.

    Descriptor 1 leads to standard error from now on, and 0 to nothing. So what libraries print, also from C,
    and child processes cannot get between frames, and nothing else can take bytes away.
    """
    frames_in, frames_out = os.dup(0), os.dup(1)  # neither is inherited by child processes
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error, as by pythonw
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
    _widen(frames_in)
    return frames_in, frames_out


def _widen(descriptor: int) -> None:
    """Let a pipe hold more: a volume comes in fewer pieces, each of which has to wait for its turn."""
    if sys.platform.startswith("linux"):
        import fcntl

        with contextlib.suppress(OSError):  # no pipe, or none may be larger
            fcntl.fcntl(descriptor, _SET_PIPE_SIZE, 1 << 20)


def leave_present_folder(path: list[str], version: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Import nothing from the folder the process happens to be in, if that is wished: a data set is no place
    for programs. Python 3.10 does not know the variable that wishes it, and puts the folder first.
    """
    if version < (3, 11) and os.environ.get("PYTHONSAFEPATH") and path and path[0] == os.getcwd():
        del path[0]


def end_by_signals() -> None:
    """Let Ctrl-C and termination end the process at once: nothing it does needs tidying up."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
