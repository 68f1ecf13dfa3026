"""The worker's session as the controller sees it: what it was told, what is still open, what came back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError
from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.findings import entries_in
from medsam2_core.worker.messages import SessionSettings, StackChoice
from medsam2_core.worker.supervision import WorkerState

from MedSAM2SegmentLib.Panels.PanelState import Status

if TYPE_CHECKING:
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.worker.findings import AutoEntry
    from medsam2_core.worker.remote import RemoteSession
    from medsam2_core.worker.supervision import Supervisor

    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter


class WorkerSource(Protocol):
    """Where a controller gets its worker from."""

    def problem(self) -> str:
        """Why there can be no worker on this computer (nothing installed); empty when there can."""

    def isInstalling(self) -> bool:
        """Whether that is being mended."""

    def resolve(self) -> None:
        """Show the user the way out of the problem."""

    def acquire(self, owner: object) -> Supervisor:
        """The worker's supervisor; starts the worker for its first owner. MedSAM2Error when it cannot."""

    def release(self, owner: object) -> None:
        """The owner needs it no more."""

    def hasChanged(self, owner: object) -> bool:
        """Whether the user has chosen another worker than the one the owner holds."""


@dataclass(frozen=True)
class Answer:
    """What came back about a segment.

    Attributes
    ----------
    segmentID
        Whose answer it is.
    words
        By slice, what is answered; where nothing is said any more, they are empty.
    records
        By slice, what the model found.
    prompts
        The snapshot of the segment's prompts that was handed to :meth:`SessionLink.say`.
    isReplay
        Whether the words were merely said again: the segment already has the masks.
    """

    segmentID: str
    words: Mapping[int, SlicePrompts]
    records: Mapping[int, SliceMask]
    prompts: Any
    isReplay: bool


Refusal = Callable[[str, Mapping[int, SlicePrompts], MedSAM2Error], None]


@dataclass(frozen=True)
class _Wish:
    """What a session was opened with."""

    volumeKey: str
    choice: StackChoice
    settings: SessionSettings


