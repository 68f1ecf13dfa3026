"""Where frames of a DICOM segmentation lie: slices left out, uneven or tilted, and frames without a place."""

import copy

import numpy as np
import pytest
from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging.dicom import find_stack
from medsam2_core.imaging.segmentation_files import read_segmentation
from support.dicom_seg import SHAPE_KJI, Part, a_seg, source_images, write
from support.errors import raises
from support.small_files import a_dicom_slice, some_voxels, write_dicom

POSITION, ORIENTATION, MEASURES = "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"
PICTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.4"


def declare(dataset, **values):
    """Put values into the measures of all frames; None takes one out."""
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for keyword, value in values.items():
        if keyword in measures:
            delattr(measures, keyword)
        if value is not None:
            setattr(measures, keyword, value)


def saved(dataset, folder):
    dataset.save_as(folder / "a.dcm")
    return read_segmentation(folder / "a.dcm")


def images_at(heights):
    images = source_images((len(heights), 12, 10))
    for image, height in zip(images, heights, strict=True):
        image.ImagePositionPatient = [-20, -30, round(100 + float(height), 6)]
    return images


def series_at(folder, heights):
    """The grid of the series as it is read; GeometryError when it is not."""
    folder.mkdir(exist_ok=True)
    for n, image in enumerate(images_at(heights)):
        write_dicom(folder / f"{n}.dcm", image)
    return find_stack(folder)[1]


@pytest.mark.parametrize("filled", [(1, 4, 6), (0, 4), (2, 8), (0, 1, 7), (5,)])
def test_slices_left_out_everywhere_keep_the_spacing_of_the_file(tmp_path, filled):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    for k in filled:
        mask[k, 3 : 10 + k, 4:9] = True
    labels = read_segmentation(write(tmp_path / "a.dcm", [Part(mask)]))
    assert labels.geometry.spacing[2] == pytest.approx(2)
    assert labels.geometry.origin_ras[2] == pytest.approx(100 + 2 * filled[0])
    assert np.array_equal(labels["Liver"].mask_kji, mask[filled[0] : filled[-1] + 1])


def test_a_spacing_the_frames_do_not_follow_is_not_believed(tmp_path):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    mask[1:6, 3:9, 4:9] = True
    dataset = a_seg([Part(mask)])
    for told in (1.3, 5, 0.7, None):
        declare(dataset, SpacingBetweenSlices=told)
        labels = saved(dataset, tmp_path)
        assert labels.geometry.spacing[2] == pytest.approx(2)
        assert np.array_equal(labels["Liver"].mask_kji, mask[1:6])
        contradicted = [("spacing-contradicted", told)] if told else []
        assert [(note.code, note.fields["declared_mm"]) for note in labels.notes] == contradicted


def test_gaps_without_a_spacing_that_explains_them_are_refused(tmp_path):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    mask[[0, 2, 5], 3:9, 4:9] = True
    dataset = a_seg([Part(mask)])
    declare(dataset, SpacingBetweenSlices=None, SliceThickness=None)
    with raises("slices-uneven", GeometryError, heights_mm=[100, 104, 110]):
        saved(dataset, tmp_path)


@pytest.mark.parametrize(
    ("filled", "thickness", "spacing", "guess"),
    [
        ((0, 2, 5), 2, 2, "its slice thickness"),
        ((3, 8), 2, 2, "its slice thickness"),
        ((0, 1, 2, 5), None, 2, "the usual distance of its frames"),
        ((0, 2, 4, 5), None, 2, "the smallest distance of its frames"),
        ((0, 2, 4), 3.2, 4, None),  # nothing says that there are slices between
        ((0, 1, 2), 1.7, 2, None),
        ((0, 1, 2), None, 2, None),
        ((3, 8), None, 10, None),
        ((4,), 2, 2, None),
        ((4,), None, 1, "slice-thickness-assumed"),
    ],
)
def test_an_unknown_spacing_is_assumed_and_reported(tmp_path, filled, thickness, spacing, guess):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    for k in filled:
        mask[k, 3 : 10 + k, 4:9] = True
    dataset = a_seg([Part(mask)])
    declare(dataset, SpacingBetweenSlices=None, SliceThickness=thickness)
    labels = saved(dataset, tmp_path)
    assert labels.geometry.spacing[2] == pytest.approx(spacing)
    assert labels["Liver"].mask_kji.sum() == mask.sum()
    assert [note.severity for note in labels.notes] == (["warning"] if guess else [])
    for note in labels.notes:
        assert guess in (note.code, note.fields.get("basis"))
    assert labels.on_grid(labels.geometry).notes == labels.notes


