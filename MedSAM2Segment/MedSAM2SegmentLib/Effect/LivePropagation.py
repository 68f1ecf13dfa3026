"""Propagation: masks are written as they come; it can be stopped, and its masks kept or discarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.Effect.WorkerSession import Progress
from MedSAM2SegmentLib.i18n import _

if TYPE_CHECKING:
    import numpy as np
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.PromptSync import PromptSync
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession

#: Seconds between two writes: each costs a redraw of every view.
WRITE_EVERY = 0.25


class _Run:
    """One propagation: the masks received and not written yet, and its progress.

    Attributes
    ----------
    segmentIDs
        The segments that are propagated.
    progress
        Slices answered of those to answer.
    written, found
        Slices that were drained, and those of them that show the structure.
    isOver
        Whether nothing more will come.
    """

    def __init__(
        self,
        segmentIDs: tuple[str, ...],
        clock: Callable[[], float],
        onEnd: Callable[[MedSAM2Error | None], None],
    ) -> None:
        self.segmentIDs = segmentIDs
        self.progress = Progress(clock)
        self.written = self.found = 0
        self.isOver = False
        self._clock, self._onEnd = clock, onEnd
        self._received: dict[str, dict[int, SliceMask]] = {}
        self._request: Any = None
        self._lastWrite = clock()

    def start(self, session: Any, **how: Any) -> None:
        """Request the masks; ``how`` as in ``SessionClient.propagate``."""
        self._request = session.propagate(
            list(self.segmentIDs), **how, slices=self._onSlices, done=self._onDone, failed=self._onFailed
        )

    def stop(self) -> None:
        """Request no more, and ignore what still comes; ``onEnd`` is not called."""
        if not self.isOver:
            self.isOver = True
            if self._request is not None:
                self._request.cancel()

    def discard(self, segmentID: str, slices: set[int] | None = None) -> None:
        """Discard received masks of a segment (on some slices): they are outdated."""
        received = self._received.get(segmentID, {})
        for n in list(received) if slices is None else slices & set(received):
            del received[n]

    @property
    def hasMasks(self) -> bool:
        """Whether masks were received that are not written yet."""
        return any(self._received.values())

    def isDue(self) -> bool:
        """Whether it is time to write what was received."""
        return self.hasMasks and self._clock() - self._lastWrite >= WRITE_EVERY

    def drain(self) -> dict[str, dict[int, NDArray[np.bool_]]]:
        """Return, by segment and slice, the masks received since the last time."""
        received, self._received = self._received, {}
        self._lastWrite = self._clock()
        self.written += sum(len(slices) for slices in received.values())
        self.found += sum(not one.is_empty for slices in received.values() for one in slices.values())
        return {
            segmentID: {n: record.mask_hw for n, record in sorted(slices.items())}
            for segmentID, slices in received.items()
            if slices
        }

    @property
    def disappointment(self) -> str:
        """Message when it is over and nothing was found; else empty."""
        if self.found:
            return ""
        if self.written:
            return _("the structure was found on no other slice: prompt another slice, or take another range")
        return _("nothing was left to do: correct a slice, or take another range, and propagate again")

    def _onSlices(self, records: list[SliceMask], done: int, total: int | None) -> None:
        if self.isOver:
            return
        for record in records:
            self._received.setdefault(record.object, {})[record.n] = record
        self.progress.update(done, total)

    def _onDone(self, *_args: Any) -> None:
        if not self.isOver:
            self.isOver = True
            self._onEnd(None)

    def _onFailed(self, error: MedSAM2Error) -> None:
        if not self.isOver:
            self.isOver = True
            self._onEnd(error)


class LivePropagation:
    """At most one propagation at a time, written a few times a second as one step of undo.

    Parameters
    ----------
    edited, session, sync
        The segments; the session in the worker, and its prompts.
    clock
        Monotonic seconds.

    Attributes
    ----------
    mustDecide
        Whether the user has to keep or discard a stopped propagation.
    problem, details
        Why the last propagation ended early, or found nothing; empty when all is well.
    beforeWriting
        Called before masks are written: their segments may have been undone.
    """

    def __init__(
        self,
        edited: EditedSegmentation,
        session: WorkerSession,
        sync: PromptSync,
        clock: Callable[[], float],
    ) -> None:
        self._edited, self._session, self._sync, self._clock = edited, session, sync, clock
        self._run: _Run | None = None
        self._before: dict[str, ObjectSnapshot] = {}
        self._newUndo = True
        self._model = ""
        self._stack: SliceStack | None = None
        self.mustDecide = False
        self.problem = self.details = ""
        self.beforeWriting: Callable[[], None] = lambda: None

    @property
    def isRunning(self) -> bool:
        """Whether masks are still to come."""
        return self._run is not None and not self._run.isOver

    @property
    def isBusy(self) -> bool:
        """Whether masks are still to come, or to be written."""
        return self._run is not None and (not self._run.isOver or self._run.hasMasks)

    @property
    def progress(self) -> Progress:
        """How far the present propagation, or the last one, is."""
        return Progress(self._clock) if self._run is None else self._run.progress

    @property
    def written(self) -> int:
        """How many slices it has written."""
        return 0 if self._run is None else self._run.written

    # Starting -----------------------------------------------------------------------------------------------

    def start(self, how: Callable[[], dict[str, Any]], model: str, problem: str = "") -> None:
        """Propagate the segments that have prompts; of those not selected, the visible ones in progress.

        Parameters
        ----------
        how
            Returns range and direction, as for ``SessionClient.propagate``.
        model
            Name of the model, if the worker has not sent another.
        problem
            Why prompts of a segment could not be sent: the error, when there are no others.

        Raises
        ------
        PromptError
            There is no session, no prompted segment, or only one slice.
        """
        session = self._session.session
        if session is None:
            message = self._session.problem or _("nothing was prompted yet: prompt the segment first")
            raise PromptError(message, code="no-session")
        prompted = tuple(
            segmentID
            for segmentID in self._edited.markups.segmentIDs()
            if session.prompts(segmentID) and self._edited.isPropagated(segmentID)
        )
        if not prompted:
            message = problem or _("nothing to propagate: prompt the segment first")
            raise PromptError(message, code="nothing-prompted")
        if len(self._session.stack) == 1:
            raise PromptError(_("nothing to propagate: there is only one slice"), code="single-slice")
        self._start(prompted, how(), model)

    def goOn(self, segmentID: str, how: Callable[[], dict[str, Any]], model: str) -> None:
        """Propagate a segment that was just prompted, together with those that are being propagated.

        It is undone together with the prompt.
        """
        running = self._run.segmentIDs if self.isRunning else ()
        together = tuple(dict.fromkeys([*running, segmentID]))
        together = tuple(one for one in together if self._session.session.prompts(one))
        if together and len(self._session.stack) > 1:
            self._start(together, how(), model, newUndo=False)

    def _start(
        self, segmentIDs: tuple[str, ...], how: dict[str, Any], model: str, *, newUndo: bool = True
    ) -> None:
        self.finish()
        session = self._session.session
        self.problem = self.details = ""
        self._model, self._newUndo, self._stack = model, newUndo, self._session.stack
        self._before = {segmentID: session.snapshot(segmentID) for segmentID in segmentIDs}
        self._run = _Run(segmentIDs, self._clock, self._onEnd)
        self._run.start(session, **how)

    # Ending -------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop, and let the user decide about what was written."""
        if not self.isRunning:
            return
        self._run.stop()
        self._write()
        self._edited.closeStep()
        self.mustDecide = self._run is not None and bool(self._edited.stepsOf(self._run))

    def keep(self) -> None:
        """Keep what was written, and clear the message about what went wrong."""
        self.mustDecide = False
        self.problem = self.details = ""

    def discard(self) -> None:
        """Take back what a stopped propagation changed, as a further step of undo; clicks and paint stay."""
        if not self.mustDecide:
            return
        self.mustDecide = False
        steps = self._edited.stepsOf(self._run)
        if not steps:
            return
        self._edited.openStep(self._run.segmentIDs)
        self._edited.revert(steps)
        session = self._session.session
        if session is not None:
            for segmentID, before in self._before.items():
                now = session.snapshot(segmentID)
                records = {n: record for n, record in before.masks.items() if n not in now.prompts}
                records |= {n: record for n, record in now.masks.items() if n in now.prompts}
                session.restore(segmentID, ObjectSnapshot(now.prompts, records, now.propagated))
        self._edited.closeStep()

    def finish(self) -> None:
        """Stop, and keep what was written without asking."""
        self.keep()
        if self.isRunning:
            self._run.stop()
            self._write()
            self._edited.closeStep()

    def abort(self) -> None:
        """Stop, and write nothing more: its segments are gone, or were undone."""
        if self._run is not None:
            self._run.stop()
        self._run, self._before = None, {}
        self.keep()

    # Writing ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Write what was received, when it is time."""
        if self._run is not None and self._run.isDue():
            self._write()

    def discardMasks(self, segmentID: str, slices: set[int] | None = None) -> None:
        """Discard masks of a segment (on some slices) that are not written yet: they are outdated."""
        if self._run is not None:
            self._run.discard(segmentID, slices)

    def _write(self) -> None:
        if self._edited.isOutOfDate:
            return  # the next update finds out
        self.beforeWriting()
        if self._run is None:
            return
        masks = {one: m for one, m in self._run.drain().items() if self._edited.isEditable(one)}
        if not masks:
            return
        self._edited.openStep(masks, owner=self._run, newUndo=self._newUndo)
        self._newUndo = False
        try:
            for segmentID, slices in masks.items():
                if self._edited.write(segmentID, slices, self._stack):
                    self._sync.updateTags(segmentID, self._model, isPropagated=True)
        except MedSAM2Error as error:
            self._run.stop()
            self._edited.closeStep()
            self.problem = str(error)

    def _onEnd(self, error: MedSAM2Error | None) -> None:
        self._write()
        self._edited.closeStep()
        if error is not None:
            self.problem, self.details = str(error), getattr(error, "details", "")
        elif self._run is not None and not self.problem:
            self.problem = self._run.disappointment
