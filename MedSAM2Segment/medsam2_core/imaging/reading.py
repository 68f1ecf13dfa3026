"""Open whatever a user names: one function for volumes, one for label maps, one for folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medsam2_core.imaging import dicom, files, metaimage, nifti, npz, nrrd, pictures
from medsam2_core.imaging.dicom import SeriesInfo
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.volume import Volume

__all__ = ["SeriesInfo", "list_series", "read_images", "read_segmentation", "read_volume"]

_READERS: dict[tuple[str, ...], Callable[[Path, str | None], Volume]] = {
    (".nii", ".nii.gz", ".hdr", ".img"): nifti.read_volume,
    (".nrrd", ".nhdr"): nrrd.read_volume,
    (".mha", ".mhd"): metaimage.read_volume,
    (".npz",): npz.read_volume,
    pictures.SUFFIXES: pictures.read_volume,
    (".dcm", ".dicom", ".ima"): dicom.read_volume,
}
_COUNTERS = {
    nifti.read_volume: nifti.count,
    nrrd.read_volume: nrrd.count,
    metaimage.read_volume: metaimage.count,
}


def read_volume(path: str | Path, series: str | None = None, *, irregular: str = "refuse") -> Volume:
    """Read a volume or a picture.

    Parameters
    ----------
    path : a NRRD, NIfTI, MetaImage, DICOM, PNG, JPEG, TIFF or NPZ file, or a folder with a DICOM series
    series : which one, when the file or folder holds several: a number or UID from :func:`list_series`
    irregular : of a DICOM series whose slices are missing or not evenly spaced, see
        :class:`~medsam2_core.imaging.dicom_frames.Irregular`

    Raises
    ------
    VolumeError
        When there is nothing to read or it is damaged; GeometryError when slices are missing, doubled or
        uneven. When a choice is needed, the message lists what there is.
    """
    path = files.existing(path)
    if path.is_dir():
        return _read_folder(path, series, irregular)
    reader = _reader(path)
    if reader is dicom.read_volume:
        return dicom.read_volume(path, series, irregular)
    if series not in (None, "1") and (reader not in _COUNTERS or _COUNTERS[reader](path) == 1):
        message = "it holds one volume: only DICOM, and files of several volumes, have series to choose from"
        raise files.error(path, message, "no-series")
    return reader(path, series)


def list_series(path: str | Path) -> list[SeriesInfo]:
    """List what a file or folder holds: DICOM series, or the volumes of a 4-D file.

    One entry for a plain volume.
    """
    path = files.existing(path)
    if path.is_dir() or _reader(path) is dicom.read_volume:
        return dicom.list_series(path)
    reader = _reader(path)
    count = _COUNTERS[reader](path) if reader in _COUNTERS else 1
    name = files.without_suffixes(path)
    if count == 1:
        volume = reader(path, None)
        return [SeriesInfo(1, "", name, volume.modality, volume.geometry.shape_ijk)]
    shape = reader(path, "1").geometry.shape_ijk
    return [SeriesInfo(n, "", f"{name}, volume {n} of {count}", "", shape) for n in range(1, count + 1)]


def read_images(folder: str | Path, *, skip_bad: bool = False) -> ImageSet:
    """Return all pictures of a folder (PNG, JPEG, TIFF, BMP, single DICOM images), sorted by name.

    Each is read once now, and again when it is needed, so that memory does not grow with their number.

    Parameters
    ----------
    skip_bad
        Leave out what cannot be used; :attr:`ImageSet.left_out` says what and why.

    Raises
    ------
    VolumeError
        ``not-a-folder``, ``no-pictures``, or ``bad-images`` with their names.
    """
    folder = files.existing(folder)
    if not folder.is_dir():
        raise files.error(folder, "not a folder", "not-a-folder")
    paths = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in paths if p.suffix.lower() in pictures.SUFFIXES or dicom.is_dicom(p)]
    if not found:
        message = "no pictures found: PNG, JPEG, TIFF, BMP and DICOM images are read"
        raise files.error(folder, message, "no-pictures")
    return ImageSet.of_files(found, read_volume, skip_bad=skip_bad)


def pictures_in(path: str | Path) -> list[Path]:
    """Return the pictures (PNG, JPEG, TIFF, BMP) of a folder without DICOM, by name, else nothing."""
    path = files.existing(path)
    if not path.is_dir() or any(dicom.is_dicom(one) for one in path.rglob("*") if one.is_file()):
        return []
    return sorted(
        one
        for one in path.iterdir()
        if one.is_file() and one.suffix.lower() in pictures.SUFFIXES and not one.name.startswith(".")
    )


def _read_folder(path: Path, series: str | None, irregular: str) -> Volume:
    if pictures_in(path):
        message = "a folder of pictures is not a volume: name one picture, or read all with read_images()"
        raise files.error(path, message, "folder-of-pictures")
    return dicom.read_volume(path, series, irregular)


def _reader(path: Path) -> Callable[[Path, str | None], Volume]:
    name = path.name.lower()
    for suffixes, reader in _READERS.items():
        if name.endswith(suffixes):
            return reader
    if dicom.is_dicom(path):  # DICOM files often have no suffix, or a UID that looks like one
        return dicom.read_volume
    known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
    raise files.error(path, f"unknown kind of file: {known} and DICOM are read", "unknown-format")
