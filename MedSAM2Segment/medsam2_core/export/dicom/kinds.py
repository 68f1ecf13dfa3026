"""What a SEG can be asked to be."""

from __future__ import annotations

import enum


class Kind(str, enum.Enum):
    """How a SEG holds its segments (PS3.3 C.8.20.2: Segmentation Type)."""

    BINARY = "binary"
    FRACTIONAL = "fractional"
    LABELMAP = "labelmap"


class Compression(str, enum.Enum):
    """How pixels are packed; none of them loses anything."""

    NONE = "none"
    RLE = "rle"
    JPEG_LS = "jpeg-ls"
