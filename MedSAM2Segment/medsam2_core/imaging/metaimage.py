"""MetaImage (.mha, .mhd): https://itk.org/Wiki/ITK/MetaIO/Documentation.

Read here rather than with ITK because the format is a dozen lines of text before the voxels, and ITK prints
to the terminal and trusts the sizes of a damaged header.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # as ITK writes and reads it, whatever the platform
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LARGEST_HEADER = 1 << 16
_MOST_FIELDS = 1000


def read_volume(path: Path, series: str | None = None) -> Volume:
    """A scalar or colour volume.

    Of a file with several values per voxel, the one whose number ``series`` is.
    """
    with files.reading(path, "MetaImage"):
        header, data_start = _header(path)
        sizes = [int(size) for size in _required(path, header, "DimSize").split()]
        if len(sizes) != int(header.get("NDims", len(sizes))) or not 2 <= len(sizes) <= 4:
            raise VolumeError(
                f"{path}: NDims {header.get('NDims')} with DimSize {sizes}: 2 to 4 axes are read"
            )
        geometry = _geometry(path, header, sizes)
        channels = int(header.get("ElementNumberOfChannels", 1))
        voxels = _voxels(path, header, sizes, channels, data_start)
        if channels == 1:
            return _as_volume(path, voxels[..., 0], sizes, geometry, series)
        if len(sizes) == 4:
            raise VolumeError(f"{path}: four axes with {channels} values per voxel are not read")
        if channels in (3, 4) and voxels.dtype == np.uint8:
            colour = np.ascontiguousarray(voxels[..., :3]).reshape(*geometry.shape_ijk[::-1], 3)
            return _volume(path, colour, geometry)
        number = files.chosen(path, series, channels, "values per voxel")
        return _volume(
            path, np.ascontiguousarray(voxels[..., number]).reshape(geometry.shape_ijk[::-1]), geometry
        )


def _as_volume(
    path: Path, voxels: NDArray[Any], sizes: list[int], geometry: Geometry, series: str | None
) -> Volume:
    if len(sizes) == 4:
        voxels = voxels[files.chosen(path, series, sizes[3], "volumes (4-D)")]
    return _volume(path, voxels.reshape(geometry.shape_ijk[::-1]), geometry)


def _volume(path: Path, voxels: NDArray[Any], geometry: Geometry) -> Volume:
    return Volume(voxels, geometry, name=path.stem, source=path, metadata={"format": "MetaImage"})


def _header(path: Path) -> tuple[dict[str, str], int]:
    """``key = value`` lines up to ElementDataFile, and where the voxels begin if they follow."""
    header: dict[str, str] = {}
    with path.open("rb") as stream:
        while len(header) < _MOST_FIELDS:
            line = stream.readline(_LARGEST_HEADER)
            key, equals, value = line.decode("ascii").partition("=")
            if not equals:
                raise VolumeError(f"{path}: not a MetaImage: ElementDataFile is missing from its header")
            header[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                return header, stream.tell()
    raise VolumeError(f"{path}: not a MetaImage: more than {_MOST_FIELDS} lines of header")


def _required(path: Path, header: dict[str, str], key: str) -> str:
    if key not in header:
        raise VolumeError(f"{path}: the MetaImage header lacks {key}")
    return header[key]


def _geometry(path: Path, header: dict[str, str], sizes: list[int]) -> Geometry:
    dimensions = len(sizes)

    def numbers(names: tuple[str, ...], default: NDArray[np.float64]) -> NDArray[np.float64]:
        for name in names:
            if name in header:
                values = np.array([float(value) for value in header[name].split()])
                if values.size != default.size:
                    raise VolumeError(f"{path}: {name} has {values.size} numbers instead of {default.size}")
                return values
        return default

    spacing = numbers(("ElementSpacing", "ElementSize"), np.ones(dimensions))
    origin = numbers(("Offset", "Position", "Origin"), np.zeros(dimensions))
    names = ("TransformMatrix", "Rotation", "Orientation")
    # The file lists the direction of one axis after the other, so rows become columns.
    directions = numbers(names, np.eye(dimensions).ravel()).reshape(dimensions, dimensions).T
    matrix = np.eye(4)
    space = min(dimensions, 3)
    matrix[:space, :space] = (directions * spacing)[:space, :space]
    matrix[:space, 3] = origin[:space]
    i, j, k = (*sizes[:3], 1)[:3]
    return Geometry.from_lps(matrix, (i, j, k))


def _voxels(
    path: Path, header: dict[str, str], sizes: list[int], channels: int, data_start: int
) -> NDArray[Any]:
    """(…, J, I, channels) in the order of the file."""
    kind = _required(path, header, "ElementType").upper().removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise VolumeError(f"{path}: voxels of type {kind} are not read")
    if header.get("BinaryData", "True").lower() != "true":
        raise VolumeError(f"{path}: voxels written as text are not read: save them as binary")
    big_endian = (
        header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    )
    dtype = np.dtype((">" if big_endian else "<") + _TYPES[kind])
    compressed = header.get("CompressedData", "False").lower() == "true"
    data_file = header["ElementDataFile"]
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise VolumeError(f"{path}: voxels in several files ({data_file!r}) are not read: join them first")
    local = data_file.upper() == "LOCAL"
    data_path = path if local else path.parent / data_file
    stored = data_path.stat().st_size - (data_start if local else 0)
    ratio = files.DEFLATE_RATIO if compressed else 1.0
    wanted = files.checked_bytes(data_path, [*sizes, channels], dtype.itemsize, stored, ratio)
    skip = int(header.get("HeaderSize", 0))
    with data_path.open("rb") as stream:
        if skip == -1 and not compressed:
            stream.seek(-wanted, 2)
        else:
            stream.seek((data_start if local else 0) + max(skip, 0))
        data = files.read_bytes(data_path, stream, wanted, "zlib" if compressed else None)
    return files.native(data.view(dtype)).reshape(*sizes[::-1], channels)


def count(path: Path) -> int:
    """How many volumes the file holds, from its header alone."""
    with files.reading(path, "MetaImage"):
        header, _ = _header(path)
        sizes = [int(size) for size in _required(path, header, "DimSize").split()]
        channels = int(header.get("ElementNumberOfChannels", 1))
        colour = channels in (3, 4) and header.get("ElementType", "").upper().startswith("MET_UCHAR")
        return sizes[3] if len(sizes) == 4 else 1 if colour else channels
