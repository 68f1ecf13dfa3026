"""One connection to a worker, without a transport: requests become bytes, bytes become answers.

Callbacks are never called while bytes are read. They are put into `calls`, and whoever owns the client calls
them when its own books are in order; so a callback may do anything, even fail.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from medsam2_core.errors import MedSAM2Error, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.frames import Frame, FrameReader, encode
from medsam2_core.worker.masks import checked, slice_mask_from_json
from medsam2_core.worker.messages import error_from_json

#: Answered in the middle of a computation; none of them can be what ended a worker.
QUICK = frozenset({"hello", "bye", "ping", "cancel", "focus", "status", "close_session", "close_volume"})
QUICK |= {"train_auto", "export"}  # processes of their own
#: They wait for everything else.
PATIENT = frozenset({"propagate", "auto"})

#: A callback with its arguments, to be called when everything is in order.
Call = Callable[[], None]


@dataclass
class Blame:
    """How often the worker died of something; shared by all attempts at the same thing."""

    deaths: int = 0


def plain_result(frame: Frame) -> Any:
    """The fields of a result as they are."""
    return {name: value for name, value in frame.header.items() if name not in ("type", "re")}


def records_in(frame: Frame) -> list[SliceMask]:
    """The records a frame holds. ProtocolError when they are damaged."""
    return [slice_mask_from_json(item, frame.arrays) for item in checked(frame.header, "slices", list)]


@dataclass(eq=False)
class Request:
    """Something asked of the worker.

    Exactly one of `done` and `failed` is called; neither once :meth:`silence` was.

    Attributes
    ----------
    type, fields, arrays
        The message.
    done
        Gets the result: what `take` makes of the answer.
    failed
        Gets a MedSAM2Error; :class:`~medsam2_core.errors.Cancelled` after :meth:`cancel`.
    progress
        Gets what is being done, how much of it is done, and the total or None.
    note
        Gets what is said about it in words.
    slices
        Gets records as they come, how many slices are done, and the total or None.
    take
        Makes a result of an answer, and keeps the books; ProtocolError when the answer is damaged.
    seen, heard
        Keep the books for records, and for progress, that come before the result.
    settled
        Told, before `done` or `failed`, that the request is over.
    withdraw
        Who carries out :meth:`cancel`.
    blame
        How often it, or an earlier attempt at the same, ended the worker.
    id
        Its number on the connection it was sent over; None while it waits.
    """

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    done: Callable[[Any], None] | None = None
    failed: Callable[[MedSAM2Error], None] | None = None
    progress: Callable[[str, int, int | None], None] | None = None
    note: Callable[[str], None] | None = None
    slices: Callable[[list[SliceMask], int, int | None], None] | None = None
    take: Callable[[Frame], Any] = plain_result
    seen: Callable[[list[SliceMask]], None] | None = None
    heard: Callable[[str, int], None] | None = None
    settled: Callable[[Request], None] | None = None
    withdraw: Callable[[Request], None] | None = None
    blame: Blame = field(default_factory=Blame)
    id: int | None = None
    is_over: bool = False
    is_cancelled: bool = False
    is_silent: bool = False

    def cancel(self) -> None:
        """Ask the worker to leave it; `failed` gets Cancelled, unless it was done already."""
        if not self.is_over and not self.is_cancelled:
            self.is_cancelled = True
            if self.withdraw is not None:
                self.withdraw(self)

    def silence(self) -> None:
        """Nobody wants to hear of it any more."""
        self.is_silent = self.is_over = True

    def fail(self, error: MedSAM2Error, calls: deque[Call]) -> None:
        """End it with an error, whether it was sent or not."""
        if not self.is_over:
            self.close()
            self.call(calls, self.failed, error)

    def close(self) -> None:
        """It is over: the books are told."""
        self.is_over = True
        if self.settled is not None:
            self.settled(self)

    def call(self, calls: deque[Call], callback: Callable[..., None] | None, *arguments: Any) -> None:
        """Put a callback among the calls; it is left out if the request is silent by then."""
        if callback is not None:
            calls.append(lambda: None if self.is_silent else callback(*arguments))


class Client:
    """Speaks the protocol over one connection.

    Parameters
    ----------
    ids
        Where the numbers of requests come from.
    calls
        Where callbacks are put.

    Attributes
    ----------
    open
        Requests without an answer, by id, in the order they were sent.
    stray
        Errors of the worker that no request is to blame for.
    moves
        How many answers came that tell of a computation.
    """

    def __init__(self, ids: Iterator[int] | None = None, calls: deque[Call] | None = None) -> None:
        self._ids = itertools.count(1) if ids is None else ids
        self.calls: deque[Call] = deque() if calls is None else calls
        self.open: dict[int, Request] = {}
        self.stray: list[MedSAM2Error] = []
        self.moves = 0
        self._outgoing: list[bytes] = []
        self._reader = FrameReader(skip_banner=True)

    @property
    def banner(self) -> str:
        """What was printed before the first frame."""
        return self._reader.banner.decode(errors="replace").strip()

    def send(self, request: Request) -> Request:
        """Write a request; one that is larger than the protocol allows fails."""
        number = next(self._ids)
        header = {**request.fields, "type": request.type, "id": number}
        try:
            self._outgoing.append(b"".join(encode(header, request.arrays, compress=True)))
        except ProtocolError as error:
            request.fail(error, self.calls)
            return request
        request.id = number
        self.open[number] = request
        return request

    def tell(
        self,
        type: str,
        fields: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        compress: bool = False,
    ) -> int:
        """Write a message that has no answer of its own; how many bytes it takes."""
        data = b"".join(encode({**fields, "type": type}, arrays, compress=compress))
        self._outgoing.append(data)
        return len(data)

    def take_outgoing(self) -> list[bytes]:
        """What is to be handed to the transport, in order; it is kept no longer."""
        data, self._outgoing = self._outgoing, []
        return data

    def feed(self, data: bytes) -> None:
        """Read bytes that came. ProtocolError when they are damaged: the connection is of no use then."""
        for frame in self._reader.feed(data):
            self._handle(frame)
        self._reader.feed(b"")  # damage behind whole frames shows only now

    def _handle(self, frame: Frame) -> None:
        number = frame.header.get("re")
        request = self.open.get(number) if isinstance(number, int) else None
        self.moves += request is not None and request.type not in QUICK
        if frame.type == "error":
            error = error_from_json(frame.header)
            if request is None:
                self.stray.append(error)
            else:
                self.open.pop(request.id, None)
                request.fail(error, self.calls)
        elif frame.type not in ("result", "progress", "slice"):
            raise ProtocolError(
                f"unknown answer {frame.type[:60]!r}: client and worker may be of different versions"
            )
        elif request is not None:  # else its answer came before, or nobody wants it any more
            self._answer(request, frame)

    def _answer(self, request: Request, frame: Frame) -> None:
        if frame.type == "result":
            result = request.take(frame)
            self.open.pop(request.id, None)
            request.close()
            request.call(self.calls, request.done, result)
            return
        done, total = checked(frame.header, "done", int), frame.header.get("total")
        if total is not None:
            total = checked(frame.header, "total", int)
        if frame.type == "slice":
            records = records_in(frame)
            if request.seen is not None:
                request.seen(records)
            request.call(self.calls, request.slices, records, done, total)
        else:
            what = checked(frame.header, "what", str)
            if request.heard is not None:
                request.heard(what, done)
            request.call(self.calls, request.progress, what, done, total)
            if isinstance(frame.header.get("message"), str):
                request.call(self.calls, request.note, frame.header["message"])
