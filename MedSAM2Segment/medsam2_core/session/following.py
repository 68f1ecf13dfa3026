"""A session's propagation: parts one after the other, undoable from the first result on."""

from collections.abc import Callable, Iterator, Sequence

from medsam2_core.engine.propagating import Propagation
from medsam2_core.engine.states import SliceResult
from medsam2_core.session.changes import SessionState
from medsam2_core.session.history import History


def followed(
    parts: Sequence[Propagation], history: History[SessionState], finish: Callable[[], None]
) -> Propagation:
    """One propagation out of several.

    Parameters
    ----------
    parts
        In order.
    history
        Gets one step for all of it, once there is a result.
    finish
        Called after the last result.
    """
    progress = Propagation(sum(part.total for part in parts))
    progress.results = _Followed(progress, list(parts), history, finish)
    return progress


class _Followed(Iterator[SliceResult]):
    """Not a generator: an interrupted part is asked again."""

    def __init__(
        self,
        progress: Propagation,
        parts: list[Propagation],
        history: History[SessionState],
        finish: Callable[[], None],
    ) -> None:
        self._progress, self._parts = progress, parts
        self._history, self._finish = history, finish
        self._done = 0  # steps of the parts that are over
        self._before = None
        self._has_results = self._is_over = False

    def __next__(self) -> SliceResult:
        if self._before is None:
            self._before = self._history.now("propagate")
        while self._parts:
            part = self._parts[0]
            result = next(part, None)
            self._progress.done = self._done + part.done
            if result is not None:
                self._remember()
                return result
            self._done += part.done
            self._parts.pop(0)
        if not self._is_over:
            self._is_over = True
            self._finish()
        raise StopIteration

    def _remember(self) -> None:
        if not self._has_results:
            self._has_results = True
            self._history.remember(self._before)
