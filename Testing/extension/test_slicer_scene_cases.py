"""The labelled volumes of a scene, written as files to train on: same voxels, same labels, no names."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.auto.fewshot.data import find_pairs  # noqa: E402
from medsam2_core.errors import ExportError, TrainingError  # noqa: E402
from medsam2_core.imaging.reading import read_volume  # noqa: E402
from medsam2_core.imaging.segmentation_files import read_segmentation  # noqa: E402
from MedSAM2SegmentLib.Segments.SceneCases import SceneCases  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    SHAPE_KJI,
    a_linear_transform,
    a_matrix,
    a_picture,
    a_segmentation,
    a_volume,
    a_warp,
    an_editor,
    an_imported_segment,
    box_mask,
    geometries,
    paint,
)

A_BOX, B_BOX = box_mask((2, 4), (3, 8), (5, 12)), box_mask((3, 7), (6, 11), (2, 9))  # they overlap


def a_labelled_volume(scene, name="CT", matrix=None, voxels=None, transform=None):
    """A volume with A and B on it, and its segmentation."""
    volume = a_volume(scene, matrix, voxels, name, transform)
    segmentation = a_segmentation(scene, volume, ("A", "B"), transform=transform)
    editor = an_editor(segmentation, volume)
    editor.node.SetOverwriteMode(editor.node.OverwriteNone)
    paint(editor, A_BOX, "A")
    paint(editor, B_BOX, "B")
    return volume, segmentation


def written_to(folder, number=1):
    """The volume and its labels, as they are read for training; the labels on the volume's grid."""
    volume = read_volume(folder / f"case{number:03d}.nrrd")
    labels = read_segmentation(folder / f"case{number:03d}.seg.nrrd")
    return volume, labels.on_grid(volume.geometry)


@pytest.mark.parametrize("isMoved", [False, True])
@pytest.mark.parametrize("name", geometries())
def test_voxels_and_labels_are_those_of_the_scene(scene, name, isMoved, tmp_path):
    transform = a_linear_transform(scene) if isMoved else None
    a_labelled_volume(scene, matrix=geometries()[name], transform=transform)
    assert SceneCases(scene).write(tmp_path) == {"case001": "CT"}
    volume, labels = written_to(tmp_path)
    assert np.array_equal(volume.voxels_kji, a_picture())
    assert np.array_equal(labels["A"].mask_kji, A_BOX)
    assert np.array_equal(labels["B"].mask_kji, B_BOX)
    assert volume.geometry.ijk_to_ras == pytest.approx(geometries()[name], abs=1e-5)


@pytest.mark.parametrize("components", [3, 4])
def test_colour_is_kept(scene, components, tmp_path):
    picture = a_picture((*SHAPE_KJI, 1)[:3], np.uint8)[..., None] + np.arange(components, dtype=np.uint8)
    a_labelled_volume(scene, voxels=picture)
    SceneCases(scene).write(tmp_path)
    volume, labels = written_to(tmp_path)
    assert np.array_equal(volume.voxels_kji, picture[..., :3])
    assert np.array_equal(labels["A"].mask_kji, A_BOX)


def test_colours_and_terminology_of_segments_are_kept(scene, tmp_path):
    _, segmentation = a_labelled_volume(scene)
    segment = segmentation.GetSegmentation().GetSegment("A")
    segment.SetName("Left kidney")
    segment.SetColor(0.25, 0.5, 0.75)
    segment.SetTag("TerminologyEntry", "Category~SCT^1^x~SCT^64033007^Kidney~^^~Anatomic~^^~^^")
    SceneCases(scene).write(tmp_path)
    label = read_segmentation(tmp_path / "case001.seg.nrrd")["Left kidney"].label
    assert label.colour == pytest.approx((0.25, 0.5, 0.75), abs=0.01)
    assert "Kidney" in label.tags["TerminologyEntry"]


def test_a_segmentation_on_a_grid_of_its_own_is_brought_to_that_of_the_volume(scene, tmp_path):
    volume = a_volume(scene, geometries()["anisotropic"])
    segmentation = a_segmentation(scene, volume, ())
    own = geometries()["anisotropic"] @ np.diag([0.5, 0.5, 0.5, 1])
    an_imported_segment(segmentation, "fine", own, (8, 10, 12))
    SceneCases(scene).write(tmp_path)
    _, labels = written_to(tmp_path)
    found = labels["fine"].mask_kji
    assert found.shape == SHAPE_KJI
    assert found[1:4, 1:5, 1:6].all()
    assert found.sum() <= 5 * 6 * 7


def test_files_are_found_as_pairs_and_hold_no_names(scene, tmp_path):
    a_labelled_volume(scene, "Anna Smith")
    a_labelled_volume(scene, "Bob Smith", a_matrix(origin=(3, 4, 5)))
    cases = SceneCases(scene)
    assert cases.names() == ("Anna Smith", "Bob Smith")
    assert cases.write(tmp_path) == {"case001": "Anna Smith", "case002": "Bob Smith"}
    pairs = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["case001", "case002"]
    assert [pair.labels.name for pair in pairs] == ["case001.seg.nrrd", "case002.seg.nrrd"]
    for path in tmp_path.iterdir():
        assert b"Smith" not in path.read_bytes()


def test_of_several_segmentations_that_with_most_segments_is_taken(scene, tmp_path):
    volume, _ = a_labelled_volume(scene)
    draft = a_segmentation(scene, volume, ("draft",))
    paint(an_editor(draft, volume, "draft"), A_BOX, "draft")
    assert SceneCases(scene).names() == ("CT",)
    SceneCases(scene).write(tmp_path)
    assert [label.name for label in read_segmentation(tmp_path / "case001.seg.nrrd").labels] == ["A", "B"]


def test_nothing_in_the_scene_is_touched(scene, tmp_path):
    volume, segmentation = a_labelled_volume(scene)
    before = scene.GetNumberOfNodes(), volume.GetMTime(), segmentation.GetSegmentation().GetMTime()
    SceneCases(scene).write(tmp_path)
    assert (scene.GetNumberOfNodes(), volume.GetMTime(), segmentation.GetSegmentation().GetMTime()) == before
    assert volume.GetStorageNode() is None
    assert segmentation.GetStorageNode() is None


def test_what_has_no_labels_or_no_volume_is_left_out(scene, tmp_path):
    a_volume(scene, name="unlabelled")
    a_segmentation(scene, a_volume(scene, name="empty segments"), ("A", "B"))
    a_segmentation(scene, None, ("A",))
    cases = SceneCases(scene)
    assert cases.names() == ()
    with raises("no-labelled-volume", TrainingError):
        cases.write(tmp_path)
    a_labelled_volume(scene)
    assert cases.write(tmp_path) == {"case001": "CT"}


def test_volumes_that_cannot_be_segmented_are_left_out(scene, tmp_path):
    warp = a_warp(scene)
    volume, _ = a_labelled_volume(scene, "warped")
    volume.SetAndObserveTransformNodeID(warp.GetID())
    assert SceneCases(scene).names() == ()


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd"])
def test_what_cannot_be_written_is_an_error(scene, ending, tmp_path):
    a_labelled_volume(scene)
    (tmp_path / f"case001{ending}").mkdir()
    with raises("node-not-written", ExportError):
        SceneCases(scene).write(tmp_path)
