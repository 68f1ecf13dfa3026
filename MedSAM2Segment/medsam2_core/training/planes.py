"""Where a view lies in a labelled stack: which object, which slices, and the square shown of each slice.

A clip leaves the object's key slice towards one side, through its last slice and beyond it, at the scan's own
spacing or a thinned one. The square follows the object from slice to slice as the engine's zoom does
(:mod:`medsam2_core.engine.zoom`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from medsam2_core.engine.zoom import Zoom
from medsam2_core.training.appearance import blur
from medsam2_core.training.augmentation import BASE, Augmentation
from medsam2_core.training.stacks import LabelledStack

# Labels are sampled at this side and smoothed up to the view's: voxel stairs are not anatomy.
LABEL_SIDE = 128
_FEWEST_VOXELS = 12
# Beyond this many voxels of its bounding box an object is not divided into connected pieces: too slow.
_LARGEST_BLOCK = 4_000_000
_THICKEST_MM = 9.0


@dataclass(frozen=True)
class Piece:
    """One connected object of a stack."""

    label: int
    start_kji: tuple[int, ...]
    mask_kji: NDArray[np.bool_]

    @classmethod
    def drawn(cls, stack: LabelledStack, rng: np.random.Generator) -> Piece | None:
        """A random label, and of it a piece drawn by its size; None when no label is large enough."""
        labels = np.flatnonzero(stack.voxel_counts[1:] >= _FEWEST_VOXELS) + 1
        if not len(labels):
            return None
        label = int(rng.choice(labels))
        block = stack.bounding_boxes[label - 1]
        mask = stack.labels_kji[block] == label
        if mask.size <= _LARGEST_BLOCK:
            pieces, count = ndimage.label(mask)
            if count > 1:
                sizes = np.bincount(pieces.ravel())
                sizes[0] = 0
                mask = pieces == int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        return cls(label, tuple(part.start for part in block), mask)

    def areas(self, axis: int) -> NDArray[np.int64]:
        """Voxels in each slice of the bounding box."""
        return self.mask_kji.sum(axis=tuple(a for a in range(3) if a != axis))


@dataclass(frozen=True)
class Plane:
    """The squares a view shows, as voxel positions.

    Attributes
    ----------
    grid
        (T, L, L, 3) voxel positions (k, j, i).
    positions
        (T, L, L, 2) rows and columns in units of the first square's side, 0 at its centre, of
        every sample of each square.
    squares
        (T, 3) row and column of each square's centre, and its side, in those units.
    voxel_width
        Grid steps a voxel spans.
    """

    stack: LabelledStack
    piece: Piece
    grid: torch.Tensor
    positions: torch.Tensor
    squares: torch.Tensor
    voxel_width: float

    def sample_labels(self, size: int) -> torch.Tensor:
        """(T, size, size) labels, their borders smooth; other pieces of the object's label get a new one."""
        coarse = self._sample(torch.from_numpy(self.stack.labels_kji)[None], self.grid, "nearest")[:, 0]
        start = torch.tensor(self.piece.start_kji, dtype=torch.float32)
        mask = torch.from_numpy(self.piece.mask_kji)[None]
        ours = self._sample(mask, self.grid - start, "nearest")[:, 0] > 0.5
        coarse[(coarse == self.piece.label) & ~ours] = coarse.max() + 1
        values, inverse = torch.unique(coarse, return_inverse=True)
        if len(values) > 14:  # many small labels: smoothing each would cost more than it gives
            return functional.interpolate(coarse[:, None], size=(size, size), mode="nearest")[:, 0].long()
        fields = functional.one_hot(inverse, len(values)).permute(0, 3, 1, 2).float()
        fields = blur(fields.flatten(0, 1), min(max(0.9, 0.5 * self.voxel_width), 6.0)).view_as(fields)
        fields = functional.interpolate(fields, size=(size, size), mode="bilinear", align_corners=False)
        return values[fields.argmax(1)].long()

    def sample_image(self, size: int, rng: np.random.Generator) -> torch.Tensor:
        """(T, C, size, size) real intensities in 0..1; black outside the scan."""
        image = torch.from_numpy(self.stack.image_kji)
        channels = image[None] if image.ndim == 3 else image.permute(3, 0, 1, 2)
        grid = functional.interpolate(
            self.grid.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
        low, high = (0.0, 255.0) if image.dtype == torch.uint8 else _drawn_window(rng)
        return self._sample(channels, grid, "bilinear", low, high)

    @staticmethod
    def _sample(
        voxels: torch.Tensor, grid: torch.Tensor, mode: str, low: float = 0.0, high: float = 1.0
    ) -> torch.Tensor:
        """(T, C, h, w) values of (C, K, J, I) at voxel positions, `low` as 0 and `high` as 1; 0 outside."""
        # Only the block that is needed is made float: a volume may be a hundred times larger.
        first = [int(v) for v in (grid.amin((0, 1, 2)) - 1).floor()]
        last = [int(v) + 2 for v in (grid.amax((0, 1, 2)) + 1).ceil()]
        first = [min(max(v, 0), n - 1) for v, n in zip(first, voxels.shape[1:], strict=True)]
        last = [min(max(v, m + 1), n) for v, m, n in zip(last, first, voxels.shape[1:], strict=True)]
        block = voxels[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]].float()
        if (low, high) != (0.0, 1.0):
            block = ((block - low) / (high - low)).clamp(0, 1)
        shape = torch.tensor(block.shape[1:], dtype=torch.float32)
        normal = 2 * (grid - torch.tensor(first, dtype=torch.float32) + 0.5) / shape - 1
        normal = normal.flip(-1)[None]  # grid_sample wants (x, y, z)
        return functional.grid_sample(block[None], normal, mode=mode, align_corners=False)[0].transpose(0, 1)


