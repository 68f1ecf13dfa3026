"""The mask of one object on one slice, as bits: small enough to send every one, and to keep all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import VolumeError

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
LARGEST_SLICE = 1 << 26  # pixels, as in imaging.oblique
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
    """The (H, W) mask again. VolumeError when box, bits and shape do not fit together."""
    (top, left, height, width), (rows, columns) = box, shape_hw
    if min(box) < 0 or top + height > rows or left + width > columns or rows * columns > LARGEST_SLICE:
        raise VolumeError(f"a mask in the box {box} does not fit a slice of {shape_hw} pixels")
    data = np.frombuffer(bytes(bits), np.uint8)
    if data.size != (height * width + 7) // 8:
        raise VolumeError(f"a mask in the box {box} has {data.size} bytes, not a bit a pixel")
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
