"""A stack shows the same anatomy the same way whatever the file, and every pixel finds its voxel again."""

import tracemalloc

import nibabel
import numpy as np
import pytest
from medsam2_core.errors import GeometryError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import automatic_window, to_display
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.slices import AXES, SliceStack
from medsam2_core.imaging.volume import Volume
from support.errors import raises
from support.small_files import OBLIQUE_RAS, a_volume, some_voxels

PLANES = ("axial", "coronal", "sagittal")


def head_in_every_axis_order(shared_data):
    return {path.name[:3]: read_volume(path) for path in sorted((shared_data / "orient").glob("???.nii.gz"))}


def test_ten_axis_orders_of_one_head_give_bit_equal_slices(shared_data):
    heads = head_in_every_axis_order(shared_data)
    assert len(heads) == 10
    for plane in PLANES:
        expected = SliceStack.along(heads["RAS"], plane)
        for codes, head in heads.items():
            assert head.geometry.axis_codes == codes
            stack = SliceStack.along(head, plane)
            assert (len(stack), stack.shape_hw) == (len(expected), expected.shape_hw)
            assert np.allclose((*stack.pixel_mm, stack.slice_mm), (*expected.pixel_mm, expected.slice_mm))
            assert all(np.array_equal(stack.image_hw(n), expected.image_hw(n)) for n in range(len(stack)))


def test_a_pixel_is_at_the_same_place_in_the_patient_in_ten_axis_orders(shared_data):
    heads = head_in_every_axis_order(shared_data)
    pixels = [[3, 5, 7], [40.25, 20.5, 30]]
    for plane in PLANES:
        places = [h.geometry.to_ras(SliceStack.along(h, plane).to_ijk(pixels)) for h in heads.values()]
        assert np.ptp(places, axis=0).max() < 1e-3


