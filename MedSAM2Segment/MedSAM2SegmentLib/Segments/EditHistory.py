"""Which of our edits stand: Slicer's undo is detected by comparing voxels.

Slicer has no event for undo, and an effect cannot read its history. But undo restores exactly what was there
before a step: so each step keeps what it changed, and when somebody else changed the segmentation, the
segments are compared with that. A few sampled voxels are compared first; before a step is taken for undone,
all that it changed are compared. A user who removes by hand all that a step added has undone it, too: nothing
distinguishes the two.

A stroke may also cover all that a step changed, and more; or several undos may come at once, and a stroke of
the user's with them. Then the step is undone, but whose the voxels are does not go back: that is done only
where what the step left alone, one voxel around, is as it was.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, PackedVoxels, VoxelList, Voxels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.SegmentWriter import Change, SegmentWriter

UNDONE, REDONE = "undone", "redone"
BEFORE, AFTER = 0, 1
_STEPS = 20  # Slicer's Segment Editor goes back ten states
_BYTES = 512 << 20
_SAMPLES = 256  # voxels of each segment that are compared before anything is unpacked


class EditHistory:
    """Records what each step changed, and detects by comparison which steps Slicer has undone or redone.

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
        self._atBegin: dict[int, SampleValues] = {}
        self.steps: list[Step] = []
        writer.written.append(self._record)

    @property
    def position(self) -> int:
        """How many steps stand."""
        return sum(step.done for step in self.steps)

    # Recording ----------------------------------------------------------------------------------------------

    def begin(self, payloadBefore: Any) -> None:
        """Open a step; one that is still open is closed with the payload it began with."""
        if self._open is not None:
            self.end(self._open.payloadBefore)
        self._open = Step(payloadBefore)
        self._atBegin = {step.number: step.read(self._writer) for step in self.steps}

    def addCreated(self, segmentIDs: Iterable[str]) -> None:
        """Record segments that the open step has created: they are gone when it is undone."""
        if self._open is not None:
            self._open.created |= set(segmentIDs)

    def end(self, payloadAfter: Any) -> Step | None:
        """Close the step; None when it changed no voxel, and Slicer cannot undo it."""
        step, self._open = self._open, None
        if step is None or step.isEmpty:
            return None
        step.payloadAfter = payloadAfter
        # Slicer, too, drops what could be redone as soon as something else is done.
        self.steps = [*(one for one in self.steps if one.done), step]
        while len(self.steps) > self._limit or (len(self.steps) > 1 and self.bytes > self._limitBytes):
            del self.steps[0]
        return step

    def clear(self) -> None:
        """Remove all steps, as when the scene is closed."""
        self.steps, self._open = [], None

    @property
    def bytes(self) -> int:
        """Memory of all steps, packed."""
        return sum(step.bytes for step in self.steps)

    def _record(self, changes: list[Change]) -> None:
        if self._open is None:
            return
        self._open.record(changes, self._writer)
        # At once: when the step is closed, Slicer may have undone it already.
        values = {step.number: (self._atBegin[step.number], step.read(self._writer)) for step in self.steps}
        values[self._open.number] = self._open.sampledBefore, self._open.read(self._writer)
        self._open.values = values

    # Detecting ----------------------------------------------------------------------------------------------

    def reconcile(self) -> list[tuple[Step, str]]:
        """Return what Slicer undid or redid since the last call; to be called when somebody else edited.

        The ownership of voxels is brought up to date: with the steps; or, when nothing was undone, or in
        doubt, with the user's edit.

        Returns
        -------
        found
            Steps with ``UNDONE``, the latest first, or with ``REDONE``, the earliest first. A step that is
            still open is closed before, with the payload it began with.
        """
        if self._open is not None:
            self.end(self._open.payloadBefore)
        standing = self.position
        position = self._positionNow(standing)
        found = [(step, UNDONE) for step in reversed(self.steps[position:standing])]
        found += [(step, REDONE) for step in self.steps[standing:position]]
        for step, what in found:
            step.done = what == REDONE
        if found and self._isExact([step for step, _ in found]):
            for step, _ in found:
                step.restoreBits(AFTER if step.done else BEFORE, self._writer)
        else:
            self._writer.updateOwnership()
        return found

    def _isExact(self, steps: list[Step]) -> bool:
        """Whether nothing but steps was undone, the latest first, or redone, as far as they can tell."""
        nearest = steps[-1]
        if nearest.done:
            return _areAll(steps, AFTER, self._writer, nearest)
        return _areAll(steps[::-1], BEFORE, self._writer, nearest)

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

    def _mismatches(self, position: int, now: dict[int, SampleValues]) -> int:
        """How many samples differ from what they were when so many steps stood."""
        counts = []
        if position < len(self.steps):
            following = self.steps[position]
            counts.append(sum(_differing(now, one, following, BEFORE) for one in self.steps[: position + 1]))
        if position > 0:
            previous = self.steps[position - 1]
            count = sum(_differing(now, step, previous, AFTER) for step in self.steps[:position])
            if position < len(self.steps):
                count += _differing(now, self.steps[position], self.steps[position], BEFORE)
            counts.append(count)
        return min(counts)

    def _isAt(self, position: int, standing: int, now: dict[int, SampleValues]) -> bool:
        """Whether all steps between two positions are undone, or redone."""
        if position < standing:
            changed, which, nearest = self.steps[position:standing], BEFORE, self.steps[position]
        else:
            changed, which, nearest = self.steps[standing:position], AFTER, self.steps[position - 1]
        return not _differing(now, nearest, nearest, which) and _areAll(changed, which, self._writer)

    # Reverting ----------------------------------------------------------------------------------------------

    def revert(self, steps: list[Step]) -> None:
        """Revert what steps changed, and nobody changed after them, as one further edit.

        Goes through Slicer's edit functions in a step of Slicer's undo that begins with it; recorded in the
        open step.
        """
        self._writer.beginStep()
        for patch in [patch for step in reversed(steps) for patch in reversed(step.patches)]:
            masks = patch.mask(BEFORE), patch.mask(AFTER)
            self._writer.revert(patch.segmentID, patch.indexToRAS, patch.voxels, masks, patch.bits(BEFORE))


