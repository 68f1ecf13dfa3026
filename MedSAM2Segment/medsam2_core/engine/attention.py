"""Memory attention of SAM 2 with a third fewer multiplications, for the CPU.

Values are memories of 64 channels, projected to 256 only to be averaged. An average of projections is the
projection of the average: here the memories themselves are averaged, and value and output projections become
one matrix. Everything else is as in sam2; results differ by rounding only.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from sam2.modeling.memory_attention import MemoryAttention
    from sam2.modeling.sam.transformer import RoPEAttention

# Queries attended to at once: their scores, with those of seven frames of 64 x 64, take 30 MB.
_QUERIES = 256


def is_foldable(attention: "MemoryAttention") -> bool:
    """Return whether :func:`attend` can stand for this memory attention: one head, rotary positions, values
    narrower than the queries, no dropout."""
    from sam2.modeling.sam.transformer import RoPEAttention

    return not attention.training and all(
        isinstance(layer.cross_attn_image, RoPEAttention)
        and layer.cross_attn_image.num_heads == 1
        and layer.cross_attn_image.kv_in_dim < layer.cross_attn_image.internal_dim
        for layer in attention.layers
    )


def attend(
    attention: "MemoryAttention",
    current: torch.Tensor,
    current_position: torch.Tensor,
    memory: torch.Tensor,
    memory_position: torch.Tensor,
    pointer_tokens: int,
) -> torch.Tensor:
    """Return what ``attention`` makes of one slice, up to rounding.

    Parameters
    ----------
    current, current_position
        (N, 1, C) tokens of the slice, N a square.
    memory, memory_position
        (M, 1, 64) tokens of memories; the last ``pointer_tokens`` have no place in the image.
    """
    x = current[:, 0]
    if attention.pos_enc_at_input:
        x = x + 0.1 * current_position[:, 0]
    position = current_position[:, 0]
    values = memory[:, 0]
    placed = values + memory_position[:, 0]
    for layer in attention.layers:
        x = layer._forward_sa(x[None], position[None])[0]
        queries = layer.norm2(x)
        if layer.pos_enc_at_cross_attn_queries:
            queries = queries + position
        keys = placed if layer.pos_enc_at_cross_attn_keys else values
        x = x + _cross(layer.cross_attn_image, queries, keys, values, pointer_tokens)
        x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
    return attention.norm(x)[:, None]


def _cross(
    attention: "RoPEAttention",
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pointer_tokens: int,
) -> torch.Tensor:
    """Attend from (N, C) queries to (M, 64) keys and values; (N, C)."""
    queries, keys = attention.q_proj(queries), attention.k_proj(keys)
    rotation = _rotation(attention, len(queries))
    queries = _rotated(queries, rotation) / math.sqrt(queries.shape[-1])
    spatial = len(keys) - pointer_tokens
    keys[:spatial] = _rotated(keys[:spatial], rotation)
    averages = torch.empty(len(queries), values.shape[-1])
    scores = torch.empty(min(_QUERIES, len(queries)), len(keys))
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        weights = scores[: len(some)]
        torch.mm(some, keys.t(), out=weights)
        torch.softmax(weights, -1, out=weights)
        torch.mm(weights, values, out=averages[start : start + _QUERIES])
    out, value = attention.out_proj, attention.v_proj
    bias = out.weight @ value.bias + out.bias  # the weights of a query sum to 1
    return functional.linear(averages, out.weight @ value.weight, bias)


def _rotation(attention: "RoPEAttention", tokens: int) -> torch.Tensor:
    """Return the (tokens, C/2) complex factors of a square map's places."""
    factors = attention.freqs_cis
    if len(factors) != tokens:
        side = math.isqrt(tokens)
        factors = attention.freqs_cis = attention.compute_cis(end_x=side, end_y=side)
    return factors


def _rotated(tokens: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn (F * N, C) tokens of F maps by their places."""
    places, half = rotation.shape
    pairs = torch.view_as_complex(tokens.reshape(-1, places, half, 2))
    return torch.view_as_real(pairs * rotation).reshape(tokens.shape)
