"""Label files read as objects in the smallest boxes that hold them, without layers of the whole grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import Note
from medsam2_core.imaging import dicom, dicom_seg, files, nrrd
from medsam2_core.imaging.labels import Label, LabelMap, labels_of, read_labels, segments_in
from medsam2_core.imaging.parts import Part, Parts
from medsam2_core.imaging.slicer_fields import read_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry


@dataclass(frozen=True, eq=False)
class LabelParts:
    """What a :class:`~medsam2_core.imaging.labels.LabelMap` says, with the voxels of each object by itself.

    Attributes
    ----------
    labels, parts
        What each object is, and where; as many of the one as of the other.
    geometry, kind, notes
        As of a LabelMap.
    """

    labels: tuple[Label, ...]
    parts: tuple[Part, ...]
    geometry: Geometry
    kind: str = ""
    notes: tuple[Note, ...] = ()


def read_parts(path: str | Path) -> LabelParts:
    """Read any file that ``read_labels`` reads; memory holds the parts and a slice of what overlaps.

    The layer of a DICOM SEG's label says nothing: it has none.

    Raises
    ------
    VolumeError, GeometryError
        As ``read_labels`` does.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.name.lower().endswith((".nrrd", ".nhdr")):
        layered = nrrd.read_layers(path)
        if layered is not None:
            with files.reading(path, "a label map"):
                labels = segments_in(path, read_fields(path), layered.count)
            return LabelParts(labels, _parts(labels, layered), layered.geometry)
    elif path.is_file() and dicom.is_dicom(path):
        read = dicom_seg.read(path, _boxes)
        parts = tuple(read.voxels.take(number) for number in read.segments)
        return LabelParts(labels_of(read.segments, {}), parts, read.geometry, read.kind, read.notes)
    return parts_of(read_labels(path))


def _boxes(path: Path, shape_kji: tuple[int, int, int]) -> Parts:
    """Boxes take little, but what is done with the segmentation goes through the whole grid."""
    files.checked_bytes(path, shape_kji, 1, files.LARGEST_VOLUME)
    return Parts()


def parts_of(labels: LabelMap) -> LabelParts:
    """The same of labels that were read already."""
    slices = np.moveaxis(labels.layers_lkji, 1, 0)
    return LabelParts(
        labels.labels, _parts(labels.labels, slices), labels.geometry, labels.kind, labels.notes
    )


def _parts(labels: tuple[Label, ...], slices_lji: Iterable[NDArray]) -> tuple[Part, ...]:
    """The voxels of each label, from (L, J, I) layers slice by slice."""
    parts = Parts()
    on_layer: dict[int, dict[int, int]] = {}  # of each layer: the number of the label that has a value
    for number, label in enumerate(labels):
        on_layer.setdefault(label.layer, {}).setdefault(label.value, number)
    for k, layers_ji in enumerate(slices_lji):
        for layer, number_of in on_layer.items():
            there = np.unique(layers_ji[layer]).tolist() if len(number_of) > 2 else number_of
            for value in there:
                if value in number_of:
                    parts.put(number_of[value], k, layers_ji[layer] == value)
    first = [on_layer[label.layer][label.value] for label in labels]
    taken = {number: parts.take(number) for number in set(first)}
    return tuple(taken[number] for number in first)
