"""The steps of an installation, one after another; see RuntimeTask for how they are run."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.Runtime.helper import megabytes
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import hasOwnSources, workerEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeFolder import MANIFEST, RuntimeFolder, pythonOf, writeJson
from MedSAM2SegmentLib.Runtime.RuntimeLock import RuntimeLock
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine
from MedSAM2SegmentLib.Runtime.RuntimeMessages import explained
from MedSAM2SegmentLib.Runtime.RuntimeTask import Command, Work
from MedSAM2SegmentLib.Runtime.UvTool import UvTool, isSlicers

# The pinned lists and the scripts that run in other processes.
FILES = Path(__file__).resolve().parent
# What makes up the pinned list: another content makes an installed runtime outdated.
LOCKS = ("build.lock", "requirements.lock", "torch.lock", "sam2.txt")
PYTHONS = ">=3.10,<3.14"
_MANAGED_PYTHON = "3.12"
MANIFEST_FORMAT = 1
# How far the installation is when PyTorch is there.
_TORCH_DONE = 0.85


@dataclass(frozen=True)
class InstallOptions:
    """What the user may choose.

    Attributes
    ----------
    offlineFolder
        A folder of wheels and source archives to install from without a network; it also holds the wheel of
        uv when there is none on this computer. Runtime/collect.py fills one.
    python
        The interpreter to make the environment from; empty: one that is found, else one that is downloaded.
    torchBackend
        The build of PyTorch in uv's words ("cpu", "cu128", …); empty: the one that fits the machine.
    """

    offlineFolder: Path | None = None
    python: str = ""
    torchBackend: str = ""


def lockHash(files: Path = FILES) -> str:
    """SHA-256 of the pinned lists."""
    digest = hashlib.sha256()
    for name in LOCKS:
        # Line ends may have been changed on the way to this computer.
        digest.update((files / name).read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def torchVersion(files: Path = FILES) -> str:
    """The version of PyTorch that is pinned."""
    found = re.search(r"^torch==(\S+)", (files / "torch.lock").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeInstallError("Runtime/torch.lock names no version of torch: reinstall the extension")
    return found.group(1)


@dataclass(frozen=True)
class TorchSource:
    """One way to get PyTorch: the words for uv, variables, and in words what it is."""

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    title: str


def torchSources(
    machine: Machine, base: Mapping[str, str], options: InstallOptions, files: Path = FILES
) -> list[TorchSource]:
    """The ways to get the build that fits, to be tried in this order."""
    plain = f"torch=={torchVersion(files)}"
    pinned = ("--no-deps", "--require-hashes", "-r", str(files / "torch.lock"))
    if options.offlineFolder is not None:
        return [TorchSource((plain,), (), "the build in the offline folder")]
    backend = options.torchBackend or base.get("UV_TORCH_BACKEND", "")
    if backend:
        return [TorchSource((plain, "--torch-backend", backend), (), f"build {backend}, as asked for")]
    if machine.system == "macos":
        return [TorchSource(pinned, (), "for Apple's processors")]
    if machine.hasCuda:
        variables = (("UV_CUDA_DRIVER_VERSION", machine.driver),)
        title = f"CUDA build for NVIDIA driver {machine.driver}"
        sources = [TorchSource((plain, "--torch-backend", "auto"), variables, title)]
    elif machine.system == "windows":
        sources = [TorchSource(pinned, (), "CPU build")]
    else:
        sources = [TorchSource((plain, "--torch-backend", "cpu"), (), "CPU build")]
    if hasOwnSources(base):
        title = "the build found where the variables say"
        sources.append(TorchSource((plain,), (), title))
    return sources


class Installation:
    """Makes the environment beside the present one and puts it in its place when it has been tried.

    Parameters
    ----------
    folder
        Where everything lies.
    base
        The cleaned environment children start from.
    machine, options
        What it is made for.
    helper
        A Python for errands.
    extension
        The folder that holds ``medsam2_core``.
    tell
        ``tell(fraction, text)``: how far it is.
    files
        The folder of the pinned lists and of ``probe.py``.
    torchMegabytes
        About what PyTorch takes up; for progress.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        base: Mapping[str, str],
        machine: Machine,
        options: InstallOptions,
        helper: str,
        extension: Path,
        tell: Callable[[float, str], None],
        files: Path = FILES,
        torchMegabytes: int = 700,
    ) -> None:
        self._torchMegabytes = torchMegabytes
        self._files = files
        self._folder = folder
        self._base = base
        self._machine = machine
        self._options = options
        self._helper = helper
        self._extension = extension
        self._listener = tell
        self._fraction = 0.0
        self._text = ""
        self._uv = UvTool(folder, base, machine, helper, options.offlineFolder, files)
        self._torch = ""

    def work(self) -> Work:
        """All of it, under the folder's lock."""
        lock = RuntimeLock(self._folder.lock)
        lock.acquire()
        try:
            new = self._finishedBefore()
            yield from self._clean(keep=new)
            if new is None:
                new = self._folder.newEnvironment()
                yield from self._make(new)
            self._tell(0.97, "Putting it in place")
            self._swap(new)
            self._folder.setInterpreter("")
            # The environment is whole: what is left is only rubbish, and never a reason to fail.
            self._tell(0.98, "Removing what is no longer needed")
            yield self._removal(*self._folder.leftovers(), self._folder.cache)
            self._tell(1.0, "Installed")
        finally:
            lock.release()

    def _finishedBefore(self) -> Path | None:
        """An environment that was whole when Slicer was killed before it could be put in its place."""
        for path in self._folder.leftovers():
            manifest = self._folder.manifest(path)
            if path.name.startswith("new-") and manifest and manifest.get("lock") == lockHash(self._files):
                return path
        return None

    def _clean(self, keep: Path | None) -> Work:
        rubbish = [path for path in self._folder.leftovers() if path != keep]
        if rubbish:
            self._tell(0.0, "Removing what an interrupted installation left")
            output = yield self._removal(*rubbish)
            if not output.ok:
                raise explained("What an interrupted installation left could not be removed", output)

    def _make(self, new: Path) -> Work:
        self._tell(0.01, "Looking for the tool uv")
        yield from self._uv.provide()
        self._tell(0.05, "Looking for a Python")
        python = yield from self._python()
        self._tell(0.08, "Making the environment")
        words = ("venv", "--relocatable", "--no-project", "--python", python, str(new))
        yield from self._run("The environment could not be made", *words)
        self._tell(0.1, "Installing packages")
        locked = ("--require-hashes", "--no-build-isolation", "-r")
        yield from self._pip(
            new, "The build tools could not be installed", *locked, str(self._files / "build.lock")
        )
        words = (*locked, str(self._files / "requirements.lock"))
        yield from self._pip(new, "The packages could not be installed", *words)
        self._tell(0.3, "Installing PyTorch; this is the largest part")
        yield from self._installTorch(new)
        self._tell(_TORCH_DONE, "Building SAM 2")
        words = ("--no-deps", *locked, str(self._files / "sam2.txt"))
        yield from self._pip(new, "SAM 2 could not be installed", *words, SAM2_BUILD_CUDA="0")
        self._tell(0.92, "Trying it")
        versions = yield from probe(
            [*self._machine.native, str(pythonOf(new))],
            self._base,
            self._extension,
            self._files,
            installed=True,
        )
        self._finish(new, versions)

    def _python(self) -> Work:
        if self._options.python:
            return self._options.python
        words = ("--no-project", "--system")
        if (
            self._machine.isTranslated
        ):  # an interpreter for both processors would be found, and run translated
            words = (*words, "--managed-python")
        output = yield self._uv.command("python", "find", *words, "--no-python-downloads", PYTHONS)
        found = _lastPath(output.lines) if output.ok else ""
        if found and not isSlicers(found):
            return found
        if self._options.offlineFolder is not None:
            raise RuntimeInstallError(
                "No Python 3.10 to 3.13 was found on this computer, and none can be fetched without a "
                "network: install one, or name one"
            )
        self._tell(0.06, "Downloading a Python")
        wanted = _MANAGED_PYTHON
        if self._machine.system == "macos":
            wanted = f"cpython-{wanted}-macos-aarch64-none"
        words = ("python", "install", wanted, "--no-bin")
        more = ("--no-registry",) if self._machine.system == "windows" else ()
        yield from self._run("Python could not be downloaded", *words, *more)
        output = yield self._uv.command("python", "find", "--no-project", "--managed-python", wanted)
        if not output.ok:
            raise explained("The downloaded Python was not found", output)
        return _lastPath(output.lines)

    def _installTorch(self, new: Path) -> Work:
        sources = torchSources(self._machine, self._base, self._options, self._files)
        for number, source in enumerate(sources, start=1):
            self._torch = source.title
            command = self._pipCommand(new, *source.words, **dict(source.variables))
            output = yield dataclasses.replace(command, beside=self._watching())
            if output.ok:
                return
            if number == len(sources):
                raise explained("PyTorch could not be installed", output)

    def _watching(self) -> Command:
        """Tells how far PyTorch is, by what has arrived: uv itself does so only on a terminal."""
        begun: list[int] = []
        at = self._fraction

        def onLine(line: str) -> None:
            if line.isdigit():
                begun.append(int(line))
                arrived = begun[-1] - begun[0]
                share = min(arrived / self._torchMegabytes, 1.0)
                self._fraction = at + (_TORCH_DONE - at) * share
                self._listener(self._fraction, f"{self._text}: {arrived} MB so far")

        words = (self._helper, str(FILES / "helper.py"), "watch", str(self._folder.cache))
        return Command(words, dict(self._base), onLine)

    def _pip(self, new: Path, failure: str, *words: str, **variables: str) -> Work:
        output = yield self._pipCommand(new, *words, **variables)
        if not output.ok:
            raise explained(failure, output)

    def _pipCommand(self, new: Path, *words: str, **variables: str) -> Command:
        if self._options.offlineFolder is not None:
            words = (*words, "--no-index", "--find-links", str(self._options.offlineFolder))
        place = ("--python", str(pythonOf(new)))
        return self._uv.command("pip", "install", *place, *words, more=variables, onLine=self._onLine)

    def _run(self, failure: str, *words: str) -> Work:
        output = yield self._uv.command(*words, onLine=self._onLine)
        if not output.ok:
            raise explained(failure, output)

    def _onLine(self, line: str) -> None:
        """Tell what is fetched now: uv's own bar needs a terminal."""
        found = re.match(r"\s*(Downloading|Building) (\S+ \([\d.]+ ?\w+\)|\S+==\S+)", line)
        if found:
            self._tell(self._fraction, f"{found.group(1)} {found.group(2)}")

    def _tell(self, fraction: float, text: str) -> None:
        self._fraction, self._text = fraction, text
        self._listener(fraction, text)

    def _finish(self, new: Path, versions: dict[str, str]) -> None:
        """Write the manifest, the last thing of all."""
        manifest = {
            "format": MANIFEST_FORMAT,
            "lock": lockHash(self._files),
            "torchBuild": self._torch,
            "versions": versions,
            "machine": self._machine.title,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "megabytes": megabytes(str(new)),
        }
        writeJson(new / MANIFEST, manifest)

    def _swap(self, new: Path) -> None:
        """Put the new environment in its place; the old one comes back when that cannot be done."""
        present, old = self._folder.environment, self._folder.oldEnvironment()
        try:
            if present.exists():
                present.rename(old)
            new.rename(present)
        except OSError as error:
            if old.exists() and not present.exists():
                old.rename(present)
            raise RuntimeInstallError(
                f"The new environment could not be put at {present} ({error.strerror}): restart Slicer, "
                "close other Slicers, then press Install again; nothing is downloaded anew"
            ) from error

    def _removal(self, *paths: Path) -> Command:
        return removal(self._helper, self._base, *paths)


