"""The worker's process under Qt's event loop, shared between its owners."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

import qt
from medsam2_core.worker.client import WorkerClient

from MedSAM2SegmentLib.Runtime.QProcessRunner import QProcessTransport
from MedSAM2SegmentLib.Runtime.RuntimeEnvironment import cleanedEnvironment

_TICK_MS = 100


def startupEnvironment() -> dict[str, str]:
    """Return the environment variables Slicer was started with; outside Slicer, those of this process.

    Variables set by Slicer's launcher (for its Python and libraries) must not reach other programs.
    """
    try:
        import slicer
    except ImportError:
        return dict(os.environ)
    if not hasattr(getattr(slicer, "app", None), "startupEnvironment"):  # slicer-core has no application
        return dict(os.environ)
    return dict(slicer.util.startupEnvironment())


def remoteEnvironment() -> dict[str, str]:
    """Return the environment of a remote command (ssh, srun, docker), without Slicer's variables."""
    return cleanedEnvironment(startupEnvironment())


def withPriority(command: Sequence[str]) -> list[str]:
    """Return a command that starts a process with normal priority, as far as possible.

    On Linux, Slicer gives its main thread the lowest priority (nice 19), which child processes inherit and
    cannot raise. With autogroups (see sched(7)), however, Linux divides the processor between sessions first,
    so a process in a session of its own gets a normal share.
    """
    if sys.platform != "linux" or os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        return list(command)
    setsid = shutil.which("setsid")  # replaces itself by the command: the process ID stays the same
    return [setsid, *command] if setsid else list(command)


class SharedWorker:
    """One worker for all owners that use the same command; it runs while it has owners."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(str(word) for word in command)
        self._environment = dict(environment)
        self._owners: list[object] = []
        self._timer = None
        self.client: WorkerClient | None = None

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str]) -> SharedWorker:
        """Return the worker of this command and environment, shared while it is referred to."""
        key = (tuple(str(word) for word in command), tuple(sorted(environment.items())))
        worker = _workers.get(key)
        if worker is None:
            worker = _workers[key] = cls(command, environment)
        return worker

    def acquire(self, owner: object) -> WorkerClient:
        """Return the worker's client, starting it for the first owner; an owner counts once."""
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
        """Remove an owner; the process ends with the last."""
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


#: Workers in use, by command and environment; a client keeps its worker alive.
_workers: WeakValueDictionary[tuple, SharedWorker] = WeakValueDictionary()
