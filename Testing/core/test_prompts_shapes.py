"""Prompts made of other shapes: whole segments, 3-D boxes, diameters of lesions."""

import numpy as np
import pytest
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import AxisStack, SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt
from medsam2_core.prompts.shapes import kept_slices, of_box, of_line, of_outline, of_segment
from medsam2_core.prompts.slice_prompts import resolve
from support.command_line import ball_kji
from support.errors import raises


def a_stack(axis: str = "axial") -> AxisStack:
    geometry = Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), (40, 48, 24))
    return AxisStack(Volume(np.zeros((24, 48, 40), np.int16), geometry), axis)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("all", [3, 4, 5, 6, 9, 10, 11]),
        ("ends", [3, 11]),
        ("every:1", [3, 4, 5, 6, 9, 10, 11]),
        ("every:2", [3, 5, 9, 11]),
        ("every:4", [3, 9, 11]),
        ("every:100", [3, 11]),
    ],
)
def test_the_last_slice_is_kept_whatever_the_step(keep, expected):
    assert kept_slices([11, 10, 9, 6, 5, 4, 3], keep) == expected


def test_nothing_is_kept_of_nothing_and_one_of_one():
    assert kept_slices([], "ends") == []
    assert kept_slices([7], "ends") == kept_slices([7], "every:3") == [7]


@pytest.mark.parametrize(
    "keep", ["", "some", "every", "every:", "every:0", "every:-2", "every:1.5", "every:²"]
)
def test_another_choice_of_slices_is_refused(keep):
    with raises("unknown-keep", keep=keep):
        kept_slices([1, 2], keep)


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
def test_a_segment_is_its_masks_on_the_kept_slices(axis):
    stack, ball = a_stack(axis), ball_kji()
    whole = [n for n in range(len(stack)) if stack.mask_of(ball, n).any()]
    prompts = of_segment(MaskPrompt.from_volume(ball), stack, "every:3")
    masks = resolve(prompts, stack)
    assert list(masks) == kept_slices(whole, "every:3")
    assert len(prompts) == len(masks) < len(whole)
    for n, given in masks.items():
        assert np.array_equal(given.mask_hw, stack.mask_of(ball, n))


