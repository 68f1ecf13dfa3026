"""What it costs to work in a process of its own: the worker against the same session in this process.

A noisy 512 x 512 x 300 scan of 16 bits (157 MB) is sent to a worker, and kept by a process that has the
session in itself. Both propagate the same slices in turns, so that other work on the machine disturbs both
alike; their ratio is what frames, packed masks and pipes cost. The client here is the one Slicer uses: it has
no torch.

    python Testing/bench/worker_cost.py
    python Testing/bench/worker_cost.py --slices 20 --turns 12
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point, SlicePrompts
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.messages import SessionSettings, StackChoice
from support.subprocess_transport import PumpedClient, SubprocessTransport

SIDE = 512


def a_scan(slices: int) -> Volume:
    """Noise and a ball a third of the side wide."""
    rng = np.random.default_rng(0)
    j, i = np.mgrid[:SIDE, :SIDE]
    voxels = np.empty((slices, SIDE, SIDE), "<i2")
    for k in range(slices):
        away = (k - slices / 2) * SIDE / 3 / slices
        inside = (i - SIDE / 2) ** 2 + (j - SIDE / 2) ** 2 < (SIDE / 6) ** 2 - away**2
        voxels[k] = rng.integers(40, 160, (SIDE, SIDE), dtype=np.int16) + 200 * inside
    return Volume(voxels, Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), (SIDE, SIDE, slices)), "MR")


def a_box(n: int) -> Box:
    """Around the ball on a slice in the middle."""
    low, high = SIDE / 2 - SIDE / 6, SIDE / 2 + SIDE / 6
    return Box((low, low, n), (high, high, n))


class Here:
    """The same session in a process of its own, so that this one has no torch; told what to do by a pipe."""

    def __init__(self, slices: int) -> None:
        self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_work_here, args=(theirs, slices), daemon=True
        )
        self._process.start()
        self._pipe.recv()

    def propagate(self, first: int, last: int) -> tuple[float, float]:
        """Seconds for these slices, and seconds of the processor."""
        self._pipe.send((first, last))
        return self._pipe.recv()

    def close(self) -> None:
        """End it."""
        self._pipe.send(None)
        self._process.join()


def _work_here(pipe: Connection, slices: int) -> None:
    from medsam2_core.session import Session

    session = Session.open(a_scan(slices))
    session.set_prompts("ball", {slices // 2: SlicePrompts([a_box(slices // 2)])})
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        began, used = time.perf_counter(), time.process_time()
        for _ in session.propagate(first=asked[0], last=asked[1], stop_after_absent=None):
            pass
        pipe.send((time.perf_counter() - began, time.process_time() - used))


class There:
    """The worker, and the client's side of it."""

    def __init__(self, slices: int) -> None:
        core = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
        environment = {**os.environ, "PYTHONPATH": str(core)}
        self.sent = self.received = 0
        self.middle = slices // 2

        def transport() -> SubprocessTransport:
            made = SubprocessTransport([sys.executable, "-m", "medsam2_core.worker"], environment)
            write, self.made = made.write, made

            def counting(data: bytes) -> None:
                self.sent += len(data)
                write(data)

            made.write = counting
            start = made.start

            def listening(listener) -> None:
                hear = listener.on_bytes

                def on_bytes(data: bytes) -> None:
                    self.received += len(data)
                    hear(data)

                listener.on_bytes = on_bytes
                start(listener)

            made.start = listening
            return made

        began = time.perf_counter()
        self.client = PumpedClient(transport)
        self.client.start()
        self.until(lambda: self.client.state is WorkerState.READY)
        self.start_s = time.perf_counter() - began
        self.worker = psutil.Process(self.client.welcome["pid"])

    def until(self, condition) -> None:
        """Turn the client until a condition holds."""
        while not condition():
            if self.client.state is WorkerState.FAILED:
                raise SystemExit(self.client.report)
            self.client.pump(0.05)

    def open(self, volume: Volume) -> tuple[float, float]:
        """Seconds for the volume to come, and for the session to be open after that."""
        began, sent = time.perf_counter(), self.sent
        remote = self.client.open_volume(volume)
        self.session = self.client.open_session(
            remote, StackChoice(), SessionSettings(), failed=lambda error: sys.exit(str(error))
        )
        self.until(lambda: remote.is_there)
        received = time.perf_counter()
        self.volume_bytes = self.sent - sent
        self.until(lambda: self.session.is_open)
        return received - began, time.perf_counter() - received

    def answer(self, ask, *arguments, **named):
        """A request's result and the seconds it took."""
        answers, began = [], time.perf_counter()
        ask(*arguments, done=answers.append, failed=answers.append, **named)
        self.until(lambda: answers)
        return answers[0], time.perf_counter() - began

    def click(self, *points: tuple[float, float, int]) -> float:
        """Seconds for these clicks on their slice."""
        words = {points[0][2]: SlicePrompts(tuple(Point(point) for point in points))}
        return self.answer(self.session.set_prompts, "clicked", words)[1]

    def propagate(self, first: int, last: int) -> tuple[float, float]:
        """Seconds for these slices, and seconds of the worker's processor."""
        used = sum(self.worker.cpu_times()[:2])
        took = self.answer(self.session.propagate, ["ball"], first, last, stop_after_absent=None)[1]
        return took, sum(self.worker.cpu_times()[:2]) - used

    def cancel_latency(self) -> float:
        """Seconds from the wish to stop a propagation to its end."""
        ended, came = [], []
        last = self.session.info.slices - 1
        request = self.session.propagate(
            ["ball"], 0, last, stop_after_absent=None, slices=lambda *_: came.append(1), failed=ended.append
        )
        count = 3 + np.random.default_rng().integers(4)
        self.until(lambda: len(came) >= count)
        pause = time.perf_counter() + np.random.default_rng().random() * 0.05
        self.until(lambda: time.perf_counter() > pause)
        began = time.perf_counter()
        request.cancel()
        self.until(lambda: ended)
        return time.perf_counter() - began

    def click_during_propagation(self, n: int) -> float:
        """Seconds for a click while the whole volume is propagated."""
        ended, came = [], []
        request = self.session.propagate(
            ["ball"], slices=lambda *_: came.append(1), failed=ended.append, done=ended.append,
            stop_after_absent=None,
        )  # fmt: skip
        self.until(lambda: len(came) >= 2)
        took = self.click((SIDE / 2 + n, SIDE / 2, n))
        request.cancel()
        self.until(lambda: ended)
        return took


