"""The rule that ends tracking is fitted to tracked objects, which are kept, and judged by their Dice."""

import json

import numpy as np
import pytest
from medsam2_core.engine.model import load_model
from medsam2_core.errors import TrainingError
from medsam2_core.training import presence
from medsam2_core.training.presence import calibrate, fit, judge
from medsam2_core.training.sources import data_key, load_sources, split
from medsam2_core.training.stacks import LabelledStack
from medsam2_core.training.tracked import Tracked, drawn_object, queue, read_evidence, write_evidence
from support.errors import raises
from support.training_folder import shapes, write_nifti, write_training_folder

WEIGHTS = np.array([-1.0, 0.0, 0.0, 2.0, 0.0])  # negative where the likeness of grey values is below a half


def an_object(likeness, right, kind="a", held_back=False) -> Tracked:
    """Ten pixels on every slice, `right` or all wrong, on both sides alike; NaN likeness: no mask there."""
    both = np.array([*likeness, *likeness], float)
    same = np.zeros_like(both)
    says = np.column_stack([same + 1, same + 0.8, same, both, same])
    says[np.isnan(both)] = np.nan
    true = np.array([*right, *right])
    found = np.where(np.isnan(both), 0, 10)
    pixels = np.column_stack([np.where(true, found, 0), found, np.where(true, 10, 0)])
    reverse = np.repeat([False, True], len(likeness))
    given, total = np.array([10, 10]), int(10 + 10 * true.sum())
    return Tracked(kind, "one", held_back, given, total, reverse, says, pixels)


def test_the_rule_is_that_of_the_tracker():
    one = an_object([1.0, 0.5, 0.45, np.nan], [True] * 4)
    assert one.shown(WEIGHTS).tolist() == [True, True, False, False] * 2
    assert one.has_mask.tolist() == [True, True, True, False] * 2


def test_dice_is_of_the_whole_object_until_three_slices_without_a_mask():
    one = an_object([1.0] * 5, [True, True, False, False, False])
    assert one.dice(one.has_mask) == pytest.approx(2 * 50 / (110 + 50))
    assert one.dice(one.present) == 1.0
    returns = np.array([False, False, False, True, True] * 2)
    assert one.dice(returns) == pytest.approx(2 * 10 / (10 + 50)), "it was given up"


def test_the_fit_finds_what_tells_slices_with_the_object_from_others():
    kinds = [an_object([0.9, 0.8, 0.3, 0.2], [True, True, False, False], kind) for kind in "ab"]
    weights = fit(kinds)
    assert (kinds[0].evidence @ weights > 0).tolist() == [True, True, False, False] * 2
    figures = judge(
        [*kinds, an_object([0.9, 0.1], [True, False], "b", held_back=True)], (1.0, 0.0, 0.0, 0.0, 0.0)
    )
    assert list(figures) == ["a", "b", "b, held back"]
    assert [one.objects for one in figures.values()] == [1, 1, 1]
    assert figures["a"].auc == 1.0
    assert figures["a"].none < figures["a"].fitted <= figures["a"].true == 1.0
    assert figures["a"].recipe == figures["a"].none, "these weights keep every mask"
    assert judge(kinds)["a"].recipe is None
    with raises("presence-one-sided", TrainingError, slices=4):
        fit([an_object([0.9, 0.8], [True, True])])


def test_without_a_mask_nothing_is_fitted():
    for nothing in ([], [an_object([np.nan], [True])]):
        with raises("presence-one-sided", TrainingError, slices=0):
            fit(nothing)


def test_a_kind_without_which_nothing_can_be_fitted_has_other_figures():
    both, always = an_object([0.9, 0.2], [True, False], "both"), an_object([0.9], [True], "always")
    figures = judge([both, always], WEIGHTS)
    assert figures["both"].fitted is figures["both"].auc is None, "the other kind has no slices without it"
    assert figures["both"].recipe == figures["both"].true == 1.0
    assert figures["always"].fitted == 1.0


