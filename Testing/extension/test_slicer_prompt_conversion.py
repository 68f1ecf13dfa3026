"""Rectangles, points and strokes in millimetres become boxes and points of the slices they lie on."""

import numpy as np
import pytest

pytest.importorskip("slicer")
from hypothesis import given, settings
from hypothesis import strategies as st
from medsam2_core.errors import PromptError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts.slice_prompts import resolve
from MedSAM2SegmentLib.Prompts.PromptConversion import alongCurve, boxPrompt, pointPrompt
from support.errors import raises
from support.scene import a_matrix, direction_of, geometries, rotation

SHAPE_KJI = (16, 20, 24)


def a_stack(matrix, axis="axial"):
    volume = Volume(np.zeros(SHAPE_KJI, np.int16), Geometry(matrix, SHAPE_KJI[::-1]))
    return SliceStack.along(volume, axis)


def an_oblique_stack(matrix):
    volume = Volume(np.zeros(SHAPE_KJI, np.int16), Geometry(matrix, SHAPE_KJI[::-1]))
    directions = rotation((25, 15, 10))
    centre = volume.geometry.to_ras((np.array(SHAPE_KJI[::-1]) - 1) / 2)[0]
    return SliceStack.oblique(volume, centre, directions[:, 0], directions[:, 1])


def rectangle(stack, left, top, right, bottom, n):
    """(4, 3) RAS of a rectangle on a slice."""
    corners = [[left, top, n], [right, top, n], [right, bottom, n], [left, bottom, n]]
    return stack.volume.geometry.to_ras(stack.to_ijk(corners))


def box_of(stack, rasCorners):
    """(slice, left, top, right, bottom) that the core sees in the prompt."""
    n, box = boxPrompt(rasCorners, stack.volume.geometry, stack, "the box")
    ((seen, prompt),) = resolve([box], stack).items()
    assert seen == n
    return n, *np.round(prompt.box_xyxy.astype(float), 3).tolist()


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal", "i", "j", "k"])
@pytest.mark.parametrize("name", geometries())
def test_a_rectangle_on_a_slice_is_that_box(name, axis):
    stack = a_stack(geometries()[name], axis)
    height, width = stack.shape_hw
    assert box_of(stack, rectangle(stack, 2, 3, width - 4, height - 5, 6)) == (6, 2, 3, width - 4, height - 5)
    # The view need not stand exactly on the slice, and may have been drawn from any corner.
    assert box_of(stack, np.roll(rectangle(stack, 2, 3, 9, 8, 6.4), 1, axis=0)) == (6, 2, 3, 9, 8)


@settings(max_examples=60, deadline=None)
@given(
    edges=st.tuples(*[st.floats(-0.4, 0.9)] * 2, *[st.floats(0.05, 0.8)] * 2),
    n=st.floats(-0.49, 15.49).filter(lambda n: abs(n % 1 - 0.5) > 1e-6),  # half-way, rounding decides
    name=st.sampled_from(sorted(geometries())),
)
def test_a_rectangle_is_cut_off_where_the_volume_ends(edges, n, name):
    stack = a_stack(geometries()[name], "k")
    height, width = stack.shape_hw
    left, top = edges[0] * width, edges[1] * height
    right, bottom = left + edges[2] * width, top + edges[3] * height
    inside = np.clip([left, top, right, bottom], -0.5, [width - 0.5, height - 0.5] * 2)
    if min(inside[2] - inside[0], inside[3] - inside[1]) < 1e-2:
        return
    found = box_of(stack, rectangle(stack, left, top, right, bottom, n))
    assert found[0] == round(np.floor(n + 0.5))
    np.testing.assert_allclose(found[1:], inside, atol=2e-3)


@pytest.mark.parametrize("edges", [(-9, 2, -2, 8, 5), (2, 30, 9, 40, 5), (2, 2, 9, 9, 17), (2, 2, 9, 9, -2)])
def test_a_rectangle_beside_the_volume_is_refused(edges):
    stack = a_stack(geometries()["oblique"], "k")
    with raises("prompt-outside-volume", PromptError, prompt="the box"):
        boxPrompt(rectangle(stack, *edges), stack.volume.geometry, stack, "the box")


