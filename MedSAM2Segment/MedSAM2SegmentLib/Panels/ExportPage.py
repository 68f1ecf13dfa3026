"""The part of the page about export: a segmentation of the scene as a file for other systems. No Qt."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from medsam2_core.errors import Cancelled, ExportError, MedSAM2Error

from MedSAM2SegmentLib.Panels.ExportWish import DICOM, FORMATS, ExportWish, filesOf, withEnding
from MedSAM2SegmentLib.Panels.ModulePageState import ExportView, Kind, Line, sizeWords

_REMOTE = (
    "With a remote command, the worker cannot read this computer's files: save with Slicer instead (Save, or "
    "Export to DICOM in the Data module)."
)
_NOTHING = "No segmentation in the scene yet: segment something first."
_NO_CODE = "no code says what it is"  # the core's words; what it advises is for the command line
_CODE_IT = (
    "double click its colour in the Segment Editor and choose what it is, or tick 'Tissue for segments "
    "without a code'"
)


class Segmentations(Protocol):
    """The segmentations of a scene (SceneSegmentations)."""

    def names(self) -> tuple[tuple[str, str], ...]:
        """(ID, name) of each."""

    def dicomProblem(self, nodeID: str) -> str:
        """Why one cannot become DICOM, at a glance; empty when it can."""

    def dicomFiles(self, nodeID: str) -> tuple[str, ...]:
        """The files of the series it lies on. MedSAM2Error when there are none."""

    def write(self, nodeID: str, path: str | Path) -> None:
        """Write it as .seg.nrrd. MedSAM2Error when that cannot be."""

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
    """

    def __init__(
        self, settings, workers, segmentations: Segmentations | None, changed: Callable[[], None]
    ) -> None:
        self._settings, self._workers, self._segmentations = settings, workers, segmentations
        self._changed = changed
        self._chosen = ""
        self._line = Line()
        self._request: Any = None
        self._worker: Any = None  # held by the export
        self._place: Path | None = None  # where the segmentation was written for it
        self._name = ""  # of what is exported
        self._seen: tuple[tuple[str, str], ...] = ()

    def view(self) -> ExportView:
        """What to show."""
        names = self._segmentations.names() if self._segmentations is not None else ()
        chosen = self._chosenOf(names)
        problem = _REMOTE if self._settings.remoteCommand else "" if names else _NOTHING
        dicomProblem = ""
        if chosen and not problem:
            dicomProblem = self._segmentations.dicomProblem(chosen)
        isRunning = self._request is not None
        return ExportView(
            segmentations=names,
            chosen=chosen,
            formats=tuple(one for one in FORMATS if one[0] != DICOM or not dicomProblem),
            problem=problem,
            dicomProblem=f"DICOM is not possible: {dicomProblem}." if dicomProblem else "",
            line=self._line,
            isRunning=isRunning,
            canExport=not problem and not isRunning,
        )

    def refresh(self) -> None:
        """The user has come to the page: series may have been imported meanwhile."""
        if self._segmentations is not None:
            self._segmentations.refresh()

    def look(self) -> None:
        """Notice segmentations that have come or gone. Cheap."""
        names = self._segmentations.names() if self._segmentations is not None else ()
        if names != self._seen:
            self._seen = names
            self._changed()

    def choose(self, nodeID: str) -> None:
        """Export this segmentation next."""
        self._chosen = nodeID
        self._changed()

    def export(self, wish: ExportWish) -> None:
        """Export the chosen segmentation."""
        if self._request is not None:
            return
        try:
            self._begin(wish)
        except (MedSAM2Error, OSError) as error:
            self._line = Line(self._inWords(str(error)), Kind.ERROR)
            self._end()
        self._changed()

    def cancel(self) -> None:
        """Stop the export; no file is left half written."""
        if self._request is not None:
            self._request.cancel()
            self._line = Line("The export is being stopped…", Kind.BUSY)
            self._changed()

    def stop(self) -> None:
        """End an export at once, with its worker: the runtime is being changed."""
        if self._request is not None:
            self._request.cancel()
            self._end()
            self._line = Line("The export was stopped.", Kind.PLAIN)

    def cleanup(self) -> None:
        """The page is gone for good."""
        self._changed = lambda: None
        self.stop()

    def _chosenOf(self, names: tuple[tuple[str, str], ...]) -> str:
        known = [nodeID for nodeID, _ in names]
        return self._chosen if self._chosen in known else known[0] if known else ""

    def _begin(self, wish: ExportWish) -> None:
        view = self.view()
        if view.problem:
            raise ExportError(view.problem)
        self._name = dict(view.segmentations)[view.chosen]
        isDicom = wish.format == DICOM
        fields = self._fields(wish, isDicom)
        if isDicom:
            fields["dicom"] = list(self._segmentations.dicomFiles(view.chosen))
        self._worker = self._workers.current()
        supervisor = self._worker.acquire(self)
        self._place = Path(tempfile.mkdtemp(prefix="medsam2-export-"))
        path = self._place / "segmentation.seg.nrrd"
        self._segmentations.write(view.chosen, path)
        fields["segmentation"] = str(path)
        self._line = Line(f"Exporting {self._name}…", Kind.BUSY)
        place = self._place

        def done(result: Mapping[str, Any]) -> None:
            if self._place is place:  # else it was stopped
                self._onEnd(_lineOf(result))

        def failed(error: MedSAM2Error) -> None:
            if self._place is place:
                text, isStopped = self._inWords(str(error)), isinstance(error, Cancelled)
                self._onEnd(
                    Line(text[:1].upper() + text[1:], Kind.PLAIN) if isStopped else Line(text, Kind.ERROR)
                )

        self._request = supervisor.request("export", fields, done=done, failed=failed)

    def _fields(self, wish: ExportWish, isDicom: bool) -> dict[str, Any]:
        if not wish.path.strip():
            raise ExportError("Choose where to put the file first")
        out = Path(withEnding(os.path.expanduser(wish.path.strip()), wish.format))
        if not out.is_absolute():
            raise ExportError(f"{out} is no whole path: choose a folder with Browse")
        files = filesOf(str(out), wish)
        taken = [path for path in files.values() if os.path.lexists(path)]
        if taken and not wish.overwrite:
            raise ExportError(
                f"{taken[0]} exists already: choose another name, or tick 'Replace existing files'"
            )
        fields: dict[str, Any] = {**files, "overwrite": wish.overwrite}
        if isDicom:
            fields.update(kind=wish.kind, generic=wish.generic)
            if wish.kind == "labelmap":
                fields["compression"] = wish.compression
            texts = {"series_description": wish.description.strip(), "creator": wish.creator.strip()}
            fields.update({name: text for name, text in texts.items() if text})
        return fields

    def _onEnd(self, line: Line) -> None:
        self._end()
        self._line = line
        self._changed()

    def _inWords(self, text: str) -> str:
        """Without the file that nobody has seen, and with the ways out that there are here."""
        if self._place is not None:
            text = text.replace(str(self._place / "segmentation.seg.nrrd"), repr(self._name))
        what, found, _ = text.partition(_NO_CODE)
        return f"{what}{found}: {_CODE_IT}" if found else text

    def _end(self) -> None:
        """Let go of the worker, and of what was written for it."""
        worker, self._worker, self._request = self._worker, None, None
        if worker is not None:
            worker.release(self)
        place, self._place = self._place, None
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _lineOf(result: Mapping[str, Any]) -> Line:
    """What was written, and what there is to know about it."""
    segments, frames, size = (result.get(name) for name in ("segments", "frames", "bytes"))
    facts = [_count(len(segments), "segment")] if isinstance(segments, list) else []
    facts += [_count(frames, "frame")] if isinstance(frames, int) else []
    facts += [_sizeOf(size)] if isinstance(size, int) else []
    measurements = result.get("measurements")
    beside = [*(measurements if isinstance(measurements, list) else []), result.get("report")]
    words = f"{result.get('out', 'The file')} is written: {', '.join(facts)}."
    words += "".join(f" {os.path.basename(str(path))} is beside it." for path in beside if path)
    notes = result.get("notes")
    told = [str(note) for note in notes] if isinstance(notes, list) else []
    words += "".join(f" Note: {note.rstrip('.')}." for note in told)
    return Line(words, Kind.WARNING if told else Kind.GOOD)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _sizeOf(size: int) -> str:
    return sizeWords(size) if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
