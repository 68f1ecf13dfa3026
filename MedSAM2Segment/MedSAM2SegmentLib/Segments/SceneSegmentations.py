"""The segmentations of a scene for export: as files, and with the DICOM files of their volumes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from medsam2_core.errors import ExportError, Note

from MedSAM2SegmentLib.Segments.Editors import nodesOf
from MedSAM2SegmentLib.Segments.LayerFile import writeLayers
from MedSAM2SegmentLib.Segments.SegmentationLayers import gridOfVolume, layersOf, volumeOf

_INSTANCES = "DICOM.instanceUIDs"


def _database() -> Any:
    return getattr(slicer, "dicomDatabase", None)


class SceneSegmentations:
    """Segmentations by the IDs of their nodes."""

    def __init__(self, scene: Any, database: Callable[[], Any] = _database) -> None:
        self._scene, self._database = scene, database
        self._problems: dict[str, tuple[object, str]] = {}  # by ID: about which series, and what

    def names(self) -> tuple[tuple[str, str], ...]:
        """Return (ID, name) of those that are not hidden from users; cheap."""
        found = nodesOf(self._scene, "vtkMRMLSegmentationNode")
        return tuple((one.GetID(), one.GetName() or "") for one in found if not one.GetHideFromEditors())

    def dicomProblem(self, nodeID: str) -> str:
        """Return why a segmentation cannot be exported as DICOM, by a quick check; empty when it can.

        The result is kept until :meth:`refresh`, or until the segmentation is on another series.
        """
        node = self._scene.GetNodeByID(nodeID)
        volume = volumeOf(node) if node is not None else None
        series = (volume.GetID(), volume.GetAttribute(_INSTANCES)) if volume is not None else ()
        if nodeID not in self._problems or self._problems[nodeID][0] != series:
            try:
                self._filesOf(nodeID, isGlance=True)
                self._problems[nodeID] = series, ""
            except ExportError as error:
                self._problems[nodeID] = series, str(error)
        return self._problems[nodeID][1]

    def dicomFiles(self, nodeID: str) -> tuple[str, ...]:
        """Return the files of the series that the volume of a segmentation was loaded from.

        ExportError when there are none, or not all of them.
        """
        return self._filesOf(nodeID)

    def drawnOn(self, nodeID: str) -> dict[str, Any]:
        """Return the pose of the volume in the scene (matrix to RAS), and its shape.

        The volume may have been moved since it was loaded from its DICOM files.
        ExportError when there is no volume.
        """
        ijkToRAS, grid = gridOfVolume(self._volumeOf(self._node(nodeID)))
        return {"ijk_to_ras": ijkToRAS.tolist(), "shape_ijk": list(grid.shape[::-1])}

    def write(self, nodeID: str, path: str | Path, *, isWhole: bool = True) -> tuple[Note, ...]:
        """Write a segmentation as ``.seg.nrrd``, on its own grid, with all of its segments.

        Hidden and empty ones are included; names, colours and tags are kept. It is placed relative to its
        volume: transforms that both are under are left out. The scene does not change.

        Parameters
        ----------
        isWhole
            Whether the whole grid is written, not only the filled part.

        Raises
        ------
        MedSAM2Error
            It is gone, has no segment or no voxel, or cannot be written.
        """
        node, path = self._node(nodeID), Path(path)
        if not node.GetSegmentation().GetSegmentIDs():
            raise ExportError(
                f"{node.GetName()!r} has no segment: segment something first", code="segmentation-empty"
            )
        layers = layersOf(node, volumeOf(node), isWhole=isWhole)
        try:
            writeLayers(layers, node.GetName() or "", path)
        except OSError as error:
            raise ExportError(
                f"{node.GetName()!r} could not be written to the temporary folder {path.parent}: "
                f"{error.strerror or error}. Make room there, or name another one by the variable TMPDIR",
                code="segmentation-not-written",
                folder=str(path.parent),
            ) from error
        return layers.notes

    def refresh(self) -> None:
        """Check DICOM files again: series may have been imported, or removed."""
        self._problems.clear()

    def _node(self, nodeID: str) -> Any:
        node = self._scene.GetNodeByID(nodeID)
        if node is None:
            raise ExportError(
                "the segmentation is not in the scene any more: choose another one", code="segmentation-gone"
            )
        return node

    @staticmethod
    def _volumeOf(node: Any) -> Any:
        volume = volumeOf(node)
        if volume is None:
            raise ExportError(
                f"{node.GetName()!r} lies on no volume: choose its source volume first", code="no-volume"
            )
        return volume

    def _filesOf(self, nodeID: str, *, isGlance: bool = False) -> tuple[str, ...]:
        volume = self._volumeOf(self._node(nodeID))
        instances = list(dict.fromkeys((volume.GetAttribute(_INSTANCES) or "").split()))
        if not instances:
            raise ExportError(
                f"{volume.GetName()!r} was not loaded from DICOM: load it from Slicer's DICOM database",
                code="volume-not-dicom",
            )
        database = self._database()
        if database is None or not database.isOpen:
            raise ExportError(
                "Slicer's DICOM database is not open: open it in the DICOM module", code="no-dicom-database"
            )
        asked = {instances[0], instances[-1]} if isGlance else instances
        files = [database.fileForInstance(one) for one in asked]
        missing = [file for file in files if not file or not os.path.isfile(file)]
        if missing:
            raise ExportError(
                f"of the DICOM files of {volume.GetName()!r}, {len(missing)} of {len(instances)} are not in "
                "Slicer's database any more: import the series again",
                code="dicom-files-missing",
                missing=len(missing),
                total=len(instances),
            )
        return tuple(files)