def test_columns_rows_and_slices_run_as_a_radiologist_expects():
    volume = a_volume(ijk_to_ras=OBLIQUE_RAS)
    expected = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
    towards = {"L": (-1, 0, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    for plane, codes in expected.items():
        stack = SliceStack.along(volume, plane)
        corner, *steps = volume.geometry.to_ras(stack.to_ijk([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]))
        for step, code in zip(steps, codes, strict=True):
            assert (step - corner) @ towards[code] > 0


@pytest.mark.parametrize("axis", AXES)
def test_every_pixel_is_the_voxel_at_its_position(axis):
    volume = a_volume((4, 5, 6), OBLIQUE_RAS)
    stack = SliceStack.along(volume, axis)
    height, width = stack.shape_hw
    assert height * width * len(stack) == volume.voxels_kji.size
    for n in range(len(stack)):
        image = stack.image_hw(n)
        for y in range(height):
            for x in range(width):
                i, j, k = np.rint(stack.to_ijk([[x, y, n]])[0]).astype(int)
                assert image[y, x] == volume.voxels_kji[k, j, i]
    points = np.random.default_rng(0).uniform(0, 4, (20, 3))
    assert np.allclose(stack.to_ijk(stack.to_slice(points)), points)


def test_an_array_axis_looks_like_the_plane_closest_to_it():
    volume = a_volume()
    for axis, plane in (("i", "sagittal"), ("j", "coronal"), ("k", "axial")):
        one, other = SliceStack.along(volume, axis), SliceStack.along(volume, plane)
        assert one.key == other.key
        assert np.array_equal(one.image_hw(1), other.image_hw(1))


@pytest.mark.parametrize("axis", AXES)
def test_masks_of_slices_come_back_voxel_by_voxel(axis):
    volume = a_volume((4, 5, 6), OBLIQUE_RAS)
    stack = SliceStack.along(volume, axis)
    mask_kji = some_voxels((4, 5, 6), bool)
    masks = {n: stack.mask_of(mask_kji, n) for n in range(len(stack))}
    assert np.array_equal(stack.volume_mask(masks), mask_kji)
    assert all(m.flags.c_contiguous and m.dtype == bool for m in masks.values())


@pytest.mark.parametrize("axis", AXES)
def test_a_cropped_mask_shows_as_the_whole_one_does(axis):
    volume = a_volume((7, 8, 9), OBLIQUE_RAS)
    stack = SliceStack.along(volume, axis)
    whole = np.zeros((7, 8, 9), bool)
    whole[2:5, 3:7, 1:4] = part = some_voxels((3, 4, 3), bool)
    for n in range(len(stack)):
        assert np.array_equal(stack.mask_of(part, n, (1, 3, 2)), stack.mask_of(whole, n))


def test_slices_that_are_not_given_stay_empty():
    stack = SliceStack.along(a_volume(), "sagittal")
    assert stack.volume_mask({2: np.ones(stack.shape_hw, bool)}).sum() == 4 * 5
    with raises("mask-shape", GeometryError):
        stack.volume_mask({2: np.zeros((2, 2), bool)})


def test_a_slice_that_does_not_exist_is_named_with_the_bounds():
    stack = SliceStack.along(a_volume(), "axial")
    for n in (-1, 4):
        with raises("no-such-slice", GeometryError, n=n, slices=4):
            stack.image_hw(n)
    with raises("unknown-axis", GeometryError):
        SliceStack.along(a_volume(), "transverse")


def test_pictures_keep_their_orientation():
    pixels = some_voxels((7, 9), np.uint8)
    picture = Volume(pixels[np.newaxis], Geometry.for_picture(7, 9))
    assert np.array_equal(SliceStack.along(picture, "axial").image_hw(0), pixels)
    colour = some_voxels((7, 9, 3), np.uint8)
    picture = Volume(colour[np.newaxis], Geometry.for_picture(7, 9))
    assert np.array_equal(SliceStack.along(picture, "k").image_hw(0), colour)


def test_slices_of_a_sheared_volume_are_as_far_apart_as_their_planes():
    sheared = np.diag([1.0, 1.0, 5.0, 1.0])
    sheared[1, 2] = 5 * np.tan(np.radians(20))
    volume = a_volume(ijk_to_ras=sheared)
    assert SliceStack.along(volume, "axial").slice_mm == pytest.approx(5.0)
    assert volume.geometry.spacing[2] > 5.3


def test_pixel_sizes_are_between_rows_then_between_columns():
    volume = a_volume(ijk_to_ras=np.diag([-0.5, -0.7, 3.0, 1]))
    assert SliceStack.along(volume, "axial").pixel_mm == pytest.approx((0.7, 0.5))
    assert SliceStack.along(volume, "coronal").pixel_mm == pytest.approx((3.0, 0.5))
    assert SliceStack.along(volume, "sagittal").pixel_mm == pytest.approx((3.0, 0.7))


# Oblique planes


def test_an_oblique_stack_along_the_axes_is_the_axial_stack_bit_for_bit():
    matrix = np.diag([-0.5, -0.7, 3.0, 1])
    volume = a_volume((6, 7, 8), matrix)
    axial = SliceStack.along(volume, "axial")
    stack = SliceStack.oblique(volume, volume.geometry.origin_ras, (-1, 0, 0), (0, -1, 0))
    assert (stack.shape_hw, len(stack)) == (axial.shape_hw, len(axial))
    assert stack.pixel_mm == pytest.approx(axial.pixel_mm)
    assert all(np.array_equal(stack.image_hw(n), axial.image_hw(n)) for n in range(len(axial)))
    mask_kji = some_voxels((6, 7, 8), bool)
    assert np.array_equal(stack.volume_mask({n: stack.mask_of(mask_kji, n) for n in range(6)}), mask_kji)


def test_an_oblique_stack_on_a_real_oblique_volume_follows_the_patient(shared_data):
    flair = read_volume(shared_data / "orient" / "oblique_FLAIR.nrrd")
    origin = flair.geometry.to_ras([[60, 80, 70]])[0]
    stack = SliceStack.oblique(flair, origin, (-1, 0, 0), (0, -1, 0))
    x, y, n = stack.to_slice([[60, 80, 70]])[0]
    assert np.allclose([x, y, n], np.rint([x, y, n]), atol=1e-6)  # a pixel centre lies on the origin
    step = flair.geometry.to_ras(stack.to_ijk([[0, 0, 0], [1, 0, 0]]))
    assert np.allclose((step[1] - step[0]) / stack.pixel_mm[1], (-1, 0, 0))
    image = stack.image_hw(round(n))
    assert image[round(y), round(x)] == flair.voxels_kji[70, 80, 60]


def test_sampled_values_lie_on_the_ramp_they_come_from():
    k, j, i = np.mgrid[:12, :14, :16]
    volume = Volume((10 * i + 3 * j + 7 * k).astype(np.float32), Geometry(OBLIQUE_RAS, (16, 14, 12)))
    stack = SliceStack.oblique(volume, volume.geometry.to_ras([[8, 7, 6]])[0], (1, 0.2, 0.1), (0.2, -1, 0))
    n = len(stack) // 2
    height, width = stack.shape_hw
    y, x = np.mgrid[:height, :width]
    ijk = stack.to_ijk(np.stack([x.ravel(), y.ravel(), np.full(x.size, n)], axis=1))
    inside = ((ijk > 0) & (ijk < (15, 13, 11))).all(axis=1)
    assert inside.sum() > 50
    assert np.allclose(stack.image_hw(n).ravel()[inside], (ijk @ (10, 3, 7))[inside], atol=1e-2)


def test_a_ball_comes_back_from_oblique_slices_with_non_square_pixels():
    matrix = np.diag([-0.8, -1.1, 1.6, 1])
    volume = a_volume((30, 44, 60), matrix)
    k, j, i = np.mgrid[:30, :44, :60]
    ball = ((i - 30) * 0.8) ** 2 + ((j - 22) * 1.1) ** 2 + ((k - 15) * 1.6) ** 2 < 14**2
    stack = SliceStack.oblique(volume, (0, 0, 0), (-1, 0.3, 0.2), (0.3, 1, 0))
    masks = {n: stack.mask_of(ball, n) for n in range(len(stack))}
    back = stack.volume_mask(masks)
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.97
    single = [stack.volume_mask({n: mask_hw}) for n, mask_hw in masks.items()]
    assert np.array_equal(np.any(single, axis=0), back)


def test_every_voxel_belongs_to_exactly_one_pixel_of_an_oblique_stack():
    volume = a_volume((9, 10, 11), OBLIQUE_RAS)
    stack = SliceStack.oblique(volume, (3, 4, 5), (1, 0.5, 0), (0, 0, 1), spacing_mm=(0.5, 0.9, 1.3))
    assert stack.pixel_mm == (0.9, 0.5)
    assert stack.slice_mm == 1.3
    full = {n: np.ones(stack.shape_hw, bool) for n in range(len(stack))}
    assert stack.volume_mask(full).all()


def test_colour_and_missing_numbers_survive_oblique_sampling():
    colour = np.broadcast_to(np.array([10, 200, 30], np.uint8), (5, 6, 7, 3))
    volume = Volume(colour, Geometry(np.diag([-1.0, -1, 1, 1]), (7, 6, 5)))
    stack = SliceStack.oblique(volume, (0, 0, 0), (-1, 0.4, 0), (0.4, 1, 0))
    image = stack.image_hw(len(stack) // 2)
    assert set(map(tuple, image.reshape(-1, 3))) == {(10, 200, 30), (0, 0, 0)}
    voxels = np.ones((5, 6, 7), np.float32)
    voxels[2, 3, 3] = np.nan
    volume = Volume(voxels, volume.geometry)
    stack = SliceStack.oblique(volume, volume.geometry.origin_ras, (-1, 0, 0), (0, -1, 0))
    assert np.isnan(stack.image_hw(2)).sum() == 1


@pytest.mark.parametrize(
    ("row", "column", "spacing", "problem"),
    [
        ((1, 0, 0), (1, 1, 0), None, {"code": "plane-not-orthogonal"}),
        ((0, 0, 0), (0, 1, 0), None, {"code": "invalid-direction", "direction": "row"}),
        ((1, 0, 0), (0, float("nan"), 0), None, {"code": "invalid-direction", "direction": "column"}),
        ((1, 0, 0), (0, 1, 0), 0.0, {"code": "invalid-spacing"}),
        ((1, 0, 0), (0, 1, 0), 1e-6, {"code": "spacing-too-fine", "spacing_mm": [1e-06, 1e-06, 1e-06]}),
    ],
)
def test_a_plane_that_is_none_is_refused(row, column, spacing, problem):
    with raises(**problem, error_type=GeometryError):
        SliceStack.oblique(a_volume(), (0, 0, 0), row, column, spacing)


def test_stacks_that_cut_differently_have_different_keys():
    volume = a_volume()
    keys = [SliceStack.along(volume, plane).key for plane in PLANES]
    keys += [
        SliceStack.oblique(volume, (0, 0, 0), (1, 0, 0), (0, 1, 0), s).key for s in (None, 0.5, (0.5, 1, 1))
    ]
    assert len(set(keys)) == 6
    assert SliceStack.along(a_volume(), "axial").key == keys[0]


def test_memory_stays_small_on_a_long_scan(tmp_path):
    """Windows, slices and masks of 512 x 512 x 1000 voxels take memory by the slice."""
    path = tmp_path / "long.raw"
    with path.open("wb") as stream:
        stream.truncate(512 * 512 * 1000 * 2)  # a sparse file takes no room
    voxels = np.memmap(path, np.int16, "r", shape=(1000, 512, 512))
    volume = Volume(voxels, Geometry(np.diag([-1.0, -1, 1, 1]), (512, 512, 1000)), "CT")
    tracemalloc.start()
    window = automatic_window(volume)
    for plane in PLANES:
        to_display(SliceStack.along(volume, plane).image_hw(5), window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


def test_nibabel_agrees_about_the_axes(shared_data):
    path = shared_data / "mr" / "cord_t2.nii.gz"
    assert read_volume(path).geometry.axis_codes == "".join(nibabel.aff2axcodes(nibabel.load(path).affine))
