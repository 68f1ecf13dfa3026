"""Propagation as the user sees it: filling in, stopping, keeping, taking back, going on."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.export.measurements import measure  # noqa: E402
from medsam2_core.imaging.segmentation import Segmentation  # noqa: E402
from MedSAM2SegmentLib.Effect.Progress import durationText  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support.scene import a_matrix, a_volume  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


@pytest.fixture
def user(user):
    user.click((10, 10, 5))
    user.wait()
    return user


def steps(user, count):
    """The worker answers some more, and time goes by."""
    for _ in range(count):
        user.worker.step()
        user.pass_time(0.3)


def test_slices_fill_in_as_they_come(user):
    user.controller.propagate()
    steps(user, 3)
    assert len(user.slices()) == 4
    assert user.state.status is Status.PROPAGATING
    assert user.state.progress == (3, 8)
    assert user.state.canCancel and not user.state.canPropagate
    user.wait()
    assert user.state.status is Status.PROMPTED
    assert user.editor.savedStates == 2


def test_the_volume_of_the_segment_is_told_after_a_propagation_and_follows_edits(scene):
    volume = a_volume(scene, a_matrix(spacing=(0.5, 2.0, 3.0)), voxels=a_noise())
    user = SlicerUser(scene, volume=volume)
    user.wait()
    user.click((10, 10, 5))
    user.wait()
    assert user.state.millilitres is None
    user.controller.propagate()
    user.wait()
    assert user.state.millilitres == pytest.approx(user.mask().sum() * 3.0 / 1000)
    before = user.state.millilitres
    user.paint(slice(0, 4), slice(0, 5), slice(0, 2))
    user.wait()
    assert user.state.millilitres == pytest.approx(user.mask().sum() * 3.0 / 1000)
    assert user.state.millilitres > before
    user.select("B")
    assert user.state.millilitres is None
    user.controller.cleanup()


def test_a_segmentation_scaled_by_its_transform_is_measured_in_the_world(user):
    user.controller.propagate()
    user.wait()
    transform = user.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(arrayToMatrix(a_matrix(spacing=(2.0, 1.0, 1.5))))
    for node in (user.volume, user.segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    user.wait()
    user.wait()
    assert user.state.millilitres == pytest.approx(user.mask().sum() * 3.0 / 1000)


def test_the_methods_text_says_how_the_segment_was_made(user):
    user.controller.propagate()
    user.wait()
    text = user.controller.methodsText()
    assert text.startswith("A was segmented with MedSAM2Segment") and "SAM 2 model embedded" in text
    assert "It was prompted with 1 point." in text and "axial slices" in text and "ICLR 2025" in text
    assert "clipboard" in user.state.text
    user.select("B")
    assert user.controller.methodsText() == ""
    assert "results of this program" in user.state.text


def by_measuring(user, segmentID="A"):
    """Diameters of a segment as the export has them."""
    geometry = VolumeAdapter(user.volume).geometry
    (one,) = measure(Segmentation.from_masks(geometry, {"it": user.mask(segmentID)}))
    return pytest.approx((one.longest.length_mm, one.perpendicular.length_mm))


def at_rest(user):
    """Long enough for the segment to be sent, and for the answer."""
    for _ in range(4):
        user.wait()


def test_diameters_are_measured_when_the_segment_has_come_to_rest(scene):
    volume = a_volume(scene, a_matrix(spacing=(0.5, 2.0, 3.0)), voxels=a_noise())
    user = SlicerUser(scene, volume=volume)
    user.wait()
    user.click((10, 10, 5))
    user.controller.propagate()
    user.worker.answer_all()
    user.pass_time(0.1)
    assert user.state.diameters == (), "not while it still changes"
    at_rest(user)
    assert user.state.diameters == by_measuring(user)
    user.paint(slice(0, 20), slice(0, 5), slice(0, 2))
    user.pass_time(0.1)
    assert user.state.diameters == (), "those of before are not shown"
    at_rest(user)
    assert user.state.diameters == by_measuring(user)
    asked = user.worker.answered
    at_rest(user)
    assert user.worker.answered == asked, "asked once"
    user.select("B")
    at_rest(user)
    assert user.state.diameters == ()
    user.controller.cleanup()


def test_diameters_lie_within_the_slices_that_are_segmented(scene):
    user = SlicerUser(scene)
    user.controller.setValue("stack", "sagittal")
    user.wait()
    user.click((10, 10, 5))
    user.controller.propagate()
    at_rest(user)
    geometry = VolumeAdapter(user.volume).geometry
    (one,) = measure(Segmentation.from_masks(geometry, {"it": user.mask()}), 0)
    assert user.state.diameters == pytest.approx((one.longest.length_mm, one.perpendicular.length_mm))
    user.controller.cleanup()


def test_a_worker_that_is_lost_measures_when_it_is_back(user):
    user.controller.propagate()
    user.wait()
    user.worker.die()
    at_rest_without_worker = user.state.diameters
    user.worker.recover()
    at_rest(user)
    assert at_rest_without_worker == () and user.state.diameters == by_measuring(user)


def test_writes_are_gathered(user):
    user.controller.propagate()
    edits = len(user.editor.edits)
    for _ in range(4):
        user.worker.step()
        user.pass_time(0.01)
    assert len(user.editor.edits) == edits
    user.pass_time(0.3)
    assert len(user.slices()) == 5
    assert len(user.editor.edits) == edits + 2  # the slices below and those above


def test_time_left_is_shown(user):
    user.controller.propagate()
    steps(user, 4)
    assert user.state.remaining == "a few seconds left"
    assert durationText(64) == "about 60 s left"
    assert durationText(200) == "about 3 min left"


def test_cancel_and_keep(user):
    user.controller.propagate()
    steps(user, 3)
    user.controller.cancel()
    assert user.state.status is Status.KEEP_OR_DISCARD
    assert user.state.canKeep and not user.state.canCancel
    kept = user.mask()
    user.wait()
    assert np.array_equal(user.mask(), kept)
    user.controller.keep()
    assert user.state.status is Status.PROMPTED
    assert np.array_equal(user.mask(), kept)
    user.undo()
    assert user.slices() == [5]


def test_a_mask_that_is_sent_again_counts_once(user):
    user.worker.isResending = True
    user.controller.propagate()
    steps(user, 3)
    user.controller.cancel()
    assert len(user.slices()) == 4  # the prompted one is not written again
    assert "after 3 slices" in user.state.text


def test_cancel_and_discard_is_exact_and_one_further_step(user):
    user.paint(slice(0, 4), slice(0, 4), slice(4, 5))
    before = user.mask()
    user.controller.propagate()
    steps(user, 4)
    user.controller.cancel()
    filled = user.mask()
    user.controller.discard()
    assert np.array_equal(user.mask(), before)
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert [one.n for one in user.state.confidences if one.confidence is not None] == [5]
    user.undo()
    assert np.array_equal(user.mask(), filled)
    user.redo()
    assert np.array_equal(user.mask(), before)
    user.controller.propagate()
    user.wait()
    assert user.slices() == list(range(1, 10))


def test_discard_gives_neighbours_back_what_was_overwritten(user):
    user.paint(slice(8, 14), slice(8, 14), slice(6, 8), segmentID="B")
    before = user.mask("A"), user.mask("B")
    user.controller.propagate()
    steps(user, 6)
    assert not np.array_equal(user.mask("B"), before[1])
    user.controller.cancel()
    user.controller.discard()
    assert np.array_equal(user.mask("A"), before[0])
    assert np.array_equal(user.mask("B"), before[1])


def test_cancel_before_anything_came_asks_nothing(user):
    user.controller.propagate()
    user.controller.cancel()
    assert user.state.status is Status.PROMPTED


def test_a_click_keeps_what_a_stopped_propagation_has_filled_in(user):
    user.controller.propagate()
    steps(user, 3)
    user.controller.cancel()
    user.click((20, 20, 5))
    assert user.state.status is not Status.KEEP_OR_DISCARD


def test_several_segments_go_together(user):
    user.select("B")
    user.click((20, 18, 6))
    user.wait()
    user.controller.propagate()
    user.wait()
    assert user.slices("A") == list(range(1, 10))
    assert user.slices("B") == list(range(2, 11))
    before = user.editor.savedStates
    user.undo()
    assert user.slices("A") == [5] and user.slices("B") == [6]
    assert user.editor.savedStates == before


def test_a_click_in_the_middle_is_answered_and_the_rest_goes_on(user):
    user.controller.propagate()
    steps(user, 2)
    user.click((20, 20, 5))
    user.wait()
    assert user.mask()[5, 20, 20]
    assert user.slices() == list(range(1, 10))
    assert user.state.status is Status.PROMPTED
    user.undo()  # the click, and what came after it
    assert not user.mask()[5, 20, 20]
    assert len(user.slices()) == 3
    user.undo()
    assert user.slices() == [5]
    user.redo()
    user.redo()
    assert user.slices() == list(range(1, 10))
    assert user.mask()[5, 20, 20]


def test_undo_in_the_middle_ends_it(user):
    user.controller.propagate()
    steps(user, 3)
    user.undo()
    assert user.slices() == [5]
    assert user.state.status is Status.PROMPTED
    user.wait()
    assert user.slices() == [5]
    assert len(user.prompts()) == 1


def test_a_worker_that_is_lost_leaves_what_has_come(user):
    user.controller.propagate()
    steps(user, 3)
    user.worker.die("killed by signal 9")
    kept = user.mask()
    assert len(user.slices()) == 4
    user.worker.recover()
    user.wait()
    assert np.array_equal(user.mask(), kept)
    assert "killed by signal 9" in user.state.text.lower()
    user.controller.propagate()
    user.wait()
    assert user.slices() == list(range(1, 10))


def test_range_and_direction(user):
    user.controller.setValue("direction", "forward")
    user.controller.propagate()
    user.wait()
    assert user.slices() == [5, 6, 7, 8, 9]
    user.undo()
    user.controller.setValue("direction", "both")
    user.controller.setValue("range", "4..6")
    user.controller.propagate()
    user.wait()
    assert user.slices() == [4, 5, 6]


def test_a_range_that_does_not_exist_is_reported(user):
    user.controller.setValue("range", "40..60")
    user.controller.propagate()
    assert "do not exist" in user.state.text
    user.controller.setValue("range", "nonsense")
    assert "first and the last slice" in user.state.text
    assert user.state.values["range"] == "40..60"


def test_nothing_to_propagate(scene):
    user = SlicerUser(scene)
    user.wait()
    user.controller.propagate()
    assert "Nothing to propagate" in user.state.text


def test_automatic_propagation_is_undone_with_its_click(user):
    user.controller.setValue("autoPropagate", "1")
    user.click((20, 20, 5))
    user.wait()
    assert user.slices() == list(range(1, 10))
    user.undo()
    assert user.slices() == [5]
    assert len(user.prompts()[0].points) == 1


def test_a_correction_stops_what_followed_the_last_one_and_begins_around_itself(user):
    user.controller.setValue("autoPropagate", "1")
    user.click((20, 20, 5))
    steps(user, 4)
    (session,) = user.worker.sessions
    assert user.state.status is Status.PROPAGATING and session.outward
    found = user.slices()
    assert 5 in found and len(found) < 9
    user.click((4, 4, 5), positive=False)
    assert user.state.status is Status.ENCODING, "stopped by the click, not by its answer"
    assert not user.state.canKeep
    user.wait()
    assert user.slices() == list(range(1, 10))
    user.undo()
    assert user.slices() == found and len(user.prompts()[0].points) == 2
    user.undo()
    assert user.slices() == [5] and len(user.prompts()[0].points) == 1


def test_what_followed_a_correction_is_cancelled_and_discarded_without_it(user):
    user.controller.setValue("autoPropagate", "1")
    user.click((20, 20, 5))
    steps(user, 4)
    assert len(user.slices()) > 1
    user.controller.cancel()
    assert user.state.canKeep
    user.controller.discard()
    user.wait()
    assert user.slices() == [5] and user.mask()[5, 20, 20]
    assert len(user.prompts()[0].points) == 2


def test_what_follows_a_prompt_that_changed_no_voxel_is_a_step_of_its_own(user):
    user.controller.setValue("autoPropagate", "1")
    user.look_at(5)
    user.controller.finaliseSlice()
    user.wait()
    assert user.slices() == list(range(1, 10))
    user.undo()
    assert user.slices() == [5]


def test_a_click_on_another_segment_pauses_the_first_one_only_shortly(user):
    user.controller.setValue("autoPropagate", "1")
    user.click((20, 20, 5))
    steps(user, 4)
    user.select("B")
    user.click((4, 4, 5))
    user.wait()
    assert user.slices("A") == user.slices("B") == list(range(1, 10))


def test_a_click_does_not_stop_a_propagation_that_was_asked_for(user):
    user.controller.propagate()
    steps(user, 2)
    assert not user.worker.sessions[0].outward
    user.controller.setValue("autoPropagate", "1")
    user.click((22, 20, 5))
    assert user.state.status is Status.PROPAGATING
    user.wait()
    assert user.slices() == list(range(1, 10))


def test_the_next_weakest_slice(user):
    user.controller.propagate()
    user.wait()
    seen = []
    for _ in range(8):
        user.controller.nextWeakest()
        seen.append(user.state.current)
    assert set(seen) == {1, 2, 3, 4, 6, 7, 8, 9}
    assert set(seen[:2]) == {1, 9}  # the farthest from the click are the least sure
    user.controller.nextWeakest()
    assert user.state.current == seen[0]


def test_the_strip_is_clicked(user):
    assert [one.prompted for one in user.state.confidences].count(True) == 1
    user.controller.jumpTo(8)
    user.pass_time()
    assert user.state.current == 8
    assert user.worker.sessions[0].prefetched == 8


def test_another_effect_ends_it_and_keeps_what_has_come(user):
    user.controller.propagate()
    steps(user, 3)
    user.controller.deactivate()
    kept = user.mask()
    user.wait()
    assert np.array_equal(user.mask(), kept)
    assert len(user.slices()) == 4
