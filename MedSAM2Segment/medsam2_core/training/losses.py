"""Losses of training: mask, predicted IoU, presence, and pixel affinity."""

from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.nn import functional

from medsam2_core.errors import TrainingError


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms.

    Attributes
    ----------
    bce
        Binary cross entropy, larger for objects that fill little of the view.
    focal
        Sigmoid focal loss (Lin et al., ICCV 2017; alpha 0.25, gamma 2). The recipe SAM 2 was trained with has
        20 and no cross entropy; a network trained from random weights does not start with it.
    dice
        Soft Dice.
    iou
        L1 of the predicted IoU.
    presence
        Binary cross entropy of the object score.
    """

    bce: float = 2.0
    focal: float = 0.0
    dice: float = 1.0
    iou: float = 1.0
    presence: float = 1.0


#: For networks trained from random weights, and what was trained so.
BASE_LOSS = LossWeights()
#: The recipe of SAM 2 (Ravi et al., arXiv 2408.00714) and of MedSAM2 (Ma et al., arXiv 2504.03600).
SAM2_LOSS = LossWeights(bce=0.0, focal=20.0)


def parse_loss(text: str) -> LossWeights:
    """Parse ``focal=20,dice=1``; terms that are not named have no weight.

    Raises
    ------
    TrainingError
        Code ``loss-syntax``.
    """
    weights = dict.fromkeys((field.name for field in fields(LossWeights)), 0.0)
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if name not in weights or not 0 <= weight < float("inf"):
            message = f"loss {text!r}: give TERM=WEIGHT with terms out of {', '.join(weights)}"
            raise TrainingError(message, code="loss-syntax", text=text)
        weights[name] = weight
    if not weights["focal"] + weights["bce"] + weights["dice"]:
        message = f"loss {text!r}: one of focal, bce and dice must have a weight"
        raise TrainingError(message, code="loss-syntax", text=text)
    return LossWeights(**weights)


def mask_loss(logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = BASE_LOSS) -> torch.Tensor:
    """Weighted cross entropy, focal and soft Dice loss of each mask.

    Parameters
    ----------
    logits
        (B, s, s).
    targets
        (B, s, s) coverage 0..1: the area of each logit's cell that belongs to the object.

    Returns
    -------
    torch.Tensor
        (B,).
    """
    bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + targets.sum((1, 2)) + 1)
    loss = weights.dice * dice
    if weights.bce:
        # Small objects fill little of the view; without this their border would hardly count.
        share = targets.mean((1, 2)).clamp(0.02, 0.25)
        loss = loss + weights.bce * bce.mean((1, 2)) * (0.25 / share).sqrt()
    if weights.focal:
        wrong = probability + targets - 2 * probability * targets
        balance = 0.25 * targets + 0.75 * (1 - targets)
        loss = loss + weights.focal * (balance * wrong.square() * bce).mean((1, 2))
    return loss


def true_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, ...) intersection over union of thresholded masks, 1 for empty against empty."""
    answer, truth = logits > 0, targets > 0.5
    both = (answer & truth).float().sum((-2, -1))
    either = (answer | truth).float().sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


class AffinityHeads(nn.Module):
    """Do two pixels belong to the same region? Asked of the neck's three maps; thrown away after training.

    Without this dense signal a network trained from random weights answers every box with its ellipse,
    whatever the image shows.
    """

    def __init__(self, channels: int, levels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in range(levels))
        self.scale = nn.Parameter(torch.full((levels,), 5.0))
        self.bias = nn.Parameter(torch.zeros(levels))

    def forward(
        self, maps: list[torch.Tensor], regions: torch.Tensor, samples: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Mean balanced BCE over random pixel pairs.

        Parameters
        ----------
        maps
            (N, C, h, w), finest first.
        regions
            (N, S, S) uint8 labels; 255 is unknown, and a pair of unknowns does not count.
        samples
            Pixels drawn an image and level.
        """
        total = torch.zeros(())
        for level, (features, head) in enumerate(zip(maps, self.heads, strict=True)):
            step = regions.shape[-1] // features.shape[-1]
            labels = regions[:, step // 2 :: step, step // 2 :: step].flatten(1).long()
            index = torch.randint(labels.shape[1], (samples,), generator=generator)
            embedding = functional.normalize(head(features).flatten(2)[..., index].float(), dim=1)
            picked = labels[:, index]
            same = (picked[:, :, None] == picked[:, None]).float()
            known = ((picked[:, :, None] != 255) | (picked[:, None] != 255)).float()
            logits = torch.einsum("ncp,ncq->npq", embedding, embedding) * self.scale[level] - self.bias[level]
            loss = functional.binary_cross_entropy_with_logits(logits, same, reduction="none")
            balance = same / (same * known).sum().clamp(min=1) + (1 - same) / (
                (1 - same) * known
            ).sum().clamp(min=1)
            total = total + (loss * known * balance).sum() / 2
        return total / len(self.heads)
