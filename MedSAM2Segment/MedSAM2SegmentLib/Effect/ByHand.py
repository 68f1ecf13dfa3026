"""What the user made by hand, given to the model: final slices, masks as prompts, segments taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam2_core.errors import PromptError
from medsam2_core.prompts import mask_on_slice

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Steps import Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace


class ByHand:
    """Turns what a segment shows into prompts."""

    def __init__(
        self, workplace: Workplace, link: SessionLink, steps: Steps, conversation: Conversation
    ) -> None:
        self._workplace, self._link = workplace, link
        self._steps, self._conversation = steps, conversation

    def finalise(self, n: int) -> None:
        """Take the selected segment on slice ``n`` as final; or, if it is, let it be changed again."""
        segmentID, markups, stack = self._workplace.segmentID, self._workplace.markups, self._link.stack
        words = self._steps.settled.get(segmentID, {}).get(n)
        final = words is None or not words.final
        with markups.silenced():
            if final:
                mask = self._workplace.writer.segmentMasks(segmentID, stack, [n])[n]
                prompt = mask_on_slice(mask, n, stack)
                if prompt is not None:
                    markups.addMask(segmentID, n, prompt, stack.key)
            markups.setFinal(segmentID, stack.key, n, final)

    def useAsPrompt(self, n: int) -> None:
        """Say that the selected segment on slice ``n`` is right; PromptError when it cannot be said."""
        segmentID, stack = self._workplace.segmentID, self._link.stack
        mask = self._workplace.writer.segmentMasks(segmentID, stack, [n])[n]
        if not mask.any():
            raise PromptError("the segment is empty on this slice: paint it first, or click instead")
        prompt = mask_on_slice(mask, n, stack)
        if prompt is None:
            raise PromptError(
                "on oblique slices a segment cannot be a prompt: take the slice as final, or click instead"
            )
        self._workplace.markups.addMask(segmentID, n, prompt, stack.key)

    def takeOver(self) -> None:
        """Delete all prompts of the selected segment; what it shows is the user's from now on."""
        segmentID, markups = self._workplace.segmentID, self._workplace.markups
        with markups.silenced():
            markups.clear(segmentID)
        self._conversation.forget(segmentID)
        self._steps.remove(segmentID)
        self._steps.settle(segmentID, (), {})
        self._workplace.writer.forget(segmentID)
        self._conversation.remembering.forget(segmentID)
