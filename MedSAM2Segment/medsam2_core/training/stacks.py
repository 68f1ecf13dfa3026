"""Labelled scans and pictures in memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class LabelledStack:
    """Labels, and the scan they belong to if it may be used.

    Attributes
    ----------
    labels_kji
        (K, J, I) int16, numbered 0..n.
    image_kji
        (K, J, I) or (K, J, I, 3) uint8, (K, J, I) int16 for CT in HU, or None: then an appearance is made up.
    spacing_kji
        Voxel size in mm along each axis; 1 where unknown.
    complete
        Whether every pixel is labelled: only then does label 0 mean one region.
    """

    row: str
    case: str
    labels_kji: np.ndarray
    image_kji: np.ndarray | None
    spacing_kji: tuple[float, float, float]
    complete: bool

    @cached_property
    def voxel_counts(self) -> np.ndarray:
        """Voxels of each label, 0 included."""
        return np.bincount(self.labels_kji.ravel())

    @cached_property
    def bounding_boxes(self) -> list:
        """Slices of the box around each label, from label 1 on; None for a label that does not occur."""
        return ndimage.find_objects(self.labels_kji)
