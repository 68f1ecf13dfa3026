"""Labelled 2-D images as the model sees them: pictures as they are, volumes slice by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.cases import LabelledCase
from medsam2_core.auto.fewshot.data import ClassTable
from medsam2_core.auto.letterbox import Letterbox
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.intensity import parse_window, to_display
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation


#: Most slices of a volume: neighbours look alike, and a few volumes must fit into memory.
MOST_SLICES = 64


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image as the model sees it, with its labels.

    Attributes
    ----------
    square
        (S, S, 3) uint8, letterboxed.
    labels_hw
        (H, W) int16 in the image's own pixels: 0 background, k + 1 for class k.
    name
        For messages; never stored with a model.
    """

    square: NDArray[np.uint8]
    labels_hw: NDArray[np.int16]
    letterbox: Letterbox
    name: str
    group: str
    held_out: bool = False
    is_slice: bool = False
    modality: str = ""
    case: int = -1

    @property
    def key(self) -> str:
        """SHA-256 of the square."""
        return hashlib.sha256(np.ascontiguousarray(self.square).data).hexdigest()

    def has(self, number: int) -> bool:
        """Whether class `number` (from 1) is on the image."""
        return bool((self.labels_hw == number).any())


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read as images."""

    side: int
    axis: str = "axial"
    window: str = "auto"
    most_slices: int = MOST_SLICES


def images_of(case: LabelledCase, table: ClassTable, reading: ReadingOptions) -> list[LabelledImage]:
    """Return a case as the model sees it: the picture, or some slices of the volume."""
    pair, volume = case.pair, case.volume
    window = parse_window(reading.window, volume)
    axis = reading.axis if len(volume.voxels_kji) > 1 else "k"
    stack = SliceStack.along(volume, axis)
    # Labels are sliced as the image is: a volume of class numbers on the same grid.
    numbers = SliceStack.along(Volume(_class_numbers(case.labels, table), volume.geometry), axis)
    images = []
    for n in _chosen(numbers, reading.most_slices):
        image = to_display(stack.image_hw(n), window)
        letterbox = Letterbox(stack.shape_hw, reading.side, stack.pixel_mm)
        square = np.rint(letterbox.resize(image).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        name = f"{pair.name}, slice {n}" if len(stack) > 1 else pair.name
        group = pair.group or str(pair.image)
        labels_hw, is_slice = numbers.image_hw(n), len(stack) > 1
        images.append(
            LabelledImage(square, labels_hw, letterbox, name, group, pair.held_out, is_slice, volume.modality)
        )
    return images


def _class_numbers(labels: Segmentation, table: ClassTable) -> NDArray[np.int16]:
    """Return (K, J, I) class numbers; where segments overlap, the later class."""
    out = np.zeros(labels.geometry.shape_ijk[::-1], dtype=np.int16)
    for number, segment in sorted(table.numbered(labels), key=lambda one: one[0]):
        segment.view_of(out)[segment.part_kji] = number
    return out


def _chosen(numbers: SliceStack, most: int) -> Sequence[int]:
    """Choose evenly spaced slices; the proportion of slices without any class is kept."""
    if len(numbers) <= most:
        return range(len(numbers))
    filled = np.array([numbers.image_hw(n).any() for n in range(len(numbers))])
    share = max(1, round(most * filled.mean())) if filled.any() else 0
    return sorted([*_spread(np.flatnonzero(filled), share), *_spread(np.flatnonzero(~filled), most - share)])


def _spread(indices: NDArray[np.intp], count: int) -> Iterator[int]:
    count = min(count, len(indices))
    if count > 0:
        yield from (int(indices[round(p)]) for p in np.linspace(0, len(indices) - 1, count))


@dataclass(frozen=True)
class DataSet:
    """Images of one data set: each an (S, S, 3) uint8 square, its (S, S) labels, and its letterbox."""

    name: str
    images: list[tuple[np.ndarray, torch.Tensor, Letterbox]]
    classes: tuple[int, ...]
    first_query: int


def read_data_sets(folders: Sequence[Path], side: int) -> tuple[list[DataSet], list[DataSet]]:
    """Read data sets for pretraining: seven of eight images to train on, one to validate with.

    Parameters
    ----------
    folders
        Folders of data sets, each a folder of ``NAME_img.png`` and ``NAME_seg.png``.

    Raises
    ------
    TrainingError
        ``no-data-sets``, or ``data-sets-of-one-name``.
    """
    from PIL import Image

    training: list[DataSet] = []
    validation: list[DataSet] = []
    queries = 0
    rows = [row for folder in folders for row in sorted(path for path in folder.iterdir() if path.is_dir())]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        message = f"{twice[0]}: two data sets have this name; rename a folder"
        raise TrainingError(message, code="data-sets-of-one-name", name=twice[0])
    for row in rows:
        images = []
        for path in sorted(row.glob("*_img.png")):
            image = np.asarray(Image.open(path).convert("RGB"))
            marks = np.asarray(Image.open(path.with_name(path.name.replace("_img.", "_seg."))))
            letterbox = Letterbox(image.shape[:2], side)
            square = (letterbox.resize(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            images.append((square, letterbox.resize_labels(marks), letterbox))
        if not images:
            continue
        classes = tuple(sorted({int(v) for _, marks, _ in images for v in torch.unique(marks)} - {0}))
        for sets, is_validation in ((training, False), (validation, True)):
            kept = [one for n, one in enumerate(images) if (n % 8 == 5) is is_validation]
            sets.append(DataSet(row.name, kept, classes, queries))
        queries += len(classes)
    if not training:
        places = ", ".join(map(str, folders))
        message = f"{places}: no data sets in it: folders of NAME_img.png and NAME_seg.png are read"
        raise TrainingError(message, code="no-data-sets", folders=[str(folder) for folder in folders])
    return training, validation
