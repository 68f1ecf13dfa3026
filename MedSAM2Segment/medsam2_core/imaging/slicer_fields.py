"""What 3D Slicer keeps of segments in the header of a ``.seg.nrrd``: fields of text, and tags in one of them.

https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from medsam2_core.errors import VolumeError
from medsam2_core.imaging.terminology import Terminology

_TERMINOLOGY = "TerminologyEntry"


def read_fields(path: Path) -> dict[str, str]:
    """The ``key:=value`` pairs of a NRRD header, letters of all languages and line breaks as they were meant.

    (pynrrd reads ASCII and leaves the escapes.) http://teem.sourceforge.net/nrrd/format.html#keyvalue
    """
    fields = {}
    with path.open("rb") as stream:
        for line in stream:
            text = line.rstrip(b"\r\n")
            if not text:
                break
            if text.startswith(b"#"):
                continue
            key, divider, value = text.decode("utf-8", "replace").partition(":=")
            if divider and ": " not in key:
                fields[key] = _unescaped(value)
    return fields


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\\|n)", lambda found: "\n" if found[1] == "n" else "\\", text)


def parse_tags(text: str) -> dict[str, str]:
    """The tags of a segment from its ``Tags`` field: ``name:value|name:value|``.

    A name has no colon, a value may; a part without one is a name whose value is empty.
    """
    tags = {}
    for part in text.split("|"):
        name, _, value = part.partition(":")
        if name.strip():
            tags[name.strip()] = value
    return tags


def tags_text(tags: Mapping[str, str]) -> str:
    """The ``Tags`` field that :func:`parse_tags` takes apart again; dividers within are replaced.

    The last tag ends with a divider too, as 3D Slicer wants it.
    """
    parts = []
    for name, value in tags.items():
        # A divider cannot be escaped. In JSON it can be written as a code, elsewhere it is replaced.
        kept = value.replace("|", "\\u007c" if value.startswith(("{", "[")) else "/")
        parts.append(f"{name.replace('|', ' ').replace(':', ' ')}:{kept}|")
    return "".join(parts)


def terminology_in(tags: Mapping[str, str]) -> Terminology | None:
    """What the tags say an object is; None when they do not, or not in a way that can be understood."""
    try:
        return Terminology.parse(tags[_TERMINOLOGY])
    except (KeyError, VolumeError):
        return None  # a damaged description is no reason to refuse the voxels
