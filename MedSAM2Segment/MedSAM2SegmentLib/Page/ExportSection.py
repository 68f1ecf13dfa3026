"""Section of the page for exporting a segmentation of the scene."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medsam2_core.errors import Cancelled, ExportError, MedSAM2Error, RuntimeInstallError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ExportMessages import errorText, resultLine
from MedSAM2SegmentLib.Page.ExportOptions import DICOM, FORMATS, ExportOptions, requestFields
from MedSAM2SegmentLib.Page.PageState import ExportView, Level, StatusLine
from MedSAM2SegmentLib.Runtime.FileLock import FileLock

_REMOTE = _(
    "With a remote command, the worker cannot read this computer's files: save with Slicer instead (Save, or "
    "Export to DICOM in the Data module)."
)
_NO_SEGMENTATION = _("No segmentation in the scene yet: segment something first.")
_NO_MEMORY = _("The computer's memory is full: close volumes or other programs, then export again.")


class ExportSection:
    """Exports one segmentation at a time.

    An export holds a worker itself, so it continues when the page is left. ``segmentations`` is a
    SceneSegmentations, or None without a scene; ``later`` calls its argument once the page has been drawn."""

    def __init__(
        self,
        settings,
        workers,
        segmentations,
        changed: Callable[[], None],
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._settings, self._workers, self._segmentations = settings, workers, segmentations
        self._changed, self._later = changed, later
        self._chosen = ""
        self._line = StatusLine()
        self._options: ExportOptions | None = None  # of the running export
        self._request: Any = None
        self._folder: ExportFolder | None = None
        self._name = ""  # of the exported segmentation
        self._seen: Any = None
        removeAbandoned()

    def view(self) -> ExportView:
        """Return what to show."""
        names, chosen, dicomProblem = self._scene()
        problem = _REMOTE if self._settings.remoteCommand else "" if names else _NO_SEGMENTATION
        if problem:
            dicomProblem = ""
        return ExportView(
            segmentations=names,
            chosen=chosen,
            formats=tuple(one for one in FORMATS if one[0] != DICOM or not dicomProblem),
            problem=problem,
            dicomProblem=_("DICOM is not possible: {reason}.").format(reason=dicomProblem)
            if dicomProblem
            else "",
            line=self._line,
            isRunning=self._isBusy,
            canExport=not problem and not self._isBusy,
        )

    def refresh(self) -> None:
        """Look for DICOM files again, since series may have been imported while the page was closed."""
        if self._segmentations is not None:
            self._segmentations.refresh()

    def update(self) -> None:
        """Call `changed` if the segmentations of the scene, or their volumes, have changed. Cheap."""
        seen = self._scene()
        if seen != self._seen:
            self._seen = seen
            if self._chosen != seen[1]:
                self._chosen = ""  # it was removed, and another one is shown
            self._changed()

    def choose(self, nodeID: str) -> None:
        """Choose the segmentation to export."""
        self._chosen = nodeID
        self._changed()

    def export(self, options: ExportOptions) -> None:
        """Export a segmentation; the work starts once the page shows that it is running."""
        if self._isBusy:
            return
        self._options = options
        self._setLine(_("Exporting…"), Level.BUSY)
        self._later(lambda: self._start(options))

    def cancel(self) -> None:
        """Cancel the export; no incomplete file is left."""
        if self._request is not None:
            self._request.cancel()
            self._setLine(_("The export is being stopped…"), Level.BUSY)
        elif self._isBusy:
            self.stop()
            self._changed()

    def stop(self) -> None:
        """Stop an export at once and release its worker, because the runtime is being changed."""
        if not self._isBusy:
            return
        if self._request is not None:
            self._request.cancel()
        self._release()
        self._line = StatusLine(_("The export was stopped."))

    def cleanup(self) -> None:
        """Stop everything before the page is destroyed."""
        self._changed = lambda: None
        self.stop()

    @property
    def _isBusy(self) -> bool:
        return self._options is not None

    def _scene(self) -> tuple[tuple[tuple[str, str], ...], str, str]:
        """Return the segmentations, the chosen one, and why it cannot be exported as DICOM."""
        if self._segmentations is None:
            return (), "", ""
        names = self._segmentations.names()
        known = [nodeID for nodeID, _name in names]
        chosen = self._chosen if self._chosen in known else next(iter(known), "")
        return names, chosen, self._segmentations.dicomProblem(chosen) if chosen else ""

    def _start(self, options: ExportOptions) -> None:
        if self._options is not options:
            return  # it was stopped before it started
        text = _("Unexpected error during the export: see Slicer's log.")
        try:
            self._send(options)
        except (MedSAM2Error, OSError) as error:
            text = self._errorText(error)
        except MemoryError:
            text = _NO_MEMORY
        except (ValueError, ArithmeticError, RuntimeError) as error:
            text = _("The export failed: {reason}").format(reason=error)
        finally:
            if self._request is None and self._options is options:
                self._release()
                self._line = StatusLine(text, Level.ERROR)
            self._changed()

    def _send(self, options: ExportOptions) -> None:
        view = self.view()
        if view.problem:
            raise ExportError(view.problem, code="export-impossible")
        # The one shown when Export was pressed.
        nodeID, names = options.segmentation or self._chosen or view.chosen, dict(view.segmentations)
        if nodeID not in names:
            message = _("the segmentation is not in the scene any more: choose another one")
            raise ExportError(message, code="segmentation-gone")
        self._name = names[nodeID]
        fields = requestFields(options)
        isDicom = options.format == DICOM
        if isDicom:
            fields["dicom"] = list(self._segmentations.dicomFiles(nodeID))
            fields["drawn_on"] = self._segmentations.drawnOn(nodeID)
        client = self._workers.acquire(self)
        folder = self._folder = ExportFolder()
        notes = self._segmentations.write(nodeID, folder.segmentation, isWhole=not isDicom)
        fields.update(segmentation=str(folder.segmentation), scratch=str(folder.path))
        self._line = StatusLine(_("Exporting {name}…").format(name=self._name), Level.BUSY)

        def done(result: Mapping[str, Any]) -> None:
            if self._folder is folder:  # otherwise it was stopped
                self._end(resultLine(result, notes))

        def failed(error: MedSAM2Error) -> None:
            if self._folder is not folder:
                return
            if isinstance(error, Cancelled):
                self._end(StatusLine(_("The export was stopped; no file is left incomplete.")))
            else:
                self._end(StatusLine(self._errorText(error), Level.ERROR))

        request = client.request("export", fields, done=done, failed=failed)
        if self._folder is folder:  # otherwise it has failed already
            self._request = request

    def _errorText(self, error: MedSAM2Error | OSError) -> str:
        """Return the message, with the name of the segmentation instead of the temporary file."""
        text = errorText(error) if isinstance(error, MedSAM2Error) else str(error)
        return text.replace(str(self._folder.segmentation), repr(self._name)) if self._folder else text

    def _end(self, line: StatusLine) -> None:
        self._release()
        self._line = line
        self._changed()

    def _setLine(self, text: str, level: Level) -> None:
        self._line = StatusLine(text, level)
        self._changed()

    def _release(self) -> None:
        """Release the worker, and delete the files written for it."""
        self._request = self._options = None
        self._workers.release(self)
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()


_PREFIX, _LOCK = "medsam2-export-", "lock"
_YOUNG_S = 60.0  # a younger folder may not be locked yet
_OLD_S = 24 * 3600.0  # age at which an unlocked folder is removed


class ExportFolder:
    """A temporary folder, locked until it is removed or this process ends.

    Attributes
    ----------
    path
        The folder.
    segmentation
        Path of the segmentation in it.

    Raises
    ------
    ExportError
        "no-temporary-folder": it cannot be created.
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
        with contextlib.suppress(OSError, RuntimeInstallError):  # it is also removed without a lock
            self._lock.acquire()

    def remove(self) -> None:
        """Delete the folder and its contents."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def removeAbandoned() -> None:
    """Delete the folders of processes that have ended, since their contents may identify patients."""
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
