"""The module as Slicer loads it: from its file to voxels in a segment, to its page, and away again."""

import gc
import weakref
from pathlib import Path

import pytest

slicer = pytest.importorskip("slicer")

from support import qt_shim as a_qt  # noqa: E402

qt = a_qt.installed()

import numpy as np  # noqa: E402
import vtk  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import DEFAULTS, Status  # noqa: E402
from MedSAM2SegmentLib.Prompts import SliceViews  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from MedSAM2SegmentLib.Worker.WorkerAccess import WorkerAccess  # noqa: E402
from support.in_process_worker import InProcessSource  # noqa: E402
from support.scene import a_segmentation, a_volume, voxels_of  # noqa: E402
from support.slicer_application import ModuleWidget, RunningSlicer  # noqa: E402
from support.slicer_user import a_noise, an_axial_view  # noqa: E402

SOURCE = Path(__file__).resolve().parents[2] / "MedSAM2Segment" / "MedSAM2Segment.py"


@pytest.fixture
def running(scene, monkeypatch):
    """A Slicer that has loaded the module and has started."""
    running = RunningSlicer(monkeypatch, scene)
    running.parent = running.load(SOURCE)
    running.source = InProcessSource()
    monkeypatch.setattr("MedSAM2SegmentLib.Worker.WorkerAccess.WorkerAccess", lambda *_: running.source)
    running.start()
    return running


@pytest.fixture
def editor(running, scene):
    """The Segment Editor with a volume and a segment chosen."""
    editor = running.an_editor()
    editor.volume = a_volume(scene, voxels=a_noise())
    editor.segmentation = a_segmentation(scene, editor.volume)
    editor.setSegmentationNode(editor.segmentation)
    editor.setSourceVolumeNode(editor.volume)
    editor.setCurrentSegmentID("A")
    editor.view = AViewWidget(an_axial_view(scene))
    yield editor
    editor.cleanup()


class AViewWidget:
    """A slice view of the layout."""

    def __init__(self, node) -> None:
        self.node = node

    def className(self):
        return "qMRMLSliceWidget"

    def sliceLogic(self):
        return self

    def GetSliceNode(self):
        return self.node


def click(editor, ijk):
    """Press and release the mouse where a voxel is shown; whether each event was kept from others."""
    ras = VolumeAdapter(editor.volume).geometry.to_ras([ijk])[0]
    editor.view.node.JumpSliceByCentering(*ras)
    pixel = np.rint(SliceViews.toXyz(editor.view.node, ras)[0, :2]).astype(int)
    interactor, window = vtk.vtkGenericRenderWindowInteractor(), vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.AddRenderer(vtk.vtkRenderer())
    window.SetSize(120, 120)
    interactor.SetRenderWindow(window)
    interactor.SetEventPosition(int(pixel[0]), int(pixel[1]))
    events = (vtk.vtkCommand.MouseMoveEvent, vtk.vtkCommand.LeftButtonPressEvent)
    return [
        editor.activeEffect().processInteractionEvents(interactor, event, editor.view)
        for event in (*events, vtk.vtkCommand.LeftButtonReleaseEvent)
    ]


def settle(editor, running):
    controller = editor.activeEffect().self().controller
    for _ in range(3):
        running.source.worker.answer_all()
        controller.tick()
    return controller


# The effect -----------------------------------------------------------------------------------------------


def test_when_slicer_has_started_the_effect_and_the_sample_are_there(running):
    assert [effect.name for effect in running.factory.registeredEffects()] == ["MedSAM2"]
    assert [sample["sampleName"] for sample in running.samples] == ["MedSAM2SegmentMNI152"]
    assert running.parent.categories == ["Segmentation"] and running.parent.title


def test_loading_the_module_twice_registers_one_effect(running):
    running.start()
    assert len(running.factory.registeredEffects()) == 1


def test_an_effect_loaded_by_its_file_alone_is_the_same_class(running):
    from MedSAM2SegmentLib import SegmentEditorEffect

    registered = running.factory.registeredEffects()[0]
    assert type(registered.self()) is SegmentEditorEffect
    assert slicer.MedSAM2SegmentLib.scriptedEffect.name == "MedSAM2"


