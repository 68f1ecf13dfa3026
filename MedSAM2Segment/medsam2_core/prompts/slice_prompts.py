"""Prompts by slice: a session segments one slice at a time, so masks of several are cut into slices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask, check_shape, check_slice
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts.types import (
    AXES,
    FLAT,
    ROUNDING,
    Box,
    MaskPrompt,
    PixelPrompts,
    Point,
    Prompt,
    position_text,
)

if TYPE_CHECKING:
    from medsam2_core.prompts.prompt_set import PromptSet


def validate(prompt_set: PromptSet, stack: SliceStack) -> None:
    """Check that every prompt fits the volume and lies on one slice; PromptError names object and bounds."""
    prompt_set.implied_axis()
    for name, prompts in prompt_set:
        try:
            resolve(prompts, stack)
        except PromptError as error:
            message = f"object {name!r}: {error}"
            raise PromptError(message, code=error.code, **{**error.fields, "object": name}) from error


def resolve(prompts: Iterable[Prompt], stack: SliceStack) -> dict[int, PixelPrompts]:
    """Convert the prompts of one object into pixels, by slice number in ascending order.

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
                message = f"two boxes on slice {n} of {stack.title}: an object has one box on a slice"
                raise PromptError(message, code="two-boxes", n=n)
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
    _check_inside(point.ijk, stack, f"point {position_text(point.ijk)}")
    x, y, n = stack.to_slice([point.ijk])[0]
    return _nearest_slice(n, stack, f"point {position_text(point.ijk)}"), (float(x), float(y))


def _box_on_slice(box: Box, stack: SliceStack) -> tuple[int, tuple[float, ...]]:
    what = str(box)
    for corner in (box.first_ijk, box.last_ijk):
        _check_inside(corner, stack, what)
    corners = stack.to_slice([box.first_ijk, box.last_ijk])
    (left, top, first_n), (right, bottom, last_n) = np.sort(corners, axis=0)
    if last_n - first_n >= FLAT:
        reason = "a box lies on one slice"
        if box.flat_axis is not None:
            reason = f"it lies on a slice along {AXES[box.flat_axis]} (mixed axes)"
        message = f"{what} spans slices {first_n:g} to {last_n:g} of {stack.title}: {reason}"
        fields = {"first": float(first_n), "last": float(last_n), "flat_axis": box.flat_axis}
        raise PromptError(message, code="box-spans-slices", **fields)
    if min(right - left, bottom - top) <= ROUNDING:
        problem = f"{what} is empty on {stack.title}: {right - left:g} x {bottom - top:g} pixels"
        raise PromptError(problem, code="empty-box", width=float(right - left), height=float(bottom - top))
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
        raise PromptError(
            f"{what} is empty on {stack.title}: only an empty mask of a single slice means that the "
            "object is absent",
            code="empty-mask",
        )


def _nearest_slice(n: float, stack: SliceStack, what: str) -> int:
    nearest = math.floor(n + 0.5)
    if nearest == len(stack) and n <= len(stack) - 0.5 + ROUNDING:
        nearest -= 1  # exactly on the outer face of the last slice
    if not 0 <= nearest < len(stack):
        message = f"{what} lies on slice {nearest}, but {stack.title} has slices 0 to {len(stack) - 1}"
        raise PromptError(message, code="no-such-slice", n=nearest, count=len(stack))
    return nearest


def _check_inside(ijk: Sequence[float], stack: SliceStack, what: str) -> None:
    for axis, value, size in zip(AXES, ijk, stack.extent_ijk(ijk), strict=True):
        if not -0.5 - ROUNDING <= value <= size - 0.5 + ROUNDING:
            message = f"{what} is outside the volume: {axis} = {value:g}, expected -0.5 to {size - 0.5:g}"
            raise PromptError(message, code="outside-volume", axis=axis, value=float(value), size=int(size))


def by_slice(prompts: Iterable[Prompt], stack: SliceStack) -> dict[int, list[Prompt]]:
    """Return the prompts by the slice they lie on, each in the order given.

    A mask of several slices becomes one mask a slice. Only on an oblique stack, whose slices cut through
    voxels, it stays whole and is listed under every slice it reaches.
    """
    grouped: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        numbers = resolve([prompt], stack)
        if isinstance(prompt, MaskPrompt) and stack.array_axis is not None:
            for n, piece in _cut(prompt, stack, stack.array_axis):
                grouped.setdefault(n, []).append(piece)
        else:
            for n in numbers:
                grouped.setdefault(n, []).append(prompt)
    return grouped


def slices_of(prompt: Prompt, stack: SliceStack) -> frozenset[int]:
    """Return the slices a prompt of :func:`by_slice` lies on."""
    if isinstance(prompt, MaskPrompt) and stack.array_axis is not None:
        return frozenset({_number(prompt.offset_ijk, stack)})
    return frozenset(resolve([prompt], stack))


def mask_on_slice(mask_hw: NDArray[np.bool_], n: int, stack: SliceStack) -> MaskPrompt | None:
    """Return the mask of a slice as a prompt; None on an oblique stack, where voxels cannot express it
    exactly.

    Raises
    ------
    PromptError
        When there is no such slice, or the mask has another shape.
    """
    check_slice(n, len(stack))
    mask_hw = np.asarray(mask_hw, dtype=bool)
    check_shape(n, mask_hw.shape, stack.shape_of(n))
    if stack.array_axis is None:
        return None
    if mask_hw.any():
        part_kji, offset = stack.part_of(mask_hw, n)
        inner = MaskPrompt.from_volume(part_kji)
        i, j, k = (a + b for a, b in zip(inner.offset_ijk, offset, strict=True))
        return MaskPrompt(inner.mask_kji, (i, j, k))
    corner = np.rint(stack.to_ijk([[0, 0, n]])[0]).astype(int)
    return MaskPrompt(np.zeros((1, 1, 1), dtype=bool), (int(corner[0]), int(corner[1]), int(corner[2])))


def _cut(prompt: MaskPrompt, stack: SliceStack, array_axis: int) -> Iterable[tuple[int, MaskPrompt]]:
    axis = 2 - array_axis  # of (K, J, I)
    depth = prompt.mask_kji.shape[axis]
    for step in range(depth):
        part = np.take(prompt.mask_kji, [step], axis=axis)
        if part.any() or depth == 1:
            offset = list(prompt.offset_ijk)
            offset[array_axis] += step
            piece = MaskPrompt(part, (offset[0], offset[1], offset[2])) if depth > 1 else prompt
            yield _number(piece.offset_ijk, stack), piece


def _number(voxel_ijk: tuple[int, int, int], stack: SliceStack) -> int:
    return round(float(stack.to_slice([voxel_ijk])[0, 2]))


def predicted_prompt(
    box: tuple[float, float, float, float] | None, found: SliceMask, n: int, stack: SliceStack
) -> Prompt:
    """Return the box predicted on a slice, or where there is none the tight box of its mask, in IJK.

    A mask of a single row or column becomes a point in it.
    """
    if box is None:
        rows, columns = (np.flatnonzero(found.mask_hw.any(axis)) for axis in (1, 0))
        box = (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)
    left, top, right, bottom = box
    corners = stack.to_ijk([[left, top, n], [right, bottom, n]])
    try:
        return Box.between(corners[0], corners[1], predicted=True)
    except PromptError:
        middle = stack.to_ijk([[(left + right) / 2, (top + bottom) / 2, n]])[0]
        return Point((float(middle[0]), float(middle[1]), float(middle[2])))
