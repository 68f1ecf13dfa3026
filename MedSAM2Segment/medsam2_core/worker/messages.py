"""The words of the protocol: prompts, slices, stacks, settings and errors as JSON and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core import errors
from medsam2_core.errors import GeometryError, MedSAM2Error, PromptError, ProtocolError, WorkerError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.slices import AXES, SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt, Point, Prompt, SlicePrompts
from medsam2_core.worker.masks import (
    add_array,
    checked,
    named_array,
    slice_mask_from_json,
    slice_mask_to_json,
)

#: Versions of the protocol that this package speaks, the best first.
PROTOCOLS = (1,)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ObjectRecord:
    """All that is known of an object: what was said, and the mask of every slice that has one.

    Attributes
    ----------
    words
        By slice; empty ones are left out.
    records
        By slice: the answers to the words, and what tracking found.
    refined
        By slice, the mask that tracking had found before words were said about it: the words correct it, and
        would mean something else to somebody who does not know it.
    """

    words: Mapping[int, SlicePrompts] = field(default_factory=dict)
    records: Mapping[int, SliceMask] = field(default_factory=dict)
    refined: Mapping[int, SliceMask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = {n: words for n, words in self.words.items() if words}
        object.__setattr__(self, "words", MappingProxyType(words))
        object.__setattr__(self, "records", MappingProxyType(dict(self.records)))
        object.__setattr__(self, "refined", MappingProxyType(dict(self.refined)))

    def to_json(self, arrays: Arrays) -> dict[str, Any]:
        """Fields ``slices`` and ``tracked`` of a `restore` request."""
        slices = []
        for n, words in sorted(self.words.items()):
            known = words.known
            if known is None and words.prompts and (n in self.refined or words.needs_known):
                known = self.records.get(n)
            slices.append(words_to_json(n, dataclasses.replace(words, known=known), arrays))
        found = {n: record for n, record in self.records.items() if n not in self.words}
        found.update({n: record for n, record in self.refined.items() if n in self.words})
        return {"slices": slices, "tracked": [slice_mask_to_json(found[n], arrays) for n in sorted(found)]}


@dataclass(frozen=True)
class StackChoice:
    """How a volume is cut into slices: along an axis, or in any direction.

    Attributes
    ----------
    axis
        One of `imaging.slices.AXES`; empty for an oblique stack.
    origin_ras, row_direction_ras, column_direction_ras, spacing_mm
        Of an oblique stack, as in :meth:`~medsam2_core.imaging.slices.SliceStack.oblique`.
    """

    axis: str = "axial"
    origin_ras: tuple[float, float, float] | None = None
    row_direction_ras: tuple[float, float, float] | None = None
    column_direction_ras: tuple[float, float, float] | None = None
    spacing_mm: tuple[float, float, float] | None = None

    @classmethod
    def oblique(
        cls, origin_ras: Any, row_direction_ras: Any, column_direction_ras: Any, spacing_mm: Any = None
    ) -> StackChoice:
        """Parallel slices in any direction, from anything that holds three numbers."""
        given = (origin_ras, row_direction_ras, column_direction_ras, spacing_mm)
        return cls("", *(None if value is None else _three(value) for value in given))

    def to_json(self) -> dict[str, Any]:
        """For a message."""
        if self.axis:
            return {"axis": self.axis}
        values = {name: getattr(self, name) for name in _OBLIQUE}
        return {name: None if value is None else list(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, item: Any) -> StackChoice:
        """From a message. GeometryError when it is no stack."""
        if not isinstance(item, dict):
            raise GeometryError(f"a stack must be a JSON object, not {repr(item)[:60]}")
        if "axis" in item:
            if item["axis"] not in AXES:
                raise GeometryError(f"unknown axis {repr(item['axis'])[:60]}: use one of {', '.join(AXES)}")
            return cls(item["axis"])
        return cls.oblique(*(item.get(name) for name in _OBLIQUE))

    def stack(self, volume: Volume) -> SliceStack:
        """The slices of a volume. GeometryError when the choice does not fit it."""
        if self.axis:
            return SliceStack.along(volume, self.axis)
        return SliceStack.oblique(
            volume, self.origin_ras, self.row_direction_ras, self.column_direction_ras, self.spacing_mm
        )


_OBLIQUE = ("origin_ras", "row_direction_ras", "column_direction_ras", "spacing_mm")


@dataclass(frozen=True)
class SessionSettings:
    """What a session is opened with; see :meth:`medsam2_core.session.Session.open`."""

    model: str = "embedded"
    device: str = "auto"
    precision: str = "auto"
    window: str = "auto"
    zoom: str = "auto"
    memory: str = "recent"

    def to_json(self) -> dict[str, str]:
        """For a message."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, item: Any) -> SessionSettings:
        """From a message; what is absent is as by default, what is unknown is refused with ProtocolError."""
        known = [one.name for one in dataclasses.fields(cls)]
        if not isinstance(item, dict) or set(item) - set(known):
            raise ProtocolError(f"settings {repr(item)[:100]}: use {', '.join(known)}")
        return cls(**{name: checked(item, name, str) for name in item})


