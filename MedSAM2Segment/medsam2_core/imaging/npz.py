"""NPZ blocks as the MedSAM2 authors publish them.

``imgs`` (K, J, I), ``gts`` of the same shape, ``spacing`` (i, j, k) mm; in this project's own also ``group``.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LONGEST_TEXT = 1000  # bytes


def read_volume(path: Path, series: str | None = None) -> Volume:
    """Read the images of a block, as CT that was already turned into 8 bits."""
    with files.reading(path, "NPZ"):
        files.chosen(path, series, 1, "volumes")
        voxels = _array(path, "imgs")
        modality = "CT" if voxels.dtype == np.uint8 else ""
        metadata = {"format": "NPZ", "orientation_known": False}
        return Volume(voxels, _geometry(path, voxels), modality, path.stem, path, metadata)


def read_labels(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read the labels of a block and their geometry."""
    with files.reading(path, "NPZ"):
        labels = _array(path, "gts")
        return labels, _geometry(path, labels)


def read_group(path: Path) -> str:
    """Return what a block belongs to (a patient, a scan): its array ``group``, or nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("group.npy").file_size > _LONGEST_TEXT:
                return ""
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["group"])
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, zlib.error, EOFError, SyntaxError):
        return ""


def _array(path: Path, name: str) -> NDArray[Any]:
    """Read one array, its size checked before it is unpacked; pickled objects are never loaded."""
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if f"{name}.npy" not in members:
            message = f"has no array {name!r}, only {', '.join(members)[:200] or 'nothing'}"
            raise files.error(path, message, "array-missing", array=name)
        stored = archive.getinfo(f"{name}.npy").compress_size
        with archive.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran_order, dtype = read_header(stream)
            if len(shape) != 3 or dtype.hasobject or dtype.kind not in "buif":
                message = f"{name} is {shape} of {dtype}: three axes of numbers are read"
                raise files.error(path, message, "unsupported-axes", array=name)
            wanted = files.checked_bytes(path, shape, dtype.itemsize, max(stored, 1), files.DEFLATE_RATIO)
            (data,) = files.read_parts(path, stream, 1, wanted, None)
    return files.native(data.view(dtype)).reshape(shape, order="F" if fortran_order else "C")


def _geometry(path: Path, voxels: NDArray[Any]) -> Geometry:
    spacing = np.ones(3)
    with np.load(path, allow_pickle=False) as arrays:
        if "spacing" in arrays:
            spacing = np.asarray(arrays["spacing"], dtype=np.float64).ravel()
    if spacing.size != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        message = f"spacing {spacing.tolist()} should be three positive numbers"
        raise files.error(path, message, "invalid-spacing")
    k, j, i = voxels.shape
    return Geometry.from_lps(np.diag([*spacing, 1.0]), (i, j, k))
