"""What a user says about an object: points, boxes and masks on slices of a volume.

Positions are continuous IJK (voxel centres at integers, so a volume of I voxels covers -0.5 to I-0.5 along
i). They become pixels of a slice in one place, :func:`resolve`. Other spaces exist only in the JSON files,
see :mod:`medsam2_core.prompt_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry, Space
    from medsam2_core.imaging.slices import SliceStack

_ROUNDING = 1e-3  # voxels: what conversion to millimetres, five printed digits and back may cost
_FLAT = 0.5  # slices: corners of a box that are closer than this lie on one slice
_AXES = "ijk"
_LONGEST_NAME = 200


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
    oblique plane any two opposite corners will do. A ``predicted`` box was drawn by a model, which found a
    mask with it: what is said besides corrects that mask, as long as nobody moves the box.
    """

    first_ijk: tuple[float, float, float]
    last_ijk: tuple[float, float, float]
    predicted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "first_ijk", _position(self.first_ijk, "box"))
        object.__setattr__(self, "last_ijk", _position(self.last_ijk, "box"))
        object.__setattr__(self, "predicted", bool(self.predicted))
        sizes = self._sizes()
        if sum(abs(size) > _ROUNDING for size in sizes) < 2:
            raise PromptError(f"{self} is empty: it needs a width and a height")
        if self.flat_axis is None:
            return
        for axis, (first, last) in enumerate(zip(self.first_ijk, self.last_ijk, strict=True)):
            if last < first and axis != self.flat_axis:
                raise PromptError(f"{self} is inverted: {_AXES[axis]} runs from {first:g} back to {last:g}")

    @classmethod
    def between(
        cls, corner_ijk: Sequence[float], other_ijk: Sequence[float], *, predicted: bool = False
    ) -> Box:
        """From any two opposite corners."""
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
        return f"box {_text(self.first_ijk)} to {_text(self.last_ijk)}"


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """Voxels that belong to the object, on one slice or several.

    Parameters
    ----------
    mask_kji : (K, J, I) bool, the part of the grid that holds the mask
    offset_ijk : index of its first voxel in the volume

    A mask of a single slice without any voxel says that the object is absent there. In a thicker one only the
    slices that have voxels count.
    """

    mask_kji: NDArray[np.bool_]
    offset_ijk: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask_kji)
        if mask.ndim != 3 or mask.size == 0:
            raise PromptError(
                f"a mask has three axes (k, j, i) and at least one voxel, not the shape {mask.shape}"
            )
        if mask.dtype.kind not in "bui":
            raise PromptError(f"a mask holds true and false, not {mask.dtype}")
        mask = mask.astype(bool)
        if not mask.any() and 1 not in mask.shape:
            raise PromptError(f"mask of {mask.shape[::-1]} voxels at {tuple(self.offset_ijk)} is empty")
        mask.flags.writeable = False
        offset = _position(self.offset_ijk, "mask offset")
        if any(value != int(value) for value in offset):
            raise PromptError(f"mask offset {_text(offset)} must be whole voxels")
        object.__setattr__(self, "mask_kji", mask)
        object.__setattr__(self, "offset_ijk", tuple(int(value) for value in offset))

    @classmethod
    def from_volume(cls, mask_kji: NDArray[Any]) -> MaskPrompt:
        """The part of a whole-volume mask that has voxels; PromptError when it has none."""
        filled = [np.flatnonzero(mask_kji.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        if filled[0].size == 0:
            raise PromptError(f"the mask of {mask_kji.shape[::-1]} voxels is empty")
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


@dataclass
class PromptSet:
    """Objects by name, in order, each with its prompts in the order they were given."""

    objects: dict[str, list[Prompt]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objects, in order."""
        return tuple(self.objects)

    def add_object(self, name: str) -> None:
        """Add an object without prompts; nothing happens when it is there."""
        if not isinstance(name, str) or not name.strip():
            raise PromptError(f"object name {repr(name)[:60]}: give a name that is not empty")
        if len(name) > _LONGEST_NAME:
            raise PromptError(f"object name {name[:40]!r}... is longer than {_LONGEST_NAME} letters")
        self.objects.setdefault(name, [])

    def add(self, object_name: str, prompt: Prompt) -> None:
        """Append a prompt; a new name makes a new object."""
        if not isinstance(prompt, Point | Box | MaskPrompt):
            raise PromptError(f"{prompt!r} is not a point, a box or a mask")
        self.add_object(object_name)
        self.objects[object_name].append(prompt)

    def of(self, object_name: str) -> list[Prompt]:
        """The prompts of an object; PromptError names the known ones."""
        if object_name not in self.objects:
            known = ", ".join(map(repr, self.objects)) or "none yet"
            raise PromptError(f"unknown object {object_name!r}: known objects are {known}")
        return self.objects[object_name]

    def remove_object(self, object_name: str) -> None:
        """Forget an object and its prompts."""
        self.of(object_name)
        del self.objects[object_name]

    def __iter__(self) -> Iterator[tuple[str, list[Prompt]]]:
        return iter(self.objects.items())

    def __len__(self) -> int:
        return len(self.objects)

    def implied_axis(self) -> str | None:
        """The array axis (``"i"``, ``"j"``, ``"k"``) all boxes are flat along; None when no box tells.

        Raises PromptError when boxes lie on slices of different axes.
        """
        seen: dict[int, tuple[str, Box]] = {}
        for name, prompts in self:
            for box in (p for p in prompts if isinstance(p, Box)):
                if box.flat_axis is not None:
                    seen.setdefault(box.flat_axis, (name, box))
        if len(seen) > 1:
            told = "; ".join(
                f"{box} of {name!r} lies on a slice along {_AXES[axis]}" for axis, (name, box) in seen.items()
            )
            raise PromptError(f"mixed axes: {told}. All boxes must lie on slices of one axis")
        return _AXES[next(iter(seen))] if seen else None

    def to_json(self, space: Space | str = "ijk", geometry: Geometry | None = None) -> str:
        """As JSON, positions in ``space``; RAS and LPS need the geometry.

        See :mod:`~medsam2_core.prompt_files`.
        """
        from medsam2_core import prompt_files

        return prompt_files.to_json(self, space, geometry)

    @classmethod
    def from_json(cls, text: str | bytes, geometry: Geometry | None = None) -> PromptSet:
        """Back from :meth:`to_json`; PromptError tells what is wrong and where."""
        from medsam2_core import prompt_files

        return prompt_files.from_json(text, geometry)


@dataclass(frozen=True, eq=False)
class PixelPrompts:
    """Everything said about one object on one slice, in the slice's pixels (x column, y row).

    ``points_xy`` (N, 2) float32, ``labels`` (N,) int32 with 1 for the object and 0 for background,
    ``box_xyxy`` (4,) float32 left, top, right, bottom or None, ``mask_hw`` (H, W) bool or None (all False:
    the object is absent here).
    """

    points_xy: NDArray[np.float32]
    labels: NDArray[np.int32]
    box_xyxy: NDArray[np.float32] | None = None
    mask_hw: NDArray[np.bool_] | None = None


def validate(prompt_set: PromptSet, stack: SliceStack) -> None:
    """Check that every prompt fits the volume and lies on one slice; PromptError names object and bounds."""
    prompt_set.implied_axis()
    for name, prompts in prompt_set:
        try:
            resolve(prompts, stack)
        except PromptError as error:
            raise PromptError(f"object {name!r}: {error}") from error


def resolve(prompts: Iterable[Prompt], stack: SliceStack) -> dict[int, PixelPrompts]:
    """What the prompts of one object say about each slice of a stack, by slice number in ascending order.

    Raises
    ------
    PromptError
        When a prompt lies outside the volume, a box does not lie on one slice of this stack, or a slice gets
        two boxes.
    """
    points: dict[int, list[tuple[float, float, int]]] = {}
    boxes: dict[int, tuple[float, ...]] = {}
    masks: dict[int, NDArray[np.bool_]] = {}
    for prompt in prompts:
        if isinstance(prompt, Point):
            n, (x, y) = _point_on_slice(prompt, stack)
            points.setdefault(n, []).append((x, y, int(prompt.positive)))
        elif isinstance(prompt, Box):
            n, xyxy = _box_on_slice(prompt, stack)
            if boxes.setdefault(n, xyxy) is not xyxy:
                raise PromptError(
                    f"two boxes on slice {n} of {stack.title}: an object has one box on a slice"
                )
            continue
        else:
            for n, mask_hw in _mask_on_slices(prompt, stack):
                masks[n] = masks[n] | mask_hw if n in masks else mask_hw
    resolved = {}
    for n in sorted({*points, *boxes, *masks}):
        clicked = np.array(points.get(n, []), dtype=np.float64).reshape(-1, 3)
        resolved[n] = PixelPrompts(
            points_xy=clicked[:, :2].astype(np.float32),
            labels=clicked[:, 2].astype(np.int32),
            box_xyxy=np.array(boxes[n], dtype=np.float32) if n in boxes else None,
            mask_hw=masks.get(n),
        )
    return resolved


def _point_on_slice(point: Point, stack: SliceStack) -> tuple[int, tuple[float, float]]:
    _check_inside(point.ijk, stack, f"point {_text(point.ijk)}")
    x, y, n = stack.to_slice([point.ijk])[0]
    return _nearest_slice(n, stack, f"point {_text(point.ijk)}"), (float(x), float(y))


def _box_on_slice(box: Box, stack: SliceStack) -> tuple[int, tuple[float, ...]]:
    what = str(box)
    for corner in (box.first_ijk, box.last_ijk):
        _check_inside(corner, stack, what)
    corners = stack.to_slice([box.first_ijk, box.last_ijk])
    (left, top, first_n), (right, bottom, last_n) = np.sort(corners, axis=0)
    if last_n - first_n >= _FLAT:
        reason = "a box lies on one slice"
        if box.flat_axis is not None:
            reason = f"it lies on a slice along {_AXES[box.flat_axis]} (mixed axes)"
        raise PromptError(f"{what} spans slices {first_n:g} to {last_n:g} of {stack.title}: {reason}")
    if min(right - left, bottom - top) <= _ROUNDING:
        raise PromptError(f"{what} is empty on {stack.title}: {right - left:g} x {bottom - top:g} pixels")
    return _nearest_slice((first_n + last_n) / 2, stack, what), (left, top, right, bottom)


def _mask_on_slices(prompt: MaskPrompt, stack: SliceStack) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    shape_ijk = prompt.mask_kji.shape[::-1]
    what = f"mask of {shape_ijk} voxels at {prompt.offset_ijk}"
    first = np.array(prompt.offset_ijk, dtype=float)
    last = first + shape_ijk - 1
    for corner in (first, last):
        _check_inside(tuple(corner), stack, what)
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    numbers = stack.to_slice(first + corners * (last - first))[:, 2]
    lowest = max(0, math.floor(numbers.min() + 0.5))
    highest = min(len(stack) - 1, math.ceil(numbers.max() - 0.5))
    found = False
    for n in range(lowest, highest + 1):
        mask_hw = stack.mask_of(prompt.mask_kji, n, prompt.offset_ijk)
        if mask_hw.any() or lowest == highest:
            found = True
            yield n, mask_hw
    if not found:
        raise PromptError(f"{what} is empty on {stack.title}: only a mask of one slice may say 'absent here'")


def _nearest_slice(n: float, stack: SliceStack, what: str) -> int:
    nearest = math.floor(n + 0.5)
    if nearest == len(stack) and n <= len(stack) - 0.5 + _ROUNDING:
        nearest -= 1  # exactly on the outer face of the last slice
    if not 0 <= nearest < len(stack):
        raise PromptError(
            f"{what} lies on slice {nearest}, but {stack.title} has slices 0 to {len(stack) - 1}"
        )
    return nearest


def _check_inside(ijk: Sequence[float], stack: SliceStack, what: str) -> None:
    for axis, value, size in zip(_AXES, ijk, stack.volume.geometry.shape_ijk, strict=True):
        if not -0.5 - _ROUNDING <= value <= size - 0.5 + _ROUNDING:
            raise PromptError(
                f"{what} is outside the volume: {axis} = {value:g}, which must be from -0.5 to {size - 0.5:g}"
            )


def _flat_axis(sizes: Sequence[float]) -> int | None:
    axis = min(range(3), key=lambda n: abs(sizes[n]))
    return axis if abs(sizes[axis]) < _FLAT else None


def _position(values: Sequence[float], what: str) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what} {values!r}: expected three numbers") from error
    if len(numbers) != 3:
        raise PromptError(f"{what} {values!r}: expected three numbers, got {len(numbers)}")
    if not all(math.isfinite(number) for number in numbers):
        raise PromptError(f"{what} {_text(numbers)}: the numbers must be finite")
    return numbers  # type: ignore[return-value]


def _text(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"
