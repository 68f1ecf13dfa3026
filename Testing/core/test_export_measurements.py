"""Volumes and diameters are those of shapes that are known, and those found by trying everything."""

import csv
import itertools
import json
import time

import numpy as np
import pytest
from medsam2_core.errors import ExportError, VolumeError
from medsam2_core.export.measurement_files import write_measurements
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.terminology import Code, Terminology
from scipy import ndimage
from support.errors import raises
from support.objects import GEOMETRIES, SHAPE_IJK, a_segmentation, random_geometry
from support.shapes import (
    a_grid,
    a_rectangle,
    across_by_trying,
    an_ellipse,
    drawn,
    in_plane,
    longest_by_trying,
    measured,
)

_TURN = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])  # a rotation
AXES = {
    "square": (0.5, 0.5, 2.0),
    "not square": (0.4, 0.9, 3.0),
    "oblique": _TURN @ np.diag([0.6, -0.8, 2.5]),
    "sheared along k": np.array([[0.7, 0, 0], [0, 0.8, 0.62], [0, 0, 2.42]]),
    "sheared in the plane": np.array([[0.7, 0.2, 0], [0, 0.8, 0.1], [0, 0, 2]]),
}


def pixel_mm(axes) -> float:
    return max(np.linalg.norm(step) for step in in_plane(axes))


# Shapes that are known --------------------------------------------------------------------------------------


def test_one_pixel_is_as_long_as_its_spacing():
    mask = np.zeros((3, 5, 6), bool)
    mask[1, 2, 3] = True
    one = measured(mask, (0.7, 0.9, 2.5))
    assert (one.voxel_count, one.k) == (1, 1)
    assert one.volume_ml == pytest.approx(0.7 * 0.9 * 2.5 / 1000)
    assert one.longest.length_mm == pytest.approx(0.9)
    assert one.perpendicular.length_mm == pytest.approx(0.7)
    assert one.longest.ends_ijk == ((3, 1.5, 1), (3, 2.5, 1))
    assert one.perpendicular.ends_ijk == ((2.5, 2, 1), (3.5, 2, 1))


def test_a_row_of_pixels_is_as_long_as_they_are_together_and_one_pixel_wide():
    one = measured(drawn("......... .#######. ........."))
    assert one.longest.length_mm == pytest.approx(7)
    assert one.perpendicular.length_mm == pytest.approx(1)
    (i, _, _), (other, _, _) = one.perpendicular.ends_ijk
    assert i == other == 4  # in the middle, as one would draw it


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133])
def test_the_diameters_of_an_ellipse_are_its_axes(axes, degrees):
    one = measured(an_ellipse((20, 12), degrees, axes, (161, 161)), axes)
    assert one.longest.length_mm == pytest.approx(40, abs=1.2 * pixel_mm(axes))
    assert one.perpendicular.length_mm == pytest.approx(24, abs=1.2 * pixel_mm(axes))
    area = one.volume_ml * 1000 / abs(np.linalg.det(a_grid(np.zeros((1, 1, 1)), axes).ijk_to_ras[:3, :3]))
    assert area == pytest.approx(np.pi * 20 * 12 / np.linalg.det(in_plane(axes)), rel=0.01)


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133])
def test_a_turned_rectangle_is_measured_along_its_diagonal(axes, degrees):
    sides = np.array([30.0, 16.0])
    one = measured(a_rectangle(sides, degrees, axes, (161, 161)), axes)
    diagonal = np.linalg.norm(sides)
    assert one.longest.length_mm == pytest.approx(diagonal, abs=1.5 * pixel_mm(axes))
    # A line at right angles to the diagonal runs from one long side to the other.
    assert one.perpendicular.length_mm == pytest.approx(16 / (30 / diagonal), abs=2 * pixel_mm(axes))


def test_an_l_is_measured_across_its_notch_and_the_perpendicular_stays_inside():
    one = measured(drawn("#....... #....... #....... #....... ########"))
    assert one.longest.length_mm == pytest.approx(np.hypot(8, 4))
    along = np.subtract(*one.longest.ends_ijk)
    across = np.subtract(*one.perpendicular.ends_ijk)
    assert along @ across == pytest.approx(0, abs=1e-9)
    # Across both arms it would be several pixels; the corner is the widest place.
    assert one.perpendicular.length_mm == pytest.approx(np.sqrt(5))


