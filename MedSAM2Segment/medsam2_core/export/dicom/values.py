"""What values of DICOM may be (PS3.5 6.2), and who writes them here."""

from __future__ import annotations

from medsam2_core.export.metadata import LONGEST_LO

__all__ = ["LARGEST_IS", "LONGEST_LO", "LONGEST_ST", "MANUFACTURER", "clean"]

MANUFACTURER = "MedSAM2Segment"
LONGEST_ST = 1024  # characters
LARGEST_IS = 2**31 - 1


def clean(text: str) -> str:
    """Text as a value of DICOM: on one line, without what divides values or cannot be seen."""
    return "".join(one for one in " ".join(text.split()).replace("\\", "/") if one.isprintable())
