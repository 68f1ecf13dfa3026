"""Prompts: points, boxes and masks, by object and by slice. Needs only numpy."""

from medsam2_core.prompts.prompt_set import PromptSet
from medsam2_core.prompts.types import Box, MaskPrompt, PixelPrompts, Point, Prompt, SlicePrompts

__all__ = ["Box", "MaskPrompt", "PixelPrompts", "Point", "Prompt", "PromptSet", "SlicePrompts"]
