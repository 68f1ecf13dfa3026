"""The Prompt Predictor Network (PPN), which predicts prompts from image features.

After Wahd et al., *Sam2Rad: A segmentation model for medical images with learnable prompts* (Computers in
Biology and Medicine 2025, arXiv:2409.06821). Learned queries of each class attend to SAM 2's image features
at three scales and become a box, a mask and tokens in SAM 2's prompt space, which the frozen prompt encoder
and the mask decoder take like prompts of a user.

Shapes: B images, K classes, T tokens a class, C the model's width (256 in SAM 2), S the image's side. Every
class of every image is one binary problem: ``N = B * K``, ordered img0c0, img0c1, …, img1c0, ….
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


#: Names of the heads.
HEADS = ("box", "mask", "embedding")
#: ``hierarchical`` uses features at three scales; ``linear`` the coarsest only (the paper's figure).
KINDS = ("hierarchical", "linear")
_MOST_TOKENS = 256


@dataclass(frozen=True)
class PredictorSettings:
    """Architecture of a predictor.

    Attributes
    ----------
    fine_widths
        Channels of the decoder's features at S/8 and S/4.
    tokens
        T; the first two make the box, the others are prompts themselves.
    heads
        Heads that are used; the others give no prompt (the paper's ablation).
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
            message = f"unknown head {unknown[0]!r}: use {', '.join(HEADS)}"
            raise TrainingError(message, code="unknown-head", name=unknown[0])
        object.__setattr__(self, "heads", tuple(name for name in HEADS if name in self.heads))
        object.__setattr__(self, "fine_widths", tuple(self.fine_widths))
        if self.classes < 1:
            raise TrainingError("a predictor needs at least one class", code="no-class")
        if not 3 <= self.tokens <= _MOST_TOKENS:
            message = f"{self.tokens} tokens a class: two make the box, so give 3 to {_MOST_TOKENS}"
            raise TrainingError(message, code="bad-token-count", tokens=self.tokens)
        if not self.heads:
            raise TrainingError(f"no head: use at least one of {', '.join(HEADS)}", code="no-head")
        if self.kind not in KINDS:
            message = f"unknown predictor {self.kind!r}: use one of {', '.join(KINDS)}"
            raise TrainingError(message, code="unknown-predictor", kind=self.kind)
        if self.width % 16:
            message = f"width {self.width} of the model is not a multiple of 16"
            raise TrainingError(message, code="bad-width", width=self.width)

    @classmethod
    def for_module(
        cls, module: SAM2Base, classes: int, heads: Sequence[str] = HEADS, kind: str = "hierarchical"
    ) -> PredictorSettings:
        """Return settings with the widths of a model's features."""
        decoder = module.sam_mask_decoder
        if not module.use_high_res_features_in_sam:
            message = "the model has no high-resolution features, which the predictor needs"
            raise TrainingError(message, code="no-high-resolution-features")
        fine = (decoder.conv_s1.out_channels, decoder.conv_s0.out_channels)
        return cls(classes, module.hidden_dim, fine, heads=tuple(heads), kind=kind)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that are equal to what is parsed from them."""
        return {**asdict(self), "fine_widths": list(self.fine_widths), "heads": list(self.heads)}


@dataclass(frozen=True)
class FeatureLevels:
    """Image features at three scales, as the mask decoder takes them.

    Attributes
    ----------
    coarse
        (B, C, S/16, S/16), with the embedding of "no memory" added.
    middle, fine
        (B, C/4, S/8, S/8) and (B, C/8, S/4, S/4).
    texture_logits
        (B, K, S/4, S/4) logits of every class from a texture adapter; None without one.
    """

    coarse: torch.Tensor
    middle: torch.Tensor
    fine: torch.Tensor
    texture_logits: torch.Tensor | None = None

    def repeated(self, count: int) -> FeatureLevels:
        """Repeat every image `count` times in a row, once a class; texture logits are split by class."""
        logits = self.texture_logits
        return FeatureLevels(
            self.coarse.repeat_interleave(count, 0),
            self.middle.repeat_interleave(count, 0),
            self.fine.repeat_interleave(count, 0),
            None if logits is None else logits.flatten(0, 1)[:, None],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> FeatureLevels:
        """Return the features on another device, in another number format."""
        logits = self.texture_logits
        return FeatureLevels(
            self.coarse.to(device, dtype),
            self.middle.to(device, dtype),
            self.fine.to(device, dtype),
            None if logits is None else logits.to(device, dtype),
        )


@dataclass(frozen=True)
class PredictedPrompts:
    """Predicted prompts; None where a head is not used.

    Attributes
    ----------
    boxes_xyxy
        (N, 4) corners in units of the image's side; not clamped, because objects may extend beyond the image.
    mask_logits
        (N, 1, S/4, S/4).
    tokens
        (N, T-2, C) sparse embeddings in SAM 2's prompt space.
    """

    boxes_xyxy: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


class BoxHead(nn.Module):
    """Box regression from two tokens: sigmoids of x, y, width and height, then corners."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Map (N, 2, C) tokens to (N, 4) corners in units of the image's side."""
        x, y, width, height = self.mlp(pair.flatten(1)).sigmoid().unbind(-1)
        return torch.stack([x, y, x + width, y + height], dim=-1)


class MaskHead(nn.Module):
    """Mask prediction from a dense map: two 3x3 convolutions, then a 1x1."""

    def __init__(self, width: int, inner: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout),
        )  # fmt: skip
        self.final_conv = nn.Conv2d(inner, 1, 1)

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        """Map (N, C, h, w) to (N, 1, h, w) logits."""
        return self.final_conv(self.layers(dense))


