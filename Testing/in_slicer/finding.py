"""Models of the user in the click-through: improved on corrections, trained on the scene, asked, removed."""

import numpy as np
import qt
import slicer
from looking import Looking
from reporting import expect, live, waitFor

MODULE, EFFECT, MODEL = "MedSAM2Segment", "MedSAM2", "click-through"


class Finding(Looking):
    """Steps about models of the user, for one that has a `widget`, a `controller` and a `segmentID`."""

    def learn(self):
        """Two slices marked as final are kept, a model is improved on them, and all of it is removed."""
        from MedSAM2SegmentLib.Worker.Corrections import Corrections

        folder = Corrections().folder
        before = set(folder.glob("*"))  # of the user of this profile
        k, j, i = self.middle()
        self.controller.setValue("learn", "1")
        for slice_ in (k - 2, k + 2):
            self.show("Red", self.ras(i, j, slice_))
            live(0.5)
            self.controller.finaliseSlice()
            self.settle()
        self.widget.setActiveEffectByName("")
        self.controller.setValue("learn", "0")
        new = set(folder.glob("*")) - before
        expect(len(new) == 2, f"2 slices are final, {len(new)} are kept")
        slicer.util.selectModule(MODULE)
        page = self.modulePage()
        waitFor(lambda: page.controller.state.mine.canImprove, 180, lambda: self.told(page))
        known = {row.file for row in page.controller.state.mine.rows}
        self.heart.start()
        page.controller.mine.improve(1)
        expect(page.controller.state.mine.canCancel, self.told(page))
        seconds = waitFor(lambda: not page.controller.state.mine.canCancel, 1800, lambda: self.told(page))
        frozen, line = self.heart.stop(), page.controller.state.mine.line

        def made():
            return [row for row in page.controller.state.mine.rows if row.file not in known]

        waitFor(made, 60, lambda: self.told(page))
        for row in made():
            page.controller.mine.remove(row.file, row.isPrompted)
            waitFor(lambda: page.controller.state.mine.canChange, 20, lambda: self.told(page))
        waitFor(lambda: not made(), 20, lambda: self.told(page))
        for path in new:
            path.unlink()
        slicer.util.selectModule("SegmentEditor")
        self.widget.setActiveEffectByName(EFFECT)
        self.effect = self.widget.activeEffect()
        self.settle(120)
        return {"s": seconds, "window frozen s": frozen, "text": line.text}

    def train(self):
        """Two minutes on every fifth slice of the brain: what the model is worth is not looked at.

        A busy computer may need more time for any model: the page says so, and it is given more.
        """
        self.controller.trainAuto()
        page = self.modulePage()
        button = page.widget.findChild(qt.QPushButton, "trainButton")
        problem = "the page was not scrolled to where models are trained"
        waitFor(lambda: not button.visibleRegion().isEmpty(), 10, lambda: problem)
        self.widget.setActiveEffectByName("")
        waitFor(lambda: page.controller.state.mine.canTrain, 180, lambda: self.told(page))
        few = self.voxels(self.segmentID).astype(np.uint8)
        few[np.arange(len(few)) % 5 != 0] = 0
        segments = self.segmentation.GetSegmentation()
        fewID = segments.AddEmptySegment("few", "few")
        slicer.util.updateSegmentBinaryLabelmapFromArray(few, self.segmentation, fewID, self.volume)
        self.heart.start()
        for minutes in (2, 10):
            page.controller.mine.train("auto", "scene", "", MODEL, minutes, "few")
            expect(page.controller.state.mine.canCancel, self.told(page))
            seconds = waitFor(lambda: not page.controller.state.mine.canCancel, 1800, lambda: self.told(page))
            line = page.controller.state.mine.line
            if line.level.value == "ok":
                break
        frozen = self.heart.stop()
        segments.RemoveSegment(fewID)
        expect(line.level.value == "ok", line.text)
        waitFor(lambda: self.modelRows(page), 20, lambda: self.told(page))
        self.modelFile = self.modelRows(page)[-1].file
        return {"s": seconds, "minutes": minutes, "window frozen s": frozen, "text": line.text}

    def auto(self):
        """What it finds comes beside what is there, and goes in one step."""
        slicer.util.selectModule("SegmentEditor")
        self.widget.setActiveEffectByName(EFFECT)
        self.effect = self.widget.activeEffect()
        waitFor(lambda: self.quiet() and self.state.auto.canFindVolume, 120, self.status)
        self.controller.setValue("autoModel", self.modelFile)
        segments = self.segmentation.GetSegmentation()
        before, count, prompts = (
            self.voxels(self.segmentID),
            len(segments.GetSegmentIDs()),
            self.promptCount(),
        )
        waitFor(self.startAuto, 180, self.status)
        self.heart.start()
        seconds = waitFor(lambda: self.state.status.value != "finding", 600, self.status)
        frozen = self.heart.stop()
        expect(len(segments.GetSegmentIDs()) > count, f"no segment was made: {self.status()}")
        expect(np.array_equal(self.voxels(self.segmentID), before), "another segment was changed")
        text = self.state.auto.text
        self.widget.undo()
        self.settle()
        expect(len(segments.GetSegmentIDs()) == count, "undo did not take back the segment")
        expect(self.promptCount() == prompts, "undo did not take back the predicted boxes")
        return {"s": seconds, "window frozen s": frozen, "found": text}

    def startAuto(self):
        """Press Auto when nothing is awaited: the first time starts a worker that was released meanwhile."""
        if self.quiet() and self.state.auto.canFindVolume:
            self.controller.autoVolume()
        return self.state.status.value == "finding"

    def removeModel(self):
        slicer.util.selectModule(MODULE)
        page = self.modulePage()

        def canChange():
            return page.controller.state.mine.canChange

        waitFor(lambda: self.modelRows(page) and canChange(), 120, lambda: self.told(page))
        for row in self.modelRows(page):
            page.controller.mine.remove(row.file)
            waitFor(canChange, 20, lambda: self.told(page))
        waitFor(lambda: not self.modelRows(page), 20, lambda: self.told(page))
        slicer.util.selectModule("SegmentEditor")
        self.widget.setActiveEffectByName(EFFECT)
        self.effect = self.widget.activeEffect()
        live(0.5)
        self.settle(120)
        return {}

    @staticmethod
    def modulePage():
        return slicer.modules.medsam2segment.widgetRepresentation().self().page

    @staticmethod
    def modelRows(page):
        return [row for row in page.controller.state.mine.rows if row.name == MODEL]

    @staticmethod
    def told(page):
        return page.controller.state.mine.line.text
