"""Segments that others have a part in: another program, a person after Auto, another model. Who made what."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from test_slicer_auto import AutoUser  # noqa: E402
from test_slicer_signing import FOUND, NOTHING, PROMPTED, kidney, points_of, tags  # noqa: E402

THEIRS = ("AUTOMATIC", "TotalSegmentator v2", "", "")


@pytest.fixture
def replacer(scene):
    """Replaces what is there by what Auto finds, but for what Slicer's masking keeps."""
    user = AutoUser(scene, segments=("kidney", "B"))
    user.paint(slice(0, 2), slice(0, 2), slice(0, 1), segmentID="B")
    yield user
    user.controller.cleanup()


def theirs(user, segmentID="A"):
    """Another program has made the segment."""
    user.paint(slice(20, 22), slice(20, 22), slice(5, 6), segmentID=segmentID)
    segment = user.segmentation.GetSegmentation().GetSegment(segmentID)
    segment.SetTag("DICOM.SegmentAlgorithmType", THEIRS[0])
    segment.SetTag("DICOM.SegmentAlgorithmName", THEIRS[1])


def only_inside(user, segmentID):
    user.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    user.editor.node.SetMaskSegmentID(segmentID)


def take_away(user, segmentID="A"):
    for points in points_of(user, segmentID):
        points.RemoveAllControlPoints()
    user.wait()


# Another program's ------------------------------------------------------------------------------------------


def test_what_another_program_made_stays_its_own_when_not_a_voxel_comes(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6), segmentID="B")
    theirs(user)
    only_inside(user, "B")
    before = user.mask()
    user.click((14, 12, 5))
    user.wait()
    assert np.array_equal(user.mask(), before)
    assert tags(user) == THEIRS


def test_a_click_makes_it_ours_and_undo_theirs_again(user):
    theirs(user)
    user.click((10, 10, 5))
    user.wait()
    assert tags(user) == PROMPTED
    user.undo()
    user.wait()
    assert tags(user) == THEIRS
    user.redo()
    user.wait()
    assert tags(user) == PROMPTED


def test_a_click_that_is_taken_away_leaves_what_they_had_made(user):
    theirs(user)
    user.click((10, 10, 5))
    user.wait()
    user.click((14, 12, 5))
    user.wait()
    take_away(user)
    assert user.mask().sum() == 4
    assert tags(user) == THEIRS


def test_one_that_is_taken_away_from_what_was_painted_leaves_it_painted(user):
    user.paint(slice(20, 22), slice(20, 22), slice(5, 6))
    user.click((10, 10, 5))
    user.wait()
    take_away(user)
    assert user.mask().sum() == 4
    assert tags(user) == NOTHING


def test_their_earlier_tags_are_not_exported(user, tmp_path):
    from MedSAM2SegmentLib.Segments.SceneSegmentations import SceneSegmentations

    theirs(user)
    user.click((10, 10, 5))
    user.wait()
    SceneSegmentations(user.scene).write(user.segmentation.GetID(), tmp_path / "a.seg.nrrd")
    header = (tmp_path / "a.seg.nrrd").read_bytes().partition(b"\n\n")[0]
    assert b"MedSAM2Segment" in header
    assert b"TotalSegmentator" not in header


def test_what_auto_finds_in_theirs_is_semiautomatic_and_theirs_again_without_it(scene):
    user = AutoUser(scene, segments=("kidney",))
    theirs(user, "kidney")
    user.controller.tick()
    user.auto(3)
    assert kidney(user)[0] == "SEMIAUTOMATIC"
    user.undo()
    user.wait()
    assert kidney(user) == THEIRS
    user.controller.cleanup()


# Nothing came through ---------------------------------------------------------------------------------------


def test_what_the_masking_kept_out_is_not_autos(replacer):
    only_inside(replacer, "B")
    replacer.auto()
    assert not replacer.mask("kidney").any()
    assert tags(replacer, "kidney") == NOTHING
    replacer.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
    replacer.paint(slice(3, 8), slice(3, 8), slice(5, 6), segmentID="kidney")
    replacer.wait()
    assert tags(replacer, "kidney") == NOTHING


# A person after Auto ----------------------------------------------------------------------------------------


def test_who_paints_in_what_auto_has_found_has_made_it_too_and_undo_takes_that_back(finder):
    finder.auto()
    segmentID = finder.named("kidney")
    finder.paint(slice(0, 20), slice(0, 20), slice(0, 3), segmentID=segmentID)
    finder.wait()
    assert kidney(finder) == ("SEMIAUTOMATIC", *FOUND[1:])
    assert tags(finder, finder.named("cyst")) == FOUND
    finder.undo()
    finder.wait()
    assert kidney(finder) == FOUND


def test_so_has_who_erases(finder):
    finder.auto()
    segmentID = finder.named("kidney")
    k, j, i = np.argwhere(finder.mask(segmentID))[0]
    finder.paint(slice(i, i + 1), slice(j, j + 1), slice(k, k + 1), segmentID=segmentID, mode="remove")
    finder.wait()
    assert kidney(finder)[0] == "SEMIAUTOMATIC"
    finder.undo()
    finder.wait()
    assert kidney(finder) == FOUND


def test_who_paints_elsewhere_has_not(finder):
    finder.auto()
    finder.segmentation.GetSegmentation().AddEmptySegment("mine", "mine")
    finder.select("mine")
    finder.paint(slice(0, 3), slice(0, 3), slice(0, 1), segmentID="mine")
    finder.wait()
    assert kidney(finder) == FOUND
    assert tags(finder, "mine") == NOTHING


def test_a_slice_that_was_painted_and_taken_as_final_makes_it_the_users_too(finder):
    finder.auto()
    segmentID = finder.named("kidney")
    finder.select(finder.named("cyst"))  # while this one is selected, nobody looks at the other
    finder.paint(slice(0, 20), slice(0, 20), slice(3, 4), segmentID=segmentID)
    finder.wait()
    assert kidney(finder) == FOUND
    finder.select(segmentID)
    finder.look_at(3)
    finder.controller.finaliseSlice()
    finder.wait()
    assert kidney(finder) == ("SEMIAUTOMATIC", *FOUND[1:])


def test_a_slice_that_auto_found_and_a_person_took_as_final_is_still_autos(finder):
    finder.auto()
    finder.select(finder.named("kidney"))
    finder.look_at(3)
    finder.controller.finaliseSlice()
    finder.wait()
    assert kidney(finder) == FOUND


def test_what_followed_a_users_click_is_not_autos_when_the_click_is_taken_away(finder):
    finder.auto()
    segmentID = finder.named("kidney")
    found = finder.mask(segmentID)
    finder.click((22, 20, 8))
    finder.wait()
    finder.controller.propagate()
    finder.wait()
    take_away(finder, segmentID)
    assert not np.array_equal(finder.mask(segmentID), found)
    assert kidney(finder)[0] == "SEMIAUTOMATIC"


# Another model ----------------------------------------------------------------------------------------------


def test_the_model_named_is_that_of_what_is_there(finder):
    finder.auto()
    finder.controller.setValue("model", "other-model")
    finder.wait()
    assert kidney(finder) == FOUND
    finder.click((20, 18, 3))
    finder.wait()
    assert kidney(finder)[2] == "other-model"
    take_away(finder, finder.named("kidney"))
    assert kidney(finder) == FOUND
