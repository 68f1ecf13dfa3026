"""The part of the page about the runtime: asks before it does anything, tells how far it is. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medsam2_core.errors import Cancelled, MedSAM2Error

from MedSAM2SegmentLib.Panels.ModulePageState import Kind, Line, RuntimeView
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener

_LOG_LINES = 400
_KINDS = {
    RuntimeState.NONE: Kind.WARNING,
    RuntimeState.READY: Kind.GOOD,
    RuntimeState.INTERRUPTED: Kind.WARNING,
    RuntimeState.BROKEN: Kind.ERROR,
    RuntimeState.OUTDATED: Kind.WARNING,
}


class RuntimePage:
    """Installs, repairs and removes the runtime, one thing at a time.

    Parameters
    ----------
    installer
        RuntimeInstaller.
    settings
        Settings, for the folder of wheels.
    changed
        Called whenever `view` may give something else.
    runtimeChanged
        Called when another runtime is there, or none.
    """

    def __init__(
        self, installer, settings, changed: Callable[[], None], runtimeChanged: Callable[[], None]
    ) -> None:
        self._installer = installer
        self._settings = settings
        self._changed = changed
        self._runtimeChanged = runtimeChanged
        self._question = ""
        self._answer = ""
        self._onYes: Callable[[], None] | None = None
        self._outcome: Line | None = None
        self._fraction: float | None = None
        self._step = ""
        self._log: list[str] = []

    def view(self) -> RuntimeView:
        """What to show."""
        status = self._installer.status()
        isBusy = self._fraction is not None
        isThere = status.state is not RuntimeState.NONE
        line = self._outcome or Line(status.text, _KINDS[status.state])
        return RuntimeView(
            line=Line(self._step or "Working…", Kind.BUSY) if isBusy else line,
            question=self._question,
            answer=self._answer,
            fraction=self._fraction,
            step=self._step,
            log="\n".join(self._log),
            interpreter="" if status.isOwn else status.interpreter,
            wheelFolder=self._settings.wheelFolder,
            canInstall=not isBusy and not self._question and not status.isReady,
            canRepair=not isBusy and not self._question and isThere and status.isOwn,
            canRemove=not isBusy and not self._question and isThere,
            canCancel=isBusy,
            canChoose=not isBusy,
        )

    def askInstall(self) -> None:
        """Say what installing would bring: the user agrees or not."""
        self._askWithPlan("Install now", self._installer.install)

    def repair(self) -> None:
        """Ask whether to make it anew: that, too, may download much."""
        self._askWithPlan("Repair now", self._installer.repair)

    def _askWithPlan(self, answer: str, work: Callable[..., None]) -> None:
        self._outcome = None
        folder = self._settings.wheelFolder
        options = InstallOptions(offlineFolder=Path(folder) if folder else None)
        try:
            self._question = self._installer.plan(options).text
        except MedSAM2Error as error:
            self._outcome = Line(str(error), Kind.ERROR)
            self._changed()
            return
        self._answer, self._onYes = answer, lambda: self._run(lambda listener: work(listener, options))
        self._changed()

    def askRemove(self) -> None:
        """Say what would be removed."""
        status = self._installer.status()
        if status.isOwn:
            self._question = "Delete the runtime? It can be installed again at any time; models stay."
        else:
            self._question = f"Use {status.interpreter} no longer? Nothing of it is deleted."
        self._answer, self._onYes = "Remove", lambda: self._run(self._installer.remove)
        self._changed()

    def confirm(self, before: Callable[[], None]) -> None:
        """Do what was asked about; ``before`` is called first: files in use cannot be replaced everywhere."""
        onYes = self._onYes
        self.decline()
        if onYes is not None:
            before()
            onYes()

    def decline(self) -> None:
        """Do not."""
        self._question, self._answer, self._onYes = "", "", None
        self._changed()

    def cancel(self) -> None:
        """Stop what is running."""
        if self._fraction is not None:
            self._installer.cancel()

    def useInterpreter(self, path: str) -> None:
        """Try this Python, and use it if it will do; "" goes back to the runtime."""
        self._run(lambda listener: self._installer.useInterpreter(path.strip(), listener))

    def setWheelFolder(self, path: str) -> None:
        """Remember the folder of wheels."""
        self._settings.wheelFolder = path
        self._changed()

    def cleanup(self) -> None:
        """Stop, and call nobody any more."""
        self._changed = self._runtimeChanged = lambda: None
        self.cancel()

    def _run(self, work: Callable[[InstallListener], None]) -> None:
        if self._fraction is not None:
            return
        self._fraction, self._step, self._log, self._outcome = -1.0, "", [], None
        try:
            work(InstallListener(self._onProgress, self._onLine, self._onEnded))
        except MedSAM2Error as error:
            self._onEnded(error)
        self._changed()

    def _onProgress(self, fraction: float, text: str) -> None:
        self._fraction, self._step = fraction, text
        self._changed()

    def _onLine(self, text: str) -> None:
        self._log = [*self._log, text][-_LOG_LINES:]
        self._changed()

    def _onEnded(self, error: MedSAM2Error | None) -> None:
        self._fraction, self._step = None, ""
        if error is not None:
            self._outcome = Line(str(error), Kind.PLAIN if isinstance(error, Cancelled) else Kind.ERROR)
        self._runtimeChanged()  # also when it failed: what was there before can be used again
        self._changed()
