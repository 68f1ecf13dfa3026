"""Masks of slices as bits: small enough to send every one, and to keep all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import ProtocolError

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
_LARGEST_SLICE = 1 << 26  # pixels, as in imaging.oblique
_EMPTY: Box = (0, 0, 0, 0)


def pack(mask_hw: NDArray[Any]) -> tuple[Box, bytes]:
    """The box (top, left, height, width) that holds a (H, W) mask, and its pixels, eight to a byte.

    Row by row inside the box, the first pixel in the highest bit. An empty mask is ``(0, 0, 0, 0)`` and no
    bytes.
    """
    mask_hw = np.asarray(mask_hw, dtype=bool)
    rows, columns = (np.flatnonzero(mask_hw.any(axis=axis)) for axis in (1, 0))
    if rows.size == 0:
        return _EMPTY, b""
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    inside = mask_hw[top:bottom, left:right]
    return (top, left, bottom - top, right - left), np.packbits(inside).tobytes()


def unpack(box: Box, bits: bytes | NDArray[np.uint8], shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The (H, W) mask again. ProtocolError when box, bits and shape do not fit together."""
    (top, left, height, width), (rows, columns) = box, shape_hw
    if min(box) < 0 or top + height > rows or left + width > columns or rows * columns > _LARGEST_SLICE:
        raise ProtocolError(f"a mask in the box {box} does not fit a slice of {shape_hw} pixels")
    data = np.frombuffer(bytes(bits), np.uint8)
    if data.size != (height * width + 7) // 8:
        raise ProtocolError(f"a mask in the box {box} has {data.size} bytes, not a bit a pixel")
    mask_hw = np.zeros((rows, columns), dtype=bool)
    inside = np.unpackbits(data, count=height * width).reshape(height, width)
    mask_hw[top : top + height, left : left + width] = inside
    return mask_hw


@dataclass(frozen=True)
class SliceMask:
    """One object on one slice, as the worker tells it and as everybody keeps it.

    Attributes
    ----------
    object
        Name of the object.
    n
        Slice number in the stack.
    iou, score, confidence
        The model's own estimate of the mask's quality (0 to 1), its object score (a logit), and how sure it
        seems (0 to 1).
    prompted, final
        Whether the user spoke about the slice, and whether nothing may change it any more.
    shape_hw, box, bits
        The mask, see :func:`pack`.
    """

    object: str
    n: int
    iou: float
    score: float
    confidence: float
    prompted: bool
    final: bool
    shape_hw: tuple[int, int]
    box: Box
    bits: bytes

    @classmethod
    def of_mask(
        cls,
        object: str,
        n: int,
        mask_hw: NDArray[Any],
        *,
        iou: float = 1.0,
        score: float = 0.0,
        confidence: float = 1.0,
        prompted: bool = True,
        final: bool = False,
    ) -> SliceMask:
        """From a (H, W) mask."""
        shape_hw = (int(mask_hw.shape[0]), int(mask_hw.shape[1]))
        return cls(object, n, iou, score, confidence, prompted, final, shape_hw, *pack(mask_hw))

    @property
    def mask_hw(self) -> NDArray[np.bool_]:
        """The (H, W) mask, made anew each time."""
        return unpack(self.box, self.bits, self.shape_hw)

    @property
    def is_empty(self) -> bool:
        """Whether the object is not on this slice."""
        return not self.bits

    def to_json(self, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """For a message; the bits are added to the message's `arrays`."""
        values = {name: getattr(self, name) for name in _PARTS}
        return {**values, "mask": add_array(arrays, np.frombuffer(self.bits, np.uint8))}

    @classmethod
    def from_json(cls, item: Any, arrays: Mapping[str, NDArray[Any]]) -> SliceMask:
        """From a message. ProtocolError tells what is wrong; what comes out can be unpacked without one."""
        if not isinstance(item, dict):
            raise ProtocolError(f"a record must be a JSON object, not {type(item).__name__}")
        values = {name: checked(item, name, kind) for name, kind in _PARTS.items()}
        bits = named_array(item, "mask", arrays, np.uint8).tobytes()
        shape_hw, box = _counts(values["shape_hw"], 2), _counts(values["box"], 4)
        values.update(shape_hw=shape_hw, box=box, bits=bits)
        record = cls(**values)
        top, left, height, width = box
        if top + height > shape_hw[0] or left + width > shape_hw[1] or len(bits) != (height * width + 7) // 8:
            raise ProtocolError(
                f"record of slice {record.n}: {len(bits)} bytes in {box} of {shape_hw} pixels"
            )
        if shape_hw[0] * shape_hw[1] > _LARGEST_SLICE:
            raise ProtocolError(f"record of slice {record.n}: {shape_hw} pixels are too many")
        return record


_PARTS: dict[str, type] = {
    **{"object": str, "n": int, "iou": float, "score": float, "confidence": float},
    **{"prompted": bool, "final": bool, "shape_hw": list, "box": list},
}


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
    if len(values) != length or not all(type(v) is int and 0 <= v <= _LARGEST_SLICE for v in values):
        raise ProtocolError(f"expected {length} whole numbers, got {repr(values)[:60]}")
    return tuple(int(value) for value in values)
