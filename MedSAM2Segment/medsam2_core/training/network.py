"""Forward passes of training through sam2's own modules, with gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medsam2_core.engine.cache import SliceFeatures
from medsam2_core.engine.devices import Precision
from medsam2_core.engine.encoder import MEAN, STD
from medsam2_core.engine.heads import Heads
from medsam2_core.engine.memory import MemoryBank, MemoryPolicy, Query, SliceMemory
from medsam2_core.engine.recipe import INSIDE, SURE, PromptRecipe, drawn_prompt
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.states import Prediction
from medsam2_core.engine.zoom import Region
from medsam2_core.training.users import Prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# Of the cells of an object that is not there; as surely as a prompt is drawn.
ABSENT_LOGIT = -SURE


@dataclass
class Encoded:
    """Features of N slices.

    Attributes
    ----------
    maps
        The neck's three maps at strides 4, 8 and 16, finest first.
    position
        (N, C, h, w) positional encoding of the coarsest.
    fine
        What the decoder reads of the two finer ones.
    """

    maps: list[torch.Tensor]
    position: torch.Tensor
    fine: list[torch.Tensor]

    def of(self, index: torch.Tensor) -> ObjectFeatures:
        """The features of slices ``index``, one for each of B objects; slices may repeat."""
        return ObjectFeatures(self.maps[-1][index], self.position[index], [f[index] for f in self.fine])


@dataclass
class ObjectFeatures:
    """Features of the slice each of B objects lies on: (B, C, h, w) coarse, its position, two fine maps."""

    coarse: torch.Tensor
    position: torch.Tensor
    fine: list[torch.Tensor]


@dataclass
class Answer:
    """Output of the mask decoder for B objects: four candidates each, the single mask first.

    Where the prompt was `ambiguous`, the most confident of the other three counts.
    """

    logits: torch.Tensor  # (B, 4, s, s)
    iou: torch.Tensor  # (B, 4)
    tokens: torch.Tensor  # (B, 4, C)
    presence: torch.Tensor  # (B, 1) logit
    ambiguous: bool = False

    def token(self, ambiguous: bool) -> torch.Tensor:
        """(B, C) the token of the single mask, or of the most confident of three."""
        if not ambiguous:
            return self.tokens[:, 0]
        return self.tokens[torch.arange(len(self.tokens)), 1 + self.iou[:, 1:].argmax(1)]

    @property
    def best_iou(self) -> torch.Tensor:
        """(B,) predicted IoU of the mask that counts."""
        return self.iou[:, 1:].amax(1) if self.ambiguous else self.iou[:, 0]

    @property
    def best_logits(self) -> torch.Tensor:
        """(B, 1, s, s) the mask that counts."""
        if not self.ambiguous:
            return self.logits[:, :1]
        index = self.iou[:, 1:].argmax(1)
        return self.logits[torch.arange(len(index)), 1 + index].unsqueeze(1)

    @property
    def shown(self) -> torch.Tensor:
        """(B, 1, s, s) the mask the user sees and the next slice gets: empty for an object thought absent."""
        logits = self.best_logits
        there = self.presence[:, :, None, None] > 0
        return torch.where(there, logits, torch.full_like(logits, ABSENT_LOGIT))


def encode(module: SAM2Base, images: torch.Tensor) -> Encoded:
    """Encode (N, 3, S, S) images in 0..1, without gradients if no part of the image encoder is trained."""
    mean = torch.tensor(MEAN, device=images.device)[:, None, None]
    std = torch.tensor(STD, device=images.device)[:, None, None]
    trains = any(parameter.requires_grad for parameter in module.image_encoder.parameters())
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        out = module.image_encoder((images - mean) / std)
    maps, decoder = out["backbone_fpn"], module.sam_mask_decoder
    return Encoded(maps, out["vision_pos_enc"][-1], [decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])])


def without_memory(module: SAM2Base, features: ObjectFeatures) -> torch.Tensor:
    """(B, C, h, w) the embedding of slices that see no memory."""
    return features.coarse + module.no_mem_embed.view(1, -1, 1, 1)


def decode(
    module: SAM2Base,
    recipe: PromptRecipe,
    embedding: torch.Tensor,
    fine: list[torch.Tensor],
    prompts: Prompts,
) -> Answer:
    """Prompt encoder and mask decoder for B objects, each with its own embedding (B, C, h, w)."""
    prompts = prompts.to(embedding.device)
    encoder = module.sam_prompt_encoder
    size = encoder.mask_input_size[0]
    canvas = drawn_prompt(
        recipe, size, prompts.boxes_xyxy, prompts.points_xy, prompts.labels, prompts.previous_logits
    )
    sparse, dense = encoder(points=prompts.tokens(module.image_size), boxes=None, masks=canvas)
    masks, iou, tokens, presence = module.sam_mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=fine,
    )
    return Answer(masks.float(), iou.float(), tokens, presence.float())


def given(module: SAM2Base, recipe: PromptRecipe, here: ObjectFeatures, target: torch.Tensor) -> Answer:
    """Take masks as the user's own, which the model has no say in: (B, s, s) coverage, empty for absent.

    As :meth:`medsam2_core.engine.heads.Heads.take_mask` does: the decoder only makes the pointer.
    """
    inside = (target.to(here.coarse.device) > 0.5)[:, None].float()
    present = inside.flatten(1).any(1, keepdim=True).float()
    if recipe.draws_prompts:
        logits = INSIDE * (2 * inside - 1)
        answer = decode(module, recipe, without_memory(module, here), here.fine, Prompts.only(logits))
    else:
        logits = SURE * (2 * inside - 1)
        full = functional.interpolate(inside, size=(module.image_size,) * 2, mode="nearest")
        canvas = module.mask_downsample(full) if module.use_obj_ptrs_in_encoder else logits
        answer = decode(module, recipe, here.coarse, here.fine, Prompts.only(canvas))
    return Answer(logits.expand(-1, 4, -1, -1), torch.ones_like(answer.iou), answer.tokens, 20 * present - 10)


class ClipMemory(ABC):
    """What is remembered of B objects through a clip."""

    @abstractmethod
    def read(self, frame: int, features: ObjectFeatures) -> torch.Tensor:
        """(B, C, h, w) the frame's embedding, conditioned on what is remembered."""

    @abstractmethod
    def write(
        self, frame: int, features: ObjectFeatures, answer: Answer, logits: torch.Tensor, prompted: bool
    ) -> None:
        """Remember the frame with mask logits (B, 1, s, s), most often those the answer shows."""


