"""A worker that dies, hangs, talks nonsense or never comes: that is noticed, told, and mended if possible."""

import re
import sys

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, GeometryError, PromptError, WorkerError
from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.connection import Timing
from medsam2_core.worker.messages import StackChoice
from support.supervised_worker import HASTY, clicks, fake_worker, volume


def masks_of(session, name="a"):
    return {n: mask.mask_hw for n, mask in session.masks(name).items()}


def same_masks(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_a_session_is_opened_spoken_to_and_followed(supervised):
    worker = supervised()
    session = worker.session()
    assert session.info.slices == 6 and session.info.shape_hw == (24, 32)
    (record,) = worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    assert record.n == 2 and record.mask_hw[6, 5] and session.masks("a") == {2: record}
    came = []
    result = worker.answer(session.propagate, slices=lambda records, *_: came.extend(records))
    assert result == {"done": 6, "total": 6} and [r.n for r in came] == list(range(6))
    assert session.masks("a") == {r.n: r for r in came}
    assert worker.states == [WorkerState.STARTING, WorkerState.READY]


def test_what_is_asked_before_there_is_a_worker_is_answered_when_there_is_one(supervised):
    worker = supervised(start=False)
    worker.client.start()
    session = worker.session(wait=False)
    answers = []
    session.set_prompts("a", clicks((5, 6), n=2), done=answers.append)
    session.set_prompts("a", clicks((5, 6), (9, 9), n=2), done=answers.append)
    assert session.prompts("a") == clicks((5, 6), (9, 9), n=2) and not answers
    worker.until(lambda: len(answers) == 2)
    assert answers[1][0].mask_hw[9, 9] and not answers[0][0].mask_hw[9, 9]


@pytest.mark.parametrize("action", ["die", "kill", "garbage", "close", "hang", "stop", "deaf"])
def test_a_worker_lost_while_it_answers_is_replaced_and_the_answer_comes(supervised, tmp_path, action):
    worker = supervised(fake_worker("--at", "set_prompts", action, "--times", 1, "--notes", tmp_path))
    session = worker.session()
    records = worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    assert [r.n for r in records] == [2]
    assert WorkerState.RESTARTING in worker.states and worker.client.state is WorkerState.READY
    worker.answer(session.set_prompts, "a", clicks((5, 6), (9, 9), n=2))
    assert session.masks("a")[2].mask_hw[9, 9] and len(worker.transports) == 2


def test_a_new_worker_knows_all_that_the_lost_one_knew(supervised):
    undisturbed, disturbed = supervised(), supervised()
    finals = []
    for worker in (undisturbed, disturbed):
        session = worker.session()
        worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
        worker.answer(session.set_prompts, "a", clicks((5, 6), (20, 12), n=2))
        worker.answer(session.set_prompts, "b", clicks((9, 9), n=1))
        worker.answer(session.propagate, ["a"])
        worker.answer(session.set_prompts, "a", clicks((25, 6), n=4))  # corrects a mask that was tracked
        before = masks_of(session)
        if worker is disturbed:
            worker.process.kill()
            worker.until_state(WorkerState.RESTARTING)
            worker.until(lambda session=session: session.is_open)
        assert same_masks(masks_of(session), before)
        answers = [worker.answer(session.set_prompts, "a", clicks((25, 6), (3, 3), n=4))]
        answers.append(worker.answer(session.set_prompts, "a", clicks((5, 6), (20, 12), (8, 18), n=2)))
        worker.answer(session.propagate)
        finals.append((answers, session.masks("a"), session.masks("b"), session.snapshot("a")))
    assert finals[0][:3] == finals[1][:3]
    assert finals[0][3].propagated.keys() == finals[1][3].propagated.keys() == {4}


def test_a_worker_lost_while_propagating_keeps_what_came(supervised):
    worker = supervised(fake_worker("--step", 0.05))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    came, errors = [], []
    session.propagate(slices=lambda records, *_: came.extend(records), failed=errors.append)
    worker.until(lambda: len(came) == 3)
    worker.process.kill()
    worker.until(lambda: errors)
    assert (errors[0].code, errors[0].fields) == ("worker-lost", {"request": "propagate"})
    assert set(session.masks("a")) >= {0, 1, 2}
    worker.until(lambda: session.is_open)
    worker.answer(session.propagate)
    assert len(session.masks("a")) == 6


def test_what_ends_the_worker_twice_is_not_asked_a_third_time(supervised):
    worker = supervised(fake_worker("--at", "remove_object", "die"))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    error = worker.answer(session.remove_object, "a")
    assert (error.code, error.fields) == ("worker-lost-twice", {"request": "remove_object"})
    worker.until(lambda: session.is_open)
    assert len(worker.transports) == 3
    assert isinstance(worker.answer(session.set_prompts, "a", clicks((9, 9), n=1)), list)
    assert set(session.masks("a")) == {1, 2}


def test_a_session_that_ends_the_worker_whenever_it_is_opened_is_given_up(supervised):
    worker = supervised(fake_worker("--at", "open_session", "die"))
    session = worker.session()
    assert session.is_closed
    assert worker.errors[0].code == "worker-lost-twice"
    assert worker.errors[0].fields == {"request": "open_session"}
    worker.until_ready()
    assert len(worker.transports) == 3
    assert worker.answer(session.set_prompts, "a", clicks((5, 6), n=2)).code == "session-closed"


def test_what_waits_for_a_session_that_cannot_be_opened_is_not_sent(supervised):
    worker = supervised()
    errors, failed = [], worker.errors.append
    remote = worker.client.open_volume(volume())
    stack = StackChoice.oblique((0, 0, 0), (1, 0, 0), (1, 0, 0))  # the directions are parallel
    session = worker.client.open_session(remote, stack, failed=failed)
    session.set_prompts("a", clicks((5, 6), n=2), failed=errors.append)
    worker.until(lambda: errors)
    assert session.is_closed
    assert not session.is_open
    assert isinstance(worker.errors[0], GeometryError)
    assert errors[0].code == "session-closed"
    sent = {request.type for request in worker.client._connection.open.values()}
    assert "set_prompts" not in sent


def test_a_volume_that_ends_the_worker_whenever_it_comes_is_given_up(supervised):
    worker = supervised(fake_worker("--at", "volume_data", "kill"))
    session = worker.session()
    assert session.is_closed
    assert worker.errors[0].code == "worker-lost-twice"
    assert worker.errors[0].fields == {"request": "open_volume"}
    worker.until_ready()


def test_too_many_deaths_are_given_up_until_the_user_starts_again(supervised, tmp_path):
    timing = Timing(pauses=(0.0,), crashes=3, within=60)
    worker = supervised(
        fake_worker("--at", "models", "die", "--times", 3, "--notes", tmp_path), timing=timing
    )
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    for _ in range(3):
        worker.client.request("models")
        worker.until(lambda: worker.client.state is not WorkerState.READY)
        worker.until(lambda: worker.client.state in (WorkerState.READY, WorkerState.FAILED))
    assert worker.client.state is WorkerState.FAILED and "3 times in 60 s" in worker.client.problem
    error = worker.answer(session.set_prompts, "a", clicks((9, 9), n=1))
    assert error.code == "worker-failed"
    assert "3 times" in str(error)
    worker.client.start()
    worker.until(lambda: session.is_open)
    assert worker.answer(session.set_prompts, "a", clicks((5, 6), (9, 9), n=2))[0].mask_hw[6, 5]


def test_a_request_in_flight_when_all_is_given_up_fails(supervised):
    worker = supervised(fake_worker("--at", "set_prompts", "die"), timing=Timing(pauses=(0.0,), crashes=1))
    error = worker.answer(worker.session().set_prompts, "a", clicks((5, 6), n=2))
    assert error.code == "worker-failed"
    assert worker.client.state is WorkerState.FAILED


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["/no/such/program", "worker"], "could not be started"),
        ([], "no command is given"),
        ([sys.executable, "-c", "import no_such_module"], "exit code 1.*No module named 'no_such_module'"),
        ([sys.executable, "-c", "print('Usage: something else')"], "exit code 0"),
        ([sys.executable, "-c", "import os; os.abort()"], "SIGABRT"),
        (["sh", "-c", "yes 'not a worker'"], "not a worker"),
        (fake_worker("--protocol", 7), "protocol 7.*client.*3"),
    ],
    ids=["missing", "none", "import", "other", "crash", "endless", "version"],
)
def test_a_worker_that_never_comes_is_not_tried_again_and_the_reason_is_given(supervised, command, says):
    worker = supervised(command)
    session = worker.session(wait=False)
    answers = []
    session.set_prompts("a", clicks((5, 6), n=2), failed=answers.append)
    worker.until_state(WorkerState.FAILED)
    assert len(worker.transports) == 1
    worker.until(lambda: answers)
    assert isinstance(answers[0], WorkerError) and str(answers[0]) == worker.client.problem
    assert re.search(says, worker.client.problem), worker.client.problem


