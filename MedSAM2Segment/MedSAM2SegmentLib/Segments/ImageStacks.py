"""Pictures as one volume, a slice for each: the frames of a sequence, or the images of a folder.

Their positions say nothing about each other. Whether their order does, as in a cine, is the user's to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from medsam2_core.errors import VolumeError
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.Editors import LABELMAP, arrayToMatrix, nodesOf
from MedSAM2SegmentLib.Segments.SegmentVoxels import SegmentVoxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # as Slicer places pictures
_ROWS_FROM_BOTTOM = 4  # orientation of TIFF files, as VTK counts them
#: Bytes of a volume made of pictures: all of it is in memory, more than once.
LARGEST = 4 << 30
_IMAGES = "MedSAM2.images"  # attribute of a volume whose slices are images of their own


def sequenceOf(node: Any) -> Any:
    """Return the sequence of several frames that a volume node shows one of; None for other volumes."""
    scene = node.GetScene()
    if scene is None or not node.GetID():
        return None
    for browser in nodesOf(scene, "vtkMRMLSequenceBrowserNode"):
        if browser.IsProxyNodeID(node.GetID()) and browser.GetNumberOfItems() > 1:
            sequence = browser.GetSequenceNode(node)
            return sequence if sequence is not None and sequence.GetNumberOfDataNodes() else None
    return None


def hasPictures(sequence: Any) -> bool:
    """Whether the frames of a sequence are single slices, not volumes."""
    return sequence.GetNthDataNode(0).GetImageData().GetDimensions()[2] == 1


def openFrames(node: Any) -> Any:
    """Return a new volume for a node that shows a frame: of all frames if these are pictures, else of it.

    Raises
    ------
    VolumeError
        ``mixed-frames`` for volumes among pictures; ``pictures-too-large``.
    """
    sequence, matrix = sequenceOf(node), vtk.vtkMatrix4x4()
    if not hasPictures(sequence):
        node.GetIJKToRASMatrix(matrix)
        name = _("{name} frame").format(name=node.GetName())
        copy = _volumeNode(node.GetScene(), _voxelsOf(node), matrix, name)
        copy.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        return copy
    frames = [sequence.GetNthDataNode(n) for n in range(sequence.GetNumberOfDataNodes())]
    frames[0].GetIJKToRASMatrix(matrix)
    images = [_voxelsOf(frame) for frame in frames]
    if any(len(image) != 1 for image in images):
        message = _("the frames of {name!r} are pictures and volumes: take the volumes out")
        raise VolumeError(message.format(name=sequence.GetName()), code="mixed-frames")
    stacked = stack([image[0] for image in images])
    return _volumeNode(node.GetScene(), stacked, matrix, _("{name} frames").format(name=sequence.GetName()))


def openFolder(scene: Any, folder: str | Path) -> tuple[Any, dict[str, str]]:
    """Return a new volume of the pictures in a folder, in order of their names; and what was left out, and
    why.

    Raises
    ------
    VolumeError
        ``no-images``, ``pictures-too-large``.
    """
    folder = Path(folder)
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES]
    except OSError:  # no folder, or one that may not be read
        found = []
    images: list[NDArray[Any]] = []
    bad = {}
    for path in sorted(found, key=lambda path: _natural(path.name)):
        try:
            images.append(_read(path))
        except VolumeError as error:
            bad[path.name] = str(error)
        _checkSize(sum(image.nbytes for image in images))
    if not images:
        message = _(
            "{folder} has no picture that can be read: choose a folder of PNG, JPEG, TIFF or BMP files"
        )
        raise VolumeError(message.format(folder=folder), code="no-images", folder=str(folder))
    node = _volumeNode(scene, stack(images), arrayToMatrix(_TO_RAS), folder.name)
    node.SetAttribute(_IMAGES, "1")
    return node, bad


def areImages(node: Any) -> bool:
    """Whether a volume node, or None, was opened as images of their own."""
    return node is not None and node.GetAttribute(_IMAGES) == "1"


def stack(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images (H, W) or (H, W, 3) as one array (N, H, W) or (N, H, W, 3), smaller ones padded with 0.

    With a colour image among them, all become 8-bit colour. VolumeError ``pictures-too-large``.
    """
    if any(image.ndim == 3 for image in images):
        images = [_coloured(image) for image in images]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    dtype = np.result_type(*(image.dtype for image in images))
    shape = (len(images), height, width, *images[0].shape[2:])
    _checkSize(math.prod(shape) * dtype.itemsize)
    stacked = np.zeros(shape, dtype)
    for n, image in enumerate(images):
        stacked[n, : image.shape[0], : image.shape[1]] = image
    return stacked


