"""Makes, repairs and removes the Python environment the worker runs in; Slicer's own gets nothing."""

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
    """The worker's Python environment in one folder.

    Nothing here blocks: what takes time runs in child processes and is reported to a listener. One piece of
    work at a time; see `isBusy`. ``options``, what the user chose, are used where a method gets no others.

    Parameters
    ----------
    folder
        Where the runtime lives; None: the user's application-data folder (see RuntimeFolder.defaultFolder).
    runProcess
        Starts child processes: QProcessRunner in Slicer.
    environment
        The environment variables as they were before Slicer changed them
        (``slicer.util.startupEnvironment()``); None: the present ones. Slicer's own are left out.
    machine, helper, extension, files
        See RuntimeContext; None: those of this computer and of this extension.
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
        """Return what is installed; quick, and changes nothing."""
        return readStatus(self._context, self.isBusy)

    def command(self) -> list[str]:
        """Return the command line that starts the worker.

        Raises
        ------
        RuntimeInstallError
            "runtime-not-ready": there is no runtime that could; the message says what to do.
        """
        status = self.status()
        if not status.isReady:
            raise _notReady(status)
        return [*self._pythonCommand(status), "-m", "medsam2_core.worker"]

    def _pythonCommand(self, status: RuntimeStatus) -> list[str]:
        # An interpreter the user named may be for the other processor: it is started as it is.
        return [*(self._context.machine.native if status.isOwn else ()), status.interpreter]

    def environment(self) -> dict[str, str]:
        """Return all of the worker's environment variables."""
        return workerEnvironment(self._context.base, self._context.extension)

    def plan(self, options: InstallOptions | None = None) -> InstallPlan:
        """Return what installing would bring, to be shown before; changes nothing."""
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
        """Stop using the named interpreter, if there is one; else delete what was installed, nothing else."""
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
                # By one rename: an environment half deleted must not be taken for one that is there.
                folder.environment.rename(folder.fresh("old"))
            output = yield removal(
                self._context, *folder.leftovers(), folder.cache, folder.pythons, folder.uv
            )
        except PermissionError as error:
            message = _("{path} is in use: restart Slicer, close others, then press Remove again")
            message = message.format(path=error.filename)
            raise RuntimeInstallError(message, code="runtime-in-use", path=error.filename) from error
        finally:
            lock.release()
        if not output.ok:
            reason = output.text or output.reason
            message = _("Not all could be removed: {reason}").format(reason=reason)
            raise RuntimeInstallError(message, code="removal-incomplete", reason=reason)
        folder.removeIfEmpty()

    def cancel(self) -> None:
        """Stop what is running; what was downloaded is kept, so that it can be continued."""
        if self._task is not None:
            self._task.cancel()

    def useInterpreter(self, path: str, listener: InstallListener) -> None:
        """Use this interpreter instead, once it has shown that it can; an empty path goes back to our own."""
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
            message = _("{path} is not a Python interpreter: name the program, or its environment")
            raise RuntimeInstallError(message.format(path=path), code="not-an-interpreter", path=path)
        # Not resolved: an environment's interpreter is a link, and what it links to has no packages.
        python = os.path.abspath(named)
        yield from probe(self._context, [python])
        self.folder.setInterpreter(python)

    def _start(self, work: Work, listener: InstallListener) -> None:
        if self.isBusy:
            message = _("The runtime is being worked on: wait, or cancel that first")
            listener.ended(RuntimeInstallError(message, code="runtime-busy"))
        else:
            self._task = Task(work, self._runner, listener)
            self._task.start()


def _notReady(status: RuntimeStatus) -> RuntimeInstallError:
    return RuntimeInstallError(status.text, code="runtime-not-ready", state=status.state.value)
