"""What is stored beside the voxels: names, colours, codes, prompts, model and window of every object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from medsam2_core.version import __version__

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segment, Segmentation

MANUFACTURER = "MedSAM2Segment"
SOFTWARE = f"{MANUFACTURER} {__version__}"
PREFIX = "MedSAM2."
# Limits of DICOM's value representations (PS3.5 6.2).
LONGEST_LO = 64  # characters
LONGEST_ST = 1024  # characters
LARGEST_IS = 2**31 - 1
_ABSOLUTE = re.compile(r"^(file://|[/~\\]|[A-Za-z]:[\\/])")


def tags_of(segmentation: Segmentation, segment: Segment) -> dict[str, str]:
    """Return the tags of a segment, by name; its own ``tags`` win over those from the provenance.

    Names follow 3D Slicer: ``TerminologyEntry``, ``DICOM.SegmentAlgorithmType`` and
    ``DICOM.SegmentAlgorithmName`` are what its DICOM export needs; ours begin with ``MedSAM2.``. That an
    object was made by this program is stated only where a model is known: others are passed on.
    """
    provenance = without_paths(segmentation.provenance)
    tags = {"Segmentation.Status": "inprogress", "TerminologyEntry": str(segment.terminology)}
    if "model" in provenance:
        tags["DICOM.SegmentAlgorithmType"] = "SEMIAUTOMATIC"
        tags["DICOM.SegmentAlgorithmName"] = algorithm_name(provenance)
        tags[f"{PREFIX}software"] = SOFTWARE
    for key, value in provenance.items():
        if key == "prompts":
            value = _prompts_of(segment.name, value)  # noqa: PLW2901
        if value is not None:
            tags[PREFIX + key] = value if isinstance(value, str) else to_json(value)
    return tags | without_paths(segment.tags)


def algorithm_name(provenance: Mapping[str, Any]) -> str:
    """Return program and model, short enough for DICOM."""
    model = str(provenance.get("model", "")).strip()
    return " ".join(f"{SOFTWARE} {model}".split())[:LONGEST_LO].strip()


def description(segmentation: Segmentation) -> dict[str, Any]:
    """Return all metadata, for formats with one free text."""
    return {
        "software": SOFTWARE,
        "segments": [
            {
                "label": number,
                "name": segment.name,
                "colour": [round(part, 4) for part in segment.colour_rgb],
                "tags": tags_of(segmentation, segment),
            }
            for number, segment in enumerate(segmentation, start=1)
        ],
    }


def to_json(value: Any) -> str:
    """Return compact JSON on one line, letters of all languages as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def without_paths(value: Any) -> Any:
    """Return the value with every absolute path cut down to its last part.

    Files are passed on, and paths of this computer often contain the name of its user.
    """
    if isinstance(value, Mapping):
        return {str(key): without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    text = str(value) if isinstance(value, PurePath) else value
    if not isinstance(text, str):
        return text
    if _ABSOLUTE.match(text) and "\n" not in text:
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 4 else text


def _prompts_of(name: str, prompts: Any) -> Any:
    """Return the prompts of one segment, in the form of those of all; None when it has none."""
    try:
        data = json.loads(prompts) if isinstance(prompts, str | bytes) else prompts
        own = [entry for entry in data["objects"] if entry["name"] == name]
    except (ValueError, TypeError, KeyError):
        return prompts  # not a prompt set: stored as it is
    return {**data, "objects": own} if own else None
