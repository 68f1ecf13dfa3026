"""What the engine segments: images by their number, wherever they come from (see ``sources``)."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class ImageSource(ABC):
    """Slices (or images) to be segmented, as they are displayed.

    Attributes
    ----------
    key
        Two sources of equal key show equal images: content, how it is cut into slices, window.
    ordered
        Whether neighbours in number are neighbours in space; a set of images is not.
    pixel_mm
        (between rows, between columns).
    """

    key: str
    ordered: bool
    pixel_mm: tuple[float, float]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of slices."""

    @abstractmethod
    def shape_of(self, n: int) -> tuple[int, int]:
        """Return (H, W) of slice `n`."""

    @abstractmethod
    def image(self, n: int) -> NDArray[np.uint8]:
        """Return slice `n` (H, W, 3), windowed; not to be changed."""


class UnorderedSource(ImageSource):
    """Images that may have no order, which is then made by what they show."""

    @abstractmethod
    def image_key(self, n: int) -> str:
        """Return what is equal for equal images, whatever their number."""

    @abstractmethod
    def thumbnail(self, n: int) -> NDArray[np.float32]:
        """Return (T,) values of length 1 by which images are compared."""
