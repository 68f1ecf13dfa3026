"""Prompts in real slice views: moved with Slicer's own interaction, shown only near their slice."""

import numpy as np
import pytest

pytest.importorskip("slicer")
pytest.importorskip("trame_slicer")
from medsam2_core.prompts import Box
from support.prompting_user import PromptingUser
from support.scene import a_matrix, direction_of, paint
from support.segment_editor import LogicEditor
from support.shown_errors import every_error_shown

SHAPE_KJI = (24, 30, 36)
GREEN = (0.5, 0.68, 0.5)


@pytest.fixture
def user():
    user = PromptingUser()
    user.opens(a_matrix(direction_of("LPS"), (1, 1, 3)), np.zeros(SHAPE_KJI, np.int16))
    user.segmentation.GetSegmentation().GetSegment("A").SetColor(*GREEN)
    user.view("Red")
    with every_error_shown():
        yield user
        user.leaves()


def coloured(view, color):
    """How many pixels of a view have a colour, nearly."""
    difference = view.picture().astype(float) - 255 * np.array(color)
    return int((np.abs(difference).max(axis=2) < 12).sum())


def draw_everything(user):
    """A point of each kind, a box and a scribble on the slice that is shown."""
    view = user.views["Red"]
    view.click((200, 150))
    view.click((240, 160), ctrl=True)
    user.takes("box")
    view.drag((150, 200), (260, 110))
    user.takes("scribble")
    view.drag((160, 60), (250, 70))
    user.takes("point")
    view.move((5, 5))
    user.changes.clear()
    return view


# Moving -----------------------------------------------------------------------------------------------------


def test_a_point_is_moved_with_the_mouse_and_reported_once_at_the_end(user):
    view = user.views["Red"]
    view.click((200, 150))
    view.click((260, 180))
    user.changes.clear()
    view.press((201, 151))
    for step in range(1, 20):
        view.move((201 + 2 * step, 151 + step))
    assert not user.changes
    view.release((239, 170))
    assert user.changes == [("A",)] and len(user.gestures) == 2
    first, second = user.prompts()
    wanted = user.adapter.geometry.to_ijk(view.ras_of((238, 169)))[0]  # held where it was taken
    np.testing.assert_allclose(first.ijk, wanted, atol=0.15)
    np.testing.assert_allclose(
        second.ijk, user.adapter.geometry.to_ijk(view.ras_of((260, 180)))[0], atol=0.15
    )


def test_a_click_on_a_point_neither_moves_it_nor_makes_another(user):
    view = user.views["Red"]
    view.click((200, 150))
    before = user.markups.snapshot()
    user.changes.clear()
    view.click((202, 151))
    assert user.markups.snapshot() == before and not user.changes


def test_a_point_that_was_just_placed_is_moved_before_the_mouse_was(user):
    view = user.views["Red"]
    view.click((200, 150))
    view.view.render()
    view.event("LeftButtonPressEvent", (200, 150))
    for step in range(1, 11):
        view.move((200 + 4 * step, 150))
    view.release((240, 150))
    assert len(user.gestures) == 1 and len(user.prompts()) == 1
    wanted = user.adapter.geometry.to_ijk(view.ras_of((240, 150)))[0]
    np.testing.assert_allclose(user.prompts()[0].ijk, wanted, atol=0.15)


@pytest.mark.parametrize("corner", range(4))
def test_a_corner_of_a_box_is_dragged(user, corner):
    view = user.takes("box").views["Red"]
    view.drag((150, 200), (260, 110))
    user.changes.clear()
    left, right, bottom, top = 150, 260, 110, 200
    x, y = [(left, bottom), (right, bottom), (right, top), (left, top)][corner]
    view.move((5, 5))
    view.drag((x, y), (x + 12, y - 9))
    assert user.changes == [("A",)] and len(user.gestures) == 1
    if x == left:
        left += 12
    else:
        right += 12
    if y == bottom:
        bottom -= 9
    else:
        top -= 9
    (box,) = user.prompts()
    ends = user.adapter.geometry.to_ijk([view.ras_of((left, bottom)), view.ras_of((right, top))])
    wanted = Box.between(*ends)
    np.testing.assert_allclose([box.first_ijk, box.last_ijk], [wanted.first_ijk, wanted.last_ijk], atol=0.1)


def test_a_box_is_moved_by_its_centre(user):
    view = user.takes("box").views["Red"]
    view.drag((150, 200), (260, 110))
    (before,) = user.prompts()
    user.changes.clear()
    view.drag((205, 155), (225, 135))
    (after,) = user.prompts()
    assert user.changes == [("A",)]
    step = user.adapter.geometry.to_ijk(view.ras_of((20, -20))) - user.adapter.geometry.to_ijk(
        view.ras_of((0, 0))
    )
    np.testing.assert_allclose(np.subtract(after.first_ijk, before.first_ijk), step[0], atol=0.1)
    np.testing.assert_allclose(np.subtract(after.last_ijk, before.last_ijk), step[0], atol=0.1)


