"""Measuring: metrics against others, a user who knows the truth, baselines, tables and figures."""

import json
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from medsam2_core.errors import EvaluationError
from medsam2_core.evaluation import protocol as protocol_module
from medsam2_core.evaluation.cases import Case, MeasuredObject, objects_of, read_table
from medsam2_core.evaluation.metrics import Scores, dice, scores
from medsam2_core.evaluation.protocol import (
    Measurement,
    StandardProtocol,
    copied_key_mask,
    inscribed_ellipse,
    measure_case,
    measure_object,
)
from medsam2_core.evaluation.report import means, plot, table, write_json
from medsam2_core.evaluation.simulated_user import (
    centre_of,
    correction,
    jittered_box,
    largest_piece,
    tight_box,
)
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from PIL import Image
from scipy import ndimage
from support.command_line import ball_kji
from support.errors import raises
from support.model import a_disc

# Metrics ----------------------------------------------------------------------------------------------------


def blobs(seed: int, shape=(12, 20, 22)) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that agree more or less."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    other = field + 0.4 * ndimage.gaussian_filter(rng.normal(size=shape), 2)
    return largest_piece(field > 0.02), largest_piece(other > 0.02)


def hd95_by_hand(mask, truth, spacing) -> float:
    """Percentiles of the distances between the surfaces, both ways, the larger one."""
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (mask, truth)]
    found = []
    for one, other in (surfaces, surfaces[::-1]):
        away = ndimage.distance_transform_edt(~other, sampling=spacing)
        found.append(np.percentile(away[one], 95))
    return max(found)


def test_dice_counts_voxels():
    one, two = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    one[0], two[0, :2] = True, True
    assert dice(one, two) == 2 * 2 / (4 + 2)
    assert dice(one, one) == 1 and dice(one, ~one) == 0
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_scipy_and_simpleitk(seed):
    import SimpleITK

    mask, truth = blobs(seed)
    spacing = (3.0, 1.0, 0.5)
    found = scores(mask, truth, spacing)
    assert found.hd95_mm == pytest.approx(hd95_by_hand(mask, truth, spacing), rel=1e-4)
    images = [SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (mask, truth)]
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    assert found.dice == pytest.approx(overlap.GetDiceCoefficient())
    for image in images:
        image.SetSpacing(spacing[::-1])
    farthest = SimpleITK.HausdorffDistanceImageFilter()
    farthest.Execute(*images)
    assert found.hd95_mm <= farthest.GetHausdorffDistance() + 1e-4


def test_surface_dice_is_the_share_within_the_tolerance():
    truth = np.zeros((20, 20, 20), bool)
    truth[5:15, 5:15, 5:15] = True
    moved = np.roll(truth, 2, axis=0)
    assert scores(truth, truth, (1, 1, 1)) == Scores(1.0, 1.0, 0.0)
    assert scores(moved, truth, (1, 1, 1), tolerance_mm=2).surface_dice == pytest.approx(1)
    partly = scores(moved, truth, (1, 1, 1), tolerance_mm=1.0)
    assert 0.5 < partly.surface_dice < 0.85  # the four sides agree, top and bottom do not
    assert partly.hd95_mm == 2
    assert scores(moved, truth, (0.25, 1, 1), tolerance_mm=1.0).surface_dice == pytest.approx(1)
    assert scores(moved, truth, (5, 1, 1), tolerance_mm=1.0).hd95_mm == 10


def test_a_picture_is_compared_by_its_outline():
    """One slice of a volume has no inside; a picture has."""
    truth, mask = a_disc((60, 60), (30, 30), 15), a_disc((60, 60), (34, 30), 15)
    flat = scores(mask, truth, (1.0, 1.0))
    assert scores(mask[None], truth[None], (1.0, 1.0, 1.0)) == flat
    assert flat.hd95_mm == pytest.approx(hd95_by_hand(mask, truth, (1, 1)), rel=1e-4)
    assert flat.surface_dice < 0.6


