"""Trainable additions to a frozen SAM 2, as in the Sam2Rad paper (arXiv:2409.06821), and a texture adapter.

Low-rank updates of the mask decoder, a bottleneck adapter in every block of the image encoder, and a small
convolutional network beside the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


RANK = 8
BOTTLENECK = 64
# Parts of the mask decoder that are trained themselves when its attentions are adapted.
_TRAINED = (
    "mask_tokens", "obj_score_token", "output_upscaling", "output_hypernetworks_mlps", "pred_obj_score_head",
)  # fmt: skip


class LowRank(nn.Module):
    """A frozen linear layer with a low-rank update: ``W x + B A x`` (Hu et al., *LoRA*, ICLR 2022)."""

    def __init__(self, proj: nn.Linear, rank: int = RANK) -> None:
        super().__init__()
        self.proj = proj
        self.w_a = nn.Linear(proj.in_features, rank, bias=False)
        self.w_b = nn.Linear(rank, proj.out_features, bias=False)
        nn.init.kaiming_uniform_(self.w_a.weight, a=5**0.5)
        nn.init.zeros_(self.w_b.weight)  # training starts from the unchanged model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        return self.proj(x) + self.w_b(self.w_a(x))


def adapted_decoder(module: SAM2Base) -> nn.Module:
    """Return a copy of a model's mask decoder with low-rank updates.

    As in Sam2Rad: rank 8 on the query and value projections of all attentions; tokens, upscaling and heads
    are trained in full (see :func:`trainable_parts`).
    """
    decoder = copy.deepcopy(module.sam_mask_decoder).requires_grad_(False)
    for attention in _attentions(decoder):
        for name in ("q_proj", "v_proj"):
            setattr(attention, name, LowRank(getattr(attention, name)))
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(_is_trained(name))
    return decoder


def trainable_parts(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trainable tensors of an adapted decoder by name: those that differ from the base model's."""
    return {name: value for name, value in decoder.named_parameters() if _is_trained(name)}


def load_parts(decoder: nn.Module, parts: dict[str, torch.Tensor]) -> list[str]:
    """Load tensors of :func:`trainable_parts`; return what does not fit, empty if everything does."""
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
    """Bottleneck ``x + GELU(W2 GELU(W1 x))`` over the channels of a map or of tokens."""

    def __init__(self, width: int, bottleneck: int = BOTTLENECK, *, channels_last: bool) -> None:
        super().__init__()
        down, up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.adapters = nn.Sequential(down, nn.GELU(), up, nn.GELU())
        # GELU(0) = 0: training starts from the unchanged encoder.
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self._channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adapt (..., C), or (N, C, h, w) for convolutional trunks; the shape is kept."""
        if self._channels_last:
            return x + self.adapters(x)
        return x + self.adapters(x.movedim(1, -1)).movedim(-1, 1)


def encoder_adapters(module: SAM2Base) -> nn.ModuleList:
    """Return an adapter for every block of a model's trunk, not attached yet."""
    return nn.ModuleList(
        EncoderAdapter(width, channels_last=last) for _, width, last in _blocks(module.image_encoder.trunk)
    )


class AttachedAdapters:
    """Context manager that attaches adapters to the blocks of a model's trunk; the model is shared."""

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


def _attentions(decoder: Any) -> Iterator[nn.Module]:
    for layer in decoder.transformer.layers:
        yield from (layer.self_attn, layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)
    yield decoder.transformer.final_attn_token_to_image


def _blocks(trunk: Any) -> Iterator[tuple[nn.Module, int, bool]]:
    """Yield the blocks of a trunk, the width of their output, and whether its channels come last."""
    if hasattr(trunk, "blocks"):  # Hiera
        for block in trunk.blocks:
            yield block, block.dim_out, True
        return
    for stage in trunk.stages:
        for block in stage:
            if hasattr(block, "conv2"):
                yield block, block.conv2.out_channels, False


#: Side of the texture adapter's input; larger images are reduced, so that its weights fit any SAM 2.
SIDE = 256
_LEAST_SIDE = 64  # below, its deepest map would be a single pixel, which instance norm cannot take
_STAGES = (16, 32, 64, 128, 192, 192)  # channels at S, S/2, S/4, S/8, S/16, S/32
_DEPTH = 64  # channels of the way up


