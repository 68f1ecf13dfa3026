"""Segments gathered slice by slice from a file, and made a segmentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import Note
from medsam2_core.imaging.segmentation import Label, Segment, Segmentation, default_colour

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry

_PREFIX = "MedSAM2."
_PROMPTS = "prompts"
# Tags of a single segment even where all have the same.
_NEVER_SHARED = (
    "software", "auto", "confidence", "tracking_uid", "tracking_id", "description", "algorithm_version",
    "algorithm_source", "algorithm_parameters",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Piece:
    """A segment on one slice, in bits: a file may come with all segments before the first is complete."""

    k: int
    start_ji: tuple[int, int]
    shape_ji: tuple[int, int]
    bits: NDArray[np.uint8]

    @property
    def start_kji(self) -> tuple[int, int, int]:
        return self.k, *self.start_ji

    @property
    def stop_kji(self) -> tuple[int, int, int]:
        return self.k + 1, self.start_ji[0] + self.shape_ji[0], self.start_ji[1] + self.shape_ji[1]

    def mask_ji(self) -> NDArray[np.bool_]:
        rows, columns = self.shape_ji
        return np.unpackbits(self.bits, count=rows * columns).reshape(rows, columns).view(bool)


class SegmentBuilder:
    """Masks of segments gathered slice by slice, each then put together in the smallest box that holds it.

    A file of a hundred overlapping segments would need a hundred layers of the whole grid; what the segments
    fill of them is a fraction. Slices may come in any order, a slice of a segment also in several pieces. The
    key of a segment is its layer and value, see :class:`Label`.
    """

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], list[_Piece]] = {}

    @property
    def keys(self) -> tuple[tuple[int, int], ...]:
        """Keys of the segments that have a voxel."""
        return tuple(self._pieces)

    def add(self, key: tuple[int, int], k: int, mask_ji: NDArray[np.bool_]) -> None:
        """Add the voxels of ``mask_ji`` (J, I) on slice ``k`` to a segment."""
        rows = np.flatnonzero(mask_ji.any(axis=1))
        if rows.size == 0:
            return
        inside = mask_ji[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(inside.any(axis=0))
        inside = inside[:, columns[0] : columns[-1] + 1]
        start, shape = (int(rows[0]), int(columns[0])), (inside.shape[0], inside.shape[1])
        self._pieces.setdefault(key, []).append(_Piece(k, start, shape, np.packbits(inside)))

    def take(self, key: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
        """Return the mask (k, j, i) of a segment and the offset (i, j, k) of its first voxel, and drop both.

        The mask of a segment without voxels is of size 0.
        """
        pieces = self._pieces.pop(key, [])
        if not pieces:
            return np.zeros((0, 0, 0), dtype=bool), (0, 0, 0)
        first = np.min([piece.start_kji for piece in pieces], axis=0)
        last = np.max([piece.stop_kji for piece in pieces], axis=0)
        mask_kji = np.zeros(last - first, dtype=bool)
        for piece in pieces:
            k, j, i = piece.start_kji - first
            rows, columns = piece.shape_ji
            mask_kji[k, j : j + rows, i : i + columns] |= piece.mask_ji()
        return mask_kji, (int(first[2]), int(first[1]), int(first[0]))

    def build(
        self, labels: Sequence[Label], geometry: Geometry, kind: str = "", notes: Sequence[Note] = ()
    ) -> Segmentation:
        """Return the segments that a file describes, with what it lacks filled in; the builder is emptied.

        A segment without a name is called by its value, one without a colour gets one, and a repeated
        name gets a number, ``"cyst (2)"``. Tags that begin with ``MedSAM2.`` and that all segments
        share become the provenance, with the prompts of all of them put together; writing the result again
        writes the same tags.
        """
        names = _unique([label.name if label.name.strip() else str(label.value) for label in labels])
        provenance = _provenance(names, [label.name for label in labels], [label.tags for label in labels])
        shared = {_PREFIX + key for key in provenance}
        masks = {key: self.take(key) for key in {(label.layer, label.value) for label in labels}}
        segments = []
        for n, label in enumerate(labels):
            tags = {key: value for key, value in label.tags.items() if key not in shared}
            if label.terminology is not None:
                tags.pop("TerminologyEntry", None)
            colour = default_colour(n) if label.colour is None else label.colour
            mask_kji, offset_ijk = masks[label.layer, label.value]
            segments.append(
                Segment.from_part(
                    names[n], colour, mask_kji, offset_ijk, geometry.shape_ijk, label.terminology, tags, label
                )
            )
        return Segmentation(geometry, tuple(segments), provenance, tuple(notes), kind)


def from_layers(
    labels: Sequence[Label], slices_lji: Iterable[NDArray[Any]], geometry: Geometry
) -> Segmentation:
    """Return the segments of a file, from the (L, J, I) layers of its slices."""
    builder = SegmentBuilder()
    on_layer: dict[int, set[int]] = {}
    for label in labels:
        on_layer.setdefault(label.layer, set()).add(label.value)
    for k, layers_lji in enumerate(slices_lji):
        for layer, values in on_layer.items():
            there = np.unique(layers_lji[layer]).tolist() if len(values) > 2 else values
            for value in values.intersection(there):
                builder.add((layer, value), k, layers_lji[layer] == value)
    return builder.build(labels, geometry)


# Names and provenance ---------------------------------------------------------------------------------------


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after those that an earlier one has already."""
    taken, earlier, result = set(names), set[str](), []
    for name in names:
        unique, number = name, 2
        while unique in earlier or (unique != name and unique in taken):
            unique, number = f"{name} ({number})", number + 1
        taken.add(unique)
        earlier.add(name)
        result.append(unique)
    return result


def _provenance(
    names: Sequence[str], stored_names: Sequence[str], tags: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the tags that all segments share, in their order.

    It ends where the tags of a single segment begin: the writer puts those last, and so it will again.
    """
    if not tags:
        return {}
    provenance: dict[str, Any] = {}
    # Segments without prompts lack that tag; one that has it knows the position of all.
    fullest = next((one for one in tags if _PREFIX + _PROMPTS in one), tags[0])
    for tag, value in fullest.items():
        key = tag.removeprefix(_PREFIX)
        if key in (tag, "software"):
            continue
        alike = all(one.get(tag) == value for one in tags)
        if key == _PROMPTS and _prompt_set(value) is not None:
            merged = _merged_prompts(names, stored_names, [one.get(tag) for one in tags])
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
