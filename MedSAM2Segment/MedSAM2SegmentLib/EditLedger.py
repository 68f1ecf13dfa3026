"""Which of our edits stand: undo is Slicer's, and this finds out about it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.SegmentWriter import Change, SegmentWriter
    from MedSAM2SegmentLib.TargetGrid import Extent

UNDONE, REDONE = "undone", "redone"
_STEPS = 20  # Slicer keeps ten states by default


@dataclass
class Step:
    """One action of the user that changed segments.

    Attributes
    ----------
    payloadBefore, payloadAfter
        What the caller wants back when the step is undone or redone.
    done
        Whether the step stands.
    """

    payloadBefore: Any
    payloadAfter: Any = None
    done: bool = True
    patches: list[_Patch] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What it holds, packed."""
        return sum(patch.bytes for patch in self.patches)


class _Patch:
    """A change, packed."""

    def __init__(self, change: Change) -> None:
        self.segmentID, self.extent = change.segmentID, change.extent
        self._before, self._after = _packed(change.before), _packed(change.after)
        self._notes = [
            None if notes is None else zlib.compress(notes.tobytes(), 1)
            for notes in (change.notesBefore, change.notesAfter)
        ]

    @property
    def bytes(self) -> int:
        return sum(len(part) for part in (self._before, self._after, *self._notes) if part)

    @property
    def before(self) -> NDArray[np.bool_]:
        return _unpacked(self._before, self.extent)

    @property
    def after(self) -> NDArray[np.bool_]:
        return _unpacked(self._after, self.extent)

    def notes(self, which: int) -> NDArray[np.uint8] | None:
        packed = self._notes[which]
        if packed is None:
            return None
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.extent.shape)


class EditLedger:
    """Remembers what each step changed, and tells by comparison which steps Slicer has undone or redone.

    Parameters
    ----------
    writer : SegmentWriter
        Its changes are recorded while a step is open.
    """

    def __init__(self, writer: SegmentWriter, limit: int = _STEPS) -> None:
        self._writer = writer
        self._limit = limit
        self._open: Step | None = None
        self.steps: list[Step] = []
        writer.written.append(self.written)

    def begin(self, payloadBefore: Any) -> None:
        """Open a step; an open one is closed with the payload it began with."""
        if self._open is not None:
            self.end(self._open.payloadBefore)
        self._open = Step(payloadBefore)

    def written(self, changes: list[Change]) -> None:
        """Record changes of the open step; the writer calls this."""
        if self._open is None:
            return
        if (
            not self._open.patches
        ):  # the first change of a new step: what was undone cannot be redone any more
            self.steps = [step for step in self.steps if step.done]
        self._open.patches += [_Patch(change) for change in changes]

    def end(self, payloadAfter: Any) -> Step | None:
        """Close the step; None when it changed nothing and so is not in Slicer's undo either."""
        step, self._open = self._open, None
        if step is None or not step.patches:
            return None
        step.payloadAfter = payloadAfter
        self.steps = [*self.steps, step][-self._limit :]
        return step

    def reconcile(self) -> list[tuple[Step, str]]:
        """Steps that Slicer undid or redid since the last call, in that order."""
        found = []
        while step := self._lastDone():
            if not self._stands(step, 0):
                break
            self._restore(step, 0)
            step.done = False
            found.append((step, UNDONE))
        if found:
            return found
        while step := next((step for step in self.steps if not step.done), None):
            if not self._stands(step, 1):
                break
            self._restore(step, 1)
            step.done = True
            found.append((step, REDONE))
        return found

    def clear(self) -> None:
        """Forget everything, as when the scene is closed or another segmentation is chosen."""
        self.steps, self._open = [], None

    def _lastDone(self) -> Step | None:
        return next((step for step in reversed(self.steps) if step.done), None)

    def _stands(self, step: Step, which: int) -> bool:
        """Whether everything a step changed is as it was before (0) or after (1) it."""
        expected: dict[str, dict[Extent, tuple[NDArray, NDArray]]] = {}
        patches = step.patches if which else step.patches[::-1]
        for patch in patches:
            before, after = patch.before, patch.after
            expected.setdefault(patch.segmentID, {})[patch.extent] = (
                before != after,
                after if which else before,
            )
        for segmentID, parts in expected.items():
            for extent, (changed, values) in parts.items():
                current = self._writer.maskOf(segmentID, extent)
                if current is None or not np.array_equal(current[changed], values[changed]):
                    return False
        return True

    def _restore(self, step: Step, which: int) -> None:
        patches = step.patches if which else step.patches[::-1]
        for patch in patches:
            self._writer.restoreNotes(patch.segmentID, patch.extent, patch.notes(which))


def _packed(mask_kji: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(mask_kji).tobytes(), 1)


def _unpacked(packed: bytes, extent: Extent) -> NDArray[np.bool_]:
    size = int(np.prod(extent.shape))
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=size)
    return bits.astype(bool).reshape(extent.shape)
