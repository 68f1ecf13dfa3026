"""Mask logits between regions, and between regions and slices.

Low-resolution logits are (1, 1, S/4, S/4) over a region; positive is inside. sam2's own constants: an
absent object is -1024 everywhere, a user's mask is +-10.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.slice_mask import MAXIMUM, PackedValues, agreeing

#: Logits of an absent object, sam2's own.
ABSENT = -1024.0
#: Logits outside the region the model saw: surely not the object.
BEYOND = -10.0
# Of logits that are changed afterwards: for a mask the model never answered with, and at most.
_WEAK, _SURE = 2.0, 32.0


def mask_of_logits(logits: torch.Tensor, region: Region, shape_hw: Sequence[int]) -> NDArray[np.bool_]:
    """Return the (H, W) mask of the slice from logits (1, 1, s, s) over a region."""
    return region.paste(_in_region(logits, region).cpu().numpy() > 0, shape_hw)


def probabilities_of_logits(logits: torch.Tensor, region: Region, mask_hw: NDArray[np.bool_]) -> PackedValues:
    """Return the probabilities of a slice, times 255, from the logits that :func:`mask_of_logits` made its
    mask of.

    0 where the region does not reach.
    """
    scaled = (_in_region(logits, region).sigmoid() * MAXIMUM).round().to(torch.uint8)
    values = agreeing(scaled.cpu().numpy(), region.crop(mask_hw))
    return PackedValues.of(region.paste(values, mask_hw.shape))


def logits_in_slice(logits: torch.Tensor, region: Region, shape_hw: Sequence[int]) -> NDArray[np.float32]:
    """Return (H, W) logits of the slice from logits (1, 1, s, s) over a region; `BEYOND` outside it."""
    return region.paste(_in_region(logits, region).cpu().numpy(), shape_hw, BEYOND)


def _in_region(logits: torch.Tensor, region: Region) -> torch.Tensor:
    # A region is whole pixels, so interpolation alone puts the values on the pixels' centres.
    size = (region.height, region.width)
    return functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0, 0]


def mask_for_model(mask_hw: NDArray, region: Region, image_size: int, device: torch.device) -> torch.Tensor:
    """Return (1, 1, S, S) of 0 and 1 from a mask of the slice, as stock `add_new_mask` makes it."""
    crop = np.ascontiguousarray(region.crop(np.asarray(mask_hw, dtype=bool)))
    mask = torch.from_numpy(crop)[None, None].float().to(device)
    if mask.shape[-2:] == (image_size, image_size):
        return mask
    size = (image_size, image_size)
    mask = functional.interpolate(mask, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (mask >= 0.5).float()


def logits_of_mask(
    mask_hw: NDArray, region: Region, size: int, device: torch.device, height: float = 10.0
) -> torch.Tensor:
    """Return (1, 1, size, size) logits between -height and +height from a mask of the slice."""
    crop = np.ascontiguousarray(region.crop(np.asarray(mask_hw, dtype=bool)))
    mask = torch.from_numpy(crop)[None, None].float().to(device)
    mask = functional.interpolate(
        mask, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return mask * (2 * height) - height


def moved_logits(logits: torch.Tensor, old: Region, new: Region) -> torch.Tensor:
    """Return the logits (1, 1, s, s) over one region as logits of the same size over another; `BEYOND`
    where unknown."""
    if (old.x0, old.y0, old.x1, old.y1) == (new.x0, new.y0, new.x1, new.y1):
        return logits
    size = logits.shape[-1]
    steps = (torch.arange(size, device=logits.device, dtype=torch.float32) + 0.5) / size

    def positions(first: int, length: int, old_first: int, old_length: int) -> torch.Tensor:
        return 2 * (first + steps * length - old_first) / old_length - 1

    x = positions(new.x0, new.width, old.x0, old.width)
    y = positions(new.y0, new.height, old.y0, old.height)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    # Shifted so that "unknown" is the zero that grid_sample pads with; an absent object's -1024 must not
    # smear.
    shifted = logits.float().clamp(min=-32.0, max=32.0) - BEYOND
    return functional.grid_sample(shifted, grid, align_corners=False, padding_mode="zeros") + BEYOND


def mixed_logits(
    logits: torch.Tensor,
    old: torch.Tensor,
    region: Region,
    mask_hw: NDArray[np.bool_],
    wanted_hw: NDArray[np.bool_],
) -> torch.Tensor:
    """Return logits (1, 1, s, s) whose mask is `wanted_hw`, as far as s x s values can say it.

    Parameters
    ----------
    logits, old
        Those of `mask_hw`, and earlier ones that count where another mask is wanted; where these say the
        same as `mask_hw`, a weak logit of the wanted sign stands for them. Both over `region`.
    """
    size = logits.shape[-1]
    differs = torch.from_numpy(region.crop(mask_hw != wanted_hw).astype(np.float32))[None, None]
    # On the CPU: not every device does this for all sizes.
    share = functional.interpolate(differs, size=(size, size), mode="area").to(logits.device)
    wanted = logits_of_mask(wanted_hw, region, size, logits.device, _WEAK)
    replaced = torch.where((old > 0) == (wanted > 0), old.clamp(-_SURE, _SURE), wanted)
    return torch.where(share > 0, replaced, logits)
