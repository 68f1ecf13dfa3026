"""Read label files: as a label map (arrays), or as a segmentation (named segments, each in its own box)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import Note
from medsam2_core.imaging import dicom, dicom_seg, files, metaimage, nifti, npz, nrrd, pictures
from medsam2_core.imaging.label_map import Label, LabelMap
from medsam2_core.imaging.segmentation import Segment, Segmentation, SegmentBuilder, default_colour
from medsam2_core.imaging.terminology import parse_tags, terminology_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry

_MOST_LABELS = 65_536  # more distinct values are a picture that was taken for a label map
_PREFIX = "MedSAM2."
_PROMPTS = "prompts"
# Tags of a single segment even where all have the same.
_NEVER_SHARED = (
    "software",
    "auto",
    "confidence",
    "tracking_uid",
    "tracking_id",
    "description",
    "algorithm_version",
    "algorithm_source",
    "algorithm_parameters",
)


@dataclass(frozen=True, eq=False)
class StoredSegments:
    """Segments as a file holds them, each mask in the smallest box that holds it.

    Attributes
    ----------
    labels, masks
        What each segment is, and its mask (k, j, i) with the offset (i, j, k) of its first voxel; as many of
        the one as of the other. Names may repeat and be empty.
    geometry, kind, notes
        As of a :class:`LabelMap`.
    """

    labels: tuple[Label, ...]
    masks: tuple[tuple[NDArray[np.bool_], tuple[int, int, int]], ...]
    geometry: Geometry
    kind: str = ""
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(cls, labels: LabelMap) -> StoredSegments:
        """Return the segments of a label map."""
        masks = _masks(labels.labels, np.moveaxis(labels.layers_lkji, 1, 0))
        return cls(labels.labels, masks, labels.geometry, labels.kind, labels.notes)

    def to_segmentation(self) -> Segmentation:
        """Return the segments with what the file lacks filled in, see :func:`read_segmentation`."""
        names = _unique([label.name if label.name.strip() else str(label.value) for label in self.labels])
        facts = [label.facts for label in self.labels]
        provenance = _provenance(names, [label.name for label in self.labels], facts)
        shared = {_PREFIX + key for key in provenance}
        segments = []
        for n, (label, (mask_kji, offset_ijk)) in enumerate(zip(self.labels, self.masks, strict=True)):
            tags = {key: value for key, value in facts[n].items() if key not in shared}
            if label.terminology is not None:
                tags.pop("TerminologyEntry", None)
            segment = Segment.from_part(
                names[n],
                default_colour(n) if label.colour is None else label.colour,
                mask_kji,
                offset_ijk,
                self.geometry.shape_ijk,
                label.terminology,
                tags,
                label.value,
            )
            segments.append(segment)
        return Segmentation(self.geometry, tuple(segments), provenance, self.notes)


def read_segmentation(path: str | Path) -> Segmentation:
    """Read a label file as a segmentation: ``.seg.nrrd``, DICOM SEG, NIfTI, NRRD, MetaImage, NPZ, pictures.

    What is not in the file is filled in: a segment without a name is called by its value, one without a
    colour gets one, and a name that is there twice gets a number, ``"cyst (2)"``. Tags that begin with
    ``MedSAM2.`` and that all segments share become the provenance, with the prompts of all of them put
    together; writing the result again writes the same tags. Segments without voxels are kept where the file
    names them. Each keeps the label value it has there as its ``value``.

    Returns
    -------
    Segmentation
        Segments on the file's own grid, in its order.

    Raises
    ------
    VolumeError
        When the file cannot be read as labels; GeometryError when its position in space cannot.
    """
    return read_stored_segments(path).to_segmentation()


def read_stored_segments(path: str | Path) -> StoredSegments:
    """Read any file that :func:`read_labels` reads; memory holds the masks and a slice of what overlaps.

    Raises
    ------
    VolumeError, GeometryError
        As :func:`read_labels` does.
    """
    path = files.existing(path)
    if path.is_file() and path.name.lower().endswith((".nrrd", ".nhdr")):
        layered = nrrd.read_layers(path)
        if layered is not None:
            with files.reading(path, "a label map"):
                labels = _slicer_segments(path, nrrd.read_fields(path), layered.count)
            return StoredSegments(labels, _masks(labels, layered), layered.geometry)
    elif path.is_file() and dicom.is_dicom(path):
        seg = dicom_seg.read(path)
        # The boxes take little, but what is done with the segmentation goes through the whole grid.
        files.checked_bytes(path, seg.geometry.shape_ijk, 1, files.LARGEST_VOLUME)
        masks = tuple(seg.builder.take(label.value) for label in seg.labels)
        return StoredSegments(seg.labels, masks, seg.geometry, seg.kind, seg.notes)
    return StoredSegments.of(read_labels(path))


def read_labels(path: str | Path) -> LabelMap:
    """Read a label map: NRRD (also ``.seg.nrrd``), NIfTI, MetaImage, DICOM SEG, NPZ, grey or palette picture.

    Values must be whole numbers; floats that are whole are taken. Segments without a name are called by their
    value. A NIfTI file has names when this package wrote it.

    Raises
    ------
    VolumeError
        When the file cannot be read as labels; GeometryError when its position in space cannot.
    """
    path = files.existing(path)
    if path.is_dir():
        raise files.error(path, "a folder: name the file of the labels", "label-map-is-folder")
    name = path.name.lower()
    named: tuple[Label, ...] = ()
    if name.endswith((".nrrd", ".nhdr")):
        return _read_nrrd(path)
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        volume = nifti.read_volume(path)
        named = nifti.read_label_names(path)
    elif name.endswith((".mha", ".mhd")):
        volume = metaimage.read_volume(path)
    elif name.endswith(pictures.SUFFIXES):
        volume = pictures.read_volume(path, as_labels=True)
    elif name.endswith(".npz"):
        voxels_kji, geometry = npz.read_labels(path)
        return _one_layer(path, voxels_kji, geometry)
    elif dicom.is_dicom(path):
        return _read_dicom(path)
    else:
        raise files.error(
            path,
            "unknown kind of label map: NRRD, NIfTI, MetaImage, DICOM SEG, NPZ, PNG are read",
            "unknown-format",
        )
    if volume.is_colour:
        raise files.error(
            path, "a colour picture is not a label map: save label numbers as grey values", "colour-label-map"
        )
    return _one_layer(path, volume.voxels_kji, volume.geometry, named)


def _one_layer(
    path: Path, voxels_kji: NDArray[Any], geometry: Geometry, named: tuple[Label, ...] = ()
) -> LabelMap:
    """Return a label map of one layer; values nobody has named come after the named ones."""
    with files.reading(path, "a label map"):
        labels_kji = files.whole_numbers(path, voxels_kji)
        known = {label.value for label in named}
        others = (Label(str(value), value) for value in _values(path, labels_kji) if value not in known)
        return LabelMap(
            labels_kji[np.newaxis], (*named, *others), geometry, files.without_suffixes(path), path
        )


def _values(path: Path, labels_kji: NDArray[Any]) -> list[int]:
    found: set[int] = set()
    for labels_ji in labels_kji:
        found.update(np.unique(labels_ji).tolist())
        if len(found) > _MOST_LABELS:
            raise files.error(
                path,
                f"more than {_MOST_LABELS} different values: this is an image, not a label map",
                "too-many-labels",
            )
    return sorted(found - {0})


def _read_nrrd(path: Path) -> LabelMap:
    layered = nrrd.read_layers(path)
    if layered is None:
        content = nrrd.read_array(path)
        with files.reading(path, "a label map"):
            voxels, geometry = files.whole_numbers(path, content.voxels), content.geometry
            layers_lkji = voxels[np.newaxis] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
    else:
        geometry = layered.geometry
        layers_lkji = np.empty((layered.count, *geometry.shape_ijk[::-1]), dtype=layered.dtype)
        for k, layers_lji in enumerate(layered):
            layers_lkji[:, k] = layers_lji
    with files.reading(path, "a label map"):
        labels = _slicer_segments(path, nrrd.read_fields(path), len(layers_lkji))
        if not labels and len(layers_lkji) == 1:
            return _one_layer(path, layers_lkji[0], geometry)
        return LabelMap(layers_lkji, labels, geometry, files.without_suffixes(path), path)


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
        raise files.error(
            path,
            f"{layer_count} values per voxel, but no segments are named in the header",
            "unnamed-layers",
            layers=layer_count,
        )
    labels = []
    for order, number in enumerate(numbers):
        prefix = f"Segment{number}_"
        # Files written before Slicer 4.11 have one layer per segment and neither of these fields.
        layer = int(fields.get(f"{prefix}Layer", order if layer_count > 1 else 0))
        value = int(fields.get(f"{prefix}LabelValue", 1))
        if not 0 <= layer < layer_count:
            raise files.error(
                path,
                f"segment {number} is on layer {layer} of {layer_count}",
                "missing-layer",
                segment=number,
                layer=layer,
                layers=layer_count,
            )
        name = fields.get(f"{prefix}Name", fields[f"{prefix}ID"])
        tags = fields.get(f"{prefix}Tags", "")
        colour = _slicer_colour(fields.get(f"{prefix}Color", ""))
        labels.append(Label(name, value, layer, colour, tags, terminology_in(parse_tags(tags))))
    return tuple(labels)


def _slicer_colour(text: str) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (min(1.0, max(0.0, float(part))) for part in text.split())
    except ValueError:
        return None  # a damaged colour is no reason to refuse the voxels
    return red, green, blue


def _read_dicom(path: Path) -> LabelMap:
    seg = dicom_seg.read(path)
    with files.reading(path, "DICOM SEG"):
        layers_lkji, layer_of = stack_layers(path, seg.builder, seg.geometry.shape_ijk[::-1])
    labels = (
        Label(one.name, one.value, layer_of.get(one.value, 0), one.colour, one.tags, one.terminology)
        for one in seg.labels
    )
    name = files.without_suffixes(path)
    return LabelMap(layers_lkji, tuple(labels), seg.geometry, name, path, seg.kind, seg.notes)


def stack_layers(
    path: Path, builder: SegmentBuilder, shape_kji: tuple[int, ...]
) -> tuple[NDArray[Any], dict[int, int]]:
    """Return segments as (L, K, J, I) label maps, each on the first layer where it overlaps no other.

    Returns also the layer of each segment, by number. ``builder`` is emptied; one mask at a time is unpacked.

    Raises
    ------
    VolumeError
        When the layers would become larger than what is read; ``path`` is for its message.
    """
    numbers = sorted(builder.numbers)
    dtype = np.dtype(np.uint16 if max(numbers, default=0) > 255 else np.uint8)
    layers: list[NDArray[Any]] = []
    layer_of: dict[int, int] = {}

    def add_layer() -> None:
        # One bit a voxel in the file and empty slices left out: its size says little, so only the absolute
        # limit holds.
        files.checked_bytes(path, (len(layers) + 1, *shape_kji), dtype.itemsize, files.LARGEST_VOLUME)
        layers.append(np.zeros(shape_kji, dtype=dtype))

    add_layer()
    for number in numbers:
        mask_kji, (i, j, k) = builder.take(number)
        box = tuple(slice(a, a + n) for a, n in zip((k, j, i), mask_kji.shape, strict=True))
        layer = 0
        while layers[layer][box][mask_kji].any():
            layer += 1
            if layer == len(layers):
                add_layer()
        layers[layer][box][mask_kji] = number
        layer_of[number] = layer
    if len(layers) == 1:
        return layers[0][np.newaxis], layer_of
    layers_lkji = np.empty((len(layers), *shape_kji), dtype=dtype)
    for n in reversed(range(len(layers))):
        layers_lkji[n] = layers.pop()  # gone at once: only one layer is ever held twice
    return layers_lkji, layer_of


def _masks(
    labels: tuple[Label, ...], slices_lji: Iterable[NDArray[Any]]
) -> tuple[tuple[NDArray[np.bool_], tuple[int, int, int]], ...]:
    """Return the mask and offset of each label, from (L, J, I) layers slice by slice."""
    builder = SegmentBuilder()
    on_layer: dict[int, dict[int, int]] = {}  # of each layer: the number of the label that has a value
    for number, label in enumerate(labels):
        on_layer.setdefault(label.layer, {}).setdefault(label.value, number)
    for k, layers_lji in enumerate(slices_lji):
        for layer, number_of in on_layer.items():
            there = np.unique(layers_lji[layer]).tolist() if len(number_of) > 2 else number_of
            for value in there:
                if value in number_of:
                    builder.add(number_of[value], k, layers_lji[layer] == value)
    first = [on_layer[label.layer][label.value] for label in labels]
    taken = {number: builder.take(number) for number in set(first)}
    return tuple(taken[number] for number in first)


# Names and provenance ---------------------------------------------------------------------------------------


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after those that an earlier one has already."""
    taken, result = set(names), []
    for n, name in enumerate(names):
        unique, number = name, 2
        while unique in names[:n] or (unique != name and unique in taken):
            unique, number = f"{name} ({number})", number + 1
        taken.add(unique)
        result.append(unique)
    return result