def draw_plane(
    stack: LabelledStack, rng: np.random.Generator, frames: int, augmentation: Augmentation = BASE
) -> Plane | None:
    """Choose an object, a key slice and a direction; None when the draw hit nothing that can be shown."""
    piece = Piece.drawn(stack, rng)
    if piece is None:
        return None
    flat = stack.labels_kji.shape[0] == 1
    axis = _slice_axis(stack, rng)
    others = [a for a in range(3) if a != axis]
    spacing = np.array(stack.spacing_kji)
    areas = piece.areas(axis)
    key = _key_slice(areas, rng)
    course = _course(stack, areas, key, piece.start_kji[axis] + key, axis, frames, rng, augmentation.thin)
    if course is None:
        return None
    indices, step_mm = course
    boxes = [_box_mm(piece, axis, index, spacing) for index in indices]
    first = boxes[0]
    assert first is not None  # the key slice shows the object
    extent = first[2:] - first[:2]
    whole_mm = np.array(stack.labels_kji.shape)[others] * spacing[others]
    side = float(min(_scale(rng, frames, augmentation.wide) * extent.max(), 1.2 * max(whole_mm)))
    centre = (first[:2] + first[2:]) / 2
    centre = centre + rng.uniform(-0.5, 0.5, 2) * np.maximum(side - extent, 0.1 * side) * augmentation.shift
    regions = _followed(centre, side, boxes, whole_mm, follows=not flat and rng.random() < 0.75)
    slope = _slope(rng, augmentation)
    squares = np.array([[*np.linalg.solve(slope, c - centre), s] for c, s in regions]) / side
    positions, bent = _bent_positions(squares, flat, rng, augmentation.bend)
    leans = not flat and stack.complete and spacing.max() < 2 * spacing.min()
    lean = rng.normal(0, 0.2, 2) if leans else np.zeros(2)
    drift = rng.normal(0, 0.2, 2) * step_mm * (1.0 if leans else 0.3)
    in_plane = side * bent @ torch.from_numpy(slope.T.astype(np.float32))
    grid = torch.zeros(*in_plane.shape[:-1], 3)
    shift = torch.from_numpy(np.arange(frames)[:, None] * drift[None]).float()[:, None, None]
    grid[..., others] = in_plane + shift + torch.from_numpy(centre).float()
    through = in_plane @ torch.from_numpy(lean).float()
    along = torch.from_numpy(indices.astype(np.float32) * np.float32(spacing[axis]))
    grid[..., axis] = through + along[:, None, None]
    grid = grid / torch.from_numpy(spacing.astype(np.float32))
    width = float(spacing[others].mean()) * LABEL_SIDE / side
    return Plane(stack, piece, grid, positions, torch.from_numpy(squares.astype(np.float32)), width)


