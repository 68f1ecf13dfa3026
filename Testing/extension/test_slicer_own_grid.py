"""Segmentations leave the scene as they are: on their own grid, placed by their volume, nothing cut off."""

import errno
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

import vtk  # noqa: E402
from medsam2_core.errors import ExportError, GeometryError  # noqa: E402
from medsam2_core.imaging.geometry import Geometry  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from MedSAM2SegmentLib.Segments import LayerFile  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import matrixToArray  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    SHAPE_KJI,
    a_ball,
    a_linear_transform,
    a_matrix,
    a_segmentation,
    a_volume,
    a_warp,
    an_editor,
    an_imported_segment,
    box_mask,
    geometries,
    paint,
    rotation,
    set_reference,
)

ROLE = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
THIRD = a_matrix(spacing=(1 / 3, 1 / 3, 1.0), origin=(-1 / 3, -1 / 3, -1.0))
BOX = box_mask((2, 4), (3, 8), (5, 12))


def on_own_grid(scene, matrix, shape_kji, masks, volume=None, transform=None):
    """A segmentation whose grid is another than its volume's, with segments painted on it."""
    volume = volume or a_volume(scene, a_matrix(spacing=(1, 1, 3)), name="CT")
    segmentation = a_segmentation(scene, volume, tuple(masks), (matrix, shape_kji), transform)
    segmentation.SetNodeReferenceID(ROLE, volume.GetID())
    editor = an_editor(segmentation, volume)
    editor.node.SetOverwriteMode(editor.node.OverwriteNone)
    for name, mask_kji in masks.items():
        paint(editor, mask_kji, name)
    return segmentation


def written(scene, segmentation, folder, **how):
    """What a file of it holds; its notes."""
    path = folder / "out.seg.nrrd"
    notes = SceneSegmentations(scene).write(segmentation.GetID(), path, **how)
    return read_segmentation(path), notes


def places(segmentation, name):
    """(N, 3) where in RAS the voxels of a segment are, in order."""
    k, j, i = np.nonzero(segmentation[name].mask_kji)
    found = segmentation.geometry.to_ras(np.column_stack((i, j, k)))
    return found[np.lexsort(np.round(found, 3).T)]


def expected(matrix, mask_kji):
    k, j, i = np.nonzero(mask_kji)
    found = Geometry(matrix, mask_kji.shape[::-1]).to_ras(np.column_stack((i, j, k)))
    return found[np.lexsort(np.round(found, 3).T)]


# The grid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isWhole", [True, False])
def test_a_vessel_thinner_than_the_volumes_voxels_stays(scene, tmp_path, isWhole):
    vessel, plate = np.zeros((2, 27, 42, 60), dtype=bool)
    vessel[6:20, 20, 31] = True
    plate[6:8, 10:30, 10:40] = True
    segmentation = on_own_grid(scene, THIRD, (27, 42, 60), {"A": vessel, "B": plate})
    found, notes = written(scene, segmentation, tmp_path, isWhole=isWhole)
    assert notes == ()
    assert (found["A"].voxel_count, found["B"].voxel_count) == (14, 1200)
    assert np.allclose(places(found, "A"), expected(THIRD, vessel), atol=1e-4)
    assert np.allclose(places(found, "B"), expected(THIRD, plate), atol=1e-4)
    assert found.geometry.shape_ijk == ((60, 42, 27) if isWhole else (30, 20, 14))


def test_what_lies_outside_the_volume_is_not_cut_off(scene, tmp_path):
    everywhere = np.ones((9, 40, 50), dtype=bool)
    segmentation = on_own_grid(scene, a_matrix(origin=(-10, -10, 0)), (9, 40, 50), {"A": everywhere})
    assert written(scene, segmentation, tmp_path)[0]["A"].voxel_count == 18_000


def test_nor_what_lies_outside_a_reference_geometry_that_is_out_of_date(scene, tmp_path):
    segmentation = a_segmentation(scene, None, ())
    set_reference(segmentation, a_matrix(), (5, 6, 7))
    an_imported_segment(segmentation, "big", a_matrix(), (20, 20, 20))
    assert written(scene, segmentation, tmp_path)[0]["big"].voxel_count == 8000


@pytest.mark.parametrize("name", ["oblique", "flipped"])
def test_imported_segments_stay_on_the_grid_they_came_with(scene, tmp_path, name):
    volume = a_volume(scene, geometries()[name], name="CT")
    segmentation = a_segmentation(scene, volume, ())
    matrix = a_matrix(rotation((3, 2, 1)), (0.7, 0.7, 2))
    an_imported_segment(segmentation, "A", matrix, (4, 5, 6))
    found, _ = written(scene, segmentation, tmp_path)
    assert np.allclose(places(found, "A"), expected(matrix, np.ones((4, 5, 6), dtype=bool)), atol=1e-4)


