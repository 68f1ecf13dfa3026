"""NRRD, attached (.nrrd) and detached (.nhdr): http://teem.sourceforge.net/nrrd/format.html.

pynrrd reads the header; the voxels are read through :class:`files.StoredVoxels`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Without "signed", "int" behind another word, "_t" and spaces, see :func:`_dtype`.
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "longlong": "i8",
    "ulonglong": "u8", "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2",
    "uint16": "u2", "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8",
}  # fmt: skip
_COMPRESSION = {"raw": None, "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_TEXT = ("txt", "text", "ascii", "hex")
# Columns give the LPS direction of each axis of the file's space. A space without anatomy is taken as LPS, as
# ITK and 3D Slicer do, so that all three programs agree on the position of the volume.
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
    "scanner-xyz": (1, 1, 1),
    "3d-right-handed": (1, 1, 1),
    "": (1, 1, 1),
}
_NAN_DIRECTION = re.compile(rb"^space directions:.*nan", re.IGNORECASE | re.MULTILINE)
_SAYS_NAN = "directions say nan"  # our own key of a header
_COLOURS = {"rgb-color": 3, "3-color": 3, "rgba-color": 4, "4-color": 4}


@dataclass(frozen=True)
class NrrdArray:
    """Voxels of a NRRD file with at most one axis beyond space.

    ``voxels`` is (K, J, I) or (K, J, I, C) with the ``kind`` of that last axis (such as ``"list"``) in lower
    case.
    """

    voxels: NDArray[Any]
    kind: str
    geometry: Geometry
    header: dict[str, Any]


@dataclass(frozen=True, eq=False)
class NrrdLayers:
    """Label maps of one grid that a file holds voxel by voxel, as 3D Slicer writes them: read slice by slice.

    Iterating over it gives a (L, J, I) array for each slice; only that one is in memory.
    """

    path: Path
    count: int
    dtype: np.dtype[Any]
    geometry: Geometry
    _voxels: files.StoredVoxels

    def __iter__(self) -> Iterator[NDArray[Any]]:
        i, j, k = self.geometry.shape_ijk
        with files.reading(self.path, "NRRD"):
            for layers in self._voxels.read_in(k):
                yield np.ascontiguousarray(np.moveaxis(layers.reshape(j, i, self.count), -1, 0))


def read_layers(path: Path) -> NrrdLayers | None:
    """Return the layers of a file with several, of whole numbers as fastest axis; None for others."""
    with files.reading(path, "NRRD"):
        header, data_start = _header(path)
        sizes = _axes(path, header)
        space_axes = _space_axes(path, header, sizes)
        if space_axes != [1, 2, 3] or sizes[0] < 2 or str(header["encoding"]).lower() in _TEXT:
            return None
        dtype = _dtype(path, header)
        if dtype.kind not in "ui":
            return None
        count, i, j, k = sizes
        geometry = Geometry.from_lps(_ijk_to_lps(path, header, space_axes), (i, j, k))
        return NrrdLayers(path, count, dtype, geometry, _stored(path, header, sizes, data_start))


def read_volume(path: Path, series: str | None = None) -> Volume:
    """Read a scalar or colour volume; of a file with several, the one numbered ``series`` (from 1)."""
    content = read_array(path)
    voxels = content.voxels
    metadata: dict[str, Any] = {"format": "NRRD"}
    if not {"space directions", "spacings"} & content.header.keys():
        metadata["known_spacing"] = "none"
    if voxels.ndim == 4:
        if content.kind in _COLOURS and voxels.dtype == np.uint8:
            voxels = np.ascontiguousarray(voxels[..., :3])
        else:
            what = f"values per voxel (axis of kind {content.kind or 'unknown'!r})"
            voxels = np.ascontiguousarray(voxels[..., files.chosen(path, series, voxels.shape[3], what)])
    return Volume(voxels, content.geometry, name=files.without_suffixes(path), source=path, metadata=metadata)


def count(path: Path) -> int:
    """Return how many volumes the file holds, from its header alone."""
    with files.reading(path, "NRRD"):
        header = _header(path)[0]
        axes = _axes(path, header)
        extra = [axis for axis in range(len(axes)) if axis not in _space_axes(path, header, axes)]
        if not extra or _kind(header, extra[0]) in _COLOURS:
            return 1
        return axes[extra[0]]


def read_array(path: Path) -> NrrdArray:
    """Read all voxels of a file with up to four axes."""
    with files.reading(path, "NRRD"):
        header, data_start = _header(path)
        sizes = _axes(path, header)
        space_axes = _space_axes(path, header, sizes)
        voxels = _read_voxels(path, header, sizes, data_start)
        kind = ""
        extra = [axis for axis in range(len(sizes)) if axis not in space_axes]
        if extra:
            kind = _kind(header, extra[0])
            voxels = np.moveaxis(voxels, len(sizes) - 1 - extra[0], -1)
            if voxels.shape[-1] == 1:
                voxels = voxels[..., 0]
        space_sizes = [sizes[axis] for axis in space_axes]
        if len(space_sizes) == 2:
            voxels = voxels[np.newaxis]
            space_sizes.append(1)
        i, j, k = space_sizes
        geometry = Geometry.from_lps(_ijk_to_lps(path, header, space_axes), (i, j, k))
        return NrrdArray(voxels, kind, geometry, header)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    import nrrd

    with path.open("rb") as stream:
        header = dict(nrrd.read_header(stream))
        end = stream.tell()
        stream.seek(0)
        header[_SAYS_NAN] = _NAN_DIRECTION.search(stream.read(end)) is not None
        return header, end


def _axes(path: Path, header: dict[str, Any]) -> list[int]:
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in header:
            raise files.error(path, f"the NRRD header lacks {name!r}", "header-incomplete", field=name)
    sizes = [int(size) for size in np.atleast_1d(header["sizes"])]
    if len(sizes) != int(header["dimension"]) or not 2 <= len(sizes) <= 4:
        message = f"dimension {header['dimension']} with sizes {sizes}: volumes of 2 to 4 axes are read"
        raise files.error(path, message, "unsupported-axes", sizes=sizes)
    return sizes


def _space_axes(path: Path, header: dict[str, Any], sizes: list[int]) -> list[int]:
    """Return the axes of the file that are directions in space: two or three."""
    if "space directions" in header:
        axes = [n for n, vector in enumerate(_directions(path, header, sizes)) if np.isfinite(vector).all()]
    else:
        axes = [n for n in range(len(sizes)) if _kind(header, n) in ("", "space", "domain", "???", "none")]
        axes = axes if len(axes) <= 3 else axes[:3]
    if not 2 <= len(axes) <= 3 or len(sizes) - len(axes) > 1:
        message = f"{len(axes)} of its {len(sizes)} axes are directions in space: 2 or 3 are needed"
        raise files.error(path, message, "unsupported-axes", sizes=sizes)
    return axes


def _directions(path: Path, header: dict[str, Any], sizes: list[int]) -> list[NDArray[np.float64]]:
    given = header["space directions"]
    rows = [np.full(3, np.nan) if row is None else np.asarray(row, dtype=np.float64) for row in given]
    if len(rows) != len(sizes) or any(row.shape not in ((2,), (3,)) for row in rows):
        message = f"space directions {given} do not fit {len(sizes)} axes"
        raise files.error(path, message, "space-directions-mismatch")
    for n, row in enumerate(rows):
        # pynrrd gives NaN for "none", the direction of an axis that is none in space, but also for "nan".
        spatial = ("space", "domain", "") if header.get(_SAYS_NAN) else ("space", "domain")
        is_none = np.isnan(row).all() and _kind(header, n) not in spatial
        if not np.isfinite(row).all() and not is_none:
            message = f"space direction {row.tolist()} of axis {n} must be finite numbers, or none"
            raise files.error(path, message, "invalid-numbers", field="space directions")
    return [np.append(row, 0.0) if row.shape == (2,) else row for row in rows]


def _kind(header: dict[str, Any], axis: int) -> str:
    kinds = header.get("kinds", [])
    return str(kinds[axis]).lower() if axis < len(kinds) else ""


def _ijk_to_lps(path: Path, header: dict[str, Any], space_axes: list[int]) -> NDArray[np.float64]:
    space = str(header.get("space", "")).lower()
    if space not in _TO_LPS and not space.endswith("-time"):
        message = f"unknown space {header['space']!r}: LPS, RAS and LAS are read"
        raise files.error(path, message, "unsupported-space", space=space)
    matrix = np.eye(4)
    if "space directions" in header:
        rows = _directions(path, header, [1] * len(header["space directions"]))
        for column, axis in enumerate(space_axes):
            matrix[:3, column] = rows[axis]
        if len(space_axes) == 2:
            normal = np.cross(matrix[:3, 0], matrix[:3, 1])
            length = np.linalg.norm(normal)
            matrix[:3, 2] = normal / length if length > 0 else 0
    elif "spacings" in header:
        spacings = np.asarray(header["spacings"], dtype=np.float64)
        for column, axis in enumerate(space_axes):
            if axis < len(spacings) and math.isfinite(spacings[axis]):
                matrix[column, column] = spacings[axis]
    if "space origin" in header:
        origin = np.asarray(header["space origin"], dtype=np.float64)
        if origin.shape not in ((2,), (3,)):
            message = f"space origin {header['space origin']} needs three numbers"
            raise files.error(path, message, "invalid-numbers", field="space origin")
        matrix[: len(origin), 3] = origin
    signs = _TO_LPS.get(space.removesuffix("-time"), (1, 1, 1))
    return np.diag([*signs, 1.0]) @ matrix


def _read_voxels(path: Path, header: dict[str, Any], sizes: list[int], data_start: int) -> NDArray[Any]:
    """Read voxels, slowest axis first."""
    if str(header["encoding"]).lower() not in _TEXT:
        return _stored(path, header, sizes, data_start).read()
    import nrrd

    dtype = _dtype(path, header)
    data_path, start = _data_location(path, header, data_start)
    stored = data_path.stat().st_size - start
    files.checked_bytes(data_path, sizes, dtype.itemsize, stored, ratio=dtype.itemsize)
    with data_path.open("rb") as stream:
        stream.seek(start)
        return np.asarray(nrrd.read_data(header, stream, str(data_path), index_order="C"))


def _stored(path: Path, header: dict[str, Any], sizes: list[int], data_start: int) -> files.StoredVoxels:
    encoding = str(header["encoding"]).lower()
    if encoding not in _COMPRESSION:
        message = f"encoding {header['encoding']!r} is not read: use raw, gzip, bzip2 or ascii"
        raise files.error(path, message, "unsupported-encoding", encoding=encoding)
    compression = _COMPRESSION[encoding]
    lines = int(header.get("line skip", header.get("lineskip", 0)))
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if lines < 0 or skip < -1 or (skip != 0 and compression is not None):
        message = f"line skip {lines} and byte skip {skip} are not read with this encoding"
        raise files.error(path, message, "unsupported-skip")
    data_path, start = _data_location(path, header, data_start)
    return files.StoredVoxels(data_path, start, tuple(sizes), _dtype(path, header), compression, lines, skip)


def _data_location(path: Path, header: dict[str, Any], data_start: int) -> tuple[Path, int]:
    detached = header.get("data file", header.get("datafile"))
    return (path, data_start) if detached is None else (_data_path(path, detached), 0)


def _dtype(path: Path, header: dict[str, Any]) -> np.dtype[Any]:
    name = str(header["type"]).lower()
    short = name.replace("unsigned ", "u").replace("signed ", "").removesuffix(" int").removesuffix("_t")
    code = _TYPES.get(short.replace(" ", ""))
    if code is None:
        message = f"voxels of type {header['type']!r} are not read"
        raise files.error(path, message, "unsupported-voxel-type", type=name)
    endian = str(header.get("endian", "")).lower()
    if code[1] != "1" and endian not in ("little", "big") and header["encoding"] not in _TEXT:
        message = f"the header must say whether the voxels are little or big endian, not {endian!r}"
        raise files.error(path, message, "endian-missing")
    return np.dtype((">" if endian == "big" else "<") + code)


def _data_path(path: Path, detached: Any) -> Path:
    if not isinstance(detached, str) or "%" in detached or detached.upper().startswith("LIST"):
        message = f"voxels in several files ({str(detached)[:80]!r}) are not read: join them first"
        raise files.error(path, message, "voxels-in-several-files")
    return path.parent / detached


def read_fields(path: Path) -> dict[str, str]:
    """Read the ``key:=value`` pairs of a NRRD header, in UTF-8 and with escapes resolved.

    (pynrrd reads ASCII and leaves the escapes.) http://teem.sourceforge.net/nrrd/format.html#keyvalue
    """
    fields = {}
    with path.open("rb") as stream:
        for line in stream:
            text = line.rstrip(b"\r\n")
            if not text:
                break
            if text.startswith(b"#"):
                continue
            key, divider, value = text.decode("utf-8", "replace").partition(":=")
            if divider and ": " not in key:
                fields[key] = _unescaped(value)
    return fields


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\\|n)", lambda found: "\n" if found[1] == "n" else "\\", text)