class PromptPredictor(nn.Module):
    """The Prompt Predictor Network: two-way attention between queries and features, then three heads.

    Attributes
    ----------
    queries
        (K, T, C) learned queries of the classes.
    """

    def __init__(self, settings: PredictorSettings) -> None:
        super().__init__()
        # sam2's block: self-attention of the queries, their attention to the keys, an MLP, and the keys'
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
        self, levels: FeatureLevels, no_mask_embed: torch.Tensor, queries: torch.Tensor | None = None
    ) -> PredictedPrompts:
        """Predict the prompts of every class of every image.

        Parameters
        ----------
        levels
            Features of B images.
        no_mask_embed
            (1, C) the prompt encoder's embedding of "no mask", from which the dense map starts.
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
        return self._prompts(queries, dense, looked_at.texture_logits)

    def _prompts(
        self, queries: torch.Tensor, dense: torch.Tensor, texture_logits: torch.Tensor | None
    ) -> PredictedPrompts:
        on = self.settings.heads
        mask = self.mask_head(dense) if "mask" in on else None
        if mask is not None and self.settings.kind == "linear":
            mask = functional.interpolate(mask, scale_factor=4, mode="bilinear", align_corners=False)
        if mask is not None and texture_logits is not None:
            mask = mask + texture_logits
        return PredictedPrompts(
            self.box_head(queries[:, :2]) if "box" in on else None,
            mask,
            queries[:, 2:] if "embedding" in on else None,
        )


_TEMPERATURE = 10_000.0


@lru_cache(maxsize=16)
def grid_positions(width: int, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return SAM 2's sine encoding of a grid, (1, width, rows, columns): `width/2` features of y, then of x.

    Positions are 1 to H over H + 1e-6, times 2 pi, as in DETR (Carion et al., ECCV 2020).
    """
    half = width // 2
    frequencies = _TEMPERATURE ** (2 * (torch.arange(half) // 2).float() / half)

    def encoded(count: int) -> torch.Tensor:
        places = torch.arange(1, count + 1).float() / (count + 1e-6) * (2 * math.pi)
        angles = places[:, None] / frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)  # (count, half)

    y = encoded(rows)[:, None].expand(rows, columns, half)
    x = encoded(columns)[None].expand(rows, columns, half)
    return torch.cat([y, x], dim=-1).permute(2, 0, 1)[None].contiguous().to(device)


def inverse_frequencies(width: int) -> torch.Tensor:
    """Return the (width/2,) frequencies of :func:`token_positions`: 10000^(-2j/width)."""
    return 1.0 / _TEMPERATURE ** (torch.arange(0, width, 2).float() / width)


@lru_cache(maxsize=16)
def token_positions(count: int, width: int) -> torch.Tensor:
    """Return the encoding of token numbers, (1, count, width): sines and cosines, interleaved."""
    angles = torch.arange(count).float()[:, None] * inverse_frequencies(width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]