def test_a_worker_that_keeps_silent_from_the_start_is_given_up(supervised):
    worker = supervised([sys.executable, "-c", "input(); input()"], timing=Timing(start=0.5))
    worker.until_state(WorkerState.FAILED)
    assert "0.5 s of its start" in worker.client.problem


def test_the_report_has_versions_and_last_messages_and_nothing_of_the_patient(supervised):
    worker = supervised(fake_worker("--banner", "Welcome to the cluster\n", "--at", "models", "die"))
    scan = volume()
    object.__setattr__(scan, "name", "Jane Doe 1970")
    worker.session(scan)
    worker.client.request("models")
    worker.until(lambda: len(worker.transports) == 2)
    for part in (
        "MedSAM2Segment 0",
        "Python 3",
        "a fake worker",
        "Welcome to the cluster",
        "about to die at",
    ):
        assert part in worker.client.report
    assert "Jane" not in worker.client.report


def test_an_error_of_the_worker_reaches_who_asked_and_the_prompts_are_as_before(supervised):
    worker = supervised()
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    error = worker.answer(session.set_prompts, "a", {2: clicks((500, 6), n=2)[2]})
    assert isinstance(error, PromptError) and "outside" in str(error)
    assert session.prompts("a") == clicks((5, 6), n=2)


