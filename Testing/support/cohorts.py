"""Small cohorts, and a pool that does cases in this process."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from medsam2_core.batch.cases import Case, Options, Task, case_folder
from medsam2_core.batch.cohort import read_cohort
from medsam2_core.batch.journal import Journal
from medsam2_core.batch.pool import Pool, Process, ProcessLost
from medsam2_core.batch.run import Run, Summary, opened
from medsam2_core.batch.work import CaseRunner
from medsam2_core.imaging.reading import read_segmentation

from support.command_line import ball_in_noise, write_nrrd

#: Around the ball of `few_slices`.
BOX = "13,19,27,33@2"
Rows = list[dict[str, str]]


def write_rows(path: Path, rows: Rows) -> Path:
    """A CSV with the columns of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def few_slices() -> np.ndarray:
    """(5, 48, 40) voxels: the middle of the bright ball."""
    return ball_in_noise()[10:15]


def write_cohort(folder: Path, count: int = 3) -> Path:
    """A CSV of scans that differ, with a box on the ball of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        voxels = np.roll(few_slices(), n, axis=2)
        write_nrrd(folder / f"c{n}.nrrd", voxels)
        rows.append({"image": f"c{n}.nrrd", "object": "ball", "box": BOX})
    return write_rows(folder / "cohort.csv", rows)


def masks(results: Path, case: str) -> dict[str, bytes]:
    """The masks of a case, by object."""
    found = read_segmentation(case_folder(results, Case(case, "")) / "segmentation.seg.nrrd")
    return {segment.name: np.packbits(segment.mask_kji).tobytes() for segment in found}


class InProcessPool(Pool):
    """Does each case in this process; `losing` names cases that the first attempts lose."""

    def __init__(self, results: Path, options: Options, losing: dict[str, int] | None = None) -> None:
        super().__init__(1)
        self._runner, self._losing = CaseRunner(results, options), losing or {}

    def _start(self) -> Any:
        return self

    def _send(self, process: Process, task: Task) -> Any:
        return task

    def _ready(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        return calls

    def _outcome(self, process: Process, call: Any) -> dict[str, Any] | None:
        if any(task.attempt < self._losing.get(task.case.name, 0) for task in process.tasks.values()):
            raise ProcessLost("lost on purpose")
        return self._runner.run(call)

    def close(self) -> None:
        pass


def run_here(
    cohort: Path, results: Path, options: Options, *, stop_after: int | None = None, **how: Any
) -> Summary:
    """Do a cohort in this process; `stop_after` so many looks, if given."""
    losing, looks = how.pop("losing", None), iter(range(10**6))
    with opened(results) as journal:
        run = Run(results, journal, options, **how)
        stop = (lambda: False) if stop_after is None else (lambda: next(looks) >= stop_after)
        return run.run(read_cohort(cohort).cases, InProcessPool(results, options, losing), stop)


def entries(results: Path) -> dict[str, Any]:
    """What the journal says, by case."""
    journal = Journal(results / "journal.sqlite")
    try:
        return {entry.name: entry for entry in journal}
    finally:
        journal.close()


class KilledRunner(CaseRunner):
    """Kills its process when it gets a case for the first time."""

    def __init__(self, results: Path, options: Options, case: str, mark: Path) -> None:
        super().__init__(results, options)
        self._case, self._mark = case, mark

    def run(self, task: Task) -> dict[str, Any]:
        """Do a case, or die."""
        if task.case.name == self._case and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(task)
