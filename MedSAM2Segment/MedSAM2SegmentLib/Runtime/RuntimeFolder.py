"""The folder of the worker's own Python environment, and the small files in it.

runtime/
  env/               the environment, complete because it is put there by a rename
    medsam2-runtime.json   its manifest, written last: without it, an environment is incomplete
  new-…/             an environment being made
  old-…/             an environment being deleted
  cache/             downloads, kept until an installation succeeds so that it can be continued
  python/, uv/       a Python and the tool uv, if this computer had no suitable ones
  interpreter.json   an interpreter chosen by the user instead
  lock               held during an installation
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from MedSAM2SegmentLib.Runtime.RuntimeTask import diskError

_MANIFEST = "medsam2-runtime.json"


def defaultFolder(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Return the runtime's folder: MEDSAM2_RUNTIME_FOLDER, else in the user's application data."""
    if named := environment.get("MEDSAM2_RUNTIME_FOLDER"):
        return Path(named).expanduser()
    return applicationData(environment, platform) / "runtime"


def applicationData(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Return this extension's folder in the user's application data."""
    home = Path.home()
    if platform == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        named = environment.get("XDG_DATA_HOME", "")
        base = Path(named) if os.path.isabs(named) else home / ".local" / "share"
    return base / "MedSAM2Segment"


def pythonOf(environmentFolder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return environmentFolder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class RuntimeFolder:
    """Paths and small files of the runtime's folder; see the module's docstring for the layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = path / "env"
        self.python = pythonOf(self.environment)  # it need not exist
        self.cache = path / "cache"
        self.pythons = path / "python"
        self.uv = path / "uv"
        self.lock = path / "lock"
        self._interpreter = path / "interpreter.json"

    def fresh(self, kind: str) -> Path:
        """Return an unused path for a "new" or "old" environment, short because of Windows' limit."""
        return self.path / f"{kind}-{secrets.token_hex(3)}"

    def leftovers(self) -> list[Path]:
        """Return what interrupted installations and removals have left."""
        if not self.path.is_dir():
            return []
        return sorted(one for one in self.path.iterdir() if one.name.startswith(("new-", "old-")))

    def manifest(self, environmentFolder: Path | None = None) -> dict | None:
        """Return the manifest of an environment; None when it is missing or damaged."""
        return _readJson((environmentFolder or self.environment) / _MANIFEST)

    def writeManifest(self, environmentFolder: Path, manifest: dict) -> None:
        """Write the manifest, which marks an environment as complete."""
        _writeJson(environmentFolder / _MANIFEST, manifest)

    def interpreter(self) -> str:
        """Return the interpreter chosen by the user; empty if none."""
        found = (_readJson(self._interpreter) or {}).get("interpreter", "")
        return found if isinstance(found, str) else ""

    def setInterpreter(self, interpreter: str) -> None:
        """Record an interpreter; an empty text removes the record."""
        if interpreter:
            self.path.mkdir(parents=True, exist_ok=True)
            _writeJson(self._interpreter, {"interpreter": interpreter})
        else:
            self._interpreter.unlink(missing_ok=True)

    def removeIfEmpty(self) -> None:
        """Remove the folder itself if nothing else is in it."""
        self.lock.unlink(missing_ok=True)
        for path in (self.path, self.path.parent):
            if path.name in ("runtime", "MedSAM2Segment") and path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _readJson(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _writeJson(path: Path, content: dict) -> None:
    """Write a small file atomically."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise diskError(error) from error
