"""A small folder to train on, and a network so small that training it takes no time."""

from pathlib import Path

import numpy as np
from medsam2_core.training.base import BaseTraining
from medsam2_core.training.objective import Stage
from PIL import Image

from support.model import a_disc
from support.project import CORE

SIDE = 64


def write_training_folder(folder: Path, pictures: int = 7) -> Path:
    """Pictures of two discs; a label volume with three shapes; a scan with its labels."""
    rng = np.random.default_rng(5)
    discs = folder / "discs"
    discs.mkdir(parents=True)
    for n in range(pictures):
        image = rng.integers(0, 60, (SIDE, SIDE)).astype(np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for value, (x, y) in enumerate(((20 + n, 24), (42, 40 - n)), start=1):
            labels[a_disc((SIDE, SIDE), (x, y), 9)] = value
        image[labels > 0] += 120
        Image.fromarray(image).save(discs / f"{n:03d}_img.png")
        Image.fromarray(labels).save(discs / f"{n:03d}_seg.png")
    write_nifti(folder / "shapes" / "one_seg.nii.gz", shapes())
    write_nifti(folder / "scans" / "one_seg.nii.gz", shapes())
    write_nifti(folder / "scans" / "one_img.nii.gz", (shapes() * 100 + 20).astype(np.int16))
    return folder


def shapes() -> np.ndarray:
    """(20, 32, 32) labels: a ball, a bar, a box."""
    k, j, i = np.mgrid[:20, :32, :32]
    labels = np.zeros((20, 32, 32), np.uint8)
    labels[(k - 10) ** 2 + (j - 10) ** 2 + (i - 10) ** 2 <= 36] = 7
    labels[2:18, 20:26, 4:28] = 3
    labels[4:9, 4:9, 22:28] = 44
    return labels


def write_nifti(path: Path, voxels_kji: np.ndarray, spacing=(1.0, 1.5, 3.0)) -> Path:
    """Voxels with a spacing (i, j, k) and nothing else."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels_kji.T), np.diag([*spacing, 1.0])), path)
    return path


def tiny_config(folder: Path) -> Path:
    """The embedded model's architecture at 64 pixels and few channels."""
    text = (CORE / "engine" / "configs" / "embedded.yaml").read_text()
    for old, new in {
        "channels: [48, 96, 192, 256]": "channels: [8, 8, 16, 16]",
        "backbone_channel_list: [256, 192, 96, 48]": "backbone_channel_list: [16, 16, 8, 8]",
        "depths: [2, 2, 3, 2]": "depths: [1, 1, 1, 1]",
        "feat_sizes: [16, 16]": "feat_sizes: [4, 4]",
        "image_size: 256": "image_size: 64",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def tiny_training(data: Path, config: Path | str, **changes) -> BaseTraining:
    """Four steps on slices, two on clips."""
    settings = {
        "data": str(data),
        "config": str(config),
        "stages": (
            Stage("slices", steps=4, frames=1, batch=2, learning_rate=1e-3),
            Stage("clips", steps=2, frames=2, batch=1, learning_rate=1e-3, corrections=1),
        ),
        "warm_up": 2,
        "threads": 1,
        "workers": 0,
        "precision": "fp32",
        "validation_views": 1,
        "report_every": 2,
        "validate_every": 4,
    }
    return BaseTraining(**{**settings, **changes})
