"""What the tensors of a reference checkpoint are called, and where they belong.

Names are those after one ``model.`` was taken off all of them (as
:func:`~medsam2_core.engine.checkpoint.read_state_dict` does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from medsam2_core.auto.adapting import RANK
from medsam2_core.auto.positions import inverse_frequencies
from medsam2_core.errors import CheckpointError

_BLOCKS = 3
_ENCODER = "model.image_encoder.net."
_ADAPTER = re.compile(r"model\.image_encoder\.adapters\.(\d+\.adapters\.[02]\.(?:weight|bias))")
_DECODER = "model.sam_mask_decoder.net."
_ADAPTED = re.compile(r"(.*\.[qv]_proj)\.proj\.(weight|bias)")
_UPDATE = re.compile(r".*\.[qv]_proj\.w_[ab]\.weight")
_LEARNER = "model.prompt_sampler.prompt_learner."
_PROMPT_ENCODER = "model.prompt_sampler.prompt_encoder."
_PROMPT_ENCODER_AGAIN = _LEARNER + "prompt_encoder."
_FREQUENCIES = _LEARNER + "pos_encoding1d.inv_freq"
_QUERIES = "learnable_prompts."
# What single images do not need; `no_mem_embed` alone they do.
_MEMORY = re.compile(r"(?:model\.)?((?:memory_|obj_ptr_|maskmem_tpos_enc|no_|mask_downsample\.).*)")
_NEEDED = "no_mem_embed"
# Modules in a row have numbers, which depend on what stands between them: `0` and `2`, or `layers.0` and
# `layers.1`. Only their order counts. Name of the row -> our names, in order.
_ROW = re.compile(
    r"(layers\.[0-2]\.mlp|box_regression_head\.mlp|mask_classifier)\.(?:layers\.)?([\d.]+)\.(\w+)"
)
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_SAME_NAME = re.compile(r"channel_adapters\.[12]\.(?:weight|bias)")
_FINAL = "mask_classifier.final_conv."


@dataclass
class Parts:
    """Tensors of a reference checkpoint, under the names they have here.

    Attributes
    ----------
    sam2
        What a SAM 2 needs for images.
    memory
        The rest of a SAM 2: (name in the checkpoint, tensor).
    decoder_updates
        Low-rank updates of the mask decoder; empty when that was frozen.
    updated
        Names of the projections that have one.
    adapters
        Of the image encoder; empty when that was frozen.
    predictor
        All of it but the queries.
    queries
        (K, T, C) by data set.
    """

    sam2: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)
    decoder_updates: dict[str, torch.Tensor] = field(default_factory=dict)
    updated: set[str] = field(default_factory=set)
    adapters: dict[str, torch.Tensor] = field(default_factory=dict)
    predictor: dict[str, torch.Tensor] = field(default_factory=dict)
    queries: dict[str, torch.Tensor] = field(default_factory=dict)


def parts_of(state: Mapping[str, torch.Tensor], source: str) -> Parts:
    """Sort a state dict. CheckpointError names the first tensor that no reference checkpoint has, or that
    contradicts another."""
    parts, learner, again, unknown = Parts(), {}, {}, []
    frequencies = None
    for key, value in state.items():
        if key == _FREQUENCIES:
            frequencies = value
        elif key.startswith(_PROMPT_ENCODER_AGAIN):
            again[key[len(_PROMPT_ENCODER_AGAIN) :]] = value
        elif key.startswith(_LEARNER):
            learner[key[len(_LEARNER) :]] = value
        elif key.startswith(_QUERIES) and len(key) > len(_QUERIES):
            parts.queries[key[len(_QUERIES) :]] = value
        elif not _of_sam2(key, value, parts):
            unknown.append(key)
    parts.predictor, strange = _predictor(learner)
    unknown += [_LEARNER + key for key in strange]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{source} holds {unknown[0][:120]!r}{more}, which no reference checkpoint has: only those of "
            "Sam2Rad with a Prompt Predictor Network can be imported"
        )
    placed = (parts.sam2, parts.memory, parts.decoder_updates, parts.adapters, parts.predictor, parts.queries)
    if sum(map(len, placed)) + len(again) + (frequencies is not None) != len(state):
        raise CheckpointError(
            f"{source} holds two tensors for one place of the network: it was changed, get it again"
        )
    _check_updates(parts, source)
    _check_equal(parts.sam2, again, source)
    _check_frequencies(frequencies, parts, source)
    return parts


def _of_sam2(key: str, value: torch.Tensor, parts: Parts) -> bool:
    """Put a tensor of SAM 2, or an addition to it, in its place; False when it is neither."""
    if key.startswith(_ENCODER):
        parts.sam2["image_encoder." + key[len(_ENCODER) :]] = value
    elif key.startswith(_PROMPT_ENCODER):
        parts.sam2["sam_prompt_encoder." + key[len(_PROMPT_ENCODER) :]] = value
    elif adapter := _ADAPTER.fullmatch(key):
        parts.adapters[adapter[1]] = value
    elif key.startswith(_DECODER):
        name = key[len(_DECODER) :]
        if _UPDATE.fullmatch(name):
            parts.decoder_updates[name] = value
        else:
            if adapted := _ADAPTED.fullmatch(name):
                parts.updated.add(adapted[1])
                name = f"{adapted[1]}.{adapted[2]}"
            parts.sam2["sam_mask_decoder." + name] = value
    elif memory := _MEMORY.fullmatch(key):
        if memory[1] == _NEEDED:
            parts.sam2[_NEEDED] = value
        else:
            parts.memory[memory[1]] = (key, value)
    else:
        return False
    return True


def _predictor(learner: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The predictor's tensors under our names, and the names of what is none of them."""
    named: dict[str, torch.Tensor] = {}
    rows: dict[str, dict[tuple[int, ...], dict[str, str]]] = {}
    strange = []
    for key, value in learner.items():
        if key.startswith(_FINAL):
            named["mask_head." + key.partition(".")[2]] = value
        elif row := _ROW.fullmatch(key):
            place = tuple(int(n) for n in row[2].split(".") if n)
            rows.setdefault(row[1], {}).setdefault(place, {})[row[3]] = key
        elif _SAME_NAME.fullmatch(key) or ((block := _BLOCK.fullmatch(key)) and int(block[1]) < _BLOCKS):
            named[key] = value
        else:
            strange.append(key)
    for row, modules in rows.items():
        ours = _names_in_row(row)
        if len(modules) > len(ours):
            strange += [key for place in sorted(modules)[len(ours) :] for key in modules[place].values()]
        for name, place in zip(ours, sorted(modules), strict=False):
            named |= {f"{name}.{kind}": learner[key] for kind, key in modules[place].items()}
    return named, strange