def test_where_segments_have_several_grids_the_finest_is_that_of_all(scene, tmp_path):
    volume = a_volume(scene, name="CT")
    segmentation = a_segmentation(scene, volume, ("A",))
    paint(an_editor(segmentation, volume), BOX, "A")
    fine = a_matrix(spacing=(0.25, 0.25, 0.25), origin=(30.0, 30.0, 30.0))  # beside the volume
    an_imported_segment(segmentation, "B", fine, (10, 12, 14))
    found, notes = written(scene, segmentation, tmp_path, isWhole=False)
    assert found["B"].voxel_count == 1680
    assert np.allclose(places(found, "B"), expected(fine, np.ones((10, 12, 14), dtype=bool)), atol=1e-4)
    assert found["A"].voxel_count == BOX.sum() * 64
    assert notes == ()


def test_a_segment_that_would_be_another_on_the_finest_grid_is_refused_or_noted(scene, tmp_path):
    def with_a_sheet(thickness):
        segmentation = a_segmentation(scene, None, ())
        an_imported_segment(segmentation, "lump", a_matrix(spacing=(0.1, 0.1, 4.0)), (5, 200, 200))
        an_imported_segment(segmentation, "sheet", a_matrix(spacing=(1, 1, thickness)), (1, 20, 20))
        return segmentation

    with raises("segment-on-other-grid", ExportError, segment="sheet"):
        written(scene, with_a_sheet(0.5), tmp_path)
    _, notes = written(scene, with_a_sheet(3.95), tmp_path)
    assert len(notes) == 1
    assert "'sheet' lay on another grid than the rest: 1.3% of it changed" in str(notes[0])


def test_wide_label_values_and_overlaps_are_kept(scene, tmp_path):
    segmentation = a_segmentation(scene, a_volume(scene), ())
    known = segmentation.GetSegmentation()
    for name, kind, value in (
        ("a", vtk.VTK_UNSIGNED_CHAR, 3),
        ("b", vtk.VTK_SHORT, 300),
        ("c", vtk.VTK_FLOAT, 7),
    ):
        image = slicer.vtkOrientedImageData()
        image.SetExtent(2, 6, 3, 5, 1, 4)
        image.AllocateScalars(kind, 1)
        image.GetPointData().GetScalars().Fill(value)
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.SetLabelValue(value)
        segment.AddRepresentation("Binary labelmap", image)
        known.AddSegment(segment, name)
    known.AddEmptySegment("nothing", "nothing")
    found, _ = written(scene, segmentation, tmp_path)
    assert [(one.name, one.voxel_count) for one in found] == [("a", 60), ("b", 60), ("c", 60), ("nothing", 0)]


def test_slicer_reads_what_was_written(scene, tmp_path):
    overlapping = box_mask((3, 7), (6, 11), (2, 9))
    volume = a_volume(scene, geometries()["oblique"], name="CT")
    segmentation = on_own_grid(
        scene, geometries()["oblique"], SHAPE_KJI, {"A": BOX, "B": overlapping}, volume=volume
    )
    segmentation.GetSegmentation().GetSegment("A").SetName("Leber|ü\n\\n")
    segmentation.GetSegmentation().AddEmptySegment("C", "C")
    written(scene, segmentation, tmp_path, isWhole=False)
    again = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "out.seg.nrrd"))
    assert storage.ReadData(again)
    known = again.GetSegmentation()
    assert list(known.GetSegmentIDs()) == ["A", "B", "C"]
    assert known.GetSegment("A").GetName() == "Leber|ü\n\\n"
    for name, mask_kji in (("A", BOX), ("B", overlapping)):
        image = slicer.vtkOrientedImageData()
        assert again.GetBinaryLabelmapRepresentation(name, image)
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        i0, i1, j0, j1, k0, k1 = image.GetExtent()
        shape = (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
        filled = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)
        toRAS = matrixToArray(matrix) @ a_matrix(origin=(i0, j0, k0))
        assert np.allclose(
            expected(toRAS, filled != 0), expected(geometries()["oblique"], mask_kji), atol=1e-3
        )


# Transforms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "warp"])
def test_a_transform_over_both_changes_nothing(scene, tmp_path, kind):
    transform = a_linear_transform(scene) if kind == "linear" else a_warp(scene)
    volume = a_volume(scene, geometries()["sheared"], name="CT", transform=transform)
    segmentation = a_segmentation(scene, None, ("A",), (geometries()["sheared"], SHAPE_KJI), transform)
    segmentation.SetNodeReferenceID(ROLE, volume.GetID())
    paint(an_editor(segmentation, None), BOX, "A")
    found, _ = written(scene, segmentation, tmp_path)
    assert np.allclose(places(found, "A"), expected(geometries()["sheared"], BOX), atol=1e-4)


