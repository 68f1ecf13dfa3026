"""Child processes under Qt's event loop: their bytes, and their output as text."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.QtHelpers import Connections

_PIECE = 1 << 20  # bytes handed to Qt at a time
_MOST_IN_QT = 4 << 20  # bytes that Qt may buffer
_QUIT_MS = 2000  # a killed process normally ends at once


class QProcessTransport:
    """Transport of bytes to and from one process (see ``medsam2_core.worker.transports.Transport``).

    Parameters
    ----------
    parent
        Qt object that owns the process; by default the application.
    isMerged
        Whether standard error is read together with standard output.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        parent: qt.QObject | None = None,
        *,
        isMerged: bool = False,
    ) -> None:
        self._command = [str(word) for word in command]
        self._environment = dict(environment)
        self._parent = qt.QCoreApplication.instance() if parent is None else parent
        self._isMerged = isMerged
        self._process = None
        self._listener = None
        self._waiting: deque[bytes] = deque()
        self._waitingBytes = 0
        self._closing = False
        self._connections = Connections()

    def start(self, listener) -> None:
        """Start the process; from now on, the event loop calls ``listener``."""
        variables = qt.QProcessEnvironment()
        for name, value in self._environment.items():
            variables.insert(name, value)
        self._listener = listener
        self._process = qt.QProcess(self._parent)
        self._process.setProcessEnvironment(variables)
        if self._isMerged:
            self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        for signal, slot in self._slots():
            self._connections.connect(self._process, signal, slot)
        self._connections.connect(qt.QCoreApplication.instance(), "aboutToQuit", self._onQuit)
        self._process.start(self._command[0], list(self._command[1:]))

    def write(self, data: bytes) -> None:
        """Send bytes as soon as the process accepts them; after its end they are dropped."""
        if self._listener is None or self._closing:
            return
        view = memoryview(data).cast("B")
        for first in range(0, len(view), _PIECE):
            self._waiting.append(bytes(view[first : first + _PIECE]))
        self._waitingBytes += len(view)
        self._pump()

    def pending(self) -> int:
        """Return how many bytes of `write` have not been passed to the process yet."""
        if self._process is None:
            return self._waitingBytes
        return self._waitingBytes + int(self._process.bytesToWrite())

    def close_input(self) -> None:
        """Close the input of the process once everything written was sent."""
        self._closing = True
        self._pump()

    def kill(self) -> None:
        """Kill the process; the listener is called later. May be called at any time, and repeatedly.

        A process started by a wrapper (ssh, srun) ends because its standard input is closed.
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
            process.closeWriteChannel()  # Qt still delivers what it has buffered

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
            reason = _("{program} did not start: {reason}")
            self._end(reason.format(program=self._command[0], reason=self._process.errorString()), None)

    def _onFinished(self, code, _status=None) -> None:
        if self._process is None:
            return
        self._onOutput()
        self._onError()
        if self._process is None:
            return
        if self._process.exitStatus() == qt.QProcess.CrashExit:
            self._end(_("the process was ended from outside or crashed"), None)
        else:
            self._end(_("the process ended with exit code {code}").format(code=code), code)

    def _onQuit(self) -> None:
        # Without an event loop its end is not reported any more, and it must not be left running.
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


class QProcessRunner:
    """Runs child processes for `RuntimeTask.Task`; each is killed when Qt's application quits."""

    def __init__(self) -> None:
        self._running: set[QProcessTransport] = set()  # keeps them alive without the caller's references

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        onOutput: Callable[[str], None],
        onEnd: Callable[[int | None, str], None],
    ) -> QProcessTransport:
        """Start a command with exactly this environment; its input is empty.

        ``onOutput`` gets text as it comes, standard output and standard error together. ``onEnd`` is called
        once, after the last text and never before this returns: with the exit code, or None if the process
        could not be started or was ended by a signal, and with the reason.
        """
        process = QProcessTransport(command, environment, isMerged=True)

        def end(code: int | None, reason: str) -> None:
            self._running.discard(process)
            onEnd(code, reason)

        self._running.add(process)
        process.start(_TextListener(onOutput, end))
        process.close_input()
        return process


class _TextListener:
    """Decodes the output of a process, and reports its end after `QProcessRunner.run` has returned."""

    def __init__(self, onOutput: Callable[[str], None], onEnd: Callable[[int | None, str], None]) -> None:
        self._onOutput, self._onEnd = onOutput, onEnd
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def on_bytes(self, data: bytes) -> None:
        if text := self._decoder.decode(data):
            self._onOutput(text)

    def on_end(self, reason: str, code: int | None) -> None:
        qt.QTimer.singleShot(0, lambda: self._onEnd(code, reason))
