"""Child processes as transports: all bytes, in order, and no process or thread left."""

import hashlib
import os
import sys
import threading
import time

import pytest
from support.subprocess_transport import SubprocessTransport


class Ears:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.output, self.messages, self.ends = b"", b"", []

    def on_bytes(self, data):
        assert not self.ends
        self.output += data

    def on_stderr(self, data):
        assert not self.ends
        self.messages += data

    def on_end(self, reason, code):
        self.ends.append((reason, code))


@pytest.fixture
def started():
    made = []

    def start(code, command=None):
        transport, ears = SubprocessTransport(command or [sys.executable, "-c", code]), Ears()
        made.append(transport)
        transport.start(ears)
        return transport, ears

    yield start
    for transport in made:
        transport.kill()


def until_end(transport, ears, seconds=20):
    end = time.monotonic() + seconds
    while not ears.ends:
        assert time.monotonic() < end, (ears.output[:100], ears.messages[:500])
        transport.pump(0.05)
    return ears.ends[0]


def test_many_bytes_come_back_in_order(started):
    threads = threading.active_count()
    transport, ears = started("import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")
    data = os.urandom(1 << 20)
    for _ in range(20):
        transport.write(data)
    assert transport.pending() > 10 << 20, "nothing waits while it is written"
    transport.close_input()
    assert until_end(transport, ears) == ("the worker ended with exit code 0", 0)
    assert hashlib.sha256(ears.output).digest() == hashlib.sha256(data * 20).digest()
    assert transport.pending() == 0
    end = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_the_last_output_comes_before_the_end(started):
    transport, ears = started("import sys; print('out'); sys.exit('no such model')")
    assert until_end(transport, ears)[1] == 1
    assert ears.output == b"out\n" and ears.messages == b"no such model\n"


def test_a_killed_process_is_gone_and_killing_it_again_is_no_error(started):
    transport, ears = started("import time; print('here', flush=True); time.sleep(60)")
    while not ears.output:
        transport.pump(0.05)
    transport.kill()
    transport.kill()
    transport.write(b"nobody reads this")
    assert until_end(transport, ears) == ("the worker was ended by signal SIGKILL", -9)
    transport.kill()
    assert transport._process.poll() == -9


def test_what_a_process_started_does_not_outlive_it(started):
    nested = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'input()']);"
    transport, ears = started(f"{nested} print(p.pid, flush=True); sys.exit(5)")
    assert until_end(transport, ears)[1] == 5
    pid = int(ears.output)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                return  # gone but for its entry, which its new parent takes away
        time.sleep(0.02)
    raise AssertionError("the child is still there")


def test_closed_output_is_the_end(started):
    transport, ears = started("import os, time; os.close(1); time.sleep(60)")
    assert until_end(transport, ears) == ("the worker closed its output", None)


@pytest.mark.parametrize("command", [["/no/such/program"], [""], ["a\0b"]])
def test_a_missing_program_is_reported_as_the_end(started, command):
    transport, ears = started("", command)
    assert not ears.ends, "only pump tells"
    reason, code = until_end(transport, ears)
    assert "could not be started" in reason and code is None
    transport.write(b"nobody reads this")
    transport.close_input()
    transport.kill()
