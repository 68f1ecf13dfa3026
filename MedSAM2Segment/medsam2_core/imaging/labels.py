"""Label maps: which voxels belong to which named object, read from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, Note, VolumeError
from medsam2_core.imaging import dicom, dicom_seg, files, metaimage, nifti, npz, nrrd, pictures
from medsam2_core.imaging.layers import Layers
from medsam2_core.imaging.slicer_fields import parse_tags, read_fields, tags_text, terminology_in
from medsam2_core.imaging.volume import canonical_affine, canonical_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.dicom_seg_segments import Described
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.terminology import Terminology

_MOST_LABELS = 65_536  # more distinct values are a picture that was taken for a label map


@dataclass(frozen=True)
class Label:
    """One object: its voxels are those of ``layer`` that have ``value``.

    ``colour`` is RGB from 0 to 1. ``tags`` is text in 3D Slicer's form, ``name:value|name:value|``; ``facts``
    has them by name. ``terminology`` is None where the file gives no codes.
    """

    name: str
    value: int
    layer: int = 0
    colour: tuple[float, float, float] | None = None
    tags: str = ""
    terminology: Terminology | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The tags by name, such as ``DICOM.SegmentAlgorithmType``; values may hold colons."""
        return parse_tags(self.tags)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Objects on a grid. Objects that overlap are on different layers; most files have one.

    ``layers_lkji`` is (L, K, J, I) of an integer type, shown read-only; 0 is background. ``kind`` tells how a
    DICOM segmentation is stored: ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``, else empty. ``notes`` is
    what the user should know of how the file was read: one sentence each.
    """

    layers_lkji: NDArray[Any]
    labels: tuple[Label, ...]
    geometry: Geometry
    name: str = ""
    source: Path | None = None
    kind: str = ""
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        layers = np.asarray(self.layers_lkji).view()
        if (
            layers.ndim != 4
            or layers.shape[1:] != self.geometry.shape_ijk[::-1]
            or layers.dtype.kind not in "ui"
        ):
            raise VolumeError(
                f"labels {layers.shape} of {layers.dtype} do not fit a grid of {self.geometry.shape_ijk}"
            )
        layers.flags.writeable = False
        object.__setattr__(self, "layers_lkji", layers)
        object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def voxels_kji(self) -> NDArray[Any]:
        """(K, J, I) values, when no objects overlap; else use :meth:`mask_kji`."""
        if len(self.layers_lkji) != 1:
            raise VolumeError(f"{self.name!r} has overlapping objects on {len(self.layers_lkji)} layers")
        return self.layers_lkji[0]

    @property
    def names(self) -> dict[int, str]:
        """Name by value, when no objects overlap."""
        self._check_one_layer()
        return {label.value: label.name for label in self.labels}

    @property
    def colours(self) -> dict[int, tuple[float, float, float]]:
        """Colour (RGB from 0 to 1) by value for those that have one, when no objects overlap."""
        self._check_one_layer()
        return {label.value: label.colour for label in self.labels if label.colour is not None}

    def find(self, name_or_value: str | int) -> Label:
        """An object by its name or, without overlap, by its value; VolumeError lists the known ones."""
        for label in self.labels:
            if name_or_value == label.name or (
                not isinstance(name_or_value, str)
                and len(self.layers_lkji) == 1
                and name_or_value == label.value
            ):
                return label
        known = ", ".join(f"{label.name!r} ({label.value})" for label in self.labels) or "none"
        raise VolumeError(f"no object {name_or_value!r} in {self.name!r}: it holds {known}")

    def mask_kji(self, name_or_value: str | int) -> NDArray[np.bool_]:
        """(K, J, I) mask of one object."""
        label = self.find(name_or_value)
        return self.layers_lkji[label.layer] == label.value

    def on_grid(self, geometry: Geometry, tolerance_mm: float = 0.05) -> LabelMap:
        """The same labels stored as an image of that geometry is: axes turned and flipped, nothing resampled.

        Raises
        ------
        GeometryError
            When the voxels are not in the same places, in whatever order they are stored.
        """
        if self.geometry.same_grid(geometry, tolerance_mm):
            return self
        layers = np.zeros((len(self.layers_lkji), *geometry.shape_ijk[::-1]), dtype=self.layers_lkji.dtype)
        pairs = [
            (canonical_view(ours, self.geometry), canonical_view(theirs, geometry))
            for ours, theirs in zip(self.layers_lkji, layers, strict=True)
        ]
        if not _same_places(self.geometry, geometry, pairs[0][0].shape, pairs[0][1].shape, tolerance_mm):
            ours, theirs = (
                f"{grid.shape_ijk} voxels ({grid.axis_codes})" for grid in (self.geometry, geometry)
            )
            raise GeometryError(
                f"labels {self.name!r} of {ours} do not lie on the image's grid of {theirs}: resample"
            )
        for source, target in pairs:
            target[...] = source
        return LabelMap(layers, self.labels, geometry, self.name, self.source, self.kind, self.notes)

    def _check_one_layer(self) -> None:
        if len(self.layers_lkji) != 1:
            raise VolumeError(
                f"{self.name!r} has overlapping objects: values repeat on its layers, use 'labels'"
            )


def _same_places(
    one: Geometry, other: Geometry, shape: tuple[int, ...], other_shape: tuple[int, ...], tolerance_mm: float
) -> bool:
    """Whether two grids, seen in canonical order, hold their voxels in the same places."""
    if shape != other_shape:
        return False
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*shape, 1]
    difference = (canonical_affine(one) - canonical_affine(other)) @ corners.T
    return bool(np.abs(difference).max() <= tolerance_mm)


def read_labels(path: str | Path) -> LabelMap:
    """Read a label map: NRRD (also ``.seg.nrrd``), NIfTI, MetaImage, DICOM SEG, NPZ, or a grey or palette
    picture.

    Values must be whole numbers; floats that are whole are taken. Objects without a name are called by their
    value. A NIfTI file has names when this package wrote it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    name = path.name.lower()
    names: tuple[Label, ...] = ()
    if name.endswith((".nrrd", ".nhdr")):
        return _from_nrrd(path)
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        volume = nifti.read_volume(path)
        names = _from_nifti(path)
    elif name.endswith((".mha", ".mhd")):
        volume = metaimage.read_volume(path)
    elif name.endswith(pictures.SUFFIXES):
        volume = pictures.read_volume(path, as_labels=True)
    elif name.endswith(".npz"):
        voxels, geometry = npz.read_labels(path)
        return _plain(path, voxels, geometry)
    elif dicom.is_dicom(path):
        return _from_dicom(path)
    else:
        raise VolumeError(
            f"{path}: unknown kind of label map: NRRD, NIfTI, MetaImage, DICOM SEG, NPZ, PNG are read"
        )
    if volume.is_colour:
        raise VolumeError(f"{path}: a colour picture is not a label map: save label numbers as grey values")
    return _plain(path, volume.voxels_kji, volume.geometry, names)


