"""Prompt nodes of the scene: how they are created, identified, read and written.

Every node carries ``MedSAM2.segmentID``, ``MedSAM2.role`` and a reference to its segmentation.
``MedSAM2.order`` (boxes, scribbles) or the description of each control point (points) tells
which came first. ``MedSAM2.predicted`` marks a box that a model predicted and the user has not moved;
``MedSAM2.drawn`` has the lengths in mm of the lines a box was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import GeometryError, PromptError

from MedSAM2SegmentLib.Segments.Editors import matrixToArray, nodesOf, transformToWorld

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture

POSITIVE, NEGATIVE = "positive", "negative"
BOX = "box"
SCRIBBLE, NEGATIVE_SCRIBBLE = "scribble", "negativeScribble"
NOTES = "notes"  # masks and final slices, as text
POINT_ROLES = (POSITIVE, NEGATIVE)
SCRIBBLE_ROLES = (SCRIBBLE, NEGATIVE_SCRIBBLE)
ROLES = (*POINT_ROLES, BOX, *SCRIBBLE_ROLES, NOTES)

_SEGMENT, _ROLE, _ORDER = "MedSAM2.segmentID", "MedSAM2.role", "MedSAM2.order"
_PREDICTED, _DRAWN = "MedSAM2.predicted", "MedSAM2.drawn"
_PLACED = slicer.vtkMRMLMarkupsNode.PositionDefined
_SEGMENTATION_REFERENCE, _VOLUME_REFERENCE = "MedSAM2.segmentation", "MedSAM2.volume"
_CLASSES = {
    POSITIVE: "vtkMRMLMarkupsFiducialNode",
    NEGATIVE: "vtkMRMLMarkupsFiducialNode",
    BOX: "vtkMRMLMarkupsROINode",
    SCRIBBLE: "vtkMRMLMarkupsCurveNode",
    NEGATIVE_SCRIBBLE: "vtkMRMLMarkupsCurveNode",
    NOTES: "vtkMRMLTextNode",
}
_NAMES = {
    POSITIVE: "inside points",
    NEGATIVE: "outside points",
    BOX: "box",
    SCRIBBLE: "inside scribble",
    NEGATIVE_SCRIBBLE: "outside scribble",
    NOTES: "masks",
}


def promptNodes(scene: Any, segmentationNode: Any) -> Iterator[Any]:
    """Yield the prompt nodes of a segmentation, in the order of the scene."""
    for className in ("vtkMRMLMarkupsNode", "vtkMRMLTextNode"):
        for node in nodesOf(scene, className):
            isOfIt = node.GetNodeReferenceID(_SEGMENTATION_REFERENCE) == segmentationNode.GetID()
            if isPrompt(node) and isOfIt:
                yield node


def isPrompt(node: Any) -> bool:
    """Whether a node of the scene is a prompt."""
    return node.GetAttribute(_ROLE) in ROLES


def segmentOf(node: Any) -> str:
    """Return the ID of the segment a prompt node belongs to."""
    return node.GetAttribute(_SEGMENT) or ""


def roleOf(node: Any) -> str:
    """Return the role of a prompt node, one of :data:`ROLES`."""
    return node.GetAttribute(_ROLE) or ""


def isPositive(node: Any) -> bool:
    """Whether the points of a node belong to the segment."""
    return roleOf(node) not in (NEGATIVE, NEGATIVE_SCRIBBLE)


def create(scene: Any, segmentationNode: Any, segmentID: str, role: str, volumeNode: Any = None) -> Any:
    """Create an empty prompt node, without display nodes (see :mod:`PromptAppearance`)."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentID)
    name = f"{segment.GetName() if segment else segmentID} {_NAMES[role]}"
    node = scene.CreateNodeByClass(_CLASSES[role])
    node.UnRegister(None)
    # Slicer numbers a name that was ever taken, also one that is free again.
    node.SetName(name if scene.GetFirstNodeByName(name) is None else scene.GenerateUniqueName(name))
    node.SetAttribute(_SEGMENT, segmentID)
    node.SetAttribute(_ROLE, role)
    # Before it is added, so that observers of the scene see which segmentation it belongs to.
    node.SetNodeReferenceID(_SEGMENTATION_REFERENCE, segmentationNode.GetID())
    if volumeNode is not None:
        node.SetNodeReferenceID(_VOLUME_REFERENCE, volumeNode.GetID())
    with _activeListKept(scene):
        scene.AddNode(node)
    if node.IsA("vtkMRMLTransformableNode"):
        node.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    return node


