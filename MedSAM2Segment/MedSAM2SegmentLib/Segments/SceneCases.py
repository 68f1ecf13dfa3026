"""Volumes of the scene with their segmentations, written as files that an Auto model can be trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import slicer
from medsam2_core.errors import GeometryError, TrainingError

from MedSAM2SegmentLib.Segments.OnVolume import drawn, onVolume, volumeOf, write
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter


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
            try:
                labels = onVolume(segmentation, volume, drawn(segmentation))
            except GeometryError as error:
                raise TrainingError(str(error)) from error
            if labels.GetSegmentation().GetNumberOfSegments() == 0:
                continue
            name = f"case{len(written) + 1:03d}"
            write(slicer.vtkMRMLVolumeArchetypeStorageNode(), volume, Path(folder) / f"{name}.nrrd")
            write(slicer.vtkMRMLSegmentationStorageNode(), labels, Path(folder) / f"{name}.seg.nrrd")
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
        for index in range(nodes.GetNumberOfItems()):
            segmentation = nodes.GetItemAsObject(index)
            volume = volumeOf(segmentation)
            if volume is None or VolumeAdapter.problemOf(volume):
                continue
            count = len(drawn(segmentation))
            if count > best.get(volume.GetID(), (0, None, None))[0]:
                best[volume.GetID()] = count, volume, segmentation
        for _, volume, segmentation in best.values():
            yield volume, segmentation
