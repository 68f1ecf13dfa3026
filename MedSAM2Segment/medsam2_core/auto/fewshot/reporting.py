"""The report of a training: curves, pictures to look at, and Dice by class with its spread."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.atomic import new_file
from medsam2_core.auto.fewshot.checking import Problem
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.trainer import Outcome
from medsam2_core.errors import ExportError

#: What a report is made of; the last one only if images were held aside.
REPORT_FILES = ("report.json", "curves.png", "samples.png")
_MOST_SAMPLES = 12


def write_report(folder: str | Path, outcome: Outcome, problems: Sequence[Problem] = ()) -> list[Path]:
    """Write ``report.json``, ``curves.png`` and, if images were held aside, ``samples.png``.

    Names of files are in it, so it belongs to whoever owns the images; the model itself has none.
    ExportError when the disk refuses.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder} cannot be made: {error.strerror or error}") from error
    facts = {
        "model": outcome.auto.card.name,
        "base": outcome.auto.card.base,
        "training": dict(outcome.auto.card.training),
        "problems": [str(problem) for problem in problems],
        "curves": outcome.histories,
    }
    names = [folder / name for name in REPORT_FILES]
    written = names[:2]
    _put(written[0], json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8", "replace"))
    _put(written[1], curves_png(outcome.histories))
    if outcome.samples:
        written.append(names[2])
        colours = [one.colour_rgb for one in outcome.auto.card.classes]
        _put(written[2], samples_png(outcome.samples[:_MOST_SAMPLES], colours))
    return written


def table(dice: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for people: class, mean Dice, spread, worst image, images."""
    rows = []
    for name, one in dice.items():
        if one["mean"] is None:
            rows.append((name, "-", "", "", "0"))
        else:
            rows.append(
                (name, f"{one['mean']:.3f}", f"± {one['sd']:.3f}", f"{one['least']:.3f}", str(one["images"]))
            )
    return rows


def curves_png(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Loss (all parts together) and Dice of every stage, over its steps."""
    figure, (left, right) = _figure(1, 2, (9.0, 3.4))
    for stage, lines in histories.items():
        steps = [line["step"] for line in lines]
        losses = [sum(v for k, v in line.items() if k not in ("step", "dice")) for line in lines]
        left.plot(steps, losses, label=stage)
        measured = [(line["step"], line["dice"]) for line in lines if "dice" in line]
        if measured:
            right.plot(*zip(*measured, strict=True), label=stage)
    left.set(title="loss", xlabel="step")
    right.set(title="Dice on images not trained on", xlabel="step", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return _png(figure)


def samples_png(
    samples: Sequence[tuple[LabelledImage, NDArray]], colours: Sequence[tuple[float, float, float]]
) -> bytes:
    """Images with what was found (lines) and the truth (dotted), class by class in its colour."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure, axes = _figure(rows, columns, (2.9 * columns, 3.0 * rows))
    for one in np.ravel(axes):
        one.set_axis_off()
    for place, (image, found) in zip(np.ravel(axes), samples, strict=False):
        height, width = image.frame.inner_hw
        extent = (-0.5, image.labels_hw.shape[1] - 0.5, image.labels_hw.shape[0] - 0.5, -0.5)
        place.imshow(image.square[:height, :width], extent=extent, aspect="auto")
        place.set_aspect(height / width * image.labels_hw.shape[1] / image.labels_hw.shape[0])
        for number, colour in enumerate(colours, start=1):
            for labels, style in ((image.labels_hw, ":"), (found, "-")):
                if (labels == number).any() and min(labels.shape) > 1:
                    place.contour(labels == number, [0.5], colors=[colour], linewidths=1.2, linestyles=style)
        place.set_title(image.name[:34], fontsize=7, parse_math=False)
    figure.suptitle("found (lines) and truth (dotted)", fontsize=9)
    return _png(figure)


def _figure(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # needs no screen
    return figure, figure.subplots(rows, columns)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _put(path: Path, content: bytes) -> None:
    with new_file(path, overwrite=True) as stream:
        stream.write(content)
