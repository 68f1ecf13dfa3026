"""A small convolutional pyramid beside the frozen encoder: fine texture, and a first sketch of every class.

An encoder that was trained to follow prompts, and reduces the image fourfold in its first layers, has thrown
away what tells a nerve from a muscle. These layers look at every pixel, are cheap to train, and what they
see is added to what the predictor and the decoder see (a feature pyramid: Lin et al., CVPR 2017). Instance
norm takes out each image's own brightness and contrast, which ten images cannot teach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

#: Side of the images it looks at; larger ones are reduced to it, so what it knows fits any SAM 2.
SIDE = 256
_LEAST_SIDE = 64  # below, its deepest map would be a single pixel, which instance norm cannot take
_STAGES = (16, 32, 64, 128, 192, 192)  # channels at S, S/2, S/4, S/8, S/16, S/32
_DEPTH = 64  # channels of the way up


@dataclass(frozen=True)
class Seen:
    """What it sees in B images.

    Attributes
    ----------
    coarse, middle, fine
        What is added to the maps at S/16, S/8 and S/4, of their shapes.
    pixels
        (B, D, h, w) what classes are told by: a quarter of the side it looks at, at most 64.
    """

    coarse: torch.Tensor
    middle: torch.Tensor
    fine: torch.Tensor
    pixels: torch.Tensor


class TextureAdapter(nn.Module):
    """Looks at images for itself; only this and the predictor are trained.

    Parameters
    ----------
    width
        C, of the coarse map.
    fine_widths
        Channels of the maps at S/8 and S/4.
    classes
        K.

    Attributes
    ----------
    looks
        (K, D + 1), learned: how the pixels of each class look, the last a constant.
    """

    def __init__(self, width: int, fine_widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        strides = (1, *(2 for _ in _STAGES[1:]))
        steps = zip((3, *_STAGES), _STAGES, strides, strict=False)
        self.stages = nn.ModuleList(_stage(before, after, stride) for before, after, stride in steps)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, _DEPTH, 1) for channels in _STAGES[2:])
        self.upward = nn.ModuleList(_stage(_DEPTH, _DEPTH, 1) for _ in _STAGES[2:-1])
        self.out = nn.ModuleList(nn.Conv2d(_DEPTH, wanted, 1) for wanted in (*fine_widths[::-1], width))
        self.looks = nn.Parameter(torch.zeros(classes, _DEPTH + 1))
        for layer in self.out:  # the first step starts from the features as they were
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> Seen:
        """Look at (B, 3, S, S) normalised images."""
        return self.added(self.pyramid(images), images.shape[-1])

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Its own maps of (B, 3, S, S) normalised images, coarse to fine."""
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

    def added(self, pyramid: list[torch.Tensor], side: int) -> Seen:
        """What :meth:`pyramid` found, for the model's maps of images of `side` pixels."""
        coarse, middle, fine = pyramid
        added = (
            resized(layer(x), side // step)
            for layer, x, step in zip(self.out, (fine, middle, coarse), (4, 8, 16), strict=True)
        )
        fine_added, middle_added, coarse_added = added
        return Seen(coarse_added, middle_added, fine_added, fine)


def sketch(pixels: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """(B, K, h, w) logits of each class, against all others and the background together.

    Parameters
    ----------
    pixels
        (B, D, h, w), see :class:`Seen`.
    looks
        (K, D + 1).
    """
    logits = torch.einsum("bdhw,kd->bkhw", pixels, looks[:, :-1]) + looks[:, -1][None, :, None, None]
    # Of all but one of many: of those before it, and of those behind it.
    before = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1).logcumsumexp(1)
    behind = logits[:, 1:].flip(1).logcumsumexp(1).flip(1)
    others = torch.cat([torch.logaddexp(before[:, :-1], behind), before[:, -1:]], dim=1)
    return logits - others


def resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, h, h) maps brought to (B, C, side, side)."""
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
