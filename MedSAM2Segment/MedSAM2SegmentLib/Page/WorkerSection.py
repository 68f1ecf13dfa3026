"""Section of the page for the worker: connected while the page is open, tested on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from medsam2_core.errors import MedSAM2Error
from medsam2_core.worker.client import WorkerClient, WorkerState

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import Level, StatusLine, WorkerView, sizeText

_STATUS_INTERVAL_S = 2.0
_WAITING = {
    WorkerState.STOPPED: StatusLine(_("No worker is running.")),
    WorkerState.STARTING: StatusLine(_("The worker is starting…"), Level.BUSY),
    WorkerState.RESTARTING: StatusLine(_("The worker was lost and is being started again…"), Level.BUSY),
}


class WorkerSection:
    """Holds a worker: a local one is started at once, a remote one when the connection is tested.

    Parameters
    ----------
    connected
        Called with the client when a worker is ready, and with None when it was released.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings,
        workers,
        changed: Callable[[], None],
        connected: Callable[[WorkerClient | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._workers, self._clock = settings, workers, clock
        self._changed, self._connected = changed, connected
        self._isOpen = False
        self.client: WorkerClient | None = None
        self._line = StatusLine()  # while no worker is ready
        self._status: Mapping[str, Any] = {}
        self._statusTime: float | None = None
        self._latency: float | None = None

    def view(self) -> WorkerView:
        """Return what to show."""
        client, status = self.client, self._status
        welcome = client.welcome if self._isReady else {}
        isStarting = client is not None and client.state is WorkerState.STARTING
        return WorkerView(
            line=StatusLine(_welcomeText(welcome, self._latency), Level.OK) if self._isReady else self._line,
            device=_deviceText(status.get("device") or welcome.get("device", "")),
            memory=_memoryText(status),
            log=str(status.get("log", "")),
            report=client.report if client is not None else "",
            remoteCommand=self._settings.remoteCommand,
            canTest=not isStarting,
        )

    def freeBytes(self) -> int | None:
        """Return the free memory of the worker's device in bytes; None when unknown."""
        device = self._status.get("device")
        free = device.get("free_bytes") if isinstance(device, dict) else None
        return free if isinstance(free, int) else None

    def open(self) -> None:
        """Hold a worker while the page is shown."""
        self._isOpen = True
        self._connectIfLocal()

    def close(self) -> None:
        """Release the worker when the page is left."""
        self._isOpen = False
        self.disconnect()

    def update(self) -> None:
        """Request the worker's status periodically."""
        now = self._clock()
        isDue = self._statusTime is None or now - self._statusTime > _STATUS_INTERVAL_S
        if self._isReady and isDue:
            self._requestStatus()

    def setRemoteCommand(self, command: str) -> None:
        """Start workers with this command; "" for workers on this computer."""
        if command.strip() != self._settings.remoteCommand:
            self._settings.remoteCommand = command
            self.reconnect()
        self._changed()

    def test(self) -> None:
        """Start the worker of the settings, also a remote one, and show its answer."""
        self.disconnect()
        self._connect()
        if self.client is not None and self.client.state is WorkerState.FAILED:
            self.client.start()  # an effect still holds the failed worker
        self._changed()

    def reconnect(self) -> None:
        """Release the worker; if the page is open, hold the one of the settings."""
        self.disconnect()
        self._connectIfLocal()

    def disconnect(self) -> None:
        """Release the worker."""
        client, self.client = self.client, None
        if client is not None and self._onWorker in client.listeners:
            client.listeners.remove(self._onWorker)
        self._status, self._statusTime, self._latency = {}, None, None
        self._line = StatusLine()
        self._connected(None)
        self._workers.release(self)

    @property
    def _isReady(self) -> bool:
        return self.client is not None and self.client.state is WorkerState.READY

    def _connectIfLocal(self) -> None:
        if self._isOpen and not self._settings.remoteCommand:
            self._connect()

    def _connect(self) -> None:
        try:
            self.client = self._workers.acquire(self)
        except MedSAM2Error as error:
            self._line = StatusLine(str(error), Level.WARNING)
            return
        self.client.listeners.append(self._onWorker)
        self._onWorker()

    def _onWorker(self) -> None:
        client = self.client
        if client is None:
            return
        if self._isReady:
            self._requestPing()
            self._connected(client)
            self._requestStatus()
        elif client.state is WorkerState.FAILED:
            self._line = StatusLine(client.problem, Level.ERROR)
        else:
            self._line = _WAITING[client.state]
        self._changed()

    def _requestPing(self) -> None:
        start = self._clock()

        def done(_result: Mapping[str, Any]) -> None:
            self._latency = self._clock() - start
            self._changed()

        ask(self, "ping", {}, done=done, failed=lambda error: None)

    def _requestStatus(self) -> None:
        self._statusTime = self._clock()

        def done(result: Mapping[str, Any]) -> None:
            if result != self._status:
                self._status = result
                self._changed()

        ask(self, "status", {}, done=done, failed=lambda error: None)


def ask(section: Any, type: str, fields: Mapping[str, Any], **callbacks: Callable) -> Any:
    """Send a request to a section's ``client`` and return it; ignore its answer if the client has changed."""
    client = section.client

    def guarded(callback: Callable) -> Callable:
        return lambda *values: callback(*values) if section.client is client else None

    return client.request(type, fields, **{name: guarded(callback) for name, callback in callbacks.items()})


def _welcomeText(welcome: Mapping[str, Any], latency: float | None) -> str:
    host = welcome.get("host", _("this computer"))
    text = _("Connected: worker {version} on {host}").format(version=welcome.get("software", ""), host=host)
    if latency is not None:
        text += _(", answers in {time:.0f} ms").format(time=latency * 1000)
    return text


def _deviceText(device: Any) -> str:
    if not isinstance(device, dict):
        return str(device or "")
    title, free, total = (device.get(name) for name in ("title", "free_bytes", "total_bytes"))
    text = str(title or device.get("name") or "")
    if free and total:
        text += _(", {free} of {total} free").format(free=sizeText(free), total=sizeText(total))
    return text


def _memoryText(status: Mapping[str, Any]) -> str:
    if not status:
        return ""
    parts = [_("{size} in use").format(size=sizeText(status.get("rss_bytes", 0)))]
    cache, limit = status.get("cache_bytes"), status.get("cache_limit")
    if cache is not None and limit:
        text = _("image features {size} of at most {limit}")
        parts.append(text.format(size=sizeText(cache), limit=sizeText(limit)))
    volumes, sessions = status.get("volumes"), status.get("sessions")
    if isinstance(sessions, int) and isinstance(volumes, int):
        one, several = (_("1 volume"), _("1 session")), (_("{count} volumes"), _("{count} sessions"))
        counts = zip((volumes, sessions), one, several, strict=True)
        parts.append(", ".join(one if n == 1 else more.format(count=n) for n, one, more in counts))
    return "; ".join(parts)
