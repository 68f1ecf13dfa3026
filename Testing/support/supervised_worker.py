"""A client over real processes, turned by hand instead of by an event loop."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Point, SlicePrompts
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.connection import Timing
from medsam2_core.worker.messages import StackChoice

from support.subprocess_transport import PumpedClient, SubprocessTransport

FOLDER = Path(__file__).resolve().parent
CORE = FOLDER.parents[1] / "MedSAM2Segment"
#: Everything is noticed sooner than in real life, and may happen more often.
HASTY = Timing(quiet=0.2, pong=1.5, loading=5.0, step=2.0, start=20.0, pauses=(0.0, 0.05), crashes=10**6)


def fake_worker(*words):
    """The command of a worker that paints discs; see fake_worker.py."""
    return [sys.executable, str(FOLDER / "fake_worker.py"), *map(str, words)]


def environment():
    """Variables with which a child process finds the core."""
    return {**os.environ, "PYTHONPATH": str(CORE), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def volume(shape_kji=(6, 24, 32), dtype=np.int16, seed=0):
    """Random voxels with a geometry of their own."""
    voxels = np.random.default_rng(seed).integers(0, 100, shape_kji).astype(dtype)
    return Volume(voxels, Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), shape_kji[2::-1]), "MR")


def clicks(*points, n, **more):
    """Prompts: positive points (x, y) on slice n of :func:`volume` along k."""
    return {n: SlicePrompts(tuple(Point((x, y, n)) for x, y in points), **more)}


class SupervisedWorker:
    """A client, the processes it started, and everything it told."""

    def __init__(self, command, timing=HASTY, start=True):
        self.command = command
        self.transports = []
        self.client = PumpedClient(self.transport, timing=timing)
        self.states = []
        self.client.listeners.append(lambda: self.states.append(self.client.state))
        self.errors = []
        if start:
            self.client.start()

    def transport(self):
        self.transports.append(SubprocessTransport(self.command, environment()))
        return self.transports[-1]

    @property
    def process(self):
        """The present process."""
        return self.transports[-1]._process

    def until(self, condition, seconds=20.0):
        """Turn the client until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain: {self.client.report}, {self.errors}")
            self.client.pump(0.02)

    def until_ready(self, seconds=20.0):
        """Turn it until there is a worker."""
        self.until(lambda: self.client.state is WorkerState.READY, seconds)

    def until_state(self, state, seconds=20.0):
        """Turn it until the worker is in a state."""
        self.until(lambda: self.client.state is state, seconds)

    def turn(self, seconds):
        """Turn it for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.client.pump(0.02)

    def session(self, of=None, stack=None, wait=True):
        """A session on a volume, along k."""
        remote = self.client.open_volume(volume() if of is None else of)
        session = self.client.open_session(remote, stack or StackChoice("k"), failed=self.errors.append)
        if wait:
            self.until(lambda: session.is_open or self.errors)
        return session

    def answer(self, ask, *arguments, **named):
        """The result of a request, after waiting for it; its error if it failed."""
        answers = []
        ask(*arguments, done=answers.append, failed=answers.append, **named)
        self.until(lambda: answers)
        return answers[0]

    def family(self):
        """All processes of all lives that are still there."""
        leaders = {one._process.pid for one in self.transports if one._process is not None}
        return [process.pid for process in psutil.process_iter() if _living_group(process) in leaders]

    def close(self):
        """End it; no process may be left."""
        self.client.stop()
        end = time.monotonic() + 5
        while self.family() and time.monotonic() < end:
            time.sleep(0.02)
        assert not self.family(), "processes are left"


def _living_group(process):
    try:
        return None if process.status() == "zombie" else os.getpgid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None
