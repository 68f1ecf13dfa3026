"""Dice, normalised surface Dice and 95 % Hausdorff distance of one object, by MONAI."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from medsam2_core.errors import MissingPackageError


@dataclass(frozen=True)
class Scores:
    """How well a mask agrees with the truth.

    Attributes
    ----------
    surface_dice
        Share of the surfaces within the tolerance (Nikolov et al. 2018), 0 to 1.
    hd95_mm
        95th percentile of the distance between the surfaces in mm; None when one mask is empty.
    """

    dice: float
    surface_dice: float
    hd95_mm: float | None


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice similarity coefficient of masks of equal shape; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((mask & truth).sum()) / total


def scores(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: tuple[float, ...],
    tolerance_mm: float | None = None,
) -> Scores:
    """Compare a mask with the truth.

    Parameters
    ----------
    mask, truth
        (K, J, I) or (H, W) bool.
    spacing_mm
        Voxel size along each array axis. A volume of one slice is compared as a picture.
    tolerance_mm
        For the surface Dice; by default the largest spacing, that is one voxel.
    """
    tolerance = max(spacing_mm) if tolerance_mm is None else tolerance_mm
    overlap = dice(mask, truth)
    if not mask.any() or not truth.any():
        return Scores(overlap, 1.0 if overlap == 1.0 else 0.0, None)
    if mask.ndim == 3 and mask.shape[0] == 1:
        # A picture: in space it would be all surface, and every pixel of it on the border.
        mask, truth, spacing_mm = mask[0], truth[0], spacing_mm[1:]
        tolerance = max(spacing_mm) if tolerance_mm is None else tolerance_mm
    return Scores(overlap, *_surface_scores(mask, truth, spacing_mm, tolerance))


def require_monai() -> None:
    """MissingPackageError when what measures distances is not installed."""
    try:
        found = find_spec("monai")
    except ValueError:  # something stands in its place
        found = None
    if found is None:
        raise MissingPackageError(
            "measuring needs the package monai, which is not installed: it comes with the extra `metrics`, "
            "`pip install 'medsam2-core[metrics]'` or, in a checkout, `pip install -e '.[metrics]'`",
            code="monai-missing",
        )


def _surface_scores(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and HD95 of masks that hold something."""
    import warnings

    import torch

    part = _around(mask | truth)
    # MONAI expects (batch, class, ...).
    ours, theirs = (
        torch.from_numpy(np.ascontiguousarray(m[part]))[None, None].float() for m in (mask, truth)
    )
    spacing = [float(value) for value in spacing_mm]
    with warnings.catch_warnings():
        # MONAI 1.5 warns of an argument that only MONAI itself passes.
        warnings.filterwarnings("ignore", r"(?s).*always_return_as_numpy", FutureWarning)
        from monai.metrics import compute_hausdorff_distance, compute_surface_dice

        surface = compute_surface_dice(ours, theirs, [tolerance], include_background=True, spacing=spacing)
        distance = compute_hausdorff_distance(
            ours, theirs, include_background=True, percentile=95, spacing=spacing
        )
    return float(surface[0, 0]), float(distance[0, 0])


def _around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The part of the grid that holds the mask, with one voxel around: distances outside it do not matter."""
    parts = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        parts.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return tuple(parts)
