"""Probabilities as a file, for DICOM SEG of the kind FRACTIONAL and for other programs: NRRD in 8 bits.

::

    type: unsigned char                 a value v is the probability v / 255; from 128 on it is in the mask
    kinds: domain domain domain list    several objects, one after the other; one object: no list
    encoding: gzip
    Probabilities_Version:=1
    Probabilities_Maximum:=255
    Probability0_Name:=Leber            percent-encoded UTF-8, as in URLs: many readers keep ASCII only
    MedSAM2.model:=embedded             what made them; never a path

Voxels are written and read slice by slice, so that memory stays flat.
http://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import numpy as np

from medsam2_core import atomic
from medsam2_core.errors import ExportError
from medsam2_core.export import metadata
from medsam2_core.export.writing import nrrd_grid
from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.probabilities import Probabilities
from medsam2_core.imaging.slice_mask import MAXIMUM, PackedValues

_VERSION = "1"
_TYPES = ("unsigned char", "uchar", "uint8", "uint8_t")
# What stands for itself in a header; space too, but where a reader would strip it.
_PLAIN = " !\"#$&'()*+,/:;<=>?@[]^`{|}"
_MOST_OBJECTS = 65535


def check(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise the ExportError that :func:`write_probabilities` would end in, before the work is done."""
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(".nrrd") or name.endswith(".seg.nrrd") or name == ".nrrd":
        message = f"{path}: probabilities are written as .nrrd (not .seg.nrrd), give such a name"
        raise ExportError(message, code="unknown-format", path=str(path))
    atomic.check_target(path, overwrite=overwrite)