@dataclass(frozen=True)
class TextureFeatures:
    """Output of the texture adapter for B images.

    Attributes
    ----------
    coarse, middle, fine
        Added to the encoder's maps at S/16, S/8 and S/4, of the same shapes.
    pixels
        (B, D, h, w) features that classes are predicted from; h and w are a quarter of the input's side.
    """

    coarse: torch.Tensor
    middle: torch.Tensor
    fine: torch.Tensor
    pixels: torch.Tensor


class TextureAdapter(nn.Module):
    """A small convolutional feature pyramid (Lin et al., CVPR 2017) beside the frozen encoder.

    SAM 2's encoder reduces the image fourfold in its first layer, and was trained to follow prompts: the
    texture that tells a nerve from a muscle is lost. These layers see every pixel and are cheap to train;
    their output is added to the encoder's. Instance normalisation removes each image's brightness and
    contrast, which ten images cannot teach.

    Parameters
    ----------
    width
        C, channels of the coarse map.
    fine_widths
        Channels of the maps at S/8 and S/4.

    Attributes
    ----------
    looks
        (K, D + 1) learned weights of a linear classifier of pixels, the last a bias; named as in files.
    """

    def __init__(self, width: int, fine_widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        strides = (1, *(2 for _ in _STAGES[1:]))
        steps = zip((3, *_STAGES), _STAGES, strides, strict=False)
        self.stages = nn.ModuleList(_stage(before, after, stride) for before, after, stride in steps)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, _DEPTH, 1) for channels in _STAGES[2:])
        self.upward = nn.ModuleList(_stage(_DEPTH, _DEPTH, 1) for _ in _STAGES[2:-1])
        out = [nn.Conv2d(_DEPTH, wanted, 1) for wanted in (*fine_widths[::-1], width)]
        self.out = nn.ModuleList(out)
        self.looks = nn.Parameter(torch.zeros(classes, _DEPTH + 1))
        for layer in out:  # training starts from the unchanged features
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> TextureFeatures:
        """Compute the features of (B, 3, S, S) normalised images."""
        return self.project(self.pyramid(images), images.shape[-1])

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute its own maps of (B, 3, S, S) normalised images, coarse to fine."""
        side = images.shape[-1]
        if side >= 2 * SIDE:
            images = functional.avg_pool2d(images, side // SIDE)
        images = resized(images, min(max(side, _LEAST_SIDE), SIDE))
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        seen, top = [], self.lateral[-1](maps[-1])
        for level in reversed(range(len(self.upward))):
            below = self.lateral[level](maps[level + 2])
            top = self.upward[level](resized(top, below.shape[-1]) + below)
            seen.append(top)
        return seen

    def project(self, pyramid: list[torch.Tensor], side: int) -> TextureFeatures:
        """Project the maps of :meth:`pyramid` to the shapes of the encoder's, for images of `side` pixels."""
        coarse, middle, fine = pyramid
        added = (
            resized(layer(x), side // step)
            for layer, x, step in zip(self.out, (fine, middle, coarse), (4, 8, 16), strict=True)
        )
        fine_added, middle_added, coarse_added = added
        return TextureFeatures(coarse_added, middle_added, fine_added, fine)


def class_logits(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Classify pixels: logits of each class against all other classes and the background.

    Returns
    -------
    torch.Tensor
        (B, K, h, w).
    """
    logits = torch.einsum("bdhw,kd->bkhw", pixels, weights[:, :-1]) + weights[:, -1][None, :, None, None]
    # log-sum-exp over all classes but one: over those before it, and over those behind it.
    before = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1).logcumsumexp(1)
    behind = logits[:, 1:].flip(1).logcumsumexp(1).flip(1)
    others = torch.cat([torch.logaddexp(before[:, :-1], behind), before[:, -1:]], dim=1)
    return logits - others


def resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Resize (B, C, h, h) maps to (B, C, side, side)."""
    if maps.shape[-1] == side:
        return maps
    return functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(after, affine=True), nn.LeakyReLU(0.1),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.InstanceNorm2d(after, affine=True), nn.LeakyReLU(0.1),
    )  # fmt: skip
