"""Makes, checks, repairs and removes the Python environment the worker runs in; Slicer's own gets nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from medsam2_core.errors import Cancelled, RuntimeInstallError

from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import cleanedEnvironment, helperPython, workerEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeEstimate import makePlan, torchMegabytes
from MedSAM2SegmentLib.Runtime.RuntimeFolder import RuntimeFolder, defaultFolder, pythonOf
from MedSAM2SegmentLib.Runtime.RuntimeLock import RuntimeLock
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine, detectMachine
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallListener, InstallPlan, RuntimeState, RuntimeStatus
from MedSAM2SegmentLib.Runtime.RuntimeSteps import (
    FILES,
    Installation,
    InstallOptions,
    lockHash,
    probe,
    removal,
)
from MedSAM2SegmentLib.Runtime.RuntimeTask import ProcessRunner, Task, Work

# The folder that holds medsam2_core, in the source tree and in an installed extension.
_EXTENSION = Path(__file__).resolve().parents[2]


class RuntimeInstaller:
    """The worker's Python environment in one folder.

    Nothing here blocks: what takes time runs in child processes, and ``listener`` is told. One piece of work
    at a time; ``isBusy`` tells.

    Parameters
    ----------
    folder
        Where the runtime lives; None: the user's application-data folder (see RuntimeFolder.defaultFolder).
    runProcess
        Starts child processes: QProcessRunner in Slicer.
    environment
        The environment children start from, as it was before Slicer changed it
        (``slicer.util.startupEnvironment()``); None: the present one. It is cleaned of what is Slicer's own.
    machine
        What the environment is made for; None: this machine, looked at when it is first needed.
    helper
        A Python for errands such as unpacking; None: PythonSlicer, else the present one.
    extension
        The folder that holds ``medsam2_core``; None: the one this file is installed in.
    files
        The folder of the pinned lists and of ``probe.py``; None: those of this extension.

    Attributes
    ----------
    options
        What the user chose, used where a method is not told otherwise.
    """

    def __init__(
        self,
        folder: Path | None,
        runProcess: ProcessRunner,
        *,
        environment: Mapping[str, str] | None = None,
        machine: Machine | None = None,
        helper: str | None = None,
        extension: Path | None = None,
        files: Path | None = None,
    ) -> None:
        self._base = cleanedEnvironment(os.environ if environment is None else environment)
        self.folder = RuntimeFolder(Path(folder) if folder is not None else defaultFolder(self._base))
        self._runner = runProcess
        self._machine = machine
        self._helper = helper or helperPython()
        self._extension = extension or _EXTENSION
        self._files = files or FILES
        self.options = InstallOptions()
        self._task: Task | None = None

    # What there is

    @property
    def isBusy(self) -> bool:
        """Whether an installation, check or removal is running here."""
        return self._task is not None and self._task.isRunning

    def status(self) -> RuntimeStatus:
        """What is installed; quick, and changes nothing."""
        elsewhere = not self.isBusy and RuntimeLock(self.folder.lock).isHeldElsewhere()
        if named := self.folder.interpreter():
            return self._statusOfNamed(named, elsewhere)
        state, text = self._stateOfOwn()
        if elsewhere:
            text = f"Another Slicer is installing the runtime. {text}"
        python = str(self.folder.python) if state in (RuntimeState.READY, RuntimeState.OUTDATED) else ""
        return RuntimeStatus(state, text, python, True, self.folder.manifest(), elsewhere)

    def _statusOfNamed(self, named: str, elsewhere: bool) -> RuntimeStatus:
        if os.path.isfile(named):
            return RuntimeStatus(RuntimeState.READY, f"Uses {named}", named, False, None, elsewhere)
        text = f"{named} is gone: choose another interpreter, or press Install"
        return RuntimeStatus(RuntimeState.BROKEN, text, "", False, None, elsewhere)

    def _stateOfOwn(self) -> tuple[RuntimeState, str]:
        folder = self.folder
        if not folder.environment.exists():
            if folder.leftovers() or folder.cache.exists():
                return (
                    RuntimeState.INTERRUPTED,
                    "The installation was interrupted: press Install to go on with it",
                )
            return RuntimeState.NONE, "The runtime is not installed yet: press Install"
        if problem := self._problemOfOwn():
            return RuntimeState.BROKEN, f"The runtime is damaged ({problem}): press Repair"
        manifest = folder.manifest() or {}
        if manifest.get("lock") != lockHash(self._files):
            text = (
                "The runtime works, but this extension was made for other versions: press Repair to renew it"
            )
            return RuntimeState.OUTDATED, text
        versions = manifest.get("versions", {})
        text = f"Installed: Python {versions.get('python')}, PyTorch {versions.get('torch')}"
        return RuntimeState.READY, text

    def _problemOfOwn(self) -> str:
        """What can be seen to be wrong without starting it; empty when nothing is."""
        manifest = self.folder.manifest()
        if manifest is None:
            return "it was never finished"
        if not os.path.isfile(self.folder.python):
            return "its interpreter is gone"
        base = manifest.get("versions", {}).get("basePython", "")
        if base and not os.path.exists(base):
            return f"the Python it was made from, {base}, is gone"
        return self.folder.problem()

    # How the worker is started

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
        return [*self._interpreterWords(status), "-m", "medsam2_core.worker"]

    def _interpreterWords(self, status: RuntimeStatus) -> list[str]:
        # An interpreter the user named may be for the other processor: it is started as it is.
        return [*(self.machine.native if status.isOwn else ()), status.interpreter]

    def environment(self) -> dict[str, str]:
        """All of the worker's environment: the user's, without what is Slicer's, with our core to import."""
        return workerEnvironment(self._base, self._extension)

    @property
    def machine(self) -> Machine:
        """The machine the environment is for."""
        if self._machine is None:
            self._machine = detectMachine(self._base)
        return self._machine

    # What can be done

    def plan(self, options: InstallOptions | None = None) -> InstallPlan:
        """What installing would bring, to be shown before; changes nothing."""
        return makePlan(
            self.folder, self._base, self.machine, options or self.options, self._helper, self._files
        )

    def install(self, listener: InstallListener, options: InstallOptions | None = None) -> None:
        """Make the environment, or go on with an interrupted installation.

        Returns at once; ``listener.ended`` tells. What was there before is used until the new one is whole.
        """
        chosen = options or self.options
        plan = self.plan(chosen)
        if plan.problems:
            listener.ended(RuntimeInstallError(plan.problems[0]))
            return
        installation = Installation(
            self.folder,
            self._base,
            self.machine,
            chosen,
            self._helper,
            self._extension,
            listener.progress,
            self._files,
            torchMegabytes(self.machine, self._base, chosen),
        )
        self._start(installation.work(), listener)

    def repair(self, listener: InstallListener, options: InstallOptions | None = None) -> None:
        """Make the environment anew; also how it is brought up to date."""
        self.install(listener, options)

    def check(self, listener: InstallListener) -> None:
        """Start the runtime's interpreter and see whether all works; ``status()`` remembers the answer."""
        status = self.status()
        if not status.interpreter:
            listener.ended(RuntimeInstallError(status.text))
            return
        self._start(self._check(status), listener)

    def _check(self, status: RuntimeStatus) -> Work:
        try:
            words = self._interpreterWords(status)
            yield from probe(words, self._base, self._extension, self._files, installed=status.isOwn)
        except RuntimeInstallError as error:
            if status.isOwn:
                self.folder.setProblem(str(error))
            raise
        if status.isOwn:
            self.folder.setProblem("")

    def remove(self, listener: InstallListener) -> None:
        """Forget the named interpreter, if one is used; else delete all that was installed, no other file."""
        if self.folder.interpreter():
            self.folder.setInterpreter("")
            listener.ended(None)
            return
        self._start(self._remove(), listener)

    def _remove(self) -> Work:
        lock = RuntimeLock(self.folder.lock)
        if not self.folder.path.exists():
            return
        lock.acquire()
        try:
            if self.folder.environment.exists():
                # By one rename: an environment half deleted must not be taken for one that is there.
                self.folder.environment.rename(self.folder.oldEnvironment())
            own = [*self.folder.leftovers(), self.folder.cache, self.folder.pythons, self.folder.uv]
            output = yield removal(self._helper, self._base, *own)
        except PermissionError as error:
            raise RuntimeInstallError(
                f"{error.filename} is in use: restart Slicer, close others, then press Remove again"
            ) from error
        finally:
            lock.release()
        if not output.ok:
            raise RuntimeInstallError(f"Not all could be removed: {output.text or output.reason}")
        self.folder.tidy()

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
        self._start(self._useInterpreter(path), listener)

    def _useInterpreter(self, path: str) -> Work:
        named = Path(path).expanduser()
        if named.is_dir():  # the folder of an environment
            named = pythonOf(named)
        if not named.is_file():
            raise RuntimeInstallError(
                f"{path} is not a Python interpreter: name the program, or its environment"
            )
        # Not resolved: an environment's interpreter is a link, and what it links to knows no packages.
        python = os.path.abspath(named)
        yield from probe([python], self._base, self._extension, self._files)
        self.folder.setInterpreter(python)

    def _start(self, work: Work, listener: InstallListener) -> None:
        if self.isBusy:
            listener.ended(RuntimeInstallError("The runtime is being worked on: wait, or cancel that first"))
            return

        def ended(error: RuntimeInstallError | Cancelled | None) -> None:
            self._task = None
            listener.ended(error)

        self._task = task = Task(work, self._runner, ended, listener.line)
        task.start()
