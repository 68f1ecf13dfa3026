"""The session in the worker: its slices, the prompts it is sent, and its answers.

It is opened for a volume, a stack of slices and settings. With the stack "auto", the view of the first prompt
decides, and is stored in the scene; later prompts in other views apply to the slices they lie on. When no
segment has prompts any more, the next prompt decides anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError, ProtocolError
from medsam2_core.prompts import SlicePrompts
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.job_messages import auto_models_from_json
from medsam2_core.worker.messages import SessionSettings, StackChoice

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import PATIENCE, Parameters, Status

if TYPE_CHECKING:
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.worker.client import WorkerClient
    from medsam2_core.worker.job_messages import AutoModelInfo
    from medsam2_core.worker.session_client import SessionClient
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter


class WorkerSource(Protocol):
    """Where a controller gets its worker from."""

    def problem(self) -> str:
        """Return why there can be no worker on this computer (nothing installed); empty when there can."""

    def isInstalling(self) -> bool:
        """Whether the worker's environment is being installed."""

    def resolve(self, section: str = "") -> None:
        """Show the user the module's page, which has the way out of the problem, or a section of it."""

    def acquire(self, owner: object) -> WorkerClient:
        """Return the client of the worker, started for its first owner. MedSAM2Error when it cannot be."""

    def release(self, owner: object) -> None:
        """Give the worker back."""

    def hasChanged(self, owner: object) -> bool:
        """Whether the user has chosen another worker than the one the owner holds."""


@dataclass(frozen=True)
class Answer:
    """Masks of a segment that answer its prompts.

    Attributes
    ----------
    prompts
        By slice, the prompts that are answered; empty where the prompts were removed.
    masks
        By slice, what the model found.
    snapshot
        The snapshot of the segment's prompts that was handed to :meth:`WorkerSession.setPrompts`.
    isReplay
        Whether the segment already shows the masks, and only the session had to be given the prompts again.
    """

    segmentID: str
    prompts: Mapping[int, SlicePrompts]
    masks: Mapping[int, SliceMask]
    snapshot: Any
    isReplay: bool


Refusal = Callable[[str, Mapping[int, SlicePrompts], MedSAM2Error], None]


@dataclass(frozen=True)
class SessionConfig:
    """What a session was opened with."""

    volumeKey: str
    stack: StackChoice
    settings: SessionSettings

    @property
    def seenAs(self) -> tuple[StackChoice, SessionSettings]:
        """How a volume is cut and seen: what the answers of a session depend on."""
        return self.stack, self.settings


