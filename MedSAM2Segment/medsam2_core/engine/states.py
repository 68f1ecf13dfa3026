"""What is remembered of an object: typed, and bounded whatever the depth of the volume.

Large tensors are kept only where they are needed: for slices a user prompted, and for the few slices memory
attention looks back to. Every other slice leaves a mask of some hundred bytes and three numbers.
"""

from collections import OrderedDict
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.maps import ABSENT, PackedMask, logits_of_mask
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.probabilities import PackedValues

if TYPE_CHECKING:
    from medsam2_core.engine.memory import MemoryBank
    from medsam2_core.prompts import PixelPrompts


@dataclass(frozen=True, slots=True)
class Prediction:
    """The mask decoder's answer for one object on one slice.

    Attributes
    ----------
    logits
        (1, 1, S/4, S/4), fp32, over `region`; -1024 everywhere when the object is absent.
    iou
        The model's own estimate of the mask's quality, 0 to 1.
    score
        (1, 1) object score as a logit; 0 or less means absent.
    pointer
        (1, C) object pointer.
    region
        What the model saw.
    """

    logits: torch.Tensor
    iou: float
    score: torch.Tensor
    pointer: torch.Tensor
    region: Region

    def as_absent(self) -> "Prediction":
        """The same answer, taken as "the object is not here"."""
        nothing = torch.full_like(self.logits, ABSENT)
        return replace(self, logits=nothing, score=torch.full_like(self.score, -1.0))

    @property
    def is_absent(self) -> bool:
        """Whether the object is not on this slice."""
        return float(self.score) <= 0 or not bool((self.logits > 0).any())


