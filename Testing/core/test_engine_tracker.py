"""A tracker: prompts on slices, masks of all the others, and no prompt is ever lost."""

import numpy as np
import pytest
from medsam2_core.engine.options import Direction, Order, TrackerOptions
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.errors import Cancelled, PromptError
from support.bright_object import bright_tracker, discs, overlap
from support.errors import raises
from support.model import a_disc, prompt

SHAPE = (100, 120)
NOTHING = np.zeros(SHAPE, bool)
BOX = [45, 35, 75, 65]  # around the disc of `steady`


def steady(count=9):
    return discs(SHAPE, *[(60, 50, 15)] * count)


def slices_of(results, object_id="it"):
    return [result.n for result in results if result.object == object_id]


def test_one_box_segments_all_slices_in_both_directions():
    tracker, _ = bright_tracker(steady())
    first = tracker.prompt("it", 4, prompt(box=BOX))
    truth = a_disc(SHAPE, (60, 50), 15)
    assert first.prompted and overlap(first.mask_hw, truth) > 0.95
    progress = tracker.propagate()
    assert progress.total == 9
    results = list(progress)
    assert slices_of(results) == [4, 5, 6, 7, 8, 3, 2, 1, 0]
    assert all(overlap(result.mask_hw, truth) > 0.95 for result in results)
    assert [r.n for r in tracker.results("it")] == list(range(9))


def test_every_slice_is_tracked_from_the_nearest_prompted_one():
    tracker, _ = bright_tracker(steady(10))
    tracker.prompt("it", 1, prompt(box=BOX))
    tracker.prompt("it", 8, prompt(box=BOX))
    assert slices_of(tracker.propagate()) == [1, 2, 3, 4, 8, 9, 7, 6, 5, 0]


@pytest.mark.parametrize(("draws", "reach"), [(True, 2), (False, 4)])
def test_a_corrected_slice_reaches_less_far_than_a_box_with_models_that_draw_prompts(draws, reach):
    tracker, heads = bright_tracker(steady(11), recipe=PromptRecipe(draws_prompts=draws))
    tracker.prompt("it", 0, prompt(box=BOX))
    list(tracker.propagate())
    tracker.prompt("it", 9, prompt([[60, 50]], [1]))
    read: dict[int, list[int]] = {}
    propagation = tracker.propagate()
    for result in propagation:
        read[result.n] = sorted(memory.n for place, memory in heads.read.spatial if place == 0)
    state = tracker.state("it")
    assert [n for n in range(1, 9) if state.tracked[n]] == list(range(9 - reach, 9))
    # Only where a correction leads is it remembered.
    for n in range(1, 9):
        assert read[n] == ([0] if draws and n < 9 - reach else [0, 9])
    tracker.prompt("it", 9, prompt(box=BOX))  # a box there counts as much as the other
    list(tracker.propagate())
    assert [n for n in range(1, 9) if state.tracked[n]] == [5, 6, 7, 8]


def test_a_negative_click_in_the_middle_of_a_tracked_mask_ends_the_object_far_from_its_prompts():
    tracker, _ = bright_tracker(steady(9), recipe=PromptRecipe(draws_prompts=True))
    tracker.prompt("it", 1, prompt(box=BOX))
    list(tracker.propagate())
    here = tracker.snapshot()
    # In the outer third of slices 2 to 8.
    assert not tracker.prompt("it", 6, prompt([[60, 50]], [0])).mask_hw.any()
    assert [r.n for r in tracker.propagate() if r.mask_hw.any()] == [1, 2, 3, 4, 5, 0]
    # A positive click says that it is there.
    assert tracker.prompt("it", 6, prompt([[60, 50], [58, 50]], [0, 1])).mask_hw.any()
    assert len([r for r in tracker.propagate() if r.mask_hw.any()]) == 9
    tracker.restore(here)
    assert tracker.prompt("it", 6, prompt([[60, 50]], [0]), is_part=True).mask_hw.any()  # of a scribble
    tracker.restore(here)
    assert tracker.prompt("it", 5, prompt([[60, 50]], [0])).mask_hw.any()
    tracker.restore(here)
    tracker.prompt("it", 8, prompt(box=BOX))  # it goes on
    assert tracker.prompt("it", 6, prompt([[60, 50]], [0])).mask_hw.any()
    tracker.remove_object("it")
    tracker.prompt("it", 1, prompt(box=BOX))
    list(tracker.propagate(last=6))  # where tracking stopped is no end
    assert tracker.prompt("it", 6, prompt([[60, 50]], [0])).mask_hw.any()


