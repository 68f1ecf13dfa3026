"""The mask of one object on one slice, and its probabilities, packed so that every one can be kept and sent.

Probabilities have 8 bits: a value v stands for v / 255. Values of :data:`INSIDE` and more are the pixels of
the mask, all others are not: rounding never moves a pixel across 0.5.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import PromptError, VolumeError

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
LARGEST_SLICE = 1 << 26  # pixels, as in imaging.slices


def pack(mask_hw: NDArray[Any]) -> tuple[Box, bytes]:
    """Return the bounding box of a (H, W) mask and its pixels, eight to a byte.

    Row by row inside the box, the first pixel in the highest bit. An empty mask is ``(0, 0, 0, 0)`` and no
    bytes.
    """
    mask_hw = np.asarray(mask_hw, dtype=bool)
    rows, columns = (np.flatnonzero(mask_hw.any(axis=axis)) for axis in (1, 0))
    if rows.size == 0:
        return (0, 0, 0, 0), b""
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    inside = mask_hw[top:bottom, left:right]
    return (top, left, bottom - top, right - left), np.packbits(inside).tobytes()


def unpack(box: Box, bits: bytes | NDArray[np.uint8], shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the (H, W) mask of :func:`pack`.

    Raises
    ------
    VolumeError
        ``mask-bits``: box, bits and shape do not fit together.
    """
    (top, left, height, width), (rows, columns) = box, shape_hw
    data = np.frombuffer(bytes(bits), np.uint8)
    is_inside = min(box) >= 0 and top + height <= rows and left + width <= columns
    if not is_inside or rows * columns > LARGEST_SLICE or data.size != (height * width + 7) // 8:
        message = f"{data.size} bytes are not a mask in the box {box} of a slice of {shape_hw} pixels"
        raise VolumeError(message, code="mask-bits", bytes=data.size, box=list(box), shape_hw=list(shape_hw))
    mask_hw = np.zeros((rows, columns), dtype=bool)
    inside = np.unpackbits(data, count=height * width).reshape(height, width)
    mask_hw[top : top + height, left : left + width] = inside
    return mask_hw


def check_slice(n: int, count: int) -> None:
    """Raise PromptError when none of ``count`` slices has the number ``n``."""
    if not 0 <= n < count:
        message = f"there is no slice {n}: slices are 0 to {count - 1}"
        raise PromptError(message, code="no-such-slice", n=n, count=count)


def check_shape(n: int, shape_hw: tuple[int, ...], slice_hw: tuple[int, int]) -> None:
    """Raise PromptError when a mask for slice ``n`` does not have the shape of that slice."""
    if tuple(shape_hw) != tuple(slice_hw):
        message = f"the mask on slice {n} is {tuple(shape_hw)}, the slice is {tuple(slice_hw)}"
        raise PromptError(message, code="mask-shape", n=n, shape_hw=list(shape_hw), slice_hw=list(slice_hw))


#: The value of certainty.
MAXIMUM = 255
#: The lowest value that is inside: 128 / 255 is the first probability above 0.5.
INSIDE = 128


