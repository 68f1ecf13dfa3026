"""Where an export keeps what is made for it alone: a temporary folder that goes with it, however it ends."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from medsam2_core.errors import ExportError, RuntimeInstallError

from MedSAM2SegmentLib.Runtime.FileLock import FileLock

_PREFIX, _LOCK = "medsam2-export-", "lock"
_YOUNG_S = 60.0  # between its making and its locking a folder looks like one that was left
_OLD_S = 24 * 3600.0  # of folders that nobody has locked


class ExportPlace:
    """A folder, locked as long as this process lives, or until it is removed.

    ExportError when there can be none.

    Attributes
    ----------
    path
        The folder.
    segmentation
        Where the segmentation goes.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise ExportError(
                f"no folder can be made in the temporary folder {tempfile.gettempdir()}: "
                f"{error.strerror or error}. Make room there, or name another one by the variable TMPDIR"
            ) from error
        self.segmentation = self.path / "segmentation.seg.nrrd"
        self._lock = FileLock(self.path / _LOCK)
        with contextlib.suppress(OSError, RuntimeInstallError):  # without locks it is removed all the same
            self._lock.acquire()

    def remove(self) -> None:
        """Take it away with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Take away folders that processes have left which are gone: paths in them may name patients."""
    try:
        left = list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))
    except OSError:
        return
    for folder in left:
        try:
            age = time.time() - folder.stat().st_mtime
            lock = folder / _LOCK
            isLeft = not FileLock(lock).isHeldElsewhere() if lock.exists() else age > _OLD_S
        except OSError:
            continue
        if isLeft and age > _YOUNG_S:
            shutil.rmtree(folder, ignore_errors=True)
