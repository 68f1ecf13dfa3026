"""Whose the voxels of a segment are: ours, or the user's.

The contract, which :class:`~MedSAM2SegmentLib.Segments.SegmentWriter.SegmentWriter` keeps by these bits:

1. What the user painted is not taken away: only voxels that we added (``OURS``) are ever removed.
2. What the user erased does not come back: a voxel that we wanted and that was there after we wrote
   (``KNOWN``) and is missing later, was erased (``ERASED``). It is not added again, however often the same
   slice is written, unless the user asks for it with a new prompt there.
3. Undo of an erasure is recognised: where exactly its voxels are back, and no other voxel of the segment has
   come or gone since, all is as before it. A voxel that is back otherwise was painted, and is the user's.
4. Slicer's undo takes back ours: bits go back with the voxels
   (:class:`~MedSAM2SegmentLib.Segments.EditHistory.EditHistory`).

In doubt a voxel is the user's: that takes nothing away. So it is after the undo of an erasure that had taken
voxels of the user's along with ours.

Voxels that the user paints over ours cannot be distinguished from them, and stay ours. An erased voxel that
was painted over is erased again when it goes, by the user's hand or by the undo of that stroke.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, PackedVoxels, VoxelList, Voxels, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Added by us, and there at the last check.
OURS = 1
#: Wanted by us, or painted over an erasure, and there at the last check: if it is missing now, it was erased.
KNOWN = 2
#: Erased by the user: not ours to add again.
ERASED = 4
#: With ERASED: it was ours before.
WAS_OURS = 8
#: All there are.
ALL_BITS = OURS | KNOWN | ERASED | WAS_OURS

#: Returns the segment in a box.
MaskOf = Callable[[Extent], "NDArray[np.bool_]"]

_KNOWN_BIT, _ERASED_BIT = 1, 2
_ERASURES = 10  # as many as Slicer's undo goes back
_LARGEST_ERASURE = 1 << 21  # voxels
_LARGEST = 1 << 30  # voxels of a stored box: more is damage
_MOST_RUNS = 1 << 26


class Erasure(NamedTuple):
    """What the user erased of what we wanted, and a digest of the segment after that."""

    erased: PackedVoxels
    digest: bytes


class VoxelOwnership:
    """Ownership of the voxels of one segment, as bits; see the module for the contract.

    Parameters
    ----------
    indexToRAS : (4, 4)
        The grid of the segmentation.
    extent : Extent
        Its voxels. Memory is used only where there are bits.
    """

    def __init__(self, indexToRAS: NDArray[np.float64], extent: Extent) -> None:
        self.indexToRAS, self.extent = indexToRAS, extent
        self.used = NOWHERE  # a box around all bits
        self.checked: object = None  # state of the segment at the last check
        self.stamp = 0  # grows with every change
        self._bits = np.zeros(extent.shape, dtype=np.uint8)
        self._erasures: list[Erasure] = []

    def onGrid(self, indexToRAS: NDArray[np.float64], extent: Extent) -> VoxelOwnership:
        """Return the same on another grid; itself when it is the same one."""
        same = np.allclose(indexToRAS, self.indexToRAS, rtol=0, atol=1e-9)
        if same and extent == self.extent:
            return self
        moved = VoxelOwnership(indexToRAS, extent)
        if self.used.isEmpty:
            return moved
        if same:
            shared = self.used.intersection(extent)
        else:
            toOld = np.linalg.inv(self.indexToRAS) @ indexToRAS
            shared = self.used.onLattice(np.linalg.inv(toOld)).intersection(extent)
        if not shared.isEmpty:
            old = self.read(shared) if same else nearest(self._bits, self.extent, toOld, shared)
            moved.write(shared, old)
        return moved

    def read(self, voxels: Voxels) -> NDArray[np.uint8]:
        """Return the bits of voxels; for a box not a copy."""
        return voxels.read(self._bits, self.extent)

    def write(self, voxels: Voxels, bits: NDArray[np.uint8]) -> None:
        """Replace the bits of voxels."""
        voxels.write(bits, self._bits, self.extent)
        self.used = self.used.union(voxels.extent)
        self.stamp += 1

    def bitsFor(
        self, voxels: Voxels, current: NDArray[np.bool_], *, isUndo: bool = False
    ) -> NDArray[np.uint8]:
        """Return the bits of voxels, brought up to date with which of them are in the segment now; a copy.

        Voxels that are back were painted; with ``isUndo`` it was their erasure that was undone.
        """
        bits = self.read(voxels).copy()
        if not bits.any():
            return bits
        there = current.view(np.uint8)
        erased = _bit(bits, KNOWN) & ~there
        back = _bit(bits, ERASED) & there
        ours = back & _bit(bits, WAS_OURS)
        were = erased & _bit(bits, OURS)
        bits &= 255 - back * np.uint8(255)
        bits |= back * np.uint8(KNOWN)  # also where painted: if it goes again, it is erased again
        bits &= there * np.uint8(255) | np.uint8(ERASED | WAS_OURS)
        bits |= erased * np.uint8(ERASED)
        bits |= were * np.uint8(WAS_OURS)
        if isUndo:
            bits |= ours * np.uint8(OURS)
        return bits

    def update(self, maskOf: MaskOf, filled: Extent) -> None:
        """Bring all bits up to date: somebody else changed the segment, which lies within ``filled``."""
        changed = [plane for plane in self.used.planes() if self._isChanged(plane, maskOf(plane))]
        if not changed:
            return
        box = self.used._replace(k0=changed[0].k0, k1=changed[-1].k1)
        there, bits = maskOf(box), self.read(box)
        erased = _bit(bits, KNOWN) & ~there.view(np.uint8)
        back = _bit(bits, ERASED) & there.view(np.uint8)
        isUndo = bool(back.any()) and self._undoErasure(box.positions(back.view(bool)), maskOf, filled)
        self.write(box, self.bitsFor(box, there, isUndo=isUndo))
        if 0 < np.count_nonzero(erased) <= _LARGEST_ERASURE:
            packed = PackedVoxels(VoxelList(box.positions(erased.view(bool))))
            self._erasures = [*self._erasures, Erasure(packed, self._digest(maskOf, filled))][-_ERASURES:]

    def _isChanged(self, plane: Extent, current: NDArray[np.bool_]) -> bool:
        """Whether something was erased, or is back; a plane at a time stays in the cache."""
        bits, there = self.read(plane), current.view(np.uint8)
        return bool(((bits >> _KNOWN_BIT) & ~there & 1).any() or ((bits >> _ERASED_BIT) & there).any())

    def _undoErasure(self, back_ijk: NDArray[np.int64], maskOf: MaskOf, filled: Extent) -> bool:
        """Whether voxels that are back are all of an erasure, and nothing else changed; forget it then."""
        for erasure in reversed(self._erasures):
            if np.array_equal(erasure.erased.voxels.positions(), back_ijk):
                if erasure.digest != self._digest(maskOf, filled):
                    return False
                self._erasures.remove(erasure)
                return True
        return False

    def _digest(self, maskOf: MaskOf, filled: Extent) -> bytes:
        """Return a digest of the whole segment but its voxels that are ``ERASED``."""
        digest = hashlib.blake2b(digest_size=16)
        for plane in self.extent._replace(k0=filled.k0, k1=filled.k1).intersection(self.extent).planes():
            mask = maskOf(plane) & (self.read(plane) & ERASED == 0)
            if mask.any():  # so that it does not depend on how large a box is filled
                digest.update(plane.k0.to_bytes(8, "little", signed=True) + np.packbits(mask).tobytes())
        return digest.digest()

    # Stored form --------------------------------------------------------------------------------------------

    def toJson(self, indexToWorld: NDArray[np.float64]) -> dict[str, Any] | None:
        """Return it for JSON, with where its grid is in the world (4, 4); None without bits.

        Runs of equal bits in the box that is used, i fastest. Contours change little from row to row: what is
        stored is how much longer a run is than the run before the last.
        """
        if self.used.isEmpty:
            return None
        bits = np.ascontiguousarray(self.read(self.used)).reshape(-1)
        starts = np.concatenate([[0], np.flatnonzero(bits[1:] != bits[:-1]) + 1])
        values = bits[starts]
        if not values.any():
            return None
        lengths = np.diff(starts, append=bits.size)
        steps = lengths.copy()
        steps[2:] -= lengths[:-2]
        # Small ones have few bits, any sign.
        steps = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")
        return {
            "grid": self.indexToRAS.ravel().tolist(),
            "world": indexToWorld.ravel().tolist(),
            "box": list(self.used),
            "runs": _asText(steps.view(np.uint8).reshape(-1, 4).T),  # bytes of one weight together
            "values": _asText(values),
        }

    @classmethod
    def fromJson(cls, kept: Mapping[str, Any]) -> tuple[VoxelOwnership, NDArray[np.float64]]:
        """Create it from JSON, on its box alone; and where its grid was in the world (4, 4).

        Raises ValueError, or its like, when it was damaged.
        """
        box = Extent(*(int(value) for value in kept["box"]))
        size = int(np.prod(box.shape, dtype=np.int64))
        if not 0 < size <= _LARGEST or max(map(abs, box)) > _LARGEST:
            raise ValueError(f"a box of {size} voxels")
        steps = _fromText(kept["runs"]).reshape(4, -1).T
        lengths = np.ascontiguousarray(steps).reshape(-1).view("<u4").astype(np.int64)
        lengths = np.where(lengths & 1, -(lengths + 1) // 2, lengths // 2)
        for first in (0, 1):
            lengths[first::2] = np.cumsum(lengths[first::2])
        values = _fromText(kept["values"])
        if values.size != lengths.size or lengths.size == 0 or lengths.min() < 1 or lengths.sum() != size:
            raise ValueError("the runs do not fill the box")
        if (values & ~np.uint8(ALL_BITS)).any():
            raise ValueError("unknown bits")
        ownership = cls(_matrix(kept["grid"]), box)
        ownership.write(box, np.repeat(values, lengths).reshape(box.shape))
        return ownership, _matrix(kept["world"])


def bitsAfterEdit(
    bits: NDArray[np.uint8], add: NDArray[np.bool_], wanted: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return the bits of voxels after an edit, from those before it.

    Parameters
    ----------
    add, wanted, after
        What was added, what the masks contain, and what is in the segment now.
    """
    bits = bits & np.uint8(255 - KNOWN)
    bits |= add.view(np.uint8) * np.uint8(OURS)
    bits |= wanted.view(np.uint8) * np.uint8(KNOWN)
    bits &= after.view(np.uint8) * np.uint8(255) | np.uint8(ERASED | WAS_OURS)
    return bits


def _bit(bits: NDArray[np.uint8], which: int) -> NDArray[np.uint8]:
    """1 where a bit is set, else 0."""
    return (bits & which != 0).view(np.uint8)


def _matrix(values: Any) -> NDArray[np.float64]:
    matrix = np.array(values, dtype=np.float64).reshape(4, 4)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("the matrix of the grid is singular")
    return matrix


def _asText(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode("ascii")


def _fromText(text: str) -> NDArray[np.uint8]:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text, validate=True), 4 * _MOST_RUNS)
    if not unpacking.eof:
        raise ValueError("the data are cut off, or too long")
    return np.frombuffer(data, np.uint8)