def test_a_hole_does_not_make_a_lesion_smaller():
    whole = an_ellipse((20, 12), 30, (1, 1, 1), (61, 61))
    hollow = whole & ~an_ellipse((15, 8), 30, (1, 1, 1), (61, 61))
    full, ring = measured(whole), measured(hollow)
    assert ring.longest == full.longest
    assert ring.perpendicular == full.perpendicular
    assert ring.volume_ml < full.volume_ml


def test_no_diameter_runs_through_the_gap_between_two_lesions():
    two = np.zeros((20, 60), bool)
    two[4:12, 2:8] = True
    two[4:14, 50:58] = True
    assert measured(two).longest == measured(two & (np.arange(60) > 30)).longest
    assert measured(two).voxel_count == 48 + 80


def test_pixels_that_touch_at_a_corner_are_one_piece():
    one = measured(np.eye(6, dtype=bool))
    assert one.longest.length_mm == pytest.approx(np.hypot(6, 5))
    assert 0.7 < one.perpendicular.length_mm < 1


def test_the_slice_with_the_longest_diameter_is_found():
    ball = np.zeros((9, 40, 40), bool)
    for k, radius in enumerate([3, 5, 8, 11, 9, 14, 12, 6, 2]):
        ball[k] = an_ellipse((radius, radius), 0, (1, 1, 1), (40, 40))
    assert measured(ball).k == 5
    assert all(end[2] == 5 for end in measured(ball).longest.ends_ijk + measured(ball).perpendicular.ends_ijk)


def test_of_equally_long_diameters_the_one_with_the_longest_perpendicular_counts():
    bars = np.zeros((4, 12, 24), bool)
    bars[0, 5, 2:20] = True
    bars[2, 4:7, 2:20] = True
    bars[2, [4, 6], 2] = bars[2, [4, 6], 19] = False  # as long as the thin one
    bars[3] = bars[2]
    one = measured(bars)
    assert one.longest.length_mm == pytest.approx(18)
    assert (one.k, one.perpendicular.length_mm) == (2, pytest.approx(3))


def test_an_object_at_the_edges_of_the_grid_is_measured_to_its_end():
    one = measured(np.ones((2, 4, 9), bool))
    assert one.longest.length_mm == pytest.approx(np.hypot(9, 3))
    assert one.longest.ends_ijk[0][1] == 0


def test_an_object_without_voxels_has_no_diameters():
    one = measured(np.zeros((2, 4, 9), bool))
    assert (one.voxel_count, one.volume_ml, one.k) == (0, 0.0, None)
    assert one.longest is None
    assert one.perpendicular is None


# The grid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_ends_in_the_patient_are_as_far_apart_as_the_diameter_is_long(name):
    geometry = Geometry(GEOMETRIES[name], SHAPE_IJK)
    for one in measure(a_segmentation(geometry)):
        if one.voxel_count == 0:
            continue
        for diameter in (one.longest, one.perpendicular):
            a, b = np.array(diameter.ends_ras)
            assert np.linalg.norm(b - a) == pytest.approx(diameter.length_mm, abs=1e-6)
            assert np.allclose(geometry.to_ras(diameter.ends_ijk), diameter.ends_ras)
        along, across = (np.subtract(*d.ends_ras) for d in (one.longest, one.perpendicular))
        assert along @ across == pytest.approx(0, abs=1e-6)
        assert one.perpendicular.length_mm <= one.longest.length_mm + 1e-9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_diameters_lie_within_slices_along_the_axis_that_is_named(axis):
    rng = np.random.default_rng(4)
    mask_kji = ndimage.gaussian_filter(rng.normal(size=(12, 16, 20)), 2) > 0.05
    geometry = a_grid(mask_kji, AXES["oblique"])
    order = [*(one for one in range(3) if one != axis), axis]
    turned = Geometry(
        geometry.ijk_to_ras[:, [*order, 3]], tuple(int(geometry.shape_ijk[one]) for one in order)
    )
    (one,) = measure(Segmentation.from_masks(geometry, {"object": mask_kji}), axis)
    of_turned = {"object": mask_kji.transpose([2 - one for one in reversed(order)])}
    (other,) = measure(Segmentation.from_masks(turned, of_turned))
    assert one.k == other.k
    for diameter, same in ((one.longest, other.longest), (one.perpendicular, other.perpendicular)):
        assert diameter.length_mm == pytest.approx(same.length_mm)
        assert np.allclose(diameter.ends_ras, same.ends_ras)
        assert np.allclose(geometry.to_ras(diameter.ends_ijk), diameter.ends_ras)
        assert {position[axis] for position in diameter.ends_ijk} == {one.k}


