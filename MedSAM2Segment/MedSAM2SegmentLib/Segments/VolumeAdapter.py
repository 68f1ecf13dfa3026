"""Volume nodes for the core: voxels that are not copied, and their pose in the world."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.worker.messages import StackChoice
from vtk.util.numpy_support import vtk_to_numpy

from MedSAM2SegmentLib.Segments.Editors import matrixToArray, transformToWorld
from MedSAM2SegmentLib.Segments.ImageStacks import hasPictures, sequenceOf

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARALLEL = np.cos(np.radians(1.0))  # a view within one degree of the slices shows slices
_MODALITY = "DICOM.Modality"


class VolumeAdapter:
    """A volume node of the scene, checked, with its pose in the world.

    The voxels are a view, not a copy: changes in the scene change them here, and :attr:`key`.

    Raises
    ------
    VolumeError, GeometryError
        With the message of :meth:`problemOf`.
    """

    def __init__(self, volumeNode: Any) -> None:
        problem = self.problemOf(volumeNode)
        if problem:
            raise VolumeError(problem, code="volume-not-usable")
        self.node = volumeNode

    @staticmethod
    def problemOf(node: Any) -> str:
        """Return why a volume node cannot be segmented, and the way out; empty when it can."""
        if node is None:
            return "no volume is selected: choose a source volume"
        if not node.IsA("vtkMRMLScalarVolumeNode"):
            return f"{node.GetName()!r} is a {node.GetNodeTagName()}, not a volume: choose a volume"
        return (
            _problemOfVoxels(node)
            or _problemOfSequence(node)
            or _problemOfTransform(node)
            or _problemOfGeometry(node)
        )

    @property
    def key(self) -> str:
        """Key of voxels and pose, see :meth:`keyOf`."""
        return self.keyOf(self.node)

    @staticmethod
    def keyOf(node: Any) -> str:
        """Return what changes when the voxels of a volume node, or their pose in the world, change; cheap."""
        pose = np.round(_ijkToWorld(node), 9).tobytes().hex()
        return f"{node.GetID()}:{node.GetImageData().GetMTime()}:{pose}"

    @cached_property
    def volume(self) -> Volume:
        """The volume: its voxels a read-only view of the node's, its geometry in the world's RAS."""
        image = self.node.GetImageData()
        scalars = vtk_to_numpy(image.GetPointData().GetScalars())
        voxels_kji = scalars.reshape(*image.GetDimensions()[::-1], *scalars.shape[1:])
        if voxels_kji.ndim == 4:
            voxels_kji = voxels_kji[..., :3]  # without transparency
        geometry = Geometry(_ijkToWorld(self.node), image.GetDimensions())
        return Volume(voxels_kji, geometry, modality=_modality(self.node), name=self.node.GetName() or "")

    @property
    def geometry(self) -> Geometry:
        """Pose of the voxels in the world: IJK to RAS through all parent transforms."""
        return self.volume.geometry

    @property
    def isPicture(self) -> bool:
        """Whether it is a single slice: a picture, as of ultrasound."""
        return min(self.geometry.shape_ijk) == 1

    def stackAlong(self, axis: str) -> StackChoice:
        """Return slices along a plane ("axial"), named by array axis as in :meth:`stackOfView`; for
        "picture", the one slice there is.
        """
        if axis == "picture":
            return StackChoice("ijk"[2 - int(np.argmin(self.geometry.shape_ijk[::-1]))])
        return StackChoice(axis if axis in "ijk" else "ijk"[self.geometry.closest_axis(axis)])

    def cut(self, choice: StackChoice) -> SliceStack:
        """Return the slices of a choice. GeometryError when it does not fit the volume."""
        return SliceStack.cut(self.volume, **vars(choice))

    def displayedWindow(self) -> str:
        """Return ``"width,level"`` of the volume's display; empty when it has no window."""
        display = self.node.GetDisplayNode()
        if display is None or not display.IsA("vtkMRMLScalarVolumeDisplayNode") or self.volume.is_colour:
            return ""
        width, level = display.GetWindow(), display.GetLevel()
        return f"{width:g},{level:g}" if width > 0 and np.isfinite([width, level]).all() else ""

    def stackOfView(self, sliceNode: Any) -> StackChoice:
        """Return the slices of a view: along an array axis if it is within 1 degree of it, else oblique.

        An oblique stack has a slice exactly in the view's plane, wherever the view was panned or zoomed to.
        """
        right, up, normal, origin = _viewAxes(sliceNode)
        for axis in range(3):
            if abs(_normalOfAxis(self.geometry, axis) @ normal) >= _PARALLEL:
                return StackChoice("ijk"[axis])
        centre = self.geometry.to_ras((np.array(self.geometry.shape_ijk) - 1) / 2)[0]
        return StackChoice.oblique(centre - ((centre - origin) @ normal) * normal, right, -up)

    def sliceOfView(self, sliceNode: Any, stack: SliceStack) -> int | None:
        """Return the slice of a stack in a view; None when the view lies across it, or beside the volume."""
        _, _, normal, origin = _viewAxes(sliceNode)
        if abs(_normalOfStack(stack) @ normal) < _PARALLEL:
            return None
        # Read off where the view's plane is nearest to the volume's centre: a view that is up to one degree
        # off must not be judged at its own, possibly far away, origin.
        centre = self.geometry.to_ras((np.array(self.geometry.shape_ijk) - 1) / 2)[0]
        on_plane = centre - ((centre - origin) @ normal) * normal
        n = round(float(stack.to_slice(self.geometry.to_ijk(on_plane))[0, 2]))
        return n if 0 <= n < len(stack) else None

    def positionOfSlice(self, stack: SliceStack, n: int) -> NDArray[np.float64]:
        """Return (3,) world RAS of the centre of slice ``n``."""
        height, width = stack.shape_hw
        centre_xyn = [(width - 1) / 2, (height - 1) / 2, stack.checked(n)]
        return self.geometry.to_ras(stack.to_ijk(centre_xyn))[0]


