"""What an Auto model is asked and what it finds, as messages; and the models a worker offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medsam2_core.auto import library
from medsam2_core.errors import ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import Prompt
from medsam2_core.worker.client import Request
from medsam2_core.worker.frames import Frame
from medsam2_core.worker.masks import checked
from medsam2_core.worker.messages import prompt_from_json

Colour = tuple[float, float, float]
Slices = Callable[[list[SliceMask], int, "int | None"], None]


@dataclass(frozen=True)
class AutoWish:
    """What an Auto model is asked.

    Attributes
    ----------
    model
        Its file, by name or path on the worker's machine.
    classes
        Names of the classes wanted; None all.
    first, last
        Slices, inclusive; None the ends.
    method
        ``memory`` or ``slices``; empty: as the worker thinks best.
    flips
        Average with mirror images.
    """

    model: str
    classes: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None
    method: str = ""
    flips: bool = False

    def to_json(self) -> dict[str, Any]:
        """Fields of an `auto` request."""
        return {
            "model": self.model,
            "classes": None if self.classes is None else list(self.classes),
            "first": self.first,
            "last": self.last,
            "method": self.method or None,
            "flips": self.flips,
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> AutoWish:
        """Back from the fields; ProtocolError tells what is wrong."""
        classes, limits = item.get("classes"), (item.get("first"), item.get("last"))
        if classes is not None and not (
            isinstance(classes, list) and all(isinstance(n, str) for n in classes)
        ):
            raise ProtocolError(f"classes must be a list of names or null, not {repr(classes)[:60]}")
        if not all(value is None or type(value) is int for value in limits):
            raise ProtocolError("first and last must be whole numbers or null")
        method = "" if item.get("method") is None else checked(item, "method", str)
        flips = checked(item, "flips", bool) if "flips" in item else False
        names = None if classes is None else tuple(classes)
        return cls(checked(item, "model", str), names, *limits, method, flips)


@dataclass(frozen=True)
class ClassFinding:
    """What an Auto model found of one class.

    Attributes
    ----------
    name, colour_rgb, terminology
        Of the class; colours from 0 to 1, terminology as 3D Slicer's TerminologyEntry tag, or empty.
    confidence
        0 to 1; 0 when it is nowhere.
    prompts
        By slice, what was predicted there.
    records
        By slice, what is on it.
    """

    name: str
    colour_rgb: Colour
    terminology: str = ""
    confidence: float = 0.0
    prompts: Mapping[int, tuple[Prompt, ...]] = field(default_factory=dict)
    records: Mapping[int, SliceMask] = field(default_factory=dict)

    @property
    def is_found(self) -> bool:
        """Whether it is on any slice."""
        return any(not record.is_empty for record in self.records.values())


@dataclass(frozen=True)
class AutoEntry:
    """An Auto model a worker offers.

    Attributes
    ----------
    file
        Name of its file, without the ending: what it is asked for by.
    path
        Where that lies on the worker's machine.
    name, classes, base, axis, modality
        As on its card; `classes` are names.
    images
        How many images it was trained on; 0 when nobody knows.
    dice
        Mean Dice over classes as its training has measured; None when it has not.
    """

    file: str
    path: str
    name: str
    classes: tuple[str, ...] = ()
    base: str = ""
    axis: str = "picture"
    modality: str = ""
    images: int = 0
    dice: float | None = None

    def fits(self, *, is_picture: bool, modality: str = "") -> bool:
        """Whether it suits an image (see :func:`medsam2_core.auto.library.fits`)."""
        return library.fits(self, is_picture=is_picture, modality=modality)

    @property
    def is_for_pictures(self) -> bool:
        """Whether it was trained on pictures, not on slices of volumes."""
        return self.axis == "picture"

    @classmethod
    def from_json(cls, item: Any) -> AutoEntry:
        """From an item of `auto_models`. ProtocolError tells what is wrong."""
        if not isinstance(item, dict):
            raise ProtocolError(f"an Auto model must be a JSON object, not {repr(item)[:60]}")
        texts = [checked(item, name, str) for name in ("file", "path", "name")]
        classes = tuple(checked(one, "name", str) for one in checked(item, "classes", list))
        known = [checked(item, name, str) for name in ("base", "axis", "modality")]
        training = item.get("training") if isinstance(item.get("training"), dict) else {}
        images, dice = training.get("images"), _mean(training.get("dice"))
        return cls(*texts, classes, *known, images if type(images) is int else 0, dice)


def entries_in(told: Mapping[str, Any]) -> tuple[AutoEntry, ...]:
    """The models of an `auto_models` result."""
    return tuple(AutoEntry.from_json(item) for item in checked(told, "models", list))


def auto_request(
    wish: AutoWish,
    check: Callable[[list[SliceMask]], list[SliceMask]],
    slices: Slices | None = None,
    **callbacks: Any,
) -> Request:
    """A request whose result is a list of :class:`ClassFinding`.

    Parameters
    ----------
    check
        Lets records through that belong to the session.
    slices
        Gets records as they come; later ones replace earlier ones.
    callbacks
        `done`, `failed`, `progress` of the request.
    """
    request = Request("auto", wish.to_json(), slices=slices, **callbacks)
    known: dict[tuple[str, int], SliceMask] = {}

    def seen(records: list[SliceMask]) -> None:
        known.update({(record.object, record.n): record for record in check(records)})

    def take(frame: Frame) -> list[ClassFinding]:
        return [_finding(item, frame, known) for item in checked(frame.header, "classes", list)]

    request.seen, request.take = seen, take
    return request


def _finding(item: Any, frame: Frame, known: Mapping[tuple[str, int], SliceMask]) -> ClassFinding:
    if not isinstance(item, dict):
        raise ProtocolError(f"a class must be a JSON object, not {repr(item)[:60]}")
    name, listed = checked(item, "name", str), checked(item, "slices", list)
    missing = [n for n in listed if type(n) is not int or (name, n) not in known]
    if missing:
        raise ProtocolError(f"slice {repr(missing[0])[:20]} of {name[:60]!r} did not come")
    prompts = {
        _number(n): tuple(prompt_from_json(one, frame.arrays) for one in said)
        for n, said in checked(item, "prompts", dict).items()
        if isinstance(said, list)
    }
    records = {n: replace(known[name, n], prompted=n in prompts) for n in listed}
    colour = checked(item, "colour_rgb", list)
    if len(colour) != 3 or not all(isinstance(part, int | float) and 0 <= part <= 1 for part in colour):
        raise ProtocolError(f"colour_rgb must be three numbers from 0 to 1, not {repr(colour)[:60]}")
    red, green, blue = (float(part) for part in colour)
    confidence = checked(item, "confidence", float)
    return ClassFinding(
        name, (red, green, blue), checked(item, "terminology", str), confidence, prompts, records
    )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ProtocolError(f"prompts are listed by slice, not by {text[:20]!r}")
    return int(text)


def _mean(dice: Any) -> float | None:
    """Of a number, of numbers by class, or of what is told of each class."""
    if isinstance(dice, dict):
        means = [_mean(one.get("mean") if isinstance(one, dict) else one) for one in dice.values()]
        known = [one for one in means if one is not None]
        return sum(known) / len(known) if known else None
    return float(dice) if isinstance(dice, int | float) and not isinstance(dice, bool) else None
