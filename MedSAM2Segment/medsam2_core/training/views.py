"""Views: what the model sees in training. A square around an object, turned, stretched and bent, in T slices.

Most views are centred near an object and 1.3 to 4 times its size, because that is what the engine's zoom
shows the model; some are wider, up to the whole slice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from medsam2_core.training.anatomy import smooth_noise
from medsam2_core.training.appearance import blur, colourise, degrade, paint
from medsam2_core.training.sources import LabelledStack

MAX_OBJECTS = 3
# Labels are sampled at this side and smoothed up to the view's: voxel stairs are not anatomy.
_LABEL_SIDE = 128
_SMALLEST_OBJECT = 40  # pixels in a 256-pixel view


@dataclass(frozen=True)
class View:
    """One training example.

    Attributes
    ----------
    image
        (T, 3, S, S) float32, 0 to 1.
    objects
        (T, M, S, S) bool, up to ``MAX_OBJECTS`` objects; an object may be absent from a slice.
    regions
        (T, S, S) uint8: all labels, for the affinity loss; 255 where nothing is known.
    row
        The data set, for curves by row.
    """

    image: torch.Tensor
    objects: torch.Tensor
    regions: torch.Tensor
    row: str


def make_view(stack: LabelledStack, rng: np.random.Generator, size: int, frames: int) -> View | None:
    """Cut one view out of a labelled stack; None when the draw hit nothing worth learning from.

    Parameters
    ----------
    size
        Side S of the view in pixels.
    frames
        Number of slices T.
    """
    plane = _Plane.around_an_object(stack, rng, frames)
    if plane is None:
        return None
    labels = plane.sample_labels(size)
    if stack.image_kji is None:
        if rng.random() < 0.3:
            labels = _add_lesion(labels, rng)
        image = colourise(paint(labels, rng), rng)
    else:
        image, labels = _dress_real(plane.sample_image(size), labels, rng)
    objects = _choose_objects(labels, rng, plane.target)
    if objects is None:
        return None
    regions = labels.to(torch.uint8)
    if not stack.complete:
        regions = torch.where(labels == 0, torch.full_like(regions, 255), regions)
    return View(image.contiguous(), objects, regions, stack.row)


def flipped(view: View, rng: np.random.Generator) -> View:
    """The same view flipped or turned by quarters, a little brighter or darker: cheap variety for a reused
    view.
    """
    turns, mirror = int(rng.integers(4)), rng.random() < 0.5

    def turn(x: torch.Tensor) -> torch.Tensor:
        x = torch.rot90(x, turns, dims=(-2, -1))
        return x.flip(-1) if mirror else x

    image = turn(view.image)
    if rng.random() < 0.15:
        image = 1 - image
    image = (image * rng.uniform(0.8, 1.2) + rng.uniform(-0.1, 0.1)).clamp(0, 1)
    return View(image, turn(view.objects), turn(view.regions), view.row)


@dataclass(frozen=True)
class _Plane:
    """Where a view lies: for every slice a grid of voxel positions."""

    stack: LabelledStack
    target: int
    grid: torch.Tensor  # (T, L, L, 3) voxel positions (k, j, i)
    voxel_width: float  # grid steps a voxel spans

    @classmethod
    def around_an_object(cls, stack: LabelledStack, rng: np.random.Generator, frames: int) -> "_Plane | None":
        labels = stack.labels_kji
        flat = labels.shape[0] == 1
        axis = 0 if flat else int(rng.integers(3))
        if stack.image_kji is not None:
            axis = 0  # real scans are viewed as they were acquired
        target = _pick_label(labels, rng)
        if target is None:
            return None
        centre_kji = _pick_voxel(labels, target, rng)
        cut = np.take(labels, int(centre_kji[axis]), axis=axis) == target
        spots, _ = ndimage.label(cut)
        others = [a for a in range(3) if a != axis]
        spot = spots == spots[tuple(int(centre_kji[a]) for a in others)]
        rows, columns = np.nonzero(spot)
        spacing = np.array(stack.spacing_kji)
        extent = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) * spacing[others]
        whole = max(np.array(labels.shape)[others] * spacing[others])
        scale = np.exp(
            rng.uniform(np.log(1.3), np.log(4.0)) if rng.random() < 0.8 else rng.uniform(np.log(4), np.log(9))
        )
        side_mm = float(min(scale * extent.max(), 1.2 * whole))
        middle = (
            np.array([(rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2]) * spacing[others]
        )
        middle = middle + rng.uniform(-0.5, 0.5, 2) * np.maximum(side_mm - extent, 0.1 * side_mm) * 0.8
        centre = np.zeros(3)
        centre[axis] = centre_kji[axis] * spacing[axis]
        centre[others] = middle
        thickness = extent.max() * rng.uniform(0.03, 0.25) if frames > 1 else 0.0
        grid_mm = _bent_grid(
            _Pose(axis, centre, side_mm, thickness, flat, tilts=not flat and stack.complete), rng, frames
        )
        grid = grid_mm / torch.from_numpy(spacing.astype(np.float32))
        return cls(stack, target, grid, float(spacing[others].mean()) * _LABEL_SIDE / side_mm)

    def sample_labels(self, size: int) -> torch.Tensor:
        """(T, size, size) labels, their borders smooth."""
        coarse = self._sample(torch.from_numpy(self.stack.labels_kji)[None].float(), self.grid, "nearest")[
            :, 0
        ]
        values, inverse = torch.unique(coarse, return_inverse=True)
        if len(values) > 14:  # many small labels: smoothing each would cost more than it gives
            return functional.interpolate(coarse[:, None], size=(size, size), mode="nearest")[:, 0].long()
        fields = functional.one_hot(inverse, len(values)).permute(0, 3, 1, 2).float()
        fields = blur(fields.flatten(0, 1), min(max(0.9, 0.5 * self.voxel_width), 6.0)).view_as(fields)
        fields = functional.interpolate(fields, size=(size, size), mode="bilinear", align_corners=False)
        return values[fields.argmax(1)].long()

    def sample_image(self, size: int) -> torch.Tensor:
        """(T, C, size, size) real intensities in 0..1; black outside the scan."""
        image = torch.from_numpy(self.stack.image_kji)
        channels = image[None] if image.ndim == 3 else image.permute(3, 0, 1, 2)
        grid = functional.interpolate(
            self.grid.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
        return self._sample(channels.float() / 255, grid, "bilinear")

    def _sample(self, channels: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
        shape = torch.tensor(channels.shape[1:], dtype=torch.float32)
        normal = 2 * (grid + 0.5) / shape - 1
        normal = normal.flip(-1)[None]  # grid_sample wants (x, y, z)
        return functional.grid_sample(channels[None], normal, mode=mode, align_corners=False)[0].transpose(
            0, 1
        )


@dataclass(frozen=True)
class _Pose:
    """Where a clip begins and how large it is, in mm along the array axes (k, j, i)."""

    axis: int
    centre_mm: np.ndarray
    side_mm: float
    thickness_mm: float
    flat: bool
    tilts: bool

    @property
    def in_plane(self) -> list[int]:
        """Array axes of a slice's rows and columns."""
        return [a for a in range(3) if a != self.axis]