def test_masks_that_are_empty_have_no_distance():
    nothing, something = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert scores(nothing, something, (1, 1, 1)) == Scores(0.0, 0.0, None)
    assert scores(nothing, nothing, (1, 1, 1)) == Scores(1.0, 1.0, None)


def test_measuring_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores(*blobs(0), (1, 1, 1))


# The simulated user -----------------------------------------------------------------------------------------


def test_a_box_is_off_by_its_jitter_at_most_and_stays_inside():
    mask = np.zeros((50, 80), bool)
    mask[10:31, 4:45] = True  # 21 rows, 41 columns
    assert tight_box(mask) == (3.5, 9.5, 44.5, 30.5)
    rng = np.random.default_rng(0)
    moves = np.array([np.subtract(jittered_box(mask, rng), tight_box(mask)) for _ in range(300)])
    limits = 0.05 * np.array([41, 21, 41, 21])
    assert (np.abs(moves) <= limits + 1e-9).all() and (np.abs(moves).max(0) > 0.9 * limits).all()
    assert jittered_box(mask, rng, jitter=0) == tight_box(mask)
    for _ in range(20):
        left, top, right, bottom = jittered_box(np.ones((50, 80), bool), rng)
        assert left >= -0.5 and top >= -0.5 and right <= 79.5 and bottom <= 49.5


def test_every_object_is_boxed_by_another_hand():
    mask = a_disc((60, 80), (40, 30), 20)
    case = Case("row", Path("a.png"), Path("b.png"))
    boxes = [
        jittered_box(mask, protocol_module.generator_for(MeasuredObject(case, label, mask[None]), seed))
        for label, seed in ((1, 0), (2, 0), (1, 1), (1, 0))
    ]
    assert boxes[0] == boxes[3]
    assert len(set(boxes)) == 3


def test_a_click_is_as_far_from_the_border_as_can_be():
    mask = a_disc((60, 60), (40, 20), 12)
    mask[30:58, 2:5] = True
    assert centre_of(mask) == (40, 20)
    corner = np.zeros((20, 20), bool)
    corner[:9, :9] = True  # the slice's edge is a border
    assert centre_of(corner) == (4, 4)


def test_a_correction_clicks_the_larger_error():
    truth = np.zeros((40, 40), bool)
    truth[10:30, 10:30] = True
    assert correction(truth, truth) is None
    missing = truth.copy()
    missing[10:30, 22:30] = False
    missing[2:5, 2:5] = True
    (x, y), positive = correction(missing, truth)
    assert positive and truth[y, x] and not missing[y, x]
    spilled = truth.copy()
    spilled[12:15, 12:15] = False
    spilled[32:39, 5:35] = True
    (x, y), positive = correction(spilled, truth)
    assert not positive and spilled[y, x] and not truth[y, x]
    scattered = truth.copy()
    scattered[::2, 32:39] = True  # many errors, each small, against one of medium size
    scattered[14:20, 14:20] = False
    assert correction(scattered, truth)[1]


def test_the_largest_piece_is_kept():
    mask = np.zeros((4, 20, 20), bool)
    mask[1:3, 2:6, 2:6] = mask[0, 10:12, 10:12] = True
    assert largest_piece(mask).sum() == 32
    assert not largest_piece(np.zeros((3, 3), bool)).any()


# Baselines --------------------------------------------------------------------------------------------------


def test_an_ellipse_touches_its_box():
    ellipse = inscribed_ellipse((3.5, 9.5, 44.5, 30.5), (50, 80))
    assert tight_box(ellipse) == (3.5, 9.5, 44.5, 30.5)
    assert ellipse.sum() == pytest.approx(np.pi / 4 * 41 * 21, rel=0.02)


def test_the_key_mask_is_copied_through_the_objects_slices():
    volume = a_volume()
    stack = SliceStack.along(volume, "axial")
    copied = copied_key_mask(ball_kji(), stack, 12)
    occupied = ball_kji().any((1, 2))
    assert (copied.any((1, 2)) == occupied).all()
    assert all((copied[k] == ball_kji()[12]).all() for k in np.flatnonzero(occupied))


