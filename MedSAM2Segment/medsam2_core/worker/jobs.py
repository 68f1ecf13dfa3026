"""Requests inside the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from medsam2_core.worker.protocol import PREEMPTIBLE, Arrays

#: Fields and arrays of a result.
Answer = tuple[dict[str, Any], Arrays]


@dataclass(eq=False)
class Job:
    """A request inside the worker.

    Attributes
    ----------
    is_cancelled
        Whether it was cancelled; set by the reading thread.
    state
        Progress of an interrupted request.
    """

    id: int
    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    is_cancelled: bool = False
    state: Any = None

    @property
    def is_preemptible(self) -> bool:
        """Whether it yields to all other requests."""
        return self.type in PREEMPTIBLE


#: Answers a request, from any thread: with the fields of its result, or an error.
Finish = Callable[[Job, dict[str, Any] | BaseException], None]
#: Sends a message that is not the last one about a request.
Send = Callable[[Job, dict[str, Any]], None]
