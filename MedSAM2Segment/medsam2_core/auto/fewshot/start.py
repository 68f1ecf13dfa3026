"""Initial weights of few-shot training: pretrained ones that ship for a model, adapted to the new classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medsam2_core.auto.adapters import class_logits
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.objective import coverage_loss
from medsam2_core.auto.model import AutoModel
from medsam2_core.engine.eight_bits import from_eight_bits
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.fewshot.features import FeatureBank
    from medsam2_core.engine.segmentation_model import SegmentationModel

_MOST_IMAGES = 24  # that weights are adapted on
_LEAST_DICE = 0.1  # soft Dice from which on pretrained queries are used for a class
_PROBE_STEPS, _PROBE_DECAY = 40, 1e-2


@dataclass(frozen=True)
class PretrainedStart:
    """Pretrained tensors that a training starts from.

    Attributes
    ----------
    predictor
        Tensors of the predictor without queries, by name; empty if they are for another model.
    queries
        (Q, T, C) queries of the classes it was trained on.
    adapters, texture
        Tensors of the encoder adapters and the texture adapter, by name; empty without any.
    data_sets
        Names of the data sets, in the order of their queries; empty if unknown.
    looks
        (Q, D) class weights of the texture adapter, for training on the same classes; None without any.
    """

    predictor: dict[str, torch.Tensor]
    queries: torch.Tensor
    adapters: dict[str, torch.Tensor]
    texture: dict[str, torch.Tensor] = field(default_factory=dict)
    data_sets: tuple[str, ...] = ()
    looks: torch.Tensor | None = None


def packaged_start(model: SegmentationModel) -> PretrainedStart | None:
    """Read the pretrained weights that ship for a model; for other models only the texture adapter."""
    folder = Path(str(files("medsam2_core.auto"))) / "weights"
    found = [read_start(path, model) for path in sorted(folder.glob("*.safetensors"))]
    usable = [start for start in found if start is not None]
    return max(usable, key=lambda start: bool(start.predictor), default=None)


def read_start(path: Path, model: SegmentationModel) -> PretrainedStart | None:
    """Read pretrained weights from a file.

    Of weights for another model only the texture adapter is used, which takes pixels and not that model's
    features; None without one.

    Raises
    ------
    TrainingError
        Code ``start-unreadable``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            notes = opened.metadata() or {}
            fits = model.has_encoder_of(notes.get("base_key", ""))
            data_sets = tuple(json.loads(notes.get("data_sets", "[]")))
            tensors = from_eight_bits({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path} cannot be read as a start of training: {error}"
        raise TrainingError(message, code="start-unreadable", path=str(path)) from error
    texture = _under("texture.", tensors)
    looks = texture.pop("looks", None)  # of the classes it was trained on
    if fits:
        predictor = _under("predictor.", tensors)
        queries = predictor.pop("queries")
        return PretrainedStart(predictor, queries, _under("adapters.", tensors), texture, data_sets, looks)
    seeing = {name: value for name, value in texture.items() if not name.startswith("out.")}
    return PretrainedStart({}, torch.empty(0), {}, seeing) if seeing else None


def texture_only(start: PretrainedStart | None) -> PretrainedStart | None:
    """Return the texture adapter of pretrained weights: the linear predictor can use no more."""
    return (
        None if start is None or not start.texture else PretrainedStart({}, torch.empty(0), {}, start.texture)
    )


def initialise(auto: AutoModel, start: PretrainedStart) -> None:
    """Load pretrained weights into a new model; its queries start from the mean of the pretrained ones.

    Raises
    ------
    TrainingError
        Code ``start-does-not-fit``.
    """
    try:
        if auto.adapters is not None and start.adapters:
            auto.adapters.load_state_dict(start.adapters)
        if auto.texture is not None and start.texture:
            own = auto.texture.state_dict()
            # The class weights come later, from images of the classes.
            kept = {name: own[name] for name in own if name == "looks" or name.startswith("out.")}
            auto.texture.load_state_dict({**kept, **start.texture})
    except RuntimeError as error:
        message = "the start is of another version, its adapters do not fit: train from random weights"
        raise TrainingError(message, code="start-does-not-fit") from error
    if not start.predictor:
        return
    predictor = auto.network.predictor
    wanted = {name: value for name, value in predictor.state_dict().items() if name != "queries"}
    fitting = {name: value for name, value in start.predictor.items() if name in wanted}
    if set(fitting) != set(wanted) or start.queries.shape[1:] != predictor.queries.shape[1:]:
        message = "the start is of another kind of predictor: train from random weights"
        raise TrainingError(message, code="start-does-not-fit")
    predictor.load_state_dict({**fitting, "queries": predictor.queries.detach()})
    with torch.no_grad():
        mean = start.queries.mean(0, keepdim=True).to(predictor.queries.device)
        predictor.queries.copy_(mean + 0.1 * predictor.queries)


def fit_class_weights(
    auto: AutoModel, bank: FeatureBank, images: Sequence[LabelledImage], indices: Sequence[int]
) -> None:
    """Fit the class weights of the texture adapter on a few of the images; its features are fixed.

    A linear probe (Alain & Bengio, *Understanding intermediate layers using linear classifier probes*, 2016),
    which takes seconds where training would take minutes.
    """
    texture = auto.texture
    if texture is None:
        return
    pixels, shares = [], []
    for n in _labelled(images, indices):
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
    weights = texture.looks.detach().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([weights], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (
            coverage_loss(class_logits(seen, weights).flatten(0, 1), masks)
            + _PROBE_DECAY * weights.square().sum()
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    if torch.isfinite(weights).all():
        with torch.no_grad():
            texture.looks.copy_(weights)


@torch.inference_mode()
def choose_queries(
    auto: AutoModel,
    start: PretrainedStart,
    bank: FeatureBank,
    images: Sequence[LabelledImage],
    indices: Sequence[int],
) -> list[float]:
    """Initialise each class with the pretrained queries that predict it best on a few of the images.

    These are the queries whose predicted mask (plus texture logits of the class, if there are any) overlaps
    the class most; a class that none predicts keeps the mean.

    Returns
    -------
    list
        Soft Dice of each class.
    """
    network, classes = auto.network, auto.network.classes
    if not start.predictor or "mask" not in network.predictor.settings.heads:
        return [0.0] * classes
    network.predictor.eval()
    pool = start.queries.to(network.predictor.queries.device)
    scores, counts = torch.zeros(classes, len(pool)), torch.zeros(classes, 1)
    for n in _labelled(images, indices):
        levels, labels = bank.read([n * bank.variants])
        if auto.texture is not None:
            levels = auto.add_texture(levels, bank.pictures([n * bank.variants]))
        bare = replace(levels, texture_logits=None)  # which are of these classes, not of the pretrained ones
        prompts = network.predictor(bare, network.prompt_encoder.no_mask_embed.weight, pool[None])
        guessed = prompts.mask_logits[:, 0]
        for k in range(classes):
            truth = (labels[0] == k + 1).float()[None, None]
            if truth.sum() == 0:
                continue
            found = (
                guessed if levels.texture_logits is None else guessed + levels.texture_logits[0, k]
            ).sigmoid()
            share = functional.adaptive_avg_pool2d(truth, found.shape[-1])[0, 0]
            dice = 2 * (found * share).sum((1, 2)) / (found.sum((1, 2)) + share.sum() + 1e-6)
            scores[k] += dice.cpu()
            counts[k] += 1
    best, which = (scores / counts.clamp(min=1)).max(1)
    for k in range(classes):
        if best[k] > _LEAST_DICE:
            network.predictor.queries[k] = pool[which[k]]
    return [round(float(value), 3) for value in best]


def _labelled(images: Sequence[LabelledImage], indices: Sequence[int]) -> list[int]:
    """Return a few indices of images with labels."""
    return [n for n in indices if images[n].labels_hw.any()][:_MOST_IMAGES]


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
