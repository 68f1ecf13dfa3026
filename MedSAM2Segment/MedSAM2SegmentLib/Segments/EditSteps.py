"""One action of the user that changed segments, packed: enough to see later whether it still stands."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, VoxelList, Voxels, packedBits, unpackedBits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter

BEFORE, AFTER = 0, 1

_SAMPLES = 256  # voxels of each segment that are looked at before anything is unpacked


@dataclass
class Change:
    """What one edit changed in one segment.

    Attributes
    ----------
    segmentID, voxels
        Where, on the grid ``indexToRAS`` (4, 4).
    before, after
        Masks, as arrays of the voxels' shape.
    notesBefore, notesAfter
        The writer's notes, likewise; None for a segment it never wrote to.
    """

    segmentID: str
    voxels: Voxels
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    notesBefore: NDArray[np.uint8] | None = None
    notesAfter: NDArray[np.uint8] | None = None
    indexToRAS: NDArray[np.float64] | None = None


class Patch:
    """A change of one segment, packed.

    Attributes
    ----------
    segmentID, indexToRAS
        Where: the segment, and the grid (4, 4) of the voxels.
    box
        Extent around the voxels that changed.
    """

    def __init__(self, change: Change) -> None:
        self.segmentID, self.indexToRAS = change.segmentID, change.indexToRAS
        voxels, index = change.voxels.subset(change.before != change.after)
        self.box = voxels.extent
        self._voxels = voxels.packed()
        self._bits = packedBits(change.before[index]), packedBits(change.after[index])
        self._notes: tuple[Any, ...] | None = None
        if change.notesBefore is not None and change.notesAfter is not None:
            noted, index = change.voxels.subset(change.notesBefore != change.notesAfter)
            notes = change.notesBefore[index], change.notesAfter[index]
            self._notes = noted.packed(), *(zlib.compress(bits.tobytes(), 1) for bits in notes)

    @property
    def bytes(self) -> int:
        """What it holds."""
        parts = [self._voxels.bytes, *map(len, self._bits)]
        if self._notes is not None:
            parts += [self._notes[0].bytes, len(self._notes[1]), len(self._notes[2])]
        return sum(parts)

    @property
    def isEmpty(self) -> bool:
        """Whether no voxel changed, as when Slicer's masks refused everything."""
        return self.box.isEmpty

    @property
    def voxels(self) -> Voxels:
        """All voxels that changed, and perhaps others in the same box."""
        return self._voxels.unpacked()

    def mask(self, which: int) -> NDArray[np.bool_]:
        """Whether the voxels were in the segment ``BEFORE`` or ``AFTER``."""
        return unpackedBits(self._bits[which], self.voxels.shape)

    def notes(self, which: int) -> tuple[Voxels, NDArray[np.uint8]] | None:
        """Voxels and the writer's notes about them ``BEFORE`` or ``AFTER``; None for a segment not ours."""
        if self._notes is None:
            return None
        voxels = self._notes[0].unpacked()
        bits = np.frombuffer(zlib.decompress(self._notes[1 + which]), np.uint8)
        return voxels, bits.reshape(voxels.shape)


@dataclass
class Samples:
    """Some of the voxels that a step changed in one segment, and how they were before it."""

    segmentID: str
    indexToRAS: NDArray[np.float64]
    voxels: VoxelList
    before: NDArray[np.bool_]

    def read(self, writer: SegmentWriter) -> NDArray[np.bool_] | None:
        """How they stand now; None when the segment is gone."""
        return writer.maskOf(self.segmentID, self.voxels, self.indexToRAS)


