"""`medsam2 batch`: a cohort from a CSV or a folder to segmentations, one table and one report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import print_notes, progress_bar, report, stop_on_request, warn
from medsam2_core.cli.inputs import check_settings
from medsam2_core.cli.options import AsJson, AxisName, Out, WhenIrregular, pairs_given
from medsam2_core.errors import BatchError, Cancelled, ExportError, Note

if TYPE_CHECKING:
    from medsam2_core.batch.cases import Case, Options
    from medsam2_core.batch.cohort import Cohort
    from medsam2_core.batch.pool import Pool
    from medsam2_core.batch.run import Summary

_MOST_PROBLEMS = 50  # printed; --json has all


@dataclass(frozen=True)
class Batch:
    """Segment the cases of a cohort, with one table of measurements and one report of all.

    Stopped and run again with the same words, it goes on where it was; cases whose image, prompts, model or
    options have changed are done again.

    Options
    -------
    cohort: CSV with the columns image, and box, point, mask, line, box3d, prompts, auto or like_scan and
        like_segmentation, case, series, object; or a folder of scans, DICOM included. Images may be URLs.
    list_cases: Print the cases as such a CSV, and end.

    Output
    ------
    out: Folder for the results; is made.
    dicom_seg: Also write a DICOM SEG of every case that is DICOM.
    generic: There, code objects without a code as 'Tissue'.

    Prompts (for cases without their own)
    -------------------------------------
    auto: Auto model for cases without prompts: a file or a name.
    classes A,B: Only these of its classes.
    like SCAN SEGMENTATION: Segmented scan as an example, for cases without prompts. May be given several
        times.
    space: Coordinates of prompts: array indices, or millimetres.

    Processing
    ----------
    axis: Plane of the slices, or array axis; by default axial, or that of the Auto model.
    window W,L|PRESET: Intensity window; by default auto, or that of the Auto model.
    memory: Memory bank: the most recent slices, or MedSAM-2's self-sorting bank.
    no_overlap: Where tracking finds two objects, the one with the higher logit gets the voxel.
    zoom: Crop the model's input to the object.

    How to run
    ----------
    retry_failed: Do failed cases again.
    processes: Processes, each with one model; by default as many as memory and processors allow.
    ray ADDRESS: Processes are actors of a Ray cluster: its address, auto for the one this machine belongs to,
        or local for one of this machine. All machines need the same files.
    threads: CPU threads of each process. Masks do not depend on the number of processes.
    """

    context: typer.Context
    cohort: Path
    out: Out
    list_cases: Annotated[bool, typer.Option("--list")] = False
    dicom_seg: bool = False
    generic: bool = False
    auto: str | None = None
    classes: str | None = None
    like: list[str] | None = None
    space: Literal["ijk", "ras", "lps"] = "ijk"
    model: str = "embedded"
    axis: AxisName | None = None
    window: str | None = None
    memory: Literal["recent", "self-sorting"] = "recent"
    no_overlap: bool = False
    zoom: Literal["auto", "off"] = "auto"
    device: str = "auto"
    precision: str = "auto"
    config: str | None = None
    image_size: int | None = None
    irregular: WhenIrregular = "refuse"
    retry_failed: bool = False
    processes: Annotated[int | None, typer.Option(min=1, max=256)] = None
    ray: str | None = None
    threads: Annotated[int, typer.Option(min=1)] = 1
    as_json: AsJson = False

    def run(self) -> None:
        """Check everything that is quick to check, do the cases, write table and report."""
        from medsam2_core.batch.cohort import as_csv

        cohort = self._cohort()
        if self.list_cases:
            print(as_csv(cohort.cases), end="")
            print_notes(cohort.notes)
            return
        here = (self.device, self.precision) if self.ray is None else ("auto", "auto")
        check_settings(self.model, *here, self.window)
        started = time.perf_counter()
        summary, facts = self._run(cohort.cases)
        seconds = time.perf_counter() - started
        new = len(summary.done) + len(summary.failed)
        facts |= {
            "seconds": round(seconds, 2),
            "cases_per_hour": round(3600 * new / seconds, 1) if new else None,
        }
        notes = [*cohort.notes]
        if failed := [*summary.failed, *summary.kept_failed]:
            count = "1 case" if len(failed) == 1 else f"{len(failed)} cases"
            text = f"{count} failed: report.html says why; --retry-failed does them again"
            notes.append(Note.warning("cases-failed", text, cases=failed))
        if summary.unchecked:
            name, why = next(iter(summary.unchecked.items()))
            text = f"{len(summary.unchecked)} results were kept unchecked, as that of {name}: {why}"
            notes.append(Note.warning("cases-not-checked", text, cases=list(summary.unchecked)))
        if summary.stopped:
            raise Cancelled(f"stopped: run the same command again to go on with {self.out}", **facts)
        if failed and not (summary.done or summary.kept):
            message = f"every case failed: {self.out / 'report.html'} says why"
            raise BatchError(message, code="every-case-failed", **{**facts, "cases": failed})
        report(facts, notes, _print, as_json=self.as_json)

    def _cohort(self) -> Cohort:
        """Read the cohort; print every problem with its line before the error that ends the command."""
        from medsam2_core.auto.library import find
        from medsam2_core.batch.cohort import Defaults, read_cohort

        self._check_out()
        pairs = pairs_given(self.context, "like")
        like = tuple((str(Path(scan).absolute()), str(Path(labels).absolute())) for scan, labels in pairs)
        defaults = Defaults(_absolute(self.auto) or "", self.classes or "", like)
        try:
            return read_cohort(
                self.cohort, defaults, self.out, needs_prompts=not self.list_cases, find_auto=find
            )
        except BatchError as error:
            problems = error.fields.get("problems", ())
            for one in problems[:_MOST_PROBLEMS]:
                warn(one["message"])
            if len(problems) > _MOST_PROBLEMS:
                warn(f"… and {len(problems) - _MOST_PROBLEMS} more (--json lists all)")
            raise

    def _check_out(self) -> None:
        out, cohort = self.out.resolve(), self.cohort.resolve()
        if self.out.exists() and not self.out.is_dir():
            message = f"--out {self.out} is a file: name a folder"
            raise ExportError(message, code="output-is-file", path=str(self.out))
        if out == cohort:
            message = f"--out {self.out} is the folder of the images: name another"
            raise ExportError(message, code="output-is-input", path=str(self.out))

    @property
    def _options(self) -> Options:
        from dataclasses import fields

        from medsam2_core.batch.cases import Options

        values = {one.name: getattr(self, one.name) for one in fields(Options)}
        return Options(**{**values, "model": _absolute(self.model), "config": _absolute(self.config)})

    def _run(self, cases: list[Case]) -> tuple[Summary, dict[str, Any]]:
        from medsam2_core.batch.report import results_of, write_report, write_table
        from medsam2_core.batch.run import Run, opened

        options = self._options
        with opened(self.out) as journal:
            run = Run(self.out, journal, options, retry_failed=self.retry_failed)
            pool = self._pool(options, cases)
            try:
                with progress_bar("segmenting", len(cases)) as update:
                    summary = run.run(cases, pool, stop_on_request(), update)
            finally:
                pool.close()
                results = results_of(journal, cases)
                table = write_table(results, self.out)
                page = write_report(results, self.out, self.cohort.name)
        return summary, {
            "out": str(self.out), "table": str(table), "report": str(page), "cases": len(cases),
            "done": len(summary.done), "failed": len(summary.failed), "kept": len(summary.kept),
            "kept_failed": len(summary.kept_failed), "processes": len(pool.processes),
            "confidence_is_calibrated": False,
        }  # fmt: skip

    def _pool(self, options: Options, cases: list[Case]) -> Pool:
        from medsam2_core.batch.pool import LocalPool, RayPool, bytes_needed, processes_for
        from medsam2_core.batch.work import CaseRunner

        make_runner = partial(CaseRunner, self.out.absolute(), options)
        if self.ray is not None:
            memory = sum(bytes_needed(options, cases))
            on_gpu = None if self.device == "auto" else self.device != "cpu"
            return RayPool(
                self.ray, make_runner, self.processes, threads=options.threads, memory=memory, on_gpu=on_gpu
            )
        return LocalPool(make_runner, min(self.processes or processes_for(options, cases), len(cases)))


def _absolute(file: str | None) -> str | None:
    """Return the absolute path of a file, as other machines have other working folders; a name as it is."""
    return str(Path(file).absolute()) if file and Path(file).is_file() else file


def _print(facts: dict[str, Any]) -> None:
    kept = f", {facts['kept']} were done before" if facts["kept"] else ""
    speed = f", {facts['cases_per_hour']:.0f} cases an hour" if facts["cases_per_hour"] else ""
    print(f"{facts['out']}: {facts['done']} of {facts['cases']} cases done, {facts['failed']} failed{kept}")
    print(f"{facts['table']}: measurements and confidence (not calibrated: check)")
    print(f"{facts['report']}: to look them through; {facts['seconds']:.1f} s{speed}")