@pytest.mark.parametrize(
    ("spacing", "off"), [(0.5, 0.045), (1.0, 0.045), (2.5, 0.02), (2.5, 0.045), (5.0, 0.09)]
)
def test_any_slices_of_a_series_a_little_uneven_keep_its_spacing(tmp_path, spacing, off, campaign):
    rng = np.random.default_rng(round(100 * spacing))
    for _ in range(10 * campaign):
        heights = spacing * np.arange(20) + rng.uniform(-off, off, 20)
        try:
            series = series_at(tmp_path / "series", heights)
        except GeometryError:
            continue  # it is too uneven to be read itself
        filled = rng.random(20) < rng.choice([0.2, 0.5, 1.0])
        filled[rng.integers(20)] = True
        mask = np.zeros((20, 12, 10), dtype=bool)
        mask[filled, 3:9, 4:9] = True
        dataset = a_seg([Part(mask)], images=images_at(heights))
        declare(dataset, SpacingBetweenSlices=f"{series.spacing[2]:.8g}", SliceThickness=2 * spacing)
        labels = saved(dataset, tmp_path)
        first, last = np.flatnonzero(filled)[[0, -1]]
        assert labels.geometry.spacing[2] == pytest.approx(series.spacing[2], rel=2e-3)
        assert np.array_equal(labels["Liver"].mask_kji, mask[first : last + 1])
        ours = labels.geometry.to_ras([[0, 0, k] for k in range(last - first + 1)])
        theirs = series.to_ras([[0, 0, k] for k in range(first, last + 1)])
        assert np.abs(ours - theirs).max() < 2 * max(0.05, 0.02 * spacing)


def test_a_spacing_along_the_table_is_understood_and_slices_stay_where_the_gantry_left_them(tmp_path):
    mask = np.zeros((12, 16, 12), dtype=bool)
    mask[[3, 9], 3:6, 3:6] = True
    step = np.array([0.0, 0.8, 2.5])
    images = source_images(mask.shape)
    for k, image in enumerate(images):
        image.ImagePositionPatient = [float(part) for part in (-20, -30, 100) + k * step]
    dataset = a_seg([Part(mask)], images=images)
    for declared in (2.5, float(np.linalg.norm(step)), None):
        declare(dataset, SpacingBetweenSlices=declared, SliceThickness=2.5)
        labels = saved(dataset, tmp_path)
        assert np.allclose(labels.geometry.ijk_to_lps[:3, 2], step)
        assert labels.geometry.is_sheared
        assert np.allclose(labels.geometry.ijk_to_lps[:3, 3], (-20, -30, 100) + 3 * step)
        assert np.array_equal(labels["Liver"].mask_kji, mask[3:10])
        assert bool(labels.notes) == (declared is None)


def test_a_spacing_given_frame_by_frame_counts_when_all_agree(tmp_path):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    mask[[1, 5], 3:9, 4:9] = True
    dataset = a_seg([Part(mask)])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    del shared.PixelMeasuresSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = [copy.deepcopy(measures)]
    assert saved(dataset, tmp_path).geometry.shape_ijk[2] == 5
    assert saved(dataset, tmp_path).notes == ()


