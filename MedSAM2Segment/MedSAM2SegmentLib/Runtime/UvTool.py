"""Where the program uv comes from, and how it is called."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import pipEnvironment, uvEnvironment
from MedSAM2SegmentLib.Runtime.RuntimeFolder import RuntimeFolder
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine
from MedSAM2SegmentLib.Runtime.RuntimeMessages import explained
from MedSAM2SegmentLib.Runtime.RuntimeTask import Command, Work

# From here on uv knows what is asked of it: builds of PyTorch by driver, environments that can be moved.
OLDEST = (0, 9, 0)
_FILES = Path(__file__).resolve().parent
# Tags of the wheel an arm64 Mac needs, for a pip that runs translated and would ask for the other one.
_ARM_MAC = ("--platform", "macosx_11_0_arm64", "--platform", "macosx_12_0_arm64")


class UvTool:
    """uv: one on the PATH, else our own, fetched as a wheel whose content is pinned and unpacked beside.

    Slicer's pip only downloads the wheel, in a process of its own; nothing is installed with it.
    """

    def __init__(
        self,
        folder: RuntimeFolder,
        base: Mapping[str, str],
        machine: Machine,
        helper: str,
        offlineFolder: Path | None,
        files: Path = _FILES,
    ) -> None:
        self._files = files
        self._folder = folder
        self._base = base
        self._machine = machine
        self._helper = helper
        self._offline = offlineFolder
        self.program = ""

    @property
    def own(self) -> Path:
        """Where our own uv lies; it need not be there."""
        return self._folder.uv / ("uv.exe" if os.name == "nt" else "uv")

    def found(self) -> str:
        """A uv that is there already, of whatever version; empty when none is."""
        on_path = shutil.which("uv", path=self._base.get("PATH", ""))
        return on_path or (str(self.own) if self.own.is_file() else "")

    def provide(self) -> Work:
        """Find a uv that will do, or fetch one."""
        for program in dict.fromkeys((shutil.which("uv", path=self._base.get("PATH", "")), str(self.own))):
            if program and os.path.isfile(program):
                output = yield Command((program, "--version"), self._variables())
                if output.ok and self._isGood(output.text):
                    self.program = program
                    return
        yield from self._fetch()
        self.program = str(self.own)

    def _isGood(self, text: str) -> bool:
        found = re.search(r"uv (\d+)\.(\d+)\.(\d+)", text)
        if not found or tuple(map(int, found.groups())) < OLDEST:
            return False
        # One for the other processor would look for Pythons of its own kind.
        return not (
            self._machine.system == "macos" and "x86_64" in text and self._machine.architecture == "arm64"
        )

    def _fetch(self) -> Work:
        target = self._folder.cache / "uv-wheel"
        words = [self._helper, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        words += ["--require-hashes", "--progress-bar", "off", "-r", str(self._files / "uv.txt")]
        words += ["--dest", str(target)]
        if self._machine.isTranslated:
            words += _ARM_MAC
        if self._offline is not None:
            words += ["--no-index", "--find-links", str(self._offline)]
        output = yield Command(tuple(words), pipEnvironment(self._base, offline=self._offline is not None))
        if not output.ok:
            raise explained("The tool uv could not be downloaded", output)
        words = [self._helper, str(_FILES / "helper.py"), "unpack-uv", str(target), str(self._folder.uv)]
        output = yield Command(tuple(words), dict(self._base))
        if not output.ok:
            raise explained("The tool uv could not be unpacked", output)

    def command(self, *words: str, more: Mapping[str, str] | None = None, onLine=None) -> Command:
        """A call of uv; ``more`` adds variables."""
        offline = ("--offline",) if self._offline is not None else ()
        always = ("--cache-dir", str(self._folder.cache), "--color", "never", *offline)
        return Command((self.program, *words, *always), {**self._variables(), **(more or {})}, onLine)

    def _variables(self) -> dict[str, str]:
        variables = uvEnvironment(self._base, offline=self._offline is not None)
        variables["UV_PYTHON_INSTALL_DIR"] = str(self._folder.pythons)
        # Behind a hospital's proxy the certificate is in the system's store.
        variables.setdefault("UV_SYSTEM_CERTS", "1")
        return variables


def isSlicers(python: str) -> bool:
    """Whether an interpreter belongs to Slicer, whose Python must not carry the runtime."""
    home = os.environ.get("SLICER_HOME")
    if not home and "slicer" not in Path(sys.executable).name.lower():
        return False
    inside = os.path.realpath(home or sys.base_prefix)
    return os.path.realpath(python).startswith(inside + os.sep)