def test_the_way_voxels_are_stored_changes_nothing():
    rng = np.random.default_rng(3)
    for _ in range(20):
        mask = ndimage.gaussian_filter(rng.normal(size=(5, 30, 40)), (1, 3, 3)) > 0.05
        expected = measured(mask, (0.7, 0.8, 2))
        for flips in itertools.product((1, -1), repeat=3):
            flipped = mask[tuple(slice(None, None, flip) for flip in flips)]
            one = measured(flipped, np.diag([0.7, 0.8, 2]) * np.array(flips[::-1]))
            assert one.longest.length_mm == pytest.approx(expected.longest.length_mm)
            assert one.perpendicular.length_mm == pytest.approx(expected.perpendicular.length_mm)


def test_random_objects_on_random_grids_are_measured_as_by_trying_everything(campaign, record_property):
    rng = np.random.default_rng(11)
    shares = []
    record_property("random cases", 25 * campaign)
    for _ in range(25 * campaign):
        mask = ndimage.gaussian_filter(rng.normal(size=(3, 24, 30)), (0, *rng.uniform(0.4, 4, 2))) > 0.02
        axes = random_geometry(rng).ijk_to_ras[:3, :3]
        one = measured(mask, axes)
        if one.voxel_count == 0:
            continue
        assert one.longest.length_mm == pytest.approx(longest_by_trying(mask, axes), rel=1e-9)
        tried = across_by_trying(mask[one.k], axes, one.longest.ends_ijk)
        step = 2 * one.longest.length_mm / 2000
        assert tried <= one.perpendicular.length_mm + 2 * step
        shares.append(tried / one.perpendicular.length_mm)
    # Between the lines that are tried there may be a longer one, but rarely is.
    assert min(shares) > 0.8
    assert np.median(shares) > 0.98


def test_a_real_liver_is_measured_as_by_trying_everything(shared_data):
    labels = read_segmentation(shared_data / "dicom" / "ct_liver_dcmqi_liver.nrrd")
    mask = labels.labels_kji() != 0
    one = measured(mask, labels.geometry.ijk_to_ras[:3, :3])
    assert one.longest.length_mm == pytest.approx(
        longest_by_trying(mask, labels.geometry.ijk_to_ras[:3, :3]), rel=1e-9
    )
    assert one.voxel_count == np.count_nonzero(mask)


def test_an_organ_of_a_large_scan_takes_seconds():
    k, j, i = np.ogrid[:300, :512, :512]
    organ = ((i - 250) / 180) ** 2 + ((j - 260) / 140) ** 2 + ((k - 150) / 140) ** 2 < 1
    segmentation = Segmentation.from_masks(a_grid(organ, (0.7, 0.7, 1.0)), {"organ": organ})
    started = time.perf_counter()
    (one,) = measure(segmentation)
    assert time.perf_counter() - started < 5
    assert one.longest.length_mm == pytest.approx(360 * 0.7, abs=0.7)
    assert one.perpendicular.length_mm == pytest.approx(280 * 0.7, abs=0.7)


# Files ------------------------------------------------------------------------------------------------------


def test_json_holds_what_was_measured(tmp_path):
    segmentation = a_segmentation()
    results = measure(segmentation)
    written = write_measurements(results, segmentation, tmp_path / "result.json")
    content = json.loads(written.path.read_text(encoding="utf-8-sig"))
    assert content["model"] == "embedded"
    assert [entry["name"] for entry in content["segments"]] == ["liver", "tumour", "corner", "nothing"]
    for one, entry in zip(results, content["segments"], strict=True):
        assert entry["voxels"] == one.voxel_count
        assert entry["volume_ml"] == pytest.approx(one.volume_ml)
        assert entry["slice_k"] == one.k
        assert entry["code"] == {"scheme": "SCT", "value": "85756007", "meaning": "Tissue"}
        if one.voxel_count == 0:
            assert entry["longest_diameter"] is entry["perpendicular_diameter"] is None
            continue
        assert entry["longest_diameter"]["length_mm"] == pytest.approx(one.longest.length_mm)
        assert np.allclose(entry["perpendicular_diameter"]["ends_ras_mm"], one.perpendicular.ends_ras)
        assert np.allclose(entry["perpendicular_diameter"]["ends_ijk"], one.perpendicular.ends_ijk)
    assert [(n.code, n.fields["segment"]) for n in written.notes] == [
        ("empty-segment-not-measured", "nothing")
    ]


