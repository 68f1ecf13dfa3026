"""Segmentations as files: ``.seg.nrrd``, and label maps as NRRD, NIfTI, MetaImage and PNG.

The name of the file decides the format. Voxels are written slice by slice, so that memory stays flat; pynrrd,
nibabel and SimpleITK would each take an array of the whole grid (and pynrrd writes ASCII only, which loses
the letters of many names).

http://teem.sourceforge.net/nrrd/format.html,
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html,
https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note
from medsam2_core.export import metadata
from medsam2_core.imaging.terminology import tags_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation

_NRRD_TYPES = {"u1": "unsigned char", "u2": "unsigned short"}
_METAIMAGE_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT"}
_NIFTI_SCANNER = 1  # "scanner anatomical coordinates"
_NIFTI_DESCRIPTION = 80  # bytes


@dataclass(frozen=True)
class Written:
    """The file that was written, and what the user should know about it."""

    path: Path
    notes: tuple[Note, ...] = ()


def write(segmentation: Segmentation, path: str | Path, *, overwrite: bool = False) -> Written:
    """Write a segmentation, in the format its name asks for, whole or not at all.

    ``.seg.nrrd`` keeps everything. ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha`` and ``.png`` hold one label a
    voxel (1 for the first segment and so on): where segments overlap the later one is stored, and a note says
    how many voxels that were. A PNG of a single segment is black and white.

    Raises
    ------
    ExportError
        For an unknown suffix, more than one slice in a PNG, an existing file without ``overwrite``, a missing
        folder, or a disk that refuses.
    """
    path = Path(path)
    check(path, segmentation.geometry, overwrite=overwrite)
    if not segmentation.segments:
        raise ExportError(f"{path}: there is no segment to write", code="no-segments", path=str(path))
    suffix = suffix_of(path)
    with atomic.new_file(path, overwrite=overwrite) as stream:
        _WRITERS[suffix](segmentation, stream)
    return Written(path, tuple(_notes(segmentation, suffix)))


def check(path: str | Path, geometry: Geometry, *, overwrite: bool = False) -> None:
    """Raise the ExportError that :func:`write` would end in, before the work is done."""
    path = Path(path)
    if suffix_of(path) == ".png":
        _check_one_slice(geometry)
    atomic.check_target(path, overwrite=overwrite)


def suffix_of(path: str | Path) -> str:
    """Return the suffix that decides the format, in lower case; ExportError lists the known ones."""
    name = Path(path).name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            return suffix
    message = f"{path}: unknown format, the name must end with one of {', '.join(SUFFIXES)}"
    raise ExportError(message, code="unknown-format", path=str(path), suffixes=list(SUFFIXES))


def _notes(segmentation: Segmentation, suffix: str) -> Iterator[Note]:
    if suffix == ".seg.nrrd":
        return
    for earlier, later, count in segmentation.overlaps():
        yield Note.warning(
            "overlap-not-stored",
            f"{count} voxels belong to both {earlier.name!r} and {later.name!r} and are stored as "
            f"{later.name!r}: a label map holds one label a voxel, .seg.nrrd keeps both",
            voxels=count,
            segments=[earlier.name, later.name],
        )
    if suffix in (".nii", ".nii.gz") and segmentation.geometry.is_sheared:
        yield Note.warning(
            "sheared-nifti",
            "the voxel axes are not at right angles (gantry tilt): the NIfTI keeps this, but programs built "
            "on ITK refuse it or move its voxels; they read .seg.nrrd, .nrrd and .mha correctly",
        )


def _little_endian(labels: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(labels, dtype=labels.dtype.newbyteorder("<")).data


def _gzipped(stream: BinaryIO) -> gzip.GzipFile:
    """Return a compressed stream without file name and time: nothing leaks, equal results are equal files."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0)


# NRRD -------------------------------------------------------------------------------------------------------


def _write_seg_nrrd(segmentation: Segmentation, stream: BinaryIO) -> None:
    """Write every segment whole, overlapping ones in layers, for 3D Slicer and slicerio."""
    layers = segmentation.layers()
    _write_nrrd(segmentation, stream, layers, max(layers, default=0) + 1)


def _write_nrrd_label_map(segmentation: Segmentation, stream: BinaryIO) -> None:
    """Write one label a voxel; names and the rest are in the header all the same."""
    _write_nrrd(segmentation, stream, (0,) * len(segmentation), 1)


