"""Requests on the client's side, from being sent to their one answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from medsam2_core.errors import Cancelled, MedSAM2Error, WorkerError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.protocol import Frame

#: A request at which this many workers were lost is not sent again.
TOO_MANY_CRASHES = 2

Call = Callable[[], None]
Done = Callable[[Any], None]
Failed = Callable[[MedSAM2Error], None]
Progress = Callable[[str, int, "int | None"], None]
Slices = Callable[[list[SliceMask], int, "int | None"], None]


@dataclass
class CrashCounter:
    """Number of workers lost at something; shared by all attempts at it."""

    count: int = 0


def result_fields(frame: Frame) -> Any:
    """Return the fields of a result, unchanged."""
    return {name: value for name, value in frame.header.items() if name not in ("type", "re")}


@dataclass(eq=False)
class Request:
    """Request to the worker. Exactly one of `done` and `failed` is called, unless it is silenced.

    Attributes
    ----------
    done
        Gets the result: the answer as returned by `parse`.
    failed
        Gets a MedSAM2Error; :class:`~medsam2_core.errors.Cancelled` after :meth:`cancel`.
    progress
        Gets the activity, the amount done, and the total or None.
    slices
        Gets masks as they arrive, the number of slices done, and the total or None.
    parse
        Converts the answer to the result, and updates the client's state. ProtocolError when it is invalid.
    on_slices, on_progress, on_end
        Update the client's state; called immediately, before the callbacks above.
    id
        Its number on the present connection; None until it is sent.
    """

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    done: Done | None = None
    failed: Failed | None = None
    progress: Progress | None = None
    note: Callable[[str], None] | None = None
    slices: Slices | None = None
    parse: Callable[[Frame], Any] = result_fields
    on_slices: Callable[[list[SliceMask]], None] | None = None
    on_progress: Callable[[str, int], None] | None = None
    on_end: Callable[[Request], None] | None = None
    canceller: Callable[[Request], None] | None = None
    is_replayed: bool = True
    crashes: CrashCounter = field(default_factory=CrashCounter)
    id: int | None = None
    is_over: bool = False
    has_failed: bool = False
    is_cancelled: bool = False
    is_silent: bool = False

    def cancel(self) -> None:
        """Ask the worker to stop; `failed` gets Cancelled, unless the request was already answered."""
        if not self.is_over and not self.is_cancelled:
            self.is_cancelled = True
            if self.canceller is not None:
                self.canceller(self)

    def silence(self) -> None:
        """Call no callbacks any more."""
        self.is_silent = self.is_over = True

    def fail(self, error: MedSAM2Error, calls: deque[Call]) -> None:
        """End it with an error, whether it was sent or not."""
        if not self.is_over:
            self.has_failed = True
            self.end()
            self.call(calls, self.failed, error)

    def end(self) -> None:
        """Mark it as over."""
        self.is_over = True
        if self.on_end is not None:
            self.on_end(self)

    def worker_lost(self, reason: str, calls: deque[Call]) -> None:
        """Prepare it to be sent again, or fail it if that must not happen."""
        was_sent, self.id = self.id is not None, None
        if self.is_cancelled:
            self.fail(Cancelled(f"{self.type} was cancelled"), calls)
        elif was_sent and not self.is_replayed:
            kept = " during propagation; slices received before are kept" if self.type == "propagate" else ""
            self.fail(
                WorkerError(f"the worker was lost{kept}: {reason}", code="worker-lost", request=self.type),
                calls,
            )
        elif self.crashes.count >= TOO_MANY_CRASHES:
            message = f"the worker was lost twice during this request, which is not sent again: {reason}"
            self.fail(WorkerError(message, code="worker-lost-twice", request=self.type), calls)

    def call(self, calls: deque[Call], callback: Callable[..., None] | None, *arguments: Any) -> None:
        """Queue a callback, which is skipped if the request is silenced by then."""
        if callback is not None:
            calls.append(lambda: None if self.is_silent else callback(*arguments))
