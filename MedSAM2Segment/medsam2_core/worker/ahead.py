"""Encoding the slices around the one looked at while there is nothing else to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam2_core.engine.zoom import Region
    from medsam2_core.worker.sessions import Opened, Sessions

_SPAN = 12  # slices to either side
_SHARE = 0.5  # of the cache


class Ahead:
    """Knows what is worth encoding.

    Attributes
    ----------
    focus
        The session and the slice somebody looks at; set by the thread that reads.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.focus: tuple[str, int] | None = None
        self._settled: object = None
        self._round = 0

    @property
    def is_wanted(self) -> bool:
        """Whether there may be something to encode."""
        return self.focus is not None and self._settled != (self.focus, self._round)

    def something_changed(self) -> None:
        """Look again at what might be asked for next."""
        self._round += 1

    def step(self) -> None:
        """Encode one region, or find that nothing is left. Interrupted may be raised."""
        focus, state = self.focus, (self.focus, self._round)
        opened = None if focus is None else self._sessions.find(focus[0])
        if opened is not None:
            encoder = opened.session.tracker.encoder
            room = _SHARE * encoder.cache.byte_limit
            for n, region in _around(opened, focus[1]):
                if encoder.key(n, region) not in encoder.cache:
                    encoder.features(n, region)
                    return
                kept = encoder.features(n, region).nbytes
                room -= kept
                if room < kept:
                    break
        self._settled = state


def _around(opened: Opened, n: int) -> Iterator[tuple[int, Region]]:
    """Slices and regions in the order they are worth encoding."""
    from medsam2_core.engine.expecting import expected_regions

    tracker = opened.session.tracker
    order = [0, *(sign * step for step in range(1, _SPAN + 1) for sign in (1, -1))]
    for m in (n + step for step in order):
        if 0 <= m < len(tracker.source):
            for region in expected_regions(tracker, m):
                yield m, region
