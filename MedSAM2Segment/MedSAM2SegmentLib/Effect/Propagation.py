"""One propagation: slices as they come, gathered into few writes, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from medsam2_core.errors import MedSAM2Error
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.worker.remote import RemoteSession
    from numpy.typing import NDArray

#: Seconds between two writes: each costs a redraw of every view.
WRITE_EVERY = 0.25

_TOO_FEW = 3  # slices from which no speed can be told
_RECENT = 20  # slices the speed is told from


class TimeLeft:
    """Tells from the speed of late how long something takes yet.

    Parameters
    ----------
    clock
        Seconds, only ever growing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: list[tuple[int, float]] = []

    def note(self, done: int) -> None:
        """So much is done now."""
        self._times = [*self._times, (done, self._clock())][-_RECENT:]

    def words(self, done: int, total: int) -> str:
        """Time left, in words; empty while it cannot be told."""
        if len(self._times) < _TOO_FEW or not total:
            return ""
        (first, start), (last, end) = self._times[0], self._times[-1]
        return "" if last <= first else inWords((total - done) * (end - start) / (last - first))


class Propagation:
    """Slices of several segments being filled in.

    Parameters
    ----------
    clock
        Seconds, only ever growing.
    onEnd
        Called once, with None or with what went wrong.

    Attributes
    ----------
    segmentIDs
        Whose slices.
    done, total
        Slices answered of those to answer.
    written
        Slices that have been drained.
    found
        Those of them that have the structure.
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
        self.done, self.total, self.written, self.found = 0, 0, 0, 0
        self.isOver = False
        self._clock, self._onEnd = clock, onEnd
        self._gathered: dict[str, dict[int, SliceMask]] = {}
        self._request: Any = None
        self._lastWrite = clock()
        self._timeLeft = TimeLeft(clock)

    def begin(self, session: RemoteSession, **how: Any) -> None:
        """Ask for the slices; ``how`` as in ``RemoteSession.propagate``."""
        self._request = session.propagate(
            list(self.segmentIDs), **how, slices=self._onSlices, done=self._onDone, failed=self._onFailed
        )

    def stop(self) -> None:
        """Ask for no more; what still comes is not wanted. ``onEnd`` is not called."""
        if not self.isOver:
            self.isOver = True
            if self._request is not None:
                self._request.cancel()

    def forget(self, segmentID: str, slices: set[int] | None = None) -> None:
        """What was gathered about a segment (on some slices) is out of date."""
        gathered = self._gathered.get(segmentID, {})
        for n in list(gathered) if slices is None else slices & set(gathered):
            del gathered[n]

    def isDue(self) -> bool:
        """Whether it is time to write what was gathered."""
        return any(self._gathered.values()) and self._clock() - self._lastWrite >= WRITE_EVERY

    def drain(self) -> dict[str, dict[int, NDArray[np.bool_]]]:
        """By segment and slice, the masks gathered since the last time."""
        gathered, self._gathered = self._gathered, {}
        self._lastWrite = self._clock()
        self.written += sum(len(slices) for slices in gathered.values())
        self.found += sum(not one.is_empty for slices in gathered.values() for one in slices.values())
        return {
            segmentID: {n: record.mask_hw for n, record in sorted(slices.items())}
            for segmentID, slices in gathered.items()
            if slices
        }

    @property
    def remaining(self) -> str:
        """Time left, in words; empty while it cannot be told."""
        return "" if self.isOver else self._timeLeft.words(self.done, self.total)

    @property
    def disappointment(self) -> str:
        """What to tell when it is over and nothing was found; else empty."""
        if self.found:
            return ""
        if self.written:
            return "the structure was found on no other slice: prompt another slice, or take another range"
        return "nothing was left to do: correct a slice, or take another range, and propagate again"

    def _onSlices(self, records: list[SliceMask], done: int, total: int | None) -> None:
        if self.isOver:
            return
        for record in records:
            self._gathered.setdefault(record.object, {})[record.n] = record
        self.done, self.total = done, total or 0
        self._timeLeft.note(done)

    def _onDone(self, *_: Any) -> None:
        if not self.isOver:
            self.isOver = True
            self._onEnd(None)

    def _onFailed(self, error: MedSAM2Error) -> None:
        if not self.isOver:
            self.isOver = True
            self._onEnd(error)


def inWords(seconds: float) -> str:
    """A time that is left: "about 2 min"."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} s left"
    return f"about {round(seconds / 60)} min left"
