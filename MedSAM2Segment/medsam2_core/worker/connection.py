"""The client's connection to one worker process: requests, answers, and signs of life.

Callbacks are never called while bytes are read. They are queued in `calls`, and the owner of the connection
calls them once its own state is consistent, so a callback may do anything, including raise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medsam2_core.errors import MedSAM2Error, ProtocolError, VolumeError
from medsam2_core.version import __version__
from medsam2_core.worker.messages import masks_from_json
from medsam2_core.worker.protocol import (
    IMMEDIATE,
    PREEMPTIBLE,
    PROTOCOLS,
    SEPARATE,
    Arrays,
    Frame,
    FrameReader,
    checked,
    encode,
    error_from_json,
    optional,
)
from medsam2_core.worker.requests import Call, Request, result_fields
from medsam2_core.worker.transports import Transport
from medsam2_core.worker.uploads import RemoteVolume, SendWindow, Upload

_LONGEST_TICK_S = 0.5  # a longer time between two ticks means that this process itself was not listening
_KEPT_STDERR = 16_000  # bytes
_SCALE = 4  # a limit is at least this many times the slowest time measured
_COMPUTING_SCALE = 10  # and this many times longer for a step that uses the processor


@dataclass(frozen=True)
class Timing:
    """Time-outs in seconds; all but `start` scale with measured times, so that slow workers are not killed.

    Attributes
    ----------
    start
        From the start to the first answer; long, because a batch system may queue the job.
    quiet
        Time without a message after which the worker is pinged.
    pong
        For the answer to a ping: this, or four times the slowest answer so far.
    loading
        The same while a session is being opened, since imports can block a whole process: this, or four times
        the worker's start-up time.
    step
        For one step of a computation: this, or four times the slowest step so far; ten times that while the
        worker uses the processor, because then it is slow rather than stuck.
    pauses
        Before the first, second … restart.
    crashes, within
        Give up after this many lost workers within this many seconds.
    """

    start: float = 300.0
    quiet: float = 2.0
    pong: float = 10.0
    loading: float = 40.0
    step: float = 120.0
    pauses: tuple[float, ...] = (0.1, 1.0, 4.0)
    crashes: int = 3
    within: float = 60.0


class Owner(Protocol):
    """Receives the events of a connection."""

    def on_welcome(self, connection: Connection) -> None:
        """The worker has answered `hello`."""

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The connection is lost; called once."""

    def deliver(self) -> None:
        """Bytes were read: call the queued callbacks."""


