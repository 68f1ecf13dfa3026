"""Volume and diameters of the selected segment, also of what was painted by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import GeometryError
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.measuring import measure_to_json

from MedSAM2SegmentLib.Segments.Editors import transformToWorld
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession

#: Seconds without a change before a segment is sent to be measured.
SETTLED = 0.5


class SegmentMeasurement:
    """Counts voxels here, and lets the worker measure diameters when the segment has come to rest.

    Parameters
    ----------
    edited, session
        The segments; the session in the worker, whose slices the diameters lie in.
    """

    def __init__(
        self, edited: EditedSegmentation, session: WorkerSession, clock: Callable[[], float]
    ) -> None:
        self._edited, self._session, self._clock = edited, session, clock
        self._counted: tuple[object, float] = (None, 0.0)  # state and volume of a segment
        self._seen: tuple[object, float] = (None, 0.0)  # what there is to be measured, and since when
        self._asked: object = None
        self._diameters: tuple[object, tuple[float, ...]] = (None, ())

    @property
    def millilitres(self) -> float | None:
        """Volume of the selected segment in the world; None where it has none.

        Counted again only when the segment has changed.
        """
        voxels, toWorld = self._voxels(), self._toWorld()
        state = voxels.state(self._edited.segmentID)
        if state is None or toWorld is None:
            return None
        if state != self._counted[0]:
            self._counted = state, voxels.millilitres(self._edited.segmentID)
        return self._counted[1] * float(abs(np.linalg.det(toWorld[:3, :3])))

    @property
    def diameters(self) -> tuple[float, ...]:
        """The longest diameter within a slice and the longest at right angles to it, in mm.

        Empty while they are not known.
        """
        key, found = self._diameters
        return found if found and key == self._key() else ()

    @property
    def isPending(self) -> bool:
        """Whether there is something to be measured as soon as it has come to rest."""
        return self._seen[0] is not None and self._seen[0] != self._asked

    def tick(self, *, isIdle: bool) -> None:
        """Send the selected segment to be measured, when it has not changed for a while."""
        key = self._key() if isIdle else None
        if key != self._seen[0]:
            self._seen = key, self._clock()
        elif self.isPending and self._clock() - self._seen[1] >= SETTLED:
            self._asked = key
            self._ask(key)

    def _key(self) -> object:
        """What diameters depend on; None when there is nothing to measure."""
        client, stack = self._session.client, self._session.stack
        if self._edited.segmentation is None or stack is None or not self._edited.isActive:
            return None
        if client is None or client.state is not WorkerState.READY:
            return None
        state, toWorld = self._voxels().state(self._edited.segmentID), self._toWorld()
        return None if state is None or toWorld is None else (state, toWorld.tobytes(), stack.key)

    def _ask(self, key: object) -> None:
        toWorld = self._toWorld()
        read = self._voxels().array(self._edited.segmentID)
        if read is None or toWorld is None:
            return
        mask_kji, toSegmentation = read
        matrix, arrays = toWorld @ toSegmentation, {}
        fields = measure_to_json(mask_kji, matrix, self._axis(matrix), arrays)
        done = partial(self._onMeasured, key)
        self._session.client.request(
            "measure", fields, done=done, failed=lambda _error: None, arrays=arrays
        )  # a worker of an earlier version cannot

    def _onMeasured(self, key: object, result: Mapping[str, Any]) -> None:
        found = result.get("diameters_mm")
        if isinstance(found, list) and all(isinstance(one, int | float) for one in found):
            self._diameters = key, tuple(float(one) for one in found)
            self._session.onChange()

    def _axis(self, matrix: NDArray[np.float64]) -> int:
        """Return the array axis of a grid (4, 4) that the session's slices are stacked along."""
        adapter, stack = self._session.adapter, self._session.stack
        inPlane = adapter.geometry.ijk_to_ras[:3, :3] @ stack.xyn_to_ijk[:3, :2]
        normal = np.cross(inPlane[:, 0], inPlane[:, 1])
        axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        return int(np.abs(normal @ axes).argmax())

    def _voxels(self) -> SegmentVoxels:
        return SegmentVoxels(self._edited.segmentation, np.eye(4))

    def _toWorld(self) -> NDArray[np.float64] | None:
        """Return (4, 4) of the segmentation; None under a transform that warps it."""
        try:
            return transformToWorld(self._edited.segmentation)
        except GeometryError:
            return None
