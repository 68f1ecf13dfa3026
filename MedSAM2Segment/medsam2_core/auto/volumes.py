"""A whole volume, no prompt: what the predictor finds slice by slice becomes one object in 3-D.

Slices the model is sure of become conditioning slices, as if a user had prompted them; the tracker fills in
what lies between, with memory. Slice by slice alone is kept as a choice, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.segmenting import AutoSegmenter, ClassFound, SliceFound
from medsam2_core.engine.propagation import Propagation
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import Cancelled, Interrupted, PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import PixelPrompts


class Method(str, Enum):
    """How slices become a volume."""

    MEMORY = "memory"
    SLICES = "slices"


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume is gone through.

    Attributes
    ----------
    method
        ``memory`` or ``slices``; the latter also where the model's SAM 2 has no trained memory.
    every
        The predictor looks at every so manieth slice; between them only the tracker does.
    apart
        Conditioning slices of a class lie at least so many slices from each other.
    share
        A slice conditions others only if the model is at least so sure of it, as a share of the surest.
    margin
        Slices the tracker may go beyond the outermost on which the predictor sees the class.
    """

    method: Method = Method.MEMORY
    every: int = 1
    apart: int = 4
    share: float = 0.7
    margin: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", Method(self.method))
        if self.every < 1 or self.apart < 1 or self.margin < 0 or not 0 <= self.share <= 1:
            raise PromptError(
                f"every {self.every}, apart {self.apart}, share {self.share}: use 1 or more, "
                "and a share of 0 to 1"
            )


@dataclass
class ClassInVolume:
    """One class through a volume.

    Attributes
    ----------
    number
        Of the class, from 0.
    slices
        What is on each slice.
    boxes
        Conditioning slices, with the box (xyxy, slice pixels) that was predicted there; None without one.
    """

    number: int
    slices: dict[int, SliceMask] = field(default_factory=dict)
    boxes: dict[int, tuple[float, float, float, float] | None] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """Mean quality of the slices it is on, weighted by area; 0 when it is on none."""
        areas = {n: int(one.mask_hw.sum()) for n, one in self.slices.items()}
        total = sum(areas.values())
        return sum(self.slices[n].predicted_iou * area for n, area in areas.items()) / total if total else 0.0


#: Class number, slice, and what is there now.
Change = tuple[int, int, SliceMask]
Step = Callable[[], list[Change]]


class Steps(Iterator[Change]):
    """Takes steps, each of which may find several things and add further steps.

    Not a generator, because that would be over after the first exception: a step that is interrupted is taken
    again.

    Parameters
    ----------
    todo
        What to do, in order; what is interrupted must have changed nothing.
    should_cancel
        Asked before every step.
    """

    def __init__(self, todo: Iterable[Step], should_cancel: Callable[[], bool]) -> None:
        self.should_cancel = should_cancel
        self._todo: deque[Step] = deque(todo)
        self._found: deque[Change] = deque()

    def add(self, step: Step) -> None:
        """Take a step after all others."""
        self._todo.append(step)

    def next(self, step: Step) -> None:
        """Take a step before all others."""
        self._todo.appendleft(step)

    def __next__(self) -> Change:
        while not self._found:
            if not self._todo:
                raise StopIteration
            step = self._todo.popleft()
            try:
                if self.should_cancel():
                    raise Cancelled("stopped")
                self._found.extend(step())
            except Interrupted:
                self._todo.appendleft(step)
                raise
            except BaseException:
                self._todo.clear()
                raise
        return self._found.popleft()


