"""From an Auto model's file, and the SAM 2 it was trained on, to a network that can be asked."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam2_core.auto.adapting import (
    Attached,
    adapted_decoder,
    encoder_adapters,
    load_parts,
    trainable_parts,
)
from medsam2_core.auto.model_file import AutoCard, read_card, read_tensors, write_file
from medsam2_core.auto.network import AutoNetwork
from medsam2_core.auto.predictor import Levels, PredictorSettings, PromptPredictor
from medsam2_core.auto.texture import Seen, TextureAdapter, resized, sketch
from medsam2_core.engine.catalogue import CHECKPOINT_SUFFIXES
from medsam2_core.engine.model import SegmentationModel, load_model
from medsam2_core.errors import CatalogueError, CheckpointError, MedSAM2Error

if TYPE_CHECKING:
    from torch import nn

_PREDICTOR, _DECODER, _ENCODER, _TEXTURE = "predictor.", "decoder.", "encoder.", "texture."


@dataclass(frozen=True, eq=False)
class AutoModel:
    """A network that needs no prompt, ready to be asked.

    Attributes
    ----------
    card
        What it is.
    model
        The SAM 2 below it.
    network
        Predictor and decoder, in eval mode, on the model's device.
    adapters
        Of the image encoder; None when it is as it was.
    texture
        Beside the image encoder; None when there is none.
    """

    card: AutoCard
    model: SegmentationModel
    network: AutoNetwork
    adapters: nn.ModuleList | None = None
    texture: TextureAdapter | None = None

    def levels(self, images: torch.Tensor) -> Levels:
        """Features of normalised images (B, 3, S, S)."""
        images = images.to(self.model.device)
        with self.model.computing():
            return self.textured(self.encoded(images), images)

    def encoded(self, images: torch.Tensor) -> Levels:
        """Features of normalised images (B, 3, S, S) from the encoder alone, which is never trained."""
        with self.model.computing(), self.encoding():
            return levels_of(self.model, images.to(self.model.device))

    def textured(self, levels: Levels, images: torch.Tensor) -> Levels:
        """What the encoder said of images, and what the texture adapter adds to it."""
        if self.texture is None:
            return levels
        seen = self.texture(images)
        return with_texture(levels, seen, sketch(seen.pixels, self.texture.looks))

    def encoding(self) -> AbstractContextManager[None]:
        """Within, the shared model's encoder is this model's own."""
        return nullcontext() if self.adapters is None else Attached(self.model.module, self.adapters)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it as one file. ExportError when that cannot be."""
        parts: dict[str, Any] = _prefixed(_PREDICTOR, self.network.predictor.state_dict())
        if self.card.decoder == "lora":
            parts |= _prefixed(_DECODER, trainable_parts(self.network.decoder))
        if self.adapters is not None:
            parts |= _prefixed(_ENCODER, self.adapters.state_dict())
        if self.texture is not None:
            parts |= _prefixed(_TEXTURE, self.texture.state_dict())
        write_file(path, self.card, parts, overwrite=overwrite)


def levels_of(model: SegmentationModel, images: torch.Tensor) -> Levels:
    """Features of (B, 3, S, S) normalised images, as the mask decoder gets them; with gradients if they are
    on."""
    module = model.module
    maps = module.forward_image(images)["backbone_fpn"]
    coarse = maps[2]
    if module.directly_add_no_mem_embed:
        coarse = coarse + module.no_mem_embed.view(1, -1, 1, 1)
    return Levels(coarse, maps[1], maps[0])


def with_texture(levels: Levels, seen: Seen, drawn: torch.Tensor) -> Levels:
    """Features of the encoder and what a texture adapter has seen in the same images.

    Parameters
    ----------
    drawn
        (B, K, h, w) its sketch of the classes.
    """
    return Levels(
        levels.coarse + seen.coarse, levels.middle + seen.middle, levels.fine + seen.fine,
        resized(drawn, levels.fine.shape[-1]),
    )  # fmt: skip


