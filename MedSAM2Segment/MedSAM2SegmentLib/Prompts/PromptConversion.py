"""Conversion of prompts from millimetres to voxel indices (IJK): the content of nodes -> ``SlicePrompts``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.prompts import Box, Point, Prompt, SlicePrompts
from medsam2_core.prompts.slice_prompts import by_slice

from MedSAM2SegmentLib.Prompts import PromptNodes
from MedSAM2SegmentLib.Prompts.Gestures import Gesture, PointGesture, ScribbleGesture
from MedSAM2SegmentLib.Prompts.PromptState import MaskNotes, PromptState

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import ArrayLike, NDArray

POINTS_OF_A_SCRIBBLE = 8
_SPREAD = 1.0  # slices by which the corners of one box may differ
#: A plane that is tilted less is the slice's: the corners of a large box may be further off than _SPREAD.
_PARALLEL = np.cos(np.radians(2.0))
_EDGE = 1e-3  # voxels: rounding when millimetres become indices
_DECIMALS = 4  # of voxels: so that the prompts stay equal wherever image and prompts are moved together

#: Order number, slice, prompt.
Placed = tuple[int, int, Prompt]


def slicePrompts(
    states: Iterable[PromptState],
    geometry: Geometry,
    stack: SliceStack,
    toWorld: NDArray[np.float64] | None = None,
) -> dict[int, SlicePrompts]:
    """Return the prompts of one segment by slice of a stack, in the order they were given.

    Parameters
    ----------
    states
        Content of the segment's prompt nodes.
    geometry
        Of the volume, in world RAS.
    toWorld
        (4, 4) from the segmentation's RAS to world RAS; None when they are the same.

    Raises
    ------
    PromptError
        A prompt is outside the volume, a box does not lie on one slice, or a slice has two boxes; the
        message names the prompt and the way out.
    """
    placed: list[Placed] = []
    final: set[int] = set()
    for state in states:
        if state.role == PromptNodes.NOTES:
            notes = MaskNotes.fromText(state.text)
            final = {n for key, n in notes.final if key == stack.key and 0 <= n < len(stack)}
            placed += placedMasks(notes, stack)
        else:
            placed += placedPrompts(state, geometry, stack, toWorld)
    placed.sort(key=lambda one: one[0])  # stable: points of one scribble keep their order
    _checkBoxes(placed, stack)
    bySlice: dict[int, list[Prompt]] = {n: [] for n in final}
    for _, n, prompt in placed:
        bySlice.setdefault(n, []).append(prompt)
    return {n: SlicePrompts(tuple(bySlice[n]), n in final) for n in sorted(bySlice)}


def stateOfGesture(gesture: Gesture) -> PromptState:
    """Return a gesture as the content of a node that is not under any transform."""
    if isinstance(gesture, PointGesture):
        role = PromptNodes.POSITIVE if gesture.positive else PromptNodes.NEGATIVE
        return PromptState("", role, points=((0, *gesture.ras.tolist()),))
    if isinstance(gesture, ScribbleGesture):
        role = PromptNodes.SCRIBBLE if gesture.positive else PromptNodes.NEGATIVE_SCRIBBLE
        return PromptState("", role, points=tuple((0, *ras) for ras in gesture.ras.tolist()))
    frame, size = PromptNodes.frameOf(gesture)
    return PromptState("", PromptNodes.BOX, frame=tuple(frame.ravel()), size=tuple(size), drawn=gesture.drawn)


def placedPrompts(
    state: PromptState, geometry: Any, stack: SliceStack, toWorld: NDArray[np.float64] | None = None
) -> Iterator[Placed]:
    """Yield the prompts of a node on the slices of a stack; parameters and errors as :func:`slicePrompts`."""
    if state.isEmpty:
        return
    isScribble = state.role in PromptNodes.SCRIBBLE_ROLES
    if toWorld is not None:
        state = state.transformed(toWorld)
    if isScribble:  # sampled in voxels: the points stay the same whatever the image is moved and scaled to
        along = alongCurve(geometry.to_ijk([ras for _, *ras in state.points]))
        points = tuple((state.order, *ras) for ras in geometry.to_ras(along).tolist())
        state = replace(state, points=points)
    if state.role == PromptNodes.BOX:
        corners = PromptNodes.cornersOf(np.reshape(state.frame, (4, 4)), np.array(state.size))
        n, box = boxPrompt(corners, geometry, stack, _name("box", state.order))
        yield state.order, n, replace(box, predicted=state.predicted)
        return
    for number, *ras in state.points:
        what = _name("scribble" if isScribble else "point", number)
        n, point = pointPrompt(ras, state.isPositive, geometry, stack, what)
        yield number, n, point


def placedMasks(notes: MaskNotes, stack: SliceStack) -> Iterator[Placed]:
    """Yield masks on the slices of a stack."""
    for note in notes.masks:
        if note.stack == stack.key and 0 <= note.n < len(stack):
            yield note.order, note.n, note.mask
        else:
            for n, prompts in by_slice([note.mask], stack).items():
                for prompt in prompts:
                    yield note.order, n, prompt


def withoutSlice(
    states: Iterable[PromptState], n: int, geometry: Any, stack: SliceStack, toWorld: Any = None
) -> tuple[PromptState, ...]:
    """Return nodes without their prompts on slice ``n`` of a stack; nodes left empty are dropped.

    A scribble that touches the slice is dropped as a whole. Prompts outside the volume are kept.
    """

    def isOnSlice(state: PromptState) -> bool:
        try:
            return any(m == n for _, m, _ in placedPrompts(state, geometry, stack, toWorld))
        except PromptError:
            return False

    kept = []
    for state in states:
        left = state
        if state.role == PromptNodes.NOTES:
            left = replace(state, text=_notesWithout(MaskNotes.fromText(state.text), n, stack))
        elif state.role in PromptNodes.POINT_ROLES:
            points = [point for point in state.points if not isOnSlice(replace(state, points=(point,)))]
            left = replace(state, points=tuple(points))
        elif isOnSlice(state):
            continue
        if not left.isEmpty:
            kept.append(left)
    return tuple(kept)


def _notesWithout(notes: MaskNotes, n: int, stack: SliceStack) -> str:
    masks = tuple(
        one for one in notes.masks if all(m != n for _, m, _ in placedMasks(MaskNotes((one,)), stack))
    )
    left = MaskNotes(masks, notes.final - {(stack.key, n)})
    return "" if left.isEmpty else left.toText()


def _name(kind: str, number: int) -> str:
    return f"the {kind} with the number {number}" if number else f"the {kind}"


# Points and scribbles ---------------------------------------------------------------------------------------


def pointPrompt(
    ras: ArrayLike, positive: bool, geometry: Geometry, stack: SliceStack, what: str
) -> tuple[int, Point]:
    """Return the slice of a point, and the point; PromptError when it is outside the volume."""
    ijk = np.round(geometry.to_ijk(ras), _DECIMALS)
    size = np.array(geometry.shape_ijk)
    if (ijk < -0.5 - _EDGE).any() or (ijk > size - 0.5 + _EDGE).any():
        raise _outside(what, "move it onto the image")
    ijk = np.clip(ijk, -0.5, size - 0.5)
    n = _sliceNumber(float(stack.to_slice(ijk)[0, 2]), stack, what)
    i, j, k = ijk[0].tolist()
    return n, Point((i, j, k), positive)


def alongCurve(ras: ArrayLike, count: int = POINTS_OF_A_SCRIBBLE) -> NDArray[np.float64]:
    """Return (M, 3) positions at equal steps along a polyline (N, 3), each in the middle of its step.

    M is at most ``count``, and at most N.
    """
    points = np.asarray(ras, dtype=np.float64).reshape(-1, 3)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = min(count, len(points))
    if lengths[-1] <= 0:
        return points[:1]
    wanted = (np.arange(count) + 0.5) / count * lengths[-1]
    return np.stack([np.interp(wanted, lengths, points[:, axis]) for axis in range(3)], axis=1)


def _sliceNumber(n: float, stack: SliceStack, what: str) -> int:
    nearest = int(np.floor(n + 0.5))
    if nearest == len(stack) and n <= len(stack) - 0.5 + _EDGE:
        nearest -= 1
    if nearest == -1 and n >= -0.5 - _EDGE:
        nearest = 0
    if not 0 <= nearest < len(stack):
        raise _outside(what, "move it onto the image")
    return nearest


def _outside(what: str, wayOut: str) -> PromptError:
    message = f"{what} is outside the volume: {wayOut}, or delete it"
    return PromptError(message, code="prompt-outside-volume", prompt=what)


# Boxes ------------------------------------------------------------------------------------------------------


def boxPrompt(rasCorners: ArrayLike, geometry: Geometry, stack: SliceStack, what: str) -> tuple[int, Box]:
    """Return the slice of a box, and the box: upright on the slice, cut off where the volume ends.

    Raises
    ------
    PromptError
        The corners lie on different slices, or no part of the box is on the volume.
    """
    corners = np.round(stack.to_slice(geometry.to_ijk(rasCorners)), _DECIMALS)  # (4, 3) x, y, n
    if np.ptp(corners[:, 2]) > _SPREAD and _isTilted(np.asarray(rasCorners), geometry, stack):
        first, last = sorted((round(corners[:, 2].min()), round(corners[:, 2].max())))
        raise PromptError(
            f"{what} reaches from slice {first} to {last} of {stack.title}: a box lies on one slice. "
            "Draw it in a view that shows these slices, or let the slices follow the view it was drawn in",
            code="box-across-slices",
            first=first,
            last=last,
        )
    n = _sliceNumber(float(corners[:, 2].mean()), stack, what)
    height, width = stack.shape_hw
    left, top = np.clip(corners[:, :2].min(axis=0), -0.5, (width - 0.5, height - 0.5))
    right, bottom = np.clip(corners[:, :2].max(axis=0), -0.5, (width - 0.5, height - 0.5))
    if right - left < _EDGE or bottom - top < _EDGE:
        raise _outside(what, "draw it on the image")
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


def _checkBoxes(placed: Iterable[Placed], stack: SliceStack) -> None:
    """Raise PromptError when two boxes lie on one slice."""
    seen: dict[int, int] = {}
    for number, n, prompt in placed:
        if isinstance(prompt, Box) and seen.setdefault(n, number) != number:
            raise PromptError(
                f"the boxes with the numbers {seen[n]} and {number} are both on slice {n} of {stack.title}: "
                "a segment has one box on a slice. Delete one of them",
                code="two-boxes-on-slice",
                slice=n,
                boxes=[seen[n], number],
            )


def _obliqueBox(
    stack: SliceStack, geometry: Geometry, edges: tuple[float, float, float, float], n: int, what: str
) -> Box:
    """Return a box on an oblique slice, of which the volume fills only a polygon; both corners must be on it.

    Of the two diagonals, the one with more on the volume is cut off where the volume ends.
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
        raise _outside(what, "draw it on the image")
    for _, first, last in sorted(parts, reverse=True):
        # On a plane close to the voxels' own the corners have to be in order, so not every diagonal will do.
        for one, other in ((first, last), (last, first)):
            with suppress(PromptError):
                return Box(tuple(one), tuple(other))
    raise PromptError(
        f"{what} cannot be placed on {stack.title}: use points, or turn the view to the volume's plane",
        code="box-not-on-oblique-slice",
    )


def _partInside(
    first: NDArray[np.float64], last: NDArray[np.float64], geometry: Geometry
) -> tuple[float, float]:
    """Return where a line enters and leaves the volume, 0 at its beginning and 1 at its end."""
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
