"""How values become grey: by HU for CT, by percentiles for the rest, never changing a voxel."""

import numpy as np
import pytest
from medsam2_core.errors import VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.intensity import (
    PRESETS,
    Window,
    automatic_window,
    is_hounsfield,
    parse_window,
    to_display,
    to_grey,
)
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.volume import Volume
from support.errors import raises
from support.small_files import a_volume


def a_scan(voxels, modality="") -> Volume:
    return Volume(voxels, Geometry(np.eye(4), voxels.shape[::-1]), modality)


def a_ct(share_of_lung=0.0, share_of_bone=0.0, size=30) -> np.ndarray:
    rng = np.random.default_rng(0)
    body = rng.normal(40, 30, (size, size, size))
    kind = rng.random(body.shape)
    body[kind < share_of_lung] = -800
    body[kind > 1 - share_of_bone] = 700
    body[: size // 3] = -1000  # air around the patient
    return body.astype(np.int16)


def test_presets_are_the_usual_ones():
    assert {name: (w.width, w.level) for name, w in PRESETS.items()} == {
        "abdomen": (400, 40),
        "lung": (1500, -600),
        "brain": (80, 40),
        "mediastinum": (350, 50),
        "bone": (1800, 400),
    }


def test_a_window_is_read_from_width_and_level_a_name_or_auto():
    assert parse_window("400,40") == Window(40, 400)
    assert parse_window(" 80 / 40 ") == Window(40, 80)
    assert parse_window("Lung") is PRESETS["lung"]
    scan = a_scan(a_ct(), "CT")
    assert parse_window("auto", scan) == automatic_window(scan)


@pytest.mark.parametrize("text", ["", "400", "liver", "1,2,3", "auto", "a,b"])
def test_a_window_that_is_none_is_refused_with_the_choices(text):
    with raises("unknown-window", VolumeError):
        parse_window(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0,40", {"code": "invalid-window", "width": 0.0, "level": 40.0}),
        ("-5,40", {"code": "invalid-window", "width": -5.0, "level": 40.0}),
        ("nan,1", {"code": "invalid-window", "level": 1.0}),
    ],
)
def test_a_window_without_a_width_is_refused(text, problem):
    with raises(**problem, error_type=VolumeError):
        parse_window(text)


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (a_ct(), "abdomen"),
        (a_ct(share_of_lung=0.3), "abdomen"),  # a chest
        (a_ct(share_of_lung=0.9), "lung"),
        (a_ct(share_of_bone=0.8), "bone"),
    ],
)
@pytest.mark.parametrize("modality", ["CT", ""])
def test_ct_gets_soft_tissue_unless_it_is_nearly_all_lung_or_bone(voxels, expected, modality):
    assert automatic_window(a_scan(voxels, modality)) == PRESETS[expected]


def test_the_real_ct_without_a_modality_is_recognised_by_its_values(shared_data):
    spleen = read_volume(shared_data / "ct" / "spleen2_ct.nii.gz")
    assert is_hounsfield(spleen)
    assert automatic_window(spleen) == PRESETS["abdomen"]
    assert automatic_window(read_volume(shared_data / "dicom" / "ct_body_j2k")) == PRESETS["abdomen"]


def test_mr_spans_the_percentiles_of_what_is_not_background(shared_data):
    brain = read_volume(shared_data / "mr" / "brain1_image.nrrd")
    assert not is_hounsfield(brain)
    window = automatic_window(brain)
    voxels = brain.voxels_kji
    low, high = np.percentile(voxels[voxels > 0], (0.5, 99.5))
    assert window.low == pytest.approx(low, abs=0.01 * (high - low))
    assert window.low + window.width == pytest.approx(high, abs=0.02 * (high - low))


def test_ct_that_is_already_8_bits_is_shown_as_it_is(shared_data):
    lesion = read_volume(next(iter(sorted((shared_data / "ct" / "recist").glob("*.npz")))))
    window = automatic_window(lesion)
    assert (window.low, window.width) == (0, 255)
    image = lesion.voxels_kji[3]
    assert np.array_equal(to_display(image, window)[..., 0], image)


def test_a_standardised_image_keeps_its_negative_half():
    voxels = np.random.default_rng(0).normal(0, 1, (20, 20, 20)).astype(np.float32)
    assert automatic_window(a_scan(voxels)).low < -2


@pytest.mark.parametrize("value", [0, 7, -1000, 3.5, 1e30])
def test_constant_images_are_safe(value):
    scan = a_scan(np.full((3, 4, 5), value, np.float32))
    window = automatic_window(scan)
    assert window.width > 0
    assert to_display(scan.voxels_kji[0], window).dtype == np.uint8


def test_images_of_nothing_but_missing_numbers_are_safe():
    scan = a_scan(np.full((3, 4, 5), np.nan, np.float32))
    assert to_display(scan.voxels_kji[0], automatic_window(scan)).max() == 0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64, np.float64])
def test_every_type_of_voxel_is_shown(dtype):
    scan = a_volume(dtype=dtype)
    shown = to_display(scan.voxels_kji[0], automatic_window(scan))
    assert shown.shape == (5, 6, 3)
    assert shown.min() < 100 < shown.max()


@pytest.mark.parametrize("kind", ["i1", "u1", "<i2", ">i2", "<u2"])
@pytest.mark.parametrize("window", [Window(40, 400), Window(-3.3, 0.7), Window(30000, 70000)])
def test_large_slices_of_integers_are_shown_as_small_ones_are(kind, window):
    info = np.iinfo(kind)
    values = np.random.default_rng(0).integers(info.min, info.max, (256, 256), endpoint=True).astype(kind)
    rows = [to_grey(values[n : n + 1], window) for n in range(256)]  # too small for a table
    assert np.array_equal(to_grey(values, window), np.concatenate(rows))
    assert np.array_equal(to_display(values, window)[..., 1], to_grey(values, window))


def test_a_window_maps_its_ends_to_black_and_white_and_missing_numbers_to_black():
    image = np.array([[-500, -160, 40, 240, 900]], np.float32)
    assert to_display(image, PRESETS["abdomen"])[0, :, 0].tolist() in (
        [0, 0, grey, 255, 255] for grey in (127, 128)
    )
    image[0, 3] = np.nan
    image[0, 4] = np.inf
    assert to_display(image, PRESETS["abdomen"])[0, 3:, 0].tolist() == [0, 255]


def test_colour_passes_as_it_is():
    colour = np.random.default_rng(0).integers(0, 255, (1, 4, 5, 3)).astype(np.uint8)
    volume = Volume(colour, Geometry.for_picture(4, 5))
    assert np.array_equal(to_display(colour[0], automatic_window(volume)), colour[0])


def test_ten_axis_orders_get_the_same_window(shared_data):
    windows = {automatic_window(read_volume(p)) for p in (shared_data / "orient").glob("???.nii.gz")}
    assert len(windows) == 1
