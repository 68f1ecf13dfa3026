"""Made-up B-mode ultrasound of limbs and neck: layers of tissue, vessels, nerves, bones, and what looks like
them.

Where :mod:`medsam2_core.training.anatomy` draws shapes without meaning, here every structure looks as books
of sonography describe it, so that its texture can be learned: a vessel is a dark round with bright walls and
enhancement behind it; a nerve is a honeycomb, dark fascicles in bright connective tissue, in a fascial plane
and often beside a vessel; muscle is dark with bright strands; a tendon is bright and fibrillar; bone is a
bright line with a shadow. :mod:`medsam2_core.training.speckle` makes a picture of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam2_core.training.speckle import Beam, b_mode

STRUCTURES = ("vessel", "nerve", "muscle", "bone", "tendon", "lymph node", "cyst")
"""What is labelled, from 1 on; everything else is 0."""


def _number(structure: str) -> int:
    """What it is labelled with."""
    return STRUCTURES.index(structure) + 1


Mask = NDArray[np.bool_]
Echo = NDArray[np.float32]


def ultrasound_image(
    rng: np.random.Generator, shape_hw: tuple[int, int] = (224, 256)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture with its labels; the same state of ``rng`` gives the same pixels.

    Returns
    -------
    tuple
        (H, W) uint8 image and (H, W) uint8 labels: 0, or 1 + the place in :data:`STRUCTURES`.
    """
    scene = _Scene(rng, shape_hw)
    scene.lay_tissue()
    if rng.random() < 0.45:
        scene.put_bone()
    for _ in range(int(rng.integers(0, 3))):
        scene.put_look_alike()
    scene.put_bundle()
    image = b_mode(scene.echo, scene.lines, scene.transmission, Beam.drawn(rng), rng)
    return image, scene.labels


