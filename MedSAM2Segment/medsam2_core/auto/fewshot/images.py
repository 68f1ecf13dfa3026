"""Pairs of files as labelled 2-D images: pictures as they are, volumes slice by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.classes import ClassTable
from medsam2_core.auto.fewshot.pairs import Pair
from medsam2_core.auto.framing import Frame
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.intensity import parse_window, to_display
from medsam2_core.imaging.reading import read_labels, read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from medsam2_core.imaging.label_map import LabelMap

#: Slices a volume contributes at most; neighbours look alike, and a few volumes shall not fill the memory.
MOST_SLICES = 64


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image as the model will see it, and its labels as they were given.

    Attributes
    ----------
    square
        (side, side, 3) uint8, framed.
    labels_hw
        (H, W) int16 in the image's own pixels: 0 background, k + 1 for class k.
    frame
        How the image lies in the square.
    name
        For messages; never stored with a model.
    group
        What must not be divided between training and validation.
    held_aside
        Whether it is only measured on.
    is_slice
        Whether it is one of a volume.
    modality
        DICOM modality where the file tells.
    """

    square: NDArray[np.uint8]
    labels_hw: NDArray[np.int16]
    frame: Frame
    name: str
    group: str
    held_aside: bool = False
    is_slice: bool = False
    modality: str = ""

    @property
    def key(self) -> str:
        """SHA-256 of what the model sees."""
        return hashlib.sha256(np.ascontiguousarray(self.square).data).hexdigest()

    def has(self, number: int) -> bool:
        """Whether class `number` (from 1) is on it."""
        return bool((self.labels_hw == number).any())


@dataclass(frozen=True)
class Reading:
    """How files become images.

    Attributes
    ----------
    side
        Of the model's square.
    axis
        What volumes are cut along.
    window
        A preset, ``"WIDTH,LEVEL"`` or ``auto``.
    most_slices
        Of one volume.
    """

    side: int
    axis: str = "axial"
    window: str = "auto"
    most_slices: int = MOST_SLICES


def read_pair(pair: Pair, table: ClassTable, reading: Reading) -> list[LabelledImage]:
    """The images of a pair.

    Raises
    ------
    VolumeError
        With what is wrong with the files, or with how they fit each other.
    """
    volume, labels = read_volume(pair.image), read_labels(pair.labels)
    check_sizes(volume, labels)
    labels = _on_grid(labels, volume)
    window = parse_window(reading.window, volume)
    axis = reading.axis if len(volume.voxels_kji) > 1 else "k"
    stack = SliceStack.along(volume, axis)
    # Labels are cut as the image is: a volume of class numbers on the same grid.
    numbers = SliceStack.along(Volume(_class_numbers(labels, table), volume.geometry), axis)
    images = []
    for n in _chosen(numbers, reading.most_slices):
        image = to_display(stack.image_hw(n), window)
        frame = Frame(stack.shape_hw, reading.side, stack.pixel_mm)
        square = np.rint(frame.pixels(image).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        name = f"{pair.name}, slice {n}" if len(stack) > 1 else pair.name
        group = pair.group or str(pair.image)
        labels_hw, is_slice = numbers.image_hw(n), len(stack) > 1
        images.append(
            LabelledImage(square, labels_hw, frame, name, group, pair.held_aside, is_slice, volume.modality)
        )
    return images


def check_sizes(volume: Volume, labels: LabelMap) -> None:
    """VolumeError when labels cannot lie on the volume, with both sizes."""
    # Sorted, because a file may store the axes in another order.
    ours, theirs = volume.geometry.shape_ijk, labels.geometry.shape_ijk
    if sorted(ours) != sorted(theirs):
        raise VolumeError(
            f"the image has {_size(ours)} pixels, its labels {_size(theirs)}: they must be of one size"
        )


def _on_grid(labels: LabelMap, volume: Volume) -> LabelMap:
    if volume.is_picture and labels.geometry.shape_ijk == volume.geometry.shape_ijk:
        return replace(labels, geometry=volume.geometry)  # pictures have no place in space
    return labels.on_grid(volume.geometry)


def _class_numbers(labels: LabelMap, table: ClassTable) -> NDArray[np.int16]:
    """(K, J, I) class numbers; where objects overlap, the later class."""
    out = np.zeros(labels.layers_lkji.shape[1:], dtype=np.int16)
    numbers = table.numbers(labels.labels)
    for (layer, value), number in sorted(numbers.items(), key=lambda item: item[1]):
        out[labels.layers_lkji[layer] == value] = number
    return out


def _chosen(numbers: SliceStack, most: int) -> Sequence[int]:
    """Slices to train on, evenly spread: those with a class and those without in the volume's proportion."""
    if len(numbers) <= most:
        return range(len(numbers))
    filled = np.array([numbers.image_hw(n).any() for n in range(len(numbers))])
    share = max(1, round(most * filled.mean())) if filled.any() else 0
    return sorted([*_spread(np.flatnonzero(filled), share), *_spread(np.flatnonzero(~filled), most - share)])


def _spread(indices: NDArray[np.intp], count: int) -> Iterator[int]:
    count = min(count, len(indices))
    if count > 0:
        yield from (int(indices[round(p)]) for p in np.linspace(0, len(indices) - 1, count))


def _size(shape_ijk: Sequence[int]) -> str:
    shape = [n for n in shape_ijk if n > 1] or list(shape_ijk)
    return " x ".join(map(str, shape))
