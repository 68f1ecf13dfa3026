"""Volumes of all kinds in a scene, transforms over them, and segmentations on them."""

from __future__ import annotations

import itertools

import numpy as np
import slicer
import vtk
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix
from vtk.util.numpy_support import numpy_to_vtk

SHAPE_KJI = (9, 14, 20)

#: Ten of the ways in which i, j, k can run: every axis in every place, flipped and not.
AXIS_ORDERS = ["LPS", "RAS", "LAS", "RPI", "PSL", "AIR", "SLP", "IRA", "PLS", "SAR"]


_KEPT = {}  # the logics that know segmentations and sequences must live as long as their scene


def an_empty_scene():
    """A scene that knows segmentations, as Slicer's own does."""
    scene = slicer.vtkMRMLScene()
    _KEPT[scene] = [slicer.vtkSlicerSegmentationsModuleLogic(), slicer.vtkSlicerSequencesLogic()]
    for logic in _KEPT[scene]:
        logic.SetMRMLScene(scene)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    return scene


def direction_of(codes: str) -> np.ndarray:
    """(3, 3) columns: the RAS directions that i, j, k run to."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    columns = np.zeros((3, 3))
    for column, code in enumerate(codes):
        row, sign = axes[code]
        columns[row, column] = sign
    return columns


def rotation(degrees: tuple[float, float, float] = (20.0, -12.0, 33.0)) -> np.ndarray:
    """(3, 3) of three turns about x, y and z."""
    transform = vtk.vtkTransform()
    for angle, turn in zip(degrees, (transform.RotateX, transform.RotateY, transform.RotateZ), strict=True):
        turn(angle)
    return np.array(
        [[transform.GetMatrix().GetElement(row, column) for column in range(3)] for row in range(3)]
    )


def a_matrix(directions=None, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4) from indices to RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if directions is None else directions) * np.asarray(spacing)
    matrix[:3, 3] = origin
    return matrix


def sheared(matrix: np.ndarray, by: float = 0.35) -> np.ndarray:
    """The same with slices that slide along each other, as from a tilted gantry."""
    shear = np.eye(4)
    shear[1, 2] = by
    return matrix @ shear


def geometries() -> dict[str, np.ndarray]:
    """Matrices (4, 4) from indices to RAS, by name."""
    spacing, origin = (0.8, 1.1, 2.5), (-31.0, 17.5, 102.25)
    lps = direction_of("LPS")
    return {
        "plain": a_matrix(),
        "anisotropic": a_matrix(lps, spacing, origin),
        "flipped": a_matrix(direction_of("RAI"), spacing, origin),
        "coronal": a_matrix(direction_of("LIP"), spacing, origin),
        "oblique": a_matrix(rotation() @ lps, spacing, origin),
        "left-handed": a_matrix(rotation() @ direction_of("RPS"), spacing, origin),
        "sheared": sheared(a_matrix(lps, spacing, origin)),
        "sheared oblique": sheared(a_matrix(rotation((8, 31, -5)) @ lps, spacing, origin)),
    }


def a_picture(shape_kji=SHAPE_KJI, dtype=np.int16) -> np.ndarray:
    """Grey values by which every voxel can be told from the others nearby."""
    k, j, i = np.indices(shape_kji)
    return (100 + 3 * k + 7 * j + 11 * i).astype(dtype)


def a_volume(scene, matrix=None, voxels=None, name="Volume", transform=None):
    """A volume node: scalar, or vector for voxels of (K, J, I, C)."""
    voxels = a_picture() if voxels is None else np.ascontiguousarray(voxels)
    node_class = "vtkMRMLVectorVolumeNode" if voxels.ndim == 4 else "vtkMRMLScalarVolumeNode"
    node = scene.AddNewNodeByClass(node_class, name)
    image = vtk.vtkImageData()
    image.SetDimensions(*voxels.shape[2::-1])
    flat = voxels.reshape(-1, *voxels.shape[3:])
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(arrayToMatrix(np.eye(4) if matrix is None else matrix))
    if transform is not None:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def a_display(node, window=400.0, level=40.0):
    """Show a scalar volume through a window."""
    display = node.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(window, level)
    node.SetAndObserveDisplayNodeID(display.GetID())
    return display


def a_linear_transform(scene, matrix=None, name="Linear"):
    """A transform node that turns, scales and shifts, unless told otherwise."""
    if matrix is None:
        matrix = a_matrix(rotation((-14, 25, 9)), (1.2, 0.9, 1.1), (12.0, -7.0, 31.0))
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(arrayToMatrix(matrix))
    return node


def a_warp(scene, name="Warp"):
    """A transform node that is not linear."""
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    spline = vtk.vtkThinPlateSplineTransform()
    corners = np.array(list(itertools.product((-50.0, 50.0), repeat=3)))
    for points, setter in (
        (corners, spline.SetSourceLandmarks),
        (corners * 1.1 + 3, spline.SetTargetLandmarks),
    ):
        landmarks = vtk.vtkPoints()
        for point in points:
            landmarks.InsertNextPoint(*point)
        setter(landmarks)
    spline.SetBasisToR()
    node.SetAndObserveTransformToParent(spline)
    return node


def a_sequence_proxy(scene, frames: int = 3, pictures=None):
    """A volume node that shows one frame of a sequence: of volumes, or of pictures (H, W) or (H, W, 3)."""
    shown = [a_picture() + n for n in range(frames)] if pictures is None else [one[None] for one in pictures]
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
    for n, voxels in enumerate(shown):
        sequence.SetDataNodeAtValue(a_volume(scene, voxels=voxels, name=f"Frame {n}"), str(n))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Cine browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    proxy = a_volume(scene, voxels=shown[0], name="Cine proxy")
    browser.AddProxyNode(proxy, sequence, False)
    return proxy


def a_segmentation(scene, volume=None, segments=("A",), reference=None, transform=None):
    """A segmentation node with empty segments (IDs are the names).

    ``reference`` is (matrix (4, 4), (K, J, I)) of its own geometry; by default that of the volume.
    """
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    if transform is not None:
        node.SetAndObserveTransformNodeID(transform.GetID())
    if reference is not None:
        set_reference(node, *reference)
    elif volume is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in segments:
        node.GetSegmentation().AddEmptySegment(name, name)
    return node


def set_reference(node, matrix: np.ndarray, shape_kji: tuple[int, int, int]) -> None:
    """Give a segmentation a geometry of its own."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, shape_kji[2] - 1, 0, shape_kji[1] - 1, 0, shape_kji[0] - 1)
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(matrix))
    geometry = slicer.vtkSegmentationConverter.SerializeImageGeometry(image)
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    node.GetSegmentation().SetConversionParameter(name, geometry)


