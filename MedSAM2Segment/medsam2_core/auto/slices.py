"""Segment single slices or images without prompts.

::

    auto = load_auto("nerve.medsam2auto")
    segmenter = AutoSegmenter(auto, StackImages(stack, window))
    prediction = segmenter.segment(0)
    prediction.classes[0].mask_hw                   # (H, W) of the model's first class
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.auto.letterbox import Letterbox
from medsam2_core.auto.model import AutoModel
from medsam2_core.auto.network import merged_labels
from medsam2_core.auto.predictor import FeatureLevels, PredictedPrompts
from medsam2_core.engine.images import ImageSource
from medsam2_core.imaging.slice_mask import MAXIMUM, PackedValues, SliceMask, agreeing

_LEAST_SIDE = 2.0  # pixels of a predicted box that is worth showing


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """Prediction of one class on one slice.

    Attributes
    ----------
    number
        Number of the class, from 0.
    mask_hw
        (H, W) bool, without the pixels that have a larger logit of another class.
    quality
        Expected IoU, 0 to 1; see :func:`expected_iou`.
    score
        Object score, a logit; the class is absent below 0.
    box_xyxy
        Predicted box in slice pixels (pixel centres at integers), clipped to the slice; None if the class is
        absent or the predictor has no box head.
    """

    number: int
    mask_hw: NDArray[np.bool_]
    quality: float
    score: float
    box_xyxy: tuple[float, float, float, float] | None
    probabilities: PackedValues | None = None

    @property
    def confidence(self) -> float:
        """Confidence from 0 to 1, as that of a :class:`~medsam2_core.imaging.slice_mask.SliceMask`."""
        present = 1 / (1 + float(np.exp(-np.clip(self.score, -30, 30))))
        return self.quality * present if self.mask_hw.any() else 1 - present

    def slice_mask(self, name: str, n: int) -> SliceMask:
        """Return the mask as that of an object on slice ``n``."""
        score = self.score if self.mask_hw.any() else min(self.score, -1.0)
        return SliceMask.from_mask(
            name, n, self.mask_hw, predicted_iou=self.quality, object_score=score,
            probabilities=self.probabilities,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SlicePrediction:
    """Predictions of all requested classes on one slice."""

    n: int
    classes: tuple[ClassPrediction, ...]


class AutoSegmenter:
    """Segments slices with an Auto model.

    Parameters
    ----------
    classes
        Numbers of the requested classes; None for all. The others still compete for pixels.
    flips
        Average the predictions for the image and its mirror image (left to right).
    """

    def __init__(
        self,
        auto: AutoModel,
        source: ImageSource,
        classes: Sequence[int] | None = None,
        *,
        flips: bool = False,
        keeps_probabilities: bool = False,
    ) -> None:
        self.auto, self.source, self.flips = auto, source, flips
        self.keeps_probabilities = keeps_probabilities
        self._empty_mask: NDArray[np.bool_] | None = None
        self.class_numbers = tuple(range(auto.network.classes)) if classes is None else tuple(classes)

    def segment(self, n: int) -> SlicePrediction:
        """Predict the requested classes on slice `n`."""
        letterbox = self.letterbox(n)
        levels = self.levels(n)
        with self.auto.model.computing():
            prompts, output = self.auto.network(levels)
            logits = letterbox.to_image(output.logits[:, 0])
            score = output.score[:, 0]
            if self.flips:
                mirrored, mirrored_score = self._mirrored(n, letterbox)
                logits, score = (logits + mirrored) / 2, (score + mirrored_score) / 2
        return self._prediction(n, letterbox, logits, score, prompts)

    def letterbox(self, n: int) -> Letterbox:
        """Return the mapping of slice `n` to the model's square."""
        return Letterbox(self.source.shape_of(n), self.auto.model.image_size, self.source.pixel_mm)

    def levels(self, n: int, *, mirrored: bool = False) -> FeatureLevels:
        """Compute the features of slice `n`, or of its mirror image."""
        letterbox, image = self.letterbox(n), self.source.image(n)
        picture = letterbox.resize(image[:, ::-1] if mirrored else image)
        return self.auto.levels(letterbox.normalise(picture)[None])

    def _mirrored(self, n: int, letterbox: Letterbox) -> tuple[torch.Tensor, torch.Tensor]:
        _, output = self.auto.network(self.levels(n, mirrored=True))
        return letterbox.to_image(output.logits[:, 0]).flip(-1), output.score[:, 0]

    def _prediction(
        self,
        n: int,
        letterbox: Letterbox,
        logits: torch.Tensor,
        score: torch.Tensor,
        prompts: PredictedPrompts,
    ) -> SlicePrediction:
        labels = merged_labels(logits[None], score[None])[0].cpu().numpy()
        probability = logits.float().sigmoid().cpu().numpy()
        boxes = None if prompts.boxes_xyxy is None else prompts.boxes_xyxy.float().cpu().numpy()
        predictions = []
        height, width = letterbox.content_hw
        square = letterbox.side**2 * (labels.size / (height * width))  # in pixels of the slice
        for number in self.class_numbers:
            least = self.auto.card.classes[number].least_piece * square
            mask = without_small_pieces(labels == number + 1, least)
            value = float(score[number])
            box = _box_on_slice(boxes[number], letterbox) if boxes is not None and mask.any() else None
            quality = expected_iou(probability[number], mask)
            if not mask.any():
                mask = self._empty(mask.shape)
            kept = self._probabilities(probability[number], mask, value) if self.keeps_probabilities else None
            predictions.append(ClassPrediction(number, mask, quality, value, box, kept))
        return SlicePrediction(n, tuple(predictions))

    def _empty(self, shape_hw: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return an empty mask that all slices share: a volume has thousands of slices without a class."""
        if self._empty_mask is None or self._empty_mask.shape != shape_hw:
            self._empty_mask = np.zeros(shape_hw, dtype=bool)
            self._empty_mask.flags.writeable = False
        return self._empty_mask

    def _probabilities(
        self, probability_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_], score: float
    ) -> PackedValues:
        """Return probabilities that agree with the mask: below 0.5 outside, and 0 for an absent class."""
        if score < 0:
            return PackedValues.certain(self._empty(mask_hw.shape))
        scaled = np.rint(probability_hw * np.float32(MAXIMUM)).astype(np.uint8)
        return PackedValues.of(agreeing(scaled, mask_hw))

    def __iter__(self) -> Iterator[SlicePrediction]:
        return (self.segment(n) for n in range(len(self.source)))


def without_small_pieces(mask_hw: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Remove connected components of fewer than `least` pixels from a mask, but never the largest."""
    if least <= 1 or not mask_hw.any():
        return mask_hw
    from scipy import ndimage

    pieces, count = ndimage.label(mask_hw)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = areas >= min(least, areas[1:].max())
    kept[0] = False
    return kept[pieces]


def expected_iou(probability_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_]) -> float:
    """Compute the IoU of a mask with a truth of these probabilities: sums instead of counts; 0 when empty."""
    inside = float(probability_hw[mask_hw].sum())
    either = float(probability_hw.sum()) + float(mask_hw.sum()) - inside
    return inside / either if mask_hw.any() and either > 0 else 0.0


def _box_on_slice(box_units: NDArray, letterbox: Letterbox) -> tuple[float, float, float, float] | None:
    """Convert a box to slice pixels, clipped to the slice; None if that leaves less than two pixels."""
    corners = letterbox.points_from_units(box_units.reshape(2, 2))
    height, width = letterbox.shape_hw
    (left, top), (right, bottom) = np.clip(corners, -0.5, [width - 0.5, height - 0.5])
    if right - left < _LEAST_SIDE or bottom - top < _LEAST_SIDE:
        return None
    return float(left), float(top), float(right), float(bottom)
