"""From the prompts of one slice to a prediction: tokens, feedback, and the region the model sees."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from medsam2_core.engine.correcting import kept
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads, Tokens
from medsam2_core.engine.maps import logits_of_mask, mask_of_logits, mixed_logits, moved_logits
from medsam2_core.engine.memory import Query, SliceMemory
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.recipe import box_prior_weight
from medsam2_core.engine.states import ObjectState, Prediction
from medsam2_core.engine.zoom import Box, Region, Zoom
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slice_mask import check_shape

if TYPE_CHECKING:
    from medsam2_core.prompts.types import PixelPrompts

# Predict again at another scale only if the region really changes, and only so often.
_WORTH_ZOOMING = 0.75
_MOST_RESCALINGS = 2
# A correction whose predicted IoU is higher by this much is a better answer to the whole prompt.
_MUCH_SURER = 0.2
# Sides of further regions for a first click, as shares of the slice's longer side.
_OTHER_SHARES = (0.25, 1.0)


def only_mask(prompt: "PixelPrompts") -> bool:
    """Return whether a prompt is a mask and nothing to correct it."""
    return prompt.mask_hw is not None and prompt.box_xyxy is None and len(prompt.labels) == 0


def extends(new: "PixelPrompts", old: "PixelPrompts") -> bool:
    """Return whether a prompt begins with all of an earlier one, and perhaps has more points."""

    def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
        return a is b is None or (a is not None and b is not None and np.array_equal(a, b))

    count = len(old.labels)
    return (
        same(new.box_xyxy, old.box_xyxy)
        and same(new.mask_hw, old.mask_hw)
        and np.array_equal(new.labels[:count], old.labels)
        and np.array_equal(new.points_xy[:count], old.points_xy)
    )


def check_prompt(n: int, prompt: "PixelPrompts", shape_hw: tuple[int, int]) -> None:
    """Raise PromptError for an empty prompt, or a mask that does not have the slice's shape."""
    if prompt.mask_hw is None and prompt.box_xyxy is None and len(prompt.labels) == 0:
        message = f"the prompt on slice {n} is empty: give a point, a box or a mask"
        raise PromptError(message, code="no-prompts", n=n)
    if prompt.mask_hw is not None:
        check_shape(n, prompt.mask_hw.shape, shape_hw)


