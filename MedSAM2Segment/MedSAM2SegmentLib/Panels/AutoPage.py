"""The part of the page about Auto models: listed, removed, trained from a folder or from the scene. No Qt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError, TrainingError
from medsam2_core.worker.findings import AutoEntry, entries_in
from medsam2_core.worker.supervision import Supervisor

from MedSAM2SegmentLib.Panels.ModulePageState import AutoModelRow, AutoPageView, Kind, Line, sizeWords

SCENE, FOLDER = "scene", "folder"
_STOPPED = "The training was stopped."
ENOUGH = 10  # labelled images from which a model begins to be of use


class Cases(Protocol):
    """The labelled volumes of a scene (SceneCases)."""

    def names(self) -> tuple[str, ...]:
        """Of the volumes."""

    def write(self, folder: str | Path) -> dict[str, str]:
        """Write them as files; the volumes' names by the files'. MedSAM2Error when that cannot be."""


class AutoPage:
    """Does one thing at a time. A training goes on when the page is left: it holds a worker of its own.

    Parameters
    ----------
    settings
        Settings: with a remote command, the scene's volumes cannot be trained on.
    workers
        Where workers come from.
    cases
        The scene's labelled volumes; None where there is no scene.
    changed
        Called whenever `view` may give something else.
    """

    def __init__(self, settings, workers, cases: Cases | None, changed: Callable[[], None]) -> None:
        self._settings, self._workers, self._cases = settings, workers, cases
        self._changed = changed
        self._supervisor: Supervisor | None = None  # of the page
        self._entries: tuple[AutoEntry, ...] = ()
        self._damaged: tuple[str, ...] = ()
        self._line = Line()
        self._isRemoving = False
        self._training: Any = None
        self._worker: Any = None  # held by the training
        self._place: Path | None = None  # where the scene's volumes were written
        self._names: dict[str, str] = {}
        self._fraction = -1.0
        self._stopped: dict[str, Any] | None = None  # what was stopped, and can go on

    def view(self) -> AutoPageView:
        """What to show."""
        isThere, isTraining = self._supervisor is not None, self._training is not None
        return AutoPageView(
            rows=tuple(_row(entry) for entry in self._entries),
            line=self._line if self._line.text else self._told(),
            sources=self._sources(),
            fraction=self._fraction if isTraining else None,
            canChange=isThere and not self._isRemoving,
            canTrain=isThere and not isTraining,
            canCancel=isTraining,
        )

    def listenTo(self, supervisor: Supervisor | None) -> None:
        """A worker is there, which knows its models; None: it is gone."""
        self._supervisor, self._isRemoving = supervisor, False
        if supervisor is not None:
            self._ask()

    def stop(self) -> None:
        """End a training at once, with its worker: the runtime is being changed."""
        if self._training is not None:
            self._training.cancel()
            self._end()
            self._line = Line(_STOPPED, Kind.PLAIN)

    def cleanup(self) -> None:
        """The page is gone for good."""
        self._changed = lambda: None
        self.stop()

    # The list

    def remove(self, file: str) -> None:
        """Delete a model, with its report."""
        supervisor = self._supervisor
        if supervisor is None or self._isRemoving:
            return

        def done(result: Mapping[str, Any]) -> None:
            if supervisor is self._supervisor:
                self._isRemoving = False
                freed = sizeWords(result.get("bytes", 0))
                self._line = Line(f"{file} is removed; {freed} are free again.", Kind.GOOD)
                self._ask()
                self._changed()

        def failed(error: MedSAM2Error) -> None:
            if supervisor is self._supervisor:
                self._isRemoving = False
                self._line = Line(str(error), Kind.ERROR)
                self._changed()

        self._isRemoving = True
        supervisor.request("remove_auto_model", {"model": file}, done=done, failed=failed)
        self._changed()

    def _ask(self) -> None:
        supervisor = self._supervisor

        def done(told: Mapping[str, Any]) -> None:
            if supervisor is self._supervisor:
                self._take(told)

        def failed(error: MedSAM2Error) -> None:
            """A worker of an earlier version: it knows no such models."""

        supervisor.request("auto_models", {}, done=done, failed=failed)

    def _take(self, told: Mapping[str, Any]) -> None:
        try:
            self._entries = entries_in(told)
        except ProtocolError as error:
            self._entries, self._line = (), Line(str(error), Kind.ERROR)
        damaged = told.get("damaged")
        reasons = [one.get("reason") for one in damaged or () if isinstance(one, Mapping)]
        self._damaged = tuple(str(reason) for reason in reasons)
        self._changed()

    def _told(self) -> Line:
        """When nothing is done: what is wrong with the files, or how to begin."""
        if self._damaged:
            return Line(self._damaged[0], Kind.WARNING)
        if self._supervisor is not None and not self._entries:
            return Line(f"No Auto model yet: train one from {ENOUGH} labelled images.", Kind.PLAIN)
        return Line()

    # Training

    def train(
        self, source: str, folder: str, name: str, minutes: int, classes: str = "", skipsBad: bool = False
    ) -> None:
        """Train a model of this name, for so many minutes.

        Parameters
        ----------
        source
            "scene" or "folder".
        folder
            Of images and labels, on the worker's machine.
        classes
            Names divided by commas; empty: all.
        skipsBad
            Leave out images with problems.
        """
        if self._training is not None:
            return
        try:
            wish = self._wish(source, folder.strip(), name.strip(), minutes, classes)
            wish.update({"skip_bad": True} if skipsBad else {})
            self._begin(wish, source)
        except (MedSAM2Error, OSError) as error:
            self._end()
            self._line = Line(str(error), Kind.ERROR)
        self._changed()

    def cancel(self) -> None:
        """Stop a training after the step it is at."""
        if self._training is not None:
            self._training.cancel()
            self._line = Line("The training is being stopped…", Kind.BUSY)
            self._changed()

    def _wish(self, source: str, folder: str, name: str, minutes: int, classes: str) -> dict[str, Any]:
        if source == FOLDER and not folder:
            raise TrainingError("Choose a folder of images and labels first")
        name = name or (Path(folder).name if source == FOLDER else "scene")
        names = [one.strip() for one in classes.split(",") if one.strip()]
        wish: dict[str, Any] = {"data": folder, "name": name, "minutes": float(minutes)}
        if names:
            wish["classes"] = names
        if self._settings.defaultModel != "embedded":
            wish["base"] = self._settings.defaultModel
        return wish

    def _begin(self, wish: dict[str, Any], source: str) -> None:
        if source == SCENE:
            self._place = Path(tempfile.mkdtemp(prefix="medsam2-train-"))
            self._names = self._cases.write(self._place) if self._cases is not None else {}
            wish = {**wish, "data": str(self._place)}
        elif wish == self._stopped:
            wish = {**wish, "resume": True}
        self._worker = self._workers.current()
        supervisor = self._worker.acquire(self)
        self._fraction, self._line = -1.0, Line(f"Training {wish['name']}…", Kind.BUSY)
        self._stopped = None

        def failed(error: MedSAM2Error) -> None:
            isStopped = isinstance(error, Cancelled)
            text = self._named(str(error))
            if isStopped and source == SCENE:
                text = _STOPPED  # what was written of the scene is gone, and it may be another one next time
            elif isStopped:
                self._stopped = {k: v for k, v in wish.items() if k != "resume"}
            self._onEnd(Line(_sentence(text), Kind.PLAIN if isStopped else Kind.ERROR))

        heard = {"progress": self._onProgress, "note": self._onNote}
        self._training = supervisor.request("train_auto", wish, done=self._onTrained, failed=failed, **heard)

    def _onProgress(self, _what: str, done: int, total: int | None) -> None:
        self._fraction = min(1.0, done / total) if total else -1.0
        self._changed()

    def _onNote(self, text: str) -> None:
        self._line = Line(f"Training: {self._named(text)}", Kind.BUSY)
        self._changed()

    def _onTrained(self, result: Mapping[str, Any]) -> None:
        try:
            entry = AutoEntry.from_json(result.get("model"))
        except ProtocolError as error:
            self._onEnd(Line(str(error), Kind.ERROR))
            return
        dice = f", Dice {entry.dice:.2f}" if entry.dice is not None else ""
        few = f" More than {entry.images} would make it better." if 0 < entry.images < ENOUGH else ""
        words = f"{entry.name} is trained on {entry.images} images{dice}: choose it at Auto in the effect."
        self._onEnd(Line(words + few, Kind.GOOD))

    def _onEnd(self, line: Line) -> None:
        self._end()
        self._line = line
        if self._supervisor is not None:
            self._ask()
        self._changed()

    def _end(self) -> None:
        """Let go of the worker, and of what was written for it."""
        worker, self._worker, self._training = self._worker, None, None
        if worker is not None:
            worker.release(self)
        place, self._place = self._place, None
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)

    def _named(self, text: str) -> str:
        """With the names of volumes instead of those of files that nobody has seen, and of what is here."""
        for file, name in self._names.items():
            text = text.replace(file, repr(name))
        return text.replace(" with --skip-bad", "")

    def _sources(self) -> tuple[tuple[str, str], ...]:
        folder = (FOLDER, "A folder")
        if self._cases is None or self._settings.remoteCommand:
            return (folder,)  # what is written here cannot be read there
        count = len(self._cases.names())
        volumes = "1 volume" if count == 1 else f"{count} volumes"
        scene = (SCENE, f"This scene ({volumes} with segments)")
        return (scene, folder) if count else (folder, scene)


def _row(entry: AutoEntry) -> AutoModelRow:
    images = str(entry.images) if entry.images else ""
    dice = f"{entry.dice:.2f}" if entry.dice is not None else ""
    return AutoModelRow(entry.file, entry.name, ", ".join(entry.classes), images, dice, entry.path)


def _sentence(text: str) -> str:
    """With a capital, unless it begins with the name of a file."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text
