"""The files of a case: where they are, whether they have changed, and copies of those that are far away."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from medsam2_core.batch.cases import JOURNAL, Case
from medsam2_core.errors import BatchError, MedSAM2Error, MissingPackageError
from medsam2_core.prompts.text import mask_file

_BLOCK = 1 << 20
_MOST_FILES = 20_000  # of one case


def is_url(text: str) -> bool:
    """Return whether it names a place that fsspec opens; a drive's letter on Windows is none."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and len(scheme) > 1


def without_query(text: str) -> str:
    """Return a URL without its query, which may hold a token; other text as it is."""
    is_web = is_url(text) and text.partition("://")[0].endswith(("http", "https"))
    return text.partition("?")[0] if is_web else text


def name_in_url(url: str) -> str:
    """Return the name of the file or folder that a URL is about."""
    place = without_query(url).rstrip("/")
    name = place.rpartition("/")[2]
    return unquote(name) if place != url else name


def mask_place(text: str) -> tuple[str, str]:
    """Return path or URL, and label, of a mask; the label is empty when none is given."""
    if not is_url(text):
        path, label = mask_file(text)
        return str(path), label
    url, _, label = text.rpartition(":")
    return (url, label) if label and "/" not in label and "=" not in label else (text, "")


def inputs_of(case: Case) -> list[str]:
    """Return paths and URLs of all that a case is read from, without models."""
    masks = [mask_place(text)[0] for text in case.masks]
    examples = [path for pair in case.like for path in pair]
    return [path for path in (case.image, case.prompts, *masks, *examples) if path]


def states(paths: Iterable[str]) -> dict[str, Any]:
    """Return what tells without reading whether files have changed: size and time, or what a store says.

    Of a folder, those of all files in it. None for what is not there. JSON keeps these values as they are.
    """
    return {path: _state_of_url(path) if is_url(path) else _state(Path(path)) for path in paths}


def fingerprint(case: Case) -> dict[str, Any]:
    """Return state and content of a case's files: by path, ``state`` and ``sha256`` (of URLs no hash)."""
    return {
        path: {"state": state, "sha256": None if is_url(path) else _content(case, path, state)}
        for path, state in states(inputs_of(case)).items()
    }


def changed(known: Mapping[str, Any], case: Case) -> bool:
    """Return whether files differ from a fingerprint; they are read only where their state differs."""
    now = states(inputs_of(case))
    return set(now) != set(known) or any(
        state != known[path]["state"]
        and (None in (state, known[path]["sha256"]) or _content(case, path, state) != known[path]["sha256"])
        for path, state in now.items()
    )


def image_changed(known: Mapping[str, Any], image: str, slice_files: Iterable[str]) -> bool:
    """Return whether an image of this machine differs from what a fingerprint has of it.

    Of a DICOM folder the files of its slices count. Needs no DICOM library.
    """
    folder = Path(image)
    if not folder.is_dir():
        return image not in known or changed({image: known[image]}, Case("", image))
    try:
        state = {folder / name: facts for name, *facts in known[image]["state"]}
        files = sorted(set(map(Path, slice_files)))
        is_same = all(_stat(file) == state.get(file) for file in files)
        return not is_same and _hash_of_files(folder, files) != known[image]["sha256"]
    except (OSError, KeyError, TypeError, ValueError):  # slices that are gone, or of another folder
        return True


def _content(case: Case, path: str, state: Any) -> str | None:
    return _hash_of(path, repr(state), case.series if path == case.image else "")


@functools.lru_cache(maxsize=256)  # examples and prompts may be those of every case
def _hash_of(path: str, _state: str, series: str) -> str | None:
    """Return the SHA-256 of a file, or of the files of a folder with their names; None if it is not there.

    Of a folder, the files of the series count: its only one, if none is named. Where it cannot be told which
    these are, all files count.
    """
    try:
        if not Path(path).is_dir():
            return _hash(Path(path))
        from medsam2_core.imaging import dicom

        try:
            files = dicom.series_files(Path(path), series or None)
        except MedSAM2Error:
            files = _files(Path(path))
        return _hash_of_files(Path(path), files)
    except OSError:
        return None


def _hash_of_files(folder: Path, files: Iterable[Path]) -> str:
    lines = (f"{file.relative_to(folder).as_posix()}\0{_hash(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode(errors="replace")).hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _state(path: Path) -> Any:
    try:
        if path.is_dir():
            return [[file.relative_to(path).as_posix(), *_stat(file)] for file in _files(path)]
        return _stat(path)
    except OSError:
        return None


def _stat(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def is_results(folder: Path) -> bool:
    """Return whether a folder holds results of `medsam2 batch`."""
    return (folder / JOURNAL).is_file()


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder and those below; none that are hidden, and no results."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and not is_results(Path(place) / one)]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    found.sort()
    if len(found) > _MOST_FILES:
        message = f"{folder} holds {len(found)} files: name the folder of one series"
        raise BatchError(message, code="too-many-files", path=str(folder), files=len(found))
    return found


def _state_of_url(url: str) -> str | None:
    with _opened(url) as (filesystem, path):
        try:
            is_folder = filesystem.isdir(path)
            found = filesystem.find(path, detail=True) if is_folder else {path: filesystem.info(path)}
        except FileNotFoundError:
            return None
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def local_copies(case: Case) -> Iterator[Case]:
    """Give a case whose files are all on this machine: what has a URL is copied to a temporary folder.

    The folder is removed at the end of the block.

    Raises
    ------
    BatchError
        ``url-unreachable``.
    MissingPackageError
        For a kind of URL whose package is not installed.
    """
    if not any(map(is_url, inputs_of(case))):
        yield case
        return
    with tempfile.TemporaryDirectory(prefix="medsam2-batch-") as folder:
        copies: dict[str, str] = {}

        def local_mask(text: str) -> str:
            url, label = mask_place(text)
            return f"{local(url)}:{label}" if is_url(url) and label else local(text)

        def local(text: str) -> str:
            if not is_url(text):
                return text
            if text not in copies:
                place = Path(folder) / str(len(copies))
                place.mkdir()
                copies[text] = str(_copied(text, place))
            return copies[text]

        yield replace(
            case,
            image=local(case.image),
            prompts=local(case.prompts),
            given=tuple(
                (option, local_mask(text) if option == "mask" else text) for option, text in case.given
            ),
            like=tuple((local(scan), local(labels)) for scan, labels in case.like),
        )


def _copied(url: str, folder: Path) -> Path:
    """Copy a file, or a folder, into a folder; return where it is."""
    target = folder / (name_in_url(url) or "image")
    with _opened(url) as (filesystem, path):
        if filesystem.isdir(path):
            filesystem.get(path.rstrip("/") + "/", str(target) + "/", recursive=True)
        else:
            filesystem.get_file(path, str(target))
    return target


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Give the file system of a URL, and the path in it; errors of the block are those of the store."""
    import fsspec

    shown = without_query(url)
    try:
        yield fsspec.core.url_to_fs(url)
    except ImportError as error:
        message = f"{shown}: {error}"
        raise MissingPackageError(message, code="missing-package", url=shown) from error
    except Exception as error:  # stores raise errors of their own, which are no OSError
        text = f"{type(error).__name__}: {error}".replace(url, shown).strip().splitlines()[0][:200]
        message = f"{shown} cannot be read: {text}"
        raise BatchError(message, code="url-unreachable", url=shown, reason=text) from error
