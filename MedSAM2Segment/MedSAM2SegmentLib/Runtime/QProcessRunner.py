"""Child processes through QProcess: the only file of the runtime that needs Qt."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence

import qt

from MedSAM2SegmentLib.i18n import _


class QProcessRunner:
    """Starts child processes under Qt's event loop; see RuntimeTask.ProcessRunner.

    ``parent`` is a QObject that outlives the processes; they are killed when it is destroyed.
    """

    def __init__(self, parent=None) -> None:
        self._parent = parent
        self._running: set[_Process] = set()  # a QProcess without a reference would kill its child

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        onOutput: Callable[[str], None],
        onEnd: Callable[[int | None, str], None],
    ) -> _Process:
        """Start a command; see RuntimeTask.ProcessRunner.run."""
        process = _Process(self._parent, onOutput, onEnd, self._running.discard)
        self._running.add(process)
        process.start(command, environment)
        return process

    def killAll(self) -> None:
        """End every child process that is still running."""
        for process in list(self._running):
            process.kill()


class _Process:
    """One child process; its signals are disconnected when it has ended."""

    def __init__(self, parent, onOutput, onEnd, onRemoved) -> None:
        self._onOutput, self._onEnd, self._onRemoved = onOutput, onEnd, onRemoved
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._process = qt.QProcess(parent) if parent is not None else qt.QProcess()
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self._process.readyReadStandardOutput.connect(self._onReadyRead)
        self._process.finished.connect(self._onFinished)
        self._process.errorOccurred.connect(self._onError)
        # What happens inside start() is reported once the caller has its handle.
        self._later = qt.QTimer(self._process)
        self._later.timeout.connect(self._onLater)
        self._result: tuple[int | None, str] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it."""
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.start(command[0], list(command[1:]))
        self._process.closeWriteChannel()

    def kill(self) -> None:
        """End it now."""
        if self._process is not None and self._process.state() != qt.QProcess.NotRunning:
            self._process.kill()

    def _onReadyRead(self) -> None:
        if self._process is not None:
            text = self._decoder.decode(self._process.readAllStandardOutput().data())
            if text:
                self._onOutput(text)

    def _onFinished(self, code: int) -> None:
        crashed = self._process is not None and self._process.exitStatus() == qt.QProcess.CrashExit
        self._setResult(
            (None, _("it was ended by a signal")) if crashed else (int(code), f"exit code {code}")
        )

    def _onError(self, error) -> None:
        if self._process is not None and error == qt.QProcess.FailedToStart:  # no finished() then
            reason = _("it could not be started: {reason}").format(reason=self._process.errorString())
            self._setResult((None, reason))

    def _setResult(self, result: tuple[int | None, str]) -> None:
        if self._result is None:
            self._result = result
            self._later.start(0)

    def _onLater(self) -> None:
        self._later.stop()
        self._onReadyRead()
        process, self._process = self._process, None
        process.readyReadStandardOutput.disconnect(self._onReadyRead)
        process.finished.disconnect(self._onFinished)
        process.errorOccurred.disconnect(self._onError)
        self._later.timeout.disconnect(self._onLater)
        self._onRemoved(self)
        process.deleteLater()
        self._onEnd(*self._result)
