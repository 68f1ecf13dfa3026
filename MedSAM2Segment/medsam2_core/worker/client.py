"""Client of a worker: starts it when needed, and restarts it with all its state when it is lost.

    client = WorkerClient(lambda: QProcessTransport(["medsam2", "worker"], environment))
    client.start()
    volume = client.open_volume(volume)               # a RemoteVolume: .received, .total, .is_there
    session = client.open_session(                    # a SessionClient; may be used at once
        volume, StackChoice("axial"), SessionSettings(), opened=f, failed=show)
    session.set_prompts("liver", {12: SlicePrompts((Point((50, 40, 12)),))}, done=got_masks, failed=show)
    request = session.propagate(["liver"], slices=got_masks, done=finished, failed=show)
    request.cancel()                                  # `failed` gets Cancelled
    session.auto(AutoRequest("my model"), slices=got_masks, done=got_predictions, failed=show)
    session.prompts("liver"), session.masks("liver")  # including requests not answered yet
    state = session.snapshot("liver")                 # an ObjectSnapshot, for session.restore("liver", state)
    client.request("models", done=f, failed=show)     # requests without a session
    client.tick()                                     # about every 0.1 s; calls the callbacks

Nothing blocks. Callbacks are called by :meth:`WorkerClient.tick`, and when the transport delivers bytes;
errors are :class:`~medsam2_core.errors.MedSAM2Error` with ``code`` and ``fields``.
"""

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
from medsam2_core.worker.connection import Connection, Timing
from medsam2_core.worker.messages import SessionSettings, StackChoice
from medsam2_core.worker.protocol import SEPARATE, Arrays
from medsam2_core.worker.requests import TOO_MANY_CRASHES, Call, Done, Failed, Progress, Request
from medsam2_core.worker.session_client import SessionClient
from medsam2_core.worker.transports import Transport
from medsam2_core.worker.uploads import RemoteVolume

_NOT_REPLAYED = SEPARATE | {"remove_model", "remove_auto_model"}


