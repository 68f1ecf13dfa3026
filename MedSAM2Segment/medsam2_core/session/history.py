"""Undo: moments to go back to, and steps that happen as a whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from medsam2_core.errors import PromptError

State = TypeVar("State")


@dataclass(frozen=True)
class Moment(Generic[State]):
    """How things were before a step.

    Attributes
    ----------
    what
        The step, in words for a menu: "prompt liver".
    state
        What ``capture`` gave.
    """

    what: str
    state: State


class History(Generic[State]):
    """The last steps of one owner.

    Parameters
    ----------
    capture
        Gives the owner's state; must stay valid whatever the owner does later.
    restore
        Puts the owner back into a captured state.
    limit
        Steps that can be taken back.
    fade
        Makes a captured state smaller, for steps longer ago than the last `fresh`; must keep what the owner
        promises to restore exactly.
    """

    def __init__(
        self,
        capture: Callable[[], State],
        restore: Callable[[State], None],
        limit: int = 50,
        *,
        fade: Callable[[State], State] = lambda state: state,
        fresh: int = 4,
    ) -> None:
        self._capture, self._restore, self._limit = capture, restore, limit
        self._fade, self._fresh = fade, fresh
        self._past: list[Moment[State]] = []

    @property
    def steps(self) -> list[str]:
        """What :meth:`undo` would take back, the next first."""
        return [moment.what for moment in reversed(self._past)]

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """One undoable step: all of it happens, or, when it raises, nothing."""
        before = self.now(what)
        try:
            yield
        except BaseException:
            self._restore(before.state)
            raise
        self.remember(before)

    def now(self, what: str) -> Moment[State]:
        """This moment, for :meth:`remember` once the step has really begun."""
        return Moment(what, self._capture())

    def remember(self, before: Moment[State]) -> None:
        """Make the step that began at a moment undoable."""
        self._past.append(before)
        del self._past[: max(len(self._past) - self._limit, 0)]
        if len(self._past) > self._fresh:
            old = self._past[-self._fresh - 1]
            self._past[-self._fresh - 1] = Moment(old.what, self._fade(old.state))

    def undo(self) -> str:
        """Take back the last step and return what it was; PromptError when there is none."""
        if not self._past:
            raise PromptError("there is nothing to undo")
        moment = self._past.pop()
        self._restore(moment.state)
        return moment.what
