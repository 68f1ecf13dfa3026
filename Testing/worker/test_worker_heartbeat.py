"""Signs of life, with a clock that the test turns."""

import math

from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.connection import Timing
from medsam2_core.worker.messages import StackChoice
from support.simulated_link import SimulatedWorker
from test_worker_volumes import MB, noise

STEADY = Timing(pauses=(0.1, 1.0, 4.0), crashes=3, within=60.0)


def test_a_quiet_worker_is_asked_every_two_seconds():
    link = SimulatedWorker()
    link.pass_time(20.0, 0.05)
    assert 8 <= len(link.came("ping")) <= 10 and link.starts == 1


def test_a_worker_without_a_sign_of_life_for_ten_seconds_is_replaced():
    link = SimulatedWorker()
    link.pass_time(1.0)
    link.mute_from = link.now
    while link.client.state is WorkerState.READY:
        link.pass_time(0.1)
        assert link.now < 20
    assert 11.0 < link.now < 14.5 and link.kills == 1 and "hangs" in link.client.problem
    link.mute_from = math.inf
    link.pass_time(1.0)
    assert link.client.state is WorkerState.READY and link.starts == 2


def test_a_computation_that_does_not_move_for_two_minutes_is_ended():
    link = SimulatedWorker(busy={"busy": True, "step_age": 0.0})
    link.pass_time(1.0)
    began = link.now
    while link.client.state is WorkerState.READY:
        link.busy["step_age"] = link.now - began
        link.pass_time(0.1, 0.05)
        assert link.now < 200
    assert 120 < link.now - began < 125 and "has not moved" in link.client.problem


def test_a_computation_that_uses_the_processor_is_given_ten_times_as_long():
    link = SimulatedWorker(busy={"busy": True, "step_age": 0.0, "cpu_s": 0.0})
    link.pass_time(1.0)
    began = link.now
    while link.client.state is WorkerState.READY:
        link.busy["step_age"] = link.busy["cpu_s"] = link.now - began
        link.pass_time(1.0, 0.05)
        assert link.now < 1500
    assert 1200 < link.now - began < 1220


def test_a_worker_whose_steps_take_long_may_take_four_times_as_long():
    link = SimulatedWorker(busy={"busy": True, "step_age": 0.0, "slowest_step": 60.0})
    link.pass_time(3.0)
    began = link.now
    while link.client.state is WorkerState.READY:
        link.busy["step_age"] = link.now - began
        link.pass_time(0.5, 0.05)
        assert link.now < 400
    assert 235 < link.now - began < 250


def test_a_worker_that_answers_slowly_is_waited_for_in_proportion():
    link = SimulatedWorker()
    link.pass_time(1.0)
    link.latency = 4.0  # each way: as a machine does that swaps
    link.pass_time(30.0, 0.05)
    assert link.starts == 1
    link.mute_from = link.now
    while link.client.state is WorkerState.READY:
        link.pass_time(0.2, 0.05)
        assert link.now < 100
    assert 32 < link.now - link.mute_from < 48


def test_the_second_worker_that_seems_to_hang_is_waited_for_twice_as_long():
    link, waits = SimulatedWorker(timing=Timing(crashes=9)), []
    for _ in range(2):
        link.mute_from = math.inf
        link.pass_time(5.0)
        link.mute_from = link.now
        while link.client.state is WorkerState.READY:
            link.pass_time(0.1)
            assert link.now < 100
        waits.append(link.now - link.mute_from)
    assert 10 < waits[0] < 14.5
    assert 20 < waits[1] < 24.5


def test_a_session_may_take_four_times_as_long_to_load_as_the_worker_took_to_start():
    link = SimulatedWorker()
    send = link.send
    link.send = lambda type, header, **fields: send(type, header, **fields, startup_s=20.0)
    link.pass_time(1.0)
    link.client.open_session(link.client.open_volume(noise((2, 16, 16))), StackChoice("k"))
    link.pass_time(1.0)
    assert link.came("open_session")
    link.mute_from = link.now
    while link.client.state is WorkerState.READY:
        link.pass_time(0.2, 0.05)
        assert link.now < 200
    assert 80 < link.now - link.mute_from < 86


def test_a_computation_that_reports_progress_is_not():
    link = SimulatedWorker(busy={"busy": True, "step_age": 10.0**6})
    link.pass_time(1.0)
    errors = []
    link.client.request("install_model", {"name": "large"}, failed=errors.append)
    link.pass_time(0.1)
    (frame,) = [frame for _, frame in link.frames if frame.type == "install_model"]
    for done in range(20):
        link.pass_time(60.0, 0.1)
        link.send("progress", frame.header, what="downloading", done=done, total=None)
    assert link.starts == 1 and not errors


def test_a_volume_on_a_slow_link_is_a_sign_of_life():
    link = SimulatedWorker(rate=0.05 * MB)  # a slab takes longer than a pong may
    link.pass_time(0.2)
    remote = link.client.open_volume(noise((4, 512, 512)))
    link.pass_time(60.0, 0.05)
    assert link.starts == 1 and remote.is_there


def test_restarts_wait_longer_each_time_and_end():
    link = SimulatedWorker(timing=STEADY)
    starts = []
    for _ in range(3):
        link.pass_time(0.5)
        assert link.client.state is WorkerState.READY
        died = link.now
        link.listener.on_end("the worker ended with exit code 1", 1)
        while link.client.state is WorkerState.RESTARTING:
            link.pass_time(0.05)
        starts.append(link.now - died)
    assert starts[0] < 0.4 and 0.9 < starts[1] < 1.5
    assert link.client.state is WorkerState.FAILED and link.starts == 3


def test_deaths_far_apart_are_forgiven():
    link = SimulatedWorker(timing=STEADY)
    for _ in range(5):
        link.pass_time(40.0, 0.1)
        assert link.client.state is WorkerState.READY
        link.listener.on_end("the worker ended with exit code 1", 1)
    link.pass_time(2.0)
    assert link.client.state is WorkerState.READY and link.starts == 6


def test_what_an_old_worker_still_sends_is_ignored():
    link = SimulatedWorker(timing=STEADY)
    link.pass_time(0.5)
    old = link.listener
    old.on_end("the worker ended with exit code 1", 1)
    old.on_bytes(b"some last words")
    old.on_end("again", 1)
    link.pass_time(1.0)
    assert link.client.state is WorkerState.READY and link.starts == 2
