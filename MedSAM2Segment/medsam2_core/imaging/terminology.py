"""Coded terms for segments, as in DICOM segmentations and 3D Slicer.

3D Slicer keeps them in one text of seven parts divided by ``~``, codes as ``scheme^value^meaning``:
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html#terminologyentry-tag
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medsam2_core.errors import VolumeError

_DIVIDERS = "^~|"


def _check(text: str) -> None:
    if any(divider in text for divider in _DIVIDERS) or not text.isprintable():
        message = f"terminology {text!r}: the characters {' '.join(_DIVIDERS)} divide its parts"
        raise VolumeError(message, code="invalid-terminology", text=text)


@dataclass(frozen=True)
class Code:
    """A term of a coding scheme, such as ``Code("SCT", "10200004", "Liver")``; all empty means none."""

    scheme: str = ""
    value: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        for text in (self.scheme, self.value, self.meaning):
            _check(text)

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"

    @classmethod
    def parse(cls, text: str) -> Code:
        """Back from ``scheme^value^meaning``."""
        parts = text.split("^")
        if len(parts) != 3:
            message = f"{text!r} is not a code: expected scheme^value^meaning"
            raise VolumeError(message, code="invalid-terminology", text=text)
        return cls(*parts)


NO_CODE = Code()


@dataclass(frozen=True)
class Terminology:
    """Category and type of an object, where it is, and the lists the codes were taken from."""

    category: Code
    type: Code
    type_modifier: Code = NO_CODE
    region: Code = NO_CODE
    region_modifier: Code = NO_CODE
    context: str = "Segmentation category and type - 3D Slicer General Anatomy list"
    region_context: str = "Anatomic codes - DICOM master list"

    def __post_init__(self) -> None:
        for text in (self.context, self.region_context):
            _check(text)

    def __str__(self) -> str:
        """Return the text of 3D Slicer's TerminologyEntry tag."""
        what = (self.context, self.category, self.type, self.type_modifier)
        where = (self.region_context, self.region, self.region_modifier)
        return "~".join(map(str, (*what, *where)))

    @classmethod
    def parse(cls, text: str) -> Terminology:
        """Back from a TerminologyEntry tag; VolumeError when it does not have its seven parts."""
        parts = text.split("~")
        if len(parts) != 7:
            message = f"{text!r} is not a terminology entry: it has {len(parts)} parts, not 7"
            raise VolumeError(message, code="invalid-terminology", text=text)
        category, kind, modifier, region, side = (Code.parse(parts[n]) for n in (1, 2, 3, 5, 6))
        return cls(category, kind, modifier, region, side, parts[0], parts[4])


_TISSUE = Code("SCT", "85756007", "Tissue")

#: What 3D Slicer assigns to a new segment.
TISSUE = Terminology(_TISSUE, _TISSUE)


# Tags of segments, as 3D Slicer keeps them in one text ------------------------------------------------------


def parse_tags(text: str) -> dict[str, str]:
    """Return the tags of a segment from its ``Tags`` field: ``name:value|name:value|``.

    A name has no colon, a value may; a part without one is a name whose value is empty.
    """
    tags = {}
    for part in text.split("|"):
        name, _, value = part.partition(":")
        if name.strip():
            tags[name.strip()] = value
    return tags


def tags_text(tags: Mapping[str, str]) -> str:
    """Return the ``Tags`` field, the inverse of :func:`parse_tags`; dividers within are replaced.

    The last tag ends with a divider too, as 3D Slicer expects it.
    """
    parts = []
    for name, value in tags.items():
        # A divider cannot be escaped. In JSON it can be written as a code, elsewhere it is replaced.
        kept = value.replace("|", "\\u007c" if value.startswith(("{", "[")) else "/")
        parts.append(f"{name.replace('|', ' ').replace(':', ' ')}:{kept}|")
    return "".join(parts)


def terminology_in(tags: Mapping[str, str]) -> Terminology | None:
    """Return the terminology in the tags; None when there is none, or a damaged one."""
    try:
        return Terminology.parse(tags["TerminologyEntry"])
    except (KeyError, VolumeError):
        return None  # a damaged description is no reason to refuse the voxels
