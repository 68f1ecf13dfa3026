"""Prompts say where an object is; those that cannot be true are refused with the value and the bounds."""

import numpy as np
import pytest
from medsam2_core.errors import PromptError
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet
from medsam2_core.prompts.slice_prompts import resolve, validate
from support.errors import raises
from support.small_files import OBLIQUE_RAS, a_volume


def a_stack(axis="axial", shape_kji=(10, 20, 30), matrix=None) -> SliceStack:
    return SliceStack.along(a_volume(shape_kji, matrix), axis)


def test_clicks_become_pixels_of_their_slice():
    resolved = resolve([Point((3, 4, 5)), Point((7.5, 4, 5), positive=False), Point((1, 1, 2.3))], a_stack())
    assert list(resolved) == [2, 5]
    assert resolved[5].points_xy.tolist() == [[3, 4], [7.5, 4]]
    assert resolved[5].labels.tolist() == [1, 0]
    assert resolved[2].points_xy.tolist() == [[1, 1]]
    assert resolved[5].box_xyxy is None
    assert resolved[5].mask_hw is None


def test_a_box_is_left_top_right_bottom_whatever_way_the_slice_is_shown():
    box = Box((3, 4, 5), (9, 11, 5))
    assert resolve([box], a_stack())[5].box_xyxy.tolist() == [3, 4, 9, 11]
    mirrored = a_stack(matrix=np.diag([1.0, 1, 1, 1]))  # RAS: columns and rows are shown from the other end
    assert resolve([box], mirrored)[5].box_xyxy.tolist() == [20, 8, 26, 15]


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_box_on_a_slice_of_any_plane_surrounds_the_voxels_it_names(axis):
    stack = a_stack(axis, matrix=OBLIQUE_RAS)
    first, last = np.array([3, 4, 5]), np.array([9, 11, 8])
    last[stack.array_axis] = first[stack.array_axis]
    mask_kji = np.zeros((10, 20, 30), bool)
    mask_kji[first[2] : last[2] + 1, first[1] : last[1] + 1, first[0] : last[0] + 1] = True
    ((n, prompt),) = resolve([Box(tuple(first), tuple(last))], stack).items()
    rows, columns = stack.mask_of(mask_kji, n).nonzero()
    assert prompt.box_xyxy.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_masks_become_masks_of_the_slices_that_hold_voxels():
    mask_kji = np.zeros((10, 20, 30), bool)
    mask_kji[3, 5:9, 7:12] = mask_kji[6, 5:9, 7:12] = True
    prompt = MaskPrompt.from_volume(mask_kji)
    assert prompt.offset_ijk == (7, 5, 3)
    assert prompt.mask_kji.shape == (4, 4, 5)
    stack = a_stack()
    resolved = resolve([prompt], stack)
    assert list(resolved) == [3, 6]
    assert np.array_equal(stack.volume_mask({n: p.mask_hw for n, p in resolved.items()}), mask_kji)


def test_a_mask_of_one_slice_may_mean_that_the_object_is_absent():
    resolved = resolve([MaskPrompt(np.zeros((1, 4, 4), bool), (2, 2, 7))], a_stack())
    assert list(resolved) == [7]
    assert not resolved[7].mask_hw.any()


def test_prompts_on_an_oblique_plane_land_on_its_slices():
    volume = a_volume((20, 20, 20))
    stack = SliceStack.oblique(volume, (-10, -10, 10), (-1, 0, 0), (0, -0.8, 0.6))
    corners = stack.to_ijk([[5, 6, 8], [11, 12, 8]])
    resolved = resolve([Box.between(*corners.tolist()), Point(tuple(stack.to_ijk([[7, 8, 8]])[0]))], stack)
    assert np.allclose(resolved[8].box_xyxy, [5, 6, 11, 12])
    assert np.allclose(resolved[8].points_xy, [[7, 8]])


def test_the_same_place_in_the_patient_is_the_same_pixel_in_ten_axis_orders(shared_data):
    seen = []
    for path in sorted((shared_data / "orient").glob("???.nii.gz")):
        volume = read_volume(path)
        stack = SliceStack.along(volume, "axial")
        point, first, last = volume.geometry.to_ijk([[5, -3, 12], [-30, -20, 11.83], [25, 30, 11.83]])
        first[stack.array_axis] = last[stack.array_axis]
        ((n, prompt),) = resolve([Point(tuple(point)), Box.between(first, last)], stack).items()
        seen.append([n, *prompt.points_xy[0], *prompt.box_xyxy])
    assert len(seen) == 10
    assert np.ptp(seen, axis=0).max() < 1e-3


# What is refused


@pytest.mark.parametrize(
    ("ijk", "axis", "value", "size"),
    [((-0.6, 5, 5), "i", -0.6, 30), ((5, 19.6, 5), "j", 19.6, 20), ((5, 5, 10), "k", 10, 10)],
)
def test_a_point_outside_is_named_with_the_bounds(ijk, axis, value, size):
    with raises("outside-volume", PromptError, axis=axis, value=value, size=size):
        resolve([Point(ijk)], a_stack())