def compare(there: There, here: Here, options: argparse.Namespace) -> None:
    """Both propagate in turns: slices nobody has encoded yet, then the same ones again and again."""
    middle, turns, count = there.middle, options.turns, options.slices
    there.answer(there.session.set_prompts, "ball", {middle: SlicePrompts((a_box(middle),))})
    fresh = [
        (middle + 1 + turn * count, middle + (turn + 1) * count) for turn in range(-turns // 2, turns // 2)
    ]
    again = [(middle + 1, middle + count)] * turns
    for name, ranges in (("nothing encoded yet", fresh), ("everything encoded", again)):
        measured, received = [], there.received
        for turn, (first, last) in enumerate(ranges):
            both = {one: one.propagate(first, last) for one in ((there, here) if turn % 2 else (here, there))}
            measured.append((both[there], both[here]))
        wall = [[1000 * took[0] / count for took in pair] for pair in measured]
        if name.startswith("everything"):
            print(f"bytes received for a propagated slice: {(there.received - received) // (turns * count)}")
        cpu = [sum(took[1] for took in column) for column in zip(*measured, strict=True)]
        theirs, ours = (statistics.median(column) for column in zip(*wall, strict=True))
        ratio = statistics.median(a / b for a, b in wall)
        print(f"propagation, {name}: {theirs:.1f} ms a slice in the worker, {ours:.1f} in-process")
        print(f"    median ratio of {len(wall)} turns {ratio:.3f}; of processor time {cpu[0] / cpu[1]:.3f}")


def main() -> None:
    """Measure, and print as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=300, help="slices of the scan")
    parser.add_argument("--slices", type=int, default=16, help="slices of one propagation")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    if (options.turns + 2) * options.slices > options.depth:
        parser.error(
            "the scan has not so many slices for every turn: take fewer turns or slices, or more depth"
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    this, volume = psutil.Process(), a_scan(options.depth)
    alone, megabytes = this.memory_info().rss, volume.voxels_kji.nbytes >> 20
    there = There(options.depth)
    print(f"worker start to answer: {there.start_s:.2f} s")
    received, opened = there.open(volume)
    print(f"volume of {megabytes} MB: {there.volume_bytes >> 20} MB sent in {received:.2f} s")
    print(f"session open after another {opened:.2f} s")

    n, centre, sent = there.middle, SIDE / 2, there.sent
    first = [there.click((centre, centre, n + step)) for step in range(5)]
    print(f"first click on a slice: {middle_ms(first)} (the very first {first[0] * 1000:.0f} ms)")
    print(f"bytes sent for a click: {(there.sent - sent) // 5}")
    clicks = [(centre + step, centre, n) for step in range(7)]
    print(f"another click there: {middle_ms([there.click(*clicks[:count]) for count in range(2, 7)])}")

    here = Here(options.depth)
    compare(there, here, options)
    here.close()
    during = [there.click_during_propagation(n + 20 + step) for step in range(7)]
    print(f"first click on a slice during a propagation: {middle_ms(during)}")
    print(f"cancel: {middle_ms([there.cancel_latency() for _ in range(20)])}")
    worker, client = (process.memory_info().rss >> 20 for process in (there.worker, this))
    print(f"memory with the volume of {megabytes} MB in each: worker {worker} MB, client {client} MB")
    print(f"of which the client's share of the work: {client - (alone >> 20)} MB")
    there.client.stop()


def middle_ms(seconds: list[float]) -> str:
    """Median and longest in milliseconds."""
    return f"median {statistics.median(seconds) * 1000:.0f} ms, longest {max(seconds) * 1000:.0f}"


if __name__ == "__main__":
    main()
