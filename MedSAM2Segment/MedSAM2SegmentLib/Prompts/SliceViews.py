"""Positions in slice views: pixels and millimetres, and the prompt under the mouse.

A position ``xyz`` in a slice view is column and row in pixels from its lower left corner, and the slice (0 in
the displayed plane; one step is the spacing of the view). The slice node's matrix holds zoom, pan, rotation
and flips, so nothing else needs to know about them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.imaging.geometry import transform

from MedSAM2SegmentLib.Prompts import PromptNodes
from MedSAM2SegmentLib.Segments.Editors import matrixToArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def mousePosition(interactor: Any, sliceNode: Any) -> NDArray[np.float64]:
    """Return the (3,) position of the mouse in a slice view."""
    xyz = [0.0, 0.0, 0.0]
    x, y = interactor.GetEventPosition()
    convert = slicer.vtkMRMLAbstractSliceViewDisplayableManager.ConvertDeviceToXYZ
    convert(interactor, sliceNode, x, y, xyz)
    return np.array(xyz)


def toRas(sliceNode: Any, xyz: ArrayLike) -> NDArray[np.float64]:
    """Convert (N, 3) positions in the view to RAS."""
    return transform(matrixToArray(sliceNode.GetXYToRAS()), xyz)


def toXyz(sliceNode: Any, ras: ArrayLike) -> NDArray[np.float64]:
    """Convert (N, 3) RAS to positions in the view; the third is the distance from its plane in slices."""
    return transform(np.linalg.inv(matrixToArray(sliceNode.GetXYToRAS())), ras)


def sliceThickness(sliceNode: Any) -> float:
    """Return the distance in mm between neighbouring slices of the view."""
    return float(np.linalg.norm(matrixToArray(sliceNode.GetXYToRAS())[:3, 2]))


# As Slicer's markups: a handle is taken within six pixels of its rim; glyph sizes are in percent of a fifth
# of the view's diagonal; what is half a slice away is not shown.
_REACH = 6.0
_SCREEN_SCALE = 0.2
_NEAR = 0.5


@dataclass(frozen=True)
class PromptHandle:
    """A prompt in the scene: a whole node, or one of its points (``index``, else -1)."""

    nodeID: str
    segmentID: str
    role: str
    index: int = -1


def pick(nodes: Iterable[Any], sliceNode: Any, xyz: ArrayLike, *, lines: bool) -> PromptHandle | None:
    """Return the nearest prompt within reach of a position in a slice view; None when there is none.

    ``lines`` includes the outline of a box and the stroke of a scribble; without it, only what the mouse can
    drag is found.
    """
    position = np.ravel(np.asarray(xyz, dtype=np.float64))[:2]
    best: tuple[float, PromptHandle] | None = None
    for node in nodes:
        if PromptNodes.roleOf(node) == PromptNodes.NOTES or not _isShown(node):
            continue
        if node.GetLocked() and not lines:
            continue  # the user does not want it to be moved
        distance, index = _distance(node, sliceNode, position, lines)
        if distance <= _REACH + _glyphRadius(node, sliceNode) and (best is None or distance < best[0]):
            best = (distance, _handle(node, index))
    return None if best is None else best[1]


def _isShown(node: Any) -> bool:
    display = node.GetDisplayNode()
    return display is not None and bool(display.GetVisibility()) and bool(display.GetVisibility2D())


def _handle(node: Any, index: int) -> PromptHandle:
    role = PromptNodes.roleOf(node)
    return PromptHandle(
        node.GetID(), PromptNodes.segmentOf(node), role, index if role in PromptNodes.POINT_ROLES else -1
    )


def _glyphRadius(node: Any, sliceNode: Any) -> float:
    width, height, _ = sliceNode.GetDimensions()
    return float(np.hypot(width, height)) * _SCREEN_SCALE * node.GetDisplayNode().GetGlyphScale() / 200


def _distance(node: Any, sliceNode: Any, position: NDArray[np.float64], lines: bool) -> tuple[float, int]:
    """Return the pixels to the nearest visible handle (or line), and its control point."""
    if PromptNodes.roleOf(node) == PromptNodes.BOX:
        if node.GetNumberOfControlPoints() == 0:
            return np.inf, -1
        corners = PromptNodes.boxCorners(node)
        middles = (corners + np.roll(corners, -1, axis=0)) / 2
        handles = toXyz(sliceNode, np.vstack([corners, middles, corners.mean(axis=0)]))
        outline = np.vstack([handles[:4], handles[:1]])
        index = np.full(len(handles), -1)
    else:
        index = np.array(
            [n for n in range(node.GetNumberOfControlPoints()) if PromptNodes.isSet(node, n)], dtype=int
        )
        if index.size == 0:
            return np.inf, -1
        outline = handles = toXyz(sliceNode, PromptNodes.controlPoints(node))
    distances = np.linalg.norm(handles[:, :2] - position, axis=1)
    distances[np.abs(handles[:, 2]) > _NEAR] = np.inf
    nearest = int(np.argmin(distances))
    distance = float(distances[nearest])
    if lines and PromptNodes.roleOf(node) not in PromptNodes.POINT_ROLES:
        distance = min(distance, _toLine(outline, position))
    return distance, int(index[nearest])


def _toLine(xyz: NDArray[np.float64], position: NDArray[np.float64]) -> float:
    """Return the pixels to the nearest visible part of a polyline."""
    start, stop = xyz[:-1], xyz[1:]
    along = (stop - start)[:, :2]
    squared = np.maximum((along**2).sum(axis=1), 1e-12)
    part = np.clip(((position - start[:, :2]) * along).sum(axis=1) / squared, 0, 1)
    nearest = start[:, :2] + part[:, None] * along
    distances = np.linalg.norm(nearest - position, axis=1)
    distances[(np.abs(start[:, 2]) > _NEAR) | (np.abs(stop[:, 2]) > _NEAR)] = np.inf
    return float(distances.min(initial=np.inf))
