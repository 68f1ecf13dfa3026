"""The worker's process under Qt's event loop, shared by all who need it."""

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
    """Return the variables Slicer was started with; outside Slicer, those of this process.

    What Slicer's launcher has set since (its Python, its libraries) must not reach another program.
    """
    try:
        import slicer
    except ImportError:
        return dict(os.environ)
    if not hasattr(getattr(slicer, "app", None), "startupEnvironment"):  # slicer-core has no application
        return dict(os.environ)
    return dict(slicer.util.startupEnvironment())


def remoteEnvironment() -> dict[str, str]:
    """Return the variables for a remote command (ssh, srun, docker): the user's own, without Slicer's."""
    return cleanedEnvironment(startupEnvironment())


def withPriority(command: Sequence[str]) -> list[str]:
    """Return a command that starts a process with the priority of other programs, as far as that can be had.

    On Linux, Slicer gives its main thread the least priority (nice 19). Child processes inherit it,
    and may not raise it again. But where Linux divides the processor between sessions first, and by priority
    only within one (autogroup, see sched(7)), a process in a session of its own gets the share of any other.
    """
    if sys.platform != "linux" or os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        return list(command)
    setsid = shutil.which("setsid")  # replaces itself by the command: the process stays the same
    return [setsid, *command] if setsid else list(command)


class SharedWorker:
    """One worker for all who use the same command; it runs while it has owners.

    Parameters
    ----------
    command
        Program and arguments that start the worker.
    environment
        The whole environment of the process.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(str(word) for word in command)
        self._environment = dict(environment)
        self._owners: list[object] = []
        self._timer = None
        self.client: WorkerClient | None = None

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str]) -> SharedWorker:
        """Return the worker of this command and environment, the same one as long as anybody refers to it."""
        key = (tuple(str(word) for word in command), tuple(sorted(environment.items())))
        worker = _workers.get(key)
        if worker is None:
            worker = _workers[key] = cls(command, environment)
        return worker

    def acquire(self, owner: object) -> WorkerClient:
        """Return the worker's client, started for its first owner. Asking twice counts once."""
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
        """Remove an owner; the process ends with the last one."""
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


#: Those that somebody refers to, by command and environment: a client keeps its worker alive.
_workers: WeakValueDictionary[tuple, SharedWorker] = WeakValueDictionary()
