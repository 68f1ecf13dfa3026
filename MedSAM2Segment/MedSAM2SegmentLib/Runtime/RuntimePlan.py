"""Plan of an installation, which is shown to the user beforehand."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import hasOwnSources, sourceTitle
from MedSAM2SegmentLib.Runtime.RuntimeFolder import RuntimeFolder
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine, detectMachine

# Folder of the pinned lists and of the scripts that run in other processes.
FILES = Path(__file__).resolve().parent
# When their contents change, an installed runtime is outdated.
LOCKS = ("build.lock", "requirements.lock", "torch.lock", "sam2.txt")
# Megabytes (download, on disk): packages without PyTorch, then PyTorch by build, as measured.
_PACKAGES = (110, 420)
_TORCH = {"cuda": (2900, 6500), "cpu": (200, 720), "windows": (120, 650), "macos": (90, 450)}
_UV = (25, 65)
_PYTHON = (35, 120)
_SPARE = 300  # for archives while they are unpacked
_LICENCES = (
    "PyTorch BSD-3-Clause; SAM 2 Apache-2.0; NumPy, SciPy BSD-3-Clause; nibabel, pynrrd, pydicom, rich, "
    "typer MIT; huggingface_hub, safetensors Apache-2.0; Hydra, iopath MIT; Matplotlib PSF-style; "
    "uv Apache-2.0 or MIT; Python PSF-2.0"
)
_CUDA_LICENCE = "; NVIDIA CUDA libraries NVIDIA's proprietary licence"


@dataclass(frozen=True)
class InstallOptions:
    """Choices of the user; an offline folder is filled by Runtime/collect.py and may also contain uv."""

    offlineFolder: Path | None = None  # of wheels and source archives, instead of the network
    python: str = ""  # base of the environment; empty: found or downloaded
    torchBackend: str = ""  # build of PyTorch as uv names it ("cpu", "cu128"); empty: fits the machine


@dataclass
class RuntimeContext:
    """Folder of the runtime, and how its child processes are started."""

    folder: RuntimeFolder
    base: Mapping[str, str]  # environment variables, without Slicer's own
    helper: str  # Python that runs helper.py; nothing is installed into it
    extension: Path  # the folder that holds medsam2_core
    files: Path = FILES  # the folder of the pinned lists and of probe.py
    knownMachine: Machine | None = None  # None: this computer

    @functools.cached_property
    def machine(self) -> Machine:
        """The machine the environment is made for."""
        return self.knownMachine or detectMachine(self.base)

    def lockHash(self) -> str:
        """Return the SHA-256 of the pinned lists."""
        digest = hashlib.sha256()
        for name in LOCKS:
            # Line endings may have been converted.
            digest.update((self.files / name).read_bytes().replace(b"\r\n", b"\n"))
        return digest.hexdigest()

    def foundUv(self) -> list[str]:
        """Return the existing uv programs, of any version: from the PATH, then the downloaded one."""
        own = self.folder.uv / ("uv.exe" if os.name == "nt" else "uv")
        onPath = shutil.which("uv", path=self.base.get("PATH", ""))
        return [program for program in (onPath, str(own)) if program and os.path.isfile(program)]


def torchVersion(files: Path = FILES) -> str:
    """Return the version of PyTorch that is pinned."""
    found = re.search(r"^torch==(\S+)", (files / "torch.lock").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        message = _("Runtime/torch.lock names no version of torch: reinstall the extension")
        raise RuntimeInstallError(message, code="damaged-extension")
    return found.group(1)


class TorchSource(NamedTuple):
    """A way to install PyTorch: description, arguments for uv, and environment variables."""

    title: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = {}


def torchSources(
    machine: Machine, base: Mapping[str, str], options: InstallOptions, files: Path = FILES
) -> list[TorchSource]:
    """Return the ways to install a suitable build, to be tried in this order."""
    plain = f"torch=={torchVersion(files)}"
    pinned = ("--no-deps", "--require-hashes", "-r", str(files / "torch.lock"))
    if options.offlineFolder is not None:
        return [TorchSource(_("the build in the offline folder"), (plain,))]
    if backend := options.torchBackend or base.get("UV_TORCH_BACKEND", ""):
        title = _("build {name}, as asked for").format(name=backend)
        return [TorchSource(title, (plain, "--torch-backend", backend))]
    if machine.system == "macos":
        return [TorchSource(_("for Apple's processors"), pinned)]
    if machine.hasCuda:
        title = _("CUDA build for NVIDIA driver {version}").format(version=machine.driver)
        arguments, variables = (plain, "--torch-backend", "auto"), {"UV_CUDA_DRIVER_VERSION": machine.driver}
        sources = [TorchSource(title, arguments, variables)]
    else:
        arguments = pinned if machine.system == "windows" else (plain, "--torch-backend", "cpu")
        sources = [TorchSource(_("CPU build"), arguments)]
    if hasOwnSources(base):
        sources.append(TorchSource(_("the build of the package index that is set"), (plain,)))
    return sources


@dataclass(frozen=True)
class InstallPlan:
    """What an installation would do: description, sizes, and problems that would make it fail."""

    text: str
    downloadMegabytes: int
    diskMegabytes: int
    freeMegabytes: int
    torchMegabytes: int = 0  # on disk, of PyTorch
    problems: tuple[RuntimeInstallError, ...] = ()  # messages include the remedy


def makePlan(context: RuntimeContext, options: InstallOptions) -> InstallPlan:
    """Return the plan; without side effects."""
    machine, base, folder = context.machine, context.base, context.folder.path
    backend = options.torchBackend or base.get("UV_TORCH_BACKEND", "")
    isCuda = backend.startswith("cu") or (not backend and machine.hasCuda)
    isLarge = isCuda or backend.startswith("rocm")
    torch = _TORCH["cuda" if isLarge else machine.system if machine.system in _TORCH else "cpu"]
    uv = next(iter(context.foundUv()), "")
    parts = [_PACKAGES, torch, *([] if uv else [_UV]), *([] if options.python else [_PYTHON])]
    download, disk = (sum(sizes) for sizes in zip(*parts, strict=True))
    download = 0 if options.offlineFolder is not None else download
    free = freeMegabytes(folder)
    problems = (
        *_folderProblems(folder, disk + _SPARE, free),
        *_machineProblems(machine),
        *_optionProblems(options),
    )
    python = options.python or _("one of this computer (3.10 to 3.13), else 3.12, downloaded into the folder")
    build = torchSources(machine, base, options, context.files)[0].title
    sizes = _("about {download}; on disk: about {disk} ({free} free)")
    lines = {
        _("Folder"): folder,
        _("Download"): sizes.format(download=_size(download), disk=_size(disk), free=_size(free)),
        _("PyTorch"): f"{torchVersion(context.files)}, {build} ({machine.title})",
        _("Python"): python,
        _("Tool"): f"uv, {uv}" if uv else _("uv, fetched into the folder"),
        _("Packages from"): sourceTitle(base, options.offlineFolder),
        _("Licences"): _LICENCES + (_CUDA_LICENCE if isCuda else ""),
    }
    text = [f"{name}: {value}" for name, value in lines.items()]
    text += [_("Slicer's own Python is not changed."), *map(str, problems)]
    return InstallPlan("\n".join(text), download, disk, free, torch[1], problems)


def _size(megabytes: int) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes} MB"


def freeMegabytes(path: Path) -> int:
    """Return the free disk space at a folder, which need not exist."""
    return shutil.disk_usage(_existing(path)).free // 1_000_000


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _problem(code: str, message: str, **fields: object) -> RuntimeInstallError:
    values = {name: str(value) for name, value in fields.items()}
    return RuntimeInstallError(message.format(**values), code=code, **values)


def _folderProblems(path: Path, needed: int, free: int) -> Iterator[RuntimeInstallError]:
    if free < needed:
        message = _(
            "Only {free} MB are free at {path}, about {needed} MB are needed: free some space, or set "
            "another folder with MEDSAM2_RUNTIME_FOLDER"
        )
        yield _problem("disk-too-small", message, free=free, path=path, needed=needed)
    if not os.access(_existing(path), os.W_OK):
        message = _("{path} is not writable: set another folder with MEDSAM2_RUNTIME_FOLDER")
        yield _problem("folder-not-writable", message, path=_existing(path))


def _machineProblems(machine: Machine) -> Iterator[RuntimeInstallError]:
    if machine.system == "macos" and machine.architecture != "arm64":
        message = _(
            "PyTorch is no longer made for Macs with Intel processors: use a worker on another computer "
            "(remote command)"
        )
        yield _problem("machine-unsupported", message)
    elif machine.isTooOld:
        message = _(
            "PyTorch needs macOS 14 or newer, this is {release}: update, or use a worker on another computer "
            "(remote command)"
        )
        yield _problem("system-too-old", message, release=machine.release)
    elif machine.architecture not in ("x86_64", "arm64"):
        message = _(
            "PyTorch is not made for {architecture}: use a worker on another computer (remote command)"
        )
        yield _problem("machine-unsupported", message, architecture=machine.architecture)


def _optionProblems(options: InstallOptions) -> Iterator[RuntimeInstallError]:
    if options.offlineFolder is not None and not options.offlineFolder.is_dir():
        message = _("The offline folder {path} does not exist: choose the folder of wheels")
        yield _problem("offline-folder-missing", message, path=options.offlineFolder)
    if options.python and not Path(options.python).is_file():
        message = _("{path} is not a file: choose a Python interpreter, or none")
        yield _problem("python-missing", message, path=options.python)
