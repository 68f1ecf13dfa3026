"""Random label volumes: nested, touching and crossing shapes no scanner has seen.

In the spirit of label-driven synthesis (SynthSeg: Billot et al., MedIA 2023; SynthMorph: Hoffmann et al.,
TMI 2022; AnyStar: Dey et al., WACV 2024): what matters is the variety of borders, so that a network learns
what an object is, not what a liver looks like.
"""

import numpy as np
import torch
from torch.nn import functional

# Labels above this are lesions, walls and the like, drawn last; a uint8 volume holds them all.
MAX_LABELS = 60


def random_anatomy(rng: np.random.Generator, side: int = 96) -> np.ndarray:
    """Draw one random label volume.

    Returns
    -------
    numpy.ndarray
        (side, side, side) uint8 labels, 0 where nothing was drawn.
    """
    canvas = _Canvas(rng, side)
    if rng.random() < 0.8:
        canvas.draw_regions(int(rng.integers(3, 10)))
    for _ in range(int(rng.integers(2, 7))):
        canvas.draw_blob(radius=rng.uniform(0.1, 0.32))
    kinds = [canvas.draw_tube, canvas.draw_shell, canvas.draw_sheet, canvas.draw_cluster]
    for _ in range(int(rng.integers(2, 8))):
        kinds[int(rng.choice(4, p=[0.35, 0.3, 0.15, 0.2]))]()
    for _ in range(int(rng.integers(1, 6))):
        canvas.draw_blob(radius=rng.uniform(0.03, 0.12))
    return canvas.labels.numpy()


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> torch.Tensor:
    """Smooth random field in about -1..1: ``cells`` random knots along each axis, interpolated.

    Parameters
    ----------
    shape
        (H, W) or (D, H, W).
    cells
        Knots along each axis; more gives a finer field.
    """
    knots = torch.from_numpy(rng.standard_normal((1, 1, *([cells] * len(shape)))).astype(np.float32))
    mode = "bicubic" if len(shape) == 2 else "trilinear"
    return functional.interpolate(knots, size=shape, mode=mode, align_corners=True)[0, 0]


class _Canvas:
    """A label volume and the ways to draw on it; coordinates run from 0 to 1 along each axis."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng = rng
        self.side = side
        self.labels = torch.zeros(side, side, side, dtype=torch.uint8)
        steps = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        self.grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1)
        self.next_label = 1

    def draw_regions(self, count: int) -> None:
        """Partition the volume: each voxel belongs to the strongest of ``count`` smooth fields."""
        cells = int(self.rng.integers(3, 8))
        fields = torch.stack([self._noise(cells) for _ in range(count)])
        self.labels = fields.argmax(0).to(torch.uint8) + self.next_label
        if self.rng.random() < 0.5:  # a body in air
            outside = self._ellipsoid_level(self._centre(0.45, 0.55), self._radii(0.42), 0.1) > 1
            self.labels[outside] = 0
        self.next_label += count

    def draw_blob(self, radius: float) -> None:
        """An ellipsoid with a wavy surface; small ones inside others are lesions."""
        wave = float(self.rng.choice([0.05, 0.2, 0.45]))
        self._paint(self._ellipsoid_level(self._centre(), self._radii(radius), wave) < 1)

    def draw_shell(self) -> None:
        """A wall with a lumen of its own label; sometimes an open one, as a ring cut by the slice."""
        level = self._ellipsoid_level(self._centre(), self._radii(self.rng.uniform(0.1, 0.3)), 0.15)
        wall = (level < 1) & (level > self.rng.uniform(0.3, 0.8))
        if self.rng.random() < 0.25:
            wall &= self._half_space()
        self._paint(level < 1)
        self._paint(wall)

    def draw_sheet(self) -> None:
        """A thin curved plate: muscle, fascia, cartilage, skin."""
        normal = self._direction()
        offset = (self.grid - self._centre()) @ normal + 0.15 * self._noise(4)
        inside = offset.abs() < self.rng.uniform(0.01, 0.04)
        extent = self._ellipsoid_level(self._centre(0.3, 0.7), self._radii(0.35), 0.1) < 1
        self._paint(inside & extent)

    def draw_tube(self) -> None:
        """A vessel, nerve, cord or bowel loop along a smooth curve, its calibre changing on the way."""
        knots = torch.from_numpy(
            self.rng.uniform(-0.1, 1.1, (int(self.rng.integers(3, 6)), 3)).astype(np.float32)
        )
        curve = functional.interpolate(knots.T[None], size=40, mode="linear", align_corners=True)[0].T
        kernel = torch.ones(3, 1, 7) / 7  # rounds the corners between knots
        curve = functional.conv1d(functional.pad(curve.T[None], (3, 3), mode="replicate"), kernel, groups=3)[
            0
        ].T
        coarse = self.grid[::2, ::2, ::2].reshape(-1, 3)
        distance = torch.cdist(coarse, curve).min(dim=1).values
        half = (self.side + 1) // 2
        distance = distance.view(1, 1, half, half, half)
        distance = functional.interpolate(distance, size=(self.side,) * 3, mode="trilinear")[0, 0]
        radius = self.rng.uniform(0.015, 0.08) * (1 + 0.4 * self._noise(3))
        self._paint(distance < radius)
        if self.rng.random() < 0.4:  # wall and lumen
            self._paint(distance < radius * self.rng.uniform(0.5, 0.8))

    def draw_cluster(self) -> None:
        """Several small blobs of one label: nodes, plaques, follicles."""
        hits = torch.zeros_like(self.labels, dtype=torch.bool)
        centre, spread = self._centre(), self.rng.uniform(0.05, 0.15)
        for _ in range(int(self.rng.integers(3, 8))):
            shift = torch.from_numpy(self.rng.normal(0, spread, 3).astype(np.float32))
            hits |= self._ellipsoid_level(centre + shift, self._radii(self.rng.uniform(0.02, 0.06)), 0.1) < 1
        self._paint(hits)

    def _paint(self, hits: torch.Tensor) -> None:
        if self.next_label <= MAX_LABELS:
            self.labels[hits] = self.next_label
            self.next_label += 1

    def _noise(self, cells: int) -> torch.Tensor:
        return smooth_noise(self.rng, (self.side,) * 3, cells)

    def _centre(self, low: float = 0.1, high: float = 0.9) -> torch.Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, 3).astype(np.float32))

    def _radii(self, radius: float) -> torch.Tensor:
        return torch.from_numpy((radius * np.exp(self.rng.normal(0, 0.3, 3))).astype(np.float32))

    def _direction(self) -> torch.Tensor:
        direction = self.rng.standard_normal(3).astype(np.float32)
        return torch.from_numpy(direction / np.linalg.norm(direction))

    def _half_space(self) -> torch.Tensor:
        return (self.grid - self._centre(0.3, 0.7)) @ self._direction() > 0

    def _ellipsoid_level(self, centre: torch.Tensor, radii: torch.Tensor, wave: float) -> torch.Tensor:
        """1 on the surface, less inside: an ellipsoid turned at random, its radius modulated by noise."""
        turn, _ = torch.linalg.qr(torch.from_numpy(self.rng.standard_normal((3, 3)).astype(np.float32)))
        local = ((self.grid - centre) @ turn) / radii
        level = local.square().sum(-1)
        if wave > 0:
            level = level * (1 + wave * self._noise(int(self.rng.integers(4, 9)))).clamp(min=0.2)
        return level
