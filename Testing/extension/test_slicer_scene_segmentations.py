"""Segmentations of a scene on their way out: every segment with all it says, and the DICOM files below."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.errors import ExportError, GeometryError  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations  # noqa: E402
from support.dicom_database import DicomDatabase, in_slicer  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    SHAPE_KJI,
    a_ball,
    a_linear_transform,
    a_segmentation,
    a_volume,
    a_warp,
    an_editor,
    box_mask,
    geometries,
    paint,
    set_reference,
)

slicerio = pytest.importorskip("slicerio")

A_BOX, B_BOX = box_mask((2, 4), (3, 8), (5, 12)), box_mask((3, 7), (6, 11), (2, 9))  # they overlap
KIDNEY = "Category~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic~^^~^^"


def some_segments(scene, matrix=None, transform=None):
    """A volume; A, B and an empty C on it, the B hidden. The segmentation."""
    volume = a_volume(scene, matrix, name="CT", transform=transform)
    segmentation = a_segmentation(scene, volume, ("A", "B", "C"), transform=transform)
    editor = an_editor(segmentation, volume)
    editor.node.SetOverwriteMode(editor.node.OverwriteNone)
    paint(editor, A_BOX, "A")
    paint(editor, B_BOX, "B")
    segmentation.GetDisplayNode().SetSegmentVisibility("B", False)
    segmentation.SetName("Organs")
    return segmentation


def written(scene, segmentation, folder):
    """The segments in a file, by ID, as slicerio reads them; and the labels on the grid of the file."""
    path = folder / "out.seg.nrrd"
    SceneSegmentations(scene).write(segmentation.GetID(), path)
    by_slicerio = {one["id"]: one for one in slicerio.read_segmentation(str(path))["segments"]}
    return by_slicerio, read_segmentation(path)


# What is written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isMoved", [False, True])
@pytest.mark.parametrize("name", geometries())
def test_voxels_are_those_of_the_volume(scene, name, isMoved, tmp_path):
    transform = a_linear_transform(scene) if isMoved else None
    segmentation = some_segments(scene, geometries()[name], transform)
    _, labels = written(scene, segmentation, tmp_path)
    volume = scene.GetFirstNodeByName("CT")
    grid = SceneSegmentations(scene)
    assert grid.names() == ((segmentation.GetID(), "Organs"),)
    assert labels.geometry.ijk_to_ras == pytest.approx(geometries()[name], abs=1e-5)
    assert labels.geometry.shape_ijk == volume.GetImageData().GetDimensions()
    assert np.array_equal(labels["A"].mask_kji, A_BOX)
    assert np.array_equal(labels["B"].mask_kji, B_BOX)


def test_hidden_and_empty_segments_come_along_in_their_order(scene, tmp_path):
    segments, labels = written(scene, some_segments(scene), tmp_path)
    assert list(segments) == ["A", "B", "C"]
    assert [one.name for one in labels.labels] == ["A", "B", "C"]
    assert not labels["C"].mask_kji.any()


def test_names_colours_codes_and_tags_are_kept(scene, tmp_path):
    segmentation = some_segments(scene)
    segment = segmentation.GetSegmentation().GetSegment("A")
    segment.SetName("Left kidney")
    segment.SetColor(0.25, 0.5, 0.75)
    tags = {
        "TerminologyEntry": KIDNEY,
        "DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC",
        "DICOM.SegmentAlgorithmName": "MedSAM2Segment 1 x",
        "MedSAM2.weights_sha256": "8c1f",
        "Segmentation.Status": "completed",
    }
    for name, value in tags.items():
        segment.SetTag(name, value)
    found = written(scene, segmentation, tmp_path)[0]["A"]
    assert found["name"] == "Left kidney"
    assert found["color"] == pytest.approx((0.25, 0.5, 0.75), abs=0.01)
    assert {**tags, **found["tags"]} == found["tags"] | tags
    assert found["tags"]["DICOM.SegmentAlgorithmName"] == "MedSAM2Segment 1 x"
    assert found["terminology"]["type"][:2] == ["SCT", "64033007"]


def test_nothing_in_the_scene_is_touched(scene, tmp_path):
    segmentation = some_segments(scene)
    known = segmentation.GetSegmentation()
    before = scene.GetNumberOfNodes(), known.GetMTime(), known.GetSegment("A").GetLabelValue()
    written(scene, segmentation, tmp_path)
    assert (scene.GetNumberOfNodes(), known.GetMTime(), known.GetSegment("A").GetLabelValue()) == before
    assert segmentation.GetStorageNode() is None
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "the users.seg.nrrd"))
    segmentation.SetAndObserveStorageNodeID(storage.GetID())
    written(scene, segmentation, tmp_path)
    assert segmentation.GetStorageNode().GetFileName().endswith("the users.seg.nrrd")
    assert not (tmp_path / "the users.seg.nrrd").exists()


def test_without_a_volume_the_segmentations_own_grid_is_taken(scene, tmp_path):
    segmentation = a_segmentation(scene, None, ("A",))
    set_reference(segmentation, geometries()["oblique"], SHAPE_KJI)
    paint(an_editor(segmentation, None), A_BOX, "A")
    _, labels = written(scene, segmentation, tmp_path)
    assert labels.geometry.ijk_to_ras == pytest.approx(geometries()["oblique"], abs=1e-5)
    assert np.array_equal(labels["A"].mask_kji, A_BOX)


def test_surfaces_are_made_voxels_of(scene, tmp_path):
    volume = a_volume(scene, geometries()["anisotropic"])
    segmentation = a_segmentation(scene, volume, ())
    known = a_ball(segmentation, (geometries()["anisotropic"] @ [10, 7, 4, 1])[:3], 4)
    _, labels = written(scene, segmentation, tmp_path)
    mask = labels["ball"].mask_kji
    assert mask[4, 7, 10]
    assert mask.sum() * 0.8 * 1.1 * 2.5 == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.2)
    assert known.GetSegment("ball").GetRepresentation("Binary labelmap") is None


def test_what_cannot_be_written_is_reported_with_the_reason(scene, tmp_path):
    segmentations = SceneSegmentations(scene)
    with raises("segmentation-gone", ExportError):
        segmentations.write("vtkMRMLSegmentationNode9", tmp_path / "a.seg.nrrd")
    empty = a_segmentation(scene, a_volume(scene), ())
    with raises("segmentation-empty", ExportError):
        segmentations.write(empty.GetID(), tmp_path / "a.seg.nrrd")
    nowhere = a_segmentation(scene, None, ("A",))
    with raises("segmentation-empty", ExportError):
        segmentations.write(nowhere.GetID(), tmp_path / "a.seg.nrrd")
    segmentation = some_segments(scene)
    (tmp_path / "taken.seg.nrrd").mkdir()
    with raises("segmentation-not-written", ExportError):
        segmentations.write(segmentation.GetID(), tmp_path / "taken.seg.nrrd")
    segmentation.SetAndObserveTransformNodeID(a_warp(scene).GetID())
    with raises("transform-not-linear", GeometryError):
        segmentations.write(segmentation.GetID(), tmp_path / "a.seg.nrrd")


def test_hidden_nodes_are_not_offered(scene):
    segmentation = some_segments(scene)
    a_segmentation(scene).SetHideFromEditors(True)
    assert [name for _, name in SceneSegmentations(scene).names()] == ["Organs"]
    scene.RemoveNode(segmentation)
    assert SceneSegmentations(scene).names() == ()


# The DICOM files --------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Files of a series by the UIDs of its instances."""
    found = {f"1.2.{n}": str(tmp_path / f"{n}.dcm") for n in range(5)}
    for path in found.values():
        open(path, "wb").close()
    return found


