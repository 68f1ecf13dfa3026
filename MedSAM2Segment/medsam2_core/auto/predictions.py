"""What a model predicts without prompts: masks, and the prompts that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medsam2_core.auto.model_file import AutoClass
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts.types import Prompt, SlicePrompts

if TYPE_CHECKING:
    from medsam2_core.imaging.terminology import Terminology


@dataclass(frozen=True)
class AutoPrediction:
    """One class as an Auto model predicted it.

    Attributes
    ----------
    confidence
        0 to 1; 0 when it was not found.
    prompts
        By slice, what was predicted there: a box, or a point where no box was.
    """

    name: str
    colour_rgb: tuple[float, float, float]
    terminology: str = ""
    confidence: float = 0.0
    prompts: Mapping[int, tuple[Prompt, ...]] = field(default_factory=dict)
    masks: Mapping[int, SliceMask] = field(default_factory=dict)
    model: str = ""

    @property
    def is_found(self) -> bool:
        """Whether the class was found on any slice."""
        return any(not mask.is_empty for mask in self.masks.values())

    @property
    def coded(self) -> Terminology | None:
        """The terminology's codes; None where there are none."""
        return AutoClass(self.name, 0, self.colour_rgb, self.terminology).coded

    @property
    def predicted(self) -> list[Prompt]:
        """All predicted prompts."""
        return [prompt for of_slice in self.prompts.values() for prompt in of_slice]

    def is_source_of(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether an object with these prompts came from this prediction: an undone one has none of
        them."""
        return any(prompt in self.predicted for prompt in prompts) or not prompts

    def tags(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Return what is stored with an object of these prompts: the model, whether the user took part."""
        is_alone = all(prompt in self.predicted for prompt in prompts)
        kind = "AUTOMATIC" if is_alone else "SEMIAUTOMATIC"
        return {"DICOM.SegmentAlgorithmType": kind, "MedSAM2.auto": self.model}

    def slice_prompts(self) -> dict[int, SlicePrompts]:
        """Return the predicted prompts by slice, each with the mask found there."""
        return {n: SlicePrompts(prompts, known=self.masks[n]) for n, prompts in self.prompts.items()}
