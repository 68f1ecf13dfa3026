"""Section of the page for models, which the page's worker lists, installs and removes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from medsam2_core.errors import Cancelled, MedSAM2Error
from medsam2_core.worker.client import WorkerClient, WorkerState

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import Level, ModelRow, ModelsView, StatusLine, sizeText
from MedSAM2SegmentLib.Page.WorkerSection import ask

_SLICE = 512 * 512 * 2  # bytes of a CT slice


class ModelsSection:
    """Installs and removes models, one at a time; a download ends when the page is left.

    Attributes
    ----------
    own
        The models the user has fine-tuned, as the worker lists them; they have a section of their own.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.client: WorkerClient | None = None
        self.own: tuple[Mapping[str, Any], ...] = ()
        self._rows: tuple[ModelRow, ...] = ()
        self._needed: dict[str, int | None] = {}  # bytes by name, without the volume
        self._line = StatusLine()
        self._request: Any = None
        self._progress: dict[str, str] = {}

    def view(self, worker: StatusLine, freeBytes: int | None) -> ModelsView:
        """Return what to show.

        Parameters
        ----------
        worker
            Status of the worker, which lists the models.
        freeBytes
            Free memory of its device; None when unknown.
        """
        rows = [
            dataclasses.replace(
                row,
                progress=self._progress.get(row.name, ""),
                memory=_memoryText(self._needed.get(row.name), freeBytes),
            )
            for row in self._rows
        ]
        canChange = self._isReady and self._request is None
        line = self._line
        if not rows and not line.text:
            line = worker
            if not line.text or self._isReady:
                line = StatusLine(_("The models are listed as soon as a worker is connected."))
        return ModelsView(tuple(rows), line, canChange, canCancel=self._request is not None)

    def installed(self) -> tuple[tuple[str, str], ...]:
        """Return (name, title) of the installed models."""
        own = ((str(entry["name"]), str(entry["title"])) for entry in self.own)
        return (*((row.name, row.title) for row in self._rows if row.isInstalled), *own)

    def setClient(self, client: WorkerClient | None) -> None:
        """List the models of this worker; None if there is none any more, which ends a download."""
        if client is None and self._request is not None:
            self._request.cancel()
            self._request, self._progress = None, {}
        self.client = client
        if client is not None:
            self.refresh()

    def install(self, name: str) -> None:
        """Download a model, or its present version."""

        def progress(what: str, done: int, total: int | None) -> None:
            self._progress = {name: f"{100 * done // total} %" if total else "…"}
            amount = sizeText(done)
            if total:
                amount = _("{done} of {total}").format(done=amount, total=sizeText(total))
            self._line = StatusLine(f"{name}: {what}, {amount}", Level.BUSY)
            self._changed()

        def done(_result: Mapping[str, Any]) -> None:
            self._end(StatusLine(_("{name} is installed.").format(name=name), Level.OK), isChanged=True)

        self._start("install_model", name, _("Installing {name}…"), done, progress=progress)

    def remove(self, name: str) -> None:
        """Delete the weights of a model."""

        def done(result: Mapping[str, Any]) -> None:
            text = _("{name} is removed; {size} are free again.")
            text = text.format(name=name, size=sizeText(result.get("bytes", 0)))
            self._end(StatusLine(text, Level.OK), isChanged=True)

        self._start("remove_model", name, _("Removing {name}…"), done)

    def cancel(self) -> None:
        """Cancel a download."""
        if self._request is not None:
            self._request.cancel()

    @property
    def _isReady(self) -> bool:
        return self.client is not None and self.client.state is WorkerState.READY

    def _start(self, type: str, name: str, text: str, done: Callable, **callbacks: Callable) -> None:
        if not self._isReady or self._request is not None:
            return

        def failed(error: MedSAM2Error) -> None:
            level = Level.INFO if isinstance(error, Cancelled) else Level.ERROR
            self._end(StatusLine(str(error), level), isChanged=False)

        self._progress = {name: "…"}
        self._line = StatusLine(text.format(name=name), Level.BUSY)
        self._request = ask(self, type, {"name": name}, done=done, failed=failed, **callbacks)
        self._changed()

    def _end(self, line: StatusLine, isChanged: bool) -> None:
        self._request, self._progress, self._line = None, {}, line
        if isChanged:
            self.refresh()
        self._changed()

    def refresh(self) -> None:
        """List the models again, if there is a worker: one was trained, or removed."""
        if self.client is None:
            return

        def done(result: Mapping[str, Any]) -> None:
            listed = result.get("models", ())
            self.own = tuple(entry for entry in listed if isinstance(entry.get("card"), Mapping))
            entries = [entry for entry in listed if entry not in self.own]
            self._rows = tuple(_row(entry) for entry in entries)
            self._needed = {
                row.name: entry.get("memory") for row, entry in zip(self._rows, entries, strict=True)
            }
            self._changed()

        def failed(error: MedSAM2Error) -> None:
            self._line = StatusLine(str(error), Level.ERROR)
            self._changed()

        ask(self, "models", {}, done=done, failed=failed)


def _memoryText(needed: int | None, free: int | None) -> str:
    if needed is None:
        return ""
    small, large = needed + 100 * _SLICE, needed + 500 * _SLICE
    text = _("Needs about {small} of memory for 100 slices of 512 x 512, {large} for 500.")
    text = text.format(small=sizeText(small), large=sizeText(large))
    if free is not None and small > free:
        text += " " + _(
            "That is more than is free: close other programs, choose a smaller model or one for 512 px, or "
            "use a worker on another computer."
        )
    return text


def _row(entry: Mapping[str, Any]) -> ModelRow:
    return ModelRow(
        name=str(entry.get("name", "")),
        title=str(entry.get("title") or entry.get("name", "")),
        size=entry.get("bytes"),
        licence=str(entry.get("licence") or ""),
        isInstalled=bool(entry.get("installed")),
        path=str(entry.get("path") or ""),
    )
