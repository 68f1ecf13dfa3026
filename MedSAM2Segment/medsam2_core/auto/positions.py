"""Positional encodings of the Prompt Predictor Network: sines of a grid's places, and of a token's number."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

_TEMPERATURE = 10_000.0


@lru_cache(maxsize=16)
def grid_positions(width: int, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """(1, width, rows, columns): SAM 2's sine encoding, `width/2` features of y, then as many of x.

    Positions are 1 to H over H + 1e-6, times 2 pi, as in DETR.
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
    """(width/2,) frequencies of :func:`token_positions`: 10000^(-2j/width)."""
    return 1.0 / _TEMPERATURE ** (torch.arange(0, width, 2).float() / width)


@lru_cache(maxsize=16)
def token_positions(count: int, width: int) -> torch.Tensor:
    """(1, count, width): sine and cosine of a token's number, interleaved."""
    angles = torch.arange(count).float()[:, None] * inverse_frequencies(width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]
