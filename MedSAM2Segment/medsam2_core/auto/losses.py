"""What few-shot training minimises: mask, object score, box, and the mask head's own guess.

The weights are those of the Sam2Rad paper (arXiv:2409.06821).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

#: Pairs of image and class with no more pixels than this say nothing about a mask.
LEAST_PIXELS = 10
_SMOOTH = 1e-5


@dataclass(frozen=True)
class Weights:
    """Factors of the parts, and the focal losses' parameters."""

    segmentation: float = 1.0
    presence: float = 1.0
    box: float = 1.0
    guess: float = 100.0
    focal: float = 10.0
    alpha: float = 0.7
    guess_alpha: float = 0.6
    gamma: float = 3.0


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N,) one minus the soft Dice of (N, H, W) logits against masks of 0 and 1."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2))
    total = probability.sum((1, 2)) + targets.sum((1, 2))
    return 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """(N,) mean focal loss (Lin et al., ICCV 2017) of (N, H, W) logits; `alpha` weighs the foreground."""
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = 1 - torch.exp(-cross_entropy)  # 1 - p of the true answer
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * missed.clamp(min=1e-8).pow(gamma) * cross_entropy).mean((1, 2))


def giou_loss(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N,) one minus the generalised IoU (Rezatofighi et al., CVPR 2019) of (N, 4) corners xyxy."""
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
    """Mean BCE of (N,) object scores, cut at 10, with softened targets of .05 and .95."""
    target = torch.where(present, 0.95, 0.05).to(score.dtype)
    return functional.binary_cross_entropy_with_logits(score.clamp(-10, 10), target)


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """(N, 4) tight boxes xyxy of (N, H, W) masks, in units of the sides; zeros for an empty one."""
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


def sketch_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """BCE and Dice of (N, s, s) logits against the share of each cell that (N, S, S) masks cover."""
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
    """The weighted parts of the loss of N pairs of image and class; their sum is what is minimised.

    Parameters
    ----------
    logits
        (N, 1, s, s) the decoder's.
    score
        (N, 1) object scores.
    boxes, guess
        (N, 4) and (N, 1, s, s) of the predictor's heads; None where a head is off.
    masks
        (N, S, S) bool.
    """
    size = masks.shape[-2:]
    counted = masks.flatten(1).sum(1) > LEAST_PIXELS
    count = counted.sum().clamp(min=1)
    targets = masks.float()

    def upsampled(maps: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)[:, 0]

    def mean(each: torch.Tensor) -> torch.Tensor:
        # Not a mean over a selection: without any foreground in the batch that would be 0/0.
        return (each * counted).sum() / count

    answer = upsampled(logits)
    focal = focal_loss(answer, targets, weights.alpha, weights.gamma)
    segmentation = 0.5 * (dice_loss(answer, targets) + weights.focal * focal)
    parts = {
        "segmentation": weights.segmentation * mean(segmentation),
        "presence": weights.presence * presence_loss(score.float()[:, 0], masks.flatten(1).any(1)),
    }
    if boxes is not None:
        parts["box"] = weights.box * mean(giou_loss(boxes.float(), boxes_of(masks)))
    if guess is not None:
        guessed = focal_loss(upsampled(guess), targets, weights.guess_alpha, weights.gamma)
        parts["guess"] = weights.guess * mean(guessed)
    return parts
