"""From echoes to a B-mode picture: interference, what is lost with depth, log compression.

Fully developed speckle is the envelope of a complex Gaussian field seen through the point spread function
(Wagner et al., *Statistics of speckle in ultrasound B-scans*, IEEE Trans. Sonics Ultrason. 1983); a scanner
shows its logarithm within a dynamic range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Beam:
    """A scanner and its settings.

    Attributes
    ----------
    axial, lateral
        Point spread function, in pixels (standard deviation), at the focus.
    spread
        How much wider it is at the bottom than at the focus.
    range_db, floor_db
        Dynamic range shown, and electronic noise below the brightest echo.
    attenuation
        Nepers from top to bottom that gain does not make up for.
    smoothing
        Of the shown picture, in pixels: compounding and filters.
    compounds
        Looks that are averaged: more of them, less speckle.
    gamma
        Of the shown brightness.
    gain_db
        How far above white the brightest echoes are turned.
    """

    axial: float
    lateral: float
    spread: float
    range_db: float
    floor_db: float
    attenuation: float
    smoothing: float
    compounds: int
    gamma: float
    gain_db: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Beam:
        """Any scanner."""
        axial = rng.uniform(0.5, 1.0)
        return cls(
            axial=axial, lateral=axial * rng.uniform(1.0, 3.0), spread=rng.uniform(1.0, 2.5),
            range_db=rng.uniform(32, 60), floor_db=rng.uniform(45, 75), attenuation=rng.uniform(-0.3, 4.0),
            smoothing=rng.uniform(0.2, 1.0), compounds=int(rng.integers(1, 7)),
            gamma=math.exp(rng.normal(0.4, 0.35)), gain_db=rng.uniform(-4, 8),
        )  # fmt: skip


def b_mode(
    echo: NDArray[np.float32],
    lines: NDArray[np.float32],
    transmission: NDArray[np.float32],
    beam: Beam,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """(H, W) uint8 picture.

    Parameters
    ----------
    echo
        (H, W) amplitude of diffuse scattering.
    lines
        (H, W) amplitude of specular reflections, which have no speckle of their own.
    transmission
        (H, W) factor for what reaches a place and comes back.
    """
    height, width = echo.shape
    power = np.zeros(echo.shape, np.float32)
    amplitude = echo + 0.8 * lines
    for _ in range(beam.compounds):
        scatter = rng.standard_normal((2, height, width), dtype=np.float32) * amplitude
        near = ndimage.gaussian_filter(scatter, (0, beam.axial, beam.lateral), mode="nearest")
        if beam.spread > 1.2:
            far = ndimage.gaussian_filter(
                scatter, (0, beam.axial, beam.lateral * beam.spread), mode="nearest"
            )
            weight = np.abs(np.linspace(-1, 1, height, dtype=np.float32))[:, None] ** 2
            near = near * (1 - weight) + far * weight * math.sqrt(beam.spread)
        # White noise seen through the kernel loses this much of its size.
        gain = 2 * math.sqrt(math.pi * beam.axial * beam.lateral)
        power += ((near * gain) ** 2).sum(0)
    envelope = np.sqrt(power / beam.compounds) + 0.3 * ndimage.gaussian_filter(lines, beam.axial)
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    columns = np.clip(1 + _dropouts(rng, width), 0.05, 1.3)[None]
    through = transmission * np.exp(-beam.attenuation * depth) * columns
    envelope = envelope * through
    noise = np.abs(rng.standard_normal(echo.shape, dtype=np.float32)) * 10 ** (-beam.floor_db / 20)
    shown = 20 * np.log10(envelope + noise + 1e-6)
    # Whoever holds the probe turns the gain until the brightest echoes are just white.
    brightest = float(np.quantile(shown[::3, ::3], 0.995)) - beam.gain_db
    shown = np.clip((shown - brightest) / beam.range_db + 1, 0, 1.05)
    shown = ndimage.gaussian_filter(shown, beam.smoothing) ** beam.gamma
    return (np.clip(shown, 0, 1) * 255).round().astype(np.uint8)


def _dropouts(rng: np.random.Generator, width: int) -> NDArray[np.float32]:
    """(W,) columns that are darker: poor contact, gas, calcium near the skin."""
    lost = np.zeros(width, np.float32)
    x = np.arange(width, dtype=np.float32)
    for _ in range(int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1]))):
        centre, half = rng.uniform(0, width), rng.uniform(0.02, 0.2) * width
        lost -= rng.uniform(0.2, 0.95) * np.exp(-(((x - centre) / half) ** 2))
    return ndimage.gaussian_filter1d(lost, 2)
