"""Data sets a start of predictors is trained on: folders of pictures with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medsam2_core.auto.framing import Frame
from medsam2_core.errors import TrainingError


@dataclass(frozen=True)
class DataSet:
    """Images of one origin: (side, side, 3) uint8 squares, (side, side) labels, and how they are framed."""

    name: str
    squares: list[np.ndarray]
    labels: list[torch.Tensor]
    frames: list[Frame]
    classes: tuple[int, ...]
    first_query: int


def read_data_sets(folders: Sequence[Path], side: int) -> tuple[list[DataSet], list[DataSet]]:
    """What there is to train on, and one image in eight of each data set to validate with.

    TrainingError when there is nothing.
    """
    from PIL import Image

    training, validation, queries = [], [], 0
    rows = [row for folder in folders for row in sorted(path for path in folder.iterdir() if path.is_dir())]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrainingError(f"{twice[0]}: two data sets have this name; rename a folder")
    for row in rows:
        squares, labels, frames = [], [], []
        for path in sorted(row.glob("*_img.png")):
            image = np.asarray(Image.open(path).convert("RGB"))
            marks = np.asarray(Image.open(path.with_name(path.name.replace("_img.", "_seg."))))
            frame = Frame(image.shape[:2], side)
            squares.append((frame.pixels(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            labels.append(frame.labels(marks))
            frames.append(frame)
        if not squares:
            continue
        classes = tuple(sorted({int(v) for marks in labels for v in torch.unique(marks)} - {0}))
        aside = [n for n in range(len(squares)) if n % 8 == 5]
        for sets, kept in (
            (training, [n for n in range(len(squares)) if n not in aside]),
            (validation, aside),
        ):
            parts = ([part[n] for n in kept] for part in (squares, labels, frames))
            sets.append(DataSet(row.name, *parts, classes, queries))
        queries += len(classes)
    if not training:
        places = ", ".join(map(str, folders))
        raise TrainingError(
            f"{places}: no data sets in it: folders of NAME_img.png and NAME_seg.png are read"
        )
    return training, validation
