"""Results of a training: Dice by class, and a report with curves and samples."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core import atomic
from medsam2_core.auto.fewshot.data import Problem
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.model import AutoModel

#: Dice of every class on one image; NaN for a class that is neither on the truth nor on the prediction.
ClassDice = list[float]


@dataclass
class TrainingResult:
    """Result of a training.

    Attributes
    ----------
    dice
        By class name, :func:`spread` of Dice on images that were not trained on; empty without such images.
    histories
        By stage, its loss and Dice over the steps.
    samples
        Images that were not trained on, and the labels (H, W) predicted on them.
    """

    auto: AutoModel
    dice: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    samples: list[tuple[LabelledImage, np.ndarray]] = field(default_factory=list)


def dice_by_class(found_hw: NDArray, truth_hw: NDArray, classes: int) -> ClassDice:
    """Compute Dice of labels 1 to `classes`; NaN for a class that is on neither image."""
    table = []
    for number in range(1, classes + 1):
        found, truth = found_hw == number, truth_hw == number
        total = int(found.sum()) + int(truth.sum())
        table.append(2 * int((found & truth).sum()) / total if total else float("nan"))
    return table


def least_piece(images: Sequence[LabelledImage], number: int) -> float:
    """Compute half the 5th percentile of the component areas of a class, as a share of the square."""
    areas: list[float] = []
    for image in images:
        labels = image.letterbox.resize_labels(image.labels_hw).numpy() == number
        pieces, count = ndimage.label(labels)
        areas += (np.bincount(pieces.ravel(), minlength=count + 1)[1:] / labels.size).tolist()
    return float(np.percentile(areas, 5)) / 2 if areas else 0.0


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Compute mean, standard deviation, minimum and count of the values that are not NaN."""
    numbers = np.array([value for value in values if not np.isnan(value)], dtype=float)
    if len(numbers) == 0:
        return {"mean": None, "sd": None, "least": None, "images": 0}
    return {
        "mean": round(float(numbers.mean()), 4),
        "sd": round(float(numbers.std()), 4),
        "least": round(float(numbers.min()), 4),
        "images": len(numbers),
    }


#: Files of a report; the last one only if there are samples.
REPORT_FILES = ("report.json", "curves.png", "samples.png")
_MOST_SAMPLES = 12


def put_files(folder: str | Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if need be.

    Raises
    ------
    ExportError
        Code ``output-not-writable``.
    """
    folder = Path(folder)
    atomic.make_folder(folder)
    for name, content in contents.items():
        with atomic.new_file(folder / name, overwrite=True) as stream:
            stream.write(content)
    return [folder / name for name in contents]


def write_report(folder: str | Path, outcome: TrainingResult, problems: Sequence[Problem] = ()) -> list[Path]:
    """Write ``report.json``, ``curves.png`` and, if there are samples, ``samples.png``.

    The report has names of files; the model has none.
    """
    facts = {
        "model": outcome.auto.card.name,
        "base": outcome.auto.card.base,
        "training": dict(outcome.auto.card.training),
        "problems": [str(problem) for problem in problems],
        "curves": outcome.histories,
    }
    content = json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8", "replace")
    files = {"report.json": content, "curves.png": curves_png(outcome.histories)}
    if outcome.samples:
        colours = [one.colour_rgb for one in outcome.auto.card.classes]
        files["samples.png"] = samples_png(outcome.samples[:_MOST_SAMPLES], colours)
    return put_files(folder, files)


def table(dice: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of class, mean Dice, spread, worst image and number of images as text."""
    rows: list[tuple[str, ...]] = []
    for name, one in dice.items():
        if one["mean"] is None:
            rows.append((name, "-", "", "", "0"))
        else:
            rows.append(
                (name, f"{one['mean']:.3f}", f"± {one['sd']:.3f}", f"{one['least']:.3f}", str(one["images"]))
            )
    return rows


def curves_png(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Plot the total loss and Dice of every stage over its steps, as a PNG."""
    figure, (left, right) = _figure(1, 2, (9.0, 3.4))
    for stage, lines in histories.items():
        steps = [line["step"] for line in lines if line.keys() - {"step", "dice"}]
        losses = [
            sum(v for k, v in line.items() if k not in ("step", "dice"))
            for line in lines
            if line.keys() - {"step", "dice"}
        ]
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
    """Plot images with predicted (solid) and true (dotted) contours, as a PNG."""
    columns = min(4, len(samples))
    rows = -(-len(samples) // columns)
    figure, axes = _figure(rows, columns, (2.9 * columns, 3.0 * rows))
    for one in np.ravel(axes):
        one.set_axis_off()
    for place, (image, found) in zip(np.ravel(axes), samples, strict=False):
        height, width = image.letterbox.content_hw
        extent = (-0.5, image.labels_hw.shape[1] - 0.5, image.labels_hw.shape[0] - 0.5, -0.5)
        place.imshow(image.square[:height, :width], extent=extent, aspect="auto")
        place.set_aspect(height / width * image.labels_hw.shape[1] / image.labels_hw.shape[0])
        for number, colour in enumerate(colours, start=1):
            for labels, style in ((image.labels_hw, ":"), (found, "-")):
                if (labels == number).any() and min(labels.shape) > 1:
                    place.contour(labels == number, [0.5], colors=[colour], linewidths=1.2, linestyles=style)
        place.set_title(image.name[:34], fontsize=7, parse_math=False)
    figure.suptitle("prediction (solid) and truth (dotted)", fontsize=9)
    return _png(figure)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
