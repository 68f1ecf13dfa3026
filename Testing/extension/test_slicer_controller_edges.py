"""Rare moments: other segmentations, undo between two ticks, completed and hidden segments, nothing found."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Prompts.Gestures import PointGesture  # noqa: E402
from support.scene import a_linear_transform, a_matrix, a_segmentation, a_volume  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


def half_way(user):
    """A propagation that has written some slices and goes on; which."""
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    for _ in range(5):
        user.worker.step()
    user.pass_time()
    return user.slices()


def both_prompted(user):
    user.click((10, 10, 5))
    user.select("B")
    user.click((20, 15, 5))
    user.wait()
    user.select("A")


def choose(user, segmentation):
    """Another segmentation in the Segment Editor, whose first segment has the same ID."""
    user.editor.logic.SetSegmentationNode(segmentation)
    user.editor.logic.SetCurrentSegmentID("A")
    user.segmentation = segmentation


def complete(user, segmentID):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment = user.segmentation.GetSegmentation().GetSegment(segmentID)
    logic.SetSegmentStatus(segment, logic.Completed)


# Another segmentation ---------------------------------------------------------------------------------------


def test_a_removed_segment_is_not_mixed_up_with_one_of_the_same_id_elsewhere(user):
    user.click((10, 10, 5))
    user.wait()
    user.segmentation.GetSegmentation().RemoveSegment("A")
    user.wait()
    choose(user, a_segmentation(user.scene, user.volume, segments=("A", "B")))
    user.wait()
    user.click((10, 10, 5))
    user.wait()
    assert user.slices() == [5]


@pytest.mark.parametrize("isPropagating", [False, True])
def test_an_answer_that_comes_just_after_another_segmentation_was_chosen_is_not_written_there(
    user, isPropagating
):
    if isPropagating:
        half_way(user)
    else:
        user.click((10, 10, 5))
    choose(user, a_segmentation(user.scene, user.volume, segments=("A", "B")))
    user.worker.answer_all()
    user.wait()
    assert user.slices() == []


# Between two ticks ------------------------------------------------------------------------------------------


def test_slices_that_come_just_after_the_click_was_undone_are_not_written(user):
    half_way(user)
    user.editor.undo()
    user.worker.answer_all()
    assert user.slices() == [5]
    user.wait()
    assert user.slices() == [5]


@pytest.mark.parametrize("isNoticed", [False, True])
def test_paint_in_the_middle_of_a_propagation_can_be_undone_and_all_filled_in_again(user, isNoticed):
    half = half_way(user)
    before = user.mask()
    user.editor.saveStateForUndo()
    user.paint(slice(20, 22), slice(2, 4), slice(5, 6))
    if isNoticed:
        user.pass_time()
    user.wait()
    assert len(user.slices()) == 9
    user.undo()
    assert user.slices() == half
    assert np.array_equal(user.mask(), before)
    user.controller.propagate()
    user.wait()
    assert len(user.slices()) == 9


def test_what_else_happens_while_a_prompt_is_dragged_does_not_lose_the_drag(user):
    user.click((10, 10, 5))
    user.wait()
    (node,) = user.prompt_nodes()
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetNthControlPointPositionWorld(0, *user.ras((16, 12, 5)))
    with user.controller.markups.silenced():
        user.controller.markups.add("B", PointGesture(user.ras((20, 15, 6))))
    node.InvokeEvent(node.PointEndInteractionEvent)
    user.wait()
    assert user.mask()[5, 12, 16]
    assert not user.mask()[5, 10, 10]


# Two Segment Editors on one segmentation --------------------------------------------------------------------


@pytest.fixture
def colleague(user):
    """Another Segment Editor on the same volume and segmentation."""
    colleague = SlicerUser(
        user.scene, source=user.source, volume=user.volume, segmentation=user.segmentation, activate=False
    )
    yield colleague
    colleague.controller.cleanup()


def test_who_comes_back_leaves_what_the_other_editor_has_done(user, colleague):
    user.controller.deactivate()
    colleague.controller.activate()
    colleague.wait()
    colleague.click((10, 10, 5))
    colleague.wait()
    colleague.editor.saveStateForUndo()
    colleague.paint(slice(8, 10), slice(9, 12), slice(5, 6), mode="remove")
    colleague.wait()
    colleague.controller.deactivate()
    before = user.mask()
    user.controller.activate()
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert user.editor.savedStates == 0
    user.click((12, 10, 5), positive=False)  # and goes on with it
    user.wait()
    assert not (user.mask() & ~before).any()
    assert user.mask().sum() < before.sum()


def test_only_the_editor_that_was_used_last_answers(user, colleague):
    colleague.controller.activate()
    for one, ijk in ((colleague, (10, 10, 5)), (user, (14, 10, 5)), (colleague, (18, 10, 5))):
        states = user.editor.savedStates, colleague.editor.savedStates
        before = user.mask()
        one.click(ijk)
        user.wait()
        colleague.wait()
        assert user.mask()[ijk[::-1]]
        saved = user.editor.savedStates - states[0], colleague.editor.savedStates - states[1]
        assert saved == ((1, 0) if one is user else (0, 1))
        one.undo()
        assert np.array_equal(user.mask(), before)
        one.redo()
        user.wait()
        colleague.wait()
        assert user.mask()[ijk[::-1]]


def test_an_active_editor_comes_to_a_segmentation_another_one_works_on(user, colleague):
    first = user.segmentation
    choose(user, a_segmentation(user.scene, user.volume, segments=("A", "B")))
    user.wait()
    colleague.controller.activate()
    colleague.click((10, 10, 5))
    colleague.wait()
    choose(user, first)
    user.wait()
    assert user.slices() == [5]
    user.click((14, 10, 6))
    user.wait()
    assert user.slices() == [5, 6]


# Which segments are changed ---------------------------------------------------------------------------------


def test_a_completed_segment_is_neither_propagated_nor_answered_anew(user):
    both_prompted(user)
    before = user.mask("B")
    complete(user, "B")
    user.controller.propagate()
    user.wait()
    assert len(user.slices("A")) == 9
    assert np.array_equal(user.mask("B"), before)
    (_, of_b) = sorted(user.prompt_nodes(), key=lambda node: node.GetName())
    of_b.SetNthControlPointPositionWorld(0, *user.ras((5, 5, 5)))
    user.wait()
    assert "'B' is marked as completed" in user.state.text
    assert np.array_equal(user.mask("B"), before)


def test_a_segment_completed_while_it_is_filled_in_gets_no_more(user):
    half = half_way(user)
    complete(user, "A")
    user.wait()
    assert user.slices() == half


def test_a_hidden_segment_is_not_propagated_unless_it_is_the_selected_one(user):
    user.segmentation.CreateDefaultDisplayNodes()
    both_prompted(user)
    user.segmentation.GetDisplayNode().SetSegmentVisibility("B", False)
    user.controller.propagate()
    user.wait()
    assert (len(user.slices("A")), user.slices("B")) == (9, [5])


# What the user is told --------------------------------------------------------------------------------------


def test_how_many_slices_a_range_can_be_chosen_from_is_known_before_anything_is_found(user):
    assert (user.state.slices, user.state.confidences) == (11, ())


def test_that_the_model_found_nothing_is_shown_until_it_does(user):
    user.click((10, 10, 5), positive=False)
    user.wait()
    assert "found nothing on slice 5" in user.state.text
    user.click((14, 10, 5))
    user.wait()
    assert "nothing" not in user.state.text


def test_that_masking_kept_everything_out_is_shown(user):
    user.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    user.editor.node.SetMaskSegmentID("B")
    user.click((10, 10, 5))
    user.wait()
    assert user.slices() == []
    assert "masking" in user.state.text


def test_a_propagation_without_anything_to_do_reports_it(user):
    user.controller.setValue("range", "5-5")
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    assert "Nothing was left to do" in user.state.text
    user.click((11, 10, 5))
    user.wait()
    assert "Nothing" not in user.state.text


def test_why_a_propagation_ended_is_shown_until_the_user_goes_on(user):
    half_way(user)
    user.worker.die("killed by signal 9")
    user.worker.recover()
    user.wait()
    assert "Killed by signal 9" in user.state.text
    user.click((12, 10, 6))
    user.wait()
    assert "Killed" not in user.state.text


def test_a_prompt_beside_the_volume_is_reported_until_it_is_moved_back(user):
    user.click((10, 10, 5))
    user.wait()
    beside = a_linear_transform(user.scene, a_matrix(origin=(500.0, 0.0, 0.0)))
    user.volume.SetAndObserveTransformNodeID(beside.GetID())
    user.wait()
    assert "outside the volume" in user.state.text
    user.controller.propagate()
    assert "outside the volume" in user.state.text
    (node,) = user.prompt_nodes()
    node.SetNthControlPointPositionWorld(0, *user.ras((12, 10, 5)))
    user.wait()
    assert "outside" not in user.state.text


def test_the_last_prompt_deleted_is_not_propagated_automatically(user):
    user.controller.setValue("autoPropagate", "1")
    user.click((10, 10, 5))
    user.wait()
    asked = []
    (session,) = user.worker.sessions
    session.propagate = lambda *names, **how: asked.append(names)
    (node,) = user.prompt_nodes()
    node.RemoveNthControlPoint(0)
    user.wait()
    assert asked == []


@pytest.mark.parametrize("shape", [(1, 24, 28), (1, 24, 28, 3)], ids=["grey", "colour"])
def test_a_single_picture_is_segmented_and_not_propagated(scene, shape):
    voxels = a_noise(shape).astype(np.uint8 if len(shape) == 4 else np.int16)
    user = SlicerUser(scene, volume=a_volume(scene, voxels=voxels))
    user.wait()
    user.controller.setValue("autoPropagate", "1")
    user.click((10, 10, 0))
    user.wait()
    assert user.slices() == [0]
    assert not user.state.canPropagate
    assert user.state.text.startswith("To correct the mask, click")
    user.controller.propagate()  # by its key
    assert "only one slice" in user.state.text
    user.controller.cleanup()


def test_undo_and_redo_keep_the_names_of_prompts(user):
    user.click((10, 10, 5))
    user.wait()
    user.box((3, 3, 2), (12, 12, 2))
    user.wait()
    user.prompt_nodes()[0].SetName("what the user called it")
    names = [node.GetName() for node in user.prompt_nodes()]
    for _ in range(2):
        user.undo()
        user.undo()
        user.wait()
        assert not user.prompt_nodes()
        user.redo()
        user.redo()
        user.wait()
        assert [node.GetName() for node in user.prompt_nodes()] == names
    user.undo()
    user.undo()
    user.click((10, 10, 5))
    assert [node.GetName() for node in user.prompt_nodes()] == ["A inside points"]
