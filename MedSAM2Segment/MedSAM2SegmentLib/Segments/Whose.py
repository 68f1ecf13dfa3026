"""Whose the voxels of a segment are: ours, or somebody else's, as far as notes about it tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MedSAM2SegmentLib.Segments.SegmentNotes import ERASED, KNOWN, OURS, SegmentNotes
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter


def showsOurs(writer: SegmentWriter, segmentID: str) -> bool:
    """Whether a segment shows a voxel that we put there; without notes, whether it shows any."""
    notes, segments = _of(writer, segmentID)
    if notes is None:
        return segments.hasAny(segmentID)
    planes = () if notes.used.isEmpty else notes.used.planes()
    return any(bool((segments.mask(segmentID, one) & (notes.read(one) & OURS != 0)).any()) for one in planes)


def showsKept(writer: SegmentWriter, segmentID: str) -> bool:
    """Whether a segment shows what we were to take away, and were not let."""
    notes, segments = _of(writer, segmentID)
    if notes is None or notes.used.isEmpty:
        return False
    return any(
        bool((segments.mask(segmentID, one) & (notes.read(one) & (OURS | KNOWN) == OURS)).any())
        for one in notes.used.planes()
    )


def wasEdited(writer: SegmentWriter, segmentID: str) -> bool:
    """Whether somebody has certainly added voxels to what we put there, or taken some away.

    False where nothing is noted: nobody knows then whose it is.
    """
    notes, segments = _of(writer, segmentID)
    if notes is None or notes.used.isEmpty:
        return False
    if (notes.read(notes.used) & ERASED).any():
        return True
    return any(  # plane by plane: mostly the first that is looked at tells
        bool((segments.mask(segmentID, one) & (notes.read(one) & OURS == 0)).any())
        for one in notes.extent.planes()
    )


def _of(writer: SegmentWriter, segmentID: str) -> tuple[SegmentNotes | None, SegmentVoxels]:
    node = writer.editor.segmentationNode()
    notes = writer.noted(node).get(segmentID)
    return notes, SegmentVoxels(node, np.eye(4) if notes is None else notes.indexToRAS)
