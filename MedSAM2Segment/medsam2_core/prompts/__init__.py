"""Prompts: points, boxes and masks, by object and by slice. Needs only numpy."""

from medsam2_core.prompts.prompt_set import PromptSet
from medsam2_core.prompts.slice_prompts import (
    PixelPrompts,
    SlicePrompts,
    by_slice,
    mask_on_slice,
    resolve,
    slices_of,
    validate,
)
from medsam2_core.prompts.types import Box, MaskPrompt, Point, Prompt

__all__ = [
    "Box",
    "MaskPrompt",
    "PixelPrompts",
    "Point",
    "Prompt",
    "PromptSet",
    "SlicePrompts",
    "by_slice",
    "mask_on_slice",
    "resolve",
    "slices_of",
    "validate",
]
