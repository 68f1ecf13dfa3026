"""Names, colours and tags of the labels in a NIfTI label map, from the comment this package writes into it.

NIfTI has no place of its own for them. The comment (extension 6 of
https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/extension.html) is JSON:
``{"software": …, "segments": [{"label": 1, "name": …, "colour": [r, g, b], "tags": {…}}, …]}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COMMENT = 6


@dataclass(frozen=True)
class Named:
    """What the comment says of one label; ``colour`` is RGB from 0 to 1."""

    value: int
    name: str
    colour: tuple[float, float, float] | None = None
    tags: dict[str, str] = field(default_factory=dict)


def read_names(path: Path) -> list[Named]:
    """Labels the file names, in its order; none when it was not written by this package, or is damaged."""
    import nibabel

    extensions = getattr(nibabel.load(path).header, "extensions", ())
    for extension in extensions:
        if extension.get_code() == _COMMENT:
            found = list(_understood(extension.get_content()))
            if len({one.value for one in found}) == len(found) > 0:
                return found
    return []


def _understood(content: Any) -> Iterator[Named]:
    try:
        text = content if isinstance(content, str) else bytes(content).rstrip(b"\0").decode("utf-8")
        segments = json.loads(text)["segments"]
    except (ValueError, TypeError, KeyError):
        return
    for segment in segments if isinstance(segments, list) else ():
        if not isinstance(segment, dict) or not isinstance(segment.get("label"), int):
            continue
        tags = segment.get("tags")
        yield Named(
            segment["label"],
            str(segment.get("name") or segment["label"]),
            _colour(segment.get("colour")),
            {str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {},
        )


def _colour(parts: Any) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (_as_chosen(min(1.0, max(0.0, float(part)))) for part in parts)
    except (TypeError, ValueError):
        return None
    return red, green, blue


def _as_chosen(part: float) -> float:
    """The colour of 8 bits a channel that four digits stand for, if they do."""
    whole = round(part * 255) / 255
    return whole if round(whole, 4) == round(part, 4) else part
