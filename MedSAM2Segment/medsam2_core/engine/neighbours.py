"""Objects that may not overlap: where two claim a pixel, the one with the higher logit gets it."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.maps import BEYOND, logits_in_slice, logits_of_mask
from medsam2_core.engine.states import ObjectState, Prediction, Step
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.slice_mask import SliceMask

# Of logits kept for neighbours: 2000 slices of 256 x 256.
_MOST_BYTES = 256 * 2**20


class Neighbours:
    """Divides pixels between the objects of one propagation, slice by slice.

    The mask of a prompted or final slice is not changed, nor that of an object that is not propagated: what
    it holds is taken from the others. So are the logits, before they become a memory or are carried to the
    next slice: what belongs to a neighbour counts as background from there on.
    """

    def __init__(
        self, objects: Callable[[], Mapping[str, ObjectState]], mask_side: int, steps: Sequence[Step]
    ) -> None:
        self._objects, self._side = objects, mask_side
        self._names = {step.object_id for step in steps}
        # Objects whose masks are those of an earlier propagation, by slice.
        self._ahead: dict[int, set[str]] = {}
        for step in steps:
            self._ahead.setdefault(step.n, set()).add(step.object_id)
        # Logits (1, 1, s, s) in half precision, of slices that another object has not reached yet: it may
        # come from the other side, when the object itself keeps its logits no more.
        self._kept: OrderedDict[tuple[str, int], tuple[torch.Tensor, Region]] = OrderedDict()
        self._changed: dict[tuple[str, int], SliceMask] = {}

    def divide(
        self, state: ObjectState, n: int, prediction: Prediction, mask_hw: NDArray[np.bool_]
    ) -> tuple[Prediction, NDArray[np.bool_]]:
        """Return a new prediction and its mask (H, W) without the pixels of stronger neighbours.

        Weaker ones lose theirs; :meth:`finish` returns their masks.
        """
        ours_hw = None
        for name, other in self._objects().items():
            known = other.masks.get(n)
            if other is state or known is None or known.is_empty:
                continue
            is_fixed = n in other.conditioning or known.final
            if name in self._ahead.get(n, ()) and not is_fixed:
                continue  # it is replaced, and compared then
            shared_hw = mask_hw & known.mask_hw
            if not shared_hw.any():
                continue
            lost_hw = shared_hw
            if name in self._names and not is_fixed:
                if ours_hw is None:
                    ours_hw = logits_in_slice(prediction.logits, prediction.region, mask_hw.shape)
                theirs_hw = self._logits(other, known)
                lost_hw = shared_hw & (theirs_hw >= ours_hw)
                self._take_from(other, known, shared_hw & ~lost_hw)
            if lost_hw.any():
                mask_hw = mask_hw & ~lost_hw
                logits = self._without(prediction.logits, prediction.region, lost_hw)
                prediction = replace(prediction, logits=logits)
        if mask_hw.any() and self._ahead.get(n, set()) - {state.object_id}:
            self._keep(state.object_id, n, prediction.logits, prediction.region)
        return prediction, mask_hw

    def finish(self, step: Step) -> list[SliceMask]:
        """Note that a step was taken; return the masks of its slice that lost pixels."""
        n = step.n
        ahead = self._ahead.get(n, set())
        ahead.discard(step.object_id)
        if not ahead:
            for name in self._names:
                self._kept.pop((name, n), None)
        names = [key for key in self._changed if key[1] == n]
        return [self._changed.pop(key) for key in names]

    def _keep(self, name: str, n: int, logits: torch.Tensor, region: Region) -> None:
        """Keep the logits of a slice, within a limit of memory: then the oldest go."""
        self._kept[name, n] = (logits.to("cpu", torch.float16), region)
        most = max(_MOST_BYTES // (2 * self._side**2), 1)
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _logits(self, other: ObjectState, known: SliceMask) -> NDArray[np.float32]:
        """Return (H, W) logits of a known mask; of one whose logits are not kept any more, 10 inside."""
        kept = other.kept_logits(known.n) or self._kept.get((other.object_id, known.n))
        if kept is None:
            return np.where(known.mask_hw, np.float32(-BEYOND), np.float32(BEYOND))
        return logits_in_slice(*kept, known.shape_hw)

    def _take_from(self, other: ObjectState, known: SliceMask, lost_hw: NDArray[np.bool_]) -> None:
        if not lost_hw.any():
            return
        left_hw = known.mask_hw & ~lost_hw
        kept = None if known.probabilities is None else known.probabilities.agreeing(left_hw)
        mask = known.with_mask(left_hw, probabilities=kept)
        other.set_mask(mask, other.regions[known.n])
        if known.n in other.recent:
            logits, region = other.recent[known.n]
            other.recent[known.n] = (self._without(logits, region, lost_hw), region)
        if (other.object_id, known.n) in self._kept:
            logits, region = self._kept[other.object_id, known.n]
            self._kept[other.object_id, known.n] = (self._without(logits, region, lost_hw), region)
        self._changed[other.object_id, known.n] = mask

    def _without(self, logits: torch.Tensor, region: Region, lost_hw: NDArray[np.bool_]) -> torch.Tensor:
        lost = logits_of_mask(lost_hw, region, self._side, logits.device, 1.0) > 0
        return torch.where(lost, logits.clamp(max=BEYOND), logits)
