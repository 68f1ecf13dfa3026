"""A segment as prompt: its slices stay as they are, and what lies between or beyond is found."""

import numpy as np
import pytest
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet, SlicePrompts
from medsam2_core.session import Session
from support.command_line import ball_kji
from support.errors import raises
from support.tiny_model import tiny_model

SHAPE_KJI = (24, 48, 40)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(params=["axial", "sagittal", "oblique"])
def session(request, volume, model):
    if request.param == "oblique":
        stack = SliceStack.oblique(volume, (-39, -20, 0), (1, 0, 0), (0, 0.8, 0.6))
        return Session(volume, model, stack=stack)
    return Session.open(volume, model, axis=request.param)


def slices_of_ball(session):
    return [n for n in range(len(session.stack)) if session.stack.mask_of(ball_kji(), n).any()]


def propagated(session, **options):
    return sorted(result.n for result in session.propagate(stop_after_absent=None, **options))


def test_kept_slices_are_the_segments_own_and_stay(session):
    ball = ball_kji()
    whole = slices_of_ball(session)
    masks = session.prompt_segment("ball", ball, "every:3")
    assert whole[0] in masks and whole[-1] in masks and len(masks) < len(whole)
    assert session.prompted_spans() == {"ball": (whole[0], whole[-1])}
    propagated(session)
    for n in masks:
        assert np.array_equal(session.tracker.result("ball", n).mask_hw, session.stack.mask_of(ball, n))
    session.undo()
    session.undo()
    assert session.object_names == ()


def test_only_what_lies_between_is_filled(session):
    session.prompt_segment("ball", ball_kji(), "ends")
    (first, last) = session.prompted_spans()["ball"]
    assert propagated(session, limits=session.prompted_spans()) == list(range(first, last + 1))
    assert [result.n for result in session.results("ball")] == list(range(first, last + 1))


def test_a_segment_that_is_kept_whole_leaves_nothing_to_find_between(session):
    ball = ball_kji()
    session.prompt_segment("ball", ball)
    for result in session.propagate(limits=session.prompted_spans()):
        assert np.array_equal(result.mask_hw, session.stack.mask_of(ball, result.n))


def test_an_empty_segment_is_refused(session):
    with raises("empty-mask", object="ball"):
        session.prompt_segment("ball", np.zeros(SHAPE_KJI, bool))
    with raises("unknown-keep", keep="some"):
        session.prompt_segment("ball", ball_kji(), "some")
    assert session.object_names == ()


def test_as_prompts_of_a_file_they_are_the_same(volume, model):
    """What the command line does: masks among other prompts, applied together."""
    from medsam2_core.prompts.shapes import of_segment

    ball, by_method, by_prompts = ball_kji(), Session.open(volume, model), Session.open(volume, model)
    by_method.prompt_segment("ball", ball, "every:2")
    prompts = PromptSet({"ball": of_segment(MaskPrompt.from_volume(ball), by_prompts.stack, "every:2")})
    by_prompts.apply(PromptSet.from_json(prompts.to_json()))
    assert by_method.prompted_spans() == by_prompts.prompted_spans()
    for session in (by_method, by_prompts):
        propagated(session, limits=session.prompted_spans())
    assert np.array_equal(by_method.mask_kji("ball"), by_prompts.mask_kji("ball"))


# Limits of single objects -----------------------------------------------------------------------------------


@pytest.fixture
def two(volume, model):
    session = Session.open(volume, model)
    session.prompt("a", Box((13, 19, 12), (27, 33, 12)))
    session.prompt("b", Box((3, 5, 8), (12, 14, 8)))
    return session


def slices_of(session, **options):
    found = {"a": [], "b": []}
    for result in session.propagate(stop_after_absent=None, **options):
        found[result.object].append(result.n)
    return {name: sorted(numbers) for name, numbers in found.items()}


def test_one_object_stays_within_its_limits_while_the_other_goes_on(two):
    assert slices_of(two, limits={"b": (6, 9)}) == {"a": list(range(24)), "b": [6, 7, 8, 9]}
    again = slices_of(two, limits={"b": (6, 9)})
    assert again == {"a": [], "b": []}, "both are finished"
    assert slices_of(two)["b"] == list(range(24))
    assert slices_of(two, limits={"b": (6, 9)}) == {"a": [], "b": []}


def drawn_on(n):
    mask_kji = np.zeros(SHAPE_KJI, bool)
    mask_kji[n, 5:14, 3:12] = True
    return MaskPrompt.from_volume(mask_kji)


def test_within_limits_only_what_a_change_reaches_is_segmented_again(two):
    known = two.tracker.result("b", 8).with_mask(np.ones((48, 40), bool))
    given = {8: SlicePrompts((drawn_on(8),), known=known)}
    two.restore_object("b", given, {10: known}, propagated=True, limits=(4, 14))
    two.prompt("a", Point((20, 26, 16)))
    assert slices_of(two, limits={"b": (4, 14)})["b"] == []
    assert two.tracker.result("b", 10).mask_hw.all(), "the object was not touched"
    two.prompt("b", drawn_on(11))
    assert slices_of(two, limits={"b": (4, 14)})["b"] == list(range(8, 15)), "from a prompt to the limit"
    assert slices_of(two, limits={"b": (4, 16)})["b"] == list(range(11, 17))
    two.prompt("b", drawn_on(20))
    assert slices_of(two, limits={"b": (4, 11)})["b"] == [11]


def test_the_provenance_has_the_limits_that_hold(two):
    slices_of(two, names=["a"], limits={"a": (10, 14)}, overlap=False)
    slices_of(two, names=["b"], limits={"b": (7, 9)}, overlap=False)
    both = {"a": [10, 14], "b": [7, 9]}
    assert two.provenance()["limits"] == both
    assert two.provenance()["overlap"] == "no"
    slices_of(two, limits={"b": (7, 9)})
    assert two.provenance()["limits"] == {"b": [7, 9]}
    assert "overlap" not in two.provenance()
    slices_of(two)
    assert "limits" not in two.provenance()
    two.undo()
    two.undo()
    assert two.provenance()["limits"] == both
    assert two.provenance()["overlap"] == "no"
    two.undo()
    two.undo()
    assert not {"limits", "overlap", "continued"} & set(two.provenance())


def test_limits_lie_within_the_range_of_all(two):
    limits = {"b": (6, 9), "a": (20, 23)}
    assert slices_of(two, first=8, last=14, limits=limits) == {"a": [], "b": [8, 9]}


def test_limits_have_no_influence_on_the_masks_within(two, volume, model):
    other = Session.open(volume, model)
    other.prompt("b", Box((3, 5, 8), (12, 14, 8)))
    slices_of(two, limits={"b": (6, 9)})
    for _ in other.propagate(first=6, last=9, stop_after_absent=None):
        pass
    assert np.array_equal(two.mask_kji("b"), other.mask_kji("b"))


def test_limits_the_wrong_way_round_are_refused(two):
    with raises("empty-range", first=9, last=6):
        two.propagate(limits={"b": (9, 6)})
