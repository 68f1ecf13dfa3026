"""Segmentations voxel by voxel of their volume, and nodes as files without a change in the scene.

To train on: what is exported goes as it is (see `OwnGrid`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import ExportError, GeometryError
from vtk.util.numpy_support import numpy_to_vtk

from MedSAM2SegmentLib.Segments.Editors import (
    arrayToMatrix,
    geometryOfImage,
    matrixToArray,
    transformToWorld,
)
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LABELMAP = "Binary labelmap"


def volumeOf(segmentation: Any) -> Any:
    """The volume a segmentation was made on, if it is there and has voxels; None otherwise."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    volume = segmentation.GetNodeReference(role)
    return volume if volume is not None and volume.GetImageData() is not None else None


def drawn(segmentation: Any) -> list[str]:
    """IDs of the segments that may have voxels; cheap."""
    known, found = segmentation.GetSegmentation(), []
    for segmentID in known.GetSegmentIDs():
        labelmap = known.GetSegment(segmentID).GetRepresentation(_LABELMAP)
        if labelmap is not None and not Extent(*labelmap.GetExtent()).isEmpty:
            found.append(segmentID)
    return found


def onVolume(segmentation: Any, volume: Any, segmentIDs: Iterable[str]) -> Any:
    """A segmentation node of no scene: segments voxel by voxel of a volume, without transforms.

    What lies outside the volume, or between its voxels, is left out.

    Parameters
    ----------
    segmentIDs
        Which segments, in their order, with all that is kept beside their voxels; those without a voxel do
        not come along.

    Raises
    ------
    GeometryError
        A transform over one of them warps.
    """
    ijkToRAS, grid = gridOfVolume(volume)
    toOwn = np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(volume) @ ijkToRAS
    known = asLabelmaps(segmentation, volume)
    voxels, node = SegmentVoxels(known, toOwn), slicer.vtkMRMLSegmentationNode()
    _setGrid(node, grid, ijkToRAS)
    made: dict[Any, Any] = {}  # segments that do not overlap share a labelmap, here as there
    for segmentID in segmentIDs:
        segment = known.GetSegmentation().GetSegment(segmentID)
        labelmap = segment.GetRepresentation(_LABELMAP)
        if labelmap not in made:
            made[labelmap] = _labelmap(voxels, labelmap, toOwn, grid, ijkToRAS)
        copy = slicer.vtkSegment()
        copy.DeepCopyMetadata(segment)
        copy.AddRepresentation(_LABELMAP, made[labelmap])
        node.GetSegmentation().AddSegment(copy, segmentID)
        if not SegmentVoxels(node, ijkToRAS).hasAny(segmentID):
            node.GetSegmentation().RemoveSegment(segmentID)
    return node


def write(storage: Any, node: Any, path: Path) -> None:
    """Write a node by a storage node of no scene: where the user keeps it stays as it is.

    ExportError when it cannot be written.
    """
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)
    try:
        isWritten = storage.WriteData(node)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{node.GetName()!r} could not be written to {path}: {error}") from error
    if not isWritten:
        raise ExportError(f"{node.GetName()!r} could not be written to {path}: is the disk full?")


def gridOfVolume(volume: Any) -> tuple[NDArray[np.float64], Extent]:
    """(4, 4) from indices to the own RAS of a volume, and which indices it has."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    width, height, depth = volume.GetImageData().GetDimensions()
    return matrixToArray(matrix), Extent(0, width - 1, 0, height - 1, 0, depth - 1)


def ownGrid(segmentation: Any) -> tuple[NDArray[np.float64], Extent] | None:
    """(4, 4) from indices to the own RAS of a segmentation, and which indices, of its reference geometry."""
    known, converter = segmentation.GetSegmentation(), slicer.vtkSegmentationConverter
    text = known.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    if not text or not converter.DeserializeImageGeometry(text, image, False):
        return None
    try:
        matrix, extent = geometryOfImage(image)
    except GeometryError:
        return None
    return matrix, Extent(*extent)


def asLabelmaps(segmentation: Any, volume: Any) -> Any:
    """The node itself, or a copy of no scene where segments are kept as something else, such as surfaces.

    Without a grid of its own that is voxel by voxel of the volume. GeometryError when a warp is in the way.
    """
    known = segmentation.GetSegmentation()
    if all(known.GetSegment(one).GetRepresentation(_LABELMAP) is not None for one in known.GetSegmentIDs()):
        return segmentation
    copy = slicer.vtkMRMLSegmentationNode()
    copy.SetName(segmentation.GetName())
    copy.GetSegmentation().DeepCopy(known)
    if volume is not None and ownGrid(copy) is None:
        ijkToRAS, grid = gridOfVolume(volume)
        toOwn = np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(volume)
        _setGrid(copy, grid, toOwn @ ijkToRAS)
    copy.GetSegmentation().CreateRepresentation(_LABELMAP)
    return copy


def _labelmap(
    voxels: SegmentVoxels,
    labelmap: Any,
    toOwn: NDArray[np.float64],
    grid: Extent,
    ijkToRAS: NDArray[np.float64],
) -> Any:
    """The labelmap on the new grid, no larger than need be."""
    box = _boxOf(labelmap, toOwn).intersection(grid)
    values = voxels.values(labelmap, box)
    image = slicer.vtkOrientedImageData()
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(ijkToRAS))
    if values is None:
        image.SetExtent(*NOWHERE)
        return image
    image.SetExtent(*box)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(values).ravel(), deep=True))
    return image


def _boxOf(labelmap: Any, toOwn: NDArray[np.float64]) -> Extent:
    """The voxels of the new grid that a labelmap can fill, and some around."""
    filled = Extent(*labelmap.GetExtent()) if labelmap is not None else NOWHERE
    if filled.isEmpty:
        return NOWHERE
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    toNew = np.linalg.inv(toOwn) @ matrixToArray(matrix)
    corners = filled.corners() @ toNew[:3, :3].T + toNew[:3, 3]
    return Extent.between(np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0)))


def _setGrid(node: Any, grid: Extent, ijkToRAS: NDArray[np.float64]) -> None:
    image, converter = slicer.vtkOrientedImageData(), slicer.vtkSegmentationConverter
    image.SetExtent(*grid)
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(ijkToRAS))
    name = converter.GetReferenceImageGeometryParameterName()
    node.GetSegmentation().SetConversionParameter(name, converter.SerializeImageGeometry(image))
