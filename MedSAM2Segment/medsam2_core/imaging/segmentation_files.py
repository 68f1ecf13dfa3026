"""Read label files as segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import dicom, dicom_seg, files, metaimage, nifti, npz, nrrd, pictures
from medsam2_core.imaging.segment_builder import from_layers
from medsam2_core.imaging.segmentation import Label, Segmentation
from medsam2_core.imaging.terminology import parse_tags, terminology_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.volume import Volume

_FEW_LABELS = 64  # a volume of whole numbers with more distinct values is a scan
_FEW_VOXELS = 4  # each of many values in a scan has more
_MOST_LABELS = 65_536  # more distinct values are a picture that was taken for a label map


def read_segmentation(path: str | Path) -> Segmentation:
    """Read a label file: ``.seg.nrrd``, DICOM SEG, NIfTI, NRRD, MetaImage, NPZ, grey or palette picture.

    Label values must be whole numbers; floats that are whole are taken; a scan of whole numbers is refused
    (``not-a-segmentation``). What is not in the file is filled in,
    see :meth:`medsam2_core.imaging.segment_builder.SegmentBuilder.build`; what is, each segment has as its
    ``label``. Segments without voxels are kept where the file names them. A NIfTI file has names when this
    package wrote it.

    Memory holds the masks and, of a file with several layers, a slice.

    Returns
    -------
    Segmentation
        Segments on the file's own grid, in its order.

    Raises
    ------
    VolumeError
        When the file cannot be read as labels; GeometryError when its position in space cannot.
    """
    path = files.existing(path)
    if path.is_dir():
        raise files.error(path, "a folder: name the file of the labels", "label-map-is-folder")
    name = path.name.lower()
    if name.endswith((".nrrd", ".nhdr")):
        return _read_nrrd(path)
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        return _from_volume(path, nifti.read_volume(path), nifti.read_label_names(path))
    if name.endswith((".mha", ".mhd")):
        return _from_volume(path, metaimage.read_volume(path))
    if name.endswith(pictures.SUFFIXES):
        return _from_volume(path, pictures.read_volume(path, as_labels=True))
    if name.endswith(".npz"):
        return _from_values(path, *npz.read_labels(path))
    if dicom.is_dicom(path):
        return dicom_seg.read(path)
    message = "unknown kind of label map: NRRD, NIfTI, MetaImage, DICOM SEG, NPZ, PNG are read"
    raise files.error(path, message, "unknown-format")


def is_segmentation(path: Path) -> bool:
    """Return whether a file has named segments: a ``.seg.nrrd`` or a DICOM SEG."""
    if path.name.lower().endswith(".seg.nrrd"):
        return True
    return path.is_file() and dicom.is_dicom(path) and dicom_seg.is_segmentation(path)


def label_counts(volume: Volume) -> dict[int, int]:
    """Return the labels of a volume that may be a label map, with their numbers of voxels; none for a scan.

    Few whole numbers, 0 among them and none below.
    """
    voxels = volume.voxels_kji
    if volume.is_colour or volume.is_picture or voxels.dtype.kind not in "buif":
        return {}
    found: dict[int, int] = {}
    for slice_ji in voxels:
        if voxels.dtype.kind == "f" and not (
            np.isfinite(slice_ji).all() and (slice_ji == np.rint(slice_ji)).all()
        ):
            return {}
        values, counts = np.unique(slice_ji, return_counts=True)
        if len(values) > _FEW_LABELS or values[0] < 0:
            return {}
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            found[int(value)] = found.get(int(value), 0) + count
    if len(found) > _FEW_LABELS or 0 not in found or max(found) > 65535:
        return {}
    return {value: count for value, count in sorted(found.items()) if value}


def _from_volume(path: Path, volume: Volume, named: tuple[Label, ...] = ()) -> Segmentation:
    if volume.is_colour:
        message = "a colour picture is not a label map: save label numbers as grey values"
        raise files.error(path, message, "colour-label-map")
    read = _from_values(path, volume.voxels_kji, volume.geometry, named)
    if volume.known_spacing == "all":
        return read
    return replace(read, provenance={**read.provenance, "known_spacing": volume.known_spacing})


def _from_values(
    path: Path, voxels_kji: NDArray[Any], geometry: Geometry, named: tuple[Label, ...] = ()
) -> Segmentation:
    """Return the segments of a label map; values without a name come after the named ones."""
    with files.reading(path, "a label map"):
        labels_kji = files.whole_numbers(path, voxels_kji)
        known = {label.value for label in named}
        others = (Label(str(value), value) for value in _values(path, labels_kji) if value not in known)
        return from_layers((*named, *others), labels_kji[:, np.newaxis], geometry)


def _values(path: Path, labels_kji: NDArray[Any]) -> list[int]:
    found: set[int] = set()
    for labels_ji in labels_kji:
        found.update(np.unique(labels_ji).tolist())
        if len(found) > _MOST_LABELS:
            message = f"more than {_MOST_LABELS} different values: this is an image, not a label map"
            raise files.error(path, message, "too-many-labels")
    if len(found) > _FEW_LABELS and _is_rough(labels_kji, len(found)):
        message = f"{len(found)} different values that change from voxel to voxel: a scan, not a segmentation"
        raise files.error(path, message, "not-a-segmentation", labels=len(found))
    return sorted(found - {0})


def _is_rough(labels_kji: NDArray[Any], values: int) -> bool:
    """Return whether each of so many values has several voxels, but most voxels another value than their
    neighbour along i; where both are 0 they do not count.

    In label maps few have another (of a spinal cord, 12 voxels thick, 28 %; of most objects 10 %), in scans
    most have (of an ultrasound image of 8 bits 67 %; of most scans more than 80 %).
    """
    equal = pairs = 0
    for slice_ji in labels_kji:
        one, other = slice_ji[:, :-1], slice_ji[:, 1:]
        is_pair = (one != 0) | (other != 0)
        equal += np.count_nonzero((one == other) & is_pair)
        pairs += np.count_nonzero(is_pair)
    return 2 * equal < pairs and pairs > _FEW_VOXELS * values


def _read_nrrd(path: Path) -> Segmentation:
    layers: Any = nrrd.read_layers(path)  # slice by slice, where the file has a slice of all layers together
    if layers is not None:
        geometry, count = layers.geometry, layers.count
    else:
        content = nrrd.read_array(path)
        with files.reading(path, "a label map"):
            voxels, geometry = files.whole_numbers(path, content.voxels), content.geometry
        layers = voxels[:, np.newaxis] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 1)
        count = layers.shape[1]
    with files.reading(path, "a label map"):
        labels = _slicer_segments(path, nrrd.read_fields(path), count)
    if not labels and count == 1:
        return _from_values(path, layers[:, 0], geometry)
    return from_layers(labels, layers, geometry)


def _slicer_segments(path: Path, fields: Mapping[str, str], layer_count: int) -> tuple[Label, ...]:
    """Return the segments that 3D Slicer describes in the header of a ``.seg.nrrd``.

    Raises
    ------
    VolumeError
        A segment is on a layer that is not there, or there are several layers and none is named.
    """
    numbers = sorted(
        int(digits)
        for key in fields
        if key.startswith("Segment") and key.endswith("_ID") and (digits := key[7:-3]).isdecimal()
    )
    if layer_count > 1 and not numbers:
        message = f"{layer_count} values per voxel, but no segments are named in the header"
        raise files.error(path, message, "unnamed-layers", layers=layer_count)
    labels = []
    for order, number in enumerate(numbers):
        prefix = f"Segment{number}_"
        # Files written before Slicer 4.11 have one layer per segment and neither of these fields.
        layer = int(fields.get(f"{prefix}Layer", order if layer_count > 1 else 0))
        value = int(fields.get(f"{prefix}LabelValue", 1))
        if not 0 <= layer < layer_count:
            message = f"segment {number} is on layer {layer} of {layer_count}"
            raise files.error(path, message, "missing-layer", segment=number, layer=layer, layers=layer_count)
        name = fields.get(f"{prefix}Name", fields[f"{prefix}ID"])
        tags = parse_tags(fields.get(f"{prefix}Tags", ""))
        colour = _slicer_colour(fields.get(f"{prefix}Color", ""))
        labels.append(Label(name, value, layer, colour, tags, terminology_in(tags)))
    return tuple(labels)


def _slicer_colour(text: str) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (min(1.0, max(0.0, float(part))) for part in text.split())
    except ValueError:
        return None  # a damaged colour is no reason to refuse the voxels
    return red, green, blue
