"""Another scan of the scene in the effect: its objects as examples, and a follow-up with its table."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.prompts import Box  # noqa: E402
from MedSAM2SegmentLib.Panels.PanelState import Status  # noqa: E402
from MedSAM2SegmentLib.Segments.Editors import LABELMAP  # noqa: E402
from MedSAM2SegmentLib.Segments.OtherScans import exampleOf, segmentationOf  # noqa: E402
from support.errors import raises  # noqa: E402
from support.scene import (  # noqa: E402
    a_linear_transform,
    a_matrix,
    a_segmentation,
    a_volume,
    an_editor,
    paint,
)
from support.slicer_user import SHAPE_KJI, SlicerUser, a_noise  # noqa: E402

LESION = np.zeros(SHAPE_KJI, bool)
LESION[4:7, 8:14, 5:12] = True
NODE = np.zeros(SHAPE_KJI, bool)
NODE[2:4, 15:20, 18:24] = True
KIDNEY = (
    "Segmentation category~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Anatomic codes~^^~^^"
)


def an_earlier_scan(scene):
    """A volume with a lesion and a node."""
    volume = a_volume(scene, voxels=a_noise(seed=2), name="Earlier")
    node = a_segmentation(scene, volume, segments=("lesion", "node"))
    node.SetName("Earlier lesions")
    for name, mask in (("lesion", LESION), ("node", NODE)):
        paint(an_editor(node, volume, name), mask, name)
    node.GetSegmentation().GetSegment("lesion").SetColor(0.2, 0.4, 0.6)
    node.GetSegmentation().GetSegment("lesion").SetTag("TerminologyEntry", KIDNEY)
    return node


@pytest.fixture
def other(scene):
    return an_earlier_scan(scene)


@pytest.fixture
def user(scene, other):
    user = SlicerUser(scene, segments=())
    user.wait()
    yield user
    user.controller.cleanup()


def named(user, name):
    return user.segmentation.GetSegmentation().GetSegmentIdBySegmentName(name) or None


def table(user):
    return user.scene.GetFirstNodeByClass("vtkMRMLTableNode")


def test_other_segmentations_of_the_scene_are_offered(user, other):
    view = user.state.other
    assert view.scans == ((other.GetID(), "Earlier lesions"),) and view.chosen == other.GetID()
    assert view.canFind and view.canCompare and view.text == ""


def test_without_another_segmentation_nothing_is_offered(scene):
    user = SlicerUser(scene)
    user.wait()
    assert user.state.other.scans == () and not user.state.other.canFind
    user.controller.findLike()
    assert "no other segmentation" in user.state.text
    user.controller.cleanup()


@pytest.mark.parametrize("action", ["findLike", "followUp"])
def test_each_segment_is_found_under_its_name_in_one_step_of_undo(user, action):
    saved = user.editor.savedStates
    getattr(user.controller, action)()
    assert user.state.status is Status.FINDING and user.state.canCancel
    assert user.state.text.startswith("Other scan: ")
    user.wait()
    assert user.editor.savedStates == saved + 1
    segment = user.segmentation.GetSegmentation().GetSegment(named(user, "lesion"))
    assert segment.GetColor() == pytest.approx((0.2, 0.4, 0.6))
    assert user.tag(segment, "TerminologyEntry") == KIDNEY
    assert user.tag(segment, "DICOM.SegmentAlgorithmType") == "AUTOMATIC"
    assert user.tag(segment, "MedSAM2.auto") == ("examples" if action == "findLike" else "prior")
    assert named(user, "node")
    if action == "followUp":
        assert np.array_equal(user.mask(named(user, "lesion")), LESION)
    prompts = user.worker.sessions[0].prompts(named(user, "lesion"))
    ((box,),) = (one.prompts for one in prompts.values())
    assert isinstance(box, Box) and box.predicted
    user.undo()
    assert not any(user.mask(one).any() for one in user.segmentation.GetSegmentation().GetSegmentIDs())
    user.wait()
    assert user.prompt_nodes() == []


@pytest.mark.parametrize(
    ("action", "source"), [("findLike", "another segmented scan"), ("followUp", "an earlier segmentation")]
)
def test_the_methods_text_says_what_was_searched_and_names_no_auto_model(user, action, source):
    getattr(user.controller, action)()
    user.wait()
    user.select(named(user, "lesion"))
    text = user.controller.methodsText()
    assert f"found from {source}" in text
    assert "Auto model" not in text and "Sam2Rad" not in text


def test_slices_of_the_other_scan_are_the_examples(user, other):
    asked = []
    user.worker.search = lambda session, wanted: asked.append(wanted) or []
    user.controller.findLike()
    user.wait()
    ((volume, segmentation, window),) = asked[0].examples
    assert segmentation.names == ("lesion", "node")
    kept = [2, 3, 4, 5, 6]
    assert np.array_equal(volume.voxels_kji, a_noise(seed=2)[kept])
    assert np.array_equal(segmentation["lesion"].mask_kji, LESION[kept])
    assert len(window.split(",")) == 2
    assert user.state.text.startswith("No object")


def test_a_follow_up_compares_and_writes_a_table(user):
    user.controller.followUp()
    user.wait()
    lines = user.state.other.text.splitlines()
    assert [line.split(":")[0] for line in lines] == ["lesion", "node"]
    assert all("(+0 %)" in line for line in lines)
    assert table(user).GetName() == "Changes since Earlier lesions"
    assert table(user).GetNumberOfRows() == 2
    user.paint(slice(5, 12), slice(8, 14), slice(7, 10), segmentID=named(user, "lesion"))
    user.controller.compare()
    user.wait()
    column = table(user).GetTable().GetColumnByName("Volume (ml), change in %")
    assert float(column.GetValue(0)) == pytest.approx(100) and column.GetValue(1) == "0"
    assert user.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1


def test_what_is_nowhere_has_vanished(user):
    found = user.worker.search
    user.worker.search = lambda session, wanted: found(session, wanted)[:1]
    user.controller.followUp()
    user.wait()
    assert "node: vanished" in user.state.other.text


@pytest.mark.parametrize("isAlone", [True, False])
def test_an_earlier_scan_removed_meanwhile_is_not_compared_with(user, other, isAlone):
    if not isAlone:
        an_earlier_scan(user.scene).SetName("Another patient")
    user.controller.setValue("otherScan", other.GetID())
    user.controller.followUp()
    user.scene.RemoveNode(other)
    user.wait()
    assert named(user, "lesion")
    assert "mm" not in user.state.other.text
    assert table(user) is None


def test_the_scan_that_was_followed_is_compared_with_whatever_is_chosen_now(user, other):
    another = an_earlier_scan(user.scene)
    another.SetName("Another patient")
    user.controller.setValue("otherScan", other.GetID())
    user.controller.followUp()
    user.controller.setValue("otherScan", another.GetID())
    user.wait()
    assert table(user).GetName() == "Changes since Earlier lesions"


def test_another_segmentation_chosen_meanwhile_is_not_compared(user):
    user.controller.followUp()
    another = a_segmentation(user.scene, user.volume, segments=("mine",))
    user.editor.parameterSetNode().SetAndObserveSegmentationNode(another)
    user.wait()
    assert table(user) is None


def test_a_registration_moves_the_earlier_scan(scene):
    """The earlier lesions are put under the transform under which they lie on the new scan."""
    move = a_linear_transform(scene, a_matrix(origin=(3.0, 2.0, 1.0)))
    an_earlier_scan(scene).SetAndObserveTransformNodeID(move.GetID())
    user = SlicerUser(scene, segments=())
    user.wait()
    user.controller.followUp()
    user.wait()
    assert np.array_equal(user.mask(named(user, "lesion")), np.roll(LESION, (1, 2, 3), (0, 1, 2)))
    user.controller.cleanup()


def test_it_can_be_cancelled_and_then_nothing_is_written(user):
    user.controller.followUp()
    user.worker.step()
    user.controller.cancel()
    user.wait()
    assert user.segmentation.GetSegmentation().GetNumberOfSegments() == 0
    assert user.state.other.text == ""


def test_an_example_needs_a_volume_and_voxels(scene, other):
    empty = a_segmentation(scene, a_volume(scene), segments=("A",))
    with raises("empty-examples"):
        exampleOf(empty, "axial")
    with raises("segmentation-empty"):
        segmentationOf(empty)
    other.SetNodeReferenceID(other.GetReferenceImageGeometryReferenceRole(), None)
    with raises("example-without-volume"):
        exampleOf(other, "axial")


@pytest.mark.parametrize(("plane", "along"), [("axial", 0), ("coronal", 1), ("sagittal", 2)])
def test_an_example_is_the_slices_that_show_its_objects(scene, other, plane, along):
    volume, segmentation, _ = exampleOf(other, plane)
    shown = np.flatnonzero(np.moveaxis(LESION | NODE, along, 0).any(axis=(1, 2)))
    assert volume.voxels_kji.shape == segmentation["lesion"].mask_kji.shape
    assert np.array_equal(segmentation["lesion"].mask_kji, np.take(LESION, shown, axis=along))


def test_segments_that_are_surfaces_are_examples_too(scene, other):
    known = other.GetSegmentation()
    other.CreateClosedSurfaceRepresentation()
    known.SetSourceRepresentationName("Closed surface")
    known.RemoveRepresentation(LABELMAP)
    _, segmentation, _ = exampleOf(other, "axial")
    assert not any(segment.is_empty for segment in segmentation)
    assert not known.ContainsRepresentation(LABELMAP)


def test_segments_of_one_name_are_told_apart(scene, other):
    other.GetSegmentation().GetSegment("node").SetName("lesion")
    read = segmentationOf(other)
    assert read.names == ("lesion", "lesion 2")
    assert read["lesion"].voxel_count == LESION.sum() and read["lesion 2"].voxel_count == NODE.sum()
    assert other.GetSegmentation().GetSegment("node").GetRepresentation(LABELMAP) is not None