class WorkerSession:
    """One session at a time, opened again whenever volume, stack or settings change.

    Attributes
    ----------
    stack, adapter
        The slices of the session, and the volume they are of.
    config
        What the session was opened with; None before there is one.
    models
        Names and titles of the installed models, once the worker has sent them.
    autoModels
        The Auto models of the worker; None before it has sent them.
    onChange
        Called when :attr:`phase`, or what is awaited, may have changed.
    onAnswer, onRefusal
        Called with an :class:`Answer`; with the segment's ID, the prompts, and the error.
    """

    def __init__(self, source: WorkerSource, parameters: Parameters) -> None:
        self.source, self._parameters = source, parameters
        self.onChange: Callable[[], None] = lambda: None
        self.onAnswer: Callable[[Answer], None] = lambda answer: None
        self.onRefusal: Refusal = lambda segmentID, prompts, error: None
        self._client: WorkerClient | None = None
        self._volume: Any = None
        self._volumeKey = ""
        self._session: SessionClient | None = None
        self._failure: MedSAM2Error | None = None
        self._serial = 0
        self._latest: dict[tuple[str, int], int] = {}  # by segment and slice, the last request about it
        self._waiting: dict[int, str] = {}  # by request, its segment
        self.config: SessionConfig | None = None
        self.stack: SliceStack | None = None
        self.models: tuple[tuple[str, str], ...] = ()
        self.autoModels: tuple[AutoModelInfo, ...] | None = None
        self.adapter: VolumeAdapter | None = None
        self._displayed: tuple[str, str] | None = None  # volume, and the window it was displayed with
        self._found: tuple[str, str, StackChoice | None] = ("", "", None)  # of stackFound and volume

    # The worker ---------------------------------------------------------------------------------------------

    @property
    def client(self) -> WorkerClient | None:
        """The client of the worker; None while no worker is held."""
        return self._client

    def acquire(self) -> bool:
        """Start the worker now rather than at the first click; whether there is one."""
        if self._client is not None:
            return True
        try:
            self._client = self.source.acquire(self)
        except MedSAM2Error as error:
            self._failure = error
            return False
        self._failure = None
        self._client.listeners.append(self.onChange)
        self.requestModels()
        return True

    def release(self) -> None:
        """Close session and volume, and release the worker, which ends with its last user."""
        self.close()
        if self._client is None:
            return
        client, self._client = self._client, None
        if self._volume is not None:
            client.close_volume(self._volume)
            self._volume, self._volumeKey = None, ""
        if self.onChange in client.listeners:
            client.listeners.remove(self.onChange)
        self.source.release(self)

    def hasOtherWorker(self) -> bool:
        """Whether the user has chosen another worker than the one that is held."""
        return self._client is not None and self.source.hasChanged(self)

    def requestModels(self) -> None:
        """Ask for the models again: some may have been installed, trained or removed since."""
        if self._client is not None:
            self._client.request("models", done=self._onModels)
            self._client.request("auto_models", done=self._onAutoModels, failed=self._onNoAutoModels)

    def _onAutoModels(self, result: Mapping[str, Any]) -> None:
        try:
            self.autoModels = auto_models_from_json(result)
        except ProtocolError:
            self.autoModels = ()
        self.onChange()

    def _onNoAutoModels(self, _error: MedSAM2Error) -> None:
        self.autoModels = self.autoModels or ()  # a worker of an earlier version

    def _onModels(self, result: Mapping[str, Any]) -> None:
        installed = [model for model in result.get("models", []) if model.get("installed")]
        self.models = tuple((str(model["name"]), str(model["title"])) for model in installed)
        self.onChange()

    # Where it stands ----------------------------------------------------------------------------------------

    @property
    def phase(self) -> Status | None:
        """What the user waits for, or that it failed; None when nothing is in the way."""
        if self._failure is not None:
            return Status.FAILED
        if self._client is None:
            return None
        state = self._client.state
        if state is not WorkerState.READY:
            return _PHASES[state]
        if self._session is None or self._session.is_open:
            return None
        return _OPENING.get(self.progress()[0], Status.LOADING)

    @property
    def problem(self) -> str:
        """What went wrong, as a message for the user."""
        if self._failure is not None:
            return str(self._failure)
        return self._client.problem if self._client is not None else ""

    @property
    def report(self) -> str:
        """Everything known about the worker, for *Details*."""
        details = getattr(self._failure, "details", "") if self._failure is not None else ""
        report = self._client.report if self._client is not None else ""
        return "\n\n".join(part for part in (details, report) if part)

    def progress(self) -> tuple[str, int, int | None]:
        """Return the step before the session is open, as ("sending", done, total); total None if unknown."""
        if self._volume is not None and not self._volume.is_there:
            return "sending", self._volume.received, self._volume.total
        return getattr(self._session, "progress", None) or ("loading", 0, None)

    def retry(self) -> None:
        """Try again after a failure: the session is opened anew when it is needed next."""
        if self._failure is not None:
            self._failure = None
            self.close()
        if self._client is not None and self._client.state in _STOPPED:
            self._client.start()

    # The session --------------------------------------------------------------------------------------------

    @property
    def session(self) -> SessionClient | None:
        """The session, when it accepts prompts: also before it is open, and while the worker restarts."""
        if self._session is None or self._failure is not None or self._client.state in _STOPPED:
            return None
        return self._session

    @property
    def requested(self) -> SessionClient | None:
        """The session that was asked for, also after a failure: its records cannot be restored in another."""
        return self._session

    @property
    def modelInfo(self) -> Mapping[str, Any]:
        """``name`` of the session's model and, when it is open, ``weights_sha256``; empty without one."""
        known = {} if self.config is None else {"name": self.config.settings.model}
        info = self._session.info if self._session is not None else None
        return known if info is None else {**known, **info.model}

    @property
    def provenance(self) -> dict[str, Any]:
        """How masks of this session are made, as far as it is known; as of a ``Segmentation``."""
        if self._session is None or self.config is None or self.stack is None:
            return {}
        settings, info = self.config.settings, self._session.info
        known = {"slices": self.stack.key, "zoom": settings.zoom, "memory": settings.memory}
        if not settings.ordered:
            known["ordered"] = "no"
        return known if info is None else {**known, "window": info.window, "device": info.device}

    @property
    def checkedStack(self) -> SliceStack:
        """The slices of the session; PromptError when there are none."""
        if self.stack is None:
            message = self.problem or _("the volume cannot be cut into slices")
            raise PromptError(message, code="no-slices")
        return self.stack

    @property
    def origin(self) -> dict[str, Any] | None:
        """What masks of this session depend on, for JSON; None before there is one."""
        if self.config is None:
            return None
        stack, settings = self.config.seenAs
        known = {"stack": stack.to_json(), "model": settings.model, "window": settings.window}
        return known if settings.ordered else {**known, "ordered": False}

    def open(self, adapter: VolumeAdapter, view: Any, *, isPrompted: bool, fromView: bool = False) -> bool:
        """Open a session that fits the user's choices, unless it is open; whether it is another than before.

        Parameters
        ----------
        view
            The slice node the user worked in last; None before that.
        isPrompted
            Whether any segment has prompts: then the stack stays what it is.
        fromView
            Whether the user is about to prompt in ``view``.

        Raises
        ------
        MedSAM2Error
            The volume cannot be cut into such slices.
        """
        choice = self._choice(adapter, view, isPrompted, fromView)
        settings = self._settings(adapter, fromView)
        config = SessionConfig(adapter.key, choice, settings)
        if self.hasOtherWorker():
            self.release()
        if config == self.config:
            return False
        stack = adapter.cut(choice)
        self._failure = None
        self.close()
        self.stack, self.config, self.adapter = stack, config, adapter
        if not self.acquire():
            return False
        if self._volume is None or self._volumeKey != config.volumeKey:
            before, self._volume = self._volume, self._client.open_volume(adapter.volume)
            self._volumeKey = config.volumeKey
            if before is not None:
                self._client.close_volume(before)
        self._session = self._client.open_session(
            self._volume, choice, settings, opened=self.onChange, failed=self._onNotOpened
        )
        return True

    def close(self) -> None:
        """Close the session, and discard the answers that are on their way."""
        self.discardAnswers()
        session, self._session, self.config, self.stack = self._session, None, None, None
        if session is not None:
            session.close()

    def closeVolume(self) -> None:
        """Close the session and its volume: it was removed from the scene."""
        self.close()
        if self._client is not None and self._volume is not None:
            self._client.close_volume(self._volume)
        self._volume, self._volumeKey, self._failure, self.adapter = None, "", None, None

    def _onNotOpened(self, error: MedSAM2Error) -> None:
        if isinstance(error, Cancelled) or self._session is None:
            return
        self._failure = error
        self.onChange()

    # The stack ----------------------------------------------------------------------------------------------

    def alignTo(self, adapter: VolumeAdapter, axis: str) -> None:
        """Choose slices along a plane, if the first prompt was to decide: there is none yet."""
        if self._parameters.text("stack") == "auto":
            self._parameters.put("stackFound", json.dumps(adapter.stackAlong(axis).to_json()))

    def checkAlong(self, axis: str) -> None:
        """Raise PromptError when the slices of the session are not along a plane."""
        wanted = self.adapter.cut(self.adapter.stackAlong(axis))
        if self.stack.key != wanted.key:
            plane = wanted.key.partition(":")[0]
            raise PromptError(
                _(
                    "this Auto model looks at {plane} slices: choose them under Advanced, Slice direction, "
                    "or clear the prompts made on others"
                ).format(plane=plane),
                code="auto-model-other-plane",
                plane=plane,
            )

    def checkView(self, view: Any) -> None:
        """Raise PromptError where images of their own are prompted in a view across them."""
        isAcross = view is not None and self.adapter.sliceOfView(view, self.checkedStack) is None
        if isAcross and not self.config.settings.ordered:
            raise PromptError(
                _(
                    "the slices are images of their own, a view across them shows none: prompt in the view "
                    "along them, or choose another slice direction under Advanced"
                ),
                code="view-across-images",
            )

    def decideAnew(self) -> None:
        """Let the next prompt decide about the stack."""
        self._parameters.put("stackFound", "")

    def follow(self, matrix: NDArray[np.float64]) -> None:
        """Move oblique slices with volume and segmentation (4, 4), unless these were deformed."""
        turn = matrix[:3, :3]
        try:
            found = StackChoice.from_json(json.loads(self._parameters.text("stackFound")))
        except (MedSAM2Error, ValueError):
            return
        if found.axis or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6):
            return
        origin = matrix @ [*found.origin_ras, 1.0]
        rows, columns = turn @ found.row_direction_ras, turn @ found.column_direction_ras
        choice = StackChoice.oblique(origin[:3], rows, columns, found.spacing_mm)
        self._parameters.put("stackFound", json.dumps(choice.to_json()))

    def propagationOptions(self) -> dict[str, Any]:
        """Return range and direction of a propagation. PromptError when there are no such slices."""
        first, last = self._parameters.rangeOfSlices(len(self.stack) if self.stack else 1)
        patience = PATIENCE if self._parameters.isOn("stopWhenGone") else None
        direction = self._parameters.text("direction")
        options = {"first": first, "last": last, "direction": direction, "stop_after_absent": patience}
        if self._parameters.text("range") == "between" and self.session is not None:
            prompted = {name: self.session.prompts(name) for name in self.session.objects}
            options["limits"] = {name: (min(of), max(of)) for name, of in prompted.items() if of}
        return options

    def _choice(self, adapter: VolumeAdapter, view: Any, isPrompted: bool, fromView: bool) -> StackChoice:
        wanted = self._parameters.text("stack")
        if wanted in _PLANES:
            return StackChoice(wanted)
        if wanted == "images":
            return StackChoice("k")
        found = self._storedChoice(adapter)
        if wanted == "auto" and found is not None and isPrompted:
            return found
        if view is not None and (fromView or found is None):
            if found is not None and adapter.sliceOfView(view, adapter.cut(found)) is not None:
                return found
            found = adapter.stackOfView(view)
            if fromView:
                self._parameters.put("stackFound", json.dumps(found.to_json()))
        # Named as `stackOfView` names it, so that a first click in an axial view finds the session open.
        return found or StackChoice("ijk"[adapter.geometry.closest_axis("axial")])

    def _storedChoice(self, adapter: VolumeAdapter) -> StackChoice | None:
        """What was decided before, if it still fits the volume; None when the next prompt decides."""
        text = self._parameters.text("stackFound")
        if not text:
            return None
        if (text, adapter.key) != self._found[:2]:
            try:
                found = StackChoice.from_json(json.loads(text))
                adapter.cut(found)
            except (MedSAM2Error, ValueError):
                found = None  # edited by hand, or made for another volume
            self._found = text, adapter.key, found
        return self._found[2]

    def _settings(self, adapter: VolumeAdapter, fromView: bool) -> SessionSettings:
        window = self._parameters.text("window")
        if window == "displayed":
            # Read at a prompt only: while the user is still dragging the window, no session is opened.
            if fromView or self._displayed is None or self._displayed[0] != adapter.node.GetID():
                self._displayed = adapter.node.GetID(), adapter.displayedWindow() or "auto"
            window = self._displayed[1]
        else:
            self._displayed = None
        ordered = self._parameters.text("stack") != "images"
        return SessionSettings(model=self._parameters.text("model"), window=window, ordered=ordered)

    def forgetWindow(self) -> None:
        """Read the displayed window again: another segmentation is edited."""
        self._displayed = None

    # Prompts and answers ------------------------------------------------------------------------------------

    def setPrompts(
        self, segmentID: str, prompts: Mapping[int, SlicePrompts], snapshot: Any, *, isReplay: bool = False
    ) -> None:
        """Send prompts of a segment by slice; :attr:`onAnswer` gets the masks, unless newer were sent."""
        session = self._session
        self._serial += 1
        serial = self._serial
        for n in prompts:
            self._latest[segmentID, n] = serial
        self._waiting[serial] = segmentID
        sent = dict(prompts)
        session.set_prompts(
            segmentID,
            sent,
            done=partial(self._answered, session, serial, Answer(segmentID, sent, {}, snapshot, isReplay)),
            failed=partial(self._refused, session, serial, segmentID, sent),
        )

    def removeObject(self, segmentID: str) -> None:
        """Remove a segment, and discard the answers about it that are on their way."""
        self.discardAnswers(segmentID)
        session = self.session
        if session is not None and (session.prompts(segmentID) or session.masks(segmentID)):
            session.remove_object(segmentID)

    def isWaiting(self, segmentID: str | None = None) -> bool:
        """Whether an answer about a segment, or any, is on its way."""
        return bool(self._waiting) if segmentID is None else segmentID in self._waiting.values()

    def discardAnswers(self, segmentID: str | None = None) -> None:
        """Ignore the answers about a segment, or all, that are on their way."""
        self._waiting = {
            serial: of for serial, of in self._waiting.items() if segmentID is not None and of != segmentID
        }
        for key in [key for key in self._latest if segmentID is None or key[0] == segmentID]:
            del self._latest[key]

    def _answered(self, session: SessionClient, serial: int, asked: Answer, records: list[SliceMask]) -> None:
        if session is not self._session or self._waiting.pop(serial, None) is None:
            return
        latest = {n: p for n, p in asked.prompts.items() if self._latest.get((asked.segmentID, n)) == serial}
        masks = {record.n: record for record in records if record.n in latest}
        self.onAnswer(replace(asked, prompts=latest, masks=masks))
        self.onChange()

    def _refused(
        self,
        session: SessionClient,
        serial: int,
        segmentID: str,
        prompts: Mapping[int, SlicePrompts],
        error: MedSAM2Error,
    ) -> None:
        if session is not self._session or self._waiting.pop(serial, None) is None:
            return
        self.onRefusal(segmentID, prompts, error)
        self.onChange()


_PLANES = ("axial", "sagittal", "coronal")

#: The worker's state as the user's.
_PHASES = {
    WorkerState.STOPPED: Status.STARTING,
    WorkerState.STARTING: Status.STARTING,
    WorkerState.RESTARTING: Status.WORKER_LOST,
    WorkerState.FAILED: Status.FAILED,
}

#: States in which a worker accepts nothing until it is started.
_STOPPED = (WorkerState.STOPPED, WorkerState.FAILED)

#: Steps of the worker before a session is open.
_OPENING = {
    "sending": Status.SENDING,
    "downloading": Status.DOWNLOADING,
    "loading": Status.LOADING,
}


def changedSlices(
    before: Mapping[int, SlicePrompts], after: Mapping[int, SlicePrompts]
) -> dict[int, SlicePrompts]:
    """Return the slices whose prompts differ, with those after; known masks are not compared."""
    none = SlicePrompts()
    changed = {}
    for n in sorted({*before, *after}):
        now = after.get(n, none)
        if not now.asks_same(before.get(n, none)):
            changed[n] = now
    return changed
