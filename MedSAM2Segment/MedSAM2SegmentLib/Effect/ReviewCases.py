"""Cases of a cohort in the scene: opened with their segments and prompts, saved, and taken out again."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from medsam2_core import atomic
from medsam2_core.batch.review import ReviewFiles
from medsam2_core.errors import BatchError, MedSAM2Error
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, Point, PromptSet

from MedSAM2SegmentLib.Prompts.Gestures import Gesture, PointGesture
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Prompts.SceneMarkups import boxGesture
from MedSAM2SegmentLib.Segments.Editors import ownGrid
from MedSAM2SegmentLib.Segments.SceneCases import drawn, onVolume
from MedSAM2SegmentLib.Segments.SegmentationLayers import writeNode
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

_EDITOR = "SegmentEditor"  # the tag of its node


@dataclass(frozen=True, eq=False)
class OpenCase:
    """The nodes of a case, and what the segments were like when it was opened."""

    volume: Any
    segmentation: Any
    state: tuple[Any, ...]


class ReviewCases:
    """Opens cases in a scene, one at a time."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def open(self, name: str, files: ReviewFiles) -> OpenCase:
        """Load a case: its image, segments and prompts.

        Raises
        ------
        BatchError
            ``image-elsewhere`` for a URL; ``case-unreadable``; ``grid-differs`` where Slicer's volume has its
            voxels elsewhere.
        """
        if files.image is None:
            message = f"the image of {name!r} is a URL, which Slicer does not open: skip it"
            raise BatchError(message, code="image-elsewhere", case=name)
        volume = self._volume(name, files)
        segmentation = None
        try:
            segmentation = self._segmentation(name, files.segmentation, volume)
            _checkGrid(name, segmentation, volume)
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            self._addPrompts(volume, segmentation, files.prompts)
        except MedSAM2Error:
            self._remove(segmentation, volume)
            raise
        self._edit(volume, segmentation)
        if getattr(slicer, "mrmlScene", None) is self._scene:  # that of Slicer's window
            slicer.util.setSliceViewerLayers(background=volume, fit=True)
        return OpenCase(volume, segmentation, _stateOf(segmentation))

    def isInScene(self, case: OpenCase) -> bool:
        """Return whether its nodes are still in the scene."""
        return all(self._scene.IsNodePresent(node) for node in (case.volume, case.segmentation))

    def isChanged(self, case: OpenCase) -> bool:
        """Return whether segments were changed since it was opened."""
        return self.state(case) != case.state

    def state(self, case: OpenCase) -> tuple[Any, ...]:
        """Return what changes when its segments do."""
        return _stateOf(case.segmentation)

    def promptCount(self, case: OpenCase) -> int:
        """Return the number of points, boxes and scribbles that it has."""
        markups = PromptMarkups(self._scene, case.segmentation)
        try:
            states = markups.snapshot()
        finally:
            markups.cleanup()
        return sum(1 if state.frame or state.size else len(state.points) for state in states)

    def save(self, case: OpenCase, path: Path) -> None:
        """Write the segments on the grid of the image to a new ``.seg.nrrd``, whole or not at all.

        Raises
        ------
        MedSAM2Error
            It cannot be written, or resampled to its image.
        """
        labels = onVolume(case.segmentation, case.volume, drawn(case.segmentation))
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            writeNode(slicer.vtkMRMLSegmentationStorageNode(), labels, temporary)
            with temporary.open("rb") as source, atomic.new_file(path, overwrite=False) as stream:
                shutil.copyfileobj(source, stream)

    def close(self, case: OpenCase) -> None:
        """Take a case out of the scene, with its prompts."""
        if self._scene.IsNodePresent(case.segmentation):
            markups = PromptMarkups(self._scene, case.segmentation)
            try:
                for segmentID in markups.segmentIDs():
                    markups.clear(segmentID)
            finally:
                markups.cleanup()
        self._remove(case.segmentation, case.volume)

    def _volume(self, name: str, files: ReviewFiles) -> Any:
        listed = vtk.vtkStringArray()
        for path in files.slice_files:
            listed.InsertNextValue(path)
        first = files.slice_files[0] if files.slice_files else str(files.image)
        if files.image is not None and files.image.is_dir() and not files.slice_files:
            message = f"{name!r} was resampled (--irregular resample), and Slicer has no such image: skip it"
            raise BatchError(message, code="grid-differs", case=name)
        volume = None
        if Path(first).is_file():
            others = listed if files.slice_files else None
            volume = self._volumesLogic().AddArchetypeVolume(first, name, 0, others)
        if volume is None:
            message = f"the image of {name!r} cannot be opened: {first}"
            raise BatchError(message, code="case-unreadable", case=name, path=first)
        return volume

    def _volumesLogic(self) -> Any:
        """Return that of Slicer's module: a new one has no colours, and cannot have volumes drawn."""
        if getattr(slicer, "mrmlScene", None) is self._scene:
            return slicer.modules.volumes.logic()
        logic = slicer.vtkSlicerVolumesLogic()
        logic.SetMRMLScene(self._scene)
        return logic

    def _segmentation(self, name: str, path: Path, volume: Any) -> Any:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(path))
        node = self._scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} segmentation")
        if not path.is_file() or not storage.ReadData(node):
            self._scene.RemoveNode(node)
            message = f"the segmentation of {name!r} cannot be opened: {path}"
            raise BatchError(message, code="case-unreadable", case=name, path=str(path))
        node.CreateDefaultDisplayNodes()
        return node

    def _addPrompts(self, volume: Any, segmentation: Any, text: str) -> None:
        """Add prompts as those of a model: they refine the masks only once somebody moves them."""
        adapter = VolumeAdapter(volume)
        prompts = PromptSet.from_json(text, adapter.geometry) if text else PromptSet()
        stack = SliceStack.along(adapter.volume, prompts.implied_axis() or "axial")
        markups = PromptMarkups(self._scene, segmentation)
        try:
            known = segmentation.GetSegmentation()
            for name, given in prompts:
                segmentID = known.GetSegmentIdBySegmentName(name)
                if not segmentID:
                    continue
                gestures: list[Gesture] = []
                for prompt in given:
                    if isinstance(prompt, Box):
                        gestures.append(boxGesture(prompt, adapter.geometry, stack))
                    elif isinstance(prompt, Point):
                        gestures.append(
                            PointGesture(adapter.geometry.to_ras([prompt.ijk])[0], prompt.positive)
                        )
                markups.addPredicted(segmentID, gestures)
        finally:
            markups.cleanup()

    def _edit(self, volume: Any, segmentation: Any) -> None:
        """Choose them in the module Segment Editor, which has lost the case before with its nodes."""
        editor = self._scene.GetSingletonNode(_EDITOR, "vtkMRMLSegmentEditorNode")
        if editor is None:  # as the module makes it when it is shown for the first time
            editor = slicer.vtkMRMLSegmentEditorNode()
            editor.SetSingletonTag(_EDITOR)
            editor = self._scene.AddNode(editor)
        editor.SetAndObserveSegmentationNode(segmentation)
        editor.SetSelectedSegmentID(next(iter(segmentation.GetSegmentation().GetSegmentIDs()), ""))
        editor.SetAndObserveSourceVolumeNode(volume)

    def _remove(self, *nodes: Any) -> None:
        for node in nodes:
            if node is None or not self._scene.IsNodePresent(node):
                continue
            for beside in (node.GetDisplayNode(), node.GetStorageNode()):
                if beside is not None:
                    self._scene.RemoveNode(beside)
            self._scene.RemoveNode(node)