class Prompter:
    """Predicts masks of prompted slices."""

    def __init__(self, encoder: SliceEncoder, heads: Heads, options: TrackerOptions) -> None:
        self._encoder, self._heads, self._options = encoder, heads, options

    def predict(
        self,
        state: ObjectState,
        n: int,
        prompt: "PixelPrompts",
        zoom: Zoom | None,
        looks_around: bool = True,
        is_part: bool = False,
    ) -> Prediction:
        """Predict the object on slice `n`; with `zoom` None from the whole slice.

        `looks_around`: on a slice without a mask, the region of a click depends on where the object is on
        other slices. `is_part`: more prompts follow at once.
        """
        if prompt.mask_hw is not None and only_mask(prompt):
            region = self.region_of_mask(state, n, prompt.mask_hw, zoom)
            return self._heads.take_mask(self._encoder.features(n, region), prompt.mask_hw, region)
        previous = self._feedback(state, n, prompt)
        if zoom is None:
            whole = Region.whole(self._encoder.source.shape_of(n))
            return self._predict_in(state, n, prompt, whole, previous)
        nearby = _seen_nearby(state, n) if looks_around else None
        if previous is not None:
            region = self._first_region(prompt, previous, zoom, nearby)
            prediction = self._predict_at_best_scale(state, n, prompt, previous, zoom, region)
            return self._localised(state, n, prompt, previous, prediction, is_part)
        return self._predict_first(state, n, prompt, zoom, nearby)

    def _localised(
        self,
        state: ObjectState,
        n: int,
        prompt: "PixelPrompts",
        previous: tuple[torch.Tensor, Region],
        answer: Prediction,
        is_part: bool,
    ) -> Prediction:
        """Return the answer to a correction without the changes that its new clicks are not about."""
        given = state.conditioning.get(n)
        earlier = None if given is None else given.prompt
        new = slice(0 if earlier is None or not extends(prompt, earlier) else len(earlier.labels), None)
        if not self._encoder.model.recipe.draws_prompts or not len(prompt.labels[new]):
            return answer
        shape_hw = self._encoder.source.shape_of(n)
        before, after = (
            mask_of_logits(logits, region, shape_hw)
            for logits, region in (previous, (answer.logits, answer.region))
        )
        may_vanish = prompt.box_xyxy is None and not bool((prompt.labels == 1).any())
        is_drawn = prompt.box_xyxy is not None or prompt.mask_hw is not None
        is_surer = given is not None and answer.predicted_iou > given.prediction.predicted_iou + _MUCH_SURER
        mask_hw = kept(
            before,
            after,
            np.asarray(prompt.points_xy).reshape(-1, 2)[new],
            np.asarray(prompt.labels[new]) == 1,
            is_local=is_drawn and not is_surer,
            may_vanish=may_vanish,
            may_end=may_vanish and len(prompt.labels) == 1 and not is_part and self._is_near_end(state, n),
        )
        if np.array_equal(mask_hw, after):
            return answer
        if not mask_hw.any():
            return answer.as_absent()
        if 2 * (mask_hw & after).sum() < (mask_hw | after).sum():  # what was answered was another object
            features = self._encoder.features(n, answer.region)
            taken = self._heads.take_mask(features, mask_hw, answer.region)
            return replace(taken, predicted_iou=answer.predicted_iou)
        old = self._moved(previous, answer.region)
        return replace(answer, logits=mixed_logits(answer.logits, old, answer.region, after, mask_hw))

    def _is_near_end(self, state: ObjectState, n: int) -> bool:
        source = self._encoder.source
        return source.ordered and state.is_near_end(n, len(source))

    def _moved(self, previous: tuple[torch.Tensor, Region], region: Region) -> torch.Tensor:
        """Return logits of the decoder's size over another region."""
        logits, size = moved_logits(*previous, region), (self._heads.mask_side, self._heads.mask_side)
        if logits.shape[-2:] == size:
            return logits
        return torch.nn.functional.interpolate(
            logits, size=size, mode="bilinear", align_corners=False, antialias=True
        )

    def _predict_first(
        self, state: ObjectState, n: int, prompt: "PixelPrompts", zoom: Zoom, nearby: Region | None
    ) -> Prediction:
        """Predict a first prompt.

        Clicks alone do not determine the object's size: of the predictions in several regions, the one of the
        highest predicted IoU counts.
        """
        region = self._first_region(prompt, None, zoom, nearby)
        size_is_known = prompt.box_xyxy is not None or prompt.mask_hw is not None or nearby is not None
        if size_is_known or not self._encoder.model.recipe.draws_prompts:
            return self._predict_at_best_scale(state, n, prompt, None, zoom, region)
        points = np.asarray(prompt.points_xy).reshape(-1, 2)
        regions = dict.fromkeys([region, *(zoom.first(points, share) for share in _OTHER_SHARES)])
        first = max((self._predict_in(state, n, prompt, one, None) for one in regions), key=_sureness)
        return self._predict_at_best_scale(state, n, prompt, None, zoom, first.region, first)

    def region_of_mask(self, state: ObjectState, n: int, mask_hw: np.ndarray, zoom: Zoom | None) -> Region:
        """Return the region for a mask; for an empty one, that of the nearest prompted slice."""
        if zoom is None:
            return Region.whole(self._encoder.source.shape_of(n))
        box = Box.of_mask(np.asarray(mask_hw, dtype=bool))
        if box is not None:
            return zoom.around(box)
        nearest = min(state.conditioning, key=lambda m: abs(m - n), default=None)
        if nearest is None or not self._encoder.source.ordered:
            return Region.whole(self._encoder.source.shape_of(n))
        return state.conditioning[nearest].prediction.region

    def _feedback(
        self, state: ObjectState, n: int, prompt: "PixelPrompts"
    ) -> tuple[torch.Tensor, Region] | None:
        """Return the logits to be fed back with a prompt, and their region."""
        model, always = self._encoder.model, self._options.feeds_back_always
        given = state.conditioning.get(n)
        known = state.logits_of(n, self._heads.mask_side, model.device)
        if given is not None and (always or (given.prompt is not None and extends(prompt, given.prompt))):
            pass
        elif prompt.mask_hw is not None:
            region = Region.whole(self._encoder.source.shape_of(n))
            mask = logits_of_mask(prompt.mask_hw, region, 4 * self._heads.mask_side, model.device)
            return mask, region
        elif not always and (given is not None or prompt.box_xyxy is not None):
            return None
        if known is None or always:
            return known
        nothing_there = not bool((known[0] > 0).any())
        return None if nothing_there and np.any(prompt.labels == 1) else known

    def _predict_in(
        self,
        state: ObjectState,
        n: int,
        prompt: "PixelPrompts",
        region: Region,
        previous: tuple[torch.Tensor, Region] | None,
    ) -> Prediction:
        heads, model = self._heads, self._encoder.model
        features = self._encoder.features(n, region)
        tokens = Tokens.of(prompt, region, model.image_size, model.device)
        logits = None
        if previous is not None:
            logits = self._moved(previous, region)
        memories = self._memories(state, n)
        if memories:
            read = state.banks[state.tracked[n]].read(self._query(n, state, features.coarse), memories)
            conditioned = heads.with_memory(
                features, self._encoder.position(), read, len(self._encoder.source)
            )
        else:
            conditioned = heads.without_memory(features, self._encoder.position())
        canvas = heads.canvas(tokens, logits)
        answer = heads.decode(features, conditioned, region, tokens=tokens, canvas=canvas, first=not memories)
        if canvas is None or prompt.box_xyxy is None:
            return answer
        weight = box_prior_weight(model.recipe, answer.predicted_iou, len(prompt.labels))
        return replace(answer, logits=answer.logits + weight * canvas) if weight else answer

    def _memories(self, state: ObjectState, n: int) -> Mapping[int, SliceMemory]:
        """Return the memories for a prompt on slice `n`: none unless tracking has been there, as in stock."""
        if n not in state.tracked:
            return {}
        return {
            m: given.memory
            for m, given in state.conditioning.items()
            # A correction is encoded anew only where it leads, and what it was before is no longer true.
            if given.memory is not None and (given.is_remembered or not given.is_correction)
        }

    def _query(self, n: int, state: ObjectState, embedding: torch.Tensor) -> Query:
        source = self._encoder.source
        return Query(n, len(source), state.tracked[n], source.ordered, embedding)

    def _predict_at_best_scale(
        self,
        state: ObjectState,
        n: int,
        prompt: "PixelPrompts",
        previous: tuple[torch.Tensor, Region] | None,
        zoom: Zoom,
        region: Region,
        best: Prediction | None = None,
    ) -> Prediction:
        """Predict in a first region, then in a larger one where the mask reaches its border, or in a closer
        one where only clicks were given. A further one counts only if its predicted IoU is not lower.
        `best` is the prediction in the first region, if it is known."""
        best = best or self._predict_in(state, n, prompt, region, previous)
        only_clicks = prompt.box_xyxy is None and previous is None
        for _ in range(_MOST_RESCALINGS):
            box = Box.of_mask(mask_of_logits(best.logits, best.region, zoom.shape_hw))
            if box is None:
                return best
            box = box.union(Box.of_points(prompt.points_xy))
            if zoom.is_cut(best.region, box):
                region, fed = zoom.grown(best.region, box), previous
            elif only_clicks:
                region, fed = zoom.around(box), (best.logits, best.region)
                if zoom.side_mm(region) > _WORTH_ZOOMING * zoom.side_mm(best.region):
                    return best
            else:
                return best
            if region == best.region:
                return best
            again = self._predict_in(state, n, prompt, region, fed)
            if again.is_absent or again.predicted_iou < best.predicted_iou:
                return best
            best = again
        return best

    def _first_region(
        self,
        prompt: "PixelPrompts",
        previous: tuple[torch.Tensor, Region] | None,
        zoom: Zoom,
        nearby: Region | None,
    ) -> Region:
        """Return the first region to predict in; `nearby` is that of the nearest other slice with the
        object."""
        clicks = Box.of_points(np.asarray(prompt.points_xy).reshape(-1, 2))
        if prompt.box_xyxy is not None:
            box = Box.of_prompt(prompt.box_xyxy)
            region = zoom.around(box)
            return region if clicks is None or region.holds(clicks) else zoom.around(box.union(clicks))
        drawn = None if prompt.mask_hw is None else Box.of_mask(np.asarray(prompt.mask_hw, dtype=bool))
        if drawn is not None:
            return zoom.around(drawn.union(clicks))
        if previous is None and clicks is not None and nearby is not None:
            # The object was lost here, but its size is known.
            return zoom.around(clicks, at_least=zoom.side_mm(nearby))
        if previous is None:
            return zoom.first(np.asarray(prompt.points_xy).reshape(-1, 2))
        region = previous[1]
        if clicks is None or region.holds(clicks):
            return region
        seen = Box.of_mask(mask_of_logits(*previous, zoom.shape_hw))
        return zoom.around(clicks.union(seen))


def _sureness(prediction: Prediction) -> float:
    """Return the predicted IoU of a first prediction; -1 where it found nothing."""
    return -1.0 if prediction.is_absent else prediction.predicted_iou


def _seen_nearby(state: ObjectState, n: int) -> Region | None:
    """Return the region of the nearest slice the object is on; None when it has not been seen yet."""
    seen = [m for m, mask in state.masks.items() if m != n and not mask.is_empty]
    return state.regions[min(seen, key=lambda m: abs(m - n))] if seen else None
