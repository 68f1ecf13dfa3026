"""A predictor with SAM 2's prompt encoder and mask decoder: from image features to masks of every class.

The image encoder is not part of it: features may have been computed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medsam2_core.auto.predictor import FeatureLevels, PredictedPrompts, PromptPredictor
from medsam2_core.engine.recipe import STOCK, PromptRecipe, drawn_prompt

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class UserPrompts:
    """Prompts of a user for each of N pairs of image and class, in addition to the predicted ones.

    Attributes
    ----------
    boxes_xyxy
        (N, 4) in units of the image's side.
    points_xy, labels
        (N, P, 2) in the same units, and (N, P): 1 foreground, 0 background.
    mask_logits
        (N, 1, S/4, S/4), instead of the predicted mask.
    """

    boxes_xyxy: torch.Tensor | None = None
    points_xy: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None


NO_PROMPTS = UserPrompts()


@dataclass(frozen=True)
class DecoderOutput:
    """Output of the mask decoder for N pairs of image and class.

    Attributes
    ----------
    logits
        (N, 1, S/4, S/4) mask logits.
    score
        (N, 1) object score, a logit.
    iou
        (N, 1) predicted IoU.
    pointer
        (N, C) mask token.
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
        A SAM 2; its prompt encoder is used unchanged.
    recipe
        Whether and how prompts are also drawn into the mask prompt.
    decoder
        An adapted copy of the mask decoder; None uses the module's own.
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

    def predict(self, levels: FeatureLevels) -> PredictedPrompts:
        """Predict the prompts of every class of B images."""
        return self.predictor(levels, self.prompt_encoder.no_mask_embed.weight)

    def decode(
        self, levels: FeatureLevels, prompts: PredictedPrompts, user: UserPrompts = NO_PROMPTS
    ) -> DecoderOutput:
        """Decode the masks of predicted prompts, and of a user's prompts in addition.

        Parameters
        ----------
        levels
            Features of N images (see :meth:`FeatureLevels.repeated`).
        """
        count = len(levels.coarse)
        encoder: Any = self.prompt_encoder
        decoder: Any = self.decoder
        sparse = self._box_tokens(prompts.boxes_xyxy)
        if prompts.tokens is not None:
            sparse.append(prompts.tokens)
        sparse += [*self._box_tokens(user.boxes_xyxy), *self._point_tokens(user)]
        width = levels.coarse.shape[1]
        nothing = levels.coarse.new_zeros(count, 0, width)
        masks, iou, tokens, score = decoder.predict_masks(
            image_embeddings=levels.coarse,
            image_pe=encoder.get_dense_pe().to(levels.coarse),
            sparse_prompt_embeddings=torch.cat([nothing, *sparse], dim=1),
            dense_prompt_embeddings=self._dense(levels, prompts, user),
            repeat_image=False,
            high_res_features=[levels.fine, levels.middle],
        )
        return DecoderOutput(masks[:, :1].float(), score.float(), iou[:, :1].float(), tokens[:, 0])

    def forward(
        self, levels: FeatureLevels, user: UserPrompts = NO_PROMPTS
    ) -> tuple[PredictedPrompts, DecoderOutput]:
        """Predict prompts and masks of every class of B images; N = B * K of each."""
        prompts = self.predict(levels)
        return prompts, self.decode(levels.repeated(self.classes), prompts, user)

    def _box_tokens(self, boxes_xyxy: torch.Tensor | None) -> list[torch.Tensor]:
        """Embed the corners of boxes, two tokens each, without a padding token, as SAM 2 does with a box."""
        if boxes_xyxy is None:
            return []
        return [self.prompt_encoder._embed_boxes(boxes_xyxy * self.image_size)]

    def _point_tokens(self, user: UserPrompts) -> list[torch.Tensor]:
        if user.points_xy is None or user.labels is None or not user.points_xy.shape[1]:
            return []
        # sam2 adds half a pixel, which positions in units of the side include already.
        coords = user.points_xy * self.image_size - 0.5
        return [self.prompt_encoder._embed_points(coords, user.labels, pad=False)]

    def _dense(self, levels: FeatureLevels, prompts: PredictedPrompts, user: UserPrompts) -> torch.Tensor:
        canvas = user.mask_logits if user.mask_logits is not None else prompts.mask_logits
        if self.recipe.draws_prompts:
            boxes = user.boxes_xyxy if user.boxes_xyxy is not None else prompts.boxes_xyxy
            side = levels.fine.shape[-1]
            canvas = drawn_prompt(self.recipe, side, boxes, user.points_xy, user.labels, canvas)
        if canvas is None:
            embedding = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
            return embedding.expand(len(levels.coarse), -1, *levels.coarse.shape[-2:])
        return self.prompt_encoder._embed_masks(canvas)


def merged_labels(logits: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Merge the masks of several classes to a label map, as Sam2Rad does.

    The logits of a class whose object score is below 0 become -1; a pixel gets the class of its largest logit
    if that is above 0.

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
