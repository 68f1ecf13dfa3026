"""Segment volumes without prompts: predictions on slices, then propagation from the most confident ones.

Slices of high confidence become conditioning slices, as if a user had prompted them; the tracker propagates
their masks to the other slices with its memory bank. Or every slice is segmented on its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.slices import AutoSegmenter, ClassPrediction, SlicePrediction
from medsam2_core.engine.propagation import Propagation
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import Cancelled, Interrupted, PromptError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts.types import PixelPrompts

# Of conditioning slices of a class: least distance in slices, least confidence as a share of the highest.
APART, _SHARE = 4, 0.7
_MARGIN = 2  # slices that propagation goes beyond the outermost slice on which the class is predicted


class Method(str, Enum):
    """How a volume is segmented: with propagation, or slice by slice."""

    MEMORY = "memory"
    SLICES = "slices"


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume is segmented.

    Attributes
    ----------
    method
        ``memory``: propagate from the most confident slices; ``slices``: each slice on its own, also used if
        the memory of the SAM 2 is not trained.
    every
        Prompts are predicted on every n-th slice; the others are reached by propagation only.
    """

    method: Method = Method.MEMORY
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", Method(self.method))
        if self.every < 1:
            raise PromptError(f"every {self.every}: use 1 or more", code="bad-volume-options")


@dataclass
class ClassVolume:
    """Result of one class in a volume.

    Attributes
    ----------
    boxes
        Conditioning slices, each with the predicted box (xyxy, slice pixels) or None.
    """

    number: int
    slices: dict[int, SliceMask] = field(default_factory=dict)
    boxes: dict[int, tuple[float, float, float, float] | None] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """Mean predicted IoU over the slices, weighted by area; 0 for an empty class."""
        areas = {n: int(one.mask_hw.sum()) for n, one in self.slices.items()}
        total = sum(areas.values())
        return sum(self.slices[n].predicted_iou * area for n, area in areas.items()) / total if total else 0.0


Task = Callable[[], Iterable[SliceMask]]


class TaskQueue(Iterator[SliceMask]):
    """Runs tasks in order and yields the masks they change; a task may add further tasks.

    Unlike a generator it can be continued after an exception: a task that raises
    :class:`~medsam2_core.errors.Interrupted` runs again.

    Parameters
    ----------
    tasks
        The tasks; one that is interrupted must have changed nothing.
    """

    def __init__(self, tasks: Iterable[Task], should_cancel: Callable[[], bool]) -> None:
        self.should_cancel = should_cancel
        self._tasks: deque[Task] = deque(tasks)
        self._changes: deque[SliceMask] = deque()

    def add(self, task: Task) -> None:
        """Add a task behind all others."""
        self._tasks.append(task)

    def add_next(self, task: Task) -> None:
        """Add a task before all others."""
        self._tasks.appendleft(task)

    def __next__(self) -> SliceMask:
        while not self._changes:
            if not self._tasks:
                raise StopIteration
            task = self._tasks.popleft()
            try:
                if self.should_cancel():
                    raise Cancelled("stopped")
                self._changes.extend(task())
            except Interrupted:
                self._tasks.appendleft(task)
                raise
            except BaseException:
                self._tasks.clear()
                raise
        return self._changes.popleft()