def blank(card: AutoCard, model: SegmentationModel) -> AutoModel:
    """A model of this card with new, untrained parts."""
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
    path: str | Path,
    model: SegmentationModel | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> AutoModel:
    """Load an Auto model's file.

    Parameters
    ----------
    model
        The SAM 2 it was trained on; None loads the one its card names: a model of the catalogue, or the
        checkpoint of that name beside an imported Auto model.
    device, precision
        For that.

    Raises
    ------
    CheckpointError
        The file is damaged or no Auto model, or it was trained on another SAM 2 than `model`: which one.
    CatalogueError
        The SAM 2 it was trained on is not on this machine; the message says how to get it.
    """
    card = read_card(path)
    beside = _beside(path, card)
    if model is None:
        try:
            size = card.image_size if beside is not None else _size(card)
            model = load_model(beside or card.base, device, precision, image_size=size)
        except CatalogueError as error:
            raise CatalogueError(
                f"{path} was trained on {card.base!r}, name its checkpoint: {error}"
            ) from error
    check_base(card, model, str(path))
    try:
        auto = blank(card, model)
    except (MedSAM2Error, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is damaged: its predictor cannot be built ({str(error)[:200]})"
        ) from error
    _fill(auto, read_tensors(path), str(path))
    return auto


def check_base(card: AutoCard, model: SegmentationModel, source: str) -> None:
    """CheckpointError when an Auto model was not trained on this SAM 2.

    Earlier weights with the same image encoder will do, unless the model has updates of their decoder.
    """
    fits = (
        card.base_key == model.weights_key if card.decoder == "lora" else model.has_encoder_of(card.base_key)
    )
    if fits and card.image_size == model.image_size:
        return
    if card.base == model.name and card.image_size == model.image_size:
        raise CheckpointError(
            f"{source} was trained on other weights of {card.base!r} ({card.base_key[:12]}) than these "
            f"({model.weights_key[:12]}): name the checkpoint it was trained for, or train it again"
        )
    raise CheckpointError(
        f"{source} was trained on {card.base!r} at {card.image_size} px ({card.base_key[:12]}), not on "
        f"{model.name!r} at {model.image_size} px ({model.weights_key[:12]}): use it with {card.base!r}"
    )


def _beside(path: str | Path, card: AutoCard) -> Path | None:
    """The checkpoint below an imported model, which lies beside it; None for a model of the catalogue."""
    name = Path(card.base)
    if name.suffix not in CHECKPOINT_SUFFIXES or name.name != card.base:
        return None  # nor anything that lies elsewhere: a card may come from a stranger
    found = Path(path).with_name(card.base)
    return found if found.is_file() else None


def _size(card: AutoCard) -> int | None:
    """The image size to ask for: None where the catalogue has the same."""
    from medsam2_core.engine.catalogue import Catalogue

    entry = Catalogue.load().find(card.base)
    return None if entry.image_size == card.image_size else card.image_size


def _settings(card: AutoCard, model: SegmentationModel) -> PredictorSettings:
    known = {one.name for one in dataclasses.fields(PredictorSettings)}
    given = {name: value for name, value in card.predictor.items() if name in known}
    settings = PredictorSettings(**{**given, "classes": len(card.classes)})
    fitting = PredictorSettings.for_module(model.module, len(card.classes), settings.heads, settings.kind)
    if (settings.width, settings.fine_widths) != (fitting.width, fitting.fine_widths):
        raise CheckpointError(
            f"its predictor is {settings.width} channels wide, the model {card.base!r} {fitting.width}"
        )
    return settings


def _fill(auto: AutoModel, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy tensors into their places; every one must have a place, and none may be left over."""
    from medsam2_core.engine.checkpoint import load_strict

    groups = {_PREDICTOR: {}, _DECODER: {}, _ENCODER: {}, _TEXTURE: {}}
    for name, value in tensors.items():
        prefix = name.partition(".")[0] + "."
        if prefix not in groups:
            raise CheckpointError(f"{source} is damaged: it holds {name!r}, which no Auto model has")
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise CheckpointError(f"{source} is damaged: {name} holds what is not a number")
        groups[prefix][name[len(prefix) :]] = value
    load_strict(auto.network.predictor, groups[_PREDICTOR], source=source)
    problems = []
    if auto.card.decoder == "lora":
        problems += load_parts(auto.network.decoder, groups[_DECODER])
    elif groups[_DECODER]:
        problems.append("it holds parts of a decoder, though its decoder is frozen")
    for part, prefix in ((auto.adapters, _ENCODER), (auto.texture, _TEXTURE)):
        if part is not None and part is auto.texture and "looks" not in groups[prefix]:
            raise CheckpointError(
                f"{source} was made by an earlier version, whose texture adapter was another one: "
                "train it again"
            )
        if part is not None:
            load_strict(part, groups[prefix], source=source)
        elif groups[prefix]:
            problems.append(f"it holds parts called {prefix}…, which its card does not know")
    if problems:
        raise CheckpointError(f"{source} is damaged: {problems[0]} (and {len(problems) - 1} more)")


def _prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in tensors.items()}