def removal(helper: str, base: Mapping[str, str], *paths: Path) -> Command:
    """A command that deletes folders and files: tens of thousands of files take a while."""
    return Command((helper, str(FILES / "helper.py"), "remove", *map(str, paths)), dict(base))


def probe(
    python: Sequence[str],
    base: Mapping[str, str],
    extension: Path,
    files: Path = FILES,
    *,
    installed: bool = False,
) -> Work:
    """Let an interpreter show that it can run the worker; returns its versions.

    With ``installed`` it also looks whether the files of all packages are as they were installed.

    Raises
    ------
    RuntimeInstallError
        When it cannot; the message says why.
    """
    words = [*python, str(files / "probe.py"), *(["--files"] if installed else [])]
    output = yield Command(tuple(words), workerEnvironment(base, extension))
    versions = _lastJson(output.lines)
    if not output.ok or versions is None:
        told = output.lines[-1] if output.lines else output.reason
        raise RuntimeInstallError(f"{python[-1]} cannot run the worker: {told}")
    return versions


def _lastJson(lines: tuple[str, ...]) -> dict | None:
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def _lastPath(lines: tuple[str, ...]) -> str:
    """The path a tool printed, below its warnings."""
    return next((line.strip() for line in reversed(lines) if os.path.isabs(line.strip())), "")
