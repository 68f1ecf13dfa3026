"""The contract about the user's voxels: painted ones are not taken away, erased ones do not come back."""

import random

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from MedSAM2SegmentLib.Segments.EditHistory import EditHistory  # noqa: E402
from support.scene import box_mask, paint  # noqa: E402
from support.writer_setup import WriterSetup  # noqa: E402


class User:
    """Paints, erases and undoes while masks are written; keeps which voxels must stay, and must stay away."""

    def __init__(self, scene):
        self.desk = WriterSetup(scene)
        self.desk.editor.logic.SetMaximumNumberOfUndoStates(1000)
        self.history = EditHistory(self.desk.writer, limit=1000)
        self.painted = np.zeros_like(self.voxels)
        self.erased = np.zeros_like(self.voxels)
        self.wanted = np.zeros_like(self.voxels)  # by the masks written last
        self.states = []  # before each step of Slicer's undo

    @property
    def voxels(self):
        return self.desk.voxels("A")

    def keep(self, isStroke, before):
        wanted = None if isStroke else self.wanted.copy()  # bits go back with our steps only
        self.states.append((isStroke, before, self.painted.copy(), self.erased.copy(), wanted))

    def write(self, k, rows, columns):
        """A mask comes from the model."""
        before, asked = self.voxels, box_mask((k, k), rows, columns)
        self.history.begin("before")
        self.desk.write(k, rows, columns)
        self.history.end("after")
        if not np.array_equal(self.voxels, before):
            self.keep(False, before)
        self.wanted[k] = asked[k]

    def paint(self, k, rows, columns):
        before = self.voxels
        added = box_mask((k, k), rows, columns) & ~before
        if added.any():
            self.keep(True, before)
            paint(self.desk.editor, added, "A")
            self.painted |= added
            self.erased &= ~added
            self.history.reconcile()

    def erase(self, k, rows, columns):
        before = self.voxels
        removed = box_mask((k, k), rows, columns) & before
        # To erase all that is there can be the same as to undo what was written.
        if removed.any() and (before & ~removed)[k].any():
            self.keep(True, before)
            paint(self.desk.editor, removed, "A", "remove")
            self.erased |= removed & self.wanted
            self.painted &= ~removed
            self.history.reconcile()

    def undo(self):
        if self.states:
            isStroke, before, self.painted, self.erased, wanted = self.states.pop()
            self.desk.editor.undo()
            assert np.array_equal(self.voxels, before), "undo is Slicer's, and exact"
            self.history.reconcile()
            if not isStroke:
                self.wanted = wanted

    def check(self):
        voxels = self.voxels
        assert not (self.painted & ~voxels).any(), "what the user painted was taken away"
        assert not (self.erased & voxels).any(), "what the user erased came back"


@pytest.mark.parametrize("seed", range(4))
def test_the_users_voxels_are_the_users(scene, campaign, seed, record_property):
    rng = random.Random(seed)
    user = User(scene)
    record_property("random cases", 40 * campaign)
    for _ in range(40 * campaign):
        rows, columns = (tuple(sorted(rng.choices(range(size), k=2))) for size in (14, 20))
        action = rng.choice([user.write] * 4 + [user.paint, user.erase, user.undo])
        if action == user.undo:
            action()
        else:
            action(rng.randrange(3), rows, columns)
        user.check()


def test_what_a_new_prompt_asks_for_comes_back(scene):
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (4, 5))
    user.write(2, (2, 8), (2, 8))
    assert not user.voxels[2, 4:6, 4:6].any()
    asked = user.desk.mask((4, 4), (4, 4))
    user.desk.write(2, (2, 8), (2, 8), revived={user.desk.n_of(2): asked})
    assert user.voxels[2, 4, 4] and not user.voxels[2, 5, 5]


def test_slicers_undo_takes_back_ours_and_only_that(scene):
    user = User(scene)
    user.paint(2, (0, 1), (0, 19))
    painted = user.voxels
    user.write(2, (2, 8), (2, 8))
    user.undo()
    assert np.array_equal(user.voxels, painted)
    user.write(2, (0, 1), (5, 6))  # a mask within the paint, which then shrinks to nothing
    user.desk.write(2, None, None)
    assert np.array_equal(user.voxels, painted)


def test_a_stroke_over_an_erasure_and_more_is_no_undo_of_it(scene):
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (7, 8))
    user.paint(2, (4, 5), (7, 12))
    user.desk.write(2, None, None)
    assert np.array_equal(user.voxels, box_mask((2, 2), (4, 5), (7, 12)))


def test_a_stroke_far_outside_counts_too(scene):
    """It covers an erasure and goes on in a plane where nothing of ours is."""
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (7, 8))
    stroke = box_mask((2, 6), (4, 5), (7, 8))
    paint(user.desk.editor, stroke, "A")
    user.history.reconcile()
    user.desk.write(2, None, None)
    assert np.array_equal(user.voxels, stroke)


def test_an_undone_erasure_is_ours_again_beside_the_users_paint(scene):
    user = User(scene)
    user.paint(5, (0, 9), (0, 9))
    painted = user.voxels
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (7, 8))
    user.write(3, (2, 8), (2, 8))
    user.undo()
    user.undo()
    user.desk.write(2, None, None)
    assert np.array_equal(user.voxels, painted)


@pytest.mark.parametrize("columns", [(2, 12), (2, 9)])
def test_a_stroke_over_all_that_a_step_removed_and_more_is_the_users(scene, columns):
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.write(2, (2, 3), (2, 8))
    user.paint(2, (4, 8), columns)
    user.write(2, (2, 3), (2, 8))
    user.check()
    user.desk.write(2, None, None)
    assert np.array_equal(user.voxels, box_mask((2, 2), (4, 8), columns))


def test_what_is_painted_over_an_erasure_and_erased_again_stays_away(scene):
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (4, 5))
    user.paint(2, (4, 4), (4, 9))
    user.erase(2, (4, 4), (4, 5))
    user.write(2, (2, 8), (2, 9))
    assert not user.voxels[2, 4:6, 4:6].any() and user.voxels[2, 2, 9]


def test_what_is_painted_over_an_erasure_and_undone_stays_away(scene):
    user = User(scene)
    user.write(2, (2, 8), (2, 8))
    user.erase(2, (4, 5), (4, 5))
    user.paint(2, (4, 4), (4, 9))
    user.undo()
    user.write(2, (2, 8), (2, 9))
    assert not user.voxels[2, 4:6, 4:6].any() and user.voxels[2, 2, 9]
