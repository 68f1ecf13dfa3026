"""One action of the user is one step of Slicer's undo; what belongs to a step besides voxels is kept here.

Undo is Slicer's own: it brings back voxels. The
:class:`~MedSAM2SegmentLib.Segments.EditLedger.EditLedger` finds out afterwards
which of our steps it took back, and prompts and session follow.

While slices are being filled in, a step stays open: what comes until it is closed belongs to it. A click in
the middle of a propagation is a step of its own; what the propagation finds afterwards is one to the ledger,
but not to Slicer, where it is undone together with the click.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.messages import ObjectRecord

from MedSAM2SegmentLib.Segments.EditLedger import UNDONE

if TYPE_CHECKING:
    import numpy as np
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace
    from MedSAM2SegmentLib.Segments.EditLedger import Step


@dataclass
class Memory:
    """What belongs to the voxels of some segments at one moment.

    Attributes
    ----------
    prompts
        By segment: a snapshot of its prompts.
    records
        By segment: all the session knows of it; None when there was no session.
    session
        The session that knew it: what another one knew cannot be told to it.
    owner
        What the step belongs to: a propagation, say.
    """

    prompts: dict[str, Any] = field(default_factory=dict)
    records: dict[str, ObjectRecord | None] = field(default_factory=dict)
    session: Any = None
    owner: Any = None


class Steps:
    """Writes masks as steps of Slicer's undo and follows Slicer when it takes steps back.

    Parameters
    ----------
    workplace
        Segmentation, writer, ledger and prompts.
    link
        The session.

    Attributes
    ----------
    settled
        By segment and slice, the words whose answers are in its voxels.
    wasAsked
        Whether the step that was opened last has asked for voxels to change, be it that they did not.
    """

    def __init__(self, workplace: Workplace, link: SessionLink) -> None:
        self._workplace, self._link = workplace, link
        workplace.onHardened = self.hardened
        self.settled: dict[str, dict[int, SlicePrompts]] = {}
        self.wasAsked = False
        self._prompts: dict[str, Any] = {}
        self._standing: dict[str, Memory] = {}
        self._open: set[str] | None = None
        self._before: Memory | None = None
        self._newest: Step | None = None
        self._isFirst = False

    def forget(self) -> None:
        """Another segmentation, or none: earlier steps are out of reach."""
        for known in (self.settled, self._prompts, self._standing):
            known.clear()
        self._open, self._before, self._newest = None, None, None

    # Writing ------------------------------------------------------------------------------------------------

    def begin(self, segmentIDs: Iterable[str], *, owner: Any = None, newUndo: bool = True) -> None:
        """Have a step open about these segments: the one of this owner if it is, else a new one.

        ``newUndo`` makes it a step of Slicer's undo, too; else it is undone together with the step before.
        """
        if self._open is None or owner is None or self._before.owner is not owner:
            self.close()
            self._open = set()
            self._before = Memory(session=self._link.opened, owner=owner)
            self._workplace.ledger.begin(self._before)
            self._isFirst, self.wasAsked = newUndo, False
        for segmentID in set(segmentIDs) - self._open:
            self._open.add(segmentID)
            self._add(self._before, self._remembered({segmentID}))

    def made(self, segmentIDs: Iterable[str]) -> None:
        """Segments that the open step has made: undo takes them away again."""
        self._workplace.ledger.created(segmentIDs)
        for segmentID in segmentIDs:
            self.settle(segmentID, (), {})

    def knows(self, segmentID: str) -> bool:
        """Whether it is known what belongs to the voxels of a segment."""
        return segmentID in self._standing

    def write(
        self,
        segmentID: str,
        masks: Mapping[int, NDArray[np.bool_]],
        stack: SliceStack,
        revived: Mapping[int, NDArray[np.bool_]] | None = None,
    ) -> bool:
        """Write into the open step (see ``SegmentWriter.write``); whether any voxel was asked to change."""
        newStep, self._isFirst = self._isFirst, False
        writer = self._workplace.writer
        with self._workplace.writing():
            isAsked = writer.write(segmentID, masks, stack, newStep=newStep, revived=revived)
        self.wasAsked |= isAsked
        return isAsked

    def close(self) -> Step | None:
        """Close the open step; None when none was open, or when it changed nothing.

        What changed without a voxel (a click inside the mask) is not in Slicer's undo: it joins the step
        before.
        """
        if self._open is None:
            return None
        segmentIDs, owner = self._open, self._before.owner
        self._open, self._before = None, None
        after = self.now(segmentIDs)
        after.owner = owner
        step = self._workplace.ledger.end(after)
        if step is not None:
            self._newest = step
        elif self._newest is not None and self._newest.done:
            self._add(self._newest.payloadAfter, after)
        for segmentID in segmentIDs:
            self._standing[segmentID] = _of(after, segmentID)
        return step

    def now(self, segmentIDs: Iterable[str]) -> Memory:
        """Prompts and records that belong to the voxels of segments at this moment.

        What was said and is not answered yet is left out.
        """
        session = self._link.session
        memory = Memory(session=self._link.opened)
        for segmentID in segmentIDs:
            memory.prompts[segmentID] = self._prompts.get(segmentID, ())
            memory.records[segmentID] = None
            if session is not None:
                known = session.snapshot(segmentID)
                words = self.settled.get(segmentID, {})
                memory.records[segmentID] = ObjectRecord(words, known.records, known.refined)
        return memory

    def settle(self, segmentID: str, prompts: Any, words: Mapping[int, SlicePrompts]) -> None:
        """The voxels of a segment show these prompts and, on these slices, these words."""
        settled = self.settled.setdefault(segmentID, {})
        settled.update(words)
        for n in [n for n, said in settled.items() if not said]:
            del settled[n]
        self._prompts[segmentID] = prompts
        if self._open is None or segmentID not in self._open:
            self._standing[segmentID] = self.now((segmentID,))

    def unsettle(self) -> None:
        """The voxels show what was said to another session: all has to be answered anew."""
        self.settled.clear()

    def hardened(self, matrix: NDArray[np.float64]) -> None:
        """The segmentation's own RAS, in which prompts are remembered, was taken through a transform (4, 4).

        Slicer's undo would bring voxels back to where they were without it: earlier steps are out of reach.
        """
        self._workplace.ledger.clear()
        self._newest = None
        for memory in self._standing.values():
            memory.prompts = {one: _moved(prompts, matrix) for one, prompts in memory.prompts.items()}
        self._prompts = {one: _moved(prompts, matrix) for one, prompts in self._prompts.items()}

    def remove(self, segmentID: str) -> None:
        """Nothing belongs to the voxels of a segment any more but themselves."""
        self.settled.pop(segmentID, None)
        self._prompts.pop(segmentID, None)

    # Undo ---------------------------------------------------------------------------------------------------

    def followed(self) -> list[Memory]:
        """What belongs to segments now that Slicer has undone or redone steps; mostly nothing."""
        self.close()
        found = self._workplace.ledger.reconcile()
        memories = [step.payloadBefore if what == UNDONE else step.payloadAfter for step, what in found]
        for memory in memories:
            for segmentID, prompts in memory.prompts.items():
                self._standing[segmentID] = _of(memory, segmentID)
                self._prompts[segmentID] = prompts
        if found:
            done = [step for step in self._workplace.ledger.steps if step.done]
            self._newest = done[-1] if done else None
        return memories

    def of(self, owner: Any) -> list[Step]:
        """The steps of an owner that stand."""
        ledger = self._workplace.ledger
        return [] if ledger is None else [s for s in ledger.steps if s.done and s.payloadAfter.owner is owner]

    def revert(self, steps: list[Step]) -> None:
        """Make what steps changed, and nobody changed after them, what it was; within the open step."""
        self._isFirst = False
        with self._workplace.writing():
            self._workplace.ledger.revert(steps)

    def _remembered(self, segmentIDs: Iterable[str]) -> Memory:
        memory = Memory(session=self._link.opened)
        for segmentID in segmentIDs:
            known = self._standing.get(segmentID)
            memory.prompts[segmentID] = known.prompts[segmentID] if known else ()
            fits = known is not None and known.session is self._link.opened
            memory.records[segmentID] = known.records[segmentID] if fits else None
        return memory

    @staticmethod
    def _add(memory: Memory, more: Memory) -> None:
        memory.prompts.update(more.prompts)
        memory.records.update(more.records)


def _moved(prompts: Any, matrix: NDArray[np.float64]) -> Any:
    return tuple(state.transformed(matrix) for state in prompts)


def _of(memory: Memory, segmentID: str) -> Memory:
    return Memory(
        {segmentID: memory.prompts[segmentID]}, {segmentID: memory.records[segmentID]}, memory.session
    )
