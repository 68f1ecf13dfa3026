"""Installation of the worker's environment: uv, a Python, ``uv venv``, ``uv pip install`` of the lists.

The environment is made beside the present one, tested, and put in its place by a rename. If it is interrupted
at any time, the present one still works, and the next installation continues or cleans up.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Runtime.FileLock import FileLock
from MedSAM2SegmentLib.Runtime.helper import megabytes
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import toolEnvironment, workerEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeFolder import pythonOf
from MedSAM2SegmentLib.Runtime.RuntimePlan import (
    FILES,
    InstallOptions,
    InstallPlan,
    RuntimeContext,
    torchSources,
)
from MedSAM2SegmentLib.Runtime.RuntimeTask import Command, InstallListener, Work, commandError

_PYTHONS = ">=3.10,<3.14"
_OWN_PYTHON = "3.12"
_MANIFEST_FORMAT = 1
# First version of uv with PyTorch builds by driver and relocatable environments.
_OLDEST_UV = (0, 9, 0)
# Tags of uv's wheel for an arm64 Mac; a pip that runs translated would choose the other wheel.
_ARM_MAC = ("--platform", "macosx_11_0_arm64", "--platform", "macosx_12_0_arm64")
_TORCH_DONE = 0.85  # fraction of the work when PyTorch is installed


class Installation:
    """An installation into the folder of a context; `work` is run by a Task."""

    def __init__(
        self, context: RuntimeContext, options: InstallOptions, plan: InstallPlan, listener: InstallListener
    ) -> None:
        self._context, self._options, self._listener = context, options, listener
        self._folder, self._machine = context.folder, context.machine
        self._torchMegabytes = plan.torchMegabytes
        self._isOffline = options.offlineFolder is not None
        self._environment = toolEnvironment(context.base, offline=self._isOffline)
        self._fraction, self._text = 0.0, ""
        self._uv = ""
        self._torchTitle = ""

    def work(self) -> Work:
        """Run all steps while holding the folder's lock."""
        lock = FileLock(self._folder.lock)
        lock.acquire()
        try:
            new = self._finishedBefore()
            rubbish = [path for path in self._folder.leftovers() if path != new]
            if rubbish:
                self._report(0.0, _("Removing what an interrupted installation left"))
                failure = _("What an interrupted installation left could not be removed")
                yield from self._run(failure, removal(self._context, *rubbish))
            if new is None:
                new = self._folder.fresh("new")
                yield from self._make(new)
            self._report(0.97, _("Putting it in place"))
            self._swap(new)
            self._folder.setInterpreter("")
            # The environment is complete: leftovers are no reason to fail.
            self._report(0.98, _("Removing what is no longer needed"))
            yield removal(self._context, *self._folder.leftovers(), self._folder.cache)
            self._report(1.0, _("Installed"))
        finally:
            lock.release()

    def _finishedBefore(self) -> Path | None:
        """Return an environment that was complete when Slicer was killed before renaming it."""
        for path in self._folder.leftovers():
            manifest = self._folder.manifest(path)
            if path.name.startswith("new-") and manifest and manifest.get("lock") == self._context.lockHash():
                return path
        return None

    def _make(self, new: Path) -> Work:
        files = self._context.files
        self._report(0.01, _("Looking for the tool uv"))
        yield from self._provideUv()
        self._report(0.05, _("Looking for a Python"))
        python = self._options.python or (yield from self._providePython())
        self._report(0.08, _("Making the environment"))
        venv = self._uvCommand("venv", "--relocatable", "--no-project", "--python", python, str(new))
        yield from self._run(_("The environment could not be made"), venv)
        self._report(0.1, _("Installing packages"))
        locked = ("--require-hashes", "--no-build-isolation", "-r")
        install = self._pipInstall(new, *locked, str(files / "build.lock"))
        yield from self._run(_("The build tools could not be installed"), install)
        install = self._pipInstall(new, *locked, str(files / "requirements.lock"))
        yield from self._run(_("The packages could not be installed"), install)
        self._report(0.3, _("Installing PyTorch; this is the largest part"))
        yield from self._installTorch(new)
        self._report(_TORCH_DONE, _("Installing SAM 2"))
        # The package requires torchvision, which is not used here, and would compile CUDA code.
        install = self._pipInstall(
            new, "--no-deps", *locked, str(files / "sam2.txt"), variables={"SAM2_BUILD_CUDA": "0"}
        )
        yield from self._run(_("SAM 2 could not be installed"), install)
        self._report(0.92, _("Trying it"))
        python = [*self._machine.native, str(pythonOf(new))]
        versions = yield from probe(self._context, python, checkFiles=True)
        self._folder.writeManifest(new, self._manifest(new, versions))

    def _manifest(self, new: Path, versions: dict[str, str]) -> dict:
        return {
            "format": _MANIFEST_FORMAT,
            "lock": self._context.lockHash(),
            "torchBuild": self._torchTitle,
            "versions": versions,
            "machine": self._machine.title,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "megabytes": megabytes(str(new)),
        }

    def _swap(self, new: Path) -> None:
        """Replace the present environment by the new one; if that fails, restore the old one."""
        present, old = self._folder.environment, self._folder.fresh("old")
        try:
            if present.exists():
                present.rename(old)
            new.rename(present)
        except OSError as error:
            if old.exists() and not present.exists():
                old.rename(present)
            message = _(
                "The new environment could not be put at {path} ({reason}): restart Slicer, close other "
                "Slicers, then press Install again; nothing is downloaded again"
            ).format(path=present, reason=error.strerror)
            raise RuntimeInstallError(message, code="runtime-in-use", path=str(present)) from error

    # uv and Python

    def _provideUv(self) -> Work:
        """Find a suitable uv; otherwise download its pinned wheel and unpack the program.

        Slicer's pip only downloads the wheel, in a separate process; nothing is installed.
        """
        for program in self._context.foundUv():
            output = yield Command((program, "--version"), self._environment)
            if output.ok and self._isUsable(output.text):
                self._uv = program
                return
        context, target = self._context, self._folder.cache / "uv-wheel"
        arguments = [context.helper, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        arguments += ["--require-hashes", "--progress-bar", "off", "-r", str(context.files / "uv.txt")]
        arguments += ["--dest", str(target), *(_ARM_MAC if self._machine.isTranslated else ())]
        # No modules from the current folder.
        download = Command(
            (*arguments, *self._offlineArguments()), {**self._environment, "PYTHONSAFEPATH": "1"}
        )
        yield from self._run(_("The tool uv could not be downloaded"), download)
        unpack = helperCommand(context, "unpack-uv", str(target), str(self._folder.uv))
        yield from self._run(_("The tool uv could not be unpacked"), unpack)
        self._uv = context.foundUv()[-1]

    def _isUsable(self, text: str) -> bool:
        found = re.search(r"uv (\d+)\.(\d+)\.(\d+)", text)
        if not found or tuple(map(int, found.groups())) < _OLDEST_UV:
            return False
        # A uv for the other processor would look for the wrong kind of Python.
        isMac = self._machine.system == "macos"
        return not (isMac and "x86_64" in text and self._machine.architecture == "arm64")

    def _providePython(self) -> Work:
        # A translated Slicer would run a universal interpreter for the wrong processor.
        managed = ("--managed-python",) if self._machine.isTranslated else ()
        find = ("python", "find", "--no-project")
        output = yield self._uvCommand(*find, "--system", *managed, "--no-python-downloads", _PYTHONS)
        found = _lastPath(output.lines) if output.ok else ""
        if found and not _isSlicers(found):
            return found
        if self._isOffline:
            message = _(
                "No Python 3.10 to 3.13 was found on this computer, and none can be downloaded without "
                "a network: install one, or choose one"
            )
            raise RuntimeInstallError(message, code="python-not-found")
        self._report(0.06, _("Downloading a Python"))
        isMac, isWindows = self._machine.system == "macos", self._machine.system == "windows"
        wanted = f"cpython-{_OWN_PYTHON}-macos-aarch64-none" if isMac else _OWN_PYTHON
        more = ("--no-registry",) if isWindows else ()
        install = self._uvCommand("python", "install", wanted, "--no-bin", *more)
        yield from self._run(_("Python could not be downloaded"), install)
        find = self._uvCommand(*find, "--managed-python", wanted)
        output = yield from self._run(_("The downloaded Python was not found"), find)
        return _lastPath(output.lines)

    def _installTorch(self, new: Path) -> Work:
        context = self._context
        sources = torchSources(self._machine, context.base, self._options, context.files)
        for source in sources:
            self._torchTitle = source.title
            install = self._pipInstall(new, *source.arguments, variables=source.variables)
            output = yield dataclasses.replace(install, beside=self._watchCache())
            if output.ok:
                return
        raise commandError(_("PyTorch could not be installed"), output)

    def _watchCache(self) -> Command:
        """Return a command that reports the progress of a download, which uv does only on a terminal."""
        sizes: list[int] = []
        start = self._fraction

        def onLine(line: str) -> None:
            if line.isdigit():
                sizes.append(int(line))
                arrived = sizes[-1] - sizes[0]
                share = min(arrived / self._torchMegabytes, 1.0)
                self._fraction = start + (_TORCH_DONE - start) * share
                text = _("{step}: {size} MB so far").format(step=self._text, size=arrived)
                self._listener.progress(self._fraction, text)

        watch = helperCommand(self._context, "watch", str(self._folder.cache))
        return dataclasses.replace(watch, onLine=onLine)

    # Commands

    def _uvCommand(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Command:
        environment = {**self._environment, "UV_PYTHON_INSTALL_DIR": str(self._folder.pythons)}
        environment.setdefault("UV_SYSTEM_CERTS", "1")  # these include the certificate of a hospital's proxy
        always = ("--cache-dir", str(self._folder.cache), "--color", "never")
        offline = ("--offline",) if self._isOffline else ()
        return Command(
            (self._uv, *arguments, *always, *offline), {**environment, **(variables or {})}, self._onLine
        )

    def _pipInstall(self, new: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Command:
        into = ("--python", str(pythonOf(new)))
        return self._uvCommand(
            "pip", "install", *into, *arguments, *self._offlineArguments(), variables=variables
        )

    def _offlineArguments(self) -> tuple[str, ...]:
        return ("--no-index", "--find-links", str(self._options.offlineFolder)) if self._isOffline else ()

    def _run(self, failure: str, command: Command) -> Work:
        output = yield command
        if not output.ok:
            raise commandError(failure, output)
        return output

    def _onLine(self, line: str) -> None:
        """Report the present download, since uv's progress bar needs a terminal."""
        if found := re.match(r"\s*(Downloading|Building) (\S+ \([\d.]+ ?\w+\)|\S+==\S+)", line):
            self._report(self._fraction, f"{found.group(1)} {found.group(2)}")

    def _report(self, fraction: float, text: str) -> None:
        self._fraction, self._text = fraction, text
        self._listener.progress(fraction, text)


def helperCommand(context: RuntimeContext, *arguments: str) -> Command:
    """Return a command that runs ``helper.py``."""
    return Command((context.helper, str(FILES / "helper.py"), *arguments), dict(context.base))


def removal(context: RuntimeContext, *paths: Path) -> Command:
    """Return a command that deletes folders and files, which takes long for many files."""
    return helperCommand(context, "remove", *map(str, paths))


def probe(context: RuntimeContext, python: Sequence[str], *, checkFiles: bool = False) -> Work:
    """Check whether an interpreter can run the worker; returns its versions.

    With ``checkFiles``, also check that all installed files are present and have their original size.

    Raises
    ------
    RuntimeInstallError
        "unusable-interpreter": it cannot; the message has the reason.
    """
    arguments = (*python, str(context.files / "probe.py"), *(("--files",) if checkFiles else ()))
    output = yield Command(arguments, workerEnvironment(context.base, context.extension))
    versions = _lastJson(output.lines)
    if not output.ok or versions is None:
        reason = output.lines[-1] if output.lines else output.reason
        message = _("{python} cannot run the worker: {reason}").format(python=python[-1], reason=reason)
        raise RuntimeInstallError(message, code="unusable-interpreter", python=python[-1], reason=reason)
    return versions


def _lastJson(lines: Sequence[str]) -> dict | None:
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def _lastPath(lines: Sequence[str]) -> str:
    """Return the path a tool printed, ignoring its warnings."""
    return next((line.strip() for line in reversed(lines) if os.path.isabs(line.strip())), "")


def _isSlicers(python: str) -> bool:
    """Return whether an interpreter belongs to Slicer; the runtime must not be based on it."""
    home = os.environ.get("SLICER_HOME")
    if not home and "slicer" not in Path(sys.executable).name.lower():
        return False
    inside = os.path.realpath(home or sys.base_prefix)
    return os.path.realpath(python).startswith(inside + os.sep)
