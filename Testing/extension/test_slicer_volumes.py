"""Volumes of the scene, as the core sees them: the same voxels in the same place, or a clear refusal."""

import itertools

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import VolumeError  # noqa: E402
from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix, matrixToArray  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter, hardenTransform  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    AXIS_ORDERS,
    a_display,
    a_linear_transform,
    a_matrix,
    a_picture,
    a_sequence_proxy,
    a_volume,
    a_warp,
    direction_of,
    geometries,
    rotation,
)

POINTS_IJK = np.array([[0, 0, 0], [19, 13, 8], [3.5, 7.25, 2]], dtype=float)


def a_slice_node(scene, right, up, origin=(0.0, 0.0, 0.0)):
    """A slice view node that looks at a plane."""
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = right, up
    matrix[:3, 2] = np.cross(right, up)
    matrix[:3, 3] = origin
    node.GetSliceToRAS().DeepCopy(arrayToMatrix(matrix))
    node.UpdateMatrices()
    return node


@pytest.mark.parametrize("name", geometries())
def test_voxels_and_their_place_are_those_of_the_scene(scene, name):
    matrix = geometries()[name]
    adapter = VolumeAdapter(a_volume(scene, matrix))
    assert np.array_equal(adapter.volume.voxels_kji, a_picture())
    places = POINTS_IJK @ matrix[:3, :3].T + matrix[:3, 3]
    assert adapter.geometry.to_ras(POINTS_IJK) == pytest.approx(places, abs=1e-9)
    assert adapter.geometry.is_sheared == ("sheared" in name)


@pytest.mark.parametrize("name", geometries())
def test_transforms_over_a_volume_move_it(scene, name):
    matrix = geometries()[name]
    outer, inner = (
        a_linear_transform(scene),
        a_linear_transform(scene, a_matrix(rotation(), origin=(5, 4, 3))),
    )
    inner.SetAndObserveTransformNodeID(outer.GetID())
    node = a_volume(scene, matrix, transform=inner)
    world = matrixToArray(outer.GetMatrixTransformToParent()) @ matrixToArray(
        inner.GetMatrixTransformToParent()
    )
    places = POINTS_IJK @ (world @ matrix)[:3, :3].T + (world @ matrix)[:3, 3]
    assert VolumeAdapter(node).geometry.to_ras(POINTS_IJK) == pytest.approx(places, abs=1e-9)


def test_voxels_are_neither_copied_nor_writable(scene):
    node = a_volume(scene)
    voxels = VolumeAdapter(node).volume.voxels_kji
    assert not voxels.flags.writeable and not voxels.flags.owndata
    node.GetImageData().SetScalarComponentFromDouble(3, 2, 1, 0, -77)
    assert voxels[1, 2, 3] == -77


def test_the_key_changes_with_voxels_and_place_and_with_nothing_else(scene):
    transform = a_linear_transform(scene)
    node = a_volume(scene, transform=transform)
    adapter = VolumeAdapter(node)
    keys = [adapter.key]
    node.SetName("Renamed")
    a_display(node)
    assert adapter.key == keys[-1]
    node.GetImageData().GetPointData().GetScalars().Modified()
    keys.append(adapter.key)
    transform.SetMatrixTransformToParent(arrayToMatrix(a_matrix(origin=(1, 2, 3))))
    keys.append(adapter.key)
    node.SetOrigin(9, 9, 9)
    keys.append(adapter.key)
    assert len(set(keys)) == 4


@pytest.mark.parametrize("components", [3, 4])
def test_colour_volumes_are_seen_without_transparency(scene, components):
    colours = np.random.default_rng(1).integers(0, 256, (5, 6, 7, components)).astype(np.uint8)
    volume = VolumeAdapter(a_volume(scene, voxels=colours)).volume
    assert volume.is_colour
    assert np.array_equal(volume.voxels_kji, colours[..., :3])


def test_what_cannot_be_segmented_is_refused_with_a_way_out(scene):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Hollow")
    flat = a_volume(scene, name="Flat")
    flat.SetIJKToRASMatrix(arrayToMatrix(np.diag([1.0, 1.0, 0.0, 1.0])))
    refused = {
        "choose a source volume": None,
        "choose a volume": scene.AddNewNodeByClass("vtkMRMLModelNode", "Bone"),
        "no voxels": empty,
        "4 values": a_volume(scene, voxels=np.zeros((3, 3, 3, 4), np.int16), name="Cardiac 4-D"),
        "one of 3 frames": a_sequence_proxy(scene),
        "not linear: harden the transform": a_volume(scene, transform=a_warp(scene), name="Warped"),
        "not finite": flat,
    }
    for words, node in refused.items():
        assert words in VolumeAdapter.problemOf(node)
        with raises("volume-not-usable", VolumeError) as refusal:
            VolumeAdapter(node)
        assert str(refusal.value) == VolumeAdapter.problemOf(node)
    assert VolumeAdapter.problemOf(a_volume(scene)) == ""


def test_a_sequence_of_one_frame_is_just_a_volume(scene):
    assert VolumeAdapter.problemOf(a_sequence_proxy(scene, frames=1)) == ""


def test_hardening_is_a_way_out_of_a_warp(scene):
    node = a_volume(scene, geometries()["anisotropic"], transform=a_warp(scene))
    hardenTransform(node)
    assert VolumeAdapter.problemOf(node) == ""


