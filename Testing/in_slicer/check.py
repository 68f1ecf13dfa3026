"""Click through the effect in a real 3D Slicer, and write down what happened, with screenshots.

    Slicer --no-splash --additional-module-paths MedSAM2Segment --python-script Testing/in_slicer/check.py \\
        --out FOLDER [--interpreter PYTHON | --install] [--stay]

The worker needs a Python: the runtime if it is installed, the one named with ``--interpreter``, or, with
``--install``, one that is installed now (this downloads about 1 GB). Which Python the extension uses, its
settings and the layout are put back afterwards, the scene is the sample volume, and Slicer ends without
saving. It takes up to five minutes on a quiet computer of two cores, and can be run again on one profile;
leave mouse and keyboard alone meanwhile.

``FOLDER/report.md`` and ``FOLDER/report.json`` say for each step whether it passed, what was measured, and
why it failed; Slicer's exit code is 0 when all passed. Every step begins from what the earlier ones left, so
the first failure is the one to look at.
"""

import argparse
import json
import os
import shutil
import sys
import time

import numpy as np
import qt
import slicer
import vtk

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from finding import Finding
from pressing import press
from reporting import Heart, Report, expect, live, waitFor

MODULE, EFFECT = "MedSAM2Segment", "MedSAM2"
SAMPLE_MIDDLE_SLICE = 24  # of the sample volume, along k
# During the check:
SETTINGS = {
    "remoteCommand": "",
    "defaultModel": "embedded",
    "defaultWindow": "auto",
    "show3D": True,
    "learns": False,
}