def isWarped(node: Any) -> bool:
    """Whether a node is under a transform that is not linear."""
    return bool(_problemOfTransform(node))


def hardenTransform(node: Any) -> None:
    """Apply the parent transform of a node to its voxels; the way out of one that is not linear."""
    if node.GetParentTransformNode() is not None and not node.HardenTransform():
        raise GeometryError(
            f"the transform of {node.GetName()!r} could not be hardened: take it off instead",
            code="transform-not-hardened",
        )


def _problemOfVoxels(node: Any) -> str:
    image, name = node.GetImageData(), repr(node.GetName())
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        return f"{name} has no voxels: load it again, or choose another volume"
    components, scalarType = image.GetNumberOfScalarComponents(), image.GetScalarType()
    if components != 1 and (components not in (3, 4) or scalarType != vtk.VTK_UNSIGNED_CHAR):
        return (
            f"{name} has {components} values of type {image.GetScalarTypeAsString()} a voxel (several "
            "volumes in one, or a vector field): only grey values and 8-bit colour can be segmented; take "
            "one volume out of it"
        )
    if scalarType == vtk.VTK_BIT:
        return f"{name} has voxels of one bit: cast it to unsigned char first"
    return ""


def _problemOfSequence(node: Any) -> str:
    sequence = sequenceOf(node)
    if sequence is None:
        return ""
    wayOut = "open all frames as one volume" if hasPictures(sequence) else "copy this frame"
    return (
        f"{node.GetName()!r} shows one of {sequence.GetNumberOfDataNodes()} frames of the sequence "
        f"{sequence.GetName()!r}, and changes with it: {wayOut}"
    )


def _problemOfTransform(node: Any) -> str:
    try:
        transformToWorld(node)
    except GeometryError as error:
        return str(error)
    return ""


def _problemOfGeometry(node: Any) -> str:
    try:
        Geometry(_ijkToWorld(node), node.GetImageData().GetDimensions())
    except GeometryError as error:
        return f"{node.GetName()!r}: {error}"
    return ""


def _ijkToWorld(node: Any) -> NDArray[np.float64]:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return transformToWorld(node) @ matrixToArray(matrix)


def _modality(node: Any) -> str:
    """Return the modality that the DICOM browser stored in the subject hierarchy; empty when unknown."""
    scene = node.GetScene()
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode") if scene else None
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    # The modality is an attribute of the volume or of its study.
    while item and item != hierarchy.GetSceneItemID():
        modality = hierarchy.GetItemAttribute(item, _MODALITY)
        if modality:
            return modality
        item = hierarchy.GetItemParent(item)
    return ""


def _viewAxes(sliceNode: Any) -> tuple[NDArray[np.float64], ...]:
    """Return unit vectors (3,) to the right, up and out of a slice view, and a point of its plane (RAS)."""
    sliceToRAS = matrixToArray(sliceNode.GetSliceToRAS())
    right, up = (sliceToRAS[:3, n] / np.linalg.norm(sliceToRAS[:3, n]) for n in (0, 1))
    normal = np.cross(right, up)
    return right, up, normal / np.linalg.norm(normal), sliceToRAS[:3, 3]


def _normalOfAxis(geometry: Geometry, axis: int) -> NDArray[np.float64]:
    """Return the unit normal of the slices along an array axis: in a sheared volume not the axis itself."""
    first, second = (geometry.directions[:, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    return normal / np.linalg.norm(normal)


def _normalOfStack(stack: SliceStack) -> NDArray[np.float64]:
    xyn_to_ras = stack.volume.geometry.ijk_to_ras @ stack.xyn_to_ijk
    normal = np.cross(xyn_to_ras[:3, 0], xyn_to_ras[:3, 1])
    return normal / np.linalg.norm(normal)
