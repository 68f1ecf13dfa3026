"""Slicer's side of the effect, with stand-ins for the classes that only a running Slicer has."""

import gc
import sys
import types
import weakref

import pytest
from support import qt_shim as a_qt

qt = a_qt.installed()
slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Panels.PanelState import DEFAULTS, Status, Tool  # noqa: E402
from support.in_process_worker import InProcessSource  # noqa: E402
from support.scene import a_segmentation, a_volume, voxels_of  # noqa: E402
from support.segment_editor import LogicEditor  # noqa: E402
from support.slicer_user import a_noise, an_axial_view  # noqa: E402


class AScriptedEffect:
    """What `qSlicerSegmentEditorScriptedEffect` offers, over the real logic of the Segment Editor."""

    ConfirmedWithoutDialog = 1

    def __init__(self, editor) -> None:
        self.editor = editor
        self.widgets, self.actors, self.parameters = [], [], {}

    def parameterSetNode(self):
        return self.editor.node

    def saveStateForUndo(self):
        self.editor.saveStateForUndo()

    def modifySegmentByLabelmap(self, segmentation, segmentID, labelmap, mode):
        assert segmentation is self.editor.segmentationNode()
        self.editor.modifySegment(segmentID, labelmap, mode)

    def referenceGeometryImage(self):
        self.editor.logic.UpdateReferenceGeometryImage()
        return self.editor.logic.GetReferenceGeometryImage()

    def parameterDefined(self, name):
        return name in self.parameters

    def parameter(self, name):
        return self.parameters[name]

    def setParameter(self, name, value):
        self.parameters[name] = value

    def setParameterDefault(self, name, value):
        self.parameters.setdefault(name, value)

    def confirmCurrentSegmentVisible(self):
        return self.ConfirmedWithoutDialog

    def addOptionsWidget(self, widget):
        self.widgets.append(widget)

    def addActor2D(self, view, actor):
        self.actors.append(actor)

    def removeActor2D(self, view, actor):
        self.actors.remove(actor)

    def scheduleRender(self, view):
        pass


class AViewWidget:
    """A view of the layout."""

    def __init__(self, node, name="qMRMLSliceWidget") -> None:
        self.node, self.name = node, name

    def className(self):
        return self.name

    def sliceLogic(self):
        return self

    def GetSliceNode(self):
        return self.node


@pytest.fixture
def effect(scene, monkeypatch):
    a_qt.application()

    class Base:
        def __init__(self, scriptedEffect):
            self.scriptedEffect = scriptedEffect

    effects = types.ModuleType("SegmentEditorEffects")
    effects.AbstractScriptedSegmentEditorEffect = Base
    monkeypatch.setitem(sys.modules, "SegmentEditorEffects", effects)
    translation = types.ModuleType("slicer.i18n")
    translation.tr = lambda text: text
    monkeypatch.setitem(sys.modules, "slicer.i18n", translation)
    modes = types.SimpleNamespace(ModificationModeAdd="add", ModificationModeRemove="remove")
    monkeypatch.setattr(slicer, "qSlicerSegmentEditorAbstractEffect", modes, raising=False)
    import MedSAM2SegmentLib

    for name in ("SegmentEditorEffect",):  # as in a fresh Slicer
        MedSAM2SegmentLib.__dict__.pop(name, None)
        sys.modules.pop(f"MedSAM2SegmentLib.{name}", None)
    from MedSAM2SegmentLib.Worker import WorkerAccess

    source = InProcessSource()
    monkeypatch.setattr(WorkerAccess, "WorkerAccess", lambda: source)
    volume = a_volume(scene, voxels=a_noise())
    editor = LogicEditor(a_segmentation(scene, volume), volume, "A")
    effect = MedSAM2SegmentLib.SegmentEditorEffect(AScriptedEffect(editor))
    effect.source, effect.editor = source, editor
    yield effect
    effect.cleanup()
    MedSAM2SegmentLib.__dict__.pop("SegmentEditorEffect", None)
    sys.modules.pop("MedSAM2SegmentLib.SegmentEditorEffect", None)


@pytest.fixture
def active(effect):
    effect.setMRMLDefaults()
    effect.setupOptionsFrame()
    effect.activate()
    effect.view = AViewWidget(an_axial_view(effect.editor.node.GetScene()))
    return effect


def press(effect, ijk):
    """Press and release the mouse where a voxel is shown."""
    import numpy as np
    import vtk
    from MedSAM2SegmentLib.Prompts import SliceViews
    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

    node = effect.view.node
    ras = VolumeAdapter(effect.editor.sourceVolumeNode()).geometry.to_ras([ijk])[0]
    node.JumpSliceByCentering(*ras)
    pixel = np.rint(SliceViews.toXyz(node, ras)[0, :2]).astype(int)
    interactor = vtk.vtkGenericRenderWindowInteractor()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    renderer = vtk.vtkRenderer()
    window.AddRenderer(renderer)
    window.SetSize(120, 120)
    interactor.SetRenderWindow(window)
    interactor.SetEventPosition(int(pixel[0]), int(pixel[1]))
    for name in ("MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
        consumed = effect.processInteractionEvents(
            interactor, vtk.vtkCommand.GetEventIdFromString(name), effect.view
        )
    return consumed


def test_slicer_finds_the_class_in_the_package(effect):
    import MedSAM2SegmentLib

    assert isinstance(MedSAM2SegmentLib.SegmentEditorEffect, type)
    assert MedSAM2SegmentLib.SegmentEditorEffect.filePath.endswith("MedSAM2SegmentLib/SegmentEditorEffect.py")
    assert effect.scriptedEffect.name == "MedSAM2"
    assert not effect.icon().isNull()
    assert "Propagate" in effect.helpText()


def test_every_parameter_has_a_value_in_the_node(effect):
    effect.setMRMLDefaults()
    assert effect.scriptedEffect.parameters.keys() == DEFAULTS.keys()


def test_before_the_options_are_made_nothing_happens(effect):
    effect.activate()
    effect.updateGUIFromMRML()
    effect.sourceVolumeNodeChanged()
    effect.layoutChanged()
    effect.deactivate()
    assert effect.processInteractionEvents(None, 1, None) is False


def test_from_a_click_in_a_view_to_the_segment(active):
    controller = active.controller
    active.source.worker.answer_all()
    assert len(active.scriptedEffect.widgets) == 1
    assert press(active, (10, 10, 5)) is True
    active.source.worker.answer_all()
    controller.tick()
    assert controller.state.status is Status.PROMPTED
    assert voxels_of(active.editor.segmentationNode())[5, 10, 10]


def test_other_views_are_left_alone(active):
    assert active.processInteractionEvents(None, 12, AViewWidget(None, "qMRMLThreeDWidget")) is False


def test_keys_reach_the_panel_and_the_panel_the_mouse(active):
    active._onKey("setNegative", True)
    assert active.controller.state.negative
    active.controller.setTool("box")
    assert active._interaction.tool is Tool.BOX
    assert active.scriptedEffect.parameters["tool"] == "box"


def test_nothing_stays_behind(active):
    press(active, (10, 10, 5))
    gone = weakref.ref(active.controller)
    active.cleanup()
    active.source.worker.queue.clear()
    active.scriptedEffect.widgets.clear()
    gc.collect()
    assert active.source.owners == []
    assert active.scriptedEffect.actors == []
    assert gone() is None
