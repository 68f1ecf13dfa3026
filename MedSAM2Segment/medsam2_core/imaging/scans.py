"""Scans to be segmented: read, with what the user should know of them."""

from __future__ import annotations

from pathlib import Path

from medsam2_core.errors import Note, VolumeError
from medsam2_core.imaging import reading
from medsam2_core.imaging.intensity import check_contrast
from medsam2_core.imaging.segmentation_files import is_segmentation, label_counts
from medsam2_core.imaging.volume import Volume


def read_scan(path: Path, series: str | None = None, irregular: str = "refuse") -> tuple[Volume, list[Note]]:
    """Read a scan to be segmented, and say what the user should know of it.

    Raises
    ------
    VolumeError, GeometryError
        ``segmentation-as-scan``; what reading it or looking at its contrast fails with.
    """
    if path.exists() and is_segmentation(path):
        message = (
            f"{path} is a segmentation: name the scan it belongs to; to go on from the segmentation, give it "
            "with --continue, --prompts or --mask"
        )
        raise VolumeError(message, code="segmentation-as-scan", path=str(path))
    volume = reading.read_volume(path, series, irregular=irregular)
    check_contrast(volume)
    notes = irregular_notes(volume)
    if labels := list(label_counts(volume)):
        text = f"{path.name} holds few whole numbers only: is it a label map (for --mask), and not the scan?"
        notes.append(Note.warning("looks-like-a-label-map", text, path=str(path), labels=labels))
    return volume, notes


def irregular_notes(volume: Volume) -> list[Note]:
    """Return what the user should know of a volume from an irregular series."""
    how, off = volume.metadata.get("irregular"), volume.metadata.get("off_mm", 0.0)
    if how == "resample":
        text = "slices were interpolated where the series has none: what they show was not measured there"
    elif how == "as-is":
        text = f"slices were taken as evenly spaced: some are up to {off:.3g} mm from where they are shown"
    else:
        return []
    return [Note.warning("irregular-series", f"{text} ({volume.metadata['reason']})", how=how, off_mm=off)]
