"""The same work on several machines: Ray actors that hold the model.

Ray places actors and carries cases and outcomes, which are small plain values. Images and results never pass
through it: every machine reads and writes them itself, in a folder that all share, or by URLs. What was done,
retries and back-pressure are those of :class:`~medsam2_core.batch.run.Run`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from medsam2_core.batch.cases import Task
from medsam2_core.batch.pool import CASES_EACH, Finished, MakeWorker, Pool, PoolProcess
from medsam2_core.errors import BatchError, MissingPackageError

#: Bytes for the objects of a cluster on this machine; outcomes are some kilobytes.
_STORE_BYTES = 100 << 20
LOCAL = "local"
_CONNECT_SECONDS = 10.0


@dataclass(eq=False)
class _Remote(PoolProcess):
    actor: Any = None
    # (name of the case, actor that has it) by the reference to its outcome.
    calls: dict[Any, tuple[str, Any]] = field(default_factory=dict)


class RayPool(Pool):
    """Actors of a Ray cluster.

    Parameters
    ----------
    address
        ``auto`` for the cluster that this machine belongs to, ``local`` to start one of this machine, or an
        address.
    make_worker, threads
        As of :class:`~medsam2_core.batch.pool.LocalPool`.
    processes
        How many actors; None: as many as the cluster has room for.
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
        make_worker: MakeWorker,
        threads: int,
        processes: int | None = None,
        *,
        on_gpu: bool | None = None,
    ) -> None:
        self._ray = _imported()
        self._make_worker, self._threads = make_worker, threads
        self._connect(address, threads * (processes or 1))
        has = self._ray.cluster_resources()
        self._gpus = int(on_gpu if on_gpu is not None else has.get("GPU", 0) > 0)
        room = room_of(self._ray.nodes(), threads, self._gpus)
        if room < 1:
            self._ray.shutdown()
            what = "graphics card" if self._gpus else f"machine with {threads} free CPU threads"
            message = f"the Ray cluster has no {what}: add nodes, or lower --threads"
            raise BatchError(message, code="cluster-too-small", resources=dict(has))
        self._processes = [_Remote() for _ in range(min(processes or room, room))]

    @property
    def processes(self) -> list[_Remote]:
        """The actors; each starts with its first case."""
        return self._processes

    def _connect(self, address: str, cores: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == LOCAL:
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            _check_reachable(address)
            self._ray.init(address, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            message = f"no Ray cluster at {address}: start it with `ray start`, or use --ray local ({text})"
            raise BatchError(message, code="cluster-not-found", address=address, reason=text) from error

    def _send(self, process: _Remote, task: Task) -> None:
        if process.actor is None:
            remote = self._ray.remote(
                num_cpus=self._threads, num_gpus=self._gpus, max_concurrency=CASES_EACH, max_restarts=0,
            )(_Actor)  # fmt: skip
            process.actor = remote.remote(self._make_worker, self._threads)
        process.calls[process.actor.run.remote(task)] = (task.case.name, process.actor)

    def wait(self, seconds: float) -> list[Finished]:
        """Return cases that have ended, and those of actors that were lost."""
        calls = {call: process for process in self._processes for call in process.calls}
        if not calls:
            return []
        ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(list(calls), timeout=seconds)
        return [finished for call in ready for finished in self._finished(calls[call], call)]

    def _finished(self, process: _Remote, call: Any) -> Iterator[Finished]:
        name, actor = process.calls.pop(call)
        task = process.tasks.pop(name)
        try:
            yield Finished(task, self._ray.get(call))
        except self._ray.exceptions.RayError as error:
            if process.actor is actor:
                process.actor = None  # the next case starts another, perhaps elsewhere
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            yield Finished(task, None, (lines or [type(error).__name__])[-1][:300])

    def close(self, *, kill: bool = False) -> None:
        """Give the actors up; a cluster that was started here ends."""
        for process in self._processes:
            if process.actor is not None:
                self._ray.kill(process.actor)
        self._ray.shutdown()


class _Actor:
    """Holds the worker of one process; its methods run in several threads."""

    def __init__(self, make_worker: MakeWorker, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._worker = make_worker()

    def run(self, task: Task) -> dict[str, Any]:
        """Do a case."""
        return self._worker.run(task)


def room_of(nodes: Iterable[dict[str, Any]], threads: int, gpus: int) -> int:
    """Return how many actors fit into the nodes of a cluster; none is divided between two."""
    room = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            by_cpu = int(has.get("CPU", 0) // threads)
            room += min(by_cpu, int(has.get("GPU", 0) // gpus)) if gpus else by_cpu
    return room


def _check_reachable(address: str) -> None:
    """Raise OSError when nothing answers at host:port: Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def _imported() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        message = "Ray is not installed: pip install 'medsam2-core[cluster]' here and on every machine"
        raise MissingPackageError(message, code="ray-missing", package="ray") from error
    return ray
