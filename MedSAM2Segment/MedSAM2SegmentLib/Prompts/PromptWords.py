"""From millimetres to the words a session understands: the one place where prompts become voxel positions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.prompts import Box, Point

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import ArrayLike, NDArray

POINTS_OF_A_SCRIBBLE = 8
_SPREAD = 1.0  # slices by which the corners of one box may differ
_PARALLEL = np.cos(
    np.radians(2.0)
)  # a plane that is tilted less is the slice's: a large box has its corners further
_EDGE = 1e-3  # voxels: rounding when millimetres become indices
_DECIMALS = 4  # of voxels: so that the same is said wherever image and prompts are moved together


def pointPrompt(
    ras: ArrayLike, positive: bool, geometry: Geometry, stack: SliceStack, what: str
) -> tuple[int, Point]:
    """The slice a point lies on, and the point; PromptError when it is outside the volume."""
    ijk = np.round(geometry.to_ijk(ras), _DECIMALS)
    size = np.array(geometry.shape_ijk)
    if (ijk < -0.5 - _EDGE).any() or (ijk > size - 0.5 + _EDGE).any():
        raise PromptError(f"{what} is outside the volume: move it onto the image, or delete it")
    ijk = np.clip(ijk, -0.5, size - 0.5)
    n = _slice(float(stack.to_slice(ijk)[0, 2]), stack, what)
    i, j, k = ijk[0].tolist()
    return n, Point((i, j, k), positive)


def alongCurve(ras: ArrayLike, count: int = POINTS_OF_A_SCRIBBLE) -> NDArray[np.float64]:
    """(M, 3) positions at equal steps along a polyline (N, 3), each in the middle of its step; M <= count.

    A short stroke of few positions gives no more points than it has positions.
    """
    points = np.asarray(ras, dtype=np.float64).reshape(-1, 3)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = min(count, len(points))
    if lengths[-1] <= 0:
        return points[:1]
    wanted = (np.arange(count) + 0.5) / count * lengths[-1]
    return np.stack([np.interp(wanted, lengths, points[:, axis]) for axis in range(3)], axis=1)


def boxPrompt(rasCorners: ArrayLike, geometry: Geometry, stack: SliceStack, what: str) -> tuple[int, Box]:
    """The slice a box lies on, and the box: upright on the slice, cut off where the volume ends.

    Raises
    ------
    PromptError
        When the corners lie on different slices, or no part of the box is on the volume.
    """
    corners = np.round(stack.to_slice(geometry.to_ijk(rasCorners)), _DECIMALS)  # (4, 3) x, y, n
    if np.ptp(corners[:, 2]) > _SPREAD and _isTilted(np.asarray(rasCorners), geometry, stack):
        first, last = sorted((round(corners[:, 2].min()), round(corners[:, 2].max())))
        raise PromptError(
            f"{what} reaches from slice {first} to {last} of {stack.title}: a box lies on one slice. "
            "Draw it in a view that shows these slices, or let the slices follow the view it was drawn in"
        )
    n = _slice(float(corners[:, 2].mean()), stack, what)
    height, width = stack.shape_hw
    left, top = np.clip(corners[:, :2].min(axis=0), -0.5, (width - 0.5, height - 0.5))
    right, bottom = np.clip(corners[:, :2].max(axis=0), -0.5, (width - 0.5, height - 0.5))
    if right - left < _EDGE or bottom - top < _EDGE:
        raise PromptError(f"{what} is outside the volume: draw it on the image, or delete it")
    first, last = stack.to_ijk([[left, top, n], [right, bottom, n]])
    if isinstance(stack, AxisStack):
        return n, Box.between(first, last)
    return n, _obliqueBox(stack, geometry, (left, top, right, bottom), n, what)


def _isTilted(rasCorners: NDArray[np.float64], geometry: Geometry, stack: SliceStack) -> bool:
    """Whether a rectangle lies in another plane than the slices."""
    xynToRas = geometry.ijk_to_ras @ stack.xyn_to_ijk
    normals = [
        np.cross(rasCorners[1] - rasCorners[0], rasCorners[3] - rasCorners[0]),
        np.cross(xynToRas[:3, 0], xynToRas[:3, 1]),
    ]
    first, second = (normal / np.linalg.norm(normal) for normal in normals)
    return bool(abs(first @ second) < _PARALLEL)


def checkBoxes(placed: Iterable[tuple[int, int, object]], stack: SliceStack) -> None:
    """PromptError when two boxes among (order, slice, prompt) lie on one slice."""
    seen: dict[int, int] = {}
    for number, n, prompt in placed:
        if isinstance(prompt, Box) and seen.setdefault(n, number) != number:
            raise PromptError(
                f"the boxes with the numbers {seen[n]} and {number} are both on slice {n} of {stack.title}: "
                "a segment has one box on a slice. Delete one of them"
            )


def _obliqueBox(
    stack: SliceStack, geometry: Geometry, edges: tuple[float, float, float, float], n: int, what: str
) -> Box:
    """A box on an oblique slice, of which the volume fills only a polygon; both its corners must be on it.

    The diagonal of which more is on the volume is cut off where the volume ends.
    """
    left, top, right, bottom = edges
    parts: list[tuple[float, list[float], list[float]]] = []
    for ends in ([[left, top, n], [right, bottom, n]], [[left, bottom, n], [right, top, n]]):
        first, last = stack.to_ijk(ends)
        start, stop = _partInside(first, last, geometry)
        if stop > start:
            step = last - first
            parts.append((stop - start, (first + start * step).tolist(), (first + stop * step).tolist()))
    if not parts:
        raise PromptError(f"{what} is outside the volume: draw it on the image, or delete it")
    for _, first, last in sorted(parts, reverse=True):
        # On a plane close to the voxels' own the corners have to be in order, so not every diagonal will do.
        for one, other in ((first, last), (last, first)):
            with suppress(PromptError):
                return Box(tuple(one), tuple(other))
    raise PromptError(
        f"{what} cannot be told on {stack.title}: use points, or turn the view to the volume's plane"
    )


def _partInside(
    first: NDArray[np.float64], last: NDArray[np.float64], geometry: Geometry
) -> tuple[float, float]:
    """Where a line enters and leaves the volume, 0 at its beginning and 1 at its end."""
    step = last - first
    low, high = -0.5, np.array(geometry.shape_ijk) - 0.5
    start, stop = 0.0, 1.0
    for axis in range(3):
        if abs(step[axis]) < 1e-12:
            if not low <= first[axis] <= high[axis]:
                return 0.0, 0.0
            continue
        enter, leave = sorted(((low - first[axis]) / step[axis], (high[axis] - first[axis]) / step[axis]))
        start, stop = max(start, enter), min(stop, leave)
    return start, stop


def _slice(n: float, stack: SliceStack, what: str) -> int:
    nearest = int(np.floor(n + 0.5))
    if nearest == len(stack) and n <= len(stack) - 0.5 + _EDGE:
        nearest -= 1
    if nearest == -1 and n >= -0.5 - _EDGE:
        nearest = 0
    if not 0 <= nearest < len(stack):
        raise PromptError(f"{what} is outside the volume: move it onto the image, or delete it")
    return nearest
