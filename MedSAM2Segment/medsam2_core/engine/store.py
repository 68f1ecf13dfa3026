"""The model files of this machine, and whether they are unchanged.

Three places, searched in this order: inside the package (bundled), offline folders filled by hand, and our
own folder of downloads. Files lie flat under their published names, so that dropping one in is all it
takes. Beside every file we downloaded lies a receipt, ``<file>.json``, with its hash, size, source and
licence.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from medsam2_core.engine.catalogue import ModelEntry
from medsam2_core.engine.catalogue import models_folder as default_folder
from medsam2_core.errors import CatalogueError, CheckpointError

_BLOCK = 1 << 20


class ModelState(str, Enum):
    """Where a model's weights are."""

    BUNDLED = "bundled"
    OFFLINE = "offline folder"
    DOWNLOADED = "downloaded"
    LOCAL = "local file"
    MISSING = "not here"


@dataclass(frozen=True)
class Receipt:
    """What was known about a file when it arrived."""

    sha256: str
    bytes: int
    repo: str
    file: str
    revision: str | None
    licence: str | None
    attribution: str


@dataclass(frozen=True)
class Verdict:
    """What :meth:`Store.verify` found.

    Attributes
    ----------
    against
        What it was compared with: ``catalogue``, ``receipt``, or None when there was nothing to compare with.
    """

    path: Path
    sha256: str
    bytes: int
    against: str | None


