"""Auto models in memory: loaded from a file and the SAM 2 they were trained for, and saved."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam2_core.auto.adapters import (
    AttachedAdapters,
    TextureAdapter,
    TextureFeatures,
    adapted_decoder,
    class_logits,
    encoder_adapters,
    load_parts,
    resized,
    trainable_parts,
)
from medsam2_core.auto.model_file import AutoCard, damaged, read_card, read_tensors, write_file
from medsam2_core.auto.network import AutoNetwork
from medsam2_core.auto.predictor import FeatureLevels, PredictorSettings, PromptPredictor
from medsam2_core.engine.catalogue import CHECKPOINT_SUFFIXES
from medsam2_core.engine.encoder import image_features
from medsam2_core.engine.model import load_model
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import CatalogueError, CheckpointError, MedSAM2Error

if TYPE_CHECKING:
    from torch import nn

_PREDICTOR, _DECODER, _ENCODER, _TEXTURE = "predictor.", "decoder.", "encoder.", "texture."


@dataclass(frozen=True, eq=False)
class AutoModel:
    """A network that segments without prompts."""

    card: AutoCard
    model: SegmentationModel
    network: AutoNetwork
    adapters: nn.ModuleList | None = None
    texture: TextureAdapter | None = None

    def levels(self, images: torch.Tensor) -> FeatureLevels:
        """Compute all features of normalised images (B, 3, S, S)."""
        images = images.to(self.model.device)
        with self.model.computing():
            return self.add_texture(self.encode(images), images)

    def encode(self, images: torch.Tensor) -> FeatureLevels:
        """Compute the encoder's features of normalised images (B, 3, S, S), without the texture adapter's."""
        with self.model.computing(), self.adapted_encoder():
            return encode_levels(self.model, images.to(self.model.device))

    def add_texture(self, levels: FeatureLevels, images: torch.Tensor) -> FeatureLevels:
        """Add the texture adapter's features of (B, 3, S, S) images, if there is one, to the encoder's."""
        if self.texture is None:
            return levels
        texture = self.texture(images)
        return with_texture(levels, texture, class_logits(texture.pixels, self.texture.looks))

    def adapted_encoder(self) -> AbstractContextManager[None]:
        """Return a context in which this model's adapters are attached to the encoder, which is shared."""
        return nullcontext() if self.adapters is None else AttachedAdapters(self.model.module, self.adapters)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a file; raise ExportError if that is not possible."""
        parts: dict[str, Any] = _prefixed(_PREDICTOR, self.network.predictor.state_dict())
        if self.card.decoder == "lora":
            parts |= _prefixed(_DECODER, trainable_parts(self.network.decoder))
        if self.adapters is not None:
            parts |= _prefixed(_ENCODER, self.adapters.state_dict())
        if self.texture is not None:
            parts |= _prefixed(_TEXTURE, self.texture.state_dict())
        write_file(path, self.card, parts, overwrite=overwrite)


def encode_levels(model: SegmentationModel, images: torch.Tensor) -> FeatureLevels:
    """Compute the encoder's features of (B, 3, S, S) normalised images; gradients depend on the context."""
    module = model.module
    maps = image_features(module, images)
    coarse = maps[2]
    if module.directly_add_no_mem_embed:
        coarse = coarse + module.no_mem_embed.view(1, -1, 1, 1)
    return FeatureLevels(coarse, maps[1], maps[0])


def with_texture(levels: FeatureLevels, texture: TextureFeatures, logits: torch.Tensor) -> FeatureLevels:
    """Add a texture adapter's features of the same images to the encoder's.

    Parameters
    ----------
    logits
        (B, K, h, w) texture logits of the classes.
    """
    return FeatureLevels(
        levels.coarse + texture.coarse, levels.middle + texture.middle, levels.fine + texture.fine,
        resized(logits, levels.fine.shape[-1]),
    )  # fmt: skip


def untrained_model(card: AutoCard, model: SegmentationModel) -> AutoModel:
    """Build a model of this card with new, untrained parts."""
    settings = _settings(card, model)
    decoder = adapted_decoder(model.module) if card.decoder == "lora" else None
    adapters = encoder_adapters(model.module) if "adapters" in card.encoder_parts else None
    texture = None
    if "texture" in card.encoder_parts:
        texture = TextureAdapter(settings.width, settings.fine_widths, settings.classes)
    network = AutoNetwork(model.module, PromptPredictor(settings), model.recipe, decoder)
    network.predictor.to(model.device)
    for part in (decoder, adapters, texture):
        if part is not None:
            part.to(model.device)
    return AutoModel(card, model, network.eval(), adapters, texture)