def _names_in_row(row: str) -> tuple[str, str]:
    """What the two modules of a row are called here."""
    if row == "box_regression_head.mlp":
        return "box_head.mlp.0", "box_head.mlp.2"
    if row == "mask_classifier":
        return "mask_head.layers.0", "mask_head.layers.3"
    return f"{row}.layers.0", f"{row}.layers.1"


def _check_updates(parts: Parts, source: str) -> None:
    have = {name.rpartition(".w_")[0] for name in parts.decoder_updates}
    if lone := sorted(have ^ parts.updated):
        raise CheckpointError(
            f"{source}: of {_DECODER}{lone[0]} there is only one of the projection and its low-rank update"
        )
    for name, value in parts.decoder_updates.items():
        rank = value.shape[0] if ".w_a." in name else value.shape[-1]
        if value.ndim != 2 or rank != RANK:
            raise CheckpointError(
                f"{source}: {_DECODER}{name} is {tuple(value.shape)}: only updates of rank {RANK} are known"
            )
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise CheckpointError(
                f"{source} holds NaN or infinite values in {_DECODER}{name}: it is damaged, get it again"
            )


def _check_equal(sam2: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor], source: str) -> None:
    """The prompt encoder is there twice; which of two different ones was trained with, nobody can tell."""
    prefix = "sam_prompt_encoder."
    once = {key[len(prefix) :]: value for key, value in sam2.items() if key.startswith(prefix)}
    for key in sorted({*once, *again}):
        one, other = once.get(key), again.get(key)
        if one is None or other is None or one.dtype != other.dtype or not torch.equal(one, other):
            raise CheckpointError(
                f"{source}: {_PROMPT_ENCODER}{key} and {_PROMPT_ENCODER_AGAIN}{key} must both be there "
                "and be equal, but are not: it was changed, get it again"
            )


def _check_frequencies(found: torch.Tensor | None, parts: Parts, source: str) -> None:
    """They are no parameters here, so they must be what is computed."""
    width = next((value.shape[-1] for value in parts.queries.values() if value.ndim), 0)
    if width == 0:  # refused for that, by its own message
        return
    expected = inverse_frequencies(width)
    if found is None:
        raise CheckpointError(f"{source} has no {_FREQUENCIES}: it is no reference checkpoint, or was cut")
    fits = found.shape == expected.shape and found.is_floating_point()
    # Kept in half precision, they are as far off as that rounds.
    tolerance = 1e-5 if found.dtype in (torch.float32, torch.float64) else 1e-2
    if not fits or not torch.allclose(found.float(), expected, rtol=tolerance, atol=1e-7):
        raise CheckpointError(
            f"{source}: {_FREQUENCIES} {tuple(found.shape)} are not the frequencies 10000^(-2j/{width}) of a "
            "Prompt Predictor Network: it encodes positions otherwise, and cannot be imported"
        )