def toSegmentation(node: Any) -> NDArray[np.float64] | None:
    """Return (4, 4) from a prompt node's own RAS to its segmentation's; None when they are the same.

    They differ only for a prompt that somebody has put under a transform of its own.
    """
    segmentation = node.GetNodeReference(_SEGMENTATION_REFERENCE)
    if segmentation is None or not node.IsA("vtkMRMLTransformableNode"):
        return None
    if node.GetTransformNodeID() == segmentation.GetTransformNodeID():
        return None
    try:
        return np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(node)
    except GeometryError:
        return None  # under a transform that warps nothing can be segmented


@contextmanager
def _activeListKept(scene: Any) -> Iterator[None]:
    """Slicer makes every new markups node the one that its place mode adds points to: not ours."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if selection is None:
        yield
        return
    nodeID, className = selection.GetActivePlaceNodeID(), selection.GetActivePlaceNodeClassName()
    yield
    selection.SetReferenceActivePlaceNodeClassName(className)
    selection.SetReferenceActivePlaceNodeID(nodeID)


# Order ------------------------------------------------------------------------------------------------------


def order(node: Any) -> int:
    """Return the order number of a box or scribble; 0 when there is none."""
    return _number(node.GetAttribute(_ORDER))


def setOrder(node: Any, number: int) -> None:
    """Set the order number of a box or scribble."""
    node.SetAttribute(_ORDER, str(number))


def pointOrder(node: Any, index: int) -> int:
    """Return the order number of a control point; 0 when somebody else placed it."""
    return _number(node.GetNthControlPointDescription(index))


def highestOrder(node: Any) -> int:
    """Return the highest order number in a node."""
    if roleOf(node) in POINT_ROLES:
        return max((pointOrder(node, n) for n in range(node.GetNumberOfControlPoints())), default=0)
    return order(node)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


# Points and scribbles ---------------------------------------------------------------------------------------


def controlPoints(node: Any) -> NDArray[np.float64]:
    """Return (N, 3) world RAS of the control points that have a position."""
    points = [
        positionOf(node, index) for index in range(node.GetNumberOfControlPoints()) if isSet(node, index)
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def isSet(node: Any, index: int) -> bool:
    """Whether a control point was placed, and does not follow the mouse any more."""
    return node.GetNthControlPointPositionStatus(index) == _PLACED


def ownPoints(node: Any) -> tuple[tuple[int, float, float, float], ...]:
    """Return (order number, R, A, S) of the placed control points, in the node's own RAS.

    The order number is 0 in a scribble, whose points have none.
    """
    isNumbered, points = roleOf(node) in POINT_ROLES, []
    for index in range(node.GetNumberOfControlPoints()):
        if node.GetNthControlPointPositionStatus(index) == _PLACED:
            ras = [0.0, 0.0, 0.0]
            node.GetNthControlPointPosition(index, ras)
            points.append((pointOrder(node, index) if isNumbered else 0, *ras))
    return tuple(points)


def positionOf(node: Any, index: int) -> list[float]:
    """Return the position of a control point in world RAS."""
    ras = [0.0, 0.0, 0.0]
    node.GetNthControlPointPositionWorld(index, ras)
    return ras


def addPoint(node: Any, ras: ArrayLike, number: int) -> int:
    """Append a control point to a node of points, and return its index."""
    index = node.AddControlPointWorld(vtk.vtkVector3d(*[float(value) for value in np.ravel(ras)]))
    numberPoint(node, index, number)
    return index


def setPoints(node: Any, positions: Iterable[tuple[int, ArrayLike]]) -> None:
    """Replace all points of a node by (order number, position in the node's own RAS)."""
    node.RemoveAllControlPoints()
    for number, position in positions:
        index = node.AddControlPoint(vtk.vtkVector3d(*[float(value) for value in np.ravel(position)]))
        numberPoint(node, index, number)


def numberPoint(node: Any, index: int, number: int) -> None:
    """Set the order number of a control point, and its label."""
    node.SetNthControlPointDescription(index, str(number))
    node.SetNthControlPointLabel(index, f"{'+' if isPositive(node) else '-'}{number}")


def setCurve(node: Any, positions: ArrayLike) -> None:
    """Set a scribble to (N, 3) positions in the node's own RAS, joined by straight lines."""
    node.SetCurveTypeToLinear()
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    for position in np.asarray(positions):
        points.InsertNextPoint(position)
    node.SetControlPointPositionsWorld(points)
    for index in range(points.GetNumberOfPoints()):  # exactly, and not in the world
        node.SetNthControlPointPosition(index, *points.GetPoint(index))


# Boxes ------------------------------------------------------------------------------------------------------


def isPredicted(node: Any) -> bool:
    """Whether a model drew this box, and nobody has moved it since."""
    return node.GetAttribute(_PREDICTED) == "1"


def setPredicted(node: Any, predicted: bool) -> None:
    """Mark a box as drawn by a model, or as the user's own."""
    if predicted is not isPredicted(node):
        node.SetAttribute(_PREDICTED, "1" if predicted else None)


def drawnOf(node: Any) -> tuple[float, ...]:
    """Return the lengths in mm of the lines a box was made of; empty for other boxes."""
    try:
        return tuple(float(part) for part in (node.GetAttribute(_DRAWN) or "").split())
    except ValueError:
        return ()  # edited by hand


def setDrawn(node: Any, lengths: Iterable[float]) -> None:
    """Keep the lengths in mm of the lines a box was made of."""
    text = " ".join(f"{length:.3f}" for length in lengths)
    if text != (node.GetAttribute(_DRAWN) or ""):
        node.SetAttribute(_DRAWN, text or None)


def frameOf(gesture: BoxGesture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frame (4, 4: unit axes and centre, RAS) and size (3,) in mm of a box that was drawn.

    The x axis is normal to the slice, y and z run along the view's rows and columns.
    """
    corners = gesture.rasCorners
    along, across = corners[1] - corners[0], corners[3] - corners[0]
    size = np.array([gesture.thickness, np.linalg.norm(along), np.linalg.norm(across)])
    if min(size) <= 0:
        raise PromptError(f"a box of {size[1]:g} x {size[2]:g} mm is empty: draw it again", code="box-empty")
    frame = np.eye(4)
    frame[:3, 1], frame[:3, 2] = along / size[1], across / size[2]
    frame[:3, 0] = np.cross(frame[:3, 1], frame[:3, 2])
    frame[:3, 3] = corners.mean(axis=0)
    return frame, size


def movedFrame(
    matrix: NDArray[np.float64], frame: NDArray[np.float64], size: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a box's frame and size after a transform (4, 4); a shear leaves its axes not orthogonal."""
    moved = matrix @ frame
    scale = np.linalg.norm(moved[:3, :3], axis=0)
    moved[:3, :3] /= scale
    return moved, np.asarray(size, dtype=np.float64) * scale


def setBoxFrame(node: Any, frame: NDArray[np.float64], size: ArrayLike) -> None:
    """Set a box node to a frame (4, 4: unit axes and centre) and size (3,) in mm, in the node's own RAS."""
    wasModifying = node.StartModify()
    if node.GetNumberOfControlPoints() == 0:
        node.AddControlPoint(vtk.vtkVector3d(*frame[:3, 3]))
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(frame.ravel())
    node.SetAndObserveObjectToNodeMatrix(matrix)
    node.SetCenter(*(float(value) for value in frame[:3, 3]))
    node.SetSize(*(float(value) for value in size))
    node.EndModify(wasModifying)


def boxFrame(node: Any, *, own: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (4, 4) unit axes and centre in world RAS, or in the node's own, and the size (3,) in mm."""
    frame = matrixToArray(node.GetObjectToNodeMatrix() if own else node.GetObjectToWorldMatrix())
    scale = np.linalg.norm(frame[:3, :3], axis=0)
    frame[:3, :3] /= scale
    return frame, np.array(node.GetSize(), dtype=np.float64) * scale


def boxCorners(node: Any) -> NDArray[np.float64]:
    """Return (4, 3) RAS of the corners, in order round the box, on its middle plane."""
    return cornersOf(*boxFrame(node))


def cornersOf(frame: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (4, 3) RAS of the corners of a box with this frame and size."""
    halves = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]]) * size / 2
    return halves @ frame[:3, :3].T + frame[:3, 3]
