"""Where an object of prompted images may be on another image: guesses for the mask decoder to improve.

Images of a set have no place in common, and a network that was trained on volumes looks for the object where
it was last. So every place of a new image is compared with all places of the prompted images, and of views of
them that are enlarged, reduced and mirrored. How much of the object lies where the image features are most
alike is the likeness of the place, and from the likeness come guesses: connected parts of it, and ellipses of
the object's size where the likeness is highest inside and lowest around. Correspondences of features as
prompts: Liu et al., "Matcher", arXiv 2305.13310.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.cache import SliceFeatures
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.images import UnorderedSource
from medsam2_core.engine.maps import moved_logits
from medsam2_core.engine.recipe import INSIDE, OUTSIDE
from medsam2_core.engine.zoom import Box, Region
from medsam2_core.imaging.slice_mask import SliceMask

# Places an image is divided into, along each side.
GRID = 32
# Sharp weights, and a weak preference for the place of the object: measured by Testing/bench/memory_study.py.
_TEMPERATURE = 0.03
_NEARNESS = 0.5
# Views of a prompted image: enlargement, and whether it is mirrored.
_VIEWS = tuple((scale, flip) for scale in (1.0, 0.75, 1.4) for flip in (False, True))
# Shares of the highest likeness that connected parts are cut at, and sizes of ellipses against the object's.
_LEVELS = (0.3, 0.5)
_SIZES = (0.5, 0.7, 1.0, 1.4, 2.0)
_LEAST_PEAK = 0.2
# More prompted images than this, the most similar, would not help but cost time.
MOST_REFERENCES = 16
# Views in all; of many prompted images, fewer of each.
_MOST_VIEWS = 12
# Images whose features say what is usual in the set.
_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class Guess:
    """A rough mask of the object on an image.

    Attributes
    ----------
    logits
        (1, 1, side, side) over the whole image.
    box
        In pixels of the image.
    """

    logits: torch.Tensor
    box: Box


@dataclass(frozen=True, slots=True)
class _Reference:
    """A prompted image: (P, C) features of places in all its views, (P,) share of the object, (P, 2)
    position; and the object's (height, width) as shares of the image's."""

    features: torch.Tensor
    shares: torch.Tensor
    places: torch.Tensor
    size: tuple[float, float]


class Locator:
    """Finds guesses on images of one unordered source."""

    def __init__(self, encoder: SliceEncoder) -> None:
        self._encoder = encoder
        self._source = cast("UnorderedSource", encoder.source)
        self._usual: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._known: dict[tuple[int, object, bytes, int], _Reference] = {}

    def likeness(self, n: int, masks: Sequence[SliceMask]) -> NDArray[np.float32]:
        """Return (32, 32) from 0 to 1: how much of the object lies at the places most like each place.

        Parameters
        ----------
        masks
            Of the object on the prompted images, the most similar image first.
        """
        given = self._references(masks)
        if not given:
            return np.zeros((GRID, GRID), np.float32)
        own = self._described(self._maps(self._whole(n)))
        features, shares, places = (
            torch.cat([getattr(one, name) for one in given]) for name in ("features", "shares", "places")
        )
        apart = torch.cdist(_places(), places, compute_mode="donot_use_mm_for_euclid_dist").square()
        alike = own @ features.T - _NEARNESS * apart.to(own.device)
        weights = (alike / _TEMPERATURE).softmax(1)
        return (weights @ shares).reshape(GRID, GRID).cpu().numpy()

    def guesses(
        self, n: int, likeness: NDArray[np.float32], masks: Sequence[SliceMask], side: int
    ) -> list[Guess]:
        """Return rough masks with logits of (side, side) pixels; none where nothing is alike."""
        from scipy import ndimage

        given = self._references(masks)
        if not given or likeness.max() <= 0:
            return []
        smooth = resized_likeness(likeness, side)
        rough = []
        for level in _LEVELS:
            parts, count = ndimage.label(smooth > level * max(float(smooth.max()), _LEAST_PEAK))
            if count:
                weights = ndimage.sum(smooth, parts, range(1, count + 1))
                rough.append(parts == 1 + int(np.argmax(weights)))
        height, width = (float(np.median([one.size[axis] for one in given])) for axis in (0, 1))
        for size in _SIZES:
            ellipse = _best_ellipse(likeness, size * height, size * width, side)
            if ellipse is not None:
                rough.append(ellipse)
        shape_hw, device = self._source.shape_of(n), self._encoder.model.device
        return [_guess(mask, shape_hw, device) for mask in rough if mask.any()]

    def _references(self, masks: Sequence[SliceMask]) -> list[_Reference]:
        wanted = [mask for mask in masks if not mask.is_empty][:MOST_REFERENCES]
        views = _VIEWS[: max(1, _MOST_VIEWS // max(len(wanted), 1))]
        known = {(mask.n, mask.box, mask.bits, len(views)): mask for mask in wanted}
        # Those of prompts that were changed are of no use any more.
        self._known = {key: one for key, one in self._known.items() if key in known}
        for key, mask in known.items():
            if key not in self._known:
                self._known[key] = self._reference(mask, views)
        return [self._known[key] for key in known]

    def _reference(self, mask: SliceMask, views: Sequence[tuple[float, bool]]) -> _Reference:
        mask_hw = mask.mask_hw
        box = Box.of_mask(mask_hw)
        assert box is not None  # masks of references are not empty
        features, shares = [], []
        for scale, flip in views:
            region = _view(mask_hw.shape, box, scale)
            if scale == 1.0 and not flip:
                seen = self._encoder.features(mask.n, region)
            else:
                image = self._encoder.model_input(mask.n, region)
                seen = self._encoder.encoded_image(image.flip(-1) if flip else image)
            features.append(self._described(self._maps(seen)))
            inside = torch.from_numpy(region.crop(mask_hw).astype(np.float32))[None, None]
            share = functional.interpolate(inside, size=(GRID, GRID), mode="area")
            shares.append((share.flip(-1) if flip else share).flatten().to(features[0].device))
        places = _places().repeat(len(views), 1)
        size = ((box.y1 - box.y0) / mask_hw.shape[0], (box.x1 - box.x0) / mask_hw.shape[1])
        return _Reference(torch.cat(features), torch.cat(shares), places, size)

    def _whole(self, n: int) -> SliceFeatures:
        return self._encoder.features(n, Region.whole(self._source.shape_of(n)))

    def _maps(self, features: SliceFeatures) -> list[torch.Tensor]:
        """Return the levels of features, each (P, C) for the places of the grid."""
        maps, size = [], (GRID, GRID)
        for level in (features.coarse, *features.fine):
            values = level.float()
            if level.shape[-1] > GRID:
                values = functional.interpolate(values, size=size, mode="area")
            else:
                values = functional.interpolate(values, size=size, mode="bilinear", align_corners=False)
            maps.append(values[0].flatten(1).T)
        return maps

    def _described(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (P, C) unit vectors: every level counts alike, as far as it is unusual in the set."""
        if self._usual is None:
            self._usual = self._usual_features()
        levels = [
            functional.normalize((level - mean) / deviation, dim=1)
            for level, (mean, deviation) in zip(maps, self._usual, strict=True)
        ]
        return torch.cat(levels, 1) / len(levels) ** 0.5

    def _usual_features(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return mean and standard deviation of each level, from images chosen by what they show: so that
        another order of files chooses the same."""
        numbers = sorted(range(len(self._source)), key=self._source.image_key)
        seen = [self._maps(self._whole(n)) for n in numbers[:_SAMPLE]]
        levels = [torch.cat(of_level) for of_level in zip(*seen, strict=True)]
        return [(level.mean(0), level.std(0) + 1e-6) for level in levels]


def resized_likeness(likeness: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the likeness at (side, side) pixels."""
    values = torch.from_numpy(likeness)[None, None]
    larger = functional.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)
    return larger[0, 0].numpy()


