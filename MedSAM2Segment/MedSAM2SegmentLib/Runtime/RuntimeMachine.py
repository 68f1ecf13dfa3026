"""Properties of a computer that decide on the build of PyTorch: system, processor, NVIDIA driver."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Oldest drivers for PyTorch's present CUDA builds, and oldest macOS for its builds.
_OLDEST_DRIVER = {"linux": (525, 60, 13), "windows": (528, 33)}
_OLDEST_MACOS = (14,)
# Places of nvidia-smi that may not be on the PATH: on Windows, and in Linux on Windows (WSL).
_SMI_PATHS = (r"C:\Windows\System32\nvidia-smi.exe", "/usr/lib/wsl/lib/nvidia-smi")
_DRIVER_FILES = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")
_TIMEOUT_S = 3.0  # a hanging driver must not block Slicer's window for longer


@dataclass(frozen=True)
class Machine:
    """A computer."""

    system: str  # "linux", "windows", "macos" or another name
    architecture: str  # of the hardware: "x86_64", "arm64" or another name
    driver: str = ""  # version of NVIDIA's driver; empty when there is none
    isTranslated: bool = False  # the present process runs translated: an x86_64 Slicer on an arm64 Mac
    release: str = ""  # version of macOS; empty elsewhere or when unknown

    @property
    def hasCuda(self) -> bool:
        """Whether the driver runs PyTorch's CUDA builds."""
        oldest = _OLDEST_DRIVER.get(self.system)
        return bool(self.driver) and oldest is not None and _numbers(self.driver) >= oldest

    @property
    def isTooOld(self) -> bool:
        """Whether macOS is too old for PyTorch's present builds."""
        return bool(self.release) and _numbers(self.release) < _OLDEST_MACOS

    @property
    def native(self) -> tuple[str, ...]:
        """Prefix of commands that keeps universal programs from being translated."""
        return ("/usr/bin/arch", "-arm64") if self.isTranslated else ()

    @property
    def title(self) -> str:
        """The machine in a few words."""
        return f"{self.system} {self.architecture}" + (
            f", NVIDIA driver {self.driver}" if self.driver else ""
        )


def runBriefly(command: Sequence[str]) -> str:
    """Return the output of a short command; empty when it cannot be run or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", errors="replace").strip()


def detectMachine(
    environment: Mapping[str, str],
    *,
    platformName: str = sys.platform,
    architecture: str | None = None,
    run: Callable[[Sequence[str]], str] = runBriefly,
    driverFiles: Sequence[str] = _DRIVER_FILES,
) -> Machine:
    """Detect the present machine; runs at most two short commands."""
    system = {"win32": "windows", "darwin": "macos"}.get(platformName, platformName)
    name = (architecture or platform.machine()).lower()
    hardware = {"amd64": "x86_64", "aarch64": "arm64"}.get(name, name)
    if system != "macos":
        return Machine(system, hardware, _driver(environment, run, driverFiles))
    # To a translated process the machine appears as x86_64.
    isArm = hardware == "arm64" or run(["/usr/sbin/sysctl", "-n", "hw.optional.arm64"]) == "1"
    release = run(["/usr/sbin/sysctl", "-n", "kern.osproductversion"])
    return Machine(system, "arm64" if isArm else hardware, "", isArm and hardware != "arm64", release)


def _driver(environment: Mapping[str, str], run: Callable[[Sequence[str]], str], files: Sequence[str]) -> str:
    """Return the version of NVIDIA's driver; uv's variable for it has precedence."""
    if given := environment.get("UV_CUDA_DRIVER_VERSION"):
        return given
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if found := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text):
            return found.group(1)
    for tool in (shutil.which("nvidia-smi", path=environment.get("PATH", "")), *_SMI_PATHS):
        if tool and os.path.exists(tool):
            text = run([tool, "--query-gpu=driver_version", "--format=csv,noheader"])
            if version := re.match(r"\d+\.\d+(?:\.\d+)?", text):
                return version.group()
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
