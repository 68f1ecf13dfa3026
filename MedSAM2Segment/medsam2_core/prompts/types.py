"""The three kinds of prompts: points, boxes and masks, in continuous IJK; and all those of a slice.

Voxel centres lie at integers, so a volume of I voxels covers -0.5 to I-0.5 along i. Prompts become pixels of
a slice in one place, :func:`medsam2_core.prompts.slice_prompts.resolve`; other spaces exist only in JSON, see
:mod:`medsam2_core.prompts.prompt_set`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask

ROUNDING = 1e-3  # voxels: what conversion to millimetres, five printed digits and back may cost
FLAT = 0.5  # slices: corners of a box that are closer than this lie on one slice
AXES = "ijk"


@dataclass(frozen=True)
class Point:
    """A click: this voxel belongs to the object (``positive``) or does not."""

    ijk: tuple[float, float, float]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ijk", _position(self.ijk, "point"))
        object.__setattr__(self, "positive", bool(self.positive))


@dataclass(frozen=True)
class Box:
    """A rectangle on one slice around the object, given by two opposite corners.

    On a slice along i, j or k, ``first_ijk`` has the smaller indices; :meth:`between` sorts them. On an
    oblique plane they are any two opposite corners. A ``predicted`` box was drawn by a model, which found a
    mask with it: further prompts correct that mask, as long as the box is not moved.
    """

    first_ijk: tuple[float, float, float]
    last_ijk: tuple[float, float, float]
    predicted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_ijk", _position(self.first_ijk, "box"))
        object.__setattr__(self, "last_ijk", _position(self.last_ijk, "box"))
        object.__setattr__(self, "predicted", bool(self.predicted))
        sizes = self._sizes()
        if sum(abs(size) > ROUNDING for size in sizes) < 2:
            raise PromptError(f"{self} is empty: it needs a width and a height", code="empty-box")
        if self.flat_axis is None:
            return
        for axis, (first, last) in enumerate(zip(self.first_ijk, self.last_ijk, strict=True)):
            if last < first and axis != self.flat_axis:
                message = f"{self} is inverted: {AXES[axis]} runs from {first:g} back to {last:g}"
                raise PromptError(message, code="inverted-box", axis=AXES[axis])

    @classmethod
    def between(
        cls, corner_ijk: Sequence[float], other_ijk: Sequence[float], *, predicted: bool = False
    ) -> Box:
        """Return the box of any two opposite corners."""
        first, last = list(_position(corner_ijk, "box")), list(_position(other_ijk, "box"))
        flat = _flat_axis([b - a for a, b in zip(first, last, strict=True)])
        for axis in range(3):
            # Sorting the corners of an oblique rectangle would move them off its plane.
            if flat is not None and axis != flat and first[axis] > last[axis]:
                first[axis], last[axis] = last[axis], first[axis]
        return cls((first[0], first[1], first[2]), (last[0], last[1], last[2]), predicted)

    @property
    def flat_axis(self) -> int | None:
        """The array axis (0 i, 1 j, 2 k) whose slice the box lies on; None on an oblique plane."""
        return _flat_axis(self._sizes())

    def _sizes(self) -> list[float]:
        return [last - first for first, last in zip(self.first_ijk, self.last_ijk, strict=True)]

    def __str__(self) -> str:
        return f"box {position_text(self.first_ijk)} to {position_text(self.last_ijk)}"


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """Voxels that belong to the object, on one slice or several.

    Parameters
    ----------
    mask_kji : (K, J, I) bool, the part of the grid that holds the mask
    offset_ijk : index of its first voxel in the volume

    A mask of a single slice without any voxel means that the object is absent there. In a thicker one only
    the slices that have voxels count.
    """

    mask_kji: NDArray[np.bool_]
    offset_ijk: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask_kji)
        if mask.ndim != 3 or mask.size == 0:
            message = f"a mask has three axes (k, j, i) and at least one voxel, not the shape {mask.shape}"
            raise PromptError(message, code="mask-axes", shape=list(mask.shape))
        if mask.dtype.kind not in "bui":
            message = f"a mask holds true and false, not {mask.dtype}"
            raise PromptError(message, code="mask-type", dtype=str(mask.dtype))
        mask = mask.astype(bool)
        if not mask.any() and 1 not in mask.shape:
            message = f"mask of {mask.shape[::-1]} voxels at {tuple(self.offset_ijk)} is empty"
            raise PromptError(message, code="empty-mask", shape=list(mask.shape))
        mask.flags.writeable = False
        offset = _position(self.offset_ijk, "mask offset")
        if any(value != int(value) for value in offset):
            message = f"mask offset {position_text(offset)} must be whole voxels"
            raise PromptError(message, code="not-whole-voxels")
        object.__setattr__(self, "mask_kji", mask)
        object.__setattr__(self, "offset_ijk", tuple(int(value) for value in offset))

    @classmethod
    def from_volume(cls, mask_kji: NDArray[Any]) -> MaskPrompt:
        """Return the part of a whole-volume mask that has voxels; PromptError when it has none."""
        filled = [np.flatnonzero(mask_kji.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        if filled[0].size == 0:
            message = f"the mask of {mask_kji.shape[::-1]} voxels is empty"
            raise PromptError(message, code="empty-mask", shape=list(mask_kji.shape))
        start, stop = [int(f[0]) for f in filled], [int(f[-1]) + 1 for f in filled]
        part = mask_kji[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        return cls(part != 0, (start[2], start[1], start[0]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaskPrompt):
            return NotImplemented
        return self.offset_ijk == other.offset_ijk and np.array_equal(self.mask_kji, other.mask_kji)

    def __hash__(self) -> int:
        return hash((self.offset_ijk, self.mask_kji.tobytes()))


Prompt = Point | Box | MaskPrompt


@dataclass(frozen=True)
class SlicePrompts:
    """All prompts of one object on one slice.

    Attributes
    ----------
    prompts
        In the order given; none removes the slice's earlier ones.
    final
        Whether neither tracking nor prompts may change the slice any more, as it is after these prompts.
    known
        The mask, where it is known: taken as it is, the model is not asked. Without prompts it is the user's
        own mask.
    """

    prompts: tuple[Prompt, ...] = ()
    final: bool = False
    known: SliceMask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))

    def __bool__(self) -> bool:
        """Return whether there is anything; if not, the slice's earlier prompts are removed."""
        return bool(self.prompts) or self.final or self.known is not None

    def asks_same(self, other: SlicePrompts) -> bool:
        """Return whether prompts and `final` are those of another; known masks are not compared."""
        return (self.prompts, self.final) == (other.prompts, other.final)

    @property
    def needs_known(self) -> bool:
        """Whether their mask cannot be predicted again: with a predicted box came a mask they correct."""
        return any(isinstance(prompt, Box) and prompt.predicted for prompt in self.prompts)


