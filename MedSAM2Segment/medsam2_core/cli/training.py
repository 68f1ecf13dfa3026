"""What the commands that train on a user's cases share: checks of data and outputs, and progress."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.cli.console import progress_bar
from medsam2_core.cli.outputs import check_targets
from medsam2_core.errors import ExportError, TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.fewshot.data import ClassChoice, Pair
    from medsam2_core.auto.fewshot.images import ReadingOptions
    from medsam2_core.auto.fewshot.settings import StageProgress
    from medsam2_core.auto.fewshot.survey import Survey


@dataclass(frozen=True)
class TrainingFiles:
    """Files of a training.

    Attributes
    ----------
    out
        The model.
    title
        What the folder of the report is named after.
    """

    out: Path
    title: str

    @property
    def run_folder(self) -> Path:
        """Where a stopped training can be resumed; removed when it is done."""
        return self.out.with_name(self.out.name + ".run")

    @property
    def report_folder(self) -> Path:
        """Figures and curves."""
        return self.out.with_name(self.title + "-report")

    def check(self, suffix: str, *, resume: bool, overwrite: bool) -> None:
        """Raise for a name that no model has, for files that are there, and for what cannot be resumed."""
        if self.out.suffix != suffix:
            message = f"--out {self.out}: the name of this model ends with {suffix}"
            raise ExportError(message, code="not-a-model-name", path=str(self.out), suffix=suffix)
        check_targets(self.out, overwrite=overwrite)
        folder = self.run_folder
        if folder.exists() and not resume:
            message = f"{folder} holds an unfinished training: add --resume to continue it, or remove it"
            raise TrainingError(message, code="unfinished-training", folder=str(folder))
        if resume and not folder.exists():
            message = f"there is no unfinished training in {folder}: leave --resume out"
            raise TrainingError(message, code="nothing-to-resume", folder=str(folder))

    def check_inputs(self, pairs: Sequence[Pair], others: Iterable[str | Path | None]) -> None:
        """Raise for outputs that would replace `pairs` or `others`, and for data in the folder of the run."""
        from medsam2_core.auto.fewshot.results import REPORT_FILES

        given = [Path(other) for other in others if other is not None]
        read = [path for pair in pairs for path in (pair.image, pair.labels, *pair.raters)]
        with atomic.protect(*read, *given):
            for target in (self.out, *(self.report_folder / name for name in REPORT_FILES)):
                if target.exists():
                    atomic.check_target(target, overwrite=True)
        folder = self.run_folder
        for path in (*read, *given[:1]):
            if path.resolve().is_relative_to(folder.resolve()):
                raise TrainingError(
                    f"{path} lies in {folder}, which is removed when the training is done: move it elsewhere",
                    code="data-in-work-folder", path=str(path), folder=str(folder),
                )  # fmt: skip

    def finish(self, facts: Mapping[str, Any], found: Survey, *, as_json: bool) -> bool:
        """Remove the folder of the run; print the result if JSON is wanted, and return whether it is."""
        shutil.rmtree(self.run_folder, ignore_errors=True)
        if as_json:
            files = {"model": str(self.out), "report": str(self.report_folder)}
            notes = [problem.to_dict() for problem in found.problems]
            document = {"stage": "done", **files, **facts, "notes": notes, "error": None}
            print(json.dumps(document), flush=True)
        return as_json


def survey_of(
    pairs: Sequence[Pair],
    lonely: Sequence[Path],
    reading: ReadingOptions,
    choices: Sequence[ClassChoice] | None,
    progress: TrainingProgress,
    *,
    skip_bad: bool,
    keeps_cases: bool = False,
) -> Survey:
    """Read all pairs, list what is wrong with them and with `lonely` files; raise for what is fatal."""
    from medsam2_core.auto.fewshot.data import Problem
    from medsam2_core.auto.fewshot.survey import survey

    def show(done: int, total: int) -> None:
        progress.show("reading", done, total)

    found = survey(pairs, reading, choices, show, keeps_cases=keeps_cases)
    if lonely:
        names = ", ".join(path.name for path in lonely[:3]) + " …" * (len(lonely) > 3)
        text = f"{len(lonely)} files have no partner by name and are left out ({names})"
        fields = {"files": [str(path) for path in lonely]}
        found.problems.append(Problem("files-without-partner", text, is_fatal=False, fields=fields))
    progress.show_problems(found)
    found.raise_for_problems(skip_bad=skip_bad)
    return found


class TrainingProgress:
    """Shows progress as a bar on stderr, or as JSON lines on stdout."""

    def __init__(self, *, as_json: bool, silent: bool = False) -> None:
        self._as_json, self._silent = as_json, silent
        self._stage = ""
        self._bar: Any = None
        self._update: Any = None
        self._last = 0
        self._began, self._begun = 0.0, 0  # when the stage began, and with how many done

    def show(self, stage: str, done: int, total: int, dice: float | None = None) -> None:
        """Show that `done` of `total` of a stage are done; `dice` is that of the last validation."""
        if self._silent:
            return
        if self._as_json:
            # At most about a hundred lines a stage.
            if done == total or done - self._last >= max(1, total // 100) or stage != self._stage:
                if stage != self._stage:
                    self._began, self._begun = time.monotonic(), done
                self._stage, self._last = stage, done
                line = {"stage": stage, "done": done, "total": total, "dice": dice}
                print(json.dumps({**line, "seconds_left": self._seconds_left(done, total)}), flush=True)
            return
        if stage != self._stage:
            self.end()
            self._stage, self._bar = stage, progress_bar(stage, total)
            self._update = self._bar.__enter__()
        self._update(done, "" if dice is None else f"(Dice {dice:.2f})")

    def _seconds_left(self, done: int, total: int) -> float | None:
        """Return how long the rest of the stage takes at the pace so far; None before it is known."""
        if done <= self._begun:
            return None
        pace = (time.monotonic() - self._began) / (done - self._begun)
        return round(pace * max(total - done, 0), 1)

    def show_training(self, progress: StageProgress) -> None:
        """Show the progress that a trainer reports."""
        self.show(progress.stage, progress.done, progress.total, progress.dice)

    def show_problems(self, found: Survey) -> None:
        """List the problems of the data."""
        self.end()
        for problem in [] if self._silent else found.problems:
            if self._as_json:
                print(json.dumps({"stage": "problem", **problem.to_dict()}), flush=True)
            else:
                print(f"{'problem' if problem.is_fatal else 'note'}: {problem}", file=sys.stderr)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