def agreeing(values: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the values clipped to the side of 0.5 on which the mask is."""
    # A logit of exactly 0 is outside, and one just above it inside: 8 bits alone cannot tell them apart.
    return np.where(mask, np.maximum(values, np.uint8(INSIDE)), np.minimum(values, np.uint8(INSIDE - 1)))


@dataclass(frozen=True, slots=True)
class PackedValues:
    """Values of a slice that are not 0, as the deflated bytes of their bounding box.

    Attributes
    ----------
    deflated
        The box's rows; empty when all values are 0.
    box
        First row, first column, rows, columns.
    """

    deflated: bytes
    box: tuple[int, int, int, int]
    shape_hw: tuple[int, int]

    @classmethod
    def of(cls, values_hw: NDArray[np.uint8]) -> PackedValues:
        """Pack the values (H, W) uint8 of a slice."""
        shape = (int(values_hw.shape[0]), int(values_hw.shape[1]))
        rows = np.flatnonzero(values_hw.any(axis=1))
        if len(rows) == 0:
            return cls(b"", (0, 0, 0, 0), shape)
        first, last = int(rows[0]), int(rows[-1]) + 1
        columns = np.flatnonzero(values_hw[first:last].any(axis=0))
        left, right = int(columns[0]), int(columns[-1]) + 1
        inner = np.ascontiguousarray(values_hw[first:last, left:right])
        # Most values are 0 or 255: more effort than the least makes it slower, hardly smaller.
        return cls(zlib.compress(inner.data, 1), (first, left, *inner.shape), shape)

    @classmethod
    def certain(cls, mask_hw: NDArray[np.bool_]) -> PackedValues:
        """Pack a certain mask (H, W): 255 inside, 0 elsewhere."""
        return cls.of(np.where(mask_hw, np.uint8(MAXIMUM), np.uint8(0)))

    def agreeing(self, mask_hw: NDArray[np.bool_]) -> PackedValues:
        """Return the values clipped to the side of 0.5 on which a mask (H, W) is."""
        return PackedValues.of(agreeing(self.values_hw(), mask_hw))

    def values_hw(self) -> NDArray[np.uint8]:
        """Return the values (H, W), in a new array."""
        out = np.zeros(self.shape_hw, dtype=np.uint8)
        row, column, height, width = self.box
        if self.deflated:
            inner = np.frombuffer(zlib.decompress(self.deflated), dtype=np.uint8)
            out[row : row + height, column : column + width] = inner.reshape(height, width)
        return out

    @property
    def is_empty(self) -> bool:
        """Whether all values are 0."""
        return not self.deflated

    @property
    def nbytes(self) -> int:
        """Bytes of what is packed."""
        return len(self.deflated)


@dataclass(frozen=True)
class SliceMask:
    """The mask of one object on one slice, with what the model thinks of it.

    Attributes
    ----------
    shape_hw, box, bits
        The mask, see :func:`pack`.
    predicted_iou
        The model's estimate of the mask's quality, 0 to 1; 1 for a user's own mask.
    object_score
        Logit; 0 or less means that the model thinks the object is not on this slice.
    final
        Whether neither tracking nor prompts may change it.
    probabilities
        The probability of each pixel; None when they are not kept, or the mask is a user's own.
    agreement
        0 to 1, on an image of a set: how well the mask agrees with where the image is like the prompted ones.
    """

    object: str
    n: int
    shape_hw: tuple[int, int]
    box: Box
    bits: bytes
    predicted_iou: float = 1.0
    object_score: float = 10.0
    prompted: bool = False
    final: bool = False
    probabilities: PackedValues | None = None
    agreement: float = 1.0

    @classmethod
    def from_mask(
        cls,
        object: str,
        n: int,
        mask_hw: NDArray[Any],
        *,
        predicted_iou: float = 1.0,
        object_score: float | None = None,
        prompted: bool = False,
        final: bool = False,
        probabilities: PackedValues | None = None,
        agreement: float = 1.0,
    ) -> SliceMask:
        """Pack a (H, W) mask; without an object score it is taken to be certain."""
        box, bits = pack(mask_hw)
        if object_score is None:
            object_score = 10.0 if bits else -10.0
        shape_hw = (int(mask_hw.shape[0]), int(mask_hw.shape[1]))
        scores = (predicted_iou, object_score, prompted, final, probabilities, agreement)
        return cls(object, n, shape_hw, box, bits, *scores)

    def with_mask(self, mask_hw: NDArray[Any], **changes: Any) -> SliceMask:
        """Return a copy with another (H, W) mask, and other values of the fields named in ``changes``."""
        box, bits = pack(mask_hw)
        return replace(self, box=box, bits=bits, **changes)

    @property
    def mask_hw(self) -> NDArray[np.bool_]:
        """The (H, W) mask, unpacked at every access."""
        return unpack(self.box, self.bits, self.shape_hw)

    @property
    def is_empty(self) -> bool:
        """Whether the object is not on this slice."""
        return not self.bits

    @property
    def confidence(self) -> float:
        """0 to 1: the predicted IoU times the probability that the object is present, and on an image of a
        set times the agreement; for an empty mask, the probability that it is absent."""
        present = 1 / (1 + float(np.exp(-np.clip(self.object_score, -30, 30))))
        return 1 - present if self.is_empty else self.predicted_iou * present * self.agreement

    @property
    def certainty(self) -> PackedValues:
        """The probabilities; where there are none, 0 and 1 from the mask."""
        return self.probabilities or PackedValues.certain(self.mask_hw)

    @property
    def nbytes(self) -> int:
        """Bytes of the mask and the probabilities."""
        return len(self.bits) + (self.probabilities.nbytes if self.probabilities is not None else 0)
