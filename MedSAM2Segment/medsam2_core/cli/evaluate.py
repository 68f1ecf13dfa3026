"""`medsam2 evaluate`: a simulated user prompts, propagates and corrects; independent metrics judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam2_core.cli.console import print_json, progress_bar, warn
from medsam2_core.cli.options import AsJson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medsam2_core.evaluation.cases import Case
    from medsam2_core.evaluation.protocol import Protocol


@dataclass
class _Run:
    """What has been measured so far; ``out`` is written anew after every case."""

    cases: list[Case]
    out: Path | None
    about: dict[str, Any]
    found: list[Any] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(self, measure_case: Callable[[Case], Iterator[Any]]) -> None:
        """Measure every case; one that cannot be read is named and passed over."""
        from medsam2_core.errors import EvaluationError, VolumeError

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
            report.write_json(self.out, self.found, self._described)

    @property
    def _described(self) -> dict[str, Any]:
        return {**self.about, "cases": len(self.cases), "left_out": self.failed}

    def check(self) -> None:
        """EvaluationError if a case was left out, or nothing was measured."""
        from medsam2_core.errors import EvaluationError

        if self.failed:
            message = f"{len(self.failed)} of {len(self.cases)} cases could not be read; see above"
            raise EvaluationError(message, code="cases-left-out", left_out=self.failed)
        if not self.found:
            message = "no object to measure: every label is empty or too small"
            raise EvaluationError(message, code="nothing-to-measure")

    def show(self, plot: Path | None, *, as_json: bool) -> None:
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
            report.plot(plot, report.means(self.found))


def evaluate(
    image: Annotated[Path | None, typer.Argument()] = None,
    labels: Annotated[Path | None, typer.Argument()] = None,
    cases: Path | None = None,
    data: Path | None = None,
    row: list[str] | None = None,
    most: Annotated[int | None, typer.Option(min=1)] = None,
    model: str = "embedded",
    axis: str = "axial",
    window: str = "auto",
    protocol: str = "standard",
    corrections: Annotated[int | None, typer.Option(min=0, show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    zoom: str = "auto",
    memory: str = "recent",
    device: str = "auto",
    precision: str = "auto",
    config: str | None = None,
    image_size: int | None = None,
    out: Annotated[Path | None, typer.Option("--out", "-o")] = None,
    plot: Path | None = None,
    as_json: AsJson = False,
) -> None:
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
    plot PNG: Draw the means by row.
    """
    from medsam2_core.engine.cache import FeatureCache
    from medsam2_core.engine.model import load_model
    from medsam2_core.evaluation.protocol import measure_case

    settings = _protocol(protocol, corrections, seed, zoom, memory)
    chosen = _chosen(image, labels, cases, data, axis, window, row or [], most)
    _check_targets(chosen, [cases, model, config], [out, plot])
    loaded = load_model(model, device, precision, config=config, image_size=image_size)
    about = {"protocol": protocol, **asdict(settings), **loaded.provenance()}
    run, cache = _Run(chosen, out, {**about, "image_size": loaded.image_size}), FeatureCache()
    try:
        run.measure(lambda case: measure_case(case, loaded, settings, cache))
    finally:
        run.show(plot, as_json=as_json)
    run.check()


def _chosen(
    image: Path | None,
    labels: Path | None,
    table: Path | None,
    data: Path | None,
    axis: str,
    window: str,
    rows: list[str],
    most: int | None,
) -> list[Case]:
    """The cases to measure, once everything needed for it is known to be installed."""
    from medsam2_core.engine.architecture import require_sam2
    from medsam2_core.evaluation.metrics import require_monai

    require_sam2()
    require_monai()
    return _only(_cases(image, labels, table, data, axis, window), rows, most)


def _check_targets(cases: list[Case], read: list[Path | str | None], targets: list[Path | None]) -> None:
    """Refuse to write over anything that is read, and where nothing can be written."""
    from medsam2_core.atomic import protect
    from medsam2_core.cli.outputs import check_targets

    with protect(*(path for case in cases for path in (case.image, case.labels)), *read):
        check_targets(*targets, overwrite=True)


def _protocol(name: str, corrections: int | None, seed: int, zoom: str, memory: str) -> Protocol:
    from medsam2_core.errors import EvaluationError
    from medsam2_core.evaluation.cvpr25 import Cvpr25Protocol
    from medsam2_core.evaluation.protocol import StandardProtocol

    if name == "standard":
        return StandardProtocol(3 if corrections is None else corrections, seed, zoom, memory)
    if name != "cvpr25":
        message = f"unknown protocol {name!r}: use standard or cvpr25"
        raise EvaluationError(message, code="unknown-protocol", protocol=name)
    if corrections is not None:
        message = "the protocol cvpr25 has five clicks: leave out --corrections"
        raise EvaluationError(message, code="fixed-by-protocol", protocol=name, option="corrections")
    return Cvpr25Protocol(seed=seed, zoom=zoom, memory=memory)


def _cases(
    image: Path | None, labels: Path | None, table: Path | None, data: Path | None, axis: str, window: str
) -> list[Case]:
    from medsam2_core.errors import EvaluationError
    from medsam2_core.evaluation.cases import Case, read_table

    if (image is None) == (table is None) or (image is None) != (labels is None):
        message = "say what to measure: IMAGE and LABELS, or --cases TABLE.tsv"
        raise EvaluationError(message, code="nothing-named")
    if table is not None:
        return read_table(table, data)
    assert image is not None
    assert labels is not None
    for path in (image, labels):
        if not path.exists():
            raise EvaluationError(f"{path}: no such file or folder", code="case-missing", path=str(path))
    return [Case(image.name, image, labels, axis, window)]


def _only(cases: list[Case], rows: list[str], most: int | None) -> list[Case]:
    from medsam2_core.errors import EvaluationError

    known = list(dict.fromkeys(case.row for case in cases))
    if unknown := [row for row in rows if row not in known]:
        message = f"--row {unknown[0]!r} is not in the table, which has {', '.join(known)}"
        raise EvaluationError(message, code="unknown-row", row=unknown[0], known=known)
    kept, counts = [], dict.fromkeys(known, 0)
    for case in cases:
        if (not rows or case.row in rows) and (most is None or counts[case.row] < most):
            counts[case.row] += 1
            kept.append(case)
    return kept
