"""Segments as they stand: read where they are asked about, without copying the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM2SegmentLib.Editors import SegmentError, arrayToMatrix, matrixToArray
from MedSAM2SegmentLib.TargetGrid import NOWHERE, Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LABELMAP = "Binary labelmap"


class SegmentVoxels:
    """The segments of a segmentation on one grid.

    Parameters
    ----------
    segmentationNode
        ``vtkMRMLSegmentationNode``.
    indexToRAS : (4, 4)
        The grid: from voxel indices to the segmentation's own RAS.
    """

    def __init__(self, segmentationNode: Any, indexToRAS: NDArray[np.float64]) -> None:
        self.segmentation = segmentationNode.GetSegmentation()
        self.name = segmentationNode.GetName()
        self.indexToRAS = indexToRAS

    def check(self, segmentID: str) -> None:
        """SegmentError when the segment is gone, or when the segmentation is not made of labelmaps."""
        if self.segmentation.GetSegment(segmentID) is None:
            raise SegmentError(
                f"the segment {segmentID!r} is no longer in {self.name!r}: select another one, or undo its "
                "removal"
            )
        representation = self.segmentation.GetSourceRepresentationName()
        if representation != _LABELMAP:
            raise SegmentError(
                f"{self.name!r} is kept as {representation}, which cannot be painted on: make Binary labelmap "
                "its source representation (Segmentations module, Representations)"
            )

    def mask(self, segmentID: str, extent: Extent) -> NDArray[np.bool_]:
        """(K, J, I) of the extent: which voxels belong to the segment. SegmentError when it is gone."""
        segment = self.segmentation.GetSegment(segmentID)
        if segment is None:
            self.check(segmentID)
        values = self._values(segment.GetRepresentation(_LABELMAP), extent)
        return np.zeros(extent.shape, dtype=bool) if values is None else values == segment.GetLabelValue()

    def others(self, segmentID: str, extent: Extent) -> dict[str, NDArray[np.bool_]]:
        """Masks of the other segments that have voxels in an extent."""
        found, layers = {}, {}
        for n in range(self.segmentation.GetNumberOfSegments()):
            other = self.segmentation.GetNthSegmentID(n)
            segment = self.segmentation.GetNthSegment(n)
            labelmap = segment.GetRepresentation(_LABELMAP)
            if other == segmentID or labelmap is None:
                continue
            if labelmap not in layers:
                values = self._values(labelmap, extent)
                layers[labelmap] = (values, () if values is None else np.unique(values))
            values, present = layers[labelmap]
            if segment.GetLabelValue() in present:
                found[other] = values == segment.GetLabelValue()
        return found

    def _values(self, labelmap: Any, extent: Extent) -> NDArray[Any] | None:
        """(K, J, I) label values in an extent, 0 outside the labelmap; None when it is empty there."""
        if labelmap is None or labelmap.GetPointData().GetScalars() is None or extent.isEmpty:
            return None
        filled = Extent(*labelmap.GetExtent())
        if filled.isEmpty:
            return None
        values_kji = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(filled.shape)
        matrix = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(matrix)
        toLabelmap = np.linalg.inv(matrixToArray(matrix)) @ self.indexToRAS
        if np.abs(toLabelmap - np.eye(4)).max() < 1e-6 * max(*np.abs(filled), 1):
            shared = extent.intersection(filled)
            if shared.isEmpty:
                return None
            if shared == extent:
                return values_kji[extent.within(filled)]
            values = np.zeros(extent.shape, dtype=values_kji.dtype)
            values[shared.within(extent)] = values_kji[shared.within(filled)]
            return values
        return _resampled(values_kji, filled, toLabelmap, extent)


def labelmapOf(
    mask_kji: NDArray[np.bool_], extent: Extent, indexToRAS: NDArray[np.float64]
) -> tuple[Any, Extent]:
    """``vtkOrientedImageData`` of 0 and 1 around the voxels of a mask, and its extent."""
    import slicer

    around = extent.around(mask_kji)
    labelmap = slicer.vtkOrientedImageData()
    labelmap.SetExtent(*around)
    labelmap.SetGeometryFromImageToWorldMatrix(arrayToMatrix(indexToRAS))
    labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    values = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(around.shape)
    values[...] = mask_kji[around.within(extent)]
    return labelmap, around


def _resampled(
    values_kji: NDArray[Any], filled: Extent, toLabelmap: NDArray[np.float64], extent: Extent
) -> NDArray[Any]:
    """Nearest values of a labelmap on another lattice (a segment that was imported as it was)."""
    if extent is NOWHERE:
        return np.zeros(extent.shape, dtype=values_kji.dtype)
    values = np.zeros(extent.shape, dtype=values_kji.dtype)
    j, i = np.mgrid[extent.j0 : extent.j1 + 1, extent.i0 : extent.i1 + 1]
    for k in range(extent.k0, extent.k1 + 1):  # one plane at a time keeps positions small
        points = np.stack([i.ravel(), j.ravel(), np.full(i.size, k)], axis=1)
        points = points @ toLabelmap[:3, :3].T + toLabelmap[:3, 3]
        a, b, c = np.floor(points + 0.5 + 1e-6).astype(np.int64).T
        a, b, c = a - filled.i0, b - filled.j0, c - filled.k0
        depth, height, width = filled.shape
        inside = (a >= 0) & (a < width) & (b >= 0) & (b < height) & (c >= 0) & (c < depth)
        values[k - extent.k0].reshape(-1)[inside] = values_kji[c[inside], b[inside], a[inside]]
    return values
