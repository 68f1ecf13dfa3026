"""Synthetic labelled volumes: for trying things out, for tests, and to see what training sees."""

import numpy as np
import torch
from torch.nn import functional

from medsam2_core.errors import TrainingError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.volume import Volume
from medsam2_core.training.anatomy import random_anatomy
from medsam2_core.training.appearance import paint

_SMALLEST = 32


def make_volume(seed: int, side: int = 128, slices: int = 48) -> tuple[Volume, Segmentation]:
    """One random volume with its truth; the same seed gives the same voxels.

    Parameters
    ----------
    side
        Rows and columns of a slice.
    slices
        Number of slices; fewer slices than ``side`` are thicker ones.

    Returns
    -------
    tuple
        A volume of (slices, side, side) int16 voxels from 0 to 1000, 1 mm in plane, and its labels as
        segments.

    Raises
    ------
    TrainingError
        If the volume would be smaller than 32 pixels a side or have no slice.
    """
    if side < _SMALLEST or slices < 1:
        raise TrainingError(f"a volume of {slices} slices of {side} pixels: at least 1 of {_SMALLEST} pixels")
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(random_anatomy(rng))[None, None].float()
    labels = functional.interpolate(labels, size=(slices, side, side), mode="nearest")[0, 0].long()
    image = paint(labels, rng)
    thickness = side / slices
    matrix = np.diag([-1.0, -1.0, thickness, 1.0])
    matrix[:2, 3] = (side - 1) / 2
    matrix[2, 3] = -thickness * (slices - 1) / 2
    geometry = Geometry(matrix, (side, side, slices))
    voxels = np.round(image.numpy() * 1000).astype(np.int16)
    values = labels.numpy()
    masks = {f"region {value}": values == value for value in np.unique(values) if value > 0}
    volume = Volume(voxels, geometry, modality="MR", name=f"synthetic {seed}")
    return volume, Segmentation.from_masks(geometry, masks, {"software": "random anatomy", "seed": seed})
