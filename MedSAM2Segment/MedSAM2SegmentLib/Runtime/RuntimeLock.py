"""One installation at a time, however many Slicers run."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

# Whoever only looks whether it is held holds it for a moment: who wants it tries again.
_TRIES, _PAUSE_S = 5, 0.01


class RuntimeLock:
    """A lock held through an open file: the system lets go of it when the process ends, however it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = None

    def acquire(self) -> None:
        """Take it.

        Raises
        ------
        RuntimeInstallError
            When another process has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        stream = self._path.open("a+b")
        for left in reversed(range(_TRIES)):
            try:
                _lock(stream)
                break
            except OSError as error:
                if left:
                    time.sleep(_PAUSE_S)
                    continue
                stream.close()
                raise RuntimeInstallError(
                    f"Another Slicer is installing the runtime in {self._path.parent}: wait until it has "
                    "finished"
                ) from error
        self._stream = stream

    def release(self) -> None:
        """Let go of it; nothing when it is not held."""
        if self._stream is not None:
            _unlock(self._stream)
            self._stream.close()
            self._stream = None

    def isHeldElsewhere(self) -> bool:
        """Whether another process, or another installer of this one, has it now."""
        if self._stream is not None or not self._path.exists():
            return False
        try:
            with self._path.open("a+b") as stream:
                _lock(stream, shared=True)  # those who only look do not hinder one another
                _unlock(stream)
        except OSError:
            return True
        return False


if os.name == "nt":
    import msvcrt

    def _lock(stream, shared: bool = False) -> None:  # this system's has no sharing
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(stream) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(stream, shared: bool = False) -> None:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def _unlock(stream) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)
