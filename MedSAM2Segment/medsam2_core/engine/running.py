"""One step of tracking: read memories, decode, encode a memory, and choose the region of the next slice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.cache import SliceFeatures
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads, Tokens
from medsam2_core.engine.images import UnorderedSource
from medsam2_core.engine.locating import Guess, Locator, agreement, by_similarity
from medsam2_core.engine.maps import mask_of_logits, moved_logits, probabilities_of_logits
from medsam2_core.engine.memory import Embedding, MemoryPolicy, Query, SliceMemory
from medsam2_core.engine.neighbours import Neighbours
from medsam2_core.engine.presence import Appearance, evidence
from medsam2_core.engine.states import ObjectState, Prediction, Step
from medsam2_core.engine.zoom import Box, Region, Zoom
from medsam2_core.prompts import PixelPrompts


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What one object on one slice is predicted from.

    Attributes
    ----------
    known
        Memories, and the logits of the slice before.
    """

    step: Step
    region: Region
    known: tuple[object, ...]

    def are_those_of(self, other: "_Inputs") -> bool:
        """Whether nothing has changed: the same objects in memory.

        A bank drops the features of a memory in place, but only when it gets another one, which is then among
        them.
        """
        return (
            self.step == other.step
            and self.region == other.region
            and len(self.known) == len(other.known)
            and all(one is another for one, another in zip(self.known, other.known, strict=True))
        )


@dataclass(frozen=True, slots=True)
class _Observed:
    """One object on one slice before its prompts are decoded: features, those with memory, mask prompt."""

    features: SliceFeatures
    attended: torch.Tensor
    canvas: torch.Tensor | None


@dataclass(slots=True)
class _Ahead:
    """What is known of one object on one slice before it is tracked there; `prediction` comes last."""

    inputs: _Inputs
    observed: _Observed
    prediction: Prediction | None = None


@dataclass(slots=True)
class Run:
    """One object on its way from one prompted slice in one direction.

    Attributes
    ----------
    ahead
        What :meth:`Runner.look_ahead` made of the next slice; no longer needed when that is tracked.
    """

    region: Region | None = None
    absent_for: int = 0
    ahead: _Ahead | None = None


