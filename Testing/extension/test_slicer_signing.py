"""Segments say how they were made, in the tags Slicer's own DICOM export reads; undo and files keep them."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.version import __version__  # noqa: E402
from MedSAM2SegmentLib.Prompts import PromptNodes  # noqa: E402
from support.in_process_worker import WEIGHTS  # noqa: E402
from support.slicer_user import SlicerUser  # noqa: E402
from test_slicer_auto import AutoUser  # noqa: E402
from test_slicer_saved_scenes import loaded, scenes  # noqa: E402, F401

TAGS = ("DICOM.SegmentAlgorithmType", "DICOM.SegmentAlgorithmName", "MedSAM2.model", "MedSAM2.weights_sha256")
SOFTWARE = f"MedSAM2Segment {__version__}"
NOTHING = ("", "", "", "")
PROMPTED = ("SEMIAUTOMATIC", f"{SOFTWARE} embedded", "embedded", WEIGHTS)
FOUND = ("AUTOMATIC", f"{SOFTWARE} Organs", "embedded", WEIGHTS)


def tags(user, segmentID="A"):
    segment = user.segmentation.GetSegmentation().GetSegment(segmentID)
    return tuple(user.tag(segment, name) for name in TAGS)


def kidney(user):
    return tags(user, user.named("kidney"))


def points_of(user, segmentID):
    nodes = [one for one in user.prompt_nodes() if PromptNodes.segmentOf(one) == segmentID]
    return [one for one in nodes if PromptNodes.roleOf(one) == PromptNodes.POSITIVE]


# By prompts -------------------------------------------------------------------------------------------------


def test_from_the_first_mask_on_a_prompted_segment_is_semiautomatic(user):
    assert tags(user) == NOTHING
    user.click((10, 10, 5))
    assert tags(user) == NOTHING
    user.wait()
    assert tags(user) == PROMPTED
    assert tags(user, "B") == NOTHING


def test_what_is_only_painted_is_left_to_slicer_which_writes_manual(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.wait()
    user.select("B")
    user.click((10, 10, 5))
    user.wait()
    assert tags(user, "A") == NOTHING
    assert tags(user, "B") == PROMPTED


def test_a_segment_that_was_painted_and_then_prompted_is_semiautomatic(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.click((20, 18, 5))
    user.wait()
    assert tags(user) == PROMPTED


def test_so_it_is_when_the_model_only_agrees_with_what_was_painted(user):
    user.paint(slice(0, 28), slice(0, 24), slice(5, 6))
    before = user.editor.savedStates
    user.click((10, 10, 5))
    user.wait()
    assert tags(user) == PROMPTED
    assert user.editor.savedStates == before


def test_an_answer_that_the_mask_of_the_editor_kept_out_signs_nothing(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6), segmentID="B")
    user.paint(slice(20, 22), slice(20, 22), slice(5, 6))
    user.editor.node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    user.editor.node.SetMaskSegmentID("B")
    user.click((14, 12, 5))
    user.wait()
    assert user.mask()[5].sum() == 4
    assert tags(user) == NOTHING


def test_a_final_slice_alone_is_not_the_models_work(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.look_at(5)
    user.controller.finaliseSlice()
    user.wait()
    assert tags(user) == NOTHING
    user.controller.propagate()
    user.wait()
    assert tags(user) == PROMPTED


def test_signing_is_no_step_of_undo(user):
    user.click((10, 10, 5))
    user.wait()
    assert user.editor.savedStates == 1
    user.undo()
    assert not user.mask().any()
    assert tags(user) == NOTHING
    user.redo()
    assert user.mask().any()
    assert tags(user) == PROMPTED


def test_undo_brings_back_the_earlier_tags_of_a_segment(user):
    user.paint(slice(3, 8), slice(3, 8), slice(5, 6))
    user.click((20, 18, 5))
    user.wait()
    user.undo()
    assert user.mask()[5, 4, 4]
    assert tags(user) == NOTHING
    user.undo()
    user.redo()
    assert tags(user) == NOTHING
    user.redo()
    assert tags(user) == PROMPTED


def test_the_users_terminology_is_not_touched(user):
    segment = user.segmentation.GetSegmentation().GetSegment("A")
    liver = "Category~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic~^^~^^"
    segment.SetTag("TerminologyEntry", liver)
    user.click((10, 10, 5))
    user.wait()
    assert user.tag(segment, "TerminologyEntry") == liver
    assert tags(user) == PROMPTED


def test_an_emptied_segment_is_nobodys_and_can_be_painted_by_hand(user):
    user.click((10, 10, 5))
    user.wait()
    (node,) = user.prompt_nodes()
    node.RemoveAllControlPoints()
    user.wait()
    assert not user.mask().any()
    assert tags(user) == NOTHING


def test_prompts_that_are_cleared_leave_the_segment_as_it_was_made(user):
    user.click((10, 10, 5))
    user.wait()
    user.controller.clearPrompts()
    user.wait()
    assert user.mask().any()
    assert tags(user) == PROMPTED


def test_another_model_signs_with_its_own_name(user):
    user.click((10, 10, 5))
    user.wait()
    long = "a model whose name is longer than DICOM allows in a field, and goes on"
    user.controller.setValue("model", long)
    user.wait()
    user.click((14, 12, 5))
    user.wait()
    kind, name, model, _ = tags(user)
    assert (kind, model) == ("SEMIAUTOMATIC", long)
    assert name == f"{SOFTWARE} {long}"[:64].strip()


def test_a_worker_of_an_earlier_version_sends_no_hash(user):
    user.wait()
    (session,) = user.worker.sessions
    del session.info.model["weights_sha256"]
    user.click((10, 10, 5))
    user.wait()
    assert tags(user) == (*PROMPTED[:3], "")


def test_the_path_of_a_model_on_this_computer_is_not_written(user):
    user.wait()
    (session,) = user.worker.sessions
    session.info.model["name"] = "/data/anna/models/fine.safetensors"
    user.click((10, 10, 5))
    user.wait()
    assert tags(user)[1:3] == (f"{SOFTWARE} fine.safetensors", "fine.safetensors")


# By Auto ----------------------------------------------------------------------------------------------------


def test_what_auto_finds_is_automatic(finder):
    finder.auto()
    assert kidney(finder) == FOUND
    assert tags(finder, finder.named("cyst")) == FOUND


def test_a_users_prompt_makes_it_semiautomatic_and_undo_automatic_again(finder):
    finder.auto()
    finder.click((20, 18, 3))
    finder.wait()
    assert kidney(finder) == PROMPTED
    assert tags(finder, finder.named("cyst")) == FOUND
    finder.undo()
    finder.wait()
    assert kidney(finder) == FOUND
    finder.redo()
    finder.wait()
    assert kidney(finder) == PROMPTED


def test_so_it_is_when_not_a_voxel_changes(finder):
    finder.auto()
    before = finder.mask(finder.named("kidney"))
    finder.look_at(4)
    finder.controller.useSegmentAsPrompt()
    finder.wait()
    assert np.array_equal(finder.mask(finder.named("kidney")), before)
    assert kidney(finder)[0] == "SEMIAUTOMATIC"


def test_a_prompt_that_is_taken_away_again_leaves_what_auto_had_found(finder):
    finder.auto()
    finder.click((20, 18, 3))
    finder.wait()
    (points,) = points_of(finder, finder.named("kidney"))
    points.RemoveAllControlPoints()
    finder.wait()
    assert kidney(finder) == FOUND


def test_following_it_further_without_a_user_is_automatic(finder):
    finder.auto()
    finder.controller.propagate()
    finder.wait()
    assert kidney(finder) == FOUND


def test_another_window_asks_again_and_nothing_becomes_the_users(finder):
    finder.auto()
    finder.controller.setValue("window", "300,100")
    finder.wait()
    assert kidney(finder)[0] == "AUTOMATIC"


def test_a_slice_that_auto_adds_to_the_users_is_not_automatic(scene):
    user = AutoUser(scene, segments=("kidney",))
    user.paint(slice(6, 16), slice(7, 12), slice(9, 10), segmentID="kidney")
    user.controller.tick()
    user.auto(6)
    assert kidney(user)[0] == "SEMIAUTOMATIC"
    assert kidney(user)[1] == f"{SOFTWARE} Organs"
    user.controller.propagate()
    user.wait()
    assert kidney(user)[0] == "SEMIAUTOMATIC"
    user.controller.cleanup()


def test_a_slice_that_auto_adds_to_its_own_is_automatic(finder):
    finder.auto()
    finder.controller.setValue("replaceSegments", "1")
    finder.auto(6)
    assert finder.names() == ["kidney", "cyst"]
    assert kidney(finder) == FOUND


# In files ---------------------------------------------------------------------------------------------------


def test_a_saved_scene_keeps_its_tags(scenes, tmp_path):  # noqa: F811
    user = SlicerUser(scenes())
    user.click((10, 10, 5))
    user.wait()
    other = loaded(user, scenes, tmp_path)
    assert tags(other) == PROMPTED
    other.wait()
    assert tags(other) == PROMPTED
    other.click((14, 12, 5))
    other.wait()
    assert tags(other) == PROMPTED


def test_the_file_slicer_writes_holds_them(finder, tmp_path):
    slicerio = pytest.importorskip("slicerio")
    finder.auto()
    finder.click((20, 18, 3))
    finder.wait()
    path = str(tmp_path / "Segmentation.seg.nrrd")
    storage = finder.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(path)
    assert storage.WriteData(finder.segmentation)
    found = {one["name"]: one["tags"] for one in slicerio.read_segmentation(path)["segments"]}
    assert tuple(found["kidney"].get(name, "") for name in TAGS) == PROMPTED
    assert tuple(found["cyst"].get(name, "") for name in TAGS) == FOUND
