"""Volumes of the scene with their segmentations, written as files that an Auto model can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.errors import GeometryError, TrainingError
from vtk.util.numpy_support import numpy_to_vtk

from MedSAM2SegmentLib.Segments.Editors import LABELMAP, arrayToMatrix, nodesOf, transformToWorld
from MedSAM2SegmentLib.Segments.SegmentationLayers import (
    asLabelmaps,
    gridOfVolume,
    setGrid,
    volumeOf,
    writeNode,
)
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter
from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SceneCases:
    """The labelled volumes of a scene: each with the segmentations that were made on it."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def names(self) -> tuple[str, ...]:
        """Return the names of the volumes that segments were drawn on; cheap."""
        return tuple(volume.GetName() for volume, _ in self._pairs())

    def write(self, folder: str | Path) -> dict[str, str]:
        """Write ``NAME.nrrd`` and ``NAME.seg.nrrd`` for every one, and return the volumes' names by NAME.

        Files are numbered: a name may be a patient's. Transforms that both are under are left out.

        Raises
        ------
        TrainingError
            There is none.
        MedSAM2Error
            One cannot be written, or resampled to its volume.
        """
        written: dict[str, str] = {}
        for volume, segmentation in self._pairs():
            try:
                labels = onVolume(segmentation, volume, drawn(segmentation))
            except GeometryError as error:
                raise TrainingError(str(error), code=error.code, **error.fields) from error
            if labels.GetSegmentation().GetNumberOfSegments() == 0:
                continue
            name = f"case{len(written) + 1:03d}"
            writeNode(slicer.vtkMRMLVolumeArchetypeStorageNode(), volume, Path(folder) / f"{name}.nrrd")
            writeNode(slicer.vtkMRMLSegmentationStorageNode(), labels, Path(folder) / f"{name}.seg.nrrd")
            written[name] = volume.GetName()
        if not written:
            raise TrainingError(
                "no volume of the scene has a segmentation that was made on it: segment some first, or "
                "choose a folder",
                code="no-labelled-volume",
            )
        return written

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield volumes and segmentations; of several on one volume, the one with most segments."""
        best: dict[str, tuple[int, Any, Any]] = {}
        for segmentation in nodesOf(self._scene, "vtkMRMLSegmentationNode"):
            volume = volumeOf(segmentation)
            if volume is None or VolumeAdapter.problemOf(volume):
                continue
            count = len(drawn(segmentation))
            if count > best.get(volume.GetID(), (0, None, None))[0]:
                best[volume.GetID()] = count, volume, segmentation
        for _, volume, segmentation in best.values():
            yield volume, segmentation


def drawn(segmentation: Any) -> list[str]:
    """Return the IDs of the segments that may have voxels; cheap."""
    known, found = segmentation.GetSegmentation(), []
    for segmentID in known.GetSegmentIDs():
        labelmap = known.GetSegment(segmentID).GetRepresentation(LABELMAP)
        if labelmap is not None and not Extent(*labelmap.GetExtent()).isEmpty:
            found.append(segmentID)
    return found


def onVolume(segmentation: Any, volume: Any, segmentIDs: Iterable[str]) -> Any:
    """Return a segmentation node outside the scene, on the grid of a volume, without transforms.

    What lies outside the volume, or between its voxels, is left out.

    Parameters
    ----------
    segmentIDs
        The segments, in their order, with their names, colours and tags; those without a voxel are left out.

    Raises
    ------
    GeometryError
        A transform over one of them warps.
    """
    ijkToRAS, grid = gridOfVolume(volume)
    toOwn = np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(volume) @ ijkToRAS
    known = asLabelmaps(segmentation, volume)
    voxels, node = SegmentVoxels(known, toOwn), slicer.vtkMRMLSegmentationNode()
    setGrid(node, grid, ijkToRAS)
    made: dict[Any, Any] = {}  # segments that do not overlap share a labelmap, here as there
    for segmentID in segmentIDs:
        segment = known.GetSegmentation().GetSegment(segmentID)
        labelmap = segment.GetRepresentation(LABELMAP)
        if labelmap not in made:
            made[labelmap] = _labelmap(voxels, labelmap, grid, ijkToRAS)
        copy = slicer.vtkSegment()
        copy.DeepCopyMetadata(segment)
        copy.AddRepresentation(LABELMAP, made[labelmap])
        node.GetSegmentation().AddSegment(copy, segmentID)
        if not SegmentVoxels(node, ijkToRAS).hasAny(segmentID):
            node.GetSegmentation().RemoveSegment(segmentID)
    return node


def _labelmap(voxels: SegmentVoxels, labelmap: Any, grid: Extent, ijkToRAS: NDArray[np.float64]) -> Any:
    """Return a labelmap on the new grid, no larger than need be."""
    box = voxels.filledBy(labelmap).intersection(grid)
    values = voxels.values(labelmap, box)
    image = slicer.vtkOrientedImageData()
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(ijkToRAS))
    if values is None:
        image.SetExtent(*NOWHERE)
        return image
    image.SetExtent(*box)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(values).ravel(), deep=True))
    return image
