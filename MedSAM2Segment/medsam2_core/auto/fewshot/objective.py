"""The objective of few-shot training: losses and mixed-in prompts of the Sam2Rad paper (arXiv:2409.06821)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from medsam2_core.auto.network import NO_PROMPTS, UserPrompts
from medsam2_core.auto.predictor import PredictedPrompts

#: Masks of no more pixels than this do not count.
LEAST_PIXELS = 10
_SMOOTH = 1e-5


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the loss, and parameters of the focal losses."""

    segmentation: float = 1.0
    presence: float = 1.0
    box: float = 1.0
    guess: float = 100.0
    focal: float = 10.0
    alpha: float = 0.7
    guess_alpha: float = 0.6
    gamma: float = 3.0


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute (N,) one minus the soft Dice of (N, H, W) logits and masks of 0 and 1."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2))
    total = probability.sum((1, 2)) + targets.sum((1, 2))
    return 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Compute the (N,) mean focal loss (Lin et al., ICCV 2017) of (N, H, W) logits; `alpha`: foreground."""
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = 1 - torch.exp(-cross_entropy)  # 1 - p of the true answer
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * missed.clamp(min=1e-8).pow(gamma) * cross_entropy).mean((1, 2))


def giou_loss(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute (N,) one minus the generalised IoU (Rezatofighi et al., CVPR 2019) of (N, 4) corners xyxy."""
    low = torch.maximum(boxes[:, :2], targets[:, :2])
    high = torch.minimum(boxes[:, 2:], targets[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1) for b in (boxes, targets)]
    either = areas[0] + areas[1] - both
    hull_low = torch.minimum(boxes[:, :2], targets[:, :2])
    hull_high = torch.maximum(boxes[:, 2:], targets[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1)
    tiny = 1e-7
    return 1 - both / (either + tiny) + (hull - either) / (hull + tiny)


def presence_loss(score: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Compute the mean BCE of (N,) object scores, clipped to ±10, with targets of .05 and .95."""
    target = torch.where(present, 0.95, 0.05).to(score.dtype)
    return functional.binary_cross_entropy_with_logits(score.clamp(-10, 10), target)


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Compute the (N, 4) tight boxes xyxy of (N, H, W) masks, in units of the sides; zeros if empty."""
    found = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows) == 0:
            found.append([0.0, 0.0, 0.0, 0.0])
            continue
        height, width = mask.shape
        found.append(
            [
                *(float(columns[0]) / width, float(rows[0]) / height),
                *((float(columns[-1]) + 1) / width, (float(rows[-1]) + 1) / height),
            ]
        )
    return torch.tensor(found, device=masks.device)


def coverage_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Compute BCE and Dice of (N, s, s) logits against the share of each cell that (N, S, S) masks cover."""
    share = functional.adaptive_avg_pool2d(masks[:, None].float(), logits.shape[-1])[:, 0]
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, share)
    there = masks.flatten(1).any(1)
    dice = (dice_loss(logits, share) * there).sum() / there.sum().clamp(min=1)
    return 2 * cross_entropy + dice


def auto_loss(
    logits: torch.Tensor,
    score: torch.Tensor,
    boxes: torch.Tensor | None,
    guess: torch.Tensor | None,
    masks: torch.Tensor,
    weights: Weights = Weights(),
) -> dict[str, torch.Tensor]:
    """Compute the weighted parts of Sam2Rad's loss for N pairs of image and class; their sum is minimised.

    Parameters
    ----------
    logits
        (N, 1, s, s) mask logits of the decoder.
    score
        (N, 1) object scores.
    boxes, guess
        (N, 4) and (N, 1, s, s) of the predictor's heads; None where a head is not used.
    masks
        (N, S, S) bool, the truth.
    """
    size = masks.shape[-2:]
    counted = masks.flatten(1).sum(1) > LEAST_PIXELS
    count = counted.sum().clamp(min=1)
    targets = masks.float()

    def upsampled(maps: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)[:, 0]

    def mean(each: torch.Tensor) -> torch.Tensor:
        # A mean over a selection would be 0/0 for a batch without foreground.
        return (each * counted).sum() / count

    answer = upsampled(logits)
    focal = focal_loss(answer, targets, weights.alpha, weights.gamma)
    segmentation = 0.5 * (dice_loss(answer, targets) + weights.focal * focal)
    parts = {
        "segmentation": weights.segmentation * mean(segmentation),
        "presence": weights.presence * presence_loss(score.float()[:, 0], masks.flatten(1).any(1)),
    }
    if boxes is not None:
        parts["box"] = weights.box * mean(giou_loss(boxes.float(), masks_to_boxes(masks)))
    if guess is not None:
        guessed = focal_loss(upsampled(guess), targets, weights.guess_alpha, weights.gamma)
        parts["guess"] = weights.guess * mean(guessed)
    return parts


@dataclass(frozen=True)
class PromptMix:
    """Prompts that the network is trained with: shares of the batches, as in Sam2Rad.

    A predictor trained with boxes accepts those of a user. The other batches have learned prompts only.

    Attributes
    ----------
    with_box
        Share with learned prompts and a true box.
    box_and_mask
        Share with a true box and the true mask only.
    jitter
        Largest displacement of the corners of boxes, as a share of the box's sides.
    """

    with_box: float = 0.45
    only_box: float = 0.045
    box_and_mask: float = 0.005
    jitter: float = 0.1

    def draw(
        self, predicted: PredictedPrompts, masks: torch.Tensor, generator: torch.Generator
    ) -> tuple[PredictedPrompts, UserPrompts]:
        """Draw the prompts of a batch: the predicted prompts that are used, and a user's."""
        draw = float(torch.rand(1, generator=generator))
        rare = self.only_box + self.box_and_mask
        if draw >= self.with_box + rare or not bool(masks.any()):
            return predicted, NO_PROMPTS
        boxes = self._jittered(self._boxes(masks, generator), generator)
        if draw >= rare:
            return predicted, UserPrompts(boxes_xyxy=boxes)
        if draw >= self.box_and_mask:
            return PredictedPrompts(), UserPrompts(boxes_xyxy=boxes)
        coverage = functional.avg_pool2d(masks[:, None].float(), 4)
        return PredictedPrompts(), UserPrompts(boxes_xyxy=boxes, mask_logits=20 * coverage - 10)

    @staticmethod
    def _boxes(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return true boxes, and random ones for absent classes: a missing box would reveal the absence."""
        corners = torch.rand(len(masks), 2, 2, generator=generator).sort(1).values.flatten(1).to(masks.device)
        present = masks.flatten(1).any(1, keepdim=True)
        return torch.where(present, masks_to_boxes(masks), corners)

    def _jittered(self, boxes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        shift = 2 * torch.rand(boxes.shape, generator=generator).to(boxes.device) - 1
        return (boxes + self.jitter * sides * shift).clamp(0, 1)