@dataclass(frozen=True, eq=False)
class PixelPrompts:
    """All prompts of one object on one slice, in the slice's pixels (x column, y row).

    ``points_xy`` (N, 2) float32, ``labels`` (N,) int32 with 1 for the object and 0 for background,
    ``box_xyxy`` (4,) float32 left, top, right, bottom or None, ``mask_hw`` (H, W) bool or None (all False:
    the object is absent here).
    """

    points_xy: NDArray[np.float32]
    labels: NDArray[np.int32]
    box_xyxy: NDArray[np.float32] | None = None
    mask_hw: NDArray[np.bool_] | None = None

    @classmethod
    def of_mask(cls, mask_hw: NDArray[np.bool_]) -> PixelPrompts:
        """Return the prompts of a mask (H, W) and nothing else."""
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
        return cls(*nothing, mask_hw=np.asarray(mask_hw, dtype=bool))


def _flat_axis(sizes: Sequence[float]) -> int | None:
    axis = min(range(3), key=lambda n: abs(sizes[n]))
    return axis if abs(sizes[axis]) < FLAT else None


def _position(values: Sequence[float], what: str) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what} {values!r}: expected three numbers", code="not-three-numbers") from error
    if len(numbers) != 3:
        message = f"{what} {values!r}: expected three numbers, got {len(numbers)}"
        raise PromptError(message, code="not-three-numbers", count=len(numbers))
    if not all(math.isfinite(number) for number in numbers):
        raise PromptError(f"{what} {position_text(numbers)}: the numbers must be finite", code="not-finite")
    return numbers


def position_text(numbers: Sequence[float]) -> str:
    """Return a position as text for a message."""
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"
