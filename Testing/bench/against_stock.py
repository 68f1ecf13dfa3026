"""Our tracker beside sam2's own video predictor: the same random weights, the same frames, the same masks.

Both run in one process, taking turns, on one thread. Cold: a box on slice 0 and the first propagation. Warm:
the propagation repeated; stock encodes every slice again, here features come from the cache. Ratios above 1
mean that ours is faster.

    python Testing/bench/against_stock.py --size 512 --slices 8
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # stock's progress bars

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medsam2_core.cli.console import print_table
from medsam2_core.engine.architecture import build_module, read_config
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.memory import RecentMemory
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from support.model import prompt, some_slices, stir
from support.tiny_model import storage_bytes, tensors_of

SHAPE_HW = (512, 512)
BOX = (200, 200, 310, 310)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes in seconds of processor time, which is fair on a busy machine, too."""
    started = time.process_time()
    work()
    return time.process_time() - started


def tensors_in(node: object) -> list[torch.Tensor]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(node, torch.Tensor):
        return [node]
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


class Stock:
    """sam2's video predictor."""

    def __init__(self, config: str, size: int, folder: Path) -> None:
        settings = read_config(config, size, apply_postprocessing=False)
        settings["_target_"] = "sam2.sam2_video_predictor.SAM2VideoPredictor"
        torch.manual_seed(0)
        self.predictor = instantiate(OmegaConf.create(settings), _convert_="all").eval()
        stir(self.predictor, 5.0)
        self._folder = str(folder)

    def touch(self) -> None:
        """Encode nothing of interest once: the first use of every buffer is nobody's fault."""
        with torch.inference_mode():
            self.predictor.forward_image(torch.zeros(1, 3, *2 * [self.predictor.image_size]))

    def start(self) -> None:
        """Load all frames, which stock does at once; not timed. Nor is the slice it encodes then, so that one
        is forgotten."""
        self.state = self.predictor.init_state(self._folder)
        self.state["cached_features"].clear()

    def cold(self) -> None:
        """A box, and all slices."""
        self.predictor.add_new_points_or_box(self.state, 0, obj_id=1, box=np.array(BOX, np.float32))
        self.warm()

    def warm(self) -> None:
        """All slices."""
        self.masks = [
            (masks[0, 0] > 0).cpu().numpy() for _, _, masks in self.predictor.propagate_in_video(self.state)
        ]

    def held(self) -> int:
        """Bytes of tensors after a propagation, constants of the model left out."""
        return storage_bytes(tensors_in({k: v for k, v in self.state.items() if k != "constants"}))


class Ours:
    """Our tracker with stock's options."""

    def __init__(self, stock: Stock, config: str, size: int, frames: list[np.ndarray]) -> None:
        module = build_module(config, size, apply_postprocessing=False)
        module.load_state_dict(stock.predictor.state_dict(), strict=True)
        self.model = SegmentationModel.of(module, config, STOCK)
        self._frames = frames

    def start(self) -> None:
        """Nothing is loaded before it is asked for."""
        self.encoder = SliceEncoder(self.model, ArrayImages(self._frames), FeatureCache(2**31))
        self.tracker = Tracker.stock(self.model, self.encoder)

    def cold(self) -> None:
        """A box, and all slices."""
        self.tracker.prompt("it", 0, prompt(box=BOX))
        self.warm()

    def warm(self) -> None:
        """All slices."""
        self.masks = [result.mask_hw for result in self.tracker.propagate()]

    def held(self) -> int:
        """Bytes of an object's tensors and masks; the cache is apart, its limit is the user's."""
        state = self.tracker.state("it")
        return storage_bytes(tensors_of(state)) + sum(len(mask.bits) for mask in state.masks.values())


def bounded(ours: Ours, slices: int) -> int:
    """Bytes an object holds with the memory policy of every day, which forgets what nobody reads."""
    from medsam2_core.engine.options import TrackerOptions

    tracker = Tracker(ours.model, ours.encoder, RecentMemory(), TrackerOptions(zoom=False))
    tracker.prompt("it", 0, prompt(box=BOX))
    list(tracker.propagate())
    assert len(tracker.state("it").masks) == slices
    return storage_bytes(tensors_of(tracker.state("it")))


def main() -> None:
    """Print seconds a slice, ratios, and memory a slice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="sam2.1_hiera_t")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for n, image in enumerate(some_slices(options.slices, SHAPE_HW)):
            Image.fromarray(image).save(Path(folder) / f"{n:05d}.jpg", quality=95)
        frames = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(Path(folder).glob("*.jpg"))]
        stock = Stock(options.config, options.size, Path(folder))
        ours = Ours(stock, options.config, options.size, frames)
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
        stock.touch()
        for turn in range(options.turns):
            pair = (stock, ours) if turn % 2 == 0 else (ours, stock)
            for one in pair:
                one.start()
            for phase, measured in times.items():
                took = {one: seconds(getattr(one, phase)) / options.slices for one in pair}
                measured.append((took[stock], took[ours]))
                equal = np.mean([(a == b).all() for a, b in zip(stock.masks, ours.masks, strict=True)])
                print(
                    f"turn {turn}, {phase}: stock {took[stock]:.2f}, ours {took[ours]:.2f} s/slice, "
                    f"{100 * equal:.0f} % of masks equal",
                    flush=True,
                )
    rows = []
    for phase, measured in times.items():
        ratio = statistics.median(a / b for a, b in measured)
        means = [statistics.median(column) for column in zip(*measured, strict=True)]
        rows.append((phase, f"{means[0]:.2f}", f"{means[1]:.2f}", f"{ratio:.2f}"))
    print_table(rows, ("PASS", "STOCK s/slice", "OURS s/slice", "STOCK/OURS"))
    for what, held in (
        ("stock: images and outputs", stock.held()),
        ("ours with stock's options, which keep all", ours.held()),
        ("ours with our own options, bounded whatever the depth", bounded(ours, options.slices)),
        ("our feature cache, whose limit one sets", ours.encoder.cache.nbytes),
    ):
        print(f"{what}: {held / options.slices / 1024:.0f} kB a slice")


if __name__ == "__main__":
    main()