class SessionLink:
    """One session at a time, opened and said again whenever volume, stack or settings change.

    Parameters
    ----------
    source
        Where the worker comes from.
    onChange
        Called when :attr:`phase` or what is awaited may have changed.

    Attributes
    ----------
    stack
        The slices of the session.
    models
        Names and titles of the installed models, once the worker has told them.
    autoModels
        The Auto models of the worker; None before it has told.
    onAnswer, onRefusal
        Called with an :class:`Answer`; with the segment's ID, what was said in vain, and the error.
    """

    def __init__(self, source: WorkerSource, onChange: Callable[[], None]) -> None:
        self._source = source
        self._onChange = onChange
        self.onAnswer: Callable[[Answer], None] = lambda answer: None
        self.onRefusal: Refusal = lambda segmentID, words, error: None
        self._supervisor: Supervisor | None = None
        self._volume: Any = None
        self._volumeKey = ""
        self._wish: _Wish | None = None
        self._session: RemoteSession | None = None
        self._failure: MedSAM2Error | None = None
        self._serial = 0
        self._latest: dict[tuple[str, int], int] = {}
        self._waiting: dict[int, str] = {}
        self.stack: SliceStack | None = None
        self.models: tuple[tuple[str, str], ...] = ()
        self.autoModels: tuple[AutoEntry, ...] | None = None

    # The worker ---------------------------------------------------------------------------------------------

    @property
    def supervisor(self) -> Supervisor | None:
        """The worker's supervisor, while this link holds it."""
        return self._supervisor

    def begin(self) -> bool:
        """Ask for the worker, so that it starts now rather than at the first click; whether there is one."""
        if self._supervisor is not None:
            return True
        try:
            self._supervisor = self._source.acquire(self)
        except MedSAM2Error as error:
            self._failure = error
            return False
        self._failure = None
        self._supervisor.listeners.append(self._onChange)
        self.refresh()
        return True

    def refresh(self) -> None:
        """Ask for the models again: some may have been installed, trained or removed since."""
        if self._supervisor is not None:
            self._supervisor.request("models", done=self._onModels)
            self._supervisor.request("auto_models", done=self._onAutoModels, failed=self._onNoAutoModels)

    def _onAutoModels(self, told: Mapping[str, Any]) -> None:
        try:
            self.autoModels = entries_in(told)
        except ProtocolError:
            self.autoModels = ()
        self._onChange()

    def _onNoAutoModels(self, _error: MedSAM2Error) -> None:
        self.autoModels = self.autoModels or ()  # a worker of an earlier version

    def _onModels(self, told: Mapping[str, Any]) -> None:
        known = [model for model in told.get("models", []) if model.get("installed")]
        self.models = tuple((str(model["name"]), str(model["title"])) for model in known)
        self._onChange()

    def end(self) -> None:
        """Let go of session, volume and worker; the worker ends when nobody else holds it."""
        self.close()
        if self._supervisor is None:
            return
        supervisor, self._supervisor = self._supervisor, None
        if self._volume is not None:
            supervisor.close_volume(self._volume)
            self._volume, self._volumeKey = None, ""
        if self._onChange in supervisor.listeners:
            supervisor.listeners.remove(self._onChange)
        self._source.release(self)

    @property
    def phase(self) -> Status | None:
        """What the user waits for, or what went wrong; None when nothing is in the way."""
        if self._failure is not None:
            return Status.FAILED
        if self._supervisor is None:
            return None
        state = self._supervisor.state
        if state is not WorkerState.READY:
            return _PHASES[state]
        if self._session is None or self._session.is_open:
            return None
        return _PREPARING.get(self.preparing()[0], Status.LOADING)

    @property
    def problem(self) -> str:
        """What went wrong, in words for the user."""
        if self._failure is not None:
            return str(self._failure)
        return self._supervisor.problem if self._supervisor is not None else ""

    @property
    def report(self) -> str:
        """Everything known about the worker, for *Details*."""
        details = getattr(self._failure, "details", "") if self._failure is not None else ""
        known = self._supervisor.report if self._supervisor is not None else ""
        return "\n\n".join(part for part in (details, known) if part)

    def preparing(self) -> tuple[str, int, int | None]:
        """What is done before the session is open: ("sending", done, total), say; total None when unknown."""
        if self._volume is not None and not self._volume.is_there:
            return "sending", self._volume.received, self._volume.total
        return getattr(self._session, "progress", None) or ("loading", 0, None)

    def retry(self) -> None:
        """Try again after a failure: the session is opened anew when it is asked for next."""
        if self._failure is not None:
            self._failure = None
            self.close()
        if self._supervisor is not None and self._supervisor.state in _AT_REST:
            self._supervisor.start()

    # The session --------------------------------------------------------------------------------------------

    @property
    def session(self) -> RemoteSession | None:
        """The session, when it takes words: also before it is open, and while the worker is started again."""
        if self._session is None or self._failure is not None or self._supervisor.state in _AT_REST:
            return None
        return self._session

    @property
    def manner(self) -> tuple[StackChoice, SessionSettings] | None:
        """How the session cuts and sees the volume; None before there is one."""
        return (self._wish.choice, self._wish.settings) if self._wish is not None else None

    @property
    def opened(self) -> RemoteSession | None:
        """The session that was asked for: what one knows cannot be told to another."""
        return self._session

    @property
    def modelTold(self) -> Mapping[str, Any]:
        """``name``, ``title`` and ``weights_sha256`` of the session's model; empty before it is open."""
        info = self._session.info if self._session is not None else None
        return info.model if info is not None else {}

    def open(self, adapter: VolumeAdapter, choice: StackChoice, settings: SessionSettings) -> bool:
        """Have a session of this volume, cut and seen like this; whether it is another one than before.

        Raises
        ------
        MedSAM2Error
            When the volume cannot be cut like this.
        """
        wish = _Wish(adapter.key, choice, settings)
        if self._supervisor is not None and self._source.hasChanged(self):
            self.end()
        if wish == self._wish:
            return False
        stack = choice.stack(adapter.volume)
        self._failure = None
        self.close()
        self.stack, self._wish = stack, wish
        if not self.begin():
            return False
        if self._volume is None or self._volumeKey != wish.volumeKey:
            before, self._volume = self._volume, self._supervisor.open_volume(adapter.volume)
            self._volumeKey = wish.volumeKey
            if before is not None:
                self._supervisor.close_volume(before)
        self._session = self._supervisor.open_session(
            self._volume, choice, settings, opened=self._onChange, failed=self._whenNotOpened
        )
        return True

    def close(self) -> None:
        """Close the session; what it still answers is not wanted any more."""
        self.drop()
        session, self._session, self._wish, self.stack = self._session, None, None, None
        if session is not None:
            session.close()

    def closeVolume(self) -> None:
        """Also forget the volume: it is gone from the scene."""
        self.close()
        if self._supervisor is not None and self._volume is not None:
            self._supervisor.close_volume(self._volume)
        self._volume, self._volumeKey, self._failure = None, "", None

    def _whenNotOpened(self, error: MedSAM2Error) -> None:
        if isinstance(error, Cancelled) or self._session is None:
            return
        self._failure = error
        self._onChange()

    # Words and answers --------------------------------------------------------------------------------------

    def say(
        self, segmentID: str, words: Mapping[int, SlicePrompts], prompts: Any, *, isReplay: bool = False
    ) -> None:
        """Say this about a segment; :attr:`onAnswer` gets what comes back, unless newer words were said."""
        session = self._session
        self._serial += 1
        serial = self._serial
        self._latest.update({(segmentID, n): serial for n in words})
        self._waiting[serial] = segmentID
        said = dict(words)
        session.say(
            segmentID,
            said,
            done=partial(self._answered, session, serial, Answer(segmentID, said, {}, prompts, isReplay)),
            failed=partial(self._refused, session, serial, segmentID, said),
        )

    def isAwaiting(self, segmentID: str | None = None) -> bool:
        """Whether an answer about a segment, or any, is on its way."""
        return bool(self._waiting) if segmentID is None else segmentID in self._waiting.values()

    def drop(self, segmentID: str | None = None) -> None:
        """Do not listen to the answers about a segment, or all, that are on their way."""
        self._waiting = {
            serial: of for serial, of in self._waiting.items() if segmentID is not None and of != segmentID
        }
        for key in [key for key in self._latest if segmentID is None or key[0] == segmentID]:
            del self._latest[key]

    def _answered(self, session: RemoteSession, serial: int, asked: Answer, records: list[SliceMask]) -> None:
        if session is not self._session or self._waiting.pop(serial, None) is None:
            return
        words = {n: w for n, w in asked.words.items() if self._latest.get((asked.segmentID, n)) == serial}
        found = {record.n: record for record in records if record.n in words}
        self.onAnswer(replace(asked, words=words, records=found))
        self._onChange()

    def _refused(
        self,
        session: RemoteSession,
        serial: int,
        segmentID: str,
        words: Mapping[int, SlicePrompts],
        error: MedSAM2Error,
    ) -> None:
        if session is not self._session or self._waiting.pop(serial, None) is None:
            return
        self.onRefusal(segmentID, words, error)
        self._onChange()


#: What the worker's state means to the user.
_PHASES = {
    WorkerState.STOPPED: Status.STARTING,
    WorkerState.STARTING: Status.STARTING,
    WorkerState.RESTARTING: Status.WORKER_LOST,
    WorkerState.FAILED: Status.FAILED,
}

#: States in which a worker takes nothing until it is started.
_AT_REST = (WorkerState.STOPPED, WorkerState.FAILED)

#: What the worker says it is doing before a session is open.
_PREPARING = {
    "sending": Status.SENDING,
    "downloading": Status.DOWNLOADING,
    "loading": Status.LOADING,
}


def differences(
    told: Mapping[int, SlicePrompts], wanted: Mapping[int, SlicePrompts]
) -> dict[int, SlicePrompts]:
    """Slices whose words differ, with what is wanted there now; known masks do not count."""
    nothing = SlicePrompts()
    changed = {}
    for n in sorted({*told, *wanted}):
        before, after = told.get(n, nothing), wanted.get(n, nothing)
        if differs(before, after):
            changed[n] = after
    return changed


def differs(before: SlicePrompts, after: SlicePrompts) -> bool:
    """Whether other words are said; known masks do not count."""
    return (before.prompts, before.final) != (after.prompts, after.final)
