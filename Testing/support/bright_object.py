"""A model that needs no weights: what is bright is the object. It shows what the tracker makes of answers."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.maps import logits_of_mask
from medsam2_core.engine.memory import MemoryPolicy, RecentMemory, SliceMemory
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.recipe import STOCK, PromptRecipe
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.states import Prediction
from medsam2_core.engine.tracker import Tracker
from torch.nn import functional

from support.model import a_disc

SIDE = 64
#: What a memory policy reads of a network.
MEMORY_RULES = {
    "num_maskmem": 7,
    "max_obj_ptrs_in_encoder": 16,
    "max_cond_frames_in_attn": -1,
    "memory_temporal_stride_for_eval": 1,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
}


class BrightHeads:
    """Answers with the bright pixels of what it is shown, and notes what it was asked."""

    mask_side = SIDE // 4

    def __init__(self, recipe: PromptRecipe = STOCK) -> None:
        self.recipe = recipe
        self.asked: list[dict] = []
        self.sureness = lambda region: 0.9

    def without_memory(self, features, position):
        return features.coarse

    def with_memory(self, features, position, read, total):
        self.read = read
        return features.coarse

    def canvas(self, tokens, previous):
        return previous

    def carried(self, previous):
        return previous if self.recipe.carries_mask else None

    def decode(self, features, conditioned, region, *, tokens=None, canvas=None, first=False):
        self.asked.append({"region": region, "tokens": tokens, "canvas": canvas, "first": first})
        bright = functional.avg_pool2d(conditioned.mean(1, keepdim=True), 4)
        logits = bright * 10
        score = torch.tensor([[10.0 if bool((logits > 0).any()) else -10.0]])
        return Prediction(logits, self.sureness(region), score, torch.zeros(1, 256), region)

    def decode_together(self, features, conditioned, regions, canvases):
        canvases = canvases or [None] * len(regions)
        parts = zip(features, conditioned, regions, canvases, strict=True)
        return [self.decode(one, maps, region, canvas=canvas) for one, maps, region, canvas in parts]

    def take_mask(self, features, mask_hw, region):
        score = torch.tensor([[10.0 if mask_hw.any() else -10.0]])
        logits = logits_of_mask(mask_hw, region, self.mask_side, torch.device("cpu"))
        return Prediction(logits, 1.0, score, torch.zeros(1, 256), region)

    def remember(self, n, features, prediction, prompted, embedding=None):
        score = float(prediction.object_score)
        return SliceMemory(
            n,
            torch.zeros(1, 64, 4, 4),
            prediction.pointer,
            prediction.predicted_iou,
            score,
            prediction.region,
            embedding,
        )


def bright_tracker(
    images: np.ndarray,
    options: TrackerOptions | None = None,
    memory: MemoryPolicy | None = None,
    recipe: PromptRecipe = STOCK,
    **source,
) -> tuple[Tracker, BrightHeads]:
    """A tracker over images in which bright means object."""
    module = SimpleNamespace(
        num_feature_levels=1,
        backbone_stride=16,
        hidden_dim=3,
        use_high_res_features_in_sam=False,
        image_encoder=SimpleNamespace(
            trunk=lambda image: [image],
            scalp=0,
            neck=SimpleNamespace(
                convs=[lambda image: image], fpn_top_down_levels=[], position_encoding=torch.zeros_like
            ),
        ),
        **MEMORY_RULES,
    )
    model = SimpleNamespace(
        module=module,
        image_size=SIDE,
        recipe=recipe,
        weights_key="bright",
        precision="fp32",
        device=torch.device("cpu"),
        computing=nullcontext,
    )
    heads = BrightHeads(recipe)
    encoder = SliceEncoder(model, ArrayImages(images, **source))
    return Tracker(model, encoder, memory or RecentMemory(), options, heads), heads


def discs(shape_hw, *circles) -> np.ndarray:
    """(N, H, W) uint8; each circle is (x, y, radius), or None for a slice without object."""
    images = np.zeros((len(circles), *shape_hw), np.uint8)
    for image, circle in zip(images, circles, strict=True):
        if circle is not None:
            image[a_disc(shape_hw, circle[:2], circle[2])] = 255
    return images


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Dice."""
    return 2 * np.sum(a & b) / max(np.sum(a) + np.sum(b), 1)
