"""Behind the page of the module: runtime, models, worker and defaults. No Qt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from medsam2_core.errors import Cancelled, MedSAM2Error
from medsam2_core.imaging.intensity import PRESETS
from medsam2_core.worker.supervision import Supervisor, WorkerState

from MedSAM2SegmentLib.Panels.AutoPage import AutoPage, Cases
from MedSAM2SegmentLib.Panels.ExportPage import ExportPage, Segmentations
from MedSAM2SegmentLib.Panels.ExportWish import ExportWish
from MedSAM2SegmentLib.Panels.ModulePageState import Kind, Line, ModelRow, PageState, sizeWords
from MedSAM2SegmentLib.Panels.PageWords import amount, rowOf, workerView
from MedSAM2SegmentLib.Panels.RuntimePage import RuntimePage

_REFRESH_S = 2.0
_WINDOWS = (("auto", "Automatic"), ("displayed", "As displayed"))
_WINDOWS += tuple((name, name.capitalize()) for name in PRESETS)
_WAITING = {
    WorkerState.STOPPED: Line("No worker is running.", Kind.PLAIN),
    WorkerState.STARTING: Line("The worker is starting…", Kind.BUSY),
    WorkerState.RESTARTING: Line("The worker was lost and is being started again…", Kind.BUSY),
}


class WorkerSource(Protocol):
    """Where workers come from (WorkerProcess.Workers)."""

    def current(self):
        """The shared worker the settings ask for. MedSAM2Error when there can be none."""


class ModulePageController:
    """Ties the runtime, the worker and the settings to what the page shows.

    While the page is open it holds a worker: on this computer it is started at once, a remote one when the
    user tests the connection.

    Parameters
    ----------
    installer
        RuntimeInstaller.
    settings
        Settings.
    workers
        Where workers come from.
    onStateChanged
        Called whenever `state` may be another.
    clock
        Seconds that only grow.
    cases, segmentations
        The labelled volumes of the scene (SceneCases), to train on, and its segmentations
        (SceneSegmentations), to export; None where there is no scene.
    later
        Does what it is given once the page has shown what it is told before.

    Attributes
    ----------
    auto, export
        The parts about Auto models and about export.
    """

    def __init__(
        self,
        installer,
        settings,
        workers: WorkerSource,
        onStateChanged: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        cases: Cases | None = None,
        segmentations: Segmentations | None = None,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._changed = onStateChanged
        self._clock = clock
        self._runtime = RuntimePage(installer, settings, self._changed, self._onRuntimeChanged)
        self.auto = AutoPage(settings, workers, cases, self._onPart)
        self.export = ExportPage(settings, workers, segmentations, self._onPart, later)
        self._isOpen = False
        self._worker = None
        self._supervisor: Supervisor | None = None
        self._connection = Line()
        self._status: dict = {}
        self._models: tuple[ModelRow, ...] = ()
        self._modelsLine = Line()
        self._modelRequest = None
        self._doing: dict[str, str] = {}
        self._asked: float | None = None
        self._latency: float | None = None

    # The page comes and goes

    def enter(self) -> None:
        """The page is shown."""
        self._isOpen = True
        self.export.refresh()
        if not self._settings.remoteCommand:
            self._connect()
        self._changed()

    def exit(self) -> None:
        """The page is left; a download of a model ends with that."""
        self._isOpen = False
        self._disconnect()

    def cleanup(self) -> None:
        """The page is gone for good."""
        self.exit()
        self._changed = lambda: None
        self._runtime.cleanup()
        self.auto.cleanup()
        self.export.cleanup()

    def tick(self) -> None:
        """To be called now and then while the page is shown."""
        now = self._clock()
        self.export.look()
        if self._isReady() and (self._asked is None or now - self._asked > _REFRESH_S):
            self._askStatus()

    @property
    def state(self) -> PageState:
        """What to show."""
        models = tuple(self._withDoing(row) for row in self._models)
        installed = tuple((row.name, row.title) for row in models if row.isInstalled)
        return PageState(
            runtime=self._runtime.view(),
            models=models,
            modelsLine=self._modelsLine,
            canChangeModels=self._isReady() and self._modelRequest is None,
            canCancelModel=self._modelRequest is not None,
            worker=workerView(
                *(self._supervisor, self._status, self._connection, self._latency),
                self._settings.remoteCommand,
            ),
            choices={"model": installed or (("embedded", "Embedded"),), "window": _WINDOWS},
            values={"model": self._settings.defaultModel, "window": self._settings.defaultWindow},
            auto=self.auto.view(),
            export=self.export.view(),
        )

    # The runtime

    def askInstall(self) -> None:
        """Say what installing would bring, and ask."""
        self._runtime.askInstall()

    def askRemove(self) -> None:
        """Say what would be removed, and ask."""
        self._runtime.askRemove()

    def repair(self) -> None:
        """Make the runtime anew."""
        self._runtime.repair()

    def confirm(self) -> None:
        """Yes: do what was asked about."""
        self._runtime.confirm(self._letGo)

    def decline(self) -> None:
        """No."""
        self._runtime.decline()

    def cancelRuntime(self) -> None:
        """Stop installing."""
        self._runtime.cancel()

    def useInterpreter(self, path: str) -> None:
        """Use this Python instead of the runtime; "" goes back to the runtime."""
        self._runtime.useInterpreter(path)

    def setWheelFolder(self, path: str) -> None:
        """Install from this folder of wheels; "" installs from the network."""
        self._runtime.setWheelFolder(path)

    def _letGo(self) -> None:
        self.auto.stop()
        self.export.stop()
        self._disconnect()

    def _onRuntimeChanged(self) -> None:
        self._disconnect()
        if self._isOpen and not self._settings.remoteCommand:
            self._connect()
        self._changed()

    # The worker

    def setRemoteCommand(self, command: str) -> None:
        """Do the work with this command; "" does it here."""
        if command.strip() != self._settings.remoteCommand:
            self._settings.remoteCommand = command
            self._disconnect()
            self._connection = Line()
            if self._isOpen and not self._settings.remoteCommand:
                self._connect()
        self._changed()

    def testConnection(self) -> None:
        """Start the worker of the settings, and say what answered."""
        self._disconnect()
        self._connect()
        if self._supervisor is not None and self._supervisor.state is WorkerState.FAILED:
            self._supervisor.start()  # an effect still holds the one that failed
        self._changed()

    def _connect(self) -> None:
        try:
            self._worker = self._workers.current()
            self._supervisor = self._worker.acquire(self)
        except MedSAM2Error as error:
            self._worker = None
            self._connection = Line(str(error), Kind.WARNING)
            return
        self._supervisor.listeners.append(self._onWorker)
        self._onWorker()

    def _disconnect(self) -> None:
        worker, self._worker = self._worker, None
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None and self._onWorker in supervisor.listeners:
            supervisor.listeners.remove(self._onWorker)
        if self._modelRequest is not None:
            self._modelRequest.cancel()
        self._modelRequest, self._doing = None, {}
        self._status, self._asked, self._latency = {}, None, None
        self._connection = Line()
        self.auto.listenTo(None)
        if worker is not None:
            worker.release(self)

    def _onWorker(self) -> None:
        supervisor = self._supervisor
        if supervisor is None:
            return
        if supervisor.state is WorkerState.READY:
            self._askPing()
            self._askModels()
            self.auto.listenTo(supervisor)
            self._askStatus()
        elif supervisor.state is WorkerState.FAILED:
            self._connection = Line(supervisor.problem, Kind.ERROR)
        else:
            self._connection = _WAITING[supervisor.state]
        self._changed()

    def _isReady(self) -> bool:
        return self._supervisor is not None and self._supervisor.state is WorkerState.READY

    def _ask(self, type: str, fields: dict, done: Callable, **callbacks):
        """Ask this supervisor; what it answers after another has taken its place concerns nobody."""
        supervisor = self._supervisor

        def mine(callback: Callable) -> Callable:
            return lambda *values: callback(*values) if self._supervisor is supervisor else None

        callbacks.setdefault("failed", self._onFailed)
        told = {name: mine(callback) for name, callback in callbacks.items()}
        return supervisor.request(type, fields, done=mine(done), **told)

    def _askPing(self) -> None:
        sent = self._clock()

        def onPong(_result: dict) -> None:
            self._latency = self._clock() - sent
            self._changed()

        self._ask("ping", {}, onPong)

    def _askStatus(self) -> None:
        self._asked = self._clock()

        def onStatus(result: dict) -> None:
            if result != self._status:
                self._status = result
                self._changed()

        self._ask("status", {}, onStatus)

    def _askModels(self) -> None:
        def onModels(result: dict) -> None:
            self._models = tuple(rowOf(entry) for entry in result.get("models", ()))
            self._changed()

        self._ask("models", {}, onModels)

    def _onFailed(self, error: MedSAM2Error) -> None:
        self._modelsLine = Line(str(error), Kind.ERROR)
        self._changed()

    # Models

    def _onPart(self) -> None:
        self._changed()

    def installModel(self, name: str) -> None:
        """Download a model, or the present version of it."""
        if not self._isReady() or self._modelRequest is not None:
            return
        self._begin(name, f"Installing {name}…")

        def onProgress(what: str, done: int, total: int | None) -> None:
            self._doing = {name: f"{100 * done // total} %" if total else "…"}
            self._modelsLine = Line(f"{name}: {what}, {amount(done, total)}", Kind.BUSY)
            self._changed()

        self._modelRequest = self._ask(
            "install_model",
            {"name": name},
            lambda _result: self._onModelChanged(Line(f"{name} is installed.", Kind.GOOD)),
            failed=self._onModelFailed,
            progress=onProgress,
        )
        self._changed()

    def removeModel(self, name: str) -> None:
        """Delete the weights of a model."""
        if not self._isReady() or self._modelRequest is not None:
            return

        def onRemoved(result: dict) -> None:
            freed = sizeWords(result.get("bytes", 0))
            self._onModelChanged(Line(f"{name} is removed; {freed} are free again.", Kind.GOOD))

        self._begin(name, f"Removing {name}…")
        self._modelRequest = self._ask("remove_model", {"name": name}, onRemoved, failed=self._onModelFailed)
        self._changed()

    def _begin(self, name: str, text: str) -> None:
        self._doing = {name: "…"}
        self._modelsLine = Line(text, Kind.BUSY)

    def cancelModel(self) -> None:
        """Stop downloading."""
        if self._modelRequest is not None:
            self._modelRequest.cancel()

    def _onModelChanged(self, line: Line) -> None:
        self._modelRequest, self._doing = None, {}
        self._modelsLine = line
        self._askModels()
        self._changed()

    def _onModelFailed(self, error: MedSAM2Error) -> None:
        kind = Kind.PLAIN if isinstance(error, Cancelled) else Kind.ERROR
        self._modelRequest, self._doing = None, {}
        self._modelsLine = Line(str(error), kind)
        self._changed()

    def _withDoing(self, row: ModelRow) -> ModelRow:
        doing = self._doing.get(row.name, "")
        return row if not doing else ModelRow(**{**vars(row), "doing": doing})

    # Auto models

    def removeAutoModel(self, file: str) -> None:
        """Delete an Auto model, with its report."""
        self.auto.remove(file)

    def trainAutoModel(self, *wish) -> None:
        """Train one from the "scene" or a "folder" (see AutoPage.train)."""
        self.auto.train(*wish)

    def cancelTraining(self) -> None:
        """Stop training."""
        self.auto.cancel()

    # Export

    def chooseSegmentation(self, nodeID: str) -> None:
        """Export this segmentation of the scene next."""
        self.export.choose(nodeID)

    def exportSegmentation(self, wish: ExportWish) -> None:
        """Export the chosen segmentation."""
        self.export.export(wish)

    def cancelExport(self) -> None:
        """Stop exporting."""
        self.export.cancel()

    # Defaults

    def setDefault(self, name: str, value: str) -> None:
        """Begin new segmentations with this "model" or "window"."""
        if name == "model":
            self._settings.defaultModel = value
        elif name == "window":
            self._settings.defaultWindow = value
        self._changed()
