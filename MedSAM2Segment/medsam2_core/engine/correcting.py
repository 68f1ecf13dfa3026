"""Keep what a correction is not about.

A positive click says that something is missing, a negative one that something is too much where it was
made. A small model often changes other places as well, and makes them worse: on held-back training images,
a click after a box fixed half of the error it was placed on, and introduced about as many wrong pixels
elsewhere. Where there were only clicks, the whole mask may still be wrong, and an answer counts as it is
unless most of the mask would go. Far from the prompts, a negative click in the middle of a tracked mask says
that the object has ended: most of the largest errors of tracked scans lie on slices beyond its ends.
Only for models that draw their prompts: published weights get what SAM 2 gives.
"""

import numpy as np
from numpy.typing import NDArray

# A click is in the middle of a mask if it is about as deep inside as can be, and in the middle half of its
# box.
_DEEP = 0.6
# An answer to a negative click that takes away more of the mask than this has misunderstood the click.
_LARGEST_LOSS = 0.5
# Radius of what such a click removes instead, in units of its distance to the mask's border.
_REACH = 1.5


def kept(
    before_hw: NDArray[np.bool_],
    after_hw: NDArray[np.bool_],
    clicks_xy: NDArray[np.floating],
    positive: NDArray[np.bool_],
    *,
    is_local: bool,
    may_vanish: bool,
    may_end: bool,
) -> NDArray[np.bool_]:
    """Return the mask (H, W) that stands after clicks.

    Positive clicks take nothing away. Negative clicks add nothing, and of what the answer takes away only the
    connected pieces they lie on, or next to, count. If not `is_local`, so only for an answer that takes away
    most of the mask.

    Parameters
    ----------
    before_hw, after_hw
        Masks (H, W) of the slice before the clicks and as the model answers them.
    clicks_xy, positive
        (N, 2) slice positions of the new clicks, pixel centres at integers; (N,) whether they are positive.
    is_local
        Whether the object is known from more than clicks, and the answer not much surer than the mask before.
    may_vanish
        Whether an answer may take all of the mask away; not where the user has said by a box or a positive
        click that the object is here.
    may_end
        Whether a negative click in the middle of the mask says that the object is not here.
    """
    if not before_hw.any():
        return after_hw if positive.any() else before_hw
    lost, most = before_hw & ~after_hw, _LARGEST_LOSS * before_hw.sum()
    counts = not is_local and lost.sum() <= most
    if counts and (positive.all() or not may_end):
        return after_hw
    if positive.all():
        return before_hw | after_hw
    height, width = before_hw.shape
    x, y = np.clip(np.rint(clicks_xy[~positive]), 0, [width - 1, height - 1]).astype(int).T
    rows, columns = np.flatnonzero(before_hw.any(1)), np.flatnonzero(before_hw.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    depth = _depth(before_hw, box)
    is_deep = depth[y, x] >= _DEEP * depth.max()
    if may_end and (is_deep & _is_middle(x, columns) & _is_middle(y, rows)).any():
        return np.zeros_like(before_hw)
    if counts:
        return after_hw
    found = before_hw | after_hw if positive.any() else before_hw.copy()
    gone = _pieces_at(lost, box, x, y)
    is_too_much = np.logical_or.reduce(gone).sum() > most and not (may_vanish and is_deep.any())
    for column, row, piece in zip(x, y, gone, strict=True):
        disc = _disc(before_hw.shape, column, row, max(_REACH * float(depth[row, column]), 1.0))
        if is_too_much:
            found &= ~(piece & disc)
        else:  # where the answer keeps what was clicked, that goes, too
            found &= ~(disc if after_hw[row, column] else piece)
    return found


def _depth(mask_hw: NDArray[np.bool_], box: tuple[slice, slice]) -> NDArray[np.float64]:
    """Return the distance of each pixel of a mask, which lies in a box, to its border; 0 outside."""
    from scipy import ndimage  # only here and below: importing it takes longer than the rest of this package

    depth = np.zeros(mask_hw.shape)
    # Padded, so that the slice's edge counts as a border.
    depth[box] = ndimage.distance_transform_edt(np.pad(mask_hw[box], 1))[1:-1, 1:-1]
    return depth


def _pieces_at(
    mask_hw: NDArray[np.bool_], box: tuple[slice, slice], x: NDArray[np.intp], y: NDArray[np.intp]
) -> list[NDArray[np.bool_]]:
    """Return for each click the connected pieces of a mask that it lies on or next to."""
    from scipy import ndimage

    pieces = np.zeros(mask_hw.shape, int)
    pieces[box], _ = ndimage.label(mask_hw[box], np.ones((3, 3)))
    found = []
    for column, row in zip(x, y, strict=True):
        near = pieces[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        found.append(np.isin(pieces, near[near > 0]))
    return found


def _is_middle(clicks: NDArray[np.intp], places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which clicks are in the middle half of the rows, or columns, of a mask."""
    first, last = places[0], places[-1]
    return 4 * abs(clicks - (first + last) / 2) <= last - first + 1


def _disc(shape_hw: tuple[int, ...], x: int, y: int, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape_hw[0], : shape_hw[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