def test_points_on_the_outer_faces_are_inside():
    resolved = resolve([Point((-0.5, -0.5, -0.5)), Point((29.5, 19.5, 9.5))], a_stack())
    assert list(resolved) == [0, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with raises("not-finite", PromptError):
        Point((1, value, 2))
    with raises("not-finite", PromptError):
        Box((1, 2, 3), (4, value, 3))


@pytest.mark.parametrize("ijk", [(1, 2), "abc", None, (1, 2, "x"), (1, 2, 3, 4)])
def test_what_is_not_a_position_is_refused(ijk):
    with raises("not-three-numbers", PromptError):
        Point(ijk)


def test_an_inverted_box_names_the_axis():
    with raises("inverted-box", PromptError, axis="i"):
        Box((9, 4, 5), (3, 11, 5))
    assert Box.between((9, 4, 5), (3, 11, 5)) == Box((3, 4, 5), (9, 11, 5))


@pytest.mark.parametrize(("first", "last"), [((3, 4, 5), (3, 11, 5)), ((3, 4, 5), (3, 4, 5))])
def test_an_empty_box_is_refused(first, last):
    with raises("empty-box", PromptError):
        Box(first, last)


def test_a_box_must_fit_the_volume():
    with raises("outside-volume", PromptError, axis="i", value=30, size=30):
        resolve([Box((3, 4, 5), (30, 11, 5))], a_stack())


def test_a_box_through_several_slices_is_refused():
    with raises("box-spans-slices", PromptError, first=3, last=6, flat_axis=None):
        resolve([Box((3, 4, 3), (9, 11, 6))], a_stack())


def test_a_box_of_another_axis_is_refused_as_mixed():
    with raises("box-spans-slices", PromptError, flat_axis=0):
        resolve([Box((3, 4, 3), (3, 11, 6))], a_stack())


def test_boxes_that_imply_different_axes_are_refused():
    prompts = PromptSet()
    prompts.add("liver", Box((3, 4, 5), (9, 11, 5)))
    assert prompts.implied_axis() == "k"
    prompts.add("spleen", Box((3, 4, 3), (3, 11, 6)))
    with raises("mixed-axes", PromptError, axes=["k", "i"]):
        prompts.implied_axis()
    with raises("mixed-axes", PromptError):
        validate(prompts, a_stack())


def test_two_boxes_of_an_object_on_one_slice_are_refused():
    with raises("two-boxes", PromptError, n=5):
        resolve([Box((3, 4, 5), (9, 11, 5)), Box((3, 4, 5), (9, 12, 5))], a_stack())


def test_a_mask_must_fit_and_hold_something():
    with raises("outside-volume", PromptError, axis="i", value=31):
        resolve([MaskPrompt(np.ones((2, 4, 4), bool), (28, 0, 0))], a_stack())
    with raises("empty-mask", PromptError):
        MaskPrompt(np.zeros((2, 4, 4), bool))
    with raises("empty-mask", PromptError):
        MaskPrompt.from_volume(np.zeros((10, 20, 30), bool))
    with raises("mask-type", PromptError, dtype="float64"):
        MaskPrompt(np.zeros((1, 4, 4)))
    with raises("empty-mask", PromptError):
        resolve([MaskPrompt(np.zeros((2, 1, 4), bool))], a_stack())


@pytest.mark.parametrize("value", [np.bool_(True), 1, np.int64(1)])
def test_flags_become_plain_booleans(value):
    """Numpy's are not JSON-serialisable, and are never identical to True."""
    assert Point((1, 2, 3), value).positive is True
    assert Box((3, 4, 5), (9, 11, 5), value).predicted is True
    prompts = PromptSet({"liver": [Point((1, 2, 3), value)]})
    assert PromptSet.from_json(prompts.to_json()) == prompts


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool])
def test_masks_become_boolean_arrays(dtype):
    mask = MaskPrompt(np.array([[[0, 2, 1]]]).astype(dtype))
    assert mask.mask_kji.dtype == bool and mask.mask_kji.tolist() == [[[False, True, True]]]
    assert mask == MaskPrompt(np.array([[[False, True, True]]]))


def test_an_unknown_object_is_named_with_the_known_ones():
    prompts = PromptSet()
    prompts.add("liver", Point((1, 2, 3)))
    with raises("unknown-object", PromptError, object="lever", known=["liver"]):
        prompts.of("lever")
    with raises("object-name", PromptError):
        prompts.add(" ", Point((1, 2, 3)))
    with raises("not-a-prompt", PromptError):
        prompts.add("liver", (1, 2, 3))


def test_validation_names_the_wrong_object():
    prompts = PromptSet()
    prompts.add("liver", Point((1, 2, 3)))
    prompts.add("spleen", Point((1, 2, 33)))
    with raises("outside-volume", PromptError, object="spleen", axis="k"):
        validate(prompts, a_stack())


def test_objects_keep_their_order_and_can_be_removed():
    prompts = PromptSet()
    for name in ("liver", "spleen", "aorta"):
        prompts.add(name, Point((1, 2, 3)))
    prompts.remove_object("spleen")
    assert prompts.names == ("liver", "aorta")
    assert [name for name, _ in prompts] == ["liver", "aorta"]
    assert len(prompts) == 2
