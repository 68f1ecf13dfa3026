"""Where few-shot training begins: from the start that ships for a model, or from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsam2_core.auto.fewshot.features import FeatureBank
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.loading import AutoModel
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from medsam2_core.engine.model import SegmentationModel

_LOOKED_AT = 12  # images that known queries are tried on


@dataclass(frozen=True)
class Start:
    """Tensors a new predictor begins with.

    Attributes
    ----------
    predictor
        The shared part, by name.
    queries
        (Q, T, C) of the classes it was trained on.
    adapters, texture
        Of the encoder, and beside it, by name; empty when there are none.
    """

    predictor: dict[str, torch.Tensor]
    queries: torch.Tensor
    adapters: dict[str, torch.Tensor]
    texture: dict[str, torch.Tensor] = field(default_factory=dict)


def packaged_start(model: SegmentationModel) -> Start | None:
    """The start that ships for a model; None when there is none for these weights."""
    folder = Path(str(files("medsam2_core.auto"))) / "weights"
    for path in sorted(folder.glob("*.safetensors")):
        start = read_start(path, model)
        if start is not None:
            return start
    return None


def read_start(path: Path, model: SegmentationModel) -> Start | None:
    """A start from a file; None when it is of another model. TrainingError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            if (opened.metadata() or {}).get("base_key") != model.weights_key:
                return None
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read as a start of training: {error}") from error
    predictor = _under("predictor.", tensors)
    queries = predictor.pop("queries")
    return Start(predictor, queries, _under("adapters.", tensors), _under("texture.", tensors))


def begin_with(auto: AutoModel, start: Start) -> None:
    """Give a new model the shared part of a start, and queries that are the mean of all it knows."""
    predictor = auto.network.predictor
    wanted = {name: value for name, value in predictor.state_dict().items() if name != "queries"}
    fitting = {name: value for name, value in start.predictor.items() if name in wanted}
    if set(fitting) != set(wanted) or start.queries.shape[1:] != predictor.queries.shape[1:]:
        raise TrainingError("the start is of another kind of predictor: train from nothing (--start none)")
    predictor.load_state_dict({**fitting, "queries": predictor.queries.detach()})
    with torch.no_grad():
        mean = start.queries.mean(0, keepdim=True).to(predictor.queries.device)
        predictor.queries.copy_(mean + 0.1 * predictor.queries)
    if auto.adapters is not None and start.adapters:
        auto.adapters.load_state_dict(start.adapters)
    if auto.texture is not None and start.texture:
        auto.texture.load_state_dict(start.texture)


@torch.inference_mode()
def choose_queries(
    auto: AutoModel, start: Start, bank: FeatureBank, images: Sequence[LabelledImage]
) -> list[float]:
    """Let each class begin with the known queries that find it best on a few images.

    Of the start's classes, the one whose predicted mask overlaps a class most; a class that none finds
    keeps the mean. Returns the soft Dice of each class's choice.
    """
    network, classes = auto.network, auto.network.classes
    network.predictor.eval()
    picked = [n for n in range(len(images)) if images[n].labels_hw.any()][:_LOOKED_AT]
    pool = start.queries.to(network.predictor.queries.device)
    scores = torch.zeros(classes, len(pool))
    counts = torch.zeros(classes, 1)
    for n in picked:
        levels, labels = bank.read([n * bank.variants])
        if auto.texture is not None:
            levels = auto.textured(levels, bank.pictures([n * bank.variants]))
        prompts = network.predictor(levels, network.prompt_encoder.no_mask_embed.weight, pool[None])
        if prompts.mask_logits is None:
            return [0.0] * classes
        found = prompts.mask_logits[:, 0].sigmoid()
        for k in range(classes):
            truth = (labels[0] == k + 1).float()[None, None]
            if truth.sum() == 0:
                continue
            share = torch.nn.functional.adaptive_avg_pool2d(truth, found.shape[-1])[0, 0]
            dice = 2 * (found * share).sum((1, 2)) / (found.sum((1, 2)) + share.sum() + 1e-6)
            scores[k] += dice.cpu()
            counts[k] += 1
    scores = scores / counts.clamp(min=1)
    best, which = scores.max(1)
    for k in range(classes):
        if best[k] > 0.1:
            network.predictor.queries[k] = pool[which[k]]
    return [round(float(value), 3) for value in best]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
