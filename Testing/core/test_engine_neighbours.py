"""Objects that may not overlap: tracking gives every pixel to one of them."""

import numpy as np
import pytest
import torch
from medsam2_core.engine.maps import logits_in_slice
from medsam2_core.engine.neighbours import Neighbours
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.errors import Interrupted
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt
from medsam2_core.session import Session
from support.command_line import ball_kji
from support.tiny_model import tiny_model

SHAPE_KJI = (24, 48, 40)
LEFT, RIGHT = Box((8, 14, 12), (24, 34, 12)), Box((16, 16, 12), (33, 36, 12))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def volume():
    noise = np.random.default_rng(3).normal(100, 10, SHAPE_KJI)
    voxels = (noise + 300 * ball_kji()).astype(np.int16)
    return Volume(voxels, Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), SHAPE_KJI[::-1]), modality="MR")


def a_session(volume, model, **options):
    session = Session.open(volume, model, **options)
    session.prompt("left", LEFT)
    session.prompt("right", RIGHT)
    return session


def tracked(session, name):
    return {r.n: r.mask_hw for r in session.results(name) if not r.prompted}


def run(session, overlap=False, **options):
    return list(session.propagate(stop_after_absent=None, overlap=overlap, **options))


def test_by_default_objects_share_voxels(volume, model):
    session = a_session(volume, model)
    run(session, overlap=True)
    left, right = tracked(session, "left"), tracked(session, "right")
    assert sum((left[n] & right[n]).sum() for n in left) > 100, "else nothing here is a test"


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
def test_no_tracked_pixel_has_two_owners_and_none_gets_lost_without_one(volume, model, order):
    session = a_session(volume, model)
    run(session, names=list(order), first=11, last=13)
    alone = {}
    for name, box in (("left", LEFT), ("right", RIGHT)):
        one = Session.open(volume, model)
        one.prompt(name, box)
        run(one, first=11, last=13)
        alone[name] = tracked(one, name)
    left, right = tracked(session, "left"), tracked(session, "right")
    assert set(left) == set(right) == {11, 13}
    for n in left:
        assert not (left[n] & right[n]).any()
        # On the slices next to the prompted one nothing has been taken from a memory yet.
        assert np.array_equal(left[n] | right[n], alone["left"][n] | alone["right"][n])
        assert (left[n] & alone["right"][n]).any() or (right[n] & alone["left"][n]).any()


def test_the_higher_logit_gets_the_pixel_whichever_object_comes_first(volume, model):
    both = {}
    for order in (["left", "right"], ["right", "left"]):
        session = a_session(volume, model)
        run(session, names=order, first=13, last=13)
        both[order[0]] = {name: tracked(session, name)[13] for name in order}
    assert all(np.array_equal(both["left"][name], both["right"][name]) for name in ("left", "right"))
    free = a_session(volume, model)
    run(free, overlap=True, first=13, last=13)
    logits = {}
    for name in ("left", "right"):
        kept, region = free.tracker.state(name).kept_logits(13)
        logits[name] = logits_in_slice(kept, region, free.stack.shape_hw)
    shared = tracked(free, "left")[13] & tracked(free, "right")[13]
    assert np.array_equal(both["left"]["left"][shared], (logits["left"] > logits["right"])[shared])


def test_what_changes_is_told(volume, model):
    session, last = a_session(volume, model), {}
    for result in session.propagate(stop_after_absent=None, overlap=False):
        last[result.object, result.n] = result
    for name in ("left", "right"):
        for result in session.results(name):
            assert np.array_equal(last[name, result.n].mask_hw, result.mask_hw)


def test_prompted_slices_and_objects_that_are_not_propagated_stay(volume, model):
    session = a_session(volume, model)
    drawn = np.zeros(SHAPE_KJI, bool)
    drawn[14, 10:40, 5:20] = True
    session.prompt("left", MaskPrompt.from_volume(drawn))
    run(session, names=["left"])
    before = {r.n: r.mask_hw for r in session.results("left")}
    run(session, names=["right"])
    after = {r.n: r.mask_hw for r in session.results("left")}
    assert all(np.array_equal(before[n], after[n]) for n in before)
    right = tracked(session, "right")
    assert all(not (after[n] & right[n]).any() for n in right)


def test_undo_brings_back_what_neighbours_lost(volume, model):
    session = a_session(volume, model)
    run(session, names=["left"])
    before = session.mask_kji("left")
    run(session)
    session.undo()
    assert np.array_equal(session.mask_kji("left"), before)


def test_an_interrupted_propagation_ends_as_any_other(volume, model):
    plain, interrupted = a_session(volume, model), a_session(volume, model)
    run(plain)
    chance, interruptions = np.random.default_rng(1), []

    def check():
        if len(interruptions) < 40 and chance.random() < 0.1:
            interruptions.append(1)
            raise Interrupted("a click")

    progress = interrupted.propagate(stop_after_absent=None, overlap=False)
    with model.interruptible_by(check):
        while not progress.is_complete:
            try:
                next(progress)
            except Interrupted:
                continue
    assert len(interruptions) == 40
    for name in ("left", "right"):
        assert np.array_equal(plain.mask_kji(name), interrupted.mask_kji(name))


def test_probabilities_agree_with_the_masks(volume, model):
    session = a_session(volume, model, probabilities=True)
    run(session)
    for name in ("left", "right"):
        for result in session.results(name):
            if result.probabilities is not None:
                assert np.array_equal(result.probabilities.values_hw() >= 128, result.mask_hw)


def test_the_higher_logit_wins_also_where_an_object_comes_from_the_other_side(volume, model):
    """One is tracked upwards, the other downwards: in between the first keeps its own logits no more."""
    found = {}
    for limit in (None, 2):
        options = TrackerOptions(zoom=True, recent_logits=limit)
        session = Session(volume, model, options=options)
        session.prompt("left", Box((8, 14, 6), (24, 34, 6)))
        session.prompt("right", Box((16, 16, 18), (33, 36, 18)))
        run(session)
        found[limit] = {name: session.mask_kji(name) for name in ("left", "right")}
    for name in ("left", "right"):
        total = np.count_nonzero(found[None][name])
        assert total > 500, "else nothing here is a test"
        assert np.count_nonzero(found[None][name] ^ found[2][name]) <= 0.02 * total, "half precision"


def test_logits_are_kept_for_neighbours_only_as_long_as_they_come(volume, model, monkeypatch):
    made = []
    usual = Neighbours.__init__
    monkeypatch.setattr(
        Neighbours, "__init__", lambda self, *args: (made.append(self), usual(self, *args))[1]
    )
    session = Session.open(volume, model)
    session.prompt("left", Box((8, 14, 6), (24, 34, 6)))
    session.prompt("right", Box((16, 16, 18), (33, 36, 18)))
    most = 0
    for _ in session.propagate(stop_after_absent=None, overlap=False):
        most = max(most, len(made[0]._kept))
    assert 0 < most <= 24
    assert not made[0]._kept
