"""Slicer's edit functions as an interface, with the one over a scripted effect; grids and nodes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import slicer
import vtk
from medsam2_core.errors import GeometryError, MedSAM2Error

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: What a labelmap may do to a segment.
ADD, REMOVE = "add", "remove"
#: The representation in which segments are edited.
LABELMAP = "Binary labelmap"


class SegmentError(MedSAM2Error):
    """A segment that is gone, or that cannot be edited as it stands."""


class SegmentEditor(Protocol):
    """All that the effect does with the Segment Editor.

    Masking, overwriting of neighbours and undo are those of Slicer's Segment Editor, as the user set them.
    """

    def saveStateForUndo(self) -> None:
        """Begin a step of Slicer's undo."""

    def modifySegment(self, segmentID: str, labelmap: Any, mode: str) -> None:
        """Add a labelmap to a segment, or remove it, through Slicer's masks and overwrite mode.

        The labelmap (``vtkOrientedImageData`` of 0 and 1) has the matrix of :meth:`referenceGeometry` and as
        its own extent the extent that may change.
        """

    def referenceGeometry(self) -> tuple[NDArray[np.float64], Extent]:
        """Return (4, 4) from voxel indices to the segmentation's own RAS, and the extent (i0, i1, j0, …).

        GeometryError when the segmentation has none yet.
        """

    def parameterSetNode(self) -> Any:
        """Return the node with the parameters of this Segment Editor, or None."""

    def segmentationNode(self) -> Any:
        """Return the segmentation being edited, or None."""
        node = self.parameterSetNode()
        return node.GetSegmentationNode() if node else None

    def selectedSegmentID(self) -> str:
        """Return the ID of the segment being edited; empty when none is selected."""
        node = self.parameterSetNode()
        return (node.GetSelectedSegmentID() or "") if node else ""

    def sourceVolumeNode(self) -> Any:
        """Return the volume being segmented, or None."""
        node = self.parameterSetNode()
        return node.GetSourceVolumeNode() if node else None

    def parameter(self, name: str) -> str:
        """Return a parameter of the effect; empty when it was never set."""

    def setParameter(self, name: str, value: str) -> None:
        """Store a parameter of the effect in the scene."""

    def confirmSegmentVisible(self) -> bool:
        """Whether the selected segment may be edited now: Slicer asks the user when it is hidden."""


class ScriptedEffectEditor(SegmentEditor):
    """The Segment Editor of a running Slicer, through a scripted effect.

    Parameters
    ----------
    scriptedEffect
        ``qSlicerSegmentEditorScriptedEffect``. Only calls that PythonQt can make are used: none of them has
        an extent as a C array, which is why the labelmap's own extent says what may change.
    """

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def saveStateForUndo(self) -> None:
        self.scriptedEffect.saveStateForUndo()

    def modifySegment(self, segmentID: str, labelmap: Any, mode: str) -> None:
        effect = slicer.qSlicerSegmentEditorAbstractEffect  # only in a running Slicer
        modes = {ADD: effect.ModificationModeAdd, REMOVE: effect.ModificationModeRemove}
        with selected(self.parameterSetNode(), segmentID):
            self.scriptedEffect.modifySegmentByLabelmap(
                self.segmentationNode(), segmentID, labelmap, modes[mode]
            )

    def referenceGeometry(self) -> tuple[NDArray[np.float64], Extent]:
        return geometryOfImage(self.scriptedEffect.referenceGeometryImage())

    def parameterSetNode(self) -> Any:
        return self.scriptedEffect.parameterSetNode()

    def parameter(self, name: str) -> str:
        # Slicer prints an error when a parameter that was never set is asked for.
        return self.scriptedEffect.parameter(name) if self.scriptedEffect.parameterDefined(name) else ""

    def setParameter(self, name: str, value: str) -> None:
        self.scriptedEffect.setParameter(name, value)

    def confirmSegmentVisible(self) -> bool:
        # After a dialog the mouse is somewhere else: the user clicks once more, as in Slicer's own effects.
        answer = self.scriptedEffect.confirmCurrentSegmentVisible()
        return answer == self.scriptedEffect.ConfirmedWithoutDialog


