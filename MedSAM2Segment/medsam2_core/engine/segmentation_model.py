"""A SAM 2 network with what is needed to use it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from medsam2_core.engine.devices import Precision, choose_device, choose_precision, out_of_memory
from medsam2_core.engine.recipe import STOCK, PromptRecipe

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# Containers run their children one by one; the children count.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# In the convolutional trunk and necks these are what takes the time; other leaves are over at once.
_LEAVES = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, eq=False)
class SegmentationModel:
    """A SAM 2 network, ready for inference.

    Attributes
    ----------
    module
        In eval mode, without gradients, fp32 weights on `device`. Shared by everybody who loaded the same
        model: never change it.
    weights_key
        SHA-256 over weights and configuration: equal keys give equal features for equal images.
    weights_sha256
        SHA-256 of the file they are from; empty for a module that was not loaded from one.
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
