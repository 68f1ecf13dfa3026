"""Processes that each hold a model and do cases, two at a time: one is computed while the next is read.

They are those of this machine (:class:`LocalPool`), or actors of a Ray cluster (:class:`RayPool`). Cases and
outcomes, small plain values, are all that passes; images and results are read and written by the processes
themselves. What was done, and what is tried again, is decided by :class:`~medsam2_core.batch.run.Run`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from medsam2_core.batch.cases import Case, Options, Task
from medsam2_core.errors import BatchError, MissingPackageError

#: Cases that a process has at a time: one is computed, one is read.
CASES_EACH = 2
#: Makes, in a process, what does its cases: a :class:`~medsam2_core.batch.work.CaseRunner`. It is pickled.
MakeRunner = Callable[[], Any]

_PROGRAM_BYTES = 1 << 30  # of one process, where the need of its model is not known
_GROWTH = {".gz": 4, ".zip": 4}  # by how much a compressed scan is larger in memory
_UNKNOWN_SCAN = 300 << 20  # bytes; a CT of 300 slices
_SCANS = 3  # in a process: one computed, one read, and what is made of them
_STORE_BYTES = 100 << 20  # for the objects of a Ray cluster on this machine; outcomes are some kilobytes
_CONNECT_SECONDS = 10.0


class ProcessLost(Exception):
    """A process ended while it had cases; the text says how."""


@dataclass(eq=False)
class Process:
    """One process of a pool.

    Attributes
    ----------
    handle
        What its pool knows it by; None before its first case, and after it was lost.
    is_ready
        Whether it is known to have started.
    tasks
        The cases it has, by their calls.
    """

    handle: Any = None
    is_ready: bool = False
    tasks: dict[Any, Task] = field(default_factory=dict)

    def takes(self, task: Task) -> bool:
        """Return whether it can have one more. One that lost a process before is done alone: were it with
        another, it could not be told which of the two is at fault."""
        if not self.tasks:
            return True
        alone = task.attempt or any(one.attempt for one in self.tasks.values())
        return not alone and len(self.tasks) < CASES_EACH


class Pool(ABC):
    """Does cases in several processes, each of which starts with its first case.

    A kind of pool defines how a process is started, is given a case, and answers. A call is what
    :meth:`_send` returns for a case; its outcome comes from there.
    """

    def __init__(self, count: int) -> None:
        self.processes = [Process() for _ in range(count)]

    def submit(self, task: Task) -> bool:
        """Give a case to the process that has fewest; return False when none can take it now."""
        able = [process for process in self.processes if process.takes(task)]
        if not able:
            return False
        process = min(able, key=lambda one: len(one.tasks))
        if process.handle is None:
            process.handle = self._start()
        process.tasks[self._send(process, task)] = task
        return True

    def wait(self, seconds: float) -> list[tuple[Task, dict[str, Any]]]:
        """Return cases that have ended, and what their runner returned; after so many seconds perhaps none.

        Of a case whose process was lost, the field ``lost`` says how.

        Raises
        ------
        BatchError
            ``process-not-started``: one cannot start, and the next would not, either.
        """
        process_of = {call: process for process in self.processes for call in process.tasks}
        found: list[tuple[Task, dict[str, Any]]] = []
        for call in self._ready(list(process_of), seconds):
            process = process_of[call]
            if call not in process.tasks:  # its process has just been lost
                continue
            try:
                outcome = self._outcome(process, call)
            except ProcessLost as error:
                found += [(task, {"lost": str(error)}) for task in process.tasks.values()]
                process.handle, process.is_ready, process.tasks = None, False, {}
                continue
            process.is_ready = True
            if outcome is not None:
                found.append((process.tasks.pop(call), outcome))
        return found

    @property
    def in_flight(self) -> int:
        """Number of cases in the processes."""
        return sum(len(process.tasks) for process in self.processes)

    @abstractmethod
    def close(self) -> None:
        """End the processes at once; a case that one still has is not finished."""

    @abstractmethod
    def _start(self) -> Any:
        """Start a process, and return its handle."""

    @abstractmethod
    def _send(self, process: Process, task: Task) -> Any:
        """Give a process a case, and return the call."""

    @abstractmethod
    def _ready(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Return the calls that have something, or whose process was lost."""

    @abstractmethod
    def _outcome(self, process: Process, call: Any) -> dict[str, Any] | None:
        """Return an outcome, or None if there is none yet; raise :class:`ProcessLost`."""


