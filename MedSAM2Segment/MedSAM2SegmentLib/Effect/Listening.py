"""What comes back: answers and refusals of the session, Slicer's undo; what the user is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError

if TYPE_CHECKING:
    from medsam2_core.prompts import SlicePrompts

    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.Filling import Filling
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SessionLink import Answer, SessionLink
    from MedSAM2SegmentLib.Effect.Slicing import Slicing
    from MedSAM2SegmentLib.Effect.Steps import Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace


_MASKED = (
    "the masking of the Segment Editor kept all of it out: choose another editable area or intensity range"
)


class Listening:
    """Reacts to what others do while the user goes on.

    Attributes
    ----------
    notice, details
        What to tell the user, instead of the usual advice, and everything known about it.
    mustSync
        Whether prompts and session may say different things.
    """

    def __init__(
        self,
        workplace: Workplace,
        link: SessionLink,
        steps: Steps,
        conversation: Conversation,
        filling: Filling,
        slicing: Slicing,
        parameters: Parameters,
    ) -> None:
        self._workplace, self._link, self._steps = workplace, link, steps
        self._conversation, self._filling = conversation, filling
        self._slicing, self._parameters = slicing, parameters
        self.notice = self.details = ""
        self.mustSync = False

    def say(self, notice: str, details: str = "") -> None:
        """Tell the user something; nothing any more, when it is empty."""
        self.notice, self.details = notice, details

    def sync(self, segmentIDs: tuple[str, ...] | None = None) -> None:
        """Tell the session what has changed in the prompts; the user, what could not be told."""
        if not self._workplace.isInCharge:
            return
        problem = self._conversation.sync(segmentIDs)
        if problem:
            self.say(problem)

    def followUndo(self) -> None:
        """If somebody else changed the segmentation, see whether it was Slicer's undo, and go along."""
        workplace = self._workplace
        if workplace.markups is not None:
            workplace.markups.update()
        if not workplace.isTouched or workplace.markups is None:
            return
        workplace.isTouched = False
        for segmentID in list(self._steps.settled):
            if workplace.segment(segmentID) is None:
                self._conversation.forget(segmentID)
                self._filling.forget(segmentID)
        memories = self._steps.followed()
        if not memories:
            self._conversation.look()
            return
        self._filling.abandon()
        self.say("")
        for memory in memories:
            self._conversation.follow(memory)
        self.mustSync = True

    def goAlong(self) -> None:
        """Volume and segmentation were moved together: the same will be said, about the same voxels."""
        self._conversation.remembering.save()
        self._workplace.writer.trust()
        self._slicing.move(self._workplace.moved)

    def follow(self, *, isNew: bool) -> None:
        """The volume lies otherwise on the segmentation: masks stay as they are, whatever prompts say now.

        ``isNew``: all is said to another session anyway.
        """
        workplace = self._workplace
        if workplace.markups is None or not workplace.markups.segmentIDs():
            return
        if not isNew and self._link.stack is not None:
            self._filling.settle()
            self._conversation.settle()
            self.mustSync = True
        if not workplace.isTogether:
            volume, segmentation = workplace.volumeNode.GetName(), workplace.segmentation.GetName()
            self.say(
                f"{volume!r} was moved against {segmentation!r}: the prompts now mean other places of the "
                "image, the masks stay as they are. Put both under the same transform, or undo the move"
            )

    def onAnswer(self, answer: Answer) -> None:
        """The session has answered: write it as a step of its own."""
        if self._workplace.isOutOfDate:
            return
        self.followUndo()
        self._filling.forget(answer.segmentID, set(answer.words))
        try:
            written = self._conversation.take(answer, self._parameters.text("model"))
        except MedSAM2Error as error:
            self.say(str(error))
            written = False
        if self._steps.close() is None and written and self._steps.wasAsked:
            self.say(_MASKED)
        elif written:
            self._tellEmpty(answer)
        isLast = self._link.session is not None and not self._link.isAwaiting()
        if written and isLast and self._parameters.isOn("autoPropagate"):
            self._goOn(answer.segmentID)

    def onRefusal(self, segmentID: str, words: Mapping[int, SlicePrompts], error: MedSAM2Error) -> None:
        """The session could not answer."""
        self._conversation.refused(segmentID, words)
        if not isinstance(error, Cancelled):
            self.say(str(error), getattr(error, "details", ""))

    def propagate(self) -> None:
        """Follow the segments that have prompts; of those not selected, the visible ones in progress.

        PromptError when there is none, and when there is only one slice.
        """
        problem = self._conversation.sync()
        session = self._link.session
        if session is None:
            raise PromptError(self._link.problem or "nothing was said yet: prompt the segment first")
        prompted = tuple(
            one
            for one in self._workplace.markups.segmentIDs()
            if session.words(one) and self._workplace.isTakenAlong(one)
        )
        if not prompted:
            raise PromptError(problem or "nothing to propagate: prompt the segment first")
        if len(self._link.stack) == 1:
            raise PromptError("nothing to propagate: there is only one slice")
        self.say(problem)
        self._filling.begin(prompted, self._slicing.how(), self._parameters.text("model"))
        self._slicing.revisit()

    def _tellEmpty(self, answer: Answer) -> None:
        """If the model has found nothing where it was asked, say so: there is nothing to be seen."""
        words = answer.words
        empty = [n for n, record in sorted(answer.records.items()) if record.is_empty and not words[n].final]
        if empty:
            where = f"slice {empty[0]}" if len(empty) == 1 else f"{len(empty)} slices"
            self.say(f"the model found nothing on {where}: click what belongs to it, or draw a box round it")

    def _goOn(self, segmentID: str) -> None:
        """Propagate what was just said, together with what is being propagated already."""
        known = self._filling.segmentIDs if self._filling.isRunning else ()
        together = dict.fromkeys([*known, segmentID])
        together = tuple(one for one in together if self._link.session.words(one))
        if not together or len(self._link.stack) == 1:
            return
        try:
            self._filling.begin(together, self._slicing.how(), self._parameters.text("model"), newUndo=False)
        except MedSAM2Error as error:
            self.say(str(error))