def prompt_to_json(prompt: Prompt, arrays: Arrays) -> dict[str, Any]:
    """A prompt for a message; a mask's voxels are added to its arrays."""
    if isinstance(prompt, Point):
        return {"kind": "point", "ijk": list(prompt.ijk), "positive": prompt.positive}
    if isinstance(prompt, Box):
        predicted = {"predicted": True} if prompt.predicted else {}
        return {
            "kind": "box",
            "first_ijk": list(prompt.first_ijk),
            "last_ijk": list(prompt.last_ijk),
            **predicted,
        }
    array = add_array(arrays, prompt.mask_kji.astype(np.uint8))
    return {"kind": "mask", "array": array, "offset_ijk": list(prompt.offset_ijk)}


def prompt_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> Prompt:
    """A prompt from a message; PromptError when it is none, as the prompts themselves raise it."""
    kind = item.get("kind") if isinstance(item, dict) else None
    try:
        if kind == "point":
            return Point(_three(item.get("ijk")), checked(item, "positive", bool))
        if kind == "box":
            predicted = checked(item, "predicted", bool) if "predicted" in item else False
            return Box(_three(item.get("first_ijk")), _three(item.get("last_ijk")), predicted)
        if kind == "mask":
            mask_kji = named_array(item, "array", arrays, np.uint8)
            i, j, k = _three(item.get("offset_ijk"))
            if mask_kji.size and mask_kji.max() > 1:
                raise PromptError("a mask holds 0 and 1")
            return MaskPrompt(mask_kji, (i, j, k))  # type: ignore[arg-type]  # it checks for whole numbers
    except (GeometryError, ProtocolError) as error:
        raise PromptError(f"{kind} prompt: {error}") from error
    raise PromptError(f"unknown prompt {repr(item)[:80]}: use a point, a box or a mask")


def words_to_json(n: int, words: SlicePrompts, arrays: Arrays) -> dict[str, Any]:
    """One item of ``slices`` of a `say` or `restore` request."""
    item = {"n": n, "prompts": [prompt_to_json(p, arrays) for p in words.prompts], "final": words.final}
    if words.known is not None:
        known = slice_mask_to_json(words.known, arrays)
        item.update(
            {part: known[part] for part in ("mask", "box", "shape_hw", "predicted_iou", "object_score")}
        )
    return item


def words_from_json(item: Any, object: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, SlicePrompts]:
    """Slice number and words; a known mask comes as a record, with the figures that were told.

    Raises PromptError for a prompt that is none, else ProtocolError.
    """
    if not isinstance(item, dict):
        raise ProtocolError(f"a slice must be a JSON object, not {repr(item)[:60]}")
    n, final = checked(item, "n", int), item.get("final", False)
    if not isinstance(final, bool):
        raise ProtocolError(f"final must be true or false, not {repr(final)[:60]}")
    prompts = tuple(prompt_from_json(one, arrays) for one in checked(item, "prompts", list))
    known = None
    if item.get("mask") is not None:
        figures = {"predicted_iou": 1.0, "object_score": 10.0, "prompted": True}
        figures |= {name: item[name] for name in ("predicted_iou", "object_score") if name in item}
        told = {part: item.get(part) for part in ("mask", "box", "shape_hw")}
        known = slice_mask_from_json(
            {"object": object, "n": n, "final": final, **figures, **told}, arrays
        )  # fmt: skip
    return n, SlicePrompts(prompts, final, known)


def error_to_json(error: BaseException, details: str = "") -> dict[str, Any]:
    """Fields ``kind``, ``message`` and ``details`` of an `error` message."""
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        kind = "OutOfMemoryError"
    elif getattr(errors, kind, None) is not type(error):
        kind = next((one.__name__ for one in type(error).__mro__ if _is_told(one)), "InternalError")
    return {"kind": kind, "message": str(error) or kind, "details": details}


def error_from_json(header: Mapping[str, Any]) -> MedSAM2Error:
    """The error an `error` message tells, of its own class where this package knows it, else WorkerError.

    Its ``kind`` and ``details`` are attributes of the error.
    """
    kind, message = str(header.get("kind", "")), str(header.get("message", ""))
    known = getattr(errors, kind, None)
    is_ours = isinstance(known, type) and issubclass(known, MedSAM2Error)
    error = known(message) if is_ours else WorkerError(message or f"the worker failed: {kind}")
    error.kind = kind  # type: ignore[attr-defined]
    error.details = str(header.get("details") or "")  # type: ignore[attr-defined]
    return error


def _is_told(one: type) -> bool:
    return issubclass(one, MedSAM2Error) and getattr(errors, one.__name__, None) is one


def _three(values: Any) -> tuple[float, float, float]:
    try:
        x, y, z = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(f"expected three numbers, got {repr(values)[:60]}") from error
    return x, y, z
