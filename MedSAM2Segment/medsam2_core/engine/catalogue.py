"""The catalogue of models: what they are, where they come from and what their licences require.

The list itself is ``catalogue.json`` beside this file, meant to be read by people. Models that the user has
fine-tuned into the folder ``own`` are known by their names, too. Nothing here touches the network or needs
torch.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medsam2_core.engine.card import read_card
from medsam2_core.errors import CatalogueError

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
OWN_SUFFIX = ".safetensors"
_PROGRAM_BYTES = 350_000_000  # Python and PyTorch
# Of PromptRecipe, which is not imported here: the catalogue is read without torch.
_RECIPE_FIELDS = (
    "draws_prompts", "disc_radius", "negative_radius", "cone_radius", "carries_mask", "least_iou",
    "least_score", "presence", "box_prior", "zoom",
)  # fmt: skip


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    Attributes
    ----------
    name
        What the user types, e.g. ``sam2.1-tiny``.
    config
        Configuration of the architecture, see :func:`medsam2_core.engine.architecture.config_path`; None only
        for a local file, whose configuration is then guessed from its tensors.
    image_size
        Side S of the image the model sees, in pixels; None (local files) takes the configuration's.
    repo, file
        Repository on the Hugging Face Hub and the file's path in it; None when the model is bundled or local.
    revision
        Commit of the repository (40 hex digits), or None: not pinned. Then the newest commit is taken, and
        recorded with the file.
    sha256, bytes
        Of the file's content, or None: not pinned. Then what first arrived is recorded and checked from then
        on.
    memory
        Bytes that segmenting needs without the volume: measured in fp32 on a CPU. None: not known.
    licence, attribution, notice
        SPDX name of the weights' licence (None: none was stated), who made them, and what the user should
        know before downloading.
    bundled
        File inside this package, relative to ``engine/``, or None.
    recipe
        Keyword arguments of :class:`medsam2_core.engine.recipe.PromptRecipe`; empty for stock prompts.
    postprocessing
        Whether the configuration is used with stock's ``apply_postprocessing``.
    succeeds
        Keys (see ``SegmentationModel.weights_key``) of earlier weights of this name with the same image
        encoder: what was trained on its features can be used with these.
    path
        Only for a local file: where it is.
    """

    name: str
    title: str
    config: str | None
    image_size: int | None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    memory: int | None = None
    licence: str | None = None
    attribution: str = ""
    notice: str = ""
    bundled: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    postprocessing: bool = True
    succeeds: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a user's own file, not one of the catalogue."""
        return self.path is not None

    @property
    def is_own(self) -> bool:
        """Whether it is a fine-tuned model in the folder of those, see :func:`own_folder`."""
        return self.path is not None and self.path.parent == own_folder()

    def needed_bytes(self, volume_bytes: int, image_size: int | None = None) -> int | None:
        """Return about how much memory segmenting a volume of this size needs; None when not known.

        With another image size than the entry's own, what does not belong to the program and the weights
        changes with its square.
        """
        if self.memory is None:
            return None
        if image_size is None or self.bytes is None or self.image_size is None:
            return self.memory + volume_bytes
        fixed = min(_PROGRAM_BYTES + self.bytes, self.memory)
        return round(fixed + (self.memory - fixed) * (image_size / self.image_size) ** 2) + volume_bytes

    @property
    def filename(self) -> str:
        """The name under which the weights lie in a folder of models."""
        return Path(self.file or self.bundled or str(self.path)).name

    @property
    def page(self) -> str | None:
        """Where people can read about it."""
        return f"https://huggingface.co/{self.repo}" if self.repo else None

    def bundled_path(self) -> Path | None:
        """Return the absolute path of the bundled weights (which may be missing from a source tree), or
        None."""
        return Path(str(files("medsam2_core.engine"))) / self.bundled if self.bundled else None

    @classmethod
    def of_file(cls, path: str | Path) -> "ModelEntry":
        """Return the entry of a checkpoint the user has; a fine-tuned one says itself how it is used."""
        path = Path(path)
        title = f"local checkpoint {path.name}"
        card = read_card(path)
        if card is None or not set(card.recipe) <= set(_RECIPE_FIELDS):
            return cls(name=path.stem, title=title, config=None, image_size=None, path=path)
        # A configuration is named, never a file: only those of the catalogue.
        config = card.config if card.config in {entry.config for entry in _packaged()} else None
        return cls(
            path.stem, f"{title}, fine-tuned from {card.base}", config, card.image_size, licence=card.licence,
            attribution=card.attribution, notice=card.notice, recipe=card.recipe,
            postprocessing=card.postprocessing, path=path,
        )  # fmt: skip

    def at(self, path: Path) -> "ModelEntry":
        """Return this model as a file the user has, whose content is not known."""
        title = f"local checkpoint {path.name}, taken for {self.name}"
        return replace(self, title=title, path=path, revision=None, sha256=None, bytes=None, succeeds=())


