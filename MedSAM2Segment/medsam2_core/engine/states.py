"""The state of an object: prompts, masks and memories, bounded whatever the depth of the volume.

Large tensors are kept only where they are needed: for prompted slices, and for the few slices memory
attention looks back to. Of every other slice a mask of some hundred bytes and three numbers are kept.
"""

from collections import OrderedDict
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.maps import ABSENT, logits_of_mask
from medsam2_core.engine.memory import MemoryBank, SliceMemory
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.slice_mask import PackedValues, SliceMask

if TYPE_CHECKING:
    from medsam2_core.engine.presence import Appearance
    from medsam2_core.prompts.types import PixelPrompts


@dataclass(frozen=True, slots=True)
class Prediction:
    """The mask decoder's output for one object on one slice.

    Attributes
    ----------
    logits
        (1, 1, S/4, S/4), fp32, over `region`; -1024 everywhere when the object is absent.
    object_score
        (1, 1) logit; 0 or less means absent.
    pointer
        (1, C) object pointer.
    """

    logits: torch.Tensor
    predicted_iou: float
    object_score: torch.Tensor
    pointer: torch.Tensor
    region: Region

    def as_absent(self) -> "Prediction":
        """Return the same prediction with the object taken to be absent."""
        nothing = torch.full_like(self.logits, ABSENT)
        return replace(self, logits=nothing, object_score=torch.full_like(self.object_score, -1.0))

    def slice_mask(
        self,
        object_id: str,
        n: int,
        mask_hw: NDArray[np.bool_],
        probabilities: PackedValues | None,
        *,
        prompted: bool,
    ) -> SliceMask:
        """Return the mask (H, W) made of these logits, with their predicted IoU and object score."""
        return SliceMask.from_mask(
            object_id, n, mask_hw, predicted_iou=self.predicted_iou, object_score=float(self.object_score),
            prompted=prompted, probabilities=probabilities,
        )  # fmt: skip

    @property
    def is_absent(self) -> bool:
        """Whether the object is not on this slice."""
        return float(self.object_score) <= 0 or not bool((self.logits > 0).any())


@dataclass(frozen=True, slots=True)
class TrackedSlice:
    """What tracking had found on a slice before it was prompted.

    Attributes
    ----------
    reverse
        Whether tracking came from a higher slice; None where it had given the object up.
    logits
        (1, 1, S/4, S/4) and their region; None when only the mask was still known.
    """

    mask: SliceMask
    region: Region
    reverse: bool | None
    logits: tuple[torch.Tensor, Region] | None


@dataclass(slots=True)
class ConditioningSlice:
    """A prompted slice. Others attend to it, and tracking never replaces it.

    Attributes
    ----------
    prompt
        All prompts of the slice; None for a mask that was marked as final.
    prediction
        The prediction, or the user's mask in the form of one.
    memory
        Of the prediction at the time of the last propagation, as in stock; encoded only then, so that a click
        costs no more than it must.
    is_remembered
        Whether `memory` is of this prediction.
    tracked
        What tracking had found here before; it comes back when all prompts are removed.
    reproducible
        Whether the prediction follows from the slice's own prompts alone, one after the other, so that
        further prompts can refine it and the same prompts would give it again.
    appearance
        Of the prediction, once a slice was tracked from here; None also where it is empty.
    """

    n: int
    prompt: "PixelPrompts | None"
    prediction: Prediction
    memory: SliceMemory | None = None
    is_remembered: bool = False
    tracked: TrackedSlice | None = None
    reproducible: bool = False
    appearance: "Appearance | None" = None

    @property
    def says_absent(self) -> bool:
        """Whether the prompts mean that the object is absent: an empty mask, or clicks that removed it all. A
        box or a positive click means the contrary, even if the model finds nothing, and so does a mask of
        pixels too few for its logits to show."""
        prompt = self.prompt
        is_wanted = prompt is not None and (
            prompt.box_xyxy is not None
            or bool((prompt.labels == 1).any())
            or (prompt.mask_hw is not None and len(prompt.labels) == 0 and bool(prompt.mask_hw.any()))
        )
        return self.prediction.is_absent and not is_wanted

    @property
    def is_correction(self) -> bool:
        """Whether clicks alone correct what tracking had found here. Their mask is often a poor one still,
        and says less about other slices than one under a box."""
        prompt = self.prompt
        only_clicks = prompt is not None and prompt.box_xyxy is None and prompt.mask_hw is None
        return only_clicks and self.tracked is not None


