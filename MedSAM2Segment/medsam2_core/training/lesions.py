"""Lesions that were never there: ellipsoids and real shapes, put into label maps and real images.

They have a first and a last slice: in a clip they grow, shrink and end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from medsam2_core.training.anatomy import smooth_noise


def lesion_level(
    positions: torch.Tensor, size: int, rng: np.random.Generator, shapes: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """(T, size, size) field below 1 inside a lesion.

    Parameters
    ----------
    positions
        (T, L, L, 2) rows and columns in units of the view's side, 0 at the first square's centre.
    shapes
        To choose from, half of the time.
    """
    frames = len(positions)
    grid = functional.interpolate(
        positions.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
    ).permute(0, 2, 3, 1)
    centre = torch.from_numpy(rng.uniform(-0.3, 0.3, 2).astype(np.float32))
    radii = torch.from_numpy((rng.uniform(0.05, 0.25) * np.exp(rng.normal(0, 0.3, 2))).astype(np.float32))
    # In slices: how far the lesion reaches, and on which one it is largest.
    reach = float(np.exp(rng.uniform(np.log(0.8), np.log(max(frames, 2)))))
    middle = rng.uniform(-0.5, 0.8) * reach if frames > 1 else 0.0
    along = (torch.arange(frames, dtype=torch.float32) - middle)[:, None, None, None] / reach
    along = along.expand(-1, size, size, 1)
    local = torch.cat([along, (grid - centre) / radii], dim=-1)  # 1 on the ellipsoid
    if len(shapes) and rng.random() < 0.5:
        shape = shapes[int(rng.integers(len(shapes)))].float()
        order = rng.permutation(3)
        cube = shape.permute(*(int(n) for n in order))[None, None]
        inside = functional.grid_sample(cube, local.flip(-1)[None], mode="bilinear", align_corners=False)[
            0, 0
        ]
        return 2 * (1 - inside)
    level = local.square().sum(-1)
    wave = float(rng.choice([0.05, 0.2, 0.4]))
    return level * (1 + wave * smooth_noise(rng, (size, size), 8)).clamp(min=0.2)


def insert_lesion(
    level: torch.Tensor, labels: torch.Tensor, grey: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Brighten or darken a lesion in (T, S, S) real slices: real texture around and inside a border known
    exactly. Returns the labels with it, and the image."""
    soft = torch.sigmoid((1 - level) * float(rng.choice([4.0, 10.0, 25.0])))
    change = float(rng.choice([-1, 1]) * rng.uniform(0.08, 0.4))
    grey = (grey * (1 - 0.5 * soft * abs(change)) + change * soft).clamp(0, 1)
    return torch.where(level < 1, labels.max() + 1, labels), grey
