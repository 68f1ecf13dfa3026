"""A propagation that can be paused: step by step, and a step that is interrupted is taken again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from medsam2_core.engine.planning import Step
from medsam2_core.engine.states import SliceResult
from medsam2_core.errors import Cancelled, Interrupted


@dataclass
class Propagation(Iterator[SliceResult]):
    """Results as they come.

    Asking for the next one may raise :class:`~medsam2_core.errors.Interrupted` (see
    :meth:`~medsam2_core.engine.model.SegmentationModel.asking`): ask again, and it goes on with the same
    slice.

    Attributes
    ----------
    total
        Most results there can be: slices times objects. Fewer come when an object is gone.
    done
        Steps finished so far, with or without a result.
    """

    total: int
    done: int = 0
    results: Iterator[SliceResult] | None = None

    def __next__(self) -> SliceResult:
        return next(self.results or iter(()))


class Steps(Iterator[SliceResult]):
    """Takes steps until one has a result.

    Not a generator, because that would be over after the first exception.

    Parameters
    ----------
    steps
        What to do, in order.
    take
        Does one; must change nothing when it is interrupted.
    progress
        Whose `done` to count.
    should_cancel
        Asked before every step.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        take: Callable[[Step], SliceResult | None],
        progress: Propagation,
        should_cancel: Callable[[], bool] | None = None,
    ) -> None:
        self._steps, self._take, self._progress = steps, take, progress
        self._should_cancel = should_cancel
        self._next = 0

    def __next__(self) -> SliceResult:
        while self._next < len(self._steps):
            try:
                result = self._step(self._steps[self._next])
            except Interrupted:
                raise
            except BaseException:
                self._next = len(self._steps)
                raise
            self._next += 1
            self._progress.done += 1
            if result is not None:
                return result
        raise StopIteration

    def _step(self, step: Step) -> SliceResult | None:
        if self._should_cancel is not None and self._should_cancel():
            progress = self._progress
            raise Cancelled(f"stopped before slice {step.n}: {progress.done} of {progress.total} done")
        return self._take(step)
