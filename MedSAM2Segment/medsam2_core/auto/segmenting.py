"""One image, no prompt: what an Auto model finds on it, and the prompts it would have given.

::

    auto = load_auto("nerve.medsam2auto")
    segmenter = AutoSegmenter(auto, StackImages(stack, window))
    found = segmenter.segment(0)
    found.classes[0].mask_hw                        # (H, W) of the model's first class
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core.auto.framing import Frame
from medsam2_core.auto.loading import AutoModel
from medsam2_core.auto.network import NOTHING_SAID, Answer, UserPrompts, merged_labels
from medsam2_core.auto.predictor import Levels, PredictedPrompts
from medsam2_core.engine.sources import ImageSource
from medsam2_core.imaging.probabilities import MAXIMUM, PackedValues, agreeing
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import PixelPrompts

_LEAST_SIDE = 2.0  # pixels of a predicted box that is worth showing


@dataclass(frozen=True, eq=False)
class ClassFound:
    """One class on one slice.

    Attributes
    ----------
    number
        Of the class, from 0.
    mask_hw
        (H, W) bool; pixels that another class claims with more right are not in it.
    quality
        0 to 1: the IoU to be expected if the probabilities are right.
    score
        Object score, a logit; below 0 the class is taken to be absent.
    box_xyxy
        The predicted box in slice pixels (pixel centres at integers), within the slice; None where the box
        head is off, or the class is absent.
    point_xy
        The pixel the model is surest of; None when the mask is empty.
    probabilities
        How sure the model is of each pixel; None when that is not kept.
    """

    number: int
    mask_hw: NDArray[np.bool_]
    quality: float
    score: float
    box_xyxy: tuple[float, float, float, float] | None
    point_xy: tuple[float, float] | None
    probabilities: PackedValues | None = None

    @property
    def confidence(self) -> float:
        """0 to 1, as of a :class:`~medsam2_core.imaging.slice_mask.SliceMask`."""
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
class SliceFound:
    """Every class on one slice."""

    n: int
    classes: tuple[ClassFound, ...]


class AutoSegmenter:
    """Asks an Auto model about the slices of a source.

    Parameters
    ----------
    auto
        A loaded model.
    source
        The slices, or pictures.
    classes
        Numbers of the classes wanted; None all. Those not wanted still claim their pixels.
    flips
        Average the answers for the image and its mirror image (left to right).
    keeps_probabilities
        As in :class:`~medsam2_core.engine.options.TrackerOptions`.
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
        self._nothing: NDArray[np.bool_] | None = None
        self.wanted = tuple(range(auto.network.classes)) if classes is None else tuple(classes)

    def segment(self, n: int) -> SliceFound:
        """All wanted classes on slice `n`."""
        frame = self.frame(n)
        levels = self.levels(n)
        with self.auto.model.computing():
            prompts, answer = self.auto.network(levels)
            logits = frame.on_image(answer.logits[:, 0])
            score = answer.score[:, 0]
            if self.flips:
                mirrored, mirrored_score = self._mirrored(n, frame)
                logits, score = (logits + mirrored) / 2, (score + mirrored_score) / 2
        return self._found(n, frame, logits, score, prompts)

    def refine(
        self, n: int, number: int, said: PixelPrompts, before: torch.Tensor | None = None
    ) -> tuple[NDArray[np.bool_], Answer]:
        """One class again, with what a user says besides the predicted prompts (Sam2Rad's semi-automatic
        mode).

        Parameters
        ----------
        said
            Box and points in slice pixels.
        before
            (1, 1, S/4, S/4) logits to be corrected, instead of the predicted mask.
        """
        frame, levels = self.frame(n), self.levels(n)
        with self.auto.model.computing():
            predicted = self.auto.network.predict(levels)
            own = PredictedPrompts(
                *(
                    None if value is None else value[number : number + 1]
                    for value in (predicted.boxes_xyxy, predicted.mask_logits, predicted.tokens)
                )
            )
            # A user's box stands beside the predicted one, as in training.
            words = _in_units(said, frame, self.auto.model.device, before)
            answer = self.auto.network.decode(levels, own, words)
            logits = frame.on_image(answer.logits[:, 0])[0]
        return logits.cpu().numpy() > 0, answer

    def frame(self, n: int) -> Frame:
        """How slice `n` lies in the model's square."""
        return Frame(self.source.shape_of(n), self.auto.model.image_size, self.source.pixel_mm)

    def levels(self, n: int, *, mirrored: bool = False) -> Levels:
        """Features of slice `n`, or of its mirror image."""
        frame, image = self.frame(n), self.source.image(n)
        picture = frame.pixels(image[:, ::-1] if mirrored else image)
        return self.auto.levels(frame.normalised(picture)[None])

    def _mirrored(self, n: int, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
        _, answer = self.auto.network(self.levels(n, mirrored=True))
        return frame.on_image(answer.logits[:, 0]).flip(-1), answer.score[:, 0]

    def _found(
        self, n: int, frame: Frame, logits: torch.Tensor, score: torch.Tensor, prompts: PredictedPrompts
    ) -> SliceFound:
        labels = merged_labels(logits[None], score[None])[0].cpu().numpy()
        probability = logits.float().sigmoid().cpu().numpy()
        boxes = None if prompts.boxes_xyxy is None else prompts.boxes_xyxy.float().cpu().numpy()
        found = []
        height, width = frame.inner_hw
        square = frame.side**2 * (labels.size / (height * width))  # in pixels of the slice
        for number in self.wanted:
            least = self.auto.card.classes[number].least_piece * square
            mask = without_small_pieces(labels == number + 1, least)
            value = float(score[number])
            box = _box_on_slice(boxes[number], frame) if boxes is not None and mask.any() else None
            point = _surest(probability[number], mask)
            quality = expected_iou(probability[number], mask)
            if not mask.any():
                mask = self._empty(mask.shape)
            kept = self._kept(probability[number], mask, value) if self.keeps_probabilities else None
            found.append(ClassFound(number, mask, quality, value, box, point, kept))
        return SliceFound(n, tuple(found))

    def _empty(self, shape_hw: tuple[int, ...]) -> NDArray[np.bool_]:
        """One empty mask for all slices without a class: most are, and a volume has thousands of them."""
        if self._nothing is None or self._nothing.shape != shape_hw:
            self._nothing = np.zeros(shape_hw, dtype=bool)
            self._nothing.flags.writeable = False
        return self._nothing

    def _kept(
        self, probability_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_], score: float
    ) -> PackedValues:
        """A class's probabilities for the mask that was made of it; of one that is absent they are 0.

        Pixels that went to another class, or were too small a piece, are below 0.5.
        """
        if score < 0:
            return PackedValues.certain(self._empty(mask_hw.shape))
        scaled = np.rint(probability_hw * np.float32(MAXIMUM)).astype(np.uint8)
        return PackedValues.of(agreeing(scaled, mask_hw))

    def __iter__(self) -> Iterator[SliceFound]:
        return (self.segment(n) for n in range(len(self.source)))


