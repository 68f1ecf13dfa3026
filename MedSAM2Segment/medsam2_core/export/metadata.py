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
LONGEST_LO = 64  # characters of DICOM's value representation LO, in which the algorithm's name ends up
_ABSOLUTE = re.compile(r"^(file://|[/~\\]|[A-Za-z]:[\\/])")


def tags_of(segmentation: Segmentation, segment: Segment) -> dict[str, str]:
    """Tags of one object, by name; its own ``tags`` win over what is derived from the provenance.

    Names follow 3D Slicer: ``TerminologyEntry``, ``DICOM.SegmentAlgorithmType`` and
    ``DICOM.SegmentAlgorithmName`` are what its DICOM export looks for; ours begin with ``MedSAM2.``. That an
    object was made by this program is said only where a model is known: others are just passed on.
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
    """Program and model, short enough for DICOM."""
    model = str(provenance.get("model", "")).strip()
    return " ".join(f"{SOFTWARE} {model}".split())[:LONGEST_LO].strip()


def description(segmentation: Segmentation) -> dict[str, Any]:
    """Everything there is to say, for formats with one free text."""
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
    """Compact JSON on one line, letters of all languages as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def without_paths(value: Any) -> Any:
    """The same value with every absolute path cut down to its last part.

    Files are passed on; where something lay on this computer, and thus often who sat there, is nobody's
    business.
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
    """The prompts of one object, in the same form as those of all: as JSON text, or None when it has none."""
    try:
        data = json.loads(prompts) if isinstance(prompts, str | bytes) else prompts
        own = [entry for entry in data["objects"] if entry["name"] == name]
    except (ValueError, TypeError, KeyError):
        return prompts  # not a prompt set: stored as it is
    return {**data, "objects": own} if own else None
