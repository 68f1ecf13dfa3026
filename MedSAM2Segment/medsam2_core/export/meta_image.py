"""MetaImage label maps (.mha), the format of ITK and of many challenges.

https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation

_TYPES = {"u1": "MET_UCHAR", "u2": "MET_USHORT"}


def write_label_map(segmentation: Segmentation, stream: BinaryIO) -> None:
    """One label a voxel, of overlapping objects the later. Names are not stored: the format has no place."""
    geometry = segmentation.geometry
    directions = np.diag([-1.0, -1.0, 1.0]) @ geometry.directions  # RAS to LPS
    packer = zlib.compressobj(6)
    blocks = []  # compressed label maps are small; their size stands before them in the file
    for k in range(geometry.shape_ijk[2]):
        labels_ji = segmentation.label_slice(k)
        blocks.append(
            packer.compress(np.ascontiguousarray(labels_ji, dtype=labels_ji.dtype.newbyteorder("<")).data)
        )
    blocks.append(packer.flush())
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(sum(map(len, blocks))),
        "TransformMatrix": _numbers(directions.T.ravel()),  # axis by axis
        "Offset": _numbers(geometry.ijk_to_lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(geometry.spacing),
        "DimSize": " ".join(map(str, geometry.shape_ijk)),
        "ElementType": _TYPES[segmentation.label_dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    stream.write("".join(f"{key} = {value}\n" for key, value in fields.items()).encode("ascii"))
    stream.writelines(blocks)


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in values)
