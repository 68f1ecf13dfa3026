"""The folder the worker's own Python environment lives in, and what its files say about it.

runtime/
  env/               the environment, only ever put there whole, by a rename
    medsam2-runtime.json   its manifest, written last: an environment without one is not finished
    medsam2-problem.json   what a check found wrong with it
  new-…/             an environment that is being made
  old-…/             one that is being thrown away
  cache/             what was downloaded; kept until an installation succeeds, so that it can be resumed
  python/, uv/       a Python and the tool uv, when this machine had none that fits
  interpreter.json   the interpreter the user named instead
  lock               held while somebody installs
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from medsam2_core.errors import RuntimeInstallError

from MedSAM2SegmentLib.Runtime.RuntimeTask import describeOSError

FOLDER_VARIABLE = "MEDSAM2_RUNTIME_FOLDER"
MANIFEST = "medsam2-runtime.json"
_PROBLEM = "medsam2-problem.json"


def defaultFolder(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Where the runtime goes when nobody says otherwise: the user's application-data folder.

    ``MEDSAM2_RUNTIME_FOLDER`` names another one.
    """
    variables = os.environ if environment is None else environment
    if named := variables.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    home = Path.home()
    if platform == "win32":
        base = Path(variables.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        named = variables.get("XDG_DATA_HOME", "")
        base = Path(named) if os.path.isabs(named) else home / ".local" / "share"
    return base / "MedSAM2Segment" / "runtime"


def pythonOf(environmentFolder: Path, platform: str = sys.platform) -> Path:
    """The interpreter of a virtual environment."""
    if platform == "win32":
        return environmentFolder / "Scripts" / "python.exe"
    return environmentFolder / "bin" / "python"


class RuntimeFolder:
    """Reads and writes the small files of the folder; see the module for what lies where."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = path / "env"
        self.cache = path / "cache"
        self.pythons = path / "python"
        self.uv = path / "uv"
        self.lock = path / "lock"
        self._interpreter = path / "interpreter.json"

    @property
    def python(self) -> Path:
        """The environment's interpreter; it need not exist."""
        return pythonOf(self.environment)

    def newEnvironment(self) -> Path:
        """A fresh name for an environment to be made, short because Windows' paths are."""
        return self.path / f"new-{secrets.token_hex(3)}"

    def oldEnvironment(self) -> Path:
        """A fresh name to move an environment to that is thrown away."""
        return self.path / f"old-{secrets.token_hex(3)}"

    def leftovers(self) -> list[Path]:
        """What interrupted installations and removals left."""
        if not self.path.is_dir():
            return []
        return sorted(one for one in self.path.iterdir() if one.name.startswith(("new-", "old-")))

    def manifest(self, environmentFolder: Path | None = None) -> dict | None:
        """What the finished environment says about itself; None when there is none that can be read."""
        return _readJson((environmentFolder or self.environment) / MANIFEST)

    def interpreter(self) -> str:
        """The interpreter the user named instead; empty when none."""
        found = (_readJson(self._interpreter) or {}).get("interpreter", "")
        return found if isinstance(found, str) else ""

    def setInterpreter(self, interpreter: str) -> None:
        """Remember an interpreter; an empty one forgets it."""
        if interpreter:
            self.path.mkdir(parents=True, exist_ok=True)
            writeJson(self._interpreter, {"interpreter": interpreter})
        else:
            self._interpreter.unlink(missing_ok=True)

    def problem(self) -> str:
        """What a check found wrong with the environment; empty when nothing."""
        found = (_readJson(self.environment / _PROBLEM) or {}).get("problem", "")
        return found if isinstance(found, str) else ""

    def setProblem(self, text: str) -> None:
        """Remember what a check found; an empty text forgets it."""
        if text:
            writeJson(self.environment / _PROBLEM, {"problem": text})
        else:
            (self.environment / _PROBLEM).unlink(missing_ok=True)

    def tidy(self) -> None:
        """After a removal: the folder itself goes, unless the user has something else in it."""
        self.lock.unlink(missing_ok=True)
        for path in (self.path, self.path.parent):
            if path.name in ("runtime", "MedSAM2Segment") and path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def writeJson(path: Path, content: dict) -> None:
    """Write a small file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RuntimeInstallError(describeOSError(error)) from error


def _readJson(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