@dataclass(slots=True)
class ObjectState:
    """Everything known about one object.

    Attributes
    ----------
    regions
        What the model saw of these slices.
    recent
        Logits of the slices tracked last, to be corrected by clicks; at most `recent_limit`.
    banks
        Memories of tracked slices: forward, reverse.
    """

    object_id: str
    banks: list[MemoryBank]
    recent_limit: int | None
    conditioning: dict[int, ConditioningSlice] = field(default_factory=dict)
    masks: dict[int, SliceMask] = field(default_factory=dict)
    regions: dict[int, Region] = field(default_factory=dict)
    tracked: dict[int, bool] = field(default_factory=dict)
    recent: "OrderedDict[int, tuple[torch.Tensor, Region]]" = field(default_factory=OrderedDict)

    def is_near_end(self, n: int, count: int) -> bool:
        """Return whether a slice, of so many, is in the outer third of where tracking found the object from
        the nearest prompted slice on, and the object has an end there."""
        seeds = [m for m, one in self.conditioning.items() if m != n and not one.prediction.is_absent]
        if not seeds or min(seeds) < n < max(seeds):
            return False
        nearest = min(seeds, key=lambda m: abs(m - n))
        step = 1 if n > nearest else -1
        found = (m for m, mask in self.masks.items() if not mask.is_empty and (m - nearest) * step > 0)
        reach = max(((m - nearest) * step for m in found), default=0)
        beyond = nearest + (reach + 1) * step
        has_ended = beyond in self.masks or not 0 <= beyond < count
        return has_ended and 3 * abs(n - nearest) > 2 * reach

    def remember_logits(self, n: int, logits: torch.Tensor, region: Region) -> None:
        """Keep the logits of a tracked slice for a while."""
        self.recent.pop(n, None)
        self.recent[n] = (logits, region)
        while self.recent_limit is not None and len(self.recent) > self.recent_limit:
            self.recent.popitem(last=False)

    def logits_of(self, n: int, size: int, device: torch.device) -> tuple[torch.Tensor, Region] | None:
        """Return the logits of a slice and their region: those predicted if still kept, else made from the
        mask."""
        kept = self.kept_logits(n)
        if kept is None and n in self.masks:
            region = self.regions[n]
            return logits_of_mask(self.masks[n].mask_hw, region, size, device), region
        return kept

    def kept_logits(self, n: int) -> tuple[torch.Tensor, Region] | None:
        """Return the logits (1, 1, S/4, S/4) predicted on a slice and their region; None when not kept."""
        if n in self.conditioning:
            return self.conditioning[n].prediction.logits, self.conditioning[n].prediction.region
        return self.recent.get(n)

    def set_mask(self, mask: SliceMask, region: Region) -> None:
        """Replace the mask of a slice."""
        self.masks[mask.n], self.regions[mask.n] = mask, region

    def copied(self) -> "ObjectState":
        """Return an independent copy. Masks and tensors are shared, they never change."""
        # Stock keeps one bank for both directions: it must stay one.
        banks = {id(bank): bank.copied() for bank in self.banks}
        return replace(
            self,
            banks=[banks[id(bank)] for bank in self.banks],
            conditioning={n: copy(given) for n, given in self.conditioning.items()},
            masks=dict(self.masks),
            regions=dict(self.regions),
            tracked=dict(self.tracked),
            recent=OrderedDict(self.recent),
        )

    def tracked_slice(self, n: int) -> TrackedSlice | None:
        """Return what tracking found on a slice, also while prompts hide it; None where it has not been."""
        if n in self.conditioning:
            return self.conditioning[n].tracked
        if n not in self.masks:
            return None
        return TrackedSlice(self.masks[n], self.regions[n], self.tracked.get(n), self.recent.get(n))

    def remove_prompts(self, n: int) -> None:
        """Remove the prompts of a slice and their mask; what tracking had found there comes back."""
        found = self.tracked_slice(n)
        self.conditioning.pop(n, None)
        self.remove_slice(n)
        if found is not None:
            self.set_mask(found.mask, found.region)
            if found.reverse is not None:
                self.tracked[n] = found.reverse
            if found.logits is not None:
                self.remember_logits(n, *found.logits)

    def compact(self) -> "ObjectState":
        """Return a copy with the same masks and prompts, without the tensors of tracked slices.

        They serve only a click on a tracked slice, which then is fed logits made from its mask, and sees no
        memories but those of prompted slices; the next propagation makes them anew.
        """
        compact = self.copied()
        compact.recent.clear()
        for given in compact.conditioning.values():
            if given.tracked is not None:
                given.tracked = replace(given.tracked, logits=None)
        for bank in compact.banks:
            for memory in list(bank.memories()):
                bank.remove(memory.n)
        return compact

    def remove_slice(self, n: int) -> None:
        """Remove the mask of a slice and all that tracking remembers of it."""
        self.masks.pop(n, None)
        self.regions.pop(n, None)
        self.recent.pop(n, None)
        self.tracked.pop(n, None)
        for bank in self.banks:
            bank.remove(n)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors and masks held."""
        logits = [entry.prediction.logits for entry in self.conditioning.values()]
        logits += [kept for kept, _ in self.recent.values()]
        hidden = [entry.tracked for entry in self.conditioning.values() if entry.tracked is not None]
        logits += [found.logits[0] for found in hidden if found.logits is not None]
        total = sum(x.numel() * x.element_size() for x in logits)
        total += sum(mask.nbytes for mask in self.masks.values())
        memories = [entry.memory for entry in self.conditioning.values() if entry.memory is not None]
        banks = {id(bank): bank for bank in self.banks}.values()
        memories += [memory for bank in banks for memory in bank.memories()]
        return total + sum(memory.nbytes for memory in memories)


@dataclass(frozen=True, slots=True)
class Step:
    """One object on one slice.

    Attributes
    ----------
    reverse
        Whether it is reached from a higher slice.
    seed
        The prompted slice it is tracked from: itself for a prompted slice, None when the user's empty
        slices cut it off from all that hold the object.
    """

    object_id: str
    n: int
    reverse: bool
    seed: int | None
