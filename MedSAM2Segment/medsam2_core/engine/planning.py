"""In which order slices are tracked, and from where."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medsam2_core.engine.options import Direction, Order
from medsam2_core.engine.states import ObjectState

# A prompted slice counts for something, however unsure the model is of it.
_LEAST_TRUST = 0.05


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
    seeds, walls = _anchors(state)
    trust = {m: max(state.conditioning[m].prediction.iou, _LEAST_TRUST) for m in seeds}
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
    """Prompted slices tracking may start from, and those where the user said that the object is not."""
    walls = [m for m, given in state.conditioning.items() if given.says_absent]
    seeds = [m for m in state.conditioning if m not in walls]
    # Where the model found nothing under a box or a positive click, other slices know better, if any.
    return [m for m in seeds if not state.conditioning[m].prediction.is_absent] or seeds, walls


def _nearest(trust: Mapping[int, float], walls: Sequence[int], n: int, direction: Direction) -> int | None:
    """Of the next seeds on either side that no wall hides, the nearer.

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


def plan_set(states: Sequence[ObjectState], first: int, last: int) -> list[Step]:
    """All steps through unordered images: everything from any prompted image."""
    return [
        Step(state.object_id, n, False, n if n in state.conditioning else min(state.conditioning))
        for n in range(first, last + 1)
        for state in states
    ]
