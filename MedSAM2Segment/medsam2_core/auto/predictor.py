"""The Prompt Predictor Network: from image features to prompts, so that nobody has to give any.

After Wahd et al., *Sam2Rad: A segmentation model for medical images with learnable prompts* (Computers in
Biology and Medicine 2025, arXiv:2409.06821). Learned queries of each class look at three levels of SAM 2's
image features and come out as a box, a mask and a few tokens of SAM 2's prompt space, which the frozen prompt
encoder and mask decoder then take as if a user had given them.

Shapes: B images, K classes, T tokens a class, C the model's width (256 in SAM 2), S the image's side. An
image is looked at once for every class, class after class: ``N = B * K`` as img0c0, img0c1, …, img1c0, ….
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from medsam2_core.auto.positions import grid_positions, token_positions
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

#: The heads, by the name they are switched off with.
HEADS = ("box", "mask", "embedding")
#: ``hierarchical`` looks at three levels, ``linear`` at the coarsest only.
KINDS = ("hierarchical", "linear")
_MOST_TOKENS = 256


@dataclass(frozen=True)
class PredictorSettings:
    """What a predictor is built like.

    Attributes
    ----------
    classes
        K.
    width
        C, of the model the prompts are for.
    fine_widths
        Channels of the decoder's features at S/8 and S/4.
    tokens
        T; the first two make the box, the others are prompts themselves.
    heads
        Those that are on; the others give no prompt (the paper's ablation).
    kind
        One of :data:`KINDS`.
    """

    classes: int
    width: int = 256
    fine_widths: tuple[int, int] = (64, 32)
    tokens: int = 10
    heads: tuple[str, ...] = HEADS
    kind: str = "hierarchical"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.heads if name not in HEADS]:
            raise TrainingError(f"unknown head {unknown[0]!r}: use {', '.join(HEADS)}")
        object.__setattr__(self, "heads", tuple(name for name in HEADS if name in self.heads))
        object.__setattr__(self, "fine_widths", tuple(self.fine_widths))
        if self.classes < 1:
            raise TrainingError(f"{self.classes} classes: a predictor needs one at least")
        if not 3 <= self.tokens <= _MOST_TOKENS:
            raise TrainingError(
                f"{self.tokens} tokens a class: two make the box, so give 3 to {_MOST_TOKENS}"
            )
        if not self.heads:
            raise TrainingError(f"no head is on: use one of {', '.join(HEADS)} at least")
        if self.kind not in KINDS:
            raise TrainingError(f"unknown predictor {self.kind!r}: use one of {', '.join(KINDS)}")
        if self.width % 16:
            raise TrainingError(f"width {self.width} of the model is not a multiple of 16")

    @classmethod
    def for_module(
        cls, module: SAM2Base, classes: int, heads: Sequence[str] = HEADS, kind: str = "hierarchical"
    ) -> PredictorSettings:
        """Settings whose widths are those of a model's own features."""
        decoder = module.sam_mask_decoder
        if not module.use_high_res_features_in_sam:
            raise TrainingError("a model without high-resolution features has no three levels to look at")
        fine = (decoder.conv_s1.out_channels, decoder.conv_s0.out_channels)
        return cls(classes, module.hidden_dim, fine, heads=tuple(heads), kind=kind)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and equal to what comes back from it."""
        return {**asdict(self), "fine_widths": list(self.fine_widths), "heads": list(self.heads)}


@dataclass(frozen=True)
class Levels:
    """Features of images, coarse to fine, as the mask decoder gets them.

    Attributes
    ----------
    coarse
        (B, C, S/16, S/16), with the embedding of "no memory" added.
    middle, fine
        (B, C/4, S/8, S/8) and (B, C/8, S/4, S/4).
    sketch
        (B, K, S/4, S/4) logits of every class that a texture adapter gives; None without one.
    """

    coarse: torch.Tensor
    middle: torch.Tensor
    fine: torch.Tensor
    sketch: torch.Tensor | None = None

    def repeated(self, count: int) -> Levels:
        """Every image `count` times in a row, for so many classes: the sketch falls apart into them."""
        maps = (x.repeat_interleave(count, 0) for x in (self.coarse, self.middle, self.fine))
        return Levels(*maps, None if self.sketch is None else self.sketch.flatten(0, 1)[:, None])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Levels:
        """The same on another device, in another number format."""
        maps = (self.coarse, self.middle, self.fine, self.sketch)
        return Levels(*(None if x is None else x.to(device, dtype) for x in maps))


@dataclass(frozen=True)
class PredictedPrompts:
    """What the heads say; None where a head is off.

    Attributes
    ----------
    boxes_xyxy
        (N, 4) corners in units of the image's side. Not clamped: an object may reach beyond the image.
    mask_logits
        (N, 1, S/4, S/4).
    tokens
        (N, T-2, C) prompts in SAM 2's own embedding space.
    """

    boxes_xyxy: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def without(self, *heads: str) -> PredictedPrompts:
        """The same prompts, but those of these heads."""
        names = {"box": "boxes_xyxy", "mask": "mask_logits", "embedding": "tokens"}
        return replace(self, **{names[head]: None for head in heads})


class BoxHead(nn.Module):
    """Two tokens to a box: x, y, width and height by a sigmoid each, then corners."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """(N, 2, C) tokens to (N, 4) corners in units of the image's side."""
        x, y, width, height = self.mlp(pair.flatten(1)).sigmoid().unbind(-1)
        return torch.stack([x, y, x + width, y + height], dim=-1)


class MaskHead(nn.Module):
    """A dense map to mask logits: two 3x3 convolutions, then a 1x1."""

    def __init__(self, width: int, inner: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.final_conv = nn.Conv2d(inner, 1, 1)

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        return self.final_conv(self.layers(dense))


class PromptPredictor(nn.Module):
    """Predicts the prompts of every class from an image's features.

    Parameters
    ----------
    settings
        See :class:`PredictorSettings`.

    Attributes
    ----------
    queries
        (K, T, C), learned: what each class looks for.
    """

    def __init__(self, settings: PredictorSettings) -> None:
        super().__init__()
        # sam2's own block: attention of the queries to themselves and to the keys, an MLP, and the keys'
        # attention to the queries; 8 heads, cross-attention at half the width.
        from sam2.modeling.sam.transformer import TwoWayAttentionBlock

        self.settings, width = settings, settings.width
        self.queries = nn.Parameter(torch.randn(settings.classes, settings.tokens, width) / 16)
        levels = 3 if settings.kind == "hierarchical" else 1
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(width, 8, 8 * width, skip_first_layer_pe=level == 0)
            for level in range(levels)
        )
        adapters = [nn.Identity(), *(nn.Conv2d(fine, width, 1) for fine in settings.fine_widths)]
        self.channel_adapters = nn.ModuleList(adapters[:levels])
        self.box_head = BoxHead(width)
        self.mask_head = MaskHead(width)

    def forward(
        self, levels: Levels, no_mask_embed: torch.Tensor, queries: torch.Tensor | None = None
    ) -> PredictedPrompts:
        """Prompts of every class of every image.

        Parameters
        ----------
        levels
            Of B images.
        no_mask_embed
            (1, C) the prompt encoder's embedding of "no mask": where the dense map starts.
        queries
            (B, K, T, C) instead of the predictor's own: other classes for every image.
        """
        batch = levels.coarse.shape[0]
        asked = self.queries.expand(batch, -1, -1, -1) if queries is None else queries
        looked_at = levels.repeated(asked.shape[1])
        queries = asked.flatten(0, 1)  # (N, T, C)
        query_positions = token_positions(self.settings.tokens, self.settings.width).to(queries)
        query_positions = query_positions.expand_as(queries)
        maps = (looked_at.coarse, looked_at.middle, looked_at.fine)
        dense = no_mask_embed.view(1, -1, 1, 1).expand_as(looked_at.coarse)
        for block, adapt, features in zip(self.layers, self.channel_adapters, maps, strict=False):
            keys = adapt(features)
            size = keys.shape[-2:]
            keys = keys + functional.interpolate(dense, size=size, mode="nearest")
            positions = grid_positions(self.settings.width, *size, keys.device).to(keys)
            queries, keys = block(
                queries=queries,
                keys=keys.flatten(2).transpose(1, 2),
                query_pe=query_positions,
                key_pe=positions.flatten(2).transpose(1, 2).expand(len(queries), -1, -1),
            )
            dense = keys.transpose(1, 2).unflatten(2, size)
        return self._prompts(queries, dense, looked_at.sketch)

    def _prompts(
        self, queries: torch.Tensor, dense: torch.Tensor, sketch: torch.Tensor | None
    ) -> PredictedPrompts:
        on = self.settings.heads
        mask = self.mask_head(dense) if "mask" in on else None
        if mask is not None and self.settings.kind == "linear":
            mask = functional.interpolate(mask, scale_factor=4, mode="bilinear", align_corners=False)
        if mask is not None and sketch is not None:
            mask = mask + sketch
        return PredictedPrompts(
            self.box_head(queries[:, :2]) if "box" in on else None,
            mask,
            queries[:, 2:] if "embedding" in on else None,
        )
