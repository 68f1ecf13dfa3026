"""Cases an hour, the scheduler's cost of a case, and memory, of `medsam2 batch` over many small cases.

    python Testing/bench/cohort.py --cases 1000            # one and two processes, and Ray with two
    python Testing/bench/cohort.py --cases 20 --ways 1     # a look

Each case is a scan of 5 slices with a ball and a box; the model has the embedded architecture, untrained, at
64 pixels, so that what is measured is all around the model. `nothing` does no work in a case: what is left is
the cost of journal, processes and, with Ray, of its calls.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedSAM2Segment"))

from medsam2_core.batch.cases import Options, Task
from medsam2_core.batch.cohort import read_cohort
from medsam2_core.batch.pool import LocalPool, Pool, RayPool
from medsam2_core.batch.run import Run, opened
from medsam2_core.batch.work import CaseRunner
from support.cohorts import BOX, few_slices
from support.command_line import write_nrrd, write_untrained_model

_MB = 1 << 20


class Nothing:
    """Does no work."""

    def run(self, task: Task) -> dict[str, Any]:
        """Return at once."""
        return {"state": "done", "inputs": {}, "seconds": 0.0, "facts": {}}


class Memory:
    """Peak resident memory of this process, and of all its descendants together, in MB."""

    def __init__(self) -> None:
        self.own = self.all = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.5):
            own = me.memory_info().rss // _MB
            total = own
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss // _MB
                except psutil.Error:  # it has just ended
                    continue
            self.own, self.all = max(self.own, own), max(self.all, total)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


def write_cases(folder: Path, count: int) -> Path:
    """Write a cohort of as many scans, of which each is a file of its own."""
    folder.mkdir()
    voxels = few_slices()
    with (folder / "cohort.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "object", "box"])
        for n in range(count):
            write_nrrd(folder / f"c{n:05d}.nrrd", voxels + n % 7)
            table.writerow([f"c{n:05d}.nrrd", "ball", BOX])
    return folder / "cohort.csv"


def pool_of(way: str, make_runner: Any) -> Pool:
    """One of `1`, `2`, `ray`."""
    if way == "ray":
        return RayPool("local", make_runner, 2, on_gpu=False)
    return LocalPool(make_runner, int(way))


def measure(way: str, cohort: Path, results: Path, options: Options, nothing: bool) -> None:
    """Do all cases, and print a row of the table."""
    make_runner = Nothing if nothing else partial(CaseRunner, results, options)
    cases, memory = read_cohort(cohort).cases, Memory()
    started = time.perf_counter()
    first: list[float] = []

    def progress(done: int, _name: str) -> None:
        if done and not first:
            first.append(time.perf_counter())

    with opened(results) as journal:
        pool = pool_of(way, make_runner)
        try:
            summary = Run(results, journal, options).run(cases, pool, progress=progress)
        finally:
            pool.close()
    memory.stop()
    seconds = time.perf_counter() - first[0]  # without the start of the processes
    count = len(cases) - 1
    print(
        f"{way:>4} {'nothing' if nothing else 'cases':>8} {len(summary.done):>6} {len(summary.failed):>6} "
        f"{first[0] - started:>8.1f} {3600 * count / seconds:>10.0f} {1000 * seconds / count:>8.1f} "
        f"{memory.own:>8} {memory.all:>8}",
        flush=True,
    )


def main() -> None:
    """Measure every way that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--ways", default="1,2,ray")
    given = parser.parse_args()
    if given.cases < 2:
        parser.error("--cases: 2 or more; the time to the end of the first is not counted")
    head = "way", "work", "done", "failed", "start s", "cases/h", "ms/case", "own MB", "all MB"
    widths = 4, 8, 6, 6, 8, 10, 8, 8, 8
    print(" ".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = Options(model=str(write_untrained_model(folder)), image_size=64)
        cohort = write_cases(folder / "data", given.cases)
        for way in given.ways.split(","):
            for nothing in (True, False):
                measure(way, cohort, folder / f"out-{way}-{nothing}", options, nothing)


if __name__ == "__main__":
    main()
