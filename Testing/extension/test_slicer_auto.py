"""Auto in the effect: named, coloured segments in one step of undo, and predicted prompts to be corrected."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.auto.predictions import AutoPrediction  # noqa: E402
from medsam2_core.errors import CheckpointError  # noqa: E402
from medsam2_core.imaging.slice_mask import SliceMask  # noqa: E402
from medsam2_core.prompts import Box  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Prompts import PromptNodes  # noqa: E402
from support.auto_predictions import KIDNEY, a_model, a_prediction, kidney_and_cyst  # noqa: E402
from support.scene import a_linear_transform, a_volume, geometries  # noqa: E402
from support.slicer_user import SlicerUser, a_noise  # noqa: E402


class AutoUser(SlicerUser):
    """One who has an Auto model."""

    def __init__(self, scene, *, models=None, **how):
        super().__init__(scene, activate=False, **how)
        self.worker.autoModels = [a_model()] if models is None else models
        self.worker.predict = kidney_and_cyst
        self.controller.activate()
        self.wait()

    def named(self, name):
        """ID of the segment of that name; None when there is none."""
        segmentation = self.segmentation.GetSegmentation()
        return segmentation.GetSegmentIdBySegmentName(name) or None

    def names(self):
        segmentation = self.segmentation.GetSegmentation()
        return [segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()]

    def masks(self):
        return {one: self.mask(one) for one in self.segmentation.GetSegmentation().GetSegmentIDs()}

    def boxes(self, name):
        segmentID = self.named(name)
        return [
            node
            for node in self.prompt_nodes()
            if PromptNodes.segmentOf(node) == segmentID and PromptNodes.roleOf(node) == PromptNodes.BOX
        ]

    def session(self):
        return self.worker.sessions[0]

    def auto(self, n=None):
        """Press a button of Auto, and wait."""
        if n is None:
            self.controller.autoVolume()
        else:
            self.look_at(n)
            self.controller.autoSlice()
        self.wait()


@pytest.fixture
def user(finder):
    return finder


@pytest.fixture
def painter(scene):
    """Has two segments; a block is painted in the first."""
    user = AutoUser(scene, segments=("kidney", "other"))
    user.paint(slice(6, 16), slice(7, 12), slice(4, 6), segmentID="kidney")
    user.paint(slice(8, 12), slice(9, 14), slice(5, 7), segmentID="other")
    user.controller.tick()
    yield user
    user.controller.cleanup()


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


# What is made -----------------------------------------------------------------------------------------------


def test_without_a_segment_auto_can_be_pressed_and_makes_them(user):
    assert user.state.status is Status.NO_SEGMENT
    assert "or press Auto" in user.state.text
    assert user.state.auto.models == (("organs", "Organs (kidney, cyst)"),)
    assert user.state.auto.canFindSlice and user.state.auto.canFindVolume
    user.auto()
    assert user.names() == ["kidney", "cyst"]
    assert user.slices(user.named("kidney")) == [3, 4, 5, 6, 7]
    assert user.slices(user.named("cyst")) == [5, 6]
    assert user.mask(user.named("kidney"))[3, 9, 8]
    assert user.mask(user.named("cyst"))[5, 14, 20]
    assert user.state.auto.text == "kidney 0.80, cyst 0.80; not found: spleen"


def test_segments_have_name_colour_code_and_how_they_were_made(user):
    user.auto()
    segment = user.segmentation.GetSegmentation().GetSegment(user.named("kidney"))
    assert segment.GetColor() == pytest.approx((0.2, 0.4, 0.6))
    assert user.tag(segment, "TerminologyEntry") == KIDNEY
    assert user.tag(segment, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
    name = user.tag(segment, "DICOM.SegmentAlgorithmName")
    assert name.startswith("MedSAM2Segment ")
    assert name.endswith(" Organs")
    assert len(name) <= 64


def test_nobody_had_chosen_a_segment_so_the_first_is_chosen(user):
    user.auto()
    assert user.editor.selectedSegmentID() == user.named("kidney")
    assert user.state.status is Status.PROMPTED
    assert user.state.canPrompt


def test_what_is_chosen_stays_chosen(painter):
    painter.select("other")
    painter.auto()
    assert painter.editor.selectedSegmentID() == "other"


def test_one_slice_is_asked_about_and_written(user):
    asked = []
    user.worker.predict = lambda session, request: asked.append(request) or kidney_and_cyst(session, request)
    user.auto(6)
    assert [(request.first, request.last, request.model) for request in asked] == [
        (6, 6, "/models/organs.medsam2auto")
    ]
    assert user.slices(user.named("kidney")) == user.slices(user.named("cyst")) == [6]


def test_other_slices_are_added_to_the_same_segment(user):
    for n in (6, 4, 5):
        user.auto(n)
    assert user.names() == ["kidney", "cyst"]
    assert user.slices(user.named("kidney")) == [4, 5, 6]
    assert user.slices(user.named("cyst")) == [5, 6]
    assert len(user.boxes("kidney")) == 3


def test_progress_is_shown_while_it_looks(user):
    user.controller.autoVolume()
    assert user.state.status is Status.FINDING
    assert user.state.canCancel
    assert not user.state.auto.canFindSlice
    for _ in range(4):
        user.worker.step()
        user.pass_time(0.5)
    assert user.state.progress == (4, 11)
    assert user.state.text == "Auto: 4 of 11 slices. Cancel stops, and leaves everything as it is."
    assert user.state.remaining == "a few seconds left"
    assert user.names() == [], "nothing is written before all is known"
    user.wait()
    assert user.state.progress is None


def test_not_too_many_prompts_come_into_the_scene(user):
    every = range(40)
    picture = a_volume(user.scene, voxels=a_noise((40, 24, 28)), name="Long")
    user.segmentation.SetReferenceImageGeometryParameterFromVolumeNode(picture)
    user.editor.logic.SetSourceVolumeNode(picture)
    user.worker.predict = lambda session, request: [
        a_prediction(session.stack, "tube", (9, 9), 3, every, every)
    ]
    user.wait()
    user.auto()
    assert user.slices(user.named("tube")) == list(every)
    said = user.session().prompts(user.named("tube"))
    assert len(user.boxes("tube")) == len(said) == 12
    assert (min(said), max(said)) == (0, 39)


# Undo -------------------------------------------------------------------------------------------------------


def test_undo_is_one_step_and_exact(painter):
    before, nodes = painter.masks(), len(painter.prompt_nodes())
    saved = painter.editor.savedStates
    painter.auto()
    assert painter.editor.savedStates == saved + 1
    after = painter.masks()
    boxes = sorted(tuple(node.GetCenter()) for node in painter.prompt_nodes())
    painter.undo()
    assert same(painter.masks(), before)
    assert len(painter.prompt_nodes()) == nodes
    painter.wait()
    assert same(painter.masks(), before), "the worker brought something back"
    assert painter.session().prompts(painter.named("kidney 2") or "x") == {}
    painter.redo()
    assert same(painter.masks(), after)
    assert sorted(tuple(node.GetCenter()) for node in painter.prompt_nodes()) == boxes
    painter.wait()
    assert same(painter.masks(), after)
    assert painter.session().prompts(painter.named("cyst"))[5].prompts[0].predicted


def test_undo_of_the_very_first_thing_leaves_an_empty_segmentation(user):
    user.auto()
    user.undo()
    assert user.names() == []
    assert user.prompt_nodes() == []
    user.wait()
    assert user.names() == []
    assert user.state.status is Status.NO_SEGMENT
    user.redo()
    user.wait()
    assert user.names() == ["kidney", "cyst"]
    assert user.slices(user.named("kidney")) == [3, 4, 5, 6, 7]


def test_undo_of_a_replacement_brings_back_paint_and_prompts(painter):
    painter.select("kidney")
    painter.click((20, 18, 8))
    painter.wait()
    before, prompts = painter.masks(), painter.prompts("kidney")
    painter.controller.setValue("replaceSegments", "1")
    painter.auto()
    assert painter.slices("kidney") == [3, 4, 5, 6, 7]
    assert not painter.mask("kidney")[8].any()
    painter.undo()
    assert same(painter.masks(), before)
    assert painter.prompts("kidney") == prompts
    painter.wait()
    assert same(painter.masks(), before)
    assert set(painter.session().prompts("kidney")) == {8}
    painter.paint(slice(0, 1), slice(0, 1), slice(0, 1), segmentID="kidney")
    painter.click((20, 18, 8))
    painter.wait()
    assert painter.mask("kidney")[4, 7:12, 6:16].all(), "the user's paint became ours, and was removed"


def test_a_segment_that_is_removed_by_hand_is_not_undone(user):
    user.auto()
    user.editor.saveStateForUndo()
    user.segmentation.GetSegmentation().RemoveSegment(user.named("cyst"))
    user.controller.tick()
    user.wait()
    assert user.names() == ["kidney"]
    assert user.slices(user.named("kidney")) == [3, 4, 5, 6, 7]
    user.undo()
    assert user.slices(user.named("cyst")) == [5, 6]
    assert len(user.boxes("cyst")) == 1
    user.undo()
    assert user.names() == []


# Existing segments ------------------------------------------------------------------------------------------


def test_existing_segments_stay_as_they_are_unless_asked(painter):
    node = painter.editor.node
    node.SetOverwriteMode(node.OverwriteAllSegments)
    before = painter.masks()
    painter.auto()
    assert painter.names() == ["kidney", "other", "kidney 2", "cyst"]
    for segmentID, mask in before.items():
        assert np.array_equal(painter.mask(segmentID), mask), f"{segmentID} has changed"
    assert painter.slices(painter.named("kidney 2")) == [3, 4, 5, 6, 7]
    assert node.GetOverwriteMode() == node.OverwriteAllSegments
    painter.auto()
    assert painter.names()[-2:] == ["kidney 3", "cyst 2"]


def test_on_request_the_segment_of_the_name_is_replaced_and_only_that(painter):
    other = painter.mask("other")
    painter.controller.setValue("replaceSegments", "1")
    assert painter.state.auto.replaces
    painter.auto()
    assert painter.names() == ["kidney", "other", "cyst"]
    assert painter.slices("kidney") == [3, 4, 5, 6, 7]
    assert not painter.mask("kidney")[4, 7, 15], "paint outside of what was found stays"
    assert np.array_equal(painter.mask("other"), other)


def test_on_one_slice_only_that_slice_is_replaced(painter):
    painter.controller.setValue("replaceSegments", "1")
    painter.select("kidney")
    painter.click((20, 18, 8))
    painter.wait()
    before = painter.mask("kidney")
    painter.auto(5)
    after = painter.mask("kidney")
    assert np.array_equal(np.delete(after, 5, axis=0), np.delete(before, 5, axis=0))
    assert before[5, 7, 15]
    assert not after[5, 7, 15]
    assert after[5, 9, 4]
    said = painter.session().prompts("kidney")
    assert set(said) == {5, 8}
    assert said[5].prompts[0].predicted
    painter.undo()
    assert np.array_equal(painter.mask("kidney"), before)


def test_an_empty_segment_of_the_name_is_filled(scene):
    user = AutoUser(scene, segments=("cyst",))
    user.auto()
    assert user.names() == ["cyst", "kidney"]
    assert user.slices("cyst") == [5, 6]
    user.undo()
    assert user.names() == ["cyst"]
    assert user.slices("cyst") == []
    assert user.prompt_nodes() == []
    user.controller.cleanup()


def test_a_completed_segment_is_not_replaced(painter):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(painter.segmentation.GetSegmentation().GetSegment("kidney"), logic.Completed)
    painter.controller.setValue("replaceSegments", "1")
    before = painter.masks()
    painter.auto()
    assert same(painter.masks(), before)
    assert "marked as completed" in painter.state.text


def test_masking_is_honoured(painter):
    node = painter.editor.node
    node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    painter.auto()
    found = painter.mask(painter.named("kidney 2"))
    assert found.any()
    assert not (found & (painter.mask("kidney") | painter.mask("other"))).any()


# Refinement -------------------------------------------------------------------------------------------------


def test_predicted_boxes_are_in_the_scene_and_marked(user):
    user.auto()
    boxes = user.boxes("kidney")
    assert len(boxes) == 2
    assert all(PromptNodes.isPredicted(node) for node in boxes)
    words = user.session().prompts(user.named("kidney"))
    assert sorted(words) == [3, 6]
    (box,) = words[3].prompts
    assert box.predicted
    assert box.first_ijk == pytest.approx((4, 5, 3), abs=1e-3)
    assert box.last_ijk == pytest.approx((12, 13, 3), abs=1e-3)
    records = user.session().masks(user.named("kidney"))
    assert sorted(records) == [3, 4, 5, 6, 7]
    strip = {one.n: one for one in user.state.confidences}
    assert strip[3].prompted and not strip[4].prompted
    assert strip[4].confidence == 0.8


def test_nothing_is_sent_again_that_the_session_knows(user):
    user.auto()
    before = len(user.session().requests)
    for _ in range(5):
        user.wait()
    assert len(user.session().requests) == before


def test_a_click_joins_them_and_the_mask_follows(user):
    user.auto()
    kidney = user.named("kidney")
    user.click((20, 18, 3))
    user.wait()
    said = user.session().prompts(kidney)[3].prompts
    assert [type(one).__name__ for one in said] == ["Box", "Point"]
    assert said[0].predicted
    assert user.mask(kidney)[3, 18, 20]
    segment = user.segmentation.GetSegmentation().GetSegment(kidney)
    assert user.tag(segment, "DICOM.SegmentAlgorithmType") == "SEMIAUTOMATIC"
    user.undo()
    assert not user.mask(kidney)[3, 18, 20]
    assert user.mask(kidney)[3, 9, 8]
    user.wait()
    assert len(user.session().prompts(kidney)[3].prompts) == 1
    user.undo()
    assert user.names() == []


def test_taking_the_click_away_brings_back_what_auto_had_found(user):
    user.auto()
    kidney = user.named("kidney")
    found = user.mask(kidney)
    user.click((20, 18, 3))
    user.wait()
    (points,) = [one for one in user.prompt_nodes() if PromptNodes.roleOf(one) == PromptNodes.POSITIVE]
    points.RemoveNthControlPoint(0)
    user.wait()
    assert np.array_equal(user.mask(kidney), found)


def test_a_box_that_is_moved_is_the_users_own_and_answered_afresh(user):
    user.auto()
    kidney = user.named("kidney")
    box = next(node for node in user.boxes("kidney") if round(user_k(user, node)) == 6)
    box.SetCenter(*user.ras((18, 14, 6)))
    user.wait()
    assert not PromptNodes.isPredicted(box)
    (said,) = user.session().prompts(kidney)[6].prompts
    assert not said.predicted
    shown = user.mask(kidney)[6]
    assert shown[14, 18]
    assert not shown[5:7, 4:8].any(), "what Auto had found is still there"
    assert user.slices(kidney) == [3, 4, 5, 6, 7]
    user.undo()
    assert PromptNodes.isPredicted(next(n for n in user.boxes("kidney") if round(user_k(user, n)) == 6))
    user.wait()
    assert user.session().prompts(kidney)[6].prompts[0].predicted


def user_k(user, node):
    return (np.linalg.inv(np.eye(4)) @ [*node.GetCenter(), 1])[2]


def test_another_model_of_the_session_leaves_what_auto_had_found(user):
    user.auto()
    before = user.masks()
    user.worker.models = [{"name": "large", "title": "Large", "installed": True}]
    user.controller.setValue("model", "large")
    user.wait()
    assert same(user.masks(), before)
    assert user.session().prompts(user.named("kidney"))[3].prompts[0].predicted


def test_a_new_worker_is_sent_everything_again(user):
    user.auto()
    before = user.masks()
    user.worker.die()
    user.worker.recover()
    user.wait()
    assert same(user.masks(), before)


def test_propagating_goes_on_from_what_auto_has_found(user):
    user.auto()
    user.controller.propagate()
    assert user.state.status is Status.PROPAGATING
    user.wait()
    assert user.slices(user.named("cyst"))[0] < 5


# Stopping ---------------------------------------------------------------------------------------------------


def test_cancel_changes_nothing_and_asks_nothing(painter):
    before, saved = painter.masks(), painter.editor.savedStates
    painter.controller.autoVolume()
    painter.worker.step()
    painter.controller.cancel()
    assert painter.state.status is not Status.FINDING
    assert not painter.state.canKeep
    painter.wait()
    assert same(painter.masks(), before)
    assert painter.editor.savedStates == saved
    painter.auto()
    assert "kidney 2" in painter.names()


@pytest.mark.parametrize("what", ["volume", "segmentation", "effect", "model"])
def test_what_it_was_about_is_gone(user, what):
    user.controller.autoVolume()
    user.worker.step()
    if what == "volume":
        user.editor.logic.SetSourceVolumeNode(a_volume(user.scene, voxels=a_noise(seed=3), name="Other"))
    elif what == "segmentation":
        other = user.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        other.SetReferenceImageGeometryParameterFromVolumeNode(user.volume)
        user.editor.logic.SetSegmentationNode(other)
    elif what == "effect":
        user.controller.deactivate()
    else:
        user.controller.setValue("model", "large")
    user.controller.update()
    assert user.state.status is not Status.FINDING
    user.wait()
    assert user.names() == []


def test_the_scene_is_closed_meanwhile(user):
    user.controller.autoVolume()
    user.worker.step()
    user.scene.Clear(True)
    user.worker.answer_all()
    user.pass_time()
    assert user.worker.sessions == []


def test_a_click_meanwhile_is_a_step_of_its_own(painter):
    painter.select("other")
    painter.controller.autoVolume()
    painter.worker.step()
    painter.click((24, 20, 9))
    painter.wait()
    assert painter.mask("other")[9, 20, 24]
    assert "kidney 2" in painter.names()
    painter.undo()
    painter.wait()
    assert "kidney 2" not in painter.names() or not painter.mask("other")[9, 20, 24]
    painter.undo()
    painter.wait()
    assert painter.names() == ["kidney", "other"]
    assert not painter.mask("other")[9, 20, 24]


def test_what_went_wrong_is_reported(user):
    user.controller.autoVolume()
    user.worker.refusal = CheckpointError("organs was trained on 'large': use it with 'large'")
    user.wait()
    assert user.state.text == "Organs was trained on 'large': use it with 'large'."
    assert user.names() == []
    assert user.state.auto.canFindVolume
    user.controller.autoVolume()
    assert "trained on" not in user.state.text


def test_nothing_found_makes_nothing(user):
    user.worker.predict = lambda session, request: []
    saved = user.editor.savedStates
    user.auto()
    assert user.names() == []
    assert user.editor.savedStates == saved
    assert "found nothing on any slice" in user.state.text
    user.auto(4)
    assert "found nothing on slice 4" in user.state.text


# Which models -----------------------------------------------------------------------------------------------


def test_no_model_yet(scene):
    user = AutoUser(scene, models=[])
    assert user.state.auto.isShown
    assert user.state.auto.canTrain
    assert user.state.auto.text == "No Auto model yet: train one from 10 labelled images."
    assert not user.state.auto.canFindSlice
    user.controller.autoVolume()
    assert "train one from 10 labelled images" in user.state.text
    user.controller.trainAuto()
    assert (user.source.resolved, user.source.section) == (1, "auto")
    user.controller.cleanup()


def test_only_models_that_suit_the_volume_are_offered(scene):
    models = [a_model("pictures", "picture"), a_model("ct", modality="CT"), a_model("any")]
    user = AutoUser(scene, models=models)
    assert [file for file, _ in user.state.auto.models] == ["ct", "any"]
    assert user.state.auto.chosen == "ct"
    user.controller.setValue("autoModel", "any")
    assert user.state.auto.chosen == "any"
    assert user.editor.parameter("autoModel") == "any"
    user.worker.autoModels = models[:2]
    user.controller.deactivate()
    user.controller.activate()
    user.wait()
    assert user.state.auto.chosen == "ct", "the one that was chosen is gone"
    user.worker.autoModels = models[:1]
    user.controller.activate()
    user.wait()
    assert (
        user.state.auto.text == "None of 1 Auto models suits this volume: train one from 10 labelled images."
    )
    user.controller.cleanup()


def test_a_picture_has_one_slice_and_its_own_models(scene):
    picture = a_volume(scene, voxels=a_noise((1, 24, 28)), name="Ultrasound")
    models = [a_model("pictures", "picture", classes=("kidney",)), a_model("volumes")]
    user = AutoUser(scene, models=models, volume=picture, segments=())
    assert [file for file, _ in user.state.auto.models] == ["pictures"]
    assert user.state.auto.canFindSlice
    assert not user.state.auto.canFindVolume
    user.worker.predict = lambda session, request: [
        a_prediction(session.stack, "kidney", (8, 9), 4, [0], [0], terminology=KIDNEY)
    ]
    user.look_at(0)
    user.auto(0)
    assert user.names() == ["kidney"]
    assert user.mask(user.named("kidney"))[0, 9, 8]
    assert user.boxes("kidney")
    user.controller.cleanup()


def test_volumes_are_cut_as_the_model_was_trained(scene):
    user = AutoUser(scene, models=[a_model(axis="sagittal")], segments=("A",))
    user.worker.predict = lambda session, request: [
        a_prediction(session.stack, "tube", (8, 9), 3, [4, 5]) if session.stack.plane == "sagittal" else None
    ]
    user.auto()
    assert user.session().stack.plane == "sagittal"
    assert "tube" in user.names()
    user.controller.cleanup()


def test_prompts_on_other_slices_stand_in_the_way(painter):
    painter.worker.autoModels = [a_model(axis="coronal")]
    painter.controller.activate()
    painter.select("other")
    painter.click((10, 10, 5))
    painter.wait()
    before = painter.masks()
    painter.auto()
    assert "looks at coronal slices" in painter.state.text
    assert same(painter.masks(), before)


def test_a_worker_of_an_earlier_version_has_no_auto(scene):
    user = AutoUser(scene, models=[{"nonsense": 1}])
    assert user.state.auto.canTrain
    assert not user.state.auto.canFindVolume
    user.controller.cleanup()


def test_a_saved_scene_goes_on_with_predicted_boxes(scene, tmp_path):
    user = AutoUser(scene, segments=())
    user.auto()
    user.wait(1)
    user.controller.deactivate()
    masks = {name: user.mask(user.named(name)) for name in ("kidney", "cyst")}
    strip = user.state.confidences
    user.controller.cleanup()
    later = AutoUser(
        scene, volume=user.volume, segmentation=user.segmentation, segments=(user.named("kidney"),)
    )
    later.wait(1)
    assert all(np.array_equal(later.mask(later.named(name)), mask) for name, mask in masks.items())
    assert later.session().prompts(later.named("kidney"))[3].prompts[0].predicted
    assert sorted(later.session().masks(later.named("kidney"))) == [3, 4, 5, 6, 7]
    assert {one.n for one in strip if one.confidence is not None} == {
        one.n for one in later.state.confidences if one.confidence is not None
    }
    later.click((20, 18, 3))
    later.wait()
    assert later.mask(later.named("kidney"))[3, 18, 20]
    later.controller.cleanup()


@pytest.mark.parametrize("isMoved", [False, True], ids=["where it is", "transformed"])
@pytest.mark.parametrize("name", geometries())
def test_predicted_boxes_lie_where_they_were_predicted(scene, name, isMoved):
    transform = a_linear_transform(scene) if isMoved else None
    volume = a_volume(scene, geometries()[name], a_noise(), transform=transform)
    user = AutoUser(scene, volume=volume, segments=(), transform=transform)
    found = []

    def find(session, request):
        found.append(on_any_stack(session.stack))
        return found

    user.worker.predict = find
    user.auto()
    thing = user.named("thing")
    stack = user.session().stack
    ((n, words),) = user.session().prompts(thing).items()
    (said,), (predicted,) = words.prompts, found[0].prompts[n]
    assert said.predicted
    for one, other in zip(corners(stack, said), corners(stack, predicted), strict=True):
        assert one == pytest.approx(other, abs=0.02)
    shown = user.controller._edited.writer.segmentMasks(thing, stack, [n])[n]
    assert np.array_equal(shown, found[0].masks[n].mask_hw)
    user.controller.cleanup()


def on_any_stack(stack):
    """A rectangle on three slices, with a box on the middle one, in pixels of the stack."""
    mask = np.zeros(stack.shape_hw, bool)
    mask[3:8, 2:6] = True
    first, last = stack.to_ijk([[1.5, 2.5, 3], [5.5, 7.5, 3]])
    records = {n: SliceMask.from_mask("thing", n, mask, prompted=n == 3) for n in (2, 3, 4)}
    prompts = {3: (Box.between(first, last, predicted=True),)}
    return AutoPrediction("thing", (0.1, 0.2, 0.3), "", 0.8, prompts, records)


def corners(stack, box):
    """Left, top and right, bottom on the stack."""
    return np.sort(stack.to_slice([box.first_ijk, box.last_ijk])[:, :2], axis=0).tolist()
