"""What the network is shown in training besides its own prompts: a user's box now and then.

So a trained predictor also accepts a box of the user. Shares are Sam2Rad's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from medsam2_core.auto.losses import boxes_of
from medsam2_core.auto.network import NOTHING_SAID, UserPrompts
from medsam2_core.auto.predictor import PredictedPrompts


@dataclass(frozen=True)
class PromptMix:
    """Shares of the batches; the rest is learned prompts alone.

    Attributes
    ----------
    with_box
        Learned prompts and a box.
    only_box
        A box alone.
    box_and_mask
        A box and the true mask.
    jitter
        How far corners of boxes lie beside the true ones, as a share of the box's sides.
    """

    with_box: float = 0.45
    only_box: float = 0.045
    box_and_mask: float = 0.005
    jitter: float = 0.1

    def draw(
        self, predicted: PredictedPrompts, masks: torch.Tensor, generator: torch.Generator
    ) -> tuple[PredictedPrompts, UserPrompts]:
        """One draw for a batch: the predicted prompts that are used, and what is said besides.

        Parameters
        ----------
        masks
            (N, S, S) bool.
        """
        draw = float(torch.rand(1, generator=generator))
        rare = self.only_box + self.box_and_mask
        if draw >= self.with_box + rare or not bool(masks.any()):
            return predicted, NOTHING_SAID
        boxes = self._jittered(self._boxes(masks, generator), generator)
        if draw >= rare:
            return predicted, UserPrompts(boxes_xyxy=boxes)
        if draw >= self.box_and_mask:
            return PredictedPrompts(), UserPrompts(boxes_xyxy=boxes)
        coverage = functional.avg_pool2d(masks[:, None].float(), 4)
        return PredictedPrompts(), UserPrompts(boxes_xyxy=boxes, mask_logits=20 * coverage - 10)

    @staticmethod
    def _boxes(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """True boxes; for a class that is absent one that means nothing, or its box would tell of absence."""
        corners = torch.rand(len(masks), 2, 2, generator=generator).sort(1).values.flatten(1).to(masks.device)
        present = masks.flatten(1).any(1, keepdim=True)
        return torch.where(present, boxes_of(masks), corners)

    def _jittered(self, boxes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        shift = 2 * torch.rand(boxes.shape, generator=generator).to(boxes.device) - 1
        return (boxes + self.jitter * sides * shift).clamp(0, 1)
