"""Auto in a session: objects with names, colours and predicted prompts; one step of undo; clicks refine."""

from itertools import pairwise

import numpy as np
import pytest
from medsam2_core.auto.model_file import AutoClass
from medsam2_core.auto.slices import expected_iou
from medsam2_core.auto.volumes import APART, VolumeOptions, conditioning
from medsam2_core.errors import Cancelled, CheckpointError, PromptError
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session
from support.auto_model import made_up
from support.errors import raises
from support.model import set_prompts
from support.small_files import a_volume
from support.tiny_model import tiny_model

SHAPE_KJI = (20, 40, 36)
KIDNEY = "Cat~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Reg~^^~^^"
BALL, BAR = np.s_[8:20, 6:18], np.s_[26:34, 4:30]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def auto(model, monkeypatch):
    """A model whose answers are made up: a ball on slices 5 to 14, a bar on 8 to 11."""

    def draw(n, logits):
        if 5 <= n <= 14:
            logits[0][BALL] = 6.0 - 0.4 * abs(n - 9)
        if 8 <= n <= 11:
            logits[1][BAR] = 4.0

    classes = (AutoClass("ball", 1, (0.1, 0.2, 0.3), KIDNEY), AutoClass("bar", 2, (0.9, 0.5, 0.1)))
    return made_up(monkeypatch, model, classes, draw, lambda _: [5.0, 3.0])


@pytest.fixture
def session(model):
    return Session(a_volume(SHAPE_KJI), model)


def slices_of(session, name):
    return [n for n in range(SHAPE_KJI[0]) if session.stack.mask_of(session.mask_kji(name), n).any()]


def test_every_class_becomes_an_object_named_coloured_and_coded(session, auto):
    session.auto(auto, options=VolumeOptions("slices"))
    ball, bar = session.segmentation()
    assert (ball.name, bar.name) == ("ball", "bar")
    assert ball.colour_rgb == pytest.approx((0.1, 0.2, 0.3))
    assert ball.terminology.type.meaning == "Kidney"
    assert ball.tags["DICOM.SegmentAlgorithmType"] == "AUTOMATIC"
    assert ball.tags["MedSAM2.auto"] == "made up"
    assert slices_of(session, "ball") == list(range(5, 15))
    assert slices_of(session, "bar") == list(range(8, 12))


def test_slice_by_slice_gives_what_was_found_on_each(session, auto):
    session.auto(auto, options=VolumeOptions("slices"))
    wanted = np.zeros(session.stack.shape_hw, bool)
    wanted[BALL] = True
    for n in (5, 9, 14):
        assert np.array_equal(session.stack.mask_of(session.mask_kji("ball"), n), wanted)


def test_with_memory_sure_slices_lead_and_stay_as_they_are(session, auto):
    (ball, _) = session.auto(auto, options=VolumeOptions("memory"))
    chosen = sorted(ball.prompts)
    assert 9 in chosen
    assert all(b - a >= APART for a, b in pairwise(chosen))
    for n in chosen:
        result = session.tracker.result("ball", n)
        assert result.prompted
        assert np.array_equal(result.mask_hw, ball.masks[n].mask_hw)
    assert {n for n in ball.masks if ball.masks[n].mask_hw.any()} <= set(range(3, 17))


def test_the_tracker_fills_in_where_the_predictor_did_not_look(session, auto):
    (ball, _) = session.auto(auto, options=VolumeOptions("memory", every=4))
    assert {8, 12} & set(ball.prompts)
    assert {9, 10, 11} <= set(ball.masks), "slices between are tracked"


def test_a_predicted_box_lies_on_its_slice_and_is_marked_as_predicted(session, auto):
    (ball, _) = session.auto(auto)
    for n, (box,) in ball.prompts.items():
        assert isinstance(box, Box)
        assert box.predicted
        ((_, _, k),) = session.stack.to_slice([box.first_ijk])
        assert k == pytest.approx(n)


def test_it_is_one_step_of_undo(session, auto):
    session.prompt("mine", Point((10, 10, 3)))
    before = session.mask_kji("mine")
    session.auto(auto)
    assert session.undo_steps == ["find ball, bar", "prompt mine"]
    session.undo()
    assert session.object_names == ("mine",)
    assert np.array_equal(session.mask_kji("mine"), before)


def test_objects_of_the_same_name_are_replaced_only_on_request(session, auto):
    session.prompt("bar", Point((10, 10, 3)))
    before = session.mask_kji("bar")
    with raises("object-exists", PromptError, object="bar"):
        session.auto(auto)
    assert np.array_equal(session.mask_kji("bar"), before)
    session.auto(auto, replace=True)
    assert slices_of(session, "bar")[0] >= 6


def test_a_click_refines_what_auto_found_and_a_moved_box_begins_anew(session, auto, monkeypatch):
    (ball, _) = session.auto(auto)
    n = sorted(ball.prompts)[0]
    (box,) = ball.prompts[n]
    fed = []
    usual = session.tracker._prompter._feedback

    def feedback(state, slice_number, prompt):
        found = usual(state, slice_number, prompt)
        fed.append(found is not None)
        return found

    monkeypatch.setattr(session.tracker._prompter, "_feedback", feedback)
    click = Point(tuple(session.stack.to_ijk([[30, 30, n]])[0]))
    set_prompts(session, "ball", n, [box, click])
    assert fed == [True], "the mask that was found is what the click corrects"
    assert session.segmentation()["ball"].tags["DICOM.SegmentAlgorithmType"] == "SEMIAUTOMATIC"
    fed.clear()
    set_prompts(session, "ball", n, [Box(box.first_ijk, box.last_ijk), click])
    assert fed[0] is False, "the user's own box says everything anew"