def _slice_axis(stack: LabelledStack, rng: np.random.Generator) -> int:
    """The axis slices are stacked along: as acquired for scans, and where slices are thick."""
    spacing = stack.spacing_kji
    if stack.image_kji is not None or stack.labels_kji.shape[0] == 1 or spacing[0] > 2.5 * min(spacing):
        return 0
    return int(rng.integers(3))


def _key_slice(areas: NDArray[np.int64], rng: np.random.Generator) -> int:
    """A slice of the object: the largest, or any that is not just its tip."""
    if rng.random() < 0.4:
        return int(areas.argmax())
    shares = np.where(areas >= 0.08 * areas.max(), np.sqrt(areas), 0.0)
    return int(rng.choice(len(areas), p=shares / shares.sum()))


def _course(
    stack: LabelledStack,
    areas: NDArray[np.int64],
    key: int,
    start: int,
    axis: int,
    frames: int,
    rng: np.random.Generator,
    thin: bool,
) -> tuple[NDArray[np.float64], float] | None:
    """Positions of the slices along the axis, from the key slice on, and their distance in mm.

    With `thin`, the object's end lies anywhere in the clip or a little beyond it.
    """
    if frames == 1 or stack.labels_kji.shape[0] == 1:
        return np.full(frames, float(start)), 0.0
    spacing, count = stack.spacing_kji[axis], stack.labels_kji.shape[axis]
    towards = int(rng.choice([-1, 1]))
    for direction in (towards, -towards):
        left = len(areas) - 1 - key if direction > 0 else key
        room = count - 1 - start if direction > 0 else start
        step = (left + 1) / int(rng.integers(1, frames + 4)) if thin else 1.0
        if stack.image_kji is not None:
            step = float(max(1, min(round(step), int(max(_THICKEST_MM / spacing, 1)))))
        else:
            step = max(step, 0.4 / spacing)
        if stack.image_kji is None:
            step = min(step, room / (frames - 1))
        else:
            step = min(step, float(room // (frames - 1)))
        if step * spacing >= 0.3:
            return (start + direction * step * np.arange(frames)).astype(np.float64), step * spacing
    if stack.image_kji is None or count < 2:
        return None
    # A scan too short for the clip: it turns back at the last slice.
    there_and_back = np.abs((start + towards * np.arange(frames)) % (2 * count - 2))
    return np.minimum(there_and_back, 2 * count - 2 - there_and_back).astype(np.float64), spacing


def _box_mm(piece: Piece, axis: int, index: float, spacing: NDArray) -> NDArray[np.float64] | None:
    """Top, left, bottom, right in mm of the object on a slice; None where it is not."""
    local = round(float(index)) - piece.start_kji[axis]
    if not 0 <= local < piece.mask_kji.shape[axis]:
        return None
    cut = np.take(piece.mask_kji, local, axis=axis)
    rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
    if not len(rows):
        return None
    others = [a for a in range(3) if a != axis]
    start = np.array([piece.start_kji[a] for a in others])
    corners = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]]) + start - 0.5
    return (corners * spacing[others]).ravel()


