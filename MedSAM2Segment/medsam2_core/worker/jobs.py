"""What is to be computed, in which order, and what is not wanted any more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from medsam2_core.worker.client import PATIENT


@dataclass(eq=False)
class Job:
    """A request that takes time.

    Attributes
    ----------
    id, type, fields, arrays
        The message.
    is_cancelled
        Whether nobody wants its answer any more; set by the thread that reads.
    state
        What it has got so far, when it was interrupted.
    """

    id: int
    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    is_cancelled: bool = False
    state: Any = None

    @property
    def is_patient(self) -> bool:
        """Whether it waits for, and makes way for, everything else."""
        return self.type in PATIENT


class Jobs:
    """Requests waiting to be computed; put in by one thread, taken out by another."""

    def __init__(self) -> None:
        self._urgent: deque[Job] = deque()
        self._patient: deque[Job] = deque()
        self._changed = threading.Condition()
        self.current: Job | None = None

    @property
    def is_urgent(self) -> bool:
        """Whether something waits that a propagation makes way for."""
        return bool(self._urgent)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._urgent and not self._patient

    def add(self, job: Job) -> None:
        """Put a request behind all others of its kind."""
        with self._changed:
            (self._patient if job.is_patient else self._urgent).append(job)
            self._changed.notify_all()

    def put_back(self, job: Job) -> None:
        """An interrupted request goes on before others of its kind."""
        with self._changed:
            self._patient.appendleft(job)

    def finish(self) -> None:
        """What was current is not computed any more, and cannot be cancelled."""
        with self._changed:
            self.current = None

    def wake(self) -> None:
        """Let :meth:`take` return if it waits: there may be something to do that is no request."""
        with self._changed:
            self._changed.notify_all()

    def take(self, waits: Callable[[], bool]) -> Job | None:
        """The next request, which is `current` then.

        None when there is none; if `waits()`, only after somebody woke this up.
        """
        with self._changed:
            self.current = None
            if self.is_empty and waits():
                self._changed.wait()
            for waiting in (self._urgent, self._patient):
                if waiting:
                    self.current = waiting.popleft()
                    break
            return self.current

    def cancel(self, number: int | None) -> list[Job]:
        """Nobody wants a request any more (None: all of them).

        Returns
        -------
        list of Job
            Those that had been waiting, taken out. One that is being computed is only marked.
        """
        with self._changed:
            dropped = [job for job in (*self._urgent, *self._patient) if number in (None, job.id)]
            for job in dropped:
                job.is_cancelled = True
                (self._patient if job.is_patient else self._urgent).remove(job)
            if self.current is not None and number in (None, self.current.id):
                self.current.is_cancelled = True
            return dropped