def test_a_rectangle_across_the_slices_is_refused_with_the_way_out():
    stack, other = a_stack(geometries()["plain"], "k"), a_stack(geometries()["plain"], "i")
    with raises("box-across-slices", PromptError, first=2, last=9):
        boxPrompt(rectangle(other, 2, 6, 9, 13, 5), stack.volume.geometry, stack, "the box")


@pytest.mark.parametrize(("degrees", "taken"), [(0.5, True), (1.5, True), (8.0, False), (30.0, False)])
def test_a_view_that_is_hardly_turned_shows_the_slices(degrees, taken):
    stack = a_stack(a_matrix(direction_of("LPS"), (1, 1, 0.2)), "k")
    centre = stack.volume.geometry.to_ras([11.5, 9.5, 8])
    corners = rectangle(stack, 2, 2, 20, 18, 8) - centre
    turned = corners @ rotation((degrees, 0, 0)).T + centre
    if taken:
        np.testing.assert_allclose(box_of(stack, turned), (8, 2, 2, 20, 18), atol=0.1)
    else:
        with raises("box-across-slices", PromptError):
            boxPrompt(turned, stack.volume.geometry, stack, "the box")


def test_a_rectangle_turned_in_the_plane_is_boxed_upright():
    stack = a_stack(geometries()["plain"], "k")
    corners = rectangle(stack, 6, 6, 14, 12, 4)
    centre = corners.mean(axis=0)
    found = box_of(stack, (corners - centre) @ rotation((0, 0, 30)).T + centre)
    half = np.array([8, 6]) / 2
    reach = [half @ [np.cos(np.pi / 6), 0.5], half @ [0.5, np.cos(np.pi / 6)]]
    np.testing.assert_allclose(
        found[1:], [10 - reach[0], 9 - reach[1], 10 + reach[0], 9 + reach[1]], atol=0.01
    )


@pytest.mark.parametrize("name", ["plain", "anisotropic", "oblique", "sheared"])
def test_boxes_on_oblique_slices_are_on_their_slice_and_on_the_volume(name):
    stack = an_oblique_stack(geometries()[name])
    height, width = stack.shape_hw
    n = len(stack) // 2
    middle = (width - 1) / 2, (height - 1) / 2
    x, y = middle
    assert box_of(stack, rectangle(stack, x - 2, y - 3, x + 2, y + 2, n)) == pytest.approx(
        (n, x - 2, y - 3, x + 2, y + 2), abs=2e-3
    )
    found = box_of(stack, rectangle(stack, -50, -50, width + 50, height + 50, n))  # more than the whole slice
    assert found[0] == n and found[3] - found[1] > 2 and found[4] - found[2] > 2


def test_points_keep_their_place_and_know_their_slice():
    stack = a_stack(geometries()["sheared oblique"], "coronal")
    geometry = stack.volume.geometry
    ijk = np.array([[3.25, 7.5, 2.0], [-0.5, 19.5, 15.5], [23.5, 0, 0]])
    for position in ijk:
        n, point = pointPrompt(geometry.to_ras(position), False, geometry, stack, "it")
        np.testing.assert_allclose(point.ijk, position, atol=1e-9)
        assert not point.positive and list(resolve([point], stack)) == [n]
    with raises("prompt-outside-volume", PromptError):
        pointPrompt(geometry.to_ras([24, 0, 0]), True, geometry, stack, "it")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=2, max_size=40))
def test_points_of_a_stroke_are_evenly_spread_along_it(positions):
    points = np.array(positions)
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    spread = alongCurve(points)
    assert 1 <= len(spread) <= min(8, len(points))
    steps = np.linalg.norm(np.diff(spread, axis=0), axis=1)
    assert (steps <= length / len(spread) + 1e-6).all()  # never further along a chord than along the stroke
    again = alongCurve(points[::-1])
    np.testing.assert_allclose(spread, again[::-1], atol=1e-6)


def test_a_stroke_across_slices_applies_to_each():
    stack = a_stack(geometries()["plain"], "k")
    stroke = [[2, 2, 1], [10, 2, 1], [10, 2, 5], [10, 2, 9]]
    geometry = stack.volume.geometry
    said = [pointPrompt(ras, True, geometry, stack, "the scribble") for ras in alongCurve(stroke)]
    assert [n for n, _ in said] == [1, 1, 3, 7]
