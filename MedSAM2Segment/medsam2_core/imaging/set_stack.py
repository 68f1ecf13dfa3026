"""An image set as slices to be prompted."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from medsam2_core.errors import PromptError
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.slices import SliceStack


class SetStack(SliceStack):
    """The images of a set as slices: a position in IJK is column, row and number of the image.

    There is no volume, and every image has a size of its own (:meth:`shape_of`).
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.pixel_mm, self.slice_mm = (1.0, 1.0), 1.0
        self.xyn_to_ijk, self.ijk_to_xyn = np.eye(4), np.eye(4)
        self.key = f"{len(images)} images"
        self.array_axis: int = 2

    def __len__(self) -> int:
        return len(self.images)

    @property
    def title(self) -> str:
        """What to call this stack in messages."""
        return "the image set"

    def shape_of(self, n: int) -> tuple[int, int]:
        """Return (H, W) of image ``n``."""
        return self.images.facts[self.checked(n)].shape_hw

    def extent_ijk(self, ijk: ArrayLike) -> tuple[int, int, int]:
        """Return the size of the image a position lies on, and the number of images."""
        n = min(max(round(float(np.asarray(ijk)[2])), 0), len(self) - 1)
        height, width = self.shape_of(n)
        return width, height, len(self)

    def image_hw(self, n: int) -> NDArray[Any]:
        """Return image ``n``: (H, W), or (H, W, 3) for colour."""
        return np.array(self.images[self.checked(n)].voxels_kji[0])

    def mask_of(
        self, mask_kji: NDArray[Any], n: int, offset_ijk: tuple[int, int, int] = (0, 0, 0)
    ) -> NDArray[np.bool_]:
        """Return the (H, W) mask of image ``n`` from a mask whose first pixel is ``offset_ijk``."""
        mask_hw = np.zeros(self.shape_of(n), dtype=bool)
        if 0 <= n - offset_ijk[2] < mask_kji.shape[0]:
            part, (i, j) = mask_kji[n - offset_ijk[2]], offset_ijk[:2]
            inside = mask_hw[j : j + part.shape[0], i : i + part.shape[1]]
            inside[...] = part[: inside.shape[0], : inside.shape[1]]
        return mask_hw

    def part_of(self, mask_hw: NDArray[np.bool_], n: int) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
        """Return the (1, H, W) mask of an image, and where it begins."""
        return mask_hw[np.newaxis], (0, 0, self.checked(n))

    def volume_values(
        self, values: Iterable[tuple[int, NDArray[Any]]], dtype: DTypeLike = np.uint8
    ) -> NDArray[Any]:
        """Raise PromptError: there is no volume."""
        raise PromptError("a set of images has no volume: use the masks of its images", code="no-volume")
