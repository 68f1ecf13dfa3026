"""Slicer's own Markups and whole segments as prompts, through the real scene."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medsam2_core.imaging.slices import SliceStack  # noqa: E402
from medsam2_core.prompts import Box, MaskPrompt  # noqa: E402
from MedSAM2SegmentLib.Prompts import PromptNodes, SceneMarkups  # noqa: E402
from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter  # noqa: E402
from support.scene import a_volume  # noqa: E402
from support.slicer_user import SHAPE_KJI, a_noise  # noqa: E402


def shown(node):
    node.CreateDefaultDisplayNodes()
    return node


def draw(user, className, *points_ijk):
    node = shown(user.scene.AddNewNodeByClass(className))
    for ijk in points_ijk:
        node.AddControlPoint(user.ras(ijk))
    return node


def draw_roi(user, first_ijk, last_ijk):
    node = shown(user.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode"))
    ends = np.array([user.ras(first_ijk), user.ras(last_ijk)])
    node.AddControlPoint(ends.mean(axis=0))
    node.SetCenter(*ends.mean(axis=0))
    node.SetSize(*np.abs(ends[1] - ends[0]))
    return node


def prompts_by_slice(user):
    return {n: one.prompts for n, one in user.worker.sessions[0].prompts("A").items()}


def box_of(user):
    (n, (box,)), *others = prompts_by_slice(user).items()
    assert isinstance(box, Box) and not others
    return n, np.array([box.first_ijk, box.last_ijk])


# Lines ------------------------------------------------------------------------------------------------------


def test_a_line_is_the_box_of_an_ellipse_of_this_length(user):
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    user.controller.useMarkups()
    user.wait()
    n, ends = box_of(user)
    assert n == 5
    spacing = np.array(user.volume.GetSpacing())
    wide = 0.7 * 10 * spacing[0] / spacing[1]
    assert np.allclose(ends, [(6, 12 - wide / 2, 5), (16, 12 + wide / 2, 5)], atol=1e-3)
    assert user.slices() == [5]
    user.undo()
    assert not user.mask().any() and user.prompts() == ()
    user.redo()
    assert user.slices() == [5]


def test_the_drawn_length_stands_beside_the_measured_one_until_its_box_is_gone(user):
    ends = ((6, 12, 5), (16, 12, 5))
    draw(user, "vtkMRMLMarkupsLineNode", *ends)
    user.controller.useMarkups()
    for _ in range(4):
        user.wait()
    length = float(np.linalg.norm(np.subtract(*(user.ras(end) for end in ends))))
    assert user.state.drawn == pytest.approx((length,), abs=1e-3)
    assert len(user.state.diameters) == 2 and user.state.millilitres is None
    (state,) = user.prompts()
    user.controller.clearSlice(5)
    user.wait()
    assert user.state.drawn == () and user.state.diameters == ()
    user.undo()
    assert user.prompts() == (state,) and user.state.drawn == pytest.approx((length,), abs=1e-3)


def test_a_line_that_crosses_it_is_the_other_diameter_whichever_was_drawn_first(user):
    draw(user, "vtkMRMLMarkupsLineNode", (11, 10, 5), (11, 13, 5))
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    user.controller.useMarkups()
    user.wait()
    spacing = user.volume.GetSpacing()
    assert user.state.drawn == pytest.approx((10 * spacing[0], 3 * spacing[1]), abs=1e-3)
    n, ends = box_of(user)
    # 3 pixels across, half-way between both middles.
    assert n == 5 and np.allclose(ends, [(6, 10.25, 5), (16, 13.25, 5)], atol=1e-3)


@pytest.mark.parametrize(
    "other", [((11, 10, 7), (11, 13, 7)), ((1, 3, 5), (2, 5, 5)), ((6, 13, 5), (15, 11, 5))]
)
def test_another_line_that_does_not_cross_it_has_no_part_in_it(user, other):
    draw(user, "vtkMRMLMarkupsLineNode", *other)
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    user.controller.useMarkups()
    user.wait()
    spacing = np.array(user.volume.GetSpacing())
    n, ends = box_of(user)
    assert n == 5 and np.allclose(ends[:, 0], (6, 16), atol=1e-3)
    assert np.isclose(np.ptp(ends[:, 1]) * spacing[1], 0.7 * 10 * spacing[0], atol=1e-3)


def test_a_line_beside_the_volume_is_said_to_be_there(user):
    draw(user, "vtkMRMLMarkupsLineNode", (40, 12, 5), (60, 12, 5))
    user.controller.useMarkups()
    assert "lies outside the volume" in user.state.text
    assert user.prompts() == ()


@pytest.mark.parametrize("hasView", [True, False])
def test_the_plane_of_the_first_line_decides_how_the_volume_is_cut(user, hasView):
    if not hasView:
        user.scene.RemoveNode(user.view)
    draw(user, "vtkMRMLMarkupsLineNode", (11, 6, 2), (11, 16, 8))
    user.controller.useMarkups()
    user.wait()
    assert user.worker.sessions[-1].stack.key.startswith("sagittal")
    assert np.flatnonzero(user.mask().any(axis=(0, 1))).tolist() == [11]
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    user.controller.useMarkups()
    assert "draw it on one" in user.state.text  # there are prompts on sagittal slices
    user.controller.clearPrompts()
    user.controller.useMarkups()
    user.wait()
    assert user.worker.sessions[-1].stack.key.startswith("axial")


def test_the_slices_the_user_chose_stay(user):
    user.controller.setValue("stack", "axial")
    draw(user, "vtkMRMLMarkupsLineNode", (11, 6, 2), (11, 16, 8))
    user.controller.useMarkups()
    assert "draw it on one" in user.state.text and user.prompts() == ()


# ROI --------------------------------------------------------------------------------------------------------


def test_an_roi_is_a_box_on_its_middle_slice_and_the_range(user):
    draw_roi(user, (4, 6, 3), (14, 16, 7))
    user.controller.useMarkups()
    user.wait()
    n, ends = box_of(user)
    assert n == 5 and np.allclose(ends, [(4, 6, 5), (14, 16, 5)], atol=1e-3)
    assert user.state.values["range"] == "3..7"
    user.controller.propagate()
    user.wait()
    assert set(user.slices()) <= {3, 4, 5, 6, 7}
    assert len(user.slices()) > 1


def test_undo_of_an_roi_restores_the_range(user):
    draw_roi(user, (4, 6, 3), (14, 16, 7))
    user.controller.setValue("range", "1..9")
    user.controller.useMarkups()
    user.wait()
    user.undo()
    assert user.prompts() == () and user.state.values["range"] == "1..9"
    user.redo()
    assert user.state.values["range"] == "3..7"
    user.controller.setValue("range", "all")
    user.undo()
    assert user.prompts() == () and user.state.values["range"] == "all"  # the user's own choice


def test_an_roi_on_oblique_slices_is_as_large_as_it_was_drawn(user):
    turn = np.eye(4)
    turn[:3, :3] = np.array([[1, 0, 0], [0, 1, 1], [0, -1, 1]]) / np.array([1, np.sqrt(2), np.sqrt(2)])
    volume = a_volume(user.scene, voxels=a_noise((60, 60, 60)))
    turn[:3, 3] = VolumeAdapter(volume).geometry.to_ras([(30, 30, 30)])[0]
    stack = SliceStack.oblique(VolumeAdapter(volume).volume, turn[:3, 3], -turn[:3, 0], -turn[:3, 1], 1.0)
    node = shown(user.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode"))
    PromptNodes.setBoxFrame(node, turn, (20, 10, 6))
    taken = SceneMarkups.take(user.scene, VolumeAdapter(volume).geometry, stack)
    sides = np.linalg.norm(taken.box.rasCorners[[1, 3]] - taken.box.rasCorners[0], axis=1)
    assert np.allclose(sides, (20, 10), atol=1e-3)
    assert taken.limits[1] - taken.limits[0] == 6


def test_an_roi_is_cut_off_where_the_volume_ends(user):
    draw_roi(user, (-40, -40, -30), (100, 100, 4))
    user.controller.useMarkups()
    user.wait()
    n, ends = box_of(user)
    height, width = SHAPE_KJI[1:]
    assert n == 2 and np.allclose(ends[:, :2], [(-0.5, -0.5), (width - 0.5, height - 0.5)], atol=1e-3)


def test_an_roi_beside_the_volume_is_refused(user):
    draw_roi(user, (100, 100, 3), (120, 120, 7))
    user.controller.useMarkups()
    user.wait()
    assert "outside the volume" in user.state.text
    assert user.prompts() == () and user.state.values["range"] == "all"


# Closed curves ----------------------------------------------------------------------------------------------


def test_a_closed_curve_is_the_mask_it_was_drawn_as(user):
    node = draw(
        user, "vtkMRMLMarkupsClosedCurveNode", (4.5, 6.5, 5), (12.5, 6.5, 5), (12.5, 14.5, 5), (4.5, 14.5, 5)
    )
    node.SetCurveTypeToLinear()
    user.controller.useMarkups()
    user.wait()
    (n, (mask,)) = next(iter(prompts_by_slice(user).items()))
    assert n == 5 and isinstance(mask, MaskPrompt)
    expected = np.zeros(SHAPE_KJI, bool)
    expected[5, 7:15, 5:13] = True
    assert np.array_equal(user.mask(), expected)
    user.undo()
    assert not user.mask().any() and user.prompts() == ()


# What is not taken ------------------------------------------------------------------------------------------


def test_the_last_drawn_counts_and_prompts_do_not(user):
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    draw_roi(user, (4, 6, 3), (14, 16, 7))
    user.box((2, 2, 8), (9, 9, 8))  # a prompt is an ROI node, too
    user.wait()
    user.controller.useMarkups()
    user.wait()
    assert sorted(prompts_by_slice(user)) == [5, 8]
    assert user.state.values["range"] == "3..7"


def test_what_is_hidden_was_not_drawn_for_this(user):
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    hidden = draw_roi(user, (4, 6, 3), (14, 16, 7))  # as Volume Rendering and Crop Volume add them
    hidden.SetDisplayVisibility(False)
    user.controller.useMarkups()
    user.wait()
    assert list(prompts_by_slice(user)) == [5] and user.state.values["range"] == "all"
    user.undo()
    hidden.SetDisplayVisibility(True)
    user.controller.useMarkups()
    assert user.state.values["range"] == "3..7"


def test_without_markups_the_user_is_told_what_to_draw(user):
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5))  # one end only
    draw(user, "vtkMRMLMarkupsFiducialNode", (6, 12, 5))
    user.controller.useMarkups()
    assert "closed curve" in user.state.text
    assert user.prompts() == ()


def test_the_users_markups_stay_his(user):
    node = draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 5), (16, 12, 5))
    user.controller.useMarkups()
    user.wait()
    user.controller.clearPrompts()
    assert user.scene.IsNodePresent(node)
    assert not PromptNodes.isPrompt(node)
    assert node.GetNumberOfControlPoints() == 2


def test_a_line_from_slice_to_slice_is_refused(user):
    draw(user, "vtkMRMLMarkupsLineNode", (6, 12, 2), (16, 15, 7))  # in no plane of voxels
    user.controller.useMarkups()
    user.wait()
    assert "draw it on one" in user.state.text
    assert user.prompts() == ()


# Whole segments ---------------------------------------------------------------------------------------------


@pytest.fixture
def painted(user):
    user.paint(slice(3, 8), slice(3, 8), slice(2, 9))
    user.look_at(5)
    return user


@pytest.mark.parametrize(
    ("keep", "slices"), [("slice", [5]), ("all", list(range(2, 9))), ("every:5", [2, 7, 8]), ("ends", [2, 8])]
)
def test_the_segment_is_a_prompt_on_the_slices_that_are_kept(painted, keep, slices):
    before = painted.mask()
    painted.controller.setValue("keep", keep)
    painted.controller.useSegmentAsPrompt()
    painted.wait()
    assert sorted(prompts_by_slice(painted)) == slices
    assert np.array_equal(painted.mask(), before)


@pytest.mark.parametrize("keep", ["slice", "all"])
def test_the_segment_stays_as_it_is_beside_other_prompts(painted, keep, monkeypatch):
    painted.click((20, 15, 5))
    painted.box((14, 10, 5), (22, 20, 5))
    painted.wait()
    painted.paint(slice(0, 28), slice(15, 24), slice(5, 6), mode="remove")
    before = painted.mask()
    everything = np.ones(SHAPE_KJI[1:], bool)
    monkeypatch.setattr("support.in_process_worker.answer_to", lambda *_: everything)
    painted.controller.setValue("keep", keep)
    painted.controller.useSegmentAsPrompt()
    painted.wait()
    assert len(prompts_by_slice(painted)[5]) == 3
    assert np.array_equal(painted.mask()[5], before[5])
    painted.click((25, 10, 5))
    painted.wait()
    assert painted.mask()[5, 10, 25]  # a prompt after it is answered


def test_only_the_gaps_are_filled_between_prompts(user):
    for k in (2, 8):
        user.paint(slice(3, 8), slice(3, 8), slice(k, k + 1))
    user.look_at(2)
    before = user.mask()
    user.controller.setValue("keep", "all")
    user.controller.setValue("range", "between")
    user.controller.useSegmentAsPrompt()
    user.wait()
    user.controller.propagate()
    user.wait()
    assert user.slices() == list(range(2, 9))
    assert np.array_equal(user.mask()[[2, 8]], before[[2, 8]])
    user.undo()
    assert np.array_equal(user.mask(), before)


def test_an_empty_segment_is_no_prompt_on_any_slice(user):
    user.controller.setValue("keep", "ends")
    user.look_at(5)
    user.controller.useSegmentAsPrompt()
    assert "segment is empty" in user.state.text
    assert user.prompts() == ()


# Neighbours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "overlap"),
    [("OverwriteAllSegments", False), ("OverwriteVisibleSegments", False), ("OverwriteNone", True)],
)
def test_segments_may_overlap_where_none_overwrites_another(user, mode, overlap):
    node = user.editor.parameterSetNode()
    node.SetOverwriteMode(getattr(node, mode))
    user.click((10, 10, 5))
    user.wait()
    user.controller.propagate()
    user.wait()
    assert user.worker.sessions[0].overlap is overlap