def agreement(logits: torch.Tensor, region: Region, whole: Region, likeness: NDArray[np.float32]) -> float:
    """Return the Dice coefficient, 0 to 1, of a mask (its logits over a region) and the likeness."""
    mask = (moved_logits(logits, region, whole) > 0)[0, 0].cpu().numpy()
    smooth = resized_likeness(likeness, mask.shape[-1])
    return float(2 * smooth[mask].sum() / max(mask.sum() + smooth.sum(), 1e-6))


def by_similarity(source: UnorderedSource, numbers: Sequence[int], to: Sequence[int]) -> list[int]:
    """Return images in order of their similarity to any of the images `to`, the most similar first.

    Equally similar ones are ordered by their content, so that the order of files does not matter.
    """
    wanted = np.stack([source.thumbnail(n) for n in to]).astype(np.float64)
    found = {n: float((wanted * source.thumbnail(n)).sum(1).max().round(6)) for n in numbers}
    return sorted(numbers, key=lambda n: (-found[n], source.image_key(n), n))


def _view(shape_hw: Sequence[int], box: Box, scale: float) -> Region:
    """Return what a view of a whole image shows: enlarged around the object, reduced around the middle."""
    height, width = shape_hw[0], shape_hw[1]
    if scale == 1.0:
        return Region.whole(shape_hw)
    x, y = box.centre if scale > 1 else (width / 2, height / 2)
    wide, high = max(1, round(width / scale)), max(1, round(height / scale))
    if scale > 1:
        x, y = min(max(x, wide / 2), width - wide / 2), min(max(y, high / 2), height - high / 2)
    x0, y0 = round(x - wide / 2), round(y - high / 2)
    return Region(x0, y0, x0 + wide, y0 + high)


