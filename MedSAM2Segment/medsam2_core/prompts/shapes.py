"""Prompts made of other things than points, boxes and masks: segments, outlines, 3-D boxes, diameters.

What they become was chosen on lesions of the benchmark and on scans held back from training: the box of a
line's ellipse alone gave the best volumes (clicks on the line, or the ellipse as mask, beside it did not
help), and of a 3-D box the middle slice alone did better than boxes on three or all of its slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import PromptError
from medsam2_core.prompts.slice_prompts import by_slice
from medsam2_core.prompts.types import ROUNDING, Box, MaskPrompt, Prompt, position_text

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from medsam2_core.imaging.slices import AxisStack, SliceStack

Position = tuple[float, float, float]
Line = tuple[Position, Position]

#: Shorter diameter of a lesion over its longest, where only that was drawn.
_ROUNDNESS = 0.7


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
    """Return the masks of a segment on the slices that :func:`kept_slices` chooses, one prompt a slice."""
    masks = by_slice([segment], stack)
    return [prompt for n in kept_slices(list(masks), keep) for prompt in masks[n]]


def of_box(corner_ijk: Position, other_ijk: Position, stack: SliceStack) -> tuple[Box, tuple[int, int]]:
    """Return the box on the middle slice of a 3-D box, and the first and last slice whose plane it meets.

    On an oblique stack the box is the one around all corners, in the plane of the slices.

    Parameters
    ----------
    corner_ijk, other_ijk
        Any two opposite corners.

    Raises
    ------
    PromptError
        ``box-between-slices`` when it meets no slice's plane.
    """
    ends = np.array([corner_ijk, other_ijk], dtype=np.float64)
    corners = [[ends[a, 0], ends[b, 1], ends[c, 2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    return of_corners(corners, stack)


def of_corners(corners_ijk: ArrayLike, stack: SliceStack) -> tuple[Box, tuple[int, int]]:
    """Return as :func:`of_box`, from the corners (N, 3) of a 3-D box that is turned in any way."""
    corners = np.asarray(corners_ijk, dtype=np.float64)
    xyn = stack.to_slice(corners)
    (left, top, low), (right, bottom, high) = xyn.min(axis=0), xyn.max(axis=0)
    first = max(math.ceil(low - ROUNDING), 0)
    last = min(math.floor(high + ROUNDING), len(stack) - 1)
    if first > last:
        raise PromptError(
            f"the 3-D box {position_text(corners[0].tolist())} to {position_text(corners[-1].tolist())} lies "
            f"between slices of {stack.title}, or beyond them: make it thicker",
            code="box-between-slices", first=float(low), last=float(high), slices=len(stack),
        )  # fmt: skip
    middle = (first + last) // 2
    return _box(stack, np.array([left, top]), np.array([right, bottom]), middle), (first, last)


def of_line(longest: Line, stack: SliceStack, across: Line | None = None) -> Box:
    """Return the box around the ellipse that has these diameters of a lesion, as RECIST measures them.

    Parameters
    ----------
    longest, across
        Ends in IJK. Without the second the ellipse is 0.7 times as wide as it is long.

    Raises
    ------
    PromptError
        ``line-across-slices``, ``line-too-short``, ``line-outside-volume``.
    """
    lines = [stack.to_slice(line) for line in (longest, across) if line is not None]
    numbers = np.concatenate([line[:, 2] for line in lines])
    n = math.floor(float(numbers.mean()) + 0.5)
    if np.abs(numbers - n).max() >= 0.5 + ROUNDING or not 0 <= n < len(stack):
        raise PromptError(
            f"a line from slice {numbers.min():g} to {numbers.max():g} of {stack.title}, which has slices "
            f"0 to {len(stack) - 1}: draw it on one",
            code="line-across-slices", first=float(numbers.min()), last=float(numbers.max()),
        )  # fmt: skip
    pixel_mm = np.array([stack.pixel_mm[1], stack.pixel_mm[0]])
    ends, *wide = (line[:, :2] * pixel_mm for line in lines)
    length = float(np.linalg.norm(ends[1] - ends[0]))
    if length < pixel_mm.min():
        raise PromptError(
            f"a line of {length:.3g} mm is shorter than a pixel: draw it from edge to edge",
            code="line-too-short", mm=length,
        )  # fmt: skip
    along = (ends[1] - ends[0]) / length
    normal = np.array([-along[1], along[0]])
    centre, width = ends.mean(axis=0), _ROUNDNESS * length
    if wide:
        width = max(abs(float((wide[0][1] - wide[0][0]) @ normal)), float(pixel_mm.min()))
        # Both lines are as good a guess of the middle.
        centre = centre + normal * float((wide[0].mean(axis=0) - centre) @ normal) / 2
    reach = np.hypot(length * along, width * normal) / 2
    height_px, width_px = stack.shape_of(n)
    lowest, highest = np.array([-0.5, -0.5]), np.array([width_px, height_px]) - 0.5
    corners = [np.clip((centre + sign * reach) / pixel_mm, lowest, highest) for sign in (-1, 1)]
    if (corners[1] - corners[0] <= ROUNDING).any():
        raise PromptError(
            f"the line on slice {n} lies outside the volume: draw it on the image",
            code="line-outside-volume", n=n,
        )  # fmt: skip
    return _box(stack, corners[0], corners[1], n)


def of_outline(points_ijk: Sequence[Position], stack: SliceStack) -> tuple[int, NDArray[np.bool_]]:
    """Return the slice a closed outline lies on, and the (H, W) mask of the pixels whose centres it holds.

    Where the outline crosses itself, what it goes round an even number of times is outside.

    Raises
    ------
    PromptError
        ``outline-across-slices``, ``empty-outline``.
    """
    xyn = stack.to_slice(points_ijk)
    n = math.floor(float(xyn[:, 2].mean()) + 0.5)
    if np.abs(xyn[:, 2] - n).max() >= 0.5 + ROUNDING or not 0 <= n < len(stack):
        first, last = float(xyn[:, 2].min()), float(xyn[:, 2].max())
        raise PromptError(
            f"an outline from slice {first:g} to {last:g} of {stack.title}: draw it on one",
            code="outline-across-slices", first=first, last=last,
        )  # fmt: skip
    height, width = stack.shape_of(n)
    columns, inside = np.arange(width), np.zeros((height, width), dtype=bool)
    ends, starts = xyn[:, :2], np.roll(xyn[:, :2], 1, axis=0)
    for y in range(max(math.ceil(ends[:, 1].min()), 0), min(math.floor(ends[:, 1].max()) + 1, height)):
        crossed = (starts[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = starts[crossed].T, ends[crossed].T
        crossings = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
        inside[y] = (crossings[:, np.newaxis] < columns).sum(axis=0) % 2 == 1
    if not inside.any():
        raise PromptError("the outline holds no pixel: draw a larger one", code="empty-outline", n=n)
    return n, inside


def _box(stack: SliceStack, first_xy: NDArray[np.float64], last_xy: NDArray[np.float64], n: int) -> Box:
    first, last = stack.to_ijk([[*first_xy, n], [*last_xy, n]]).tolist()
    return Box.between(first, last)