def _write_nrrd(segmentation: Segmentation, stream: BinaryIO, layers: tuple[int, ...], count: int) -> None:
    grid = nrrd_grid(segmentation.geometry, segmentation.label_dtype, count)
    lines = [*grid, *_slicer_fields(segmentation, layers)]
    stream.write(("\n".join(lines) + "\n\n").encode("utf-8", "replace"))
    with _gzipped(stream) as packed:
        for k in range(segmentation.geometry.shape_ijk[2]):
            slices = [
                segmentation.label_slice(k, [n for n, on in enumerate(layers) if on == layer])
                for layer in range(count)
            ]
            # The layer runs fastest.
            packed.write(_little_endian(slices[0] if count == 1 else np.stack(slices, axis=-1)))


def nrrd_grid(
    geometry: Geometry, dtype: np.dtype[Any], count: int = 1, *, fastest: bool = True
) -> Iterator[str]:
    """Yield the lines of a NRRD header that describe the grid; ``count`` values a voxel run fastest or
    slowest."""
    to_lps = geometry.ijk_to_lps
    axes = [(str(size), nrrd_vector(to_lps[:3, n]), "domain") for n, size in enumerate(geometry.shape_ijk)]
    if count > 1:
        axes.insert(0 if fastest else 3, (str(count), "none", "list"))
    sizes, directions, kinds = (" ".join(one) for one in zip(*axes, strict=True))
    yield "NRRD0004"
    yield "# Complete NRRD file format specification at:"
    yield "# http://teem.sourceforge.net/nrrd/format.html"
    yield f"type: {_NRRD_TYPES[dtype.str[1:]]}"
    yield f"dimension: {len(axes)}"
    yield "space: left-posterior-superior"
    yield f"sizes: {sizes}"
    yield f"space directions: {directions}"
    yield f"kinds: {kinds}"
    if dtype.itemsize > 1:
        yield "endian: little"
    yield "encoding: gzip"
    yield f"space origin: {nrrd_vector(to_lps[:3, 3])}"


def _slicer_fields(segmentation: Segmentation, layers: tuple[int, ...]) -> Iterator[str]:
    # 3D Slicer cuts all segments of a layer to the extent of its first one, so each gets the whole grid.
    extent = " ".join(f"0 {size - 1}" for size in segmentation.geometry.shape_ijk)
    for n, (segment, layer) in enumerate(zip(segmentation, layers, strict=True)):
        fields = {
            "Color": " ".join(f"{part:.6g}" for part in segment.colour_rgb),
            "ColorAutoGenerated": "0",
            "Extent": extent,
            "ID": f"Segment_{n + 1}",
            "LabelValue": str(n + 1),
            "Layer": str(layer),
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Tags": tags_text(metadata.tags_of(segmentation, segment)),
        }
        yield from (f"Segment{n}_{key}:={_nrrd_escaped(value)}" for key, value in fields.items())
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield f"Segmentation_ConversionParameters:={_reference_geometry(segmentation.geometry)}"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"  # for 3D Slicer up to 5.2
    yield "Segmentation_SourceRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"


def _reference_geometry(geometry: Geometry) -> str:
    """Return the source's grid as 3D Slicer keeps it: a RAS matrix by rows and the extent."""
    numbers = [f"{value:.17g}" for value in geometry.ijk_to_ras.ravel()]
    numbers += [str(end) for size in geometry.shape_ijk for end in (0, size - 1)]
    return f"Reference image geometry|{';'.join(numbers)};|Geometry of the segmented volume.&"


def nrrd_vector(values: NDArray[np.float64]) -> str:
    """Return a vector as a NRRD header has it."""
    return "(" + ",".join(f"{value:.17g}" for value in values) + ")"


