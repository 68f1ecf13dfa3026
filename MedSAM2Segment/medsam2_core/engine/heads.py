"""The model on one slice: attend to memories, decode prompts, take a mask, encode a memory.

Every calculation is sam2's own, or equal to it (:mod:`~medsam2_core.engine.attention`); this file only brings
arguments into its shapes. The calls into `SAM2Base` marked private there are stable since SAM 2's release and
are pinned by parity tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.attention import attend, is_foldable
from medsam2_core.engine.cache import SliceFeatures
from medsam2_core.engine.devices import Precision
from medsam2_core.engine.maps import logits_of_mask, mask_for_model
from medsam2_core.engine.memory import MemoryRead, SliceMemory
from medsam2_core.engine.recipe import INSIDE, drawn_prompt
from medsam2_core.engine.states import Prediction
from medsam2_core.engine.zoom import Region

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.prompts.types import PixelPrompts

# Stock clamps logits fed back with a click; training of models that carry masks clamps harder.
FEEDBACK_LIMIT = 32.0
CARRIED_LIMIT = 16.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Prompts of one object in the form of SAM 2: box corners (labels 2, 3) first, then clicks (1, 0).

    Attributes
    ----------
    coords
        (1, P, 2) fp32, pixels of the S x S image.
    labels
        (1, P) int32.
    boxes_xyxy, points_xy, point_labels
        The same in units of the region's sides, for drawing; (1, 4), (1, Q, 2), (1, Q).
    """

    coords: torch.Tensor
    labels: torch.Tensor
    boxes_xyxy: torch.Tensor | None
    points_xy: torch.Tensor | None
    point_labels: torch.Tensor | None

    @classmethod
    def of(cls, prompt: "PixelPrompts", region: Region, image_size: int, device: torch.device) -> "Tokens":
        """Bring a slice's prompt into the model's space."""
        points = np.asarray(prompt.points_xy, dtype=np.float32).reshape(-1, 2)
        labels = np.asarray(prompt.labels, dtype=np.int32).reshape(-1)
        corners = np.zeros((0, 2), dtype=np.float32)
        if prompt.box_xyxy is not None:
            corners = np.asarray(prompt.box_xyxy, dtype=np.float32).reshape(2, 2)
        corner_labels = np.array([2, 3], dtype=np.int32)[: len(corners)]

        def tensor(values: NDArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values))[None].to(device)

        return cls(
            tensor(region.to_model(np.concatenate([corners, points]), image_size)),
            tensor(np.concatenate([corner_labels, labels])),
            tensor(region.to_units(corners).reshape(4)) if len(corners) else None,
            tensor(region.to_units(points)) if len(points) else None,
            tensor(labels) if len(points) else None,
        )


