"""A user of the effect: clicks, presses buttons, paints, waits; and looks at what the segments show."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from MedSAM2SegmentLib.Effect.EffectController import EffectController
from MedSAM2SegmentLib.Prompts import PromptNodes
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, PointGesture, ScribbleGesture
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

from support.in_process_worker import InProcessSource, InProcessWorker
from support.scene import a_segmentation, a_volume, paint, voxels_of
from support.segment_editor import LogicEditor

SHAPE_KJI = (11, 24, 28)


class SlicerUser:
    """One Segment Editor with the effect active, on a small volume with two empty segments."""

    def __init__(
        self,
        scene,
        *,
        source=None,
        volume=None,
        segments=("A", "B"),
        activate=True,
        segmentation=None,
        corrections=None,
        **how,
    ) -> None:
        self.scene = scene
        self.volume = a_volume(scene, voxels=a_noise()) if volume is None else volume
        self.segmentation = segmentation or a_segmentation(scene, self.volume, segments=segments, **how)
        self.view = an_axial_view(scene)
        self.editor = LogicEditor(self.segmentation, self.volume, segments[0] if segments else "")
        self.source = source or InProcessSource(InProcessWorker())
        self.time = 0.0
        self.states = []
        self.controller = EffectController(self.editor, self.source, lambda: self.time, corrections)
        self.controller.panel.onStateChanged = self.states.append
        if activate:
            self.controller.activate()

    @property
    def worker(self) -> InProcessWorker:
        return self.source.worker

    @property
    def state(self):
        return self.controller.state

    @property
    def seen(self):
        """Every status since the beginning, in order."""
        return [state.status for state in self.states]

    # What the user does -------------------------------------------------------------------------------------

    def wait(self, seconds: float = 0.3) -> None:
        """Some time goes by, and the worker answers everything."""
        self.worker.answer_all()
        self.pass_time(seconds)
        self.worker.answer_all()
        self.pass_time(seconds)

    def pass_time(self, seconds: float = 0.3) -> None:
        """Some time goes by; the worker says nothing."""
        self.time += seconds
        self.controller.tick()

    def click(self, ijk, positive=True) -> None:
        """Click a voxel of the volume."""
        self.controller.onGesture(PointGesture(self.ras(ijk), positive), self.view)

    def box(self, first_ijk, last_ijk) -> None:
        """Draw a box on a slice along k."""
        (i0, j0, k0), (i1, j1, _) = first_ijk, last_ijk
        corners = [(i0, j0, k0), (i1, j0, k0), (i1, j1, k0), (i0, j1, k0)]
        self.controller.onGesture(BoxGesture(np.array([self.ras(one) for one in corners])), self.view)

    def scribble(self, ijks) -> None:
        """Draw a line through voxels."""
        self.controller.onGesture(ScribbleGesture(np.array([self.ras(one) for one in ijks])), self.view)

    def look_at(self, k: int) -> None:
        """Show slice k in the axial view."""
        self.view.JumpSliceByOffsetting(*self.ras((5, 5, k)))

    def select(self, segmentID: str) -> None:
        """Choose a segment in the table."""
        self.editor.logic.SetCurrentSegmentID(segmentID)
        self.controller.update()

    def undo(self) -> None:
        self.editor.undo()
        self.controller.tick()

    def redo(self) -> None:
        self.editor.redo()
        self.controller.tick()

    def paint(self, i, j, k, segmentID="A", mode="add") -> None:
        """Paint a block by hand."""
        mask = np.zeros(self.mask(segmentID).shape, dtype=bool)
        mask[k, j, i] = True
        paint(self.editor, mask, segmentID, mode)

    # What the user sees -------------------------------------------------------------------------------------

    def ras(self, ijk):
        return (VolumeAdapter(self.volume).geometry.ijk_to_ras @ [*ijk, 1])[:3]

    def mask(self, segmentID="A"):
        """(K, J, I) of a segment."""
        return voxels_of(self.segmentation, segmentID)

    def slices(self, segmentID="A"):
        """Numbers of the slices along k where a segment has voxels."""
        return [int(k) for k in np.flatnonzero(self.mask(segmentID).any(axis=(1, 2)))]

    def prompt_nodes(self):
        """Prompt nodes in the scene."""
        return list(PromptNodes.promptNodes(self.scene, self.segmentation))

    @staticmethod
    def tag(segment, name):
        """A tag of a segment; empty when it has none."""
        value = vtk.reference("")
        return str(value) if segment.GetTag(name, value) else ""

    def prompts(self, segmentID="A"):
        """Everything said about a segment."""
        return self.controller.markups.snapshot(segmentID)


def a_noise(shape_kji=SHAPE_KJI, seed=1):
    """Grey values."""
    return np.random.default_rng(seed).integers(0, 500, shape_kji).astype(np.int16)


def an_axial_view(scene):
    """A slice node in axial orientation."""
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    node = scene.GetFirstNodeByClass("vtkMRMLSliceNode") or scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    node.SetLayoutName("Red")
    node.SetOrientationToAxial()
    node.SetFieldOfView(60, 60, 1)
    node.SetDimensions(120, 120, 1)
    return node
