"""How long the engine takes on this machine, and how much memory: what `medsam2 bench` measures."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam2_core.atomic import new_file
from medsam2_core.engine.architecture import OWN_CONFIGS, build_module
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.devices import processor_name
from medsam2_core.engine.model import load_model
from medsam2_core.engine.recipe import STOCK, PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.evaluation.timings import Phantom, Timings
from medsam2_core.session import Session


@dataclass(frozen=True)
class SpeedSettings:
    """How much is measured.

    Attributes
    ----------
    slices, side
        Of the volume: cubes of noise with bright ellipsoids.
    repeats
        Runs of everything, one after the other, so that a slow minute does not fall on one operation.
    objects
        Numbers of objects propagated together.
    depths
        Slices of the volumes whose peak memory is measured.
    cache_bytes
        Most bytes of image features that a session keeps.
    """

    slices: int = 24
    side: int = 256
    repeats: int = 5
    objects: tuple[int, ...] = (1, 3, 10)
    depths: tuple[int, ...] = (50, 200, 1000)
    cache_bytes: int = 512 * 2**20

    @classmethod
    def quick(cls) -> "SpeedSettings":
        """Return what takes about a minute with the embedded model."""
        return cls(slices=8, repeats=3, depths=(50,))


def measure(model: SegmentationModel, settings: SpeedSettings, update: Callable[[int, str], None]) -> Timings:
    """Time clicks, propagations and a whole session; `update` gets the runs done, and what is run."""
    timings = Timings(model.device)
    phantom = Phantom.of(settings.slices, settings.side, max(settings.objects))
    _first(model, phantom).propagate().__next__()  # warm-up, not timed
    for turn in range(settings.repeats):
        update(turn, "clicks")
        _clicks(model, phantom, timings)
        for count in settings.objects:
            update(turn, f"{count} objects")
            _propagations(model, phantom, count, timings, settings.cache_bytes)
        update(turn, "a session")
        timings.run("a session", lambda: _session(model, phantom))
    update(settings.repeats, "")
    return timings


def _first(model: SegmentationModel, phantom: Phantom) -> Session:
    session = Session(phantom.volume, model)
    session.prompt("0", phantom.box(0))
    return session


def _clicks(model: SegmentationModel, phantom: Phantom, timings: Timings) -> None:
    timings.run("volume opened, and a first box", lambda: _first(model, phantom))
    session = _first(model, phantom)
    timings.run("click on an encoded slice", lambda: session.prompt("0", phantom.click(0, 0)))
    timings.run("click on a new slice", lambda: session.prompt("1", phantom.click(0, 2)))


def _propagations(
    model: SegmentationModel, phantom: Phantom, count: int, timings: Timings, cache_bytes: int
) -> None:
    cache = FeatureCache(cache_bytes)
    session = Session(phantom.volume, model, cache=cache)
    for n in range(count):
        session.prompt(f"{n}", phantom.box(n))
    slices = len(phantom.volume.voxels_kji) - 1  # the prompted one is done
    what = "1 object" if count == 1 else f"{count} objects"
    timings.run(f"propagation, {what}", lambda: list(session.propagate(stop_after_absent=None)), slices)
    again, before = f"propagation again, {what}", cache.misses
    timings.run(again, lambda: list(session.tracker.propagate()), slices)
    timings.encoded_again[again] = cache.misses - before


def _session(model: SegmentationModel, phantom: Phantom) -> None:
    """A box, both ways, two corrections, a second object, and all of it again."""
    session, reach = _first(model, phantom), max(1, len(phantom.volume.voxels_kji) // 4)
    list(session.propagate())
    session.prompt("0", phantom.click(0, reach))
    session.prompt("0", phantom.click(0, -reach))
    session.prompt("1", phantom.box(min(1, len(phantom.boxes) - 1)))
    list(session.propagate())


def peak_memory(load: Callable[[], SegmentationModel], depth: int, side: int) -> float | None:
    """Return the megabytes a process of its own takes at most to segment one object through `depth` slices.

    None where the system does not say. `load` must be one that another process can be given.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # A new interpreter: what this process has needed so far does not count.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_propagation, load, depth, side).result()


def _peak_of_propagation(load: Callable[[], SegmentationModel], depth: int, side: int) -> float | None:
    session = _first(load(), Phantom.of(depth, side, 1))
    for _ in session.propagate(stop_after_absent=None):
        pass
    return _own_peak_mb()


def _own_peak_mb() -> float | None:
    """Return the most memory this process has held; unlike that of `resource`, not its parent's."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            values: Mapping[str, str] = dict(line.split(":", 1) for line in status)
        return round(int(values["VmHWM"].split()[0]) / 1024, 1)
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)  # bytes on macOS


@dataclass(frozen=True)
class ModelChoice:
    """A model to be loaded, in this process or another.

    Attributes
    ----------
    random
        A configuration, whose random weights are taken instead.
    """

    name: str = "embedded"
    random: str | None = None
    config: str | None = None
    image_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def __call__(self) -> SegmentationModel:
        """Load it."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.random is None:
            return load_model(
                self.name, self.device, self.precision, config=self.config, image_size=self.image_size
            )
        torch.manual_seed(0)
        module = build_module(self.random, self.image_size)
        own = Path(self.random).name.removesuffix(".yaml") in OWN_CONFIGS
        recipe = PromptRecipe(draws_prompts=True, carries_mask=True) if own else STOCK
        title = f"{self.random}, random weights"
        return SegmentationModel.of(module, title, recipe, self.device, self.precision)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: processor, threads, versions, graphics card."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "torch": torch.__version__,
        "device": str(device),
        "card": card,
    }


def draw(path: Path, facts: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Draw the times of ``medsam2 bench``, from fastest run to slowest, as a PNG or SVG."""
    from matplotlib.figure import Figure

    rows = [(f"{one['name']} ({one['unit']})", one) for one in facts["timings"]][::-1]
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.hlines(places, [one["least"] for _, one in rows], [one["most"] for _, one in rows], color="0.7")
    axes.scatter([one["median"] for _, one in rows], places)
    if facts["matrix_products"] is not None:
        seconds = facts["matrix_products"]["seconds"]
        axes.axvline(seconds, color="tab:orange", label="matrix products of a slice alone")
        figure.legend(loc="outside lower right", frameon=False)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_title(f"{facts['model']['model']}, {facts['machine']['card'] or facts['machine']['processor']}")
    with new_file(path, overwrite=overwrite) as stream:
        figure.savefig(stream, dpi=110, format="svg" if path.suffix.lower() == ".svg" else "png")
