"""Dice by class, and its spread, as the final report tells it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core.auto.fewshot.images import LabelledImage

#: Dice of every class on one image; NaN where a class is neither there nor found.
ClassDice = list[float]


def dice_by_class(found_hw: NDArray, truth_hw: NDArray, classes: int) -> ClassDice:
    """Dice of labels 1 to `classes`; NaN for a class that is on neither, 0 for one on only one of them."""
    table = []
    for number in range(1, classes + 1):
        found, truth = found_hw == number, truth_hw == number
        total = int(found.sum()) + int(truth.sum())
        table.append(2 * int((found & truth).sum()) / total if total else float("nan"))
    return table


def least_piece(images: Sequence[LabelledImage], number: int) -> float:
    """Half the area of a small connected piece of a class (the 5th percentile), as a share of the square."""
    areas: list[float] = []
    for image in images:
        labels = image.frame.labels(image.labels_hw).numpy() == number
        pieces, count = ndimage.label(labels)
        areas += (np.bincount(pieces.ravel(), minlength=count + 1)[1:] / labels.size).tolist()
    return float(np.percentile(areas, 5)) / 2 if areas else 0.0


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation, least, and count of what is a number."""
    numbers = np.array([value for value in values if not np.isnan(value)], dtype=float)
    if len(numbers) == 0:
        return {"mean": None, "sd": None, "least": None, "images": 0}
    return {
        "mean": round(float(numbers.mean()), 4),
        "sd": round(float(numbers.std()), 4),
        "least": round(float(numbers.min()), 4),
        "images": len(numbers),
    }
