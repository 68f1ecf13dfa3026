"""`medsam2 evaluate`: a simulated user prompts, propagates and corrects; independent metrics judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import print_json, progress_bar, warn
from medsam2_core.cli.options import AsJson
from medsam2_core.cli.outputs import check_distinct, check_plot, check_targets
from medsam2_core.errors import EvaluationError, VolumeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medsam2_core.evaluation.cases import Case
    from medsam2_core.evaluation.protocol import Protocol


@dataclass
class _Run:
    """What has been measured so far; ``out`` is written anew after every case."""

    cases: list[Case]
    out: Path | None
    overwrite: bool
    about: dict[str, Any]
    found: list[Any] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, measure_case: Callable[[Case], Iterator[Any]]) -> None:
        """Measure every case; one that cannot be read is named and passed over."""
        with progress_bar("measuring", len(self.cases)) as update:
            for number, case in enumerate(self.cases):
                update(number, f"{case.row}, {case.image.name}")
                try:
                    # One by one: what is stopped in the middle of a case keeps the objects before.
                    for measurement in measure_case(case):
                        self.found.append(measurement)
                except (VolumeError, EvaluationError) as error:
                    if len(self.cases) == 1:
                        raise
                    warn(f"{case.row}, {case.image.name} is left out: {error}")
                    self.failed[str(case.image)] = str(error)
                self.save()
            update(len(self.cases), "")

    def save(self) -> None:
        """Write the figures there are."""
        from medsam2_core.evaluation import report

        if self.out is not None and self.found:
            report.write_json(self.out, self.found, self._described, overwrite=self.overwrite)
            self.overwrite = True  # from now on it is this run's

    @property
    def _described(self) -> dict[str, Any]:
        return {**self.about, "cases": len(self.cases), "left_out": self.failed}

    def check(self) -> None:
        """Raise EvaluationError if a case was left out, or nothing was measured."""
        if self.failed:
            message = f"{len(self.failed)} of {len(self.cases)} cases could not be read; see above"
            raise EvaluationError(message, code="cases-left-out", left_out=self.failed)
        if not self.found:
            message = "no object to measure: every label is empty or too small"
            raise EvaluationError(message, code="nothing-to-measure")

    def show(self, plot: Path | None, *, overwrite: bool, as_json: bool) -> None:
        """Print the table of everything measured, or all of it as JSON, and draw it."""
        from medsam2_core.evaluation import cvpr25, report

        if not self.found:
            return
        self.save()
        by_rows = self.about["protocol"] != "cvpr25"
        if as_json:
            print_json(report.document(self.found, self._described))
        else:
            print(report.table(report.means(self.found)) if by_rows else cvpr25.table(self.found))
        if plot is not None and by_rows:
            report.plot(plot, report.means(self.found), overwrite=overwrite)


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on labelled volumes.

    For each label's largest piece: one box, then corrections where the result is most wrong, then one click
    alone; beside a baseline that does not use the image. Prints a table of mean Dice. By the protocol
    cvpr25, for each label: one box and five clicks, and the areas under the curves of both Dice. A case that
    cannot be read is named and left out; what was measured is kept, however the command ends.

    Options
    -------
    image: One volume or picture …
    labels: … and its true label map, on the same grid.
    cases TABLE.tsv: Many: tab-separated columns row, image, labels, axis, window.
    data: Folder the table's file names are in; the table's own by default.
    row NAME: Only these rows of the table.
    most: At most so many cases a row.
    axis: Slices of IMAGE: axial, sagittal, …
    window: Window of IMAGE: W,L, a preset, auto.
    protocol: standard, or cvpr25: box and five clicks of the CVPR 2025 challenge.
    corrections: Clicks after the box; 3 by default.
    seed: Of the simulated user.
    zoom: auto or off.
    memory: recent, self-sorting or prompted.
    out FILE.json: Write every figure, anew after every case.
    plot FILE.png|FILE.svg: Draw the means by row.
    """

    image: Annotated[Path | None, typer.Argument()] = None
    labels: Annotated[Path | None, typer.Argument()] = None
    cases: Path | None = None
    data: Path | None = None
    row: list[str] | None = None
    most: Annotated[int | None, typer.Option(min=1)] = None
    model: str = "embedded"
    axis: str = "axial"
    window: str = "auto"
    protocol: str = "standard"
    corrections: Annotated[int | None, typer.Option(min=0, show_default=False)] = None
    seed: Annotated[int, typer.Option(min=0)] = 0
    zoom: str = "auto"
    memory: str = "recent"
    device: str = "auto"
    precision: str = "auto"
    config: str | None = None
    image_size: int | None = None
    out: Annotated[Path | None, typer.Option("--out", "-o")] = None
    plot: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Measure case by case; print and write what was measured, however it ends."""
        from medsam2_core.engine.cache import FeatureCache
        from medsam2_core.engine.model import load_model
        from medsam2_core.evaluation.protocol import measure_case

        settings, cases = self._settings(), self._chosen()
        read = [path for case in cases for path in (case.image, case.labels)]
        with atomic.protect(*read, self.cases, self.model, self.config):
            check_targets(self.out, self.plot, overwrite=self.overwrite)
        check_plot(self.plot)
        check_distinct(("--out", self.out), ("--plot", self.plot))
        model = load_model(
            self.model, self.device, self.precision, config=self.config, image_size=self.image_size
        )
        about = {"protocol": self.protocol, **asdict(settings), **model.provenance()}
        about["image_size"] = model.image_size
        run, cache = _Run(cases, self.out, self.overwrite, about), FeatureCache()
        try:
            run.measure(lambda case: measure_case(case, model, settings, cache))
        finally:
            run.show(self.plot, overwrite=self.overwrite, as_json=self.as_json)
        run.check()

    def _settings(self) -> Protocol:
        from medsam2_core.evaluation.cvpr25 import Cvpr25Protocol
        from medsam2_core.evaluation.protocol import StandardProtocol

        if self.protocol == "standard":
            clicks = 3 if self.corrections is None else self.corrections
            return StandardProtocol(clicks, self.seed, self.zoom, self.memory)
        if self.protocol != "cvpr25":
            message = f"unknown protocol {self.protocol!r}: use standard or cvpr25"
            raise EvaluationError(message, code="unknown-protocol", protocol=self.protocol)
        if self.corrections is not None:
            message = "the protocol cvpr25 has five clicks: leave out --corrections"
            raise EvaluationError(
                message, code="fixed-by-protocol", protocol=self.protocol, option="corrections"
            )
        return Cvpr25Protocol(seed=self.seed, zoom=self.zoom, memory=self.memory)

    def _chosen(self) -> list[Case]:
        """Return the cases to measure, once everything needed for it is known to be installed."""
        from medsam2_core.engine.architecture import require_sam2
        from medsam2_core.evaluation.cases import Case, only, read_table
        from medsam2_core.evaluation.metrics import require_monai

        require_sam2()
        require_monai()
        if self.cases is not None and self.image is None and self.labels is None:
            return only(read_table(self.cases, self.data), self.row or [], self.most)
        if self.cases is not None or self.image is None or self.labels is None:
            message = "say what to measure: IMAGE and LABELS, or --cases TABLE.tsv"
            raise EvaluationError(message, code="nothing-named")
        for path in (self.image, self.labels):
            if not path.exists():
                message = f"{path}: no such file or folder"
                raise EvaluationError(message, code="case-missing", path=str(path))
        case = Case(self.image.name, self.image, self.labels, self.axis, self.window)
        return only([case], self.row or [], self.most)
