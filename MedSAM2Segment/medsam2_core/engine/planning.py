"""In which order slices are tracked, and from where."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medsam2_core.engine.options import Direction, Order
from medsam2_core.engine.states import ObjectState


@dataclass(frozen=True, slots=True)
class Step:
    """One object on one slice.

    Attributes
    ----------
    object_id, n
        Which.
    reverse
        Whether it is reached from a higher slice.
    seed
        The prompted slice it is tracked from: itself for a prompted slice, None when the user's empty
        slices cut it off from all that hold the object.
    """

    object_id: str
    n: int
    reverse: bool
    seed: int | None


def plan_steps(
    states: Sequence[ObjectState],
    first: int,
    last: int,
    direction: Direction,
    order: Order,
) -> list[Step]:
    """All steps from slice `first` to `last` inclusive: forward ascending, then reverse descending; on one
    slice all objects after each other, so that they share its features."""
    steps = [step for state in states for step in _steps_of(state, range(first, last + 1), direction, order)]
    rank = {state.object_id: index for index, state in enumerate(states)}
    return sorted(
        steps, key=lambda step: (step.reverse, -step.n if step.reverse else step.n, rank[step.object_id])
    )


def _steps_of(state: ObjectState, slices: range, direction: Direction, order: Order) -> Iterable[Step]:
    given = sorted(state.conditioning)
    only_reverse = direction is Direction.REVERSE
    for n in slices:
        if n in state.conditioning:
            yield Step(state.object_id, n, only_reverse, n)
            continue
        below = max((m for m in given if m < n), default=None)
        above = min((m for m in given if m > n), default=None)
        if order is Order.EARLIEST:
            chosen = _as_stock(below, above, direction)
        else:
            chosen = _nearest(state, n, below, above, direction)
            if chosen is None and direction is Direction.BOTH:
                yield Step(state.object_id, n, False, None)
        if chosen is not None:
            yield Step(state.object_id, n, chosen > n, chosen)


def _as_stock(below: int | None, above: int | None, direction: Direction) -> int | None:
    if direction is Direction.REVERSE:
        return above
    if below is not None:
        return below
    return above if direction is Direction.BOTH else None


def _nearest(
    state: ObjectState, n: int, below: int | None, above: int | None, direction: Direction
) -> int | None:
    def holds_object(m: int | None) -> bool:
        return m is not None and not state.conditioning[m].prediction.is_absent

    candidates = []
    if direction is not Direction.REVERSE and holds_object(below):
        candidates.append(below)
    if direction is not Direction.FORWARD and holds_object(above):
        candidates.append(above)
    return min(candidates, key=lambda m: abs(m - n), default=None)


def plan_set(states: Sequence[ObjectState], first: int, last: int) -> list[Step]:
    """All steps through unordered images: everything from any prompted image."""
    return [
        Step(state.object_id, n, False, n if n in state.conditioning else min(state.conditioning))
        for n in range(first, last + 1)
        for state in states
    ]
