"""Propagation as the user sees it: slices fill in, it is stopped, and what has come is kept or discarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error
from medsam2_core.worker.messages import ObjectRecord

from MedSAM2SegmentLib.Effect.Propagation import Propagation

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack

    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Steps import Steps
    from MedSAM2SegmentLib.Effect.Workplace import Workplace


class Filling:
    """At most one propagation at a time, written a few times a second as one step of undo.

    Attributes
    ----------
    mustDecide
        Whether a stopped propagation is to be kept or discarded.
    problem, details
        Why the last propagation ended early, or found nothing; empty when all is well.
    beforeWriting
        Called before slices are written: what they are about may have been undone.
    """

    def __init__(
        self,
        workplace: Workplace,
        link: SessionLink,
        steps: Steps,
        conversation: Conversation,
        clock: Callable[[], float],
    ) -> None:
        self._workplace, self._link, self._steps = workplace, link, steps
        self._conversation, self._clock = conversation, clock
        self._propagation: Propagation | None = None
        self._before: dict[str, ObjectRecord] = {}
        self._newUndo = True
        self._model = ""
        self._stack: SliceStack | None = None
        self.mustDecide = False
        self.problem = self.details = ""
        self.beforeWriting: Callable[[], None] = lambda: None

    @property
    def isRunning(self) -> bool:
        """Whether slices are being filled in."""
        return self._propagation is not None and not self._propagation.isOver

    @property
    def segmentIDs(self) -> tuple[str, ...]:
        """Whose slices are, or were, filled in."""
        return self._propagation.segmentIDs if self._propagation is not None else ()

    @property
    def progress(self) -> tuple[int, int, int, str]:
        """Slices done, slices to do, slices written, and the time left in words."""
        if self._propagation is None:
            return 0, 0, 0, ""
        now = self._propagation
        return now.done, now.total, now.written, now.remaining

    def begin(
        self, segmentIDs: tuple[str, ...], how: dict[str, Any], model: str, *, newUndo: bool = True
    ) -> None:
        """Follow segments through the slices; what is running ends, and stays.

        Without ``newUndo``, it is undone together with the step before: the click that made it begin.
        """
        self.settle()
        session = self._link.session
        self.problem = self.details = ""
        self._model, self._newUndo, self._stack = model, newUndo, self._link.stack
        self._before = {segmentID: session.snapshot(segmentID) for segmentID in segmentIDs}
        self._propagation = Propagation(segmentIDs, self._clock, self._onEnd)
        self._propagation.begin(session, **how)

    def tick(self) -> None:
        """Write what has come, when it is time."""
        if self._propagation is not None and self._propagation.isDue():
            self._write()

    def cancel(self) -> None:
        """Stop; the user is asked about what has come."""
        if not self.isRunning:
            return
        self._propagation.stop()
        self._write()
        self._steps.close()
        self.mustDecide = self._propagation is not None and bool(self._steps.of(self._propagation))

    def keep(self) -> None:
        """What has come stays; what went wrong was told."""
        self.mustDecide = False
        self.problem = self.details = ""

    def discard(self) -> None:
        """What a stopped propagation has changed is taken back, by a further step; clicks and paint stay."""
        if not self.mustDecide:
            return
        self.mustDecide = False
        steps = self._steps.of(self._propagation)
        if not steps:
            return
        self._steps.begin(self._propagation.segmentIDs)
        self._steps.revert(steps)
        session = self._link.session
        if session is not None:
            for segmentID, before in self._before.items():
                now = session.snapshot(segmentID)
                records = {n: record for n, record in before.records.items() if n not in now.words}
                records |= {n: record for n, record in now.records.items() if n in now.words}
                session.restore(segmentID, ObjectRecord(now.words, records, now.refined))
        self._steps.close()

    def settle(self) -> None:
        """Stop, and keep what has come without asking."""
        self.keep()
        if self.isRunning:
            self._propagation.stop()
            self._write()
            self._steps.close()

    def abandon(self) -> None:
        """Stop, and write nothing more: what it was about is gone, or was undone."""
        if self._propagation is not None:
            self._propagation.stop()
        self._propagation, self._before = None, {}
        self.mustDecide = False
        self.problem = self.details = ""

    def forget(self, segmentID: str, slices: set[int] | None = None) -> None:
        """What was found about a segment (on some slices) and is not written yet is out of date."""
        if self._propagation is not None:
            self._propagation.forget(segmentID, slices)

    def _write(self) -> None:
        if self._workplace.isOutOfDate:
            return  # it is noticed at the next look
        self.beforeWriting()
        if self._propagation is None:
            return
        masks = self._propagation.drain()
        for segmentID in list(masks):
            if self._workplace.segment(segmentID) is None or self._workplace.refusal(segmentID):
                del masks[segmentID]
        if not masks:
            return
        self._steps.begin(masks, owner=self._propagation, newUndo=self._newUndo)
        self._newUndo = False
        try:
            for segmentID, slices in masks.items():
                if self._steps.write(segmentID, slices, self._stack):
                    self._conversation.sign(segmentID, self._model, isFollowed=True)
        except MedSAM2Error as error:
            self._propagation.stop()
            self._steps.close()
            self.problem = str(error)

    def _onEnd(self, error: MedSAM2Error | None) -> None:
        self._write()
        self._steps.close()
        if error is not None:
            self.problem, self.details = str(error), getattr(error, "details", "")
        elif self._propagation is not None and not self.problem:
            self.problem = self._propagation.disappointment
