"""Which weights are trained, and how fast: parts of a SAM 2, low-rank updates, layer-wise rates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from medsam2_core.errors import TrainingError
from medsam2_core.training.objective import Stage

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

_ENCODER = "image_encoder."
_DECODER = ("sam_mask_decoder.", "sam_prompt_encoder.")
_MEMORY = (
    "memory_attention.", "memory_encoder.", "mask_downsample.", "obj_ptr_proj.", "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial",
)  # fmt: skip
#: What can be trained, by the name of the choice: prefixes of the names of weights.
PARTS: dict[str, tuple[str, ...]] = {
    "decoder": _DECODER,
    "memory": _MEMORY,
    "decoder+memory": (*_DECODER, *_MEMORY),
    "lora": (),
    "all": ("",),
}
RANK = 8
# Of attention in Hiera and in the mask decoder; and, in the embedded model's trunk, of its residual blocks.
_UPDATED = re.compile(
    r"image_encoder\.trunk\..*(attn\.(qkv|proj)|\.conv[12])"
    r"|sam_mask_decoder\.transformer\..*attn\w*\.(q|k|v|out)_proj"
)
_ORIGINAL, _UPDATE = ".parametrizations.weight.original", ".parametrizations.weight.0."


class LowRankUpdate(nn.Module):
    """A low-rank update of a frozen weight: ``W + B A`` (Hu et al., *LoRA*, ICLR 2022).

    As a parametrisation of torch it fits linear and convolutional layers of any module alike, and can be
    merged. (The package peft does the same and brings transformers and accelerate.)

    Parameters
    ----------
    rank
        Of the update, which is zero at first.
    """

    def __init__(self, weight: torch.Tensor, rank: int = RANK) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the updated weight."""
        return weight + (self.up @ self.down).view_as(weight)


def check_parts(parts: str) -> None:
    """Raise TrainingError, code ``unknown-parts``."""
    if parts not in PARTS:
        message = f"{parts!r} cannot be trained: use {', '.join(PARTS)}"
        raise TrainingError(message, code="unknown-parts", parts=parts, known=list(PARTS))


def prepare(module: SAM2Base, parts: str, encoder: bool = True) -> list[str]:
    """Freeze what is not trained, add low-rank updates for ``lora``; return the names of what is trained.

    Without `encoder` the image encoder is frozen whatever `parts` says.
    """
    check_parts(parts)
    module.train().requires_grad_(False)
    if parts == "lora":
        for name, layer in list(module.named_modules()):
            updated = _UPDATED.fullmatch(name) and isinstance(layer, nn.Linear | nn.Conv2d)
            if updated and not parametrize.is_parametrized(layer):
                update = LowRankUpdate(layer.weight)
                parametrize.register_parametrization(layer, "weight", update, unsafe=True)
    trained = []
    for name, parameter in module.named_parameters():
        chosen = _UPDATE in name if parts == "lora" else name.startswith(PARTS[parts])
        if chosen and (encoder or not name.startswith(_ENCODER)):
            parameter.requires_grad_(True)
            trained.append(name)
    for name, child in module.named_children():
        # Dropout and the like only where something learns from it.
        child.train(any(one.startswith(f"{name}.") for one in trained))
    return trained


def plain_state(module: SAM2Base) -> dict[str, torch.Tensor]:
    """Return the tensors of a module under SAM 2's names, low-rank updates merged into the weights."""
    state: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            state[f"{layer}.weight"] = module.get_submodule(layer).weight.detach()
        elif _UPDATE not in name:
            state[name] = value
    return state


def parameter_groups(
    module: SAM2Base, heads: nn.Module | None, stage: Stage, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the groups of AdamW: by rate, and with weight decay for matrices only.

    Each has its ``peak`` rate: lower for the image encoder by the stage's factor, and for each block of it by
    the layer decay; of low-rank updates as for the rest.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if heads is not None and stage.affinity_weight:
        named += [(f"affinity.{name}", p) for name, p in heads.named_parameters()]
    last = max([block for block, _ in _blocks(name for name, _ in named)], default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        factor = 1.0
        if name.startswith(_ENCODER) and _UPDATE not in name:
            factor = stage.trunk_factor * stage.layer_decay ** (last - _block(name, last))
        if factor:
            groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "peak": stage.learning_rate * factor,
        }
        for (factor, decays), parameters in groups.items()
    ]


def _blocks(names: Iterator[str]) -> Iterator[tuple[int, str]]:
    for name in names:
        found = re.match(r"image_encoder\.trunk\.(?:blocks|stages)\.(\d+)\.", name)
        if found:
            yield int(found[1]), name


def _block(name: str, last: int) -> int:
    """Return the number of the block a weight belongs to: the first for the stem, the last for the neck."""
    for block, _ in _blocks(iter([name])):
        return block
    return 0 if name.startswith("image_encoder.trunk.") else last
