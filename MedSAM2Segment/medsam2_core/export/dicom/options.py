"""Options of a DICOM SEG. Imports nothing heavy."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsam2_core.errors import ExportError
from medsam2_core.export.metadata import LARGEST_IS, LONGEST_LO

if TYPE_CHECKING:
    from medsam2_core.export.dicom.segment_metadata import ExportMetadata


class Kind(str, enum.Enum):
    """How a SEG holds its segments (PS3.3 C.8.20.2: Segmentation Type)."""

    BINARY = "binary"
    FRACTIONAL = "fractional"
    LABELMAP = "labelmap"


class Compression(str, enum.Enum):
    """Lossless compression of the pixels."""

    NONE = "none"
    RLE = "rle"
    JPEG_LS = "jpeg-ls"


@dataclass(frozen=True)
class SegOptions:
    """How a SEG is written.

    Attributes
    ----------
    kind, compression
        Bits are never compressed: a BINARY segmentation takes NONE only.
    generic
        Allow segments without a code: they are written as "Tissue".
    series_description, series_number
        Of the new series; None: "Segmentation", and 1000 more than the source's.
    creator
        Content creator; None leaves it empty. Nothing is taken from this computer's user.

    Raises
    ------
    ExportError
        For values that DICOM cannot hold.
    """

    kind: Kind = Kind.BINARY
    compression: Compression = Compression.NONE
    metadata: ExportMetadata | None = None
    generic: bool = False
    series_description: str | None = None
    series_number: int | None = None
    creator: str | None = None
    most_lost: float = 0.05
    resample: bool = True

    def __post_init__(self) -> None:
        if self.kind is Kind.BINARY and self.compression is not Compression.NONE:
            message = (
                f"compression {self.compression.value!r} is not available for kind 'binary': DICOM packs "
                "single bits in a way that not all readers know. Leave it out, or choose labelmap or "
                "fractional"
            )
            raise ExportError(message, code="compression-of-bits", compression=self.compression.value)
        if self.series_number is not None and not 0 <= self.series_number <= LARGEST_IS:
            message = f"series number {self.series_number}: give one from 0 to {LARGEST_IS}"
            raise ExportError(message, code="invalid-series-number", series_number=self.series_number)
        for what, text in (("series description", self.series_description), ("creator", self.creator)):
            if text is not None and (len(text) > LONGEST_LO or "\\" in text or not text.isprintable()):
                message = (
                    f"{what} {text[:80]!r}: at most {LONGEST_LO} characters on one line, and no backslash"
                )
                raise ExportError(message, code=f"invalid-{what.replace(' ', '-')}", text=text)
        if self.creator is not None and (self.creator.count("^") > 4 or "=" in self.creator):
            message = f"creator {self.creator!r}: give Family^Given, at most five parts divided by ^"
            raise ExportError(message, code="invalid-creator", text=self.creator)