def test_cancel_is_heard_in_the_middle_of_a_propagation_and_before_anything_was_sent(supervised):
    worker = supervised(fake_worker("--step", 0.05))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    came, errors = [], []
    request = session.propagate(slices=lambda records, *_: came.extend(records), failed=errors.append)
    worker.until(lambda: came)
    request.cancel()
    worker.until(lambda: errors)
    assert isinstance(errors[0], Cancelled) and len(session.masks("a")) < 6
    waiting = worker.session(volume(seed=1), wait=False).set_prompts(
        "a", clicks((5, 6), n=2), failed=errors.append
    )
    waiting.cancel()
    worker.until(lambda: len(errors) == 2)
    assert isinstance(errors[1], Cancelled)


def test_what_was_cancelled_is_not_asked_again(supervised, tmp_path):
    worker = supervised(
        fake_worker("--at", "set_prompts", "hang", "--times", 1, "--notes", tmp_path), timing=Timing()
    )
    session = worker.session()
    errors = []
    request = session.set_prompts("a", clicks((5, 6), n=2), failed=errors.append)
    worker.until(lambda: list(tmp_path.iterdir()))
    request.cancel()
    worker.process.kill()
    worker.until(lambda: errors)
    assert isinstance(errors[0], Cancelled)
    worker.until(lambda: session.is_open)
    assert not session.masks("a") and not session.prompts("a")


def test_nobody_is_called_after_stop_and_no_process_is_left(supervised):
    worker = supervised(fake_worker("--step", 0.02))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    called = []
    worker.client.listeners.append(lambda: called.append("state"))
    session.propagate(slices=lambda *_: called.append("slice"), failed=called.append, done=called.append)
    worker.until(lambda: called)
    session.set_prompts("a", clicks((9, 9), n=1), done=called.append, failed=called.append)
    worker.client.stop()
    called.clear()
    worker.turn(0.3)
    assert not called and worker.client.state is WorkerState.STOPPED
    assert not worker.family()


def test_a_closed_session_calls_nobody_and_leaves_the_others_alone(supervised):
    worker = supervised(fake_worker("--step", 0.05))
    one, other = worker.session(), worker.session()
    assert one.volume is other.volume
    called, answers = [], []
    one.set_prompts("a", clicks((5, 6), n=2), done=called.append, failed=called.append)
    other.set_prompts("a", clicks((5, 6), n=2), done=answers.append)
    one.close()
    worker.until(lambda: answers)
    assert not called and one.is_closed and other.is_open
    worker.client.close_volume(one.volume)
    assert other.is_open
    worker.client.close_volume(other.volume)
    assert other.is_closed
    status = worker.answer(worker.client.request, "models")
    assert status["models"] and worker.answer(worker.client.request, "status")["sessions"] == 0


