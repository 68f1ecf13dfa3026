"""Undo: snapshots to go back to, and steps that happen as a whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from medsam2_core.errors import PromptError

State = TypeVar("State")
_UNCOMPACTED = 4  # steps


@dataclass(frozen=True)
class UndoStep(Generic[State]):
    """The state before a step.

    Attributes
    ----------
    name
        Of the step, for a menu: "prompt liver".
    """

    name: str
    state: State


class History(Generic[State]):
    """The last steps of one owner.

    Parameters
    ----------
    snapshot
        Returns the owner's state; must stay valid whatever the owner does later.
    restore
        Puts the owner back into such a state.
    compact
        Makes a state smaller, for steps longer ago than the last four; must keep what the owner promises to
        restore exactly.
    """

    def __init__(
        self,
        snapshot: Callable[[], State],
        restore: Callable[[State], None],
        limit: int,
        compact: Callable[[State], State],
    ) -> None:
        self._snapshot, self._restore, self._limit, self._compact = snapshot, restore, limit, compact
        self._past: list[UndoStep[State]] = []

    @property
    def steps(self) -> list[str]:
        """Names of the steps that :meth:`undo` would undo, the next first."""
        return [step.name for step in reversed(self._past)]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Make what happens inside one undoable step: all of it happens, or, when it raises, nothing."""
        before = self.capture(name)
        try:
            yield
        except BaseException:
            self._restore(before.state)
            raise
        self.push(before)

    def capture(self, name: str) -> UndoStep[State]:
        """Return the present state, for :meth:`push` once the step has changed something."""
        return UndoStep(name, self._snapshot())

    def push(self, before: UndoStep[State]) -> None:
        """Make a step undoable."""
        self._past.append(before)
        del self._past[: max(len(self._past) - self._limit, 0)]
        if len(self._past) > _UNCOMPACTED:
            old = self._past[-_UNCOMPACTED - 1]
            self._past[-_UNCOMPACTED - 1] = UndoStep(old.name, self._compact(old.state))

    def undo(self) -> str:
        """Undo the last step and return its name.

        Raises
        ------
        PromptError
            ``nothing-to-undo``.
        """
        if not self._past:
            raise PromptError("there is nothing to undo", code="nothing-to-undo")
        step = self._past.pop()
        self._restore(step.state)
        return step.name
