"""A request in the worker, and how it is answered."""

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
    """A request in the worker.

    Attributes
    ----------
    id, type, fields, arrays
        The message.
    is_cancelled
        Whether nobody wants its answer any more; set by the thread that reads.
    state
        How far an interrupted one has come.
    """

    id: int
    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    is_cancelled: bool = False
    state: Any = None

    @property
    def is_preemptible(self) -> bool:
        """Whether it waits for, and makes way for, all others."""
        return self.type in PREEMPTIBLE


#: Answers a request, from any thread: with the fields of its result, or an error.
Finish = Callable[[Job, dict[str, Any] | BaseException], None]
#: Sends a message that is not the last one about a request.
Send = Callable[[Job, dict[str, Any]], None]