class Catalogue:
    """All known models, in the order of the file."""

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._entries = MappingProxyType(dict(entries))

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Catalogue":
        """Read the package's catalogue with the user's own models, or another file of the same form.

        Raises
        ------
        CatalogueError
            The file cannot be read, or an entry is wrong: which, and what.
        """
        if path is not None:
            return _read(Path(path))
        packaged, own = _packaged(), {entry.name: entry for entry in _own_models()}
        return cls({**packaged._entries, **{name: own[name] for name in own if name not in packaged.names}})

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        """The names, in the order of the file."""
        return list(self._entries)

    def recipe_of(self, config: str | Path) -> Mapping[str, Any]:
        """Return the recipe of a configuration's models, which a local checkpoint gets, too."""
        return next((entry.recipe for entry in self if entry.config == str(config)), {})

    def find(self, name_or_path: str | Path) -> ModelEntry:
        """Return the entry of a name, or of a checkpoint file of the user's own.

        A name of the catalogue wins over a file of the same name in the current folder. A file that is called
        as one of the catalogue (``MedSAM2_latest.pt``) takes over that one's configuration and image size,
        which the tensors do not determine.

        Raises
        ------
        CatalogueError
            Neither: the message names the closest known names.
        """
        wanted = str(name_or_path)
        if wanted in self._entries:
            return self._entries[wanted]
        path = Path(name_or_path)
        if _is_file(path):
            path = path.expanduser()
            published = (entry for entry in self if not entry.is_local)
            namesake = next((entry for entry in published if entry.filename == path.name), None)
            return namesake.at(path) if namesake else ModelEntry.of_file(path)
        if path.suffix in CHECKPOINT_SUFFIXES or path.parent != Path("."):
            message = f"there is no checkpoint file {wanted!r}, and no model of that name"
            raise CatalogueError(message, code="no-such-checkpoint", path=wanted)
        close = difflib.get_close_matches(wanted, self._entries, n=3, cutoff=0.5) or list(self._entries)
        listed = ", ".join([*close[:5], *(["…"] if len(close) > 5 else [])])
        message = f"no model {wanted!r} in the catalogue; choose one of {listed} (`medsam2 models list`)"
        raise CatalogueError(message, code="unknown-model", model=wanted, closest=close)


def models_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's folder of models: ``MEDSAM2_MODELS``, or ``models`` in the application data."""
    if named := environment.get("MEDSAM2_MODELS"):
        return Path(named).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("MedSAM2Segment", appauthor=False)) / "models"


def own_folder() -> Path:
    """Return the folder of the models that were fine-tuned in 3D Slicer; it is made with the first one."""
    return models_folder() / "own"


def _own_models() -> Iterator[ModelEntry]:
    for path in sorted(own_folder().glob(f"*{OWN_SUFFIX}")):
        card = read_card(path)
        if card is not None and not path.name.startswith("."):
            yield replace(ModelEntry.of_file(path), title=f"{path.stem}, fine-tuned from {card.base}")


def _is_file(path: Path) -> bool:
    """Return whether a path is a file; False also for what cannot be a path."""
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


