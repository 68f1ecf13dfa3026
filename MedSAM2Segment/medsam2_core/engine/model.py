"""Loading of SAM 2 models.

::

    model = load_model("embedded")             # or "sam2.1-tiny", or a path to a checkpoint
    with model.computing():
        features = model.module.forward_image(images)   # (N, 3, S, S) -> sam2's feature maps
"""

import hashlib
import json
import threading
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import torch

from medsam2_core.engine.architecture import build_from, build_module, guess_config, read_config
from medsam2_core.engine.catalogue import Catalogue, ModelEntry
from medsam2_core.engine.checkpoint import foreign_architecture, load_strict, read_state_dict
from medsam2_core.engine.devices import Precision, choose_device, choose_precision, out_of_memory
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel, blocks
from medsam2_core.engine.store import Store
from medsam2_core.errors import CatalogueError, CheckpointError

__all__ = ["SegmentationModel", "blocks", "build_module", "load_model"]

# Loaded models that are still in use. Building and reading one takes seconds, so a second session, or a
# second volume, shares it; once it is not referenced any more, its memory is freed.
_loaded: "weakref.WeakValueDictionary[str, SegmentationModel]" = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load_model(
    name_or_path: str | Path = "embedded",
    device: str | torch.device = "auto",
    precision: str | Precision = "auto",
    *,
    config: str | Path | None = None,
    image_size: int | None = None,
    catalogue: Catalogue | None = None,
    store: Store | None = None,
) -> SegmentationModel:
    """Load a model of the catalogue, or any checkpoint of a SAM 2 architecture. Never downloads.

    Parameters
    ----------
    name_or_path
        A name from the catalogue (``medsam2 models list``) or the path of a checkpoint.
    device, precision
        See :func:`choose_device` and :func:`choose_precision`.
    config
        For a path: the name of its configuration or a ``.yaml`` file; None guesses from the tensors.
    image_size
        Another side S than the catalogue's (a positive multiple of 32).
    catalogue, store
        Others than the default ones.

    Raises
    ------
    CatalogueError
        Unknown model, or a known one that is not on this machine: the message says how to get it.
    CheckpointError
        The file is damaged, unsafe, or of another architecture.
    DeviceError
        This machine does not have the device or precision.
    """
    where = choose_device(device)
    how = choose_precision(where, precision)
    catalogue, store = catalogue or Catalogue.load(), store or Store.default()
    entry = catalogue.find(name_or_path)
    if entry.is_local:
        entry = replace(entry, config=str(config) if config is not None else entry.config)
    elif config is not None:
        message = f"{entry.name} has its own configuration ({entry.config}): leave it out"
        raise CatalogueError(message, code="configuration-given", model=entry.name)
    if image_size is not None and image_size != entry.image_size:
        entry = replace(entry, image_size=image_size, succeeds=())  # those keys are of the model's own size
    path = store.locate(entry)
    file = [str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size]
    key = json.dumps([*file, str(where), how, asdict(entry)], default=str)
    with _loading:
        model = _loaded.get(key) or _load(entry, catalogue, store, where, how)
        _loaded[key] = model
        return model


def _load(
    entry: ModelEntry, catalogue: Catalogue, store: Store, device: torch.device, precision: Precision
) -> SegmentationModel:
    # One pass over the file both verifies it and gives the hash that identifies it.
    verdict = store.verify(entry)
    state = read_state_dict(verdict.path)
    config = entry.config or guess_config(state)
    if config is None:
        fields = {"path": str(verdict.path), "architecture": foreign_architecture(state)}
        what = fields["architecture"] or "of an architecture this package does not know"
        message = f"{verdict.path} is {what}: name its configuration if it is a SAM 2 variant"
        raise CheckpointError(message, code="unknown-architecture", **fields)
    settings = read_config(config, entry.image_size, entry.postprocessing)
    module = build_from(settings, str(config), blank=True)
    load_strict(module, state, str(config), str(verdict.path))
    try:
        module = module.to(device).requires_grad_(False)
    except torch.cuda.OutOfMemoryError as error:
        raise out_of_memory(device) from error
    recipe = PromptRecipe(**(entry.recipe or catalogue.recipe_of(config)))
    key = hashlib.sha256(json.dumps([verdict.sha256, settings], sort_keys=True).encode()).hexdigest()
    return SegmentationModel(
        entry.name, module, settings["image_size"], recipe, key, device, precision, entry.succeeds,
        verdict.sha256,
    )  # fmt: skip
