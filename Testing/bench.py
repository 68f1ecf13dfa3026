"""Time and memory of the engine: `make bench`. Figures depend on the machine; run it twice and compare.

One object in a 512 x 512 volume of noise with a bright ball, prompted with a box. The first pass encodes
every slice; the second, after a click, finds what still is in the feature cache.
"""

import argparse
import time

import numpy as np
import torch
from medsam2_core.cli.progress import slices_bar
from medsam2_core.cli.report import peak_memory_mb, print_table
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session


def a_volume(slices: int, side: int) -> Volume:
    """(slices, side, side) int16: noise, and a ball a third of the side wide."""
    rng = np.random.default_rng(0)
    j, i = np.mgrid[:side, :side]
    voxels = np.empty((slices, side, side), dtype=np.int16)
    for k in range(slices):
        radius = (side / 6) ** 2 - ((k - slices / 2) * side / 3 / slices) ** 2
        inside = (i - side / 2) ** 2 + (j - side / 2) ** 2 < radius
        voxels[k] = rng.normal(100, 20, (side, side)) + 200 * inside
    return Volume(voxels, Geometry(np.eye(4), (side, side, slices)))


def main() -> None:
    """Print seconds a slice and memory, cold and warm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    volume = a_volume(options.slices, options.side)
    before = peak_memory_mb() or 0
    session = Session.open(volume, options.model, device=options.device)
    middle, reach = options.slices // 2, options.side // 6
    low, high = options.side // 2 - reach, options.side // 2 + reach
    rows = []
    for name, prompt in (
        ("box (cold)", Box((low, low, middle), (high, high, middle))),
        ("click after it (warm)", Point((options.side // 2, options.side // 2, middle))),
    ):
        started = time.perf_counter()
        session.prompt("ball", prompt)
        answered = time.perf_counter()
        progress = session.propagate(stop_after_absent=None)
        with slices_bar(name, progress.total) as update:
            for count, _ in enumerate(progress, start=1):
                update(count, "")
        seconds = time.perf_counter() - answered
        each = f"{1000 * seconds / count:.0f} ms"
        memory = f"{peak_memory_mb() or 0:.0f} MB"
        rows.append((name, f"{1000 * (answered - started):.0f} ms", str(count), each, memory))
    print_table(rows, ("PASS", "PROMPT", "SLICES", "A SLICE", "PEAK MEMORY"))
    where = f"{session.model.name} on {session.model.device}, {options.threads} threads"
    print(f"{where}; {before:.0f} MB before it")


if __name__ == "__main__":
    main()