def _not_started(reason: str) -> BatchError:
    message = f"a process for the cases cannot start: {reason}"
    return BatchError(message, code="process-not-started", reason=reason)


# This machine ----------------------------------------------------------------------------------------------


class LocalPool(Pool):
    """Processes of this machine; each has a connection for every case that it can have."""

    def __init__(self, make_runner: MakeRunner, count: int) -> None:
        super().__init__(count)
        self._make_runner = make_runner
        # A forked process would share torch's threads and the graphics card's state with this one.
        self._context = multiprocessing.get_context("spawn")

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            if process.handle is not None:
                child, _ = process.handle
                child.kill()
                child.join()
            process.handle, process.tasks = None, {}

    def _start(self) -> Any:
        ours, theirs = zip(*(self._context.Pipe() for _ in range(CASES_EACH)), strict=True)
        child = self._context.Process(target=_serve, args=(theirs, self._make_runner), daemon=True)
        child.start()
        for connection in theirs:
            connection.close()
        return child, ours

    def _send(self, process: Process, task: Task) -> Connection:
        connection: Connection = next(one for one in process.handle[1] if one not in process.tasks)
        with contextlib.suppress(OSError):  # it has just been lost: wait() will tell
            connection.send(task)
        return connection

    def _ready(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        return wait(calls, seconds)

    def _outcome(self, process: Process, call: Any) -> dict[str, Any] | None:
        try:
            outcome = call.recv()
        except (EOFError, OSError) as error:
            child, _ = process.handle
            child.join(5)
            code = child.exitcode or 0
            if code > 0 and not process.is_ready:  # it ended by itself: no signal did it
                raise _not_started(f"exit code {code}") from error
            raise ProcessLost(f"exit code {code}") from error
        if isinstance(outcome, str):
            raise _not_started(outcome)
        return outcome


def _serve(connections: Sequence[Connection], make_runner: MakeRunner) -> None:
    """Do the cases that come, in a thread for each connection; end at once when the other side is gone.

    What is sent first is None when the process has started, or a text that says why it cannot.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a scheduler: the other side decides
        signal.signal(number, signal.SIG_IGN)
    try:
        runner = make_runner()
    except Exception as error:
        for connection in connections:
            connection.send(f"{type(error).__name__}: {error}"[:300])
        raise

    def work(connection: Connection) -> None:
        try:
            connection.send(None)
            while True:
                connection.send(runner.run(connection.recv()))
        finally:
            os._exit(1)

    for connection in connections:
        threading.Thread(target=work, args=(connection,), daemon=True).start()
    other = multiprocessing.parent_process()
    assert other is not None
    other.join()
    os._exit(1)


def processes_for(options: Options, cases: Sequence[Case]) -> int:
    """Return how many processes fit into memory with the largest scan, and at most one for each core.

    On a graphics card its memory counts, too.
    """
    from medsam2_core.engine.devices import choose_device
    from medsam2_core.worker.system import device_facts, memory

    device = choose_device(options.device)
    model, scans = bytes_needed(options, cases)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu":
        room = memory()[0] // (model + scans)
    else:
        room = device_facts(device)["free_bytes"] // (model + scans // _SCANS)
        room = min(room, memory()[0] // (_PROGRAM_BYTES + scans))
    return max(1, min(cores // options.threads, room))


def bytes_needed(options: Options, cases: Sequence[Case]) -> tuple[int, int]:
    """Return about how much memory a process needs for the model, and for the largest scans."""
    from medsam2_core.engine.catalogue import Catalogue

    model = Catalogue.load().find(options.model).needed_bytes(0, options.image_size) or _PROGRAM_BYTES
    return model, _SCANS * max(map(_scan_bytes, cases), default=_UNKNOWN_SCAN)


def _scan_bytes(case: Case) -> int:
    """Return about how large a scan is in memory, by the size of its files."""
    path = Path(case.image)
    try:
        if path.is_dir():
            return sum(one.stat().st_size for one in path.iterdir() if one.is_file()) * 2
        return path.stat().st_size * _GROWTH.get(path.suffix.lower(), 2)
    except OSError:  # as of a URL
        return _UNKNOWN_SCAN


# Ray -------------------------------------------------------------------------------------------------------


class RayPool(Pool):
    """Actors of a Ray cluster.

    Parameters
    ----------
    address
        ``auto`` for the cluster that this machine belongs to, ``local`` to start one of this machine, or an
        address.
    count
        How many actors; None: as many as the cluster has room for.
    threads, memory
        CPU threads and bytes of main memory of each.
    on_gpu
        Whether each takes a graphics card; None: where the cluster has any.

    Raises
    ------
    MissingPackageError
        ``ray-missing``.
    BatchError
        ``cluster-not-found``; ``cluster-too-small``.
    """

    def __init__(
        self,
        address: str,
        make_runner: MakeRunner,
        count: int | None = None,
        *,
        threads: int = 1,
        memory: int = 0,
        on_gpu: bool | None = None,
    ) -> None:
        self._ray, self._make_runner = _imported_ray(), make_runner
        self._connect(address, threads * (count or 1))
        has, nodes = self._ray.cluster_resources(), self._ray.nodes()
        # What a scan needs is an estimate: one that seems too large for every machine is tried all the same.
        most = max((int(node["Resources"].get("memory", 0)) for node in nodes if node["Alive"]), default=0)
        on_gpu = has.get("GPU", 0) > 0 if on_gpu is None else on_gpu
        self._needs = {"CPU": threads, "GPU": int(on_gpu), "memory": min(memory, most)}
        room = room_of(nodes, self._needs)
        if room < 1:
            self.close()
            what = " and a graphics card" if on_gpu else ""
            message = (
                f"no machine of the Ray cluster has {threads} CPU threads{what}: add some, or lower --threads"
            )
            raise BatchError(message, code="cluster-too-small", resources=dict(has))
        super().__init__(min(count or room, room))

    def close(self) -> None:
        """Give the actors up; a cluster that was started here ends."""
        self._ray.shutdown()

    def _connect(self, address: str, cores: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        host, colon, port = address.rpartition("://")[2].rpartition(":")
        try:
            if colon and port.isdecimal():  # where nothing answers, Ray itself would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            self._ray.init(address, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            message = f"no Ray cluster at {address}: start it with `ray start`, or use --ray local ({text})"
            raise BatchError(message, code="cluster-not-found", address=address, reason=text) from error

    def _start(self) -> Any:
        needs = self._needs
        remote = self._ray.remote(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"] or None,
            max_concurrency=CASES_EACH, max_restarts=0,
        )(_Actor)  # fmt: skip
        return remote.remote(self._make_runner)

    def _send(self, process: Process, task: Task) -> Any:
        return process.handle.run.remote(task)

    def _ready(self, calls: Sequence[Any], seconds: float) -> Iterable[Any]:
        return self._ray.wait(calls, timeout=seconds)[0]

    def _outcome(self, process: Process, call: Any) -> dict[str, Any] | None:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[-1][:300]
            if getattr(error, "actor_init_failed", False):
                raise _not_started(reason) from error
            raise ProcessLost(reason) from error


class _Actor:
    """Holds the runner of one process; ``run`` is called by several threads."""

    def __init__(self, make_runner: MakeRunner) -> None:
        self._runner = make_runner()

    def run(self, task: Task) -> dict[str, Any]:
        """Do a case."""
        return self._runner.run(task)


def room_of(nodes: Iterable[Mapping[str, Any]], needs: Mapping[str, int]) -> int:
    """Return how many actors fit into the nodes of a cluster; none is divided between two."""
    return sum(
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in needs.items() if amount)
        for node in nodes
        if node["Alive"]
    )


def _imported_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        message = "Ray is not installed: pip install 'medsam2-core[cluster]' here and on every machine"
        raise MissingPackageError(message, code="ray-missing", package="ray") from error
    return ray
