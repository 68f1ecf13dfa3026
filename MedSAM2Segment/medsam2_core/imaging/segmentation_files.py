"""Segmentations read back from files: objects with names, colours, codes and how they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam2_core.imaging.label_parts import LabelParts, parts_of, read_parts
from medsam2_core.imaging.labels import LabelMap
from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour

_PREFIX = "MedSAM2."
_PROMPTS = "prompts"
# These are of one object even when all have the same, so they stay with it.
_OF_ONE_OBJECT = (
    *("software", "auto", "confidence", "tracking_uid", "tracking_id", "description"),
    *("algorithm_version", "algorithm_source", "algorithm_parameters"),
)


def read_segmentation(path: str | Path) -> Segmentation:
    """Read a label file as a segmentation: ``.seg.nrrd``, DICOM SEG, NIfTI, NRRD, MetaImage, NPZ, pictures.

    What is not in the file is filled in: an object without a name is called by its value, one without a
    colour gets one, and a name that is there twice gets a number, ``"cyst (2)"``. Tags that begin with
    ``MedSAM2.`` and that all objects share become the provenance, with the prompts of all of them put
    together; writing the result again writes the same tags. Objects without voxels are kept where the file
    names them. Each keeps the label value it has there as its ``value``.

    Returns
    -------
    Segmentation
        Objects on the file's own grid, in its order.

    Raises
    ------
    VolumeError
        When the file cannot be read as labels; GeometryError when its place in space cannot.
    """
    return segmentation_of(read_parts(path))


def segmentation_of(read: LabelMap | LabelParts) -> Segmentation:
    """The same of what was read already."""
    labels = parts_of(read) if isinstance(read, LabelMap) else read
    names = _unique([label.name if label.name.strip() else str(label.value) for label in labels.labels])
    facts = [label.facts for label in labels.labels]
    provenance = _provenance(names, [label.name for label in labels.labels], facts)
    shared = {_PREFIX + key for key in provenance}
    segments = []
    shape = labels.geometry.shape_ijk
    for n, (label, part, name) in enumerate(zip(labels.labels, labels.parts, names, strict=True)):
        own = {key: value for key, value in facts[n].items() if key not in shared}
        if label.terminology is not None:
            own.pop("TerminologyEntry", None)
        colour = default_colour(n) if label.colour is None else label.colour
        facts_of_it = (label.terminology, own, label.value)
        segments.append(Segment.from_part(name, colour, part.mask_kji, part.offset_ijk, shape, *facts_of_it))
    return Segmentation(labels.geometry, tuple(segments), provenance, labels.notes)


def _unique(names: Sequence[str]) -> list[str]:
    """The same names, with a number after those that an earlier one has already."""
    taken, result = set(names), []
    for n, name in enumerate(names):
        unique, number = name, 2
        while unique in names[:n] or (unique != name and unique in taken):
            unique, number = f"{name} ({number})", number + 1
        taken.add(unique)
        result.append(unique)
    return result


def _provenance(
    names: Sequence[str], stored: Sequence[str], facts: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """What the tags of all objects say alike, in their order.

    It ends where the tags of a single object begin: the writer puts those last, and so it will again.
    """
    if not facts:
        return {}
    provenance: dict[str, Any] = {}
    # Objects without prompts lack that tag; one that has it knows the place of all.
    fullest = next((one for one in facts if _PREFIX + _PROMPTS in one), facts[0])
    for tag, value in fullest.items():
        key = tag.removeprefix(_PREFIX)
        if key in (tag, "software"):
            continue
        alike = all(one.get(tag) == value for one in facts)
        if key == _PROMPTS and _prompt_set(value) is not None:
            merged = _merged(names, stored, [one.get(tag) for one in facts])
            if merged is None:
                break
            provenance[key] = merged
        elif alike and key not in _OF_ONE_OBJECT:
            provenance[key] = _value(value)
        else:
            break
    return provenance


def _merged(names: Sequence[str], stored: Sequence[str], texts: Sequence[str | None]) -> str | None:
    """One prompt set (JSON) of the prompts of all objects, under the names they have now.

    None when the tags are not prompt sets that can be divided again into what they are.
    """
    whole: dict[str, Any] | None = None
    for name, before, text in zip(names, stored, texts, strict=True):
        if text is None:
            continue
        data = _prompt_set(text)
        if data is None or any(one.get("name") != before for one in data["objects"]):
            return None
        own = [{**one, "name": name} for one in data["objects"]]
        if whole is None:
            whole = {**data, "objects": own}
        elif {**data, "objects": 0} == {**whole, "objects": 0}:
            whole["objects"] += own
        else:
            return None
    return None if whole is None else _as_written(whole)


def _prompt_set(text: str) -> dict[str, Any] | None:
    data = _value(text)
    if not isinstance(data, dict) or not isinstance(data.get("objects"), list) or not data["objects"]:
        return None
    return data if all(isinstance(one, dict) for one in data["objects"]) else None


def _value(text: str) -> Any:
    """The value a tag was made of, where it was JSON and becomes the same text again; else the text."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if _as_written(value).replace("|", "\\u007c") == text else text


def _as_written(value: Any) -> str:
    """JSON in the one form in which it is put into tags."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
