"""Objects through a volume: prompts on slices, and masks of all the others.

    tracker = Tracker(model, SliceEncoder(model, images))
    tracker.prompt("liver", 40, PixelPrompts(..., box_xyxy=...))     # a mask of slice 40, at once
    for result in tracker.propagate(): ...                          # every other slice

A prompted slice conditions all others and is never replaced by tracking, so a correction survives any number
of propagations. A tracked mask is replaced by the next propagation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads
from medsam2_core.engine.images import UnorderedSource
from medsam2_core.engine.locating import Locator, by_similarity
from medsam2_core.engine.maps import mask_of_logits, probabilities_of_logits
from medsam2_core.engine.memory import MemoryPolicy, RecentMemory
from medsam2_core.engine.neighbours import Neighbours
from medsam2_core.engine.options import Direction, Order, TrackerOptions
from medsam2_core.engine.prompting import Prompter, check_prompt, only_mask
from medsam2_core.engine.propagation import CORRECTION_TRUST, Propagation, plan_set, plan_steps
from medsam2_core.engine.running import Run, Runner
from medsam2_core.engine.states import ConditioningSlice, ObjectState, Prediction, Step
from medsam2_core.engine.zoom import Box, Region, Zoom
from medsam2_core.errors import DeviceError, Interrupted, PromptError
from medsam2_core.imaging.slice_mask import SliceMask, check_shape, check_slice
from medsam2_core.prompts.types import PixelPrompts

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel

# Objects of a slice that are decoded in one pass, at most, and for all of them pixels of the model's images:
# the pass needs memory in proportion (340 MB for eight at 1024 px).
_TOGETHER, _PIXELS_TOGETHER = 8, 8 * 512 * 512

# Object, whether in reverse, and prompted slice of a run.
_Key: TypeAlias = tuple[str, bool, int | None]


class Tracker:
    """Segments objects on the slices of one source.

    Parameters
    ----------
    encoder
        For the same model and the slices to segment.
    memory
        Which slices are remembered; None is SAM 2's own rule.
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
        self._policy: MemoryPolicy = memory or RecentMemory()
        heads = heads or Heads(model)
        self._mask_side = heads.mask_side
        self._objects: dict[str, ObjectState] = {}
        self._prompter = Prompter(encoder, heads, self.options)
        locates = self.options.locates and self.options.zoom and not self.source.ordered
        locator = Locator(encoder) if locates else None
        # As Medical SAM 2 and stock do it; small models that draw their prompts do better otherwise.
        self._trusts_corrections = not model.recipe.draws_prompts or self.options.order is Order.EARLIEST
        self._runner = Runner(
            encoder, heads, self._policy, self.options.keeps_probabilities, locator, self._trusts_corrections
        )

    @classmethod
    def stock(cls, model: "SegmentationModel", encoder: SliceEncoder) -> "Tracker":
        """Return a tracker that repeats sam2's video predictor, for comparison."""
        return cls(model, encoder, RecentMemory(True, None), TrackerOptions.stock())

    @property
    def object_ids(self) -> list[str]:
        """Objects prompted so far, in order."""
        return list(self._objects)

    @property
    def prompted_ids(self) -> list[str]:
        """Objects that have prompts now, in order."""
        return [object_id for object_id, state in self._objects.items() if state.conditioning]

    def state(self, object_id: str) -> ObjectState:
        """Return what is known about an object; not to be changed."""
        if object_id not in self._objects:
            known = ", ".join(map(repr, self._objects)) or "none yet"
            message = f"unknown object {object_id!r}: prompt it first (known: {known})"
            raise PromptError(message, code="unknown-object", object=object_id)
        return self._objects[object_id]

    def prompt(
        self,
        object_id: str,
        n: int,
        prompt: PixelPrompts,
        *,
        reproducible: bool = False,
        is_part: bool = False,
    ) -> SliceMask:
        """Set all prompts of an object on slice `n`, and predict its mask there.

        `prompt` replaces the slice's earlier prompts. A mask alone is taken as it is (an empty one says that
        the object is not here); with points or a box it is what they correct. `reproducible`: on a slice that
        tracking did not reach, the region does not depend on where the object is on other slices. `is_part`:
        more was given at the same time, a scribble for example.

        Raises
        ------
        PromptError
            No such slice, nothing in the prompt, a mask of another shape, or a slice marked as final.
        """
        check_slice(n, len(self.source))
        check_prompt(n, prompt, self.source.shape_of(n))
        state = self._objects.get(object_id) or self._new_state(object_id)
        self._check_not_final(state, n)
        looks_around = self.source.ordered and (not reproducible or state.tracked_slice(n) is not None)
        prediction = self._prompter.predict(state, n, prompt, self.zoom(n), looks_around, is_part)
        kept = None
        if only_mask(prompt):
            mask_hw = np.asarray(prompt.mask_hw, dtype=bool)
        else:
            mask_hw = mask_of_logits(prediction.logits, prediction.region, self.source.shape_of(n))
            if self.options.keeps_probabilities:
                kept = probabilities_of_logits(prediction.logits, prediction.region, mask_hw)
        mask = prediction.slice_mask(object_id, n, mask_hw, kept, prompted=True)
        return self._condition(state, mask, prompt, prediction, reproducible)

    def accept(self, object_id: str, n: int, prompt: PixelPrompts, known: SliceMask) -> SliceMask:
        """Prompt an object on slice `n` where the mask is known already: the model is not asked for it."""
        check_slice(n, len(self.source))
        mask_hw = known.mask_hw
        check_prompt(n, replace(prompt, mask_hw=mask_hw), self.source.shape_of(n))
        state = self._objects.get(object_id) or self._new_state(object_id)
        self._check_not_final(state, n)
        prediction = self._prompter.predict(state, n, PixelPrompts.of_mask(mask_hw), self.zoom(n))
        prediction = replace(prediction, predicted_iou=known.predicted_iou)
        if known.object_score > 0 and not known.is_empty:
            score = torch.full_like(prediction.object_score, known.object_score)
            prediction = replace(prediction, object_score=score)
        mask = prediction.slice_mask(object_id, n, mask_hw, known.probabilities, prompted=True)
        return self._condition(state, mask, prompt, prediction)

    def _condition(
        self,
        state: ObjectState,
        mask: SliceMask,
        prompt: PixelPrompts,
        prediction: Prediction,
        reproducible: bool = False,
    ) -> SliceMask:
        """Make a prompted slice condition all others."""
        n = mask.n
        self._objects[state.object_id] = state
        earlier, found = state.conditioning.get(n), state.tracked_slice(n)
        memory = earlier.memory if earlier is not None else None
        state.conditioning[n] = ConditioningSlice(n, prompt, prediction, memory, False, found, reproducible)
        state.recent.pop(n, None)
        for bank in state.banks:
            bank.remove(n)
        state.set_mask(mask, prediction.region)
        self._pin()
        return mask

    def remove_prompts(self, object_id: str, n: int) -> None:
        """Remove the prompts of slice `n`: the mask that tracking had found there comes back.

        Without one the slice has none, and an object of which nothing is left is removed. Nothing happens
        without prompts. PromptError when the slice is final.
        """
        state = self.state(object_id)
        self._check_not_final(state, n)
        if n in state.conditioning:
            state.remove_prompts(n)
        if not state.conditioning and not state.masks:
            del self._objects[object_id]
        self._pin()

    def add_tracked(self, object_id: str, masks: Mapping[int, SliceMask]) -> None:
        """Add masks that tracking found elsewhere, on slices without prompts."""
        state = self._objects.get(object_id) or self._new_state(object_id)
        for n, mask in masks.items():
            check_slice(n, len(self.source))
            shape_hw, zoom = self.source.shape_of(n), self.zoom(n)
            check_shape(n, mask.shape_hw, shape_hw)
            box = Box.of_mask(mask.mask_hw)
            region = Region.whole(shape_hw) if zoom is None or box is None else zoom.around(box)
            state.set_mask(replace(mask, object=object_id, n=n, prompted=False, final=False), region)
            seed = min(state.conditioning, key=lambda m: abs(m - n), default=n)
            state.tracked[n] = self.source.ordered and seed > n
        if state.masks:
            self._objects[object_id] = state

    def unprompt(self, object_id: str, n: int) -> None:
        """Remove the prompts of slice `n` and its mask; an object without prompts is removed.

        PromptError when slice `n` is final, or others are and this was the last prompt.
        """
        state = self.state(object_id)
        self._check_not_final(state, n)
        if n not in state.conditioning:
            message = f"object {object_id!r} has no prompt on slice {n}"
            raise PromptError(message, code="no-prompts", object=object_id, n=n)
        finals = sorted(m for m, mask in state.masks.items() if mask.final)
        if finals and len(state.conditioning) == 1:
            message = (
                f"the prompt on slice {n} is the last one of object {object_id!r}, which has final slices "
                f"({', '.join(map(str, finals))}): release them first, or remove the object"
            )
            raise PromptError(message, code="last-prompt", object=object_id, n=n, final=finals)
        del state.conditioning[n]
        state.remove_slice(n)
        if not state.conditioning:
            del self._objects[object_id]
        self._pin()

    def finalise(self, object_id: str, n: int, mask_hw: NDArray[np.bool_] | None = None) -> SliceMask:
        """Mark slice `n` as final: neither tracking nor prompts change it until it is released.

        Parameters
        ----------
        mask_hw
            (H, W) the user's own mask, which then conditions other slices; None freezes the mask as it
            stands.
        """
        check_slice(n, len(self.source))
        if mask_hw is not None:
            drawn = PixelPrompts.of_mask(mask_hw)
            check_prompt(n, drawn, self.source.shape_of(n))
            if object_id in self._objects:
                self.release(object_id, n)
            self.prompt(object_id, n, drawn)
        state = self.state(object_id)
        if n not in state.masks:
            message = f"slice {n} of object {object_id!r} has no mask yet that could be final"
            raise PromptError(message, code="no-mask-yet", object=object_id, n=n)
        state.masks[n] = replace(state.masks[n], final=True)
        return state.masks[n]

    def release(self, object_id: str, n: int) -> None:
        """Allow slice `n` to be changed again."""
        state = self.state(object_id)
        if n in state.masks:
            state.masks[n] = replace(state.masks[n], final=False)

    def remove_object(self, object_id: str) -> None:
        """Remove an object."""
        self.state(object_id)
        del self._objects[object_id]
        self._pin()

    def snapshot(self) -> dict[str, ObjectState]:
        """Return everything known so far, for :meth:`restore`. Cheap: masks and tensors are shared."""
        return {object_id: state.copied() for object_id, state in self._objects.items()}

    def restore(self, snapshot: Mapping[str, ObjectState]) -> None:
        """Go back to a snapshot; it can be restored again later."""
        self._objects = {object_id: state.copied() for object_id, state in snapshot.items()}
        self._pin()

    def result(self, object_id: str, n: int) -> SliceMask:
        """Return the mask of a slice."""
        state = self.state(object_id)
        if n not in state.masks:
            message = f"slice {n} of object {object_id!r} has not been segmented yet"
            raise PromptError(message, code="no-mask-yet", object=object_id, n=n)
        return state.masks[n]

    def results(self, object_id: str) -> Iterator[SliceMask]:
        """Return all slices segmented so far, ascending."""
        return (self.result(object_id, n) for n in sorted(self.state(object_id).masks))

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

        Raises
        ------
        PromptError
            Unknown object, nothing prompted yet, or an impossible range; at once.
        Cancelled
            While iterating, when `should_cancel` returns True. All results until then stay.
        """
        steps = self.plan(object_ids, first, last, Direction(direction))
        return Propagation(steps, self.step_taker(steps, stop_after_absent), should_cancel)

    def plan(
        self, object_ids: Sequence[str] | None, first: int | None, last: int | None, direction: Direction
    ) -> list[Step]:
        """Return the steps of a propagation, for :meth:`step_taker`; see :meth:`propagate`."""
        states = [self.state(name) for name in (self.prompted_ids if object_ids is None else object_ids)]
        if not states:
            raise PromptError("nothing to propagate: prompt an object first", code="nothing-to-propagate")
        for state in states:
            if not state.conditioning:
                message = f"object {state.object_id!r} has no prompts any more: prompt it first"
                raise PromptError(message, code="no-prompts", object=state.object_id)
        first = 0 if first is None else first
        last = len(self.source) - 1 if last is None else last
        check_slice(first, len(self.source))
        check_slice(last, len(self.source))
        if first > last:
            message = f"the range {first} to {last} is empty: give the lower slice first"
            raise PromptError(message, code="empty-range", first=first, last=last)
        if self.source.ordered:
            trust = 1.0 if self._trusts_corrections else CORRECTION_TRUST
            return plan_steps(states, first, last, direction, self.options.order, trust)
        prompted = sorted({n for state in states for n in state.conditioning})
        source = cast("UnorderedSource", self.source)
        return plan_set(states, by_similarity(source, range(first, last + 1), prompted))

    def step_taker(
        self, steps: Sequence[Step], stop_after_absent: int | None = None, overlap: bool = True
    ) -> Callable[[Step], list[SliceMask]]:
        """Return what takes these steps of one propagation; see :class:`Propagation`.

        Without `overlap`, pixels are divided between objects, see :class:`Neighbours`.
        """
        neighbours = None
        if not overlap and self.source.ordered:
            neighbours = Neighbours(lambda: self._objects, self._mask_side, steps)
        runs: dict[_Key, Run] = {}
        started: set[str] = set()
        most = min(_TOGETHER, max(_PIXELS_TOGETHER // self.model.image_size**2, 1))
        together = _by_first(steps, most) if self.source.ordered else {}

        def take(step: Step) -> list[SliceMask]:
            same_slice = together.get(step, [step])
            for one in same_slice:
                if one.object_id not in started:
                    self._clear_memories(one.object_id)
            try:
                self._look_ahead(same_slice, runs, stop_after_absent)
            except DeviceError:  # no memory for several: from here on one after the other
                together.clear()
                for run in runs.values():
                    run.ahead = None
            mask = self._step(step, runs, stop_after_absent, neighbours)
            started.add(step.object_id)
            runs.setdefault(_key(step), Run()).ahead = None
            changed = [] if neighbours is None else neighbours.finish(step)
            return changed if mask is None else [mask, *changed]

        return take

    def _look_ahead(
        self,
        steps: Sequence[Step],
        runs: dict[_Key, Run],
        stop_after_absent: int | None,
    ) -> None:
        """Predict those objects of a slice together that are tracked there."""
        waiting = []
        for step in steps if len(steps) > 1 else ():
            state = self._objects.get(step.object_id)
            if state is None or step.seed not in state.conditioning or step.n in state.conditioning:
                continue
            run = runs.setdefault(_key(step), Run())
            is_final = step.n in state.masks and state.masks[step.n].final
            if is_final or (stop_after_absent is not None and run.absent_for >= stop_after_absent):
                continue
            waiting.append((state, step, run, self.zoom(step.n)))
        if len(waiting) > 1:
            self._runner.look_ahead(waiting)

    def _clear_memories(self, object_id: str) -> None:
        """Start a propagation from the prompted slices alone."""
        state = self._objects.get(object_id)
        if state is not None and self.options.fresh_reverse:
            state.banks = [self._policy.bank(self.model.module) for _ in range(2)]

    def _step(
        self,
        step: Step,
        runs: dict[_Key, Run],
        stop_after_absent: int | None,
        neighbours: Neighbours | None = None,
    ) -> SliceMask | None:
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
        run = runs.setdefault(_key(step), Run())
        is_final = step.n in state.masks and state.masks[step.n].final
        ordered = self.source.ordered
        given_up = ordered and stop_after_absent is not None and run.absent_for >= stop_after_absent
        if given_up and not is_final:
            return self._gone(state, step.n)
        before = replace(run)
        try:
            if is_final:
                self._runner.pass_final(state, step, run, zoom)
            else:
                self._runner.track(state, step, run, zoom, neighbours)
        except Interrupted:  # the next try starts where this one did
            run.region, run.absent_for = before.region, before.absent_for
            raise
        return self.result(step.object_id, step.n)

    def _gone(self, state: ObjectState, n: int) -> SliceMask | None:
        """Mark the object as absent from a slice; return the empty mask only where there was one before."""
        mask, region = state.masks.get(n), state.regions.get(n)
        if mask is None or region is None or mask.final:
            return None
        state.remove_slice(n)
        empty = mask.with_mask(
            np.zeros(mask.shape_hw, bool), object_score=-10.0, prompted=False, probabilities=None
        )
        state.set_mask(empty, region)
        return None if mask.is_empty else empty

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
        """Return how regions of slice `n` are chosen; None when the model sees whole slices."""
        if not self.options.zoom or not (self.source.ordered or self.options.locates):
            return None
        return Zoom(self.source.shape_of(n), self.source.pixel_mm, self.model.recipe.zoom)

    def expected_regions(self, n: int) -> list[Region]:
        """Return the regions a click, or tracking, would probably need on slice `n`, the likeliest first.

        Exact for slices that have a mask, and without zoom for all. Near them tracking uses the region where
        the object was last. Elsewhere nothing is expected: the first region is centred on the click.
        """
        zoom = self.zoom(n)
        if zoom is None:
            return [Region.whole(self.source.shape_of(n))]
        regions = [_expected_region(state, n, zoom) for state in self._objects.values()]
        return list(dict.fromkeys(region for region in regions if region is not None))

    def _check_not_final(self, state: ObjectState, n: int) -> None:
        if n in state.masks and state.masks[n].final:
            message = f"slice {n} of object {state.object_id!r} is final: release it first"
            raise PromptError(message, code="slice-final", object=state.object_id, n=n)


def _key(step: Step) -> _Key:
    return step.object_id, step.reverse, step.seed


def _by_first(steps: Sequence[Step], most: int) -> dict[Step, list[Step]]:
    """Return the steps that are taken one after the other on one slice in one direction, by the first of
    them; at most `most`."""
    found = {}
    for _, group in groupby(steps, key=lambda step: (step.n, step.reverse)):
        same = list(group)
        for start in range(0, len(same), most):
            found[same[start]] = same[start : start + most]
    return found


def _expected_region(state: ObjectState, n: int, zoom: Zoom) -> Region | None:
    if n in state.conditioning:
        return state.conditioning[n].prediction.region
    if n in state.recent:
        return state.recent[n][1]
    if n in state.masks:
        return state.regions[n]
    seen = [m for m, mask in state.masks.items() if not mask.is_empty]
    if not seen:
        return None
    nearest = min(seen, key=lambda m: abs(m - n))
    return zoom.follow(state.regions[nearest], Box.of_mask(state.masks[nearest].mask_hw))
