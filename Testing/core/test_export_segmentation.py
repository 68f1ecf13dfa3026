"""Segmentations: named masks on one grid, small in memory, in colours that differ."""

import itertools
import tracemalloc

import numpy as np
import pytest
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Label, Segment, Segmentation, default_colour
from medsam2_core.imaging.terminology import TISSUE, Code, Terminology
from support.errors import raises
from support.objects import a_geometry, a_segmentation, random_blobs, some_masks

GREEN = (0.0, 1.0, 0.0)


def test_a_segment_gives_back_the_mask_it_was_made_of():
    for name, mask in some_masks().items():
        segment = Segment(name, GREEN, mask)
        assert np.array_equal(segment.mask_kji, mask)
        assert segment.voxel_count == mask.sum()
        assert segment.is_empty == (name == "nothing")


def test_a_segment_does_not_change_with_the_array_it_was_made_of():
    mask = np.ones((3, 4, 5), dtype=bool)
    segment = Segment("all", GREEN, mask)
    mask[:] = False
    assert segment.voxel_count == 60
    with pytest.raises(ValueError, match="read-only"):
        segment.part_kji[0] = False


def test_any_value_but_zero_belongs_to_the_object():
    labels = np.array([[[0, 1, -1, 300]]], dtype=np.int16)
    assert Segment("x", GREEN, labels).mask_kji.tolist() == [[[False, True, True, True]]]


def test_a_segment_made_of_its_part_is_the_one_made_of_the_whole():
    for name, mask in some_masks().items():
        label = Label(name, 3)
        whole = Segment(name, GREEN, mask, label=label)
        for part in (mask, mask[1:, 2:, 1:], mask.astype(np.int16)[1:]):
            offset = {9 * 16 * 20: (0, 0, 0), 8 * 14 * 19: (1, 2, 1), 8 * 16 * 20: (0, 0, 1)}[part.size]
            made = Segment.from_part(name, GREEN, part, offset, whole.shape_ijk, tags={"a": "b"}, label=label)
            assert np.array_equal(made.mask_kji, mask)
            assert (made.offset_ijk, made.part_kji.shape) == (whole.offset_ijk, whole.part_kji.shape)
            assert (made.value, dict(made.tags)) == (3, {"a": "b"})
            assert not made.part_kji.flags.writeable


def test_a_part_that_fits_is_taken_over_and_one_that_reaches_out_is_refused():
    part = np.ones((2, 3, 4), dtype=bool)
    segment = Segment.from_part("a", GREEN, part, (1, 1, 1), (5, 4, 3))
    assert np.shares_memory(segment.part_kji, part)
    for offset in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (-1, 0, 0)):
        with raises("mask-outside-grid", VolumeError, segment="a"):
            Segment.from_part("a", GREEN, part, offset, (5, 4, 3))
    with raises("invalid-mask", VolumeError):
        Segment.from_part("a", GREEN, part[0], (0, 0, 0), (5, 4, 3))


def test_thirty_organs_of_a_large_scan_stay_small():
    geometry = Geometry(np.eye(4), (512, 512, 300))
    mask = np.zeros((300, 512, 512), dtype=bool)
    tracemalloc.start()
    segments = []
    for n in range(30):
        organ = np.s_[5 * n : 5 * n + 60, 10 * n : 10 * n + 80, 10 * n : 10 * n + 90]
        mask[organ] = True
        segments.append(Segment(f"organ {n}", GREEN, mask))
        mask[organ] = False
    segmentation = Segmentation(geometry, tuple(segments))
    layers = segmentation.layers()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(layers) > 0  # neighbours overlap
    assert peak < 20e6, f"{peak / 1e6:.0f} MB for 13 MB of voxels in boxes, 2.4 GB in full"


def test_names_differ_and_are_not_empty():
    mask = some_masks()["liver"]
    with raises("duplicate-name", VolumeError, name="liver"):
        Segmentation(a_geometry(), (Segment("liver", GREEN, mask), Segment("liver", GREEN, mask)))
    for name in ("", "  \n"):
        with raises("empty-name", VolumeError):
            Segment(name, GREEN, mask)


