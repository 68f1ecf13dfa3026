"""Which of our edits stand: undo is Slicer's, and this finds out about it.

Slicer tells nobody that its user pressed undo, and an effect cannot look into its history. But undo brings
back exactly what was there before a step: so each step keeps what it changed, and when somebody else changed
the segmentation, the segments are compared with that. A few voxels are looked at first; before a step is
called undone, all that it changed are compared. A user who takes away by hand all that a step added has
undone it, too: nothing distinguishes the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from MedSAM2SegmentLib.Segments.EditSteps import AFTER, BEFORE, Sampled, Step, mismatches, stands

if TYPE_CHECKING:
    from collections.abc import Iterable

    from MedSAM2SegmentLib.Segments.EditSteps import Change
    from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter

UNDONE, REDONE = "undone", "redone"
_STEPS = 20  # Slicer's Segment Editor goes back ten states
_BYTES = 512 << 20


class EditLedger:
    """Remembers what each step changed, and tells by comparison which steps Slicer has undone or redone.

    Parameters
    ----------
    writer : SegmentWriter
        Its changes are recorded while a step is open.
    limit, limitBytes
        How many steps, and how much memory, are kept at most; at least as many as Slicer can undo.

    Attributes
    ----------
    steps : list of Step
        In the order in which they were done; those that are undone are the last ones.
    """

    def __init__(self, writer: SegmentWriter, limit: int = _STEPS, limitBytes: int = _BYTES) -> None:
        self._writer = writer
        self._limit, self._limitBytes = limit, limitBytes
        self._open: Step | None = None
        self._atBegin: dict[int, Sampled] = {}
        self._key = ""
        self.steps: list[Step] = []
        writer.written.append(self.written)

    @property
    def position(self) -> int:
        """How many steps stand."""
        return sum(step.done for step in self.steps)

    # Recording ----------------------------------------------------------------------------------------------

    def begin(self, payloadBefore: Any) -> None:
        """Open a step; one that is still open is closed with the payload it began with."""
        if self._open is not None:
            self.end(self._open.payloadBefore)
        self._checkSegmentation()
        self._open = Step(payloadBefore)
        self._atBegin = {step.number: step.read(self._writer) for step in self.steps}

    def created(self, segmentIDs: Iterable[str]) -> None:
        """Segments that the open step has made: they are gone when it is undone."""
        if self._open is not None:
            self._open.created |= set(segmentIDs)

    @property
    def createdNow(self) -> set[str]:
        """Segments that the open step has made."""
        return self._open.created if self._open is not None else set()

    def written(self, changes: list[Change]) -> None:
        """Record changes of the open step; the writer calls this."""
        if self._open is not None:
            self._open.record(changes)
            # Noted at once: when the step is closed, Slicer may have undone it already.
            self._open.witnesses = {
                step.number: (self._atBegin[step.number], step.read(self._writer)) for step in self.steps
            }
            before = self._open.sampledBefore
            self._open.witnesses[self._open.number] = before, self._open.read(self._writer)

    def end(self, payloadAfter: Any) -> Step | None:
        """Close the step; None when it changed no voxel: there is nothing then that Slicer could undo."""
        step, self._open = self._open, None
        if step is None or step.isEmpty:
            return None
        step.payloadAfter = payloadAfter
        # Slicer, too, forgets what could be redone as soon as something else is done.
        self.steps = [*(one for one in self.steps if one.done), step]
        while len(self.steps) > self._limit or (len(self.steps) > 1 and self.bytes > self._limitBytes):
            del self.steps[0]
        return step

    def clear(self) -> None:
        """Forget all steps, as when the scene is closed."""
        self.steps, self._open = [], None

    @property
    def bytes(self) -> int:
        """What all steps hold, packed."""
        return sum(step.bytes for step in self.steps)

    # Finding out --------------------------------------------------------------------------------------------

    def reconcile(self) -> list[tuple[Step, str]]:
        """What Slicer undid or redid since the last call.

        To be called when somebody else changed the segmentation. The writer's notes follow; when nothing was
        undone, what changed is the user's own doing, and the writer takes a look at it.

        Returns
        -------
        found
            Steps with ``UNDONE``, the latest first, or with ``REDONE``, the earliest first. A step that is
            still open may be among those undone: it is closed then, without a payload for redo.
        """
        self._checkSegmentation()
        opened, steps = self._open, self.steps
        if opened is not None and not opened.isEmpty:
            self.end(None)
        standing = self.position
        position = self._positionNow(standing)
        if opened is not None and not opened.isEmpty and position >= standing:  # it goes on
            self.steps, self._open = steps, opened
            standing = position = self.position
        found = [(step, UNDONE) for step in reversed(self.steps[position:standing])]
        found += [(step, REDONE) for step in self.steps[standing:position]]
        for step, what in found:
            step.done = what == REDONE
            step.restoreNotes(AFTER if step.done else BEFORE, self._writer)
        if not found:
            self._writer.look()
        return found

    def _positionNow(self, standing: int) -> int:
        """How many steps stand, judged by the segments."""
        if not self.steps:
            return standing
        now = {step.number: step.read(self._writer) for step in self.steps}
        wrong = [self._mismatches(position, now) for position in range(len(self.steps) + 1)]
        if wrong[standing] == 0:
            return standing
        candidates = [position for position in range(len(wrong)) if position != standing]
        for position in sorted(candidates, key=lambda one: (wrong[one], abs(one - standing))):
            if self._isAt(position, standing, now):
                return position
        return standing

    def _mismatches(self, position: int, now: dict[int, Sampled]) -> int:
        """How many samples are not as they were when so many steps stood."""
        counts = []
        if position < len(self.steps):
            following = self.steps[position].witnesses
            known = [*self.steps[: position + 1]]
            counts.append(sum(_missed(now, step, following, BEFORE) for step in known))
        if position > 0:
            previous = self.steps[position - 1].witnesses
            count = sum(_missed(now, step, previous, AFTER) for step in self.steps[:position])
            if position < len(self.steps):
                count += _missed(now, self.steps[position], self.steps[position].witnesses, BEFORE)
            counts.append(count)
        return min(counts)

    def _isAt(self, position: int, standing: int, now: dict[int, Sampled]) -> bool:
        """Whether all steps between two positions are undone, or redone."""
        if position < standing:
            changed, which, nearest = self.steps[position:standing], BEFORE, self.steps[position]
        else:
            changed, which, nearest = self.steps[standing:position], AFTER, self.steps[position - 1]
        if _missed(now, nearest, nearest.witnesses, which):
            return False
        return stands(changed, which, self._writer)

    def _checkSegmentation(self) -> None:
        """With another segmentation Slicer's history begins anew, and so does this."""
        key = self._writer.segmentationKey()
        if key != self._key:
            self.clear()
            self._key = key

    # Taking back --------------------------------------------------------------------------------------------

    def revert(self, steps: list[Step]) -> None:
        """Make what steps changed, and nobody changed after them, what it was before, as one further edit.

        Goes through Slicer's edit functions in a step of Slicer's undo that begins with it; recorded in the
        open step of the ledger.
        """
        self._writer.beginStep()
        for patch in [patch for step in reversed(steps) for patch in reversed(step.patches)]:
            self._writer.revert(patch)


def _missed(now: dict[int, Sampled], step: Step, witnesses: dict[int, Any], which: int) -> int:
    known = witnesses.get(step.number)
    return 0 if known is None else mismatches(now[step.number], known[which])
