"""Installer of the worker's Python environment; Slicer's own Python is not changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Runtime.FileLock import FileLock
from MedSAM2SegmentLib.Runtime.Installation import Installation, probe, removal
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import cleanedEnvironment, workerEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeFolder import RuntimeFolder, defaultFolder, pythonOf
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine
from MedSAM2SegmentLib.Runtime.RuntimePlan import (
    FILES,
    InstallOptions,
    InstallPlan,
    RuntimeContext,
    makePlan,
)
from MedSAM2SegmentLib.Runtime.RuntimeStatus import RuntimeStatus, readStatus
from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener, Task, Work

# The folder that holds medsam2_core, in the source tree and in an installed extension.
_EXTENSION = Path(__file__).resolve().parents[2]


class RuntimeInstaller:
    """Installs, repairs and removes the worker's Python environment in one folder.

    No method blocks: long work runs in child processes and is reported to a listener, one piece at a time
    (see `isBusy`). ``options`` is the default of the methods' parameter.

    Parameters
    ----------
    folder
        Folder of the runtime; None for one in the user's application data (RuntimeFolder.defaultFolder).
    runProcess
        Starts child processes: a QProcessRunner.
    environment
        Environment variables Slicer was started with (``slicer.util.startupEnvironment()``); None for the
        present ones. Slicer's own are removed.
    machine, helper, extension, files
        See RuntimeContext; None for those of this computer and extension.
    """

    def __init__(
        self,
        folder: Path | None,
        runProcess,
        *,
        environment: Mapping[str, str] | None = None,
        machine: Machine | None = None,
        helper: str | None = None,
        extension: Path | None = None,
        files: Path | None = None,
    ) -> None:
        base = cleanedEnvironment(os.environ if environment is None else environment)
        self.folder = RuntimeFolder(Path(folder) if folder is not None else defaultFolder(base))
        helper = helper or shutil.which("PythonSlicer") or sys.executable
        self._context = RuntimeContext(
            self.folder, base, helper, extension or _EXTENSION, files or FILES, machine
        )
        self._runner = runProcess
        self.options = InstallOptions()
        self._task: Task | None = None

    @property
    def isBusy(self) -> bool:
        """Whether an installation or removal is running here."""
        return self._task is not None and self._task.isRunning

    def status(self) -> RuntimeStatus:
        """Return what is installed; fast, and without side effects."""
        return readStatus(self._context, self.isBusy)

    def command(self) -> list[str]:
        """Return the command line that starts the worker.

        Raises
        ------
        RuntimeInstallError
            "runtime-not-ready": there is no usable runtime; the message says what to do.
        """
        status = self.status()
        if not status.isReady:
            raise _notReady(status)
        return [*self._pythonCommand(status), "-m", "medsam2_core.worker"]

    def _pythonCommand(self, status: RuntimeStatus) -> list[str]:
        # An interpreter chosen by the user may be for the other processor.
        return [*(self._context.machine.native if status.isOwn else ()), status.interpreter]

    def environment(self) -> dict[str, str]:
        """Return all of the worker's environment variables."""
        return workerEnvironment(self._context.base, self._context.extension)

    def plan(self, options: InstallOptions | None = None) -> InstallPlan:
        """Return what an installation would do; without side effects."""
        return makePlan(self._context, options or self.options)

    def install(self, listener: InstallListener, options: InstallOptions | None = None) -> None:
        """Make the environment, also to repair or update one; an interrupted installation is continued.

        Returns at once; ``listener.ended`` is called later. Until the new environment is complete, the old
        one is used. It is not repaired in place: uv does not notice a truncated file, and an interrupted
        repair would leave nothing that works.
        """
        chosen = options or self.options
        plan = self.plan(chosen)
        if plan.problems:
            listener.ended(plan.problems[0])
        else:
            self._start(Installation(self._context, chosen, plan, listener).work(), listener)

    def remove(self, listener: InstallListener) -> None:
        """Stop using the chosen interpreter, if there is one; otherwise delete what was installed."""
        if self.folder.interpreter():
            self.useInterpreter("", listener)
        else:
            self._start(self._remove(), listener)

    def _remove(self) -> Work:
        folder = self.folder
        if not folder.path.exists():
            return
        lock = FileLock(folder.lock)
        lock.acquire()
        try:
            if folder.environment.exists():
                # Renamed first, so that a partly deleted environment is not taken for a complete one.
                folder.environment.rename(folder.fresh("old"))
            output = yield removal(
                self._context, *folder.leftovers(), folder.cache, folder.pythons, folder.uv
            )
        except PermissionError as error:
            message = _("{path} is in use: restart Slicer, close other Slicers, then press Remove again")
            message = message.format(path=error.filename)
            raise RuntimeInstallError(message, code="runtime-in-use", path=error.filename) from error
        finally:
            lock.release()
        if not output.ok:
            reason = output.text or output.reason
            message = _("Some files could not be removed: {reason}").format(reason=reason)
            raise RuntimeInstallError(message, code="removal-incomplete", reason=reason)
        folder.removeIfEmpty()

    def cancel(self) -> None:
        """Stop what is running; downloads are kept, so that an installation can be continued."""
        if self._task is not None:
            self._task.cancel()

    def useInterpreter(self, path: str, listener: InstallListener) -> None:
        """Use this interpreter if it can run the worker; an empty path goes back to the own environment."""
        if path:
            self._start(self._useInterpreter(path), listener)
        else:
            self.folder.setInterpreter("")
            listener.ended(None)

    def _useInterpreter(self, path: str) -> Work:
        named = Path(path).expanduser()
        if named.is_dir():  # the folder of an environment
            named = pythonOf(named)
        if not named.is_file():
            message = _("{path} is not a Python interpreter: choose the program, or its environment")
            raise RuntimeInstallError(message.format(path=path), code="not-an-interpreter", path=path)
        # Not resolved: an environment's interpreter is a link to one without its packages.
        python = os.path.abspath(named)
        yield from probe(self._context, [python])
        self.folder.setInterpreter(python)

    def _start(self, work: Work, listener: InstallListener) -> None:
        if self.isBusy:
            message = _("The runtime is being changed: wait, or cancel that first")
            listener.ended(RuntimeInstallError(message, code="runtime-busy"))
        else:
            self._task = Task(work, self._runner, listener)
            self._task.start()


def _notReady(status: RuntimeStatus) -> RuntimeInstallError:
    return RuntimeInstallError(status.text, code="runtime-not-ready", state=status.state.value)