def test_after_a_click_only_its_neighbourhood_is_followed_again(session, auto):
    (ball, _) = session.auto(auto, options=VolumeOptions("memory"))
    n = sorted(ball.prompts)[0]
    click = Point(tuple(session.stack.to_ijk([[12, 12, n]])[0]))
    set_prompts(session, "ball", n, [*ball.prompts[n], click])
    following = sorted(result.n for result in session.propagate())
    assert following
    above = [m for m in sorted(ball.prompts) if m > n]
    assert not above or max(following) <= above[0]


def test_only_the_classes_wanted_are_found(session, auto):
    found = session.auto(auto, ["bar"])
    assert [one.name for one in found] == ["bar"]
    assert session.object_names == ("bar",)
    with raises("unknown-class", CheckpointError, name="moon", known=["ball", "bar"]):
        session.auto(auto, ["moon"])


def test_one_slice_can_be_asked_for(session, auto):
    (ball, bar) = session.auto(auto, first=9, last=9)
    assert sorted(ball.prompts) == [9]
    assert slices_of(session, "ball") == [9]
    assert bar.confidence > 0.5
    with raises("bad-slice-range", PromptError, first=25, last=25, slices=20):
        session.auto(auto, first=25, last=25, replace=True)


def test_a_class_that_is_nowhere_is_reported_as_absent(session, auto):
    (ball, _) = session.auto(auto, first=0, last=3)
    assert (ball.confidence, ball.prompts) == (0.0, {})
    assert not session.mask_kji("ball").any()


def test_an_object_is_not_emptied_by_a_class_that_is_nowhere(session, auto):
    session.prompt("ball", Point((10, 10, 2)))
    before = session.mask_kji("ball")
    session.auto(auto, first=0, last=3, replace=True)
    assert np.array_equal(session.mask_kji("ball"), before)


def test_an_object_of_the_same_name_made_by_hand_is_not_taken_for_found(session, auto):
    session.auto(auto)
    session.undo()
    session.prompt("ball", Point((10, 10, 2)))
    assert "MedSAM2.auto" not in session.segmentation()["ball"].tags


def test_without_the_tracker_no_slice_is_left_out(session, auto):
    session.auto(auto, options=VolumeOptions("slices", every=4))
    assert slices_of(session, "ball") == list(range(5, 15))


def test_cancelled_it_has_changed_nothing(session, auto):
    asked, memory = [], VolumeOptions("memory")
    with pytest.raises(Cancelled):
        session.auto(
            auto, options=memory, should_cancel=lambda: len(asked) > 25 or asked.append(1) is not None
        )
    assert session.object_names == ()
    assert session.undo_steps == []


def test_another_sam2_below_is_refused_by_name(auto):
    other = Session(a_volume(SHAPE_KJI), tiny_model(seed=5))
    with raises("trained-for-other-weights", CheckpointError, base="tiny"):
        other.auto(auto)


def test_overlap_goes_to_the_class_the_predictor_saw_there(session, auto, monkeypatch):
    found = session.auto(auto, options=VolumeOptions("memory"))
    both = [set(one.masks) for one in found]
    for n in both[0] & both[1]:
        assert not (found[0].masks[n].mask_hw & found[1].masks[n].mask_hw).any()


def test_sure_slices_are_chosen_apart_from_each_other():
    from medsam2_core.auto.slices import ClassPrediction

    def a_slice(side, quality, score=5.0):
        mask = np.zeros((30, 30), bool)
        mask[:side, :side] = True
        return ClassPrediction(0, mask, quality, score, None, None)

    slices = {n: a_slice(10, 0.9 if n in (3, 10) else 0.8) for n in range(12)}
    slices |= {20: a_slice(10, 0.2), 25: a_slice(0, 0.0), 26: a_slice(12, 0.9, score=-2.0)}
    chosen = conditioning(slices)
    assert {3, 10} <= set(chosen)
    assert not {20, 25, 26} & set(chosen)
    assert conditioning({1: a_slice(0, 0.0)}) == []


def test_options_that_mean_nothing_are_refused():
    with raises("bad-volume-options", PromptError):
        VolumeOptions(every=0)


def test_the_expected_iou_is_that_of_truths_drawn_from_the_probabilities():
    rng = np.random.default_rng(0)
    probability = np.zeros((40, 40), np.float32)
    probability[10:30, 10:30] = 0.9
    probability[5:10, 10:30] = 0.2
    mask = probability > 0.5
    drawn = [rng.random((40, 40)) < probability for _ in range(300)]
    ious = [(mask & one).sum() / (mask | one).sum() for one in drawn]
    assert expected_iou(probability, mask) == pytest.approx(np.mean(ious), abs=0.01)
    assert expected_iou(probability, np.zeros_like(mask)) == 0


def test_pieces_smaller_than_any_in_training_are_left_out():
    from medsam2_core.auto.slices import without_small_pieces

    mask = np.zeros((40, 40), bool)
    mask[2:12, 2:12] = mask[20:25, 20:25] = mask[35, 35] = True
    assert np.array_equal(without_small_pieces(mask, 0), mask)
    cleaned = without_small_pieces(mask, 25)
    assert cleaned[5, 5]
    assert cleaned[22, 22]
    assert not cleaned[35, 35]
    assert without_small_pieces(mask, 5000).sum() == 100, "the largest always stays"
