"""Objects through a volume: prompts on slices, and masks of all the others.

    tracker = Tracker(model, SliceEncoder(model, images))
    tracker.prompt("liver", 40, PixelPrompts(..., box_xyxy=...))     # a mask of slice 40, at once
    for result in tracker.propagate(): ...                          # every other slice

What a user says about a slice stays: a prompted slice conditions all others and is never replaced by
tracking, so a correction survives any number of propagations. What has been tracked is only a best guess so
far, and a new propagation replaces it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads
from medsam2_core.engine.maps import mask_of_logits, probabilities_of_logits
from medsam2_core.engine.memory import MemoryPolicy, RecentMemory
from medsam2_core.engine.options import Direction, TrackerOptions
from medsam2_core.engine.planning import Step, plan_set, plan_steps
from medsam2_core.engine.prompting import Prompter, check_prompt, only_mask, taken_over
from medsam2_core.engine.propagating import Propagation, Steps
from medsam2_core.engine.running import Run, Runner
from medsam2_core.engine.states import (
    ConditioningSlice,
    Found,
    ObjectState,
    Outcome,
    Prediction,
    SliceResult,
)
from medsam2_core.engine.zoom import Zoom
from medsam2_core.errors import Interrupted, PromptError

if TYPE_CHECKING:
    from medsam2_core.engine.model import SegmentationModel
    from medsam2_core.prompts import PixelPrompts


class Tracker:
    """Segments objects on the slices of one source.

    Parameters
    ----------
    model
        A loaded model.
    encoder
        For the same model and the slices to segment.
    memory
        Which slices are remembered; None is SAM 2's own rule.
    options
        See :class:`TrackerOptions`.
    heads
        What decodes and remembers; None is the model's own.
    """

    def __init__(
        self,
        model: "SegmentationModel",
        encoder: SliceEncoder,
        memory: MemoryPolicy | None = None,
        options: TrackerOptions | None = None,
        heads: Heads | None = None,
    ) -> None:
        self.model, self.encoder, self.source = model, encoder, encoder.source
        self.options = options or TrackerOptions()
        self._policy = memory or RecentMemory()
        heads = heads or Heads(model)
        self._objects: dict[str, ObjectState] = {}
        self._prompter = Prompter(encoder, heads, self.options)
        self._runner = Runner(encoder, heads, self._policy, self.options.keeps_probabilities)

    @classmethod
    def stock(cls, model: "SegmentationModel", encoder: SliceEncoder) -> "Tracker":
        """A tracker that repeats sam2's video predictor, for comparison."""
        return cls(model, encoder, RecentMemory(True, None), TrackerOptions.stock())

    @property
    def object_ids(self) -> list[str]:
        """Objects prompted so far, in order."""
        return list(self._objects)

    @property
    def prompted_ids(self) -> list[str]:
        """Objects the user speaks about now, in order."""
        return [object_id for object_id, state in self._objects.items() if state.conditioning]

    def state(self, object_id: str) -> ObjectState:
        """What is known about an object (to be looked at, not changed)."""
        if object_id not in self._objects:
            known = ", ".join(map(repr, self._objects)) or "none yet"
            raise PromptError(f"unknown object {object_id!r}: prompt it first (known: {known})")
        return self._objects[object_id]

    def prompt(
        self, object_id: str, n: int, prompt: "PixelPrompts", *, by_words: bool = False
    ) -> SliceResult:
        """Take everything the user says about an object on slice `n`, and predict its mask there.

        `prompt` replaces what was said about this slice before. A mask alone is taken as it is (an empty
        one says that the object is not here); with points or a box it is what they correct. `by_words`: on a
        slice tracking did not reach, other slices have no say in where to look.

        Raises
        ------
        PromptError
            No such slice, nothing in the prompt, a mask of another shape, or a slice marked as final.
        """
        self._check_slice(n)
        check_prompt(n, prompt, self.source.shape_of(n))
        state = self._objects.get(object_id) or self._new_state(object_id)
        self._check_not_final(state, n)
        looks_around = not by_words or state.beneath(n) is not None
        prediction = self._prompter.answer(state, n, prompt, self.zoom(n), looks_around)
        kept = None
        if only_mask(prompt):
            mask_hw = np.asarray(prompt.mask_hw, dtype=bool)
        else:
            mask_hw = mask_of_logits(prediction.logits, prediction.region, self.source.shape_of(n))
            if self.options.keeps_probabilities:
                kept = probabilities_of_logits(prediction.logits, prediction.region, mask_hw)
        outcome = Outcome.of(prediction, mask_hw, kept, prompted=True)
        return self._condition(state, n, prompt, prediction, outcome, by_words)

    def accept(self, object_id: str, n: int, prompt: "PixelPrompts", known: Found) -> SliceResult:
        """As :meth:`prompt`, but the answer is known already."""
        self._check_slice(n)
        words = replace(prompt, mask_hw=np.asarray(known.mask_hw, dtype=bool))
        check_prompt(n, words, self.source.shape_of(n))
        state = self._objects.get(object_id) or self._new_state(object_id)
        self._check_not_final(state, n)
        only_it = replace(words, box_xyxy=None, points_xy=prompt.points_xy[:0], labels=prompt.labels[:0])
        prediction = self._prompter.answer(state, n, only_it, self.zoom(n))
        prediction = replace(prediction, iou=known.iou)
        if known.score > 0 and words.mask_hw.any():
            prediction = replace(prediction, score=torch.full_like(prediction.score, known.score))
        outcome = Outcome.of(prediction, words.mask_hw, known.probabilities, prompted=True)
        return self._condition(state, n, prompt, prediction, outcome)

    def _condition(
        self,
        state: ObjectState,
        n: int,
        prompt: "PixelPrompts",
        prediction: Prediction,
        outcome: Outcome,
        by_words: bool = False,
    ) -> SliceResult:
        """Let all other slices follow from a slice the user spoke about."""
        self._objects[state.object_id] = state
        earlier, beneath = state.conditioning.get(n), state.beneath(n)
        memory = earlier.memory if earlier is not None else None
        state.conditioning[n] = ConditioningSlice(n, prompt, prediction, memory, False, beneath, by_words)
        state.recent.pop(n, None)
        for bank in state.banks:
            bank.remove(n)
        state.outcomes[n] = outcome
        self._pin()
        return self.result(state.object_id, n)

    def uncover(self, object_id: str, n: int) -> None:
        """Take back everything said about slice `n`: the mask tracking had found there stands again.

        Without one the slice has none, and an object of which nothing is left is removed. Nothing happens
        where nothing was said. PromptError when the slice is final.
        """
        state = self.state(object_id)
        self._check_not_final(state, n)
        if n in state.conditioning:
            state.uncover(n)
        if not state.conditioning and not state.outcomes:
            del self._objects[object_id]
        self._pin()

    def take_over(self, object_id: str, found: Mapping[int, Found]) -> None:
        """Masks that tracking found in another process, for slices of an object nobody spoke about here."""
        state = self._objects.get(object_id) or self._new_state(object_id)
        for n, one in found.items():
            self._check_slice(n)
            state.outcomes[n] = taken_over(n, one, self.source.shape_of(n), self.zoom(n))
            seed = min(state.conditioning, key=lambda m: abs(m - n), default=n)
            state.tracked[n] = seed > n
        if state.outcomes:
            self._objects[object_id] = state

    def unprompt(self, object_id: str, n: int) -> None:
        """Take back everything said about slice `n`, and the mask there; an object without prompts is
        removed. PromptError when slice `n` is final, or others are and this was the last prompt."""
        state = self.state(object_id)
        self._check_not_final(state, n)
        if n not in state.conditioning:
            raise PromptError(f"object {object_id!r} has no prompt on slice {n}")
        finals = sorted(m for m, outcome in state.outcomes.items() if outcome.final)
        if finals and len(state.conditioning) == 1:
            raise PromptError(
                f"the prompt on slice {n} is the last one of object {object_id!r}, which has final slices "
                f"({', '.join(map(str, finals))}): release them first, or remove the object"
            )
        del state.conditioning[n]
        state.forget(n)
        if not state.conditioning:
            del self._objects[object_id]
        self._pin()

    def finalise(self, object_id: str, n: int, mask_hw: NDArray[np.bool_] | None = None) -> SliceResult:
        """Mark slice `n` as final: neither tracking nor prompts change it until it is released.

        Parameters
        ----------
        mask_hw
            (H, W) the user's own mask, which then conditions other slices; None freezes the mask as it
            stands.
        """
        self._check_slice(n)
        state = self._objects.get(object_id)
        if mask_hw is not None:
            from medsam2_core.prompts import PixelPrompts

            nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.int32)
            words = PixelPrompts(*nothing, mask_hw=np.asarray(mask_hw, dtype=bool))
            check_prompt(n, words, self.source.shape_of(n))
            if state is not None:
                self.release(object_id, n)
            self.prompt(object_id, n, words)
            state = self._objects[object_id]
        elif n not in self.state(object_id).outcomes:
            raise PromptError(f"slice {n} of object {object_id!r} has no mask yet that could be final")
        state.outcomes[n] = replace(state.outcomes[n], final=True)
        return self.result(object_id, n)

    def release(self, object_id: str, n: int) -> None:
        """Allow slice `n` to be changed again."""
        state = self.state(object_id)
        if n in state.outcomes:
            state.outcomes[n] = replace(state.outcomes[n], final=False)

    def remove_object(self, object_id: str) -> None:
        """Forget an object."""
        self.state(object_id)
        del self._objects[object_id]
        self._pin()

    def snapshot(self) -> dict[str, ObjectState]:
        """Everything known so far, for :meth:`restore`. Cheap: masks and tensors are shared."""
        return {object_id: state.copied() for object_id, state in self._objects.items()}

    def restore(self, snapshot: Mapping[str, ObjectState]) -> None:
        """Go back to a snapshot; it can be restored again later."""
        self._objects = {object_id: state.copied() for object_id, state in snapshot.items()}
        self._pin()

    def result(self, object_id: str, n: int) -> SliceResult:
        """The mask of a slice as it stands."""
        state = self.state(object_id)
        if n not in state.outcomes:
            raise PromptError(f"slice {n} of object {object_id!r} has not been segmented yet")
        return state.result(n)

    def results(self, object_id: str) -> Iterator[SliceResult]:
        """All slices segmented so far, ascending."""
        return (self.result(object_id, n) for n in sorted(self.state(object_id).outcomes))

    def propagate(
        self,
        object_ids: Sequence[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        *,
        direction: Direction | str = Direction.BOTH,
        stop_after_absent: int | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ) -> Propagation:
        """Segment the slices from `first` to `last` (inclusive; None: to the end) that the user did not
        prompt.

        Prompted and final slices are given as they are. Slices outside the range keep their masks.

        Parameters
        ----------
        object_ids
            Which objects; None all.
        stop_after_absent
            Give an object up, in one direction, after so many slices without it; None never.
        should_cancel
            Asked before every step.

        Raises
        ------
        PromptError
            Unknown object, nothing prompted yet, or an impossible range; at once.
        Cancelled
            While iterating, when `should_cancel` says so. All results until then stay.
        """
        states = [self.state(name) for name in (self.prompted_ids if object_ids is None else object_ids)]
        if not states:
            raise PromptError("nothing to propagate: prompt an object first")
        for state in states:
            if not state.conditioning:
                raise PromptError(
                    f"nothing is said about object {state.object_id!r} any more: prompt it first"
                )
        first = 0 if first is None else first
        last = len(self.source) - 1 if last is None else last
        self._check_slice(first)
        self._check_slice(last)
        if first > last:
            raise PromptError(f"the range {first} to {last} is empty: give the lower slice first")
        direction = Direction(direction)
        if self.source.ordered:
            steps = plan_steps(states, first, last, direction, self.options.order)
        else:
            steps = plan_set(states, first, last)
        progress = Propagation(len(steps))
        runs: dict[tuple[str, bool, int], Run] = {}
        step = partial(self._step, runs=runs, stop_after_absent=stop_after_absent)
        names = [state.object_id for state in states]

        def take(one: Step) -> SliceResult | None:
            if progress.done == 0:
                self._forget_tracked(names)
            return step(one)

        progress.results = Steps(steps, take, progress, should_cancel)
        return progress

    def _forget_tracked(self, object_ids: Sequence[str]) -> None:
        """Start a propagation from the prompted slices alone."""
        if self.options.fresh_reverse:
            for state in filter(None, map(self._objects.get, object_ids)):
                state.banks = [self._policy.bank(self.model.module) for _ in range(2)]

    def _step(
        self, step: Step, runs: dict[tuple[str, bool, int], Run], stop_after_absent: int | None
    ) -> SliceResult | None:
        state = self._objects.get(step.object_id)
        if state is None:  # removed meanwhile
            return None
        if step.n in state.conditioning:
            state.tracked[step.n] = step.reverse
            return self.result(step.object_id, step.n)
        if step.seed is None:
            return self._gone(state, step.n)
        if step.seed not in state.conditioning:  # taken back meanwhile: the next propagation has another plan
            return None
        zoom = self.zoom(step.n)
        run = runs.setdefault((step.object_id, step.reverse, step.seed), Run())
        outcome = state.outcomes.get(step.n)
        is_final = outcome is not None and outcome.final
        given_up = stop_after_absent is not None and run.absent_for >= stop_after_absent
        if given_up and not is_final:
            return self._gone(state, step.n)
        before = replace(run)
        try:
            if is_final:
                self._runner.pass_final(state, step, run, zoom)
            else:
                self._runner.track(state, step, run, zoom)
        except Interrupted:  # the next try starts where this one did
            run.region, run.absent_for = before.region, before.absent_for
            raise
        return self.result(step.object_id, step.n)

    def _gone(self, state: ObjectState, n: int) -> SliceResult | None:
        """The object is not on this slice. Say so only where an earlier propagation saw it."""
        outcome = state.outcomes.get(n)
        if outcome is None or outcome.final:
            return None
        state.forget(n)
        state.outcomes[n] = outcome.emptied()
        return None if outcome.mask.is_empty else self.result(state.object_id, n)

    def _pin(self) -> None:
        """Keep the features of the slices prompted now, and of no others, longer than the rest."""
        prompted = {n for state in self._objects.values() for n in state.conditioning}
        self.encoder.cache.pin(self, self.source.key, prompted)

    def _new_state(self, object_id: str) -> ObjectState:
        forward = self._policy.bank(self.model.module)
        # Stock knows one memory for both directions.
        reverse = self._policy.bank(self.model.module) if self.options.fresh_reverse else forward
        return ObjectState(object_id, [forward, reverse], self.options.recent_logits)

    def zoom(self, n: int) -> Zoom | None:
        """How regions of slice `n` are chosen; None when the model looks at whole slices."""
        if not self.options.zoom or not self.source.ordered:
            return None
        factor = self.options.zoom_factor or self.model.recipe.zoom
        return Zoom(self.source.shape_of(n), self.source.pixel_mm, factor)

    def _check_slice(self, n: int) -> None:
        if not 0 <= n < len(self.source):
            raise PromptError(f"there is no slice {n}: slices are 0 to {len(self.source) - 1}")

    def _check_not_final(self, state: ObjectState, n: int) -> None:
        if n in state.outcomes and state.outcomes[n].final:
            raise PromptError(f"slice {n} of object {state.object_id!r} is final: release it first")