@dataclass(eq=False)
class Step:
    """One action of the user that changed segments.

    Attributes
    ----------
    payloadBefore, payloadAfter
        What the caller wants back when the step is undone or redone.
    done
        Whether the step stands.
    patches
        What it changed, in order.
    samples
        Of the voxels it changed.
    witnesses
        By the number of each earlier step, and of this one: how its samples stood before and after this one.
    created
        Segments that were not there before it.
    number
        Its own.
    """

    payloadBefore: Any
    payloadAfter: Any = None
    done: bool = True
    patches: list[Patch] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    witnesses: dict[int, tuple[Sampled, Sampled]] = field(default_factory=dict)
    created: set[str] = field(default_factory=set)
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def bytes(self) -> int:
        """What it holds, packed."""
        return sum(patch.bytes for patch in self.patches)

    @property
    def isEmpty(self) -> bool:
        """Whether it changed no voxel."""
        return all(patch.isEmpty for patch in self.patches)

    def record(self, changes: Iterable[Change]) -> None:
        """Add changes."""
        for change in changes:
            if not np.array_equal(change.before, change.after):
                self._sample(change)
            self.patches.append(Patch(change))

    def restoreNotes(self, which: int, writer: SegmentWriter) -> None:
        """Make the writer's notes what they were before or after the step."""
        for patch in self.patches if which == AFTER else reversed(self.patches):
            notes = patch.notes(which)
            if notes is not None:
                writer.restoreNotes(patch.segmentID, *notes)

    def read(self, writer: SegmentWriter) -> Sampled:
        """How its samples stand now."""
        return [samples.read(writer) for samples in self.samples]

    @property
    def sampledBefore(self) -> Sampled:
        """How its samples stood before it."""
        return [None if one.segmentID in self.created else one.before for one in self.samples]

    def _sample(self, change: Change) -> None:
        changed = np.flatnonzero(change.before != change.after)
        known = self._samplesOf(change)
        # A long step is sampled thinner and thinner, but never not at all.
        room = max(_SAMPLES - len(known.before), 8)
        chosen = changed[np.unique(np.linspace(0, len(changed) - 1, min(len(changed), room)).astype(int))]
        mask = np.zeros(change.before.size, dtype=bool)
        mask[chosen] = True
        mask = mask.reshape(change.before.shape)
        ijk, before = change.voxels.positions(mask), change.before[mask]
        for patch in self.patches:  # how a voxel was before the step, only its first change knows
            if patch.segmentID == change.segmentID:
                low, high = patch.box[::2], patch.box[1::2]
                first = ~((ijk >= low) & (ijk <= high)).all(axis=1)
                ijk, before = ijk[first], before[first]
        known.voxels = VoxelList(np.concatenate([known.voxels.ijk, ijk]))
        known.before = np.concatenate([known.before, before])

    def _samplesOf(self, change: Change) -> Samples:
        for samples in self.samples:
            if samples.segmentID == change.segmentID and np.array_equal(
                samples.indexToRAS, change.indexToRAS
            ):
                return samples
        none = VoxelList(np.zeros((0, 3), dtype=np.int64))
        self.samples.append(Samples(change.segmentID, change.indexToRAS, none, np.zeros(0, dtype=bool)))
        return self.samples[-1]


#: How the samples of a step stand; None where a segment is gone.
Sampled = list["NDArray[np.bool_] | None"]


def mismatches(sampled: Sampled, expected: Sampled | None) -> int:
    """How many samples are not as expected; those of a segment that is gone never are."""
    if expected is None:
        return 0
    count = 0
    for now, then in zip(sampled, expected, strict=True):
        if now is not None and then is not None:
            count += int(np.count_nonzero(now != then))
        elif (now is None) != (then is None):
            count += 1
    return count


def stands(steps: list[Step], which: int, writer: SegmentWriter) -> bool:
    """Whether every voxel that steps changed is as it was before the first of them, or after the last.

    Parameters
    ----------
    steps
        In the order in which they were done.
    which
        ``BEFORE`` or ``AFTER``.
    """
    created = {segmentID for step in steps for segmentID in step.created} if which == BEFORE else set()
    groups: dict[tuple[str, bytes], list[Patch]] = {}
    for patch in [patch for step in steps for patch in step.patches if not patch.isEmpty]:
        grid = np.round(patch.indexToRAS, 9).tobytes()
        groups.setdefault((patch.segmentID, grid), []).append(patch)
    for (segmentID, _), patches in groups.items():
        box = NOWHERE
        for patch in patches:
            box = box.union(patch.box)
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
            voxels.write(np.where(mask != patch.mask(1 - which), 1 + mask, values), expected_kji, box)
        if ((expected_kji == 1) & current).any() or ((expected_kji == 2) & ~current).any():
            return False
    return True
