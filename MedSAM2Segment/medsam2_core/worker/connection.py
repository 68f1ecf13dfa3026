"""One life of a worker: its transport, what was said over it, and whether it is still alive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from medsam2_core.errors import MedSAM2Error, ProtocolError, VolumeError
from medsam2_core.version import __version__
from medsam2_core.worker.client import PATIENT, QUICK, Call, Client, Request, plain_result
from medsam2_core.worker.frames import Frame
from medsam2_core.worker.messages import PROTOCOLS
from medsam2_core.worker.transports import Transport
from medsam2_core.worker.volumes import LinkSpeed, RemoteVolume, VolumeStream

_LONGEST_TICK = 0.5  # seconds: more than that between two ticks is time in which nobody listened
_LAST_WORDS = 16_000  # bytes of standard error that are kept


@dataclass(frozen=True)
class Timing:
    """How long things may take, in seconds.

    Attributes
    ----------
    start
        From the start to the first answer; a batch system may let it wait.
    quiet
        After so long without a word the worker is asked whether it is alive.
    pong, loading
        So long it may take to say so; and so long while a session is opened: to load libraries and a model
        for the first time can hold up all else in a process.
    step
        So long a computation may not move. What is downloaded moves.
    pauses
        Before the first, the second … restart.
    deaths, within
        So many deaths in so many seconds are too many.
    """

    start: float = 300.0
    quiet: float = 2.0
    pong: float = 10.0
    loading: float = 40.0
    step: float = 120.0
    pauses: tuple[float, ...] = (0.1, 1.0, 4.0)
    deaths: int = 3
    within: float = 60.0


class Owner(Protocol):
    """Who is told how a connection fares."""

    def on_welcome(self, connection: Connection) -> None:
        """The worker has said hello."""

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The connection is of no use any more; told once."""

    def deliver(self) -> None:
        """Bytes were read: call what wants to be called."""