def from_dicom(scene, files):
    segmentation = some_segments(scene)
    scene.GetFirstNodeByName("CT").SetAttribute("DICOM.instanceUIDs", " ".join(files))
    return segmentation.GetID()


def test_the_files_are_those_of_the_instances_of_the_volume(scene, files, monkeypatch):
    node, segmentations = from_dicom(scene, files), SceneSegmentations(scene)
    in_slicer(monkeypatch, DicomDatabase(files))
    assert segmentations.dicomProblem(node) == ""
    assert segmentations.dicomFiles(node) == tuple(files.values())


def test_looking_again_and_again_asks_the_database_once(scene, files):
    node, database = from_dicom(scene, files), DicomDatabase(files)
    segmentations = SceneSegmentations(scene, lambda: database)
    for _ in range(5):
        segmentations.dicomProblem(node)
    assert database.asked == 2
    segmentations.refresh()
    segmentations.dicomProblem(node)
    assert database.asked == 4


@pytest.mark.parametrize("gone", ["1.2.0", "1.2.3"])
@pytest.mark.parametrize("how", ["unknown", "deleted"])
def test_a_file_that_is_gone_is_noticed(scene, files, gone, how):
    node, known = from_dicom(scene, files), dict(files)
    if how == "unknown":
        del known[gone]
    else:
        known[gone] += ".gone"
    segmentations = SceneSegmentations(scene, lambda: DicomDatabase(known))
    with raises("dicom-files-missing", ExportError, missing=1, total=5):
        segmentations.dicomFiles(node)


def test_why_there_is_no_series_is_reported(scene, files):
    database = DicomDatabase(files)
    segmentations = SceneSegmentations(scene, lambda: database)
    node = from_dicom(scene, files)
    database.isOpen = False
    assert "not open" in segmentations.dicomProblem(node)
    assert "not open" in SceneSegmentations(scene, lambda: None).dicomProblem(node)
    assert "not open" in SceneSegmentations(scene).dicomProblem(node)  # here Slicer has none at all
    database.isOpen = True
    segmentations.refresh()
    assert segmentations.dicomProblem(node) == ""
    scene.GetFirstNodeByName("CT").RemoveAttribute("DICOM.instanceUIDs")
    assert "'CT' was not loaded from DICOM" in segmentations.dicomProblem(node)
    scene.RemoveNode(scene.GetFirstNodeByName("CT"))
    assert "'Organs' lies on no volume" in segmentations.dicomProblem(node)
    assert "any more" in segmentations.dicomProblem("none")