class WorkerState(enum.Enum):
    """State of a worker."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class WorkerClient:
    """Client of a worker that is started, and restarted, as needed.

    Everything runs in the caller's thread, and no callback is called after :meth:`stop`. An exception in a
    callback propagates to the caller of :meth:`tick`; the remaining callbacks are called the next time.

    Attributes
    ----------
    problem
        One line for the user: why the worker is not READY; empty when nothing is wrong.
    welcome
        What the worker reported about itself (``software``, ``host``, ``device`` …); empty until then.
    listeners
        Called without arguments whenever `state` changes.
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
        self._make_transport, self._clock, self._timing = make_transport, clock, timing or Timing()
        self._ids, self._names = itertools.count(1), itertools.count(1)
        self._connection: Connection | None = None
        self._volumes: list[RemoteVolume] = []
        self._sessions: list[SessionClient] = []
        self._requests: list[Request] = []  # of no session
        self._crashes: deque[float] = deque()
        self._patience = 1.0  # doubled whenever a worker seems to hang
        self._restart_at: float | None = None
        self._has_worked = self._is_delivering = False
        self._last_output = ""

    # Start and end ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker, for the first time or after a failure, and reopen everything that was open."""
        if self.state in (WorkerState.STOPPED, WorkerState.FAILED):
            self._crashes.clear()
            self._has_worked, self._patience = False, 1.0
            self._set_state(WorkerState.STARTING, "")
            self._connect()

    def stop(self) -> None:
        """End the worker and drop all callbacks; sessions wait for another :meth:`start`."""
        self._disconnect_now("the worker was stopped")
        for session in self._sessions:
            session.refuse(_stopped())
        self._requests.clear()
        self.state, self.problem = WorkerState.STOPPED, ""
        self.calls.clear()

    def tick(self) -> None:
        """Check the worker and run the queued callbacks; to be called about every 0.1 s."""
        if self._connection is not None:
            self._connection.check()
        if self._connection is not None:
            self._connection.pump()
        if self._restart_at is not None and self._clock() >= self._restart_at:
            self._connect()
        self.deliver()

    @property
    def report(self) -> str:
        """Versions, the problem and the worker's last output, for support requests."""
        lines = [f"MedSAM2Segment {__version__}, Python {platform.python_version()}, {platform.platform()}"]
        lines += [f"worker: {self.state.value}" + (f": {self.problem}" if self.problem else "")]
        if self.welcome:
            names = ("software", "protocol", "python", "torch", "host", "device")
            lines += [f"worker's side: {dict((name, self.welcome.get(name)) for name in names)}"]
        output = self._connection.last_output() if self._connection is not None else ""
        if output or self._last_output:
            lines += [f"last messages of the worker:\n{output or self._last_output}"]
        return "\n".join(lines)

    # Volumes, sessions, requests ----------------------------------------------------------------------------

    def open_volume(self, volume: Volume) -> RemoteVolume:
        """Send a volume, unless the worker has an equal one, and count one more user of it."""
        for remote in self._volumes:
            if remote.is_same(volume):
                remote.users += 1
                return remote
        remote = RemoteVolume(f"v{next(self._names)}", volume)
        remote.users = 1
        self._add_volume(remote)
        return remote

    def close_volume(self, remote: RemoteVolume) -> None:
        """Remove one user; with the last, close the volume's sessions and free it in the worker."""
        remote.users -= 1
        if remote.users > 0 or remote not in self._volumes:
            return
        self._volumes.remove(remote)
        for session in self._sessions_of(remote):
            session.close()
        if self.state is WorkerState.READY and self._connection is not None:
            self._connection.stop_volume(remote)
            self.post(Request("close_volume", {"volume": remote.name}))

    def open_session(
        self,
        volume: RemoteVolume,
        stack: StackChoice,
        settings: SessionSettings | None = None,
        *,
        failed: Failed | None = None,
        opened: Callable[[], None] | None = None,
    ) -> SessionClient:
        """Open a session on a volume; it can be used at once.

        `opened` is called once; `failed` gets the reason if the session cannot be opened or reopened.
        """
        name = f"s{next(self._names)}"
        session = SessionClient(
            self, name, volume, stack, settings or SessionSettings(), failed=failed, opened=opened
        )
        self._sessions.append(session)
        if volume not in self._volumes:  # an earlier attempt to send it failed: try again
            volume.crashes.count = 0
            self._add_volume(volume)
        elif self.state is WorkerState.READY and volume.is_there:
            session.start()
        return session

    def request(
        self,
        type: str,
        fields: Mapping[str, Any] | None = None,
        done: Done | None = None,
        failed: Failed | None = None,
        progress: Progress | None = None,
        note: Callable[[str], None] | None = None,
        arrays: Arrays | None = None,
    ) -> Request:
        """Send a request that belongs to no session: `status`, `models`, `install_model`, `train_auto`, …"""
        request = Request(type, dict(fields or {}), arrays or {}, done, failed, progress, note)
        request.is_replayed = type not in _NOT_REPLAYED
        if self.refusal is not None:
            request.fail(self.refusal, self.calls)
            return request
        request.canceller, request.on_end = self.cancel, self._remove_request
        self._requests.append(request)
        if self.state is WorkerState.READY:
            self.post(request)
        return request

    def _remove_request(self, request: Request) -> None:
        if request in self._requests:
            self._requests.remove(request)

    def _add_volume(self, remote: RemoteVolume) -> None:
        self._volumes.append(remote)
        if self.state is WorkerState.READY:
            self._send_volume(remote)

    def _sessions_of(self, remote: RemoteVolume) -> list[SessionClient]:
        return [session for session in self._sessions if session.volume is remote]

    def _send_volume(self, remote: RemoteVolume) -> None:
        def arrived() -> None:
            for session in self._sessions_of(remote):
                session.start()

        if self._connection is not None:
            self._connection.send_volume(remote, arrived, partial(self._drop_volume, remote))

    def _drop_volume(self, remote: RemoteVolume, error: MedSAM2Error) -> None:
        if remote in self._volumes:
            self._volumes.remove(remote)
        for session in self._sessions_of(remote):
            session.fail(error)

    # For sessions -------------------------------------------------------------------------------------------

    @property
    def refusal(self) -> WorkerError | None:
        """Why requests are refused now; None when they are accepted."""
        if self.state is WorkerState.STOPPED:
            return _stopped()
        if self.state is WorkerState.FAILED:
            return WorkerError(self.problem, code="worker-failed")
        return None

    def post(self, request: Request) -> None:
        """Send a request if there is a connection."""
        if self._connection is not None and self._connection.welcome:
            self._connection.send(request)

    def cancel(self, request: Request) -> None:
        """Cancel a request: in the worker if it was sent, otherwise here."""
        if request.id is None:
            request.fail(Cancelled(f"{request.type} was cancelled"), self.calls)
        else:
            self.post(Request("cancel", {"request": request.id}))

    def abandon(self, request: Request) -> None:
        """Ignore the answer to a request, and cancel it in the worker."""
        sent = {} if self._connection is None else self._connection.open
        if request.id is not None and sent.pop(request.id, None) is not None:
            self.post(Request("cancel", {"request": request.id}))

    def remove(self, session: SessionClient) -> None:
        """Remove a closed session from the list."""
        if session in self._sessions:
            self._sessions.remove(session)

    # The connection -----------------------------------------------------------------------------------------

    def on_welcome(self, connection: Connection) -> None:
        """Send all volumes and requests to a new worker."""
        self.welcome, self._has_worked = connection.welcome, True
        self._set_state(WorkerState.READY, "")
        for remote in self._volumes:
            self._send_volume(remote)
        for request in self._requests:
            self.post(request)

    def on_lost(self, connection: Connection, reason: str) -> None:
        """Start another worker, unless too many were lost."""
        suspect = connection.suspect()
        if suspect is not None:
            suspect.crashes.count += 1
        if connection.is_hung:
            self._patience *= 2
        self._disconnected(connection, reason)
        now, timing = self._clock(), self._timing
        self._crashes.append(now)
        while now - self._crashes[0] > timing.within:
            self._crashes.popleft()
        if not self._has_worked:
            lines = [line.strip() for line in self._last_output.splitlines() if line.strip()]
            self._fail(f"{reason} ({lines[-1][:200]})" if lines else reason)
        elif len(self._crashes) >= timing.crashes:
            self._fail(f"the worker was lost {len(self._crashes)} times in {timing.within:g} s: {reason}")
        else:
            self._restart_at = now + timing.pauses[min(len(self._crashes), len(timing.pauses)) - 1]
            self._set_state(WorkerState.RESTARTING, reason)

    def deliver(self) -> None:
        """Call the queued callbacks."""
        if not self._is_delivering:
            self._is_delivering = True
            try:
                while self.calls:
                    self.calls.popleft()()
            finally:
                self._is_delivering = False

    def _connect(self) -> None:
        self._restart_at = None
        self._connection = connection = Connection(
            self._make_transport(), self, self._ids, self.calls, self._clock, self._timing, self._patience
        )
        was_delivering, self._is_delivering = self._is_delivering, True  # no callbacks before this returns
        try:
            connection.start()
        finally:
            self._is_delivering = was_delivering

    def _disconnect_now(self, reason: str) -> None:
        self._restart_at = None
        if self._connection is not None:
            connection = self._connection
            connection.close()
            self._disconnected(connection, reason)
            connection.open.clear()

    def _disconnected(self, connection: Connection, reason: str) -> None:
        """Prepare everything for the next worker; fail what two workers were lost at."""
        self._last_output = connection.last_output() or self._last_output
        self._connection = None
        for remote in list(self._volumes):
            remote.is_there = False
            if remote.crashes.count >= TOO_MANY_CRASHES:
                message = f"the worker was lost twice while it received the volume: {reason}"
                self._drop_volume(
                    remote, WorkerError(message, code="worker-lost-twice", request="open_volume")
                )
        for session in list(self._sessions):
            session.worker_lost(reason)
        for request in list(self._requests):
            request.worker_lost(reason, self.calls)

    def _fail(self, problem: str) -> None:
        self._set_state(WorkerState.FAILED, problem)
        error = WorkerError(problem, code="worker-failed")
        for session in self._sessions:
            session.refuse(error)
        for request in list(self._requests):
            request.fail(error, self.calls)

    def _set_state(self, state: WorkerState, problem: str) -> None:
        self.problem = problem
        if state is not self.state:
            self.state = state
            self.calls.extend(partial(self._notify, listener) for listener in self.listeners)

    def _notify(self, listener: Callable[[], None]) -> None:
        if listener in self.listeners:  # it may have been removed in the meantime
            listener()


def _stopped() -> WorkerError:
    return WorkerError("the worker is stopped: start it first", code="worker-stopped")