class Heads:
    """Everything of a model but its image encoder."""

    def __init__(self, model: "SegmentationModel") -> None:
        self.model = model
        # Elsewhere fused kernels are faster.
        self._folds = model.device.type == "cpu" and model.precision is Precision.FP32
        self._memory_position: torch.Tensor | None = None

    @property
    def mask_side(self) -> int:
        """Side of low-resolution logits (S/4)."""
        return self.model.image_size // 4

    def without_memory(self, features: SliceFeatures, position: torch.Tensor) -> torch.Tensor:
        """Return the (1, C, S/16, S/16) features for a slice that is prompted first and remembers nothing."""
        module = self.model.module
        if module.num_maskmem == 0:
            return features.coarse
        with self.model.computing():
            if module.directly_add_no_mem_embed:
                return features.coarse + module.no_mem_embed.view(1, -1, 1, 1)
            token = module.no_mem_embed.expand(1, 1, module.mem_dim)
            token_position = module.no_mem_pos_enc.expand(1, 1, module.mem_dim)
            return self._attend(features, position, token, token_position, 0)

    def with_memory(
        self, features: SliceFeatures, position: torch.Tensor, read: MemoryRead, total: int
    ) -> torch.Tensor:
        """Return the (1, C, S/16, S/16) features of a slice, conditioned on memories.

        Parameters
        ----------
        position
            (1, C, S/16, S/16) encoding of the features.
        total
            Slices in the volume; limits the scale of the pointers' temporal encoding, as in stock.
        """
        if self.model.module.num_maskmem == 0:
            return features.coarse
        if not read.spatial:
            return self.without_memory(features, position)
        with self.model.computing():
            tokens, positions = self._spatial_tokens(read)
            pointers, pointer_positions = self._pointer_tokens(read, total)
            memory = torch.cat([*tokens, pointers])
            return self._attend(
                features, position, memory, torch.cat([*positions, pointer_positions]), len(pointers)
            )

    def decode(
        self,
        features: SliceFeatures,
        conditioned: torch.Tensor,
        region: Region,
        *,
        tokens: Tokens | None = None,
        canvas: torch.Tensor | None = None,
        first: bool = False,
    ) -> Prediction:
        """Run the mask decoder.

        Parameters
        ----------
        conditioned
            (1, C, S/16, S/16) from :meth:`without_memory` or :meth:`with_memory`.
        tokens
            Prompts; None while tracking.
        canvas
            (1, 1, S/4, S/4) mask prompt as logits.
        first
            Whether the slice is prompted without memory; decides, with the number of points and by the
            model's flags, whether the best of three masks is taken.
        """
        canvases = None if canvas is None else [canvas]
        return self._decode([features], [conditioned], [region], tokens, canvases, first)[0]

    def decode_together(
        self,
        features: Sequence[SliceFeatures],
        conditioned: Sequence[torch.Tensor],
        regions: Sequence[Region],
        canvases: Sequence[torch.Tensor] | None,
    ) -> list[Prediction]:
        """Run the mask decoder once for several objects that are tracked; arguments as of :meth:`decode`."""
        return self._decode(features, conditioned, regions, None, canvases, False)

    def _decode(
        self,
        features: Sequence[SliceFeatures],
        conditioned: Sequence[torch.Tensor],
        regions: Sequence[Region],
        tokens: Tokens | None,
        canvases: Sequence[torch.Tensor] | None,
        first: bool,
    ) -> list[Prediction]:
        module = self.model.module
        points = None if tokens is None else {"point_coords": tokens.coords, "point_labels": tokens.labels}
        with self.model.computing():
            multimask = module._use_multimask(first, points)
            _, _, ious, logits, _, pointers, scores = module._forward_sam_heads(
                backbone_features=_batch(conditioned),
                point_inputs=points,
                mask_inputs=None if canvases is None else _batch(canvases),
                high_res_features=[_batch(maps) for maps in zip(*(one.fine for one in features), strict=True)]
                or None,
                multimask_output=multimask,
            )
        best = ious.float().amax(1).tolist()
        parts = zip(logits.float(), best, scores.float(), pointers.float(), regions, strict=True)
        return [
            Prediction(mask[None], iou, score[None], pointer[None], region)
            for mask, iou, score, pointer, region in parts
        ]

    def take_mask(self, features: SliceFeatures, mask_hw: NDArray[np.bool_], region: Region) -> Prediction:
        """Return a user's mask as a prediction: the mask itself, and the pointer the decoder makes of it.

        An empty mask says that the object is absent.
        """
        model, module = self.model, self.model.module
        mask = mask_for_model(mask_hw, region, model.image_size, model.device)
        with model.computing():
            _, _, ious, logits, _, pointer, score = module._use_mask_as_output(
                features.coarse, list(features.fine) or None, mask
            )
        if not model.recipe.draws_prompts:
            return Prediction(logits.float(), float(ious.max()), score.float(), pointer.float(), region)
        # A model trained with drawn prompts never learned to read a mask through sam2's `mask_downsample`:
        # its pointer comes from the mask drawn as all its prompts are, and so do the logits it carries to
        # the next slice.
        drawn = logits_of_mask(mask_hw, region, self.mask_side, model.device, INSIDE)
        if float(score) > 0:
            canvas = drawn_prompt(model.recipe, self.mask_side, previous_logits=drawn)
            conditioned = self.without_memory(features, torch.zeros_like(features.coarse))
            pointer = self.decode(features, conditioned, region, canvas=canvas).pointer
        return Prediction(drawn, 1.0, score.float(), pointer.float(), region)

    def canvas(self, tokens: Tokens, previous: torch.Tensor | None) -> torch.Tensor | None:
        """Return the mask prompt that goes with tokens: by the model's recipe drawn from them and from
        what was predicted here before, or in stock only the latter."""
        recipe = self.model.recipe
        if previous is not None:
            previous = previous.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
        return drawn_prompt(
            recipe,
            self.mask_side,
            boxes_xyxy=tokens.boxes_xyxy,
            points_xy=tokens.points_xy,
            labels=tokens.point_labels,
            previous_logits=previous,
        )

    def carried(self, previous: torch.Tensor | None) -> torch.Tensor | None:
        """Return the mask prompt made of the slice before; None unless the model's recipe carries masks."""
        recipe = self.model.recipe
        if previous is None or not recipe.carries_mask:
            return None
        previous = previous.clamp(-CARRIED_LIMIT, CARRIED_LIMIT)
        return drawn_prompt(recipe, self.mask_side, previous_logits=previous)

    def remember(
        self,
        n: int,
        features: SliceFeatures,
        prediction: Prediction,
        prompted: bool,
        embedding: torch.Tensor | None = None,
    ) -> SliceMemory:
        """Encode a prediction into a memory; some models binarise `prompted` masks first."""
        module, side = self.model.module, self.model.image_size
        with self.model.computing():
            encoded, _ = module._encode_new_memory(
                current_vision_feats=[_as_tokens(features.coarse)],
                feat_sizes=[features.coarse.shape[-2:]],
                pred_masks_high_res=functional.interpolate(
                    prediction.logits, size=(side, side), mode="bilinear", align_corners=False
                ),
                object_score_logits=prediction.object_score,
                is_mask_from_pts=prompted,
            )
        return SliceMemory(
            n,
            encoded.to(torch.bfloat16),
            prediction.pointer,
            prediction.predicted_iou,
            float(prediction.object_score),
            prediction.region,
            None if embedding is None else embedding.to(torch.bfloat16),
        )

    def _attend(
        self,
        features: SliceFeatures,
        position: torch.Tensor,
        memory: torch.Tensor,
        memory_position: torch.Tensor,
        pointer_tokens: int,
    ) -> torch.Tensor:
        module = self.model.module.memory_attention
        current, place = _as_tokens(features.coarse), _as_tokens(position)
        if self._folds and not torch.is_grad_enabled() and is_foldable(module):
            conditioned = attend(module, current, place, memory, memory_position, pointer_tokens)
        else:
            conditioned = module(
                curr=[current],
                curr_pos=[place],
                memory=memory,
                memory_pos=memory_position,
                num_obj_ptr_tokens=pointer_tokens,
            )
        return conditioned.permute(1, 2, 0).view(features.coarse.shape)

    def _spatial_tokens(self, read: MemoryRead) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        module = self.model.module
        tokens, positions = [], []
        for t_pos, memory in read.spatial:
            # Kept in bf16: cast on reading, or fp32 modules refuse it (stock does, when no pointer is
            # beside it).
            assert memory.features is not None  # a bank reads only those that have them
            values = memory.features.to(device=self.model.device, dtype=torch.float32)
            tokens.append(_as_tokens(values))
            position = self._spatial_position(values)
            if t_pos is not None:
                position = position + module.maskmem_tpos_enc[module.num_maskmem - t_pos - 1]
            positions.append(position)
        return tokens, positions

    def _spatial_position(self, values: torch.Tensor) -> torch.Tensor:
        if self._memory_position is None:
            encoding = self.model.module.memory_encoder.position_encoding(values)
            self._memory_position = _as_tokens(encoding.to(values.dtype))
        return self._memory_position

    def _pointer_tokens(self, read: MemoryRead, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (T, 1, 64) tokens and positions: each pointer as C/64 tokens, with its distance
        encoded."""
        from sam2.modeling.sam2_utils import get_1d_sine_pe

        module, device = self.model.module, self.model.device
        channels, width = module.hidden_dim, module.mem_dim
        if not read.pointers or not module.use_obj_ptrs_in_encoder:
            nothing = torch.zeros(0, 1, width, device=device)
            return nothing, nothing
        pointers = torch.stack([memory.pointer for _, memory in read.pointers])  # (N, 1, C)
        if module.add_tpos_enc_to_obj_ptrs:
            longest = max(min(total, module.max_obj_ptrs_in_encoder) - 1, 1)
            distances = torch.tensor([distance for distance, _ in read.pointers], device=device)
            encoded = get_1d_sine_pe(
                distances / longest, dim=channels if module.proj_tpos_enc_in_obj_ptrs else width
            )
            positions = module.obj_ptr_tpos_proj(encoded)[:, None]  # (N, 1, 64)
        else:
            positions = pointers.new_zeros(len(pointers), 1, width)
        if width < channels:
            pointers = pointers.reshape(-1, 1, channels // width, width).permute(0, 2, 1, 3).flatten(0, 1)
            positions = positions.repeat_interleave(channels // width, dim=0)
        return pointers, positions


def _batch(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return maps (1, ...) as (N, ...); a single one as it is."""
    return maps[0] if len(maps) == 1 else torch.cat(list(maps))


def _as_tokens(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (1, C, h, w) as (h*w, 1, C), the order of sam2's attention."""
    return maps.flatten(2).permute(2, 0, 1)
