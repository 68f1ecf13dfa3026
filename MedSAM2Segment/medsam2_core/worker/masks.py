"""JSON and arrays of slice masks, and checked access to the parts of a message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import ProtocolError
from medsam2_core.imaging.slice_mask import LARGEST_SLICE, SliceMask

_PARTS: dict[str, type] = {
    **{"object": str, "n": int, "predicted_iou": float, "object_score": float},
    **{"prompted": bool, "final": bool, "shape_hw": list, "box": list},
}


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def slice_mask_to_json(mask: SliceMask, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a slice's mask for a message; the bits are added to the message's `arrays`."""
    values = {name: getattr(mask, name) for name in _PARTS}
    values.update({name: _finite(values[name]) for name in ("predicted_iou", "object_score")})
    return {**values, "mask": add_array(arrays, np.frombuffer(mask.bits, np.uint8))}


def slice_mask_from_json(item: Any, arrays: Mapping[str, NDArray[Any]]) -> SliceMask:
    """Read a slice's mask from a message; its bits are sure to fit its box and its shape.

    Raises
    ------
    ProtocolError
        When a part is missing or not what it must be.
    """
    if not isinstance(item, dict):
        raise ProtocolError(f"a record must be a JSON object, not {type(item).__name__}")
    values = {name: checked(item, name, kind) for name, kind in _PARTS.items()}
    bits = named_array(item, "mask", arrays, np.uint8).tobytes()
    shape_hw, box = _counts(values["shape_hw"], 2), _counts(values["box"], 4)
    values.update(shape_hw=shape_hw, box=box, bits=bits)
    record = SliceMask(**values)
    top, left, height, width = box
    if top + height > shape_hw[0] or left + width > shape_hw[1] or len(bits) != (height * width + 7) // 8:
        raise ProtocolError(f"record of slice {record.n}: {len(bits)} bytes in {box} of {shape_hw} pixels")
    if shape_hw[0] * shape_hw[1] > LARGEST_SLICE:
        raise ProtocolError(f"record of slice {record.n}: {shape_hw} pixels are too many")
    return record


def add_array(arrays: dict[str, NDArray[Any]], array: NDArray[Any]) -> str:
    """Put an array into a message under a name of its own; the name."""
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


def named_array(
    item: Mapping[str, Any], part: str, arrays: Mapping[str, NDArray[Any]], dtype: type
) -> NDArray[Any]:
    """The array whose name stands in ``item[part]``; ProtocolError when there is none, or of another type."""
    name = checked(item, part, str)
    if name not in arrays:
        raise ProtocolError(f"{part} names the array {name[:60]!r}, which the message does not have")
    array = arrays[name]
    if array.dtype != dtype:
        raise ProtocolError(f"the array {name[:60]!r} is of {array.dtype}, not {np.dtype(dtype)}")
    return array


def checked(item: Mapping[str, Any], part: str, kind: type) -> Any:
    """The value of a part of a message, of the kind it must be: a whole number serves as float."""
    value = item.get(part)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ProtocolError(f"{part} must be {kind.__name__}, not {repr(value)[:60]}")
    if kind is int and value < 0:
        raise ProtocolError(f"{part} must not be negative: {value}")
    try:
        return float(value) if kind is float else value
    except OverflowError as error:
        raise ProtocolError(f"{part} is too large a number") from error


def _counts(values: list[Any], length: int) -> tuple[Any, ...]:
    if len(values) != length or not all(type(v) is int and 0 <= v <= LARGEST_SLICE for v in values):
        raise ProtocolError(f"expected {length} whole numbers, got {repr(values)[:60]}")
    return tuple(int(value) for value in values)