def test_in_stock_order_the_first_prompted_slice_leads():
    tracker, _ = bright_tracker(steady(6), TrackerOptions(order=Order.EARLIEST))
    tracker.prompt("it", 2, prompt(box=BOX))
    tracker.prompt("it", 4, prompt(box=BOX))
    assert slices_of(tracker.propagate()) == [2, 3, 4, 5, 1, 0]
    assert slices_of(tracker.propagate(direction=Direction.FORWARD)) == [2, 3, 4, 5]
    assert slices_of(tracker.propagate(direction="reverse")) == [4, 3, 2, 1, 0]


def test_where_the_user_marked_absence_tracking_ends():
    tracker, _ = bright_tracker(steady(8))
    tracker.prompt("it", 2, prompt(box=BOX))
    assert 6 in slices_of(tracker.propagate())
    absent = tracker.prompt("it", 4, prompt(mask=NOTHING))
    assert not absent.mask_hw.any() and absent.object_score < 0
    results = list(tracker.propagate())
    assert {r.n: r.mask_hw.any() for r in results} == {
        **{0: True, 1: True, 2: True, 3: True},
        # What an earlier propagation saw there is taken back, aloud.
        **{4: False, 5: False, 6: False, 7: False},
    }


def test_a_box_the_model_finds_nothing_in_does_not_end_tracking():
    circle = (60, 50, 15)
    tracker, _ = bright_tracker(discs(SHAPE, circle, circle, None, circle, circle))
    assert not tracker.prompt("it", 2, prompt(box=BOX)).mask_hw.any()
    # Alone, it is still where tracking starts; with a better slice, that one is.
    assert slices_of(tracker.propagate()) == [2, 3, 4, 1, 0]
    tracker.prompt("it", 0, prompt(box=BOX))
    assert slices_of(tracker.propagate()) == [0, 1, 2, 3, 4]


def test_clicks_that_remove_everything_mean_absence():
    circle = (60, 50, 15)
    tracker, _ = bright_tracker(discs(SHAPE, circle, circle, None, circle))
    tracker.prompt("it", 0, prompt(box=BOX))
    tracker.prompt("it", 2, prompt([[60, 50]], [0]))
    assert slices_of(tracker.propagate()) == [0, 1, 2]


def test_only_slices_in_the_range_are_touched():
    tracker, _ = bright_tracker(steady(9))
    tracker.prompt("it", 4, prompt(box=BOX))
    assert slices_of(tracker.propagate(first=3, last=6)) == [4, 5, 6, 3]
    assert [r.n for r in tracker.results("it")] == [3, 4, 5, 6]
    assert slices_of(tracker.propagate(first=7, last=8)) == [7, 8]


def test_an_object_is_given_up_after_some_slices_without_it():
    circle = (60, 50, 15)
    images = discs(SHAPE, circle, circle, None, circle, None, None, circle, circle)
    tracker, _ = bright_tracker(images)
    tracker.prompt("it", 0, prompt(box=BOX))
    results = list(tracker.propagate(stop_after_absent=2))
    # One empty slice is not the end; two are.
    assert slices_of(results) == [0, 1, 2, 3, 4, 5]
    assert [r.mask_hw.any() for r in results] == [True, True, False, True, False, False]