class AutoVolume:
    """Segments the slices of a volume.

    Parameters
    ----------
    tracker
        Tracker of the same SAM 2 and the same slices, used for this only.

    Attributes
    ----------
    classes
        Results by class number; complete when :meth:`run` is exhausted.
    done, total
        Slices processed, and to process as far as is known.
    """

    def __init__(self, segmenter: AutoSegmenter, tracker: Tracker, options: VolumeOptions) -> None:
        self._segmenter, self._tracker, self._options = segmenter, tracker, options
        self.classes: dict[int, ClassVolume] = {n: ClassVolume(n) for n in segmenter.class_numbers}
        self.done = self.total = 0

    def run(
        self,
        first: int | None = None,
        last: int | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[SliceMask]:
        """Segment slices `first` to `last`, inclusive; yield masks as they become known.

        A later mask replaces an earlier one of the same class and slice. ``next`` may raise
        :class:`~medsam2_core.errors.Interrupted`; call it again to continue.

        Raises
        ------
        PromptError
            At once, code ``bad-slice-range``.
        """
        count = len(self._segmenter.source)
        first, last = first or 0, count - 1 if last is None else last
        if not 0 <= first <= last < count:
            message = f"slices {first} to {last} cannot be segmented: there are 0 to {count - 1}"
            raise PromptError(message, code="bad-slice-range", first=first, last=last, slices=count)
        can_track = self._segmenter.auto.card.can_track
        tracks = self._options.method is Method.MEMORY and last > first and can_track
        # Slices in between are reached by propagation only.
        predicted = list(range(first, last + 1, self._options.every if tracks else 1))
        self.total = len(predicted) * (2 if tracks else 1)
        predictions: dict[int, SlicePrediction] = {}
        tasks = TaskQueue([partial(self._predict, n, predictions) for n in predicted], should_cancel)
        tasks.add(partial(self._choose_conditioning, predictions))
        if tracks:
            tasks.add(partial(self._add_propagation, tasks, predictions, first, last))
        return tasks

    def _predict(self, n: int, predictions: dict[int, SlicePrediction]) -> list[SliceMask]:
        predictions[n] = self._segmenter.segment(n)
        self.done += 1
        return [
            self._store(one.number, one.slice_mask(self._name(one.number), n))
            for one in predictions[n].classes
        ]

    def _choose_conditioning(self, predictions: Mapping[int, SlicePrediction]) -> list[SliceMask]:
        for number, one in self.classes.items():
            of_class = {n: _of_class(found, number) for n, found in predictions.items()}
            chosen = conditioning(of_class)
            one.boxes = {n: of_class[n].box_xyxy for n in chosen}
        return []

    def _add_propagation(
        self, tasks: TaskQueue, predictions: Mapping[int, SlicePrediction], first: int, last: int
    ) -> list[SliceMask]:
        todo = {number: one for number, one in self.classes.items() if one.boxes}
        for number, one in todo.items():
            for n, box in one.boxes.items():
                tasks.add(partial(self._condition, number, n, box))
        planned = {number: self._extent(one, first, last) for number, one in todo.items()}
        self.total = self.done + sum(high - low + 1 for low, high in planned.values())
        for number, (low, high) in planned.items():
            tasks.add(partial(self._start_propagation, tasks, number, low, high))
        tasks.add(lambda: list(self._resolve_overlaps(predictions)))
        return []

    def _condition(
        self, number: int, n: int, box: tuple[float, float, float, float] | None
    ) -> list[SliceMask]:
        self._tracker.accept(str(number), n, _box_prompt(box), self.classes[number].slices[n])
        return []

    def _start_propagation(self, tasks: TaskQueue, number: int, low: int, high: int) -> list[SliceMask]:
        """Clear the class beyond its extent, then start to propagate."""
        beyond = [found for n, found in self.classes[number].slices.items() if not low <= n <= high]
        progress = self._tracker.propagate([str(number)], low, high, should_cancel=tasks.should_cancel)
        tasks.add_next(partial(self._propagate_one, tasks, number, progress, self.done))
        return [self._store(number, _cleared(found)) for found in beyond if found.mask_hw.any()]

    def _propagate_one(
        self, tasks: TaskQueue, number: int, progress: Propagation, before: int
    ) -> list[SliceMask]:
        result = next(progress, None)
        if result is None:
            self.done = before + progress.total
            self._tracker.remove_object(str(number))
            return []
        self.done = before + progress.done
        tasks.add_next(partial(self._propagate_one, tasks, number, progress, before))
        return [self._store(number, replace(result, object=self._name(number), prompted=False))]

    def _extent(self, one: ClassVolume, first: int, last: int) -> tuple[int, int]:
        """Return the first and last slice to propagate to.

        These are the slices around the conditioning slices on which the class is predicted without a gap, and
        a margin.
        """
        present = {n for n, found in one.slices.items() if found.mask_hw.any()}
        gap = _MARGIN + self._options.every
        low, high = min(one.boxes), max(one.boxes)
        for n in sorted((n for n in present if n < low), reverse=True):
            if low - n <= gap:
                low = n
        for n in sorted(n for n in present if n > high):
            if n - high <= gap:
                high = n
        return max(first, low - _MARGIN), min(last, high + _MARGIN)

    def _resolve_overlaps(self, predictions: Mapping[int, SlicePrediction]) -> Iterator[SliceMask]:
        """Assign pixels of overlapping classes to one of them."""
        slices = sorted({n for one in self.classes.values() for n in one.slices})
        for n in slices:
            claims = [number for number, one in self.classes.items() if n in one.slices]
            if len(claims) < 2:
                continue
            masks = np.stack([self.classes[number].slices[n].mask_hw for number in claims])
            if not (masks.sum(0) > 1).any():
                continue
            winner = _assign(
                masks,
                [self.classes[number].slices[n].predicted_iou for number in claims],
                predictions.get(n),
                claims,
            )
            for row, number in enumerate(claims):
                before = self.classes[number].slices[n]
                mask = masks[row] & (winner == row)
                if (mask != before.mask_hw).any():
                    kept = before.probabilities
                    kept = None if kept is None else kept.agreeing(mask)
                    yield self._store(number, before.with_mask(mask, probabilities=kept))

    def _name(self, number: int) -> str:
        return self._segmenter.auto.card.class_names[number]

    def _store(self, number: int, found: SliceMask) -> SliceMask:
        self.classes[number].slices[found.n] = found
        return found


def conditioning(slices: Mapping[int, ClassPrediction]) -> list[int]:
    """Choose conditioning slices of a class: slices of high confidence and area, spread over the object."""
    worth = {
        n: one.confidence * float(np.sqrt(one.mask_hw.sum()))
        for n, one in slices.items()
        if one.mask_hw.any() and one.score > 0
    }
    if not worth:
        return []
    highest = max(slices[n].confidence for n in worth)
    chosen: list[int] = []
    for n in sorted(worth, key=lambda n: (-worth[n], n)):
        is_confident = slices[n].confidence >= _SHARE * highest
        if is_confident and all(abs(n - m) >= APART for m in chosen):
            chosen.append(n)
    return sorted(chosen or [max(worth, key=lambda n: worth[n])])


def _assign(
    masks: NDArray[np.bool_],
    predicted_ious: list[float],
    predictions: SlicePrediction | None,
    claims: list[int],
) -> NDArray[np.intp]:
    """Return the (H, W) row in `masks` that each pixel is assigned to.

    That is the class predicted there, else the one of the highest predicted IoU.
    """
    rank = np.array(predicted_ious)[:, None, None] * masks
    if predictions is not None:
        for row, number in enumerate(claims):
            rank[row] += 2.0 * (_of_class(predictions, number).mask_hw & masks[row])
    return rank.argmax(0)


def _of_class(found: SlicePrediction, number: int) -> ClassPrediction:
    return next(one for one in found.classes if one.number == number)


def _box_prompt(box: tuple[float, float, float, float] | None) -> PixelPrompts:
    corners = None if box is None else np.array(box, dtype=np.float32)
    return PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), box_xyxy=corners)


def _cleared(found: SliceMask) -> SliceMask:
    empty = np.zeros(found.shape_hw, bool)
    return found.with_mask(empty, object_score=-1.0, probabilities=None)
