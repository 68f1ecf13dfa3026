"""Settings, views, volumes, segmentations and scenes change under the effect."""

import gc
import weakref

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Effect.EffectController import IDLE_RELEASE, EffectController  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from support.in_process_worker import InProcessSource  # noqa: E402
from support.scene import a_display, a_segmentation, a_volume, an_empty_scene  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


def session(user):
    (session,) = user.worker.sessions
    return session


def test_another_model_is_sent_everything_again(user):
    user.click((10, 10, 5))
    user.wait()
    before = session(user)
    user.controller.setValue("model", "tiny")
    user.wait()
    assert before.is_closed
    assert session(user).settings.model == "tiny"
    assert list(session(user).prompts("A")) == [5]
    assert user.slices() == [5]


def test_the_window_as_displayed_follows_the_prompts_and_leaves_the_display(user):
    display = a_display(user.volume, 400, 40)
    user.controller.setValue("window", "displayed")
    user.click((10, 10, 5))
    user.wait()
    assert session(user).settings.window == "400,40"
    first = session(user)
    display.SetWindowLevel(200, 90)
    user.wait()
    assert session(user) is first  # while the user is still dragging nothing is asked
    user.click((11, 10, 5))
    user.wait()
    assert session(user).settings.window == "200,90"
    assert (display.GetWindow(), display.GetLevel()) == (200, 90)


def test_a_window_that_means_nothing_is_refused(user):
    user.controller.setValue("window", "soft")
    assert "WIDTH,LEVEL" in user.state.text
    assert user.state.values["window"] == "auto"
    user.controller.setValue("window", "400,40")
    assert ("400,40", "400,40") in user.state.choices["window"]


def test_the_first_prompt_decides_how_the_volume_is_cut(user):
    sagittal = slicer.vtkMRMLSliceNode.SafeDownCast(
        user.scene.AddNewNodeByClass("vtkMRMLSliceNode", "Yellow")
    )
    sagittal.SetLayoutName("Yellow")
    sagittal.SetOrientationToSagittal()
    from MedSAM2SegmentLib.Prompts.Gestures import PointGesture

    user.controller.onGesture(PointGesture(user.ras((10, 10, 5))), sagittal)
    user.wait()
    assert np.flatnonzero(user.mask().any(axis=(0, 1))).tolist() == [10]
    user.click((12, 10, 5))  # in the axial view: it lies on another sagittal slice
    user.wait()
    assert np.flatnonzero(user.mask().any(axis=(0, 1))).tolist() == [10, 12]


def test_a_box_across_the_slices_is_refused_with_a_line(user):
    user.controller.setValue("stack", "sagittal")
    user.box((3, 4, 2), (9, 8, 2))
    assert user.prompts() == ()
    assert "a box lies on one slice" in user.state.text


def test_another_stack_asks_anew(user):
    user.click((10, 10, 5))
    user.wait()
    user.controller.setValue("stack", "sagittal")
    user.wait()
    assert list(session(user).prompts("A")) != []
    assert user.mask()[2:9, 10, 10].any()


