"""Views: what the model sees in training. A square around an object, turned, stretched and bent, in T slices.

Most views are centred near an object and 1.3 to 4 times its size, because that is what the engine's zoom
shows the model; some are wider, up to the whole slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medsam2_core.training.appearance import colourise, degrade, paint
from medsam2_core.training.augmentation import BASE, Augmentation, transformed
from medsam2_core.training.lesions import insert_lesion, lesion_level
from medsam2_core.training.planes import Plane, draw_plane
from medsam2_core.training.stacks import LabelledStack

MAX_OBJECTS = 3
_UNKNOWN = 255
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
    squares
        (T, 3) row and column of each slice's square and its side, in units of the first square's side: where
        it lies beside that one.
    row
        The data set, for curves by row.
    """

    image: torch.Tensor
    objects: torch.Tensor
    regions: torch.Tensor
    squares: torch.Tensor
    row: str


def make_view(
    stack: LabelledStack,
    rng: np.random.Generator,
    size: int,
    frames: int,
    shapes: Sequence[torch.Tensor] = (),
    augmentation: Augmentation = BASE,
) -> View | None:
    """Cut one view out of a labelled stack; None when the draw hit nothing worth learning from.

    Parameters
    ----------
    shapes
        Shapes of lesions to put in, see :func:`medsam2_core.training.lesions.load_shapes`.
    """
    plane = draw_plane(stack, rng, frames, augmentation)
    if plane is None:
        return None
    labels = plane.sample_labels(size)
    if stack.image_kji is None:
        if rng.random() < 0.35:
            level = lesion_level(plane.positions, size, rng, shapes)
            labels = torch.where(level < 1, labels.max() + 1, labels)
        image = colourise(paint(labels, rng), rng)
    else:
        image = plane.sample_image(size, rng)
        image, labels = _dress_real(plane, image, labels, rng, shapes, augmentation)
    image, labels = transformed(image, labels, augmentation, rng)
    objects = _choose_objects(labels, rng, plane.piece.label, augmentation.unions)
    if objects is None:
        return None
    regions = _regions(labels, stack.complete)
    return View(image.contiguous(), objects, regions, plane.squares, stack.row)


def flipped(view: View, rng: np.random.Generator, augmentation: Augmentation = BASE) -> View:
    """The same view flipped or turned by quarters, a little brighter or darker: cheap variety for a reused
    view.
    """
    turns = int(rng.integers(4)) if augmentation.flips == "all" else 0
    mirror = augmentation.flips != "none" and rng.random() < 0.5

    def turn(x: torch.Tensor) -> torch.Tensor:
        x = torch.rot90(x, turns, dims=(-2, -1))
        return x.flip(-1) if mirror else x

    image = turn(view.image)
    if rng.random() < 1.5 * augmentation.invert:
        image = 1 - image
    if augmentation.contrast:
        image = (image * rng.uniform(0.8, 1.2) + rng.uniform(-0.1, 0.1)).clamp(0, 1)
    rows, columns, sides = view.squares.unbind(-1)
    for _ in range(turns):
        rows, columns = -columns, rows
    squares = torch.stack([rows, -columns if mirror else columns, sides], dim=-1)
    return View(image, turn(view.objects), turn(view.regions), squares, view.row)


def _regions(labels: torch.Tensor, complete: bool) -> torch.Tensor:
    """uint8 numbers of the regions of a view; 255 where nothing is known, or for more than 255 of them."""
    numbers = torch.unique(labels, return_inverse=True)[1]
    regions = numbers.clamp(max=_UNKNOWN).to(torch.uint8)
    if not complete:
        regions[labels == 0] = _UNKNOWN
    return regions


def _dress_real(
    plane: Plane,
    image: torch.Tensor,
    labels: torch.Tensor,
    rng: np.random.Generator,
    shapes: Sequence[torch.Tensor],
    augmentation: Augmentation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary a real image: contrast, noise, resolution, tint; now and then a lesion that was never there."""
    if image.shape[1] == 3 and rng.random() < 10 * augmentation.tint:
        image = image.mean(1, keepdim=True)
    if image.shape[1] == 3:
        if rng.random() >= 2.5 * augmentation.contrast:
            return image, labels
        return (image * rng.uniform(0.8, 1.2)).clamp(0, 1).pow(float(np.exp(rng.normal(0, 0.2)))), labels
    grey = image[:, 0]
    if rng.random() < augmentation.lesions:
        level = lesion_level(plane.positions, labels.shape[-1], rng, shapes)
        labels, grey = insert_lesion(level, labels, grey, rng)
    if rng.random() < augmentation.invert:
        grey = 1 - grey
    draw = rng.random()
    if draw < augmentation.degrade:
        grey = degrade(grey, rng)
    elif draw < augmentation.degrade + augmentation.contrast:
        grey = (grey.clamp(min=1e-4).pow(float(np.exp(rng.normal(0, 0.3)))) * rng.uniform(0.8, 1.2)).clamp(
            0, 1
        )
    return colourise(grey, rng, augmentation.tint), labels


def _choose_objects(
    labels: torch.Tensor, rng: np.random.Generator, target: int, unions: float
) -> torch.Tensor | None:
    """Up to ``MAX_OBJECTS`` objects visible on the first slice; the one the view was made for comes first."""
    first = labels[0]
    values = [int(v) for v in torch.unique(first) if v > 0]
    if not values:
        return None
    order = sorted(values, key=lambda value: (value != target, rng.random()))
    chosen = []
    for value in order:
        whole = labels == value
        if value != target and rng.random() < 0.8:
            whole = _largest_piece(whole)
        chosen.append(whole)
    if len(values) > 1 and rng.random() < unions:  # organ with its vessels, wall with its lumen
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
