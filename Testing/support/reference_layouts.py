"""Training data in the folder layouts of published systems, made of two bright organs in noise."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64


def two_organs(seed: int, slices: int = 10, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) uint8 image and labels: a bright ball (1), and a darker bar (2) in the later slices only."""
    rng = np.random.default_rng(seed)
    k, j, i = np.indices((slices, side, side))
    labels = np.zeros((slices, side, side), np.uint8)
    y, x = rng.integers(side // 4, side // 3, 2)
    radius = side // 7
    labels[(j - y) ** 2 + (i - x) ** 2 + (2 * (k - slices / 2)) ** 2 <= radius**2] = 1
    top = int(rng.integers(side // 2, 2 * side // 3))
    labels[slices // 3 :, top : top + side // 6, side // 3 : 5 * side // 6] = 2
    image = rng.normal(60, 12, labels.shape) + np.array([0, 140, 70])[labels]
    return image.clip(0, 255).astype(np.uint8), labels


def write_slice_by_slice(folder: Path, training: int = 2, test: int = 1, slices: int = 10) -> Path:
    """``Training|Test/image/CASE/N.jpg`` and ``mask/CASE/N.npy``, as Medical SAM 2 has BTCV and AMOS."""
    cases = [("Training", n) for n in range(training)] + [("Test", 100 + n) for n in range(test)]
    for part, number in cases:
        image, labels = two_organs(number, slices)
        pictures, masks = (folder / part / kind / f"img{number:04d}" for kind in ("image", "mask"))
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for n in range(slices):
            Image.fromarray(image[n]).convert("RGB").save(pictures / f"{n}.jpg", quality=95)
            np.save(masks / f"{n}.npy", labels[n])
    return folder


def write_rated(folder: Path, count: int = 3, raters: int = 7) -> Path:
    """``Training-400/ID/ID_cropped.jpg`` with ``ID_seg_cup_R_cropped.jpg`` and discs, as REFUGE.

    Rater r sees a cup of radius 6 + r, so that most see one of 6 + (raters + 1) / 2.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(rows - SIDE / 2, columns - SIDE / 2)
    for n in range(count):
        part = folder / ("Test-400" if n == count - 1 else "Training-400") / f"{n:04d}"
        part.mkdir(parents=True)
        noise = np.random.default_rng(n).normal(90, 12, (SIDE, SIDE))
        image = (noise + 60 * (distance < 20) + 60 * (distance < 10)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).convert("RGB").save(part / f"{n:04d}_cropped.jpg")
        for rater in range(1, raters + 1):
            for name, radius in (("cup", 6 + rater), ("disc", 20)):
                mask = ((distance < radius) * 255).astype(np.uint8)
                Image.fromarray(mask).save(part / f"{n:04d}_seg_{name}_{rater}_cropped.jpg", quality=95)
    return folder


def write_npz(folder: Path, count: int = 2) -> Path:
    """``NAME.npz`` with ``imgs``, ``gts`` and ``spacing``, as MedSAM2."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        image, labels = two_organs(n)
        np.savez_compressed(folder / f"MR_{n}.npz", imgs=image, gts=labels, spacing=np.array([1.0, 1.0, 2.0]))
    return folder
