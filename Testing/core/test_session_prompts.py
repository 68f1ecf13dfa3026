"""Prompts by slice: the same prompts give the same mask, whatever came in between; restoring; pausing."""

from dataclasses import replace

import numpy as np
import pytest
from medsam2_core.engine.model import blocks, load_model
from medsam2_core.errors import Cancelled, Interrupted, PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import Box, MaskPrompt, Point, SlicePrompts
from medsam2_core.session import Session
from support.errors import raises
from support.model import set_prompts
from support.tiny_model import tiny_model

SHAPE_KJI = (24, 48, 40)
N = 12
BOX = Box((13, 19, 12), (27, 33, 12))
INSIDE, ASIDE, OUTSIDE = Point((20, 26, 12)), Point((16, 26, 12)), Point((5, 5, 12), positive=False)


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def model(request):
    """A small network of random weights, and the one that ships."""
    return tiny_model() if request.param == "tiny" else load_model("embedded", "cpu")


@pytest.fixture
def session(volume, model):
    return Session.open(volume, model)


def seen(session, result):
    """All of a result that must be equal bit for bit, with the logits behind it."""
    if result is None:
        return None
    logits, region = session.tracker.state(result.object).kept_logits(result.n)
    return replace(result, object=""), region, logits.numpy().tobytes()


def everything(session, name="ball"):
    return {r.n: (r.mask_hw.tobytes(), r.predicted_iou, r.prompted, r.final) for r in session.results(name)}


def elsewhere(n, *points):
    """The same clicks on another slice."""
    return [Point((*point.ijk[:2], n), point.positive) for point in points]