def test_an_editor_without_parameters_yet_makes_the_options(running, scene):
    from support.slicer_application import SegmentEditorWidget

    editor = SegmentEditorWidget(running.factory, scene)
    assert editor.effectByName("MedSAM2").self().controller is not None
    editor.setMRMLSegmentEditorNode(scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    node = editor.mrmlSegmentEditorNode()
    assert all((node.GetAttribute(f"MedSAM2.{name}") or "") == value for name, value in DEFAULTS.items())
    editor.cleanup()


def test_from_choosing_the_effect_to_voxels_and_back(running, editor):
    editor.setActiveEffectByName("MedSAM2")
    effect = editor.activeEffect()
    # What activate() changes is told once the editor has finished: nothing of it activates a second time.
    assert effect.calls.count("activate") == 1
    assert click(editor, (10, 10, 5)) == [False, True, True]
    controller = settle(editor, running)
    assert controller.state.status is Status.PROMPTED
    assert voxels_of(editor.segmentation)[5, 10, 10]
    editor.undo()
    settle(editor, running)
    assert not voxels_of(editor.segmentation).any()
    assert controller.state.status is Status.READY
    editor.redo()
    settle(editor, running)
    assert voxels_of(editor.segmentation)[5, 10, 10]
    assert controller.state.status is Status.PROMPTED


def test_a_parameter_the_effect_sets_comes_back_to_it_once(running, editor):
    editor.setActiveEffectByName("MedSAM2")
    settle(editor, running)
    effect = editor.activeEffect()
    effect.calls.clear()
    effect.self().controller.setTool("box")
    assert effect.calls == ["updateGUIFromMRML"]
    assert effect.self().controller.state.tool.value == "box"


def test_a_parameter_that_a_script_sets_reaches_the_panel(running, editor):
    editor.setActiveEffectByName("MedSAM2")
    editor.activeEffect().setParameter("negative", "1")
    assert editor.activeEffect().self().controller.state.negative


def test_two_editors_are_prompted_apart(running, editor, scene):
    other = running.an_editor()
    editor.setActiveEffectByName("MedSAM2")
    editor.activeEffect().setParameter("tool", "scribble")
    assert other.effectByName("MedSAM2").parameter("tool") == "point"
    assert other.activeEffect() is None
    other.cleanup()


def test_closing_the_scene_while_the_effect_is_active(running, editor, scene):
    editor.setActiveEffectByName("MedSAM2")
    click(editor, (10, 10, 5))
    settle(editor, running)
    effect = editor.activeEffect()
    # As the module does it: the segmentation is given up first, a new node follows.
    editor.setSegmentationNode(None)
    scene.Clear(0)
    editor.setMRMLSegmentEditorNode(scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    assert effect.self().controller.state.status is not Status.FAILED
    effect.self().controller.tick()
    assert not scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")


def test_an_editor_that_is_taken_down_leaves_nothing(running, editor):
    editor.setActiveEffectByName("MedSAM2")
    click(editor, (10, 10, 5))
    settle(editor, running)
    gone = weakref.ref(editor.activeEffect().self().controller)
    editor.setActiveEffectByName("")
    editor.cleanup()
    running.source.worker.queue.clear()
    qt.QCoreApplication.sendPostedEvents(None, 0)
    gc.collect()
    assert running.source.owners == []
    assert gone() is None


# The page -------------------------------------------------------------------------------------------------


@pytest.fixture
def page(running, monkeypatch, tmp_path):
    """The module's page, with a runtime folder of its own in which there is nothing."""
    from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessRunner
    from MedSAM2SegmentLib.Runtime.RuntimeInstaller import RuntimeInstaller

    a_qt.application()
    installer = RuntimeInstaller(tmp_path / "runtime", QProcessRunner(), environment={})
    monkeypatch.setattr("MedSAM2SegmentLib.Worker.WorkerAccess._installers", [installer])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    page = ModuleWidget(str(SOURCE))
    page.setPythonSource()
    yield page
    page.self().cleanup()


def ticks(page) -> bool:
    """Whether the page keeps looking at what it shows."""
    timers = [timer for timer in page.findChildren(qt.QTimer) if timer.active]
    return len(timers) == 1


def test_the_page_is_made_entered_and_left(page):
    page.self().setup()
    assert page.layout().count() == 1 and not ticks(page)
    page.enter()
    assert ticks(page)
    page.exit()
    assert not ticks(page)


def test_train_an_auto_model_leads_to_where_they_are_trained(page, monkeypatch):
    page.self().setup()
    page.enter()
    sections, chosen = [], []
    monkeypatch.setattr(page.self().page.panel, "scrollTo", sections.append)
    monkeypatch.setattr(slicer.util, "selectModule", chosen.append)
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: page.self(), raising=False)
    WorkerAccess().resolve()
    WorkerAccess().resolve("auto")
    assert chosen == ["MedSAM2Segment", "MedSAM2Segment"]
    assert a_qt.wait_for(lambda: sections == ["auto"])
    page.exit()


def test_a_page_that_could_not_be_made_breaks_nothing_else(page):
    page.enter()
    page.exit()
    page.self().cleanup()


def test_a_reloaded_page_works_at_once_and_the_old_one_is_gone(page):
    page.self().setup()
    page.enter()
    old = page.self()
    page.reload()
    qt.QCoreApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)
    assert page.self() is not old
    assert page.layout().count() == 1
    assert ticks(page), "it was entered before, and is not entered once more"
    page.exit()
    assert not ticks(page)


def test_the_module_can_test_itself(running, monkeypatch):
    import sys
    import types

    names = types.SimpleNamespace(instance=lambda: running.factory)
    monkeypatch.setattr(slicer, "qSlicerSegmentEditorEffectFactory", names, raising=False)
    monkeypatch.setattr(slicer, "mrmlScene", running.scene, raising=False)
    test = sys.modules["MedSAM2Segment"].MedSAM2SegmentTest()
    test.assertIn = lambda one, many: _is(one in many)
    test.assertTrue = _is
    test.runTest()


def _is(condition):
    assert condition
