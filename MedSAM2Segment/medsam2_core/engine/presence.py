"""Whether a tracked object is still there: what its mask covers, beside what it covers where it is prompted.

A tracker that copies the mask of the previous slice past the object's end still predicts a high IoU. The
image tells more: past the end, the mask covers other tissue, or its inside and surroundings no longer differ.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medsam2_core.engine.zoom import Region

_BINS = 16


@dataclass(frozen=True, slots=True)
class Appearance:
    """Grey values of an object on one slice.

    Attributes
    ----------
    area
        Pixels of the slice.
    inside, around
        (16,) shares of the grey values in the mask, and in a ring around it.
    """

    area: float
    inside: NDArray[np.float64]
    around: NDArray[np.float64]

    @classmethod
    def of(cls, image: NDArray[np.uint8], region: Region, logits: torch.Tensor) -> "Appearance | None":
        """Return that of logits (1, 1, s, s) over a region of an (H, W, 3) image; None of an empty mask."""
        from scipy import ndimage

        mask = logits[0, 0].cpu().numpy() > 0
        count = int(mask.sum())
        if count == 0:
            return None
        side = len(mask)
        # A grey image is the same in all three channels, which need not be mixed.
        shown = image[..., 0] if image.strides[2] == 0 else image
        crop = Image.fromarray(np.ascontiguousarray(region.crop(shown))).convert("L")
        grey = np.asarray(crop.resize((side, side), Image.Resampling.BOX))
        width = max(2, round(count**0.5 / 6))
        near = ndimage.binary_dilation(mask)  # pixels on the border belong to both
        ring = ndimage.binary_dilation(near, iterations=width) & ~near
        area = count * region.width * region.height / side**2
        return cls(area, _shares(grey[mask]), _shares(grey[ring]))


def evidence(seed: Appearance, here: Appearance, predicted_iou: float) -> NDArray[np.float64]:
    """Return what speaks for an object's presence, beside the prompted slice it is tracked from.

    Returns
    -------
    NDArray
        (5,) 1; predicted IoU; logarithm of the area's ratio; likeness of the grey values inside; likeness of
        inside and around, less what it is on the prompted slice. Likeness is the intersection of histograms,
        0 to 1.
    """
    contrast_lost = _likeness(here.inside, here.around) - _likeness(seed.inside, seed.around)
    ratio = np.log(here.area / seed.area)
    return np.array([1.0, predicted_iou, ratio, _likeness(seed.inside, here.inside), contrast_lost])


def _shares(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    counts = np.bincount(values // (256 // _BINS), minlength=_BINS)
    return counts / max(1, len(values))


def _likeness(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.minimum(a, b).sum())
