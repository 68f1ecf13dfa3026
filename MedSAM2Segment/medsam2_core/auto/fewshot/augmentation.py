"""Random affine and photometric changes of labelled images; labels are never interpolated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Parameters of augmentation.

    Sam2Rad's are affine .5, 30 degrees, .2 of the side, and both flips. On ten ultrasound images, smaller
    rotations, more frequent changes and no vertical flip gave better results: up and down differ there, as in
    most images of patients.

    Attributes
    ----------
    affine
        Probability of rotation, translation and scaling.
    degrees, translate, scale
        Their limits: degrees, share of the side, factor (and its inverse).
    photometric
        Probability of changes of brightness, contrast, gamma, sharpness and noise.
    """

    affine: float = 0.8
    degrees: float = 20.0
    translate: float = 0.2
    scale: float = 1.4
    flip_x: float = 0.5
    flip_y: float = 0.0
    photometric: float = 0.7

    def apply(
        self,
        image: torch.Tensor,
        labels: torch.Tensor,
        rng: np.random.Generator,
        content_hw: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment a (3, S, S) image of 0 to 1 and its (S, S) integer labels.

        Parameters
        ----------
        content_hw
            The part of the square that the image fills (:attr:`Letterbox.content_hw`); None: all of it. Only
            that is changed: an image rotated into the padding would be cut off there, its labels not.
        """
        height, width = content_hw or (int(labels.shape[0]), int(labels.shape[1]))
        part, marks = self._changed(image[:, :height, :width], labels[:height, :width], rng)
        image, labels = image.clone(), labels.clone()
        image[:, :height, :width], labels[:height, :width] = part, marks
        return image, labels

    def _changed(
        self, image: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self._moved(image, labels, rng)
        for axis, chance in ((-1, self.flip_x), (-2, self.flip_y)):
            if rng.random() < chance:
                image, labels = image.flip(axis), labels.flip(axis)
        if rng.random() < self.photometric:
            image = jitter_intensity(image, rng)
        return image, labels

    def _moved(
        self, image: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if rng.random() >= self.affine:
            return image, labels
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        scale = math.exp(rng.uniform(-1, 1) * math.log(self.scale))
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        x, y = (2 * rng.uniform(-self.translate, self.translate) for _ in range(2))
        # The grid's units are the image's sides: without this an oblong image would be sheared.
        oblong = image.shape[-2] / image.shape[-1]
        theta = torch.tensor([[[cos, -sin * oblong, x], [sin / oblong, cos, y]]], dtype=torch.float32)
        grid = functional.affine_grid(theta, [1, 1, *image.shape[-2:]], align_corners=False)
        image = functional.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
        # In fp32 labels up to 2^24 are exact.
        moved = functional.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=False)
        return image, moved[0, 0].to(labels.dtype)


def jitter_intensity(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change brightness, contrast, gamma, sharpness and noise of a (3, S, S) image."""
    image = (image - 0.5) * rng.uniform(0.75, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    image = image.clamp(0, 1).pow(math.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.2:
        image = functional.avg_pool2d(image[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(0.01, 0.06), image.shape[-2:]).astype(np.float32)
        image = image + torch.from_numpy(noise)
    return image.clamp(0, 1)
