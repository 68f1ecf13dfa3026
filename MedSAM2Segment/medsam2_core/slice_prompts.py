"""Prompts slice by slice: a session answers one slice at a time, so masks of several are cut into slices."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import PromptError
from medsam2_core.imaging.slices import AxisStack, SliceStack
from medsam2_core.prompts import MaskPrompt, Prompt, resolve


def by_slice(prompts: Iterable[Prompt], stack: SliceStack) -> dict[int, list[Prompt]]:
    """Prompts by the slice they lie on, each in the order given.

    A mask of several slices becomes one mask a slice. Only on an oblique stack, whose slices cut through
    voxels, it stays whole and is listed under every slice it reaches.

    Raises
    ------
    PromptError
        As :func:`~medsam2_core.prompts.resolve`.
    """
    grouped: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        numbers = resolve([prompt], stack)
        if isinstance(prompt, MaskPrompt) and isinstance(stack, AxisStack):
            for n, piece in _cut(prompt, stack):
                grouped.setdefault(n, []).append(piece)
        else:
            for n in numbers:
                grouped.setdefault(n, []).append(prompt)
    return grouped


def slices_of(prompt: Prompt, stack: SliceStack) -> frozenset[int]:
    """The slices a prompt of :func:`by_slice` lies on."""
    if isinstance(prompt, MaskPrompt) and isinstance(stack, AxisStack):
        return frozenset({_number(prompt.offset_ijk, stack)})
    return frozenset(resolve([prompt], stack))


def mask_on_slice(mask_hw: NDArray[np.bool_], n: int, stack: SliceStack) -> MaskPrompt | None:
    """The mask of a slice as a prompt; None on an oblique stack, where voxels cannot say it exactly.

    Raises
    ------
    PromptError
        When there is no such slice, or the mask has another shape.
    """
    if not 0 <= n < len(stack):
        raise PromptError(f"there is no slice {n}: slices are 0 to {len(stack) - 1}")
    mask_hw = np.asarray(mask_hw, dtype=bool)
    if mask_hw.shape != tuple(stack.shape_hw):
        raise PromptError(f"the mask on slice {n} is {mask_hw.shape}, the slice is {tuple(stack.shape_hw)}")
    if not isinstance(stack, AxisStack):
        return None
    if mask_hw.any():
        return MaskPrompt.from_volume(stack.volume_mask({n: mask_hw}))
    corner = np.rint(stack.to_ijk([[0, 0, n]])[0]).astype(int)
    return MaskPrompt(np.zeros((1, 1, 1), dtype=bool), (int(corner[0]), int(corner[1]), int(corner[2])))


def _cut(prompt: MaskPrompt, stack: AxisStack) -> Iterable[tuple[int, MaskPrompt]]:
    axis = 2 - stack.array_axis  # of (K, J, I)
    depth = prompt.mask_kji.shape[axis]
    for step in range(depth):
        part = np.take(prompt.mask_kji, [step], axis=axis)
        if part.any() or depth == 1:
            offset = list(prompt.offset_ijk)
            offset[stack.array_axis] += step
            piece = MaskPrompt(part, (offset[0], offset[1], offset[2])) if depth > 1 else prompt
            yield _number(piece.offset_ijk, stack), piece


def _number(voxel_ijk: tuple[int, int, int], stack: AxisStack) -> int:
    return round(float(stack.to_slice([voxel_ijk])[0, 2]))
