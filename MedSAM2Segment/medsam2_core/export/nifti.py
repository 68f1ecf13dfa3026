"""NIfTI-1 label maps, with the names of the labels inside.

Slices are streamed, so memory stays flat. The header's matrix is the sform, which holds any affine, shear
included; a qform that cannot say the same is left out rather than wrong.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medsam2_core.export import metadata

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation

_SCANNER = 1  # "scanner anatomical coordinates"
_LONGEST = 80  # bytes of the header's description


def write_label_map(segmentation: Segmentation, stream: BinaryIO) -> None:
    """One label a voxel, of overlapping objects the later; names and the rest as a comment extension."""
    header = _header(segmentation)
    header.write_to(stream)
    stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
    for k in range(segmentation.geometry.shape_ijk[2]):
        labels_ji = segmentation.label_slice(k)
        stream.write(np.ascontiguousarray(labels_ji, dtype=labels_ji.dtype.newbyteorder("<")).data)


def write_packed_label_map(segmentation: Segmentation, stream: BinaryIO) -> None:
    """The same, gzip-compressed."""
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0) as packed:
        write_label_map(segmentation, packed)  # type: ignore[arg-type]


def _header(segmentation: Segmentation) -> Any:
    import nibabel
    from nibabel.nifti1 import Nifti1Extension

    geometry = segmentation.geometry
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(segmentation.label_dtype)
    header.set_data_shape(geometry.shape_ijk)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(geometry.ijk_to_ras, code=_SCANNER)
    if geometry.is_sheared:
        header.set_zooms(geometry.spacing)
    else:
        header.set_qform(geometry.ijk_to_ras, code=_SCANNER)
    header.set_intent("label")
    header.set_slope_inter(1, 0)  # stored values are the labels
    names = "; ".join(f"{n} {name}" for n, name in enumerate(segmentation.names, start=1))
    header["descrip"] = f"{metadata.SOFTWARE}: {names}".encode("ascii", "replace")[:_LONGEST]
    comment = metadata.to_json(metadata.description(segmentation)).encode("utf-8", "replace")
    header.extensions.append(Nifti1Extension("comment", comment))
    return header
