"""Two baselines that do not use the image: what any model must beat."""

import numpy as np
from numpy.typing import NDArray

from medsam2_core.imaging.slices import SliceStack


def inscribed_ellipse(box_xyxy: tuple[float, ...], shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) the ellipse inscribed in a box given in pixel positions."""
    left, top, right, bottom = box_xyxy
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]]
    across = (x - (left + right) / 2) / max((right - left) / 2, 1e-6)
    down = (y - (top + bottom) / 2) / max((bottom - top) / 2, 1e-6)
    return across**2 + down**2 <= 1


def copied_key_mask(truth_kji: NDArray[np.bool_], stack: SliceStack, key: int) -> NDArray[np.bool_]:
    """(K, J, I) the true mask of the key slice, copied through exactly the slices the object occupies."""
    key_mask = stack.mask_of(truth_kji, key)
    occupied = [n for n in range(len(stack)) if stack.mask_of(truth_kji, n).any()]
    return stack.volume_mask({n: key_mask for n in occupied})