def _places() -> torch.Tensor:
    """Return (P, 2) centres of the places, x and y from 0 to 1."""
    steps = (torch.arange(GRID, dtype=torch.float32) + 0.5) / GRID
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def _best_ellipse(
    likeness: NDArray[np.float32], height: float, width: float, side: int
) -> NDArray[np.bool_] | None:
    """Return the (side, side) ellipse of a size (shares of the image) in the box that has the most likeness
    inside against what is around it; None for one that does not fit into the image."""
    if max(height, width) > 1.05:
        return None
    values = torch.from_numpy(likeness)[None, None].double()
    rows, columns = max(1, round(height * GRID)), max(1, round(width * GRID))
    outer = max(rows + 2, round(1.4 * height * GRID)), max(columns + 2, round(1.4 * width * GRID))
    inside, inside_count = _box_sums(values, rows, columns)
    around, around_count = _box_sums(values, *outer)
    contrast = inside / inside_count - (around - inside) / (around_count - inside_count).clamp(min=1)
    contrast[inside_count < 0.7 * rows * columns] = -torch.inf  # most of the box lies outside the image
    best = int(contrast.flatten().argmax())
    top, left = best // GRID - rows // 2, best % GRID - columns // 2
    y, x = (np.mgrid[:side, :side] + 0.5) * (GRID / side)
    across, down = (x - left - columns / 2) / (columns / 2), (y - top - rows / 2) / (rows / 2)
    return across**2 + down**2 <= 1


def _box_sums(values: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of values in a box around every place, and how many places of it there are."""
    padding = (columns // 2, columns - 1 - columns // 2, rows // 2, rows - 1 - rows // 2)
    inside, count = (
        functional.avg_pool2d(functional.pad(x, padding), (rows, columns), 1)[0, 0] * rows * columns
        for x in (values, torch.ones_like(values))
    )
    return inside, count


def _guess(mask: NDArray[np.bool_], shape_hw: Sequence[int], device: torch.device) -> Guess:
    side = mask.shape[0]
    box = Box.of_mask(mask)
    assert box is not None  # a guess is not empty
    across, down = shape_hw[1] / side, shape_hw[0] / side
    logits = np.where(mask, INSIDE, OUTSIDE).astype(np.float32)
    return Guess(
        torch.from_numpy(logits)[None, None].to(device),
        Box(box.x0 * across, box.y0 * down, box.x1 * across, box.y1 * down),
    )
