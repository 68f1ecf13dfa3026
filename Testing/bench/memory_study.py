"""What memory is worth: policies against each other, on volumes and image sets; examples against copies.

    python Testing/bench/memory_study.py --data ../shared/data --train ../shared/train --out study.json
    python Testing/bench/memory_study.py --data ../shared/data --out study.json --parts volumes --rows spleen
    python Testing/bench/memory_study.py --out study.json --tables

Parts:

volumes
    A box on the largest slice, propagation, Dice of the whole object. Memory policies along the row's own
    axis; three planes, each from its largest slice in both directions, fused by votes and by mean logits.
conditioning
    The true masks of every other slice are given: Dice of the slices between, attending to all conditioning
    slices or to the nearest 16. Only objects on more than 32 slices.
sets
    One image is prompted with a box around the object's largest piece; Dice of the others. Baselines: the
    true mask of the prompted image at the same place, where the image is most like the prompted one (the best
    shift by normalised cross-correlation), and the mask of that prompted image, of all, which is most like
    an image at 16 x 16 pixels (nearest neighbour).
like
    Every hippocampus in turn as the example for the others; baseline: its labels scaled to the new size.

A case that the output has is not measured again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medsam2_core import atomic
from medsam2_core.cli.console import print_table
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.memory import MemoryPolicy, PromptedMemory, RecentMemory, SelfSortingMemory
from medsam2_core.engine.model import load_model
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.evaluation.cases import Case, MeasuredObject, objects_of, read_table
from medsam2_core.evaluation.metrics import dice
from medsam2_core.evaluation.simulated_user import largest_piece, tight_box
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.intensity import Window, parse_window
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, SlicePrompts
from medsam2_core.session import Session
from medsam2_core.session.examples import Example
from medsam2_core.training.sources import load_sources, split
from PIL import Image

POLICIES: dict[str, MemoryPolicy] = {
    "prompted": PromptedMemory(),
    "recent": RecentMemory(),
    **{f"self-sorting {n}": SelfSortingMemory(capacity=n) for n in (4, 8, 16)},
}
CONDITIONING = {"all": RecentMemory(nearest_conditioning=-1), "nearest 16": RecentMemory()}
PARTS = ("volumes", "conditioning", "sets", "like")
LONGEST = 1024  # pixels of a picture's side; the model sees 256
Pair = tuple[Volume, np.ndarray]
Figures = dict[str, float]


class Study:
    """The figures of all cases, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, dict[str, dict[str, Figures]]] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )

    def note(self, part: str, row: str, case: str, measure: Callable[..., Figures], *given: Any) -> None:
        """Measure a case, unless it is known."""
        cases = self.figures.setdefault(part, {}).setdefault(row, {})
        if case in cases:
            return
        cases[case] = measure(*given)
        print(part, row, case, {name: round(value, 3) for name, value in cases[case].items()}, flush=True)
        with atomic.new_file(self._path, overwrite=True) as stream:
            stream.write(json.dumps(self.figures, indent=1).encode())

    def print_tables(self) -> None:
        """Print the mean of every row, by part."""
        for part, rows in self.figures.items():
            methods = list(dict.fromkeys(m for cases in rows.values() for one in cases.values() for m in one))
            lines = []
            for row, cases in rows.items():
                means = [np.mean([one[m] for one in cases.values() if m in one] or [np.nan]) for m in methods]
                lines.append((row, str(len(cases)), *(f"{mean:.3f}" for mean in means)))
            if lines:
                print(f"\n{part}")
                print_table(lines, ("ROW", "CASES", *methods))


def set_of(paths: list[Path], mask_of: Callable[[Path], Path], label: int | None, most: int) -> list[Pair]:
    """Images that show the label, evenly spread, with its mask."""
    found = []
    for path in paths:
        labels = read_segmentation(mask_of(path)).labels_kji()[0]
        mask = labels > 0 if label is None else labels == label
        if mask.any():
            found.append((path, mask))
    return [scaled(read_volume(path), mask) for path, mask in spread(found, most)]


def spread(found: list, most: int) -> list:
    """At most so many, evenly spread."""
    return [found[round(n)] for n in np.linspace(0, len(found) - 1, min(most, len(found)))]


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


def sets(data: Path, train: Path | None, most: int) -> Iterator[tuple[str, Callable[[], list[Pair]]]]:
    """Name of every set, and how to read its images."""

    def beside(path: Path) -> Path:
        return path.with_name(path.name.replace("_img.png", "_seg.png").replace("_img.jpg", "_disc.png"))

    nerves = sorted((data / "us/nerve").glob("*_img.png"))
    if train is not None:
        yield "heads", lambda: held_aside(train, "hc18", most)
    yield "discs", lambda: set_of(sorted((data / "fundus").glob("*_img.jpg")), beside, None, most)
    yield "vessels", lambda: set_of(nerves, beside, 2, most)
    yield "nerves", lambda: set_of(nerves, beside, 1, most)
    lesions = sorted((data / "us/breast_busbra").glob("*_img.png"))
    yield "breast lesions", lambda: set_of(lesions, beside, None, most)


