"""Small trainable additions to a frozen SAM 2: low-rank updates of its decoder, bottlenecks in its encoder.

After the Sam2Rad paper: rank 8 on the query and value projections of all attentions of the mask decoder
(Hu et al., *LoRA*, ICLR 2022), with the decoder's tokens, upscaling and heads trained as they are; and an
adapter in every block of the image encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

RANK = 8
BOTTLENECK = 64
# Parts of the mask decoder that are trained themselves when its attentions are adapted.
_TRAINED = (
    *("mask_tokens", "obj_score_token", "output_upscaling", "output_hypernetworks_mlps"),
    "pred_obj_score_head",
)


class LowRank(nn.Module):
    """A frozen linear layer and a low-rank update: ``W x + B A x``."""

    def __init__(self, proj: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.proj = proj
        self.w_a = nn.Linear(proj.in_features, rank, bias=False)
        self.w_b = nn.Linear(rank, proj.out_features, bias=False)
        nn.init.kaiming_uniform_(self.w_a.weight, a=5**0.5)
        nn.init.zeros_(self.w_b.weight)  # the first step starts from the model as it was

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.proj(x) + self.w_b(self.w_a(x))


def adapted_decoder(module: SAM2Base, rank: int = RANK) -> nn.Module:
    """A copy of a model's mask decoder with low-rank updates; the model itself stays as it is.

    Trainable are the updates and the parts the paper lists (see :func:`trainable_parts`).
    """
    decoder = copy.deepcopy(module.sam_mask_decoder).requires_grad_(False)
    for attention in _attentions(decoder):
        for name in ("q_proj", "v_proj"):
            setattr(attention, name, LowRank(getattr(attention, name), rank))
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(_is_trained(name))
    return decoder


def trainable_parts(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """By name, the tensors of an adapted decoder that differ from the base model's."""
    return {name: value for name, value in decoder.named_parameters() if _is_trained(name)}


def load_parts(decoder: nn.Module, parts: dict[str, torch.Tensor]) -> list[str]:
    """Put tensors of :func:`trainable_parts` back; returns what does not fit, nothing when all does."""
    wanted = trainable_parts(decoder)
    problems = [f"{name} is missing" for name in wanted if name not in parts]
    problems += [f"{name} is not known" for name in parts if name not in wanted]
    with torch.no_grad():
        for name, parameter in wanted.items():
            if name in parts and parts[name].shape == parameter.shape:
                parameter.copy_(parts[name])
            elif name in parts:
                problems.append(f"{name} is {tuple(parts[name].shape)}, not {tuple(parameter.shape)}")
    return problems


class EncoderAdapter(nn.Module):
    """``x + GELU(W2 GELU(W1 x))`` over the channels of a map or of tokens."""

    def __init__(self, width: int, bottleneck: int = BOTTLENECK, *, channels_last: bool) -> None:
        super().__init__()
        self.adapters = nn.Sequential(
            nn.Linear(width, bottleneck), nn.GELU(), nn.Linear(bottleneck, width), nn.GELU()
        )
        # GELU(0) = 0: the first step starts from the encoder as it was.
        nn.init.zeros_(self.adapters[2].weight)
        nn.init.zeros_(self.adapters[2].bias)
        self._channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape: (..., C), or (N, C, h, w) for convolutional trunks."""
        if self._channels_last:
            return x + self.adapters(x)
        return x + self.adapters(x.movedim(1, -1)).movedim(-1, 1)


def encoder_adapters(module: SAM2Base) -> nn.ModuleList:
    """One adapter for every block of a model's trunk, of that block's width; not attached yet."""
    return nn.ModuleList(
        EncoderAdapter(width, channels_last=last) for _, width, last in _blocks(module.image_encoder.trunk)
    )


class Attached:
    """Context: a model's trunk with adapters behind its blocks. The model is shared, so only for so long."""

    def __init__(self, module: SAM2Base, adapters: nn.ModuleList) -> None:
        self._blocks = [block for block, _, _ in _blocks(module.image_encoder.trunk)]
        self._adapters = adapters
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for block, adapter in zip(self._blocks, self._adapters, strict=True):
            self._handles.append(block.register_forward_hook(lambda _b, _i, out, a=adapter: a(out)))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _is_trained(name: str) -> bool:
    return ".w_a." in name or ".w_b." in name or name.split(".", maxsplit=1)[0] in _TRAINED


def _attentions(decoder: nn.Module) -> Iterator[nn.Module]:
    for layer in decoder.transformer.layers:
        yield from (layer.self_attn, layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)
    yield decoder.transformer.final_attn_token_to_image


def _blocks(trunk: nn.Module) -> Iterator[tuple[nn.Module, int, bool]]:
    """Blocks of a trunk, the width of what they return, and whether its channels come last."""
    if hasattr(trunk, "blocks"):  # Hiera
        for block in trunk.blocks:
            yield block, block.dim_out, True
        return
    for stage in trunk.stages:
        for block in stage:
            if hasattr(block, "conv2"):
                yield block, block.conv2.out_channels, False


def parameter_count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
