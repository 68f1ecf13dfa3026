"""The content of prompt nodes as plain data: compared to detect changes, kept for undo, restored exactly.

Masks and final slices cannot be drawn as markups. They are kept as text::

    {"version": 1, "final": {"axial:-i-j+k": [12, 13]},
     "masks": [{"order": 4, "stack": "axial:-i-j+k", "n": 12}], "prompts": {…}}

``prompts`` is a prompt file with one object that has the masks, in the order of ``masks``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.prompts.prompt_set import PromptSet
from medsam2_core.prompts.types import MaskPrompt

from MedSAM2SegmentLib.Prompts import PromptNodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VERSION = 1
_OBJECT = "segment"


@dataclass(frozen=True)
class PromptState:
    """Content of a prompt node, in the RAS of its segmentation: the same wherever that is moved to.

    Attributes
    ----------
    segmentID, role, order
        The segment, one of :data:`PromptNodes.ROLES`, and the order number of a box or scribble.
    points
        (order number, R, A, S) of points; (0, R, A, S) of a scribble.
    frame, size
        Of a box: 16 numbers row by row, and 3 mm.
    text
        Masks and final slices, see :class:`MaskNotes`.
    predicted
        Whether a model drew the box, and nobody has moved it.
    drawn
        Lengths in mm of the lines a box was made of, the longest first.
    """

    segmentID: str
    role: str
    order: int = 0
    points: tuple[tuple[int, float, float, float], ...] = ()
    frame: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    text: str = ""
    predicted: bool = False
    drawn: tuple[float, ...] = ()

    @property
    def isEmpty(self) -> bool:
        """Whether there is no prompt (somebody deleted the last point)."""
        return not (self.points or self.frame or self.text)

    @property
    def isPositive(self) -> bool:
        """Whether it marks foreground."""
        return self.role not in (PromptNodes.NEGATIVE, PromptNodes.NEGATIVE_SCRIBBLE)

    @property
    def key(self) -> tuple[str, str, int]:
        """What two states of the same node have in common."""
        return self.segmentID, self.role, self.order

    def transformed(self, matrix: NDArray[np.float64]) -> PromptState:
        """Return the same taken through a transform (4, 4)."""
        if self.frame:
            frame, size = PromptNodes.movedFrame(matrix, np.reshape(self.frame, (4, 4)), np.array(self.size))
            return replace(self, frame=tuple(frame.ravel().tolist()), size=tuple(size.tolist()))
        points = tuple((number, *(matrix @ [*ras, 1.0])[:3].tolist()) for number, *ras in self.points)
        return replace(self, points=points)


#: All prompts of a segmentation, or of a segment, at one moment.
Snapshot = tuple[PromptState, ...]


def stateOf(node: Any) -> PromptState:
    """Return the present content of a prompt node."""
    state = _ownState(node)
    matrix = None if state.isEmpty or state.text else PromptNodes.toSegmentation(node)
    return state if matrix is None else state.transformed(matrix)


def applyState(node: Any, state: PromptState) -> None:
    """Give a prompt node of the same role this content."""
    matrix = PromptNodes.toSegmentation(node)
    if matrix is not None:
        state = state.transformed(np.linalg.inv(matrix))
    wasModifying = node.StartModify()
    if state.role == PromptNodes.NOTES:
        node.SetText(state.text)
    elif state.role == PromptNodes.BOX:
        PromptNodes.setOrder(node, state.order)
        PromptNodes.setPredicted(node, state.predicted)
        PromptNodes.setDrawn(node, state.drawn)
        PromptNodes.setBoxFrame(node, np.reshape(state.frame, (4, 4)), state.size)
    elif state.role in PromptNodes.POINT_ROLES:
        PromptNodes.setPoints(node, [(number, ras) for number, *ras in state.points])
    else:
        PromptNodes.setOrder(node, state.order)
        PromptNodes.setCurve(node, [ras for _, *ras in state.points])
    node.EndModify(wasModifying)


def _ownState(node: Any) -> PromptState:
    """Return the content in the node's own RAS."""
    role = PromptNodes.roleOf(node)
    segmentID, order = PromptNodes.segmentOf(node), PromptNodes.order(node)
    if role == PromptNodes.NOTES:
        return PromptState(segmentID, role, text=node.GetText() or "")
    if role == PromptNodes.BOX:
        if node.GetNumberOfControlPoints() == 0:
            return PromptState(segmentID, role, order)
        frame, size = (tuple(values.ravel().tolist()) for values in PromptNodes.boxFrame(node, own=True))
        predicted, drawn = PromptNodes.isPredicted(node), PromptNodes.drawnOf(node)
        return PromptState(segmentID, role, order, frame=frame, size=size, predicted=predicted, drawn=drawn)
    return PromptState(segmentID, role, order, PromptNodes.ownPoints(node))


# Masks and final slices -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskNote:
    """A mask given for slice ``n`` of the stack with the key ``stack``."""

    order: int
    stack: str
    n: int
    mask: MaskPrompt


@dataclass(frozen=True)
class MaskNotes:
    """Masks in the order they were given, and (stack key, slice) of the final slices."""

    masks: tuple[MaskNote, ...] = ()
    final: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    @property
    def isEmpty(self) -> bool:
        """Whether there is nothing to keep."""
        return not self.masks and not self.final

    def withMask(self, note: MaskNote) -> MaskNotes:
        """Return them with this mask, in place of an earlier one for the same slice."""
        kept = tuple(one for one in self.masks if (one.stack, one.n) != (note.stack, note.n))
        return MaskNotes((*kept, note), self.final)

    def withFinal(self, stackKey: str, n: int, final: bool) -> MaskNotes:
        """Return them with a slice marked as final, or not any more."""
        entry = {(stackKey, int(n))}
        return MaskNotes(self.masks, self.final | entry if final else self.final - entry)

    def toText(self) -> str:
        """Return them as JSON."""
        final: dict[str, list[int]] = {}
        for stack, n in sorted(self.final):
            final.setdefault(stack, []).append(n)
        prompts = PromptSet({_OBJECT: [note.mask for note in self.masks]})
        return json.dumps(
            {
                "version": _VERSION,
                "final": final,
                "masks": [{"order": note.order, "stack": note.stack, "n": note.n} for note in self.masks],
                "prompts": json.loads(prompts.to_json()),
            }
        )

    @classmethod
    def fromText(cls, text: str) -> MaskNotes:
        """Parse JSON; an empty text has no masks.

        Raises
        ------
        PromptError
            The text was damaged.
        """
        if not text.strip():
            return cls()
        try:
            return _parsed(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptError(
                f"the masks saved with the segment cannot be read ({error}): delete the text node "
                "that holds them",
                code="mask-notes-damaged",
                reason=str(error),
            ) from error


def _parsed(data: dict[str, Any]) -> MaskNotes:
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']}, this program reads {_VERSION}")
    masks = PromptSet.from_json(json.dumps(data["prompts"])).of(_OBJECT)
    if len(masks) != len(data["masks"]):
        raise ValueError(f"{len(data['masks'])} masks announced, {len(masks)} found")
    notes = tuple(
        MaskNote(int(entry["order"]), str(entry["stack"]), int(entry["n"]), mask)
        for entry, mask in zip(data["masks"], masks, strict=True)
        if isinstance(mask, MaskPrompt)
    )
    final = frozenset((str(stack), int(n)) for stack, numbers in data["final"].items() for n in numbers)
    return MaskNotes(notes, final)
