"""Draws the model card's picture: ten results of the embedded model on made-up scans, from worst to best.

    python Resources/model-card/make_pictures.py

Forty objects of fixed seeds, none of which was trained on: volumes of random anatomy (whole, and thinned to
slices three times as thick) and synthetic ultrasound. Each gets one box on its largest slice, and volumes are
propagated; every fourth result in order of Dice is shown. It takes some minutes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MedSAM2Segment"))

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from medsam2_core import Box, Session, Volume, load_model  # noqa: E402
from medsam2_core.evaluation.metrics import dice  # noqa: E402
from medsam2_core.evaluation.simulated_user import jittered_box, largest_piece  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.training.synth import random_volume  # noqa: E402
from medsam2_core.training.ultrasound import ultrasound_image  # noqa: E402
from PIL import Image  # noqa: E402

MODEL = load_model("embedded")
OBJECTS, SHOWN, COLUMNS = 40, 10, 5
FIRST_SEED = 910_000  # training's seeds are far below
LEAST_PIXELS = 60


@dataclass(frozen=True)
class Result:
    """One object: scan, truth and mask (K, J, I), the box on slice `key`, and the Dice."""

    image_kji: NDArray[np.uint8]
    truth_kji: NDArray[np.bool_]
    mask_kji: NDArray[np.bool_]
    key: int
    box_xyxy: tuple[float, float, float, float]
    dice: float


def scans() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.integer], float, np.random.Generator]]:
    """Yield scans, their labels, the slices' distance in pixels, and a generator of random numbers."""
    seed = FIRST_SEED
    while True:
        rng = np.random.default_rng(seed)
        kind = seed % 4
        if kind == 3:
            image, labels = ultrasound_image(rng)[:2]
            yield image[None], labels[None], 1.0, rng
        else:
            image, labels = random_volume(rng)
            step = 3 if kind == 2 else 1
            yield image[::step], labels[::step], float(step), rng
        seed += 1


def results() -> Iterator[Result]:
    """Yield the result of one object of each scan, drawn at random."""
    for image, labels, distance, rng in scans():
        values = [int(v) for v in np.unique(labels) if v]
        rng.shuffle(values)
        for value in values:
            truth = largest_piece(labels == value)
            key = int(truth.sum((1, 2)).argmax())
            if truth[key].sum() >= LEAST_PIXELS:
                yield result(image, truth, key, distance, rng)
                break


def result(
    image: NDArray[np.uint8], truth: NDArray[np.bool_], key: int, distance: float, rng: np.random.Generator
) -> Result:
    """Return what one box on slice `key` gives."""
    ijk_to_lps = np.diag([1.0, 1.0, distance, 1.0])
    shape_ijk = (image.shape[2], image.shape[1], image.shape[0])
    session = Session.open(Volume(image, Geometry.from_lps(ijk_to_lps, shape_ijk)), MODEL)
    left, top, right, bottom = box = jittered_box(truth[key], rng)
    session.prompt("object", Box((left, top, key), (right, bottom, key)))
    if len(image) > 1:
        list(session.propagate())
    mask = session.mask_kji("object")
    return Result(image, truth, mask, key, box, dice(mask, truth))


def draw(path: Path, shown: list[Result]) -> None:
    """Draw a row for each result: slices from the object's first to its last, prompted in the middle."""
    figure = Figure(figsize=(1.5 * COLUMNS, 1.58 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes_of_row, one in zip(figure.subplots(len(shown), COLUMNS), shown, strict=True):
        there = np.flatnonzero(one.truth_kji.any((1, 2)))
        before = np.linspace(there[0], one.key, COLUMNS // 2 + 1)[:-1]
        after = np.linspace(one.key, there[-1], COLUMNS // 2 + 1)
        slices = [round(k) for k in (*before, *after)]
        for axes, k in zip(axes_of_row, slices, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if len(one.image_kji) == 1 and axes is not axes_of_row[COLUMNS // 2]:
                axes.set_axis_off()
                continue
            axes.imshow(one.image_kji[k], cmap="gray", vmin=0, vmax=255)
            axes.contour(one.truth_kji[k], [0.5], colors="yellow", linestyles="dashed", linewidths=1)
            axes.contour(one.mask_kji[k], [0.5], colors="lime", linewidths=1)
            if k == one.key:
                left, top, right, bottom = one.box_xyxy
                axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], "c", lw=0.8)
        axes_of_row[0].set_axis_on()
        axes_of_row[0].set_ylabel(f"Dice {one.dice:.2f}", fontsize=8)
        if len(one.image_kji) == 1:
            for side in axes_of_row[0].spines.values():
                side.set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    Image.open(drawn).convert("RGB").save(path, quality=65, method=6)


def main() -> None:
    """Measure, sort, draw, and print the mean Dice."""
    found = sorted((one for one, _ in zip(results(), range(OBJECTS), strict=False)), key=lambda r: r.dice)
    print(f"mean Dice of {len(found)}: {np.mean([one.dice for one in found]):.3f}")
    draw(Path(__file__).with_name("results.webp"), found[OBJECTS // SHOWN // 2 :: OBJECTS // SHOWN])


if __name__ == "__main__":
    main()
