"""What an installation would bring, estimated before anything is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import sourceTitle
from MedSAM2SegmentLib.Runtime.RuntimeFolder import RuntimeFolder
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallPlan
from MedSAM2SegmentLib.Runtime.RuntimeSteps import FILES, InstallOptions, torchSources, torchVersion
from MedSAM2SegmentLib.Runtime.UvTool import UvTool

# Megabytes to download and on disk: packages without PyTorch (measured), then PyTorch by build.
_PACKAGES = (110, 420)
_TORCH = {"cuda": (2900, 6500), "cpu": (200, 720), "windows": (120, 650), "macos": (90, 450)}
_UV = (25, 65)
_PYTHON = (35, 120)
# While it is made, archives lie beside what is unpacked from them.
_SPARE = 300
_LICENCES = (
    ("PyTorch", "BSD-3-Clause"),
    ("SAM 2", "Apache-2.0"),
    ("NumPy, SciPy", "BSD-3-Clause"),
    ("nibabel, pynrrd, pydicom, rich, typer", "MIT"),
    ("huggingface_hub, safetensors", "Apache-2.0"),
    ("Hydra, iopath", "MIT"),
    ("Matplotlib", "PSF-style"),
    ("uv", "Apache-2.0 or MIT"),
    ("Python", "PSF-2.0"),
)
_CUDA_LICENCE = ("NVIDIA CUDA libraries", "NVIDIA's proprietary licence")


def makePlan(
    folder: RuntimeFolder,
    base: Mapping[str, str],
    machine: Machine,
    options: InstallOptions,
    helper: str,
    files: Path = FILES,
) -> InstallPlan:
    """Put the plan together; runs nothing."""
    source = torchSources(machine, base, options, files)[0]
    kind = _kind(machine, base, options)
    uv = UvTool(folder, base, machine, helper, options.offlineFolder, files).found()
    parts = [_PACKAGES, _TORCH[kind]]
    if not uv:
        parts.append(_UV)
    if not options.python:
        parts.append(_PYTHON)
    download = 0 if options.offlineFolder is not None else sum(part[0] for part in parts)
    disk = sum(part[1] for part in parts)
    free = freeMegabytes(folder.path)
    return InstallPlan(
        folder=folder.path,
        torch=f"{torchVersion(files)}, {source.title} ({machine.title})",
        python=options.python or "one of this computer (3.10 to 3.13), else 3.12, downloaded into the folder",
        uv=f"uv, {uv}" if uv else "uv, fetched into the folder",
        source=sourceTitle(base, options.offlineFolder),
        downloadMegabytes=download,
        diskMegabytes=disk,
        freeMegabytes=free,
        licences=(*_LICENCES, _CUDA_LICENCE) if kind == "cuda" else _LICENCES,
        problems=tuple(_problems(folder.path, machine, options, disk, free)),
    )


def torchMegabytes(machine: Machine, base: Mapping[str, str], options: InstallOptions) -> int:
    """About what PyTorch takes up."""
    return _TORCH[_kind(machine, base, options)][1]


def _kind(machine: Machine, base: Mapping[str, str], options: InstallOptions) -> str:
    asked = options.torchBackend or base.get("UV_TORCH_BACKEND", "")
    if asked.startswith(("cu", "rocm")) or (not asked and machine.hasCuda):
        return "cuda"
    return machine.system if machine.system in _TORCH else "cpu"


def freeMegabytes(path: Path) -> int:
    """What is free where a folder is, or would be made."""
    return shutil.disk_usage(_existing(path)).free // 1_000_000


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _problems(path: Path, machine: Machine, options: InstallOptions, disk: int, free: int):
    if free < disk + _SPARE:
        yield (
            f"Only {free} MB are free at {path}, about {disk + _SPARE} MB are needed: free some, or name "
            "another folder by MEDSAM2_RUNTIME_FOLDER"
        )
    if not os.access(_existing(path), os.W_OK):
        yield f"{_existing(path)} may not be written to: name another folder by MEDSAM2_RUNTIME_FOLDER"
    if machine.system == "macos" and machine.architecture != "arm64":
        yield (
            "PyTorch is no longer made for Macs with Intel processors: use a worker on another computer "
            "(remote command)"
        )
    elif machine.isTooOld:
        yield (
            f"PyTorch needs macOS 14 or newer, this is {machine.release}: update, or use a worker on another "
            "computer (remote command)"
        )
    elif machine.architecture not in ("x86_64", "arm64"):
        yield (
            f"PyTorch is not made for {machine.architecture}: use a worker on another computer (remote "
            "command)"
        )
    if options.offlineFolder is not None and not options.offlineFolder.is_dir():
        yield f"The offline folder {options.offlineFolder} does not exist: choose the folder of wheels"
    if options.python and not Path(options.python).is_file():
        yield f"{options.python} is not a file: name a Python interpreter, or none"
