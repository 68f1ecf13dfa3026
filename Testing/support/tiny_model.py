"""The smallest SAM 2 that still has every part, for tests that need hundreds of slices; and what it holds."""

from collections.abc import Iterable

import torch
from medsam2_core.engine.architecture import build_from, read_config
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.states import ObjectState

from support.model import DRAWN, stir

SIDE = 64


def tiny_model(recipe: PromptRecipe = DRAWN, score_bias: float = 5.0, seed: int = 0) -> SegmentationModel:
    """The embedded model's architecture with a thin trunk and one layer of memory attention, untrained."""
    settings = read_config("embedded", SIDE, apply_postprocessing=False)
    encoder = settings["image_encoder"]
    encoder["trunk"].update(channels=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    encoder["neck"]["backbone_channel_list"] = [32, 24, 16, 8]
    settings["memory_attention"]["num_layers"] = 1
    torch.manual_seed(seed)
    module = build_from(settings, "tiny")
    stir(module, score_bias, seed)
    return SegmentationModel.of(module, "tiny", recipe)


def storage_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Memory that stays allocated because of tensors: all of what a view was cut from, but shared parts
    once."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_of(state: ObjectState) -> list[torch.Tensor | None]:
    """Every tensor an object's state keeps, logits and memories of both directions."""
    given = state.conditioning.values()
    memories = [entry.memory for entry in given if entry.memory is not None]
    memories += [memory for bank in state.banks for memory in bank.memories()]
    predictions = [entry.prediction for entry in given]
    return [
        *(part for memory in memories for part in (memory.features, memory.pointer, memory.embedding)),
        *(part for one in predictions for part in (one.logits, one.pointer, one.object_score)),
        *(logits for logits, _ in state.recent.values()),
    ]