PROMPTS = {
    "one click": [INSIDE],
    "clicks": [INSIDE, OUTSIDE, ASIDE],
    "a box": [BOX],
    "a box and clicks": [BOX, OUTSIDE, INSIDE],
    "a click and a box": [INSIDE, BOX],
    "a mask and a click": [MaskPrompt(np.ones((1, 8, 8), bool), (16, 22, 12)), OUTSIDE],
    "a click outside": [OUTSIDE],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_the_same_prompts_give_the_same_mask(session, volume, model, prompts):
    first = seen(session, set_prompts(session, "ball", N, prompts))
    assert set_prompts(session, "ball", N, []) is None
    assert seen(session, set_prompts(session, "ball", N, prompts)) == first, "again"

    set_prompts(session, "ball", N, [ASIDE])
    assert seen(session, set_prompts(session, "ball", N, prompts)) == first, "after something else"

    set_prompts(session, "ball", N, [])
    set_prompts(session, "ball", N - 2, elsewhere(N - 2, INSIDE))
    for count in range(1, len(prompts) + 1):
        last = set_prompts(session, "ball", N, prompts[:count])
    assert seen(session, last) == first, "one by one, beside another slice"

    fresh = Session.open(volume, model)
    assert seen(fresh, set_prompts(fresh, "another name", N, prompts)) == first, "in a fresh session"


def test_the_same_prompts_give_the_same_mask_after_any_others(volume, model, campaign):
    rng = np.random.default_rng(5)
    alone = Session.open(volume, model)
    expected = seen(alone, set_prompts(alone, "ball", N, [INSIDE, OUTSIDE]))
    choices = [[INSIDE], [INSIDE, ASIDE], [BOX], [], [OUTSIDE, INSIDE], [INSIDE, OUTSIDE]]
    for _ in range(3 * campaign):
        session = Session.open(volume, model)
        for _ in range(6):
            n = int(rng.choice([N, N, N + 1, N - 3]))
            prompts = choices[rng.integers(len(choices))]
            if n != N:
                prompts = elsewhere(n, *(one for one in prompts if isinstance(one, Point)))
            set_prompts(session, "ball", n, prompts)
            if rng.random() < 0.2:
                session.undo()
        assert seen(session, set_prompts(session, "ball", N, [INSIDE, OUTSIDE])) == expected


def test_removed_prompts_leave_nothing(session):
    set_prompts(session, "ball", N, [INSIDE])
    assert set_prompts(session, "ball", N, []) is None
    assert not session.mask_kji("ball").any()
    assert session.prompts.of("ball") == []
    assert set_prompts(session, "unheard of", N, []) is None
    assert "unheard of" not in session.object_names


def test_removed_prompts_bring_back_the_tracked_mask(session):
    set_prompts(session, "ball", N, [BOX])
    list(session.propagate())
    tracked = everything(session)
    set_prompts(session, "ball", N + 2, elsewhere(N + 2, OUTSIDE))
    result = set_prompts(session, "ball", N + 2, [])
    assert not result.prompted
    assert everything(session) == tracked
    set_prompts(session, "ball", N, [])
    left = everything(session)
    assert set(left) == set(tracked) - {N}
    with raises("no-prompts", PromptError, object="ball"):
        session.propagate(["ball"])


def test_a_correction_that_moves_corrects_the_same_mask(session):
    set_prompts(session, "ball", N, [BOX])
    list(session.propagate())
    one, other = elsewhere(N + 2, OUTSIDE, INSIDE)
    first = seen(session, set_prompts(session, "ball", N + 2, [one, other]))
    set_prompts(session, "ball", N + 2, [other])
    set_prompts(session, "ball", N + 2, [])
    set_prompts(session, "ball", N + 2, [one])
    assert seen(session, set_prompts(session, "ball", N + 2, [one, other])) == first


def test_a_known_mask_is_taken_as_it_is(session, monkeypatch):
    known = np.zeros(session.stack.shape_hw, dtype=bool)
    known[20:30, 10:20] = True
    result = set_prompts(
        session, "ball", N, [INSIDE], known=SliceMask.from_mask("ball", N, known, predicted_iou=0.5)
    )
    assert (result.mask_hw == known).all()
    assert result.predicted_iou == 0.5
    assert result.prompted
    assert session.prompts.of("ball") == [INSIDE]
    assert len(list(session.propagate(first=N - 1, last=N + 1))) == 3


def test_prompts_after_a_known_mask_give_what_they_always_give(session, volume, model):
    alone = Session.open(volume, model)
    expected = seen(alone, set_prompts(alone, "ball", N, [INSIDE, OUTSIDE]))
    set_prompts(session, "ball", N, [INSIDE], known=np.ones(session.stack.shape_hw, dtype=bool))
    assert seen(session, set_prompts(session, "ball", N, [INSIDE, OUTSIDE])) == expected


def test_a_final_slice_stays_until_it_is_released(session):
    set_prompts(session, "ball", N, [BOX])
    list(session.propagate())
    before = everything(session)
    assert set_prompts(session, "ball", N + 1, [], final=True).final
    assert not set_prompts(session, "ball", N + 1, [], final=True).prompted
    set_prompts(session, "ball", N, [BOX, INSIDE])
    list(session.propagate())
    assert everything(session)[N + 1][0] == before[N + 1][0]
    assert not set_prompts(session, "ball", N + 1, []).final
    final = set_prompts(session, "ball", N + 2, elsewhere(N + 2, INSIDE), final=True)
    assert final.final
    assert not set_prompts(session, "ball", N + 2, elsewhere(N + 2, INSIDE)).final
    with raises("no-mask-yet", PromptError):
        set_prompts(session, "other", N, [], final=True)
    assert "other" not in session.object_names


def test_a_final_slice_keeps_its_mask_when_its_prompts_are_sent_again(session):
    set_prompts(session, "ball", N, [BOX])
    list(session.propagate())
    prompts = elsewhere(N + 2, OUTSIDE)
    corrected = set_prompts(session, "ball", N + 2, prompts, final=True)
    drawn = np.zeros(session.stack.shape_hw, dtype=bool)
    drawn[20:25, 10:20] = True
    set_prompts(session, "ball", N + 4, [], known=drawn, final=True)
    set_prompts(session, "ball", N, [BOX, ASIDE])
    list(session.propagate())
    again = set_prompts(session, "ball", N + 2, prompts, final=True)
    assert again.final and again.bits == corrected.bits
    again = set_prompts(session, "ball", N + 4, [], known=drawn, final=True)
    assert again.final and np.array_equal(again.mask_hw, drawn)
    again = set_prompts(session, "ball", N + 4, session.prompts.of("ball")[-1:], final=True)
    assert again.final and np.array_equal(again.mask_hw, drawn)


def test_final_slices_are_restored_with_their_masks(session):
    masks = {n: np.zeros(session.stack.shape_hw, dtype=bool) for n in (N, N + 2, N + 4)}
    for width, mask in enumerate(masks.values(), start=5):
        mask[20:25, 10 : 10 + width] = True
    known = {n: SliceMask.from_mask("ball", n, mask, predicted_iou=0.5) for n, mask in masks.items()}
    slices = {
        N: SlicePrompts([INSIDE], True, known[N]),  # prompted, with its mask
        N + 2: SlicePrompts((), True, known[N + 2]),  # drawn
        N + 4: SlicePrompts((), True),  # tracked, and frozen
    }
    session.restore_object("ball", slices, {N + 4: known[N + 4]})
    list(session.propagate())
    for mask in session.results("ball"):
        if mask.n in masks:
            assert mask.final and np.array_equal(mask.mask_hw, masks[mask.n])


def test_the_users_own_mask_is_a_prompt_and_final(session):
    mine = np.zeros(session.stack.shape_hw, dtype=bool)
    mine[20:25, 10:20] = True
    result = set_prompts(session, "ball", N, [], known=mine, final=True)
    assert result.final
    assert result.prompted
    assert (result.mask_hw == mine).all()
    assert isinstance(session.prompts.of("ball")[0], MaskPrompt)


def test_several_slices_are_one_step(session):
    set_prompts(session, "ball", N, [INSIDE])
    before = everything(session)
    session.set_prompts("ball", {n: SlicePrompts(elsewhere(n, INSIDE, OUTSIDE)) for n in (N, N + 1, N + 2)})
    assert set(everything(session)) == {N, N + 1, N + 2}
    assert session.undo() == "prompt ball"
    assert everything(session) == before


@pytest.mark.parametrize(
    ("n", "prompts", "code"),
    [
        (99, [INSIDE], "no-such-slice"),
        (N + 1, [INSIDE], "prompt-on-other-slice"),
        (N, [BOX, BOX], "two-boxes"),
        (N, [Point((500, 0, 12))], "outside-volume"),
    ],
)
def test_refused_prompts_change_nothing(session, n, prompts, code):
    set_prompts(session, "ball", N, [INSIDE])
    before, steps = everything(session), session.undo_steps
    with raises(code, PromptError):
        set_prompts(session, "ball", n, prompts)
    with raises("mask-shape", PromptError, n=N):
        set_prompts(session, "ball", N, [], known=np.ones((3, 3), dtype=bool))
    assert everything(session) == before
    assert session.undo_steps == steps


def test_an_object_is_restored_from_its_prompts_and_masks(session, volume, model):
    set_prompts(session, "ball", N, [BOX])
    set_prompts(session, "ball", N + 4, elsewhere(N + 4, INSIDE, OUTSIDE))
    list(session.propagate())
    set_prompts(session, "ball", N + 1, [], final=True)
    before = {r.n: r for r in session.results("ball")}
    prompts = {
        N: SlicePrompts([BOX]),
        N + 4: SlicePrompts(elsewhere(N + 4, INSIDE, OUTSIDE)),
        N + 1: SlicePrompts(final=True),
    }
    tracked = {n: mask for n, mask in before.items() if not mask.prompted}

    other = Session.open(volume, model)
    set_prompts(other, "ball", 3, elsewhere(3, INSIDE))
    other.restore_object("ball", prompts, tracked)
    assert everything(other) == everything(session)
    assert other.prompts.of("ball") == session.prompts.of("ball")
    assert seen(other, other.tracker.result("ball", N)) == seen(session, session.tracker.result("ball", N))
    list(other.propagate())
    list(session.propagate())
    other.undo()
    other.undo()
    assert set(everything(other)) == {3}


def test_prompts_that_corrected_a_tracked_mask_correct_it_again_when_restored(session, volume, model):
    set_prompts(session, "ball", N, [BOX])
    list(session.propagate())
    covered = session.tracker.result("ball", N + 2)
    click = elsewhere(N + 2, OUTSIDE)
    set_prompts(session, "ball", N + 2, click)

    other = Session.open(volume, model)
    other.restore_object("ball", {N: SlicePrompts([BOX]), N + 2: SlicePrompts(click)}, {N + 2: covered})
    assert other.tracker.result("ball", N + 2).prompted
    left = set_prompts(other, "ball", N + 2, [])
    assert np.array_equal(left.mask_hw, covered.mask_hw)


def test_an_object_is_restored_with_masks_alone(session):
    mask = np.zeros(session.stack.shape_hw, dtype=bool)
    mask[20:30, 10:20] = True
    there = SliceMask.from_mask("ball", 5, mask, predicted_iou=0.7)
    session.restore_object("ball", {}, {5: there, 6: SliceMask.from_mask("ball", 6, mask & False)})
    assert [r.n for r in session.results("ball")] == [5, 6]
    with pytest.raises(PromptError):
        session.propagate()
    corrected = set_prompts(session, "ball", 5, elsewhere(5, OUTSIDE))
    assert corrected.prompted
    list(session.propagate())


# Making way -------------------------------------------------------------------------------------------------


class Interruptions:
    """Interrupts at random blocks, and counts questions."""

    def __init__(self, seed, chance=0.02):
        self.rng, self.chance = np.random.default_rng(seed), chance
        self.asked = self.raised = 0

    def __call__(self):
        self.asked += 1
        if self.rng.random() < self.chance:
            self.raised += 1
            raise Interrupted


def persistently(propagation, between=lambda: None):
    """All results of a propagation, asking again whenever it was interrupted."""
    results = []
    while True:
        try:
            result = next(propagation, None)
        except Interrupted:
            between()
            continue
        if result is None:
            return results
        results.append(result)


@pytest.mark.parametrize("memory", ["recent", "self-sorting"])
def test_an_interrupted_propagation_gives_the_same_masks(volume, model, memory, campaign):
    def prompted_session():
        session = Session.open(volume, model, memory=memory)
        set_prompts(session, "ball", N, [BOX])
        set_prompts(session, "ball", N + 5, elsewhere(N + 5, INSIDE))
        set_prompts(session, "other", N - 3, elsewhere(N - 3, ASIDE))
        return session

    plain = prompted_session()
    expected = [seen(plain, result) for result in plain.propagate()]
    for seed in range(campaign):
        session, hook = prompted_session(), Interruptions(seed)
        session.tracker.encoder.cache.clear()
        with model.interruptible_by(hook):
            progress = session.propagate()
            results = persistently(progress)
        assert hook.raised > 3
        assert [seen(session, result) for result in results] == expected
        assert progress.done == progress.total
        assert everything(session) == everything(plain)
        assert session.undo() == "propagate"


def test_clicks_are_answered_while_a_propagation_pauses(volume, model):
    alone = Session.open(volume, model)
    expected = seen(alone, set_prompts(alone, "late", N, [INSIDE, OUTSIDE]))
    session, hook = Session.open(volume, model), Interruptions(7, 0.05)
    set_prompts(session, "ball", N, [BOX])
    clicked = []

    def click():
        chance, hook.chance = hook.chance, 0
        clicked.append(seen(session, set_prompts(session, "late", N, [INSIDE, OUTSIDE])))
        set_prompts(session, "late", N, [])
        set_prompts(session, "ball", N + 6, elsewhere(N + 6, INSIDE))
        hook.chance = chance

    with model.interruptible_by(hook):
        results = persistently(session.propagate(), click)
    assert len(clicked) == hook.raised > 3
    assert set(clicked) == {expected}
    prompted = {r.n for r in session.results("ball") if r.prompted}
    assert prompted == {N, N + 6}
    assert {r.n for r in results if r.object == "ball"} >= prompted
    set_prompts(session, "ball", N, [])
    assert set_prompts(session, "ball", N + 6, elsewhere(N + 6, INSIDE)).prompted


def test_a_propagation_outlives_the_prompts_it_came_from(session, model):
    set_prompts(session, "ball", 5, elsewhere(5, INSIDE))
    set_prompts(session, "ball", 18, elsewhere(18, INSIDE))
    progress = session.propagate()
    next(progress)
    set_prompts(session, "ball", 18, [])
    assert all(result.object == "ball" for result in progress)
    progress = session.propagate()
    session.remove_object("ball")
    assert list(progress) == []


def test_interrupted_prompts_are_not_half_set(session, model):
    set_prompts(session, "ball", N, [INSIDE])
    before = everything(session)

    def interrupt():
        raise Interrupted

    with model.interruptible_by(interrupt), pytest.raises(Interrupted):
        set_prompts(session, "ball", N, [ASIDE, OUTSIDE])
    assert everything(session) == before
    assert session.prompts.of("ball") == [INSIDE]


def test_a_cancelled_propagation_is_over(session, model):
    set_prompts(session, "ball", N, [BOX])
    progress = session.propagate()
    next(progress)

    def cancel():
        raise Cancelled("enough")

    with model.interruptible_by(cancel), pytest.raises(Cancelled):
        list(progress)
    assert list(progress) == []
    assert not any(part._forward_pre_hooks for part in blocks(model.module))