def test_evidence_comes_back_from_its_file(tmp_path):
    path, about = tmp_path / "evidence.npz", {"model": "m", "seed": 1}
    kept = [an_object([0.9, np.nan], [True, False]), an_object([0.5], [True], "b", held_back=True)]
    assert read_evidence(path, about) == ([], 0)
    write_evidence(path, kept, about, 7)
    found, tried = read_evidence(path, about)
    assert tried == 7
    for one, same in zip(kept, found, strict=True):
        assert (one.kind, one.case, one.held_back, one.true) == (
            same.kind,
            same.case,
            same.held_back,
            same.true,
        )
        for name in ("given", "reverse", "evidence", "pixels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    with raises("run-differs", TrainingError, setting="seed", found=1):
        read_evidence(path, {"model": "m", "seed": 2})


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_damaged_evidence_is_refused_and_kept(tmp_path, content):
    path, about = tmp_path / "evidence.npz", {"model": "m", "seed": 1}
    write_evidence(path, [an_object([0.9], [True])], about, 1)
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    before = path.read_bytes()
    with raises("evidence-damaged", TrainingError, path=str(path)):
        read_evidence(path, about)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_training_folder(tmp_path_factory.mktemp("presence") / "train", pictures=1)
    # A patient that is held back.
    write_nifti(folder / "spinegeneric_cord" / "cord_01_seg.nii.gz", shapes())
    write_nifti(folder / "spinegeneric_cord" / "cord_09_seg.nii.gz", shapes())
    return folder


def test_an_object_is_drawn_with_slices_beyond_its_ends(data):
    cases = [stack for stack in load_sources(data) if stack.labels_kji.shape[0] > 1]
    for stack in cases:
        volume, truth = drawn_object(stack, np.random.default_rng(3))
        areas = truth.sum((1, 2))
        assert volume.voxels_kji.shape == truth.shape
        assert areas.max() >= 20 and np.flatnonzero(areas).size >= 4 and (areas == 0).any()
    turns = queue(load_sources(data), seed=1)
    rows = [(stack.row, held) for stack, held in (next(turns) for _ in range(8))]
    assert rows[:4] == rows[4:] and ("spinegeneric_cord", True) in rows and ("discs", False) not in rows


def test_held_back_is_what_training_holds_back():
    labels = np.zeros((4, 8, 8), np.int16)
    stacks = [LabelledStack("a", f"picture {n}", labels[:1], labels[:1], (1.0,) * 3, False) for n in range(4)]
    stacks += [LabelledStack("a", f"scan {n}", labels, labels, (1.0,) * 3, False) for n in range(4)]
    _, held_back = split(stacks)
    turns = queue(stacks, seed=1)
    found = {(stack.case, held) for stack, held in (next(turns) for _ in range(20))}
    assert {case for case, held in found if held} == {one.case for one in held_back} == {"scan 1"}
    assert {case for case, held in found if not held} == {"scan 0", "scan 2", "scan 3"}


def test_the_key_of_data_is_of_its_files(tmp_path):
    for copy in ("one", "two"):
        write_nifti(tmp_path / copy / "row" / "a_seg.nii.gz", shapes())
    keys = [data_key(tmp_path / copy) for copy in ("one", "two")]
    assert keys[0] == keys[1]
    write_nifti(tmp_path / "two" / "row" / "a_img.nii.gz", shapes())
    assert data_key(tmp_path / "two") != keys[0], "a scan is no longer painted"
    (tmp_path / "one" / "row" / "a_seg.nii.gz").rename(tmp_path / "one" / "row" / "b_seg.nii.gz")
    assert data_key(tmp_path / "one") != keys[0]
    with raises("training-folder-missing", TrainingError):
        data_key(tmp_path / "none")


def test_tracked_objects_are_kept_and_fitted_again(data, tmp_path, monkeypatch, medsam2):
    model = load_model("embedded", "cpu", image_size=64)
    first = calibrate(data, tmp_path, model, objects=5)
    assert len(first.weights) == 5
    assert {"scans", "shapes", "spinegeneric_cord", "spinegeneric_cord, held back"} == set(first.figures)
    written = json.loads((tmp_path / "presence.json").read_text())
    assert written["weights"] == list(first.weights)
    monkeypatch.setattr(presence, "load_sources", lambda _: pytest.fail("everything is tracked"))
    assert calibrate(data, tmp_path, model, objects=5) == first
    with raises("run-differs", TrainingError, setting="seed"):
        calibrate(data, tmp_path, model, objects=5, seed=2)
    other = write_nifti(tmp_path / "other" / "shapes" / "one_seg.nii.gz", shapes()).parents[1]
    with raises("run-differs", TrainingError, setting="data"):
        calibrate(other, tmp_path, model, objects=5)
    # The command has the model at its full size.
    kept, tried = read_evidence(tmp_path / "evidence.npz", {})
    about = {"model": load_model("embedded", "cpu").weights_key, "seed": 1, "data": data_key(data)}
    write_evidence(tmp_path / "evidence.npz", kept, about, tried)
    answer = medsam2("train", "presence", data, "--out", tmp_path, "--objects", "5")
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == f'"presence": {list(first.weights)}'
    heads = "DATA SET OBJECTS NO RULE RECIPE FITTED TRUE ENDS AUC"
    assert answer.out.splitlines()[0].split() == heads.split()


def test_volumes_of_two_kinds_are_needed(tmp_path):
    write_nifti(tmp_path / "data" / "flat" / "one_seg.nii.gz", shapes()[9:11])
    model = load_model("embedded", "cpu", image_size=64)
    with raises("too-few-kinds", TrainingError, found=0):
        calibrate(tmp_path / "data", tmp_path / "run", model, objects=2)
    with raises("training-folder-missing", TrainingError):
        calibrate(tmp_path / "nowhere", tmp_path / "other", model, objects=2)
    assert not (tmp_path / "other").exists()
