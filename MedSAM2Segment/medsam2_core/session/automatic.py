"""Segmentation without prompts in a session: what an Auto model predicts, with predicted prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medsam2_core.auto.model_file import AutoClass
from medsam2_core.auto.slices import AutoSegmenter
from medsam2_core.auto.volumes import AutoVolume, ClassVolume, VolumeOptions
from medsam2_core.engine.sources import StackImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import Prompt, SlicePrompts
from medsam2_core.session.objects import predicted_prompt

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.imaging.intensity import Window
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.imaging.terminology import Terminology


@dataclass(frozen=True)
class AutoPrediction:
    """One class as an Auto model predicted it.

    Attributes
    ----------
    name, colour_rgb, terminology
        Of the class, as its model says.
    confidence
        0 to 1; 0 when it was not found.
    model
        The Auto model's name.
    prompts
        By slice, what was predicted there: a box, or a point where no box was.
    slices
        By slice, its mask.
    """

    name: str
    colour_rgb: tuple[float, float, float]
    terminology: str
    confidence: float
    model: str = ""
    prompts: Mapping[int, tuple[Prompt, ...]] = field(default_factory=dict)
    slices: Mapping[int, SliceMask] = field(default_factory=dict)

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
        return {n: SlicePrompts(prompts, known=self.slices[n]) for n, prompts in self.prompts.items()}


class AutoRun:
    """An Auto model going through a session's slices; the session itself stays as it is.

    Parameters
    ----------
    stack, tracker
        Of the session: its slices, window, SAM 2 and features are used.
    auto
        An Auto model of the session's SAM 2.
    classes
        Names of the classes wanted; None all.
    options
        How a volume is gone through.
    flips
        Average with mirror images.
    window
        What the Auto model sees of the intensities; None: what the session sees. Tracking sees that anyway.

    Raises
    ------
    CheckpointError
        Another SAM 2, or an unknown class.
    """

    def __init__(
        self,
        stack: SliceStack,
        tracker: Tracker,
        auto: AutoModel,
        classes: Sequence[str] | None = None,
        options: VolumeOptions | None = None,
        *,
        flips: bool = False,
        window: Window | None = None,
    ) -> None:
        from medsam2_core.auto.model import check_base

        check_base(auto.card, tracker.model, f"the Auto model {auto.card.name!r}")
        wanted = auto.card.chosen(None if classes is None else list(classes))
        self.card, self._stack = auto.card, stack
        source = tracker.source if window is None else StackImages(stack, window)
        keeps = tracker.options.keeps_probabilities
        segmenter = AutoSegmenter(auto, source, wanted, flips=flips, keeps_probabilities=keeps)
        own_tracker = Tracker(tracker.model, tracker.encoder, None, tracker.options)
        self._volume = AutoVolume(segmenter, own_tracker, options or VolumeOptions())

    @property
    def done(self) -> int:
        """Slices gone through."""
        return self._volume.done

    @property
    def total(self) -> int:
        """Slices to go through, as far as is known."""
        return self._volume.total

    def run(
        self,
        first: int | None = None,
        last: int | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[SliceMask]:
        """Return the masks as they become known; a later one replaces an earlier one of its class and slice.

        Asking for the next one may raise :class:`~medsam2_core.errors.Interrupted`: ask again, and it goes
        on.
        See :meth:`AutoVolume.run`.
        """
        # Not a generator: one would be over after an interruption.
        return map(lambda change: change[2], self._volume.run(first, last, should_cancel))

    def found(self) -> list[AutoPrediction]:
        """Return every wanted class, once the run is over; also those that are nowhere."""
        return [self._of(one) for one in self._volume.classes.values()]

    def _of(self, one: ClassVolume) -> AutoPrediction:
        known = self.card.classes[one.number]
        slices = {n: found for n, found in one.slices.items() if found.mask_hw.any() or n in one.boxes}
        prompts = {
            n: (predicted_prompt(box, one.slices[n], n, self._stack),)
            for n, box in one.boxes.items()
            if one.slices[n].mask_hw.any()
        }
        return AutoPrediction(
            known.name, known.colour_rgb, known.terminology, one.confidence, self.card.name, prompts, slices
        )