class Connection:
    """Starts a worker and exchanges messages with it until it is lost; the listener of its transport.

    Parameters
    ----------
    patience
        Factor for the time-outs of hanging workers; above 1 after earlier workers seemed to hang.

    Attributes
    ----------
    open
        Requests without an answer, by id, in the order they were sent.
    is_lost, is_hung
        Whether the connection has ended, and whether because the worker seemed to hang.
    stray
        Errors from the worker that belong to no request.
    """

    def __init__(
        self,
        transport: Transport,
        owner: Owner,
        ids: Iterator[int],
        calls: deque[Call],
        clock: Callable[[], float],
        timing: Timing,
        patience: float = 1.0,
    ) -> None:
        self.open: dict[int, Request] = {}
        self.welcome: dict[str, Any] = {}
        self.stray: list[MedSAM2Error] = []
        self.is_lost = self.is_hung = False
        self._transport, self._owner, self._ids, self._calls = transport, owner, ids, calls
        self._clock, self._timing, self._patience = clock, timing, patience
        self._reader = FrameReader(skip_banner=True)
        self._stderr = b""
        self._window = SendWindow(clock)
        self._uploads: list[Upload] = []
        self._ping: Request | None = None
        self._ping_at, self._tick = 0.0, clock()
        self._silent_s = 0.0  # without any message
        self._still_s = 0.0  # without any message but pongs
        self._slowest_pong = self._slowest_step = self._startup = self._cpu_mark = 0.0
        self._pending = 0

    # Sending ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker and greet it."""
        self._transport.start(self)
        if not self.is_lost:
            fields = {"protocols": list(PROTOCOLS), "client": f"MedSAM2Segment {__version__}"}
            hello = Request("hello", fields, parse=self._parse_welcome)
            hello.failed = lambda error: self.lose(str(error))
            self.send(hello)

    def send(self, request: Request) -> Request:
        """Write a request now, ahead of the rest of any volume; fail it if it is too large."""
        number = next(self._ids)
        try:
            self._write({**request.fields, "type": request.type, "id": number}, request.arrays, compress=True)
        except ProtocolError as error:
            request.fail(error, self._calls)
            return request
        request.id = number
        self.open[number] = request
        return request

    def send_volume(
        self, remote: RemoteVolume, arrived: Callable[[], None], failed: Callable[[MedSAM2Error], None]
    ) -> None:
        """Send a volume at the speed of the link.

        `arrived` is called as soon as the worker has all of it; `failed` is queued.
        """

        def send(fields: dict[str, Any], arrays: Arrays, compress: bool) -> int:
            return self._write({**fields, "type": "volume_data"}, arrays, compress=compress)

        def parse(_: Frame) -> None:
            upload.finish()
            arrived()

        upload = Upload(remote, self._window, send)
        request = Request("open_volume", remote.description(), failed=failed, parse=parse)
        request.crashes = remote.crashes
        request.on_progress, request.on_end = upload.acknowledge, lambda _: upload.stop()
        if remote.is_too_large:
            size = remote.bytes_per_slice
            message = (
                f"a slice of the volume has {size >> 20} MB, more than the worker takes: crop or resample it"
            )
            request.fail(VolumeError(message, code="slice-too-large", bytes=size), self._calls)
            return
        self._uploads.append(upload)
        self.send(request)
        self.pump()

    def stop_volume(self, remote: RemoteVolume) -> None:
        """Stop sending a volume."""
        for upload in self._uploads:
            if upload.remote is remote:
                upload.stop()

    def pump(self) -> None:
        """Send what may be sent of the volumes now."""
        for upload in self._uploads:
            while upload.may_send and not self.is_lost:
                if upload.send_slab():  # compression takes time, and the caller may be a user interface
                    return
        self._uploads = [upload for upload in self._uploads if not upload.is_sent]

    def _write(self, header: Mapping[str, Any], arrays: Mapping[str, Any], *, compress: bool) -> int:
        data = b"".join(encode(header, arrays, compress=compress))
        if not self.is_lost:
            self._transport.write(data)
        return len(data)

    # Receiving ----------------------------------------------------------------------------------------------

    def on_bytes(self, data: bytes) -> None:
        """Process bytes of the worker's standard output."""
        if self.is_lost:
            return
        self._silent_s = 0.0
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
            self._reader.feed(b"")  # raises if what follows the frames is damaged
        except ProtocolError as error:
            self.lose(str(error))
        else:
            self.pump()
        self._owner.deliver()

    def on_stderr(self, data: bytes) -> None:
        """Keep the last bytes of the worker's standard error."""
        self._stderr = (self._stderr + data)[-_KEPT_STDERR:]

    def on_end(self, reason: str, code: int | None) -> None:
        """Handle the end of the process."""
        self.lose(reason)
        self._owner.deliver()

    def _take(self, frame: Frame) -> None:
        number = frame.header.get("re")
        request = self.open.get(number) if isinstance(number, int) else None
        if request is not None and request.type not in IMMEDIATE | SEPARATE:
            self._still_s = 0.0
        if frame.type == "error":
            error = error_from_json(frame.header)
            if request is None:
                self.stray.append(error)
            else:
                self.open.pop(request.id or 0, None)
                request.fail(error, self._calls)
        elif frame.type not in ("result", "progress", "slice"):
            raise ProtocolError(
                f"unknown answer {frame.type[:60]!r}: client and worker may be of different versions",
                code="unknown-answer",
            )
        elif request is not None:  # otherwise it was answered already, or abandoned
            self._take_answer(request, frame)

    def _take_answer(self, request: Request, frame: Frame) -> None:
        if frame.type == "result":
            result = request.parse(frame)
            self.open.pop(request.id or 0, None)
            request.end()
            request.call(self._calls, request.done, result)
            return
        done, total = checked(frame.header, "done", int), optional(frame.header, "total", int)
        if frame.type == "slice":
            masks = masks_from_json(frame)
            if request.on_slices is not None:
                request.on_slices(masks)
            request.call(self._calls, request.slices, masks, done, total)
            return
        what = checked(frame.header, "what", str)
        if request.on_progress is not None:
            request.on_progress(what, done)
        request.call(self._calls, request.progress, what, done, total)
        if isinstance(frame.header.get("message"), str):
            request.call(self._calls, request.note, frame.header["message"])

    def _parse_welcome(self, frame: Frame) -> None:
        welcome = result_fields(frame)
        spoken = welcome.get("protocol")
        if spoken not in PROTOCOLS:
            is_newer = isinstance(spoken, int) and spoken > max(PROTOCOLS)
            raise ProtocolError(
                f"the worker ({str(welcome.get('software'))[:60]}) speaks protocol {str(spoken)[:20]}, this "
                f"MedSAM2Segment {__version__} protocol {', '.join(map(str, PROTOCOLS))}: "
                f"update {'this MedSAM2Segment' if is_newer else 'the worker'}",
                code="protocol-version",
            )
        self.welcome = welcome
        self._startup = _seconds(welcome, "startup_s")
        self._send_ping()  # to measure a round trip
        self._owner.on_welcome(self)

    # Signs of life ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ping a quiet worker, and give up a hanging one; to be called about every 0.1 s."""
        now = self._clock()
        # If this process itself was suspended, answers may be unread: do not count that time.
        passed = min(max(0.0, now - self._tick), _LONGEST_TICK_S)
        self._tick = now
        self._silent_s += passed
        self._still_s += passed
        pending = self._transport.pending()
        if pending < self._pending:
            self._silent_s = 0.0  # it is still reading
        self._pending = pending
        if not self.welcome:
            if self._still_s > self._timing.start:
                self.lose(f"the worker did not answer within {self._timing.start:g} s of its start")
        elif self._ping is not None:
            if self._silent_s > self._pong_limit():
                self._lose_hung(f"no sign of life for {self._silent_s:.0f} s")
        elif self._silent_s >= self._timing.quiet:
            self._send_ping()

    def _pong_limit(self) -> float:
        limit = max(self._timing.pong, _SCALE * self._slowest_pong)
        if self._is_loading:
            limit = max(limit, self._timing.loading, _SCALE * self._startup)
        rate = self._window.rate
        return self._patience * limit + (2 * self._window.outstanding / rate if rate else 0.0)

    @property
    def _is_loading(self) -> bool:
        return any(request.type == "open_session" for request in self.open.values())

    def _send_ping(self) -> None:
        self._silent_s = 0.0
        self._ping, self._ping_at = Request("ping", parse=self._parse_pong), self._clock()
        self.send(self._ping)

    def _parse_pong(self, frame: Frame) -> None:
        self._ping = None
        passed = min(self._clock() - self._ping_at, self._pong_limit())
        self._window.delay = min(self._window.delay or passed, passed)
        if not self._is_loading and not self._window.outstanding:
            self._slowest_pong = max(self._slowest_pong, passed)
        self._slowest_step = max(self._slowest_step, _seconds(frame.header, "slowest_step"))
        cpu = _seconds(frame.header, "cpu_s")
        if frame.header.get("busy") is not True:
            self._still_s = 0.0
        if self._still_s <= 2 * self._timing.quiet:
            self._cpu_mark = cpu
        still = min(_seconds(frame.header, "step_age"), self._still_s)  # any message counts as a step
        limit = self._patience * max(self._timing.step, _SCALE * self._slowest_step)
        if cpu - self._cpu_mark > 0.25 * self._still_s:
            limit *= _COMPUTING_SCALE
        if still > limit:
            self._lose_hung(f"its computation has not moved for {still:.0f} s")

    def _lose_hung(self, how: str) -> None:
        self.is_hung = True
        self.lose(f"the worker hangs: {how}")

    # The end ------------------------------------------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """Give up the connection and end the process."""
        if not self.is_lost:
            self.is_lost = True
            self._transport.kill()
            self._owner.on_lost(self, reason)
            self.open.clear()

    def close(self) -> None:
        """End the worker without notifying the owner."""
        self.is_lost = True
        self._transport.close_input()
        self._transport.kill()

    def suspect(self) -> Request | None:
        """Return the request that most likely caused the loss of the worker."""
        heavy = [request for request in self.open.values() if request.type not in IMMEDIATE | SEPARATE]
        # Sending a volume can take long, and a propagation waits for all other requests.
        for waiting in (PREEMPTIBLE | {"open_volume"}, PREEMPTIBLE, frozenset[str]()):
            for request in heavy:
                if request.type not in waiting:
                    return request
        return None

    def last_output(self) -> str:
        """Return the text before the first frame, the end of standard error, and the last stray errors."""
        banner = self._reader.banner.decode(errors="replace").strip()
        messages = self._stderr.decode(errors="replace").strip()
        stray = "\n".join(str(error) for error in self.stray[-3:])
        return "\n".join(part for part in (banner, messages, stray) if part)


def _seconds(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
