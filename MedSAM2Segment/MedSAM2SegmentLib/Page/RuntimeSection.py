"""Section of the page for the runtime, which asks for confirmation and reports progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medsam2_core.errors import Cancelled, MedSAM2Error

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import Level, RuntimeView, StatusLine
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeState
from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener

_LOG_LINES = 400
_LEVELS = {
    RuntimeState.NONE: Level.WARNING,
    RuntimeState.READY: Level.OK,
    RuntimeState.INTERRUPTED: Level.WARNING,
    RuntimeState.BROKEN: Level.ERROR,
    RuntimeState.OUTDATED: Level.WARNING,
}


class RuntimeSection:
    """Installs, repairs and removes the runtime, one action at a time.

    Parameters
    ----------
    installer
        RuntimeInstaller.
    beforeChange, afterChange
        Called before the runtime is changed, which some systems refuse while it is in use, and afterwards.
    """

    def __init__(
        self,
        installer,
        settings,
        changed: Callable[[], None],
        beforeChange: Callable[[], None],
        afterChange: Callable[[], None],
    ) -> None:
        self._installer, self._settings = installer, settings
        self._changed, self._beforeChange, self._afterChange = changed, beforeChange, afterChange
        self._question, self._answer = "", ""
        self._onConfirm: Callable[[], None] | None = None
        self._outcome: StatusLine | None = None
        self._fraction: float | None = None
        self._step = ""
        self._log: list[str] = []

    def view(self) -> RuntimeView:
        """Return what to show."""
        status = self._installer.status()
        isBusy = self._fraction is not None
        isIdle, isThere = not isBusy and not self._question, status.state is not RuntimeState.NONE
        line = self._outcome or StatusLine(status.text, _LEVELS[status.state])
        return RuntimeView(
            line=StatusLine(self._step or _("Working…"), Level.BUSY) if isBusy else line,
            question=self._question,
            answer=self._answer,
            fraction=self._fraction,
            log="\n".join(self._log),
            interpreter="" if status.isOwn else status.interpreter,
            wheelFolder=self._settings.wheelFolder,
            canInstall=isIdle and not status.isReady,
            canRepair=isIdle and isThere and status.isOwn,
            canRemove=isIdle and isThere,
            canCancel=isBusy,
            canChoose=not isBusy,
        )

    def askInstall(self) -> None:
        """Ask whether to install, showing the plan."""
        self._askWithPlan(_("Install now"))

    def askRepair(self) -> None:
        """Ask whether to reinstall, showing the plan, since it may download as much."""
        self._askWithPlan(_("Repair now"))

    def _askWithPlan(self, answer: str) -> None:
        self._outcome = None
        folder = self._settings.wheelFolder
        options = InstallOptions(offlineFolder=Path(folder) if folder else None)
        try:
            question = self._installer.plan(options).text
        except MedSAM2Error as error:
            self._outcome = StatusLine(str(error), Level.ERROR)
            self._changed()
        else:
            self._ask(question, answer, lambda listener: self._installer.install(listener, options))

    def askRemove(self) -> None:
        """Ask whether to remove the runtime."""
        status = self._installer.status()
        if status.isOwn:
            question = _("Delete the runtime? It can be installed again at any time; models stay.")
        else:
            question = _("Use {path} no longer? Nothing of it is deleted.").format(path=status.interpreter)
        self._ask(question, _("Remove"), self._installer.remove)

    def _ask(self, question: str, answer: str, work: Callable[[InstallListener], None]) -> None:
        self._question, self._answer, self._onConfirm = question, answer, lambda: self._run(work)
        self._changed()

    def confirm(self) -> None:
        """Confirm the question and start the action."""
        onConfirm = self._onConfirm
        self.decline()
        if onConfirm is not None:
            self._beforeChange()
            onConfirm()

    def decline(self) -> None:
        """Withdraw the question."""
        self._question, self._answer, self._onConfirm = "", "", None
        self._changed()

    def cancel(self) -> None:
        """Cancel the running action."""
        if self._fraction is not None:
            self._installer.cancel()

    def useInterpreter(self, path: str) -> None:
        """Use this Python if it can run the worker; "" for the own environment."""
        self._run(lambda listener: self._installer.useInterpreter(path.strip(), listener))

    def setWheelFolder(self, path: str) -> None:
        """Install from this folder of wheels; "" for the network."""
        self._settings.wheelFolder = path
        self._changed()

    def cleanup(self) -> None:
        """Stop everything before the page is destroyed."""
        self._changed = self._afterChange = lambda: None
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
            level = Level.INFO if isinstance(error, Cancelled) else Level.ERROR
            self._outcome = StatusLine(str(error), level)
        self._afterChange()  # also after a failure, since the old environment can be used again
        self._changed()
