"""The temporary folder of an export, which is removed with it, however it ends."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from medsam2_core.errors import ExportError, RuntimeInstallError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Runtime.FileLock import FileLock

_PREFIX, _LOCK = "medsam2-export-", "lock"
_YOUNG_S = 60.0  # between its making and its locking a folder looks abandoned
_OLD_S = 24 * 3600.0  # age at which an unlocked folder is removed


class ExportFolder:
    """A temporary folder, locked as long as this process lives, or until it is removed.

    Attributes
    ----------
    path
        The folder.
    segmentation
        The file for the segmentation.

    Raises
    ------
    ExportError
        "no-temporary-folder": it cannot be made.
    """

    def __init__(self) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            folder = tempfile.gettempdir()
            message = _(
                "no folder can be made in the temporary folder {folder}: {reason}. Make room there, or name "
                "another one by the variable TMPDIR"
            ).format(folder=folder, reason=error.strerror or error)
            raise ExportError(message, code="no-temporary-folder", folder=folder) from error
        self.segmentation = self.path / "segmentation.seg.nrrd"
        self._lock = FileLock(self.path / _LOCK)
        with contextlib.suppress(OSError, RuntimeInstallError):  # without locks it is removed all the same
            self._lock.acquire()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def removeAbandoned() -> None:
    """Remove the folders of processes that have ended: paths in them may name patients."""
    try:
        folders = list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"))
    except OSError:
        return
    for folder in folders:
        try:
            age = time.time() - folder.stat().st_mtime
            lock = folder / _LOCK
            isAbandoned = not FileLock(lock).isHeldElsewhere() if lock.exists() else age > _OLD_S
        except OSError:
            continue
        if isAbandoned and age > _YOUNG_S:
            shutil.rmtree(folder, ignore_errors=True)
