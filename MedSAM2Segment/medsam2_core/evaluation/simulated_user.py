"""A user who knows the truth: draws a box, clicks once, or clicks where the result is most wrong.

All on slices of a stack, in pixels; the same seed gives the same user.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component (faces touching) of a mask of any dimension."""
    pieces, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1


def tight_box(mask_hw: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom (pixel positions) of the box around a mask: half a pixel outside the outermost
    centres, the border between pixels as a user drags it.
    """
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5


def jittered_box(
    mask_hw: NDArray[np.bool_], rng: np.random.Generator, jitter: float = 0.05
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom (pixel positions) of the box around a mask, each side moved by up to
    ``jitter`` of the box's size and kept inside the slice.
    """
    left, top, right, bottom = tight_box(mask_hw)
    width, height = right - left, bottom - top
    moves = rng.uniform(-jitter, jitter, 4) * [width, height, width, height]
    left, top, right, bottom = np.array([left, top, right, bottom]) + moves
    limit_y, limit_x = (size - 0.5 for size in mask_hw.shape)
    return (
        float(np.clip(left, -0.5, limit_x)), float(np.clip(top, -0.5, limit_y)),
        float(np.clip(right, -0.5, limit_x)), float(np.clip(bottom, -0.5, limit_y)),
    )  # fmt: skip


def centre_of(mask_hw: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of the pixel of a mask that is farthest from its border."""
    # Padded, so that the slice's edge counts as a border.
    depth = ndimage.distance_transform_edt(np.pad(mask_hw, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def correction(
    mask_hw: NDArray[np.bool_], truth_hw: NDArray[np.bool_]
) -> tuple[tuple[int, int], bool] | None:
    """The click a user would make next: the middle of the largest connected error, and whether it is missing
    (positive) or too much (negative). None when nothing is wrong.
    """
    missed, extra = largest_piece(truth_hw & ~mask_hw), largest_piece(mask_hw & ~truth_hw)
    if not missed.any() and not extra.any():
        return None
    positive = bool(missed.sum() >= extra.sum())
    return centre_of(missed if positive else extra), positive
