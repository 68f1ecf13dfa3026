"""Other scans of the scene for the worker: segmentations where they lie in the world; slices as examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import ExportError, PromptError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import parse_window
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.messages import TERMINOLOGY

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.AlgorithmTags import tagOf
from MedSAM2SegmentLib.Segments.Editors import nodesOf, transformToWorld
from MedSAM2SegmentLib.Segments.SegmentationLayers import asLabelmaps, gridOfVolume, layersOf, volumeOf
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_SLICES = 8  # of an object; the worker takes no more
_MOST_IN_ALL = 32


def otherSegmentations(edited: Any) -> tuple[Any, ...]:
    """Return the segmentations of the scene beside the one that is edited, without hidden ones."""
    found = nodesOf(edited.GetScene(), "vtkMRMLSegmentationNode")
    return tuple(one for one in found if one is not edited and not one.GetHideFromEditors())


def segmentationOf(node: Any) -> Segmentation:
    """Return a segmentation where it lies in the world, also under a transform.

    Raises
    ------
    MedSAM2Error
        It has no voxels, or is under a transform that is not linear.
    """
    layers = layersOf(node, None, isWhole=False)
    start = np.array([layers.extent.i0, layers.extent.j0, layers.extent.k0])
    matrix = transformToWorld(node) @ layers.toRAS
    matrix[:3, 3] += matrix[:3, :3] @ start
    geometry = Geometry(matrix, layers.extent.shape[::-1])
    segments, names = [], _uniqueNames(layers.known)
    for layer in layers.layers:
        i, j, k = np.array([layer.extent.i0, layer.extent.j0, layer.extent.k0]) - start
        for value, segmentID in layer.segmentIDs.items():
            segment = layers.known.GetSegment(segmentID)
            segments.append(
                Segment.from_part(
                    names[segmentID], segment.GetColor(), layer.values == value, (int(i), int(j), int(k)),
                    geometry.shape_ijk, None, {TERMINOLOGY: tagOf(segment, TERMINOLOGY)},
                )
            )  # fmt: skip
    return Segmentation(geometry, tuple(segments))


def segmentationOrNone(node: Any, grid: Geometry) -> Segmentation:
    """Return :func:`segmentationOf`, or one without segments where there are no voxels."""
    try:
        return segmentationOf(node)
    except ExportError as error:
        if error.code != "segmentation-empty":
            raise
        return Segmentation(grid, ())


def exampleOf(node: Any, plane: str) -> tuple[Volume, Segmentation, str]:
    """Return slices of the volume a segmentation was made on, spread through its objects, and the window.

    Raises
    ------
    MedSAM2Error
        The segmentation has no volume, or no voxels; or the volume cannot be used.
    """
    volumeNode = volumeOf(node)
    if volumeNode is None:
        message = _("{name!r} lies on no volume: choose its source volume first")
        raise PromptError(message.format(name=node.GetName()), code="example-without-volume")
    volume = VolumeAdapter(volumeNode).volume
    along = (
        2 - AxisStack(volume, plane).array_axis
    )  # the axis of (K, J, I) that the slices follow one another on
    names = _uniqueNames(node.GetSegmentation())
    most = max(1, min(_MOST_SLICES, _MOST_IN_ALL // max(len(names), 1)))
    chosen: set[int] = set()
    packed: dict[str, NDArray[np.uint8]] = {}  # bits: resampled once, and many whole masks fit
    for segmentID, mask_kji in _masks(node, volumeNode):
        slices = np.moveaxis(mask_kji, along, 0)
        chosen.update(_spread(np.flatnonzero(slices.any(axis=(1, 2))), most))
        packed[segmentID] = np.packbits(slices, axis=2)
    if not chosen:
        message = _("{name!r} shows nothing on {volume!r}: choose another segmentation")
        message = message.format(name=node.GetName(), volume=volumeNode.GetName())
        raise PromptError(message, code="empty-examples")
    kept = sorted(chosen)
    voxels = np.ascontiguousarray(np.take(volume.voxels_kji, kept, axis=along))
    grid = Geometry(volume.geometry.ijk_to_ras, voxels.shape[2::-1])
    segments = []
    width = np.moveaxis(volume.voxels_kji, along, 0).shape[2]
    for segmentID, bits in packed.items():
        segment = node.GetSegmentation().GetSegment(segmentID)
        tags = {TERMINOLOGY: tagOf(segment, TERMINOLOGY)}
        part = np.moveaxis(np.unpackbits(bits[kept], axis=2, count=width).astype(bool), 0, along)
        segments.append(Segment(names[segmentID], segment.GetColor(), part, None, tags))
    window = parse_window("auto", volume)
    thin = Volume(voxels, grid, modality=volume.modality, name="example")
    return thin, Segmentation(grid, tuple(segments)), f"{window.width:g},{window.level:g}"


def _masks(node: Any, volumeNode: Any) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield every segment's ID, and its mask (K, J, I) on the grid of a volume."""
    ijkToRAS, extent = gridOfVolume(volumeNode)
    toOwn = np.linalg.inv(transformToWorld(node)) @ transformToWorld(volumeNode)
    voxels = SegmentVoxels(asLabelmaps(node, volumeNode), toOwn @ ijkToRAS)
    for segmentID in node.GetSegmentation().GetSegmentIDs():
        yield segmentID, voxels.mask(segmentID, extent)


def _spread(numbers: NDArray[np.intp], most: int) -> list[int]:
    """Return at most so many of the numbers, evenly spread."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [int(numbers[place]) for place in places]


def _uniqueNames(known: Any) -> dict[str, str]:
    """Return the names of segments by ID; of equal ones the second gets a number."""
    names: dict[str, str] = {}
    for segmentID in known.GetSegmentIDs():
        base = name = known.GetSegment(segmentID).GetName() or segmentID
        number = 1
        while name in names.values():
            number += 1
            name = f"{base} {number}"
        names[segmentID] = name
    return names