def test_the_window_is_the_one_on_the_screen(scene):
    node = a_volume(scene)
    assert VolumeAdapter(node).displayedWindow() == ""
    display = a_display(node, 350, 40.5)
    assert VolumeAdapter(node).displayedWindow() == "350,40.5"
    display.SetWindowLevel(0, 40)
    assert VolumeAdapter(node).displayedWindow() == ""


# Views ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_a_view_along_the_voxels_shows_slices_of_an_axis(scene, codes):
    matrix = a_matrix(rotation() @ direction_of(codes), (0.8, 1.1, 2.5), (3, -40, 90))
    adapter = VolumeAdapter(a_volume(scene, matrix))
    for axis in range(3):
        right, up = (adapter.geometry.directions[:, other] for other in range(3) if other != axis)
        for n in range(adapter.geometry.shape_ijk[axis]):
            index = np.array([2.0, 2.0, 2.0])
            index[axis] = n
            view = a_slice_node(scene, right, up, adapter.geometry.to_ras(index)[0])
            choice = adapter.stackOfView(view)
            stack = adapter.cut(choice)
            assert choice.axis == "ijk"[axis]
            shown = adapter.sliceOfView(view, stack)
            assert stack.to_ijk([[0, 0, shown]])[0, axis] == pytest.approx(n)
            beside = adapter.positionOfSlice(stack, shown) - adapter.geometry.to_ras(index)[0]
            assert beside @ np.cross(right, up) == pytest.approx(0, abs=1e-9)


def test_an_axial_view_of_a_tilted_volume_is_oblique_and_keeps_its_plane(scene):
    adapter = VolumeAdapter(a_volume(scene, geometries()["oblique"]))
    for offset in (95.0, 102.3, 110.0):
        for across in (-200.0, 0.0, 55.5):
            view = a_slice_node(scene, (-1, 0, 0), (0, 1, 0), (across, -across, offset))
            choice = adapter.stackOfView(view)
            stack = adapter.cut(choice)
            assert choice.axis == ""
            n = adapter.sliceOfView(view, stack)
            if n is not None:
                assert adapter.positionOfSlice(stack, n)[2] == pytest.approx(offset)
    assert adapter.stackOfView(view) == choice  # the same plane, the same stack


def test_panning_a_view_does_not_change_its_oblique_stack(scene):
    adapter = VolumeAdapter(a_volume(scene, geometries()["oblique"]))
    choices = [
        adapter.stackOfView(a_slice_node(scene, (-1, 0, 0), (0, 1, 0), (across, -2 * across, 104.0)))
        for across in (-50.0, 0.0, 33.3)
    ]
    keys = {adapter.cut(choice).key for choice in choices}
    assert len(keys) == 1


def test_slices_of_a_sheared_volume_lie_in_their_planes(scene):
    adapter = VolumeAdapter(a_volume(scene, geometries()["sheared"]))
    assert adapter.stackOfView(a_slice_node(scene, (-1, 0, 0), (0, 1, 0))).axis == "k"
    assert adapter.stackOfView(a_slice_node(scene, (0, -1, 0), (0, 0, 1))).axis == "i"
    assert adapter.stackOfView(a_slice_node(scene, (-1, 0, 0), (0, 0, 1))).axis == ""  # coronal: across


def test_a_view_across_the_slices_or_beside_the_volume_shows_none(scene):
    adapter = VolumeAdapter(a_volume(scene, a_matrix(direction_of("LPS"))))
    stack = SliceStack.along(adapter.volume, "axial")
    assert adapter.sliceOfView(a_slice_node(scene, (-1, 0, 0), (0, 0, 1)), stack) is None
    for height, shown in ((-0.6, None), (-0.4, 0), (8.4, 8), (8.6, None)):
        assert adapter.sliceOfView(a_slice_node(scene, (-1, 0, 0), (0, 1, 0), (0, 0, height)), stack) == shown
    nearly = rotation((0.7, 0, 0))
    assert adapter.sliceOfView(a_slice_node(scene, -nearly[:, 0], nearly[:, 1], (0, 0, 4)), stack) == 4


# Real scans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["mr/brain1_image.nrrd", "orient/oblique_FLAIR.nii.gz", "orient/oblique_CT_pitch.nii.gz"]
    + [f"orient/{codes}.nii.gz" for codes in ("ASL", "ILP", "IRA", "LAS", "LPS", "PIR", "PSR", "RPI", "SAL")],
)
def test_real_scans_lie_where_slicers_own_reader_puts_them(scene, shared_data, name):
    for reader in ("nibabel", "nrrd"):
        pytest.importorskip(reader)
    from medsam2_core.imaging.reading import read_volume

    path = shared_data / name
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name)
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    adapter, ours = VolumeAdapter(node), read_volume(path)
    for corner in itertools.product(*((0, n - 1) for n in ours.geometry.shape_ijk)):
        i, j, k = np.rint(adapter.geometry.to_ijk(ours.geometry.to_ras(corner)))[0].astype(int)
        assert adapter.geometry.to_ras([i, j, k]) == pytest.approx(ours.geometry.to_ras(corner), abs=1e-3)
        there = ours.voxels_kji[corner[::-1]]
        assert adapter.volume.voxels_kji[k, j, i] == pytest.approx(there, rel=1e-6, abs=1e-6)
