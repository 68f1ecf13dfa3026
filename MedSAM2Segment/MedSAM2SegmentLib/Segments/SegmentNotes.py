"""What is known about the voxels of a segment: which are ours, and which the user has taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, PackedList, VoxelList, Voxels, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: Put there by us, and there when last looked.
OURS = 1
#: Wanted by us and there when last looked: if it is missing now, somebody took it away.
KNOWN = 2
#: Taken away by the user: not ours to put back.
ERASED = 4
#: With ERASED: it was ours before.
WAS_OURS = 8
#: All there are.
NOTED_BITS = OURS | KNOWN | ERASED | WAS_OURS

_KNOWN_BIT, _ERASED_BIT = 1, 2
_ERASURES = 10  # as many as Slicer's undo goes back
_LARGEST_ERASURE = 1 << 21  # voxels


class SegmentNotes:
    """Notes about the voxels of one segment, as bits.

    Parameters
    ----------
    indexToRAS : (4, 4)
        The grid of the segmentation.
    extent : Extent
        Its voxels. Memory is taken only where something is noted.
    """

    def __init__(self, indexToRAS: NDArray[np.float64], extent: Extent) -> None:
        self.indexToRAS, self.extent = indexToRAS, extent
        self.used = NOWHERE  # a box around everything that is noted
        self.seen: object = None  # which state of the segment was looked at last
        self.stamp = 0  # grows with every change
        self._bits = np.zeros(extent.shape, dtype=np.uint8)
        self._erasures: list[PackedList] = []

    def onGrid(self, indexToRAS: NDArray[np.float64], extent: Extent) -> SegmentNotes:
        """The same notes on another grid; itself when it is the same one."""
        same = np.allclose(indexToRAS, self.indexToRAS, rtol=0, atol=1e-9)
        if same and extent == self.extent:
            return self
        moved = SegmentNotes(indexToRAS, extent)
        if self.used.isEmpty:
            return moved
        if same:
            shared = self.used.intersection(extent)
        else:
            toOld = np.linalg.inv(self.indexToRAS) @ indexToRAS
            corners = self.used.corners() @ np.linalg.inv(toOld)[:3, :3].T + np.linalg.inv(toOld)[:3, 3]
            first, last = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
            shared = Extent.between(first, last).intersection(extent)
        if not shared.isEmpty:
            old = self.read(shared) if same else nearest(self._bits, self.extent, toOld, shared)
            moved.write(shared, old)
        return moved

    def read(self, voxels: Voxels) -> NDArray[np.uint8]:
        """The bits of voxels; for a box not a copy."""
        return voxels.read(self._bits, self.extent)

    def write(self, voxels: Voxels, bits: NDArray[np.uint8]) -> None:
        """Replace the bits of voxels."""
        voxels.write(bits, self._bits, self.extent)
        self.used = self.used.union(voxels.extent)
        self.stamp += 1

    def looked(self, voxels: Voxels, current: NDArray[np.bool_], *, isAll: bool = False) -> NDArray[np.uint8]:
        """The bits of voxels once it is seen which of them are in the segment now; a copy.

        What was known and is missing was erased by the user; what was erased and is back was painted by the
        user. Only where all voxels are looked at can it be told that an erasure was undone: then exactly its
        voxels are back, and all is as before.
        """
        bits = self.read(voxels).copy()
        if not bits.any():
            return bits
        there = current.view(np.uint8)
        gone = _bit(bits, KNOWN) & ~there
        back = _bit(bits, ERASED) & there
        if isAll and back.any():
            back = self._undoErasure(voxels, bits, back)
        if isAll and gone.any():
            self._noteErasure(voxels, gone)
        was = gone & _bit(bits, OURS)
        bits &= 255 - back * np.uint8(255)
        bits &= there * np.uint8(255) | np.uint8(ERASED | WAS_OURS)
        bits |= gone * np.uint8(ERASED)
        bits |= was * np.uint8(WAS_OURS)
        return bits

    def look(self, maskOf: Callable[[Extent], NDArray[np.bool_]]) -> None:
        """See the segment as it stands at all noted voxels: somebody else changed it.

        ``maskOf`` gives the segment in a box.
        """
        news = [plane for plane in self.used.planes() if self._isNew(plane, maskOf(plane))]
        if news:
            box = self.used._replace(k0=news[0].k0, k1=news[-1].k1)
            self.write(box, self.looked(box, maskOf(box), isAll=True))

    def _isNew(self, plane: Extent, current: NDArray[np.bool_]) -> bool:
        """Whether something was erased, or what was erased is back; a plane at a time stays in the cache."""
        bits, there = self.read(plane), current.view(np.uint8)
        return bool(((bits >> _KNOWN_BIT) & ~there & 1).any() or ((bits >> _ERASED_BIT) & there).any())

    def _noteErasure(self, voxels: Voxels, gone: NDArray[np.uint8]) -> None:
        if np.count_nonzero(gone) <= _LARGEST_ERASURE:
            packed = VoxelList(voxels.positions(gone.view(bool))).packed()
            self._erasures = [*self._erasures, packed][-_ERASURES:]

    def _undoErasure(
        self, voxels: Voxels, bits: NDArray[np.uint8], back: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """What came back by painting; what came back by undo of an erasure is put right in ``bits``."""
        positions = voxels.positions(back.view(bool))
        for erasure in reversed(self._erasures):
            if np.array_equal(erasure.unpacked().ijk, positions):
                ours = back & _bit(bits, WAS_OURS)
                bits &= 255 - back * np.uint8(ERASED | WAS_OURS)
                bits |= back * np.uint8(KNOWN) | ours * np.uint8(OURS)
                self._erasures.remove(erasure)
                return np.zeros_like(back)
        return back


def noted(
    bits: NDArray[np.uint8], add: NDArray[np.bool_], wanted: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The notes about voxels after an edit, from those before it.

    Parameters
    ----------
    add, wanted, after
        What was added, what the masks say, and what is in the segment now.
    """
    bits = bits & np.uint8(255 - KNOWN)
    bits |= add.view(np.uint8) * np.uint8(OURS)
    bits |= wanted.view(np.uint8) * np.uint8(KNOWN)
    bits &= after.view(np.uint8) * np.uint8(255) | np.uint8(ERASED | WAS_OURS)
    return bits


def _bit(bits: NDArray[np.uint8], which: int) -> NDArray[np.uint8]:
    """1 where a bit is set, else 0."""
    return (bits & which != 0).view(np.uint8)