@dataclass
class _Scene:
    """What lies where: echogenicity, specular lines, what is lost or gained on the way, and labels."""

    rng: np.random.Generator
    shape_hw: tuple[int, int]
    echo: Echo = field(init=False)
    lines: Echo = field(init=False)
    transmission: Echo = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)
    interfaces: list[NDArray[np.float32]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        height, width = self.shape_hw
        self.echo = np.full(self.shape_hw, 0.2, np.float32)
        self.lines = np.zeros(self.shape_hw, np.float32)
        self.transmission = np.ones(self.shape_hw, np.float32)
        self.labels = np.zeros(self.shape_hw, np.uint8)
        self.y, self.x = np.mgrid[:height, :width].astype(np.float32)
        self.unit = width / 256

    # Tissue

    def lay_tissue(self) -> None:
        """Skin, fat, and layers of muscle or connective tissue between curved interfaces."""
        rng, (height, width) = self.rng, self.shape_hw
        self._fill(np.ones(self.shape_hw, bool), "fat", 0.0)
        depth = rng.uniform(0.03, 0.25) * height
        for _ in range(int(rng.integers(2, 6))):
            curve = depth + rng.uniform(1, 11) * self.unit * _wave(rng, width, int(rng.integers(1, 5)))
            curve += rng.uniform(-0.25, 0.25) * (np.arange(width) - width / 2)
            self.interfaces.append(curve.astype(np.float32))
            kind = str(rng.choice(["muscle", "fat", "plain"], p=[0.6, 0.2, 0.2]))
            below = self.y > curve
            slope = math.atan(float(np.polyfit(np.arange(width), curve, 1)[0]))
            self._fill(below, kind, slope)
            self._line(curve, rng.uniform(0.4, 1.5) * self.unit, rng.uniform(0.3, 2.5))
            if kind == "muscle" and rng.random() < 0.5:
                self._split_muscle(below, slope)
            depth += rng.uniform(0.12, 0.4) * height
            if depth > height * 0.95:
                break
        skin = rng.uniform(2, 8) * self.unit
        self.echo[self.y < skin] = rng.uniform(0.4, 1.2)
        self.labels[self.y < skin] = 0

    def _fill(self, where: Mask, kind: str, slope: float) -> None:
        """Give a region a tissue's echogenicity and strands."""
        rng = self.rng
        level = {"fat": (0.06, 0.35), "muscle": (0.03, 0.2), "plain": (0.1, 0.5)}[kind]
        base = float(rng.uniform(*level))
        mottle = 1 + rng.uniform(0.05, 0.3) * _smooth(rng, self.shape_hw, rng.uniform(4, 20) * self.unit)
        texture = base * np.clip(mottle, 0.4, 3)
        if kind != "plain" or rng.random() < 0.3:
            texture += self._strands(slope + rng.normal(0, 0.15))
        self.echo[where] = texture[where].astype(np.float32)
        self.labels[where] = _number("muscle") if kind == "muscle" else 0

    def _strands(self, angle: float) -> Echo:
        """Bright strands along an angle: perimysium in muscle, septa in fat."""
        rng = self.rng
        length, thick = math.exp(rng.uniform(0.5, 3.3)) * self.unit, rng.uniform(0.35, 1.1) * self.unit
        noise = _oriented(rng, self.shape_hw, angle, length, thick)
        share = rng.uniform(0.03, 0.2)
        edge = np.quantile(noise[::4, ::4], 1 - share)
        return rng.uniform(0.3, 1.6) * np.clip((noise - edge) / max(1e-3, noise.max() - edge), 0, 1) ** 0.5

    def _split_muscle(self, where: Mask, slope: float) -> None:
        """A septum that divides a muscle obliquely: two bellies with strands of their own."""
        rng, (height, width) = self.rng, self.shape_hw
        angle = slope + rng.choice([-1, 1]) * rng.uniform(0.3, 1.2)
        x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.2, 0.8) * height
        bend = 10 * self.unit * _smooth(rng, self.shape_hw, 50 * self.unit)
        side = (self.x - x) * math.sin(angle) - (self.y - y) * math.cos(angle) + bend
        self._fill(where & (side > 0), "muscle", angle)
        near = np.exp(-0.5 * (side / (rng.uniform(0.7, 1.8) * self.unit)) ** 2)
        self.lines = np.maximum(self.lines, np.where(where, rng.uniform(0.3, 2.0) * near, 0)).astype(
            np.float32
        )

    def _line(self, curve: NDArray, thick: float, strength: float) -> None:
        distance = self.y - curve
        glow = strength * np.exp(-0.5 * (distance / thick) ** 2)
        broken = np.clip(0.7 + _wave(self.rng, self.shape_hw[1], int(self.rng.integers(3, 25))), 0.0, 1)
        self.lines = np.maximum(self.lines, (glow * broken).astype(np.float32))

    # Structures

    def put_bone(self) -> None:
        """A bright convex line, black behind."""
        rng, (height, width) = self.rng, self.shape_hw
        x, half = rng.uniform(-0.1, 1.1) * width, rng.uniform(0.08, 0.5) * width
        top = rng.uniform(0.35, 0.95) * height
        columns = np.arange(width)
        curve = top + rng.uniform(0.1, 1.2) * half * ((columns - x) / half) ** 2
        curve += rng.uniform(0, 4) * self.unit * _wave(rng, width, 8)
        seen = np.abs(columns - x) < half
        behind = (self.y > curve) & seen
        self.labels[behind] = _number("bone")
        self.echo[behind] = rng.uniform(0.02, 0.15)
        self.transmission[behind] *= rng.uniform(0.02, 0.4)
        glow = rng.uniform(1.5, 4) * np.exp(-0.5 * ((self.y - curve) / (rng.uniform(1, 3) * self.unit)) ** 2)
        self.lines = np.maximum(self.lines, np.where(seen, glow, 0).astype(np.float32))

    def put_bundle(self) -> None:
        """Vessels and nerves, as often together as apart."""
        rng, width = self.rng, self.shape_hw[1]
        x, y = rng.uniform(0.15, 0.85) * width, self._plane_depth(width / 2)
        vessels = int(rng.choice(5, p=[0.15, 0.35, 0.3, 0.12, 0.08]))
        nerves = int(rng.choice(4, p=[0.12, 0.48, 0.28, 0.12]))
        apart = rng.uniform(0.05, 0.25) * width
        if rng.random() < 0.4:
            self._connective_tissue(x, y, apart)
        size = math.exp(rng.uniform(math.log(8), math.log(42))) * self.unit
        for _ in range(vessels):
            cx = float(np.clip(x + rng.normal(0, apart), -0.02 * width, 1.02 * width))
            self._vessel(cx, self._near_plane(cx, y, apart), size * math.exp(rng.normal(0, 0.35)))
        for _ in range(nerves):
            cx = float(np.clip(x + rng.normal(0, apart), 0.02 * width, 0.98 * width))
            radius = float(np.clip(size * math.exp(rng.normal(-0.1, 0.5)), 6 * self.unit, 36 * self.unit))
            self._nerve(cx, self._near_plane(cx, y, apart), radius)

    def _connective_tissue(self, x: float, y: float, apart: float) -> None:
        """The bright fatty sheath that vessels and nerves share."""
        rng = self.rng
        level = self._blob(
            x, y, apart * rng.uniform(0.8, 1.8) + 10, rng.uniform(0.3, 0.9), rng.normal(0, 0.3), 0.5
        )
        share = np.clip((1.2 - level) / rng.uniform(0.1, 0.8), 0, 1) * (self.labels != _number("bone"))
        bright = rng.uniform(0.25, 0.9) * np.clip(
            1 + 0.3 * _smooth(rng, self.shape_hw, 4 * self.unit), 0.2, 2
        )
        bright += 0.5 * self._strands(rng.normal(0, 0.4))
        self.echo = (self.echo * (1 - share) + bright * share).astype(np.float32)
        self.labels[(share > 0.5)] = 0

    def put_look_alike(self) -> None:
        """A tendon, a lymph node, a cyst, or a small dark muscle: round, and neither vessel nor nerve."""
        rng, (height, width) = self.rng, self.shape_hw
        x, y = rng.uniform(0.05, 0.95) * width, rng.uniform(0.15, 0.9) * height
        radius = math.exp(rng.uniform(math.log(6), math.log(40))) * self.unit
        kind = str(rng.choice(["tendon", "lymph node", "cyst", "muscle"], p=[0.3, 0.2, 0.1, 0.4]))
        level = self._blob(x, y, radius, rng.uniform(0.3, 1.0), rng.normal(0, 0.5), 0.25)
        inside = level < 1
        if self._is_hidden(inside):
            return
        if kind == "tendon":
            fibres = _oriented(
                rng, self.shape_hw, rng.normal(0, 0.6), rng.uniform(1, 9) * self.unit, 0.6 * self.unit
            )
            self.echo[inside] = (rng.uniform(0.5, 1.3) * np.clip(0.75 + 0.5 * fibres, 0.1, 2))[inside]
        elif kind == "lymph node":
            self.echo[inside] = rng.uniform(0.03, 0.15)
            self.echo[level < rng.uniform(0.05, 0.35)] = rng.uniform(0.4, 1.0)
        elif kind == "cyst":
            self.echo[inside] = rng.uniform(0.0, 0.03)
            self._enhance(inside, rng.uniform(1.2, 2.0))
        else:
            self._fill(inside, "muscle", rng.normal(0, 0.8))
        self.lines[inside] *= rng.uniform(0, 0.3)
        self._rim(level, radius, math.exp(rng.uniform(-3.5, 0.2)), upright=rng.random() < 0.5)
        self.labels[inside] = _number(kind)

    def _vessel(self, x: float, y: float, radius: float) -> None:
        rng = self.rng
        flat = rng.uniform(0.75, 1.0) if rng.random() < 0.55 else rng.uniform(0.35, 0.9)  # artery, or vein
        level = self._blob(x, y, radius, flat, rng.normal(0, 0.35), rng.choice([0.0, 0.1, 0.35]))
        if rng.random() < 0.12:  # a bifurcation, or two that lie side by side
            turn = rng.uniform(0, 2 * math.pi)
            reach = radius * rng.uniform(0.8, 1.7)
            other = self._blob(
                x + reach * math.cos(turn),
                y + 0.5 * reach * math.sin(turn),
                radius * rng.uniform(0.5, 0.9),
                flat,
                0,
                0.1,
            )
            level = np.minimum(level, other)
        inside = level < 1
        if self._is_hidden(inside):
            return
        lumen = rng.uniform(0.0, 0.3 if rng.random() < 0.8 else 0.6) * float(np.median(self.echo[inside]))
        haze = np.clip(1 + rng.uniform(0, 0.4) * _smooth(rng, self.shape_hw, 12 * self.unit), 0.3, 3)
        self.echo[inside] = (lumen * haze)[inside]
        self.lines[inside] *= 0.05
        self._rim(level, radius, math.exp(rng.uniform(-2.5, 0.7)), upright=True)
        self._enhance(inside, rng.uniform(1.0, 2.0))
        self.labels[inside] = _number("vessel")

    def _nerve(self, x: float, y: float, radius: float) -> None:
        rng = self.rng
        taken = self.labels == _number("vessel")
        flat = rng.uniform(0.3, 1.0)
        level = self._blob(
            x, y, radius / math.sqrt(flat), flat, rng.normal(0, 0.4), rng.choice([0.1, 0.3, 0.5])
        )
        inside = (level < 1) & ~taken
        if inside.sum() < 30 or inside.sum() < 0.75 * (level < 1).sum() or self._is_hidden(inside):
            return
        around = float(np.median(self.echo[inside]))
        stroma = max(around, 0.1) * (rng.uniform(1.3, 3.5) if rng.random() < 0.85 else rng.uniform(0.4, 1.1))
        grain = np.clip(1 + 0.3 * _smooth(rng, self.shape_hw, 2 * self.unit), 0.3, 2)
        self.echo[inside] = (stroma * grain)[inside]
        self.lines[inside] *= rng.uniform(0, 0.2)
        self._fascicles(inside, level, radius, stroma)
        self._rim(
            np.where(taken, 2, level), radius, stroma * rng.uniform(0.0, 1.8), upright=rng.random() < 0.5
        )
        self.labels[inside] = _number("nerve")

    def _fascicles(self, inside: Mask, level: Echo, radius: float, stroma: float) -> None:
        """Dark rounds packed into a nerve: many small ones, or a few large."""
        rng = self.rng
        size = radius * rng.choice([0.12, 0.2, 0.3, 0.5]) * rng.uniform(0.8, 1.2)
        size = float(np.clip(size, 1.2 * self.unit, 12 * self.unit))
        dark = stroma * rng.uniform(0.05, 0.4)
        rows, columns = np.nonzero(inside & (level < 0.85))
        if not len(rows):
            return
        centres: list[tuple[float, float, float]] = []
        for _ in range(int(rng.integers(10, 90))):
            n = int(rng.integers(len(rows)))
            one, r = (float(rows[n]), float(columns[n])), size * rng.uniform(0.6, 1.3)
            if all((one[0] - a) ** 2 + (one[1] - b) ** 2 > (r + c + 1) ** 2 for a, b, c in centres):
                centres.append((*one, r))
        for a, b, r in centres:
            top, left = max(0, int(a - r - 2)), max(0, int(b - r - 2))
            part = (slice(top, int(a + r + 3)), slice(left, int(b + r + 3)))
            reach = np.hypot(self.y[part] - a, (self.x[part] - b) / rng.uniform(1.0, 1.4)) / r
            share = np.clip(1.5 - reach * 1.5, 0, 1) * inside[part]
            self.echo[part] = self.echo[part] * (1 - share) + dark * share

    def _is_hidden(self, inside: Mask) -> bool:
        """Whether something would lie in the shadow of a bone, or outside the picture."""
        shadow = inside & (self.labels == _number("bone"))
        return not inside.any() or float(shadow.sum()) > 0.05 * float(inside.sum())

    # Shapes

    def _blob(self, x: float, y: float, radius: float, flat: float, turn: float, wave: float) -> Echo:
        """1 on the outline, less inside: an ellipse, turned, its radius modulated by the angle."""
        dx, dy = self.x - x, self.y - y
        u = dx * math.cos(turn) + dy * math.sin(turn)
        v = (-dx * math.sin(turn) + dy * math.cos(turn)) / flat
        angle = np.arctan2(v, u)
        bend = sum(
            self.rng.normal(0, wave / k) * np.cos(k * angle + self.rng.uniform(0, 2 * math.pi))
            for k in (2, 3, 4)
        )
        return (np.hypot(u, v) / (radius * np.clip(1 + 0.5 * bend, 0.4, 1.8))).astype(np.float32)

    def _rim(self, level: Echo, radius: float, strength: float, *, upright: bool = False) -> None:
        """A bright outline; upright: brightest where the beam meets it at a right angle."""
        distance = (level - 1) * radius
        glow = strength * np.exp(-0.5 * ((distance - 1) / (self.rng.uniform(0.7, 1.8) * self.unit)) ** 2)
        if upright:
            gy, gx = np.gradient(level)
            glow *= np.abs(gy) / np.maximum(np.hypot(gx, gy), 1e-4)
        self.lines = np.maximum(self.lines, glow.astype(np.float32))

    def _enhance(self, inside: Mask, factor: float) -> None:
        """Sound that met no echo is stronger behind."""
        behind = np.minimum(np.cumsum(inside, axis=0) / (12 * self.unit), 1).astype(np.float32)
        decay = np.exp(-np.clip(self.y - _last(inside), 0, None) / (60 * self.unit))
        self.transmission *= np.where(inside, 1, 1 + (factor - 1) * behind * decay).astype(np.float32)

    def _plane_depth(self, x: float) -> float:
        rng, (height, width) = self.rng, self.shape_hw
        if self.interfaces and rng.random() < 0.7:
            curve = self.interfaces[int(rng.integers(len(self.interfaces)))]
            return float(np.clip(curve[int(np.clip(x, 0, width - 1))], 0.12 * height, 0.85 * height))
        return float(rng.uniform(0.15, 0.8) * height)

    def _near_plane(self, x: float, y: float, apart: float) -> float:
        return float(
            np.clip(y + self.rng.normal(0, 0.5 * apart), 0.08 * self.shape_hw[0], 0.95 * self.shape_hw[0])
        )


