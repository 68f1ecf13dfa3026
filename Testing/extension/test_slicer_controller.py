"""The controller between prompts, session and segments, with a worker that answers when it is told to."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import DownloadError, PromptError  # noqa: E402
from medsam2_core.version import __version__  # noqa: E402
from medsam2_core.worker.client import WorkerState  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status, Tool  # noqa: E402
from support.in_process_worker import InProcessSource  # noqa: E402
from support.scene import a_sequence_proxy, a_volume, a_warp  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


def test_a_click_is_answered_on_its_slice_and_nowhere_else(user):
    user.click((10, 10, 5))
    assert user.state.status is Status.ENCODING
    user.wait()
    assert user.slices() == [5]
    assert user.mask()[5, 10, 10]
    assert not user.mask("B").any()
    assert user.state.status is Status.PROMPTED


def test_propagation_fills_the_neighbours_as_one_step_of_undo(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.controller.propagate()
    assert user.state.status is Status.PROPAGATING
    user.wait()
    assert user.slices() == list(range(1, 10))
    assert user.state.status is Status.PROMPTED
    user.undo()
    assert np.array_equal(user.mask(), before)
    user.undo()
    assert not user.mask().any()
    assert user.prompts() == ()
    user.redo()
    user.redo()
    assert user.slices() == list(range(1, 10))
    assert len(user.prompts()) == 1


# Where the user stands --------------------------------------------------------------------------------------


def test_the_first_line_explains_what_to_click(user):
    assert user.state.status is Status.READY
    assert user.state.text == "Click the structure in a slice view."
    assert user.state.canPrompt and not user.state.canPropagate


def test_without_a_volume(scene):
    user = SlicerUser(scene)
    user.editor.logic.SetSourceVolumeNode(None)
    user.controller.update()
    assert user.state.status is Status.NO_VOLUME
    user.click((3, 3, 3))
    assert user.prompts() == ()


def test_without_a_segment(scene):
    user = SlicerUser(scene, segments=())
    assert user.state.status is Status.NO_SEGMENT
    user.click((3, 3, 3))
    user.controller.propagate()
    user.controller.finaliseSlice()
    user.controller.clearPrompts()
    user.wait()
    assert user.state.status is Status.NO_SEGMENT


def test_without_a_segment_there_is_nothing_to_report(scene):
    source = InProcessSource()
    source.worker.state, source.worker.report = WorkerState.STARTING, "the log of the worker"
    user = SlicerUser(scene, source=source, segments=())
    assert user.state.status is Status.NO_SEGMENT
    assert user.state.details == ""


def test_a_frame_of_a_sequence_is_refused_with_the_way_out(scene):
    user = SlicerUser(scene, volume=a_sequence_proxy(scene))
    assert user.state.status is Status.VOLUME_REFUSED
    assert "sequence" in user.state.text
    assert user.state.action == "Copy this frame"


def test_a_warped_volume_is_refused_until_its_transform_is_hardened(scene):
    user = SlicerUser(scene, volume=a_volume(scene, voxels=a_noise(), transform=a_warp(scene)))
    assert user.state.status is Status.VOLUME_REFUSED
    assert user.state.action == "Harden transform"
    user.controller.resolve()
    assert user.state.status is not Status.VOLUME_REFUSED


def test_without_a_runtime(scene):
    source = InProcessSource(trouble="the runtime is not installed yet")
    user = SlicerUser(scene, source=source)
    assert user.state.status is Status.NO_RUNTIME
    assert user.state.action == "Install…"
    user.controller.resolve()
    assert source.resolved == 1
    source.installing = True
    user.pass_time()
    assert user.state.status is Status.INSTALLING
    source.trouble = ""
    user.wait()
    assert user.state.status is Status.READY


def test_a_click_while_the_worker_starts_is_answered_when_it_is_there(scene):
    source = InProcessSource()
    source.worker.state = WorkerState.STARTING
    user = SlicerUser(scene, source=source)
    user.click((10, 10, 5))
    assert user.state.status is Status.STARTING
    assert not user.mask().any()
    source.worker._become(WorkerState.READY)
    user.wait()
    assert user.slices() == [5]


def test_a_click_while_the_volume_is_sent(scene):
    user = SlicerUser(scene)
    volume = user.worker.volumes[0]
    volume.is_there, volume.received = False, 40
    user.click((10, 10, 5))
    assert user.state.status is Status.SENDING
    assert user.state.progress == (40, 100)
    volume.is_there = True
    user.controller.tick()
    assert user.state.status is Status.LOADING
    user.wait()
    assert user.slices() == [5]


def test_a_model_that_is_downloaded(scene):
    user = SlicerUser(scene)
    user.worker.sessions[0].progress = ("downloading", 10, 90)
    user.controller.tick()
    assert user.state.status is Status.DOWNLOADING
    assert user.state.progress == (10, 90)


def test_a_model_that_cannot_be_had(scene):
    user = SlicerUser(scene)
    user.worker.sessions[0].requests.clear()
    user.worker.refusal = DownloadError("no network: connect, or choose the embedded model")
    user.wait()
    assert user.state.status is Status.FAILED
    assert user.state.action == "Restart"
    assert "No network" in user.state.text
    user.click((10, 10, 5))
    user.controller.resolve()
    user.wait()
    assert user.slices() == [5]


def test_a_worker_that_is_lost_comes_back_by_itself(user):
    user.click((10, 10, 5))
    user.worker.die("out of memory")
    user.pass_time()
    assert user.state.status is Status.WORKER_LOST
    assert "out of memory" in user.state.text
    user.click((4, 4, 7))
    user.worker.recover()
    user.wait()
    assert user.slices() == [5, 7]


def test_a_worker_that_is_given_up(user):
    user.worker._become(WorkerState.FAILED)
    user.worker.problem = "the worker was lost 3 times"
    user.pass_time()
    assert user.state.status is Status.FAILED
    user.click((10, 10, 5))
    assert user.prompts()
    user.controller.resolve()
    user.wait()
    assert user.worker.starts == 1
    assert user.slices() == [5]


def test_what_the_model_refuses_is_reported_once_and_not_asked_again(user):
    user.worker.refusal = PromptError("two boxes on slice 5")
    user.click((10, 10, 5))
    user.wait()
    assert "Two boxes" in user.state.text
    asked = user.worker.answered
    user.wait()
    assert user.worker.answered == asked
    user.click((12, 10, 5))
    user.wait()
    assert user.slices() == [5]


# Prompts ----------------------------------------------------------------------------------------------------


def test_a_negative_click_takes_away(user):
    user.click((10, 10, 5))
    user.wait()
    user.click((12, 10, 5), positive=False)
    user.wait()
    assert not user.mask()[5, 10, 12]
    assert user.mask()[5, 10, 8]


def test_box_and_scribble(user):
    user.controller.setTool("box")
    assert user.state.tool is Tool.BOX
    user.box((3, 4, 2), (9, 8, 2))
    user.scribble([(12, 12, 6), (16, 12, 6), (20, 12, 6)])
    user.wait()
    assert user.slices() == [2, 6]
    assert user.mask()[2, 4:9, 3:10].all()


def test_a_click_outside_the_volume_is_refused_with_a_line(user):
    user.click((10, 100, 5))
    assert user.prompts() == ()
    assert "outside the volume" in user.state.text


def test_a_prompt_that_is_moved_takes_its_mask_along(user):
    user.click((10, 10, 5))
    user.wait()
    (node,) = user.prompt_nodes()
    node.SetNthControlPointPositionWorld(0, *user.ras((15, 15, 7)))
    user.wait()
    assert user.slices() == [7]
    user.undo()
    assert user.slices() == [5]
    assert node.GetNthControlPointPositionWorld(0)[2] == pytest.approx(5)


def test_a_prompt_that_is_deleted_takes_its_mask_along(user):
    user.click((10, 10, 5))
    user.wait()
    user.scene.RemoveNode(user.prompt_nodes()[0])
    user.wait()
    assert not user.mask().any()
    user.undo()
    assert user.slices() == [5]
    assert len(user.prompts()) == 1


def test_cleared_prompts_leave_the_mask(user):
    user.click((10, 10, 5))
    user.wait()
    before = user.mask()
    user.controller.clearPrompts()
    user.wait()
    assert user.prompts() == ()
    assert np.array_equal(user.mask(), before)
    user.click((20, 20, 5))
    user.wait()
    assert (before & user.mask()).sum() == before.sum()


def test_prompts_of_one_slice_are_deleted_with_their_mask_in_one_step(user):
    user.click((10, 10, 5))
    user.box((4, 4, 7), (14, 14, 7))
    user.click((9, 9, 7), positive=False)
    user.wait()
    before, prompts = user.mask(), user.prompts()
    assert {one.n: one.kinds for one in user.state.confidences if one.prompted} == {
        5: "points 1+",
        7: "box, points 1-",
    }
    user.controller.clearSlice(7)
    user.wait()
    assert user.slices() == [5]
    assert np.array_equal(user.mask()[5], before[5])
    assert [one.n for one in user.state.confidences if one.prompted] == [5]
    user.undo()
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert user.prompts() == prompts
    user.redo()
    user.wait()
    assert user.slices() == [5]


def test_prompts_of_a_slice_of_a_completed_segment_stay(user):
    user.click((10, 10, 5))
    user.wait()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(user.segmentation.GetSegmentation().GetSegment("A"), logic.Completed)
    user.controller.clearSlice(5)
    user.wait()
    assert "completed" in user.state.text
    assert user.slices() == [5]
    assert len(user.prompts()) == 1


def test_the_last_prompts_can_be_deleted_by_slice_and_another_slice_has_none_to_delete(user):
    user.click((10, 10, 5))
    user.wait()
    user.controller.clearSlice(8)
    user.wait()
    assert user.slices() == [5]
    user.controller.clearSlice(5)
    user.wait()
    assert not user.mask().any()
    assert not user.state.canClear


def test_prompts_belong_to_their_segment(user):
    user.click((6, 6, 5))
    user.select("B")
    user.click((20, 18, 5))
    user.wait()
    assert user.mask("A")[5, 6, 6] and not user.mask("A")[5, 18, 20]
    assert user.mask("B")[5, 18, 20] and not user.mask("B")[5, 6, 6]


def test_an_answer_to_older_prompts_is_dropped(user):
    user.click((10, 10, 5))
    user.click((11, 10, 5), positive=False)
    user.worker.step()
    assert not user.mask().any()
    user.wait()
    assert user.slices() == [5]
    user.undo()
    assert not user.mask().any()
    assert user.prompts() == ()


def test_an_answer_for_a_segment_that_is_gone_is_dropped(user):
    user.click((10, 10, 5))
    user.segmentation.GetSegmentation().RemoveSegment("A")
    user.wait()
    assert not user.mask("B").any()
    assert user.prompt_nodes() == []


def test_a_completed_segment_is_left_alone(user):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(user.segmentation.GetSegmentation().GetSegment("A"), logic.Completed)
    user.click((10, 10, 5))
    assert "completed" in user.state.text
    assert user.prompts() == ()


def test_a_hidden_segment_is_asked_about_as_slicer_does(user):
    user.segmentation.GetDisplayNode().SetSegmentVisibility("A", False)
    user.click((10, 10, 5))
    user.wait()
    assert user.prompts() == ()
    assert not user.mask().any()


def test_a_written_segment_records_how_it_was_made(user):
    user.click((10, 10, 5))
    user.wait()
    segment = user.segmentation.GetSegmentation().GetSegment("A")
    assert user.tag(segment, "DICOM.SegmentAlgorithmType") == "SEMIAUTOMATIC"
    name = user.tag(segment, "DICOM.SegmentAlgorithmName")
    assert name == f"MedSAM2Segment {__version__} embedded"
    assert user.tag(user.segmentation.GetSegmentation().GetSegment("B"), "DICOM.SegmentAlgorithmType") == ""


# What the user made by hand ---------------------------------------------------------------------------------


def test_a_painted_slice_is_final(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.look_at(5)
    user.controller.finaliseSlice()
    user.wait()
    assert user.state.confidences[5].final
    painted = user.mask()
    user.controller.propagate()
    user.wait()
    assert np.array_equal(user.mask()[5], painted[5])
    assert user.slices() == list(range(1, 10))
    user.controller.finaliseSlice()
    user.wait()
    assert not user.state.confidences[5].final


def test_the_segment_as_a_prompt(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.look_at(5)
    user.controller.useSegmentAsPrompt()
    user.wait()
    assert user.state.confidences[5].prompted
    user.controller.propagate()
    user.wait()
    assert user.mask()[4, 3:8, 3:8].all()


def test_an_empty_segment_is_no_prompt(user):
    user.look_at(5)
    user.controller.useSegmentAsPrompt()
    assert "empty on this slice" in user.state.text


def test_the_paint_of_the_user_survives_the_model(user):
    user.paint(slice(8, 12), slice(8, 9), slice(5, 6))
    painted = user.mask()
    user.click((10, 10, 5))
    user.wait()
    user.click((10, 8, 5), positive=False)
    user.wait()
    assert (user.mask() & painted).sum() == painted.sum()
