"""The segmentations of a scene, to be exported: as files, and with the DICOM files they lie on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from medsam2_core.errors import ExportError

from MedSAM2SegmentLib.Segments.LayerFile import writeLayers
from MedSAM2SegmentLib.Segments.OnVolume import gridOfVolume, volumeOf
from MedSAM2SegmentLib.Segments.OwnGrid import layersOf

_INSTANCES = "DICOM.instanceUIDs"


def _database() -> Any:
    return getattr(slicer, "dicomDatabase", None)


class SceneSegmentations:
    """Segmentations by the IDs of their nodes.

    Parameters
    ----------
    scene
        ``vtkMRMLScene``.
    database
        Gives Slicer's DICOM database, or None.
    """

    def __init__(self, scene: Any, database: Callable[[], Any] = _database) -> None:
        self._scene, self._database = scene, database
        self._problems: dict[str, tuple[object, str]] = {}  # by ID: about which series, and what

    def names(self) -> tuple[tuple[str, str], ...]:
        """(ID, name) of those that users see. Cheap."""
        nodes = self._scene.GetNodesByClass("vtkMRMLSegmentationNode")
        nodes.UnRegister(None)
        found = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
        return tuple((one.GetID(), one.GetName() or "") for one in found if not one.GetHideFromEditors())

    def dicomProblem(self, nodeID: str) -> str:
        """Why a segmentation cannot become DICOM, as far as that can be told at a glance; empty when it can.

        What was found is remembered until :meth:`refresh`, or until it lies on another series.
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
        """The files of the series that the volume of a segmentation was loaded from; every one is there.

        ExportError says why there are none.
        """
        return self._filesOf(nodeID)

    def drawnOn(self, nodeID: str) -> dict[str, Any]:
        """The voxels a segmentation was drawn on, as they lie in the scene: matrix to RAS, and how many.

        The volume may have been moved since it was loaded, while its DICOM files lie where they lay.
        ExportError when there is no volume.
        """
        ijkToRAS, grid = gridOfVolume(self._volumeOf(self._node(nodeID)))
        return {"ijk_to_ras": ijkToRAS.tolist(), "shape_ijk": list(grid.shape[::-1])}

    def write(self, nodeID: str, path: str | Path, *, isWhole: bool = True) -> tuple[str, ...]:
        """Write a segmentation as ``.seg.nrrd``, on its own grid, with all of its segments.

        Hidden and empty ones come along; names, colours and tags are kept. It is placed relative to its
        volume: transforms that both are under are left out. In the scene nothing changes.

        Parameters
        ----------
        isWhole
            Whether the whole grid is written, not just what is filled.

        Returns
        -------
        notes
            What the user should know: one sentence each.

        Raises
        ------
        MedSAM2Error
            It is gone, has no segment or not a voxel, or cannot be written.
        """
        node, path = self._node(nodeID), Path(path)
        if not node.GetSegmentation().GetSegmentIDs():
            raise ExportError(f"{node.GetName()!r} has no segment: segment something first")
        layers = layersOf(node, volumeOf(node), isWhole=isWhole)
        try:
            writeLayers(layers, node.GetName() or "", path)
        except OSError as error:
            raise ExportError(
                f"{node.GetName()!r} could not be written to the temporary folder {path.parent}: "
                f"{error.strerror or error}. Make room there, or name another one by the variable TMPDIR"
            ) from error
        return layers.notes

    def refresh(self) -> None:
        """Look at DICOM files again: series may have been imported, or removed."""
        self._problems.clear()

    def _node(self, nodeID: str) -> Any:
        node = self._scene.GetNodeByID(nodeID)
        if node is None:
            raise ExportError("the segmentation is not in the scene any more: choose another one")
        return node

    @staticmethod
    def _volumeOf(node: Any) -> Any:
        volume = volumeOf(node)
        if volume is None:
            raise ExportError(f"{node.GetName()!r} lies on no volume: choose its source volume first")
        return volume

    def _filesOf(self, nodeID: str, *, isGlance: bool = False) -> tuple[str, ...]:
        volume = self._volumeOf(self._node(nodeID))
        instances = list(dict.fromkeys((volume.GetAttribute(_INSTANCES) or "").split()))
        if not instances:
            raise ExportError(
                f"{volume.GetName()!r} was not loaded from DICOM: load it from Slicer's DICOM database"
            )
        database = self._database()
        if database is None or not database.isOpen:
            raise ExportError("Slicer's DICOM database is not open: open it in the DICOM module")
        asked = {instances[0], instances[-1]} if isGlance else instances
        files = [database.fileForInstance(one) for one in asked]
        missing = [file for file in files if not file or not os.path.isfile(file)]
        if missing:
            raise ExportError(
                f"of the DICOM files of {volume.GetName()!r}, {len(missing)} of {len(instances)} are not in "
                "Slicer's database any more: import the series again"
            )
        return tuple(files)