@pytest.mark.parametrize(
    ("image", "labels", "known"),
    [
        ("mr/brain1_image.nrrd", "mr/brain1_label.nrrd", [0.66]),
        ("ct/spleen2_ct.nii.gz", "ct/spleen2_seg.nii.gz", [0.63]),
        ("ct/recist/*.npz", "ct/recist/*.npz", [0.76, 0.82]),
        ("mr/heart_scd/*_img.png", "mr/heart_scd/*_seg.png", [0.58]),
    ],
)
def test_baselines_of_real_cases_are_the_known_ones(shared_data, tmp_path, image, labels, known):
    (tmp_path / "cases.tsv").write_text(f"row\timage\tlabels\nrow\t{image}\t{labels}\n")
    found = []
    for case in read_table(tmp_path / "cases.tsv", shared_data):
        volume = read_volume(case.image)
        stack = SliceStack.along(volume, case.axis)
        for measured in objects_of(case, volume):
            truth = measured.truth_kji
            key = int(np.argmax([stack.mask_of(truth, n).sum() for n in range(len(stack))]))
            if len(stack) > 1:
                found.append(dice(copied_key_mask(truth, stack, key), truth))
            else:
                box = tight_box(stack.mask_of(truth, 0))
                found.append(dice(inscribed_ellipse(box, stack.shape_hw)[None], truth))
    if len(known) == 1:
        found = [float(np.mean(found))]
    assert sorted(found) == pytest.approx(known, abs=0.01)


# The protocol -----------------------------------------------------------------------------------------------


def a_volume() -> Volume:
    shape = ball_kji().shape[::-1]
    return Volume((ball_kji() * 300).astype(np.int16), Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), shape))


class ClevererEveryTime:
    """Stands in for a session: answers the truth, but for as many slices as clicks are still missing."""

    opened: ClassVar[list] = []
    mistakes = 0

    @classmethod
    def open(cls, volume, model, **settings):
        session = cls()
        session.stack, session.volume, session.said = SliceStack.along(volume, settings["axis"]), volume, []
        session.settings = settings
        cls.opened.append(session)
        return session

    def prompt(self, name, prompt):
        self.said.append(prompt)

    def propagate(self):
        return iter(())

    def mask_kji(self, name):
        mask = ball_kji()
        wrong = max(self.mistakes - sum(isinstance(p, Point) for p in self.said), 0)
        for n in range(wrong):
            mask[10 + n] = False
        return mask


@pytest.fixture
def stand_in(monkeypatch):
    def use(mistakes):
        monkeypatch.setattr(ClevererEveryTime, "opened", [])
        monkeypatch.setattr(ClevererEveryTime, "mistakes", mistakes)
        monkeypatch.setattr(protocol_module, "Session", ClevererEveryTime)
        measured = MeasuredObject(Case("row", Path("image.nrrd"), Path("labels.nrrd")), 1, ball_kji())
        return measure_object(measured, a_volume(), None, StandardProtocol(), None), ClevererEveryTime.opened

    return use


def test_a_perfect_model_gets_full_marks_and_no_corrections(stand_in):
    found, (by_box, by_click) = stand_in(0)
    assert found.stages == (Scores(1.0, 1.0, 0.0),) * 4
    assert found.click == 1 and found.slices == 24 and found.seconds >= 0
    stack = SliceStack.along(a_volume(), "axial")
    assert found.baseline == dice(copied_key_mask(ball_kji(), stack, 12), ball_kji())
    (box,) = by_box.said
    assert isinstance(box, Box) and box.first_ijk[2] == box.last_ijk[2] == 12
    tight = np.array([12.5, 18.5, 27.5, 33.5])
    drawn = np.array([*box.first_ijk[:2], *box.last_ijk[:2]])
    assert (np.abs(drawn - tight) <= 0.05 * 15 + 1e-9).all() and (drawn != tight).any()
    assert by_click.said == [Point((20, 26, 12))]


