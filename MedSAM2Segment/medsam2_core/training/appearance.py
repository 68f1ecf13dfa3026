"""From labels to images: random contrast, texture, partial volume, bias, CT, MR and ultrasound noise.

The contrast of a real scanner is one draw among many (SynthSeg: Billot et al., MedIA 2023). Speckle is
multiplicative and correlated along the beam; shadows fall behind strong reflectors; thick or coarse
acquisitions are made by sampling down and up again, because a small organ enlarged to the model's input
looks like that.
"""

import numpy as np
import torch
from torch.nn import functional

from medsam2_core.training.anatomy import smooth_noise


def paint(labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Give a stack of label slices an appearance.

    Parameters
    ----------
    labels
        (T, H, W) integer labels of T neighbouring slices.

    Returns
    -------
    torch.Tensor
        (T, H, W) float32 between 0 and 1. One tissue keeps its brightness through the slices; noise is fresh.
    """
    image = _tissue(labels, rng)
    image = image + _texture(labels, rng)
    image = blur(image, rng.uniform(0.3, 2.2))
    return degrade(_rescaled(image), rng)


def degrade(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Put a scanner's imperfections on (T, S, S) slices in 0..1; also used on real images."""
    if rng.random() < 0.45:
        image = _coarser(image, rng)
    if rng.random() < 0.5:
        bias = torch.exp(
            rng.uniform(0.1, 0.5) * smooth_noise(rng, tuple(image.shape[-2:]), int(rng.integers(2, 5)))
        )
        image = image * bias
    kind = rng.choice(["none", "gaussian", "rician", "speckle"], p=[0.2, 0.35, 0.15, 0.3])
    if kind == "gaussian":
        image = image + _noise(image, rng, float(rng.choice([0.3, 0.6, 1.0, 1.6]))) * rng.uniform(0.01, 0.12)
    elif kind == "rician":
        sigma = rng.uniform(0.02, 0.1)
        real = image + sigma * _noise(image, rng, 0.3)
        image = torch.sqrt(real.square() + (sigma * _noise(image, rng, 0.3)).square())
    elif kind == "speckle":
        image = _ultrasound(image, rng)
    if rng.random() < 0.5:
        image = _rescaled(image).pow(float(np.exp(rng.uniform(-0.6, 0.6))))
    if rng.random() < 0.3:  # a display window that clips
        low, high = rng.uniform(-0.1, 0.25), rng.uniform(0.7, 1.1)
        image = (_rescaled(image) - low) / (high - low)
    return _rescaled(image) if rng.random() < 0.5 else image.clamp(0, 1)


def colourise(image: torch.Tensor, rng: np.random.Generator, probability: float = 0.12) -> torch.Tensor:
    """(T, S, S) in 0..1 to (T, 3, S, S): grey, or for some a smooth random tint as in fundus photographs."""
    if rng.random() >= probability:
        return image[:, None].expand(-1, 3, -1, -1)
    tint = torch.from_numpy(np.exp(rng.uniform(-0.7, 0.7, 3)).astype(np.float32))[None, :, None, None]
    offset = torch.from_numpy(rng.uniform(-0.15, 0.15, 3).astype(np.float32))[None, :, None, None]
    return (image[:, None].clamp(min=1e-4).pow(tint) + offset).clamp(0, 1)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (T, S, S) slices in their plane; sigma in pixels."""
    if sigma < 0.25:
        return image
    radius = max(1, round(2.5 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    kernel = (kernel / kernel.sum())[None, None]
    planes = functional.pad(image[:, None], (radius, radius, radius, radius), mode="replicate")
    planes = functional.conv2d(planes, kernel[..., None, :])
    return functional.conv2d(planes, kernel[..., None])[:, 0]


def _tissue(labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """One brightness a label. Some labels share a brightness, as organs do; their border follows shape
    alone.
    """
    count = int(labels.max()) + 1
    means = rng.uniform(0, 1, count)
    if rng.random() < 0.5:  # a few tissue classes
        palette = rng.uniform(0, 1, int(rng.integers(3, 7)))
        means = rng.choice(palette, count) + rng.normal(0, rng.choice([0.01, 0.04, 0.08]), count)
    if rng.random() < 0.5:
        means[0] = rng.uniform(0, 0.1)
    return torch.from_numpy(means.astype(np.float32))[labels.long()]


def _texture(labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mottling inside tissues: fresh per slice but of one grain and strength per label."""
    count = int(labels.max()) + 1
    strength = torch.from_numpy((rng.uniform(0, 0.12, count) * (rng.random(count) < 0.6)).astype(np.float32))
    grain = float(rng.choice([0.8, 1.5, 3.0, 6.0]))
    field = _noise(labels.float(), rng, grain)
    wide = torch.stack([smooth_noise(rng, tuple(labels.shape[-2:]), 10)] * labels.shape[0])
    return strength[labels.long()] * (field + 0.7 * wide)


def _coarser(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    full = tuple(image.shape[-2:])
    share = np.exp(rng.uniform(np.log(min(28, *full) / min(full)), 0))
    small = [max(1, int(side * share)) for side in full]
    mode = str(rng.choice(["area", "nearest"], p=[0.8, 0.2]))
    down = functional.interpolate(image[:, None], size=small, mode=mode)
    if rng.random() < 0.7:  # the scanner's noise is as coarse as its pixels
        noise = torch.from_numpy(rng.standard_normal(tuple(down.shape)).astype(np.float32))
        down = down + noise * rng.uniform(0, 0.08)
    return functional.interpolate(down, size=full, mode="bilinear", align_corners=False)[:, 0]


def _ultrasound(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Speckle wider than tall, attenuation with depth, shadows; log-compressed now and then."""
    frames, rows, columns_count = image.shape
    height, width = int(rows / rng.uniform(1, 3)), int(columns_count / rng.uniform(1.5, 6))
    pair = torch.from_numpy(rng.standard_normal((frames, 2, height, width)).astype(np.float32))
    rayleigh = pair.square().sum(1, keepdim=True).sqrt() / 1.25
    rayleigh = functional.interpolate(rayleigh, size=image.shape[1:], mode="bilinear", align_corners=False)[
        :, 0
    ]
    amount = rng.uniform(0.3, 1.0)
    image = (image + 0.03) * (1 + amount * (rayleigh - 1))
    if rng.random() < 0.5:
        image = torch.log1p(rng.uniform(2, 20) * image.clamp(min=0))
        image = image / image.max().clamp(min=1e-3)
    depth = torch.linspace(0, 1, rows)[None, :, None]
    image = image * torch.exp(-rng.uniform(0, 1.2) * depth)
    for _ in range(int(rng.integers(0, 3))):
        columns = torch.linspace(0, 1, columns_count)[None, None, :]
        beam = torch.exp(-((columns - rng.uniform(0, 1)) / rng.uniform(0.02, 0.12)).square())
        below = (depth > rng.uniform(0, 0.8)).float()
        image = image * (1 - rng.uniform(0.3, 0.95) * beam * below)
    return image


def _noise(like: torch.Tensor, rng: np.random.Generator, grain: float) -> torch.Tensor:
    """White noise of unit variance, blurred to ``grain`` pixels."""
    field = torch.from_numpy(rng.standard_normal(tuple(like.shape), dtype=np.float32))
    if grain <= 0.5:
        return field
    field = blur(field, grain)
    return field / field.std().clamp(min=1e-4)


def _rescaled(image: torch.Tensor) -> torch.Tensor:
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp(min=1e-4)