class Patch:
    """What one edit changed in one segment, packed.

    Attributes
    ----------
    segmentID, indexToRAS
        The segment, and the grid (4, 4) of the voxels.
    box
        Extent around the voxels that changed.
    """

    def __init__(self, change: Change, writer: SegmentWriter) -> None:
        self.segmentID, self.indexToRAS = change.segmentID, change.indexToRAS
        voxels, index = change.voxels.subset(change.before != change.after)
        self.box = voxels.extent
        before, after = change.before[index], change.after[index]
        around = voxels.grown() if isinstance(voxels, Extent) and not voxels.isEmpty else voxels
        surroundings = None if around is voxels else writer.maskOf(self.segmentID, around, self.indexToRAS)
        if surroundings is not None:
            inner = voxels.within(around)
            before, after = (_filled(surroundings, inner, values) for values in (before, after))
            voxels = around
        self._masks = PackedVoxels(voxels, before, after)
        self._bits: PackedVoxels | None = None
        if change.bitsBefore is not None and change.bitsAfter is not None:
            changed, index = change.voxels.subset(change.bitsBefore != change.bitsAfter)
            self._bits = PackedVoxels(changed, change.bitsBefore[index], change.bitsAfter[index])

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return sum(one.bytes for one in (self._masks, self._bits) if one is not None)

    @property
    def isEmpty(self) -> bool:
        """Whether no voxel changed, as when Slicer's masking refused everything."""
        return self.box.isEmpty

    @property
    def voxels(self) -> Voxels:
        """All voxels that changed, and of a box those around them."""
        return self._masks.voxels

    def mask(self, which: int) -> NDArray[np.bool_]:
        """Return whether the voxels were in the segment ``BEFORE`` or ``AFTER``."""
        return self._masks.values(which)

    def bits(self, which: int) -> tuple[Voxels, NDArray[np.uint8]] | None:
        """Return voxels and their ownership bits ``BEFORE`` or ``AFTER``; None for a segment without bits."""
        return None if self._bits is None else (self._bits.voxels, self._bits.values(which))


@dataclass
class Samples:
    """Some of the voxels that a step changed in one segment, and whether they were in it before."""

    segmentID: str
    indexToRAS: NDArray[np.float64]
    voxels: VoxelList = field(default_factory=lambda: VoxelList(np.zeros((0, 3), dtype=np.int64)))
    before: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def read(self, writer: SegmentWriter) -> NDArray[np.bool_] | None:
        """Return whether they are in the segment now; None when the segment is gone."""
        return writer.maskOf(self.segmentID, self.voxels, self.indexToRAS)


#: Values of the samples of a step, by segment; None where a segment is gone.
SampleValues = list["NDArray[np.bool_] | None"]


