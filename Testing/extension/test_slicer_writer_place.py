"""Masks land on the right voxels, whatever lies between the volume and the segmentation: checked by numpy."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix, matrixToArray  # noqa: E402
from MedSAM2SegmentLib.Segments.SegmentWriter import SegmentWriter  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support.scene import (  # noqa: E402
    AXIS_ORDERS,
    a_linear_transform,
    a_matrix,
    a_segmentation,
    a_volume,
    direction_of,
    geometries,
    paint,
    reference_of,
    rotation,
    sheared,
    voxels_of,
)
from support.segment_editor import LogicEditor  # noqa: E402

_UNDECIDED = 1e-4  # pixels: so near to the middle between two, either is the nearest


def world_of(node) -> np.ndarray:
    """(4, 4) of the transforms over a node."""
    transform, matrix = node.GetParentTransformNode(), np.eye(4)
    while transform is not None:
        matrix = matrixToArray(transform.GetMatrixTransformToParent()) @ matrix
        transform = transform.GetParentTransformNode()
    return matrix


def pixels_of_voxels(segmentation, stack) -> np.ndarray:
    """(K, J, I, 3) ``[x, y, n]`` at the centre of every voxel of a segmentation.

    From where three neighbours of the first pixel are in the world, and nothing else.
    """
    corner, *beside = stack.volume.geometry.to_ras(stack.to_ijk(np.vstack([np.zeros(3), np.eye(3)])))
    axes = np.stack(beside, axis=1) - corner[:, None]  # (3, 3) columns: one pixel along x, y, n in mm
    matrix, shape_kji = reference_of(segmentation)
    index = np.moveaxis(np.indices(shape_kji)[::-1], 0, -1)  # (K, J, I, 3) of i, j, k
    to_world = world_of(segmentation) @ matrix
    places = index @ to_world[:3, :3].T + to_world[:3, 3]
    return np.linalg.solve(axes, (places - corner).reshape(-1, 3).T).T.reshape(index.shape)


def expected(segmentation, stack, masks) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) whether a voxel's nearest pixel is set, and whether there is only one nearest."""
    pixels = pixels_of_voxels(segmentation, stack)
    nearest = np.rint(pixels).astype(int)
    decided = (np.abs(np.abs(pixels - nearest) - 0.5) > _UNDECIDED).all(axis=-1)
    wanted = np.zeros(decided.shape, dtype=bool)
    height, width = stack.shape_hw
    for n, mask_hw in masks.items():
        x, y, _ = np.moveaxis(nearest, -1, 0)
        here = (nearest[..., 2] == n) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        wanted[here] = mask_hw[y[here], x[here]]
    return wanted, decided


