"""Synthetic labelled volumes: for trying things out, for tests, and to see what training sees."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core import atomic
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.training.anatomy import random_anatomy
from medsam2_core.training.appearance import paint

_SMALLEST = 32


def random_volume(rng: np.random.Generator, side: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One volume of random anatomy; the same state of ``rng`` gives the same voxels.

    Returns
    -------
    tuple
        Image and labels, both (side, side, side).
    """
    if side < _SMALLEST:
        message = f"{side} voxels a side: at least {_SMALLEST} are needed to draw anatomy"
        raise TrainingError(message, code="side-too-short", side=side, least=_SMALLEST)
    labels = random_anatomy(rng, side)
    return painted(labels, rng), labels


def painted_map(labels_kji: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(K, J, I) a made-up scan of real anatomy, given as a label map."""
    values, places = np.unique(labels_kji, return_inverse=True)
    # Background keeps number 0, whatever values the labels have.
    order = np.argsort(values != 0, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return painted(rank[places].reshape(labels_kji.shape), rng)


def painted(labels_kji: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.uint8]:
    """(K, J, I) uint8 image of labels numbered from 0."""
    image = paint(torch.from_numpy(np.ascontiguousarray(labels_kji)), rng)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def write_volume(
    path: Path, voxels_kji: NDArray[np.generic], geometry: Geometry, overwrite: bool = False
) -> None:
    """Write an NRRD; equal volumes are equal files."""
    import nrrd

    content = io.BytesIO()
    header = {
        "space": "left-posterior-superior",
        "space directions": geometry.ijk_to_lps[:3, :3].T,
        "space origin": geometry.ijk_to_lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    nrrd.write(content, voxels_kji.transpose(), header, index_order="F")
    head, blank, voxels = content.getvalue().partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"#")]  # comments hold the time
    with atomic.new_file(path, overwrite=overwrite) as stream:
        stream.write(b"\n".join(lines) + blank + voxels)


def write_picture(path: Path, pixels: NDArray[np.uint8], overwrite: bool = False) -> None:
    """Write a PNG of (H, W) or (H, W, 3) pixels."""
    from PIL import Image

    with atomic.new_file(path, overwrite=overwrite) as stream:
        Image.fromarray(pixels).save(stream, format="png")
