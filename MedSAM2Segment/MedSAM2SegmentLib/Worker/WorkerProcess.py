"""The worker's process under Qt's event loop, shared by all who need it."""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

import qt
from medsam2_core.worker.client import WorkerClient

from MedSAM2SegmentLib.Panels.QtHelpers import Connections
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import cleanedEnvironment

_PIECE = 1 << 20  # bytes handed to Qt at a time
_MOST_IN_QT = 4 << 20  # bytes Qt may hold at once; more would only be copied earlier
_TICK_MS = 100
_QUIT_MS = 2000  # a killed process is gone at once, unless the system is in trouble


def startupEnvironment() -> dict[str, str]:
    """Return the variables Slicer was started with; outside Slicer, those of this process.

    What Slicer's launcher has set since (its Python, its libraries) must not reach another program.
    """
    try:
        import slicer
    except ImportError:
        return dict(os.environ)
    if not hasattr(getattr(slicer, "app", None), "startupEnvironment"):  # slicer-core has no application
        return dict(os.environ)
    return dict(slicer.util.startupEnvironment())


def remoteEnvironment() -> dict[str, str]:
    """Return the variables for a remote command (ssh, srun, docker): the user's own, without Slicer's."""
    return cleanedEnvironment(startupEnvironment())


def withPriority(command: Sequence[str]) -> list[str]:
    """Return a command that starts a process with the priority of other programs, as far as that can be had.

    On Linux, Slicer gives its main thread the least priority (nice 19). Child processes inherit it,
    and may not raise it again. But where Linux divides the processor between sessions first, and by priority
    only within one (autogroup, see sched(7)), a process in a session of its own gets the share of any other.
    """
    if sys.platform != "linux" or os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        return list(command)
    setsid = shutil.which("setsid")  # replaces itself by the command: the process stays the same
    return [setsid, *command] if setsid else list(command)