@pytest.mark.parametrize("over", ["segmentation", "volume", "both", "below a warp"])
def test_what_is_between_the_two_moves_it(scene, tmp_path, over):
    by = a_matrix(rotation((4, 5, 6)), origin=(3.0, -2.0, 5.0))
    transform = a_linear_transform(scene, by)
    volume = a_volume(scene, name="CT")
    segmentation = on_own_grid(scene, a_matrix(), SHAPE_KJI, {"A": BOX}, volume=volume)
    if over == "below a warp":
        warp = a_warp(scene)
        transform.SetAndObserveTransformNodeID(warp.GetID())
        volume.SetAndObserveTransformNodeID(warp.GetID())
    if over != "volume":
        segmentation.SetAndObserveTransformNodeID(transform.GetID())
    if over in ("volume", "both"):
        volume.SetAndObserveTransformNodeID(transform.GetID())
    moved = {"volume": np.linalg.inv(by), "both": np.eye(4)}.get(over, by)
    found, _ = written(scene, segmentation, tmp_path)
    assert np.allclose(places(found, "A"), expected(moved, BOX), atol=1e-4)


@pytest.mark.parametrize("over", ["segmentation", "volume"])
def test_a_warp_over_one_of_them_alone_is_refused(scene, tmp_path, over):
    volume = a_volume(scene, name="CT")
    segmentation = on_own_grid(scene, a_matrix(), SHAPE_KJI, {"A": BOX}, volume=volume)
    node = segmentation if over == "segmentation" else volume
    node.SetAndObserveTransformNodeID(a_warp(scene).GetID())
    with raises("transform-not-linear", GeometryError, node=node.GetName(), transform="Warp"):
        written(scene, segmentation, tmp_path)


def test_a_transform_that_flattens_space_is_refused(scene, tmp_path):
    segmentation = on_own_grid(scene, a_matrix(), SHAPE_KJI, {"A": BOX})
    flat = a_linear_transform(scene, np.diag([1, 1, 0, 1.0]))
    segmentation.SetAndObserveTransformNodeID(flat.GetID())
    with raises("transform-singular", GeometryError):
        written(scene, segmentation, tmp_path)


# The rest ---------------------------------------------------------------------------------------------------


def test_surfaces_without_a_grid_get_that_of_the_volume(scene, tmp_path):
    volume = a_volume(scene, geometries()["oblique"], name="CT")
    segmentation = a_segmentation(scene, None, ())
    segmentation.SetNodeReferenceID(ROLE, volume.GetID())
    known = a_ball(segmentation, (geometries()["oblique"] @ [10, 7, 4, 1])[:3], 6)
    found, _ = written(scene, segmentation, tmp_path)
    assert found.geometry.shape_ijk == SHAPE_KJI[::-1]
    assert found["ball"].mask_kji[4, 7, 10]
    assert known.GetSegment("ball").GetRepresentation("Binary labelmap") is None


def test_a_segmentation_without_a_voxel_is_refused(scene, tmp_path):
    segmentation = a_segmentation(scene, a_volume(scene), ("A", "B"))
    with raises("segmentation-empty", ExportError, segmentation="Segmentation"):
        written(scene, segmentation, tmp_path)


def test_a_full_disk_names_the_temporary_folder(scene, tmp_path, monkeypatch):
    segmentation = on_own_grid(scene, a_matrix(), SHAPE_KJI, {"A": BOX})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LayerFile, "_planes", full)
    with pytest.raises(ExportError) as told:
        written(scene, segmentation, tmp_path)
    assert str(told.value).startswith(
        f"'Segmentation' could not be written to the temporary folder {tmp_path}: No space left on device"
    )


def test_the_volume_drawn_on_is_described_as_it_lies_in_the_scene(scene):
    volume = a_volume(scene, geometries()["oblique"], name="CT")
    segmentation = a_segmentation(scene, volume)
    moved = a_matrix(origin=(4.0, 3.0, 0.0)) @ geometries()["oblique"]
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(moved.ravel())
    volume.SetIJKToRASMatrix(matrix)
    told = SceneSegmentations(scene).drawnOn(segmentation.GetID())
    assert np.allclose(told["ijk_to_ras"], moved)
    assert told["shape_ijk"] == [20, 14, 9]
    with raises("no-volume", ExportError):
        SceneSegmentations(scene).drawnOn(a_segmentation(scene).GetID())


def test_many_segments_take_hardly_longer_than_one(scene, tmp_path):
    shape = (60, 256, 256)
    segmentation = a_segmentation(scene, a_volume(scene, voxels=np.zeros(shape, np.int16)), ())
    values = np.zeros(shape, np.uint8)
    for value in range(1, 31):
        values[2 * value - 2 : 2 * value, 20:230, 20:230] = value
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, 255, 0, 255, 0, 59)
    scalars = vtk.util.numpy_support.numpy_to_vtk(values.ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    for value in range(1, 31):
        segment = slicer.vtkSegment()
        segment.SetName(str(value))
        segment.SetLabelValue(value)
        segment.AddRepresentation("Binary labelmap", image)
        segmentation.GetSegmentation().AddSegment(segment, str(value))
    begun = time.perf_counter()
    found, _ = written(scene, segmentation, tmp_path, isWhole=False)
    assert time.perf_counter() - begun < 5  # reading it again, too
    assert found.geometry.shape_ijk == (210, 210, 60)
    assert all(one.voxel_count == 2 * 210 * 210 for one in found)