def _plain(path: Path, voxels: NDArray[Any], geometry: Geometry, known: tuple[Label, ...] = ()) -> LabelMap:
    """A label map of one layer; values nobody has named come after the known labels."""
    with files.reading(path, "a label map"):
        voxels = files.whole_numbers(path, voxels)
        named = {label.value for label in known}
        found = (Label(str(value), value) for value in _values(path, voxels) if value not in named)
        labels = (*known, *found)
        return LabelMap(voxels[np.newaxis], labels, geometry, files.without_suffixes(path), path)


def _from_nifti(path: Path) -> tuple[Label, ...]:
    with files.reading(path, "NIfTI"):
        return tuple(
            Label(one.name, one.value, 0, one.colour, tags_text(one.tags), terminology_in(one.tags))
            for one in nifti.read_names(path)
            if one.value != 0
        )


def _from_dicom(path: Path) -> LabelMap:
    read = dicom_seg.read(path, Layers)
    labels = labels_of(read.segments, read.voxels.layer_of)
    layers, name = read.voxels.stacked(), files.without_suffixes(path)
    return LabelMap(layers, labels, read.geometry, name, path, read.kind, read.notes)


def labels_of(segments: Mapping[int, Described], layer_of: Mapping[int, int]) -> tuple[Label, ...]:
    """Segments of a DICOM SEG by number; ``layer_of`` tells on which layer, those it does not have on 0."""
    return tuple(
        Label(one.name, n, layer_of.get(n, 0), one.colour, tags_text(one.tags), one.terminology)
        for n, one in segments.items()
    )


def _from_nrrd(path: Path) -> LabelMap:
    layered = nrrd.read_layers(path)
    if layered is None:
        content = nrrd.read_array(path)
        with files.reading(path, "a label map"):
            voxels, geometry = files.whole_numbers(path, content.voxels), content.geometry
            layers = voxels[np.newaxis] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
    else:
        geometry = layered.geometry
        layers = np.empty((layered.count, *geometry.shape_ijk[::-1]), dtype=layered.dtype)
        for k, layers_lji in enumerate(layered):
            layers[:, k] = layers_lji
    with files.reading(path, "a label map"):
        labels = segments_in(path, read_fields(path), len(layers))
        if not labels and len(layers) == 1:
            return _plain(path, layers[0], geometry)
        return LabelMap(layers, labels, geometry, files.without_suffixes(path), path)


def segments_in(path: Path, fields: Mapping[str, str], layer_count: int) -> tuple[Label, ...]:
    """Segments as 3D Slicer writes them into the header of a ``.seg.nrrd``.

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
        raise VolumeError(f"{path}: {layer_count} values per voxel, but no segments are named in the header")
    labels = []
    for order, number in enumerate(numbers):
        prefix = f"Segment{number}_"
        # Files written before Slicer 4.11 have one layer per segment and neither of these fields.
        layer = int(fields.get(f"{prefix}Layer", order if layer_count > 1 else 0))
        value = int(fields.get(f"{prefix}LabelValue", 1))
        if not 0 <= layer < layer_count:
            raise VolumeError(f"{path}: segment {number} is on layer {layer} of {layer_count}")
        name = fields.get(f"{prefix}Name", fields[f"{prefix}ID"])
        tags = fields.get(f"{prefix}Tags", "")
        colour = _colour(fields.get(f"{prefix}Color", ""))
        labels.append(Label(name, value, layer, colour, tags, terminology_in(parse_tags(tags))))
    return tuple(labels)


def _colour(text: str) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (min(1.0, max(0.0, float(part))) for part in text.split())
    except ValueError:
        return None  # a damaged colour is no reason to refuse the voxels
    return red, green, blue


def _values(path: Path, voxels: NDArray[Any]) -> list[int]:
    found: set[int] = set()
    for slice_ji in voxels.reshape(-1, voxels.shape[-2], voxels.shape[-1]):
        found.update(np.unique(slice_ji).tolist())
        if len(found) > _MOST_LABELS:
            raise VolumeError(
                f"{path}: more than {_MOST_LABELS} different values: this is an image, not a label map"
            )
    return sorted(found - {0})
