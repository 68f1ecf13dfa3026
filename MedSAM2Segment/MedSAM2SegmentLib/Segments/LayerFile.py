"""Segmentations written as ``.seg.nrrd`` layer by layer, as fast as the disk allows.

Slicer's own writer scans all voxels of a layer once for every segment on it. Only Slicer knows how it writes
names, colours and tags: so it writes a header for copies of one voxel, from which these lines are taken.

http://teem.sourceforge.net/nrrd/format.html,
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk

from MedSAM2SegmentLib.Segments.AlgorithmTags import BEFORE
from MedSAM2SegmentLib.Segments.Editors import LABELMAP
from MedSAM2SegmentLib.Segments.SegmentationLayers import Layers, writeNode

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {
    **{"u1": "unsigned char", "u2": "unsigned short", "u4": "unsigned int", "u8": "unsigned long long int"},
    **{"i1": "signed char", "i2": "short", "i4": "int", "i8": "long long int"},
}
_OF_SEGMENTS = re.compile(rb"Segment\d+_(?!Extent:|Layer:|LabelValue:)")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def writeLayers(layers: Layers, name: str, path: Path) -> None:
    """Write a segmentation.

    Raises
    ------
    OSError, ExportError
        The disk, or Slicer, refuses.
    """
    order = list(layers.known.GetSegmentIDs())
    described = _described(layers.known, order, name, path)
    dtype = np.result_type(*(layer.values.dtype for layer in layers.layers)).newbyteorder("<")
    marks = _marks(layers)
    lines = [line.encode() for line in _grid(layers, dtype)]
    lines += described
    size = " ".join(f"0 {length - 1}" for length in layers.extent.shape[::-1])
    for number, segmentID in enumerate(order):
        layer, value = marks[segmentID]
        for field, text in (("Extent", size), ("LabelValue", value), ("Layer", layer)):
            lines.append(f"Segment{number}_{field}:={text}".encode())
    lines += [b"Segmentation_SourceRepresentation:=Binary labelmap"]
    lines += [b"Segmentation_ContainedRepresentationNames:=Binary labelmap|"]
    with path.open("wb") as stream:
        stream.write(b"\n".join(lines) + b"\n\n")
        for plane in _planes(layers, dtype):
            stream.write(plane.data)


def _described(known: Any, order: list[str], name: str, path: Path) -> list[bytes]:
    """Return the lines of a header that Slicer writes about segments, without where they are."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, 0, 0, 0, 0, 0)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    for segmentID in order:
        copy = slicer.vtkSegment()
        copy.DeepCopyMetadata(known.GetSegment(segmentID))
        copy.RemoveTag(BEFORE)  # of use only in the scene
        copy.AddRepresentation(LABELMAP, image)
        node.GetSegmentation().AddSegment(copy, segmentID)
    writeNode(slicer.vtkMRMLSegmentationStorageNode(), node, path, code="segmentation-not-written")
    header = path.read_bytes().partition(b"\n\n")[0]
    return [line for line in header.splitlines() if _OF_SEGMENTS.match(line)]


def _marks(layers: Layers) -> dict[str, tuple[int, int]]:
    """Return, by segment, its layer and label value; an empty one gets a value that no voxel has."""
    marks = {
        segmentID: (number, value)
        for number, layer in enumerate(layers.layers)
        for value, segmentID in layer.segmentIDs.items()
    }
    last = max(0, int(layers.layers[0].values.max()))
    last = max([last, *(value for layer, value in marks.values() if layer == 0)])
    return marks | {segmentID: (0, last + n) for n, segmentID in enumerate(layers.empty, start=1)}


def _grid(layers: Layers, dtype: np.dtype[Any]) -> Iterator[str]:
    extent, count = layers.extent, len(layers.layers)
    first = np.array([extent.i0, extent.j0, extent.k0, 1.0])
    toLPS = _RAS_TO_LPS @ layers.toRAS
    directions = [_vector(toLPS[:3, axis]) for axis in range(3)]
    sizes, kinds = [str(length) for length in extent.shape[::-1]], ["domain"] * 3
    if count > 1:
        directions, sizes, kinds = ["none", *directions], [str(count), *sizes], ["list", *kinds]
    yield "NRRD0004"
    yield f"type: {_TYPES[dtype.str[1:]]}"
    yield f"dimension: {len(sizes)}"
    yield "space: left-posterior-superior"
    yield f"sizes: {' '.join(sizes)}"
    yield f"space directions: {' '.join(directions)}"
    yield f"kinds: {' '.join(kinds)}"
    if dtype.itemsize > 1:
        yield "endian: little"
    yield "encoding: raw"
    yield f"space origin: {_vector((toLPS @ first)[:3])}"


def _planes(layers: Layers, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield the voxels slice by slice, the layer axis fastest."""
    count, (_, height, width) = len(layers.layers), layers.extent.shape
    for plane in layers.extent.planes():
        stored = np.zeros((height, width, count), dtype=dtype)
        for number, layer in enumerate(layers.layers):
            shared = plane.intersection(layer.extent)
            if not shared.isEmpty:
                place = shared.within(plane)[1:]
                stored[(*place, number)] = layer.values[shared.within(layer.extent)][0]
        yield stored


def _vector(values: NDArray[np.float64]) -> str:
    return "(" + ",".join(f"{value:.17g}" for value in values) + ")"
