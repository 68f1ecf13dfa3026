"""A deep volume: seconds a slice, and memory that does not grow with depth.

A noisy 512 x 512 x 300 scan of 16 bits (157 MB) is written slice by slice to a temporary .nrrd, opened,
prompted with one box in the middle and propagated to both ends; after a click it is propagated once more, so
that what is cached shows. RSS is what the process holds as the system counts it, sampled while slices come
in.

    python Testing/bench/long_volume.py
    python Testing/bench/long_volume.py --config sam2.1_hiera_t --size 512 --slices 12
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from medsam2_core.cli.console import peak_memory_mb, print_table
from medsam2_core.engine.architecture import build_module
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.model import load_model
from medsam2_core.engine.recipe import STOCK, PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import MedSAM2Error
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session

WARM_UP = 50  # slices until buffers, tables and the memory window are filled


def write_volume(path: Path, slices: int, side: int) -> None:
    """Noise and a ball a third of the side wide, as raw NRRD; never more than a slice in memory."""
    rng = np.random.default_rng(0)
    j, i = np.mgrid[:side, :side]
    head = f"""NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: {side} {side} {slices}
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
endian: little
encoding: raw

"""
    with path.open("wb") as file:
        file.write(head.encode())
        for k in range(slices):
            away = (k - slices / 2) * side / 3 / slices
            inside = (i - side / 2) ** 2 + (j - side / 2) ** 2 < (side / 6) ** 2 - away**2
            file.write((rng.normal(100, 20, (side, side)) + 200 * inside).astype("<i2").tobytes())


def a_model(options: argparse.Namespace) -> SegmentationModel:
    """The bundled model, or random weights when there is none or another architecture is asked for."""
    if options.config == "embedded":
        try:
            return load_model("embedded", options.device)
        except MedSAM2Error as error:
            print(f"random weights: {error}")
    torch.manual_seed(0)
    own = options.config == "embedded"
    recipe = PromptRecipe(draws_prompts=True, carries_mask=True) if own else STOCK
    module = build_module(options.config, options.size)
    return SegmentationModel.of(module, f"{options.config}, random weights", recipe, options.device)


def megabytes(count: float) -> str:
    """For people."""
    return f"{count / 2**20:.1f} MB"


def propagated(session: Session, title: str) -> dict[int, int]:
    """RSS in bytes by the number of slices done; prints the pass."""
    process = psutil.Process()
    cache, encoded = session.tracker.encoder.cache, session.tracker.encoder.encoded
    progress = session.propagate(stop_after_absent=None)
    rss, rows = {0: process.memory_info().rss}, []
    started, computed = time.perf_counter(), time.process_time()
    for count, _ in enumerate(progress, start=1):
        rss[count] = process.memory_info().rss
        if count in (1, 10, 25, WARM_UP, 100, 150, 200, 250) or count == progress.total:
            held = session.tracker.state("ball").nbytes
            elapsed, cpu = time.perf_counter() - started, time.process_time() - computed
            sizes = (megabytes(number) for number in (rss[count], held, cache.nbytes))
            rows.append((f"{count}", f"{elapsed / count:.3f}", f"{cpu / count:.3f}", *sizes))
    print(f"\n{title}: {count} slices, {session.tracker.encoder.encoded - encoded} of them encoded")
    print_table(rows, ("SLICES", "S/SLICE", "CPU S/SLICE", "RSS", "OBJECT", "CACHE"))
    return rss


def main() -> None:
    """Print a table for each pass, and by how much memory grew after the warm-up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="embedded")
    parser.add_argument("--size", type=int, help="side of the model's image")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--zoom", default="auto")
    parser.add_argument("--cache", type=int, default=16, help="limit of the feature cache, MB")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = a_model(options)
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.nrrd"
        write_volume(path, options.slices, options.side)
        cache = FeatureCache(options.cache << 20)
        session = Session.open(path, model, zoom=options.zoom, cache=cache)
        opened = psutil.Process().memory_info().rss
        print(f"{model.name} at {model.image_size} on {model.device}, {options.threads} threads, ", end="")
        print(f"zoom {options.zoom}, cache limit {options.cache} MB")
        print(f"volume of {megabytes(session.volume.voxels_kji.nbytes)}; ", end="")
        print(f"RSS {megabytes(before)} before opening it, {megabytes(opened)} after")
        middle, reach = options.slices // 2, options.side // 6
        low, high = options.side // 2 - reach, options.side // 2 + reach
        session.prompt("ball", Box((low, low, middle), (high, high, middle)))
        first = propagated(session, "one box")
        session.prompt("ball", Point((options.side // 2, options.side // 2, middle)))
        second = propagated(session, "after a click")
    early, last = min(WARM_UP, max(first)), max(first)
    growth = max(*(rss for n, rss in first.items() if n >= early), *second.values()) - first[early]
    print(
        f"\nRSS after slice {early}: {megabytes(first[early])}, after slice {last}: {megabytes(first[last])}"
    )
    print(f"most after slice {early}, second pass included: {megabytes(growth)} more; ", end="")
    print(f"peak of the process: {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
