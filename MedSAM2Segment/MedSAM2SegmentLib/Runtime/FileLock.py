"""A lock between processes, so that only one Slicer installs at a time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.i18n import _

# A process that checks the lock holds it for a moment, so acquiring is tried several times.
_TRIES, _PAUSE_S = 5, 0.01


class FileLock:
    """A lock on an open file, which the system releases whenever the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = None

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        RuntimeInstallError
            "locked": another process holds it.
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
                folder = str(self._path.parent)
                message = _(
                    "Another Slicer is installing the runtime in {folder}: wait until it has finished"
                )
                raise RuntimeInstallError(
                    message.format(folder=folder), code="locked", folder=folder
                ) from error
        self._stream = stream

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._stream is not None:
            _unlock(self._stream)
            self._stream.close()
            self._stream = None

    def isHeldElsewhere(self) -> bool:
        """Return whether another process, or another FileLock, holds it."""
        if self._stream is not None or not self._path.exists():
            return False
        try:
            with self._path.open("a+b") as stream:
                _lock(stream, shared=True)  # checks do not conflict with each other
                _unlock(stream)
        except OSError:
            return True
        return False


if os.name == "nt":
    import msvcrt

    def _lock(stream, shared: bool = False) -> None:  # there are no shared locks
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