@dataclass(slots=True)
class SliceMemory:
    """What later slices may attend to.

    Attributes
    ----------
    n
        Slice.
    features
        (1, 64, S/16, S/16), bf16 as in stock; None once only the pointer is still of use.
    pointer
        (1, C).
    iou, score
        Of the prediction that was remembered.
    region
        The features' grid lies over this region. When the region has moved since, the features are used as
        they are: they describe the object relative to its own neighbourhood, which the new region shows
        again.
    embedding
        (1, C, S/16, S/16) image features; only for policies that compare slices.
    """

    n: int
    features: torch.Tensor | None
    pointer: torch.Tensor
    iou: float
    score: float
    region: Region
    embedding: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensors held."""
        return sum(
            x.numel() * x.element_size()
            for x in (self.features, self.pointer, self.embedding)
            if x is not None
        )


@dataclass(slots=True)
class ConditioningSlice:
    """A slice a user spoke about. It is remembered by all others and never replaced by tracking.

    Attributes
    ----------
    prompt
        What the user said, all of it; None for a mask that was marked as final.
    prediction
        The answer, or the user's mask in the form of one.
    memory
        Of the prediction at the time of the last propagation, as in stock; encoded only then, so that a click
        costs no more than it must.
    is_remembered
        Whether `memory` is of this prediction.
    beneath
        What tracking had found here before; it stands again when all prompts are taken back.
    by_words
        Whether the answer follows from the words alone, one after the other, so that further words can refine
        it and the same words would give it again.
    """

    n: int
    prompt: "PixelPrompts | None"
    prediction: Prediction
    memory: SliceMemory | None = None
    is_remembered: bool = False
    beneath: "Beneath | None" = None
    by_words: bool = False

    @property
    def says_absent(self) -> bool:
        """Whether the user means that the object is not here: an empty mask, or clicks that removed it all. A
        box or a positive click says the contrary, even if the model finds nothing."""
        said = self.prompt
        means_it = said is not None and (said.box_xyxy is not None or bool((said.labels == 1).any()))
        return self.prediction.is_absent and not means_it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The mask of one slice as it stands, without tensors.

    `probabilities` are those the mask was cut from; None when they are not kept, or nobody doubts the mask: a
    user's own. They are part of the outcome, so that they never outlive the mask.
    """

    mask: PackedMask
    iou: float
    score: float
    region: Region
    prompted: bool
    final: bool = False
    probabilities: PackedValues | None = None

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        mask_hw: NDArray[np.bool_],
        probabilities: PackedValues | None,
        *,
        prompted: bool,
    ) -> "Outcome":
        """A prediction with the mask (H, W) it means."""
        packed, score = PackedMask.of(mask_hw), float(prediction.score)
        return cls(packed, prediction.iou, score, prediction.region, prompted, probabilities=probabilities)

    @property
    def nbytes(self) -> int:
        """Bytes of the mask, and of the probabilities."""
        return self.mask.nbytes + (self.probabilities.nbytes if self.probabilities is not None else 0)

    def emptied(self) -> "Outcome":
        """The same slice, without the object."""
        nothing = PackedMask(b"", (0, 0, 0, 0), self.mask.shape_hw)
        return Outcome(nothing, self.iou, -10.0, self.region, prompted=False)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A mask (H, W) bool that is known without asking the model.

    `iou` is its estimated quality and `score` the object's presence as a logit, as in :class:`SliceResult`.
    `probabilities` are those it was cut from, where a model made it and they were kept.
    """

    mask_hw: NDArray[np.bool_]
    iou: float = 1.0
    score: float = 10.0
    probabilities: PackedValues | None = None


@dataclass(frozen=True, slots=True)
class Beneath:
    """What was known of a slice before the user spoke about it.

    Attributes
    ----------
    outcome
        The mask.
    reverse
        Whether tracking came from a higher slice; None where it had given the object up.
    logits
        (1, 1, S/4, S/4) and their region; None when only the mask was still known.
    """

    outcome: Outcome
    reverse: bool | None
    logits: tuple[torch.Tensor, Region] | None


@dataclass(frozen=True, slots=True, eq=False)
class SliceResult:
    """The mask of one object on one slice, as given to the caller.

    Attributes
    ----------
    object_id, n
        Which object, which slice.
    mask_hw
        (H, W) bool.
    iou
        The model's estimate of the mask's quality (0 to 1); 1 for a user's own mask.
    object_score
        Logit; 0 or less means the model thinks the object is not here.
    region
        What the model saw of the slice.
    prompted
        Whether the user spoke about this slice.
    final
        Whether it will never be overwritten.
    low_res_logits
        (S/4, S/4) fp32 over `region`, on the model's device; None when only the mask is still known.
    probabilities
        How sure the model is of each pixel; None when that is not kept, or the mask is a user's own.
    """

    object_id: str
    n: int
    mask_hw: NDArray[np.bool_]
    iou: float
    object_score: float
    region: Region
    prompted: bool
    final: bool
    low_res_logits: torch.Tensor | None = None
    probabilities: PackedValues | None = None

    @property
    def certainty(self) -> PackedValues:
        """The probabilities; where there are none, those of a mask nobody doubts."""
        return self.probabilities or PackedValues.certain(self.mask_hw)

    @property
    def confidence(self) -> float:
        """0 to 1: the estimated quality, times the probability that the object is here at all (or, for an
        empty mask, the probability that it is not)."""
        present = 1 / (1 + float(np.exp(-np.clip(self.object_score, -30, 30))))
        return self.iou * present if self.mask_hw.any() else 1 - present


@dataclass(slots=True)
class ObjectState:
    """Everything known about one object.

    Attributes
    ----------
    conditioning
        Slices the user spoke about.
    outcomes
        Masks of all slices so far.
    tracked
        Slices tracking has visited, and whether in reverse.
    recent
        Logits of the slices tracked last, to be corrected by clicks; at most `recent_limit`.
    banks
        Memories of tracked slices: forward, reverse.
    """

    object_id: str
    banks: "list[MemoryBank]"
    recent_limit: int | None
    conditioning: dict[int, ConditioningSlice] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    tracked: dict[int, bool] = field(default_factory=dict)
    recent: "OrderedDict[int, tuple[torch.Tensor, Region]]" = field(default_factory=OrderedDict)

    def remember_logits(self, n: int, logits: torch.Tensor, region: Region) -> None:
        """Keep the logits of a tracked slice for a while."""
        self.recent.pop(n, None)
        self.recent[n] = (logits, region)
        while self.recent_limit is not None and len(self.recent) > self.recent_limit:
            self.recent.popitem(last=False)

    def logits_of(self, n: int, size: int, device: torch.device) -> tuple[torch.Tensor, Region] | None:
        """Logits of a slice and their region: those predicted if still kept, else made from the mask."""
        if n in self.conditioning:
            prediction = self.conditioning[n].prediction
            return prediction.logits, prediction.region
        if n in self.recent:
            return self.recent[n]
        if n in self.outcomes:
            outcome = self.outcomes[n]
            return logits_of_mask(outcome.mask.mask_hw(), outcome.region, size, device), outcome.region
        return None

    def copied(self) -> "ObjectState":
        """A state of its own that says the same. Masks and tensors are shared, they never change."""
        # Stock keeps one bank for both directions: it must stay one.
        banks = {id(bank): bank.copied() for bank in self.banks}
        return replace(
            self,
            banks=[banks[id(bank)] for bank in self.banks],
            conditioning={n: copy(given) for n, given in self.conditioning.items()},
            outcomes=dict(self.outcomes),
            tracked=dict(self.tracked),
            recent=OrderedDict(self.recent),
        )

    def result(self, n: int) -> SliceResult:
        """The mask of a slice that has one, as given to the caller."""
        outcome = self.outcomes[n]
        kept = self.recent.get(n)
        logits = kept[0] if kept is not None else None
        if n in self.conditioning:
            logits = self.conditioning[n].prediction.logits
        return SliceResult(
            self.object_id,
            n,
            outcome.mask.mask_hw(),
            outcome.iou,
            outcome.score,
            outcome.region,
            outcome.prompted,
            outcome.final,
            None if logits is None else logits[0, 0],
            outcome.probabilities,
        )

    def beneath(self, n: int) -> Beneath | None:
        """What tracking found on a slice, to be kept while the user's words cover it."""
        given = self.conditioning.get(n)
        if given is not None:
            return given.beneath
        if n not in self.outcomes:
            return None
        return Beneath(self.outcomes[n], self.tracked.get(n), self.recent.get(n))

    def uncover(self, n: int) -> None:
        """Drop what the user said about a slice; what tracking had found there stands again."""
        beneath = self.beneath(n)
        self.conditioning.pop(n, None)
        self.forget(n)
        if beneath is not None:
            self.outcomes[n] = beneath.outcome
            if beneath.reverse is not None:
                self.tracked[n] = beneath.reverse
            if beneath.logits is not None:
                self.remember_logits(n, *beneath.logits)

    def faded(self) -> "ObjectState":
        """A copy with the same masks and prompts, without the tensors of tracked slices.

        They serve only a click on a tracked slice, which then is fed logits made from its mask, and sees no
        memories but those of prompted slices; the next propagation makes them anew.
        """
        faded = self.copied()
        faded.recent.clear()
        for given in faded.conditioning.values():
            if given.beneath is not None:
                given.beneath = replace(given.beneath, logits=None)
        for bank in faded.banks:
            for memory in list(bank.memories()):
                bank.remove(memory.n)
        return faded

    def forget(self, n: int) -> None:
        """Drop what tracking said about a slice."""
        self.outcomes.pop(n, None)
        self.recent.pop(n, None)
        self.tracked.pop(n, None)
        for bank in self.banks:
            bank.remove(n)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors and masks held."""
        logits = [entry.prediction.logits for entry in self.conditioning.values()]
        logits += [kept for kept, _ in self.recent.values()]
        covered = [entry.beneath for entry in self.conditioning.values() if entry.beneath is not None]
        logits += [beneath.logits[0] for beneath in covered if beneath.logits is not None]
        total = sum(x.numel() * x.element_size() for x in logits)
        total += sum(outcome.nbytes for outcome in self.outcomes.values())
        memories = [entry.memory for entry in self.conditioning.values() if entry.memory is not None]
        banks = {id(bank): bank for bank in self.banks}.values()
        memories += [memory for bank in banks for memory in bank.memories()]
        return total + sum(memory.nbytes for memory in memories)
