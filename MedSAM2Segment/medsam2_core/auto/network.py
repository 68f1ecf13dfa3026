"""A SAM 2 and a predictor put together: image features in, mask logits of every class out.

The encoder is not part of it: its features come as they are, and may have been computed long ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from medsam2_core.auto.predictor import Levels, PredictedPrompts, PromptPredictor
from medsam2_core.engine.recipe import STOCK, PromptRecipe, drawn_prompt

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class UserPrompts:
    """What is said besides, for each of N pairs of image and class; shapes as SAM 2's.

    Attributes
    ----------
    boxes_xyxy
        (N, 4) in units of the image's side.
    points_xy, labels
        (N, P, 2) in the same units, and (N, P) of 1 and 0.
    mask_logits
        (N, 1, S/4, S/4), instead of the predicted mask.
    """

    boxes_xyxy: torch.Tensor | None = None
    points_xy: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None


NOTHING_SAID = UserPrompts()


@dataclass(frozen=True)
class Answer:
    """What the mask decoder makes of the prompts of N pairs of image and class.

    Attributes
    ----------
    logits
        (N, 1, S/4, S/4).
    score
        (N, 1) object score, a logit.
    iou
        (N, 1) the decoder's estimate of the mask's quality.
    pointer
        (N, C) the mask token it answered with.
    """

    logits: torch.Tensor
    score: torch.Tensor
    iou: torch.Tensor
    pointer: torch.Tensor


class AutoNetwork(nn.Module):
    """Predictor, prompt encoder and mask decoder.

    Parameters
    ----------
    module
        A SAM 2. Its prompt encoder is used as it is.
    predictor
        Of the same width.
    recipe
        How the model wants its prompts drawn besides.
    decoder
        Instead of the module's own mask decoder: an adapted copy.
    """

    def __init__(
        self,
        module: SAM2Base,
        predictor: PromptPredictor,
        recipe: PromptRecipe = STOCK,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.predictor, self.recipe = predictor, recipe
        self.prompt_encoder = module.sam_prompt_encoder
        self.decoder = module.sam_mask_decoder if decoder is None else decoder
        self.image_size = module.image_size

    @property
    def classes(self) -> int:
        """K."""
        return self.predictor.settings.classes

    def predict(self, levels: Levels) -> PredictedPrompts:
        """Prompts of every class for B images."""
        return self.predictor(levels, self.prompt_encoder.no_mask_embed.weight)

    def decode(self, levels: Levels, prompts: PredictedPrompts, said: UserPrompts = NOTHING_SAID) -> Answer:
        """Masks for predicted prompts and what a user adds.

        Parameters
        ----------
        levels
            Of N images (see :meth:`Levels.repeated`).
        """
        count = len(levels.coarse)
        encoder = self.prompt_encoder
        sparse = self._box_tokens(prompts.boxes_xyxy)
        if prompts.tokens is not None:
            sparse.append(prompts.tokens)
        sparse += [*self._box_tokens(said.boxes_xyxy), *self._point_tokens(said)]
        width = levels.coarse.shape[1]
        nothing = levels.coarse.new_zeros(count, 0, width)
        masks, iou, tokens, score = self.decoder.predict_masks(
            image_embeddings=levels.coarse,
            image_pe=encoder.get_dense_pe().to(levels.coarse),
            sparse_prompt_embeddings=torch.cat([nothing, *sparse], dim=1),
            dense_prompt_embeddings=self._dense(levels, prompts, said),
            repeat_image=False,
            high_res_features=[levels.fine, levels.middle],
        )
        return Answer(masks[:, :1].float(), score.float(), iou[:, :1].float(), tokens[:, 0])

    def forward(self, levels: Levels, said: UserPrompts = NOTHING_SAID) -> tuple[PredictedPrompts, Answer]:
        """Prompts and masks of every class for B images, class by class."""
        prompts = self.predict(levels)
        return prompts, self.decode(levels.repeated(self.classes), prompts, said)

    def _box_tokens(self, boxes_xyxy: torch.Tensor | None) -> list[torch.Tensor]:
        """Two tokens a box, its corners; no padding token, as SAM 2's with a box."""
        if boxes_xyxy is None:
            return []
        return [self.prompt_encoder._embed_boxes(boxes_xyxy * self.image_size)]

    def _point_tokens(self, said: UserPrompts) -> list[torch.Tensor]:
        if said.points_xy is None or said.labels is None or not said.points_xy.shape[1]:
            return []
        # sam2 adds half a pixel, which positions in units of the sides have already.
        coords = said.points_xy * self.image_size - 0.5
        return [self.prompt_encoder._embed_points(coords, said.labels, pad=False)]

    def _dense(self, levels: Levels, prompts: PredictedPrompts, said: UserPrompts) -> torch.Tensor:
        canvas = said.mask_logits if said.mask_logits is not None else prompts.mask_logits
        if self.recipe.draws_prompts:
            boxes = said.boxes_xyxy if said.boxes_xyxy is not None else prompts.boxes_xyxy
            side = levels.fine.shape[-1]
            canvas = drawn_prompt(self.recipe, side, boxes, said.points_xy, said.labels, canvas)
        if canvas is None:
            embedding = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
            return embedding.expand(len(levels.coarse), -1, *levels.coarse.shape[-2:])
        return self.prompt_encoder._embed_masks(canvas)


def merged_labels(logits: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Several classes as one label map, as Sam2Rad merges them.

    A class whose object score is below 0 has logits of -1; a pixel gets the class of its largest logit if
    that is above 0.

    Parameters
    ----------
    logits
        (B, K, H, W).
    score
        (B, K).

    Returns
    -------
    torch.Tensor
        (B, H, W) int64: 0 background, k + 1 for class k.
    """
    seen = torch.where(score[..., None, None] < 0, torch.full_like(logits, -1.0), logits)
    best, label = seen.max(dim=1)
    return torch.where(best > 0, label + 1, torch.zeros_like(label))