def test_a_scribble_is_bent_by_one_of_its_points(user):
    view = user.takes("scribble").views["Red"]
    view.drag((160, 60), (250, 60))
    before = user.prompts()
    user.changes.clear()
    view.drag((160, 60), (150, 100))
    assert user.changes == [("A",)]
    assert user.prompts()[0] != before[0] and user.prompts()[-1].ijk == pytest.approx(before[-1].ijk, abs=0.6)


def test_slicers_own_markups_can_be_moved_when_they_are_not_under_a_tool(user):
    """What others placed is no prompt: a press near it belongs to the tool in hand."""
    view = user.views["Red"]
    mine = user.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    mine.AddControlPointWorld(*view.ras_of((120, 120)))
    view.click((121, 120))
    assert len(user.gestures) == 1 and mine.GetNumberOfControlPoints() == 1


# Showing ----------------------------------------------------------------------------------------------------


def test_prompts_show_in_the_colour_of_their_segment_and_follow_it(user):
    view = draw_everything(user)
    assert coloured(view, GREEN) > 200
    blue = (0.1, 0.2, 0.9)
    user.segmentation.GetSegmentation().GetSegment("B").SetColor(0.9, 0.2, 0.1)
    assert coloured(view, GREEN) > 200
    user.segmentation.GetSegmentation().GetSegment("A").SetColor(*blue)
    assert coloured(view, GREEN) == 0 and coloured(view, blue) > 200
    assert not user.changes


def test_prompts_show_only_near_their_slice(user):
    view = draw_everything(user)
    here, shown = view.view.get_slice_value(), coloured(view, GREEN)
    assert shown > 200
    for offset, visible in ((1.2, True), (1.6, False), (3.0, False), (-3.0, False), (0.0, True)):
        view.view.set_slice_value(here + offset)
        assert bool(coloured(view, GREEN)) == visible, offset


def test_prompts_can_be_hidden_and_are_then_not_in_the_way(user):
    view = draw_everything(user)
    shown = coloured(view, GREEN)
    user.markups.setVisible(False)
    assert coloured(view, GREEN) == 0
    user.changes.clear()
    view.click((201, 151))
    assert user.changes == [("A",)] and coloured(view, GREEN) == 0
    user.markups.setVisible(True)
    assert coloured(view, GREEN) > shown * 0.9


def darkest(view, ras):
    """The darkest pixel near the centre of a point."""
    x, y = view.pixel_of(ras)
    rows = view.picture()[::-1][y - 4 : y + 5, x - 4 : x + 5]
    return int(rows.max(axis=2).min())


def test_points_show_on_the_fill_of_their_own_segment_also_after_an_undo(user):
    view = user.view("Yellow", size=(1000, 800))
    view.click((500, 400))
    view.click((600, 400), ctrl=True)
    places = [view.ras_of(pixel) for pixel in ((500, 400), (600, 400))]
    view.move((5, 5))
    editor = LogicEditor(user.segmentation, user.volume, "A")
    everywhere = np.ones(SHAPE_KJI, dtype=bool)
    for mode in ("add", "remove"):
        editor.saveStateForUndo()
        paint(editor, everywhere, "A", mode)
    editor.undo()
    user.markups.update()
    assert view.picture()[400, 550].max() > 50  # the fill
    assert max(darkest(view, place) for place in places) < 10
    editor.undo()
    editor.redo()
    user.markups.update()
    assert max(darkest(view, place) for place in places) < 10
    assert user.changes == [("A",), ("A",)]  # the two clicks
    view.drag((500, 400), (500, 450))
    assert len(user.changes) == 3 and len(user.gestures) == 2


def test_prompts_are_small(user):
    view = draw_everything(user)
    background = view.picture().max(axis=2) > 0
    assert background.mean() < 0.02  # of the view; the volume is black


def test_only_the_nearest_prompt_is_hit_and_only_on_its_slice(user):
    view = user.views["Red"]
    view.click((200, 150))
    view.click((222, 150))
    near, far = user.markups.hit(view.node, (206, 150)), user.markups.hit(view.node, (260, 150))
    assert near is not None and near.index == 0 and near.segmentID == "A" and far is None
    assert user.markups.hit(view.node, (218, 152)).index == 1
    view.view.set_slice_value(view.view.get_slice_value() + 3)
    assert user.markups.hit(view.node, (200, 150)) is None