class Connection:
    """Starts a worker and speaks with it until it is lost. It is the listener of its transport.

    Attributes
    ----------
    welcome
        What the worker told of itself; empty until it has.
    is_lost
        Whether it is over.
    """

    def __init__(
        self,
        transport: Transport,
        owner: Owner,
        ids: Iterator[int],
        calls: deque[Call],
        clock: Callable[[], float],
        timing: Timing,
    ) -> None:
        self.client = Client(ids, calls)
        self.welcome: dict[str, Any] = {}
        self.is_lost = False
        self._transport = transport
        self._owner = owner
        self._clock = clock
        self._timing = timing
        self._speed = LinkSpeed(clock)
        self._streams: list[VolumeStream] = []
        self._stderr = b""
        self._ping: Request | None = None
        self._ping_at = 0.0
        self._tick = clock()
        self._waiting = 0.0  # seconds without a word
        self._still = 0.0  # seconds without a word but pongs
        self._pending = 0

    def start(self) -> None:
        """Start the worker and greet it."""
        self._transport.start(self)
        if self.is_lost:
            return
        fields = {"protocols": list(PROTOCOLS), "client": f"MedSAM2Segment {__version__}"}
        hello = Request("hello", fields, take=self._take_welcome)
        hello.failed = lambda error: self.lose(str(error))
        self.client.send(hello)
        self.flush()

    def send(self, request: Request) -> None:
        """Write a request now, ahead of what is left of volumes."""
        self.client.send(request)
        self.flush()

    def send_volume(
        self, remote: RemoteVolume, arrived: Callable[[], None], failed: Callable[[MedSAM2Error], None]
    ) -> None:
        """Announce a volume and send it, as fast as it arrives. `arrived` keeps the books when it has."""
        stream = VolumeStream(remote, self.client, self._speed)

        def take(frame: Frame) -> None:
            stream.finish()
            arrived()

        request = Request("open_volume", remote.description(), take=take, failed=failed, blame=remote.blame)
        request.heard, request.settled = stream.came, lambda _: stream.give_up()
        if remote.problem:
            request.fail(VolumeError(remote.problem), self.client.calls)
            return
        self._streams.append(stream)
        self.send(request)
        self.pump()

    def drop_volume(self, remote: RemoteVolume) -> None:
        """Send no more of it."""
        for stream in [stream for stream in self._streams if stream.remote is remote]:
            stream.give_up()

    def pump(self) -> None:
        """Send of the volumes what may be sent now."""
        for stream in self._streams:
            while stream.may_send and not self.is_lost:
                is_slow = stream.send_slab()
                self.flush()
                if is_slow:  # compressing takes its time, and the caller may be a user interface
                    return
        self._streams = [stream for stream in self._streams if not stream.is_all_sent]

    def flush(self) -> None:
        """Hand what was written to the transport."""
        for data in self.client.take_outgoing():
            if not self.is_lost:
                self._transport.write(data)

    def check(self) -> None:
        """Look whether the worker is alive; to be called about every 0.1 s. It may be lost afterwards."""
        now = self._clock()
        # If this process itself slept, answers may lie unread: that time is not the worker's.
        passed = min(max(0.0, now - self._tick), _LONGEST_TICK)
        self._tick = now
        self._waiting += passed
        self._still += passed
        pending = self._transport.pending()
        if pending < self._pending:
            self._waiting = 0.0  # it still reads
        self._pending = pending
        if not self.welcome:
            if self._still > self._timing.start:
                self.lose(f"the worker did not answer within {self._timing.start:g} s of its start")
        elif self._ping is not None:
            slack = 2 * self._speed.outstanding / self._speed.rate if self._speed.rate else 0.0
            is_loading = any(request.type == "open_session" for request in self.client.open.values())
            if self._waiting > slack + (self._timing.loading if is_loading else self._timing.pong):
                self.lose(f"the worker hangs: no sign of life for {self._waiting:.0f} s")
        elif self._waiting >= self._timing.quiet:
            self._send_ping()

    def _send_ping(self) -> None:
        self._waiting = 0.0
        self._ping, self._ping_at = Request("ping", take=self._take_pong), self._clock()
        self.send(self._ping)

    def on_bytes(self, data: bytes) -> None:
        """Bytes came."""
        if self.is_lost:
            return
        self._waiting = 0.0
        before = self.client.moves
        try:
            self.client.feed(data)
        except ProtocolError as error:
            self.lose(str(error))
        else:
            self._still = 0.0 if self.client.moves > before else self._still
            self.flush()
            self.pump()
        self._owner.deliver()

    def on_stderr(self, data: bytes) -> None:
        """Messages of the worker came."""
        self._stderr = (self._stderr + data)[-_LAST_WORDS:]

    def on_end(self, reason: str, code: int | None) -> None:
        """The process is gone."""
        self.lose(reason)
        self._owner.deliver()

    def lose(self, reason: str) -> None:
        """Give it up and end the process."""
        if not self.is_lost:
            self.is_lost = True
            self._transport.kill()
            self._owner.on_lost(self, reason)
            self.client.open.clear()

    def close(self) -> None:
        """End the worker; nobody is told."""
        self.is_lost = True
        self._transport.close_input()
        self._transport.kill()

    def culprit(self) -> Request | None:
        """What the worker was most likely doing."""
        heavy = [request for request in self.client.open.values() if request.type not in QUICK]
        # A volume may be on its way for long, and a propagation waits for everything else.
        for patient in (PATIENT | {"open_volume"}, PATIENT, frozenset()):
            for request in heavy:
                if request.type not in patient:
                    return request
        return None

    def last_words(self) -> str:
        """What was printed instead of frames, and the end of the worker's standard error."""
        banner, messages = self.client.banner, self._stderr.decode(errors="replace").strip()
        stray = "\n".join(str(error) for error in self.client.stray[-3:])
        return "\n".join(part for part in (banner, messages, stray) if part)

    def _take_welcome(self, frame: Frame) -> None:
        told = plain_result(frame)
        spoken = told.get("protocol")
        if spoken not in PROTOCOLS:
            is_newer = isinstance(spoken, int) and spoken > max(PROTOCOLS)
            raise ProtocolError(
                f"the worker ({str(told.get('software'))[:60]}) speaks protocol {str(spoken)[:20]}, this "
                f"MedSAM2Segment {__version__} protocol {', '.join(map(str, PROTOCOLS))}: "
                f"update {'this MedSAM2Segment' if is_newer else 'the worker'}"
            )
        self.welcome = told
        self._send_ping()  # to learn how long an answer is under way
        self._owner.on_welcome(self)

    def _take_pong(self, frame: Frame) -> None:
        self._ping = None
        passed = self._clock() - self._ping_at
        self._speed.delay = min(self._speed.delay or passed, passed)
        age = frame.header.get("step_age")
        if frame.header.get("busy") is True and isinstance(age, int | float):
            # Whatever it told meanwhile was a step, too.
            if min(age, self._still) > self._timing.step:
                self.lose(f"the worker hangs: its computation has not moved for {age:.0f} s")
        else:
            self._still = 0.0