def held_aside(train: Path, name: str, most: int) -> list[Pair]:
    """Images of a training set that training never sees."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).symlink_to((train / name).resolve())
        _, held = split(load_sources(folder))
    return [
        (
            Volume(stack.image_kji, Geometry.for_picture(*stack.labels_kji.shape[1:]), name=stack.case),
            stack.labels_kji[0] > 0,
        )
        for stack in spread(held, most)
    ]


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


def prompted_images(pairs: list[Pair], seeds: int) -> list[int]:
    """Numbers of the images that are prompted in turn."""
    return list(dict.fromkeys(spread(list(range(len(pairs))), seeds)))


def measure_set(
    pairs: list[Pair], key: int, keys: list[int], model: SegmentationModel, policies: dict[str, MemoryPolicy]
) -> Figures:
    """Mean Dice by method, image `key` prompted; nearest neighbours are looked for among images `keys`."""
    images, cache = ImageSet([volume for volume, _ in pairs]), FeatureCache(1 << 30)
    found: dict[str, list[float]] = {}
    image, truth = pairs[key]
    x0, y0, x1, y1 = tight_box(largest_piece(truth[None])[0])
    ways = [("searched", "auto", name) for name in policies]
    ways += [("whole", "off", name) for name in policies if name in ("prompted", "recent", "self-sorting 16")]
    for title, zoom, name in ways:
        session = Session.open(images, model, memory=policies[name], zoom=zoom, cache=cache)
        prompted = session.prompt("it", Box((x0, y0, key), (x1, y1, key)))
        if zoom == "auto":
            found["prompted image"] = [dice(prompted.mask_hw, truth)]
        found[f"{title}, {name}"] = [
            dice(one.mask_hw, pairs[one.n][1]) for one in session.propagate() if one.n != key
        ]
    thumbnails = np.stack([one.thumbnail for one in images.facts])
    for n, (other, other_truth) in enumerate(pairs):
        if n == key:
            continue
        shape = other_truth.shape
        nearest = max((m for m in keys if m != n), key=lambda m: float(thumbnails[m] @ thumbnails[n]))
        copies = {
            "mask at the same place": same_place(truth, shape),
            "best shift": best_shift(image.voxels_kji[0], truth, other.voxels_kji[0]),
            "nearest neighbour": same_place(pairs[nearest][1], shape),
        }
        for name, copy in copies.items():
            found.setdefault(name, []).append(dice(copy, other_truth))
    return {method: float(np.mean(values)) for method, values in found.items()}


def opened(
    volume: Volume,
    axis: str,
    window: Window,
    model: SegmentationModel,
    policy: MemoryPolicy,
    cache: FeatureCache,
) -> Session:
    """A session of the slices along an axis."""
    return Session(
        volume, model, stack=SliceStack.along(volume, axis), window=window, memory=policy, cache=cache,
        options=TrackerOptions(keeps_probabilities=True),
    )  # fmt: skip


def tracked(session: Session, truth: np.ndarray) -> np.ndarray:
    """(K, J, I) probabilities of an object from a box on its largest slice."""
    stack = session.stack
    key = int(np.argmax([stack.mask_of(truth, n).sum() for n in range(len(stack))]))
    x0, y0, x1, y1 = tight_box(stack.mask_of(truth, key))
    first, last = stack.to_ijk([[x0, y0, key], [x1, y1, key]])
    session.prompt("it", Box.between(first, last))
    for _ in session.propagate():
        pass
    values = (
        (one.n, one.certainty.values_hw()) for one in session.results("it") if one.certainty is not None
    )
    return stack.volume_values(values) / np.float32(255)


def measure_volume(
    volume: Volume, measured: MeasuredObject, model: SegmentationModel, policies: dict[str, MemoryPolicy]
) -> Figures:
    """Dice of an object by method."""
    case, truth, cache = measured.case, measured.truth_kji, FeatureCache(1 << 30)
    window = parse_window(case.window, volume)
    found = {}
    for name, policy in policies.items():
        found[name] = dice(
            tracked(opened(volume, case.axis, window, model, policy, cache), truth) >= 0.5, truth
        )
    planes = [tracked(opened(volume, axis, window, model, RecentMemory(), cache), truth) for axis in "ijk"]
    found["six directions, votes"] = dice(np.sum([one >= 0.5 for one in planes], 0) >= 2, truth)
    logits = [np.log((one + 1 / 510) / (1 - one + 1 / 510)) for one in planes]
    found["six directions, logits"] = dice(np.sum(logits, 0) >= 0, truth)
    return found


def measure_conditioning(volume: Volume, measured: MeasuredObject, model: SegmentationModel) -> Figures:
    """Dice of the slices between true ones."""
    case, truth, cache = measured.case, measured.truth_kji, FeatureCache(1 << 30)
    found = {}
    for name, policy in CONDITIONING.items():
        session = opened(volume, case.axis, parse_window(case.window, volume), model, policy, cache)
        masks = {n: session.stack.mask_of(truth, n) for n in range(len(session.stack))}
        shown = [n for n, mask_hw in masks.items() if mask_hw.any()]
        known = {n: SliceMask.from_mask("it", n, masks[n]) for n in shown[::2]}
        session.set_prompts("it", {n: SlicePrompts(known=mask) for n, mask in known.items()})
        between = {one.n: one.mask_hw for one in session.propagate(limits=session.prompted_spans())}
        kept = [n for n in between if n not in known]
        found[name] = dice(np.concatenate([between[n].ravel() for n in kept]),
                           np.concatenate([masks[n].ravel() for n in kept]))  # fmt: skip
    return found


def measure_like(example: Case, new: Case, model: SegmentationModel) -> Figures:
    """Dice of the objects of one labelled scan found in another."""
    old, volume = read_volume(example.image), read_volume(new.image)
    labels = read_segmentation(example.labels).on_grid(old.geometry)
    truth = read_segmentation(new.labels).on_grid(volume.geometry).labels_kji()
    session = Session.open(volume, model, axis=new.axis, window=new.window)
    missing = session.find_like([Example(old, labels, parse_window(example.window, old))])
    if len(missing) < len(labels):
        for _ in session.propagate():
            pass
    places = [
        (np.arange(n) * m / n).astype(int) for n, m in zip(truth.shape, old.voxels_kji.shape, strict=True)
    ]
    copy = labels.labels_kji()[np.ix_(*places)]
    found = {}
    for segment in labels:
        found[f"like, {segment.value}"] = dice(session.mask_kji(segment.name), truth == segment.value)
        found[f"scaled copy, {segment.value}"] = dice(copy == segment.value, truth == segment.value)
    return found


def study_volumes(
    study: Study, given: argparse.Namespace, model: SegmentationModel, cases: list[Case]
) -> None:
    """Measure parts volumes and conditioning."""
    policies = {name: POLICIES[name] for name in given.policies if name != "prompted"}
    for case in cases:
        volume = read_volume(case.image)
        if volume.voxels_kji.shape[0] == 1:
            continue
        objects = list(objects_of(case, volume))
        if "volumes" in given.parts:
            for one in spread(objects, given.objects):
                study.note("volumes", case.row, one.name, measure_volume, volume, one, model, policies)
        if "conditioning" in given.parts:
            stack = SliceStack.along(volume, case.axis)
            for one in objects:
                if sum(stack.mask_of(one.truth_kji, n).any() for n in range(len(stack))) > 32:
                    study.note("conditioning", case.row, one.name, measure_conditioning, volume, one, model)


def main() -> None:
    """Measure, write JSON after every case, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Testing/data/benchmark.tsv")
    parser.add_argument("--train", type=Path, help="folder of training data, for images held aside")
    parser.add_argument("--out", type=Path, required=True, help="JSON; is added to")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", nargs="*", default=[], help="names of rows or sets, or parts of them")
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--objects", type=int, default=16, help="of a volume, at most")
    parser.add_argument("--images", type=int, default=20, help="of a set, at most")
    parser.add_argument("--seeds", type=int, default=3, help="prompted images of a set, in turn")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is measured")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(given.out)
    if not given.tables:
        if given.data is None:
            parser.error("--data is needed to measure")
        measure(study, given, load_model(given.model, "cpu"))
    study.print_tables()


def measure(study: Study, given: argparse.Namespace, model: SegmentationModel) -> None:
    """Measure the parts that are asked for."""

    def is_wanted(row: str) -> bool:
        return not given.rows or any(text in row for text in given.rows)

    table = Path(__file__).parents[1] / "data" / "benchmark.tsv"
    cases = [case for case in read_table(table, given.data) if is_wanted(case.row)]
    if "like" in given.parts:
        scans = [case for case in cases if case.row.startswith("hippocampus")]
        for old, new in ((a, b) for a in scans for b in scans if a is not b):
            name = f"{old.image.name} for {new.image.name}"
            study.note("like", new.row, name, measure_like, old, new, model)
    if "sets" in given.parts:
        policies = {name: POLICIES[name] for name in given.policies}
        for name, read in sets(given.data, given.train, given.images):
            if is_wanted(name):
                pairs = read()
                keys = prompted_images(pairs, given.seeds)
                for key in keys:
                    case = f"{key}: {pairs[key][0].name}"
                    study.note("sets", name, case, measure_set, pairs, key, keys, model, policies)
    if {"volumes", "conditioning"} & set(given.parts):
        study_volumes(study, given, model, cases)


if __name__ == "__main__":
    main()
