"""What propagation has to do again: which slices changed since the last one, and how far that reaches."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count as counting

from medsam2_core.engine.states import ObjectState
from medsam2_core.prompts import Prompt

# Every change has a number of its own: a slice changed twice is not the slice changed once.
_numbers = counting()


@dataclass
class Changes:
    """Slices by object that changed since the last whole propagation.

    Attributes
    ----------
    slices
        What was prompted, taken back or released; and the number of that change.
    patience
        By object, after how many slices without it the last whole propagation gave up; None never.
    """

    slices: dict[str, dict[int, int]] = field(default_factory=dict)
    patience: dict[str, int | None] = field(default_factory=dict)

    def add(self, name: str, n: int) -> None:
        """Slice ``n`` of an object changed."""
        self.slices[name] = {**self.slices.get(name, {}), n: next(_numbers)}

    def forget(self, name: str) -> None:
        """The object is gone."""
        self.slices.pop(name, None)
        self.patience.pop(name, None)

    def settle(self, names: Iterable[str], patience: int | None, since: "Changes") -> None:
        """What had changed of these objects ``since`` then has been propagated; what came later has not."""
        for name in names:
            done = since.slices.get(name, {}).items()
            self.slices[name] = dict(self.slices.get(name, {}).items() - done)
            self.patience[name] = patience

    def copied(self) -> "Changes":
        """The same, for undo."""
        return Changes(dict(self.slices), dict(self.patience))

    def ranges(
        self, states: Iterable[ObjectState], count: int, patience: int | None
    ) -> dict[tuple[int, int], list[str]]:
        """Objects by the range of slices a propagation has to do again (see :meth:`reach`)."""
        found: dict[tuple[int, int], list[str]] = {}
        for state in states:
            reach = self.reach(state, count, patience)
            if reach is not None:
                found.setdefault(reach, []).append(state.object_id)
        return found

    def reach(self, state: ObjectState, count: int, patience: int | None) -> tuple[int, int] | None:
        """First and last of ``count`` slices that a propagation has to do again; None when nothing changed.

        A slice follows its nearest prompted slice; so a change at n reaches to the prompted slices on either
        side of it, and no further. Only those where the model found nothing are passed by. A propagation with
        more patience than the last goes through everything.
        """
        changed = self.slices.get(state.object_id)
        if not state.tracked or self._gave_up_too_soon(state.object_id, patience):
            return 0, count - 1
        if not changed:
            return None
        anchors = [
            n
            for n, given in state.conditioning.items()
            if n not in changed and (given.says_absent or not given.prediction.is_absent)
        ]
        below = max((n for n in anchors if n < min(changed)), default=0)
        above = min((n for n in anchors if n > max(changed)), default=count - 1)
        return below, above

    def _gave_up_too_soon(self, name: str, patience: int | None) -> bool:
        earlier = self.patience.get(name)
        return earlier is not None and (patience is None or patience > earlier)


@dataclass(frozen=True)
class SessionState:
    """What a session's undo goes back to."""

    prompts: dict[str, list[Prompt]]
    masks: dict[str, ObjectState]
    changes: Changes

    def faded(self) -> "SessionState":
        """The same prompts and masks, without the tensors that only make a later click a little better."""
        return replace(self, masks={name: state.faded() for name, state in self.masks.items()})
