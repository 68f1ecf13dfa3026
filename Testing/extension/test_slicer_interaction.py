"""Clicks, drags and keys in real slice views become prompts at the right voxels."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
import slicer
import vtk
from medsam2_core.errors import PromptError
from medsam2_core.imaging.geometry import transform
from medsam2_core.prompts import Box, Point
from MedSAM2SegmentLib.Panels.PanelState import Tool
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, PointGesture, ScribbleGesture
from MedSAM2SegmentLib.Segments.Editors import arrayToMatrix
from support.errors import raises
from support.prompting_user import PromptingUser
from support.scene import a_linear_transform, a_matrix, direction_of, geometries, rotation
from support.shown_errors import every_error_shown

SHAPE_KJI = (24, 30, 36)


@pytest.fixture
def user():
    user = PromptingUser()
    with every_error_shown():
        yield user
        user.leaves()


@pytest.fixture
def at_work(user):
    """A user with an axial view of an upright volume of voxels of 1 x 1 x 3 mm."""
    user.opens(a_matrix(direction_of("LPS"), (1, 1, 3)), np.zeros(SHAPE_KJI, np.int16))
    user.view("Red")
    return user


def world_to_ijk(user):
    """(4, 4), by numpy from what the scene holds, not through our own adapter."""
    matrix = vtk.vtkMatrix4x4()
    user.volume.GetIJKToRASMatrix(matrix)
    ijk_to_ras = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    parent = user.volume.GetParentTransformNode()
    if parent is not None:
        parent.GetMatrixTransformToWorld(matrix)
        ijk_to_ras = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)]) @ ijk_to_ras
    return np.linalg.inv(ijk_to_ras)


def shown_at(view, pixel):
    """RAS that Slicer itself tells for a pixel of a view (as its mouse coordinates)."""
    xyz = [0.0, 0.0, 0.0]
    manager = slicer.vtkMRMLAbstractSliceViewDisplayableManager
    manager.ConvertXYZToRAS(view.node, [float(pixel[0]), float(pixel[1]), 0.0], xyz)
    return np.array(xyz)


# Points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transformed", [False, True], ids=["", "under a transform"])
@pytest.mark.parametrize("name", ["Red", "Yellow", "Green"])
@pytest.mark.parametrize("place", ["anisotropic", "flipped", "oblique", "left-handed", "sheared"])
def test_a_click_is_a_point_at_the_voxel_that_is_shown_there(user, place, name, transformed):
    matrix = geometries()[place]
    parent = a_linear_transform(user.scene) if transformed else None
    user.opens(matrix, np.zeros(SHAPE_KJI, np.int16), parent)
    view = user.view(name)
    clicked = [(200, 150), (180, 165), (215, 140)]
    for pixel in clicked:
        view.click(pixel)
    assert len(user.gestures) == 3
    stack = user.stack(view)
    found = np.array([point.ijk for point in user.prompts(stack=stack)])
    wanted = transform(world_to_ijk(user), [shown_at(view, pixel) for pixel in clicked])
    in_slice, expected = stack.to_slice(found), stack.to_slice(wanted)
    np.testing.assert_allclose(in_slice[:, :2], expected[:, :2], atol=0.5)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert view.consumed.count("LeftButtonPressEvent") == 3


def test_clicks_are_right_in_a_rotated_zoomed_panned_and_flipped_view(user):
    user.opens(geometries()["anisotropic"], np.zeros(SHAPE_KJI, np.int16))
    view = user.view("Red")
    centre = user.adapter.geometry.to_ras((np.array(SHAPE_KJI[::-1]) - 1) / 2)[0]
    pose = np.eye(4)
    pose[:3, :3] = rotation((24, -13, 40)) @ np.diag([-1, 1, 1])  # seen in a mirror
    pose[:3, 3] = centre
    view.node.GetSliceToRAS().DeepCopy(arrayToMatrix(pose))
    view.node.UpdateMatrices()
    fov = view.node.GetFieldOfView()
    view.node.SetFieldOfView(fov[0] / 3, fov[1] / 3, fov[2])
    view.node.SetXYZOrigin(2.0, -1.5, 0)
    pixel = view.pixel_of(centre + pose[:3, 0] * 2 - pose[:3, 1])
    view.click(pixel)
    stack = user.stack(view)
    (point,) = user.prompts(stack=stack)
    np.testing.assert_allclose(point.ijk, transform(world_to_ijk(user), shown_at(view, pixel))[0], atol=1e-3)


@pytest.mark.parametrize(("negative", "ctrl", "positive"), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
def test_ctrl_means_the_opposite_for_one_click(at_work, negative, ctrl, positive):
    at_work.hand.negative = bool(negative)
    at_work.views["Red"].click((200, 150), ctrl=ctrl)
    at_work.views["Red"].click((240, 190))
    assert [p.positive for p in at_work.prompts()] == [bool(positive), not negative]


# Boxes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [1, -1], ids=["down right", "up left"])
def test_a_drag_is_a_box(at_work, way):
    view = at_work.takes("box").views["Red"]
    ends = [(150, 200), (230, 120)][::way]
    view.drag(*ends)
    (box,) = at_work.prompts()
    corners = transform(world_to_ijk(at_work), [shown_at(view, end) for end in ends])
    expected = Box.between(*corners)
    np.testing.assert_allclose(
        [box.first_ijk, box.last_ijk], [expected.first_ijk, expected.last_ijk], atol=1e-3
    )
    assert box.first_ijk[2] == box.last_ijk[2] == SHAPE_KJI[0] // 2
    assert not view.actors.shown


def test_two_clicks_are_a_box_too_also_when_the_view_is_zoomed_in_between(at_work):
    view = at_work.takes("box").views["Red"]
    view.click((150, 200))
    first = shown_at(view, (150, 200))
    assert at_work.hand.isDrawing and not at_work.gestures
    view.move((190, 170))
    assert len(view.actors.shown) == 2 and view.consumed[-1] != "MouseMoveEvent"
    view.view.zoom_in()
    view.click((230, 120))
    (box,) = at_work.prompts()
    expected = Box.between(*transform(world_to_ijk(at_work), [first, shown_at(view, (230, 120))]))
    np.testing.assert_allclose(
        [box.first_ijk, box.last_ijk], [expected.first_ijk, expected.last_ijk], atol=1e-3
    )
    assert not view.actors.shown and not at_work.hand.isDrawing


def test_a_corner_on_another_slice_is_forgotten(at_work):
    view = at_work.takes("box").views["Red"]
    view.click((150, 200))
    view.view.set_slice_value(view.view.get_slice_value() + 3)
    view.click((230, 120))
    assert not at_work.gestures and at_work.hand.isDrawing  # that click was a first corner again


def test_a_slip_of_the_hand_is_no_box(at_work):
    view = at_work.takes("box").views["Red"]
    view.drag((150, 200), (230, 201))
    assert not at_work.gestures and not at_work.hand.isDrawing and not view.actors.shown


def test_a_new_box_on_the_slice_takes_the_place_of_the_old_one(at_work):
    view = at_work.takes("box").views["Red"]
    view.drag((150, 200), (230, 120))
    view.drag((110, 230), (190, 90))
    assert len(at_work.prompts()) == 1
    view.view.set_slice_value(view.view.get_slice_value() + 3)
    view.drag((150, 200), (230, 120))
    at_work.segment = "B"
    view.drag((155, 205), (225, 125))
    assert len(at_work.slice_prompts("A")) == 2 and len(at_work.slice_prompts("B")) == 1
    assert len(at_work.changes) == 4


# Scribbles --------------------------------------------------------------------------------------------------


def test_a_scribble_is_up_to_eight_points_along_the_stroke(at_work):
    view = at_work.takes("scribble").views["Red"]
    view.drag((130, 130), (250, 130), (250, 190), ctrl=True)
    points = at_work.prompts()
    assert len(points) == 8 and all(isinstance(p, Point) and not p.positive for p in points)
    pixels = np.array([view.pixel_of(at_work.adapter.geometry.to_ras(p.ijk)) for p in points])
    along = np.where(pixels[:, 1] == 130, pixels[:, 0] - 130, 120 + pixels[:, 1] - 130)
    np.testing.assert_allclose(along, (np.arange(8) + 0.5) / 8 * 180, atol=2)


def test_a_click_with_the_scribble_in_hand_is_a_point(at_work):
    at_work.takes("scribble").views["Red"].click((200, 150))
    assert isinstance(at_work.gestures[0], PointGesture)


# Dropping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["box", "scribble"])
def test_escape_drops_what_is_being_drawn_and_is_slicers_own_otherwise(at_work, tool):
    view = at_work.takes(tool).views["Red"]
    view.press((150, 200))
    view.move((180, 170))
    assert len(view.actors.shown) == 2
    view.type("Escape")
    assert view.consumed[-1] == "KeyPressEvent" and not view.actors.shown
    view.release((200, 160))
    assert not at_work.gestures
    view.consumed.clear()
    view.type("Escape")
    assert not view.consumed


def test_closing_the_scene_in_the_middle_of_a_drag_leaves_nothing(at_work):
    view = at_work.takes("box").views["Red"]
    view.press((150, 200))
    view.move((200, 150))
    at_work.scene.Clear(False)
    view.move((210, 140))
    view.release((220, 130))
    at_work.hand.drop()
    assert not view.actors.shown and at_work.markups.segmentationNode is None
    assert at_work.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0


# What stays Slicer's ----------------------------------------------------------------------------------------


def test_the_right_and_middle_buttons_the_wheel_and_shift_stay_slicers(at_work):
    view = at_work.views["Red"]
    fov, origin, offset = view.node.GetFieldOfView(), view.node.GetXYZOrigin(), view.node.GetSliceOffset()
    view.event("RightButtonPressEvent", (200, 150))
    view.move((200, 220))
    view.event("RightButtonReleaseEvent", (200, 220))
    assert view.node.GetFieldOfView() != fov
    view.event("MiddleButtonPressEvent", (200, 150))
    view.move((230, 170))
    view.event("MiddleButtonReleaseEvent", (230, 170))
    assert view.node.GetXYZOrigin() != origin
    view.event("MouseWheelForwardEvent", (200, 150))
    assert view.node.GetSliceOffset() != offset
    origin = view.node.GetXYZOrigin()
    view.drag((200, 150), (230, 170), shift=True)
    assert view.node.GetXYZOrigin() != origin
    view.event("LeftButtonDoubleClickEvent", (200, 150))
    view.release((200, 150))
    assert not view.consumed and not at_work.gestures


def test_shift_and_the_mouse_move_the_crosshair(at_work):
    view = at_work.views["Red"]
    crosshair = at_work.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    view.event("KeyPressEvent", key="Shift_L", shift=True)
    view.move((170, 130), shift=True)
    np.testing.assert_allclose(crosshair.GetCrosshairRAS(), shown_at(view, (170, 130)), atol=1e-3)


def test_placing_markups_is_left_alone(at_work):
    view = at_work.views["Red"]
    mine = at_work.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    at_work.app.markups_logic.place_node(mine, persistent=True)
    view.click((170, 130))
    at_work.app.markups_logic.disable_place_mode()
    assert mine.GetNumberOfControlPoints() >= 1 and not at_work.gestures


@pytest.mark.parametrize("chosen", [True, False])
def test_prompts_do_not_become_the_list_that_place_mode_adds_to(at_work, chosen):
    selection = at_work.scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    mine = None
    if chosen:
        mine = at_work.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    before = selection.GetActivePlaceNodeID(), selection.GetActivePlaceNodeClassName()
    at_work.views["Red"].click((200, 150))
    at_work.takes("box").views["Red"].drag((120, 100), (180, 220))
    assert (selection.GetActivePlaceNodeID(), selection.GetActivePlaceNodeClassName()) == before
    assert before[0] == (mine.GetID() if mine else None)


# Keys -------------------------------------------------------------------------------------------------------


def test_keys_change_the_tool_and_the_sign_and_ask_for_more(at_work):
    view = at_work.views["Red"]
    for key in ("x", "c", "c", "c", "x", "n", "Return", "KP_Enter"):
        view.type(key)
    tools = [("setTool", name) for name in ("box", "scribble", "point")]
    asked = [("setNegative", True), *tools, ("setNegative", False), ("nextWeakest",)]
    assert at_work.keys == [*asked, ("propagate",), ("propagate",)]
    assert at_work.hand.tool is Tool.POINT and not at_work.hand.negative
    assert view.consumed.count("KeyPressEvent") == 8


@pytest.mark.parametrize("key", [*"gtfbvrszyiqw1", "Left", "Right", "Up", "Down", "space", "bracketleft"])
def test_keys_of_slicer_and_of_the_editor_are_left_alone(at_work, key):
    at_work.views["Red"].type(key)
    at_work.views["Red"].type("x", ctrl=True)
    assert not at_work.views["Red"].consumed and not at_work.keys


@pytest.mark.parametrize("key", ["Delete", "BackSpace"])
def test_delete_takes_the_prompt_under_the_mouse(at_work, key):
    view = at_work.views["Red"]
    view.click((200, 150))
    view.click((240, 150))
    at_work.takes("box")
    view.drag((120, 100), (180, 220))
    at_work.takes("scribble")
    view.drag((260, 200), (320, 210))
    at_work.changes.clear()
    for pixel in ((202, 151), (120, 160), (292, 206), (240, 150)):
        view.move(pixel)
        view.type(key)
    assert at_work.slice_prompts() == {} and len(at_work.changes) == 4
    assert at_work.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    view.consumed.clear()
    view.type(key)
    assert not view.consumed


def test_gestures_refuse_what_is_no_place():
    with raises("position-not-finite", PromptError):
        PointGesture([0, 0, np.nan])
    with raises("box-corners", PromptError):
        BoxGesture([[0, 0, 0]] * 3)
    with raises("scribble-short", PromptError):
        ScribbleGesture([[0, 0, 0]])


# Anything goes ----------------------------------------------------------------------------------------------


def as_stored(snapshot):
    """The prompts of a snapshot, numbers as float32: a ROI node does not keep its centre more exactly."""
    exact = ("points", "frame", "size")
    rounded = [{name: np.float32(getattr(one, name)).tobytes() for name in exact} for one in snapshot]
    return {replace(one, **numbers) for one, numbers in zip(snapshot, rounded, strict=True)}


def test_a_thousand_things_a_hand_may_do_leave_nothing_behind(at_work, campaign, record_property):
    random = np.random.default_rng(7)
    views = [at_work.view("Red"), at_work.view("Green")]
    segmentation = at_work.segmentation.GetSegmentation()
    snapshots = [at_work.markups.snapshot()]
    record_property("random cases", 1000 * campaign)
    for _ in range(1000 * campaign):
        view = views[random.integers(2)]
        pixel = tuple(random.integers((10, 10), (390, 290)))
        ctrl = bool(random.random() < 0.2)
        action = random.integers(12)
        if action < 3:
            view.event("LeftButtonPressEvent", pixel, ctrl=ctrl)
        elif action < 6:
            view.move(pixel, ctrl=ctrl)
        elif action < 8:
            view.event("LeftButtonReleaseEvent", pixel)
        elif action == 8:
            view.type(random.choice(["x", "c", "Escape", "Delete", "n", "s"]))
        elif action == 9:
            at_work.segment = random.choice(["A", "B"])
            view.event(random.choice(["MouseWheelForwardEvent", "LeaveEvent", "EnterEvent"]), pixel)
        elif action == 10:
            snapshots = [*snapshots[-5:], at_work.markups.snapshot()]
        elif random.random() < 0.7:
            wanted = snapshots[random.integers(len(snapshots))]
            at_work.markups.restore(wanted)
            assert as_stored(at_work.markups.snapshot()) == as_stored(wanted)
        else:
            segment = segmentation.GetSegment("B")
            segmentation.RemoveSegment("B")
            assert "B" not in at_work.markups.segmentIDs()
            segmentation.AddSegment(segment, "B")
        if not at_work.hand.isDrawing:
            assert not views[0].actors.shown and not views[1].actors.shown
    nodes = at_work.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")
    assert nodes == len([n for n in at_work.markups._observer.nodes if n.IsA("vtkMRMLMarkupsNode")])
    for segment in ("A", "B"):
        at_work.markups.clear(segment)
    at_work.hand.drop()
    for name in ("vtkMRMLMarkupsNode", "vtkMRMLMarkupsDisplayNode", "vtkMRMLTextNode"):
        assert at_work.scene.GetNumberOfNodesByClass(name) == 0
    assert not views[0].actors.shown and not views[1].actors.shown
