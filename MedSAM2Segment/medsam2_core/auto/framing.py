"""An image in the square the model sees: longest side to S, the rest black, and back again.

As Sam2Rad does it: proportions are kept (zero padding at the bottom and on the right, after normalisation),
unlike the engine's stretched whole slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.encoder import MEAN, STD


@dataclass(frozen=True)
class Frame:
    """How an image of (H, W) pixels lies in a square of `side` pixels.

    Attributes
    ----------
    pixel_hw
        Height and width of a pixel in any unit: images with oblong pixels keep the anatomy's proportions.
    """

    shape_hw: tuple[int, int]
    side: int
    pixel_hw: tuple[float, float] = (1.0, 1.0)

    @property
    def inner_hw(self) -> tuple[int, int]:
        """The part of the square the image fills, from its upper left corner."""
        lengths = [n * mm for n, mm in zip(self.shape_hw, self.pixel_hw, strict=True)]
        scale = self.side / max(lengths)
        height, width = (max(1, round(length * scale)) for length in lengths)
        return min(height, self.side), min(width, self.side)

    def pixels(self, image_hwc: NDArray[np.uint8]) -> torch.Tensor:
        """(3, side, side) of 0 to 1 from a displayed image (H, W, 3); black where the image is not."""
        from PIL import Image

        height, width = self.inner_hw
        resized = Image.fromarray(np.ascontiguousarray(image_hwc)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        square = torch.zeros(3, self.side, self.side)
        square[:, :height, :width] = torch.from_numpy(np.asarray(resized) / np.float32(255)).permute(2, 0, 1)
        return square

    def labels(self, labels_hw: NDArray[np.integer]) -> torch.Tensor:
        """(side, side) int16 labels, nearest neighbours only; 0 where the image is not."""
        height, width = self.inner_hw
        rows = ((np.arange(height) + 0.5) * self.shape_hw[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * self.shape_hw[1] / width).astype(int)
        square = torch.zeros(self.side, self.side, dtype=torch.int16)
        taken = np.asarray(labels_hw)[rows][:, columns].astype(np.int16)
        square[:height, :width] = torch.from_numpy(taken)
        return square

    def normalised(self, square: torch.Tensor) -> torch.Tensor:
        """(..., 3, side, side) normalised as SAM 2 wants it, zero (not black) where the image is not."""
        mean, std = (torch.tensor(v, device=square.device)[:, None, None] for v in (MEAN, STD))
        height, width = self.inner_hw
        inside = torch.zeros(self.side, self.side, device=square.device)
        inside[:height, :width] = 1
        return (square - mean) / std * inside

    def on_image(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, H, W) logits of the image from (N, s, s) over the square."""
        height, width = self.inner_hw
        full = functional.interpolate(
            logits[:, None].float(), size=(self.side, self.side), mode="bilinear", align_corners=False
        )
        inner = full[:, :, :height, :width]
        return functional.interpolate(inner, size=self.shape_hw, mode="bilinear", align_corners=False)[:, 0]

    def points_to_units(self, points_xy: NDArray) -> NDArray[np.float32]:
        """Image positions (..., 2), pixel centres at integers, in units of the square's side."""
        return ((np.asarray(points_xy, dtype=np.float64) + 0.5) * self._scale_xy).astype(np.float32)

    def points_from_units(self, points_xy: NDArray) -> NDArray[np.float64]:
        """Back from :meth:`points_to_units`."""
        return np.asarray(points_xy, dtype=np.float64) / self._scale_xy - 0.5

    @property
    def _scale_xy(self) -> NDArray[np.float64]:
        height, width = self.inner_hw
        return np.array([width / self.shape_hw[1], height / self.shape_hw[0]]) / self.side


def frame_of(image: NDArray, side: int, pixel_hw: Sequence[float] = (1.0, 1.0)) -> Frame:
    """The frame of an image (H, W, ...)."""
    return Frame((int(image.shape[0]), int(image.shape[1])), side, (float(pixel_hw[0]), float(pixel_hw[1])))
