"""Propagation: masks are written as they come; it can be stopped, and its masks kept or discarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.Effect.Progress import Progress
from MedSAM2SegmentLib.i18n import _

if TYPE_CHECKING:
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack

    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession

#: Seconds between two writes: each costs a redraw of every view.
WRITE_EVERY = 0.25
#: Most of the time that writes may take: with a surface in 3D, Slicer makes it again at each.
WRITE_SHARE = 0.25


@dataclass(eq=False)
class _Run:
    """One propagation.

    Attributes
    ----------
    segmentIDs, stack
        What is propagated, through which slices.
    pause
        Seconds to the next write.
    before
        By segment, what the session knew of it at the beginning.
    newUndo
        Whether the next masks begin a step of Slicer's undo.
    isLive
        Whether it follows a correction by itself, until the next one.
    received
        By segment and slice, masks that are not written yet.
    written
        By segment and slice that was written, whether it shows the structure.
    """

    segmentIDs: tuple[str, ...]
    stack: SliceStack
    before: dict[str, ObjectSnapshot]
    progress: Progress
    newUndo: bool
    isLive: bool
    lastWrite: float
    pause: float = WRITE_EVERY
    request: Any = None
    received: dict[str, dict[int, SliceMask]] = field(default_factory=dict)
    written: dict[tuple[str, int], bool] = field(default_factory=dict)
    isOver: bool = False

    def stop(self) -> None:
        """Request no more, and ignore what still comes."""
        if not self.isOver:
            self.isOver = True
            if self.request is not None:
                self.request.cancel()

    @property
    def hasMasks(self) -> bool:
        """Whether masks were received that are not written yet."""
        return any(self.received.values())


class LivePropagation:
    """At most one propagation at a time, written a few times a second as one step of undo.

    Attributes
    ----------
    mustDecide
        Whether the user has to keep or discard a stopped propagation.
    problem, details
        Why the last propagation ended early, or found nothing; empty when all is well.
    beforeWriting
        Called before masks are written: their segments may have been undone.
    afterWriting
        Called with the ID of a segment into which masks were written.
    afterPropagation
        Called after a propagation that was not stopped and has found the structure on other slices.
    """

    def __init__(
        self, edited: EditedSegmentation, session: WorkerSession, clock: Callable[[], float]
    ) -> None:
        self._edited, self._session, self._clock = edited, session, clock
        self._run: _Run | None = None
        self._paused: tuple[str, ...] = ()  # segments of a live propagation that was stopped by a correction
        self.mustDecide = False
        self.problem = self.details = ""
        self.beforeWriting: Callable[[], None] = lambda: None
        self.afterWriting: Callable[[str], None] = lambda segmentID: None
        self.afterPropagation: Callable[[], None] = lambda: None

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
        return 0 if self._run is None else len(self._run.written)

    # Starting -----------------------------------------------------------------------------------------------

    def start(self, problem: str = "") -> None:
        """Propagate the segments that have prompts; of those not selected, the visible ones in progress.

        ``problem``: why prompts of a segment could not be sent; it is the error when there are no others.

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
        self._start(prompted)

    def goOn(self, segmentID: str, *, newUndo: bool) -> None:
        """Propagate a segment that was just prompted, from its prompt outward, until :meth:`pause`.

        Segments being propagated, or paused, go on with it. One undo takes back the prompt with all masks,
        unless ``newUndo``: the prompt has changed no voxel, so that it has no step of its own.
        """
        running = self._run.segmentIDs if self.isRunning else ()
        together = tuple(dict.fromkeys([segmentID, *running, *self._paused]))
        known = self._session.session.prompts
        together = tuple(one for one in together if known(one) and self._edited.isEditable(one))
        if together and len(self._session.stack) > 1:
            self._start(together, isLive=True, newUndo=newUndo)

    def pause(self) -> None:
        """Stop what follows a correction by itself, and keep what was found: another correction follows."""
        if self.isRunning and self._run.isLive:
            self._paused = self._run.segmentIDs
            self.finish()

    def _start(self, segmentIDs: tuple[str, ...], *, isLive: bool = False, newUndo: bool = True) -> None:
        options = self._session.propagationOptions()
        self.finish()
        self._paused = ()
        self.problem = self.details = ""
        session, stack = self._session.session, self._session.stack
        before = {segmentID: session.snapshot(segmentID) for segmentID in segmentIDs}
        run = _Run(segmentIDs, stack, before, Progress(self._clock), newUndo, isLive, self._clock())
        self._run = run
        run.request = session.propagate(
            list(segmentIDs),
            **options,
            overlap=self._mayOverlap(),
            outward=isLive,
            slices=partial(self._onSlices, run),
            done=lambda *_: self._onEnd(run, None),
            failed=partial(self._onEnd, run),
        )

    def _mayOverlap(self) -> bool:
        """Whether segments may share voxels; else the last one written must not win them."""
        node = self._edited.editor.parameterSetNode()
        return bool(node.GetOverwriteMode() == node.OverwriteNone)

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
            for segmentID, before in self._run.before.items():
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
        self._run, self._paused = None, ()
        self.keep()

    # Writing ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Write what was received, when it is time."""
        run = self._run
        if run is not None and run.hasMasks and self._clock() - run.lastWrite >= run.pause:
            start = self._clock()
            self._write()
            run.pause = max(WRITE_EVERY, (self._clock() - start) / WRITE_SHARE)

    def discardMasks(self, segmentID: str, slices: set[int] | None = None) -> None:
        """Discard masks of a segment (on some slices) that are not written yet: they are outdated."""
        received = {} if self._run is None else self._run.received.get(segmentID, {})
        for n in list(received) if slices is None else slices & set(received):
            del received[n]

    def _write(self) -> None:
        if self._edited.isOutOfDate:
            return  # the next update finds out
        self.beforeWriting()
        run = self._run
        if run is None:
            return
        received, run.received, run.lastWrite = run.received, {}, self._clock()
        for segmentID, slices in received.items():
            run.written.update({(segmentID, n): not record.is_empty for n, record in slices.items()})
        masks = {
            segmentID: {n: record.mask_hw for n, record in sorted(slices.items())}
            for segmentID, slices in received.items()
            if slices and self._edited.isEditable(segmentID)
        }
        if not masks:
            return
        self._edited.openStep(masks, owner=run, newUndo=run.newUndo)
        run.newUndo = False
        try:
            for segmentID, slices in masks.items():
                if self._edited.write(segmentID, slices, run.stack):
                    self.afterWriting(segmentID)
        except MedSAM2Error as error:
            run.stop()
            self._edited.closeStep()
            self.problem = str(error)

    def _onSlices(self, run: _Run, records: list[SliceMask], done: int, total: int | None) -> None:
        if run.isOver:
            return
        for record in records:
            run.received.setdefault(record.object, {})[record.n] = record
        run.progress.update(done, total)

    def _onEnd(self, run: _Run, error: MedSAM2Error | None) -> None:
        if run.isOver:
            return
        run.isOver = True
        self._write()
        self._edited.closeStep()
        if error is not None:
            self.problem, self.details = str(error), getattr(error, "details", "")
        elif run is self._run and not self.problem and not any(run.written.values()):
            self.problem = _(
                "nothing was left to do: correct a slice, or take another range, and propagate again"
            )
            if run.written:
                self.problem = _(
                    "the structure was found on no other slice: prompt another slice, or take another range"
                )
        elif run is self._run and not self.problem:
            self.afterPropagation()
