"""An installer over tiny packages, in a folder whose name is hard to write."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from MedSAM2SegmentLib.Runtime.RuntimeFolder import pythonOf
from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller
from MedSAM2SegmentLib.Runtime.RuntimeMachine import Machine
from MedSAM2SegmentLib.Runtime.RuntimePlan import InstallOptions

from support.process_runner import Outcome, SubprocessRunner, done
from support.wheel_folder import WheelFolder

LINUX = Machine("linux", "x86_64")


def uvProgram() -> Path:
    """The uv of the test environment; skips without one."""
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    found = beside if beside.exists() else shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed here: pip install uv")
    return Path(found)


def baseEnvironment(tmp: Path, **more: str) -> dict[str, str]:
    """What a child would get from the desktop: uv and a Python on the PATH, no index that can be reached."""
    tools = tmp / "tools"
    if not tools.exists():
        tools.mkdir(parents=True)
        (tools / uvProgram().name).symlink_to(uvProgram())
        (tools / "python3").symlink_to(Path(sys.executable).resolve())
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "SYSTEMROOT", "TEMP") if name in os.environ}
    blind = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"}
    return {**kept, "PATH": os.fspath(tools), **blind, **more}


class Runtime:
    """One runtime folder and what is needed to work on it."""

    def __init__(self, tmp: Path, wheels: WheelFolder, **more) -> None:
        self.tmp = tmp
        self.wheels = wheels
        self.folder = tmp / "Dáta and 数据" / "runtime"
        self.runner = SubprocessRunner()
        self.more = more
        self.installer = self.another()

    def another(self, runner: SubprocessRunner | None = None) -> RuntimeInstaller:
        """Another installer on the same folder, as after a restart of Slicer."""
        installer = RuntimeInstaller(
            self.folder,
            runner or self.runner,
            environment=self.more.get("environment") or baseEnvironment(self.tmp),
            machine=self.more.get("machine", LINUX),
            helper=sys.executable,
            files=self.wheels.files,
        )
        installer.options = self.more.get("options") or InstallOptions(offlineFolder=self.wheels.folder)
        return installer

    def install(self) -> Exception | None:
        return done(self.installer.install, self.runner)

    def installed(self) -> "Runtime":
        """It, after an installation that must go well."""
        error = self.install()
        assert error is None, f"{error}\n{self.runner.words()}"
        return self

    def works(self) -> bool:
        """Whether the environment can run the worker, with all its files as they were installed."""
        words = [pythonOf(self.folder / "env"), self.wheels.files / "probe.py", "--files"]
        environment = self.installer.environment()
        return subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0

    def outcome(self) -> Outcome:
        return Outcome(self.runner)

    @property
    def site(self) -> Path:
        """Where packages lie in the finished environment."""
        return next((self.folder / "env").rglob("site-packages"))

    @property
    def names(self) -> set[str]:
        """What lies in the runtime folder."""
        return {path.name for path in self.folder.iterdir()} if self.folder.exists() else set()
