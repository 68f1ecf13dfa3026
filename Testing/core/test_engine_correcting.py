"""A correction changes what it is about, and what it is not about stays."""

import numpy as np
import pytest
import torch
from medsam2_core import Box, Point, Session
from medsam2_core.engine.correcting import kept
from medsam2_core.engine.maps import logits_of_mask, mask_of_logits, mixed_logits
from medsam2_core.engine.zoom import Region
from support.project import ROOT


@pytest.fixture
def bar():
    """A thin object: rows 20 to 22, columns 5 to 54."""
    mask = np.zeros((40, 60), bool)
    mask[20:23, 5:55] = True
    return mask


def after_clicks(before, answer, *clicks, is_local=True, may_vanish=True, may_end=True):
    """Clicks are (x, y, positive)."""
    xy, positive = np.array([c[:2] for c in clicks], float), np.array([c[2] for c in clicks], bool)
    may = {"may_vanish": may_vanish, "may_end": may_vanish and may_end}
    return kept(before, answer, xy, positive, is_local=is_local, **may)


def without(mask, *columns):
    left = mask.copy()
    for first, last in columns:
        left[:, first:last] = False
    return left


def test_a_negative_click_takes_away_the_piece_it_is_on_only(bar):
    answer = without(bar, (5, 12), (44, 50))
    assert np.array_equal(after_clicks(bar, answer, (47, 21, False)), without(bar, (44, 50)))
    assert np.array_equal(after_clicks(bar, answer, (47, 19, False)), without(bar, (44, 50)))  # one pixel off
    assert np.array_equal(after_clicks(bar, answer, (20, 35, False)), bar)  # nowhere near
    both = after_clicks(bar, answer, (47, 21, False), (6, 21, False))
    assert np.array_equal(both, answer)


def test_a_negative_click_adds_nothing_and_a_positive_one_takes_nothing_away(bar):
    answer = without(bar, (44, 50))
    answer[5:9, 10:20] = True
    assert np.array_equal(after_clicks(bar, answer, (47, 21, False)), without(bar, (44, 50)))
    assert np.array_equal(after_clicks(bar, answer, (15, 6, True)), bar | answer)
    clicks = (15, 6, True), (47, 21, False)
    assert np.array_equal(after_clicks(bar, answer, *clicks, may_vanish=False), answer)


def test_where_only_clicks_were_given_an_answer_that_loses_little_counts_as_it_is(bar):
    answer = without(bar, (40, 60))  # 45 of 150 pixels
    for click in ((50, 21, False), (10, 21, True), (10, 30, False)):
        assert np.array_equal(after_clicks(bar, answer, click, is_local=False), answer)
    assert np.array_equal(after_clicks(bar, np.zeros_like(bar), (32, 21, True), is_local=False), bar)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_negative_click_beside_a_thin_object_does_not_wipe_it_out(bar, is_local):
    nothing = np.zeros_like(bar)
    assert np.array_equal(
        after_clicks(bar, nothing, (30, 24, False), is_local=is_local), bar
    )  # it was outside
    found = after_clicks(
        bar, nothing, (5, 20, False), is_local=is_local
    )  # a corner: one pixel from the border
    gone = bar & ~found
    assert gone[20, 5] and 1 <= gone.sum() <= 4


@pytest.mark.parametrize("is_local", [True, False])
def test_a_negative_click_in_the_middle_means_the_whole(bar, is_local):
    answer = without(bar, (28, 33))
    assert not after_clicks(bar, answer, (30, 21, False), is_local=is_local).any()
    # Unless the user has said that it is here, tracking found it far beyond, or the click is at one side.
    assert np.array_equal(after_clicks(bar, answer, (30, 21, False), may_end=False), answer)
    assert np.array_equal(after_clicks(bar, answer, (30, 21, False), may_vanish=False), answer)
    assert np.array_equal(after_clicks(bar, answer, (50, 21, False), is_local=False), answer)
    found = after_clicks(bar, np.zeros_like(bar), (30, 21, False), may_vanish=False)
    assert not found[21, 30] and found.sum() > 120


def test_what_a_negative_click_removes_grows_with_its_depth():
    body = np.zeros((80, 80), bool)
    body[10:70, 10:50] = True  # 20 deep
    body[30:50, 50:62] = True  # what is too much: clicked in its middle, 6 deep
    found = after_clicks(body, np.zeros_like(body), (57, 40, False))
    gone = body & ~found
    assert gone[40, 57] and gone[40, 60] and not gone[:, :45].any()
    assert 100 < gone.sum() < 260


def test_where_nothing_was_a_positive_click_adds_and_a_negative_one_does_not(bar):
    nothing = np.zeros_like(bar)
    assert np.array_equal(after_clicks(nothing, bar, (30, 21, True)), bar)
    assert not after_clicks(nothing, bar, (30, 21, False)).any()


def test_a_negative_click_that_the_answer_ignores_takes_away_what_is_round_it(bar):
    found = after_clicks(bar, bar, (50, 21, False))
    assert not found[21, 50] and 100 < found.sum() < 150


def test_clicks_that_together_would_take_most_of_the_mask_take_what_is_round_them(bar):
    answer = np.zeros_like(bar)
    answer[20:23, 29:31] = True
    clicks = (10, 21, False), (50, 21, False)
    found = after_clicks(bar, answer, *clicks, may_vanish=False)
    assert not found[21, 10] and not found[21, 50] and found.sum() > 110


def test_what_the_answer_keeps_stays_beside_a_click(bar):
    answer = without(bar, (5, 32))
    found = after_clicks(bar, answer, (30, 21, False), may_vanish=False)
    assert not found[21, 30] and found[:, 32:].sum() == answer.sum()


def test_a_click_outside_the_slice_is_at_its_edge(bar):
    assert np.array_equal(after_clicks(bar, np.zeros_like(bar), (-3, 99, False)), bar)


def test_an_answer_that_is_much_surer_than_the_mask_before_counts_as_a_whole():
    session = Session.open(ROOT / "Resources" / "demo" / "mni152_t1.nrrd")
    sizes, sureness = [], []
    for prompt in (Box((58, 62, 28), (110, 138, 28)), Point((84, 71, 28), positive=False)):
        session.prompt("ventricles", prompt)
        sizes.append(int(session.mask_kji("ventricles")[28].sum()))
        sureness.append(session.tracker.state("ventricles").conditioning[28].prediction.predicted_iou)
    # What lies behind the ventricles is a tenth of what is too much.
    assert sureness[1] > sureness[0] + 0.2 and sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("reach", [1, 4])  # pixels of the slice in one of the logits
def test_logits_are_mixed_to_give_the_mask_that_stands(reach):
    side = 32 * reach
    before, answer = np.zeros((2, side, side), bool)
    before[4 * reach : 28 * reach, 4 * reach : 28 * reach] = True
    answer[12 * reach : 28 * reach, 4 * reach : 20 * reach] = True  # two edges went
    stands = before.copy()
    stands[4 * reach : 12 * reach, 4 * reach : 20 * reach] = False
    region, cpu = Region(0, 0, side, side), torch.device("cpu")
    old, new = (logits_of_mask(mask, region, 32, cpu) for mask in (before, answer))
    mixed = mixed_logits(new, old, region, answer, stands)
    got = mask_of_logits(mixed, region, stands.shape)
    assert (got ^ stands).mean() < 0.01
    untouched = mixed == new
    assert untouched.float().mean() > 0.6
