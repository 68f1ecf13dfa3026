"""The card inside a fine-tuned checkpoint: what it was made from, how, its licence and its figures.

It is text in the header of the safetensors file (``__metadata__``), so that it goes wherever the weights go;
other programs ignore it. Reading it needs neither torch nor the tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_KEY = "medsam2"
_FORM = 1
_LARGEST_HEADER = 100_000_000  # the limit of safetensors itself


@dataclass(frozen=True)
class ModelCard:
    """What a fine-tuned checkpoint says of itself.

    Attributes
    ----------
    base, base_key, base_sha256
        Name and ``SegmentationModel.weights_key`` of the model it was made from, and SHA-256 of its file.
    config, image_size, recipe, postprocessing
        As of a :class:`~medsam2_core.engine.catalogue.ModelEntry`.
    licence, attribution, notice
        Of the base; they hold for what was made from it, too.
    classes
        Names of what it was trained on.
    training
        Counts and settings; nothing of a patient.
    figures
        Mean Dice by a simulated user, ``before`` and ``after``, on cases that were not trained on.
    """

    base: str
    base_key: str
    config: str | None
    image_size: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    postprocessing: bool = True
    licence: str | None = None
    attribution: str = ""
    notice: str = ""
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    software: str = ""
    base_sha256: str = ""

    def metadata(self) -> dict[str, str]:
        """Return the card as metadata of a safetensors file."""
        return {"format": "pt", _KEY: json.dumps({"form": _FORM, **asdict(self)})}


def read_card(path: str | Path) -> ModelCard | None:
    """Return the card of a checkpoint; None if it has none, or none that can be read."""
    try:
        with Path(path).expanduser().open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _LARGEST_HEADER:
                return None
            header = json.loads(stream.read(size))
        facts = json.loads(header["__metadata__"][_KEY])
        if facts.pop("form") != _FORM:
            return None
        card = ModelCard(**{**facts, "classes": tuple(map(str, facts.get("classes", ())))})
    except (OSError, RuntimeError, struct.error, ValueError, LookupError, TypeError, AttributeError):
        return None
    return card if _is_sound(card) else None


def _is_sound(card: ModelCard) -> bool:
    """Return whether every field is of its kind: a card comes from wherever the weights do."""
    texts = (card.base, card.base_key, card.base_sha256, card.attribution, card.notice, card.software)
    return (
        all(isinstance(text, str) for text in texts)
        and all(text is None or isinstance(text, str) for text in (card.config, card.licence))
        and type(card.image_size) is int
        and 0 < card.image_size <= 4096
        and card.image_size % 32 == 0
        and type(card.postprocessing) is bool
        and all(isinstance(part, dict) for part in (card.recipe, card.training, card.figures))
        and _is_weights(card.recipe.get("presence", ()))
    )


def _is_weights(presence: Any) -> bool:
    """Return whether these are a recipe's weights of presence: none, or one for each piece of evidence."""
    return (
        isinstance(presence, list | tuple)
        and len(presence) in (0, 5)
        and all(type(one) in (int, float) for one in presence)
    )
