"""NRRD, attached (.nrrd) and detached (.nhdr): http://teem.sourceforge.net/nrrd/format.html.

pynrrd reads the header; the voxels are read here, within the size the header promises.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_COMPRESSION = {"raw": None, "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_TEXT = ("txt", "text", "ascii", "hex")
# Columns give the LPS direction of each axis of the file's space. A space without anatomy is taken as LPS, as
# ITK and 3D Slicer do, so that all three programs agree where the volume is.
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
    _header: dict[str, Any] = field(repr=False)
    _data_start: int = field(repr=False)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        i, j, k = self.geometry.shape_ijk
        sizes = [self.count, i, j, k]
        size = self.count * i * j * self.dtype.itemsize
        with (
            files.reading(self.path, "NRRD"),
            _at_voxels(self.path, self._header, sizes, self._data_start) as (file, stream, compression),
        ):
            for data in files.read_parts(file, stream, k, size, compression):
                layers_jil = files.native(data.view(self.dtype)).reshape(j, i, self.count)
                yield np.ascontiguousarray(np.moveaxis(layers_jil, -1, 0))


def read_layers(path: Path) -> NrrdLayers | None:
    """The layers of a file that has several, of whole numbers and as its fastest axis; None for others."""
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
        return NrrdLayers(path, count, dtype, geometry, header, data_start)


def read_volume(path: Path, series: str | None = None) -> Volume:
    """A scalar or colour volume; of a file with several, the one whose number ``series`` is (from 1)."""
    content = read_array(path)
    voxels = content.voxels
    metadata: dict[str, Any] = {"format": "NRRD"}
    if voxels.ndim == 4:
        if content.kind in _COLOURS and voxels.dtype == np.uint8:
            voxels = np.ascontiguousarray(voxels[..., :3])
        else:
            what = f"values per voxel (axis of kind {content.kind or 'unknown'!r})"
            voxels = np.ascontiguousarray(voxels[..., files.chosen(path, series, voxels.shape[3], what)])
    return Volume(voxels, content.geometry, name=files.without_suffixes(path), source=path, metadata=metadata)


def count(path: Path) -> int:
    """How many volumes the file holds, from its header alone."""
    with files.reading(path, "NRRD"):
        header = _header(path)[0]
        axes = _axes(path, header)
        extra = [axis for axis in range(len(axes)) if axis not in _space_axes(path, header, axes)]
        if not extra or _kind(header, extra[0]) in _COLOURS:
            return 1
        return axes[extra[0]]


def read_array(path: Path) -> NrrdArray:
    """All voxels of a file with up to four axes; VolumeError says what is wrong with it."""
    with files.reading(path, "NRRD"):
        header, data_start = _header(path)
        sizes = _axes(path, header)
        space_axes = _space_axes(path, header, sizes)
        flat = _read_voxels(path, header, sizes, data_start)
        voxels = flat.reshape(sizes[::-1])  # slowest axis first
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
        return header, stream.tell()


def _axes(path: Path, header: dict[str, Any]) -> list[int]:
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in header:
            raise VolumeError(f"{path}: the NRRD header lacks {name!r}")
    sizes = [int(size) for size in np.atleast_1d(header["sizes"])]
    if len(sizes) != int(header["dimension"]) or not 2 <= len(sizes) <= 4:
        raise VolumeError(
            f"{path}: dimension {header['dimension']} with sizes {sizes}: volumes of 2 to 4 axes are read"
        )
    return sizes


def _space_axes(path: Path, header: dict[str, Any], sizes: list[int]) -> list[int]:
    """Axes of the file that are directions in space: two or three."""
    if "space directions" in header:
        axes = [n for n, vector in enumerate(_directions(path, header, sizes)) if np.isfinite(vector).all()]
    else:
        axes = [n for n in range(len(sizes)) if _kind(header, n) in ("", "space", "domain", "???", "none")]
        axes = axes if len(axes) <= 3 else axes[:3]
    if not 2 <= len(axes) <= 3 or len(sizes) - len(axes) > 1:
        raise VolumeError(
            f"{path}: {len(axes)} of its {len(sizes)} axes are directions in space: 2 or 3 are needed"
        )
    return axes


def _directions(path: Path, header: dict[str, Any], sizes: list[int]) -> list[NDArray[np.float64]]:
    given = header["space directions"]
    rows = [np.full(3, np.nan) if row is None else np.asarray(row, dtype=np.float64) for row in given]
    if len(rows) != len(sizes) or any(row.shape not in ((2,), (3,)) for row in rows):
        raise VolumeError(f"{path}: space directions {given} do not fit {len(sizes)} axes")
    return [np.append(row, 0.0) if row.shape == (2,) else row for row in rows]


def _kind(header: dict[str, Any], axis: int) -> str:
    kinds = header.get("kinds", [])
    return str(kinds[axis]).lower() if axis < len(kinds) else ""


def _ijk_to_lps(path: Path, header: dict[str, Any], space_axes: list[int]) -> NDArray[np.float64]:
    space = str(header.get("space", "")).lower()
    if space not in _TO_LPS and not space.endswith("-time"):
        raise VolumeError(f"{path}: unknown space {header['space']!r}: LPS, RAS and LAS are read")
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
            raise VolumeError(f"{path}: space origin {header['space origin']} needs three numbers")
        matrix[: len(origin), 3] = origin
    signs = _TO_LPS.get(space.removesuffix("-time"), (1, 1, 1))
    return np.diag([*signs, 1.0]) @ matrix


def _read_voxels(path: Path, header: dict[str, Any], sizes: list[int], data_start: int) -> NDArray[Any]:
    dtype = _dtype(path, header)
    if str(header["encoding"]).lower() in _TEXT:
        import nrrd

        data_path, start = _place(path, header, data_start)
        stored = data_path.stat().st_size - start
        files.checked_bytes(data_path, sizes, dtype.itemsize, stored, ratio=dtype.itemsize)
        with data_path.open("rb") as stream:
            stream.seek(start)
            return nrrd.read_data(header, stream, str(data_path), index_order="C").ravel()
    with _at_voxels(path, header, sizes, data_start) as (data_path, stream, compression):
        data = files.read_bytes(data_path, stream, math.prod(sizes) * dtype.itemsize, compression)
    return files.native(data.view(dtype))


@contextlib.contextmanager
def _at_voxels(
    path: Path, header: dict[str, Any], sizes: list[int], data_start: int
) -> Iterator[tuple[Path, IO[bytes], str | None]]:
    """The file that holds the voxels, open where they begin, and how they are compressed."""
    encoding = str(header["encoding"]).lower()
    if encoding not in _COMPRESSION:
        raise VolumeError(
            f"{path}: encoding {header['encoding']!r} is not read: use raw, gzip, bzip2 or ascii"
        )
    compression = _COMPRESSION[encoding]
    # bzip2 squeezes constant data without a bound; beyond a million times nobody has such a volume.
    ratio = {None: 1.0, "gzip": files.DEFLATE_RATIO, "bzip2": 1e6}[compression]
    data_path, start = _place(path, header, data_start)
    stored = data_path.stat().st_size - start
    wanted = files.checked_bytes(data_path, sizes, _dtype(path, header).itemsize, stored, ratio)
    with data_path.open("rb") as stream:
        stream.seek(start)
        _skip(path, stream, header, wanted, compression)
        yield data_path, stream, compression


def _place(path: Path, header: dict[str, Any], data_start: int) -> tuple[Path, int]:
    """The file that holds the voxels, and where they begin in it."""
    detached = header.get("data file", header.get("datafile"))
    return (path, data_start) if detached is None else (_data_path(path, detached), 0)


def _skip(path: Path, stream: Any, header: dict[str, Any], wanted: int, compression: str | None) -> None:
    lines = int(header.get("line skip", header.get("lineskip", 0)))
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if lines < 0 or skip < -1 or (skip != 0 and compression is not None):
        raise VolumeError(f"{path}: line skip {lines} and byte skip {skip} are not read with this encoding")
    for _ in range(lines):
        if not stream.readline():
            raise VolumeError(f"{path}: truncated: line skip {lines} reaches beyond the end")
    if skip == -1:
        stream.seek(-wanted, 2)
    elif skip:
        stream.seek(skip, 1)


def _dtype(path: Path, header: dict[str, Any]) -> np.dtype[Any]:
    name = str(header["type"]).lower()
    code = next((code for code, names in _TYPES.items() if name in names), None)
    if code is None:
        raise VolumeError(f"{path}: voxels of type {header['type']!r} are not read")
    endian = str(header.get("endian", "")).lower()
    if code[1] != "1" and endian not in ("little", "big") and header["encoding"] not in _TEXT:
        raise VolumeError(
            f"{path}: the header must say whether the voxels are little or big endian, not {endian!r}"
        )
    return np.dtype((">" if endian == "big" else "<") + code)


def _data_path(path: Path, detached: Any) -> Path:
    if not isinstance(detached, str) or "%" in detached or detached.upper().startswith("LIST"):
        raise VolumeError(
            f"{path}: voxels in several files ({str(detached)[:80]!r}) are not read: join them first"
        )
    return path.parent / detached