def test_a_mask_that_is_no_longer_reached_is_taken_back():
    tracker, _ = bright_tracker(discs(SHAPE, (60, 50, 15), None, (60, 50, 15)))
    tracker.prompt("it", 0, prompt(box=BOX))
    assert slices_of(r for r in tracker.propagate() if r.mask_hw.any()) == [0, 2]
    again = {r.n: r.mask_hw.any() for r in tracker.propagate(stop_after_absent=1)}
    assert again == {0: True, 1: False, 2: False}
    assert not tracker.result("it", 2).mask_hw.any()


def test_several_objects_are_encoded_once():
    tracker, _ = bright_tracker(steady(6), TrackerOptions(zoom=False))
    tracker.prompt("one", 1, prompt(box=BOX))
    tracker.prompt("two", 3, prompt([[60, 50]], [1]))
    results = list(tracker.propagate())
    assert slices_of(results, "one") == [1, 2, 3, 4, 5, 0]
    assert slices_of(results, "two") == [3, 4, 5, 2, 1, 0]
    assert tracker.encoder.encoded == 6


def test_a_late_object_does_not_disturb_the_others():
    tracker, _ = bright_tracker(steady(6))
    tracker.prompt("one", 1, prompt(box=BOX))
    list(tracker.propagate())
    before = [r.mask_hw for r in tracker.results("one")]
    tracker.prompt("late", 5, prompt(box=BOX))
    assert slices_of(tracker.propagate(["late"]), "one") == []
    assert len(list(tracker.results("late"))) == 6
    assert all(np.array_equal(a, r.mask_hw) for a, r in zip(before, tracker.results("one"), strict=True))
    tracker.remove_object("one")
    assert tracker.object_ids == ["late"]


def test_a_painted_mask_is_returned_exactly_as_painted():
    tracker, _ = bright_tracker(steady(3))
    painted = np.zeros(SHAPE, bool)
    painted[40:60:3, 50:70] = True
    assert np.array_equal(tracker.prompt("it", 1, prompt(mask=painted)).mask_hw, painted)
    kept = {r.n: r.mask_hw for r in tracker.propagate()}
    assert np.array_equal(kept[1], painted)


def test_final_slices_are_never_overwritten():
    tracker, _ = bright_tracker(steady(7))
    tracker.prompt("it", 3, prompt(box=BOX))
    list(tracker.propagate())
    frozen = tracker.finalise("it", 5)
    painted = a_disc(SHAPE, (60, 50), 5)
    own = tracker.finalise("it", 1, painted)
    assert frozen.final and own.final and own.prompted
    assert 1 in tracker.state("it").conditioning and 5 not in tracker.state("it").conditioning
    results = {r.n: r for r in tracker.propagate()}
    assert results[5].final and np.array_equal(results[5].mask_hw, frozen.mask_hw)
    assert np.array_equal(results[1].mask_hw, painted)
    with raises("slice-final", PromptError, object="it", n=5):
        tracker.prompt("it", 5, prompt(box=BOX))
    tracker.release("it", 5)
    assert not tracker.prompt("it", 5, prompt([[60, 50]], [1])).final


def test_a_final_slice_is_what_tracking_goes_on_from():
    """The object is lost on slice 2; the user says it is what it was, and carries on from there."""
    circle = (60, 50, 15)
    recipe = PromptRecipe(carries_mask=True)
    tracker, heads = bright_tracker(discs(SHAPE, circle, circle, None, circle), recipe=recipe)
    tracker.prompt("it", 0, prompt(box=BOX))
    list(tracker.propagate())
    tracker.finalise("it", 2, a_disc(SHAPE, (60, 50), 14))
    tracker.release("it", 2)
    tracker.finalise("it", 2)
    heads.asked.clear()
    list(tracker.propagate())
    assert (heads.asked[-1]["canvas"] > 0).any()


def test_the_previous_mask_is_carried_when_the_model_wants_it():
    images = discs(SHAPE, (60, 50, 15), (60, 50, 15), (75, 50, 15))
    for carries in (False, True):
        tracker, heads = bright_tracker(images, recipe=PromptRecipe(carries_mask=carries))
        tracker.prompt("it", 0, prompt(box=BOX))
        heads.asked.clear()
        list(tracker.propagate())
        given = [asked["canvas"] is not None for asked in heads.asked]
        assert given and all(given) is carries
        assert all(asked["tokens"] is None for asked in heads.asked)