class Check(Finding):
    """The steps, in order; what they share."""

    def __init__(self, options, report):
        Finding.__init__(self)
        self.options, self.report = options, report
        self.heart = Heart()
        self.widget = self.effect = None
        self.segmentID = self.neighbourID = ""
        self.before = {}  # what is put back at the end: settings, interpreter, layout

    def steps(self):
        yield "The module loads and the effect is registered", self.moduleIsThere
        yield "A Python for the worker", self.runtime
        yield "Sample data", self.sample
        yield "Segment Editor with the effect", self.editor
        yield "A click gives a mask on its slice", self.click
        yield "Undo and redo are exact, prompts follow", self.undo
        yield "A line, an ROI and a closed curve as prompts", self.markups
        yield "The segment as prompt, gaps between filled", self.between
        yield "The table of prompts: jump, delete, undo", self.table
        yield "A box", self.box
        yield "Propagate; the window does not freeze", self.propagate
        yield "Corrections spread by themselves", self.corrections
        yield "A model learns from corrections", self.learn
        yield "Train an Auto model on the scene", self.train
        yield "Auto on the volume, and undo", self.auto
        yield "The Auto model is removed", self.removeModel
        yield "A neighbour is not erased", self.neighbour
        yield "Cancel and discard", self.cancel
        yield "A click in the sagittal view", self.sagittal
        yield "A turned view and a transformed volume", self.transformed
        yield "A follow-up of an earlier scan, and undo", self.followUp
        yield "The frames of a sequence", self.frames
        yield "The worker is killed", self.kill
        yield "Save and load the scene", self.scene
        yield "The module page", self.page
        yield "Export", self.export
        yield "The review queue of a cohort", self.review
        yield "Leaving no trace", self.leave

    @property
    def controller(self):
        return self.effect.self().controller

    @property
    def state(self):
        return self.controller.state

    def status(self):
        return f"status {self.state.status.value!r}: {self.state.text} {self.state.details[-2000:]}"

    def quiet(self):
        """Whether nothing is awaited any more."""
        isAtRest = self.state.status.value in ("prompted", "ready") and self.state.progress is None
        return isAtRest and not self.controller.isWaiting

    def settle(self, seconds=60):
        """Let the effect notice what has just happened, and wait until it has done with it."""
        live(0.5)
        waitFor(self.quiet, seconds, self.status)

    def moduleIsThere(self):
        expect(
            hasattr(slicer.modules, MODULE.lower()),
            f"no module {MODULE}: is its folder among the module paths?",
        )
        self.widget = slicer.modules.segmenteditor.widgetRepresentation().self().editor

        def names():
            return list(self.widget.availableEffectNames())

        # The module registers its effect when Slicer says that it has started, which may be after this.
        waitFor(lambda: EFFECT in names(), 60, lambda: f"no effect {EFFECT} among {names()}: see the log")
        return {"effects": len(names())}

    def runtime(self):
        from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener
        from MedSAM2SegmentLib.Worker.Settings import Settings
        from MedSAM2SegmentLib.Worker.WorkerAccess import sharedInstaller

        installer = sharedInstaller()
        before = installer.status()
        settings = Settings()
        self.before = {
            "interpreter": "" if before.isOwn else before.interpreter,
            "layout": slicer.app.layoutManager().layout,
            **{name: getattr(settings, name) for name in SETTINGS},
        }
        # Whatever the user of this profile has chosen: the worker of this computer, and the small model.
        for name, value in SETTINGS.items():
            setattr(settings, name, value)
        ended, lines = [], []
        listener = InstallListener(line=lines.append, ended=ended.append)
        if self.options.interpreter:
            installer.useInterpreter(self.options.interpreter, listener)
        elif self.options.install and not installer.status().isReady:
            installer.install(listener)
        else:
            ended.append(None)
        seconds = waitFor(lambda: ended, 3600, lambda: "\n".join([installer.status().text, *lines[-20:]]))
        expect(ended[0] is None, f"{ended[0]}\n" + "\n".join(lines[-40:]))
        status = installer.status()
        expect(status.isReady, f"{status.text} (give --interpreter PYTHON or --install)")
        return {"interpreter": status.interpreter, "checked or installed in s": seconds}

    def sample(self):
        import SampleData
        from MedSAM2SegmentLib.SampleData import SAMPLE_NAME

        found = SampleData.downloadSample(SAMPLE_NAME)
        self.volume = found[0] if isinstance(found, (list, tuple)) else found
        expect(self.volume is not None, "the sample volume was not loaded")
        shape = slicer.util.arrayFromVolume(self.volume).shape
        return {"shape (k, j, i)": str(shape)}

    def editor(self):
        # All three slice views, whatever the layout of this profile was: a hidden one takes no click.
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        slicer.app.processEvents()
        for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
            view = slicer.app.layoutManager().sliceWidget(name)
            expect(view is not None and view.visible, f"the {name} view is not shown")
            view.sliceLogic().GetSliceNode().SetOrientation(orientation)
        slicer.util.selectModule("SegmentEditor")
        self.segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Check")
        self.segmentation.CreateDefaultDisplayNodes()
        self.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        add = self.segmentation.GetSegmentation().AddEmptySegment
        self.segmentID, self.neighbourID = add("brain", "brain"), add("neighbour", "neighbour")
        self.widget.setSegmentationNode(self.segmentation)
        self.widget.setSourceVolumeNode(self.volume)
        self.widget.setCurrentSegmentID(self.segmentID)
        self.widget.setActiveEffectByName(EFFECT)
        self.effect = self.widget.activeEffect()
        expect(self.effect is not None, "the effect cannot be activated")
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        ready = waitFor(lambda: self.state.status.value == "ready", 180, self.status)
        return {"worker and model ready in s": ready}

    def click(self):
        centre = self.centre()
        self.show("Red", centre)
        self.heart.start()
        press("Red", centre)
        first = waitFor(self.quiet, 120, self.status)
        frozen = self.heart.stop()
        mask = self.voxels(self.segmentID)
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        expect(len(slices) == 1, f"one slice was clicked, but the segment is on {len(slices)}")
        k, j, i = (int(n) for n in self.middle())
        expect(mask[k, j, i], "the voxel that was clicked is not in the segment")
        return {"first click s": first, "window frozen s": frozen, "voxels": int(mask.sum())}

    def undo(self):
        before, prompts = self.voxels(self.segmentID), self.promptCount()
        inside = self.ras(self.middle()[2] + 25, self.middle()[1], self.middle()[0])
        press("Red", inside, control=True)
        seconds = waitFor(self.quiet, 60, self.status)
        after = self.voxels(self.segmentID)
        expect((before != after).any(), "a negative click inside the mask changed nothing")
        expect(self.promptCount() == prompts + 1, "the negative click is no prompt")
        self.widget.undo()
        self.settle()
        expect(
            np.array_equal(self.voxels(self.segmentID), before), "undo did not bring back the exact voxels"
        )
        expect(self.promptCount() == prompts, "undo did not take back the prompt")
        self.widget.redo()
        self.settle()
        expect(np.array_equal(self.voxels(self.segmentID), after), "redo did not bring back the exact voxels")
        expect(self.promptCount() == prompts + 1, "redo did not bring back the prompt")
        self.widget.undo()
        self.settle()
        return {"second click s": seconds}

    def table(self):
        """Press the row and the button of the section; what is deleted comes back by one undo."""
        self.controller.clearPrompts()
        self.settle()
        self.show("Red", self.centre())
        press("Red", self.centre())
        self.settle()
        prompted = [one for one in self.state.confidences if one.prompted]
        expect([one.kinds for one in prompted] == ["points 1+"], f"one click is listed as {prompted}")
        table, button = (
            slicer.util.findChild(self.widget, name) for name in ("promptsTable", "clearSliceButton")
        )
        expect(table.rowCount == 1, f"the table has {table.rowCount} rows for one click")
        before, prompts = self.voxels(self.segmentID), self.promptCount()
        k, j, i = self.middle()
        self.show("Red", self.ras(i, j, k + 5))
        live(0.5)
        expect(not table.selectedItems(), "a slice without prompts is selected in the table")
        table.selectRow(0)
        live(0.5)
        expect(self.state.current == prompted[0].n, f"row selected, but slice {self.state.current} is shown")
        button.click()
        self.settle()
        expect(table.rowCount == 0, "the row is still there after its prompts were deleted")
        expect(self.promptCount() == 0, "the prompts of the slice are still in the scene")
        self.widget.undo()
        self.settle()
        expect(
            np.array_equal(self.voxels(self.segmentID), before), "undo did not bring back the exact voxels"
        )
        expect(self.promptCount() == prompts, "undo did not bring back the prompts")
        button.click()
        self.settle()
        expect(not self.voxels(self.segmentID).any(), "the mask stayed when its prompts were deleted")
        return {"points listed": prompted[0].kinds}

    def box(self):
        self.controller.clearPrompts()
        self.controller.setTool("box")
        shape = slicer.util.arrayFromVolume(self.volume).shape
        k = SAMPLE_MIDDLE_SLICE if shape[0] > SAMPLE_MIDDLE_SLICE else shape[0] // 2
        corner, opposite = self.ras(10, 11, k), self.ras(158, 194, k)
        self.show("Red", self.ras(shape[2] // 2, shape[1] // 2, k))
        press("Red", corner, to=opposite)
        seconds = waitFor(self.quiet, 60, self.status)
        count = int(self.voxels(self.segmentID)[k].sum())
        self.controller.setTool("point")
        expect(count > 1000, f"the box has filled {count} voxels on its slice")
        return {"box s": seconds, "voxels on the slice": count}

    def propagate(self):
        self.heart.start()
        start = time.monotonic()
        self.controller.propagate()
        waitFor(lambda: self.state.status.value == "propagating", 30, self.status)
        waitFor(self.quiet, 600, self.status)
        seconds = time.monotonic() - start
        frozen = self.heart.stop()
        slices = int(self.voxels(self.segmentID).any(axis=(1, 2)).sum())
        expect(slices > 20, f"only {slices} slices were filled in")
        expect(frozen < 1.0, f"the window was frozen for {frozen} s")
        self.shownIn3D(False, "a further propagation, hidden since the first")
        counted = np.count_nonzero(self.voxels(self.segmentID)) * np.prod(self.volume.GetSpacing()) / 1000
        told = self.state.millilitres
        expect(told is not None and abs(told - counted) < 0.01, f"the panel says {told} ml, it is {counted}")
        measured = waitFor(lambda: self.state.diameters, 30, lambda: f"no diameters: {self.status()}")
        longest, across = self.state.diameters
        widest = max(np.ptp(np.nonzero(one)[1]) for one in self.voxels(self.segmentID) if one.any())
        spacing = self.volume.GetSpacing()[0]
        expect(longest >= across > 0 and longest >= widest * spacing, f"diameters {longest} x {across} mm")
        return {
            "diameters mm": f"{longest:.1f} x {across:.1f}, after {measured} s",
            "ml": round(told, 2),
            "s": round(seconds, 1),
            "slices": slices,
            "s a slice": round(seconds / slices, 3),
            "frozen s": frozen,
        }

    def corrections(self):
        """A click spreads outward by itself until the next, which begins around itself; each is one undo."""
        points = self.controlPointCount()
        other = self.segmentation.GetSegmentation().AddEmptySegment("spreading", "spreading")
        self.widget.setCurrentSegmentID(other)
        self.controller.setValue("autoPropagate", "1")
        self.show("Red", self.centre())
        press("Red", self.centre())
        middle = int(self.middle()[0])
        waitFor(lambda: self.voxels(other).any(axis=(1, 2)).sum() > 3, 60, self.status)
        found = np.flatnonzero(self.voxels(other).any(axis=(1, 2)))
        expect(abs(found.mean() - middle) < len(found), f"slices {found} are not around slice {middle}")
        press("Red", self.ras(self.middle()[2] + 25, self.middle()[1], middle), control=True)
        waitFor(self.quiet, 300, self.status)
        after = np.flatnonzero(self.voxels(other).any(axis=(1, 2)))
        self.controller.setValue("autoPropagate", "0")
        self.widget.undo()
        self.settle()
        expect(self.controlPointCount() == points + 1, "undo did not take back the second click alone")
        self.widget.undo()
        self.settle()
        expect(not self.voxels(other).any(), "undo did not take back the first click and what followed it")
        self.segmentation.GetSegmentation().RemoveSegment(other)
        self.widget.setCurrentSegmentID(self.segmentID)
        self.settle()
        return {"slices at the second click": len(found), "slices in the end": len(after)}

    def markups(self):
        """Slicer's own Markups, drawn on the middle slice, each instead of other prompts."""
        shape = slicer.util.arrayFromVolume(self.volume).shape
        k, j, i = SAMPLE_MIDDLE_SLICE, shape[1] // 2, shape[2] // 2
        self.show("Red", self.ras(i, j, k))
        drawn = (
            ("vtkMRMLMarkupsLineNode", [(10, j, k), (158, j, k)]),
            ("vtkMRMLMarkupsROINode", []),
            ("vtkMRMLMarkupsClosedCurveNode", [(50, 60, k), (110, 60, k), (110, 130, k), (50, 130, k)]),
        )
        counts = {}
        for className, points in drawn:
            self.controller.clearPrompts()
            node = slicer.mrmlScene.AddNewNodeByClass(className)
            if points:
                for ijk in points:
                    node.AddControlPointWorld(vtk.vtkVector3d(*self.ras(*ijk)))
            else:
                ends = np.array([self.ras(10, 11, k - 4), self.ras(158, 194, k + 4)])
                node.SetCenterWorld(*ends.mean(axis=0))
                node.SetSizeWorld(*np.abs(ends[1] - ends[0]))
            self.controller.useMarkups()
            self.settle()
            counts[className[14:-4]] = self.promptCount()
            length = (
                np.linalg.norm(np.subtract(*(self.ras(*ijk) for ijk in points))) if len(points) == 2 else None
            )
            drawn = self.state.drawn
            expect(
                not drawn if length is None else abs(drawn[0] - length) < 0.01, f"drawn {drawn}, not {length}"
            )
            expect(self.promptCount() == 1, f"{className}: {self.promptCount()} prompts, {self.status()}")
            expect(self.voxels(self.segmentID)[k].any(), f"{className} gave no mask: {self.status()}")
            if not points:
                found = self.state.values["range"]
                expect(found == f"{k - 4}..{k + 4}", f"the ROI has set the range {found}")
                self.controller.setValue("range", "all")
            slicer.mrmlScene.RemoveNode(node)
        return counts

    def between(self):
        """The segment of the curve on the middle slice, copied to two slices, and what lies between."""
        self.controller.clearPrompts()
        mask = self.voxels(self.segmentID)
        first, last = SAMPLE_MIDDLE_SLICE - 3, SAMPLE_MIDDLE_SLICE + 3
        drawn = mask[SAMPLE_MIDDLE_SLICE].copy()
        mask[:] = 0
        mask[first] = mask[last] = drawn
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.astype(np.uint8), self.segmentation, self.segmentID, self.volume
        )
        self.settle()
        self.controller.setValue("keep", "all")
        self.controller.setValue("range", "between")
        self.controller.useSegmentAsPrompt()
        self.settle()
        expect(np.array_equal(self.voxels(self.segmentID) != 0, mask != 0), "the segment has changed")
        self.controller.propagate()
        self.settle(300)
        slices = np.flatnonzero(self.voxels(self.segmentID).any(axis=(1, 2)))
        expect(slices.min() == first and slices.max() == last, f"slices {slices} were filled")
        self.shownIn3D(True, "the first propagation")
        self.segmentation.RemoveClosedSurfaceRepresentation()
        for n in (first, last):
            expect(np.array_equal(self.voxels(self.segmentID)[n] != 0, drawn != 0), f"slice {n} has changed")
        self.controller.setValue("keep", "slice")
        self.controller.setValue("range", "all")
        self.controller.clearPrompts()
        mask[:] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.astype(np.uint8), self.segmentation, self.segmentID, self.volume
        )
        self.settle()
        return {"slices filled": len(slices)}

    def shownIn3D(self, isShown, after):
        known, display = self.segmentation.GetSegmentation(), self.segmentation.GetDisplayNode()
        has = known.ContainsRepresentation("Closed surface") and bool(display.GetVisibility3D())
        expect(has == isShown, f"after {after}, shown in 3D is {has}")

    def neighbour(self):
        """Overwrite none: what the neighbour has stays although our mask covers it."""
        node = self.widget.mrmlSegmentEditorNode()
        node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        brain = self.voxels(self.segmentID)
        k, j, i = (int(n) for n in self.middle())
        array = np.zeros(brain.shape, np.uint8)
        array[k - 2 : k + 3, j - 10 : j + 10, i - 10 : i + 10] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            array, self.segmentation, self.neighbourID, self.volume
        )
        live(0.5)
        self.show("Red", self.ras(i, j, k))
        press("Red", self.ras(i, j + 40, k))
        self.settle()
        expect(np.array_equal(self.voxels(self.neighbourID), array != 0), "the neighbour lost voxels")
        return {}

    def cancel(self):
        shape = slicer.util.arrayFromVolume(self.volume).shape
        k = SAMPLE_MIDDLE_SLICE
        self.show("Red", self.ras(shape[2] // 2, shape[1] // 2, k))
        press("Red", self.ras(shape[2] // 2, 20, k), control=True)
        self.settle()
        before = self.voxels(self.segmentID)
        self.controller.propagate()
        waitFor(lambda: (self.state.progress or (0, 0))[0] >= 3, 60, self.status)
        start = time.monotonic()
        self.controller.cancel()
        waitFor(lambda: self.state.status.value != "propagating", 20, self.status)
        seconds = round(time.monotonic() - start, 3)
        expect(self.state.canKeep, f"nobody asks whether to keep the slices: {self.status()}")
        self.controller.discard()
        self.settle(20)
        expect(
            np.array_equal(self.voxels(self.segmentID), before), "discard did not bring back the exact voxels"
        )
        return {"cancelled in s": seconds}

    def sagittal(self):
        centre = self.centre()
        self.show("Yellow", centre)
        prompts = self.controlPointCount()
        press("Yellow", self.ras(*(int(n) for n in self.middle()[::-1])))
        self.settle()
        expect(self.controlPointCount() == prompts + 1, f"the click is no prompt: {self.status()}")
        return {"text": self.state.text}

    def transformed(self):
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Check transform")
        matrix = vtk.vtkTransform()
        matrix.Translate(12, -7, 5)
        matrix.RotateWXYZ(20, 1, 2, 3)
        transform.SetMatrixTransformToParent(matrix.GetMatrix())
        self.volume.SetAndObserveTransformNodeID(transform.GetID())
        self.segmentation.SetAndObserveTransformNodeID(transform.GetID())
        self.controller.clearPrompts()
        other = self.segmentation.GetSegmentation().AddEmptySegment("turned", "turned")
        self.widget.setCurrentSegmentID(other)
        slicer.app.processEvents()
        centre = self.centre()
        red = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceNode()
        red.RotateToVolumePlane(self.volume)
        self.show("Red", centre)
        press("Red", centre)
        self.settle(120)
        mask = self.voxels(other)
        k, j, i = (int(n) for n in self.middle())
        expect(mask[k, j, i], "the voxel that was clicked is not in the segment")
        self.volume.SetAndObserveTransformNodeID(None)
        self.segmentation.SetAndObserveTransformNodeID(None)
        red.SetOrientationToAxial()
        self.widget.setCurrentSegmentID(self.segmentID)
        self.settle()
        return {"voxels": int(mask.sum())}

    def followUp(self):
        """The segmentation, copied, as that of an earlier scan: its segments are found again."""
        before = self.segmentation.GetSegmentation().GetNumberOfSegments()
        earlier = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Earlier")
        earlier.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        copied = earlier.GetSegmentation()
        copied.CopySegmentFromSegmentation(self.segmentation.GetSegmentation(), self.segmentID)
        copied.GetNthSegment(0).SetName("old place")
        live(0.5)
        self.controller.setValue("otherScan", earlier.GetID())
        start = time.monotonic()
        self.controller.followUp()
        waitFor(lambda: self.state.other.text and self.quiet(), 300, self.status)
        seconds = time.monotonic() - start
        found = self.segmentation.GetSegmentation().GetSegmentIdBySegmentName("old place")
        expect(found and self.voxels(found).any(), f"nothing was found at the old place: {self.status()}")
        table = slicer.util.getNode("Changes since Earlier")
        expect("old place" in self.state.other.text, f"the panel says {self.state.other.text!r}")
        self.widget.undo()
        self.settle()
        known = self.segmentation.GetSegmentation()
        expect(not known.GetSegmentIdBySegmentName("old place"), "undo did not take back what was found")
        for node in (earlier, table):
            slicer.mrmlScene.RemoveNode(node)
        self.widget.setCurrentSegmentID(self.segmentID)
        self.settle()
        now = self.segmentation.GetSegmentation().GetNumberOfSegments()
        expect(now == before, f"{now} segments, {before} before")
        return {"s": round(seconds, 1)}

    def frames(self):
        """Three pictures as a sequence; its volume is refused, and the button opens them as slices."""
        scene, sequence = slicer.mrmlScene, slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
        picture = slicer.util.arrayFromVolume(self.volume)[SAMPLE_MIDDLE_SLICE][None]
        for n in range(3):
            frame = slicer.util.addVolumeFromArray(np.ascontiguousarray(picture))
            sequence.SetDataNodeAtValue(frame, str(n))
            scene.RemoveNode(frame)
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Cine browser")
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        proxy = browser.GetProxyNode(sequence)
        self.widget.setSourceVolumeNode(proxy)
        live(0.5)
        expect(self.state.action == "Open all frames", f"a frame is not recognised: {self.status()}")
        self.controller.resolve()
        self.settle(120)
        editor = self.widget.mrmlSegmentEditorNode()
        opened, made = editor.GetSourceVolumeNode(), editor.GetSegmentationNode()
        slices = opened.GetImageData().GetDimensions()[2]
        expect(slices == 3, f"the frames became {slices} slices")
        expect(made is not self.segmentation, "the segmentation of the sample was taken for the frames")
        self.widget.setSegmentationNode(self.segmentation)
        self.widget.setSourceVolumeNode(self.volume)
        self.widget.setCurrentSegmentID(self.segmentID)
        for node in (made, opened, proxy, browser, sequence):
            scene.RemoveNode(node)
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        self.settle()
        return {"slices": slices}

    def kill(self):
        import signal

        centre = self.centre()
        self.show("Red", centre)
        press("Red", centre)
        self.settle()
        before, prompts = self.voxels(self.segmentID), self.controlPointCount()
        welcome = self.controller.client.welcome
        expect("pid" in welcome, "no worker is running")
        os.kill(int(welcome["pid"]), getattr(signal, "SIGKILL", signal.SIGTERM))
        start = time.monotonic()
        waitFor(lambda: self.state.status.value == "worker lost", 30, self.status)
        waitFor(self.quiet, 120, self.status)
        back = round(time.monotonic() - start, 2)
        expect(self.controller.client.welcome["pid"] != welcome["pid"], "it is still the old worker")
        expect(
            np.array_equal(self.voxels(self.segmentID), before),
            "the segment changed when the worker was lost",
        )
        press("Red", self.ras(self.middle()[2] + 25, self.middle()[1], self.middle()[0]), control=True)
        self.settle()
        expect(self.controlPointCount() == prompts + 1, f"a click is not taken any more: {self.status()}")
        return {"back in s": back}

    def scene(self):
        before = self.voxels(self.segmentID)
        prompts = self.promptCount()
        path = os.path.join(self.report.folder, "scene.mrb")
        expect(slicer.util.saveScene(path), f"{path} was not saved")
        self.widget.setActiveEffectByName("")
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        slicer.util.loadScene(path)
        self.segmentation = slicer.util.getFirstNodeByClassByName("vtkMRMLSegmentationNode", "Check")
        self.volume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
        expect(np.array_equal(self.voxels(self.segmentID), before), "the segment changed in the saved scene")
        expect(self.promptCount() == prompts, f"{self.promptCount()} prompt nodes instead of {prompts}")
        os.remove(path)
        return {"prompt nodes": prompts}

    def page(self):
        slicer.util.selectModule(MODULE)
        live(3.0)
        widget = slicer.modules.medsam2segment.widgetRepresentation()
        expect(widget.self().page is not None, "the page was not made: see the log")
        expect(widget.isEntered, "the page is not shown")
        return {"runtime": widget.self().page.installer.status().text}

    def export(self):
        """The segmentation as a file of the worker's, with measurements beside it."""
        page, path = self.modulePage(), os.path.join(self.report.folder, "exported.nrrd")
        line = lambda: page.controller.state.export.line  # noqa: E731
        find, combo = page.widget.findChild, page.widget.findChild(qt.QComboBox, "exportFormatBox")
        waitFor(lambda: page.controller.state.export.canExport and combo.enabled, 120, lambda: line().text)
        for name, value in (("Format", "nrrd"), ("Measurements", "csv")):
            box = find(qt.QComboBox, f"export{name}Box")
            box.currentIndex = box.findData(value)
        find(qt.QLineEdit, "exportPathEdit").text = path
        find(qt.QCheckBox, "exportOverwriteBox").checked = True
        find(qt.QPushButton, "exportButton").click()
        seconds = waitFor(lambda: page.controller.state.export.canExport, 120, lambda: line().text)
        expect(line().level.value in ("ok", "warning") and os.path.getsize(path) > 0, line().text)
        return {"s": seconds, "text": line().text}

    def review(self):
        """Two cases, by buttons and keys: skipped, corrected in the Segment Editor, and then accepted."""
        from medsam2_core.batch.review import ReviewQueue

        folder, page = self.results(), self.modulePage()
        view = lambda: page.controller.state.review  # noqa: E731
        window, find = slicer.util.mainWindow(), page.widget.findChild

        def click(button):
            find(qt.QPushButton, button).click()
            live(0.5)

        def key(name):
            for one in window.findChildren(qt.QShortcut):
                if one.key.toString() == name and one.enabled:
                    one.activated()
            live(0.5)

        prompts = self.promptCount()
        find(qt.QLineEdit, "reviewFolderEdit").text = folder
        click("openReviewButton")
        expect(view().case.startswith("first,") and view().canAccept, f"opened {view()}")
        expect(self.promptCount() == prompts + 1, "the box of the case is not in the scene")
        click("skipReviewButton")
        slicer.util.selectModule("SegmentEditor")
        live(0.5)
        (k, j, i), chosen = self.middle(), self.widget.mrmlSegmentEditorNode()
        case, volume = chosen.GetSegmentationNode(), chosen.GetSourceVolumeNode()
        names = [node and node.GetName() for node in (case, volume)]
        expect(all(name and name.startswith("second") for name in names), f"the Segment Editor has {names}")
        expect(volume.GetDisplayNode().GetColorNode(), "the image of a case has no colours, and is not drawn")
        array = np.zeros(slicer.util.arrayFromVolume(self.volume).shape, np.uint8)
        array[k - 2 : k + 3, j - 10 : j + 10, i - 10 : i + 10] = 1
        segmentID = case.GetSegmentation().GetNthSegmentID(0)
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, case, segmentID, volume)
        key("F6")
        expect(view().line.level.value == "warning" and view().case, f"changes are left out: {view()}")
        told = window.statusBar().currentMessage()
        expect(told == view().line.text, f"the status bar says {told!r}")
        key("F7")
        expect(not view().case and not view().canSkip, f"after both cases: {view()}")
        ReviewQueue(folder).reset_skipped()
        slicer.util.selectModule(MODULE)
        click("openReviewButton")
        click("acceptReviewButton")
        counts, kept = ReviewQueue(folder).counts(), sorted(os.listdir(os.path.join(folder, "review")))
        expect(counts == {"waiting": 0, "accepted": 1, "corrected": 1, "skipped": 0}, f"{counts}: {view()}")
        expect(kept == ["first.seg.nrrd", "second.seg.nrrd"], f"kept {kept}")
        expect(self.promptCount() == prompts, "prompts of a case are left")
        return counts

    def results(self):
        """A folder as `medsam2 batch` leaves it: the volume and its segmentation, as two cases."""
        from medsam2_core.prompts import Box, PromptSet

        folder, (k, j, i) = os.path.join(self.report.folder, "results"), self.middle()
        shutil.rmtree(folder, ignore_errors=True)
        name = self.segmentation.GetSegmentation().GetNthSegment(0).GetName()
        prompts = PromptSet({name: [Box((i - 20, j - 20, k), (i + 20, j + 20, k))]}).to_json()
        for case, confidence in (("first", 0.2), ("second", 0.6)):
            place = os.path.join(folder, "cases", case)
            os.makedirs(place)
            image, masks = os.path.join(place, "image.nrrd"), os.path.join(place, "segmentation.seg.nrrd")
            for node, path in ((self.volume, image), (self.segmentation, masks)):
                expect(slicer.util.saveNode(node, path), f"{path} was not saved")
            about = os.stat(image)
            known = {
                "case": {"name": case, "image": image, "series": ""},
                **{"signature": "", "prompts": prompts},
                "inputs": {image: {"state": [about.st_size, about.st_mtime_ns]}},
                "facts": {"objects": [{"name": name, "confidence": confidence}]},
            }
            with open(os.path.join(place, "case.json"), "w", encoding="utf-8") as file:
                json.dump(known, file)
        return folder

    def leave(self):
        from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener
        from MedSAM2SegmentLib.Worker.WorkerAccess import sharedInstaller

        slicer.util.selectModule("SegmentEditor")
        self.widget.setActiveEffectByName("")
        slicer.mrmlScene.Clear(0)
        live(0.5)
        left = self.promptCount()
        self.putBack()
        if self.options.interpreter and self.before:
            ended, before = [], self.before["interpreter"]
            sharedInstaller().useInterpreter(before, InstallListener(ended=ended.append))
            waitFor(lambda: ended, 120, lambda: "the interpreter used before is still being checked")
            expect(ended[0] is None, f"the interpreter used before was not put back: {ended[0]}")
        expect(left == 0, f"{left} prompt nodes are left in an empty scene")
        return {}

    def putBack(self):
        """Put settings and layout back as they were."""
        from MedSAM2SegmentLib.Worker.Settings import Settings

        if self.before:
            settings = Settings()
            for name in SETTINGS:
                setattr(settings, name, self.before[name])
            slicer.app.layoutManager().setLayout(self.before["layout"])


def main():
    parser = argparse.ArgumentParser("check.py", description="Click through the effect in a real 3D Slicer.")
    parser.add_argument("--out", default=os.path.join(os.getcwd(), "medsam2-check"))
    parser.add_argument("--interpreter", default="", help="a Python that has torch and sam2")
    parser.add_argument("--install", action="store_true", help="install the runtime when there is none")
    parser.add_argument("--stay", action="store_true", help="do not end Slicer afterwards")
    options = parser.parse_args([word for word in sys.argv[1:] if word != "--"])
    report = Report(options.out)
    check = Check(options, report)
    for name, step in check.steps():
        report.run(name, step)
        check.heart.stop()  # where a step has failed, it still beats
    print(f"report: {os.path.join(options.out, 'report.md')}")
    if not options.stay:
        slicer.util.exit(0 if report.passed else 1)


# The effect registers itself when Slicer has started; this script may be run before that.
qt.QTimer.singleShot(1000, main)
