"""Auto: an Auto model is asked, and what it finds is written when it is done; stopped, nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError
from medsam2_core.worker.findings import AutoWish

from MedSAM2SegmentLib.Effect.Propagation import TimeLeft

if TYPE_CHECKING:
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.worker.findings import AutoEntry, ClassFinding

    from MedSAM2SegmentLib.Effect.FoundSegments import FoundSegments
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace


class Automatic:
    """At most one question to an Auto model at a time.

    Attributes
    ----------
    done, total
        Slices looked at, of those to look at.
    problem, details
        Why the last one ended early; empty when all is well.
    summary
        How sure the model is of every class, after a run.
    beforeWriting, afterWriting
        Called before findings become segments (what was seen may have been undone), and after.
    """

    def __init__(
        self,
        workplace: Workplace,
        link: SessionLink,
        parameters: Parameters,
        segments: FoundSegments,
        clock: Callable[[], float],
    ) -> None:
        self._workplace, self._link, self._parameters = workplace, link, parameters
        self._segments, self._clock = segments, clock
        self._request: Any = None
        self._session: Any = None  # the one that was asked
        self._timeLeft = TimeLeft(clock)
        self.done = self.total = 0
        self.problem = self.details = self.summary = ""
        self.beforeWriting: Callable[[], None] = lambda: None
        self.afterWriting: Callable[[], None] = lambda: None

    # Models -------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[AutoEntry, ...]:
        """The models that suit the volume."""
        adapter, known = self._workplace.adapter, self._link.autoModels or ()
        if adapter is None:
            return ()
        modality = adapter.volume.modality
        return tuple(one for one in known if one.fits(is_picture=adapter.isPicture, modality=modality))

    @property
    def chosen(self) -> AutoEntry | None:
        """The model the user has chosen, else the first that suits the volume; None when none does."""
        entries, wished = self.entries, self._parameters.text("autoModel")
        return next((one for one in entries if one.file == wished), entries[0] if entries else None)

    # Asking -------------------------------------------------------------------------------------------------

    @property
    def isRunning(self) -> bool:
        """Whether a model is being asked. With its session the question is gone, too."""
        return self._request is not None and self._session is self._link.opened

    @property
    def remaining(self) -> str:
        """Time left, in words; empty while it cannot be told."""
        return self._timeLeft.words(self.done, self.total) if self.isRunning else ""

    def begin(self, n: int | None = None) -> None:
        """Ask about slice ``n``, or all; what is being asked already is not wanted any more.

        PromptError when there is no model, or no session.
        """
        self.abandon()
        entry, session = self.chosen, self._link.session
        if entry is None:
            raise PromptError("no Auto model suits this volume: train one from 10 labelled images")
        if session is None:
            raise PromptError(self._link.problem or "the worker is not there: restart it first")
        self.summary, self._timeLeft = "", TimeLeft(self._clock)
        self.done, self.total = 0, 1 if n is not None else 0
        replaces = self._parameters.isOn("replaceSegments")

        def done(findings: list[ClassFinding]) -> None:
            if request is self._request:
                self._request = None
                self._write(findings, entry, n, replaces=replaces)

        def failed(error: MedSAM2Error) -> None:
            if request is self._request:
                self._request = None
                if not isinstance(error, Cancelled):
                    self.problem, self.details = str(error), getattr(error, "details", "")
                self.afterWriting()

        wish = AutoWish(entry.path, first=n, last=n)
        self._session = session
        self._request = request = session.auto(wish, self._onSlices, done=done, failed=failed)

    def cancel(self) -> None:
        """Ask no longer. Nothing was written, so there is nothing to keep or discard."""
        request, self._request = self._request, None
        if request is not None:
            request.cancel()

    def abandon(self) -> None:
        """Another volume or segmentation, or another question: what was asked is not wanted any more."""
        self.cancel()
        self.noted()

    def noted(self) -> None:
        """The user goes on: what went wrong was told."""
        self.problem = self.details = ""

    def forget(self) -> None:
        """What was found before says nothing about what comes."""
        self.abandon()
        self.summary = ""

    def _onSlices(self, _records: list[SliceMask], done: int, total: int | None) -> None:
        if self._request is not None:
            self.done, self.total = done, total or 0
            self._timeLeft.note(done)

    def _write(
        self, findings: list[ClassFinding], entry: AutoEntry, n: int | None, *, replaces: bool
    ) -> None:
        if self._workplace.isOutOfDate:
            return
        self.beforeWriting()
        try:
            self._segments.write(findings, entry.name, replaces=replaces, n=n)
        except MedSAM2Error as error:
            self.problem = str(error)
        else:
            self.summary = inWords(findings)
            if not any(one.is_found for one in findings):
                where = f"slice {n}" if n is not None else "any slice"
                self.problem = (
                    f"{entry.name!r} found nothing on {where}: is it the right model for this image?"
                )
        self.afterWriting()


def inWords(findings: list[ClassFinding]) -> str:
    """How sure a model is of every class: "liver 0.93, kidney 0.88; not found: spleen"."""
    found = ", ".join(f"{one.name} {one.confidence:.2f}" for one in findings if one.is_found)
    missing = ", ".join(one.name for one in findings if not one.is_found)
    return "; ".join([*filter(None, [found]), *([f"not found: {missing}"] if missing else [])])