class ObjectMemory(ClipMemory):
    """Memory of B objects through a clip, kept and read exactly as SAM 2 does."""

    def __init__(self, module: SAM2Base, frames: int) -> None:
        self._module = module
        self._frames = frames
        self._outputs: dict[str, dict[int, dict]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def read(self, frame: int, features: ObjectFeatures) -> torch.Tensor:
        tokens, position, size = _flattened(features)
        return self._module._prepare_memory_conditioned_features(
            frame_idx=frame,
            is_init_cond_frame=False,
            current_vision_feats=[tokens],
            current_vision_pos_embeds=[position],
            feat_sizes=[size],
            output_dict=self._outputs,
            num_frames=self._frames,
        )

    def write(
        self, frame: int, features: ObjectFeatures, answer: Answer, logits: torch.Tensor, prompted: bool
    ) -> None:
        module = self._module
        tokens, _, size = _flattened(features)
        full = functional.interpolate(
            logits.float(), size=(module.image_size,) * 2, mode="bilinear", align_corners=False
        )
        memory, position = module._encode_new_memory(
            current_vision_feats=[tokens],
            feat_sizes=[size],
            pred_masks_high_res=full,
            object_score_logits=answer.presence,
            is_mask_from_pts=prompted,
        )
        pointer = _pointer(module, answer)
        kind = "cond_frame_outputs" if prompted else "non_cond_frame_outputs"
        output = {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}
        self._outputs[kind][frame] = output


class PolicyMemory(ClipMemory):
    """Memory of B objects through a clip by any policy of the engine, through the engine's own heads."""

    def __init__(self, module: SAM2Base, recipe: PromptRecipe, policy: MemoryPolicy, frames: int) -> None:
        device = next(module.parameters()).device
        model = _WithGradients("", module, module.image_size, recipe, "", device, Precision.FP32)
        self._module, self._policy, self._frames, self._heads = module, policy, frames, Heads(model)
        self._region = Region.whole((module.image_size, module.image_size))
        self._banks: list[MemoryBank] = []
        self._conditioning: list[dict[int, SliceMemory]] = []

    def read(self, frame: int, features: ObjectFeatures) -> torch.Tensor:
        read = []
        for n, bank in enumerate(self._banks):
            one, position = self._of(features, n), features.position[n : n + 1]
            query = Query(frame, self._frames, False, True, one.coarse.detach())
            chosen = bank.read(query, self._conditioning[n])
            read.append(self._heads.with_memory(one, position, chosen, self._frames))
        return torch.cat(read)

    def write(
        self, frame: int, features: ObjectFeatures, answer: Answer, logits: torch.Tensor, prompted: bool
    ) -> None:
        pointers = _pointer(self._module, answer)
        ious, presence = answer.best_iou.detach(), answer.presence.detach()
        if not self._banks:
            self._banks = [self._policy.bank(self._module) for _ in range(len(logits))]
            self._conditioning = [{} for _ in range(len(logits))]
        for n, bank in enumerate(self._banks):
            one = slice(n, n + 1)
            prediction = Prediction(
                logits[one].float(), float(ious[n]), presence[one], pointers[one], self._region
            )
            here = self._of(features, n)
            memory = self._heads.remember(frame, here, prediction, prompted, here.coarse.detach())
            if prompted:
                self._conditioning[n][frame] = memory
            else:
                bank.add(memory)

    @staticmethod
    def _of(features: ObjectFeatures, n: int) -> SliceFeatures:
        return SliceFeatures(
            features.coarse[n : n + 1], (features.fine[0][n : n + 1], features.fine[1][n : n + 1])
        )


class _WithGradients(SegmentationModel):
    """A model whose heads compute as training does."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Change nothing: gradients and autocast are the caller's."""
        yield


def _pointer(module: SAM2Base, answer: Answer) -> torch.Tensor:
    """(B, C) object pointers; those of absent objects are SAM 2's own for them."""
    here = (answer.presence > 0).float()
    pointer = module.obj_ptr_proj(answer.token(answer.ambiguous and module.use_multimask_token_for_obj_ptr))
    return here * pointer + (1 - here) * module.no_obj_ptr


def _flattened(features: ObjectFeatures) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """SAM 2's own layout: (h·w, B, C) tokens and positions, and (h, w)."""
    height, width = features.coarse.shape[-2:]
    tokens, position = (m.flatten(2).permute(2, 0, 1) for m in (features.coarse, features.position))
    return tokens, position, (height, width)