def test_corrections_go_to_the_worst_slice_until_nothing_is_wrong(stand_in):
    found, (by_box, _) = stand_in(2)
    assert [stage.dice for stage in found.stages] == sorted(stage.dice for stage in found.stages)
    assert found.stages[0].dice < found.stages[1].dice < found.stages[2].dice == found.stages[3].dice == 1
    _, first, second = by_box.said
    # Of two empty slices the one with the larger object is worse.
    assert (first.positive, second.positive) == (True, True)
    assert [point.ijk[2] for point in (first, second)] == [11, 10]
    assert all(ball_kji()[int(p.ijk[2]), int(p.ijk[1]), int(p.ijk[0])] for p in (first, second))


def test_the_same_seed_is_the_same_user(stand_in):
    boxes = [stand_in(0)[1][0].said[0] for _ in range(2)]
    assert boxes[0] == boxes[1]


def test_a_picture_is_measured_beside_the_ellipse_in_its_true_box(monkeypatch, tmp_path):
    truth = np.zeros((60, 70), np.uint8)
    truth[a_disc((60, 70), (30, 30), 14)] = 1
    truth[5:15, 55:68] = 2
    truth[50:52, 50:52] = 3  # too small to be measured
    Image.fromarray(truth).save(tmp_path / "seg.png")
    Image.fromarray(truth * 80).save(tmp_path / "img.png")

    class Drawn(ClevererEveryTime):
        def mask_kji(self, name):
            return np.zeros((1, 60, 70), bool)

        def propagate(self):
            raise AssertionError("a picture has nothing to propagate to")

    monkeypatch.setattr(protocol_module, "Session", Drawn)
    case = Case("row", tmp_path / "img.png", tmp_path / "seg.png")
    found = list(measure_case(case, None, StandardProtocol(corrections=1, jitter=0.3)))
    assert [m.name for m in found] == ["img.png:1", "img.png:2"]
    assert found[0].baseline == pytest.approx(1, abs=0.05)  # a disc is nearly the ellipse of its box
    assert found[1].baseline == pytest.approx(2 * np.pi / 4 / (1 + np.pi / 4), abs=0.02)
    assert all(stage == Scores(0.0, 0.0, None) for m in found for stage in m.stages)


# Cases ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b"):
        for kind in ("img", "seg"):
            Image.fromarray(np.full((20, 20), 1, np.uint8)).save(tmp_path / f"{name}_{kind}.png")
    return tmp_path


def written(folder, text):
    (folder / "cases.tsv").write_text(text)
    return folder / "cases.tsv"


def test_a_table_names_cases_one_by_one_or_by_a_star(data):
    text = (
        "# what is measured\nrow\timage\tlabels\taxis\twindow\n"
        "one\ta_img.png\ta_seg.png\n"
        "all\t*_img.png\t*_seg.png\tsagittal\tlung\n"
    )
    cases = read_table(written(data, text))
    assert [(case.row, case.image.name, case.labels.name) for case in cases] == [
        ("one", "a_img.png", "a_seg.png"),
        ("all", "a_img.png", "a_seg.png"),
        ("all", "b_img.png", "b_seg.png"),
    ]
    assert (cases[0].axis, cases[0].window) == ("axial", "auto")
    assert (cases[1].axis, cases[1].window) == ("sagittal", "lung")


