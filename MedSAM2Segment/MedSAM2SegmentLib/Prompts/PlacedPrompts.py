"""What prompt nodes say, prompt by prompt, each with its order number and its slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.prompts import Prompt
from medsam2_core.slice_prompts import by_slice

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
        yield state.order, n, box
        return
    for number, *ras in state.points:
        what = _name("scribble" if isScribble else "point", number)
        n, point = PromptWords.pointPrompt(ras, positive, geometry, stack, what)
        yield number, n, point


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
