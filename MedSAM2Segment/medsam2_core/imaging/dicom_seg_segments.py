"""What a DICOM SEG says of each of its segments (PS3.3 C.8.20.4), in the words of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medsam2_core.imaging.terminology import NO_CODE, Code, Terminology

Colour = tuple[float, float, float]

_WE = "MedSAM2Segment"  # as source of an algorithm, and how its name begins
# Parameters of the algorithm that have a tag of their own; PS3.3 10.16 leaves their form to the writer.
_PARAMETERS = {"model": "MedSAM2.model", "weights_sha256": "MedSAM2.weights_sha256"}


@dataclass(frozen=True)
class Described:
    """One item of the SegmentSequence. ``tags`` are named as 3D Slicer names them, ours begin with
    ``MedSAM2.``; ``terminology`` is None where the file gives no codes, ``colour`` (RGB from 0 to 1) where
    it gives none.
    """

    name: str
    colour: Colour | None = None
    terminology: Terminology | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def described(header: Any) -> dict[int, Described]:
    """Segments by their number, in the order of numbers; background (0) is none.

    Parameters
    ----------
    header : pydicom Dataset of a segmentation, without pixels
    """
    items = {int(item.SegmentNumber): item for item in header.SegmentSequence}
    palette = _palette(header, [number for number in items if number > 0])
    return {
        number: Described(
            str(items[number].get("SegmentLabel") or "").strip() or str(number),
            _colour(items[number]) or palette.get(number),
            terminology := _terminology(items[number]),
            _tags(items[number], terminology),
        )
        for number in sorted(items)
        if number > 0
    }


def _terminology(item: Any) -> Terminology | None:
    """Codes as they are, those of retired schemes (SRT) too: to translate them is for who knows both."""
    category, kind = _first(item, "SegmentedPropertyCategoryCodeSequence"), _type(item)
    if category is None or kind is None:
        return None
    region = _first(item, "AnatomicRegionSequence")
    return Terminology(
        _code(category),
        _code(kind),
        _code(_first(kind, "SegmentedPropertyTypeModifierCodeSequence")),
        _code(region),
        _code(_first(region, "AnatomicRegionModifierSequence")),
    )


def _type(item: Any) -> Any:
    return _first(item, "SegmentedPropertyTypeCodeSequence")


def _first(item: Any, sequence: str) -> Any:
    found = item.get(sequence) if item is not None else None
    return found[0] if found else None


def _code(item: Any) -> Code:
    if item is None:
        return NO_CODE
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    scheme, meaning = item.get("CodingSchemeDesignator") or "", item.get("CodeMeaning") or ""
    return Code(*(_printable(str(text)) for text in (scheme, value, meaning)))


def _printable(text: str) -> str:
    """Without what divides the parts of a terminology entry, or ends a line."""
    return "".join(" " if one in "^~|" or not one.isprintable() else one for one in text).strip()


def _tags(item: Any, terminology: Terminology | None) -> dict[str, str]:
    tags = {} if terminology is None else {"TerminologyEntry": str(terminology)}
    made_by = _first(item, "SegmentationAlgorithmIdentificationSequence")
    name = item.get("SegmentAlgorithmName") or (made_by.get("AlgorithmName") if made_by else "")
    if kind := str(item.get("SegmentAlgorithmType") or "").strip():
        tags["DICOM.SegmentAlgorithmType"] = kind
        # An empty name says that there is none: without a tag 3D Slicer and we would put in our own.
        tags["DICOM.SegmentAlgorithmName"] = ""
    if name:
        tags["DICOM.SegmentAlgorithmName"] = " ".join(str(name).split())
    if made_by is not None:
        tags |= _algorithm(made_by, tags.get("DICOM.SegmentAlgorithmName", ""))
    if uid := str(item.get("TrackingUID") or "").strip():
        tags["MedSAM2.tracking_uid"] = uid
    if tracked := str(item.get("TrackingID") or "").strip():
        tags["MedSAM2.tracking_id"] = tracked
    if said := "\n".join(str(item.get("SegmentDescription") or "").splitlines()).strip():
        tags["MedSAM2.description"] = said
    return tags


def _algorithm(made_by: Any, name: str) -> dict[str, str]:
    """Tags of an algorithm (PS3.3 10.16); of our own none that its name tells already."""
    tags: dict[str, str] = {}
    others = []
    for part in _parameters(str(made_by.get("AlgorithmParameters") or "")):
        key, equals, value = (text.strip() for text in part.partition("="))
        if equals and key in _PARAMETERS:
            if value:
                tags.setdefault(_PARAMETERS[key], value)
        else:
            others.append(part)
    version = " ".join(str(made_by.get("AlgorithmVersion") or "").split())
    source = " ".join(str(made_by.get("AlgorithmSource") or "").split())
    if source != _WE or not f"{name} ".startswith(f"{_WE} {version} "):
        tags |= {"MedSAM2.algorithm_version": version, "MedSAM2.algorithm_source": source}
    tags["MedSAM2.algorithm_parameters"] = ",".join(others)
    return {tag: value for tag, value in tags.items() if value}


def _parameters(text: str) -> Iterator[str]:
    """Parts ``name=value``, divided by commas, semicolons, backslashes or lines; other text as it is."""
    for part in re.split(r"[,;\\\r\n]+(?=\s*[\w.]+\s*=)", text):
        if kept := part.strip().rstrip(",;"):
            yield kept


def _colour(item: Any) -> Colour | None:
    lab = item.get("RecommendedDisplayCIELabValue")
    if lab is None or len(lab) != 3:
        return None
    from highdicom.color import CIELabColor

    # Programs choose colours of 8 bits a channel: the nearest is what was meant, to the digit.
    red, green, blue = CIELabColor.from_dicom_value([int(part) for part in lab]).to_rgb(clip=True)
    return red / 255, green / 255, blue / 255


def _of_8_bits(part: float) -> float:
    """Programs choose colours of 8 bits a channel: the nearest is what was meant, to the digit."""
    return round(part * 255) / 255


def _palette(header: Any, numbers: Sequence[int]) -> dict[int, Colour]:
    """Colours a label map keeps in its palette (PS3.3 C.7.6.3.1.5 and .6) instead of with its segments."""
    if str(header.get("PhotometricInterpretation", "")) != "PALETTE COLOR":
        return {}
    try:
        channels = [_channel(header, name, numbers) for name in ("Red", "Green", "Blue")]
    except (ValueError, TypeError, IndexError):
        return {}  # a damaged colour is no reason to refuse the voxels
    return {n: (red, green, blue) for n, red, green, blue in zip(numbers, *channels, strict=True)}


def _channel(header: Any, name: str, numbers: Sequence[int]) -> list[float]:
    """One channel of the colours of segments, from 0 to 1."""
    entries, first, bits = (int(part) for part in header.get(f"{name}PaletteColorLookupTableDescriptor"))
    entries = entries or 1 << 16
    data = bytes(header.get(f"{name}PaletteColorLookupTableData"))
    # Entries of 8 bits are packed, and then padded to an even length, or stand in words of 16 bits.
    table = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if len(data) >= 2 * entries else np.uint8)
    top = 255 if bits == 8 else 65535
    values = table[:entries][np.clip(np.array(numbers, dtype=int) - first, 0, entries - 1)]
    return [_of_8_bits(min(1.0, float(value) / top)) for value in values]
