"""What users of a WorkerClient rely on; the one that stands in for it in the tests of the extension, too."""

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, WorkerError
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.prompts import Point, SlicePrompts
from medsam2_core.worker.client import WorkerClient, WorkerState
from medsam2_core.worker.job_messages import SearchRequest
from medsam2_core.worker.messages import SessionSettings, StackChoice, segmentation_to_json
from medsam2_core.worker.session_client import SessionClient
from support.in_process_worker import InProcessSession, InProcessWorker
from support.supervised_worker import clicks, fake_worker, volume


class Real:
    """A WorkerClient and its process."""

    def __init__(self, supervised):
        self.worker = supervised(fake_worker("--step", 0.01))
        self.client, self.until, self.turn = self.worker.client, self.worker.until, self.worker.turn

    def die(self):
        self.worker.process.kill()
        self.worker.until_state(WorkerState.RESTARTING)

    def recover(self):
        self.worker.until_ready()


class StandIn:
    """What the tests of the extension use instead."""

    def __init__(self, supervised):
        self.client = InProcessWorker()
        self.die, self.recover = self.client.die, self.client.recover

    def until(self, condition):
        while not condition():
            assert self.client.step(), "nothing is left to be answered"

    def turn(self, seconds):
        self.client.answer_all()


@pytest.fixture(params=[Real, StandIn])
def worker(request, supervised):
    return request.param(supervised)


class Calls:
    """Callbacks that keep what they get."""

    def __init__(self):
        self.results, self.errors, self.masks = [], [], []

    @property
    def named(self):
        return {"done": self.results.append, "failed": self.errors.append}

    def slices(self, masks, done, total):
        assert 0 < done <= total
        self.masks += masks

    @property
    def is_over(self):
        return bool(self.results or self.errors)


@pytest.fixture
def session(worker):
    made = opened(worker)
    worker.until(lambda: made.is_open)
    return made


def opened(worker, **callbacks):
    remote = worker.client.open_volume(volume())
    return worker.client.open_session(remote, StackChoice("k"), SessionSettings(), **callbacks)


def answered(worker, ask, *arguments, **more):
    calls = Calls()
    ask(*arguments, **calls.named, **more)
    worker.until(lambda: calls.is_over)
    assert not calls.errors
    return calls.results[0]


def numbers(masks):
    return sorted(mask.n for mask in masks)


@pytest.mark.parametrize(
    ("stand_in", "real"), [(InProcessSession, SessionClient), (InProcessWorker, WorkerClient)]
)
def test_the_stand_in_has_no_methods_that_the_real_one_lacks(stand_in, real):
    own = {"step", "answer_all", "die", "recover", "later"}
    methods = {name for name in vars(stand_in) if not name.startswith("_") and callable(vars(stand_in)[name])}
    assert methods - own - {"predict", "search"} <= set(dir(real))


def test_a_session_is_reported_as_open_once_and_describes_itself(worker):
    calls = []
    session = opened(worker, opened=lambda: calls.append(session.is_open))
    assert not session.is_open and session.info is None
    worker.until(lambda: calls)
    assert calls == [True]
    assert (session.info.slices, session.info.shape_hw) == (6, (24, 32))
    assert session.info.model["name"] == "embedded"


def test_prompts_are_known_at_once_and_masks_when_they_are_answered(worker, session):
    calls = Calls()
    session.set_prompts("a", clicks((5, 6), n=2), **calls.named)
    assert session.prompts("a") == clicks((5, 6), n=2)
    assert not session.masks("a")
    worker.until(lambda: calls.is_over)
    (mask,) = calls.results[0]
    assert session.masks("a") == {2: mask}
    assert (mask.object, mask.n, mask.prompted, mask.final) == ("a", 2, True, False)
    assert mask.mask_hw[6, 5]
    assert mask.shape_hw == (24, 32)


