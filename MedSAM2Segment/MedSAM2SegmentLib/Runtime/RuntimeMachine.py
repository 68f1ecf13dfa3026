"""What machine this is, as far as the choice of a PyTorch build goes."""

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

# The oldest drivers that run PyTorch's present CUDA builds.
_OLDEST_DRIVER = {"linux": (525, 60, 13), "windows": (528, 33)}
# What PyTorch's build for Macs asks for.
_OLDEST_MACOS = (14,)
# Where NVIDIA's own tool lies when it is not on the PATH: Windows, and Linux inside Windows.
_SMI_PLACES = (r"C:\Windows\System32\nvidia-smi.exe", "/usr/lib/wsl/lib/nvidia-smi")
_DRIVER_FILES = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")
# A driver that hangs must not hold up Slicer's window for longer.
_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Machine:
    """A computer.

    Attributes
    ----------
    system
        "linux", "windows", "macos" or another name.
    architecture
        "x86_64", "arm64" or another name: the hardware's, whatever the present process is.
    driver
        Version of NVIDIA's driver; empty when there is none.
    isTranslated
        The present process runs translated: an x86_64 Slicer on an arm64 Mac.
    release
        Version of macOS; empty elsewhere or when unknown.
    """

    system: str
    architecture: str
    driver: str = ""
    isTranslated: bool = False
    release: str = ""

    @property
    def hasCuda(self) -> bool:
        """Whether the driver runs PyTorch's CUDA builds."""
        oldest = _OLDEST_DRIVER.get(self.system)
        return bool(self.driver) and oldest is not None and _numbers(self.driver) >= oldest

    @property
    def isTooOld(self) -> bool:
        """Whether PyTorch's present builds need a newer macOS."""
        return bool(self.release) and _numbers(self.release) < _OLDEST_MACOS

    @property
    def native(self) -> tuple[str, ...]:
        """Words before a program made for several processors, so that it is not translated as Slicer is."""
        return ("/usr/bin/arch", "-arm64") if self.isTranslated else ()

    @property
    def title(self) -> str:
        """The machine in a few words."""
        card = f", NVIDIA driver {self.driver}" if self.driver else ""
        return f"{self.system} {self.architecture}{card}"


def ask(command: Sequence[str]) -> str:
    """What a command that answers at once prints; empty when it cannot be run or fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
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
    asking: Callable[[Sequence[str]], str] = ask,
    driverFiles: Sequence[str] = _DRIVER_FILES,
) -> Machine:
    """Look at this machine. Quick: at most two commands that answer at once."""
    system = {"win32": "windows", "darwin": "macos"}.get(platformName, platformName)
    spoken = (architecture or platform.machine()).lower()
    hardware = {"amd64": "x86_64", "aarch64": "arm64"}.get(spoken, spoken)
    if system == "macos":
        # A translated process is told that the machine is x86_64.
        isArm = hardware == "arm64" or asking(["/usr/sbin/sysctl", "-n", "hw.optional.arm64"]) == "1"
        isTranslated = isArm and hardware != "arm64"
        release = asking(["/usr/sbin/sysctl", "-n", "kern.osproductversion"])
        return Machine(system, "arm64" if isArm else hardware, "", isTranslated, release)
    return Machine(system, hardware, _driver(environment, asking, driverFiles))


def _driver(
    environment: Mapping[str, str], asking: Callable[[Sequence[str]], str], files: Sequence[str]
) -> str:
    """Version of NVIDIA's driver; the variable is uv's own way to say it."""
    if told := environment.get("UV_CUDA_DRIVER_VERSION"):
        return told
    for name in files:
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if found := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text):
            return found.group(1)
    found = shutil.which("nvidia-smi", path=environment.get("PATH", ""))
    for tool in (found, *_SMI_PLACES):
        if tool and os.path.exists(tool):
            text = asking([tool, "--query-gpu=driver_version", "--format=csv,noheader"])
            if version := re.match(r"\d+\.\d+(?:\.\d+)?", text):
                return version.group()
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
