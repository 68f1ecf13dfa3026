"""Runs the installer's child processes with `subprocess`; callbacks come in the test's own thread."""

import queue
import subprocess
import threading
import time
from collections.abc import Callable

from MedSAM2SegmentLib.Runtime.RuntimeTask import InstallListener


class SubprocessRunner:
    """A ProcessRunner without Qt. `pump` delivers what has come; `commands` is what was started.

    ``before(number, command)`` is called before the child with that number is started, counted from 1.
    """

    def __init__(self, before: Callable[[int, tuple], None] = lambda number, command: None) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.environments: list[dict[str, str]] = []
        self.before = before
        self._events: queue.Queue = queue.Queue()
        self._children: list[subprocess.Popen] = []

    def run(self, command, environment, onOutput, onEnd):
        self.commands.append(tuple(command))
        self.environments.append(dict(environment))
        self.before(len(self.commands), tuple(command))
        try:
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self._events.put((onEnd, (None, f"it could not be started: {error}")))
            return _Nothing()
        self._children.append(child)
        threading.Thread(target=self._read, args=(child, onOutput, onEnd), daemon=True).start()
        return child

    def _read(self, child, onOutput, onEnd) -> None:
        for chunk in iter(lambda: child.stdout.read1(65536), b""):
            self._events.put((onOutput, (chunk.decode("utf-8", "replace"),)))
        code = child.wait()
        self._events.put((onEnd, (code, f"exit code {code}") if code >= 0 else (None, f"signal {-code}")))

    def pump(self, seconds: float) -> None:
        """Deliver one callback, waiting at most so long for it."""
        try:
            callback, arguments = self._events.get(timeout=seconds)
        except queue.Empty:
            return
        callback(*arguments)

    def running(self) -> list[str]:
        """Programs of children that have not ended."""
        return [child.args[0] for child in self._children if child.poll() is None]

    def words(self) -> list[str]:
        """What each child was told, without its program."""
        return [" ".join(command[1:]) for command in self.commands]


class _Nothing:
    def kill(self) -> None:
        """It never ran."""


class Outcome:
    """Listens to one piece of work and waits for its end."""

    def __init__(self, runner: SubprocessRunner) -> None:
        self.runner = runner
        self.lines: list[str] = []
        self.steps: list[tuple[float, str]] = []
        self.ends: list[Exception | None] = []

    @property
    def listener(self) -> InstallListener:
        return InstallListener(
            lambda fraction, text: self.steps.append((fraction, text)), self.lines.append, self.ends.append
        )

    def wait(self, seconds: float = 120) -> Exception | None:
        """What it ended with."""
        end = time.monotonic() + seconds
        while not self.ends:
            assert time.monotonic() < end, (
                f"not finished after {seconds} s: {self.steps[-1:]} {self.lines[-5:]}"
            )
            self.runner.pump(0.5)
        assert len(self.ends) == 1
        return self.ends[0]


def done(work, runner: SubprocessRunner, *more, seconds: float = 120) -> Exception | None:
    """Run a method of the installer to its end: ``done(installer.install, runner)``."""
    outcome = Outcome(runner)
    work(outcome.listener, *more)
    return outcome.wait(seconds)
