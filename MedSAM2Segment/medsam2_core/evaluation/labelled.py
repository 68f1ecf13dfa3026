"""Figures of a model on labelled cases that have been read for training."""

from collections.abc import Callable, Sequence

import numpy as np

from medsam2_core.auto.fewshot.cases import LabelledCase
from medsam2_core.auto.fewshot.data import ClassTable
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.evaluation.cases import Case, MeasuredObject
from medsam2_core.evaluation.protocol import Measurement, Protocol, StandardProtocol, measure_object
from medsam2_core.evaluation.simulated_user import largest_piece

_SMALLEST = 30  # voxels


def measure_labelled(
    cases: Sequence[LabelledCase],
    table: ClassTable,
    model: SegmentationModel,
    *,
    axis: str = "axial",
    window: str = "auto",
    protocol: Protocol = StandardProtocol(corrections=1),  # noqa: B008
    most: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Let the simulated user segment the objects of cases: rows are classes."""
    objects = [(case, number) for case in cases for number in sorted(_numbers(case, table))]
    if most is not None and len(objects) > most:
        objects = [objects[round(n)] for n in np.linspace(0, len(objects) - 1, most)]
    found = []
    for done, (case, number) in enumerate(objects):
        progress(done, len(objects))
        measured = _object(case, table, number, axis, window)
        if measured is not None:
            found.append(measure_object(measured, case.volume, model, protocol, FeatureCache()))
    progress(len(objects), len(objects))
    return found


def mean_figures(measurements: Sequence[Measurement]) -> dict[str, float | int]:
    """Return the mean Dice of one click, of one box, and after the corrections; and the number of objects."""
    if not measurements:
        return {"objects": 0}
    return {
        "objects": len(measurements),
        "one click": round(float(np.mean([one.click for one in measurements])), 4),
        "one box": round(float(np.mean([one.stages[0].dice for one in measurements])), 4),
        "corrected": round(float(np.mean([one.stages[-1].dice for one in measurements])), 4),
    }


def _numbers(case: LabelledCase, table: ClassTable) -> set[int]:
    return {number for number, _ in table.numbered(case.labels)}


def _object(
    case: LabelledCase, table: ClassTable, number: int, axis: str, window: str
) -> MeasuredObject | None:
    """Return the largest piece of a class; None if it is hardly there."""
    masks = [segment.mask_kji for one, segment in table.numbered(case.labels) if one == number]
    truth = largest_piece(np.logical_or.reduce(masks))
    if truth.sum() < _SMALLEST:
        return None
    name = table.classes[number - 1].name
    return MeasuredObject(Case(name, case.pair.image, case.pair.labels, axis, window), number, truth)