@dataclass(eq=False)
class Step:
    """One action of the user that changed segments.

    Attributes
    ----------
    payloadBefore, payloadAfter
        What the caller wants back when the step is undone or redone.
    done
        Whether the step stands.
    samples
        Of the voxels it changed, by segment and grid.
    values
        By the number of each earlier step, and of this one: values of its samples before and after this one.
    created
        Segments that were not there before it.
    """

    payloadBefore: Any
    payloadAfter: Any = None
    done: bool = True
    patches: list[Patch] = field(default_factory=list)
    samples: dict[tuple[str, bytes], Samples] = field(default_factory=dict)
    values: dict[int, tuple[SampleValues, SampleValues]] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def bytes(self) -> int:
        """Memory it takes, packed."""
        return sum(patch.bytes for patch in self.patches)

    @property
    def isEmpty(self) -> bool:
        """Whether it changed no voxel."""
        return all(patch.isEmpty for patch in self.patches)

    def record(self, changes: Iterable[Change], writer: SegmentWriter) -> None:
        """Add changes."""
        for change in changes:
            if not np.array_equal(change.before, change.after):
                self._sample(change)
            self.patches.append(Patch(change, writer))

    def restoreBits(self, which: int, writer: SegmentWriter) -> None:
        """Restore the ownership bits from before or after the step."""
        for patch in self.patches if which == AFTER else reversed(self.patches):
            bits = patch.bits(which)
            if bits is not None:
                writer.restoreBits(patch.segmentID, *bits)

    def read(self, writer: SegmentWriter) -> SampleValues:
        """Return the values of its samples now."""
        return [samples.read(writer) for samples in self.samples.values()]

    @property
    def sampledBefore(self) -> SampleValues:
        """Values of its samples before it."""
        return [None if one.segmentID in self.created else one.before for one in self.samples.values()]

    def _sample(self, change: Change) -> None:
        changed = np.flatnonzero(change.before != change.after)
        grid = change.segmentID, change.indexToRAS.tobytes()
        known = self.samples.setdefault(grid, Samples(change.segmentID, change.indexToRAS))
        # A long step is sampled thinner and thinner, but never not at all.
        room = max(_SAMPLES - len(known.before), 8)
        chosen = changed[np.unique(np.linspace(0, len(changed) - 1, min(len(changed), room)).astype(int))]
        mask = np.zeros(change.before.size, dtype=bool)
        mask[chosen] = True
        mask = mask.reshape(change.before.shape)
        ijk, before = change.voxels.positions(mask), change.before[mask]
        for patch in self.patches:  # only the first change of a voxel has its state before the step
            if patch.segmentID == change.segmentID:
                low, high = patch.box[::2], patch.box[1::2]
                first = ~((ijk >= low) & (ijk <= high)).all(axis=1)
                ijk, before = ijk[first], before[first]
        known.voxels = VoxelList(np.concatenate([known.voxels.ijk, ijk]))
        known.before = np.concatenate([known.before, before])


def _differing(now: dict[int, SampleValues], step: Step, at: Step, which: int) -> int:
    """How many samples of ``step`` are not as ``at`` had them, before or after it.

    A segment that is gone counts as one where it was there, and the other way round.
    """
    known = at.values.get(step.number)
    if known is None:
        return 0
    count = 0
    for current, expected in zip(now[step.number], known[which], strict=True):
        if current is not None and expected is not None:
            count += int(np.count_nonzero(current != expected))
        elif (current is None) != (expected is None):
            count += 1
    return count


def _filled(
    surroundings: NDArray[np.bool_], inner: tuple[slice, slice, slice], values: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return a copy of a mask with other values inside."""
    filled = surroundings.copy()
    filled[inner] = values
    return filled


def _areAll(steps: list[Step], which: int, writer: SegmentWriter, nearest: Step | None = None) -> bool:
    """Whether every voxel that steps changed is as it was before the first of them, or after the last.

    Parameters
    ----------
    which
        ``BEFORE`` or ``AFTER``.
    nearest
        The first or last of them, to compare also what it left alone, as far as it knows it. Around the
        others the user may have edited in between.
    """
    created = {segmentID for step in steps for segmentID in step.created} if which == BEFORE else set()
    groups: dict[tuple[str, bytes], list[Patch]] = {}
    exact = set() if nearest is None else {id(patch) for patch in nearest.patches}
    for patch in [patch for step in steps for patch in step.patches if not patch.isEmpty]:
        grid = np.round(patch.indexToRAS, 9).tobytes()
        groups.setdefault((patch.segmentID, grid), []).append(patch)
    for (segmentID, _), patches in groups.items():
        box = NOWHERE
        for patch in patches:
            box = box.union(patch.voxels.extent)
        current = writer.maskOf(segmentID, box, patches[0].indexToRAS)
        if (current is None) != (segmentID in created):
            return False
        if current is None:
            continue
        # What was there before the earliest change counts, or after the latest: that one is put last.
        expected_kji = np.zeros(box.shape, dtype=np.uint8)  # 0 anything, 1 not in the segment, 2 in it
        for patch in patches if which == AFTER else reversed(patches):
            mask, voxels = patch.mask(which), patch.voxels
            values = voxels.read(expected_kji, box)
            isKnown = True if id(patch) in exact else mask != patch.mask(1 - which)
            voxels.write(np.where(isKnown, 1 + mask, values), expected_kji, box)
        if ((expected_kji == 1) & current).any() or ((expected_kji == 2) & ~current).any():
            return False
    return True