class Runner:
    """Tracks objects from slice to slice."""

    def __init__(
        self,
        encoder: SliceEncoder,
        heads: Heads,
        policy: MemoryPolicy,
        keeps_probabilities: bool = False,
        locator: Locator | None = None,
        remembers_corrections: bool = True,
    ) -> None:
        self._encoder, self._heads, self._policy = encoder, heads, policy
        self._remembers_corrections = remembers_corrections
        self._keeps_probabilities, self._locator = keeps_probabilities, locator

    def look_ahead(self, waiting: Sequence[tuple[ObjectState, Step, Run, Zoom | None]]) -> None:
        """Predict several objects on one slice with one pass of the mask decoder.

        For several objects that costs little more than for one. :meth:`track` takes a prediction from the run
        if it would be made of the same things, and so does a second call, after an interruption.
        """
        found = []
        for state, step, run, zoom in waiting:
            memories = self._conditioning(state, step)
            region = self._region(state, step, run, zoom)
            inputs = self._inputs(state, step, region, memories)
            if run.ahead is None or not run.ahead.inputs.are_those_of(inputs):
                run.ahead = _Ahead(inputs, self._observe(state, step, region, memories))
            found.append(run.ahead)
        if all(one.prediction is not None for one in found):
            return
        observed = [one.observed for one in found]
        canvases = [one.canvas for one in observed if one.canvas is not None]
        predictions = self._heads.decode_together(
            [one.features for one in observed],
            [one.attended for one in observed],
            [one.inputs.region for one in found],
            canvases or None,
        )
        for one, prediction in zip(found, predictions, strict=True):
            one.prediction = prediction

    def track(
        self,
        state: ObjectState,
        step: Step,
        run: Run,
        zoom: Zoom | None,
        neighbours: Neighbours | None = None,
    ) -> None:
        """Predict one object on one slice, and remember it; `neighbours` divides pixels."""
        if zoom is not None and not self._encoder.source.ordered:
            self._find(state, step, run, zoom)
            return
        memories = self._conditioning(state, step)
        shape = self._encoder.source.shape_of(step.n)
        region = self._region(state, step, run, zoom)
        features, attended, prediction = self._predict(state, step, run, region, memories)
        mask_hw = mask_of_logits(prediction.logits, region, shape)
        box = Box.of_mask(mask_hw)
        if zoom is not None and box is not None and zoom.is_cut(region, box):
            larger = zoom.grown(region, box)
            if larger != region:
                again = self._predict(state, step, run, larger, memories)
                if again[2].predicted_iou >= prediction.predicted_iou and not again[2].is_absent:
                    region, (features, attended, prediction) = larger, again
                    mask_hw = mask_of_logits(prediction.logits, region, shape)
                    box = Box.of_mask(mask_hw)
        if neighbours is not None:
            prediction, mask_hw = neighbours.divide(state, step.n, prediction, mask_hw)
            box = Box.of_mask(mask_hw)
        run.region = region if zoom is None else zoom.follow(region, box)
        run.absent_for = run.absent_for + 1 if box is None else 0
        self._keep(state, step, features, attended, prediction, mask_hw)

    def _find(self, state: ObjectState, step: Step, run: Run, zoom: Zoom) -> None:
        """Find one object on one image of a set, and remember it.

        Of the masks that the guesses become, the one counts that agrees best with the likeness of its places
        to the object's, and that the model is surest of.
        """
        assert self._locator is not None  # made for all sets that are zoomed into
        memories, whole = self._conditioning(state, step), Region.whole(zoom.shape_hw)
        masks = [state.masks[n] for n in memories]
        likeness = self._locator.likeness(step.n, masks)
        best, best_score, agreed = None, -1.0, 1.0
        for guess in self._locator.guesses(step.n, likeness, masks, self._heads.mask_side):
            region = zoom.around(guess.box)
            found = self._predict(state, step, run, region, memories, guess)
            prediction = found[2]
            present = float(prediction.object_score.sigmoid())
            agrees = agreement(prediction.logits, region, whole, likeness)
            score = agrees * prediction.predicted_iou * present
            if score > best_score:
                best, best_score, agreed = found, score, agrees
        features, attended, prediction = best or self._predict(state, step, run, whole, memories)
        mask_hw = mask_of_logits(prediction.logits, prediction.region, zoom.shape_hw)
        run.region = prediction.region
        self._keep(state, step, features, attended, prediction, mask_hw, agreed)

    def _keep(
        self,
        state: ObjectState,
        step: Step,
        features: SliceFeatures,
        attended: torch.Tensor,
        prediction: Prediction,
        mask_hw: NDArray[np.bool_],
        agreed: float = 1.0,
    ) -> None:
        """Make a prediction the mask of its slice, and a memory for others."""
        self._remember(state, step, features, attended, prediction)
        kept = None
        if self._keeps_probabilities:
            kept = probabilities_of_logits(prediction.logits, prediction.region, mask_hw)
        mask = prediction.slice_mask(state.object_id, step.n, mask_hw, kept, prompted=False)
        state.set_mask(replace(mask, agreement=agreed), prediction.region)

    def pass_final(self, state: ObjectState, step: Step, run: Run, zoom: Zoom | None) -> None:
        """Remember a frozen mask as if it had been predicted, so that tracking goes on from it."""
        mask_hw = state.masks[step.n].mask_hw
        box = Box.of_mask(mask_hw)
        region = Region.whole(mask_hw.shape)
        if zoom is not None and self._encoder.source.ordered:
            region = run.region or self._start_region(state, step, zoom)
            if box is not None and not region.holds(box):
                region = zoom.around(box)
        elif zoom is not None and box is not None:
            region = zoom.around(box)
        features = self._encoder.features(step.n, region)
        prediction = self._heads.take_mask(features, mask_hw, region)
        run.region = region if zoom is None else zoom.follow(region, box)
        run.absent_for = run.absent_for + 1 if box is None else 0
        self._remember(state, step, features, features.coarse, prediction)

    def _predict(
        self,
        state: ObjectState,
        step: Step,
        run: Run,
        region: Region,
        memories: dict[int, SliceMemory],
        guess: Guess | None = None,
    ) -> tuple[SliceFeatures, torch.Tensor, Prediction]:
        heads, source, recipe = self._heads, self._encoder.source, self._encoder.model.recipe
        ahead, prediction = run.ahead, None
        if ahead is not None and ahead.inputs.are_those_of(self._inputs(state, step, region, memories)):
            observed, prediction = ahead.observed, ahead.prediction
        else:
            observed = self._observe(state, step, region, memories)
        if prediction is None:
            canvas, tokens = observed.canvas, None
            if guess is not None:
                whole = Region.whole(source.shape_of(step.n))
                canvas = heads.carried(moved_logits(guess.logits, whole, region))
                # A model that never saw a rough mask takes a box.
                tokens = None if canvas is not None else self._box_tokens(guess.box, region)
            prediction = heads.decode(
                observed.features, observed.attended, region, tokens=tokens, canvas=canvas
            )
        features, attended = observed.features, observed.attended
        if guess is not None:  # these limits were calibrated on neighbouring slices
            return features, attended, prediction
        # What is predicted absent anyway keeps its object score.
        is_unlikely = float(prediction.object_score) < recipe.least_score and not prediction.is_absent
        if (
            prediction.predicted_iou < recipe.least_iou
            or is_unlikely
            or self._looks_absent(state, step, prediction)
        ):
            prediction = prediction.as_absent()
        return features, attended, prediction

    def _observe(
        self, state: ObjectState, step: Step, region: Region, memories: dict[int, SliceMemory]
    ) -> _Observed:
        """Encode a region of a slice, and let it attend to the object's memories."""
        encoder, source = self._encoder, self._encoder.source
        features = encoder.features(step.n, region)
        query = Query(step.n, len(source), step.reverse, source.ordered, features.coarse)
        read = state.banks[step.reverse].read(query, memories)
        attended = self._heads.with_memory(features, encoder.position(), read, len(source))
        canvas = None
        if source.ordered and encoder.model.recipe.carries_mask:
            canvas = self._heads.carried(moved_logits(*self._previous(state, step), region))
        return _Observed(features, attended, canvas)

    def _inputs(
        self, state: ObjectState, step: Step, region: Region, memories: dict[int, SliceMemory]
    ) -> _Inputs:
        known: list[object] = [*memories.values(), *state.banks[step.reverse].memories()]
        before = step.n + 1 if step.reverse else step.n - 1
        kept = state.kept_logits(before)
        known += [state.masks.get(before), None if kept is None else kept[0]]
        return _Inputs(step, region, tuple(known))

    def _region(self, state: ObjectState, step: Step, run: Run, zoom: Zoom | None) -> Region:
        """Return the region in which an object is looked for first."""
        if zoom is None:
            return Region.whole(self._encoder.source.shape_of(step.n))
        return run.region or self._start_region(state, step, zoom)

    def _looks_absent(self, state: ObjectState, step: Step, prediction: Prediction) -> bool:
        """Return whether the image says that the object has ended."""
        weights, source = self._encoder.model.recipe.presence, self._encoder.source
        if not weights or not source.ordered or step.seed is None:
            return False
        given = state.conditioning[step.seed]
        if given.appearance is None:
            seen = given.prediction
            given.appearance = Appearance.of(source.image(step.seed), seen.region, seen.logits)
        here = Appearance.of(source.image(step.n), prediction.region, prediction.logits)
        if given.appearance is None or here is None:
            return False
        return float(np.dot(weights, evidence(given.appearance, here, prediction.predicted_iou))) < 0

    def _previous(self, state: ObjectState, step: Step) -> tuple[torch.Tensor, Region]:
        """Return the logits of the slice this one is reached from; of the seed when nothing is known
        there."""
        before = step.n + 1 if step.reverse else step.n - 1
        side, device = self._heads.mask_side, self._encoder.model.device
        assert step.seed is not None  # without a seed nothing is tracked
        known = state.logits_of(before, side, device) or state.logits_of(step.seed, side, device)
        assert known is not None  # a seed is a conditioning slice
        return known

    def _start_region(self, state: ObjectState, step: Step, zoom: Zoom | None) -> Region:
        if zoom is None:
            return Region.whole(self._encoder.source.shape_of(step.n))
        before = step.n + 1 if step.reverse else step.n - 1
        n = before if before in state.masks or step.seed is None else step.seed
        return zoom.follow(state.regions[n], Box.of_mask(state.masks[n].mask_hw))

    def _box_tokens(self, box: Box, region: Region) -> Tokens:
        corners = np.array([box.x0, box.y0, box.x1, box.y1], np.float32) - 0.5
        prompt = PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), corners)
        model = self._encoder.model
        return Tokens.of(prompt, region, model.image_size, model.device)

    def _conditioning(self, state: ObjectState, step: Step) -> dict[int, SliceMemory]:
        """Return the memories of prompted slices, ascending, or of images by their similarity to the step's;
        those not encoded yet are, now.

        Unless corrections of tracked slices are to be remembered everywhere, they are only on the slices
        tracked from them: a small model loses an object between a poor mask and a good one.
        """
        source, numbers = self._encoder.source, sorted(state.conditioning)
        if not source.ordered:
            numbers = by_similarity(cast("UnorderedSource", source), numbers, [step.n])
        elif not self._remembers_corrections:
            known = state.conditioning
            numbers = [m for m in numbers if m == step.seed or not known[m].is_correction]
        for m in numbers:
            given = state.conditioning[m]
            if not given.is_remembered:
                features = self._encoder.features(m, given.prediction.region)
                given.memory = self._heads.remember(m, features, given.prediction, prompted=True)
                given.is_remembered = True
        memories = {m: state.conditioning[m].memory for m in numbers}
        return {n: memory for n, memory in memories.items() if memory is not None}

    def _remember(
        self,
        state: ObjectState,
        step: Step,
        features: SliceFeatures,
        attended: torch.Tensor,
        prediction: Prediction,
    ) -> None:
        kept = {Embedding.IMAGE: features.coarse, Embedding.ATTENDED: attended}.get(self._policy.embedding)
        memory = self._heads.remember(step.n, features, prediction, prompted=False, embedding=kept)
        state.banks[step.reverse].add(memory)
        state.remember_logits(step.n, prediction.logits, prediction.region)
        state.tracked[step.n] = step.reverse
