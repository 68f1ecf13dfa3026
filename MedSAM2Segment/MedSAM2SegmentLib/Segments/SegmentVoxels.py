"""Reading of segments, only where needed and without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM2SegmentLib.Segments.Editors import LABELMAP, SegmentError, arrayToMatrix, imageToWorld
from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, VoxelList, Voxels, latticeShift, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SegmentVoxels:
    """The segments of a segmentation on one grid.

    Parameters
    ----------
    indexToRAS : (4, 4)
        The grid: from voxel indices to the segmentation's own RAS.
    """

    def __init__(self, segmentationNode: Any, indexToRAS: NDArray[np.float64]) -> None:
        self.segmentation = segmentationNode.GetSegmentation()
        self.name = segmentationNode.GetName()
        self.indexToRAS = indexToRAS

    def check(self, segmentID: str) -> None:
        """Raise SegmentError when the segment is gone, or the segmentation is not kept as labelmaps."""
        if self.segmentation.GetSegment(segmentID) is None:
            raise SegmentError(
                f"the segment {segmentID!r} is no longer in {self.name!r}: select another one, or undo what "
                "removed it",
                code="segment-gone",
                segment=segmentID,
            )
        representation = self.segmentation.GetSourceRepresentationName()
        if representation != LABELMAP:
            raise SegmentError(
                f"{self.name!r} is kept as {representation}, which cannot be painted on: select the effect "
                "again and let the Segment Editor convert it to a binary labelmap",
                code="segmentation-not-labelmap",
                representation=representation,
            )

    def mask(self, segmentID: str, voxels: Voxels) -> NDArray[np.bool_]:
        """Return which voxels belong to the segment, as an array of their shape; none when it is gone."""
        segment = self.segmentation.GetSegment(segmentID)
        values = None if segment is None else self.values(segment.GetRepresentation(LABELMAP), voxels)
        return np.zeros(voxels.shape, dtype=bool) if values is None else values == segment.GetLabelValue()

    def hasAny(self, segmentID: str) -> bool:
        """Whether the segment has voxels anywhere."""
        segment = self.segmentation.GetSegment(segmentID)
        labelmap = None if segment is None else segment.GetRepresentation(LABELMAP)
        scalars = None if labelmap is None else labelmap.GetPointData().GetScalars()
        return scalars is not None and bool((vtk_to_numpy(scalars) == segment.GetLabelValue()).any())

    def array(self, segmentID: str) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
        """Return the (K, J, I) mask of a segment on its labelmap, and (4, 4) from its indices to own RAS.

        None for a segment without voxels.
        """
        segment = self.segmentation.GetSegment(segmentID)
        labelmap = None if segment is None else segment.GetRepresentation(LABELMAP)
        scalars = None if labelmap is None else labelmap.GetPointData().GetScalars()
        if scalars is None:
            return None
        filled = Extent(*labelmap.GetExtent())
        mask_kji = (vtk_to_numpy(scalars) == segment.GetLabelValue()).reshape(filled.shape)
        matrix = imageToWorld(labelmap)
        matrix[:3, 3] += matrix[:3, :3] @ labelmap.GetExtent()[::2]
        return (mask_kji, matrix) if mask_kji.any() else None

    def millilitres(self, segmentID: str) -> float:
        """Return the volume of the segment in its segmentation's own RAS."""
        read = self.array(segmentID)
        if read is None:
            return 0.0
        return float(np.count_nonzero(read[0]) * abs(np.linalg.det(read[1][:3, :3])) / 1000.0)

    def filled(self, segmentID: str) -> Extent:
        """Return a box round the voxels of the grid that the segment may have; empty when it is gone."""
        segment = self.segmentation.GetSegment(segmentID)
        return NOWHERE if segment is None else self.filledBy(segment.GetRepresentation(LABELMAP))

    def filledBy(self, labelmap: Any) -> Extent:
        """Return a box round the voxels of the grid that a labelmap can fill."""
        if labelmap is None:
            return NOWHERE
        return Extent(*labelmap.GetExtent()).onLattice(
            np.linalg.inv(self.indexToRAS) @ imageToWorld(labelmap)
        )

    def others(self, segmentID: str, voxels: Voxels) -> dict[str, NDArray[np.bool_]]:
        """Return masks of the other segments that have any of the voxels."""
        found: dict[str, NDArray[np.bool_]] = {}
        layers: dict[Any, tuple[Any, Any]] = {}
        for n in range(self.segmentation.GetNumberOfSegments()):
            other, segment = self.segmentation.GetNthSegmentID(n), self.segmentation.GetNthSegment(n)
            labelmap = segment.GetRepresentation(LABELMAP)
            if other == segmentID or labelmap is None:
                continue
            if labelmap not in layers:  # segments that do not overlap share one
                values = self.values(labelmap, voxels)
                layers[labelmap] = (values, () if values is None else _present(values))
            values, present = layers[labelmap]
            if segment.GetLabelValue() in present:
                found[other] = values == segment.GetLabelValue()
        return found

    def state(self, segmentID: str) -> object:
        """Return what changes when the segment's voxels may have changed; None when it is gone."""
        segment = self.segmentation.GetSegment(segmentID)
        labelmap = None if segment is None else segment.GetRepresentation(LABELMAP)
        return None if labelmap is None else (labelmap.__this__, labelmap.GetMTime(), segment.GetLabelValue())

    def values(self, labelmap: Any, voxels: Voxels) -> NDArray[Any] | None:
        """Return values of a labelmap of the segmentation at voxels, 0 outside it; None when it is empty."""
        if labelmap is None or labelmap.GetPointData().GetScalars() is None or voxels.isEmpty:
            return None
        filled = Extent(*labelmap.GetExtent())
        if filled.isEmpty:
            return None
        values_kji = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(filled.shape)
        toLabelmap = np.linalg.inv(imageToWorld(labelmap)) @ self.indexToRAS
        if latticeShift(toLabelmap, filled) == (0, 0, 0):
            return voxels.read(values_kji, filled)
        return nearest(values_kji, filled, toLabelmap, voxels)  # imported as it was, on its own lattice


def _present(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values that occur; without sorting where there cannot be many."""
    if values.dtype.kind not in "ui" or values.dtype.itemsize > 2:
        return np.unique(values)
    counted = np.zeros(1 << (8 * values.dtype.itemsize), dtype=bool)
    counted[values.ravel().view(f"u{values.dtype.itemsize}")] = True
    return np.flatnonzero(counted).astype(f"u{values.dtype.itemsize}").view(values.dtype)


def labelmapOf(
    mask: NDArray[np.bool_], voxels: Voxels, indexToRAS: NDArray[np.float64]
) -> tuple[Any, Extent]:
    """Return a ``vtkOrientedImageData`` of 0 and 1 around the voxels of a mask, and its extent."""
    around = voxels.around(mask)
    labelmap = slicer.vtkOrientedImageData()
    labelmap.SetExtent(*around)
    labelmap.SetGeometryFromImageToWorldMatrix(arrayToMatrix(indexToRAS))
    labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    values_kji = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(around.shape)
    if isinstance(voxels, VoxelList):
        values_kji[...] = 0
        VoxelList(voxels.ijk[mask]).write(np.uint8(1), values_kji, around)
    else:
        values_kji[...] = mask[around.within(voxels)]
    return labelmap, around
