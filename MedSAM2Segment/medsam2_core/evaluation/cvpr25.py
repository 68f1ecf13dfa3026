"""The protocol of the CVPR 2025 challenge on foundation models for interactive 3-D segmentation.

Every class of a volume gets one box: its range of slices, and a rectangle on the median occupied slice. Five
clicks follow, each where the voxel distance transform of the largest error is greatest; Dice and normalised
surface Dice (2 mm) are taken after each. Their areas under the curve run over the five clicks (trapezoid, at
most 4). Published figures by this protocol: arXiv 2510.03189.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.model import SegmentationModel
from medsam2_core.evaluation.cases import Case, MeasuredObject, objects_of, read_case
from medsam2_core.evaluation.metrics import Scores, scores
from medsam2_core.evaluation.protocol import OBJECT, generator_for
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session

CLICKS = 5
TOLERANCE_MM = 2.0
# A rectangle is grown by up to this many pixels of a slice of 256, a whole number drawn once a box.
MOST_GROWTH = 5


@dataclass(frozen=True)
class Cvpr25Protocol:
    """Settings of the challenge's user; ``zoom`` and ``memory`` as in :meth:`Session.open`."""

    seed: int = 0
    zoom: str = "auto"
    memory: str = "recent"


@dataclass(frozen=True)
class Cvpr25Measurement:
    """What one class of one volume gave.

    Attributes
    ----------
    stages
        Scores after the box, and after each of five clicks; the last is repeated when nothing is wrong.
    seconds
        For box, clicks and propagations.
    """

    row: str
    name: str
    stages: tuple[Scores, ...]
    seconds: float

    @property
    def dice_auc(self) -> float:
        """Area under the Dice of the five clicks, 0 to 4."""
        return area_under_curve([stage.dice for stage in self.stages[1:]])

    @property
    def surface_dice_auc(self) -> float:
        """Area under the normalised surface Dice of the five clicks, 0 to 4."""
        return area_under_curve([stage.surface_dice for stage in self.stages[1:]])

    def to_dict(self) -> dict:
        """JSON-ready values."""
        return {**asdict(self), "dice_auc": self.dice_auc, "surface_dice_auc": self.surface_dice_auc}


def measure_case(
    case: Case, model: SegmentationModel, protocol: Cvpr25Protocol, cache: FeatureCache | None = None
) -> Iterator[Cvpr25Measurement]:
    """Measure every class of a case.

    Raises
    ------
    MedSAM2Error
        If image or labels cannot be read or do not fit each other.
    """
    volume = read_case(case)
    cache = cache if cache is not None else FeatureCache()
    for measured in objects_of(case, volume, smallest=1, whole=True):
        yield measure_class(measured, volume, model, protocol, cache)


def measure_class(
    measured: MeasuredObject,
    volume: Volume,
    model: SegmentationModel,
    protocol: Cvpr25Protocol,
    cache: FeatureCache | None,
) -> Cvpr25Measurement:
    """Let the simulated user segment one class."""
    truth = measured.truth_kji
    started = time.perf_counter()
    masks = list(_box_and_clicks(measured, volume, model, protocol, cache))
    seconds = time.perf_counter() - started
    i, j, k = (float(value) for value in volume.geometry.spacing)
    stages = [scores(mask, truth, (k, j, i), TOLERANCE_MM) for mask in masks]
    stages += [stages[-1]] * (CLICKS + 1 - len(stages))
    return Cvpr25Measurement(measured.case.row, measured.name, tuple(stages), seconds)


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


def area_under_curve(values: Sequence[float]) -> float:
    """Area under values one apart, by the trapezoid rule."""
    return float(sum((a + b) / 2 for a, b in pairwise(values)))


def table(measurements: Sequence[Cvpr25Measurement]) -> str:
    """A Markdown table of the means by row: areas under the curves, final values, seconds a class."""
    heads = (
        "row",
        "classes",
        "DSC AUC",
        "NSD AUC",
        "DSC box",
        "DSC final",
        "NSD box",
        "NSD final",
        "s/class",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    rows: dict[str, list[Cvpr25Measurement]] = {}
    for measurement in measurements:
        rows.setdefault(measurement.row, []).append(measurement)
    for row, found in rows.items():
        ends = [(m.stages[0], m.stages[-1]) for m in found]
        values = [
            (m.dice_auc, m.surface_dice_auc, box.dice, last.dice, box.surface_dice, last.surface_dice)
            for m, (box, last) in zip(found, ends, strict=True)
        ]
        cells = [row, str(len(found)), *(f"{value:.3f}" for value in np.mean(values, axis=0))]
        lines.append("| " + " | ".join([*cells, f"{np.mean([m.seconds for m in found]):.1f}"]) + " |")
    return "\n".join(lines)


def _box_and_clicks(
    measured: MeasuredObject,
    volume: Volume,
    model: SegmentationModel,
    protocol: Cvpr25Protocol,
    cache: FeatureCache | None,
) -> Iterator[NDArray[np.bool_]]:
    """(K, J, I) masks: after the box, then after each click until nothing is wrong."""
    session = Session.open(
        volume, model, axis=measured.case.axis, window=measured.case.window,
        zoom=protocol.zoom, memory=protocol.memory, cache=cache,
    )  # fmt: skip
    truth, stack = measured.truth_kji, session.stack
    occupied = [n for n in range(len(stack)) if stack.mask_of(truth, n).any()]
    median = occupied[len(occupied) // 2]
    growth = int(generator_for(measured, protocol.seed).integers(0, MOST_GROWTH + 1))
    left, top, right, bottom = box_of(stack.mask_of(truth, median), growth)
    corners = (left - 0.5, top - 0.5), (right + 0.5, bottom + 0.5)
    session.prompt(OBJECT, Box.between(*(_ijk(stack, x, y, median) for x, y in corners)))
    mask = _propagated(session, occupied[0], occupied[-1])
    yield mask
    for _ in range(CLICKS):
        click = next_click(mask, truth)
        if click is None:
            return
        (k, j, i), positive = click
        session.prompt(OBJECT, Point((float(i), float(j), float(k)), positive))
        mask = _propagated(session, occupied[0], occupied[-1])
        yield mask


def _propagated(session: Session, first: int, last: int) -> NDArray[np.bool_]:
    """The mask after propagating through the box's slices; nothing lies outside them."""
    if last > first:
        for _ in session.propagate(first=first, last=last, stop_after_absent=None):
            pass
    return session.mask_kji(OBJECT)


def _ijk(stack: SliceStack, x: float, y: float, n: int) -> tuple[float, float, float]:
    i, j, k = stack.to_ijk([[x, y, n]])[0]
    return float(i), float(j), float(k)
