"""Client of a session in the worker. Its state is kept here, so that it survives the loss of a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from medsam2_core.auto.predictions import AutoPrediction
from medsam2_core.errors import MedSAM2Error, ProtocolError, WorkerError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts.types import SlicePrompts
from medsam2_core.worker.job_messages import AutoRequest, SearchRequest, prediction_from_json
from medsam2_core.worker.messages import (
    ObjectSnapshot,
    SessionSettings,
    StackChoice,
    masks_from_json,
    slice_prompts_to_json,
)
from medsam2_core.worker.protocol import Arrays, Frame, checked
from medsam2_core.worker.requests import (
    TOO_MANY_CRASHES,
    Call,
    CrashCounter,
    Done,
    Failed,
    Progress,
    Request,
    Slices,
)
from medsam2_core.worker.uploads import RemoteVolume

Change = Callable[[ObjectSnapshot], ObjectSnapshot]


@dataclass(frozen=True)
class SessionInfo:
    """Description of an opened session.

    Attributes
    ----------
    window
        ``{"width", "level"}`` of the intensities the model sees.
    model
        ``{"name", "title", "weights_sha256", "weights_key"}``.
    """

    slices: int
    shape_hw: tuple[int, int]
    window: Mapping[str, Any]
    model: Mapping[str, Any]
    device: Any

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> SessionInfo:
        """Read the result of `open_session`."""
        shape = checked(item, "shape_hw", list)
        if len(shape) != 2 or not all(type(length) is int and length > 0 for length in shape):
            raise ProtocolError(
                f"shape_hw must be two whole numbers, not {repr(shape)[:60]}", code="message-field"
            )
        window, model = checked(item, "window", dict), checked(item, "model", dict)
        return cls(checked(item, "slices", int), (shape[0], shape[1]), window, model, item.get("device"))


class Port(Protocol):
    """What a session needs from its WorkerClient."""

    calls: deque[Call]

    @property
    def refusal(self) -> WorkerError | None:
        """Why requests are refused now; None when they are accepted."""

    def post(self, request: Request) -> None:
        """Send a request over the present connection."""

    def cancel(self, request: Request) -> None:
        """Carry out :meth:`Request.cancel`."""

    def abandon(self, request: Request) -> None:
        """Ignore the answer of a request."""

    def remove(self, session: SessionClient) -> None:
        """Remove a closed session from the list."""


@dataclass(eq=False)
class _Pending:
    """An unanswered request, and the change it will make to the state of an object."""

    request: Request
    object: str = ""
    change: Change | None = None


class SessionClient:
    """One session in the worker; made by :meth:`WorkerClient.open_session`.

    Everything is sent again to a new worker. No method blocks; callbacks are called only while the client
    ticks or reads.

    Attributes
    ----------
    info
        SessionInfo; None until a worker has opened it.
    is_open
        Whether the present worker has opened it and has its whole state.
    is_closed
        Whether it was closed, or could not be opened.
    progress
        Progress while the worker opens the session, as for `Request.progress`; otherwise None.
    """

    def __init__(
        self,
        port: Port,
        name: str,
        volume: RemoteVolume,
        stack: StackChoice,
        settings: SessionSettings,
        *,
        failed: Failed | None = None,
        opened: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.volume, self.stack, self.settings = name, volume, stack, settings
        self.info: SessionInfo | None = None
        self.is_open = self.is_closed = False
        self.progress: tuple[str, int, int | None] | None = None
        self._port, self._failed, self._opened = port, failed, opened
        self._objects: dict[str, ObjectSnapshot] = {}  # as the worker has answered
        self._pending: list[_Pending] = []
        self._opening: list[Request] = []  # open_session and the restoring of objects
        self._crashes = CrashCounter()
        self._prefetched: int | None = None

    # Requests of the user -----------------------------------------------------------------------------------

    def set_prompts(
        self,
        object: str,
        slices: Mapping[int, SlicePrompts],
        done: Callable[[list[SliceMask]], None] | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Replace all prompts of an object on these slices; `done` gets the new masks."""
        prompts, arrays = dict(slices), Arrays()
        items = [slice_prompts_to_json(n, one, arrays) for n, one in sorted(prompts.items())]
        request = Request("set_prompts", {"object": object, "slices": items}, arrays, done, failed, progress)

        def parse(frame: Frame) -> list[SliceMask]:
            masks = self._checked(masks_from_json(frame))
            self._objects[object] = self._known(object).with_prompts(prompts, masks)
            return masks

        request.parse = parse
        return self._ask(request, object, lambda state: state.with_prompts(prompts))

    def restore(
        self,
        object: str,
        state: ObjectSnapshot,
        done: Callable[[list[SliceMask]], None] | None = None,
        failed: Failed | None = None,
    ) -> Request:
        """Replace the state of an object; `done` gets the masks of the prompted slices."""
        request = self._restore_request(object, state, done, failed)

        def parse(frame: Frame) -> list[SliceMask]:
            masks = self._checked(masks_from_json(frame))
            self._objects[object] = state.with_masks(masks)
            return masks

        request.parse = parse
        return self._ask(request, object, lambda _: state)

    def propagate(
        self,
        objects: Iterable[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        direction: str = "both",
        stop_after_absent: int | None = 3,
        *,
        limits: Mapping[str, tuple[int, int]] | None = None,
        overlap: bool = True,
        outward: bool = False,
        slices: Slices | None = None,
        done: Done | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Propagate objects through the slices; `slices` gets masks as they arrive.

        `limits` has the first and last slice of single objects. Without `overlap`, a pixel claimed by two
        objects belongs to one of them; a mask may then be sent again, with the slice of another one. With
        `outward`, slices around changed ones come first. If the worker is lost meanwhile, `failed` gets
        WorkerError, and the masks received are kept.
        """
        names = None if objects is None else list(objects)
        fields: dict[str, Any] = {"objects": names, "first": first, "last": last, "direction": direction}
        fields["stop_after_absent"] = stop_after_absent
        if not overlap:
            fields["overlap"] = False
        if outward:
            fields["outward"] = True
        if limits is not None:
            fields["limits"] = {name: list(limit) for name, limit in limits.items()}
        request = Request("propagate", fields, done=done, failed=failed, progress=progress, slices=slices)
        request.is_replayed = False

        def on_slices(masks: list[SliceMask]) -> None:
            for mask in self._checked(masks):
                if mask.object in self._objects:
                    self._objects[mask.object] = self._known(mask.object).with_masks([mask])

        request.on_slices = on_slices
        return self._ask(request)

    def auto(
        self,
        wanted: AutoRequest,
        slices: Slices | None = None,
        done: Done | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Run an Auto model; `done` gets a list of AutoPrediction. The session does not change.

        If the worker is lost, the request is sent to the next one.
        """
        return self._predict(Request("auto", wanted.to_json(), {}, done, failed, progress, slices=slices))

    def find(
        self,
        wanted: SearchRequest,
        slices: Slices | None = None,
        done: Done | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Look for objects of another scan; as :meth:`auto`."""
        arrays = Arrays()
        return self._predict(
            Request("find", wanted.to_json(arrays), arrays, done, failed, progress, slices=slices)
        )

    def _predict(self, request: Request) -> Request:
        predicted: dict[tuple[str, int], SliceMask] = {}

        def on_slices(masks: list[SliceMask]) -> None:
            predicted.update({(mask.object, mask.n): mask for mask in self._checked(masks)})

        def parse(frame: Frame) -> list[AutoPrediction]:
            items = checked(frame.header, "classes", list)
            return [prediction_from_json(item, frame.arrays, predicted) for item in items]

        request.on_slices, request.parse = on_slices, parse
        return self._ask(request)

    def remove_object(self, name: str, done: Done | None = None, failed: Failed | None = None) -> Request:
        """Remove an object from the session."""
        request = Request("remove_object", {"object": name}, done=done, failed=failed)

        def parse(_: Frame) -> None:
            self._objects.pop(name, None)

        request.parse = parse
        return self._ask(request, name, lambda _: ObjectSnapshot())

    def prefetch(self, n: int) -> None:
        """Encode the slices around `n`, the one being viewed, while the worker is idle."""
        if self.is_open and n != self._prefetched:
            self._prefetched = n
            self._port.post(Request("prefetch", {"session": self.name, "n": n}))

    def close(self) -> None:
        """Close the session, here and in the worker, and drop its callbacks."""
        if self.is_closed:
            return
        for request in (*self._opening, *(pending.request for pending in self._pending)):
            request.silence()
            self._port.abandon(request)
        if self.is_open or self._opening:
            self._port.post(Request("close_session", {"session": self.name}))
        self._pending, self._opening = [], []
        self._opened = self._failed = None
        self._set_closed()

    # State --------------------------------------------------------------------------------------------------

    def prompts(self, object: str) -> dict[int, SlicePrompts]:
        """Return an object's prompts by slice, including those not answered yet."""
        return dict(self._expected(object).prompts)

    def masks(self, object: str) -> dict[int, SliceMask]:
        """Return an object's masks by slice; where new prompts are not answered yet, the old ones."""
        return dict(self._expected(object).masks)

    def snapshot(self, object: str) -> ObjectSnapshot:
        """Return the present prompts and masks, for :meth:`restore`."""
        return self._expected(object).without_outdated()

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects with prompts or masks."""
        names = dict.fromkeys([*self._objects, *(one.object for one in self._pending if one.object)])
        return tuple(name for name in names if self._expected(name))

    def _known(self, object: str) -> ObjectSnapshot:
        return self._objects.get(object, ObjectSnapshot())

    def _expected(self, object: str) -> ObjectSnapshot:
        state = self._known(object)
        for pending in self._pending:
            if pending.object == object and pending.change is not None:
                state = pending.change(state)
        return state

    def _checked(self, masks: list[SliceMask]) -> list[SliceMask]:
        for mask in masks:
            if self.info is not None and (mask.shape_hw != self.info.shape_hw or mask.n >= self.info.slices):
                raise ProtocolError(
                    f"slice {mask.n} of {mask.shape_hw} pixels is not of this session", code="message-field"
                )
        return masks

    # Requests -----------------------------------------------------------------------------------------------

    def _restore_request(
        self, object: str, state: ObjectSnapshot, done: Done | None, failed: Failed | None
    ) -> Request:
        arrays = Arrays()
        fields = {"session": self.name, "object": object, **state.to_json(arrays)}
        return Request("restore", fields, arrays, done, failed)

    def _ask(self, request: Request, object: str = "", change: Change | None = None) -> Request:
        """Send a request, or keep it until the session is open."""
        request.fields = {**request.fields, "session": self.name}
        refusal = self._port.refusal
        if self.is_closed:
            refusal = WorkerError(
                f"{request.type}: the session is closed; open another", code="session-closed"
            )
        if refusal is not None:
            request.fail(refusal, self._port.calls)
            return request
        pending = _Pending(request, object, change)
        request.canceller, request.on_end = self._port.cancel, lambda _: self._pending.remove(pending)
        self._pending.append(pending)
        if self.is_open:
            self._port.post(request)
        return request

    # Called by the client -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the session in a worker that has the volume, and restore its objects."""
        fields = {"session": self.name, "volume": self.volume.name, "stack": self.stack.to_json()}
        fields["settings"] = asdict(self.settings)
        request = Request("open_session", fields, done=self._on_opened)
        request.parse, request.progress = self._parse_opened, self._on_progress
        self._post_opening(request)

    def _post_opening(self, request: Request) -> None:
        request.failed, request.crashes, request.on_end = self.fail, self._crashes, self._on_opening_end
        self._opening.append(request)
        self._port.post(request)

    def _parse_opened(self, frame: Frame) -> None:
        self.info = SessionInfo.from_json(frame.header)
        for name, state in self._objects.items():
            if state:
                self._post_opening(self._restore_request(name, state.without_outdated(), None, None))

    def _on_opening_end(self, request: Request) -> None:
        """Send pending requests once all objects are restored, so that a crash has one suspect."""
        self._opening.remove(request)
        if not self._opening and not request.has_failed:
            self.is_open, self.progress = True, None
            self._crashes.count = 0
            for pending in list(self._pending):
                self._port.post(pending.request)

    def _on_progress(self, what: str, done: int, total: int | None) -> None:
        self.progress = None if self.is_open else (what, done, total)

    def _on_opened(self, _: Any) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened()

    def worker_lost(self, reason: str) -> None:
        """Prepare for the next worker."""
        self.is_open, self.progress, self._prefetched, self._opening = False, None, None, []
        if self._crashes.count >= TOO_MANY_CRASHES:
            message = f"the worker was lost twice while it opened the session: {reason}"
            self.fail(WorkerError(message, code="worker-lost-twice", request="open_session"))
            return
        for request in [pending.request for pending in self._pending]:
            request.worker_lost(reason, self._port.calls)

    def refuse(self, error: WorkerError) -> None:
        """Fail all pending requests because there will be no worker; the state is kept for a later one."""
        for pending in list(self._pending):
            pending.request.fail(error, self._port.calls)

    def fail(self, error: MedSAM2Error) -> None:
        """Close the session because it cannot be opened, and fail all pending requests."""
        if self.is_closed:
            return
        failed, self._failed, self._opened = self._failed, None, None
        closed = WorkerError(f"the session is closed: {error}", code="session-closed")
        self.refuse(error if isinstance(error, WorkerError) else closed)
        self._set_closed()
        if failed is not None:
            self._port.calls.append(partial(failed, error))

    def _set_closed(self) -> None:
        self.is_open, self.is_closed = False, True
        self._port.remove(self)
