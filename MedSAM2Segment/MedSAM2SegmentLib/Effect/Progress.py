"""How far a job of the worker is, and how long it will take."""

from __future__ import annotations

from collections.abc import Callable

from MedSAM2SegmentLib.i18n import _

_LEAST = 3  # slices for an estimate of the remaining time
_RECENT = 20  # slices the estimate is made from


class Progress:
    """How far a job of the worker is.

    Attributes
    ----------
    done, total
        Slices processed, of those to process; ``total`` is 0 while unknown.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.done = self.total = 0
        self._clock = clock
        self._times: list[tuple[int, float]] = []

    def update(self, done: int, total: int | None) -> None:
        """Record how far it is now."""
        self.done, self.total = done, total or 0
        self._times = [*self._times, (done, self._clock())][-_RECENT:]

    @property
    def remaining(self) -> str:
        """Remaining time as text, estimated from recent slices; empty while it cannot be estimated."""
        if len(self._times) < _LEAST or not self.total:
            return ""
        (first, start), (last, end) = self._times[0], self._times[-1]
        return (
            "" if last <= first else durationText((self.total - self.done) * (end - start) / (last - first))
        )


def durationText(seconds: float) -> str:
    """Return a remaining time as text: "about 2 min left"."""
    if seconds < 10:
        return _("a few seconds left")
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=round(seconds / 10) * 10)
    return _("about {minutes} min left").format(minutes=round(seconds / 60))
