"""NIfTI-1 and -2 (.nii, .nii.gz, .hdr with .img) through nibabel, which keeps the whole matrix, shear
included.

(ITK's reader makes a sheared orientation orthogonal with no more than a warning, which moves the voxels.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TO_MM = {"meter": 1000.0, "micron": 0.001}


def read_volume(path: Path, series: str | None = None) -> Volume:
    """A scalar or colour volume; of a 4-D file the one whose number ``series`` is (from 1)."""
    with files.reading(path, "NIfTI"):
        image = _open(path)
        shape = _shape(path, image)
        number = files.chosen(path, series, shape[3], "volumes (4-D)")
        voxels = _voxels(image, shape, number)
        geometry = Geometry(_affine(image), shape[:3])
        metadata = {
            "format": "NIfTI",
            "orientation_known": bool(image.header["sform_code"] > 0 or image.header["qform_code"] > 0),
        }
        if shape[3] > 1:
            metadata["volume_number"] = number + 1
        return Volume(voxels, geometry, name=files.without_suffixes(path), source=path, metadata=metadata)


def count(path: Path) -> int:
    """How many volumes the file holds, from its header alone."""
    with files.reading(path, "NIfTI"):
        return _shape(path, _open(path))[3]


def _open(path: Path) -> Any:
    import nibabel

    image = nibabel.load(path, mmap=False)
    if not isinstance(image, nibabel.Nifti1Pair):  # the other NIfTI classes derive from it
        raise VolumeError(
            f"{path}: {type(image).__name__} files do not say where the patient's left is: use NIfTI"
        )
    dtype = image.get_data_dtype()
    data_path = Path(image.file_map["image"].filename)
    packed = data_path.suffix.lower() in (".gz", ".bz2", ".zst")
    stored = data_path.stat().st_size - (0 if packed else int(image.header["vox_offset"]))
    files.checked_bytes(path, image.shape, dtype.itemsize, stored, files.DEFLATE_RATIO if packed else 1.0)
    return image


def _shape(path: Path, image: Any) -> tuple[int, int, int, int]:
    """(I, J, K, number of volumes); axes of length 1 beyond space do not count."""
    shape = [int(size) for size in image.shape]
    shape += [1] * (3 - len(shape))
    more = [size for size in shape[3:] if size != 1]
    if more and (len(more) > 1 or shape[3] == 1):  # 5-D: vectors and matrices per voxel
        raise VolumeError(f"{path}: {' x '.join(map(str, shape))} voxels: up to four axes are read")
    return shape[0], shape[1], shape[2], more[0] if more else 1


def _voxels(image: Any, shape: tuple[int, int, int, int], number: int) -> NDArray[Any]:
    stored = np.asarray(image.dataobj.get_unscaled()) if shape[3] == 1 else _one_volume(image, shape, number)
    stored_kji = stored.reshape(shape[:3], order="F").transpose(2, 1, 0)
    if stored_kji.dtype.names:  # RGB24 and RGBA32 are records of bytes
        if not set("RGB") <= set(stored_kji.dtype.names):
            raise VolumeError(f"voxels with the parts {stored_kji.dtype.names} are not read")
        return np.stack([stored_kji[colour] for colour in "RGB"], axis=-1)
    if stored_kji.dtype.kind == "c":
        raise VolumeError("complex voxels are not read: save magnitude or phase")
    if stored_kji.dtype.kind == "f" and stored_kji.dtype.itemsize > 8:
        stored_kji = stored_kji.astype(np.float64)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return files.rescaled(files.native(stored_kji), slope, intercept)


def _one_volume(image: Any, shape: tuple[int, int, int, int], number: int) -> NDArray[Any]:
    """One volume of a 4-D file without reading the others into memory, stored values."""
    import nibabel

    unscaled = nibabel.arrayproxy.ArrayProxy(
        image.file_map["image"].fileobj or image.file_map["image"].filename,
        (shape, image.dataobj.dtype, image.dataobj.offset, 1.0, 0.0),
        mmap=False,
    )
    return np.asarray(unscaled[..., number])


def _affine(image: Any) -> NDArray[np.float64]:
    """sform, else qform, else spacing alone, in mm."""
    scale = _TO_MM.get(image.header.get_xyzt_units()[0], 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine, dtype=np.float64)


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
