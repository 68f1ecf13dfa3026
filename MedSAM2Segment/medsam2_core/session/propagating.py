"""The propagation of a session: which slices have to be done, and its one step of undo."""

from collections.abc import Callable, Mapping, Sequence

from medsam2_core.engine.options import Direction
from medsam2_core.engine.propagation import Propagation
from medsam2_core.engine.propagation import outward as outward_steps
from medsam2_core.engine.states import ObjectState, Step
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.session.history import History, UndoStep
from medsam2_core.session.objects import Limits, ObjectsSnapshot, SessionObjects


class PropagationPlan:
    """The slices of some objects that have to be segmented again; see :meth:`Session.propagate`.

    Attributes
    ----------
    patience
        After how many slices without the object a direction is given up; None never.
    """

    def __init__(
        self,
        tracker: Tracker,
        objects: SessionObjects,
        names: Sequence[str] | None,
        first: int | None,
        last: int | None,
        direction: Direction | str,
        patience: int | None,
        limits: Mapping[str, Limits] | None,
        outward: bool = False,
    ) -> None:
        known = list(tracker.prompted_ids if names is None else names)
        if not known:
            way_out = "prompt an object first" if names is None else "name an object, or leave names out"
            raise PromptError(f"nothing to propagate: {way_out}", code="nothing-to-propagate")
        states = [tracker.state(name) for name in known]  # refuses what was never prompted
        towards = _direction(direction)
        self._tracker, self._objects, self._range = tracker, objects, (first, last)
        self._is_whole = first is None and last is None and towards is Direction.BOTH
        self.patience = patience if tracker.source.ordered else None
        self.limits = {name: limits[name] for name in known if limits and name in limits}
        self.steps = [
            step
            for (low, high), together in self._ranges(states).items()
            for step in tracker.plan(together, low, high, towards)
        ]
        if outward and tracker.source.ordered:
            self.steps = outward_steps(self.steps, objects.changes.slices)
        self.names = {step.object_id for step in self.steps}
        # What changes from now on is not in this plan, even if it does before the first result.
        self._since = objects.changes.copied()

    def finish(self) -> None:
        """Note that all of it was done."""
        if self._is_whole:
            self._objects.changes.mark_synced(self.names, self.patience, self._since, self.limits)

    def _ranges(self, states: Sequence[ObjectState]) -> dict[tuple[int | None, int | None], list[str]]:
        """Return the objects by the range of slices that has to be segmented again."""
        source, (first, last) = self._tracker.source, self._range
        found: dict[tuple[int | None, int | None], list[str]] = {}
        for state in states:
            name = state.object_id
            allowed = self._within(self.limits.get(name, (0, len(source) - 1)))
            reach: tuple[int | None, int | None] | None = allowed if name in self.limits else (first, last)
            if first is None and last is None and allowed is not None:
                reach = self._objects.changes.reach(
                    state, allowed, len(source), self.patience, source.ordered
                )
            if reach is not None:
                found.setdefault(reach, []).append(name)
        return found

    def _within(self, limit: Limits) -> Limits | None:
        """Return what an object's own range and that of all have in common; None for nothing."""
        (low, high), (first, last) = limit, self._range
        if low > high:
            message = f"the range {low} to {high} is empty: give the lower slice first"
            raise PromptError(message, code="empty-range", first=low, last=high)
        low, high = max(low, first or 0), min(high, len(self._tracker.source) - 1 if last is None else last)
        return (low, high) if low <= high else None


class RecordedPropagation(Propagation):
    """A propagation that is one undo step from its first result on."""

    def __init__(
        self,
        steps: Sequence[Step],
        take: Callable[[Step], list[SliceMask]],
        should_cancel: Callable[[], bool] | None,
        history: History[ObjectsSnapshot],
        begin: Callable[[], None],
        finish: Callable[[], None],
    ) -> None:
        super().__init__(steps, take, should_cancel)
        self._history, self._begin, self._finish = history, begin, finish
        self._before: UndoStep[ObjectsSnapshot] | None = None
        self._is_recorded = self._is_finished = False

    def __next__(self) -> SliceMask:
        if self._before is None:
            self._before = self._history.capture("propagate")
            self._begin()
        try:
            mask = super().__next__()
        except StopIteration:
            if self.is_complete and not self._is_finished:
                self._is_finished = True
                self._finish()
            raise
        if not self._is_recorded:
            self._is_recorded = True
            self._history.push(self._before)
        return mask


def _direction(direction: Direction | str) -> Direction:
    try:
        return Direction(direction)
    except ValueError as error:
        choices = ", ".join(one.value for one in Direction)
        message = f"unknown direction {direction!r}: use one of {choices}"
        raise PromptError(message, code="unknown-direction", direction=str(direction)) from error