def _bent_grid(pose: _Pose, rng: np.random.Generator, frames: int) -> torch.Tensor:
    """(T, L, L, 3) positions in mm: a turned, stretched, bent square, stepping through the slices.

    A flat picture has no slices to step through: it swells or shrinks instead, which keeps its real texture
    in clips.
    """
    others = pose.in_plane
    steps = (torch.arange(_LABEL_SIDE, dtype=torch.float32) + 0.5) / _LABEL_SIDE - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    angle = rng.normal(0, 0.3)
    stretch = float(np.exp(rng.normal(0, 0.12)))
    shear = rng.normal(0, 0.1)
    rows = (np.cos(angle) * y - np.sin(angle) * x) * stretch
    columns = (np.sin(angle) * y + np.cos(angle) * x + shear * y) / stretch
    bend = rng.uniform(0, 0.07) if rng.random() < 0.6 else 0.0
    first = [smooth_noise(rng, (_LABEL_SIDE, _LABEL_SIDE), 4) for _ in range(2)]
    last = [field + 0.5 * smooth_noise(rng, (_LABEL_SIDE, _LABEL_SIDE), 4) for field in first]
    drift = rng.normal(0, 0.4, 2) * pose.thickness_mm
    lean = rng.normal(0, 0.25, 2) if pose.tilts else np.zeros(2)
    # Every clip starts at the object's slice and leaves it towards one side.
    towards = 0.0 if pose.flat else rng.choice([-1.0, 1.0])
    swelling = rng.normal(0, 0.3) if pose.flat else 0.0
    grid = torch.zeros(frames, _LABEL_SIDE, _LABEL_SIDE, 3)
    for frame in range(frames):
        mix = frame / max(frames - 1, 1)
        now = pose.side_mm * float(np.exp(mix * swelling))
        row_mm = now * (rows + bend * ((1 - mix) * first[0] + mix * last[0])) + frame * drift[0]
        column_mm = now * (columns + bend * ((1 - mix) * first[1] + mix * last[1])) + frame * drift[1]
        grid[frame, ..., others[0]] = row_mm + pose.centre_mm[others[0]]
        grid[frame, ..., others[1]] = column_mm + pose.centre_mm[others[1]]
        through = towards * frame * pose.thickness_mm + lean[0] * row_mm + lean[1] * column_mm
        grid[frame, ..., pose.axis] = through + pose.centre_mm[pose.axis]
    return grid