def _last(inside: Mask) -> NDArray[np.float32]:
    """(1, W) row below which a column has nothing of it; far down where it has nothing at all."""
    height = inside.shape[0]
    rows = height - 1 - np.argmax(inside[::-1], axis=0)
    return np.where(inside.any(0), rows, 10 * height)[None].astype(np.float32)


def _wave(rng: np.random.Generator, width: int, knots: int) -> NDArray[np.float64]:
    """(W,) smooth random curve of about unit size."""
    points = rng.standard_normal(knots + 3)
    return ndimage.zoom(points, (width + 8) / (knots + 3), order=3, mode="nearest")[4 : width + 4][:width]


def _smooth(rng: np.random.Generator, shape_hw: tuple[int, int], grain: float) -> Echo:
    """Noise of unit variance with structures of about `grain` pixels."""
    step = max(1.0, grain / 1.5)
    small = [math.ceil(n / step) + 3 for n in shape_hw]
    field = rng.standard_normal(small, dtype=np.float32)
    if step > 1:
        field = ndimage.zoom(field, step, order=1)
    field = field[: shape_hw[0], : shape_hw[1]]
    return field / max(1e-3, float(field.std()))


def _oriented(
    rng: np.random.Generator, shape_hw: tuple[int, int], angle: float, along: float, across: float
) -> Echo:
    """Noise of unit variance, drawn out along an angle."""
    fy = np.fft.fftfreq(shape_hw[0])[:, None]
    fx = np.fft.rfftfreq(shape_hw[1])[None]
    u, v = fx * math.cos(angle) + fy * math.sin(angle), -fx * math.sin(angle) + fy * math.cos(angle)
    kernel = np.exp(-2 * (math.pi**2) * ((u * along) ** 2 + (v * across) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape_hw)) * kernel, shape_hw)
    return (field / max(1e-6, float(field.std()))).astype(np.float32)
