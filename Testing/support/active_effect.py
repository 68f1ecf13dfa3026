"""The whole way, but Slicer's window: a real slice view, the controller, the worker's process."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from MedSAM2SegmentLib.Effect.EffectController import EffectController
from MedSAM2SegmentLib.Panels.PanelState import Status
from MedSAM2SegmentLib.Prompts.SliceInteraction import SliceInteraction

from support.scene import a_display, a_segmentation, a_volume, reference_of
from support.segment_editor import LogicEditor
from support.slice_view import SIZE, a_slice_view, the_app
from support.subprocess_transport import PumpedClient, SubprocessTransport

CORE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
COMMAND = [sys.executable, "-m", "medsam2_core.worker"]
BUSY = (Status.STARTING, Status.SENDING, Status.LOADING, Status.ENCODING, Status.WORKER_LOST)
WORKING = (*BUSY, Status.PROPAGATING, Status.FINDING)


class RealWorkerSource:
    """One worker process for everybody who asks; it stays until it is stopped."""

    def __init__(self, **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(CORE), "OMP_NUM_THREADS": "1", **variables}
        self.client = PumpedClient(lambda: SubprocessTransport(COMMAND, environment))
        self.owners = []

    def problem(self) -> str:
        return ""

    def isInstalling(self) -> bool:
        return False

    def resolve(self, section: str = "") -> None:
        raise AssertionError("there is nothing to resolve")

    def hasChanged(self, owner) -> bool:
        return False

    def acquire(self, owner):
        self.owners.append(owner)
        self.client.start()
        return self.client

    def release(self, owner) -> None:
        self.owners = [one for one in self.owners if one is not owner]


class ActiveEffect:
    """A volume in a slice view, a segment, and the effect active on them.

    Without a volume: with those of the scene, which was loaded.
    """

    def __init__(self, source, volume, *, transform=None, segmentation=None, size=SIZE):
        self.app = the_app()
        self.scene = self.app.scene
        self.source = source
        self.core = volume
        if volume is None:
            self.node = self.scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            self.segmentation = self.scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        else:
            self.make(volume, transform, segmentation)
        self.view = a_slice_view("Red", size=size)
        self.editor = LogicEditor(self.segmentation, self.node, "A")
        self.controller = EffectController(self.editor, source)
        self.interaction = SliceInteraction(self.controller.onGesture, self.onKey)
        self.view.process = self.process
        self.states = []
        self.controller.panel.onStateChanged = self.onState
        self.controller.activate()

    def make(self, volume, transform, segmentation) -> None:
        """Put the volume into the scene, and an empty segment on it."""
        self.node = a_volume(
            self.scene, volume.geometry.ijk_to_ras, np.ascontiguousarray(volume.voxels_kji), volume.name,
            transform,
        )  # fmt: skip
        low, high = np.percentile(volume.voxels_kji, (1, 99.5))
        display = a_display(self.node, float(high - low), float(high + low) / 2)
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        self.segmentation = a_segmentation(self.scene, self.node, **(segmentation or {}))

    def process(self, interactor, eventName, sliceNode, actors) -> bool:
        """As the effect's window does it."""
        if eventName == "MouseMoveEvent":
            self.controller.viewUsed(sliceNode)
        self.interaction.markups = self.controller.markups
        return self.interaction.process(interactor, eventName, sliceNode, actors)

    def onKey(self, name: str, *values) -> None:
        getattr(self.controller, name)(*values)

    def onState(self, state) -> None:
        self.states.append(state)
        self.interaction.tool, self.interaction.negative = state.tool, state.negative

    @property
    def state(self):
        return self.controller.state

    def wait(self, seconds: float = 60.0) -> float:
        """Until nothing is on its way; the seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.source.client.pump(0.02)
            self.controller.tick()
            if self.state.status is Status.FAILED:
                raise AssertionError(f"{self.state.text}\n{self.state.details}")
            if not self.controller.isWaiting and self.state.status not in WORKING:
                return time.monotonic() - began
        raise AssertionError(f"still {self.state.status} after {seconds} s: {self.state.text}")

    def close(self) -> None:
        self.controller.cleanup()
        self.view.process = None
        self.scene.Clear(False)


def by_plain_matrices(segmentation, to_world, stack, masks):
    """(K, J, I) what a segment must show of (H, W) masks by slice: voxel by voxel, with matrices only."""
    matrix, shape_kji = reference_of(segmentation)
    k, j, i = np.indices(shape_kji)
    index = np.stack([i, j, k, np.ones_like(i)]).reshape(4, -1)
    world = to_world @ matrix @ index
    xyn = stack.xyn_to_ijk
    pixel = np.linalg.inv(stack.volume.geometry.ijk_to_ras @ xyn) @ world
    x, y, n = np.floor(pixel[:3] + 0.5 + 1e-6).astype(int)
    shown = np.zeros(index.shape[1], dtype=bool)
    height, width = stack.shape_hw
    for number, mask_hw in masks.items():
        inside = (n == number) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        shown[inside] = mask_hw[y[inside], x[inside]]
    return shown.reshape(shape_kji)
