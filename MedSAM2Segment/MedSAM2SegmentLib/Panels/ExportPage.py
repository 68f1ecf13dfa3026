"""The part of the page about export: a segmentation of the scene as a file for other systems. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from medsam2_core.errors import Cancelled, ExportError, MedSAM2Error

from MedSAM2SegmentLib.Panels.ExportPlace import ExportPlace, sweep
from MedSAM2SegmentLib.Panels.ExportWish import DICOM, FORMATS, ExportWish, fieldsOf
from MedSAM2SegmentLib.Panels.ExportWords import inWords, lineOf
from MedSAM2SegmentLib.Panels.ModulePageState import ExportView, Kind, Line

_REMOTE = (
    "With a remote command, the worker cannot read this computer's files: save with Slicer instead (Save, or "
    "Export to DICOM in the Data module)."
)
_NOTHING = "No segmentation in the scene yet: segment something first."
_NO_MEMORY = "The computer's memory is full: close volumes or other programs, then export again."


class Segmentations(Protocol):
    """The segmentations of a scene (SceneSegmentations)."""

    def names(self) -> tuple[tuple[str, str], ...]:
        """(ID, name) of each."""

    def dicomProblem(self, nodeID: str) -> str:
        """Why one cannot become DICOM, at a glance; empty when it can."""

    def dicomFiles(self, nodeID: str) -> tuple[str, ...]:
        """The files of the series it lies on. MedSAM2Error when there are none."""

    def drawnOn(self, nodeID: str) -> dict[str, Any]:
        """The grid of the volume it lies on, as it is in the scene. MedSAM2Error when there is none."""

    def write(self, nodeID: str, path: str | Path, *, isWhole: bool) -> tuple[str, ...]:
        """Write it as .seg.nrrd; what there is to know. MedSAM2Error when that cannot be."""

    def refresh(self) -> None:
        """Look at DICOM files again."""


class ExportPage:
    """Does one thing at a time. An export goes on when the page is left: it holds a worker of its own.

    Parameters
    ----------
    settings
        Settings: with a remote command, nothing here can be read there.
    workers
        Where workers come from.
    segmentations
        Those of the scene; None where there is no scene.
    changed
        Called whenever `view` may give something else.
    later
        Does what it is given once the page has shown what it is told before.
    """

    def __init__(
        self,
        settings,
        workers,
        segmentations: Segmentations | None,
        changed: Callable[[], None],
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._settings, self._workers, self._segmentations = settings, workers, segmentations
        self._changed, self._later = changed, later
        self._chosen = ""
        self._line = Line()
        self._wish: ExportWish | None = None  # what is being exported
        self._request: Any = None
        self._worker: Any = None  # held by the export
        self._place: ExportPlace | None = None  # where the segmentation was written for it
        self._name = ""  # of what is exported
        self._seen: Any = None
        sweep()

    def view(self) -> ExportView:
        """What to show."""
        names = self._segmentations.names() if self._segmentations is not None else ()
        chosen = self._chosenOf(names)
        problem = _REMOTE if self._settings.remoteCommand else "" if names else _NOTHING
        dicomProblem = ""
        if chosen and not problem:
            dicomProblem = self._segmentations.dicomProblem(chosen)
        return ExportView(
            segmentations=names,
            chosen=chosen,
            formats=tuple(one for one in FORMATS if one[0] != DICOM or not dicomProblem),
            problem=problem,
            dicomProblem=f"DICOM is not possible: {dicomProblem}." if dicomProblem else "",
            line=self._line,
            isRunning=self._isBusy,
            canExport=not problem and not self._isBusy,
        )

    def refresh(self) -> None:
        """The user has come to the page: series may have been imported meanwhile."""
        if self._segmentations is not None:
            self._segmentations.refresh()

    def look(self) -> None:
        """Notice segmentations that have come or gone, or lie on something else. Cheap."""
        names = self._segmentations.names() if self._segmentations is not None else ()
        chosen = self._chosenOf(names)
        seen = names, chosen, self._segmentations.dicomProblem(chosen) if chosen else ""
        if seen != self._seen:
            self._seen = seen
            if self._chosen != chosen:
                self._chosen = ""  # it is gone, and another one is shown from now on
            self._changed()

    def choose(self, nodeID: str) -> None:
        """Export this segmentation next."""
        self._chosen = nodeID
        self._changed()

    def export(self, wish: ExportWish) -> None:
        """Export a segmentation. That it is being done is shown before the work begins."""
        if self._isBusy:
            return
        self._wish = wish
        self._line = Line("Exporting…", Kind.BUSY)
        self._changed()
        self._later(lambda: self._begin(wish))

    def cancel(self) -> None:
        """Stop the export; no file is left half written."""
        if self._request is not None:
            self._request.cancel()
            self._line = Line("The export is being stopped…", Kind.BUSY)
            self._changed()
        elif self._wish is not None:
            self.stop()
            self._changed()

    def stop(self) -> None:
        """End an export at once, with its worker: the runtime is being changed."""
        if not self._isBusy:
            return
        if self._request is not None:
            self._request.cancel()
        self._end()
        self._line = Line("The export was stopped.", Kind.PLAIN)

    def cleanup(self) -> None:
        """The page is gone for good."""
        self._changed = lambda: None
        self.stop()

    @property
    def _isBusy(self) -> bool:
        return self._wish is not None

    def _chosenOf(self, names: tuple[tuple[str, str], ...]) -> str:
        known = [nodeID for nodeID, _ in names]
        return self._chosen if self._chosen in known else known[0] if known else ""

    def _begin(self, wish: ExportWish) -> None:
        if self._wish is not wish:
            return  # it was stopped before it began
        line = Line("The export failed at something nobody foresaw: see Slicer's log.", Kind.ERROR)
        try:
            self._ask(wish)
        except (MedSAM2Error, OSError) as error:
            line = Line(self._inWords(str(error)), Kind.ERROR)
        except MemoryError:
            line = Line(_NO_MEMORY, Kind.ERROR)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            line = Line(f"The export failed: {error}", Kind.ERROR)
        finally:
            if self._request is None and self._wish is wish:
                self._end()
                self._line = line
            self._changed()

    def _ask(self, wish: ExportWish) -> None:
        view = self.view()
        if view.problem:
            raise ExportError(view.problem)
        # What was shown when Export was pressed, and no other one.
        nodeID = wish.segmentation or self._chosen or view.chosen
        if nodeID not in dict(view.segmentations):
            raise ExportError("the segmentation is not in the scene any more: choose another one")
        self._name = dict(view.segmentations)[nodeID]
        isDicom = wish.format == DICOM
        fields = fieldsOf(wish)
        if isDicom:
            fields["dicom"] = list(self._segmentations.dicomFiles(nodeID))
            fields["drawn_on"] = self._segmentations.drawnOn(nodeID)
        worker = self._workers.current()
        supervisor = worker.acquire(self)
        self._worker = worker  # to be released, now that it is held
        place = self._place = ExportPlace()
        notes = self._segmentations.write(nodeID, place.segmentation, isWhole=not isDicom)
        fields.update(segmentation=str(place.segmentation), scratch=str(place.path))
        self._line = Line(f"Exporting {self._name}…", Kind.BUSY)

        def done(result: Mapping[str, Any]) -> None:
            if self._place is place:  # else it was stopped
                self._onEnd(lineOf(result, notes))

        def failed(error: MedSAM2Error) -> None:
            if self._place is place:
                text, isStopped = self._inWords(str(error)), isinstance(error, Cancelled)
                self._onEnd(
                    Line(text[:1].upper() + text[1:], Kind.PLAIN) if isStopped else Line(text, Kind.ERROR)
                )

        request = supervisor.request("export", fields, done=done, failed=failed)
        if self._place is place:  # else it has failed already
            self._request = request

    def _onEnd(self, line: Line) -> None:
        self._end()
        self._line = line
        self._changed()

    def _inWords(self, text: str) -> str:
        """Without the file that nobody has seen, and with the ways out that there are here."""
        if self._place is not None:
            text = text.replace(str(self._place.segmentation), repr(self._name))
        return inWords(text)

    def _end(self) -> None:
        """Let go of the worker, and of what was written for it."""
        worker, self._worker, self._request, self._wish = self._worker, None, None, None
        if worker is not None:
            worker.release(self)
        place, self._place = self._place, None
        if place is not None:
            place.remove()
