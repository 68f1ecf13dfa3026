"""The file of an Auto model: the predictor's tensors, and a card that describes it.

The file is safetensors; the card is JSON in its metadata, so that models are listed without torch and without
reading a tensor. Of the training images only counts and Dice are stored. The card holds a SHA-256 of the
file, because safetensors has no checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medsam2_core.errors import CheckpointError, VolumeError
from medsam2_core.imaging.terminology import Terminology

SUFFIX = ".medsam2auto"
_KEY = "medsam2_auto"
_VERSION = 1
_LONGEST_HEADER = 16 << 20
_MOST_CLASSES = 1000
#: What can be added to a frozen encoder.
ENCODER_PARTS = frozenset({"adapters", "texture"})
# The checksum is taken while these stand in its place.
_UNSEALED = b"0" * 64
_SEAL = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')  # as JSON within JSON


@dataclass(frozen=True)
class AutoClass:
    """One class of an Auto model.

    Attributes
    ----------
    value
        Label value in the label maps of the training.
    colour_rgb
        Red, green, blue from 0 to 1.
    terminology
        3D Slicer's TerminologyEntry tag; empty if unknown.
    least_piece
        Smallest connected component that is kept, as a share of the model's square; 0 keeps all.
    """

    name: str
    value: int
    colour_rgb: tuple[float, float, float]
    terminology: str = ""
    least_piece: float = 0.0

    @property
    def coded(self) -> Terminology | None:
        """Codes of the terminology; None without a terminology that can be parsed."""
        try:
            return Terminology.parse(self.terminology) if self.terminology else None
        except VolumeError:
            return None


@dataclass(frozen=True)
class AutoCard:
    """Description of an Auto model, without its tensors.

    Attributes
    ----------
    classes
        In the order of the queries.
    base, base_key
        Name of the SAM 2 it was trained for, and the key of its weights.
    window
        Intensity window: a preset, ``"WIDTH,LEVEL"`` or ``auto``.
    axis
        Axis that slices were stacked along; ``"picture"`` for 2-D images.
    modality
        DICOM modality of the images; empty if unknown.
    predictor
        :meth:`PredictorSettings.to_dict`.
    decoder
        ``frozen``, or ``lora``: low-rank updates of the decoder are in the file.
    encoder
        ``frozen``, or what is added to it: ``adapters``, ``texture``, or ``adapters+texture``.
    training
        Facts about the training: counts, seconds, Dice by class. No names of files or patients.
    """

    name: str
    classes: tuple[AutoClass, ...]
    base: str
    base_key: str
    image_size: int
    window: str = "auto"
    axis: str = "picture"
    modality: str = ""
    predictor: Mapping[str, Any] = field(default_factory=dict)
    decoder: str = "frozen"
    encoder: str = "frozen"
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return tuple(one.name for one in self.classes)

    @property
    def encoder_parts(self) -> frozenset[str]:
        """What is added to the encoder; empty when it is frozen."""
        return frozenset() if self.encoder == "frozen" else frozenset(self.encoder.split("+"))

    @property
    def is_for_pictures(self) -> bool:
        """Whether it was trained on 2-D images, not on slices of volumes."""
        return self.axis == "picture"

    @property
    def can_track(self) -> bool:
        """Whether the memory of its SAM 2 is trained; that of an imported one may not be."""
        return self.training.get("tracks") is not False

    def chosen(self, names: list[str] | None) -> tuple[int, ...]:
        """Return the numbers of the classes with these names, in the model's order; of all for None.

        Raises
        ------
        CheckpointError
            Code ``unknown-class``.
        """
        if names is None:
            return tuple(range(len(self.classes)))
        wanted = [name.strip() for name in names]
        for name in wanted:
            if name not in self.class_names:
                known = ", ".join(map(repr, self.class_names))
                message = f"the Auto model {self.name!r} has no class {name!r}: its classes are {known}"
                raise CheckpointError(message, code="unknown-class", name=name, known=list(self.class_names))
        return tuple(n for n, name in enumerate(self.class_names) if name in wanted)

    def to_json(self) -> str:
        """Return the card as JSON, without the checksum."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, ensure_ascii=False)
        return text.encode("utf-8", "replace").decode()  # names of files may hold what is no character

    @classmethod
    def from_json(cls, text: str, source: str) -> AutoCard:
        """Parse what :meth:`to_json` returned.

        Raises
        ------
        CheckpointError
            ``auto-model-version`` or ``auto-model-damaged``; the message names `source`.
        """
        try:
            item = json.loads(text)
            if not isinstance(item, dict):
                raise TypeError("it is not an object")
            item.pop("sha256", None)
            version = item.pop("version", None)
            if version != _VERSION:
                raise CheckpointError(
                    f"{source} is an Auto model of version {version!r}, this program reads {_VERSION}: "
                    "train it again, or use another version of the program",
                    code="auto-model-version", path=source, version=version, readable=_VERSION,
                )  # fmt: skip
            item["classes"] = tuple(_class(one) for one in item["classes"])
            card = cls(**item)
            _check(card)
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
            raise damaged(source, "its card cannot be used", str(error)) from error
        return card


