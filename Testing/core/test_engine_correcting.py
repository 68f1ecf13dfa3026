"""A correction changes what it is about, and what it is not about stays."""

import numpy as np
import pytest
from medsam2_core.engine.correcting import kept


@pytest.fixture
def bar():
    """A thin object: rows 20 to 22, columns 5 to 54."""
    mask = np.zeros((40, 60), bool)
    mask[20:23, 5:55] = True
    return mask


def test_an_answer_that_loses_little_is_taken_as_it_is(bar):
    after = bar.copy()
    after[:, 40:] = False  # 45 of 150 pixels
    assert kept(bar, after, (50, 21), False, may_vanish=True) is None
    assert kept(bar, after, (10, 30), True, may_vanish=True) is None
    assert kept(bar, bar, (10, 21), True, may_vanish=True) is None


def test_a_negative_click_beside_a_thin_object_does_not_wipe_it_out(bar):
    nothing = np.zeros_like(bar)
    assert np.array_equal(kept(bar, nothing, (30, 24), False, may_vanish=True), bar)  # it was outside already
    found = kept(bar, nothing, (5, 20), False, may_vanish=True)  # a corner: one pixel from the border
    assert found is not None
    gone = bar & ~found
    assert gone[20, 5] and 1 <= gone.sum() <= 4


def test_a_negative_click_in_the_middle_means_the_whole(bar):
    assert kept(bar, np.zeros_like(bar), (30, 21), False, may_vanish=True) is None
    found = kept(bar, np.zeros_like(bar), (30, 21), False, may_vanish=False)  # but the user said it is here
    assert found is not None and not found[21, 30] and found.sum() > 120


def test_what_a_negative_click_removes_grows_with_its_depth():
    body = np.zeros((80, 80), bool)
    body[10:70, 10:50] = True  # 20 deep
    body[30:50, 50:62] = True  # what is too much: clicked in its middle, 6 deep
    found = kept(body, np.zeros_like(body), (57, 40), False, may_vanish=True)
    gone = body & ~found
    assert gone[40, 57] and gone[40, 60] and not gone[:, :45].any()
    assert 100 < gone.sum() < 260


def test_a_positive_click_takes_nothing_away(bar):
    other = np.zeros_like(bar)
    other[30:35, 30:35] = True
    assert np.array_equal(kept(bar, other, (32, 32), True, may_vanish=True), bar | other)


def test_where_nothing_was_there_is_nothing_to_keep(bar):
    nothing = np.zeros_like(bar)
    assert kept(nothing, bar, (30, 21), True, may_vanish=True) is None
    assert kept(nothing, nothing, (30, 21), False, may_vanish=True) is None


def test_a_click_outside_the_slice_is_at_its_edge(bar):
    assert np.array_equal(kept(bar, np.zeros_like(bar), (-3, 99), False, may_vanish=True), bar)
