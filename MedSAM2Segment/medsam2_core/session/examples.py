"""Objects of a segmented scan found again: in another scan by likeness, in a follow-up at their old place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.auto.predictions import AutoPrediction
from medsam2_core.auto.volumes import TaskQueue
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.memory import PromptedMemory
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.propagation import Propagation
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.engine.zoom import Box
from medsam2_core.errors import PromptError
from medsam2_core.imaging.intensity import Window, parse_window, to_display
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import PixelPrompts, SlicePrompts
from medsam2_core.prompts.slice_prompts import predicted_prompt, resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.slice_mask import SliceMask
    from medsam2_core.imaging.volume import Volume

# Slices of all examples of an object that are shown to the model, and slices of the new scan looked at.
_MOST_SHOWN = 8
_MOST_LOOKED_AT = 24
# Where the object is found with this share of the best confidence, and so far from other seeds (share of the
# slices), tracking starts there, too.
_ALSO_SURE = 0.9
_APART = 0.1
_MOST_SEEDS = 3
# Sides of the boxes tried at an old place, against the old box.
_PRIOR_SIZES = (0.7, 1.1, 1.5)
_PATIENCE = 3  # slices without the object


@dataclass(frozen=True)
class Example:
    """A scan with its segmentation, both on one grid.

    Attributes
    ----------
    volume
        Of the same kind as the scan to be segmented.
    segmentation
        Objects, by the names they get in the new scan.
    window
        What the model sees of it; None is chosen from the volume.
    """

    volume: Volume
    segmentation: Segmentation
    window: Window | None = None

    def __post_init__(self) -> None:
        if not self.segmentation.geometry.same_grid(self.volume.geometry):
            message = f"the segmentation of {self.volume.name!r} is not on the grid of its scan"
            raise PromptError(message, code="example-on-another-grid", example=self.volume.name)

    def slices_of(self, name: str, plane: str) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        """Yield (H, W, 3) and (H, W): slices spread through the object, as displayed, and its mask there."""
        segment = self.segmentation[name]
        if segment.is_empty:
            return
        stack = SliceStack.along(self.volume, plane)
        window = self.window or parse_window("auto", self.volume)
        shown = [n for n in range(len(stack)) if stack.mask_of(segment.part_kji, n, segment.offset_ijk).any()]
        for n in _spread(shown, _MOST_SHOWN):
            image = to_display(stack.image_hw(n), window)
            yield image, stack.mask_of(segment.part_kji, n, segment.offset_ijk)


class ObjectSearch(ABC):
    """Looks for objects of other scans on slices of a new one, one slice at a time."""

    names: Sequence[str]

    @abstractmethod
    def count(self, name: str) -> int:
        """Return how many looks an object takes."""

    @abstractmethod
    def looks(self, name: str) -> list[Callable[[], SliceMask]]:
        """Return the looks: each gives what is found on one slice, and can be repeated when interrupted."""

    @abstractmethod
    def chosen(self, name: str, found: Sequence[SliceMask]) -> dict[int, SlicePrompts]:
        """Return predicted boxes with their masks, by slice, from what all looks gave; none if it is
        nowhere."""


class ExampleSearch(ObjectSearch):
    """Looks for the objects of examples on slices of a new scan.

    The slices of the examples and those of the scan are taken as an unordered set of images of which the
    former are prompted by masks (see :mod:`medsam2_core.engine.locating`).

    Raises
    ------
    PromptError
        ``empty-examples``.
    """

    def __init__(
        self, tracker: Tracker, stack: SliceStack, examples: Sequence[Example], slices: Sequence[int]
    ) -> None:
        self._looked_at = _spread(slices, _MOST_LOOKED_AT)
        self._tracker, self._stack, self._examples = tracker, stack, examples
        self._plane = getattr(stack, "plane", "axial")
        segments = (segment for one in examples for segment in one.segmentation)
        self.names = list(dict.fromkeys(segment.name for segment in segments if not segment.is_empty))
        if not self.names:
            raise PromptError("no example shows an object: every segment is empty", code="empty-examples")

    def count(self, name: str) -> int:
        return len(self._looked_at)

    def looks(self, name: str) -> list[Callable[[], SliceMask]]:
        shown = list(self._shown(name))
        source = self._tracker.source
        images = [image for image, _ in shown] + [source.image(n) for n in self._looked_at]
        encoder = SliceEncoder(
            self._tracker.model,
            ArrayImages(images, pixel_mm=source.pixel_mm, ordered=False),
            self._tracker.encoder.cache,
        )
        search = Tracker(self._tracker.model, encoder, PromptedMemory(), TrackerOptions(locates=True))
        for number, (_, mask_hw) in enumerate(shown):
            search.prompt(name, number, PixelPrompts.of_mask(mask_hw))
        progress = search.propagate(first=len(shown), last=len(images) - 1)

        def look() -> SliceMask:
            mask = next(progress)
            return replace(mask, n=self._looked_at[mask.n - len(shown)])

        return [look] * len(self._looked_at)

    def chosen(self, name: str, found: Sequence[SliceMask]) -> dict[int, SlicePrompts]:
        masks = {mask.n: mask for mask in found if not mask.is_empty}
        return known_prompts({n: masks[n] for n in _surest(masks, len(self._stack))}, self._stack)

    def _shown(self, name: str) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        slices = [
            pair
            for one in self._examples
            if name in one.segmentation.names
            for pair in one.slices_of(name, self._plane)
        ]
        return iter([slices[n] for n in _spread(range(len(slices)), _MOST_SHOWN)])


def known_prompts(masks: Mapping[int, SliceMask], stack: SliceStack) -> dict[int, SlicePrompts]:
    """Return masks as predicted boxes that came with them, by slice."""
    return {
        n: SlicePrompts((predicted_prompt(None, mask, n, stack),), known=mask) for n, mask in masks.items()
    }


def _surest(found: Mapping[int, SliceMask], count: int) -> list[int]:
    """Return the slices to track from: the surest one, and others that are nearly as sure and not near."""
    chosen: list[int] = []
    for n in sorted(found, key=lambda n: (-found[n].confidence, n)):
        if chosen and found[n].confidence < _ALSO_SURE * found[chosen[0]].confidence:
            break
        if all(abs(n - other) > _APART * count for other in chosen):
            chosen.append(n)
    return sorted(chosen[:_MOST_SEEDS])


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the numbers, evenly spread."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(n)] for n in np.linspace(0, len(numbers) - 1, most)]


class PriorSearch(ObjectSearch):
    """Looks for the objects of an earlier segmentation of the same patient near their old places.

    On the slice where the object was largest, and on its neighbours, boxes of several sizes around the old
    place are tried; the mask the model is surest of counts, if it overlaps with the old place.

    Parameters
    ----------
    prior
        On the new scan's grid.

    Raises
    ------
    PromptError
        ``prior-on-another-grid``.
    """

    def __init__(
        self, tracker: Tracker, stack: SliceStack, prior: Segmentation, slices: Sequence[int]
    ) -> None:
        if not prior.geometry.same_grid(stack.volume.geometry):
            message = "the earlier segmentation is not on the grid of the scan: resample it first"
            raise PromptError(message, code="prior-on-another-grid")
        self._tracker, self._stack, self._prior, self._slices = tracker, stack, prior, slices
        self.names = prior.names

    def count(self, name: str) -> int:
        return len(_PRIOR_SIZES) * len(self._olds(name))

    def looks(self, name: str) -> list[Callable[[], SliceMask]]:
        olds = self._olds(name)
        return [
            partial(self._try, name, n, old_hw, size) for n, old_hw in olds.items() for size in _PRIOR_SIZES
        ]

    def chosen(self, name: str, found: Sequence[SliceMask]) -> dict[int, SlicePrompts]:
        olds = self._olds(name)
        near = [mask for mask in found if (mask.mask_hw & _around(olds[mask.n])).any()]
        best = max(near, key=lambda mask: mask.confidence, default=None)
        return {} if best is None else known_prompts({best.n: best}, self._stack)

    def _olds(self, name: str) -> dict[int, NDArray[np.bool_]]:
        """Return the old mask on the slice where the object was largest, and on its neighbours."""
        segment = self._prior[name]
        olds = {n: self._stack.mask_of(segment.part_kji, n, segment.offset_ijk) for n in self._slices}
        areas = {n: int(mask_hw.sum()) for n, mask_hw in olds.items() if mask_hw.any()}
        largest = max(areas, key=lambda n: (areas[n], -n), default=-9)
        return {n: olds[n] for n in (largest, largest - 1, largest + 1) if n in areas}

    def _try(self, name: str, n: int, old_hw: NDArray[np.bool_], size: float) -> SliceMask:
        box = Box.of_mask(old_hw)
        assert box is not None  # slices without the object are not tried
        (x, y), half_x, half_y = box.centre, size * (box.x1 - box.x0) / 2, size * (box.y1 - box.y0) / 2
        corners = np.array([x - half_x, y - half_y, x + half_x, y + half_y], np.float32) - 0.5
        prompt = PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), corners)
        tracker = Tracker(self._tracker.model, self._tracker.encoder, None, self._tracker.options)
        return tracker.prompt(name, n, prompt)


def _around(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the box of a mask, half as long again."""
    box = Box.of_mask(mask_hw)
    assert box is not None
    (x, y), half_x, half_y = box.centre, 0.75 * (box.x1 - box.x0), 0.75 * (box.y1 - box.y0)
    around = np.zeros_like(mask_hw)
    around[max(round(y - half_y), 0) : round(y + half_y), max(round(x - half_x), 0) : round(x + half_x)] = (
        True
    )
    return around