def reference_of(node) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Its geometry: (4, 4) to its own RAS and (K, J, I); read from the scene, not through our code."""
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    numbers = [float(one) for one in node.GetSegmentation().GetConversionParameter(name).split(";") if one]
    i0, i1, j0, j1, k0, k1 = (int(one) for one in numbers[16:22])
    return np.reshape(numbers[:16], (4, 4)), (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)


def voxels_of(node, segmentID: str = "A") -> np.ndarray:
    """(K, J, I) mask of a segment on its reference grid; read from the scene, not through our code."""
    _, shape_kji = reference_of(node)
    mask_kji = np.zeros(shape_kji, dtype=bool)
    segment = node.GetSegmentation().GetSegment(segmentID)
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or image.GetPointData().GetScalars() is None:
        return mask_kji
    i0, i1, j0, j1, k0, k1 = image.GetExtent()
    if i0 > i1 or j0 > j1 or k0 > k1:
        return mask_kji
    for k, j, i in itertools.product(range(k0, k1 + 1), range(j0, j1 + 1), range(i0, i1 + 1)):
        if image.GetScalarComponentAsDouble(i, j, k, 0) == segment.GetLabelValue():
            mask_kji[k, j, i] = True
    return mask_kji


def paint(editor, mask_kji: np.ndarray, segmentID: str = "A", mode: str = "add") -> None:
    """The user paints, or erases with ``mode="remove"``: a step of its own, on the whole reference grid."""
    from MedSAM2SegmentLib.Segments import SegmentVoxels
    from MedSAM2SegmentLib.Segments.VoxelSets import Extent

    matrix, extent = editor.referenceGeometry()
    editor.saveStateForUndo()
    labelmap, _ = SegmentVoxels.labelmapOf(mask_kji, Extent(*extent), matrix)
    editor.modifySegment(segmentID, labelmap, mode)


def box_mask(slices, rows, columns, shape_kji=SHAPE_KJI) -> np.ndarray:
    """(K, J, I) mask of a box, given by (first, last) of k, j and i."""
    mask_kji = np.zeros(shape_kji, dtype=bool)
    mask_kji[tuple(slice(first, last + 1) for first, last in (slices, rows, columns))] = True
    return mask_kji


def an_editor(segmentation, volume, segmentID: str = "A", **options):
    """Slicer's editing logic with a segment selected."""
    from support.segment_editor import LogicEditor

    return LogicEditor(segmentation, volume, segmentID, **options)


def a_ball(segmentation, centre, radius):
    """Add a segment that is a closed surface, and return the ``vtkSegmentation``."""
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(radius)
    sphere.SetCenter(*centre)
    sphere.Update()
    known = segmentation.GetSegmentation()
    known.SetSourceRepresentationName("Closed surface")
    segment = slicer.vtkSegment()
    segment.SetName("ball")
    segment.AddRepresentation("Closed surface", sphere.GetOutput())
    known.AddSegment(segment, "ball")
    return known


def an_imported_segment(node, name: str, matrix: np.ndarray, shape_kji: tuple[int, int, int]) -> None:
    """Add a full segment on a lattice of its own."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, shape_kji[2] - 1, 0, shape_kji[1] - 1, 0, shape_kji[0] - 1)
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(matrix))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.AddRepresentation("Binary labelmap", image)
    node.GetSegmentation().AddSegment(segment, name)
