"""The worker under Qt: bytes arrive as they were, the window lives on, no process outlives its owners."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import qt_shim

qt = qt_shim.installed()

from medsam2_core.errors import RuntimeInstallError  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.imaging.volume import Volume  # noqa: E402
from medsam2_core.worker.client import WorkerState  # noqa: E402
from medsam2_core.worker.messages import StackChoice  # noqa: E402
from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessTransport  # noqa: E402
from MedSAM2SegmentLib.Worker import WorkerProcess  # noqa: E402
from MedSAM2SegmentLib.Worker.WorkerAccess import WorkerAccess  # noqa: E402
from MedSAM2SegmentLib.Worker.WorkerProcess import (  # noqa: E402
    SharedWorker,
    remoteEnvironment,
)
from support.errors import raises  # noqa: E402
from support.qt_shim import wait_for  # noqa: E402

MODULE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
FAKE = Path(__file__).resolve().parents[1] / "support" / "fake_worker.py"
COMMAND = [sys.executable, str(FAKE)]
PYTHON = {**os.environ, "PYTHONPATH": str(MODULE)}


class Listener:
    """Keeps what a transport tells."""

    def __init__(self):
        self.output, self.messages, self.ends = [], b"", []

    def on_bytes(self, data):
        self.output.append(data)

    def on_stderr(self, data):
        self.messages += data

    def on_end(self, reason, code):
        self.ends.append((reason, code))


def started(*command, environment=None):
    qt_shim.application()
    transport, listener = QProcessTransport(command, environment or os.environ), Listener()
    transport.start(listener)
    return transport, listener


def a_volume(megabytes):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (megabytes * 2, 512, 512), dtype=np.int16)
    return Volume(voxels, Geometry(np.eye(4), voxels.shape[::-1]))


def processes():
    """Children of this process that are alive."""
    return [one.pid for one in psutil.Process().children(recursive=True) if is_alive(one.pid)]


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def shared():
    """Makes workers; afterwards, none of their processes may be left."""
    qt_shim.application()
    made, before = [], set(processes())

    def make(*arguments):
        worker = SharedWorker([*COMMAND, *arguments], PYTHON)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        for owner in list(worker._owners):
            worker.release(owner)
    assert wait_for(lambda: set(processes()) <= before, 5), "a worker was left behind"


def test_64_megabytes_go_through_a_process_unchanged():
    data = np.random.default_rng(0).integers(0, 256, 64 << 20, dtype=np.uint8).tobytes()
    transport, listener = started("cat")
    transport.write(data)
    assert transport.pending() == len(data)
    transport.close_input()
    assert wait_for(lambda: listener.ends)
    assert b"".join(listener.output) == data
    assert transport.pending() == 0
    assert listener.ends == [("the process ended with exit code 0", 0)]


def test_anything_like_bytes_is_sent_as_it_is():
    transport, listener = started("cat")
    odd = bytes(range(256)) * 3
    for data in (odd, bytearray(odd), memoryview(odd), np.arange(300, dtype="<u2").data):
        transport.write(data)
    transport.close_input()
    assert wait_for(lambda: listener.ends)
    assert b"".join(listener.output) == odd * 3 + np.arange(300, dtype="<u2").tobytes()


def test_a_process_that_does_not_read_costs_no_copy_of_everything():
    transport, listener = started("sleep", "60")
    transport.write(bytes(64 << 20))
    wait_for(lambda: False, 0.3)
    assert 60 << 20 < transport.pending() <= 64 << 20
    assert transport._process.bytesToWrite() < 6 << 20
    transport.kill()
    assert wait_for(lambda: listener.ends, 5)
    assert transport.pending() == 0


def test_a_missing_program_is_reported_once():
    _, listener = started(str(MODULE / "no such program"), "worker")
    assert wait_for(lambda: listener.ends, 5)
    wait_for(lambda: False, 0.1)
    ((reason, code),) = listener.ends
    assert "no such program did not start" in reason
    assert code is None


def test_exit_codes_signals_and_the_last_output_are_reported():
    _, listener = started(sys.executable, "-c", "import sys; print('oh', file=sys.stderr); sys.exit(7)")
    assert wait_for(lambda: listener.ends, 10)
    assert listener.ends == [("the process ended with exit code 7", 7)]
    assert listener.messages.strip() == b"oh"
    transport, listener = started("sleep", "60")
    assert wait_for(lambda: transport._process.state() == qt.QProcess.Running, 5)
    os.kill(int(transport._process.processId()), signal.SIGTERM)
    assert wait_for(lambda: listener.ends, 5)
    assert "crashed" in listener.ends[0][0]


def test_killed_twice_and_written_to_afterwards_does_no_harm():
    transport, listener = started("sleep", "60")
    transport.kill()
    transport.kill()
    assert wait_for(lambda: listener.ends, 5)
    transport.write(b"too late")
    transport.close_input()
    transport.kill()
    assert len(listener.ends) == 1
    assert transport.pending() == 0


def test_a_listener_may_end_the_process_while_it_is_called():
    transport, listener = started("cat")
    listener.on_bytes = lambda data: transport.kill()
    transport.write(b"one")
    assert wait_for(lambda: listener.ends, 5)


def test_a_worker_starts_takes_a_large_volume_and_the_window_lives_on(shared):
    worker, owner = shared(), object()
    client = worker.acquire(owner)
    assert wait_for(lambda: client.state is WorkerState.READY)
    beats = []
    pulse = qt.QTimer()
    pulse.timeout.connect(lambda: beats.append(time.monotonic()))
    pulse.start(10)
    remote, opened = client.open_volume(a_volume(64)), []
    session = client.open_session(remote, StackChoice("axial"), opened=lambda: opened.append(True))
    assert wait_for(lambda: opened)
    pulse.stop()
    assert session.info is not None
    gaps = np.diff(beats)
    assert len(gaps) > 5
    assert gaps.max() < 0.5, f"nothing moved for {gaps.max():.2f} s"
    session.close()
    worker.release(owner)


def test_what_an_owner_asks_is_answered_until_it_lets_go(shared):
    worker, owner, answers = shared(), object(), []
    client = worker.acquire(owner)
    client.request("models", {}, done=answers.append)
    assert wait_for(lambda: answers)
    assert answers[0]["models"]
    client.request("models", {}, done=answers.append)
    worker.release(owner)
    wait_for(lambda: False, 0.3)
    assert len(answers) == 1


def test_owners_share_one_process_and_the_last_ends_it(shared):
    worker, first, second = shared(), object(), object()
    before = set(processes())
    client = worker.acquire(first)
    assert worker.acquire(second) is client
    assert worker.acquire(second) is client
    assert wait_for(lambda: client.state is WorkerState.READY)
    assert len(set(processes()) - before) == 1
    worker.release(first)
    wait_for(lambda: False, 0.3)
    assert client.state is WorkerState.READY
    worker.release(second)
    worker.release(second)
    assert wait_for(lambda: set(processes()) <= before, 5)
    assert worker.client is None
    assert wait_for(lambda: worker.acquire(first).state is WorkerState.READY), "it can be had again"


def test_a_worker_that_is_killed_comes_back(shared):
    worker = shared()
    client = worker.acquire(owner := object())
    assert wait_for(lambda: client.state is WorkerState.READY)
    pid = client.welcome["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: client.state is WorkerState.RESTARTING, 5)
    assert wait_for(lambda: client.state is WorkerState.READY)
    assert client.welcome["pid"] != pid
    worker.release(owner)


def test_a_worker_that_cannot_start_is_explained():
    qt_shim.application()
    worker, owner = SharedWorker([str(MODULE / "no such program")], PYTHON), object()
    client = worker.acquire(owner)
    assert wait_for(lambda: client.state is WorkerState.FAILED, 10)
    assert "no such program" in client.problem
    worker.release(owner)


def test_the_worker_ends_when_slicer_is_killed(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(MODULE)!r}]\n"
        "from support import qt_shim\n"
        "qt = qt_shim.installed()\n"
        "from MedSAM2SegmentLib.Worker.WorkerProcess import SharedWorker\n"
        "app = qt_shim.application()\n"
        f"worker = SharedWorker({COMMAND!r}, {{'PYTHONPATH': {str(MODULE)!r}}})\n"
        "client = worker.acquire(worker)\n"
        "qt_shim.wait_for(lambda: client.welcome)\n"
        "print(client.welcome['pid'], flush=True)\n"
        "qt_shim.wait_for(lambda: False, 60)\n",
        encoding="utf-8",
    )
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=PYTHON, text=True)
    with program:
        pid = int(program.stdout.readline())
        assert is_alive(pid)
        program.kill()
    end = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < end, "the worker outlived the program it belongs to"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only there Slicer lowers its priority for its children")
def test_a_worker_of_a_slicer_of_low_priority_has_a_session_of_its_own(monkeypatch):
    qt_shim.application()
    code = "import os, sys; sys.stdin.read(); print(os.getpid(), os.getsid(0))"
    command = [sys.executable, "-c", code]
    assert WorkerProcess.withPriority(command) == command
    monkeypatch.setattr(os, "getpriority", lambda which, who: 19)
    transport, listener = started(*WorkerProcess.withPriority(command))
    transport.close_input()
    assert wait_for(lambda: listener.ends)
    pid, session = b"".join(listener.output).split()
    assert pid == session
    monkeypatch.setattr(WorkerProcess.shutil, "which", lambda name: None)
    assert WorkerProcess.withPriority(command) == command


def test_a_remote_command_gets_the_users_own_variables(monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "slicer's")
    monkeypatch.setenv("SSH_AUTH_SOCK", "agent")
    environment = remoteEnvironment()
    assert environment["SSH_AUTH_SOCK"] == "agent"
    assert "slicer's" not in environment.values()


def test_in_slicer_children_get_what_slicer_was_started_with(monkeypatch):
    slicer = pytest.importorskip("slicer")
    monkeypatch.setattr(slicer, "app", type("App", (), {"startupEnvironment": None}), raising=False)
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: {"HOME": "there"}, raising=False)
    assert remoteEnvironment() == {"HOME": "there"}


class Choice:
    """Stands in for settings and installer."""

    def __init__(self, remote=(), problem=None):
        self.remote, self.problem = list(remote), problem

    def remoteWords(self):
        return self.remote

    def command(self):
        if self.problem:
            raise RuntimeInstallError(self.problem, code="not-installed")
        return COMMAND

    def environment(self):
        return PYTHON


def test_the_settings_decide_which_worker_it_is():
    qt_shim.application()
    here, there = WorkerAccess(Choice(), Choice()), WorkerAccess(Choice(["ssh", "host"]), Choice())
    assert here.current() is here.current()
    assert there.current() is not here.current()
    with raises("not-installed", RuntimeInstallError):
        WorkerAccess(Choice(), Choice(problem="press Install")).current()


def test_a_worker_that_nobody_refers_to_is_not_kept():
    qt_shim.application()
    worker = WorkerAccess(Choice(), Choice()).current()
    client = worker.acquire(owner := object())
    known = len(WorkerProcess._workers)
    again = WorkerAccess(Choice(), Choice()).current()
    assert again is worker
    worker.release(owner)
    del worker, again, client
    gc.collect()
    assert len(WorkerProcess._workers) == known - 1


def test_the_real_worker_answers_under_qt():
    qt_shim.application()
    command = [sys.executable, "-m", "medsam2_core.worker"]
    worker, owner, answers = SharedWorker.of(command, PYTHON), object(), []
    client = worker.acquire(owner)
    client.request("models", {}, done=answers.append)
    assert wait_for(lambda: answers, 60), client.report
    assert "embedded" in [model["name"] for model in answers[0]["models"]]
    pid = client.welcome["pid"]
    worker.release(owner)
    assert wait_for(lambda: not is_alive(pid), 5)
    wait_for(lambda: False, 0.1)  # Qt hears of it later