def test_csv_has_one_row_a_segment_and_units_in_its_columns(tmp_path):
    segmentation = a_segmentation()
    results = measure(segmentation)
    path = write_measurements(results, segmentation, tmp_path / "result.csv").path
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for one, row in zip(results, rows, strict=True):
        assert row["segment"] == one.name
        assert int(row["voxels"]) == one.voxel_count
        assert float(row["volume_ml"]) == pytest.approx(one.volume_ml)
        if one.voxel_count == 0:
            assert row["slice_k"] == row["longest_diameter_mm"] == row["longest_end_s_mm"] == ""
            continue
        assert float(row["longest_diameter_mm"]) == pytest.approx(one.longest.length_mm)
        assert float(row["perpendicular_diameter_mm"]) == pytest.approx(one.perpendicular.length_mm)
        end = [float(row[f"perpendicular_end_{axis}_mm"]) for axis in "ras"]
        assert np.allclose(end, one.perpendicular.ends_ras[1])
        start = [float(row[f"longest_start_{axis}_index"]) for axis in "ij"]
        assert np.allclose(start, one.longest.ends_ijk[0][:2])


def test_names_of_any_kind_come_back_and_none_is_a_formula(tmp_path):
    names = [
        '=HYPERLINK("x")',
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        " =1",
        "Läsion, 肝 «2»",
        'two\nlines; "quoted"',
    ]
    masks = {name: np.ones((1, 2, 2), bool) for name in names}
    segmentation = Segmentation.from_masks(a_grid(np.ones((1, 2, 2))), masks)
    path = write_measurements(measure(segmentation), segmentation, tmp_path / "result.csv").path
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["segment"].removeprefix("'") for row in rows] == names
    assert not [row for row in rows if row["segment"].strip()[0] in "=+-@"]
    path = write_measurements(measure(segmentation), segmentation, tmp_path / "result.json").path
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    assert [entry["name"] for entry in content["segments"]] == names


def test_codes_are_written_beside_the_names(tmp_path):
    term = Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver"))
    segment = Segment("liver", (1, 0, 0), np.ones((1, 2, 2), bool), term)
    segmentation = Segmentation(a_grid(np.ones((1, 2, 2))), (segment,))
    path = write_measurements(measure(segmentation), segmentation, tmp_path / "r.csv").path
    assert "liver,SCT,10200004,Liver,,,4," in path.read_text(encoding="utf-8-sig")


def test_no_place_of_this_computer_gets_into_a_file(tmp_path):
    segmentation = a_segmentation(model=str(tmp_path / "secret" / "mine.safetensors"))
    for suffix in (".json", ".csv"):
        path = write_measurements(measure(segmentation), segmentation, tmp_path / f"r{suffix}").path
        assert str(tmp_path) not in path.read_text(encoding="utf-8-sig")


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    segmentation = a_segmentation()
    results = measure(segmentation)
    with raises("unknown-format", ExportError):
        write_measurements(results, segmentation, tmp_path / "r.xlsx")
    with raises("unknown-format", ExportError):
        write_measurements(results, segmentation, tmp_path / ".csv")
    with raises("output-folder-missing", ExportError):
        write_measurements(results, segmentation, tmp_path / "nowhere" / "r.csv")
    path = tmp_path / "r.csv"
    path.write_text("mine")
    with raises("output-exists", ExportError):
        write_measurements(results, segmentation, path)
    assert path.read_text() == "mine"
    write_measurements(results, segmentation, path, overwrite=True)
    assert path.read_text() != "mine"
    with raises("unknown-segment", VolumeError):
        write_measurements(results, Segmentation(segmentation.geometry), tmp_path / "other.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]