def test_clicks_feed_back_what_was_predicted_but_a_new_box_begins_anew():
    tracker, heads = bright_tracker(steady(3))
    cases = [
        (prompt([[60, 50]], [1]), False),
        (prompt([[60, 50], [62, 50]], [1, 1]), True),
        (prompt([[60, 50]], [1]), False),  # something was taken back
        (prompt(box=BOX), False),
        (prompt([[60, 50]], [1], box=BOX), True),
    ]
    for given, feeds_back in cases:
        heads.asked.clear()
        tracker.prompt("it", 1, given)
        assert (heads.asked[0]["canvas"] is not None) is feeds_back
    list(tracker.propagate())
    for given, feeds_back in ((prompt([[60, 50]], [1]), True), (prompt(box=BOX), False)):
        heads.asked.clear()
        tracker.prompt("it", 2, given)
        assert (heads.asked[0]["canvas"] is not None) is feeds_back
        tracker.unprompt("it", 2)
        list(tracker.propagate())


def test_cancelling_keeps_what_was_done():
    tracker, _ = bright_tracker(steady(9))
    tracker.prompt("it", 0, prompt(box=BOX))
    seen = []
    with raises("cancelled", Cancelled, done=3, total=9):
        seen.extend(
            r.n for r in tracker.propagate(should_cancel=lambda: len(list(tracker.results("it"))) > 2)
        )
    assert [r.n for r in tracker.results("it")] == [0, 1, 2]


def test_a_snapshot_can_be_gone_back_to():
    tracker, _ = bright_tracker(steady(4))
    tracker.prompt("it", 0, prompt(box=BOX))
    before = tracker.snapshot()
    list(tracker.propagate())
    tracker.finalise("it", 2)
    tracker.restore(before)
    assert [r.n for r in tracker.results("it")] == [0]
    assert slices_of(tracker.propagate()) == [0, 1, 2, 3]


def test_taking_back_the_only_prompt_removes_the_object():
    tracker, _ = bright_tracker(steady(4))
    tracker.prompt("it", 0, prompt(box=BOX))
    tracker.unprompt("it", 0)
    assert tracker.object_ids == []


@pytest.mark.parametrize(
    ("does", "code"),
    [
        (lambda t: t.prompt("it", 7, prompt(box=BOX)), "no-such-slice"),
        (lambda t: t.prompt("it", 0, prompt()), "no-prompts"),
        (lambda t: t.prompt("it", 0, prompt(mask=np.ones((3, 3), bool))), "mask-shape"),
        (lambda t: t.propagate(), "nothing-to-propagate"),
        (lambda t: t.propagate(["liver"]), "unknown-object"),
        (lambda t: (t.prompt("it", 0, prompt(box=BOX)), t.propagate(first=3, last=1)), "empty-range"),
        (lambda t: (t.prompt("it", 0, prompt(box=BOX)), t.finalise("it", 2)), "no-mask-yet"),
        (lambda t: (t.prompt("it", 0, prompt(box=BOX)), t.result("it", 2)), "no-mask-yet"),
    ],
)
def test_what_makes_no_sense_is_refused(does, code):
    tracker, _ = bright_tracker(steady(4))
    with raises(code, PromptError):
        does(tracker)


def test_a_refused_prompt_leaves_no_object_behind():
    tracker, _ = bright_tracker(steady(4))
    with pytest.raises(PromptError):
        tracker.prompt("it", 0, prompt())
    assert tracker.object_ids == []


def test_confidence_falls_with_quality_and_presence():
    tracker, heads = bright_tracker(discs(SHAPE, (60, 50, 15), None))
    heads.sureness = lambda region: 0.8
    present = tracker.prompt("it", 0, prompt(box=BOX))
    assert present.confidence == pytest.approx(0.8, abs=0.01)
    absent = list(tracker.propagate())[-1]
    assert not absent.mask_hw.any() and absent.confidence > 0.99
