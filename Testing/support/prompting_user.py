"""A user with real slice views, a volume, segments, and the effect's tools in hand."""

import numpy as np
from MedSAM2SegmentLib.Panels.PanelState import Tool
from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
from MedSAM2SegmentLib.Prompts.SliceInteraction import SliceInteraction
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

from support.scene import a_segmentation, a_volume
from support.slice_view import a_slice_view, the_app

ORIENTATIONS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}


class PromptingUser:
    """Views are made when they are first looked at; what is done in them goes to the segment ``segment``."""

    def __init__(self):
        self.app = the_app()
        self.scene = self.app.scene
        self.views = {}
        self.segment = "A"
        self.changes = []
        self.gestures = []
        self.keys = []

    def opens(self, matrix=None, voxels=None, transform=None, segments=("A", "B")):
        """Load a volume and make a segmentation."""
        self.volume = a_volume(self.scene, matrix, voxels, transform=transform)
        grey = self.scene.AddNewNodeByClass("vtkMRMLColorTableNode", "Grey levels")
        grey.SetTypeToGrey()
        display = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
        display.SetAndObserveColorNodeID(grey.GetID())
        self.volume.SetAndObserveDisplayNodeID(display.GetID())
        self.segmentation = a_segmentation(self.scene, self.volume, segments)
        self.adapter = VolumeAdapter(self.volume)
        return self.picks_up_the_effect()

    def picks_up_the_effect(self):
        self.markups = PromptMarkups(self.scene, self.segmentation)
        self.markups.volumeNode = self.volume
        self.markups.changed.append(self.changes.append)
        self.hand = SliceInteraction(self._on_gesture, lambda *key: self.keys.append(key), self.markups)
        for view in self.views.values():
            view.process = self.hand.process
        return self

    def _on_gesture(self, gesture, slice_node):
        self.gestures.append(gesture)
        self.markups.add(self.segment, gesture)

    def view(self, name="Red", ijk=None, size=(400, 300)):
        """A slice view that shows the volume through a voxel (by default its middle one)."""
        if name not in self.views:
            self.views[name] = a_slice_view(name, ORIENTATIONS[name], size)
        view = self.views[name]
        view.process = self.hand.process
        middle = np.array(self.adapter.geometry.shape_ijk) // 2
        view.show(self.volume, self.adapter.geometry.to_ras(middle if ijk is None else ijk)[0])
        return view

    # Tools --------------------------------------------------------------------------------------------------

    def takes(self, tool):
        self.hand.tool = Tool(tool)
        return self

    def stack(self, view=None):
        choice = self.adapter.stackOfView((view or self.views["Red"]).node)
        return self.adapter.cut(choice)

    def slice_prompts(self, segment=None, stack=None):
        return self.markups.slicePrompts(segment or self.segment, self.adapter, stack or self.stack())

    def prompts(self, segment=None, stack=None):
        """The prompts of all slices, in ascending order of slices."""
        return [
            prompt for on_slice in self.slice_prompts(segment, stack).values() for prompt in on_slice.prompts
        ]

    def leaves(self):
        """Everything is put away; the application stays."""
        self.hand.drop()
        self.markups.cleanup()
        for view in self.views.values():
            view.process = None
            view.view.set_background_volume_id(None)
        self.views.clear()
        self.scene.Clear(False)
