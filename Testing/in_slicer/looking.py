"""What the click-through sees: voxels of segments, prompts, places in the volume."""

import numpy as np
import slicer
import vtk


class Looking:
    """Looks at one volume and one segmentation, once they are there."""

    def __init__(self):
        self.volume = self.segmentation = None

    def voxels(self, segmentID):
        """(K, J, I) bool of a segment on the volume's grid. Makes a node for a moment: not for waiting."""
        array = slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentation, segmentID, self.volume)
        return np.asarray(array) != 0

    def ras(self, i, j, k):
        """World position of a voxel."""
        matrix = vtk.vtkMatrix4x4()
        self.volume.GetIJKToRASMatrix(matrix)
        local = matrix.MultiplyPoint((i, j, k, 1.0))[:3]
        world = [0.0, 0.0, 0.0]
        transform = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
            self.volume.GetParentTransformNode(), None, transform
        )
        transform.TransformPoint(local, world)
        return world

    def show(self, viewName, ras):
        slicer.app.layoutManager().sliceWidget(viewName).sliceLogic().GetSliceNode().JumpSliceByCentering(
            *ras
        )
        slicer.app.processEvents()

    def middle(self):
        """(k, j, i) in the middle of the volume."""
        return [n // 2 for n in slicer.util.arrayFromVolume(self.volume).shape[:3]]

    def centre(self):
        k, j, i = self.middle()
        return self.ras(i, j, k)

    @staticmethod
    def promptNodes():
        nodes = slicer.util.getNodesByClass("vtkMRMLMarkupsNode")
        return [node for node in nodes if node.GetAttribute("MedSAM2.role")]

    def promptCount(self):
        return len(self.promptNodes())

    def controlPointCount(self):
        return sum(node.GetNumberOfControlPoints() for node in self.promptNodes())
