"""Objects of the training data, tracked from one box on their largest slice, for what ends tracking.

They are tracked through the slices around them, past their ends. What
:func:`~medsam2_core.engine.presence.evidence` says on each slice is kept in a file, beside the pixels that
mask and truth have in common.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medsam2_core.atomic import new_file
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.presence import Appearance, evidence
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.sources import StackImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.engine.zoom import Box
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import parse_window
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts.types import PixelPrompts
from medsam2_core.training.planes import Piece
from medsam2_core.training.sources import split
from medsam2_core.training.stacks import LabelledStack
from medsam2_core.training.synth import painted_map

# What an object must have at least: slices, and pixels on the largest.
FEWEST_SLICES, _FEWEST_PIXELS = 4, 20
_DRAWS = 20
_MOST_SLICES = 32  # of a painted object; thinner slices are left out, as in scans
_LEAST_BEYOND = 8  # slices beyond each end; as many as the object has if it has more
_JITTER = 0.05
_PATIENCE = 3  # as in a session
_OBJECT = "object"
_EVIDENCE = 5
_OF_SLICES = ("reverse", "evidence", "pixels")


@dataclass(frozen=True, eq=False)
class Tracked:
    """What was found of one object, on N slices in the order in which they were tracked.

    Attributes
    ----------
    given
        (2,) pixels on the prompted slice: common to mask and truth, and of the mask.
    reverse
        (N,) whether the slice lies below the prompted one.
    evidence
        (N, 5) as :func:`~medsam2_core.engine.presence.evidence` returns it; NaN where the mask is empty.
    pixels
        (N, 3) common to mask and truth, of the mask, of the truth.
    """

    kind: str
    case: str
    held_back: bool
    given: NDArray[np.int64]
    true: int
    reverse: NDArray[np.bool_]
    evidence: NDArray[np.float64]
    pixels: NDArray[np.int64]

    @property
    def has_mask(self) -> NDArray[np.bool_]:
        """(N,) whether the slice has a mask without the rule."""
        return ~np.isnan(self.evidence[:, 0])

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N,) whether the object is on the slice."""
        return self.pixels[:, 2] > 0

    def shown(self, weights: Sequence[float] | NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) whether the slice has a mask with the rule of these weights."""
        return np.nan_to_num(self.evidence @ np.asarray(weights), nan=-1.0) >= 0

    def dice(self, shown: NDArray[np.bool_]) -> float:
        """Return the Dice of the whole object if only these slices have masks.

        As in a session, a direction ends with the third slice in a row that has none.
        """
        common, found = self.given
        for side in (False, True):
            gone = 0
            for n in np.flatnonzero(self.reverse == side):
                gone = 0 if shown[n] else gone + 1
                if gone == _PATIENCE:
                    break
                common, found = common + shown[n] * self.pixels[n, 0], found + shown[n] * self.pixels[n, 1]
        return float(2 * common / (found + self.true))


def drawn_object(stack: LabelledStack, rng: np.random.Generator) -> tuple[Volume, NDArray[np.bool_]] | None:
    """Return the slices around an object of a case, and its voxels; None when no draw has enough slices.

    Label maps are painted, and thinned until the object has no more slices than in most scans.
    """
    for _ in range(_DRAWS):
        piece = Piece.drawn(stack, rng)
        if piece is None:
            return None
        areas = piece.areas(0)
        if len(areas) >= FEWEST_SLICES and areas.max() >= _FEWEST_PIXELS:
            break
    else:
        return None
    step = 1 if stack.image_kji is not None else -(-len(areas) // _MOST_SLICES)
    block = _around(stack, piece, step)
    truth: NDArray[np.bool_] = np.zeros(stack.labels_kji.shape, bool)
    inside = zip(piece.start_kji, piece.mask_kji.shape, strict=True)
    truth[tuple(slice(start, start + size) for start, size in inside)] = piece.mask_kji
    truth = truth[block]
    if stack.image_kji is not None:
        voxels = stack.image_kji[block]
    else:
        labels = stack.labels_kji[block].astype(np.int32)
        labels[(labels == piece.label) & ~truth] = labels.max() + 1  # other pieces look different
        voxels = painted_map(labels, rng)
    along_k, along_j, along_i = stack.spacing_kji
    count_k, count_j, count_i = (int(count) for count in voxels.shape)
    geometry = Geometry(np.diag([along_i, along_j, along_k * step, 1.0]), (count_i, count_j, count_k))
    return Volume(np.ascontiguousarray(voxels), geometry), truth


def _around(stack: LabelledStack, piece: Piece, step: int) -> tuple[slice, ...]:
    """Return a block around an object; its largest slice is among those that are left of it."""
    first, count = piece.start_kji[0], piece.mask_kji.shape[0]
    beyond = max(_LEAST_BEYOND * step, count)
    largest = first + int(np.argmax(piece.areas(0)))
    start = largest - (largest - max(0, first - beyond)) // step * step
    along = slice(start, first + count + beyond, step)
    if stack.image_kji is not None:
        return along, slice(None), slice(None)
    # What is farther away would cost time to paint, and is never looked at.
    near = max(16, round(1.5 * max(piece.mask_kji.shape[1:])))
    inside = zip(piece.start_kji[1:], piece.mask_kji.shape[1:], strict=True)
    return along, *(slice(max(0, start - near), start + size + near) for start, size in inside)


def track(
    stack: LabelledStack, held_back: bool, model: SegmentationModel, rng: np.random.Generator
) -> Tracked | None:
    """Track an object of a case from one box, each side off by up to 5 %; None when nothing was found."""
    drawn = drawn_object(stack, rng)
    if drawn is None:
        return None
    volume, truth_kji = drawn
    slices = SliceStack.along(volume, "k")
    source = StackImages(slices, parse_window("auto", volume))
    truth = [slices.mask_of(truth_kji, n) for n in range(len(slices))]
    key = int(np.argmax([one.sum() for one in truth]))
    model = replace(model, recipe=replace(model.recipe, presence=()))
    tracker = Tracker(model, SliceEncoder(model, source))
    first = tracker.prompt(_OBJECT, key, _box(truth[key], rng))
    state = tracker.state(_OBJECT)
    seen = state.conditioning[key].prediction
    seed = Appearance.of(source.image(key), seen.region, seen.logits)
    if seed is None:
        return None
    found = []
    for mask in tracker.propagate(stop_after_absent=_PATIENCE):
        if mask.n == key or mask.n not in state.recent:
            continue
        logits, region = state.recent[mask.n]
        here = Appearance.of(source.image(mask.n), region, logits)
        says = np.full(_EVIDENCE, np.nan) if here is None else evidence(seed, here, mask.predicted_iou)
        found.append((mask.n < key, says, _pixels(mask.mask_hw, truth[mask.n])))
    return Tracked(
        stack.row, stack.case, held_back, _pixels(first.mask_hw, truth[key])[:2], int(truth_kji.sum()),
        *(np.array(column) for column in zip(*found, strict=True)),
    )  # fmt: skip


def _pixels(found_hw: NDArray[np.bool_], truth_hw: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.array([(found_hw & truth_hw).sum(), found_hw.sum(), truth_hw.sum()])


def _box(mask_hw: NDArray[np.bool_], rng: np.random.Generator) -> PixelPrompts:
    tight = Box.of_mask(mask_hw)
    assert tight is not None  # the largest slice shows the object
    sides = np.array([tight.x0, tight.y0, tight.x1, tight.y1]) - 0.5
    moved = sides + rng.uniform(-_JITTER, _JITTER, 4) * np.tile(sides[2:] - sides[:2], 2)
    corners = np.clip(moved, -0.5, np.tile(mask_hw.shape[::-1], 2) - 0.5)
    return PixelPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), corners.astype(np.float32))


def queue(stacks: Sequence[LabelledStack], seed: int) -> Iterator[tuple[LabelledStack, bool]]:
    """Yield volumes to draw an object from, and whether they are held back: the kinds in turn, without end.

    Parameters
    ----------
    stacks
        All cases of a training folder, pictures as well: which are held back depends on all of them.
    """
    training, held_back = split(list(stacks))
    rows: dict[tuple[bool, str], list[LabelledStack]] = {}
    for held, part in ((False, training), (True, held_back)):
        for stack in part:
            if stack.labels_kji.shape[0] > 1:  # a picture has no ends
                rows.setdefault((held, stack.row), []).append(stack)
    order = {key: np.random.default_rng([seed, n]).permutation(len(rows[key])) for n, key in enumerate(rows)}
    turn = 0
    while rows:
        for (held, row), found in rows.items():
            yield found[order[held, row][turn % len(found)]], held
        turn += 1


def write_evidence(path: Path, tracked: Sequence[Tracked], about: dict[str, Any], tried: int) -> None:
    """Write tracked objects, and from how many cases they were drawn, as an .npz file."""
    columns = {
        field.name: [np.asarray(getattr(one, field.name)) for one in tracked] for field in fields(Tracked)
    }
    arrays = {
        name: np.concatenate(column) if name in _OF_SLICES else np.stack(column)
        for name, column in columns.items()
    }
    arrays["counts"] = np.array([len(one.reverse) for one in tracked])
    arrays["about"] = np.array(json.dumps({**about, "tried": tried}))
    with new_file(path, overwrite=True) as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_evidence(path: Path, about: dict[str, Any]) -> tuple[list[Tracked], int]:
    """Return what :func:`write_evidence` wrote; nothing, and 0, if there is no such file.

    Raises
    ------
    TrainingError
        ``evidence-damaged``, or ``run-differs``: it is about something else.
    """
    if not path.exists():
        return [], 0
    try:
        with np.load(path, allow_pickle=False) as stored:
            kept = {name: stored[name] for name in stored.files}
        known = json.loads(str(kept["about"]))
        tried = int(known.pop("tried"))
        ends = np.cumsum(kept["counts"])[:-1]
        columns = [
            np.split(kept[field.name], ends) if field.name in _OF_SLICES else kept[field.name]
            for field in fields(Tracked)
        ]
        tracked = [Tracked(*row) for row in zip(*columns, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        message = f"{path} cannot be read: {error}; remove it, and objects are tracked anew"
        raise TrainingError(message, code="evidence-damaged", path=str(path)) from error
    for setting, value in about.items():
        if known.get(setting) != value:
            message = f"{path} has another {setting} ({known.get(setting)}): choose another folder"
            raise TrainingError(message, code="run-differs", setting=setting, found=known.get(setting))
    return tracked, tried
