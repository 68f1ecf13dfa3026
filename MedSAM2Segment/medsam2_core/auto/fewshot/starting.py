"""Where few-shot training begins: from the start that ships for a model, or from nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medsam2_core.auto.fewshot.features import FeatureBank
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.loading import AutoModel
from medsam2_core.auto.losses import sketch_loss
from medsam2_core.auto.texture import sketch
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from medsam2_core.engine.model import SegmentationModel

_LOOKED_AT = 24  # images that are looked at
_IS_LIKE = 0.1  # soft Dice from which on known queries are worth beginning with
_PROBE_STEPS, _PROBE_DECAY = 40, 1e-2


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
    data_sets
        Their names, in the order of their queries; empty when it does not say.
    """

    predictor: dict[str, torch.Tensor]
    queries: torch.Tensor
    adapters: dict[str, torch.Tensor]
    texture: dict[str, torch.Tensor] = field(default_factory=dict)
    data_sets: tuple[str, ...] = ()


def packaged_start(model: SegmentationModel) -> Start | None:
    """The start that ships for a model; for weights it was not made for, its texture adapter alone."""
    folder = Path(str(files("medsam2_core.auto"))) / "weights"
    found = [read_start(path, model) for path in sorted(folder.glob("*.safetensors"))]
    usable = [start for start in found if start is not None]
    return max(usable, key=lambda start: bool(start.predictor), default=None)


def read_start(path: Path, model: SegmentationModel) -> Start | None:
    """A start from a file. TrainingError when it cannot be read.

    Of a start for another model only the texture adapter is of use, which looks at pixels and not at that
    model's features; None when it has none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            notes = opened.metadata() or {}
            fits = model.has_encoder_of(notes.get("base_key", ""))
            data_sets = tuple(json.loads(notes.get("data_sets", "[]")))
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read as a start of training: {error}") from error
    texture = _under("texture.", tensors)
    texture.pop("looks", None)  # of the classes it was trained on
    if fits:
        predictor = _under("predictor.", tensors)
        queries = predictor.pop("queries")
        return Start(predictor, queries, _under("adapters.", tensors), texture, data_sets)
    seeing = {name: value for name, value in texture.items() if not name.startswith("out.")}
    return Start({}, torch.empty(0), {}, seeing) if seeing else None


def for_linear(start: Start | None) -> Start | None:
    """What of a start is of use for the linear predictor, whose own part is another one: its texture
    adapter."""
    return None if start is None or not start.texture else Start({}, torch.empty(0), {}, start.texture)


def begin_with(auto: AutoModel, start: Start) -> None:
    """Give a new model the shared part of a start, and queries that are the mean of all it knows."""
    try:
        if auto.adapters is not None and start.adapters:
            auto.adapters.load_state_dict(start.adapters)
        if auto.texture is not None and start.texture:
            own = auto.texture.state_dict()
            # How the classes look comes later, from images of them.
            kept = {name: own[name] for name in own if name == "looks" or name.startswith("out.")}
            auto.texture.load_state_dict({**kept, **start.texture})
    except RuntimeError as error:
        raise TrainingError(
            "the start is of another version, its adapters do not fit: train from nothing (--start none)"
        ) from error
    if not start.predictor:
        return
    predictor = auto.network.predictor
    wanted = {name: value for name, value in predictor.state_dict().items() if name != "queries"}
    fitting = {name: value for name, value in start.predictor.items() if name in wanted}
    if set(fitting) != set(wanted) or start.queries.shape[1:] != predictor.queries.shape[1:]:
        raise TrainingError("the start is of another kind of predictor: train from nothing (--start none)")
    predictor.load_state_dict({**fitting, "queries": predictor.queries.detach()})
    with torch.no_grad():
        mean = start.queries.mean(0, keepdim=True).to(predictor.queries.device)
        predictor.queries.copy_(mean + 0.1 * predictor.queries)


def fit_looks(auto: AutoModel, bank: FeatureBank, images: Sequence[LabelledImage]) -> None:
    """Let the texture adapter's sketch of each class be the best that what it sees allows, on a few images.

    A linear probe (Alain & Bengio, *Understanding intermediate layers using linear classifier probes*, 2016):
    the adapter itself stays as it is, so this takes seconds where steps of training would take minutes.
    """
    texture = auto.texture
    if texture is None:
        return
    pixels, shares = [], []
    for n in _telling(images):
        pictures = bank.pictures([n * bank.variants])
        _, labels = bank.read([n * bank.variants])
        numbers = torch.arange(1, auto.network.classes + 1, device=labels.device)[:, None, None]
        with torch.no_grad():
            seen = texture(pictures).pixels
        pixels.append(seen)
        shares.append(functional.adaptive_avg_pool2d((labels == numbers).float(), seen.shape[-1]))
    if not pixels:
        return
    seen, masks = torch.cat(pixels), torch.cat(shares)
    looks = texture.looks.detach().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([looks], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = sketch_loss(sketch(seen, looks).flatten(0, 1), masks) + _PROBE_DECAY * looks.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    if torch.isfinite(looks).all():
        with torch.no_grad():
            texture.looks.copy_(looks)


@torch.inference_mode()
def choose_queries(
    auto: AutoModel, start: Start, bank: FeatureBank, images: Sequence[LabelledImage]
) -> list[float]:
    """Let each class begin with the known queries that find it best on a few images.

    Of the start's classes, the one whose predicted mask (with the sketch of the class, if there is one)
    overlaps a class most; a class that none finds keeps the mean. Returns the soft Dice of each choice.
    """
    network, classes = auto.network, auto.network.classes
    if not start.predictor or "mask" not in network.predictor.settings.heads:
        return [0.0] * classes
    network.predictor.eval()
    pool = start.queries.to(network.predictor.queries.device)
    scores, counts = torch.zeros(classes, len(pool)), torch.zeros(classes, 1)
    for n in _telling(images):
        levels, labels = bank.read([n * bank.variants])
        if auto.texture is not None:
            levels = auto.textured(levels, bank.pictures([n * bank.variants]))
        bare = replace(levels, sketch=None)  # which is of these classes, not of those of the pool
        prompts = network.predictor(bare, network.prompt_encoder.no_mask_embed.weight, pool[None])
        guessed = prompts.mask_logits[:, 0]
        for k in range(classes):
            truth = (labels[0] == k + 1).float()[None, None]
            if truth.sum() == 0:
                continue
            found = (guessed if levels.sketch is None else guessed + levels.sketch[0, k]).sigmoid()
            share = functional.adaptive_avg_pool2d(truth, found.shape[-1])[0, 0]
            dice = 2 * (found * share).sum((1, 2)) / (found.sum((1, 2)) + share.sum() + 1e-6)
            scores[k] += dice.cpu()
            counts[k] += 1
    best, which = (scores / counts.clamp(min=1)).max(1)
    for k in range(classes):
        if best[k] > _IS_LIKE:
            network.predictor.queries[k] = pool[which[k]]
    return [round(float(value), 3) for value in best]


def _telling(images: Sequence[LabelledImage]) -> list[int]:
    """A few images with something labelled, by number."""
    return [n for n in range(len(images)) if images[n].labels_hw.any()][:_LOOKED_AT]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