def test_what_is_asked_before_the_session_is_open_is_answered_in_order(worker):
    session, first, second = opened(worker), Calls(), Calls()
    session.set_prompts("a", clicks((5, 6), n=2), **first.named)
    session.set_prompts("a", clicks((5, 6), (20, 9), n=2), **second.named)
    worker.until(lambda: second.is_over)
    assert first.is_over
    assert session.masks("a")[2].mask_hw[9, 20]


def test_a_known_mask_is_taken_as_it_is(worker, session):
    (mask,) = answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    known = {3: SlicePrompts(known=mask, final=True)}
    (taken,) = answered(worker, session.set_prompts, "a", known)
    assert (taken.n, taken.final) == (3, True)
    assert np.array_equal(taken.mask_hw, mask.mask_hw)


def test_prompts_that_are_taken_back_leave_what_was_propagated(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    answered(worker, session.propagate)
    propagated = session.masks("a")[4]
    answered(worker, session.set_prompts, "a", clicks((20, 9), n=4))
    assert session.masks("a")[4] != propagated
    assert session.snapshot("a").propagated == {4: propagated}
    calls = Calls()
    session.set_prompts("a", {4: SlicePrompts()}, **calls.named)
    assert 4 not in session.prompts("a")
    worker.until(lambda: calls.is_over)
    assert session.masks("a")[4] == propagated
    answered(worker, session.set_prompts, "a", {2: SlicePrompts()})
    assert not session.prompts("a")
    assert 2 not in session.masks("a")


def test_a_propagation_brings_masks_as_they_come(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    calls = Calls()
    session.propagate(["a"], slices=calls.slices, **calls.named)
    worker.until(lambda: calls.is_over)
    (result,) = calls.results
    assert result["done"] == result["total"]
    unprompted = [mask for mask in calls.masks if mask.n != 2]
    assert numbers(unprompted) == [0, 1, 3, 4, 5]
    assert not any(mask.prompted for mask in unprompted)
    assert {n: mask for n, mask in session.masks("a").items() if n != 2} == {m.n: m for m in unprompted}


def test_a_propagation_stays_within_the_limits_of_an_object(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    answered(worker, session.set_prompts, "b", clicks((5, 6), n=4))
    assert set(session.objects) == {"a", "b"}
    calls = Calls()
    session.propagate(limits={"a": (1, 3)}, slices=calls.slices, **calls.named)
    worker.until(lambda: calls.is_over)
    found = {name: {mask.n for mask in calls.masks if mask.object == name} for name in "ab"}
    assert found["a"] | {2} == {1, 2, 3}
    assert found["b"] >= {3, 5}


def test_a_cancelled_propagation_keeps_what_came(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    calls = Calls()
    request = session.propagate(slices=calls.slices, **calls.named)
    worker.until(lambda: calls.masks)
    request.cancel()
    request.cancel()
    worker.until(lambda: calls.is_over)
    worker.turn(0.1)
    assert not calls.results
    assert [type(error) for error in calls.errors] == [Cancelled]
    assert set(session.masks("a")) >= {mask.n for mask in calls.masks}
    assert isinstance(answered(worker, session.propagate), dict)


def test_a_snapshot_has_no_answer_of_earlier_prompts_and_can_be_restored(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    before = session.snapshot("a")
    session.set_prompts("a", clicks((20, 9), n=2))
    assert 2 in session.masks("a"), "it is shown until there is another"
    assert not session.snapshot("a").masks
    session.restore("a", before)
    assert session.prompts("a") == clicks((5, 6), n=2)
    calls = Calls()
    session.set_prompts("a", clicks((9, 9), n=1), **calls.named)
    worker.until(lambda: calls.is_over)
    assert session.prompts("a") == {**clicks((5, 6), n=2), **clicks((9, 9), n=1)}
    assert np.array_equal(session.masks("a")[2].mask_hw, before.masks[2].mask_hw)


def test_a_removed_object_is_gone_with_what_was_still_to_be_answered(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    session.set_prompts("a", clicks((9, 9), n=1))
    calls = Calls()
    session.remove_object("a", **calls.named)
    assert not session.prompts("a")
    assert not session.masks("a")
    worker.until(lambda: calls.is_over)
    assert not session.prompts("a")
    assert not session.masks("a")


def test_a_lost_worker_is_replaced_and_what_was_asked_is_answered(worker, session):
    answered(worker, session.set_prompts, "a", clicks((5, 6), n=2))
    states, calls, propagation = [], Calls(), Calls()
    worker.client.listeners.append(lambda: states.append(worker.client.state))
    session.propagate(slices=propagation.slices, **propagation.named)
    worker.until(lambda: propagation.masks)
    session.set_prompts("a", clicks((5, 6), (20, 9), n=2), **calls.named)
    worker.die()
    assert not session.is_open
    assert session.prompts("a") == clicks((5, 6), (20, 9), n=2)
    worker.recover()
    worker.until(lambda: calls.is_over and session.is_open)
    assert not calls.errors
    assert session.masks("a")[2].mask_hw[9, 20]
    assert [type(error) for error in propagation.errors] == [WorkerError]
    assert states == [WorkerState.RESTARTING, WorkerState.READY]


def test_a_closed_session_calls_nobody(worker, session):
    calls = Calls()
    session.set_prompts("a", clicks((5, 6), n=2), **calls.named)
    session.close()
    session.close()
    worker.turn(0.1)
    assert not calls.is_over
    assert session.is_closed
    later = Calls()
    session.set_prompts("a", {1: SlicePrompts((Point((5, 6, 1)),))}, **later.named)
    worker.until(lambda: later.is_over)
    assert isinstance(later.errors[0], WorkerError)
    assert later.errors[0].code == "session-closed"


def a_segmentation(**masks):
    geometry = volume().geometry
    segments = (Segment(name, (1, 0, 0), mask_kji) for name, mask_kji in masks.items())
    return Segmentation(geometry, tuple(segments))


@pytest.mark.parametrize("is_prior", [True, False])
def test_objects_of_another_scan_are_found_and_the_session_stays_as_it_is(worker, session, is_prior):
    mask_kji = np.zeros(volume().voxels_kji.shape, bool)
    mask_kji[2:4, 4:9, 5:12] = True
    other = a_segmentation(lesion=mask_kji, node=mask_kji)
    wanted = SearchRequest(prior=other) if is_prior else SearchRequest([(volume(), other, "auto")])
    calls = Calls()
    session.find(wanted, slices=calls.slices, **calls.named)
    worker.until(lambda: calls.is_over)
    lesion, node = calls.results[0]
    assert (lesion.name, node.name) == ("lesion", "node")
    assert lesion.colour_rgb == (1.0, 0.0, 0.0) and lesion.is_found
    (prompted,) = lesion.prompts
    assert lesion.masks[prompted].mask_hw[4:9, 5:12].all()
    assert all(box.predicted for box in lesion.prompts[prompted])
    assert session.objects == ()


def test_then_and_now_are_compared(worker):
    old_kji = np.zeros(volume().voxels_kji.shape, bool)
    old_kji[2:4, 4:9, 5:12] = True
    now_kji = np.repeat(np.roll(old_kji, 1, 0) | old_kji, 1, 0)
    arrays, calls = {}, Calls()
    fields = {
        "then": segmentation_to_json(a_segmentation(grown=old_kji, gone=old_kji), arrays),
        "now": segmentation_to_json(a_segmentation(grown=now_kji, fresh=old_kji), arrays),
    }
    worker.client.request("compare", fields, arrays=arrays, **calls.named)
    worker.until(lambda: calls.is_over)
    grown, gone, fresh = calls.results[0]["changes"]
    assert [one["state"] for one in (grown, gone, fresh)] == ["present", "vanished", "new"]
    assert grown["change_percent"]["volume_ml"] == pytest.approx(50)


def test_requests_of_no_session_are_answered(worker):
    calls = Calls()
    worker.client.request("models", {}, **calls.named)
    worker.until(lambda: calls.is_over)
    assert "models" in calls.results[0]