def _scale(rng: np.random.Generator, frames: int, wide: float) -> float:
    """Side of the first square in units of the object's longer side."""
    draw = rng.random()
    if frames > 1 and draw < 0.9 - wide:
        return float(np.exp(rng.uniform(np.log(1.5), np.log(3.0))))
    if draw < 1 - wide:
        return float(np.exp(rng.uniform(np.log(1.1), np.log(4.0))))
    return float(np.exp(rng.uniform(np.log(4.0), np.log(9.0))))


def _followed(
    centre: NDArray, side: float, boxes: list[NDArray[np.float64] | None], whole_mm: NDArray, follows: bool
) -> list[tuple[NDArray, float]]:
    """Centre and side in mm of the square on each slice, moved late as :meth:`Zoom.follow` moves it."""
    rule = Zoom((1, 1))
    regions = [(centre, side)]
    for box in boxes[:-1]:
        centre, side = regions[-1]
        if follows and box is not None:
            low, high = centre - side / 2, centre + side / 2
            near = rule.margin * side
            cut = ((box[:2] - low < near) & (low > 0)) | ((high - box[2:] < near) & (high < whole_mm))
            longer = float((box[2:] - box[:2]).max())
            if cut.any() or longer < rule.least * side:
                side = min(max(rule.factor * longer, rule.shrink * side), float(max(whole_mm)))
                centre = (box[:2] + box[2:]) / 2
        regions.append((centre, side))
    return regions


def _slope(rng: np.random.Generator, augmentation: Augmentation) -> NDArray[np.float64]:
    """(2, 2) a turn, a stretch and a shear of rows and columns."""
    angle, stretch = rng.normal(0, augmentation.turn), np.exp(rng.normal(0, augmentation.stretch))
    shear = rng.normal(0, augmentation.shear)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.diag([stretch, 1 / stretch]) @ turn @ np.array([[1.0, 0.0], [shear, 1.0]])


def _bent_positions(
    squares: NDArray, flat: bool, rng: np.random.Generator, bend: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, L, L, 2) positions of each square, and the same bent, in units of the first square's side.

    A flat picture has no slices to step through: it swells or shrinks instead, which keeps its real texture
    in clips.
    """
    frames = len(squares)
    steps = (torch.arange(LABEL_SIDE, dtype=torch.float32) + 0.5) / LABEL_SIDE - 0.5
    unit = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    placed = torch.from_numpy(squares.astype(np.float32))
    positions = placed[:, None, None, :2] + placed[:, None, None, 2:] * unit
    amount = rng.uniform(0, bend) if rng.random() < 0.6 else 0.0
    bent = positions
    if amount:
        knots = rng.standard_normal((2, 2, 5, 5)).astype(np.float32)
        first, last = torch.from_numpy(knots[0]), torch.from_numpy(knots[0] + 0.4 * knots[1])
        mix = torch.linspace(0, 1, frames)[:, None, None, None]
        fields = (1 - mix) * first + mix * last
        shift = functional.grid_sample(
            fields, positions.flip(-1).clamp(-1, 1), mode="bicubic", padding_mode="border", align_corners=True
        )
        bent = positions + amount * shift.permute(0, 2, 3, 1)
    if flat and frames > 1:
        pace = rng.choice([0.03, 0.08, 0.14])
        growth = np.exp(np.cumsum(rng.normal(rng.normal(0, 0.05), pace, frames - 1)))
        growth = np.clip(np.concatenate([[1.0], growth]), 0.35, 2.5)
        bent = bent * torch.from_numpy(growth.astype(np.float32))[:, None, None, None]
    return positions, bent


def _drawn_window(rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest shown value of CT in HU: soft tissue mostly, now and then lung or bone."""
    draw = rng.random()
    if draw < 0.7:
        centre, width = rng.uniform(0, 90), np.exp(rng.uniform(np.log(180), np.log(600)))
    else:
        centre, width = rng.uniform(-300, 350), np.exp(rng.uniform(np.log(900), np.log(2200)))
    return float(centre - width / 2), float(centre + width / 2)
