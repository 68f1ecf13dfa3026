"""What is measured in the worker beside the computation: `measure`, `compare`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import MedSAM2Error, VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.worker.jobs import Finish, Job
from medsam2_core.worker.messages import segmentation_from_json
from medsam2_core.worker.protocol import Arrays, add_array, checked, field_error, named_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AXES = "ijk"
_MOST_VOXELS = 1 << 33  # a gigabyte of bits


def measure_to_json(
    mask_kji: NDArray[np.bool_], ijk_to_ras: NDArray[np.float64], axis: int, arrays: Arrays
) -> dict[str, Any]:
    """Return the fields of a `measure` request; the part of the mask that has voxels is added to `arrays`.

    Parameters
    ----------
    mask_kji
        (K, J, I) with voxels.
    ijk_to_ras
        (4, 4) in mm.
    """
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):  # k first: what it leaves is small
        filled = np.flatnonzero(mask_kji.any(axis=others))
        first, last = int(filled[0]), int(filled[-1]) + 1
        box.append(first)
        mask_kji = np.moveaxis(np.moveaxis(mask_kji, len(box) - 1, 0)[first:last], 0, len(box) - 1)
    moved = np.array(ijk_to_ras, dtype=np.float64)
    moved[:3, 3] = moved[:3, :3] @ box[::-1] + moved[:3, 3]
    array = add_array(arrays, np.packbits(mask_kji))
    shape = list(mask_kji.shape)
    return {"mask": array, "shape_kji": shape, "ijk_to_ras": moved.tolist(), "axis": _AXES[axis]}


class Measurements:
    """Measurements of segments in threads, one at a time: a large segment takes seconds, and clicks go on."""

    def __init__(self, finish: Finish) -> None:
        self._finish, self._turn = finish, threading.Lock()

    def start(self, job: Job) -> None:
        """Start `measure` or `compare`."""
        threading.Thread(target=self._measure, args=(job,), name="measure", daemon=True).start()

    def cancel(self, number: int | None) -> None:
        """Do nothing: it is soon over."""

    def _measure(self, job: Job) -> None:
        try:
            carry_out = compared if job.type == "compare" else measured
            with self._turn:
                answer: dict[str, Any] | BaseException = carry_out(job.fields, job.arrays)
        except (MedSAM2Error, MemoryError, ValueError) as error:
            answer = error
        self._finish(job, answer)


def measured(fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Carry out `measure`. ProtocolError, GeometryError or VolumeError for what cannot be measured."""
    from medsam2_core.export.measurements import measure
    from medsam2_core.imaging.segmentation import Segmentation

    shape, bits = checked(fields, "shape_kji", list), named_array(fields, "mask", arrays, np.uint8)
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise field_error("shape_kji", shape, "must be three whole numbers of 1 or more")
    count = shape[0] * shape[1] * shape[2]
    if count > _MOST_VOXELS or bits.ndim != 1 or len(bits) != (count + 7) // 8:
        raise field_error("mask", bits.shape, f"must have a bit for each of {shape} voxels")
    axis = checked(fields, "axis", str)
    if axis not in ("i", "j", "k"):
        raise field_error("axis", axis, "must be i, j or k")
    try:
        matrix = np.array(checked(fields, "ijk_to_ras", list), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise field_error("ijk_to_ras", fields["ijk_to_ras"], "must be 4 x 4 numbers") from error
    geometry = Geometry(matrix, (shape[2], shape[1], shape[0]))
    mask_kji = np.unpackbits(bits, count=count).reshape(shape).view(bool)
    if not mask_kji.any():
        raise VolumeError("the segment to measure has no voxels", code="empty-segment")
    (one,) = measure(Segmentation.from_masks(geometry, {"segment": mask_kji}), _AXES.index(axis))
    return {"diameters_mm": [d.length_mm for d in (one.longest, one.perpendicular) if d is not None]}


def compared(fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Carry out `compare`. MedSAM2Error for what is no segmentation."""
    from medsam2_core.export.changes import changes, changes_to_json
    from medsam2_core.export.measurements import measure

    then, now = (segmentation_from_json(fields.get(part), arrays) for part in ("then", "now"))
    return {"changes": changes_to_json(changes(measure(then), measure(now)))}