def _nrrd_escaped(text: str) -> str:
    """Return text as one line of a NRRD header: with backslashes and line breaks escaped."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", " ").replace("\0", " ")


# NIfTI ------------------------------------------------------------------------------------------------------


def _write_nifti(segmentation: Segmentation, stream: BinaryIO) -> None:
    """Write NIfTI-1; names and the rest become a comment extension."""
    header = _nifti_header(segmentation)
    header.write_to(stream)
    stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
    for k in range(segmentation.geometry.shape_ijk[2]):
        stream.write(_little_endian(segmentation.label_slice(k)))


def _write_packed_nifti(segmentation: Segmentation, stream: BinaryIO) -> None:
    with _gzipped(stream) as packed:
        _write_nifti(segmentation, packed)  # type: ignore[arg-type]


def _nifti_header(segmentation: Segmentation) -> Any:
    """Return the header. The sform holds any affine, shear included; a qform that cannot is left out."""
    import nibabel
    from nibabel.nifti1 import Nifti1Extension

    geometry = segmentation.geometry
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(segmentation.label_dtype)
    header.set_data_shape(geometry.shape_ijk)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(geometry.ijk_to_ras, code=_NIFTI_SCANNER)
    if geometry.is_sheared:
        header.set_zooms(geometry.spacing)
    else:
        header.set_qform(geometry.ijk_to_ras, code=_NIFTI_SCANNER)
    header.set_intent("label")
    header.set_slope_inter(1, 0)  # stored values are the labels
    names = "; ".join(f"{n} {name}" for n, name in enumerate(segmentation.names, start=1))
    header["descrip"] = f"{metadata.SOFTWARE}: {names}".encode("ascii", "replace")[:_NIFTI_DESCRIPTION]
    comment = metadata.to_json(metadata.description(segmentation)).encode("utf-8", "replace")
    header.extensions.append(Nifti1Extension("comment", comment))
    return header


# MetaImage --------------------------------------------------------------------------------------------------


def _write_metaimage(segmentation: Segmentation, stream: BinaryIO) -> None:
    """Write MetaImage. Names are not stored: the format has no place for them."""
    geometry = segmentation.geometry
    directions = np.diag([-1.0, -1.0, 1.0]) @ geometry.directions  # RAS to LPS
    packer = zlib.compressobj(6)
    # Compressed label maps are small; their size stands before them in the file.
    blocks = [
        packer.compress(_little_endian(segmentation.label_slice(k))) for k in range(geometry.shape_ijk[2])
    ]
    blocks.append(packer.flush())
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(sum(map(len, blocks))),
        "TransformMatrix": _metaimage_numbers(directions.T.ravel()),  # axis by axis
        "Offset": _metaimage_numbers(geometry.ijk_to_lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _metaimage_numbers(geometry.spacing),
        "DimSize": " ".join(map(str, geometry.shape_ijk)),
        "ElementType": _METAIMAGE_TYPES[segmentation.label_dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    stream.write("".join(f"{key} = {value}\n" for key, value in fields.items()).encode("ascii"))
    stream.writelines(blocks)


def _metaimage_numbers(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.17g}" for value in values)


# PNG --------------------------------------------------------------------------------------------------------


def _check_one_slice(geometry: Geometry) -> None:
    if geometry.shape_ijk[2] != 1:
        message = f"{geometry.shape_ijk[2]} slices do not fit a PNG: use .seg.nrrd, .nii.gz, .nrrd or .mha"
        raise ExportError(message, code="png-needs-one-slice", slices=geometry.shape_ijk[2])


def _write_png(segmentation: Segmentation, stream: BinaryIO) -> None:
    """Write one segment as black and white (0, 255); several as label values with a palette of colours.

    Reading the latter as an array gives label values, as most labelled data sets have them. With more than
    255 segments it is 16-bit grey.
    """
    from PIL import Image, PngImagePlugin

    labels_ji = segmentation.label_slice(0)
    if len(segmentation) <= 1:
        image = Image.fromarray((labels_ji != 0).astype(np.uint8) * np.uint8(255))
    else:
        image = Image.fromarray(labels_ji)
        if labels_ji.dtype == np.uint8:
            colours = [(0.0, 0.0, 0.0), *(segment.colour_rgb for segment in segmentation)]
            image.putpalette([round(part * 255) for colour in colours for part in colour])
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", metadata.SOFTWARE)
    text.add_itxt("Labels", metadata.to_json(metadata.description(segmentation)))
    image.save(stream, format="PNG", pnginfo=text, optimize=True)


# The first suffix that fits counts.
_WRITERS: dict[str, Callable[[Segmentation, BinaryIO], None]] = {
    ".seg.nrrd": _write_seg_nrrd,
    ".nii.gz": _write_packed_nifti,
    ".nii": _write_nifti,
    ".nrrd": _write_nrrd_label_map,
    ".mha": _write_metaimage,
    ".png": _write_png,
}

#: File name suffixes that can be written.
SUFFIXES = tuple(_WRITERS)
