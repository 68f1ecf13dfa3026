"""The worker on another machine, through a real ssh and sshd on this one."""

import os
import shlex
import signal
import sys
import time

import numpy as np
import psutil
import pytest
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.connection import Timing
from medsam2_core.worker.transports import split_command
from support.ssh_server import BANNER, SshServer
from support.supervised_worker import CORE, clicks, fake_worker, volume

HASTY = Timing(quiet=0.5, pong=3.0, step=5.0, start=30.0, pauses=(0.0, 0.2), crashes=5)


@pytest.fixture
def ssh(tmp_path):
    folder = tmp_path / "ssh"
    folder.mkdir()
    server = SshServer(folder)
    yield server.start()
    server.stop()


@pytest.fixture
def remote(supervised, ssh):
    """Makes a worker behind ssh; as a user writes it, one line that is split."""

    def make(words_of_worker=None, **options):
        there = shlex.join(["env", f"PYTHONPATH={CORE}", *(words_of_worker or fake_worker())])
        line = shlex.join(ssh.command) + " " + shlex.quote(there)
        return supervised(split_command(line), timing=HASTY, **options)

    return make


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_session_through_ssh_is_as_one_here(remote, supervised):
    answers = []
    for worker in (supervised(), remote()):
        session = worker.session()
        worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
        worker.answer(session.propagate)
        answers.append(session.masks("a"))
    assert answers[0] == answers[1] and len(answers[0]) == 6
    assert BANNER in worker.client.report
    pid = worker.client.welcome["pid"]
    worker.client.stop()
    assert gone(pid), "the worker outlived its connection"


@pytest.mark.parametrize("who", ["worker", "ssh", "stopped"])
def test_a_connection_that_breaks_is_made_again(remote, who):
    worker = remote()
    session = worker.session()
    before = worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))
    pid = worker.client.welcome["pid"]
    if who == "ssh":
        worker.process.kill()
    else:
        os.kill(pid, signal.SIGKILL if who == "worker" else signal.SIGSTOP)
    worker.until_state(WorkerState.RESTARTING)
    assert worker.client.problem
    worker.until(lambda: session.is_open)
    if who == "stopped":
        os.kill(pid, signal.SIGCONT)
    assert gone(pid) and list(session.masks("a").values()) == before
    (after,) = worker.answer(session.set_prompts, "a", clicks((5, 6), (20, 6), n=2))
    assert np.array_equal(after.mask_hw & before[0].mask_hw, before[0].mask_hw)


def test_a_missing_server_is_reported_by_the_message_of_ssh(remote, ssh):
    ssh.stop()
    worker = remote()
    worker.until_state(WorkerState.FAILED)
    assert "refused" in worker.client.problem
    ssh.start()
    worker.client.start()
    worker.until_ready()


def test_a_missing_program_is_reported_by_the_message_of_its_shell(remote):
    worker = remote(["no-such-medsam2", "worker"])
    worker.until_state(WorkerState.FAILED)
    assert "no-such-medsam2" in worker.client.problem and "127" in worker.client.problem


def test_the_real_worker_answers_through_ssh(remote):
    worker = remote([sys.executable, "-m", "medsam2_core.worker"])
    session = worker.session(volume((3, 48, 48)), wait=False)
    worker.until(lambda: session.is_open or worker.errors, 90)
    (record,) = worker.answer(session.set_prompts, "a", clicks((25, 26), n=1))
    assert record.shape_hw == (48, 48) and worker.client.welcome["torch"]
    pid = worker.client.welcome["pid"]
    worker.client.stop()
    assert gone(pid)
