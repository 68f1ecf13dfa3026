"""Prompts, masks, stacks and settings of sessions as JSON and arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import GeometryError, PromptError, ProtocolError
from medsam2_core.imaging.geometry import AXES, Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.slice_mask import LARGEST_SLICE, SliceMask
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts.types import Box, MaskPrompt, Point, Prompt, SlicePrompts
from medsam2_core.worker.protocol import (
    Arrays,
    Frame,
    add_array,
    checked,
    field_error,
    named_array,
    optional,
)

_MASK_PARTS: dict[str, type] = {
    "object": str,
    "n": int,
    "predicted_iou": float,
    "object_score": float,
    "prompted": bool,
    "final": bool,
    "shape_hw": list,
    "box": list,
}
#: Tag of a segment with its codes, as 3D Slicer writes them.
TERMINOLOGY = "TerminologyEntry"
_OBLIQUE = ("origin_ras", "row_direction_ras", "column_direction_ras", "spacing_mm")


@dataclass(frozen=True)
class ObjectSnapshot:
    """Prompts and masks of one object: its complete state, for a new worker.

    Attributes
    ----------
    masks
        By slice: answers to prompts, and propagated masks.
    propagated
        By slice, the propagated mask from before the slice was prompted. Prompts correct it, so their answer
        depends on it.
    outdated
        Slices whose mask answers earlier prompts.
    """

    prompts: Mapping[int, SlicePrompts] = field(default_factory=dict)
    masks: Mapping[int, SliceMask] = field(default_factory=dict)
    propagated: Mapping[int, SliceMask] = field(default_factory=dict)
    outdated: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", {n: one for n, one in self.prompts.items() if one})

    def __bool__(self) -> bool:
        """Return whether there are prompts or masks."""
        return bool(self.prompts or self.masks)

    def with_prompts(
        self, slices: Mapping[int, SlicePrompts], answer: Iterable[SliceMask] | None = None
    ) -> ObjectSnapshot:
        """Return it with the prompts of some slices replaced; without an answer, their masks become outdated.

        Where prompts are removed, the propagated mask is restored.
        """
        prompts, masks, propagated = dict(self.prompts), dict(self.masks), dict(self.propagated)
        outdated = set(self.outdated)
        for n, one in slices.items():
            if one:
                if n not in prompts and n in masks:
                    propagated[n] = masks[n]
                prompts[n] = one
                outdated.add(n)
            else:
                outdated.discard(n)
                prompts.pop(n, None)
                masks.pop(n, None)
                if n in propagated:
                    masks[n] = propagated.pop(n)
        changed = ObjectSnapshot(prompts, masks, propagated, frozenset(outdated))
        if answer is None:
            return changed
        return dataclasses.replace(changed.with_masks(answer), outdated=self.outdated - set(slices))

    def with_masks(self, masks: Iterable[SliceMask]) -> ObjectSnapshot:
        """Return it with masks added or replaced."""
        added = {mask.n: mask for mask in masks}
        return ObjectSnapshot(
            self.prompts, {**self.masks, **added}, self.propagated, self.outdated - set(added)
        )

    def without_outdated(self) -> ObjectSnapshot:
        """Return it without outdated masks."""
        masks = {n: mask for n, mask in self.masks.items() if n not in self.outdated}
        return ObjectSnapshot(self.prompts, masks, self.propagated)

    def to_json(self, arrays: Arrays) -> dict[str, Any]:
        """Return fields ``slices`` and ``propagated`` of a `restore` request."""
        slices = []
        for n, prompts in sorted(self.prompts.items()):
            known = prompts.known
            if known is None and prompts.prompts and (n in self.propagated or prompts.needs_known):
                known = self.masks.get(n)
            slices.append(slice_prompts_to_json(n, dataclasses.replace(prompts, known=known), arrays))
        found = {n: mask for n, mask in self.masks.items() if n not in self.prompts}
        found.update({n: mask for n, mask in self.propagated.items() if n in self.prompts})
        return {"slices": slices, "propagated": [slice_mask_to_json(found[n], arrays) for n in sorted(found)]}


@dataclass(frozen=True)
class StackChoice:
    """How a volume is cut into slices: along an axis, or obliquely.

    Attributes
    ----------
    axis
        One of `imaging.geometry.AXES`; empty for an oblique stack.
    origin_ras, row_direction_ras, column_direction_ras, spacing_mm
        Of an oblique stack, as in :meth:`~medsam2_core.imaging.slices.SliceStack.oblique`. The fields are the
        arguments of :meth:`~medsam2_core.imaging.slices.SliceStack.cut`.
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
        """Return an oblique stack, from sequences of three numbers."""
        given = (origin_ras, row_direction_ras, column_direction_ras, spacing_mm)
        return cls("", *(None if value is None else _three(value) for value in given))

    def to_json(self) -> dict[str, Any]:
        """Return it for a message."""
        if self.axis:
            return {"axis": self.axis}
        values = {name: getattr(self, name) for name in _OBLIQUE}
        return {name: None if value is None else list(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, item: Any) -> StackChoice:
        """Read it from a message. GeometryError when it is invalid."""
        if not isinstance(item, dict):
            raise GeometryError(f"a stack must be a JSON object, not {repr(item)[:60]}", code="stack")
        if "axis" not in item:
            return cls.oblique(*(item.get(name) for name in _OBLIQUE))
        if item["axis"] not in AXES:
            axis = repr(item["axis"])[:60]
            raise GeometryError(
                f"unknown axis {axis}: use one of {', '.join(AXES)}", code="unknown-axis", axis=axis
            )
        return cls(item["axis"])


@dataclass(frozen=True)
class SessionSettings:
    """Options of a session; see :class:`medsam2_core.session.Session`."""

    model: str = "embedded"
    device: str = "auto"
    precision: str = "auto"
    window: str = "auto"
    zoom: str = "auto"
    memory: str = "auto"
    ordered: bool = True


def prompt_to_json(prompt: Prompt, arrays: Arrays) -> dict[str, Any]:
    """Return a prompt as JSON; the voxels of a mask are added to `arrays`."""
    if isinstance(prompt, Point):
        return {"kind": "point", "ijk": list(prompt.ijk), "positive": prompt.positive}
    if isinstance(prompt, Box):
        corners = {"first_ijk": list(prompt.first_ijk), "last_ijk": list(prompt.last_ijk)}
        return {"kind": "box", **corners, **({"predicted": True} if prompt.predicted else {})}
    array = add_array(arrays, prompt.mask_kji.astype(np.uint8))
    return {"kind": "mask", "array": array, "offset_ijk": list(prompt.offset_ijk)}


def prompt_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> Prompt:
    """Read a prompt from JSON. PromptError when it is invalid."""
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
                raise PromptError("a mask holds 0 and 1", code="mask-values")
            return MaskPrompt(mask_kji, (i, j, k))  # type: ignore[arg-type]  # it checks for whole numbers
    except (GeometryError, ProtocolError) as error:
        raise PromptError(f"{kind} prompt: {error}", code=error.code, **error.fields) from error
    raise PromptError(
        f"unknown prompt {repr(item)[:80]}: use a point, a box or a mask", code="unknown-prompt"
    )


def slice_prompts_to_json(n: int, prompts: SlicePrompts, arrays: Arrays) -> dict[str, Any]:
    """Return one item of ``slices`` of a `set_prompts` or `restore` request."""
    listed = [prompt_to_json(prompt, arrays) for prompt in prompts.prompts]
    item = {"n": n, "prompts": listed, "final": prompts.final}
    if prompts.known is not None:
        known = slice_mask_to_json(prompts.known, arrays)
        parts = ("mask", "box", "shape_hw", "predicted_iou", "object_score")
        item.update({part: known[part] for part in parts})
    return item


def slice_prompts_from_json(
    item: Any, object: str, arrays: Mapping[str, NDArray[Any]]
) -> tuple[int, SlicePrompts]:
    """Read slice number and prompts.

    Raises
    ------
    PromptError
        A prompt is invalid.
    ProtocolError
        Anything else is invalid.
    """
    if not isinstance(item, dict):
        raise field_error("slices", item, "must be a list of JSON objects")
    n = checked(item, "n", int)
    final = checked(item, "final", bool) if "final" in item else False
    prompts = tuple(prompt_from_json(one, arrays) for one in checked(item, "prompts", list))
    known = None
    if item.get("mask") is not None:
        mask = {"object": object, "predicted_iou": 1.0, "object_score": 10.0, "prompted": True, **item}
        known = slice_mask_from_json({**mask, "final": final}, arrays)
    return n, SlicePrompts(prompts, final, known)


def slice_mask_to_json(mask: SliceMask, arrays: Arrays) -> dict[str, Any]:
    """Return the mask of a slice as JSON; its bits are added to `arrays`."""
    values = {name: getattr(mask, name) for name in _MASK_PARTS}
    for name in ("predicted_iou", "object_score"):  # JSON has finite numbers only
        values[name] = float(values[name]) if math.isfinite(values[name]) else 0.0
    return {**values, "mask": add_array(arrays, np.frombuffer(mask.bits, np.uint8))}


def slice_mask_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> SliceMask:
    """Read the mask of a slice from JSON. ProtocolError when it is invalid."""
    if not isinstance(item, dict):
        raise field_error("slices", item, "must be a list of JSON objects")
    values = {name: checked(item, name, kind) for name, kind in _MASK_PARTS.items()}
    bits = named_array(item, "mask", arrays, np.uint8).tobytes()
    for name, length in (("shape_hw", 2), ("box", 4)):
        numbers = values[name]
        if len(numbers) != length or not all(type(v) is int and 0 <= v <= LARGEST_SLICE for v in numbers):
            raise field_error(name, numbers, f"must be {length} whole numbers")
        values[name] = tuple(numbers)
    (rows, columns), (top, left, height, width) = values["shape_hw"], values["box"]
    if rows * columns > LARGEST_SLICE:
        raise field_error("shape_hw", (rows, columns), f"must have at most {LARGEST_SLICE} pixels")
    if top + height > rows or left + width > columns or len(bits) != (height * width + 7) // 8:
        raise field_error("mask", len(bits), f"must have a bit for each pixel of its box {values['box']}")
    return SliceMask(**values, bits=bits)


def segmentation_to_json(segmentation: Segmentation, arrays: Arrays) -> dict[str, Any]:
    """Return a segmentation as JSON, without its provenance; the voxels are added to `arrays`."""
    segments = [
        {
            "name": one.name,
            "colour_rgb": list(one.colour_rgb),
            "terminology": one.tags.get(TERMINOLOGY, ""),
            "array": add_array(arrays, one.part_kji.astype(np.uint8)),
            "offset_ijk": list(one.offset_ijk),
        }
        for one in segmentation
    ]
    geometry = segmentation.geometry
    place = {"ijk_to_ras": geometry.ijk_to_ras.tolist(), "shape_ijk": list(geometry.shape_ijk)}
    return {**place, "segments": segments}


def segmentation_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> Segmentation:
    """Read a segmentation from JSON; the terminology is a tag. MedSAM2Error when it is invalid."""
    if not isinstance(item, dict):
        raise field_error("segmentation", item, "must be a JSON object")
    shape = checked(item, "shape_ijk", list)
    if len(shape) != 3 or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
        raise field_error("shape_ijk", shape, "must be three positive numbers")
    try:
        matrix = np.array(checked(item, "ijk_to_ras", list), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"ijk_to_ras must be 4 x 4 numbers: {error}", code="ijk-to-ras") from error
    geometry, segments = Geometry(matrix, tuple(shape)), []
    for one in checked(item, "segments", list):
        if not isinstance(one, dict):
            raise field_error("segments", one, "must be a list of JSON objects")
        part_kji = named_array(one, "array", arrays, np.uint8)
        offset = checked(one, "offset_ijk", list)
        fits = (
            len(offset) == 3
            and part_kji.ndim == 3
            and all(
                type(start) is int and 0 <= start <= whole - size
                for start, whole, size in zip(offset, shape, part_kji.shape[::-1], strict=True)
            )
        )
        if not fits:
            raise field_error("offset_ijk", offset, f"must be where {part_kji.shape} voxels lie in {shape}")
        tags = {TERMINOLOGY: optional(one, "terminology", str, "")}
        described = checked(one, "name", str), checked(one, "colour_rgb", list)
        i, j, k = offset
        segments.append(
            Segment.from_part(*described, part_kji > 0, (i, j, k), geometry.shape_ijk, None, tags)
        )
    return Segmentation(geometry, tuple(segments))


def example_to_json(
    volume: Volume, segmentation: Segmentation, window: str, arrays: Arrays
) -> dict[str, Any]:
    """Return a scan, or some of its slices, with its segmentation on the same grid as JSON."""
    voxels = add_array(arrays, volume.voxels_kji)
    return {**segmentation_to_json(segmentation, arrays), "voxels": voxels, "window": window}


def example_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> tuple[Volume, Segmentation, str]:
    """Read volume, segmentation and window of an example. MedSAM2Error when they are invalid."""
    segmentation = segmentation_from_json(item, arrays)
    name = checked(item, "voxels", str)
    if name not in arrays or arrays[name].shape[:3] != segmentation.geometry.shape_ijk[::-1]:
        raise field_error("voxels", name, "must be an array on the grid of the segmentation")
    return (
        Volume(arrays[name], segmentation.geometry, name="example"),
        segmentation,
        checked(item, "window", str),
    )


def limits_from_json(item: Any) -> dict[str, tuple[int, int]] | None:
    """Read ``limits`` of a `propagate` request: a range of slices by object. ProtocolError if invalid."""
    if item is None:
        return None
    is_range = isinstance(item, dict) and all(
        isinstance(one, list) and len(one) == 2 and all(type(n) is int for n in one) for one in item.values()
    )
    if not is_range:
        raise field_error("limits", item, "must give two whole numbers by object, or be null")
    return {name: (first, last) for name, (first, last) in item.items()}


def masks_from_json(frame: Frame) -> list[SliceMask]:
    """Read ``slices`` of a result or a `slice` message. ProtocolError when they are invalid."""
    return [slice_mask_from_json(item, frame.arrays) for item in checked(frame.header, "slices", list)]


def _three(values: Any) -> tuple[float, float, float]:
    try:
        x, y, z = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(
            f"expected three numbers, got {repr(values)[:60]}", code="three-numbers"
        ) from error
    return x, y, z
