"""Segmentations as they are, on a grid of their own: placed relative to their volume, and nothing cut off.

Whoever writes the file in the end decides, and reports, what becomes of them on another grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import ExportError, GeometryError, Note
from medsam2_core.imaging.segmentation import bounding_box
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM2SegmentLib.Segments.Editors import (
    LABELMAP,
    arrayToMatrix,
    imageToWorld,
    matrixToArray,
    ownGrid,
    transformToWorld,
    warpError,
)
from MedSAM2SegmentLib.Segments.VoxelSets import NOWHERE, Extent, latticeShift, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_MOST_LOST, _REPORTED = 0.05, 0.0005  # parts of a segment


@dataclass
class Layer:
    """Segments that share a labelmap.

    Attributes
    ----------
    values : (K, J, I) whole numbers
        Values of ``extent``; outside there are no segments.
    segmentIDs
        By label value.
    """

    values: NDArray[Any]
    extent: Extent
    segmentIDs: dict[int, str]


@dataclass
class Layers:
    """All segments of a segmentation on one lattice.

    Attributes
    ----------
    toRAS : (4, 4)
        From voxel indices of the extents to the own RAS of the volume; without one, of the segmentation.
    extent
        What is written: it holds every voxel of every segment.
    empty
        Segments without a voxel.
    notes
        What the user should know.
    known
        The ``vtkSegmentation`` that the segments are of.
    """

    toRAS: NDArray[np.float64]
    extent: Extent
    layers: list[Layer]
    empty: list[str]
    notes: tuple[Note, ...]
    known: Any


@dataclass
class _Labelmap:
    """A labelmap of the scene, ``filled`` where it has voxels, on its own lattice (4, 4) in RAS."""

    values: NDArray[Any]
    extent: Extent
    filled: Extent
    lattice: NDArray[np.float64]
    segmentIDs: dict[int, str]


def layersOf(segmentation: Any, volume: Any, *, isWhole: bool) -> Layers:
    """Return a segmentation with all of its segments on one lattice.

    That is the segmentation's reference geometry, if all lie on it; else their own, if they have it in
    common; else the finest.

    Parameters
    ----------
    volume
        The volume whose RAS is used: transforms that both are under are left out, linear or not. None: the
        RAS of the segmentation.
    isWhole
        Whether the extent is that of the whole grid, not just what is filled.

    Raises
    ------
    ExportError
        There is no voxel, or segments would lose too much on a lattice with the others.
    GeometryError
        The transform between the two is not linear, or singular; or there is no grid.
    """
    toVolume = np.eye(4) if volume is None else _toVolume(segmentation, volume)
    source = asLabelmaps(segmentation, volume)
    known, grid = source.GetSegmentation(), ownGrid(source)
    found, empty = _labelmapsOf(known)
    if not found:
        raise ExportError(
            f"{segmentation.GetName()!r} is empty, none of its segments has a voxel: segment something first",
            code="segmentation-empty",
            segmentation=segmentation.GetName(),
        )
    lattice, whole = _common(found, grid)
    layers, notes = [], []
    for one in found:
        steps = _steps(one, lattice)
        if steps is None:
            layer, changed = _resampled(one, lattice, known)
            notes += changed
        else:
            values = one.values[one.filled.within(one.extent)]
            layer = Layer(values, _moved(one.filled, steps), one.segmentIDs)
        layers.append(layer)
    extent = whole if isWhole else NOWHERE
    for layer in layers:
        extent = extent.union(layer.extent)
    return Layers(toVolume @ lattice, extent, layers, empty, tuple(notes), known)


def _toVolume(segmentation: Any, volume: Any) -> NDArray[np.float64]:
    """Return (4, 4) from the segmentation's own RAS to the volume's; GeometryError when it is no matrix."""
    transforms = segmentation.GetParentTransformNode(), volume.GetParentTransformNode()
    if transforms[0] is transforms[1]:
        return np.eye(4)
    matrix, between = vtk.vtkMatrix4x4(), slicer.vtkMRMLTransformNode
    for node, transform in zip((segmentation, volume), transforms, strict=True):
        isWarped = transform is not None and not transform.IsTransformToWorldLinear()
        if isWarped and not between.GetMatrixTransformBetweenNodes(*transforms, matrix):
            raise warpError(node, transform)
    isLinear = between.GetMatrixTransformBetweenNodes(*transforms, matrix)
    array = matrixToArray(matrix)
    if not isLinear or not np.isfinite(array).all() or abs(np.linalg.det(array[:3, :3])) < 1e-9:
        raise GeometryError(
            f"the transform between {segmentation.GetName()!r} and {volume.GetName()!r} flattens space: "
            "take them out of it",
            code="transform-singular",
        )
    return array


def _labelmapsOf(known: Any) -> tuple[list[_Labelmap], list[str]]:
    """Return the labelmaps with voxels, and the segments that have none."""
    found: dict[Any, _Labelmap | None] = {}
    empty = []
    for segmentID in known.GetSegmentIDs():
        segment = known.GetSegment(segmentID)
        labelmap = segment.GetRepresentation(LABELMAP)
        if labelmap not in found:
            found[labelmap] = _labelmapOf(labelmap)
        one = found[labelmap]
        if one is None:
            empty.append(segmentID)
        else:
            one.segmentIDs[int(segment.GetLabelValue())] = segmentID
    return [one for one in found.values() if one is not None], empty


def _labelmapOf(labelmap: Any) -> _Labelmap | None:
    extent = Extent(*labelmap.GetExtent()) if labelmap is not None else NOWHERE
    scalars = None if extent.isEmpty else labelmap.GetPointData().GetScalars()
    if scalars is None:
        return None
    values = vtk_to_numpy(scalars).reshape(extent.shape)
    if values.dtype.kind not in "ui":
        values = values.astype(np.int32)
    (k0, j0, i0), (k1, j1, i1) = bounding_box(values)
    if k1 == 0:
        return None
    i, j, k = extent.i0, extent.j0, extent.k0
    filled = Extent(i + i0, i + i1 - 1, j + j0, j + j1 - 1, k + k0, k + k1 - 1)
    return _Labelmap(values, extent, filled, imageToWorld(labelmap), {})


def _common(
    found: list[_Labelmap], grid: tuple[NDArray[np.float64], Extent] | None
) -> tuple[NDArray[np.float64], Extent]:
    """Return the lattice (4, 4) for all of them, and the extent of the whole grid."""
    if grid is not None and all(_steps(one, grid[0]) is not None for one in found):
        return grid
    first = found[0].lattice
    steps = [_steps(one, first) for one in found]
    if all(one is not None for one in steps):
        whole = NOWHERE
        for one, by in zip(found, steps, strict=True):
            whole = whole.union(_moved(one.extent, by))
        return first, whole
    lattices = [one.lattice for one in found]
    if grid is not None:
        lattices.insert(0, grid[0])
    sizes = [round(abs(float(np.linalg.det(one[:3, :3]))), 9) for one in lattices]
    finest = lattices[sizes.index(min(sizes))]
    return finest, grid[1] if grid is not None and finest is grid[0] else NOWHERE


def _steps(one: _Labelmap, lattice: NDArray[np.float64]) -> tuple[int, int, int] | None:
    """Return by how many voxels the indices of a labelmap are shifted on a lattice; None if not on it."""
    return latticeShift(np.linalg.inv(lattice) @ one.lattice, one.extent)


def _moved(box: Extent, by: tuple[int, int, int]) -> Extent:
    return Extent(*(end + by[place // 2] for place, end in enumerate(box)))


def _resampled(one: _Labelmap, lattice: NDArray[np.float64], known: Any) -> tuple[Layer, list[Note]]:
    """Return a labelmap on another lattice, with messages. ExportError when too much would be lost."""
    toLattice = np.linalg.inv(lattice) @ one.lattice
    box = one.filled.onLattice(toLattice)
    values = nearest(one.values, one.extent, np.linalg.inv(toLattice), box)
    larger = abs(float(np.linalg.det(toLattice[:3, :3])))  # voxels of the lattice in one of its own
    notes = []
    for value, segmentID in one.segmentIDs.items():
        before = np.count_nonzero(one.values == value) * larger
        if not before:
            continue
        off = abs(np.count_nonzero(values == value) - before) / before
        name = known.GetSegment(segmentID).GetName()
        if off > _MOST_LOST:
            raise ExportError(
                f"{name!r} lies on a grid of its own, and {off:.1%} of it would change on the grid of the "
                "other segments: move it to a segmentation of its own, and export that",
                code="segment-on-other-grid",
                segment=name,
                lost=off,
            )
        if off > _REPORTED:
            message = f"{name!r} lay on another grid than the rest: {off:.1%} of it changed"
            notes.append(Note.warning("resampling-loss", message, segment=name, lost=off))
    return Layer(values, box, one.segmentIDs), notes


# Nodes ------------------------------------------------------------------------------------------------------


def volumeOf(segmentation: Any) -> Any:
    """Return the volume a segmentation was made on, if it is there and has voxels; None otherwise."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    volume = segmentation.GetNodeReference(role)
    return volume if volume is not None and volume.GetImageData() is not None else None


