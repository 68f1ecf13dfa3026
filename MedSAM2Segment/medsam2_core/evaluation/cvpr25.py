"""The protocol of the CVPR 2025 challenge on foundation models for interactive 3-D segmentation.

Every class of a volume gets one box: its range of slices, and a rectangle on the median occupied slice. Five
clicks follow, each where the voxel distance transform of the largest error is greatest; Dice and normalised
surface Dice (2 mm) are taken after each. Their areas under the curve run over the five clicks (trapezoid, at
most 4). Published figures by this protocol: arXiv 2510.03189.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core.evaluation.protocol import Attempt, Measurement, Protocol, by_row, markdown
from medsam2_core.prompts import Box, Point

# A rectangle is grown by up to this many pixels of a slice of 256, a whole number drawn once a box.
MOST_GROWTH = 5


@dataclass(frozen=True)
class Cvpr25Protocol(Protocol):
    """The challenge's user: every class as a whole, from the first to the last of its slices."""

    corrections: int = 5
    tolerance_mm: ClassVar[float | None] = 2.0
    objects: ClassVar[dict[str, Any]] = {"smallest": 1, "whole": True}

    def box(self, attempt: Attempt) -> Box:
        """Return a rectangle on the median occupied slice."""
        occupied = np.flatnonzero(attempt.areas)
        median = int(occupied[len(occupied) // 2])
        growth = int(attempt.rng.integers(0, MOST_GROWTH + 1))
        left, top, right, bottom = box_of(attempt.truth_hw(median), growth)
        corners = (left - 0.5, top - 0.5), (right + 0.5, bottom + 0.5)
        return Box.between(*(attempt.ijk(x, y, median) for x, y in corners))

    def next_click(self, attempt: Attempt, mask_kji: NDArray[np.bool_]) -> Point | None:
        """Return a click where the distance transform of the largest error is greatest."""
        click = next_click(mask_kji, attempt.truth_kji)
        if click is None:
            return None
        (k, j, i), positive = click
        return Point((float(i), float(j), float(k)), positive)

    def limits(self, attempt: Attempt) -> dict[str, Any] | None:
        """Return the range of slices: nothing lies outside it."""
        occupied = np.flatnonzero(attempt.areas)
        first, last = int(occupied[0]), int(occupied[-1])
        return {"first": first, "last": last, "stop_after_absent": None} if last > first else None


def box_of(mask_hw: NDArray[np.bool_], growth: int) -> tuple[int, int, int, int]:
    """First column and row, last column and row (inclusive) of the rectangle around a mask.

    Each side is moved outwards by ``int(growth * side / 256)`` pixels, of the slice's width or height, and
    stays inside the slice.
    """
    height, width = mask_hw.shape
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    across, down = int(growth * width / 256), int(growth * height / 256)
    return (
        max(0, int(columns[0]) - across),
        max(0, int(rows[0]) - down),
        min(width - 1, int(columns[-1]) + across),
        min(height - 1, int(rows[-1]) + down),
    )


def next_click(
    mask_kji: NDArray[np.bool_], truth_kji: NDArray[np.bool_]
) -> tuple[tuple[int, int, int], bool] | None:
    """(k, j, i) of the next click, and whether the truth is 1 there; None when nothing is wrong.

    It is the voxel of the largest 26-connected piece of the error where the distance (in voxels) to what lies
    outside this piece is greatest.
    """
    wrong = mask_kji ^ truth_kji
    pieces, count = ndimage.label(wrong, structure=np.ones((3, 3, 3), dtype=bool))
    if not count:
        return None
    largest = pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1
    # Padded, so that the volume's faces count as borders.
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    k, j, i = (int(n) for n in np.unravel_index(int(depth.argmax()), depth.shape))
    return (k, j, i), bool(truth_kji[k, j, i])


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table of the means by row: areas under the curves, final values, seconds a class."""
    heads = (
        "row", "classes", "DSC AUC", "NSD AUC", "DSC box", "DSC final", "NSD box", "NSD final", "s/class",
    )  # fmt: skip
    lines = []
    for row, found in by_row(measurements).items():
        ends = [(m.stages[0], m.stages[-1]) for m in found]
        values = [
            (*m.areas_under_curves().values(), box.dice, last.dice, box.surface_dice, last.surface_dice)
            for m, (box, last) in zip(found, ends, strict=True)
        ]
        cells = [row, str(len(found)), *(f"{value:.3f}" for value in np.mean(values, axis=0))]
        lines.append([*cells, f"{np.mean([m.seconds for m in found]):.1f}"])
    return markdown(heads, lines)
