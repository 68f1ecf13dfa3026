"""Makes, checks, repairs and removes the Python environment the worker runs in; Slicer's own gets nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from .RuntimeEnvironment import cleanedEnvironment, workerEnvironment
from .RuntimeFolder import RuntimeFolder, defaultFolder
from .RuntimePlan import InstallListener, InstallPlan, RuntimeState, RuntimeStatus
from .RuntimeTask import Command, ProcessRunner, Task, Work

# The folder that holds medsam2_core, in the source tree and in an installed extension.
_EXTENSION = Path(__file__).resolve().parents[1]


class RuntimeInstaller:
    """The worker's Python environment in one folder.

    Nothing here blocks: what takes time runs in child processes, and ``listener`` is told. One piece of work at a
    time; ``isBusy`` tells.

    Parameters
    ----------
    folder
        Where the runtime lives; None: the user's application-data folder (see RuntimeFolder.defaultFolder).
    runProcess
        Starts child processes: QProcessRunner in Slicer.
    environment
        The environment children start from, as it was before Slicer changed it
        (``slicer.util.startupEnvironment()``); None: the present one. It is cleaned of what is Slicer's own.
    """

    def __init__(
        self,
        folder: Path | None,
        runProcess: ProcessRunner,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._base = cleanedEnvironment(os.environ if environment is None else environment)
        self.folder = RuntimeFolder(Path(folder) if folder is not None else defaultFolder(self._base))
        self._runner = runProcess
        self._task: Task | None = None

    @property
    def isBusy(self) -> bool:
        """Whether an installation, check or removal is running here."""
        return self._task is not None and self._task.isRunning

    def status(self) -> RuntimeStatus:
        """What is installed; quick, and changes nothing."""
        named = self.folder.interpreter()
        if named:
            if not Path(named).is_file():
                text = f"{named} is gone: choose another interpreter, or install the runtime"
                return RuntimeStatus(RuntimeState.BROKEN, text, named, isOwn=False)
            return RuntimeStatus(RuntimeState.READY, f"Uses {named}", named, isOwn=False)
        return RuntimeStatus(RuntimeState.NONE, "The runtime is not installed yet: press Install")

    def command(self) -> list[str]:
        """The command line that starts the worker.

        Raises
        ------
        RuntimeInstallError
            When there is no runtime that could; the message says what to do.
        """
        status = self.status()
        if not status.isReady:
            raise RuntimeInstallError(status.text)
        return [status.interpreter, "-m", "medsam2_core.worker"]

    def environment(self) -> dict[str, str]:
        """All of the worker's environment: the user's, without what is Slicer's, with our core to import."""
        return workerEnvironment(self._base, _EXTENSION)

    def plan(self) -> InstallPlan:
        """What installing would bring; changes nothing."""
        raise RuntimeInstallError("Installing is not possible yet: name an interpreter instead")

    def install(self, listener: InstallListener) -> None:
        """Make the environment; returns at once, ``listener.ended`` tells."""
        listener.ended(RuntimeInstallError("Installing is not possible yet: name an interpreter instead"))

    def repair(self, listener: InstallListener) -> None:
        """Make the environment anew; the old one is used until the new one is whole."""
        self.install(listener)

    def check(self, listener: InstallListener) -> None:
        """Start the runtime's interpreter and see whether all of it works."""
        listener.ended(None)

    def remove(self, listener: InstallListener) -> None:
        """Delete all that was installed, and forget a named interpreter."""
        self.folder.setInterpreter("")
        listener.ended(None)

    def cancel(self) -> None:
        """Stop what is running; what was downloaded is kept, so that it can be resumed."""
        if self._task is not None:
            self._task.cancel()

    def useInterpreter(self, path: str, listener: InstallListener) -> None:
        """Use this interpreter instead, once it has shown that it can; an empty path goes back to our own."""
        if not path:
            self.folder.setInterpreter("")
            listener.ended(None)
            return
        self._start(self._probe(path), listener)

    def _probe(self, path: str) -> Work:
        if not Path(path).is_file():
            raise RuntimeInstallError(f"{path} is not a file: name a Python interpreter")
        code = "import torch, sam2, medsam2_core"
        output = yield Command((path, "-c", code), self.environment())
        if not output.ok:
            raise RuntimeInstallError(f"{path} cannot run the worker: {output.text or output.reason}")
        self.folder.setInterpreter(path)

    def _start(self, work: Work, listener: InstallListener) -> None:
        if self.isBusy:
            raise RuntimeInstallError("The runtime is being worked on already: wait, or cancel that first")
        self._task = Task(work, self._runner, listener.ended, listener.line)
        self._task.start()
