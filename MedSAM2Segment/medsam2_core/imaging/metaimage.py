"""MetaImage (.mha, .mhd): https://itk.org/Wiki/ITK/MetaIO/Documentation.

The format is a dozen lines of text before the voxels: see :class:`files.StoredVoxels` for why not with ITK.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    # A "long" has 32 bits, as ITK writes and reads it, whatever the platform.
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_LARGEST_HEADER = 1 << 16
_MOST_FIELDS = 1000


def read_volume(path: Path, series: str | None = None) -> Volume:
    """Read a scalar or colour volume.

    Of a file with several values per voxel, the one whose number ``series`` is.
    """
    with files.reading(path, "MetaImage"):
        header, data_start = _header(path)
        sizes = [int(size) for size in _required(path, header, "DimSize").split()]
        if len(sizes) != int(header.get("NDims", len(sizes))) or not 2 <= len(sizes) <= 4:
            message = f"NDims {header.get('NDims')} with DimSize {sizes}: 2 to 4 axes are read"
            raise files.error(path, message, "unsupported-axes", sizes=sizes)
        geometry = _geometry(path, header, sizes)
        channels = int(header.get("ElementNumberOfChannels", 1))
        voxels = _voxels(path, header, sizes, channels, data_start)
        if channels == 1:
            stored = voxels[..., 0]
            if len(sizes) == 4:
                stored = stored[files.chosen(path, series, sizes[3], "volumes (4-D)")]
            return _volume(path, stored.reshape(geometry.shape_ijk[::-1]), geometry)
        if len(sizes) == 4:
            message = f"four axes with {channels} values per voxel are not read"
            raise files.error(path, message, "unsupported-axes", sizes=sizes)
        if channels in (3, 4) and voxels.dtype == np.uint8:
            colour = np.ascontiguousarray(voxels[..., :3]).reshape(*geometry.shape_ijk[::-1], 3)
            return _volume(path, colour, geometry)
        number = files.chosen(path, series, channels, "values per voxel")
        chosen = np.ascontiguousarray(voxels[..., number]).reshape(geometry.shape_ijk[::-1])
        return _volume(path, chosen, geometry)


def _volume(path: Path, voxels: NDArray[Any], geometry: Geometry) -> Volume:
    return Volume(voxels, geometry, name=path.stem, source=path, metadata={"format": "MetaImage"})


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Read ``key = value`` lines up to ElementDataFile; return also where the voxels begin."""
    header: dict[str, str] = {}
    with path.open("rb") as stream:
        while len(header) < _MOST_FIELDS:
            line = stream.readline(_LARGEST_HEADER)
            key, equals, value = line.decode("ascii").partition("=")
            if not equals:
                message = "not a MetaImage: ElementDataFile is missing from its header"
                raise files.error(path, message, "not-metaimage")
            header[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                return header, stream.tell()
    raise files.error(path, f"not a MetaImage: more than {_MOST_FIELDS} lines of header", "not-metaimage")


def _required(path: Path, header: dict[str, str], key: str) -> str:
    if key not in header:
        raise files.error(path, f"the MetaImage header lacks {key}", "header-incomplete", field=key)
    return header[key]


def _geometry(path: Path, header: dict[str, str], sizes: list[int]) -> Geometry:
    dimensions = len(sizes)

    def numbers(names: tuple[str, ...], default: NDArray[np.float64]) -> NDArray[np.float64]:
        for name in names:
            if name in header:
                values = np.array([float(value) for value in header[name].split()])
                if values.size != default.size:
                    message = f"{name} has {values.size} numbers instead of {default.size}"
                    raise files.error(path, message, "invalid-numbers", field=name)
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
    """Read voxels (…, J, I, channels) in the order of the file."""
    kind = _required(path, header, "ElementType").upper().removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise files.error(path, f"voxels of type {kind} are not read", "unsupported-voxel-type", type=kind)
    if header.get("BinaryData", "True").lower() != "true":
        message = "voxels written as text are not read: save them as binary"
        raise files.error(path, message, "unsupported-encoding")
    big_endian = (
        header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False")).lower() == "true"
    )
    dtype = np.dtype((">" if big_endian else "<") + _TYPES[kind])
    compressed = header.get("CompressedData", "False").lower() == "true"
    data_file = header["ElementDataFile"]
    if data_file.upper().startswith("LIST") or "%" in data_file:
        message = f"voxels in several files ({data_file!r}) are not read: join them first"
        raise files.error(path, message, "voxels-in-several-files")
    local = data_file.upper() == "LOCAL"
    skip = int(header.get("HeaderSize", 0))
    is_at_end = skip == -1 and not compressed
    stored = files.StoredVoxels(
        path if local else path.parent / data_file,
        data_start if local else 0,
        (channels, *sizes),
        dtype,
        "zlib" if compressed else None,
        skip_bytes=-1 if is_at_end else max(skip, 0),
    )
    return stored.read()


def count(path: Path) -> int:
    """Return how many volumes the file holds, from its header alone."""
    with files.reading(path, "MetaImage"):
        header, _ = _header(path)
        sizes = [int(size) for size in _required(path, header, "DimSize").split()]
        channels = int(header.get("ElementNumberOfChannels", 1))
        colour = channels in (3, 4) and header.get("ElementType", "").upper().startswith("MET_UCHAR")
        return sizes[3] if len(sizes) == 4 else 1 if colour else channels
