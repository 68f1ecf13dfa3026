"""A loaded SAM 2 model.

::

    model = load_model("embedded")             # or "sam2.1-tiny", or a path to a checkpoint
    with model.computing():
        features = model.module.forward_image(images)   # (N, 3, S, S) -> sam2's feature maps
"""

import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from medsam2_core.engine.architecture import build_from, build_module, guess_config, read_config
from medsam2_core.engine.catalogue import Catalogue, ModelEntry
from medsam2_core.engine.checkpoint import foreign_architecture, load_strict, read_state_dict
from medsam2_core.engine.devices import Precision, choose_device, choose_precision, out_of_memory
from medsam2_core.engine.recipe import STOCK, PromptRecipe
from medsam2_core.engine.store import Store
from medsam2_core.errors import CatalogueError, CheckpointError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

__all__ = ["SegmentationModel", "blocks", "build_module", "load_model"]

# Containers run their children one by one; the children count.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# In the convolutional trunk and necks these are what takes the time; other leaves are over at once.
_LEAVES = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, eq=False)
class SegmentationModel:
    """A SAM 2 network, ready for inference.

    Attributes
    ----------
    name
        The catalogue's name, or the file's.
    module
        In eval mode, without gradients, fp32 weights on `device`. Shared by everybody who loaded the same
        model: never change it.
    image_size
        Side S of the square image the model sees.
    recipe
        What the model receives besides stock prompts.
    weights_key
        SHA-256 over weights and configuration: equal keys give equal features for equal images.
    weights_sha256
        SHA-256 of the file they are from; empty for a module that was not loaded from one.
    device, precision
        Where and in which number format the model computes.
    succeeds
        Keys of earlier weights with the same image encoder.
    """

    name: str
    module: "SAM2Base"
    image_size: int
    recipe: PromptRecipe
    weights_key: str
    device: torch.device
    precision: Precision
    succeeds: tuple[str, ...] = ()
    weights_sha256: str = ""

    def has_encoder_of(self, weights_key: str) -> bool:
        """Whether the image encoder is that of the weights with this key."""
        return weights_key == self.weights_key or weights_key in self.succeeds

    @classmethod
    def of(
        cls,
        module: "SAM2Base",
        name: str,
        recipe: PromptRecipe = STOCK,
        device: str | torch.device = "cpu",
        precision: str | Precision = "fp32",
    ) -> "SegmentationModel":
        """Wrap a module that is already built: it is moved, frozen and set to eval mode."""
        where = choose_device(device)
        key = _module_key(module)
        module = module.to(where).eval().requires_grad_(False)
        return cls(name, module, module.image_size, recipe, key, where, choose_precision(where, precision))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Set up what a call of the module needs: no gradients, and autocast for bf16 and fp16.

        Raises
        ------
        DeviceError
            The graphics card's memory is full.
        """
        try:
            with torch.inference_mode(), self.precision.autocast(self.device):
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise out_of_memory(self.device) from error

    @contextmanager
    def interruptible_by(self, check: Callable[[], None]) -> Iterator[None]:
        """Call `check()` between the blocks of the network, many times a slice, in the thread that computes.

        It may raise: :class:`~medsam2_core.errors.Cancelled` ends what is being computed, and a propagation
        that meets :class:`~medsam2_core.errors.Interrupted` goes on when its next result is asked for. The
        module is shared, so every computation with it is checked.
        """
        handles = [
            part.register_forward_pre_hook(lambda _part, _inputs: check()) for part in blocks(self.module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def provenance(self) -> dict[str, str]:
        """Return what is stored with results of this model."""
        return {
            "model": self.name,
            **({"weights_sha256": self.weights_sha256} if self.weights_sha256 else {}),
            "weights_key": self.weights_key,
            "device": str(self.device),
            "precision": self.precision.value,
        }


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network between which a computation can be interrupted.

    All that have parts themselves, whatever their class, so that every trunk has some; and convolutions.
    """
    for part in module.modules():
        has_parts = next(part.children(), None) is not None and not isinstance(part, _CONTAINERS)
        if part is not module and (has_parts or isinstance(part, _LEAVES)):
            yield part


def _module_key(module: "SAM2Base") -> str:
    """Return the SHA-256 (hex) of a module's image size and tensors."""
    digest = hashlib.sha256(str(module.image_size).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # As bytes, because numpy knows no bf16; flat, because a scalar cannot change its item size.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    apply_postprocessing: bool | None = None,
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
    apply_postprocessing
        See :func:`read_config`; None takes the catalogue's choice, which is on for sam2's own configurations.
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
    if apply_postprocessing is not None:
        entry = replace(entry, postprocessing=apply_postprocessing)
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
