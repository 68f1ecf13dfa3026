"""Keep what a correction is not about.

A click says something about its neighbourhood. A small model now and then answers a click beside a thin or
tiny object with a mask from which everything else has gone, too; then what was there before stays, but for
the click's neighbourhood. Only for models that draw their prompts: published weights get what SAM 2 gives.
"""

import numpy as np
from numpy.typing import NDArray

# A correction that takes away more of the mask than this has misunderstood the click …
_LARGEST_LOSS = 0.5
# … unless it is negative and about as deep inside the mask as can be: then the mask itself is wrong.
_IN_THE_MIDDLE = 0.6
# Radius of what a negative click removes, in units of its distance to the mask's border.
_REACH = 1.5


def kept(
    before_hw: NDArray[np.bool_],
    after_hw: NDArray[np.bool_],
    click_xy: tuple[float, float],
    positive: bool,
    may_vanish: bool,
) -> NDArray[np.bool_] | None:
    """Return the mask (H, W) that should stand after a click, or None for the answer as it is.

    Parameters
    ----------
    before_hw, after_hw
        Masks (H, W) of the slice before the click and as the model answers it.
    click_xy
        Slice position of the click, pixel centres at integers.
    may_vanish
        Whether a negative click in the middle of the mask may take all of it away; not where the user has
        said by a box or a positive click that the object is here.
    """
    area = int(before_hw.sum())
    if not area or int((before_hw & ~after_hw).sum()) <= _LARGEST_LOSS * area:
        return None
    if positive:
        return before_hw | after_hw
    from scipy import ndimage  # only here: importing it takes longer than all the rest of this package

    height, width = before_hw.shape
    x = min(max(round(float(click_xy[0])), 0), width - 1)
    y = min(max(round(float(click_xy[1])), 0), height - 1)
    # Padded, so that the slice's edge counts as a border.
    depth = ndimage.distance_transform_edt(np.pad(before_hw, 1))[1:-1, 1:-1]
    if may_vanish and depth[y, x] >= _IN_THE_MIDDLE * depth.max():
        return None
    reach = max(_REACH * float(depth[y, x]), 1.0)
    rows, columns = np.ogrid[:height, :width]
    near = (columns - x) ** 2 + (rows - y) ** 2 <= reach**2
    return before_hw & ~near
