"""What comes back: answers and refusals of the session, Slicer's undo; what the user is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError

if TYPE_CHECKING:
    from medsam2_core.worker.messages import SliceWords

    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.Filling import Filling
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SessionLink import Answer, SessionLink
    from MedSAM2SegmentLib.Effect.Slicing import Slicing
    from MedSAM2SegmentLib.Effect.Steps import Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace


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
        problem = self._conversation.sync(segmentIDs)
        if problem:
            self.say(problem)

    def followUndo(self) -> None:
        """If somebody else changed the segmentation, see whether it was Slicer's undo, and go along."""
        workplace = self._workplace
        if not workplace.isTouched or workplace.markups is None:
            return
        workplace.isTouched = False
        for segmentID in list(self._steps.settled):
            if workplace.segment(segmentID) is None:
                self._conversation.forget(segmentID)
                self._filling.forget(segmentID)
        memories = self._steps.followed()
        if not memories:
            return
        self._filling.abandon()
        self.say("")
        for memory in memories:
            self._conversation.follow(memory)
        self.mustSync = True

    def onAnswer(self, answer: Answer) -> None:
        """The session has answered: write it as a step of its own."""
        self.followUndo()
        self._filling.forget(answer.segmentID, set(answer.words))
        try:
            written = self._conversation.take(answer, self._parameters.text("model"))
        except MedSAM2Error as error:
            self.say(str(error))
            written = False
        self._steps.close()
        isLast = self._link.session is not None and not self._link.isAwaiting()
        if written and isLast and self._parameters.isOn("autoPropagate"):
            self._goOn(answer.segmentID)

    def onRefusal(self, segmentID: str, words: Mapping[int, SliceWords], error: MedSAM2Error) -> None:
        """The session could not answer."""
        self._conversation.refused(segmentID, words)
        if not isinstance(error, Cancelled):
            self.say(str(error), getattr(error, "details", ""))

    def propagate(self) -> None:
        """Follow all segments that have prompts. PromptError when there is none."""
        self.sync()
        session = self._link.session
        if session is None:
            raise PromptError(self._link.problem or "nothing was said yet: prompt the segment first")
        prompted = tuple(one for one in self._workplace.markups.segmentIDs() if session.words(one))
        if not prompted:
            raise PromptError("nothing to propagate: prompt the segment first")
        self._filling.begin(prompted, self._slicing.how(), self._parameters.text("model"))
        self._slicing.revisit()

    def _goOn(self, segmentID: str) -> None:
        """Propagate what was just said, together with what is being propagated already."""
        known = self._filling.segmentIDs if self._filling.isRunning else ()
        together = tuple(dict.fromkeys([*known, segmentID]))
        try:
            self._filling.begin(together, self._slicing.how(), self._parameters.text("model"), newUndo=False)
        except MedSAM2Error as error:
            self.say(str(error))
