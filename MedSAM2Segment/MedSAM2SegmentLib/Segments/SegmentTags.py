"""Tags of a segment: what Slicer keeps beside its voxels, saves with it, and brings back with it on undo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import vtk

#: What Slicer's own DICOM export reads: how a segment was made, and by what.
ALGORITHM_TYPE, ALGORITHM_NAME = "DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName"
#: Our own: the model and its weights, and the Auto model that found the segment by itself.
MODEL, WEIGHTS, AUTO = "MedSAM2.model", "MedSAM2.weights_sha256", "MedSAM2.auto"
#: What these tags said before a user's prompts came to what somebody else, or Auto, had made.
BEFORE = "MedSAM2.before"
TERMINOLOGY = "TerminologyEntry"


def tagOf(segment: Any, name: str) -> str:
    """A tag of a ``vtkSegment``; empty when it has none."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def putTags(segment: Any, tags: Mapping[str, str]) -> None:
    """Set tags of a ``vtkSegment``, those that are empty removed; what is as it was tells nobody."""
    for name, text in tags.items():
        # The divider of tags in Slicer's files cannot be escaped; in JSON it can be written as a code.
        value = text.replace("|", "\\u007c") if text.startswith("{") else text
        if not value and segment.HasTag(name):
            segment.RemoveTag(name)
        elif value and tagOf(segment, name) != value:
            segment.SetTag(name, value)