# 3-D boxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "middle", "limits"),
    [
        ("axial", Box((10, 12, 7), (20, 30, 7)), (4, 10)),
        ("coronal", Box((10, 21, 4), (20, 21, 10)), (12, 30)),
        ("sagittal", Box((15, 12, 4), (15, 30, 10)), (10, 20)),
    ],
)
def test_a_3d_box_is_the_box_of_its_middle_slice_and_a_range(axis, middle, limits):
    stack = a_stack(axis)
    box, found = of_box((20, 12, 10), (10, 30, 4), stack)
    slices = sorted(round(float(stack.to_slice([corner])[0, 2])) for corner in ((10, 12, 4), (20, 30, 10)))
    assert found == tuple(slices)
    assert found[1] - found[0] == limits[1] - limits[0]
    assert np.allclose([box.first_ijk, box.last_ijk], [middle.first_ijk, middle.last_ijk])
    assert list(resolve([box], stack)) == [sum(found) // 2]


def test_a_slice_counts_when_its_plane_is_met():
    stack = a_stack()
    assert of_box((1, 1, 3.4), (9, 9, 6.6), stack)[1] == (4, 6)
    assert of_box((1, 1, -8), (9, 9, 99), stack)[1] == (0, 23)
    for low, high in ((3.2, 3.8), (-3, -1), (24, 30)):
        with raises("box-between-slices", first=low, last=high, slices=24):
            of_box((1, 1, low), (9, 9, high), stack)


def test_a_3d_box_on_oblique_slices_holds_all_its_corners():
    stack = SliceStack.oblique(a_stack().volume, (-39, -20, 0), (1, 0, 0), (0, 0.8, 0.6))
    box, (first, last) = of_box((10, 12, 4), (20, 30, 10), stack)
    (n,) = resolve([box], stack)
    assert first < n < last
    left, top, right, bottom = resolve([box], stack)[n].box_xyxy
    x, y, _ = stack.to_slice([(10, 12, 4), (10, 30, 10), (20, 12, 4), (20, 30, 4)]).T
    assert left <= x.min() + 1e-3 and right >= x.max() - 1e-3
    assert top <= y.min() + 1e-3 and bottom >= y.max() - 1e-3


# Diameters --------------------------------------------------------------------------------------------------


def size_px(box, stack):
    (given,) = resolve([box], stack).values()
    left, top, right, bottom = given.box_xyxy
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def test_one_diameter_gives_a_box_that_is_narrower_across():
    stack = a_stack()
    assert np.allclose(size_px(of_line(((10, 20, 5), (30, 20, 5)), stack), stack), (20, 20, 20, 14))
    assert np.allclose(size_px(of_line(((20, 10, 5), (20, 30, 5)), stack), stack), (20, 20, 14, 20))


def test_both_diameters_give_the_box_of_their_ellipse():
    stack = a_stack()
    box = of_line(((10, 20, 5), (30, 20, 5)), stack, ((18, 14, 5), (18, 24, 5)))
    # 10 pixels wide, half-way between the middles of both lines.
    assert np.allclose(size_px(box, stack), (20, 19.5, 20, 10))


def test_a_slanted_ellipse_is_wider_than_the_span_of_its_diameter():
    stack = a_stack()
    longest, across = ((12, 12, 5), (28, 28, 5)), ((24, 16, 5), (16, 24, 5))
    x, y, width, height = size_px(of_line(longest, stack, across), stack)
    radius = np.hypot(8, 8), np.hypot(4, 4)
    assert np.allclose((x, y), (20, 20))
    assert np.allclose((width, height), 2 * np.hypot(*radius) / np.sqrt(2))


def test_across_means_at_right_angles_in_the_patient():
    """Pixels of a sagittal slice of this volume are 1 mm by 2 mm."""
    stack = a_stack("sagittal")
    *_, width, height = size_px(of_line(((20, 14, 12), (20, 34, 12)), stack), stack)
    width_mm, height_mm = width * stack.pixel_mm[1], height * stack.pixel_mm[0]
    assert np.allclose((width_mm, height_mm), (20, 14))


def test_a_box_of_diameters_ends_at_the_slices_edge():
    stack = a_stack()
    (given,) = resolve([of_line(((0, 1, 5), (39, 1, 5)), stack)], stack).values()
    assert np.allclose(given.box_xyxy[:2], (0, -0.5), atol=1e-4)


@pytest.mark.parametrize(
    ("longest", "across", "code"),
    [
        (((10, 20, 5), (30, 20, 8)), None, "line-across-slices"),
        (((10, 20, 5), (30, 20, 5)), ((20, 10, 9), (20, 30, 9)), "line-across-slices"),
        (((10, 20, 99), (30, 20, 99)), None, "line-across-slices"),
        (((10, 20, 5), (10.5, 20, 5)), None, "line-too-short"),
        (((-30, 20, 5), (-10, 20, 5)), None, "line-outside-volume"),
        (((10, 90, 5), (30, 90, 5)), ((20, 88, 5), (20, 92, 5)), "line-outside-volume"),
    ],
)
def test_what_is_no_diameter_of_a_slice_is_refused(longest, across, code):
    with raises(code):
        of_line(longest, a_stack(), across)


# Outlines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
def test_an_outline_holds_the_pixels_whose_centres_are_inside(axis):
    stack = a_stack(axis)
    angles = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    circle = np.column_stack([11 + 8.3 * np.cos(angles), 12 + 6.3 * np.sin(angles), np.full(80, 9)])
    n, mask_hw = of_outline(stack.to_ijk(circle), stack)
    y, x = np.mgrid[: mask_hw.shape[0], : mask_hw.shape[1]]
    wanted = ((x - 11) / 8.3) ** 2 + ((y - 12) / 6.3) ** 2 < 1
    assert n == 9
    assert (mask_hw ^ wanted).sum() <= 4  # 80 corners are not quite an ellipse


def test_an_outline_beyond_the_slice_is_cut_off_and_a_figure_of_eight_has_two_halves():
    stack = a_stack()
    _, mask_hw = of_outline([(-9, -9, 3), (99, -9, 3), (99, 99, 3), (-9, 99, 3)], stack)
    assert mask_hw.all()
    _, mask_hw = of_outline([(4.5, 4.5, 3), (20.5, 20.5, 3), (20.5, 4.5, 3), (4.5, 20.5, 3)], stack)
    assert mask_hw[12, 8] != mask_hw[8, 12]


def test_what_is_no_outline_on_a_slice_is_refused():
    with raises("outline-across-slices"):
        of_outline([(1, 1, 3), (9, 1, 3), (9, 9, 6)], a_stack())
    with raises("empty-outline", n=3):
        of_outline([(1.2, 1.2, 3), (1.4, 1.2, 3), (1.4, 1.4, 3)], a_stack())
