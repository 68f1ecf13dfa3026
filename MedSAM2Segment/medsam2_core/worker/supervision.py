"""Keeps a worker alive: starts it, notices when it dies or hangs, and tells the next one everything again."""

from __future__ import annotations

import enum
import itertools
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from medsam2_core.errors import Cancelled, MedSAM2Error, WorkerError
from medsam2_core.imaging.volume import Volume
from medsam2_core.version import __version__
from medsam2_core.worker.client import Call, Request
from medsam2_core.worker.connection import Connection, Timing
from medsam2_core.worker.messages import SessionSettings, StackChoice
from medsam2_core.worker.remote import RemoteSession
from medsam2_core.worker.transports import Transport
from medsam2_core.worker.volumes import RemoteVolume

_TOO_MANY = 2  # deaths at the same thing
_ASKED_AGAIN = frozenset({"status", "models", "auto_models", "ping"})


class WorkerState(enum.Enum):
    """How the worker is."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class Supervisor:
    """A worker that is there when it is needed.

    Everything happens in the caller's thread. Callbacks and `listeners` are called only by :meth:`tick`, and
    when the transport brings bytes; none after :meth:`stop`. One that raises passes its error on to whoever
    called; the others are called the next time.

    Parameters
    ----------
    make_transport
        Makes a new transport for every start.
    clock
        Seconds, never going back.
    timing
        How long things may take.

    Attributes
    ----------
    state
        See WorkerState.
    problem
        Why the worker is not READY, in one line for the user; empty when nothing is wrong.
    welcome
        What the worker told of itself; empty until it has.
    listeners
        Called without arguments whenever `state` has changed.
    """

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        *,
        clock: Callable[[], float] = time.monotonic,
        timing: Timing | None = None,
    ) -> None:
        self.state = WorkerState.STOPPED
        self.problem = ""
        self.welcome: dict[str, Any] = {}
        self.listeners: list[Callable[[], None]] = []
        self.calls: deque[Call] = deque()
        self._make_transport = make_transport
        self._clock = clock
        self._timing = timing or Timing()
        self._ids = itertools.count(1)
        self._names = itertools.count(1)
        self._connection: Connection | None = None
        self._transport: Transport | None = None
        self._volumes: list[RemoteVolume] = []
        self._sessions: list[RemoteSession] = []
        self._queued: list[Request] = []  # of no session
        self._deaths: deque[float] = deque()
        self._restart_at: float | None = None
        self._has_worked = False
        self._last_words = ""
        self._is_quiet = False

    def start(self) -> None:
        """Start the worker, for the first time or after it failed; everything open is opened again."""
        if self.state in (WorkerState.STOPPED, WorkerState.FAILED):
            self._deaths.clear()
            self._has_worked = False
            self._become(WorkerState.STARTING, "")
            self._connect()

    def restart(self) -> None:
        """End the worker and start it at once, as after a death."""
        if self.state in (WorkerState.STOPPED, WorkerState.FAILED):
            self.start()
            return
        self._leave("the worker was started again")
        self._become(WorkerState.RESTARTING, "")
        self._connect()

    def stop(self) -> None:
        """End the worker. Nobody is called back any more; sessions wait for another :meth:`start`."""
        self._leave("the worker was stopped")
        for session in self._sessions:
            session.refuse(WorkerError("the worker was stopped"))
        self._queued.clear()
        self.state = WorkerState.STOPPED
        self.problem = ""
        self.calls.clear()

    def tick(self) -> None:
        """Look after the worker; to be called about every 0.1 s."""
        if self._transport is not None and hasattr(self._transport, "pump"):
            self._transport.pump(0.0)
        if self._connection is not None:
            self._connection.check()
        if self._connection is not None:
            self._connection.pump()
        if self._restart_at is not None and self._clock() >= self._restart_at:
            self._connect()
        self.deliver()

    def pump(self, timeout: float = 0.1) -> None:
        """:meth:`tick` without an event loop: waits up to `timeout` seconds for the worker to speak."""
        pump = getattr(self._transport, "pump", None)
        if pump is None:
            time.sleep(timeout)
        else:
            pump(timeout)
        self.tick()

    @property
    def report(self) -> str:
        """What a person who helps wants to know: versions, reason, the worker's last messages."""
        told = {name: self.welcome.get(name) for name in ("software", "protocol", "python", "torch", "host")}
        words = self._connection.last_words() if self._connection is not None else ""
        lines = [
            f"MedSAM2Segment {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"worker: {self.state.value}" + (f": {self.problem}" if self.problem else ""),
            *([f"worker's side: {told}, {self.welcome.get('device')}"] if self.welcome else []),
            *(
                [f"last messages of the worker:\n{words or self._last_words}"]
                if words or self._last_words
                else []
            ),
        ]
        return "\n".join(lines)

    def open_volume(self, volume: Volume) -> RemoteVolume:
        """Send a volume, unless the worker has an equal one; for as many users as ask."""
        for remote in self._volumes:
            if remote.is_same(volume):
                remote.users += 1
                return remote
        remote = RemoteVolume(f"v{next(self._names)}", volume)
        remote.users = 1
        self._volumes.append(remote)
        if self.state is WorkerState.READY:
            self._send_volume(remote)
        return remote

    def close_volume(self, remote: RemoteVolume) -> None:
        """One user less; with the last one, the worker forgets the volume and its sessions are closed."""
        remote.users -= 1
        if remote.users > 0 or remote not in self._volumes:
            return
        self._volumes.remove(remote)
        for session in [session for session in self._sessions if session.volume is remote]:
            session.close()
        if self.state is WorkerState.READY and self._connection is not None:
            self._connection.drop_volume(remote)
            self.post(Request("close_volume", {"volume": remote.name}))

    def open_session(
        self,
        volume: RemoteVolume,
        stack: StackChoice,
        settings: SessionSettings | None = None,
        *,
        failed: Callable[[MedSAM2Error], None] | None = None,
        opened: Callable[[], None] | None = None,
    ) -> RemoteSession:
        """A session on a volume; it may be spoken to at once.

        `opened` is called once; `failed`, with the reason, when the session cannot be opened (again).
        """
        name = f"s{next(self._names)}"
        session = RemoteSession(
            self, name, volume, stack, settings or SessionSettings(), failed=failed, opened=opened
        )
        self._sessions.append(session)
        if volume not in self._volumes:  # it could not be sent before; who asks again wants it tried again
            volume.blame.deaths = 0
            self._volumes.append(volume)
            if self.state is WorkerState.READY:
                self._send_volume(volume)
        elif self.state is WorkerState.READY and volume.is_there:
            session.begin()
        return session

    def request(
        self,
        type: str,
        fields: Mapping[str, Any] | None = None,
        done: Callable[[Any], None] | None = None,
        failed: Callable[[MedSAM2Error], None] | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Request:
        """Ask something that belongs to no session: `status`, `models`, `install_model`, `train_auto`, …"""
        request = Request(type, dict(fields or {}), done=done, failed=failed, progress=progress, note=note)
        request.withdraw = self.withdraw
        request.settled = lambda over: self._queued.remove(over) if over in self._queued else None
        if self.refusal is not None:
            request.fail(self.refusal, self.calls)
            return request
        self._queued.append(request)
        if self.state is WorkerState.READY:
            self.post(request)
        return request

    # What follows is for sessions and the connection.

    @property
    def refusal(self) -> WorkerError | None:
        """Why nothing can be asked now."""
        if self.state is WorkerState.STOPPED:
            return WorkerError("the worker is stopped: start it first")
        if self.state is WorkerState.FAILED:
            return WorkerError(self.problem)
        return None

    def post(self, request: Request) -> None:
        """Send over the present connection, if there is one."""
        if self._connection is not None and self._connection.welcome:
            self._connection.send(request)

    def withdraw(self, request: Request) -> None:
        """Cancel: by the worker if it was asked, else here."""
        if request.id is None:
            request.fail(Cancelled(f"{request.type} was cancelled"), self.calls)
        else:
            self.post(Request("cancel", {"request": request.id}))

    def drop(self, request: Request) -> None:
        """Forget a request, and let the worker do so."""
        known = {} if self._connection is None else self._connection.client.open
        if request.id is not None and known.pop(request.id, None) is not None:
            self.post(Request("cancel", {"request": request.id}))

    def forget(self, session: RemoteSession) -> None:
        """The session is closed."""
        if session in self._sessions:
            self._sessions.remove(session)

    def on_welcome(self, connection: Connection) -> None:
        """The worker is there: tell it everything."""
        self.welcome = connection.welcome
        self._has_worked = True
        self._become(WorkerState.READY, "")
        for remote in self._volumes:
            self._send_volume(remote)
        for request in self._queued:
            self.post(request)

    def on_lost(self, connection: Connection, reason: str) -> None:
        """The worker is gone: start another, unless that is of no use."""
        culprit = connection.culprit()
        if culprit is not None:
            culprit.blame.deaths += 1
        self._disconnect(connection, reason)
        now = self._clock()
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > self._timing.within:
            self._deaths.popleft()
        if not self._has_worked:
            self._fail(f"{reason}{self._hint()}")
        elif len(self._deaths) >= self._timing.deaths:
            self._fail(
                f"the worker was lost {len(self._deaths)} times in {self._timing.within:g} s: {reason}"
            )
        else:
            pauses = self._timing.pauses
            self._restart_at = now + pauses[min(len(self._deaths), len(pauses)) - 1]
            self._become(WorkerState.RESTARTING, reason)

    def deliver(self) -> None:
        """Call what wants to be called."""
        if self._is_quiet:
            return
        self._is_quiet = True
        try:
            while self.calls:
                self.calls.popleft()()
        finally:
            self._is_quiet = False

    def _connect(self) -> None:
        self._restart_at = None
        self._transport = self._make_transport()
        connection = Connection(self._transport, self, self._ids, self.calls, self._clock, self._timing)
        self._connection = connection
        was_quiet, self._is_quiet = self._is_quiet, True  # nobody is called back before this returns
        try:
            connection.start()
        finally:
            self._is_quiet = was_quiet

    def _leave(self, reason: str) -> None:
        """End the present connection, if there is one, by our own wish."""
        self._restart_at = None
        if self._connection is not None:
            connection = self._connection
            connection.close()
            self._disconnect(connection, reason)
            connection.client.open.clear()

    def _disconnect(self, connection: Connection, reason: str) -> None:
        self._last_words = connection.last_words() or self._last_words
        self._connection = self._transport = None
        for remote in list(self._volumes):
            remote.is_there = False
            if remote.blame.deaths >= _TOO_MANY:
                self._volume_failed(
                    remote, WorkerError(f"the worker was lost twice while it took the volume: {reason}")
                )
        for session in list(self._sessions):
            session.lost(reason, _TOO_MANY)
        for request in list(self._queued):
            was_sent, request.id = request.id is not None, None
            if request.is_cancelled:
                request.fail(Cancelled(f"{request.type} was cancelled"), self.calls)
            elif was_sent and (request.type not in _ASKED_AGAIN or request.blame.deaths >= _TOO_MANY):
                request.fail(WorkerError(f"the worker was lost: {reason}"), self.calls)

    def _send_volume(self, remote: RemoteVolume) -> None:
        def arrived() -> None:
            for session in [session for session in self._sessions if session.volume is remote]:
                session.begin()

        if self._connection is not None:
            self._connection.send_volume(remote, arrived, lambda error: self._volume_failed(remote, error))

    def _volume_failed(self, remote: RemoteVolume, error: MedSAM2Error) -> None:
        if remote in self._volumes:
            self._volumes.remove(remote)
        for session in [session for session in self._sessions if session.volume is remote]:
            session.fail(error)

    def _fail(self, problem: str) -> None:
        self._become(WorkerState.FAILED, problem)
        for session in self._sessions:
            session.refuse(WorkerError(problem))
        for request in list(self._queued):
            request.fail(WorkerError(problem), self.calls)

    def _become(self, state: WorkerState, problem: str) -> None:
        self.problem = problem
        if state is not self.state:
            self.state = state
            self.calls.extend(partial(self._tell, listener) for listener in self.listeners)

    def _tell(self, listener: Callable[[], None]) -> None:
        if listener in self.listeners:  # it may have been taken out since
            listener()

    def _hint(self) -> str:
        """The line of its last messages that tells most: the last, as Python and shells put it."""
        lines = [line.strip() for line in self._last_words.splitlines() if line.strip()]
        return f" ({lines[-1][:200]})" if lines else ""
