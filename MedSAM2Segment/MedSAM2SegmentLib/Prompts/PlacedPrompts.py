"""What prompt nodes say, prompt by prompt, each with its order number and its slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.prompts import Prompt, by_slice

from MedSAM2SegmentLib.Prompts import MarkupNodes, PromptWords
from MedSAM2SegmentLib.Prompts.Gestures import Gesture, PointGesture, ScribbleGesture
from MedSAM2SegmentLib.Prompts.PromptNotes import Notes
from MedSAM2SegmentLib.Prompts.PromptSnapshots import SavedNode

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

#: Order number, slice, prompt.
Placed = tuple[int, int, Prompt]


def savedGesture(gesture: Gesture) -> SavedNode:
    """A gesture as a node would say it, in world RAS."""
    if isinstance(gesture, PointGesture):
        role = MarkupNodes.POSITIVE if gesture.positive else MarkupNodes.NEGATIVE
        return SavedNode("", role, points=((0, *gesture.ras.tolist()),))
    if isinstance(gesture, ScribbleGesture):
        role = MarkupNodes.SCRIBBLE if gesture.positive else MarkupNodes.NEGATIVE_SCRIBBLE
        return SavedNode("", role, points=tuple((0, *ras) for ras in gesture.ras.tolist()))
    frame, size = MarkupNodes.frameOf(gesture)
    return SavedNode("", MarkupNodes.BOX, frame=tuple(frame.ravel()), size=tuple(size))


def of(
    state: SavedNode, geometry: Any, stack: SliceStack, toWorld: NDArray[np.float64] | None = None
) -> Iterator[Placed]:
    """The prompts of a node on the slices of a stack; PromptError names the one that cannot be said.

    ``toWorld`` (4, 4) takes what the node says to world RAS; nothing, when it is left out.
    """
    if state.isEmpty:
        return
    positive = state.role not in (MarkupNodes.NEGATIVE, MarkupNodes.NEGATIVE_SCRIBBLE)
    isScribble = state.role in MarkupNodes.SCRIBBLE_ROLES
    if toWorld is not None:
        state = state.moved(toWorld)
    if isScribble:  # counted in voxels: the same is said whatever the image is moved and scaled to
        along = PromptWords.alongCurve(geometry.to_ijk([ras for _, *ras in state.points]))
        points = tuple((state.order, *ras) for ras in geometry.to_ras(along).tolist())
        state = replace(state, points=points)
    if state.role == MarkupNodes.BOX:
        corners = MarkupNodes.cornersOf(np.reshape(state.frame, (4, 4)), np.array(state.size))
        n, box = PromptWords.boxPrompt(corners, geometry, stack, _name("box", state.order))
        yield state.order, n, replace(box, predicted=state.predicted)
        return
    for number, *ras in state.points:
        what = _name("scribble" if isScribble else "point", number)
        n, point = PromptWords.pointPrompt(ras, positive, geometry, stack, what)
        yield number, n, point


def without(
    states: Iterable[SavedNode], n: int, geometry: Any, stack: SliceStack, toWorld: Any = None
) -> tuple[SavedNode, ...]:
    """The same nodes without what they say about slice ``n`` of a stack; what says nothing is left out.

    A scribble that touches the slice goes as a whole. What cannot be said stays.
    """

    def isOnSlice(state: SavedNode) -> bool:
        try:
            return any(m == n for _, m, _ in of(state, geometry, stack, toWorld))
        except PromptError:
            return False

    kept = []
    for state in states:
        left = state
        if state.role == MarkupNodes.NOTES:
            left = replace(state, text=_notesWithout(Notes.fromText(state.text), n, stack))
        elif state.role in MarkupNodes.POINT_ROLES:
            points = [point for point in state.points if not isOnSlice(replace(state, points=(point,)))]
            left = replace(state, points=tuple(points))
        elif isOnSlice(state):
            continue
        if not left.isEmpty:
            kept.append(left)
    return tuple(kept)


def _notesWithout(notes: Notes, n: int, stack: SliceStack) -> str:
    masks = tuple(one for one in notes.masks if all(m != n for _, m, _ in ofMasks(Notes((one,)), stack)))
    left = Notes(masks, notes.final - {(stack.key, n)})
    return "" if left.isEmpty else left.toText()


def ofMasks(notes: Notes, stack: SliceStack) -> Iterator[Placed]:
    """The masks that are noted, on the slices of a stack."""
    for note in notes.masks:
        if note.stack == stack.key and 0 <= note.n < len(stack):
            yield note.order, note.n, note.mask
        else:
            for n, prompts in by_slice([note.mask], stack).items():
                for prompt in prompts:
                    yield note.order, n, prompt


def _name(kind: str, number: int) -> str:
    return f"the {kind} with the number {number}" if number else f"the {kind}"
