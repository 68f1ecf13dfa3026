"""Folders of labelled images to learn from: bright discs and dark bars in noise, in every shape of folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 72
DISC, BAR = 1, 2


def a_picture(seed: int, shape=(SIDE, SIDE)) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) image and labels: a bright disc (1) and a dark bar (2) somewhere in noise."""
    rng = np.random.default_rng(seed)
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    image = rng.normal(110, 12, shape)
    labels = np.zeros(shape, np.uint8)
    y, x = rng.integers(height // 4, height // 2), rng.integers(width // 4, 3 * width // 4)
    labels[(rows - y) ** 2 + (columns - x) ** 2 <= (height // 7) ** 2] = DISC
    top, left = rng.integers(2 * height // 3, height - 12), rng.integers(4, width // 3)
    labels[top : top + 9, left : left + width // 2] = BAR
    image[labels == DISC] += 90
    image[labels == BAR] -= 70
    return image.clip(0, 255).astype(np.uint8), labels


def write_pictures(folder: Path, count: int = 6, first: int = 0) -> Path:
    """``NNN_img.png`` beside ``NNN_seg.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        image, labels = a_picture(n)
        Image.fromarray(image).save(folder / f"{n:03d}_img.png")
        Image.fromarray(labels).save(folder / f"{n:03d}_seg.png")
    return folder


def a_ball(seed: int, shape_kji=(14, 32, 30)) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) int16 image and uint8 labels: a bright ball (1) in noise, empty slices at both ends."""
    rng = np.random.default_rng(seed)
    k, j, i = np.indices(shape_kji)
    centre = np.array(shape_kji) / 2 + rng.uniform(-2, 2, 3) * (0, 1, 1)
    ball = ((k - centre[0]) * 1.6) ** 2 + (j - centre[1]) ** 2 + (i - centre[2]) ** 2 <= 49
    image = rng.normal(100, 10, shape_kji) + 120 * ball
    return image.astype(np.int16), ball.astype(np.uint8)


def write_volumes(folder: Path, count: int = 3) -> Path:
    """``NAME.nrrd`` beside ``NAME.seg.nrrd``, which names its class and gives it a colour and a code."""
    from medsam2_core import export
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.imaging.terminology import Code, Terminology

    from support.small_files import write_nrrd

    folder.mkdir(parents=True, exist_ok=True)
    straight = np.diag([-1.0, -1.0, 2.0, 1.0])
    kind = Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "64033007", "Kidney"))
    for n in range(count):
        image, ball = a_ball(n)
        write_nrrd(folder / f"case{n}.nrrd", image, straight)
        segment = Segment("kidney", (0.2, 0.4, 0.6), ball, kind)
        segmentation = Segmentation(Geometry(straight, ball.shape[::-1]), (segment,))
        export.write(segmentation, folder / f"case{n}.seg.nrrd")
    return folder