def gridOfVolume(volume: Any) -> tuple[NDArray[np.float64], Extent]:
    """Return (4, 4) from indices to the own RAS of a volume, and the extent of its indices."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    width, height, depth = volume.GetImageData().GetDimensions()
    return matrixToArray(matrix), Extent(0, width - 1, 0, height - 1, 0, depth - 1)


def asLabelmaps(segmentation: Any, volume: Any) -> Any:
    """Return the node itself, or a copy outside the scene if segments are kept as surfaces, for example.

    Without a grid of its own, the copy has that of the volume. GeometryError under a transform that warps.
    """
    known = segmentation.GetSegmentation()
    if all(known.GetSegment(one).GetRepresentation(LABELMAP) is not None for one in known.GetSegmentIDs()):
        return segmentation
    copy = slicer.vtkMRMLSegmentationNode()
    copy.SetName(segmentation.GetName())
    copy.GetSegmentation().DeepCopy(known)
    if volume is not None and ownGrid(copy) is None:
        ijkToRAS, grid = gridOfVolume(volume)
        toOwn = np.linalg.inv(transformToWorld(segmentation)) @ transformToWorld(volume)
        setGrid(copy, grid, toOwn @ ijkToRAS)
    copy.GetSegmentation().CreateRepresentation(LABELMAP)
    return copy


def setGrid(node: Any, grid: Extent, ijkToRAS: NDArray[np.float64]) -> None:
    """Set the reference geometry of a segmentation node."""
    image, converter = slicer.vtkOrientedImageData(), slicer.vtkSegmentationConverter
    image.SetExtent(*grid)
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(ijkToRAS))
    name = converter.GetReferenceImageGeometryParameterName()
    node.GetSegmentation().SetConversionParameter(name, converter.SerializeImageGeometry(image))


def writeNode(storage: Any, node: Any, path: Path, code: str = "node-not-written") -> None:
    """Write a node with a storage node outside the scene, which keeps its own; ExportError on failure."""
    storage.SetFileName(str(path))
    storage.SetUseCompression(False)
    try:
        reason = "" if storage.WriteData(node) else "is the disk full?"
    except (RuntimeError, ValueError) as error:
        reason = str(error)
    if reason:
        message = f"{node.GetName()!r} could not be written to {path}: {reason}"
        raise ExportError(message, code=code, name=node.GetName(), folder=str(path.parent))
