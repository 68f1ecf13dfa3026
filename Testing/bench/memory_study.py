"""What memory is worth: image sets of which one image is prompted, and volumes; policies against each other.

    python Testing/bench/memory_study.py ../shared/data --train ../shared/train --images 20 --seeds 3
    python Testing/bench/memory_study.py ../shared/data --only volumes --rows hippocampus

Sets: fetal heads (HC18, cases held aside from training), optic discs, breast lesions, vessels and nerves in
ultrasound. One image is prompted with a box around the object's largest piece; the figure is the mean Dice of
the others. Baselines: the mask of the prompted image at the same place, and at the place where the image is
most like the prompted one (the best shift by normalised cross-correlation). Volumes: a box on the largest
slice, propagation; Dice of the whole object; three planes in both directions are fused by votes, and by mean
probability.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.memory import MemoryPolicy, PromptedMemory, RecentMemory, SelfSortingMemory
from medsam2_core.engine.model import load_model
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.evaluation.cases import objects_of, read_table
from medsam2_core.evaluation.metrics import dice
from medsam2_core.evaluation.simulated_user import largest_piece, tight_box
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.intensity import parse_window
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box
from medsam2_core.session import Session
from medsam2_core.training.sources import load_sources, split
from PIL import Image

POLICIES: dict[str, MemoryPolicy] = {
    "prompted": PromptedMemory(),
    "recent": RecentMemory(),
    "all conditioning": RecentMemory(nearest_conditioning=-1),
    **{f"self-sorting {n}": SelfSortingMemory(capacity=n) for n in (4, 8, 16)},
}
LONGEST = 1024  # pixels of a picture's side; the model sees 256
Pair = tuple[Volume, np.ndarray]


def set_of(paths: list[Path], mask_of: Callable[[Path], Path], label: int | None, most: int) -> list[Pair]:
    """Images that show the label, evenly spread, with its mask."""
    found = []
    for path in paths:
        labels = read_segmentation(mask_of(path)).labels_kji()[0]
        mask = labels > 0 if label is None else labels == label
        if mask.any():
            found.append((path, mask))
    chosen = [found[round(n)] for n in np.linspace(0, len(found) - 1, min(most, len(found)))]
    return [scaled(read_volume(path), mask) for path, mask in chosen]


def scaled(volume: Volume, mask: np.ndarray) -> Pair:
    """A picture of at most `LONGEST` pixels a side."""
    height, width = mask.shape
    factor = LONGEST / max(height, width)
    if factor >= 1:
        return volume, mask
    size = round(width * factor), round(height * factor)
    pixels = np.asarray(Image.fromarray(volume.voxels_kji[0]).resize(size, Image.Resampling.BILINEAR))
    smaller = Volume(pixels[None], Geometry.for_picture(size[1], size[0]), volume.modality, volume.name)
    return smaller, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def sets(data: Path, train: Path | None, most: int) -> Iterator[tuple[str, list[Pair]]]:
    """Name and images of every set."""
    if train is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "hc18").symlink_to((train / "hc18").resolve())
            _, held = split(load_sources(folder))
        heads = []
        for stack in held[:most]:
            height, width = stack.labels_kji.shape[1:]
            volume = Volume(stack.image_kji, Geometry.for_picture(height, width), name=stack.case)
            heads.append((volume, stack.labels_kji[0] > 0))
        yield "heads", heads

    def beside(path: Path) -> Path:
        return path.with_name(path.name.replace("_img.png", "_seg.png").replace("_img.jpg", "_disc.png"))

    yield "discs", set_of(sorted((data / "fundus").glob("*_img.jpg")), beside, None, most)
    yield "breast lesions", set_of(sorted((data / "us/breast_busbra").glob("*_img.png")), beside, None, most)
    nerves = sorted((data / "us/nerve").glob("*_img.png"))
    yield "vessels", set_of(nerves, beside, 2, most)
    yield "nerves", set_of(nerves, beside, 1, most)


def same_place(mask: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """The mask at the same place of another image."""
    size = (shape_hw[1], shape_hw[0])
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def best_shift(image: np.ndarray, mask: np.ndarray, other: np.ndarray, side: int = 96) -> np.ndarray:
    """The mask where the other image is most like the surroundings of the object."""

    def grey(values: np.ndarray) -> np.ndarray:
        flat = values if values.ndim == 2 else values.mean(2)
        return np.asarray(Image.fromarray(flat.astype(np.float32)).resize((side, side)), np.float64)

    a, b = grey(image), grey(other)
    small = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
    if not len(rows):
        return same_place(mask, other.shape[:2])
    margin = 4
    top, bottom = max(rows[0] - margin, 0), min(rows[-1] + margin + 1, side)
    left, right = max(columns[0] - margin, 0), min(columns[-1] + margin + 1, side)
    windows = np.lib.stride_tricks.sliding_window_view(b, (bottom - top, right - left))
    patch = a[top:bottom, left:right]
    patch = (patch - patch.mean()) / (patch.std() + 1e-6)
    likeness = (windows * patch).mean((2, 3)) / (windows.std((2, 3)) + 1e-6)
    y, x = np.unravel_index(int(likeness.argmax()), likeness.shape)
    moved = np.zeros_like(small)
    moved[y : y + bottom - top, x : x + right - left] = small[top:bottom, left:right]
    return same_place(moved, other.shape[:2])


def measure_set(pairs: list[Pair], seeds: int, model, policies: dict[str, MemoryPolicy]) -> dict[str, float]:
    """Mean Dice by method."""
    images, cache = ImageSet([volume for volume, _ in pairs]), FeatureCache(1 << 30)
    found: dict[str, list[float]] = {}

    def add(method: str, n: int, mask: np.ndarray) -> None:
        found.setdefault(method, []).append(dice(mask, pairs[n][1]))

    for key in dict.fromkeys(round(n) for n in np.linspace(0, len(pairs) - 1, min(seeds, len(pairs)))):
        image, truth = pairs[key]
        x0, y0, x1, y1 = tight_box(largest_piece(truth[None])[0])
        box = Box((x0, y0, key), (x1, y1, key))
        for zoom in ("auto", "off"):
            for name, policy in policies.items():
                if name == "all conditioning":  # of one prompted image
                    continue
                session = Session.open(images, model, memory=policy, zoom=zoom, cache=cache)
                prompted = session.prompt("it", box)
                if name == "prompted":
                    add(f"prompted image, zoom {zoom}", key, prompted.mask_hw)
                for one in session.propagate():
                    if one.n != key:
                        add(f"{name}, zoom {zoom}", one.n, one.mask_hw)
        for n, (other, other_truth) in enumerate(pairs):
            if n != key:
                add("same place", n, same_place(truth, other_truth.shape))
                add("best shift", n, best_shift(image.voxels_kji[0], truth, other.voxels_kji[0]))
    return {method: float(np.mean(values)) for method, values in found.items()}


def measure_volume(case, model, policies: dict[str, MemoryPolicy]) -> Iterator[dict[str, float]]:
    """Dice by method, for every object of a case: one box on the largest slice, propagated."""
    volume, cache = read_volume(case.image), FeatureCache(1 << 30)
    window = parse_window(case.window, volume)
    for measured in objects_of(case, volume):
        found = {}
        truth = measured.truth_kji
        for name, policy in policies.items():
            found[name] = dice(tracked(volume, case.axis, window, truth, model, policy, cache) >= 0.5, truth)
        planes = [tracked(volume, axis, window, truth, model, policies["recent"], cache) for axis in "ijk"]
        found["six directions, votes"] = dice(np.mean([one >= 0.5 for one in planes], 0) >= 0.5, truth)
        found["six directions, probabilities"] = dice(np.mean(planes, 0) >= 0.5, truth)
        yield found


def tracked(volume, axis, window, truth, model, policy, cache) -> np.ndarray:
    """(K, J, I) probabilities of an object from a box on its largest slice along an axis."""
    stack = SliceStack.along(volume, axis)
    session = Session(
        volume, model, stack=stack, window=window, memory=policy, cache=cache,
        options=TrackerOptions(keeps_probabilities=True),
    )  # fmt: skip
    areas = [int(stack.mask_of(truth, n).sum()) for n in range(len(stack))]
    key = int(np.argmax(areas))
    x0, y0, x1, y1 = tight_box(stack.mask_of(truth, key))
    first, last = stack.to_ijk([[x0, y0, key], [x1, y1, key]])
    session.prompt("it", Box.between(first, last))
    for _ in session.propagate():
        pass
    values = ((one.n, one.certainty.values_hw) for one in session.results("it"))
    return stack.volume_values(values) / 255.0


def main() -> None:
    """Measure, print tables, write JSON after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--only", choices=("sets", "volumes"))
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--policies", nargs="*", default=list(POLICIES))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, figures = load_model(given.model, "cpu"), {}
    policies = {name: POLICIES[name] for name in given.policies}

    def note(row: str, values: dict[str, float]) -> None:
        figures[row] = values
        print(row, {name: round(value, 3) for name, value in values.items()}, flush=True)
        if given.json:
            given.json.write_text(json.dumps(figures, indent=2))

    if given.only != "volumes":
        for name, pairs in sets(given.data, given.train, given.images):
            if not given.rows or name in given.rows:
                note(name, measure_set(pairs, given.seeds, model, policies))
    if given.only != "sets":
        table = Path(__file__).parents[1] / "data" / "benchmark.tsv"
        rows: dict[str, list] = {}
        for case in read_table(table, given.data):
            if not given.rows or case.row in given.rows:
                rows.setdefault(case.row, []).append(case)
        for row, cases in rows.items():
            found = (
                [one for case in cases for one in measure_volume(case, model, policies)]
                if row not in ("US nerve", "BUS-BRA", "fundus", "heart")
                else []
            )
            if found:
                note(row, {name: float(np.mean([one[name] for one in found])) for name in found[0]})


if __name__ == "__main__":
    main()