@contextmanager
def selected(parameterSetNode: Any, segmentID: str) -> Iterator[None]:
    """Select a segment while it is edited, without an event.

    Slicer's edit mask always leaves out the *selected* segment: were another one edited under it, "outside
    all segments" would forbid its own voxels and allow those of the selected one.
    """
    before = parameterSetNode.GetSelectedSegmentID()
    if before == segmentID:
        yield
        return
    silent = parameterSetNode.GetDisableModifiedEvent()
    parameterSetNode.SetDisableModifiedEvent(1)
    try:
        parameterSetNode.SetSelectedSegmentID(segmentID)
        yield
    finally:
        parameterSetNode.SetSelectedSegmentID(before)
        parameterSetNode.SetDisableModifiedEvent(silent)


@contextmanager
def neighboursKept(parameterSetNode: Any) -> Iterator[None]:
    """Within, no edit takes voxels from another segment, whatever the user's overwrite mode."""
    before, silent = parameterSetNode.GetOverwriteMode(), parameterSetNode.GetDisableModifiedEvent()
    parameterSetNode.SetDisableModifiedEvent(1)
    try:
        parameterSetNode.SetOverwriteMode(parameterSetNode.OverwriteNone)
        yield
    finally:
        parameterSetNode.SetOverwriteMode(before)
        parameterSetNode.SetDisableModifiedEvent(silent)


def geometryOfImage(image: Any) -> tuple[NDArray[np.float64], Extent]:
    """Return (4, 4) from indices to the segmentation's RAS, and the extent, of a reference geometry image."""
    extent = Extent(*image.GetExtent()) if image is not None else NOWHERE
    if extent.isEmpty:
        raise GeometryError(
            "the segmentation has no geometry yet: choose a source volume in the Segment Editor first",
            code="no-reference-geometry",
        )
    return imageToWorld(image), extent


def ownGrid(segmentation: Any) -> tuple[NDArray[np.float64], Extent] | None:
    """Return (4, 4) from indices to the own RAS of a segmentation, and the extent, of its geometry."""
    known, converter = segmentation.GetSegmentation(), slicer.vtkSegmentationConverter
    text = known.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, image, False):
        return None
    try:
        return geometryOfImage(image)
    except GeometryError:
        return None


def imageToWorld(image: Any) -> NDArray[np.float64]:
    """Return (4, 4) from the indices of a ``vtkOrientedImageData`` to its RAS."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrixToArray(matrix)


def nodesOf(scene: Any, className: str) -> Iterator[Any]:
    """Yield the nodes of a class, in the order of the scene; none without a scene."""
    nodes = scene.GetNodesByClass(className) if scene is not None else None
    if nodes is not None:
        nodes.UnRegister(None)
        for index in range(nodes.GetNumberOfItems()):
            yield nodes.GetItemAsObject(index)


def matrixToArray(matrix: Any) -> NDArray[np.float64]:
    """Return the (4, 4) array of a ``vtkMatrix4x4``."""
    array = np.empty((4, 4))
    matrix.DeepCopy(array.ravel(), matrix)
    return array


def arrayToMatrix(array: NDArray[np.float64]) -> Any:
    """Return the ``vtkMatrix4x4`` of a (4, 4) array."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.ascontiguousarray(array, dtype=np.float64).ravel())
    return matrix


def transformToWorld(node: Any) -> NDArray[np.float64]:
    """Return (4, 4) from a node's own RAS to the world's, through its parent transforms.

    Raises
    ------
    GeometryError
        A parent transform is not linear.
    """
    transformNode = node.GetParentTransformNode()
    if transformNode is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if not transformNode.IsTransformToWorldLinear() or not transformNode.GetMatrixTransformToWorld(matrix):
        raise warpError(node, transformNode)
    return matrixToArray(matrix)


def warpError(node: Any, transformNode: Any) -> GeometryError:
    """Return the error that a node is under a transform which is not linear."""
    name, transform = node.GetName(), transformNode.GetName()
    return GeometryError(
        f"{name!r} is under the transform {transform!r}, which is not linear: harden the transform, or take "
        "the node out of it",
        code="transform-not-linear",
        node=name,
        transform=transform,
    )