def damaged(source: str | Path, what: str, reason: str = "") -> CheckpointError:
    """Return the error for a file that no Auto model could have been saved as."""
    message = f"{source} is damaged: {what}" + (f" ({reason})" if reason else "")
    return CheckpointError(message, code="auto-model-damaged", path=str(source), reason=reason)


def read_card(path: str | Path) -> AutoCard:
    """Read the card of an Auto model: a few kilobytes.

    Raises
    ------
    CheckpointError
        ``not-an-auto-model``, ``auto-model-damaged``, ``auto-model-version``, ``auto-model-unreadable``.
    """
    path = Path(path)
    header = _header(path)
    try:
        text = json.loads(header).get("__metadata__", {}).get(_KEY)
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, "its header cannot be read", str(error)) from error
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path} is not an Auto model: train one with `medsam2 train auto`, or choose a {SUFFIX} file",
            code="not-an-auto-model", path=str(path),
        )  # fmt: skip
    return AutoCard.from_json(text, str(path))


def write_file(path: str | Path, card: AutoCard, tensors: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write card and tensors, whole or not at all; raise what :func:`~medsam2_core.atomic.new_file` does."""
    from safetensors.torch import save

    from medsam2_core.atomic import new_file

    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = '{"sha256": "' + _UNSEALED.decode() + '", ' + card.to_json().removeprefix("{")
    content = _sealed(save(kept, metadata={_KEY: text}))
    with new_file(Path(path), overwrite=overwrite) as stream:
        stream.write(content)


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read the tensors of an Auto model; raise ``auto-model-damaged`` for a wrong checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = Path(path).read_bytes()
        seal = _SEAL.search(content, 0, _LONGEST_HEADER)
        if seal is None or _sealed(content.replace(seal[1], _UNSEALED, 1)) != content:
            raise damaged(path, "its checksum is wrong: copy or train it again")
        return load(content)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise damaged(path, "copy or train it again", reason) from error


def _sealed(content: bytes) -> bytes:
    """Insert the checksum of a file's content."""
    return content.replace(_UNSEALED, hashlib.sha256(content).hexdigest().encode(), 1)


def _header(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= _LONGEST_HEADER:
                message = f"{path} is not an Auto model, nor any safetensors file"
                raise CheckpointError(message, code="not-an-auto-model", path=str(path))
            header = stream.read(length)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise CheckpointError(message, code="auto-model-unreadable", path=str(path)) from error
    if len(header) < length:
        raise damaged(path, "it is truncated: copy it again")
    return header


def _class(item: Mapping[str, Any]) -> AutoClass:
    red, green, blue = (float(part) for part in item["colour_rgb"])
    name, terminology = item["name"], item.get("terminology", "")
    if not isinstance(name, str) or not name.strip() or not isinstance(terminology, str):
        raise ValueError("a class has no name")
    if not all(math.isfinite(part) and 0 <= part <= 1 for part in (red, green, blue)):
        raise ValueError(f"class {name!r} has the colour {(red, green, blue)}")
    least = float(item.get("least_piece", 0.0))
    if not 0 <= least < 1:
        raise ValueError(f"class {name!r} has a least piece of {least}")
    return AutoClass(name, int(item["value"]), (red, green, blue), terminology, least)


def _check(card: AutoCard) -> None:
    """Raise ValueError for a card that no model could have written."""
    if not 1 <= len(card.classes) <= _MOST_CLASSES:
        raise ValueError(f"{len(card.classes)} classes")
    if len(set(card.class_names)) != len(card.classes):
        raise ValueError("two classes have one name")
    texts = (card.name, card.base, card.base_key, card.window, card.axis, card.modality, card.encoder)
    if not all(isinstance(text, str) for text in texts) or not card.name:
        raise ValueError("names must be texts")
    if type(card.image_size) is not int or not 32 <= card.image_size <= 8192:
        raise ValueError(f"image size {card.image_size!r}")
    if card.decoder not in ("frozen", "lora") or not card.encoder_parts <= ENCODER_PARTS:
        raise ValueError(f"decoder {card.decoder!r}, encoder {card.encoder!r}")
    if not isinstance(card.predictor, dict) or not isinstance(card.training, dict):
        raise ValueError("predictor and training must be objects")
