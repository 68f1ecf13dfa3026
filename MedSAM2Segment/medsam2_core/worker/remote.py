"""A session in the worker, seen from here: what it was told and answered, for the next worker to be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from medsam2_core.errors import Cancelled, MedSAM2Error, ProtocolError, WorkerError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.books import Books
from medsam2_core.worker.client import Blame, Call, Request, records_in
from medsam2_core.worker.findings import AutoWish, Slices, auto_request
from medsam2_core.worker.frames import Frame
from medsam2_core.worker.masks import checked
from medsam2_core.worker.messages import (
    ObjectRecord,
    SessionSettings,
    SlicePrompts,
    StackChoice,
    words_to_json,
)
from medsam2_core.worker.volumes import RemoteVolume

Done = Callable[[Any], None]
Failed = Callable[[MedSAM2Error], None]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class SessionInfo:
    """What the worker told when it opened a session.

    Attributes
    ----------
    slices, shape_hw
        How many slices there are, and their rows and columns.
    window
        ``{"width", "level"}`` of what the model sees.
    model
        ``{"name", "title", "weights_sha256"}``; a worker of an earlier version tells no hash.
    device
        Where it computes.
    """

    slices: int
    shape_hw: tuple[int, int]
    window: Mapping[str, Any]
    model: Mapping[str, Any]
    device: Any

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> SessionInfo:
        """From the result of `open_session`."""
        shape = checked(item, "shape_hw", list)
        if len(shape) != 2 or not all(type(length) is int and length > 0 for length in shape):
            raise ProtocolError(f"shape_hw must be two whole numbers, not {repr(shape)[:60]}")
        window, model = checked(item, "window", dict), checked(item, "model", dict)
        return cls(checked(item, "slices", int), (shape[0], shape[1]), window, model, item.get("device"))


class Port(Protocol):
    """What a session needs of its supervisor."""

    calls: deque[Call]

    @property
    def refusal(self) -> WorkerError | None:
        """Why nothing can be asked now; None when it can, at once or soon."""

    def post(self, request: Request) -> None:
        """Send over the present connection."""

    def withdraw(self, request: Request) -> None:
        """Carry out :meth:`Request.cancel`."""

    def drop(self, request: Request) -> None:
        """Forget a request whose answer nobody wants."""

    def forget(self, session: RemoteSession) -> None:
        """The session is closed."""


@dataclass(eq=False)
class _Waiting:
    """A request without an answer, and what it will change in the books of which object."""

    request: Request
    object: str = ""
    change: Callable[[dict[str, Books]], None] | None = None


class RemoteSession:
    """One volume's session in the worker; made by :meth:`Supervisor.open_session`.

    It outlives the worker: a new one is told everything again. Nothing here waits, and callbacks are called
    only while the supervisor ticks or reads.

    Attributes
    ----------
    volume, stack, settings
        What it was opened with.
    info
        SessionInfo; None until a worker has opened it.
    is_open
        Whether the present worker has opened it, and knows all that was known.
    is_closed
        Whether it is over.
    progress
        While it is being opened, what the worker does: as for a request's `progress`; else None.
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
        self.name = name
        self.volume, self.stack, self.settings = volume, stack, settings
        self.info: SessionInfo | None = None
        self.is_open = False
        self.is_closed = False
        self.progress: tuple[str, int, int | None] | None = None
        self._port = port
        self._failed, self._opened = failed, opened
        self._books: dict[str, Books] = {}
        self._waiting: list[_Waiting] = []
        self._own: list[Request] = []  # open_session and the restoring of objects, on the present connection
        self._blame = Blame()
        self._focus: int | None = None

    def say(
        self,
        object: str,
        slices: Mapping[int, SlicePrompts],
        done: Callable[[list[SliceMask]], None] | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Replace what was said about an object on these slices; `done` gets the records of the answer."""
        said = dict(slices)
        arrays: dict[str, NDArray[Any]] = {}
        told = [words_to_json(n, words, arrays) for n, words in sorted(said.items())]
        request = Request("say", {"object": object, "slices": told}, arrays, done, failed, progress)

        def take(frame: Frame) -> list[SliceMask]:
            records = self._checked(records_in(frame))
            self._books.setdefault(object, Books()).say(said, records)
            return records

        request.take = take
        return self._ask(request, object, lambda books: books.setdefault(object, Books()).say(said))

    def restore(
        self,
        object: str,
        record: ObjectRecord,
        done: Callable[[list[SliceMask]], None] | None = None,
        failed: Failed | None = None,
    ) -> Request:
        """Replace all that is known of an object; `done` gets the worker's records of the prompted slices."""
        request = self._restoring(object, record, done, failed)

        def take(frame: Frame) -> list[SliceMask]:
            records = self._checked(records_in(frame))
            books = self._books[object] = Books.of(record)
            books.records.update({answer.n: answer for answer in records})
            return records

        def change(books: dict[str, Books]) -> None:
            books[object] = Books.of(record)

        request.take = take
        return self._ask(request, object, change)

    def propagate(
        self,
        objects: Iterable[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        direction: str = "both",
        stop_after_absent: int | None = 3,
        *,
        slices: Callable[[list[SliceMask], int, int | None], None] | None = None,
        done: Done | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
    ) -> Request:
        """Follow objects through the slices; `slices` gets records as they come, with done and total.

        If the worker is lost meanwhile, `failed` gets WorkerError, and what came is kept.
        """
        named = None if objects is None else list(objects)
        fields = {"objects": named, "first": first, "last": last, "direction": direction}
        fields["stop_after_absent"] = stop_after_absent
        request = Request("propagate", fields, done=done, failed=failed, progress=progress, slices=slices)

        def seen(records: list[SliceMask]) -> None:
            for record in self._checked(records):
                if record.object in self._books:
                    self._books[record.object].records[record.n] = record

        request.seen = seen
        return self._ask(request)

    def auto(self, wish: AutoWish, slices: Slices | None = None, **callbacks: Any) -> Request:
        """Ask an Auto model; `done` gets a list of ClassFinding, and nothing changes here or in the worker.

        `callbacks` are those of a request: done, failed, progress. If the worker is lost, it is asked again.
        """
        return self._ask(auto_request(wish, self._checked, slices, **callbacks))

    def remove_object(self, name: str, done: Done | None = None, failed: Failed | None = None) -> Request:
        """Forget an object."""
        request = Request("remove_object", {"object": name}, done=done, failed=failed)

        def take(frame: Frame) -> None:
            self._books.pop(name, None)

        request.take = take
        return self._ask(request, name, lambda books: books.pop(name, None))

    def focus(self, n: int) -> None:
        """The user looks at slice `n`: its neighbours are made ready while there is nothing else to do."""
        if self.is_open and n != self._focus:
            self._focus = n
            self._port.post(Request("focus", {"session": self.name, "n": n}))

    def close(self) -> None:
        """Forget the session, here and in the worker; nobody is called back any more."""
        if self.is_closed:
            return
        for request in (*self._own, *(waiting.request for waiting in self._waiting)):
            request.silence()
            self._port.drop(request)
        if self.is_open or self._own:
            self._port.post(Request("close_session", {"session": self.name}))
        self._waiting, self._own = [], []
        self._opened = self._failed = None
        self._over()

    def words(self, object: str) -> dict[int, SlicePrompts]:
        """What the session was told of an object, by slice; what is still to be answered counts."""
        return dict(self._seen(object).words)

    def records(self, object: str) -> dict[int, SliceMask]:
        """The masks the session has told of an object, by slice."""
        return dict(self._seen(object).records)

    def snapshot(self, object: str) -> ObjectRecord:
        """Words and records as they are now, for :meth:`restore`."""
        return self._seen(object).record

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects that words or masks are known of."""
        names = dict.fromkeys([*self._books, *(w.object for w in self._waiting if w.object)])
        return tuple(name for name in names if self._seen(name).words or self._seen(name).records)

    def _seen(self, object: str) -> Books:
        changes = [w.change for w in self._waiting if w.object == object and w.change is not None]
        known = self._books.get(object, Books())
        books = {object: Books.of(known.record) if changes else known}
        for change in changes:
            change(books)
        return books.get(object, Books())

    def _checked(self, records: list[SliceMask]) -> list[SliceMask]:
        for record in records:
            if self.info is not None and (
                record.shape_hw != self.info.shape_hw or record.n >= self.info.slices
            ):  # fmt: skip
                raise ProtocolError(f"slice {record.n} of {record.shape_hw} pixels is not of this session")
        return records

    def _restoring(
        self, object: str, record: ObjectRecord, done: Done | None, failed: Failed | None
    ) -> Request:
        arrays: dict[str, NDArray[Any]] = {}
        fields = {"session": self.name, "object": object, **record.to_json(arrays)}
        return Request("restore", fields, arrays, done, failed)

    def _ask(
        self, request: Request, object: str = "", change: Callable[[dict[str, Books]], None] | None = None
    ) -> Request:
        """Send it, or let it wait until it can be sent."""
        request.fields = {**request.fields, "session": self.name}
        refusal = self._port.refusal
        if self.is_closed:
            refusal = WorkerError(f"{request.type}: the session is closed; open another")
        if refusal is not None:
            request.fail(refusal, self._port.calls)
            return request
        waiting = _Waiting(request, object, change)
        request.withdraw = self._port.withdraw
        request.settled = lambda _: self._waiting.remove(waiting)
        self._waiting.append(waiting)
        if self.is_open:
            self._port.post(request)
        return request

    # What follows is called by the supervisor.

    def begin(self) -> None:
        """The worker has the volume: open the session there, and tell it everything again."""
        fields = {"session": self.name, "volume": self.volume.name, "stack": self.stack.to_json()}
        fields["settings"] = self.settings.to_json()
        opening = Request("open_session", fields, done=self._on_opened, failed=self.fail, blame=self._blame)
        opening.take, opening.progress = self._take_opened, self._on_progress
        self._post_own(opening)

    def _post_own(self, request: Request) -> None:
        def settled(over: Request) -> None:
            self._own.remove(over)
            if not self._own:
                self._go_on()

        request.settled = settled
        self._own.append(request)
        self._port.post(request)

    def _take_opened(self, frame: Frame) -> None:
        self.info = SessionInfo.from_json(frame.header)
        for name, books in self._books.items():
            if books.words or books.records:
                restoring = self._restoring(name, books.record, None, self.fail)
                restoring.blame = self._blame
                self._post_own(restoring)

    def _go_on(self) -> None:
        """The worker knows all that it knew. Only now it is asked more, so that it is clear what ended it."""
        self.is_open, self.progress = True, None
        self._blame.deaths = 0
        for waiting in list(self._waiting):
            self._port.post(waiting.request)

    def _on_progress(self, what: str, done: int, total: int | None) -> None:
        self.progress = None if self.is_open else (what, done, total)

    def _on_opened(self, _: Any) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened()

    def lost(self, reason: str, too_many: int = 2) -> None:
        """The connection is gone. What was asked is asked again of the next, unless it ended two workers."""
        self.is_open, self.progress = False, None
        self._focus = None
        self._own = []
        if self._blame.deaths >= too_many:
            self.fail(WorkerError(f"the worker was lost twice while it opened the session: {reason}"))
            return
        for request in [waiting.request for waiting in self._waiting]:
            was_sent, request.id = request.id is not None, None
            if request.is_cancelled:
                request.fail(Cancelled(f"{request.type} was cancelled"), self._port.calls)
            elif request.type == "propagate" and was_sent:
                kept = "the slices that came are kept"
                request.fail(
                    WorkerError(f"the worker was lost while propagating, {kept}: {reason}"), self._port.calls
                )
            elif request.blame.deaths >= too_many:
                again = "it is not asked again"
                request.fail(
                    WorkerError(f"the worker was lost twice at this, {again}: {reason}"), self._port.calls
                )

    def refuse(self, error: WorkerError) -> None:
        """There will be no worker: all that waits fails, but the session can be told to a later one."""
        for waiting in list(self._waiting):
            waiting.request.fail(error, self._port.calls)

    def fail(self, error: MedSAM2Error) -> None:
        """The session cannot be opened: it is closed, and all that waits fails."""
        if self.is_closed:
            return
        failed, self._failed, self._opened = self._failed, None, None
        self.refuse(
            error if isinstance(error, WorkerError) else WorkerError(f"the session is closed: {error}")
        )
        self._over()
        if failed is not None:
            self._port.calls.append(lambda: failed(error))

    def _over(self) -> None:
        self.is_open, self.is_closed = False, True
        self._port.forget(self)
