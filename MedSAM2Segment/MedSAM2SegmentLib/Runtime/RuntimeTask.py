"""Work that consists of child processes, one after another, without ever blocking who started it.

The work is a generator that yields a :class:`Command` and is handed its :class:`Output`; a :class:`Task` runs
the commands through a process runner, whose callbacks come in the caller's own thread (QProcess in Slicer).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from medsam2_core.errors import Cancelled, RuntimeInstallError

# What the last lines of a child's output are kept for: messages and the report.
_KEPT_LINES = 400


class ProcessHandle(Protocol):
    """One child process that was started."""

    def kill(self) -> None:
        """End it, and what it started itself, now; nothing when it has ended."""


class ProcessRunner(Protocol):
    """Starts child processes and tells about them later, in the thread that asked."""

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        onOutput: Callable[[str], None],
        onEnd: Callable[[int | None, str], None],
    ) -> ProcessHandle:
        """Start ``command`` with exactly this environment.

        ``onOutput`` gets text as it comes (standard output and standard error together); ``onEnd`` is called
        once, after the last text and never before ``run`` has returned: with the exit code, or None and why
        when the process could not be started or died by a signal.
        """


@dataclass(frozen=True)
class Command:
    """One child process.

    Attributes
    ----------
    words
        Program and arguments.
    environment
        All of its environment.
    onLine
        Told every line of its output; for progress.
    beside
        Another command that runs only as long as this one; for progress too. How it ends does not matter.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    onLine: Callable[[str], None] | None = None
    beside: Command | None = None


@dataclass(frozen=True)
class Output:
    """How a command ended: exit code (None: not started, or ended by a signal), why, and its last lines."""

    code: int | None
    reason: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The last lines as one text."""
        return "\n".join(self.lines)

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.code == 0


# What is returned goes to whoever says ``yield from``.
Work = Generator[Command, Output, Any]


class Task:
    """Runs a :data:`Work` to its end.

    Parameters
    ----------
    work
        A generator of commands. It raises RuntimeInstallError when the work cannot be done; its ``finally``
        blocks are run on cancellation too, where nothing may be yielded any more.
    runner
        Starts the commands.
    onEnd
        Called once: with None, the RuntimeInstallError, or Cancelled.
    onLine
        Told every line of every command.
    """

    def __init__(
        self,
        work: Work,
        runner: ProcessRunner,
        onEnd: Callable[[RuntimeInstallError | Cancelled | None], None],
        onLine: Callable[[str], None] | None = None,
    ) -> None:
        self._work = work
        self._runner = runner
        self._onEnd = onEnd
        self._onLine = onLine
        self._handle: ProcessHandle | None = None
        self._beside: ProcessHandle | None = None
        self._command: Command | None = None
        self._lines: list[str] = []
        self._rest = ""
        self._turn = 0  # a child that was killed may still report: only the present one is listened to
        self.isRunning = True

    def start(self) -> None:
        """Begin; returns at once. ``onEnd`` may come before this returns when there is nothing to run."""
        self._goOn(lambda: next(self._work))

    def cancel(self) -> None:
        """Kill the running child and end with Cancelled; nothing when it has ended."""
        if not self.isRunning:
            return
        self._turn += 1
        if self._handle is not None:
            self._handle.kill()
        self._endBeside()
        self._goOn(lambda: self._work.throw(Cancelled("The installation was cancelled")))

    def _goOn(self, step: Callable[[], Command]) -> None:
        try:
            command = step()
        except StopIteration:
            self._end(None)
        except (RuntimeInstallError, Cancelled) as error:
            self._end(error)
        except OSError as error:
            self._end(RuntimeInstallError(describeOSError(error)))
        else:
            self._run(command)

    def _run(self, command: Command) -> None:
        self._turn += 1
        turn = self._turn
        self._command, self._lines, self._rest = command, [], ""
        self._handle = self._runner.run(
            command.words,
            command.environment,
            lambda text: self._onOutput(turn, text),
            lambda code, reason: self._onProcessEnd(turn, code, reason),
        )
        if command.beside is not None:
            self._runBeside(turn, command.beside)

    def _runBeside(self, turn: int, command: Command) -> None:
        def onOutput(text: str) -> None:
            if turn == self._turn and command.onLine is not None:
                for line in text.split():
                    command.onLine(line)

        self._beside = self._runner.run(
            command.words, command.environment, onOutput, lambda code, reason: None
        )

    def _endBeside(self) -> None:
        if self._beside is not None:
            self._beside.kill()
            self._beside = None

    def _onOutput(self, turn: int, text: str) -> None:
        if turn != self._turn:
            return
        # Progress bars end their lines with a carriage return.
        *lines, self._rest = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._tell(line)

    def _onProcessEnd(self, turn: int, code: int | None, reason: str) -> None:
        if turn != self._turn:
            return
        if self._rest:
            self._tell(self._rest)
        self._handle = None
        self._endBeside()
        output = Output(code, reason, tuple(self._lines))
        self._goOn(lambda: self._work.send(output))

    def _tell(self, line: str) -> None:
        line = line.rstrip()
        if not line:
            return
        self._lines = [*self._lines[-_KEPT_LINES:], line]
        if self._command is not None and self._command.onLine is not None:
            self._command.onLine(line)
        if self._onLine is not None:
            self._onLine(line)

    def _end(self, error: RuntimeInstallError | Cancelled | None) -> None:
        self.isRunning = False
        self._handle = None
        self._onEnd(error)


def describeOSError(error: OSError) -> str:
    """What the disk refused, and where."""
    place = f"{os.fspath(error.filename)}: " if error.filename else ""
    return f"{place}{error.strerror or error}. Free disk space or permissions may be missing; then try again"