def _pick_label(labels: np.ndarray, rng: np.random.Generator) -> int | None:
    counts = np.bincount(labels[:: max(1, labels.shape[0] // 24)].ravel())
    present = np.nonzero(counts[1:] >= 12)[0] + 1
    return int(rng.choice(present)) if len(present) else None


def _pick_voxel(labels: np.ndarray, target: int, rng: np.random.Generator) -> np.ndarray:
    hits = np.flatnonzero(labels.ravel() == target)
    return np.array(np.unravel_index(int(rng.choice(hits)), labels.shape))


def _dress_real(
    image: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary a real image: contrast, noise, resolution, tint; now and then a lesion that was never there."""
    if image.shape[1] == 3 and rng.random() < 0.5:
        image = image.mean(1, keepdim=True)
    if image.shape[1] == 3:
        return (image * rng.uniform(0.8, 1.2)).clamp(0, 1).pow(float(np.exp(rng.normal(0, 0.2)))), labels
    grey = image[:, 0]
    if rng.random() < 0.25:
        labels, grey = _insert_lesion(labels, grey, rng)
    if rng.random() < 0.1:
        grey = 1 - grey
    draw = rng.random()
    if draw < 0.35:
        grey = degrade(grey, rng)
    elif draw < 0.8:
        grey = (grey.clamp(min=1e-4).pow(float(np.exp(rng.normal(0, 0.3)))) * rng.uniform(0.8, 1.2)).clamp(
            0, 1
        )
    return colourise(grey, rng, 0.05), labels


def _lesion_shape(size: int, rng: np.random.Generator) -> torch.Tensor:
    steps = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    cy, cx = rng.uniform(0.2, 0.8, 2)
    ry, rx = rng.uniform(0.05, 0.25) * np.exp(rng.normal(0, 0.3, 2))
    level = ((y - cy) / ry).square() + ((x - cx) / rx).square()
    return level * (1 + float(rng.choice([0.05, 0.2, 0.4])) * smooth_noise(rng, (size, size), 8)).clamp(
        min=0.2
    )


def _add_lesion(labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    inside = _lesion_shape(labels.shape[-1], rng) < 1
    return torch.where(inside[None], labels.max() + 1, labels)


def _insert_lesion(
    labels: torch.Tensor, grey: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brighten or darken a blob of a real image: real texture around and inside a border known exactly."""
    level = _lesion_shape(labels.shape[-1], rng)
    soft = torch.sigmoid((1 - level) * float(rng.choice([4.0, 10.0, 25.0])))
    change = float(rng.choice([-1, 1]) * rng.uniform(0.08, 0.4))
    grey = (grey * (1 - 0.5 * soft * abs(change)) + change * soft).clamp(0, 1)
    return torch.where((level < 1)[None], labels.max() + 1, labels), grey


def _choose_objects(labels: torch.Tensor, rng: np.random.Generator, target: int) -> torch.Tensor | None:
    """Up to ``MAX_OBJECTS`` objects visible on the first slice; the one the view was made for comes first."""
    first = labels[0]
    values = [int(v) for v in torch.unique(first) if v > 0]
    if not values:
        return None
    order = sorted(values, key=lambda value: (value != target, rng.random()))
    chosen = []
    for value in order:
        whole = labels == value
        if rng.random() < 0.8:
            whole = _largest_piece(whole)
        chosen.append(whole)
    if len(values) > 1 and rng.random() < 0.25:  # organ with its vessels, wall with its lumen
        pair = rng.choice(values, 2, replace=False)
        chosen.insert(1, (labels == int(pair[0])) | (labels == int(pair[1])))
    smallest = _SMALLEST_OBJECT * (labels.shape[-1] / 256) ** 2
    visible = [mask for mask in chosen if smallest <= int(mask[0].sum()) <= 0.85 * first.numel()]
    return torch.stack(visible[:MAX_OBJECTS], dim=1) if visible else None


def _largest_piece(mask: torch.Tensor) -> torch.Tensor:
    """The connected piece (through all slices) that is largest on the first one."""
    pieces, count = ndimage.label(mask.numpy())
    on_first = np.bincount(pieces[0].ravel(), minlength=count + 1)[1:]
    if count <= 1 or not on_first.any():
        return mask
    return torch.from_numpy(pieces == int(on_first.argmax()) + 1)
