"""`medsam2 evaluate`: a simulated user prompts, propagates and corrects; independent metrics judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsam2_core.cli.progress import slices_bar

if TYPE_CHECKING:
    from medsam2_core.evaluation.cases import Case
    from medsam2_core.evaluation.protocol import Measurement, Protocol


def evaluate(
    image: Annotated[Path | None, typer.Argument(help="One volume or picture …")] = None,
    labels: Annotated[Path | None, typer.Argument(help="… and its true label map, on the same grid.")] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE.tsv", help="Many: tab-separated columns row, image, labels, axis, window."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder the table's file names are in; the table's own by default.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these rows of the table.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="At most so many cases a row.")] = None,
    model: Annotated[str, typer.Option(help="A name from `medsam2 models list`, or a file.")] = "embedded",
    axis: Annotated[str, typer.Option(help="Slices of IMAGE: axial, sagittal, …")] = "axial",
    window: Annotated[str, typer.Option(help="Window of IMAGE: W,L, a preset, auto.")] = "auto",
    corrections: Annotated[int, typer.Option(min=0, help="Clicks after the box.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated user.")] = 0,
    zoom: Annotated[str, typer.Option(help="auto or off.")] = "auto",
    memory: Annotated[str, typer.Option(help="recent or self-sorting.")] = "recent",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every figure as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the means by row.")] = None,
) -> None:
    """Measure a model on labelled volumes.

    For each label's largest piece: one box, then corrections where the result is most wrong, then one click
    alone; beside a baseline that never looks at the image. Prints a table of mean Dice.
    """
    from medsam2_core.errors import EvaluationError
    from medsam2_core.evaluation import report
    from medsam2_core.evaluation.protocol import Protocol

    chosen = _cases(image, labels, cases, data, axis, window)
    chosen = _only(chosen, row or [], most)
    for target in (json, plot):
        if target is not None and not target.parent.is_dir():
            raise EvaluationError(f"{target}: the folder {target.parent} does not exist, create it first")
    protocol = Protocol(corrections=corrections, seed=seed, zoom=zoom, memory=memory)
    measurements = _measure(chosen, model, device, protocol)
    if not measurements:
        raise EvaluationError("no object to measure: every label is empty or too small")
    rows = report.means(measurements)
    print(report.table(rows))
    if json is not None:
        about = {"model": model, "device": device, **protocol.__dict__}
        report.write_json(json, measurements, about)
    if plot is not None:
        report.plot(plot, rows)


def _cases(
    image: Path | None, labels: Path | None, table: Path | None, data: Path | None, axis: str, window: str
) -> list[Case]:
    from medsam2_core.errors import EvaluationError
    from medsam2_core.evaluation.cases import Case, read_table

    if (image is None) == (table is None) or (image is None) != (labels is None):
        raise EvaluationError("say what to measure: IMAGE and LABELS, or --cases TABLE.tsv")
    if table is not None:
        return read_table(table, data)
    return [Case(image.name, image, labels, axis, window)]


def _only(cases: list[Case], rows: list[str], most: int | None) -> list[Case]:
    from medsam2_core.errors import EvaluationError

    known = list(dict.fromkeys(case.row for case in cases))
    if unknown := [row for row in rows if row not in known]:
        raise EvaluationError(f"--row {unknown[0]!r} is not in the table, which has {', '.join(known)}")
    kept, counts = [], dict.fromkeys(known, 0)
    for case in cases:
        if (not rows or case.row in rows) and (most is None or counts[case.row] < most):
            counts[case.row] += 1
            kept.append(case)
    return kept


def _measure(cases: list[Case], model: str, device: str, protocol: Protocol) -> list[Measurement]:
    from medsam2_core.engine.cache import FeatureCache
    from medsam2_core.engine.model import load_model
    from medsam2_core.evaluation.protocol import measure_case

    loaded, cache = load_model(model, device), FeatureCache()
    found: list[Measurement] = []
    with slices_bar("measuring", len(cases)) as update:
        for number, case in enumerate(cases):
            update(number, f"{case.row}, {case.image.name}")
            found += measure_case(case, loaded, protocol, cache)
        update(len(cases), "")
    return found