class QProcessTransport:
    """Carries bytes to and from one process (see ``medsam2_core.worker.transports.Transport``).

    Parameters
    ----------
    command
        Program and its arguments.
    environment
        The whole environment of the process.
    parent
        Qt object that owns the process: a process without owner dies with the last reference to it.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], parent: qt.QObject | None = None
    ) -> None:
        self._command = [str(word) for word in command]
        self._environment = dict(environment)
        self._parent = qt.QCoreApplication.instance() if parent is None else parent
        self._process = None
        self._listener = None
        self._waiting: deque[bytes] = deque()
        self._waitingBytes = 0
        self._closing = False
        self._connections = Connections()

    def start(self, listener) -> None:
        """Start the process; the event loop calls ``listener`` from now on."""
        variables = qt.QProcessEnvironment()
        for name, value in self._environment.items():
            variables.insert(name, value)
        self._listener = listener
        self._process = qt.QProcess(self._parent)
        self._process.setProcessEnvironment(variables)
        for signal, slot in self._slots():
            self._connections.connect(self._process, signal, slot)
        self._connections.connect(qt.QCoreApplication.instance(), "aboutToQuit", self._onQuit)
        self._process.start(self._command[0], list(self._command[1:]))

    def write(self, data: bytes) -> None:
        """Send bytes, as soon as the process takes them; after its end they go nowhere."""
        if self._listener is None or self._closing:
            return
        view = memoryview(data).cast("B")
        for first in range(0, len(view), _PIECE):
            self._waiting.append(bytes(view[first : first + _PIECE]))
        self._waitingBytes += len(view)
        self._pump()

    def pending(self) -> int:
        """Return how many bytes of `write` have not been handed to the process."""
        if self._process is None:
            return self._waitingBytes
        return self._waitingBytes + int(self._process.bytesToWrite())

    def close_input(self) -> None:
        """Close the input of the process, once everything written has gone."""
        self._closing = True
        self._pump()

    def kill(self) -> None:
        """End the process now; the listener is called later. May be called at any time, and twice.

        What a wrapper (ssh, srun) started ends with its standard input, which is closed by this.
        """
        self._waiting.clear()
        self._waitingBytes = 0
        if self._process is not None:
            self._process.kill()

    def _slots(self):
        return (
            ("started", self._pump),
            ("bytesWritten", self._onBytesWritten),
            ("readyReadStandardOutput", self._onOutput),
            ("readyReadStandardError", self._onError),
            ("errorOccurred", self._onProblem),
            ("finished", self._onFinished),
        )

    def _onBytesWritten(self, _count=0) -> None:
        self._pump()

    def _pump(self) -> None:
        process = self._process
        if process is None or process.state() != qt.QProcess.Running:
            return
        while self._waiting and process.bytesToWrite() < _MOST_IN_QT:
            piece = self._waiting.popleft()
            self._waitingBytes -= len(piece)
            process.write(bytes(piece))
        if self._closing and not self._waiting:
            process.closeWriteChannel()  # Qt still delivers what it holds

    def _onOutput(self) -> None:
        if self._process is not None:
            data = self._process.readAllStandardOutput().data()
            if data:
                self._listener.on_bytes(data)

    def _onError(self) -> None:
        if self._process is not None:
            data = self._process.readAllStandardError().data()
            if data:
                self._listener.on_stderr(data)

    def _onProblem(self, error) -> None:
        # Every other problem is followed by `finished`.
        if self._process is not None and error == qt.QProcess.FailedToStart:
            self._end(f"{self._command[0]} did not start: {self._process.errorString()}", None)

    def _onFinished(self, code, _status=None) -> None:
        if self._process is None:
            return
        self._onOutput()
        self._onError()
        if self._process is None:
            return
        if self._process.exitStatus() == qt.QProcess.CrashExit:
            self._end("the process was ended from outside or crashed", code)
        else:
            self._end(f"the process ended with exit code {code}", code)

    def _onQuit(self) -> None:
        # No event loop will tell of its end any more, and it must not be left to run.
        if self._process is not None:
            self._process.kill()
            self._process.waitForFinished(_QUIT_MS)

    def _end(self, reason: str, code: int | None) -> None:
        process, self._process = self._process, None
        self._connections.disconnectAll()
        process.deleteLater()
        self._waiting.clear()
        self._waitingBytes = 0
        listener, self._listener = self._listener, None
        listener.on_end(reason, code)


class SharedWorker:
    """One worker for all who use the same command; it runs while it has owners.

    Parameters
    ----------
    command
        Program and arguments that start the worker.
    environment
        The whole environment of the process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(str(word) for word in command)
        self._environment = dict(environment)
        self._owners: list[object] = []
        self._timer = None
        self.client: WorkerClient | None = None

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str]) -> SharedWorker:
        """Return the worker of this command and environment, the same one as long as anybody refers to it."""
        key = (tuple(str(word) for word in command), tuple(sorted(environment.items())))
        worker = _workers.get(key)
        if worker is None:
            worker = _workers[key] = cls(command, environment)
        return worker

    def acquire(self, owner: object) -> WorkerClient:
        """Return the worker's client, started for its first owner. Asking twice counts once."""
        if not any(one is owner for one in self._owners):
            self._owners.append(owner)
        if self.client is None:
            self.client = WorkerClient(self._makeTransport)
            self.client.start()
            self._timer = qt.QTimer(qt.QCoreApplication.instance())
            self._timer.interval = _TICK_MS
            self._timer.timeout.connect(self.client.tick)
            self._timer.start()
        return self.client

    def release(self, owner: object) -> None:
        """Remove an owner; the process ends with the last one."""
        self._owners = [one for one in self._owners if one is not owner]
        if self._owners or self.client is None:
            return
        self._timer.stop()
        self._timer.timeout.disconnect(self.client.tick)
        self._timer.deleteLater()
        self._timer = None
        client, self.client = self.client, None
        client.stop()

    def _makeTransport(self) -> QProcessTransport:
        return QProcessTransport(self._command, self._environment)


#: Those that somebody refers to, by command and environment: a client keeps its worker alive.
_workers: WeakValueDictionary[tuple, SharedWorker] = WeakValueDictionary()


class Workers:
    """The worker the settings ask for: a remote command, or the runtime of this computer.

    Parameters
    ----------
    settings
        Settings.
    installer
        RuntimeInstaller.
    """

    def __init__(self, settings, installer) -> None:
        self._settings = settings
        self._installer = installer

    def current(self) -> SharedWorker:
        """Return the shared worker, started or not.

        Raises
        ------
        MedSAM2Error
            There is no runtime, or the remote command cannot be read; the message says what to do.
        """
        words = self._settings.remoteWords()
        if words:
            return SharedWorker.of(words, remoteEnvironment())
        return SharedWorker.of(withPriority(self._installer.command()), self._installer.environment())