def some_masks(stack, count: int = 2) -> dict[int, np.ndarray]:
    """Ragged masks of some slices, each with a hole, and one slice apart from the others."""
    rng = np.random.default_rng(len(stack))
    numbers = sorted({*range(len(stack) // 3, len(stack) // 3 + count), len(stack) - 1})
    masks = {}
    for n in numbers:
        mask_hw = np.zeros(stack.shape_hw, dtype=bool)
        rows, columns = (max(size // 5, 0) for size in stack.shape_hw)
        mask_hw[rows : 4 * rows + 1, columns : 4 * columns + 1] = True
        masks[n] = mask_hw & (rng.random(stack.shape_hw) < 0.7)
    return masks


def stacks_of(volume):
    """Every stack along the axes, and three that lie across them."""
    yield from (SliceStack.along(volume, axis) for axis in ("axial", "coronal", "sagittal"))
    centre = volume.geometry.to_ras((np.array(volume.geometry.shape_ijk) - 1) / 2)[0]
    for turn, spacing in (((10, 20, 30), None), ((45, 0, 0), 1.3), ((35, 35, 0), (0.9, 1.2, 2.2))):
        directions = rotation(turn)
        yield SliceStack.oblique(volume, centre, directions[:, 0], directions[:, 1], spacing)


def lands_where_numpy_says(scene, volume_node, segmentation, stacks=None):
    """Write and rewrite masks of all stacks, and compare every voxel."""
    editor = LogicEditor(segmentation, volume_node, "A")
    writer = SegmentWriter(editor)
    volume = VolumeAdapter(volume_node).volume
    for stack in stacks or stacks_of(volume):
        masks = some_masks(stack)
        assert any(mask_hw.any() for mask_hw in masks.values())
        writer.write("A", masks, stack, newStep=True)
        wanted, decided = expected(segmentation, stack, masks)
        found = voxels_of(segmentation)
        assert np.array_equal(found[decided], wanted[decided])
        other = {n: np.roll(mask_hw, 1, axis=1) for n, mask_hw in masks.items()}
        writer.write("A", other, stack, newStep=True)
        wanted, decided = expected(segmentation, stack, other)
        found = voxels_of(segmentation)
        assert np.array_equal(found[decided], wanted[decided])
        writer.write("A", {n: np.zeros_like(mask) for n, mask in masks.items()}, stack, newStep=True)
        assert not voxels_of(segmentation).any()


@pytest.mark.parametrize("name", geometries())
def test_on_the_grid_of_the_volume(scene, name):
    volume = a_volume(scene, geometries()[name])
    lands_where_numpy_says(scene, volume, a_segmentation(scene, volume))


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_in_every_axis_order(scene, codes):
    volume = a_volume(scene, a_matrix(direction_of(codes), (0.8, 1.1, 2.5), (3, -40, 90)))
    lands_where_numpy_says(scene, volume, a_segmentation(scene, volume))


FINER = np.diag([0.5, 0.5, 0.5, 1.0])
FINER[:3, 3] = -0.25
COARSER = np.diag([2.0, 2.0, 1.5, 1.0])
COARSER[:3, 3] = 0.6
CROPPED = a_matrix(origin=(5, 3, 2))
TURNED = a_matrix(rotation((6, -11, 14)), (0.7, 0.8, 0.9), (-2.2, 1.3, 0.4))
FLIPPED = a_matrix(direction_of("SLA"), (1, 1, 1), (19, 0, 8))

REFERENCES = {
    "finer": (FINER, (18, 28, 40)),
    "coarser": (COARSER, (6, 7, 10)),
    "cropped": (CROPPED, (4, 7, 9)),
    "larger": (a_matrix(origin=(-6, -4, -3)), (15, 22, 30)),
    "turned": (TURNED, (12, 20, 26)),
    "flipped": (FLIPPED, (14, 20, 9)),
    "sheared": (sheared(a_matrix()), (9, 18, 20)),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ["anisotropic", "sheared oblique"])
def test_on_a_grid_of_its_own(scene, name, reference):
    matrix, shape_kji = REFERENCES[reference]
    volume = a_volume(scene, geometries()[name])
    segmentation = a_segmentation(scene, volume, reference=(geometries()[name] @ matrix, shape_kji))
    lands_where_numpy_says(scene, volume, segmentation)


@pytest.mark.parametrize("name", ["anisotropic", "left-handed", "sheared"])
@pytest.mark.parametrize("over", ["volume", "segmentation", "both", "one for both"])
def test_under_transforms(scene, name, over):
    first = a_linear_transform(scene)
    second = a_linear_transform(scene, a_matrix(rotation((3, 50, -8)), (0.9, 0.9, 1.3), (1, 2, 3)))
    volume = a_volume(scene, geometries()[name], transform=None if over == "segmentation" else first)
    segmentation = a_segmentation(
        scene,
        volume,
        transform={"volume": None, "segmentation": second, "both": second, "one for both": first}[over],
    )
    lands_where_numpy_says(scene, volume, segmentation)


def test_a_transform_that_is_moved_later_is_followed(scene):
    transform = a_linear_transform(scene)
    volume = a_volume(scene, geometries()["oblique"])
    segmentation = a_segmentation(scene, volume, reference=(geometries()["oblique"], (9, 14, 20)))
    segmentation.SetAndObserveTransformNodeID(transform.GetID())
    for origin in ((0, 0, 0), (2.0, -1.0, 3.0)):
        transform.SetMatrixTransformToParent(arrayToMatrix(a_matrix(origin=origin)))
        lands_where_numpy_says(scene, volume, segmentation)


@pytest.mark.parametrize("name", ["mr/brain1_image.nrrd", "orient/oblique_FLAIR.nii.gz"])
def test_on_real_scans_a_slice_comes_back_bit_for_bit(scene, shared_data, name):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(shared_data / name))
    assert storage.ReadData(node)
    segmentation = a_segmentation(scene, node)
    volume = VolumeAdapter(node).volume
    writer = SegmentWriter(LogicEditor(segmentation, node, "A"))
    for axis in ("axial", "coronal", "sagittal"):
        stack = SliceStack.along(volume, axis)
        masks = {
            n: stack.image_hw(n) > stack.image_hw(n).mean() for n in range(len(stack) // 2, len(stack), 9)
        }
        writer.write("A", masks, stack, newStep=True)
        read = writer.segmentMasks("A", stack, list(masks))
        assert all(np.array_equal(read[n], masks[n]) for n in masks)
        writer.write("A", {n: np.zeros_like(mask) for n, mask in masks.items()}, stack, newStep=True)


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, *REFERENCES])
def test_masks_of_slices_show_the_nearest_voxel(scene, reference):
    matrix = geometries()["oblique"]
    grid = None if reference is None else (matrix @ REFERENCES[reference][0], REFERENCES[reference][1])
    node = a_volume(scene, matrix)
    segmentation = a_segmentation(scene, node, reference=grid, transform=a_linear_transform(scene))
    editor = LogicEditor(segmentation, node, "A")
    grid_matrix, shape_kji = reference_of(segmentation)
    solid = np.random.default_rng(5).random(shape_kji) < 0.4
    paint(editor, solid)
    volume = VolumeAdapter(node).volume
    to_index = np.linalg.inv(world_of(segmentation) @ grid_matrix)
    for stack in stacks_of(volume):
        for n, mask_hw in SegmentWriter(editor).segmentMasks("A", stack, [0, len(stack) // 2]).items():
            y, x = np.indices(stack.shape_hw)
            points = stack.to_ijk(np.stack([x.ravel(), y.ravel(), np.full(x.size, n)], axis=1))
            exact = volume.geometry.to_ras(points) @ to_index[:3, :3].T + to_index[:3, 3]
            index = np.rint(exact).astype(int)
            decided = (np.abs(np.abs(exact - index) - 0.5) > _UNDECIDED).all(axis=1)
            inside = ((index >= 0) & (index < shape_kji[::-1])).all(axis=1)
            wanted = np.zeros(len(index), dtype=bool)
            wanted[inside] = solid[tuple(index[inside].T[::-1])]
            assert np.array_equal(mask_hw.ravel()[decided], wanted[decided])