def _provenance(
    names: Sequence[str], stored_names: Sequence[str], facts: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the tags that all segments share, in their order.

    It ends where the tags of a single segment begin: the writer puts those last, and so it will again.
    """
    if not facts:
        return {}
    provenance: dict[str, Any] = {}
    # Segments without prompts lack that tag; one that has it knows the position of all.
    fullest = next((one for one in facts if _PREFIX + _PROMPTS in one), facts[0])
    for tag, value in fullest.items():
        key = tag.removeprefix(_PREFIX)
        if key in (tag, "software"):
            continue
        alike = all(one.get(tag) == value for one in facts)
        if key == _PROMPTS and _prompt_set(value) is not None:
            merged = _merged_prompts(names, stored_names, [one.get(tag) for one in facts])
            if merged is None:
                break
            provenance[key] = merged
        elif alike and key not in _NEVER_SHARED:
            provenance[key] = _value(value)
        else:
            break
    return provenance


def _merged_prompts(
    names: Sequence[str], stored_names: Sequence[str], texts: Sequence[str | None]
) -> str | None:
    """Return one prompt set (JSON) of the prompts of all segments, under the names they have now.

    None when the tags are not prompt sets that can be divided again into what they are.
    """
    whole: dict[str, Any] | None = None
    for name, stored_name, text in zip(names, stored_names, texts, strict=True):
        if text is None:
            continue
        data = _prompt_set(text)
        if data is None or any(one.get("name") != stored_name for one in data["objects"]):
            return None
        own = [{**one, "name": name} for one in data["objects"]]
        if whole is None:
            whole = {**data, "objects": own}
        elif {**data, "objects": 0} == {**whole, "objects": 0}:
            whole["objects"] += own
        else:
            return None
    return None if whole is None else _compact_json(whole)


def _prompt_set(text: str) -> dict[str, Any] | None:
    data = _value(text)
    if not isinstance(data, dict) or not isinstance(data.get("objects"), list) or not data["objects"]:
        return None
    return data if all(isinstance(one, dict) for one in data["objects"]) else None


def _value(text: str) -> Any:
    """Return what a tag was made of, where it was JSON that becomes the same text again; else the text."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if _compact_json(value).replace("|", "\\u007c") == text else text


def _compact_json(value: Any) -> str:
    """Return JSON in the one form in which it is put into tags."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