def choose(editor: SegmentEditor, volume: Any) -> None:
    """Edit a volume in the Segment Editor: in its segmentation if that is empty, else in a new one."""
    node, segmentation = editor.parameterSetNode(), editor.segmentationNode()
    if segmentation is None or not _isEmpty(segmentation):
        name = _("{name} segmentation").format(name=volume.GetName())
        segmentation = volume.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        segmentation.CreateDefaultDisplayNodes()
        segmentation.GetSegmentation().AddEmptySegment()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if node.GetSegmentationNode() is not segmentation:
        node.SetAndObserveSegmentationNode(segmentation)
        node.SetSelectedSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
    node.SetAndObserveSourceVolumeNode(volume)
    if getattr(slicer, "mrmlScene", None) is volume.GetScene():  # the scene of Slicer's window
        slicer.util.setSliceViewerLayers(background=volume, fit=True)


def _isEmpty(segmentation: Any) -> bool:
    known = segmentation.GetSegmentation()
    if known.GetNumberOfSegments() and known.GetSourceRepresentationName() != LABELMAP:
        return False  # of surfaces, for example
    return not any(map(SegmentVoxels(segmentation, np.eye(4)).hasAny, known.GetSegmentIDs()))


def _natural(name: str) -> list[Any]:
    """Return a key by which "image 2" comes before "image 10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _read(path: Path) -> NDArray[Any]:
    reader = vtk.vtkImageReader2Factory.CreateImageReader2FromExtension(path.suffix.lower())
    if reader is None or not reader.CanReadFile(str(path)):
        raise VolumeError("it is no picture of its kind", code="not-a-picture", path=str(path))
    reader.SetFileName(str(path))
    if reader.IsA("vtkTIFFReader"):  # the others do so anyway
        reader.SetOrientationType(_ROWS_FROM_BOTTOM)
    errors: list[str] = []  # not all of them set an error code, and what they return then is anything
    reader.AddObserver(vtk.vtkCommand.ErrorEvent, lambda _reader, event: errors.append(event))
    reader.Update()
    image = reader.GetOutput()
    scalars = image.GetPointData().GetScalars()
    if errors or reader.GetErrorCode() or scalars is None:
        raise VolumeError("it cannot be read", code="picture-unreadable", path=str(path))
    width, height, pages = image.GetDimensions()
    if pages != 1:
        message = "it has several pages: save each as a picture of its own"
        raise VolumeError(message, code="several-pages", path=str(path), pages=pages)
    return _components(vtk_to_numpy(scalars).reshape(height, width, -1))[::-1]


def _checkSize(size: int) -> None:
    if size > LARGEST:
        message = _("the pictures take more than {count} GB as one volume: open fewer, or smaller ones")
        raise VolumeError(
            message.format(count=LARGEST >> 30), code="pictures-too-large", bytes=size, most=LARGEST
        )


def _components(values: NDArray[Any]) -> NDArray[Any]:
    """Return grey values without their axis, and colour without transparency."""
    return values[..., :3] if values.shape[-1] >= 3 else values[..., 0]


def _coloured(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (255 * (image.astype(np.float64) - low) / max(high - low, 1e-9)).astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def _voxelsOf(node: Any) -> NDArray[Any]:
    """Return (K, J, I) or (K, J, I, 3)."""
    image = node.GetImageData()
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    return _components(scalars.reshape(*image.GetDimensions()[::-1], -1))


def _volumeNode(scene: Any, voxels: NDArray[Any], ijkToRAS: Any, name: str) -> Any:
    kind = "vtkMRMLVectorVolumeNode" if voxels.ndim == 4 else "vtkMRMLScalarVolumeNode"
    node, image = scene.AddNewNodeByClass(kind, name), vtk.vtkImageData()
    image.SetDimensions(*voxels.shape[2::-1])
    flat = np.ascontiguousarray(voxels).reshape(-1, *voxels.shape[3:])
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(ijkToRAS)
    node.CreateDefaultDisplayNodes()
    return node