def write_probabilities(probabilities: Probabilities, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write probabilities as NRRD, whole or not at all; returns the path.

    Raises
    ------
    ExportError
        For another ending, no object, an existing file without ``overwrite``, a missing folder, or a disk
        that refuses.
    """
    path = Path(path)
    check(path, overwrite=overwrite)
    if not probabilities.names:
        message = f"{path}: there is no object whose probabilities could be written"
        raise ExportError(message, code="no-segments", path=str(path))
    with atomic.new_file(path, overwrite=overwrite) as stream:
        _write(probabilities, stream)
    return path


def _write(probabilities: Probabilities, stream: BinaryIO) -> None:
    stream.write(("\n".join(_header_lines(probabilities)) + "\n\n").encode("ascii"))
    # No file name and no time in the gzip header: nothing leaks, and equal results are equal files. The least
    # effort: more makes it a fifth smaller in three times the time.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as packed:
        for name in probabilities.names:
            for k in range(probabilities.geometry.shape_ijk[2]):
                packed.write(probabilities.slice_ji(name, k).data)


def _header_lines(probabilities: Probabilities) -> Iterator[str]:
    names = probabilities.names
    # The list runs slowest: a voxel's values side by side would take more than twice the space.
    yield from nrrd_grid(probabilities.geometry, np.dtype(np.uint8), len(names), fastest=False)
    yield f"Probabilities_Version:={_VERSION}"
    yield f"Probabilities_Maximum:={MAXIMUM}"
    for n, name in enumerate(names):
        yield f"Probability{n}_Name:={_escaped(name)}"
    for key, value in metadata.without_paths(dict(probabilities.provenance)).items():
        if key != "prompts" and value is not None:  # they belong to the masks, and can be as large
            text = value if isinstance(value, str) else metadata.to_json(value)
            yield f"{metadata.PREFIX}{quote(key, safe='')}:={_escaped(text)}"


def read_probabilities(path: str | Path) -> Probabilities:
    """Read what :func:`write_probabilities` wrote; slices stay packed until they are asked for.

    ``read_probabilities(path).slice_ji("liver", 40)`` are the values (J, I), 0 to 255, of one slice.

    Raises
    ------
    VolumeError
        The file is not there, is damaged or cut short, or is another kind of NRRD.
    """
    import nrrd

    path = Path(path).expanduser()
    with files.reading(path, "probabilities"), path.open("rb") as stream:
        if stream.read(4) != b"NRRD":
            message = "not a NRRD file: take one that `medsam2 segment` wrote"
            raise files.error(path, message, "not-probabilities")
        stream.seek(0)
        header: dict[str, Any] = dict(nrrd.read_header(stream))
        names = _names(path, header)
        geometry = _grid(path, header)
        stored = path.stat().st_size - stream.tell()
        sizes = [*geometry.shape_ijk, len(names)]
        files.checked_bytes(path, sizes, 1, stored, files.DEFLATE_RATIO)
        return Probabilities(geometry, _slices(path, stream, names, geometry), _provenance(header))


def _names(path: Path, header: dict[str, Any]) -> list[str]:
    """Return the names; VolumeError when this is a NRRD of something else."""
    version = header.get("Probabilities_Version")
    if version is None:
        message = "a NRRD, but not of probabilities: take one that `medsam2 segment --probabilities` wrote"
        raise files.error(path, message, "not-probabilities")
    if str(version) != _VERSION or str(header.get("Probabilities_Maximum")) != str(MAXIMUM):
        message = (
            f"probabilities of version {version} with {header.get('Probabilities_Maximum')} for certainty: "
            f"version {_VERSION} with {MAXIMUM} is read"
        )
        raise files.error(path, message, "unknown-probabilities-version", version=str(version))
    kind, encoding = str(header.get("type")).lower(), str(header.get("encoding")).lower()
    if kind not in _TYPES or encoding not in ("gzip", "gz") or "data file" in header:
        message = (
            f"values of type {header.get('type')!r}, stored as {header.get('encoding')!r}: unsigned char "
            "stored as gzip in the same file is read, as `medsam2 segment` writes it"
        )
        raise files.error(path, message, "unsupported-encoding")
    sizes = np.atleast_1d(header.get("sizes", [])).tolist()
    kinds = [str(one).lower() for one in header.get("kinds", [])]
    if len(sizes) not in (3, 4) or kinds != ["domain"] * 3 + ["list"] * (len(sizes) - 3):
        message = f"axes {sizes} of the kinds {kinds}: i, j, k, objects (list) are read"
        raise files.error(path, message, "unsupported-axes")
    count = int(sizes[3]) if len(sizes) == 4 else 1
    if not 1 <= count <= _MOST_OBJECTS:
        message = f"{count} objects: 1 to {_MOST_OBJECTS} can be"
        raise files.error(path, message, "unsupported-axes", count=count)
    missing = [n for n in range(count) if not str(header.get(f"Probability{n}_Name", ""))]
    if missing or f"Probability{count}_Name" in header:
        what = f"object {missing[0]} has no name" if missing else f"more than {count} objects are named"
        message = f"{what}: the file was changed, write it again"
        raise files.error(path, message, "probabilities-changed-by-others", unnamed=missing)
    names = [unquote(str(header[f"Probability{n}_Name"]), errors="surrogatepass") for n in range(count)]
    if len(set(names)) != count:
        raise files.error(path, f"two objects have the same name: {names}", "duplicate-name", names=names)
    return names


def _grid(path: Path, header: dict[str, Any]) -> Geometry:
    space = str(header.get("space", "")).lower()
    if space not in ("left-posterior-superior", "lps"):
        message = f"space {header.get('space')!r}: left-posterior-superior is read"
        raise files.error(path, message, "unsupported-space")
    i, j, k = (int(size) for size in header["sizes"][:3])
    directions = list(header["space directions"])
    if len(directions) != int(header["dimension"]) or len(directions) != len(header["sizes"]):
        message = f"{len(directions)} space directions do not fit sizes {header['sizes']}"
        raise files.error(path, message, "space-directions-mismatch")
    matrix = np.eye(4)
    for axis, vector in enumerate(directions[:3]):
        matrix[:3, axis] = np.asarray(vector, dtype=np.float64)
    matrix[:3, 3] = np.asarray(header["space origin"], dtype=np.float64)
    return Geometry.from_lps(matrix, (i, j, k))


def _slices(
    path: Path, stream: BinaryIO, names: list[str], geometry: Geometry
) -> dict[str, dict[int, PackedValues]]:
    """Read the slices, each packed as it comes."""
    slices: dict[str, dict[int, PackedValues]] = {}
    width, height, depth = geometry.shape_ijk
    with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
        for name in names:
            slices[name] = {}
            for k in range(depth):
                block = unpacked.read(width * height)
                if len(block) < width * height:
                    message = f"truncated: slice {k} of {depth} of {name!r} is not there"
                    raise files.error(path, message, "truncated", name=name, k=k)
                values_ji = np.frombuffer(block, np.uint8).reshape(height, width)
                slices[name][k] = PackedValues.of(values_ji)
        # Reading on to the end is what compares the checksum.
        if unpacked.read(1):
            message = f"more in it than {len(names)} x {depth} slices: the file was changed"
            raise files.error(path, message, "probabilities-changed-by-others")
    return slices


def _provenance(header: dict[str, Any]) -> dict[str, str]:
    """Return the provenance as text; numbers and lists as JSON."""
    prefix = metadata.PREFIX
    return {
        unquote(key[len(prefix) :]): unquote(str(value), errors="surrogatepass")
        for key, value in header.items()
        if key.startswith(prefix)
    }


def _escaped(text: str) -> str:
    """Return ASCII for one line of a header; ``unquote`` is the inverse."""
    encoded = quote(text, safe=_PLAIN, errors="surrogatepass")
    return re.sub(r"^ +| +$", lambda spaces: "%20" * len(spaces.group()), encoded)
