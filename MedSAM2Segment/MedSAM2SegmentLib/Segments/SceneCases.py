"""Volumes of the scene with their segmentations, written as files that an Auto model can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import ExportError, GeometryError, TrainingError

from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix, matrixToArray, transformToWorld
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels, labelmapOf
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter
from MedSAM2SegmentLib.Segments.VoxelSets import Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LABELMAP, _TERMINOLOGY = "Binary labelmap", "TerminologyEntry"


class SceneCases:
    """The labelled volumes of a scene: each with the segmentations that were made on it.

    Parameters
    ----------
    scene
        ``vtkMRMLScene``.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def names(self) -> tuple[str, ...]:
        """Names of the volumes that segments were drawn on; empty without any. Cheap."""
        return tuple(volume.GetName() for volume, _ in self._pairs())

    def write(self, folder: str | Path) -> dict[str, str]:
        """Write ``NAME.nrrd`` and ``NAME.seg.nrrd`` for every one; the volume's name by the file's.

        Files are named by number: a name may be a patient's. Transforms that both are under are left out.

        Raises
        ------
        TrainingError
            There is none.
        MedSAM2Error
            One cannot be written, or seen as labels of its volume.
        """
        written: dict[str, str] = {}
        for volume, segmentation in self._pairs():
            labels = _onVolume(segmentation, volume)
            if labels.GetSegmentation().GetNumberOfSegments() == 0:
                continue
            name = f"case{len(written) + 1:03d}"
            _write(slicer.vtkMRMLVolumeArchetypeStorageNode(), volume, Path(folder) / f"{name}.nrrd")
            _write(slicer.vtkMRMLSegmentationStorageNode(), labels, Path(folder) / f"{name}.seg.nrrd")
            written[name] = volume.GetName()
        if not written:
            raise TrainingError(
                "no volume of the scene has a segmentation that was made on it: segment some first, or "
                "choose a folder"
            )
        return written

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Volumes and segmentations; of several on one volume, the one with most segments."""
        best: dict[str, tuple[int, Any, Any]] = {}
        nodes = self._scene.GetNodesByClass("vtkMRMLSegmentationNode")
        nodes.UnRegister(None)
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        for index in range(nodes.GetNumberOfItems()):
            segmentation = nodes.GetItemAsObject(index)
            volume = segmentation.GetNodeReference(role)
            if volume is None or VolumeAdapter.problemOf(volume):
                continue
            count = len(_drawn(segmentation))
            if count > best.get(volume.GetID(), (0, None, None))[0]:
                best[volume.GetID()] = count, volume, segmentation
        for _, volume, segmentation in best.values():
            yield volume, segmentation


def _drawn(segmentation: Any) -> list[str]:
    """IDs of the segments that may have voxels; cheap."""
    known, found = segmentation.GetSegmentation(), []
    for segmentID in known.GetSegmentIDs():
        labelmap = known.GetSegment(segmentID).GetRepresentation(_LABELMAP)
        if labelmap is not None and not Extent(*labelmap.GetExtent()).isEmpty:
            found.append(segmentID)
    return found


def _onVolume(segmentation: Any, volume: Any) -> Any:
    """A segmentation node of no scene: the segments voxel by voxel of the volume, without transforms."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    ijkToRAS = matrixToArray(matrix)
    try:
        toOwn = np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(volume) @ ijkToRAS
    except GeometryError as error:
        raise TrainingError(str(error)) from error
    width, height, depth = volume.GetImageData().GetDimensions()
    grid = Extent(0, width - 1, 0, height - 1, 0, depth - 1)
    voxels, node = SegmentVoxels(segmentation, toOwn), slicer.vtkMRMLSegmentationNode()
    _setGrid(node, grid, ijkToRAS)
    for segmentID in _drawn(segmentation):
        mask = voxels.mask(segmentID, grid)
        if mask.any():
            known = segmentation.GetSegmentation().GetSegment(segmentID)
            node.GetSegmentation().AddSegment(_segment(known, mask, grid, ijkToRAS), segmentID)
    return node


def _setGrid(node: Any, grid: Extent, ijkToRAS: NDArray[np.float64]) -> None:
    image, converter = slicer.vtkOrientedImageData(), slicer.vtkSegmentationConverter
    image.SetExtent(*grid)
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(ijkToRAS))
    name = converter.GetReferenceImageGeometryParameterName()
    node.GetSegmentation().SetConversionParameter(name, converter.SerializeImageGeometry(image))


def _segment(known: Any, mask: NDArray[np.bool_], grid: Extent, ijkToRAS: NDArray[np.float64]) -> Any:
    segment = slicer.vtkSegment()
    segment.SetName(known.GetName())
    segment.SetColor(*known.GetColor())
    terminology = vtk.reference("")
    if known.GetTag(_TERMINOLOGY, terminology):
        segment.SetTag(_TERMINOLOGY, str(terminology))
    segment.AddRepresentation(_LABELMAP, labelmapOf(mask, grid, ijkToRAS)[0])
    return segment


def _write(storage: Any, node: Any, path: Path) -> None:
    """Write a node by a storage node of no scene: where the user keeps it stays as it is."""
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)
    try:
        isWritten = storage.WriteData(node)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{node.GetName()!r} could not be written to {path}: {error}") from error
    if not isWritten:
        raise ExportError(f"{node.GetName()!r} could not be written to {path}: is the disk full?")