class AutoVolume:
    """Goes through the slices of a source.

    Parameters
    ----------
    segmenter
        Asks the Auto model.
    tracker
        Of the same SAM 2 and the same slices; only used, never kept.
    options
        See :class:`VolumeOptions`.
    """

    def __init__(self, segmenter: AutoSegmenter, tracker: Tracker, options: VolumeOptions) -> None:
        self._segmenter, self._tracker, self._options = segmenter, tracker, options
        self.found: dict[int, ClassInVolume] = {n: ClassInVolume(n) for n in segmenter.wanted}
        self.done = self.total = 0

    def run(
        self,
        first: int | None = None,
        last: int | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, int, SliceMask]]:
        """(class number, slice, what is there) as it becomes known; a later one replaces an earlier.

        Slices from `first` to `last`, inclusive. When it is over, :attr:`found` holds all. Asking for the
        next one may raise :class:`~medsam2_core.errors.Interrupted`: ask again, and it goes on where it was.

        Raises
        ------
        PromptError
            An impossible range; at once.
        Cancelled
            While iterating.
        """
        count = len(self._segmenter.source)
        first, last = first or 0, count - 1 if last is None else last
        if not 0 <= first <= last < count:
            raise PromptError(f"slices {first} to {last} cannot be segmented: there are 0 to {count - 1}")
        can_track = self._segmenter.auto.card.can_track
        tracks = self._options.method is Method.MEMORY and last > first and can_track
        # Without the tracker nothing would fill in what is left out.
        looked = list(range(first, last + 1, self._options.every if tracks else 1))
        self.total = len(looked) * (2 if tracks else 1)
        seen: dict[int, SliceFound] = {}
        steps = Steps([partial(self._look, n, seen) for n in looked], should_cancel)
        steps.add(partial(self._choose, seen))
        if tracks:
            steps.add(partial(self._plan, steps, seen, first, last))
        return steps

    def _look(self, n: int, seen: dict[int, SliceFound]) -> list[Change]:
        """What the predictor finds on a slice."""
        seen[n] = self._segmenter.segment(n)
        self.done += 1
        return [
            (one.number, n, self._put(one.number, n, one.slice_mask(self._name(one.number), n)))
            for one in seen[n].classes
        ]

    def _choose(self, seen: Mapping[int, SliceFound]) -> list[Change]:
        for number, one in self.found.items():
            of_class = {n: _of(found, number) for n, found in seen.items()}
            chosen = conditioning(of_class, self._options)
            one.boxes = {n: of_class[n].box_xyxy for n in chosen}
        return []

    def _plan(self, steps: Steps, seen: Mapping[int, SliceFound], first: int, last: int) -> list[Change]:
        """Fill in between conditioning slices."""
        todo = {number: one for number, one in self.found.items() if one.boxes}
        for number, one in todo.items():
            for n, box in one.boxes.items():
                steps.add(partial(self._condition, number, n, box))
        planned = {number: self._extent(one, first, last) for number, one in todo.items()}
        self.total = self.done + sum(high - low + 1 for low, high in planned.values())
        for number, (low, high) in planned.items():
            steps.add(partial(self._set_out, steps, number, low, high))
        steps.add(lambda: list(self._settled(seen)))
        return []

    def _condition(self, number: int, n: int, box: tuple[float, float, float, float] | None) -> list[Change]:
        self._tracker.accept(str(number), n, _said(box), self.found[number].slices[n])
        return []

    def _set_out(self, steps: Steps, number: int, low: int, high: int) -> list[Change]:
        """Take back stray finds beyond the object, then follow it."""
        beyond = {n: found for n, found in self.found[number].slices.items() if not low <= n <= high}
        progress = self._tracker.propagate([str(number)], low, high, should_cancel=steps.should_cancel)
        steps.next(partial(self._follow, steps, number, progress, self.done))
        return [
            (number, n, self._put(number, n, _nothing(found)))
            for n, found in beyond.items()
            if found.mask_hw.any()
        ]

    def _follow(self, steps: Steps, number: int, progress: Propagation, before: int) -> list[Change]:
        """One more slice of a class."""
        result = next(progress, None)
        if result is None:
            self.done = before + progress.total
            self._tracker.remove_object(str(number))
            return []
        self.done = before + progress.done
        steps.next(partial(self._follow, steps, number, progress, before))
        found = replace(result, object=self._name(number), prompted=False)
        return [(number, result.n, self._put(number, result.n, found))]

    def _extent(self, one: ClassInVolume, first: int, last: int) -> tuple[int, int]:
        """The slices a class is tracked through: those around its conditioning slices on which the predictor
        sees it without a gap, and a margin."""
        present = {n for n, found in one.slices.items() if found.mask_hw.any()}
        gap = self._options.margin + self._options.every
        low, high = min(one.boxes), max(one.boxes)
        for n in sorted((n for n in present if n < low), reverse=True):
            if low - n <= gap:
                low = n
        for n in sorted(n for n in present if n > high):
            if n - high <= gap:
                high = n
        return max(first, low - self._options.margin), min(last, high + self._options.margin)

    def _settled(self, seen: Mapping[int, SliceFound]) -> Iterator[Change]:
        """Give every pixel that two classes claim to one of them."""
        slices = sorted({n for one in self.found.values() for n in one.slices})
        for n in slices:
            claims = [number for number, one in self.found.items() if n in one.slices]
            if len(claims) < 2:
                continue
            masks = np.stack([self.found[number].slices[n].mask_hw for number in claims])
            if not (masks.sum(0) > 1).any():
                continue
            winner = _winners(
                masks, [self.found[number].slices[n].predicted_iou for number in claims], seen.get(n), claims
            )
            for row, number in enumerate(claims):
                before = self.found[number].slices[n]
                mask = masks[row] & (winner == row)
                if (mask != before.mask_hw).any():
                    kept = before.probabilities
                    kept = None if kept is None else kept.agreeing(mask)
                    yield number, n, self._put(number, n, before.with_mask(mask, probabilities=kept))

    def _name(self, number: int) -> str:
        return self._segmenter.auto.card.class_names[number]

    def _put(self, number: int, n: int, found: SliceMask) -> SliceMask:
        self.found[number].slices[n] = found
        return found


def conditioning(slices: Mapping[int, ClassFound], options: VolumeOptions) -> list[int]:
    """Slices of one class that shall condition the others: sure ones, spread over the object."""
    worth = {
        n: one.confidence * float(np.sqrt(one.mask_hw.sum()))
        for n, one in slices.items()
        if one.mask_hw.any() and one.score > 0
    }
    if not worth:
        return []
    surest = max(slices[n].confidence for n in worth)
    chosen: list[int] = []
    for n in sorted(worth, key=lambda n: (-worth[n], n)):
        is_sure = slices[n].confidence >= options.share * surest
        if is_sure and all(abs(n - m) >= options.apart for m in chosen):
            chosen.append(n)
    return sorted(chosen or [max(worth, key=lambda n: worth[n])])


def _winners(
    masks: NDArray[np.bool_], sure: list[float], seen: SliceFound | None, claims: list[int]
) -> NDArray[np.intp]:
    """(H, W) row of the class each pixel goes to: the predictor's own, else the surer one."""
    rank = np.array(sure)[:, None, None] * masks
    if seen is not None:
        for row, number in enumerate(claims):
            rank[row] += 2.0 * (_of(seen, number).mask_hw & masks[row])
    return rank.argmax(0)


def _of(found: SliceFound, number: int) -> ClassFound:
    return next(one for one in found.classes if one.number == number)


def _said(box: tuple[float, float, float, float] | None) -> PixelPrompts:
    corners = None if box is None else np.array(box, dtype=np.float32)
    return PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), box_xyxy=corners)


def _nothing(found: SliceMask) -> SliceMask:
    empty = np.zeros(found.shape_hw, bool)
    return found.with_mask(empty, object_score=-1.0, probabilities=None)
