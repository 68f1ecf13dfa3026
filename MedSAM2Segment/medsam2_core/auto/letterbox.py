"""Letterboxing: an image resized into the model's square with its proportions kept, and results mapped back.

As in Sam2Rad (arXiv:2409.06821): the longest side becomes S, and zeros are padded at the bottom and on the
right after normalisation. The engine, in contrast, stretches whole slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.encoder import MEAN, STD


@dataclass(frozen=True)
class Letterbox:
    """Mapping between an image of (H, W) pixels and a square of `side` pixels.

    Attributes
    ----------
    pixel_hw
        Height and width of a pixel in any unit: anatomy keeps its proportions where pixels are not square.
    """

    shape_hw: tuple[int, int]
    side: int
    pixel_hw: tuple[float, float] = (1.0, 1.0)

    @property
    def content_hw(self) -> tuple[int, int]:
        """Height and width of the part of the square that the image fills, from the upper left corner."""
        lengths = [n * mm for n, mm in zip(self.shape_hw, self.pixel_hw, strict=True)]
        scale = self.side / max(lengths)
        height, width = (max(1, round(length * scale)) for length in lengths)
        return min(height, self.side), min(width, self.side)

    def resize(self, image_hwc: NDArray[np.uint8]) -> torch.Tensor:
        """Resize an (H, W, 3) uint8 image to (3, S, S) values from 0 to 1; 0 in the padding."""
        from PIL import Image

        height, width = self.content_hw
        resized = Image.fromarray(np.ascontiguousarray(image_hwc)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        square = torch.zeros(3, self.side, self.side)
        square[:, :height, :width] = torch.from_numpy(np.asarray(resized) / np.float32(255)).permute(2, 0, 1)
        return square

    def resize_labels(self, labels_hw: NDArray[np.integer]) -> torch.Tensor:
        """Resize (H, W) labels to (S, S) int16 with nearest neighbours; 0 in the padding."""
        height, width = self.content_hw
        rows = ((np.arange(height) + 0.5) * self.shape_hw[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * self.shape_hw[1] / width).astype(int)
        square = torch.zeros(self.side, self.side, dtype=torch.int16)
        taken = np.asarray(labels_hw)[rows][:, columns].astype(np.int16)
        square[:height, :width] = torch.from_numpy(taken)
        return square

    def normalise(self, square: torch.Tensor) -> torch.Tensor:
        """Normalise (..., 3, S, S) images as SAM 2 does; 0 (not black) in the padding."""
        mean, std = (torch.tensor(v, device=square.device)[:, None, None] for v in (MEAN, STD))
        height, width = self.content_hw
        inside = torch.zeros(self.side, self.side, device=square.device)
        inside[:height, :width] = 1
        return (square - mean) / std * inside

    def to_image(self, logits: torch.Tensor) -> torch.Tensor:
        """Resample (N, s, s) logits of the square to (N, H, W) logits of the image."""
        height, width = self.content_hw
        full = functional.interpolate(
            logits[:, None].float(), size=(self.side, self.side), mode="bilinear", align_corners=False
        )
        inner = full[:, :, :height, :width]
        return functional.interpolate(inner, size=self.shape_hw, mode="bilinear", align_corners=False)[:, 0]

    def points_from_units(self, points_xy: NDArray) -> NDArray[np.float64]:
        """Convert positions (..., 2) in units of the square's side to pixels of the image."""
        height, width = self.content_hw
        scale_xy = np.array([width / self.shape_hw[1], height / self.shape_hw[0]]) / self.side
        return np.asarray(points_xy, dtype=np.float64) / scale_xy - 0.5
