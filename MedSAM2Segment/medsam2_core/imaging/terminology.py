"""What a segment is in coded terms, as DICOM segmentations and 3D Slicer say it.

3D Slicer keeps them in one text of seven parts divided by ``~``, codes as ``scheme^value^meaning``:
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html#terminologyentry-tag
"""

from __future__ import annotations

from dataclasses import dataclass

from medsam2_core.errors import VolumeError

_DIVIDERS = "^~|"


def _check(text: str) -> None:
    if any(divider in text for divider in _DIVIDERS) or not text.isprintable():
        raise VolumeError(f"terminology {text!r}: the characters {' '.join(_DIVIDERS)} divide its parts")


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
            raise VolumeError(f"{text!r} is not a code: expected scheme^value^meaning")
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
        """As 3D Slicer's TerminologyEntry tag."""
        parts = (
            self.context,
            self.category,
            self.type,
            self.type_modifier,
            self.region_context,
            self.region,
            self.region_modifier,
        )
        return "~".join(str(part) for part in parts)

    @classmethod
    def parse(cls, text: str) -> Terminology:
        """Back from a TerminologyEntry tag; VolumeError when it does not have its seven parts."""
        parts = text.split("~")
        if len(parts) != 7:
            raise VolumeError(f"{text!r} is not a terminology entry: it has {len(parts)} parts, not 7")
        codes = [Code.parse(parts[n]) for n in (1, 2, 3, 5, 6)]
        return cls(*codes, context=parts[0], region_context=parts[4])


_TISSUE = Code("SCT", "85756007", "Tissue")

#: What 3D Slicer says of a segment nobody has described yet.
TISSUE = Terminology(_TISSUE, _TISSUE)