def test_a_rounded_spacing_holds_over_many_slices(tmp_path):
    mask = np.zeros((300, 32, 32), dtype=bool)
    mask[::7, 3:9, 4:9] = True
    images = source_images(mask.shape, step_mm=0.6249)
    dataset = a_seg([Part(mask)], images=images)
    declare(dataset, SpacingBetweenSlices=0.625)
    labels = saved(dataset, tmp_path)
    assert labels.geometry.spacing[2] == pytest.approx(0.6249)
    assert np.array_equal(labels["Liver"].mask_kji, mask[:295])


def test_a_grid_larger_than_any_scan_is_refused(tmp_path):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    mask[[1, 5], 3:9, 4:9] = True
    dataset = a_seg([Part(mask)])
    declare(dataset, SpacingBetweenSlices=0.01)
    place = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    place.ImagePositionPatient = [-20, -30, 1_000_000]
    dataset.save_as(tmp_path / "a.dcm")
    with raises("volume-too-large", VolumeError):
        read_segmentation(tmp_path / "a.dcm")


# Frames that make no grid -----------------------------------------------------------------------------------


def turned(dataset, sequence, **values):
    """Give each frame what was said for all, and the last one other values."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    said = shared[sequence][0]
    del shared[sequence]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        setattr(group, sequence, [copy.deepcopy(said)])
    for keyword, value in values.items():
        setattr(group[sequence][0], keyword, value)
    return dataset


def test_frames_that_are_turned_or_spaced_differently_are_refused_with_both(tmp_path):
    mask = np.zeros(SHAPE_KJI, dtype=bool)
    mask[2:4, 3:9, 4:9] = True
    dataset = turned(a_seg([Part(mask)]), ORIENTATION, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    with raises("frames-differ", GeometryError, frame=2, what="orientation"):
        saved(dataset, tmp_path)
    dataset = turned(a_seg([Part(mask)]), MEASURES, PixelSpacing=[0.75, 0.6])
    with raises("frames-differ", GeometryError, frame=2, what="spacing"):
        saved(dataset, tmp_path)


# Frames without a place -------------------------------------------------------------------------------------


def on_pictures(masks, images, kind="BINARY"):
    """A SEG of pictures: nothing tells where in the patient they are."""
    parts = [Part(mask, f"part {n}") for n, mask in enumerate(masks)]
    dataset = a_seg(parts, kind, images=images)
    del dataset.FrameOfReferenceUID
    del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    return dataset


def two_on_a_picture():
    masks = np.zeros((2, 1, 37, 41), dtype=bool)
    masks[0, 0, 3:9, 4:20], masks[1, 0, 20:30, 5:9] = True, True
    return masks


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_of_a_picture_lie_on_the_grid_it_is_read_with(tmp_path, kind):
    masks, images = two_on_a_picture(), source_images((1, 37, 41))
    labels = saved(on_pictures(masks, images, kind), tmp_path)
    for n, mask in enumerate(masks):
        assert np.array_equal(labels[f"part {n}"].mask_kji, mask)
    picture = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "SOPClassUID": PICTURE_STORAGE}
    write_dicom(tmp_path / "picture.dcm", a_dicom_slice(some_voxels((1, 37, 41))[0], **picture))
    assert labels.geometry.same_grid(find_stack(tmp_path / "picture.dcm")[1])
    assert labels.notes == ()


def test_segments_of_several_pictures_have_no_common_place(tmp_path):
    masks = np.zeros((1, 2, 37, 41), dtype=bool)
    masks[..., 3:9, 4:20] = True
    dataset = on_pictures(masks, source_images((2, 37, 41)))
    with raises("clip-without-positions", GeometryError, frames=2):
        saved(dataset, tmp_path)
    dataset = on_pictures(two_on_a_picture(), source_images((1, 37, 41)))
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    with raises("clip-without-positions", GeometryError):
        saved(dataset, tmp_path)
