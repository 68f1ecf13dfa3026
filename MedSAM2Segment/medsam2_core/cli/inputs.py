"""What commands read: the scan, and settings that are refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medsam2_core.errors import Note, VolumeError

if TYPE_CHECKING:
    from medsam2_core.imaging.volume import Volume


def read_scan(path: Path, series: str | None = None, irregular: str = "refuse") -> tuple[Volume, list[Note]]:
    """Read a scan to be segmented, and say what the user should know of it.

    Raises
    ------
    VolumeError, GeometryError
        ``segmentation-as-scan``; what reading it or looking at its contrast fails with.
    """
    from medsam2_core.imaging.intensity import check_contrast
    from medsam2_core.imaging.reading import read_volume
    from medsam2_core.imaging.segmentation_files import is_segmentation, label_counts

    if path.exists() and is_segmentation(path):
        message = (
            f"{path} is a segmentation: name the scan it belongs to; to go on from the segmentation, give it "
            "with --continue, --prompts or --mask"
        )
        raise VolumeError(message, code="segmentation-as-scan", path=str(path))
    volume = read_volume(path, series, irregular=irregular)
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


def check_settings(model: str | Path | None, device: str, precision: str, window: str | None = None) -> None:
    """Refuse settings of the model that cannot be used, before anything is read.

    Raises
    ------
    VolumeError, DeviceError, CatalogueError
        What the window, the device, the precision or the model would fail with later.
    """
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.store import Store
    from medsam2_core.imaging.intensity import parse_window

    if window is not None and window.strip().lower() != "auto":
        parse_window(window)
    if model is not None:
        Store.default().locate(Catalogue.load().find(model))
    from medsam2_core.engine.devices import choose_device, choose_precision  # torch takes seconds to load

    choose_precision(choose_device(device), precision)