@pytest.mark.parametrize(
    ("text", "code", "fields"),
    [
        ("", "no-case", {}),
        ("row\timage\tlabels\n", "no-case", {}),
        ("row\timage\n one\ta_img.png\n", "case-incomplete", {"missing": ["labels"]}),
        ("row\timage\tlabels\none\ta_img.png\n", "case-incomplete", {"missing": ["labels"]}),
        (
            "row,image,labels\none,a_img.png,a_seg.png\n",
            "case-incomplete",
            {"missing": ["row", "image", "labels"]},
        ),
        ("row\timage\tlabels\none\tc_img.png\ta_seg.png\n", "case-missing", {"path": "c_img.png"}),
        ("row\timage\tlabels\none\ta_img.png\tc_seg.png\n", "case-missing", {"path": "c_seg.png"}),
        ("row\timage\tlabels\none\t*_scan.png\t*_seg.png\n", "case-missing", {"path": "*_scan.png"}),
        ("row\timage\tlabels\none\t*_im*.png\t*_seg.png\n", "pattern", {"pattern": "*_im*.png"}),
        ('row\timage\tlabels\none\t"' + "x" * 200_000 + "\ta\n", "cases-not-a-table", {}),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(data, text, code, fields):
    if "path" in fields:
        fields = fields | {"path": str(data / fields["path"])}
    with raises(code, EvaluationError, **fields):
        read_table(written(data, text))


def test_a_table_that_cannot_be_read_is_refused(data):
    (data / "binary.tsv").write_bytes(bytes(range(128, 256)))
    for path in (data / "none.tsv", data / "binary.tsv", data):
        with raises("cases-unreadable", EvaluationError):
            read_table(path)


def test_labels_must_lie_on_the_images_grid(data):
    Image.fromarray(np.ones((20, 21), np.uint8)).save(data / "b_seg.png")
    case = Case("row", data / "a_img.png", data / "b_seg.png")
    with raises("labels-on-another-grid", EvaluationError, labels=str(data / "b_seg.png")):
        list(measure_case(case, None, StandardProtocol()))
    with raises("no-such-file"):
        list(measure_case(Case("row", data / "c.png", data / "b_seg.png"), None, StandardProtocol()))


# Reports ----------------------------------------------------------------------------------------------------


def some_measurements():
    perfect, poor, lost = Scores(1.0, 1.0, 0.0), Scores(0.5, 0.25, 8.0), Scores(0.0, 0.0, None)
    return [
        Measurement("lesions", "a:1", 9, (poor, perfect), 2.0, 0.7, 0.4),
        Measurement("lesions", "b:1", 9, (lost, poor), 4.0, 0.9, 0.6),
        Measurement("heart", "c:1", 1, (lost, lost), 1.0, 0.5, 0.0),
    ]


def test_means_are_taken_by_row():
    lesions, heart = means(some_measurements())
    assert (lesions.row, lesions.objects, heart.row, heart.objects) == ("lesions", 2, "heart", 1)
    assert lesions.baseline == pytest.approx(0.8) and lesions.click == pytest.approx(0.5)
    assert lesions.dice == (0.25, 0.75) and lesions.surface_dice == (0.125, 0.625)
    assert lesions.hd95_mm == (8.0, 4.0) and heart.hd95_mm == (None, None)
    assert lesions.seconds == 3


def test_a_table_has_a_line_a_row():
    lines = table(means(some_measurements())).splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert heads[:6] == ["row", "objects", "baseline", "one click", "one box", "+1 correction"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert all(len(row) == len(heads) for row in cells)
    assert cells[0] == [
        "lesions", "2", "0.800", "0.500", "0.250", "0.750", "-0.550", "-0.050", "0.125", "8.0", "3.0",
    ]  # fmt: skip
    assert cells[1][-2] == "-"
    assert len(table([]).splitlines()) == 2


def test_figures_as_json_and_as_a_picture(tmp_path):
    write_json(tmp_path / "found.json", some_measurements(), {"model": "embedded", "seed": 0})
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["about"]["model"] == "embedded"
    assert [row["row"] for row in found["rows"]] == ["lesions", "heart"]
    assert found["objects"][0]["stages"][1] == {"dice": 1.0, "surface_dice": 1.0, "hd95_mm": 0.0}
    plot(tmp_path / "found.png", means(some_measurements()))
    picture = np.asarray(Image.open(tmp_path / "found.png").convert("RGB"))
    assert picture.shape[1] > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