def test_a_callback_that_fails_disturbs_nobody_else(supervised):
    worker = supervised()
    session = worker.session()
    answers = []

    def fail(_):
        raise ZeroDivisionError("in the callback")

    session.set_prompts("a", clicks((5, 6), n=2), done=fail)
    session.set_prompts("b", clicks((5, 6), n=2), done=answers.append)
    with pytest.raises(ZeroDivisionError):
        worker.until(lambda: answers)
    worker.until(lambda: answers)
    assert session.masks("a") and session.masks("b")
    assert isinstance(worker.answer(session.set_prompts, "c", clicks((5, 6), n=2)), list)


def test_a_callback_may_send_again_stop_and_start(supervised):
    worker = supervised()
    session = worker.session()
    answers = []

    def again(records):
        answers.append(records)
        if len(answers) < 5:
            session.set_prompts("a", clicks((5 + len(answers), 6), n=2), done=again)

    session.set_prompts("a", clicks((5, 6), n=2), done=again)
    worker.until(lambda: len(answers) == 5)

    def stop_and_start(_):
        worker.client.stop()
        worker.client.start()

    session.set_prompts("a", clicks((1, 6), n=2), done=stop_and_start)
    worker.until(lambda: len(worker.transports) == 2 and session.is_open)
    assert session.prompts("a") == clicks((1, 6), n=2)


def test_a_process_that_slept_itself_does_not_take_the_worker_for_hung(supervised):
    now = [0.0]
    worker = supervised(timing=Timing(), start=False)
    worker.client._clock = lambda: now[0]
    worker.client.start()
    worker.until_ready()
    worker.answer(worker.client.request, "models")
    for _ in range(25):  # two seconds pass: it is asked whether it is alive
        now[0] += 0.1
        worker.client._connection.check()
    now[0] += 3600.0  # the lid was closed
    worker.client._connection.check()
    assert worker.client.state is WorkerState.READY and len(worker.transports) == 1
    worker.turn(0.2)
    assert worker.client.state is WorkerState.READY


def test_a_long_computation_that_moves_is_left_alone(supervised):
    worker = supervised(fake_worker("--step", HASTY.pong * 1.2))
    session = worker.session()
    assert isinstance(worker.answer(session.set_prompts, "a", clicks((5, 6), n=2)), list)
    assert len(worker.transports) == 1


def test_prompts_are_reported_as_they_will_be_when_all_is_answered(supervised):
    worker = supervised(fake_worker("--step", 0.02))
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    before = session.snapshot("a")
    session.set_prompts("a", clicks((9, 9), n=3))
    session.set_prompts("a", {2: SlicePrompts()})
    assert session.prompts("a") == clicks((9, 9), n=3) and not session.masks("a")
    session.restore("a", before)
    assert session.prompts("a") == clicks((5, 6), n=2) and session.snapshot("a") == before
    session.remove_object("a")
    assert not session.prompts("a") and not session.objects
    answers = []
    session.set_prompts("a", clicks((1, 1), n=1), done=answers.append)
    assert session.prompts("a") == clicks((1, 1), n=1)
    worker.until(lambda: answers)
    assert session.prompts("a") == clicks((1, 1), n=1) and set(session.masks("a")) == {1}


def test_prompts_removed_from_a_tracked_slice_leave_what_tracking_found(supervised):
    worker = supervised()
    session = worker.session()
    worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    worker.answer(session.propagate)
    tracked = session.masks("a")
    worker.answer(session.set_prompts, "a", clicks((20, 6), n=4))
    assert session.masks("a")[4] != tracked[4] and session.snapshot("a").propagated == {4: tracked[4]}
    session.set_prompts("a", {4: SlicePrompts()})
    assert session.masks("a") == tracked


def test_a_snapshot_does_not_take_an_earlier_answer_for_that_of_new_prompts(supervised):
    worker = supervised(fake_worker("--step", 0.02))
    session = worker.session()
    (old,) = worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    session.set_prompts("a", clicks((25, 16), n=2))
    assert session.masks("a") == {2: old}, "it is shown until there is another"
    taken = session.snapshot("a")
    assert taken.prompts == clicks((25, 16), n=2) and not taken.masks
    worker.answer(session.set_prompts, "a", {2: SlicePrompts()})
    (new,) = worker.answer(session.restore, "a", taken)
    assert session.masks("a") == {2: new} and new.mask_hw[16, 25] and not new.mask_hw[6, 5]
