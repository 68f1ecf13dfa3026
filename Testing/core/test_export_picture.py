"""The montage shows the right slices, in the right proportions, with outlines where the objects are."""

import numpy as np
import pytest
from medsam2_core.errors import ExportError
from medsam2_core.export.picture import _letters, _slice_title, chosen_slices, montage
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import Window
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point, PromptSet
from PIL import Image
from support.errors import raises
from support.objects import GEOMETRIES, a_segmentation, some_prompts

GREEN = np.array([0x3D, 0xDC, 0x5B])


def a_block(matrix=None, shape_kji=(12, 40, 60), block=np.s_[4:9, 10:26, 12:50]):
    """A volume that is bright exactly where its only object is, and the segmentation."""
    mask = np.zeros(shape_kji, dtype=bool)
    mask[block] = True
    geometry = Geometry(np.diag([-1, -1, 3, 1]) if matrix is None else matrix, shape_kji[::-1])
    volume = Volume((mask * 1000).astype(np.int16), geometry)
    return volume, Segmentation.from_masks(geometry, {"block": mask})


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def box_of(mask) -> np.ndarray:
    """First and last column and row of what is true."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], columns[-1], rows[0], rows[-1]])


def is_green(picture) -> np.ndarray:
    return np.abs(picture - GREEN).max(axis=-1) < 40


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 4), (3, 1, 1)])
def test_the_outline_lies_around_the_object_in_true_proportions(tmp_path, axis, spacing):
    grey, segmentation = a_block(np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
    purple = (grey.voxels_kji[..., np.newaxis] // 1000 * [160, 0, 160]).astype(np.uint8)
    stack = SliceStack.along(Volume(purple, grey.geometry), axis)
    path = montage(stack, Window(0, 1), segmentation, tmp_path / "x.png", max_slices=1)
    picture = drawn(path)[:-40]  # without the legend
    outline = box_of(is_green(picture))
    inside = (picture[..., 0] > 80) & (picture[..., 1] < 60) & (picture[..., 2] > 80)
    assert np.abs(outline - box_of(inside)).max() <= 6
    mask = stack.mask_of(segmentation["block"].mask_kji, len(stack) // 2)
    columns, rows = np.ptp(box_of(mask).reshape(2, 2), axis=1) + 1
    expected = (columns * stack.pixel_mm[1]) / (rows * stack.pixel_mm[0])
    seen = (outline[1] - outline[0]) / (outline[3] - outline[2])
    assert seen == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_any_geometry_and_an_oblique_plane_can_be_drawn(tmp_path, name):
    volume, segmentation = a_block(GEOMETRIES[name])
    centre = volume.geometry.to_ras([[30, 20, 6]])[0]
    oblique = SliceStack.oblique(volume, centre, (0.8, 0.6, 0), (0, 0, -1))
    for n, stack in enumerate((SliceStack.along(volume, "axial"), oblique)):
        path = montage(stack, Window(500, 1000), segmentation, tmp_path / f"{n}.png", max_slices=4)
        assert is_green(drawn(path)[:-40]).any()


def test_letters_mark_the_sides_of_the_patient():
    volume, _ = a_block()
    letters = {axis: _letters(SliceStack.along(volume, axis)) for axis in ("axial", "coronal", "sagittal")}
    assert letters["axial"] == ("R", "L", "A", "P")
    assert letters["coronal"] == ("R", "L", "S", "I")
    assert letters["sagittal"] == ("A", "P", "S", "I")
    oblique = SliceStack.oblique(volume, (0, 0, 0), (-0.8, -0.6, 0), (0, 0, -1))
    assert _letters(oblique) == ("RA", "LP", "S", "I")


def test_the_title_names_the_index_and_the_place_in_mm():
    volume, _ = a_block(np.array([[-1, 0, 0, 30], [0, -1, 0, 20], [0, 0, 3, -12.5], [0, 0, 0, 1]]))
    assert _slice_title(SliceStack.along(volume, "axial"), 2) == "k 2   I 6.5 mm"
    assert _slice_title(SliceStack.along(volume, "sagittal"), 0) == "i 0   R 30.0 mm"
    flipped, _ = a_block(np.diag([-1, -1, -3, 1]))
    assert _slice_title(SliceStack.along(flipped, "axial"), 0) == "k 11   I 33.0 mm"


def test_a_picture_without_a_place_gets_no_letters_and_no_millimetres(tmp_path):
    picture = Volume(
        np.full((1, 30, 40, 3), 90, dtype=np.uint8), Geometry.for_picture(30, 40), metadata={"picture": True}
    )
    mask = np.zeros((1, 30, 40), dtype=bool)
    mask[0, 10:20, 10:30] = True
    stack = SliceStack.along(picture, "k")
    assert _letters(stack) == ("", "", "", "")
    assert _slice_title(stack, 0) == ""
    segmentation = Segmentation.from_masks(picture.geometry, {"disc": mask})
    assert is_green(drawn(montage(stack, Window(0, 1), segmentation, tmp_path / "x.png"))).any()


@pytest.mark.parametrize("count", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("most", [1, 3, 12])
def test_slices_are_spread_and_hold_the_prompted_ones(count, most):
    first, last = count // 5, count - 1 - count // 7
    extent = np.array([[0, 0, first], [9, 9, last]], dtype=float)
    prompted = sorted({first, (first + last) // 2})
    shown = chosen_slices(count, prompted, [extent], most)
    assert shown == sorted(set(shown))
    assert len(shown) == min(most, last - first + 1)
    assert first <= shown[0] and shown[-1] <= last
    assert set(prompted[:most]) <= set(shown)
    if len(shown) == 12:
        assert np.diff(shown).max() <= 2 * (last - first) / 11 + 1


def test_without_an_object_the_whole_stack_is_shown():
    assert chosen_slices(10, [], [], 3) == [0, 4, 9]
    assert chosen_slices(10, [], [], 1) == [4]


def test_prompts_are_drawn_where_they_were_given(tmp_path):
    volume, segmentation = a_block()
    prompts = PromptSet()
    prompts.add("block", Box((12, 10, 6), (49, 25, 6)))
    prompts.add("block", Point((5, 35, 6), False))
    stack = SliceStack.along(volume, "axial")
    bare, told = (
        drawn(montage(stack, Window(500, 1000), segmentation, tmp_path / f"{n}.png", prompts=p, max_slices=1))
        for n, p in enumerate((None, prompts))
    )
    assert bare.shape == told.shape

    def is_red(picture):
        return (picture[..., 0] > 200) & (picture[..., 1] < 90) & (picture[..., 2] < 90)

    assert not is_red(bare).any()
    left, right, top, bottom = box_of(is_red(told))
    middle = np.array([(left + right) / 2 / told.shape[1], (top + bottom) / 2 / (told.shape[0] - 40)])
    assert middle == pytest.approx([5.5 / 60, 35.5 / 40], abs=0.04)  # a negative click, lower left


def test_a_small_object_is_shown_enlarged(tmp_path):
    volume, segmentation = a_block(None, (6, 400, 400), np.s_[2:4, 200:210, 300:315])
    stack = SliceStack.along(volume, "axial")
    path = montage(stack, Window(500, 1000), segmentation, tmp_path / "x.png", max_slices=1)
    left, right, _, _ = box_of(is_green(drawn(path)[:-40]))
    assert right - left > 0.25 * drawn(path).shape[1]


def test_odd_names_many_objects_and_empty_ones_do_not_stop_it(tmp_path):
    volume, segmentation = a_block()
    mask = segmentation["block"].mask_kji
    names = ["$x^", "肝臓", "line\nbreak", "", "y" * 300, *(f"organ {n}" for n in range(40))]
    masks = {name or "empty": mask & bool(name) for name in names}
    crowd = Segmentation.from_masks(volume.geometry, masks)
    stack = SliceStack.along(volume, "axial")
    montage(stack, Window(500, 1000), crowd, tmp_path / "many.png", max_slices=1)
    nothing = Segmentation.from_masks(volume.geometry, {"nothing": mask & False})
    montage(stack, Window(500, 1000), nothing, tmp_path / "nothing.png", max_slices=3)


def test_it_refuses_what_cannot_be_shown_or_written(tmp_path):
    volume, segmentation = a_block()
    stack = SliceStack.along(volume, "axial")
    with raises("segmentation-on-another-grid", ExportError):
        montage(stack, Window(0, 1), a_segmentation(), tmp_path / "x.png", prompts=some_prompts())
    with raises("unknown-format", ExportError):
        montage(stack, Window(0, 1), segmentation, tmp_path / "x.jpg")
    (tmp_path / "old.png").write_text("precious")
    with raises("output-exists", ExportError):
        montage(stack, Window(0, 1), segmentation, tmp_path / "old.png")
    assert (tmp_path / "old.png").read_text() == "precious"