class Store:
    """The model files of this machine.

    Parameters
    ----------
    models_folder
        Our own folder; made at the first download. Only files in it are ever written or removed.
    """

    def __init__(self, models_folder: str | Path, offline_folders: Sequence[str | Path] = ()) -> None:
        self.models_folder = Path(models_folder).expanduser()
        self.offline_folders = tuple(Path(folder).expanduser() for folder in offline_folders)

    @classmethod
    def default(cls, environment: Mapping[str, str] = os.environ) -> "Store":
        """Return the user's store.

        ``MEDSAM2_MODELS`` names our folder (default: ``models`` in the user's application data),
        ``MEDSAM2_OFFLINE_MODELS`` further folders, separated as in ``PATH``.
        """
        listed = environment.get("MEDSAM2_OFFLINE_MODELS", "").split(os.pathsep)
        return cls(default_folder(environment), list(filter(None, listed)))

    def download_path(self, entry: ModelEntry) -> Path:
        """Return the path a download of this model goes to."""
        return self.models_folder / entry.filename

    def find(self, entry: ModelEntry) -> tuple[ModelState, Path | None]:
        """Return the model's state and path; ``(ModelState.MISSING, None)`` when it is nowhere."""
        if entry.path is not None:
            return ModelState.LOCAL, entry.path
        bundled = entry.bundled_path()
        if bundled is not None:
            return (ModelState.BUNDLED, bundled) if bundled.is_file() else (ModelState.MISSING, None)
        for folder in self.offline_folders:
            # Both as dropped by hand and as a copied repository.
            for path in (folder / entry.filename, folder / (entry.repo or "") / (entry.file or "")):
                if path.is_file():
                    return ModelState.OFFLINE, path
        path = self.download_path(entry)
        return (ModelState.DOWNLOADED, path) if path.is_file() else (ModelState.MISSING, None)

    def locate(self, entry: ModelEntry) -> Path:
        """Return the path of the model's file.

        Its size is compared with what is known (the content only by :meth:`verify` and at download).

        Raises
        ------
        CatalogueError
            It is not on this machine; the message says how to get it.
        CheckpointError
            Its size is wrong.
        """
        _, path = self.find(entry)
        if path is None:
            raise CatalogueError(self._how_to_get(entry), code="model-not-here", model=entry.name)
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file", code="no-such-checkpoint", path=str(path))
        known = self._known(entry, path)
        if known is not None and known[1] not in (None, path.stat().st_size):
            message = (
                f"{path} has {path.stat().st_size} bytes instead of {known[1]}: it was cut off or changed; "
                "remove it and get it again"
            )
            raise CheckpointError(
                message, code="wrong-size", path=str(path), bytes=path.stat().st_size, expected=known[1]
            )
        return path

    def has_right_size(self, entry: ModelEntry, path: Path) -> bool:
        """Return whether a file is as long as the catalogue or its receipt says; True when that is
        unknown."""
        known = self._known(entry, path)
        return known is None or known[1] in (None, path.stat().st_size)

    def _how_to_get(self, entry: ModelEntry) -> str:
        if entry.bundled:
            missing = f"the bundled model {entry.name!r} ({entry.bundled_path()})"
            return f"{missing} is not part of this copy of the package: install the released package"
        return (
            f"the model {entry.name!r} is not on this machine: run `medsam2 models get {entry.name}`, "
            f"or put {entry.filename} from {entry.page} into {self.models_folder}"
        )

    def receipt(self, path: Path) -> Receipt | None:
        """Return the receipt of a downloaded file, or None."""
        try:
            facts = json.loads(receipt_path(path).read_text(encoding="utf-8"))
            return Receipt(**facts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            message = f"the receipt {receipt_path(path)} cannot be read: get the model again"
            raise CheckpointError(message, code="unreadable-receipt", path=str(path)) from error

    def write_receipt(self, path: Path, receipt: Receipt) -> None:
        """Put a receipt beside a file, at once or not at all."""
        target = receipt_path(path)
        partial = target.with_name(target.name + ".part")
        partial.write_text(json.dumps(asdict(receipt), indent=2) + "\n", encoding="utf-8")
        partial.replace(target)

    def _known(self, entry: ModelEntry, path: Path) -> tuple[str | None, int | None, str] | None:
        """Return (sha256, bytes, "catalogue" or "receipt"): what the file should be, or None."""
        if entry.sha256 is not None and entry.bytes is not None:
            return entry.sha256, entry.bytes, "catalogue"
        receipt = None if entry.is_local else self.receipt(path)
        if receipt is not None and entry.sha256 is None:
            return receipt.sha256, receipt.bytes, "receipt"
        if entry.sha256 is not None or entry.bytes is not None:
            return entry.sha256, entry.bytes or (receipt.bytes if receipt else None), "catalogue"
        return None

    def verify(self, entry: ModelEntry, progress: Callable[[int, int], None] | None = None) -> Verdict:
        """Hash a model's file and compare it with what is known.

        Parameters
        ----------
        progress
            Called with (bytes hashed, bytes in all).

        Raises
        ------
        CheckpointError
            The content is not what it should be.
        """
        path = self.locate(entry)
        known = self._known(entry, path)
        found, size = hash_file(path, progress)
        if known is not None and known[0] is not None and known[0] != found:
            message = (
                f"{path} is not what it should be: its SHA-256 is {found}, the {known[2]}'s is {known[0]}. "
                "Remove it and get it again"
            )
            raise CheckpointError(message, code="wrong-hash", path=str(path), sha256=found, expected=known[0])
        against = known[2] if known is not None and known[0] is not None else None
        return Verdict(path, found, size, against)

    def remove(self, entry: ModelEntry) -> Path:
        """Delete a downloaded model with its receipt, or a fine-tuned one with its report; other files stay.

        Raises
        ------
        CatalogueError
            The model is not in our folder, or in use.
        """
        if entry.path is not None and entry.is_own:
            _unlink(entry.path)
            for ending in ("-report", ".run", ".run.old"):
                shutil.rmtree(entry.path.with_name(entry.path.name + ending), ignore_errors=True)
            return entry.path
        state, path = self.find(entry)
        ours = self.download_path(entry)
        if entry.is_local or entry.bundled or not ours.is_file():
            where = {ModelState.BUNDLED: "it is part of the package", ModelState.MISSING: "it is not here"}
            place = where.get(state, f"its file is {path}, remove that yourself")
            message = f"the model {entry.name!r} was not downloaded into {self.models_folder}: {place}"
            raise CatalogueError(message, code="not-downloaded", model=entry.name)
        _unlink(ours)
        receipt_path(ours).unlink(missing_ok=True)
        self.remove_partial(entry)
        return ours

    def remove_partial(self, entry: ModelEntry) -> int:
        """Delete what unfinished downloads of a model left behind; returns how many files."""
        prefix = f".{entry.filename}."
        found = [path for path in self.models_folder.glob(".*") if path.name.startswith(prefix)]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:  # Windows keeps a file that a worker has loaded
        message = f"{path} could not be removed: {error.strerror or error}"
        raise CatalogueError(message, code="model-not-removed", path=str(path)) from error


def part_path(path: Path, etag: str) -> Path:
    """Return the temporary path of a download; it names the content, so that only the same is continued."""
    return path.with_name(f".{path.name}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part")


def receipt_path(path: Path) -> Path:
    """Return the path of a file's receipt."""
    return path.with_name(path.name + ".json")


def hash_file(path: Path, progress: Callable[[int, int], None] | None = None) -> tuple[str, int]:
    """Return the (SHA-256 in hex, number of bytes) of a file, read a megabyte at a time."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest(), done
