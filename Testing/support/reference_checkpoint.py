"""Checkpoints as the reference implementation of Sam2Rad writes them, made from our own networks.

Names are written down here once more, after the page, and not taken from the importer.
"""

import re
from collections import OrderedDict
from pathlib import Path

import torch
from medsam2_core.auto.adapters import trainable_parts
from medsam2_core.auto.model import AutoModel
from medsam2_core.auto.predictor import inverse_frequencies
from medsam2_core.engine.segmentation_model import SegmentationModel

from support.auto_model import an_auto_model

LEARNER = "model.prompt_sampler.prompt_learner."


@torch.no_grad()
def a_trained_model(
    model: SegmentationModel, classes: int = 2, decoder: str = "frozen", encoder: str = "frozen"
) -> AutoModel:
    """An Auto model none of whose tensors is as it began."""
    names = [f"hip {n}" for n in range(1, classes + 1)]
    auto = an_auto_model(model, names, decoder, encoder)
    torch.manual_seed(4)
    trained = list(auto.network.predictor.parameters())
    trained += auto.adapters.parameters() if auto.adapters is not None else ()
    trained += trainable_parts(auto.network.decoder).values() if decoder == "lora" else ()
    for parameter in trained:
        parameter.add_(0.02 * torch.randn_like(parameter))
    return auto


def reference_state(
    auto: AutoModel, *, memory: bool = True, numbered: bool = False, dataset: str = "hip"
) -> dict[str, torch.Tensor]:
    """Its tensors under the page's names, after one strip of ``model.``.

    `numbered` calls modules in a row ``0`` and ``2``, instead of ``layers.0`` and ``layers.1``.
    """
    state = {}
    for name, value in auto.model.module.state_dict().items():
        room, _, rest = name.partition(".")
        if room == "image_encoder":
            state[f"model.image_encoder.net.{rest}"] = value
        elif room == "sam_prompt_encoder":
            state[f"model.prompt_sampler.prompt_encoder.{rest}"] = value
            state[f"{LEARNER}prompt_encoder.{rest}"] = value
        elif room != "sam_mask_decoder" and (memory or name == "no_mem_embed"):
            state[f"model.{name}"] = value
    for name, value in auto.network.decoder.state_dict().items():
        state[f"model.sam_mask_decoder.net.{name}"] = value
    for name, value in auto.adapters.state_dict().items() if auto.adapters is not None else ():
        state[f"model.image_encoder.adapters.{name}"] = value
    for name, value in auto.network.predictor.state_dict().items():
        state[_of_predictor(name, numbered, dataset)] = value
    state[f"{LEARNER}pos_encoding1d.inv_freq"] = inverse_frequencies(auto.network.predictor.settings.width)
    return {name: value.clone() for name, value in state.items()}


def _of_predictor(name: str, numbered: bool, dataset: str) -> str:
    if name == "queries":
        return f"learnable_prompts.{dataset}"
    name = name.replace("box_head.mlp", "box_regression_head.mlp").replace("mask_head.", "mask_classifier.")
    if numbered:
        name = re.sub(r"(layers\.\d\.mlp)\.layers\.([01])", lambda m: f"{m[1]}.{2 * int(m[2])}", name)
    else:
        name = re.sub(r"(head\.mlp)\.([02])", lambda m: f"{m[1]}.layers.{int(m[2]) // 2}", name)
        name = name.replace("mask_classifier.layers.3", "mask_classifier.layers.1.0")
        name = name.replace("mask_classifier.layers.0.", "mask_classifier.layers.0.0.")
    return LEARNER + name


def lightning_file(path: Path, state: dict[str, torch.Tensor], **more: object) -> Path:
    """A ``.ckpt`` with what Lightning keeps besides the weights."""
    content = {
        "epoch": 199, "global_step": 5000, "pytorch-lightning_version": "2.1.0",
        "state_dict": OrderedDict((f"model.{name}", value) for name, value in state.items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 200}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "dirpath": "runs"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 200}], "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4, "image_size": 64}, **more,
    }  # fmt: skip
    torch.save(content, path)
    return path
