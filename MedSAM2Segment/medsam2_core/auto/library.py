"""The Auto models on this machine, and which of them suit an image. Needs no torch and no numpy.

They are in one folder: ``auto`` within the folder of models, or that named by ``MEDSAM2_AUTO_MODELS``. Files
put there by hand are listed, too; beside a trained model is the folder of its report.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medsam2_core.auto.model_file import SUFFIX, AutoCard, read_card
from medsam2_core.errors import CheckpointError, ExportError

_REPORT = "-report"
_LONGEST_NAME = 80
_UNFIT = re.compile(r"[^\w .+()-]+")  # for the name of a file, on any system


@dataclass(frozen=True)
class Listing:
    """The Auto models of a folder."""

    models: tuple[tuple[Path, AutoCard], ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()


class TrainedOn(Protocol):
    """What :func:`fits` needs to know of a model: an :class:`AutoCard`, or a worker's description of one."""

    @property
    def axis(self) -> str:
        """What slices were stacked along; ``"picture"`` for 2-D images."""

    @property
    def modality(self) -> str:
        """DICOM modality of the images; empty if unknown."""


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of Auto models; it is created with the first one."""
    named = environment.get("MEDSAM2_AUTO_MODELS")
    if named:
        return Path(named).expanduser()
    from medsam2_core.engine.store import Store

    return Store.default(environment=environment).models_folder / "auto"


def listing(place: Path | None = None) -> Listing:
    """List the Auto models in a folder, by default that of this machine."""
    place = folder() if place is None else place
    models: list[tuple[Path, AutoCard]] = []
    damaged: list[tuple[Path, str]] = []
    for path in sorted(place.glob(f"*{SUFFIX}")):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            models.append((path, read_card(path)))
        except CheckpointError as error:
            damaged.append((path, str(error)))
    return Listing(tuple(models), tuple(damaged))


def find(name: str | Path, place: Path | None = None) -> tuple[Path, AutoCard]:
    """Find a model by its path, by the name of its file (with or without suffix), or by the name on its card.

    Raises
    ------
    CheckpointError
        ``unknown-auto-model``, ``ambiguous-auto-model``, or those of :func:`read_card`.
    """
    text = str(name).strip()
    path = Path(text).expanduser()
    if path.is_file():
        return path, read_card(path)
    place = folder() if place is None else place
    for candidate in (text, text + SUFFIX):
        if candidate and candidate == Path(candidate).name and (place / candidate).is_file():
            return place / candidate, read_card(place / candidate)
    found = listing(place)
    called = [one for one in found.models if one[1].name == text]
    if len(called) == 1:
        return called[0]
    if called:
        files = ", ".join(one.name for one, _ in called)
        raise CheckpointError(
            f"several Auto models are called {text!r}: name the file, one of {files}",
            code="ambiguous-auto-model", name=text, files=[one.name for one, _ in called],
        )  # fmt: skip
    there = ", ".join(stem(one) for one, _ in found.models) or "none yet"
    raise CheckpointError(
        f"there is no Auto model {text!r}: in {place} are {there}; train one with `medsam2 train auto`",
        code="unknown-auto-model", name=text, folder=str(place), known=[stem(one) for one, _ in found.models],
    )  # fmt: skip


def stem(path: Path) -> str:
    """Return the name of a model's file without its suffix."""
    return path.name.removesuffix(SUFFIX)


def free_path(
    name: str, place: Path | None = None, suffix: str = SUFFIX, taken: Collection[str] = ()
) -> Path:
    """Return the path of a new model: ``NAME.medsam2auto``, or ``NAME 2.medsam2auto`` if that exists.

    The folder is created.

    Raises
    ------
    ExportError
        ``bad-model-name``, or ``output-not-writable`` for the folder.
    """
    fit = _UNFIT.sub("_", name).strip(" .")[:_LONGEST_NAME].strip(" .")
    if not fit.strip("_"):
        message = f"{name!r} cannot be the name of a model: use letters and digits"
        raise ExportError(message, code="bad-model-name", name=name)
    place = folder() if place is None else place
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"{place} cannot be made ({error.strerror or error}): name another folder in MEDSAM2_MODELS or "
            "MEDSAM2_AUTO_MODELS",
            code="output-not-writable", path=str(place),
        ) from error  # fmt: skip
    path, number = place / (fit + suffix), 1
    while os.path.lexists(path) or path.name.removesuffix(suffix) in taken:
        number += 1
        path = place / f"{fit} {number}{suffix}"
    return path


def run_folder(path: Path) -> Path:
    """Return the work folder of a training, which exists until its model is written to `path`."""
    return path.with_name(path.name + ".run")


def remove(name: str | Path, place: Path | None = None) -> int:
    """Delete a model of the folder, with its report; return the number of bytes freed.

    Raises
    ------
    CheckpointError
        ``unknown-auto-model``; ``auto-model-elsewhere`` for a file outside of the folder;
        ``auto-model-not-removed``.
    """
    place = folder() if place is None else place
    given = Path(str(name).strip()).expanduser()
    path = place / (given.name if given.name.endswith(SUFFIX) else given.name + SUFFIX)
    if not path.is_file():  # also what is damaged is removed; by the name on its card only what is not
        path = find(name, place)[0]
    is_path = given.is_absolute() or given.parent != Path()
    is_elsewhere = is_path and given.resolve() != path.resolve()
    if is_elsewhere or path.parent.resolve() != place.resolve():
        message = f"{given} is not in {place}: only Auto models of that folder are removed"
        raise CheckpointError(message, code="auto-model-elsewhere", path=str(given), folder=str(place))
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError as error:
        message = f"{path} could not be removed: {error.strerror or error}"
        raise CheckpointError(message, code="auto-model-not-removed", path=str(path)) from error
    run = run_folder(path)
    for beside in (path.with_name(stem(path) + _REPORT), run, run.with_name(run.name + ".old")):
        if beside.is_dir() and not beside.is_symlink():
            size += sum(one.stat().st_size for one in beside.rglob("*") if one.is_file())
            shutil.rmtree(beside, ignore_errors=True)
    return size


def fits(card: TrainedOn, *, is_picture: bool, modality: str = "") -> bool:
    """Whether a model was trained on images of this kind.

    Pictures (volumes of a single slice) need a model trained on pictures, volumes one trained on slices; the
    modalities must agree where both are known.
    """
    if (card.axis == "picture") is not is_picture:
        return False
    return not card.modality or not modality or card.modality.upper() == modality.upper()