def _checkGrid(name: str, segmentation: Any, volume: Any) -> None:
    """Refuse a volume whose voxels are not where those of the segmentation are, to a quarter of one."""
    own, shown = ownGrid(segmentation), VolumeAdapter(volume).geometry
    if own is None:
        return
    grid = Geometry(own[0], own[1].shape[::-1])
    # Corners in any order: Slicer turns axes round, and gives a single slice another thickness.
    ours_ras, theirs_ras = _corners(grid), _corners(shown)
    off_mm = np.linalg.norm(ours_ras[:, None] - theirs_ras, axis=2).min(axis=1).max()
    if grid.shape_ijk != shown.shape_ijk or off_mm > min(grid.spacing) / 4:
        message = (
            f"Slicer does not open the image of {name!r} on the grid that was segmented (its slices are "
            "uneven or tilted, or it was resampled), so masks would be in other places: skip it"
        )
        raise BatchError(message, code="grid-differs", case=name)


def _corners(grid: Geometry) -> Any:
    """Return (8, 3) RAS of the voxels at the corners."""
    return grid.to_ras(np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape_ijk) - 1))


def _stateOf(segmentation: Any) -> tuple[Any, ...]:
    """Return what changes when voxels, names or the number of segments do."""
    known, voxels = segmentation.GetSegmentation(), SegmentVoxels(segmentation, np.eye(4))
    return tuple((one, known.GetSegment(one).GetName(), voxels.state(one)) for one in known.GetSegmentIDs())
