"""Timings of operations, and the synthetic volume they work on."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.devices import wait_for
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point

#: Runs of one operation that differ by more than this share of their median are worth a warning.
NOISY = 0.25


@dataclass
class Timing:
    """Seconds of one operation, run by run.

    Attributes
    ----------
    unit
        What the seconds are of: ``"s"`` for all of it, ``"s/slice"``.
    wall, cpu
        By the clock, and of all processors together.
    """

    name: str
    unit: str = "s"
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds by the clock."""
        return statistics.median(self.wall)

    @property
    def spread(self) -> float:
        """How far the slowest run is from the fastest, as a share of the median."""
        return (max(self.wall) - min(self.wall)) / max(self.median, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "least": min(self.wall),
            "most": max(self.wall),
            "cpu": statistics.median(self.cpu),
            "runs": len(self.wall),
        }


class Timings:
    """Collects the timings of operations, in the order they were first run.

    Attributes
    ----------
    encoded_again
        By operation: regions of slices whose image features it needed and did not find in the cache.
    """

    def __init__(self, device: torch.device) -> None:
        self.encoded_again: dict[str, int] = {}
        self._device = device
        self._found: dict[str, Timing] = {}

    def __iter__(self) -> Iterator[Timing]:
        return iter(self._found.values())

    def __getitem__(self, name: str) -> Timing:
        return self._found[name]

    def run(self, name: str, work: Callable[[], object], slices: int | None = None) -> None:
        """Time one run of an operation; per slice, where `slices` says how many there were."""
        wait_for(self._device)
        started, computed = time.perf_counter(), time.process_time()
        work()
        wait_for(self._device)
        wall, cpu = time.perf_counter() - started, time.process_time() - computed
        timing = self._found.setdefault(name, Timing(name, "s" if slices is None else "s/slice"))
        timing.wall.append(wall / (slices or 1))
        timing.cpu.append(cpu / (slices or 1))

    def ratio(self, slower: Timing, faster: Timing) -> float:
        """Return how many times as long one operation takes as another, run by run, and the median of that.

        Of processor seconds where the processor computes: they are fair on a busy machine, too.
        """
        computed = self._device.type == "cpu"
        pairs = (
            zip(slower.cpu, faster.cpu, strict=True)
            if computed
            else zip(slower.wall, faster.wall, strict=True)
        )
        return statistics.median(a / max(b, 1e-9) for a, b in pairs)

    def noisy(self) -> list[str]:
        """Return the operations whose runs differ so much that their figures are not to be trusted."""
        return [timing.name for timing in self if len(timing.wall) > 1 and timing.spread > NOISY]


@dataclass(frozen=True)
class Phantom:
    """A volume of noise with bright ellipsoids side by side, and a box on each of them on the middle slice.

    Attributes
    ----------
    boxes
        (x0, y0, x1, y1) in voxels.
    """

    volume: Volume
    boxes: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def of(cls, slices: int, side: int, objects: int) -> "Phantom":
        """Make one; the same every time."""
        rng = np.random.default_rng(0)
        columns = int(np.ceil(np.sqrt(objects)))
        radius = side / (3.2 * columns)
        centres = [
            ((n % columns + 0.5) * side / columns, (n // columns + 0.5) * side / columns)
            for n in range(objects)
        ]
        voxels = np.empty((slices, side, side), np.int16)
        y, x = np.mgrid[:side, :side]
        for k in range(slices):
            voxels[k] = rng.normal(0, 15, (side, side))
            for centre_x, centre_y in centres:
                voxels[k] += 150 * _disc(x - centre_x, y - centre_y, radius, (k - slices / 2) / slices)
        geometry = Geometry(np.diag([1.0, 1.0, 2.0, 1.0]), (side, side, slices))
        boxes = [(a - radius, b - radius, a + radius, b + radius) for a, b in centres]
        return cls(Volume(voxels, geometry, "CT"), tuple(boxes))

    def box(self, n: int) -> Box:
        """Return the box of one object, on the middle slice."""
        x0, y0, x1, y1 = self.boxes[n]
        k = self.volume.voxels_kji.shape[0] // 2
        return Box((x0, y0, k), (x1, y1, k))

    def click(self, n: int, away: int, *, positive: bool = True) -> Point:
        """Return a click on one object, so many slices from the middle one."""
        x0, y0, x1, y1 = self.boxes[n]
        return Point(((x0 + x1) / 2, (y0 + y1) / 2, len(self.volume.voxels_kji) // 2 + away), positive)


def _disc(x: NDArray, y: NDArray, radius: float, height: float) -> NDArray[np.int16]:
    """Return the part of an ellipsoid as long as the volume that lies on one slice."""
    return (x**2 + y**2 < radius**2 * (1 - (1.9 * height) ** 2)).astype(np.int16)
