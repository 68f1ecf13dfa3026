"""The module 3D Slicer loads: registers the Segment Editor effect, and the page for its runtime.

Nothing is imported or installed at start-up that costs time: the rest is loaded when somebody uses it.
"""

import os

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class MedSAM2Segment(ScriptedLoadableModule):
    """The module's entry in Slicer's list."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedSAM2 Segment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations"]
        self.parent.contributors = ["MedSAM2Segment contributors"]
        self.parent.helpText = _(
            "Adds the effect <b>MedSAM2</b> to the Segment Editor: click a structure in a slice view, see "
            "its mask, and let it be followed through the volume. This page installs and removes what the "
            "effect needs, lists the models, trains models of your own on "
            "labelled images, and exports segmentations for other systems. Nothing leaves this "
            "computer."
        )
        self.parent.acknowledgementText = _(
            "Segments with SAM 2 (Meta AI) and MedSAM-2: a volume is treated as a video, slice by slice."
        )
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Slicer has started: its Segment Editor and its Sample Data module take newcomers now."""
        self.registerEditorEffect()
        from MedSAM2SegmentLib.SampleData import registerSampleData

        registerSampleData()

    def registerEditorEffect(self):
        """Add the effect to those of the Segment Editor."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        # Slicer searches the class in the package, once it is loaded; errors of the import appear here.
        from MedSAM2SegmentLib import SegmentEditorEffect

        instance = effects.qSlicerSegmentEditorScriptedEffect(None)
        instance.setPythonSource(SegmentEditorEffect.filePath)
        instance.self().register()


class MedSAM2SegmentWidget(ScriptedLoadableModuleWidget):
    """The module's page."""

    page = None  # until it is made, and should that fail

    def setup(self):
        """Make the page: when the user comes to it for the first time, and when the module is reloaded."""
        ScriptedLoadableModuleWidget.setup(self)
        from MedSAM2SegmentLib.Effect.ReviewCases import ReviewCases
        from MedSAM2SegmentLib.Panels.ModulePage import ModulePage
        from MedSAM2SegmentLib.Segments.SceneCases import SceneCases
        from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations
        from MedSAM2SegmentLib.Worker.WorkerAccess import sharedInstaller

        scene = slicer.mrmlScene
        self.page = ModulePage(
            None,
            installer=sharedInstaller(),
            cases=SceneCases(scene),
            segmentations=SceneSegmentations(scene),
            reviewed=ReviewCases(scene),
        )
        self.layout.addWidget(self.page.widget)
        if self.parent.isEntered:  # a reloaded page is not entered once more
            self.page.enter()

    def enter(self):
        """The user has come to the page."""
        if self.page is not None:
            self.page.enter()

    def exit(self):
        """The user has left the page."""
        if self.page is not None:
            self.page.exit()

    def cleanup(self):
        """The module is taken down, or reloaded."""
        page, self.page = self.page, None
        if page is not None:
            page.cleanup()
            page.widget.deleteLater()  # reloading only hides it


class MedSAM2SegmentTest(ScriptedLoadableModuleTest):
    """What Slicer's own test run can tell without a runtime: that the effect is there."""

    def runTest(self):
        """Run all of it."""
        self.setUp()
        self.test_effectIsRegistered()

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def test_effectIsRegistered(self):
        """The Segment Editor offers the effect."""
        factory = slicer.qSlicerSegmentEditorEffectFactory.instance()
        names = [effect.name for effect in factory.registeredEffects()]
        self.assertIn("MedSAM2", names)
        self.assertTrue(os.path.isfile(self.effectIcon()))

    def effectIcon(self):
        """Path of the effect's icon."""
        from MedSAM2SegmentLib import SegmentEditorEffect

        return os.path.join(os.path.dirname(SegmentEditorEffect.filePath), "SegmentEditorEffect.png")
