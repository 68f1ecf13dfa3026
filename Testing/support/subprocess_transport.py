"""A worker as a child process, for tests: no event loop is needed."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from medsam2_core.worker.client import WorkerClient
from medsam2_core.worker.transports import Listener

_PIECE = 1 << 18  # bytes read at once
_DRAIN_S = 1.0  # for what a dead process has still in its pipes


class PumpedClient(WorkerClient):
    """A client that fetches what its transport has received."""

    def __init__(self, make_transport, **more) -> None:
        def make():
            self.transport = make_transport()
            return self.transport

        super().__init__(make, **more)

    def tick(self) -> None:
        self._fetch(0.0)
        super().tick()

    def pump(self, timeout: float = 0.1) -> None:
        """Wait up to `timeout` seconds for bytes, then :meth:`tick`."""
        self._fetch(timeout)
        self.tick()

    def _fetch(self, timeout: float) -> None:
        if self._connection is not None:
            self.transport.pump(timeout)
        elif timeout:
            time.sleep(timeout)


class SubprocessTransport:
    """A worker as a child process.

    Threads wait for its pipes; `pump` calls the listener in the caller's thread.

    Parameters
    ----------
    command
        Program and arguments.
    environment
        All its environment variables; this process's own by default.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self._environment = environment
        self._listener: Listener | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._end: tuple[str, int | None] | None = None  # why it ended, when that is known
        self._writable = threading.Condition()
        self._queued: deque[bytes] = deque()
        self._pending = 0
        self._is_closing = False
        self._is_over = False

    def start(self, listener: Listener) -> None:
        """Start the process."""
        self._listener = listener
        try:
            self._process = subprocess.Popen(
                self.command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if self._environment is None else dict(self._environment),
                start_new_session=os.name != "nt",  # so that all it starts can be ended together
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # 0 but on Windows
            )
        except (OSError, ValueError, IndexError) as error:  # not there, not a program, or no command at all
            program = self.command[0] if self.command else "the worker (no command is given)"
            self._end = f"{program} could not be started: {error}", None
            self._events.put(("end", b""))
            return
        pipes = {"bytes": self._process.stdout, "stderr": self._process.stderr}
        readers = [
            threading.Thread(target=self._read, args=(kind, pipe.fileno()), daemon=True)
            for kind, pipe in pipes.items()
            if pipe is not None
        ]
        for thread in (
            *readers,
            threading.Thread(target=self._write_all, daemon=True),
            threading.Thread(target=self._wait, args=(self._process, readers), daemon=True),
        ):
            thread.start()

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        with self._writable:
            if not self._is_over and not self._is_closing:
                self._queued.append(bytes(data))
                self._pending += len(data)
                self._writable.notify()

    def pending(self) -> int:
        """Bytes queued or only partly written."""
        return self._pending

    def close_input(self) -> None:
        """End of its standard input."""
        with self._writable:
            self._is_closing = True
            self._writable.notify()

    def kill(self) -> None:
        """End the process and its group."""
        with self._writable:
            self._is_over = True
            self._queued.clear()
            self._pending = 0
            self._writable.notify()
        if self._process is not None:
            _kill_group(self._process)

    def pump(self, timeout: float = 0.0) -> bool:
        """Call the listener for all that has happened; return whether something had.

        Waits up to `timeout` seconds for the first event.
        """
        happened = False
        while True:
            try:
                kind, data = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
            except queue.Empty:
                return happened
            happened, timeout = True, 0.0
            if self._listener is None:
                continue
            if kind == "bytes":
                self._listener.on_bytes(data)
            elif kind == "stderr":
                self._listener.on_stderr(data)
            elif self._end is not None:
                self._listener.on_end(*self._end)

    def _read(self, kind: str, descriptor: int) -> None:
        while data := _read_some(descriptor):
            self._events.put((kind, data))

    def _write_all(self) -> None:
        pipe = self._process.stdin if self._process is not None else None
        if pipe is None:
            return
        while True:
            with self._writable:
                while not self._queued and not self._is_closing and not self._is_over:
                    self._writable.wait()
                data = self._queued.popleft() if self._queued else b""
            if not data:
                break
            if not self._write(pipe.fileno(), memoryview(data)):
                break
        with contextlib.suppress(OSError):  # the process is gone; `_wait` tells why
            pipe.close()

    def _write(self, descriptor: int, data: memoryview) -> bool:
        while data:
            try:
                written = os.write(descriptor, data[:_PIECE])
            except OSError:  # the process is gone; `_wait` tells why
                return False
            data = data[written:]
            with self._writable:
                self._pending = max(0, self._pending - written)
        return True

    def _wait(self, process: subprocess.Popen[bytes], readers: list[threading.Thread]) -> None:
        """Wait until it ends or closes its output, and put that behind all it has written."""
        output, messages = readers
        ended = threading.Event()
        threading.Thread(target=_wait_unreaped, args=(process, ended), daemon=True).start()
        while output.is_alive() and not ended.is_set():
            output.join(0.02)
        if ended.wait(_DRAIN_S):
            _kill_group(process)  # what it started must not outlive it
            output.join(_DRAIN_S)
            code = process.wait()
            self._end = _reason(code), code
        else:
            self._end = "the worker closed its output", None
        messages.join(_DRAIN_S)
        self._events.put(("end", b""))
        with self._writable:
            self._is_over = True
            self._writable.notify()
        ended.wait()
        process.wait()
        for thread, pipe in zip(readers, (process.stdout, process.stderr), strict=True):
            if pipe is not None and not thread.is_alive():
                pipe.close()


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _PIECE)
    except OSError:
        return b""


def _wait_unreaped(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    """Wait for the process without reaping it: its group can still be ended by its number."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # somebody else has waited for it
            process.wait()
    else:
        process.wait()
    ended.set()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    try:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all gone, or only the unreaped leader is left
        pass


def _reason(code: int) -> str:
    if code >= 0:
        return f"the worker ended with exit code {code}"
    try:
        return f"the worker was ended by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"the worker was ended by signal {-code}"
