"""Sequences of child processes that do not block the thread that starts them.

Work is a generator that yields a `Command` and receives its `Output`; a `Task` runs the commands with a
QProcessRunner, whose callbacks are called in the same thread. The output of a failed command is converted to
an error with a code and a remedy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from medsam2_core.errors import Cancelled, RuntimeInstallError

from MedSAM2SegmentLib.i18n import _

_KEPT_LINES = 400  # of a child's output, for messages


@dataclass(frozen=True)
class Output:
    """Result of a command: exit code (None: not started, or ended by a signal), reason, and last lines."""

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


@dataclass(frozen=True)
class Command:
    """A child process: program and arguments, complete environment, and a callback for its lines.

    ``beside`` is another command that runs only as long as this one; its result is ignored.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    onLine: Callable[[str], None] | None = None
    beside: Command | None = None


def _ignore(*_values: object) -> None:
    pass


@dataclass(frozen=True)
class InstallListener:
    """Callbacks of a running installation or removal."""

    progress: Callable[[float, str], None] = _ignore  # fraction from 0 to 1, and the present step
    line: Callable[[str], None] = _ignore  # every line printed by the tools
    ended: Callable[[RuntimeInstallError | Cancelled | None], None] = _ignore  # once; None on success


Work = Generator[Command, Output, Any]  # returns the value of ``yield from``


class Task:
    """Runs one `Work` to its end.

    The work raises RuntimeInstallError when it cannot be done. Its ``finally`` blocks also run when it is
    cancelled, but must not yield then. ``runner`` is a QProcessRunner.
    """

    def __init__(self, work: Work, runner, listener: InstallListener) -> None:
        self._work = work
        self._runner = runner
        self._listener = listener
        self._children: list[Any] = []
        self._command: Command | None = None
        self._lines: list[str] = []
        self._rest = ""  # of a line that is not complete yet
        self._turn = 0  # number of the present command; callbacks of earlier ones are ignored
        self.isRunning = True

    def start(self) -> None:
        """Start it without blocking; ``ended`` is called before this returns if there is nothing to run."""
        self._continue(lambda: next(self._work))

    def cancel(self) -> None:
        """Kill the running child and end with Cancelled, unless it has ended."""
        if self.isRunning:
            self._endChildren()
            error = Cancelled(_("The installation was cancelled"))
            self._continue(lambda: self._work.throw(error))

    def _continue(self, step: Callable[[], Command]) -> None:
        try:
            command = step()
        except StopIteration:
            self._end(None)
        except (RuntimeInstallError, Cancelled) as error:
            self._end(error)
        except OSError as error:
            self._end(diskError(error))
        else:
            self._run(command)

    def _run(self, command: Command) -> None:
        self._turn += 1
        turn = self._turn
        self._command, self._lines, self._rest = command, [], ""

        def ifCurrent(callback: Callable[..., None]) -> Callable[..., None]:
            return lambda *values: callback(*values) if turn == self._turn else None

        run = self._runner.run
        self._children = [
            run(command.arguments, command.environment, ifCurrent(self._onOutput), ifCurrent(self._onEnd))
        ]
        if (beside := command.beside) is not None:
            onOutput = ifCurrent(lambda text: _eachLine(text, beside.onLine or _ignore))
            self._children.append(run(beside.arguments, beside.environment, onOutput, _ignore))

    def _onOutput(self, text: str) -> None:
        # Progress bars end lines with a carriage return.
        text = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n")
        *lines, self._rest = text.split("\n")
        for line in lines:
            self._onLine(line)

    def _onLine(self, line: str) -> None:
        if line := line.rstrip():
            self._lines = [*self._lines[-_KEPT_LINES:], line]
            if self._command is not None and self._command.onLine is not None:
                self._command.onLine(line)
            self._listener.line(line)

    def _onEnd(self, code: int | None, reason: str) -> None:
        self._onLine(self._rest)
        self._endChildren()
        output = Output(code, reason, tuple(self._lines))
        self._continue(lambda: self._work.send(output))

    def _endChildren(self) -> None:
        self._turn += 1
        for child in self._children:
            child.kill()
        self._children = []

    def _end(self, error: RuntimeInstallError | Cancelled | None) -> None:
        self.isRunning = False
        self._listener.ended(error)


def _eachLine(text: str, callback: Callable[[str], None]) -> None:
    for line in text.split():
        callback(line)


# Errors of child processes

# Code, pattern of the output of pip, uv or the system, and message; the first match is used.
_CAUSES = (
    (
        "disk-full",
        r"No space left|not enough space|disk full|os error 28|os error 112|File too large|quota exceeded",
        _("the disk is full. Free some space, then press Install again: what was downloaded is kept"),
    ),
    (
        "hash-mismatch",
        r"hash mismatch|hashes? (?:do|does) not match|THESE PACKAGES DO NOT MATCH THE HASHES",
        _(
            "a downloaded file is not the pinned one. It may have been damaged on the way, or the index or "
            "the offline folder holds another file: press Install again, or renew the folder"
        ),
    ),
    (
        "access-denied",
        r"Permission denied|os error 13|Access is denied|os error 5\b|os error 32|used by another process",
        _(
            "a file could not be written. Close other Slicers that use the runtime, and see whether the "
            "folder may be written to"
        ),
    ),
    (
        "index-unreachable",
        r"dns error|Failed to fetch|error sending request|timed out|Could not connect|tunnel|proxy|"
        r"Network is unreachable|Connection refused|certificate|Temporary failure in name|NewConnectionError",
        _(
            "the package index could not be reached. Is this computer online? Behind a proxy set HTTPS_PROXY "
            "(and SSL_CERT_FILE for its certificate); for an index of your own set UV_DEFAULT_INDEX; without "
            "a network use an offline folder. Then press Install again"
        ),
    ),
    (
        "damaged-download",
        r"failed to (?:extract|unzip|read)|invalid (?:zip|wheel)|corrupt|BadZipFile|not a zip|"
        r"Failed to read metadata|unexpected end",
        _("a downloaded file is damaged. Press Install again, or renew the offline folder"),
    ),
    (
        "package-not-found",
        r"No solution found|no version of|not found in the (?:package registry|provided)|"
        r"No matching distribution|no wheels? with a matching|unsatisfiable",
        _(
            "no suitable package was found. Your own package index or offline folder may be incomplete: see "
            "the details"
        ),
    ),
    (
        "python-not-found",
        r"No interpreter found|No download found|no Python (?:found|installation)",
        _("no Python 3.10 to 3.13 was found, and none could be downloaded. Install one, or choose one"),
    ),
)


def commandError(what: str, output: Output) -> RuntimeInstallError:
    """Return the error for a failed command; ``what`` is like "PyTorch could not be installed"."""
    last = next((line.strip() for line in reversed(output.lines) if line.strip()), "")
    for code, pattern, meaning in _CAUSES:
        if re.search(pattern, output.text, re.IGNORECASE):
            return RuntimeInstallError(f"{what}: {meaning}", code=code, output=last)
    cause = f"{last} ({output.reason})" if last else output.reason
    message = _("{what}: {cause}. See the details, then press Install again").format(what=what, cause=cause)
    return RuntimeInstallError(message, code="command-failed", output=last)


def diskError(error: OSError) -> RuntimeInstallError:
    """Return the error for a failed access to the disk."""
    path = os.fspath(error.filename) if error.filename else ""
    reason = error.strerror or str(error)
    message = _("{reason}. Free disk space or permissions may be missing; then try again").format(
        reason=f"{path}: {reason}" if path else reason
    )
    return RuntimeInstallError(message, code="disk-error", path=path)
