"""Dice by class, and its spread, as the final report tells it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