class SearchRun:
    """A search for objects that follows each through the volume; the session itself stays as it is.

    Parameters
    ----------
    described
        By object: colour (0 to 1) and terminology, to be returned with it.
    """

    def __init__(
        self,
        stack: SliceStack,
        tracker: Tracker,
        search: ObjectSearch,
        described: Mapping[str, tuple[tuple[float, float, float], str]],
    ) -> None:
        self._stack, self._search, self._described = stack, search, described
        memory = None if tracker.source.ordered else PromptedMemory()
        self._tracker = Tracker(tracker.model, tracker.encoder, memory, tracker.options)
        self._looked: dict[str, list[SliceMask]] = {name: [] for name in search.names}
        self._prompts: dict[str, dict[int, SlicePrompts]] = {}
        self._masks: dict[str, dict[int, SliceMask]] = {name: {} for name in search.names}
        self.done, self.total = 0, sum(map(search.count, search.names))

    def run(
        self,
        first: int | None = None,
        last: int | None = None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[SliceMask]:
        """Return the masks as they become known; a later one replaces an earlier one of its object and slice.

        Asking for the next one may raise :class:`~medsam2_core.errors.Interrupted`: ask again, and it goes
        on.
        """
        self._tasks = TaskQueue([], should_cancel)
        for name in self._search.names:
            self._tasks.add(partial(self._begin, name, first, last))
        return self._tasks

    def found(self) -> list[AutoPrediction]:
        """Return every object described, once the run is over; also those that are nowhere."""
        return [self._prediction(name) for name in self._described]

    def _begin(self, name: str, first: int | None, last: int | None) -> list[SliceMask]:
        looks = self._search.looks(name)
        self._tasks.add_next(partial(self._follow, name, first, last))
        for look in reversed(looks):
            self._tasks.add_next(partial(self._look, name, look))
        return []

    def _look(self, name: str, look: Callable[[], SliceMask]) -> list[SliceMask]:
        mask = look()
        self._looked[name].append(mask)
        self.done += 1
        return [mask]

    def _follow(self, name: str, first: int | None, last: int | None) -> list[SliceMask]:
        self._prompts[name] = self._search.chosen(name, self._looked[name])
        for n, given in self._prompts[name].items():
            assert given.known is not None  # they come with their masks
            pixels = resolve(given.prompts, self._stack)[n]
            self._tracker.accept(name, n, pixels, given.known)
        if self._prompts[name]:
            progress = self._tracker.propagate([name], first, last, stop_after_absent=_PATIENCE)
            self.total += progress.total
            self._tasks.add_next(partial(self._step, name, progress, self.done))
        return []

    def _step(self, name: str, progress: Propagation, before: int) -> list[SliceMask]:
        mask = next(progress, None)
        self.done = before + progress.done
        if mask is None:
            return []
        self._tasks.add_next(partial(self._step, name, progress, before))
        self._masks[name][mask.n] = mask
        return [mask]

    def _prediction(self, name: str) -> AutoPrediction:
        colour, terminology = self._described[name]
        given = self._prompts.get(name, {})
        found = self._masks.get(name, {})
        masks = {n: mask for n, mask in found.items() if not mask.is_empty or n in given}
        confidence = float(np.mean([one.confidence for one in masks.values()])) if masks else 0.0
        prompts = {n: one.prompts for n, one in given.items()}
        return AutoPrediction(name, colour, terminology, confidence, prompts, masks)
