"""Processes that each hold a model and do cases, two at a time: one is computed while the next is read."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from medsam2_core.batch.cases import Task

#: Cases that a process has at a time: one is computed, one is read.
CASES_EACH = 2


class Worker(Protocol):
    """Does cases, called by two threads; :class:`~medsam2_core.batch.work.CaseWorker` is one."""

    def run(self, task: Task) -> dict[str, Any]:
        """Do a case, and return what became of it; never raises."""


#: Makes the worker of a process, there; it is pickled.
MakeWorker = Callable[[], Worker]


@dataclass(frozen=True)
class Finished:
    """A case that left the pool.

    Attributes
    ----------
    outcome
        What :meth:`Worker.run` returned; None when the process was lost.
    reason
        How it was lost.
    """

    task: Task
    outcome: dict[str, Any] | None
    reason: str = ""


@dataclass(eq=False)
class PoolProcess:
    """One process of a pool, and the cases it has."""

    tasks: dict[str, Task] = field(default_factory=dict)

    def takes(self, task: Task) -> bool:
        """Return whether it can have one more. One that lost a process before is done alone: were it with
        another, it could not be told which of the two is at fault."""
        if not self.tasks:
            return True
        alone = task.attempt or any(one.attempt for one in self.tasks.values())
        return not alone and len(self.tasks) < CASES_EACH


class Pool(ABC):
    """Does cases in several processes."""

    @property
    @abstractmethod
    def processes(self) -> list[Any]:
        """The processes."""

    @abstractmethod
    def wait(self, seconds: float) -> list[Finished]:
        """Return cases that have ended; after so many seconds perhaps none."""

    @abstractmethod
    def close(self, *, kill: bool = False) -> None:
        """End the processes: after their cases, or at once."""

    @abstractmethod
    def _send(self, process: Any, task: Task) -> None: ...

    def submit(self, task: Task) -> bool:
        """Give a case to the process that has fewest; return False when none can take it now."""
        able = [process for process in self.processes if process.takes(task)]
        if not able:
            return False
        process = min(able, key=lambda one: len(one.tasks))
        process.tasks[task.case.name] = task
        self._send(process, task)
        return True

    @property
    def in_flight(self) -> int:
        """Number of cases in the processes."""
        return sum(len(process.tasks) for process in self.processes)


@dataclass(eq=False)
class _Local(PoolProcess):
    child: Any = None
    connection: Any = None


class LocalPool(Pool):
    """Processes of this machine.

    Parameters
    ----------
    make_worker
        Makes what each process holds.
    threads
        CPU threads of each process.
    processes
        How many.
    """

    def __init__(self, make_worker: MakeWorker, threads: int, processes: int) -> None:
        self._make_worker, self._threads = make_worker, threads
        # A forked process would share torch's threads and the graphics card's state with this one.
        self._context = multiprocessing.get_context("spawn")
        self._processes = [_Local() for _ in range(processes)]

    @property
    def processes(self) -> list[_Local]:
        """The processes; each starts with its first case."""
        return self._processes

    def _send(self, process: _Local, task: Task) -> None:
        if process.child is None:
            process.connection, theirs = self._context.Pipe()
            process.child = self._context.Process(
                target=_serve, args=(theirs, self._make_worker, self._threads), daemon=True
            )
            process.child.start()
            theirs.close()
        with contextlib.suppress(OSError):  # it has just been lost: wait() will tell
            process.connection.send(task)

    def wait(self, seconds: float) -> list[Finished]:
        """Return cases that have ended, and those of processes that were lost."""
        running = {process.connection: process for process in self._processes if process.child is not None}
        found: list[Finished] = []
        for connection in wait(list(running), seconds):
            process = running[connection]
            try:
                name, outcome = process.connection.recv()
                found.append(Finished(process.tasks.pop(name), outcome))
            except (EOFError, OSError):
                found += self._lost(process)
        return found

    def _lost(self, process: _Local) -> Iterator[Finished]:
        """Give up a process that has ended; the next case starts another."""
        tasks, process.tasks = process.tasks, {}
        process.child.join(5)
        reason = f"exit code {process.child.exitcode}"
        process.connection.close()
        process.child = process.connection = None
        return iter([Finished(task, None, reason) for task in tasks.values()])

    def close(self, *, kill: bool = False) -> None:
        """End the processes."""
        running = [process for process in self._processes if process.child is not None]
        for process in running:
            if kill:
                process.child.kill()
            else:
                with contextlib.suppress(OSError):
                    process.connection.send(None)
        for process in running:
            process.child.join()
            process.connection.close()
            process.child = process.connection = None


def _serve(connection: Connection, make_worker: MakeWorker, threads: int) -> None:
    """Do cases until None comes, in two threads; end at once when the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a scheduler: the other side decides
        signal.signal(number, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    worker, sending = make_worker(), threading.Lock()
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    def work() -> None:
        while (task := tasks.get()) is not None:
            outcome = worker.run(task)
            with sending, contextlib.suppress(OSError):
                connection.send((task.case.name, outcome))

    running = [threading.Thread(target=work, daemon=True) for _ in range(CASES_EACH)]
    for thread in running:
        thread.start()
    try:
        while (task := connection.recv()) is not None:
            tasks.put(task)
    except (EOFError, OSError):
        os._exit(1)
    for _ in running:
        tasks.put(None)
    for thread in running:
        thread.join()