def load_auto(
    path: str | Path, model: SegmentationModel | None = None, device: str = "auto", precision: str = "auto"
) -> AutoModel:
    """Load an Auto model.

    Parameters
    ----------
    model
        The SAM 2 it was trained for; None loads the one its card names: a model of the catalogue, or the
        checkpoint of that name beside an imported Auto model.

    Raises
    ------
    CheckpointError
        ``auto-model-damaged``, ``trained-for-other-weights``, ``trained-for-other-model``, or those of
        :func:`~medsam2_core.auto.model_file.read_card`.
    CatalogueError
        ``base-not-found``: the SAM 2 it was trained for is not on this machine.
    """
    card = read_card(path)
    beside = _beside(path, card)
    if model is None:
        try:
            size = card.image_size if beside is not None else _size(card)
            model = load_model(beside or card.base, device, precision, image_size=size)
        except CatalogueError as error:
            message = f"{path} was trained for {card.base!r}, name its checkpoint: {error}"
            raise CatalogueError(message, code="base-not-found", path=str(path), base=card.base) from error
    check_base(card, model, str(path))
    try:
        auto = untrained_model(card, model)
    except (MedSAM2Error, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise damaged(path, "its predictor cannot be built", str(error)[:200]) from error
    _fill(auto, read_tensors(path), str(path))
    return auto


def check_base(card: AutoCard, model: SegmentationModel, source: str) -> None:
    """Raise CheckpointError if an Auto model was trained for another SAM 2.

    Later weights with the same image encoder fit, too, unless the model has updates of the mask decoder.
    """
    fits = (
        card.base_key == model.weights_key if card.decoder == "lora" else model.has_encoder_of(card.base_key)
    )
    if fits and card.image_size == model.image_size:
        return
    if card.base == model.name and card.image_size == model.image_size:
        raise CheckpointError(
            f"{source} was trained for other weights of {card.base!r} ({card.base_key[:12]}) than these "
            f"({model.weights_key[:12]}): name the checkpoint it was trained for, or train it again",
            code="trained-for-other-weights", base=card.base,
        )  # fmt: skip
    raise CheckpointError(
        f"{source} was trained for {card.base!r} at {card.image_size} px ({card.base_key[:12]}), not for "
        f"{model.name!r} at {model.image_size} px ({model.weights_key[:12]}): use it with {card.base!r}",
        code="trained-for-other-model", base=card.base, image_size=card.image_size, model=model.name,
    )  # fmt: skip


def _beside(path: str | Path, card: AutoCard) -> Path | None:
    """Return the checkpoint beside an imported model; None for one based on a model of the catalogue."""
    name = Path(card.base)
    if name.suffix not in CHECKPOINT_SUFFIXES or name.name != card.base:
        return None  # nor a path to elsewhere: a card may come from a stranger
    found = Path(path).with_name(card.base)
    return found if found.is_file() else None


def _size(card: AutoCard) -> int | None:
    """Return the image size to request: None if it is that of the catalogue."""
    from medsam2_core.engine.catalogue import Catalogue

    entry = Catalogue.load().find(card.base)
    return None if entry.image_size == card.image_size else card.image_size


def _settings(card: AutoCard, model: SegmentationModel) -> PredictorSettings:
    known = {one.name for one in dataclasses.fields(PredictorSettings)}
    given = {name: value for name, value in card.predictor.items() if name in known}
    settings = PredictorSettings(**{**given, "classes": len(card.classes)})
    fitting = PredictorSettings.for_module(model.module, len(card.classes), settings.heads, settings.kind)
    if (settings.width, settings.fine_widths) != (fitting.width, fitting.fine_widths):
        raise ValueError(f"{settings.width} channels, the model {card.base!r} has {fitting.width}")
    return settings


def _fill(auto: AutoModel, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load all tensors; none may be missing or left over."""
    from medsam2_core.engine.checkpoint import load_strict

    groups: dict[str, dict[str, torch.Tensor]] = {_PREDICTOR: {}, _DECODER: {}, _ENCODER: {}, _TEXTURE: {}}
    for name, value in tensors.items():
        prefix = name.partition(".")[0] + "."
        if prefix not in groups:
            raise damaged(source, "it holds what no Auto model has", name)
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise damaged(source, "values are not finite", name)
        groups[prefix][name[len(prefix) :]] = value
    load_strict(auto.network.predictor, groups[_PREDICTOR], source=source)
    problems = []
    if auto.card.decoder == "lora":
        problems += load_parts(auto.network.decoder, groups[_DECODER])
    elif groups[_DECODER]:
        problems.append("parts of a decoder, though its decoder is frozen")
    for part, prefix in ((auto.adapters, _ENCODER), (auto.texture, _TEXTURE)):
        if part is not None and part is auto.texture and "looks" not in groups[prefix]:
            message = f"{source} was made by an earlier version with another texture adapter: train it again"
            raise CheckpointError(message, code="auto-model-version", path=source)
        if part is not None:
            load_strict(part, groups[prefix], source=source)
        elif groups[prefix]:
            problems.append(f"tensors called {prefix}…, which its card does not mention")
    if problems:
        raise damaged(source, f"{len(problems)} parts do not fit its card", problems[0])


def _prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in tensors.items()}
