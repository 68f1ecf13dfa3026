"""The prompts and masks of a session's objects, and which slices changed since the last propagation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as counting
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.states import ObjectState
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import SliceMask, check_shape, check_slice
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, MaskPrompt, PixelPrompts, Point, Prompt, PromptSet, SlicePrompts
from medsam2_core.prompts.slice_prompts import mask_on_slice, resolve, slices_of
from medsam2_core.session.provenance import Provenance

# Every change has a number of its own: a slice changed twice is not the slice changed once.
_numbers = counting()

Limits = tuple[int, int]


@dataclass
class ChangedSlices:
    """Slices by object that changed since the last whole propagation.

    Attributes
    ----------
    slices
        What was prompted, unprompted or released; and the number of that change.
    patience
        By object, after how many slices without it the last whole propagation gave up; None never.
    limits
        First and last slice of objects that it was limited to these.
    """

    slices: dict[str, dict[int, int]] = field(default_factory=dict)
    patience: dict[str, int | None] = field(default_factory=dict)
    limits: dict[str, Limits] = field(default_factory=dict)

    def add(self, name: str, n: int) -> None:
        """Add slice ``n`` of an object."""
        self.slices[name] = {**self.slices.get(name, {}), n: next(_numbers)}

    def remove(self, name: str) -> None:
        """Remove an object."""
        self.slices.pop(name, None)
        self.patience.pop(name, None)
        self.limits.pop(name, None)

    def mark_synced(
        self,
        names: Iterable[str],
        patience: int | None,
        since: "ChangedSlices",
        limits: Mapping[str, Limits] | None = None,
    ) -> None:
        """Remove the changes that ``since`` already had of these objects: they have been propagated, some
        within limits."""
        for name in names:
            done = since.slices.get(name, {}).items()
            self.slices[name] = dict(self.slices.get(name, {}).items() - done)
            self.patience[name] = patience
            self.limits.pop(name, None)
            if limits and name in limits:
                self.limits[name] = limits[name]

    def copied(self) -> "ChangedSlices":
        """Return a copy, for undo."""
        return ChangedSlices(dict(self.slices), dict(self.patience), dict(self.limits))

    def reach(
        self, state: ObjectState, allowed: Limits, count: int, patience: int | None, ordered: bool = True
    ) -> Limits | None:
        """Return the first and last of the allowed slices that a propagation has to do again, or None.

        Without an order, as in an image set, every change reaches everything.

        A slice follows its nearest prompted slice; so a change at n reaches to the prompted slices on either
        side of it, and no further. Only those where the model found nothing are passed by. A propagation with
        more patience than the last goes through everything. Slices beyond the limits of the last propagation
        count as changed.
        """
        first, last = self.limits.get(state.object_id, (0, count - 1))
        beyond = {n for n in range(allowed[0], allowed[1] + 1) if not first <= n <= last}
        changed = beyond.union(self.slices.get(state.object_id, ()))
        if not ordered and changed:
            return allowed
        if not state.tracked or self._gave_up_too_soon(state.object_id, patience):
            return allowed
        if not changed:
            return None
        anchors = [
            n
            for n, given in state.conditioning.items()
            if n not in changed and (given.says_absent or not given.prediction.is_absent)
        ]
        below = max((n for n in anchors if n < min(changed)), default=0)
        above = min((n for n in anchors if n > max(changed)), default=count - 1)
        below, above = max(below, allowed[0]), min(above, allowed[1])
        return (below, above) if below <= above else None

    def _gave_up_too_soon(self, name: str, patience: int | None) -> bool:
        earlier = self.patience.get(name)
        return earlier is not None and (patience is None or patience > earlier)


@dataclass(frozen=True)
class ObjectsSnapshot:
    """What undo goes back to."""

    prompts: dict[str, list[Prompt]]
    states: dict[str, ObjectState]
    changes: ChangedSlices
    facts: dict[str, Any]

    def compact(self) -> "ObjectsSnapshot":
        """Return the same prompts and masks, without the tensors that only improve a later click slightly."""
        return replace(self, states={name: state.compact() for name, state in self.states.items()})


class SessionObjects:
    """Keeps prompts, tracker and changes of a session in step. Its methods are no undo steps themselves."""

    def __init__(self, stack: SliceStack, tracker: Tracker, provenance: Provenance) -> None:
        self._stack, self._tracker, self.provenance = stack, tracker, provenance
        self.prompts = PromptSet()
        self.changes = ChangedSlices()

    def snapshot(self) -> ObjectsSnapshot:
        """Return everything known, for :meth:`restore_snapshot`. Cheap: masks and tensors are shared."""
        prompts, facts = {name: list(given) for name, given in self.prompts}, dict(self.provenance.facts)
        return ObjectsSnapshot(prompts, self._tracker.snapshot(), self.changes.copied(), facts)

    def restore_snapshot(self, state: ObjectsSnapshot) -> None:
        """Go back to a snapshot; it can be restored again later."""
        self.prompts = PromptSet({name: list(prompts) for name, prompts in state.prompts.items()})
        self._tracker.restore(state.states)
        self.changes, self.provenance.facts = state.changes.copied(), dict(state.facts)

    def remove(self, name: str) -> None:
        """Remove an object with its prompts and masks."""
        self.prompts.remove_object(name)
        self.changes.remove(name)
        if name in self._tracker.object_ids:
            self._tracker.remove_object(name)

    def add_prompts(self, name: str, n: int, prompts: Sequence[Prompt]) -> None:
        """Add prompts to those of a slice; a box replaces its box, a mask its mask. Predict its mask."""
        self.prompts.add_object(name)
        replaced = {type(p) for p in prompts} - {Point}
        here, elsewhere = self._partition(name, n)
        together = [*(p for p in here if type(p) not in replaced), *prompts]
        self._tracker.prompt(name, n, resolve(together, self._stack)[n])
        self.prompts.objects[name] = elsewhere + together
        self.changes.add(name, n)

    def remove_prompts(self, name: str, n: int) -> None:
        """Remove the prompts of a slice and its mask."""
        _, elsewhere = self._partition(name, n)
        self._tracker.unprompt(name, n)
        self.prompts.objects[name] = elsewhere
        self.changes.add(name, n)

    def set_drawn_mask(self, name: str, n: int, mask_hw: NDArray[np.bool_]) -> None:
        """Replace the prompts of a slice by a user's own mask, and mark the slice as final."""
        drawn = mask_on_slice(mask_hw, n, self._stack)
        self.prompts.add_object(name)
        self._tracker.finalise(name, n, mask_hw)
        _, elsewhere = self._partition(name, n)
        self.prompts.objects[name] = elsewhere + ([] if drawn is None else [drawn])
        self.changes.add(name, n)

    def release(self, name: str, n: int) -> None:
        """Allow a final slice to be changed."""
        self._tracker.release(name, n)
        if not self._is_prompted(name, n):
            self.changes.add(name, n)

    def check(self, n: int, given: SlicePrompts) -> None:
        """Raise PromptError for prompts that do not lie on slice ``n``, or a mask that does not fit it."""
        check_slice(n, len(self._stack))
        others = sorted(set(resolve(given.prompts, self._stack)) - {n})
        if others:
            message = f"a prompt for slice {n} lies on slice {others[0]}: set it there"
            raise PromptError(message, code="prompt-on-other-slice", n=n, lies_on=others[0])
        if given.known is not None:
            check_shape(n, given.known.shape_hw, self._stack.shape_of(n))

    def set_prompts(self, name: str, n: int, given: SlicePrompts) -> None:
        """Replace all prompts of a slice."""
        was_final = self._is_final(name, n)
        if was_final:
            self._tracker.release(name, n)
        is_new = self._replace(name, n, given)
        if given.final:
            if name not in self._tracker.object_ids:
                message = f"slice {n} of object {name!r} has no mask yet that could be final"
                raise PromptError(message, code="no-mask-yet", object=name, n=n)
            self._tracker.finalise(name, n)
        if is_new or (was_final and not given.final and not self._is_prompted(name, n)):
            self.changes.add(name, n)

    def restore(
        self, name: str, slices: Mapping[int, SlicePrompts], tracked: Mapping[int, SliceMask]
    ) -> None:
        """Replace all prompts and masks of an object; see :meth:`Session.restore_object`."""
        frozen = {n for n, one in slices.items() if one.final and not one.prompts and one.known is None}
        if name in self.prompts.names:
            self.prompts.objects[name] = []
        if name in self._tracker.object_ids:
            self._tracker.remove_object(name)
        self.changes.remove(name)
        # Prompts correct what tracking had found on their slices. Its other masks come afterwards: where
        # tracking has not been, prompts give the same mask whenever they are set.
        corrected = {n: found for n, found in tracked.items() if n in slices and n not in frozen}
        self._tracker.add_tracked(name, corrected)
        for n, one in slices.items():
            if n not in frozen:
                self.set_prompts(name, n, one)
        self.prompts.add_object(name)
        self._tracker.add_tracked(name, {n: found for n, found in tracked.items() if n not in corrected})
        for n in frozen:
            self.set_prompts(name, n, slices[n])

    def prompted_slices(self) -> list[int]:
        """Return the slices with prompts of any object, ascending."""
        prompts = (prompt for _, of_object in self.prompts for prompt in of_object)
        return sorted({n for prompt in prompts for n in slices_of(prompt, self._stack)})

    def prompts_of_image(self, n: int) -> PromptSet:
        """Return the prompts of an image of a set, as they lie on the image alone."""
        found = PromptSet({name: [] for name in self.prompts.names})
        for name in self.prompts.names:
            found.objects[name] = [_on_first_slice(prompt) for prompt in self._partition(name, n)[0]]
        return found

    def results(self, name: str) -> Iterator[SliceMask]:
        """Return the masks of an object's slices segmented so far, ascending."""
        self.prompts.of(name)
        return self._tracker.results(name) if name in self._tracker.object_ids else iter(())

    def mask(self, name: str, n: int) -> SliceMask | None:
        """Return the mask of a slice, or None."""
        if name not in self._tracker.object_ids:
            return None
        return self._tracker.state(name).masks.get(n)

    def _replace(self, name: str, n: int, given: SlicePrompts) -> bool:
        """Replace all prompts of a slice that is not final; return whether that made a difference."""
        here, elsewhere = self._partition(name, n)
        prompts = list(given.prompts)
        is_prompted = self._is_prompted(name, n)
        if not prompts and given.known is None:
            if is_prompted:
                self._tracker.remove_prompts(name, n)
                self.prompts.objects[name] = elsewhere
            return is_prompted
        can_refine = is_prompted and (
            # The mask a model found with a predicted box is what further prompts correct.
            self._tracker.state(name).conditioning[n].reproducible
            or any(isinstance(prompt, Box) and prompt.predicted for prompt in here)
        )
        if given.known is None and here == prompts and can_refine:
            return False
        self.prompts.add_object(name)
        refines = given.known is None and bool(here) and prompts[: len(here)] == here and can_refine
        if is_prompted and not refines:
            self._tracker.remove_prompts(name, n)
        if given.known is not None:
            prompts = self._accept(name, n, prompts, given.known)
        else:
            for count in range(len(here) + 1 if refines else 1, len(prompts) + 1):
                pixels = resolve(prompts[:count], self._stack)[n]
                is_part = len(prompts) > count
                self._tracker.prompt(name, n, pixels, reproducible=True, is_part=is_part)
        self.prompts.objects[name] = elsewhere + prompts
        return True

    def _accept(self, name: str, n: int, prompts: list[Prompt], known: SliceMask) -> list[Prompt]:
        """Take a known mask without asking the model; return the prompts it then stands for."""
        if prompts:
            self._tracker.accept(name, n, resolve(prompts, self._stack)[n], known)
            return prompts
        self._tracker.accept(name, n, PixelPrompts.of_mask(known.mask_hw), known)
        drawn = mask_on_slice(known.mask_hw, n, self._stack)
        return [] if drawn is None else [drawn]

    def _partition(self, name: str, n: int) -> tuple[list[Prompt], list[Prompt]]:
        """Return the prompts of an object on slice ``n``, and those on other slices."""
        here: list[Prompt] = []
        elsewhere: list[Prompt] = []
        for prompt in self.prompts.of(name) if name in self.prompts.names else []:
            (here if n in slices_of(prompt, self._stack) else elsewhere).append(prompt)
        return here, elsewhere

    def _is_prompted(self, name: str, n: int) -> bool:
        return name in self._tracker.object_ids and n in self._tracker.state(name).conditioning

    def _is_final(self, name: str, n: int) -> bool:
        mask = self.mask(name, n)
        return mask is not None and mask.final


def _on_first_slice(prompt: Prompt) -> Prompt:
    """Return a prompt of a slice along k as one of slice 0."""
    if isinstance(prompt, Point):
        return Point((*prompt.ijk[:2], 0), prompt.positive)
    if isinstance(prompt, Box):
        return Box((*prompt.first_ijk[:2], 0), (*prompt.last_ijk[:2], 0), prompt.predicted)
    return MaskPrompt(prompt.mask_kji, (*prompt.offset_ijk[:2], 0))
