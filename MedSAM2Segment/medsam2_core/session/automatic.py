"""Segmentation without prompts in a session: an Auto model goes through its slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsam2_core.auto.predictions import AutoPrediction
from medsam2_core.auto.slices import AutoSegmenter
from medsam2_core.auto.volumes import AutoVolume, ClassVolume, VolumeOptions
from medsam2_core.engine.sources import StackImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.prompts.slice_prompts import predicted_prompt

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.imaging.intensity import Window
    from medsam2_core.imaging.slices import SliceStack


class AutoRun(AutoVolume):
    """An Auto model going through a session's slices; the session itself stays as it is.

    Parameters
    ----------
    window
        What the Auto model sees of the intensities; None: what the session sees. Tracking sees that anyway.
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
        super().__init__(segmenter, own_tracker, options or VolumeOptions())

    def found(self) -> list[AutoPrediction]:
        """Return every wanted class, once the run is over; also those that are nowhere."""
        return [self._of(one) for one in self.classes.values()]

    def _of(self, one: ClassVolume) -> AutoPrediction:
        known = self.card.classes[one.number]
        slices = {n: found for n, found in one.slices.items() if found.mask_hw.any() or n in one.boxes}
        prompts = {
            n: (predicted_prompt(box, one.slices[n], n, self._stack),)
            for n, box in one.boxes.items()
            if one.slices[n].mask_hw.any()
        }
        return AutoPrediction(
            known.name, known.colour_rgb, known.terminology, one.confidence, prompts, slices, self.card.name
        )