def test_another_volume_changes_no_voxel(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.editor.logic.SetSourceVolumeNode(a_volume(user.scene, voxels=a_noise(seed=5), name="Later"))
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert session(user).prompts("A")[5].known is not None
    assert len(user.worker.volumes) == 1
    user.controller.propagate()
    user.wait()
    assert len(user.slices()) == 9


def test_voxels_that_are_modified_are_sent_again(user):
    before = user.worker.volumes[0]
    user.volume.GetImageData().Modified()
    user.wait()
    assert user.worker.volumes[0] is not before
    assert len(user.worker.volumes) == 1


def test_another_segmentation_has_its_own_prompts(user):
    user.click((10, 10, 5))
    user.wait()
    other = a_segmentation(user.scene, user.volume, segments=("A",))
    user.editor.logic.SetSegmentationNode(other)
    user.editor.logic.SetCurrentSegmentID("A")
    user.wait()
    assert user.state.status is Status.READY
    first, user.segmentation = user.segmentation, other
    user.click((5, 5, 3))
    user.wait()
    assert user.slices() == [3]
    user.segmentation = first
    assert user.slices() == [5]
    user.editor.logic.SetSegmentationNode(first)
    user.editor.logic.SetCurrentSegmentID("A")
    user.wait()
    assert user.state.status is Status.PROMPTED
    assert user.slices() == [5]


@pytest.mark.parametrize("isPartly", [False, True])
def test_what_is_missing_from_another_vtk_segmentation_was_not_erased(user, isPartly):
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    expected = user.mask()
    other = slicer.vtkSegmentation()
    other.DeepCopy(user.segmentation.GetSegmentation())
    user.segmentation.SetAndObserveSegmentation(other)
    if isPartly:
        user.paint(slice(0, 10), slice(0, 24), slice(0, 11), mode="remove")
    else:
        user.paint(slice(0, 28), slice(0, 24), slice(0, 11), mode="remove")
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    assert np.array_equal(user.mask(), expected)
    user.undo()
    user.undo()
    assert user.mask().any() == isPartly


def test_a_saved_scene_goes_on_where_it_was(user, tmp_path):
    user.click((10, 10, 5))
    user.box((3, 4, 2), (9, 8, 2))
    user.wait()
    user.controller.propagate()
    user.wait()
    before = user.mask()
    user.controller.cleanup()
    later = EffectController(user.editor, InProcessSource(), lambda: user.time)
    user.controller, user.source = later, later._session.source
    later.activate()
    user.wait()
    assert np.array_equal(user.mask(), before)
    words = session(user).prompts("A")
    assert list(words) == [2, 5]
    assert user.state.status is Status.PROMPTED
    assert user.editor.savedStates == 3
    for node in user.prompt_nodes():
        if node.IsA("vtkMRMLMarkupsFiducialNode"):
            node.SetNthControlPointPositionWorld(0, *user.ras((20, 18, 5)))
    user.wait()
    assert not user.mask()[5, 10, 10] and user.mask()[5, 18, 20]  # the mask went along with its prompt


def test_prompts_of_a_scene_without_its_masks_are_answered(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.controller.cleanup()
    user.paint(slice(None), slice(None), slice(None), mode="remove")
    assert not user.mask().any()
    later = EffectController(user.editor, InProcessSource(), lambda: user.time)
    user.controller, user.source = later, later._session.source
    later.activate()
    user.wait()
    assert np.array_equal(user.mask(), before)


def test_the_scene_is_closed(user):
    user.click((10, 10, 5))
    user.controller.propagate()
    user.scene.Clear(True)
    user.wait()
    assert user.state.status in (Status.NO_VOLUME, Status.NO_SEGMENT)
    assert user.worker.sessions == user.worker.volumes == []


def test_another_effect_hides_the_prompts_and_keeps_the_worker_for_a_while(user):
    user.click((10, 10, 5))
    user.wait()
    user.controller.deactivate()
    (node,) = user.prompt_nodes()
    assert not node.GetDisplayNode().GetVisibility()
    user.pass_time(10)
    assert len(user.source.owners) == 1
    user.pass_time(IDLE_RELEASE + 1)
    assert user.source.owners == []
    before = user.mask()
    user.controller.activate()
    user.wait()
    assert node.GetDisplayNode().GetVisibility()
    assert np.array_equal(user.mask(), before)
    assert len(user.source.owners) == 1


def test_the_user_paints_in_another_effect_and_undoes_it(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.controller.deactivate()
    user.paint(slice(0, 5), slice(0, 5), slice(5, 6))
    user.editor.undo()
    user.controller.activate()
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert len(user.prompts()) == 1


def test_two_segment_editors_share_a_worker(user):
    other = SlicerUser(user.scene, source=user.source)
    other.wait()
    user.click((10, 10, 5))
    other.click((5, 5, 3))
    user.wait()
    other.pass_time()
    assert user.slices() == [5]
    assert other.slices() == [3]
    assert len(user.source.owners) == 2
    other.controller.cleanup()
    assert len(user.source.owners) == 1


def test_nothing_stays_behind():
    scene = an_empty_scene()
    user = SlicerUser(scene)
    user.wait()
    user.click((10, 10, 5))
    user.controller.propagate()
    nodes = scene.GetNumberOfNodes()
    user.controller.cleanup()
    assert scene.GetNumberOfNodes() == nodes
    assert user.source.owners == user.worker.listeners == user.worker.sessions == []
    gone = weakref.ref(user.controller)
    user.controller = None
    user.worker.queue.clear()
    gc.collect()
    assert gone() is None


def test_what_was_erased_comes_back_where_the_user_asks_for_it(scene):
    user = SlicerUser(scene)
    user.click((10, 10, 5))
    user.wait()
    user.paint(slice(8, 10), slice(10, 11), slice(5, 6), mode="remove")
    user.click((26, 22, 5))
    user.wait()
    assert not user.mask()[5, 10, 9]  # far from there, it is not put back
    user.click((9, 10, 5))
    user.wait()
    assert user.mask()[5, 10, 9]


def test_installed_models_can_be_chosen(scene):
    user = SlicerUser(scene)
    user.worker.models = [
        {"name": "embedded", "title": "Embedded", "installed": True},
        {"name": "large", "title": "SAM 2.1 large", "installed": True},
        {"name": "tiny", "title": "SAM 2.1 tiny", "installed": False},
    ]
    user.wait()
    assert user.state.choices["model"] == (("embedded", "Embedded"), ("large", "SAM 2.1 large"))


def test_another_worker_is_taken_when_the_user_chooses_one(user):
    user.click((10, 10, 5))
    user.wait()
    before, mask = session(user), user.mask()
    user.source.changed = True
    user.wait()
    assert session(user) is not before
    assert len(user.source.owners) == 1
    assert list(session(user).prompts("A")) == [5]
    assert np.array_equal(user.mask(), mask)
