"""The 3-D view of a segmentation, as the Segment Editor's button *Show 3D* makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM2SegmentLib.Segments.Editors import LABELMAP

SURFACE = "Closed surface"

#: Up to how many faces of voxels the surface is made unasked. Slicer makes and smooths it while the window
#: waits, 4 to 8 µs a face on a slow processor, and again at every change of a segment: below half a second.
MOST_FACES = 60_000
#: Up to how many voxels, each counted for every segment that may have it: 5 ns each, as above.
MOST_VOXELS = 50_000_000

_IS_SHOWN = "MedSAM2.Shown3D"


def showOnce(segmentationNode: Any) -> bool:
    """Show a segmentation in 3D unless that was done before; whether it was done now.

    The user may have hidden it since: then it stays hidden. Nothing is done where it would take long.
    """
    segmentation, display = segmentationNode.GetSegmentation(), segmentationNode.GetDisplayNode()
    if display is None or segmentationNode.GetAttribute(_IS_SHOWN) or not isQuick(segmentation):
        return False
    if not segmentation.ContainsRepresentation(SURFACE):
        if not segmentationNode.CreateClosedSurfaceRepresentation():
            return False
        display.SetPreferredDisplayRepresentationName3D(SURFACE)
        display.SetPreferredDisplayRepresentationName2D(LABELMAP)
        display.SetVisibility3D(True)
    segmentationNode.SetAttribute(_IS_SHOWN, "1")
    return True


def isQuick(segmentation: Any) -> bool:
    """Whether the surfaces of all segments of a ``vtkSegmentation`` are made in a moment."""
    labelmaps = [segmentation.GetLayerDataObject(n) for n in range(segmentation.GetNumberOfLayers())]
    segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    count = sum(one.GetRepresentation(LABELMAP).GetNumberOfPoints() for one in segments if _hasVoxels(one))
    return count <= MOST_VOXELS and sum(_faces(one) for one in labelmaps) <= MOST_FACES


def _hasVoxels(segment: Any) -> bool:
    labelmap = segment.GetRepresentation(LABELMAP)
    return labelmap is not None and labelmap.GetPointData().GetScalars() is not None


def _faces(labelmap: Any) -> int:
    """Count the faces between voxels of different labels, and those at the edge of a labelmap."""
    scalars = labelmap.GetPointData().GetScalars()
    if scalars is None or 0 in labelmap.GetDimensions():
        return 0
    values = vtk_to_numpy(scalars).reshape(labelmap.GetDimensions()[::-1])
    count = 0
    for axis in range(3):
        along = np.moveaxis(values, axis, 0)
        count += np.count_nonzero(along[1:] != along[:-1])
        count += np.count_nonzero(along[0]) + np.count_nonzero(along[-1])
    return int(count)
