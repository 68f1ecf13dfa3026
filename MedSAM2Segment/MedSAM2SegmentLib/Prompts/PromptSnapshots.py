"""A prompt node frozen as plain numbers: to tell whether it changed, and to bring it back exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Prompts import MarkupNodes

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SavedNode:
    """What a prompt node said, in the RAS of its segmentation: it is the same wherever that is moved to.

    ``points`` are (order number, R, A, S) of points, (0, R, A, S) of a scribble; ``frame`` and ``size`` are a
    box's (16 numbers row by row, and 3 mm), and a model drew it if it is ``predicted``; ``text`` holds masks
    and final slices.
    """

    segmentID: str
    role: str
    order: int = 0
    points: tuple[tuple[int, float, float, float], ...] = ()
    frame: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    text: str = ""
    predicted: bool = False

    @property
    def isEmpty(self) -> bool:
        """Whether nothing is said (somebody deleted the last point)."""
        return not (self.points or self.frame or self.text)

    def moved(self, matrix: NDArray[np.float64]) -> SavedNode:
        """The same taken through a transform (4, 4)."""
        if self.frame:
            frame, size = MarkupNodes.movedFrame(matrix, np.reshape(self.frame, (4, 4)), np.array(self.size))
            return replace(self, frame=tuple(frame.ravel().tolist()), size=tuple(size.tolist()))
        points = tuple((number, *(matrix @ [*ras, 1.0])[:3].tolist()) for number, *ras in self.points)
        return replace(self, points=points)


def saved(node: Any) -> SavedNode:
    """The present state of a prompt node."""
    state = _own(node)
    matrix = None if state.isEmpty or state.text else MarkupNodes.toSegmentation(node)
    return state if matrix is None else state.moved(matrix)


def fill(node: Any, state: SavedNode) -> None:
    """Let a prompt node of the same role say what was saved."""
    matrix = MarkupNodes.toSegmentation(node)
    if matrix is not None:
        state = state.moved(np.linalg.inv(matrix))
    wasModifying = node.StartModify()
    if state.role == MarkupNodes.NOTES:
        node.SetText(state.text)
    elif state.role == MarkupNodes.BOX:
        MarkupNodes.setOrder(node, state.order)
        MarkupNodes.setPredicted(node, state.predicted)
        MarkupNodes.setBoxFrame(node, np.reshape(state.frame, (4, 4)), state.size)
    elif state.role in MarkupNodes.POINT_ROLES:
        MarkupNodes.setPoints(node, [(number, ras) for number, *ras in state.points])
    else:
        MarkupNodes.setOrder(node, state.order)
        MarkupNodes.setOwnCurve(node, [ras for _, *ras in state.points])
    node.EndModify(wasModifying)


def _own(node: Any) -> SavedNode:
    """The state in the node's own RAS."""
    role = MarkupNodes.roleOf(node)
    segmentID, order = MarkupNodes.segmentOf(node), MarkupNodes.order(node)
    if role == MarkupNodes.NOTES:
        return SavedNode(segmentID, role, text=node.GetText() or "")
    if role == MarkupNodes.BOX:
        if node.GetNumberOfControlPoints() == 0:
            return SavedNode(segmentID, role, order)
        frame, size = MarkupNodes.ownBoxFrame(node)
        place = tuple(frame.ravel().tolist()), tuple(size.tolist())
        return SavedNode(segmentID, role, order, (), *place, predicted=MarkupNodes.isPredicted(node))
    numbered = role in MarkupNodes.POINT_ROLES
    points = tuple(
        (MarkupNodes.pointOrder(node, index) if numbered else 0, *MarkupNodes.ownPositionOf(node, index))
        for index in range(node.GetNumberOfControlPoints())
        if MarkupNodes.isSet(node, index)
    )
    return SavedNode(segmentID, role, order, points)
