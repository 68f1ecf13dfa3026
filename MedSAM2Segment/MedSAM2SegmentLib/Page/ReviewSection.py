"""Section of the page for the review queue of a cohort: the next worst case, and decisions about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from medsam2_core.batch.review import ACCEPTED, CORRECTED, SKIPPED, ReviewCase, ReviewQueue
from medsam2_core.errors import MedSAM2Error

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import Level, ReviewView, StatusLine


class ReviewSection:
    """Goes through the cases of a folder of results, the worst first.

    Parameters
    ----------
    cases
        Opens and saves them in the scene (ReviewCases); None without a scene.
    changed
        Called when there is something else to show.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self, cases: Any, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cases, self._changed, self._clock = cases, changed, clock
        self._queue: ReviewQueue | None = None
        self._case: ReviewCase | None = None
        self._opened: Any = None  # its nodes; None where they could not be opened
        self._since, self._prompts = 0.0, 0
        self._line = StatusLine()
        self._warned: Any = None  # what was pressed once and would leave changes out, and the segments then

    def view(self) -> ReviewView:
        """Return what to show."""
        return ReviewView(
            folder="" if self._queue is None else str(self._queue.results),
            case=self._caseText(),
            counts=self._countsText(),
            line=self._line,
            canOpen=self._cases is not None,
            canAccept=self._opened is not None,
            canSkip=self._case is not None,
        )

    def open(self, folder: str) -> None:
        """Open the queue of a folder of results, and its first case."""
        if self._cases is None or self._mustWarn("open"):
            return
        self._close()
        self._line = StatusLine()
        try:
            self._queue = ReviewQueue(folder.strip())
            self._queue.save()
        except (MedSAM2Error, OSError) as error:
            self._queue = None
            self._line = StatusLine(str(error), Level.ERROR)
        self._next()

    def accept(self) -> None:
        """Accept the segments of the case as they were found."""
        self._decide(ACCEPTED)

    def correct(self) -> None:
        """Save the segments of the case as they are now."""
        self._decide(CORRECTED)

    def skip(self) -> None:
        """Go on to the next case without a decision."""
        self._decide(SKIPPED)

    def cleanup(self) -> None:
        """Let go of the case; its nodes stay in the scene, with what was changed in them."""
        self._changed = lambda: None
        self._case = self._opened = self._queue = None

    def _decide(self, decision: str) -> None:
        if self._queue is None or self._case is None:
            return
        if self._opened is not None and not self._cases.isInScene(self._opened):
            self._opened = None
        if self._opened is None and decision != SKIPPED:
            self._setLine(_("The case is not in the scene: skip it, or open the queue again."), Level.ERROR)
            return
        if decision != CORRECTED and self._mustWarn(decision):
            return
        try:
            clicks = 0
            if self._opened is not None:
                clicks = self._cases.promptCount(self._opened) - self._prompts
            save = None if decision != CORRECTED else lambda path: self._cases.save(self._opened, path)
            self._queue.decide(self._case.case, decision, self._clock() - self._since, clicks, save)
        except (MedSAM2Error, OSError) as error:
            self._setLine(str(error), Level.ERROR)
            return
        self._close()
        self._line = StatusLine()
        self._next()

    def _mustWarn(self, action: str) -> bool:
        """Warn before an action that would leave changes out, once for each state; return whether it did."""
        if self._opened is None or not self._cases.isInScene(self._opened):
            return False
        pressed = action, self._cases.state(self._opened)
        if not self._cases.isChanged(self._opened) or self._warned == pressed:
            return False
        self._warned = pressed
        text = _("The segments have changed: press Corrected to keep that, or the same button again.")
        self._setLine(text, Level.WARNING)
        return True

    def _next(self) -> None:
        """Open the next case; one that cannot be opened may be skipped."""
        self._case = None if self._queue is None else self._queue.next()
        if self._case is not None and self._queue is not None:
            try:
                self._opened = self._cases.open(self._case.case, self._queue.files(self._case))
                self._prompts = self._cases.promptCount(self._opened)
            except (MedSAM2Error, OSError) as error:
                self._line = StatusLine(str(error), Level.ERROR)
        elif self._queue is not None:
            self._line = StatusLine(
                _("No case is left: train on accepted.csv, or look at skipped ones."), Level.OK
            )
        self._since, self._warned = self._clock(), None
        self._changed()

    def _close(self) -> None:
        opened, self._opened, self._case = self._opened, None, None
        if opened is not None:
            self._cases.close(opened)

    def _caseText(self) -> str:
        if self._case is None:
            return ""
        text = _("{name}, confidence {confidence:.2f} (not calibrated)")
        return text.format(name=self._case.case, confidence=self._case.confidence)

    def _countsText(self) -> str:
        if self._queue is None:
            return ""
        text = _("{waiting} left, {accepted} accepted, {corrected} corrected, {skipped} skipped")
        return text.format(**self._queue.counts())

    def _setLine(self, text: str, level: Level) -> None:
        self._line = StatusLine(text, level)
        self._changed()
