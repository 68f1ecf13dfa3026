"""Reports of what was measured: means by row, a table, a plot, JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsam2_core.atomic import new_file
from medsam2_core.evaluation.protocol import Measurement, by_row, markdown


@dataclass(frozen=True)
class RowMeans:
    """Means over the objects of one row; ``hd95_mm`` over those where both masks have voxels."""

    row: str
    objects: int
    baseline: float
    click: float
    dice: tuple[float, ...]
    surface_dice: tuple[float, ...]
    hd95_mm: tuple[float | None, ...]
    seconds: float


def means(measurements: Sequence[Measurement]) -> list[RowMeans]:
    """Average by row, in the order rows first appear."""
    return [_row_means(row, found) for row, found in by_row(measurements).items()]


def table(rows: Sequence[RowMeans]) -> str:
    """A Markdown table of mean Dice: baseline, one click, one box, and after each correction."""
    corrections = max((len(row.dice) - 1 for row in rows), default=0)
    heads = ["row", "objects", "baseline", "one click", "one box"]
    heads += [f"+{n} correction{'s' * (n > 1)}" for n in range(1, corrections + 1)]
    heads += ["box less baseline", "last less baseline", "NSD (box)", "HD95 mm (box)", "s/object"]
    lines = []
    for row in rows:
        distance = "-" if row.hd95_mm[0] is None else f"{row.hd95_mm[0]:.1f}"
        dice = (row.baseline, row.click, *row.dice)
        cells = [row.row, str(row.objects), *(f"{value:.3f}" for value in dice)]
        cells += [f"{row.dice[n] - row.baseline:+.3f}" for n in (0, -1)]
        lines.append([*cells, f"{row.surface_dice[0]:.3f}", distance, f"{row.seconds:.1f}"])
    return markdown(heads, lines)


def document(measurements: Sequence[Measurement], about: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, by object and by row."""
    objects = [measurement.to_dict() for measurement in measurements]
    content: dict[str, Any] = {"about": about}
    if about.get("protocol") == "cvpr25":
        for measurement, one in zip(measurements, objects, strict=True):
            one.update(measurement.areas_under_curves())
    else:
        content["rows"] = [row.__dict__ for row in means(measurements)]
    return {**content, "objects": objects}


def write_json(
    path: str | Path, measurements: Sequence[Measurement], about: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write the :func:`document`, whole or not at all."""
    with new_file(Path(path), overwrite=overwrite) as stream:
        stream.write((json.dumps(document(measurements, about), indent=1) + "\n").encode())


def plot(path: str | Path, rows: Sequence[RowMeans], *, overwrite: bool = False) -> None:
    """Dice by row as a PNG or SVG: baseline, one click, one box, corrections."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    axes.hlines(places, 0, 1, color="0.9", zorder=0)
    series = [
        ("baseline", [row.baseline for row in rows], "|", "0.25"),
        ("one click", [row.click for row in rows], "x", "tab:orange"),
        ("one box", [row.dice[0] for row in rows], "o", "tab:blue"),
        (f"{len(rows[0].dice) - 1} corrections", [row.dice[-1] for row in rows], "D", "tab:green"),
    ]
    for label, values, marker, colour in series:
        axes.scatter(values, places, marker=marker, color=colour, label=label, s=70)
    axes.set_yticks(places, [f"{row.row} ({row.objects})" for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel("mean Dice")
    figure.legend(loc="outside upper right", ncols=4, frameon=False)
    with new_file(Path(path), overwrite=overwrite) as stream:
        figure.savefig(stream, dpi=110, format=Path(path).suffix[1:].lower())


def _row_means(row: str, found: Sequence[Measurement]) -> RowMeans:
    stages = list(zip(*(measurement.stages for measurement in found), strict=True))
    distances = [[s.hd95_mm for s in stage if s.hd95_mm is not None] for stage in stages]
    return RowMeans(
        row,
        len(found),
        _mean([m.baseline for m in found]),
        _mean([m.click for m in found]),
        tuple(float(np.mean([s.dice for s in stage])) for stage in stages),
        tuple(float(np.mean([s.surface_dice for s in stage])) for stage in stages),
        tuple(float(np.mean(d)) if d else None for d in distances),
        float(np.mean([m.seconds for m in found])),
    )


def _mean(values: Sequence[float | None]) -> float:
    """The mean of figures that the standard protocol has of every object."""
    return float(np.mean([value for value in values if value is not None]))
