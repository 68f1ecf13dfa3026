"""NIfTI-1 and -2 (.nii, .nii.gz, .hdr with .img) through nibabel, which keeps the whole matrix, shear
included.

(ITK's reader makes a sheared orientation orthogonal with only a warning, which moves the voxels.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Label
from medsam2_core.imaging.terminology import parse_tags, tags_text, terminology_in
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COMMENT = 6
_TO_MM = {"meter": 1000.0, "micron": 0.001}


def read_volume(path: Path, series: str | None = None) -> Volume:
    """Read a scalar or colour volume; of a 4-D file the one whose number ``series`` is (from 1)."""
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
    """Return how many volumes the file holds, from its header alone."""
    with files.reading(path, "NIfTI"):
        return _shape(path, _open(path))[3]


def _open(path: Path) -> Any:
    import nibabel

    image = nibabel.load(path, mmap=False)
    if not isinstance(image, nibabel.Nifti1Pair):  # the other NIfTI classes derive from it
        message = f"{type(image).__name__} files do not define the patient's left: use NIfTI"
        raise files.error(path, message, "unsupported-format")
    dtype = image.get_data_dtype()
    _check_spacing(path, image)
    data_path = Path(image.file_map["image"].filename)
    packed = data_path.suffix.lower() in (".gz", ".bz2", ".zst")
    stored = data_path.stat().st_size - (0 if packed else int(image.header["vox_offset"]))
    files.checked_bytes(path, image.shape, dtype.itemsize, stored, files.DEFLATE_RATIO if packed else 1.0)
    return image


def _check_spacing(path: Path, image: Any) -> None:
    """Refuse a spacing of 0, which nibabel takes as 1. An sform has its own; one slice needs none."""
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    sizes = header["dim"][1 : 1 + min(3, int(header["dim"][0]))]
    spacing = [float(size) for size in header["pixdim"][1 : 1 + len(sizes)]]
    is_bad = [size > 1 and not (mm and math.isfinite(mm)) for size, mm in zip(sizes, spacing, strict=True)]
    if header["sform_code"] <= 0 and any(is_bad):
        message = f"voxel spacing {' x '.join(f'{mm:g}' for mm in spacing)} mm: correct it in the header"
        raise files.error(path, message, "invalid-spacing", spacing_mm=spacing)


def _shape(path: Path, image: Any) -> tuple[int, int, int, int]:
    """Return (I, J, K, number of volumes); axes of length 1 beyond space do not count."""
    shape = [int(size) for size in image.shape]
    shape += [1] * (3 - len(shape))
    more = [size for size in shape[3:] if size != 1]
    if more and (len(more) > 1 or shape[3] == 1):  # 5-D: vectors and matrices per voxel
        message = f"{' x '.join(map(str, shape))} voxels: up to four axes are read"
        raise files.error(path, message, "unsupported-axes", sizes=shape)
    return shape[0], shape[1], shape[2], more[0] if more else 1


def _voxels(image: Any, shape: tuple[int, int, int, int], number: int) -> NDArray[Any]:
    stored = np.asarray(image.dataobj.get_unscaled()) if shape[3] == 1 else _one_volume(image, shape, number)
    stored_kji = stored.reshape(shape[:3], order="F").transpose(2, 1, 0)
    if stored_kji.dtype.names:  # RGB24 and RGBA32 are records of bytes
        if not set("RGB") <= set(stored_kji.dtype.names):
            message = f"voxels with the parts {stored_kji.dtype.names} are not read"
            raise VolumeError(message, code="unsupported-voxel-type")
        return np.stack([stored_kji[colour] for colour in "RGB"], axis=-1)
    if stored_kji.dtype.kind == "c":
        message = "complex voxels are not read: save magnitude or phase"
        raise VolumeError(message, code="unsupported-voxel-type")
    if stored_kji.dtype.kind == "f" and stored_kji.dtype.itemsize > 8:
        stored_kji = stored_kji.astype(np.float64)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return files.rescaled(files.native(stored_kji), slope, intercept)


def _one_volume(image: Any, shape: tuple[int, int, int, int], number: int) -> NDArray[Any]:
    """Read one volume of a 4-D file without the others, as stored."""
    import nibabel

    unscaled = nibabel.arrayproxy.ArrayProxy(
        image.file_map["image"].fileobj or image.file_map["image"].filename,
        (shape, image.dataobj.dtype, image.dataobj.offset, 1.0, 0.0),
        mmap=False,
    )
    return np.asarray(unscaled[..., number])


def _affine(image: Any) -> NDArray[np.float64]:
    """Return sform, else qform, else spacing alone, in mm."""
    scale = _TO_MM.get(image.header.get_xyzt_units()[0], 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(image.affine, dtype=np.float64)


def read_label_names(path: Path) -> tuple[Label, ...]:
    """Return the labels that a file names, in its order; none when it was not written by this package.

    NIfTI has no field for them. The comment extension that this package writes (code 6 of
    https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/extension.html) is JSON:
    ``{"software": …, "segments": [{"label": 1, "name": …, "colour": [r, g, b], "tags": {…}}, …]}``. A damaged
    one is passed over.
    """
    import nibabel

    with files.reading(path, "NIfTI"):
        for extension in getattr(nibabel.load(path).header, "extensions", ()):
            if extension.get_code() == _COMMENT:
                found = list(_labels_in(extension.get_content()))
                if len({label.value for label in found}) == len(found) > 0:
                    return tuple(label for label in found if label.value != 0)
    return ()


def _labels_in(content: Any) -> Iterator[Label]:
    try:
        text = content if isinstance(content, str) else bytes(content).rstrip(b"\0").decode("utf-8")
        segments = json.loads(text)["segments"]
    except (ValueError, TypeError, KeyError):
        return
    for segment in segments if isinstance(segments, list) else ():
        if not isinstance(segment, dict) or not isinstance(segment.get("label"), int):
            continue
        value, tags = segment["label"], segment.get("tags")
        tags = {str(key): str(text) for key, text in tags.items()} if isinstance(tags, dict) else {}
        name, colour = str(segment.get("name") or value), _label_colour(segment.get("colour"))
        yield Label(name, value, 0, colour, parse_tags(tags_text(tags)), terminology_in(tags))


def _label_colour(parts: Any) -> tuple[float, float, float] | None:
    try:
        red, green, blue = (_exact(min(1.0, max(0.0, float(part)))) for part in parts)
    except (TypeError, ValueError):
        return None
    return red, green, blue


def _exact(part: float) -> float:
    """Return the colour of 8 bits a channel that four digits stand for, if they do."""
    whole = round(part * 255) / 255
    return whole if round(whole, 4) == round(part, 4) else part
