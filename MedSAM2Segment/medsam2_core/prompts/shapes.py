"""Prompts made of what a user has or draws beside points, boxes and masks: a segment on many slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsam2_core.errors import PromptError
from medsam2_core.prompts.slice_prompts import by_slice
from medsam2_core.prompts.types import MaskPrompt, Prompt

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import AxisStack


def kept_slices(slices: Sequence[int], keep: str) -> list[int]:
    """Return the slices of a segment that become prompts, ascending.

    Parameters
    ----------
    slices
        Those that have voxels.
    keep
        ``"all"``; ``"every:N"``, each N-th of them and the last; ``"ends"``, the first and the last.

    Raises
    ------
    PromptError
        ``unknown-keep``.
    """
    ascending = sorted(slices)
    kind, colon, count = keep.partition(":")
    if keep == "all":
        return ascending
    if keep == "ends":
        return sorted({*ascending[:1], *ascending[-1:]})
    if kind == "every" and colon and count.isascii() and count.isdigit() and int(count) > 0:
        return sorted({*ascending[:: int(count)], *ascending[-1:]})
    raise PromptError(
        f"unknown choice of slices {keep[:40]!r}: use all, ends, or every:N with N of 1 or more",
        code="unknown-keep", keep=keep[:40],
    )  # fmt: skip


def of_segment(segment: MaskPrompt, stack: AxisStack, keep: str = "all") -> list[Prompt]:
    """Return the masks of a segment on the slices that :func:`kept_slices` chooses, one prompt a slice.

    Raises
    ------
    PromptError
        ``unknown-keep``; or what is wrong with the mask.
    """
    masks = by_slice([segment], stack)
    return [prompt for n in kept_slices(list(masks), keep) for prompt in masks[n]]
