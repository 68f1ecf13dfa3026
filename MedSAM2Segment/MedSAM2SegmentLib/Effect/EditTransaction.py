"""One action of the user is one step of Slicer's undo; prompts and session follow when Slicer undoes it.

Undo is Slicer's own, and restores voxels only. :class:`~MedSAM2SegmentLib.Segments.EditHistory.EditHistory`
detects afterwards which of our steps were undone; what belongs to a step besides voxels is kept here.

During a propagation a step stays open: all masks until it is closed belong to it. A click in the middle of a
propagation is a step of its own; the masks after it are one for the history, but not for Slicer, where they
are undone together with the click.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.messages import ObjectSnapshot

from MedSAM2SegmentLib.Segments.EditHistory import UNDONE, EditHistory

if TYPE_CHECKING:
    import numpy as np
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
    from MedSAM2SegmentLib.Segments.EditHistory import Step
    from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter


@dataclass
class UndoState:
    """What belongs to the voxels of some segments at one moment.

    Attributes
    ----------
    prompts
        By segment: a snapshot of its prompts.
    objects
        By segment: all the session knows of it; None when there was no session.
    session
        The session that knew it: another one cannot restore it.
    owner
        What the step belongs to: a propagation, for example.
    """

    prompts: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, ObjectSnapshot | None] = field(default_factory=dict)
    session: Any = None
    owner: Any = None

    def update(self, other: UndoState) -> None:
        """Take over segments of another state."""
        self.prompts.update(other.prompts)
        self.objects.update(other.objects)

    def of(self, segmentID: str) -> UndoState:
        """Return the part about one segment."""
        return UndoState(
            {segmentID: self.prompts[segmentID]}, {segmentID: self.objects[segmentID]}, self.session
        )


class EditTransaction:
    """Writes masks as steps of Slicer's undo, and detects when Slicer undoes or redoes steps.

    Parameters
    ----------
    session
        The session in the worker.
    writing
        Context in which changes of the segmentation are our own.

    Attributes
    ----------
    applied
        By segment and slice, the prompts whose answers are in its voxels.
    wasAsked
        Whether the step opened last asked for voxels to change, even if Slicer's masking refused it.
    """

    def __init__(self, session: WorkerSession, writing: Callable[[], AbstractContextManager[None]]) -> None:
        self._session, self._writing = session, writing
        self._writer: SegmentWriter | None = None
        self._history: EditHistory | None = None
        self.applied: dict[str, dict[int, SlicePrompts]] = {}
        self.wasAsked = False
        self._snapshots: dict[str, Any] = {}  # by segment, of the prompts that are applied
        self._current: dict[str, UndoState] = {}  # by segment
        self._open: set[str] | None = None  # segments of the open step
        self._before: UndoState | None = None  # the open step
        self._newest: Step | None = None
        self._isUndoStepDue = False

    def bind(self, writer: SegmentWriter | None) -> None:
        """Edit another segmentation, or none: what is known of the one before is removed."""
        self._writer, self._history = writer, None if writer is None else EditHistory(writer)
        for known in (self.applied, self._snapshots, self._current):
            known.clear()
        self._open, self._before, self._newest = None, None, None

    # Writing ------------------------------------------------------------------------------------------------

    def open(self, segmentIDs: Iterable[str], *, owner: Any = None, newUndo: bool = True) -> None:
        """Open a step about segments, or go on with the open one of the same owner.

        ``newUndo`` makes it a step of Slicer's undo, too; without, it is undone with the step before.
        """
        if self._open is None or owner is None or self._before.owner is not owner:
            self.close()
            self._open = set()
            self._before = UndoState(session=self._session.requested, owner=owner)
            self._history.begin(self._before)
            self._isUndoStepDue, self.wasAsked = newUndo, False
        for segmentID in set(segmentIDs) - self._open:
            self._open.add(segmentID)
            self._before.update(self._lastState(segmentID))

    def addCreated(self, segmentIDs: Iterable[str]) -> None:
        """Record segments that the open step has created: undo removes them."""
        self._history.addCreated(segmentIDs)
        for segmentID in segmentIDs:
            self.markApplied(segmentID, (), {})

    def isKnown(self, segmentID: str) -> bool:
        """Whether it is known what belongs to the voxels of a segment."""
        return segmentID in self._current

    def write(
        self,
        segmentID: str,
        masks: Mapping[int, NDArray[np.bool_]],
        stack: SliceStack,
        revived: Mapping[int, NDArray[np.bool_]] | None = None,
    ) -> bool:
        """Write into the open step (see ``SegmentWriter.write``); whether any voxel was asked to change."""
        newStep, self._isUndoStepDue = self._isUndoStepDue, False
        with self._writing():
            isAsked = self._writer.write(segmentID, masks, stack, newStep=newStep, revived=revived)
        self.wasAsked |= isAsked
        return isAsked

    def close(self) -> Step | None:
        """Close the open step; None when none was open, or when it changed no voxel.

        A change of prompts without voxels (a click inside the mask) is not in Slicer's undo: it becomes part
        of the step before.
        """
        if self._open is None:
            return None
        segmentIDs, owner = self._open, self._before.owner
        self._open, self._before = None, None
        after = self.stateOf(segmentIDs)
        after.owner = owner
        step = self._history.end(after)
        if step is not None:
            self._newest = step
        elif self._newest is not None and self._newest.done:
            self._newest.payloadAfter.update(after)
        for segmentID in segmentIDs:
            self._current[segmentID] = after.of(segmentID)
        return step

    def revert(self, steps: list[Step]) -> None:
        """Undo steps within the open one, except where voxels were changed since."""
        self._isUndoStepDue = False
        with self._writing():
            self._history.revert(steps)

    def stepsOf(self, owner: Any) -> list[Step]:
        """Return the steps of an owner that are not undone."""
        steps = [] if self._history is None else self._history.steps
        return [step for step in steps if step.done and step.payloadAfter.owner is owner]

    # Prompts that are applied -------------------------------------------------------------------------------

    def markApplied(self, segmentID: str, snapshot: Any, prompts: Mapping[int, SlicePrompts]) -> None:
        """Record that the voxels of a segment show these prompts, on their slices."""
        applied = self.applied.setdefault(segmentID, {})
        applied.update(prompts)
        for n in [n for n, onSlice in applied.items() if not onSlice]:
            del applied[n]
        self._snapshots[segmentID] = snapshot
        if self._open is None or segmentID not in self._open:
            self._current[segmentID] = self.stateOf((segmentID,))

    def markAllOutdated(self) -> None:
        """Let all prompts be answered anew: the voxels show answers of another session."""
        self.applied.clear()

    def removePrompts(self, segmentID: str) -> None:
        """Record that a segment has no prompts any more."""
        self.applied.pop(segmentID, None)
        self._snapshots.pop(segmentID, None)

    def stateOf(self, segmentIDs: Iterable[str]) -> UndoState:
        """Return what belongs to the voxels of segments now, without prompts that are not answered yet."""
        session = self._session.session
        state = UndoState(session=self._session.requested)
        for segmentID in segmentIDs:
            state.prompts[segmentID] = self._snapshots.get(segmentID, ())
            state.objects[segmentID] = None
            if session is not None:
                known = session.snapshot(segmentID)
                applied = self.applied.get(segmentID, {})
                state.objects[segmentID] = ObjectSnapshot(applied, known.masks, known.propagated)
        return state

    # Undo ---------------------------------------------------------------------------------------------------

    def detectUndo(self) -> list[UndoState]:
        """Return the states of segments that Slicer's undo or redo has restored; mostly none."""
        self.close()
        found = self._history.reconcile()
        states = [step.payloadBefore if what == UNDONE else step.payloadAfter for step, what in found]
        for state in states:
            for segmentID, snapshot in state.prompts.items():
                self._current[segmentID] = state.of(segmentID)
                self._snapshots[segmentID] = snapshot
        if found:
            done = [step for step in self._history.steps if step.done]
            self._newest = done[-1] if done else None
        return states

    def hardened(self, matrix: NDArray[np.float64]) -> None:
        """Follow the segmentation's own RAS, in which prompts are kept, through a transform (4, 4).

        Slicer's undo would restore voxels without the transform: earlier steps are out of reach.
        """
        self._history.clear()
        self._newest = None
        for state in self._current.values():
            state.prompts = {one: _transformed(prompts, matrix) for one, prompts in state.prompts.items()}
        self._snapshots = {one: _transformed(prompts, matrix) for one, prompts in self._snapshots.items()}

    def _lastState(self, segmentID: str) -> UndoState:
        state = UndoState()
        known = self._current.get(segmentID)
        state.prompts[segmentID] = known.prompts[segmentID] if known else ()
        isSame = known is not None and known.session is self._session.requested
        state.objects[segmentID] = known.objects[segmentID] if isSame else None
        return state


def _transformed(snapshot: Any, matrix: NDArray[np.float64]) -> Any:
    return tuple(state.transformed(matrix) for state in snapshot)
