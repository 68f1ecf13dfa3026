"""Propagation: in which order slices are tracked, and from where; step by step, so that it can be paused."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from medsam2_core.engine.options import Direction, Order
from medsam2_core.engine.states import ObjectState, Step
from medsam2_core.errors import Cancelled, Interrupted
from medsam2_core.imaging.slice_mask import SliceMask

# The weight of a prompted slice never falls below this, however low its predicted IoU.
_LEAST_TRUST = 0.05
#: Weight of a correction of a tracked slice beside other prompts: it has to be more than three times nearer.
#: Measured with the embedded model on held-back training scans.
CORRECTION_TRUST = 0.3


def plan_steps(
    states: Sequence[ObjectState],
    first: int,
    last: int,
    direction: Direction,
    order: Order,
    correction_trust: float = 1.0,
) -> list[Step]:
    """Return all steps from slice `first` to `last` inclusive: forward ascending, then reverse descending;
    on one slice all objects after each other, so that they share its features.

    `correction_trust`: weight of corrections of tracked slices beside other prompts.
    """
    slices = range(first, last + 1)
    steps = [step for one in states for step in _steps_of(one, slices, direction, order, correction_trust)]
    rank = {state.object_id: index for index, state in enumerate(states)}
    return sorted(
        steps, key=lambda step: (step.reverse, -step.n if step.reverse else step.n, rank[step.object_id])
    )


def _steps_of(
    state: ObjectState, slices: range, direction: Direction, order: Order, correction_trust: float
) -> Iterable[Step]:
    seeds, walls = _anchors(state)
    trust = {
        m: max(state.conditioning[m].prediction.predicted_iou, _LEAST_TRUST)
        * (correction_trust if state.conditioning[m].is_correction else 1.0)
        for m in seeds
    }
    for n in slices:
        if n in state.conditioning:
            yield Step(state.object_id, n, direction is Direction.REVERSE, n)
            continue
        if order is Order.EARLIEST:
            seed = _as_stock(state, n, direction)
        else:
            seed = _nearest(trust, walls, n, direction)
            if seed is None and direction is Direction.BOTH:
                yield Step(state.object_id, n, False, None)
        if seed is not None:
            yield Step(state.object_id, n, seed > n, seed)


def _as_stock(state: ObjectState, n: int, direction: Direction) -> int | None:
    below = max((m for m in state.conditioning if m < n), default=None)
    above = min((m for m in state.conditioning if m > n), default=None)
    if direction is Direction.REVERSE:
        return above
    if below is not None:
        return below
    return above if direction is Direction.BOTH else None


def _anchors(state: ObjectState) -> tuple[list[int], list[int]]:
    """Return the prompted slices tracking may start from, and those where the object is said to be absent."""
    walls = [m for m, given in state.conditioning.items() if given.says_absent]
    seeds = [m for m in state.conditioning if m not in walls]
    # Where the model found nothing under a box or a positive click, other slices are better seeds, if any.
    return [m for m in seeds if not state.conditioning[m].prediction.is_absent] or seeds, walls


def _nearest(trust: Mapping[int, float], walls: Sequence[int], n: int, direction: Direction) -> int | None:
    """Return the nearer of the next seeds on either side that no wall hides.

    Distance counts less for a seed the model is surer of: between a good mask and a poor one, slices should
    not follow the poor one half the way.
    """
    sides: dict[bool, int] = {}
    for m in sorted(trust, key=lambda m: abs(m - n)):
        hidden = any(min(m, n) < wall < max(m, n) for wall in walls)
        wanted = direction is Direction.BOTH or (m > n) is (direction is Direction.REVERSE)
        if wanted and not hidden:
            sides.setdefault(m > n, m)
    return min(sides.values(), key=lambda m: (abs(m - n) / trust[m], m), default=None)


def outward(steps: Iterable[Step], changed: Mapping[str, Container[int]]) -> list[Step]:
    """Return steps in another order: from these prompted slices of each object outward, then from others.

    Each slice comes after the one it is reached from, and slices tracked from one prompted slice stay
    together: with only one, masks are those of any order. With several, near slices that another one reaches
    may not be in the memory yet.
    """

    def key(step: Step) -> tuple[bool, bool, int, int, bool]:
        seed = step.n if step.seed is None else step.seed
        is_later = step.seed not in changed.get(step.object_id, ())
        return step.seed is None, is_later, seed, abs(step.n - seed), step.reverse

    return sorted(steps, key=key)


def plan_set(states: Sequence[ObjectState], numbers: Iterable[int]) -> list[Step]:
    """Return all steps through unordered images, in the order given: everything from any prompted image."""
    return [
        Step(state.object_id, n, False, n if n in state.conditioning else min(state.conditioning))
        for n in numbers
        for state in states
    ]


class Propagation(Iterator[SliceMask]):
    """The masks of a propagation, as they come.

    Asking for the next one may raise :class:`~medsam2_core.errors.Interrupted` (see
    ``SegmentationModel.interruptible_by``): ask again, and it goes on with the same slice. After any other
    exception it is over. (Not a generator, which would be over after the first.)
    """

    def __init__(
        self,
        steps: Sequence[Step],
        take: Callable[[Step], list[SliceMask]],
        should_cancel: Callable[[], bool] | None = None,
    ) -> None:
        self.total, self.done = len(steps), 0
        self._steps, self._take, self._should_cancel = steps, take, should_cancel
        self._ready: deque[SliceMask] = deque()
        self._has_failed = False

    @property
    def is_complete(self) -> bool:
        """Whether all steps were finished."""
        return self.done == self.total

    def __next__(self) -> SliceMask:
        while not self._ready and not self.is_complete and not self._has_failed:
            try:
                masks = self._step(self._steps[self.done])
            except Interrupted:
                raise
            except BaseException:
                self._has_failed = True
                del self._take  # with what it keeps of slices that come next
                raise
            self.done += 1
            self._ready.extend(masks)
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def _step(self, step: Step) -> list[SliceMask]:
        if self._should_cancel is not None and self._should_cancel():
            raise Cancelled(
                f"stopped before slice {step.n}: {self.done} of {self.total} done",
                n=step.n, done=self.done, total=self.total,
            )  # fmt: skip
        return self._take(step)