@cache
def _packaged() -> Catalogue:
    return _read(Path(str(files("medsam2_core.engine"))) / "catalogue.json")


def _read(path: Path) -> Catalogue:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"the model catalogue {path} cannot be read: {error}"
        raise CatalogueError(message, code="unreadable-catalogue", path=str(path)) from error
    if not isinstance(content, dict) or not isinstance(content.get("models"), list):
        message = f"the model catalogue {path} has no list `models`"
        raise CatalogueError(message, code="bad-catalogue", path=str(path))
    entries: dict[str, ModelEntry] = {}
    for number, fact in enumerate(content["models"], start=1):
        entry = _entry(fact, f"{path}, model {number}")
        if entry.name in entries:
            message = f"{path} lists {entry.name!r} twice"
            raise CatalogueError(message, code="duplicate-model", path=str(path), model=entry.name)
        entries[entry.name] = entry
    return Catalogue(entries)


def _entry(facts: Any, where: str) -> ModelEntry:
    if not isinstance(facts, dict):
        message = f"{where} is not an object, but {facts!r}"
        raise CatalogueError(message, code="bad-catalogue-entry", where=where)
    if unknown := sorted(set(facts) - set(_TYPES)):
        message = f"{where} has unknown fields: {', '.join(unknown)}"
        raise CatalogueError(message, code="bad-catalogue-entry", where=where, unknown=unknown)
    for name, kind in _TYPES.items():
        value = facts.get(name)
        if value is None and name not in _REQUIRED:
            continue
        if type(value) is not kind or value == "":
            raise _bad_field(where, name, value, f"a {kind.__name__}")
    entry = ModelEntry(**{**facts, "succeeds": tuple(facts.get("succeeds") or ())})
    _check(entry, where)
    return entry


# By name: the JSON type of a field; those that every entry must have come first.
_REQUIRED = {"name": str, "title": str, "config": str, "image_size": int}
_TYPES = _REQUIRED | {
    "repo": str, "file": str, "revision": str, "sha256": str, "bytes": int, "memory": int, "licence": str,
    "attribution": str, "notice": str, "bundled": str, "recipe": dict,
    "postprocessing": bool, "succeeds": list,
}  # fmt: skip


def _check(entry: ModelEntry, where: str) -> None:
    size, keys = entry.image_size or 0, entry.succeeds
    checks = (
        (re.fullmatch("[a-z0-9][a-z0-9.+_-]*", entry.name), "name", "lower case letters, digits and . + _ -"),
        (size % 32 == 0 and size > 0, "image_size", "a positive multiple of 32"),
        (entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision), "revision", "40 hex digits"),
        (entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256), "sha256", "64 hex digits"),
        (entry.bytes is None or entry.bytes > 0, "bytes", "positive"),
        (entry.memory is None or entry.memory > 0, "memory", "positive"),
        (entry.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo), "repo", "owner/name"),
        (_stays_inside(entry.file) and _stays_inside(entry.bundled), "file", "a relative path without .."),
        ((entry.repo is None) == (entry.file is None), "repo", "given together with file"),
        ((entry.repo is None) != (entry.bundled is None), "bundled", "given exactly when repo is not"),
        (all(re.fullmatch("[0-9a-f]{64}", str(key)) for key in keys), "succeeds", "keys of 64 hex digits"),
        (set(entry.recipe) <= set(_RECIPE_FIELDS), "recipe", f"made of {', '.join(_RECIPE_FIELDS)}"),
    )
    for good, name, rule in checks:
        if not good:
            raise _bad_field(where, name, getattr(entry, name), rule)


def _stays_inside(path: str | None) -> bool:
    return path is None or re.fullmatch(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*", path) is not None


def _bad_field(where: str, name: str, value: Any, expected: str) -> CatalogueError:
    message = f"{where}: {name} {value!r} must be {expected}"
    return CatalogueError(message, code="bad-catalogue-entry", where=where, field=name, expected=expected)
