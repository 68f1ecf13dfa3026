"""A prompt node frozen as plain numbers: to tell whether it changed, and to bring it back exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from MedSAM2SegmentLib.Prompts import MarkupNodes


@dataclass(frozen=True)
class SavedNode:
    """What a prompt node said.

    ``points`` are (order number, R, A, S) of points, (0, R, A, S) of a scribble; ``frame`` and ``size`` are a
    box's (16 numbers row by row, and 3 mm); ``text`` holds masks and final slices.
    """

    segmentID: str
    role: str
    order: int = 0
    points: tuple[tuple[int, float, float, float], ...] = ()
    frame: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    text: str = ""

    @property
    def isEmpty(self) -> bool:
        """Whether nothing is said (somebody deleted the last point)."""
        return not (self.points or self.frame or self.text)


def saved(node: Any) -> SavedNode:
    """The present state of a prompt node."""
    role = MarkupNodes.roleOf(node)
    segmentID, order = MarkupNodes.segmentOf(node), MarkupNodes.order(node)
    if role == MarkupNodes.NOTES:
        return SavedNode(segmentID, role, text=node.GetText() or "")
    if role == MarkupNodes.BOX:
        if node.GetNumberOfControlPoints() == 0:
            return SavedNode(segmentID, role, order)
        frame, size = MarkupNodes.boxFrame(node)
        return SavedNode(segmentID, role, order, (), tuple(frame.ravel().tolist()), tuple(size.tolist()))
    numbered = role in MarkupNodes.POINT_ROLES
    points = tuple(
        (MarkupNodes.pointOrder(node, index) if numbered else 0, *MarkupNodes.positionOf(node, index))
        for index in range(node.GetNumberOfControlPoints())
        if MarkupNodes.isSet(node, index)
    )
    return SavedNode(segmentID, role, order, points)


def fill(node: Any, state: SavedNode) -> None:
    """Let a prompt node of the same role say what was saved."""
    wasModifying = node.StartModify()
    if state.role == MarkupNodes.NOTES:
        node.SetText(state.text)
    elif state.role == MarkupNodes.BOX:
        MarkupNodes.setOrder(node, state.order)
        MarkupNodes.setBoxFrame(node, np.reshape(state.frame, (4, 4)), state.size)
    elif state.role in MarkupNodes.POINT_ROLES:
        node.RemoveAllControlPoints()
        for number, *ras in state.points:
            MarkupNodes.addPoint(node, ras, number)
    else:
        MarkupNodes.setOrder(node, state.order)
        MarkupNodes.setCurve(node, [ras for _, *ras in state.points])
    node.EndModify(wasModifying)