def without_small_pieces(mask_hw: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """A mask without its connected pieces of fewer than `least` pixels; the largest may stay in any case."""
    if least <= 1 or not mask_hw.any():
        return mask_hw
    pieces, count = ndimage.label(mask_hw)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = areas >= min(least, areas[1:].max())
    kept[0] = False
    return kept[pieces]


def expected_iou(probability_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_]) -> float:
    """The IoU of a mask with a truth drawn from the probabilities: sums instead of counts; 0 when empty."""
    inside = float(probability_hw[mask_hw].sum())
    either = float(probability_hw.sum()) + float(mask_hw.sum()) - inside
    return inside / either if mask_hw.any() and either > 0 else 0.0


def _surest(probability_hw: NDArray[np.float32], mask_hw: NDArray[np.bool_]) -> tuple[float, float] | None:
    if not mask_hw.any():
        return None
    row, column = divmod(int(np.where(mask_hw, probability_hw, -1.0).argmax()), mask_hw.shape[1])
    return float(column), float(row)


def _box_on_slice(box_units: NDArray, frame: Frame) -> tuple[float, float, float, float] | None:
    """Corners in slice pixels, cut at the slice's border; None for what is no box."""
    corners = frame.points_from_units(box_units.reshape(2, 2))
    height, width = frame.shape_hw
    (left, top), (right, bottom) = np.clip(corners, -0.5, [width - 0.5, height - 0.5])
    if right - left < _LEAST_SIDE or bottom - top < _LEAST_SIDE:
        return None
    return float(left), float(top), float(right), float(bottom)


def _in_units(
    said: PixelPrompts, frame: Frame, device: torch.device, before: torch.Tensor | None
) -> UserPrompts:
    box = points = labels = None
    if said.box_xyxy is not None:
        corners = frame.points_to_units(np.asarray(said.box_xyxy).reshape(2, 2)).reshape(1, 4)
        box = torch.from_numpy(corners).to(device)
    if len(said.labels):
        points = torch.from_numpy(frame.points_to_units(said.points_xy))[None].to(device)
        labels = torch.from_numpy(np.asarray(said.labels, dtype=np.int32))[None].to(device)
    if box is None and points is None and before is None:
        return NOTHING_SAID
    return UserPrompts(box, points, labels, before)