@pytest.mark.parametrize("colour", [(0, 0), (0, 0, 2), (0, 0, -0.1), (0, 0, float("nan")), "red", None])
def test_a_colour_is_three_parts_from_zero_to_one(colour):
    with raises("invalid-colour", VolumeError):
        Segment("x", colour, some_masks()["liver"])


def test_a_mask_has_the_shape_of_the_grid_and_holds_true_and_false():
    with raises("mask-on-another-grid", VolumeError, shape_ijk=[5, 4, 3]):
        Segmentation(a_geometry(), (Segment("x", GREEN, np.ones((3, 4, 5), dtype=bool)),))
    with raises("invalid-mask", VolumeError):
        Segment("x", GREEN, np.ones((3, 4, 5)))
    with raises("invalid-mask", VolumeError, shape=[4, 5]):
        Segment("x", GREEN, np.ones((4, 5), dtype=bool))


def test_overlaps_are_counted_and_put_on_layers():
    segmentation = a_segmentation()
    found = [(a.name, b.name, count) for a, b, count in segmentation.overlaps()]
    assert found == [("liver", "tumour", 12)]
    assert segmentation.layers() == (0, 1, 0, 0)


def test_no_layer_holds_two_objects_that_overlap(campaign):
    rng = np.random.default_rng(5)
    for _ in range(10 * campaign):
        masks = random_blobs(rng, 12)
        layers = a_segmentation(masks=masks).layers()
        for layer in range(max(layers) + 1):
            together = sum(
                mask.astype(int) for mask, on in zip(masks.values(), layers, strict=True) if on == layer
            )
            assert together.max() <= 1


def test_a_slice_of_labels_keeps_the_later_of_overlapping_objects():
    masks = some_masks()
    expected = np.zeros((9, 16, 20), dtype=np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        expected[mask] = number
    segmentation = a_segmentation()
    assert np.array_equal(np.stack([segmentation.label_slice(k) for k in range(9)]), expected)


def test_volume_is_in_millilitres_even_when_sheared():
    segmentation = a_segmentation(a_geometry("sheared"))
    assert segmentation.volume_ml("liver") == pytest.approx(3 * 6 * 8 * 0.7 * 0.8 * 2.42 / 1000)


def test_an_unknown_segment_is_named_with_the_known_ones():
    with raises("unknown-segment", VolumeError, segment="spleen"):
        a_segmentation()["spleen"]


def test_default_colours_differ_and_show_on_black():
    colours = [np.array(default_colour(n)) for n in range(100)]
    for colour in colours:
        assert colour.min() >= 0 and colour.max() <= 1
        assert colour @ (0.2126, 0.7152, 0.0722) > 0.3
    distances = [np.abs(a - b).max() for a, b in itertools.combinations(colours[:12], 2)]
    assert min(distances) > 0.15
    assert len({tuple(np.round(colour * 255)) for colour in colours}) == 100


def test_terminology_is_written_and_read_as_3d_slicer_does():
    text = (
        "Segmentation category and type - 3D Slicer General Anatomy list~SCT^85756007^Tissue"
        "~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^"
    )
    assert str(TISSUE) == text
    assert Terminology.parse(text) == TISSUE
    kidney = Terminology(
        Code("SCT", "123037004", "Anatomical Structure"),
        Code("SCT", "64033007", "Kidney"),
        Code("SCT", "24028007", "Right"),
    )
    assert Terminology.parse(str(kidney)) == kidney


@pytest.mark.parametrize("text", ["", "a~b", "list~SCT^1~SCT^1^x~^^~list~^^~^^", "~".join(["a^b^c"] * 8)])
def test_a_damaged_terminology_entry_is_refused(text):
    with raises("invalid-terminology", VolumeError):
        Terminology.parse(text)


def test_dividers_cannot_hide_in_a_code():
    with raises("invalid-terminology", VolumeError):
        Code("SCT", "1", "left|right")
