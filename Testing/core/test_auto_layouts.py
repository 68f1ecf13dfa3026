"""Labelled data in the layouts of published training systems, and DICOM series with their segmentations."""

import shutil

import numpy as np
import pytest
from medsam2_core.auto.fewshot.cases import read_case
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes, unpaired
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.survey import survey
from PIL import Image
from support.dicom_seg import Part, source_images, two_masks, write
from support.errors import raises
from support.reference_layouts import SIDE, two_organs, write_npz, write_rated, write_slice_by_slice

READING = ReadingOptions(64)


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return write_slice_by_slice(tmp_path_factory.mktemp("organs"), slices=12)


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return write_rated(tmp_path_factory.mktemp("rated"))


def test_slices_and_arrays_in_folders_are_volumes(organs):
    pairs = find_pairs(organs)
    assert [(pair.name, pair.held_out) for pair in pairs] == [
        ("img0100", True), ("img0000", False), ("img0001", False),
    ]  # fmt: skip
    assert unpaired(organs, pairs) == []
    case = read_case(pairs[1])
    image, labels = two_organs(0, 12)
    assert np.array_equal(case.labels.labels_kji(), labels)  # 10 and 11 come after 9, not after 1
    assert np.abs(case.volume.voxels_kji.astype(float) - image).mean() < 4  # JPEG


def test_slices_in_folders_are_surveyed(organs):
    found = survey(find_pairs(organs), READING, parse_classes("1=ball,2=bar"), keeps_cases=True)
    assert not found.fatal
    assert [one.name for one in found.classes] == ["ball", "bar"]
    assert [case.pair.name for case in found.cases] == ["img0100", "img0000", "img0001"]
    assert len(set(found.groups_of_cases)) == 3


def test_raters_vote(rated):
    pairs = find_pairs(rated)
    assert [pair.held_out for pair in pairs] == [True, False, False]
    assert [len(pair.raters) for pair in pairs] == [14] * 3
    assert unpaired(rated, pairs) == []
    labels = read_case(pairs[1]).labels
    assert [label.name for label in labels.labels] == ["cup", "disc"]
    rows, columns = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(rows - SIDE / 2, columns - SIDE / 2)
    for name, radius in (("cup", 10), ("disc", 20)):  # raters 4 to 7 of 7 see a cup of 10 or more
        wrong = labels[name].mask_kji[0] ^ (distance < radius)
        assert wrong.sum() <= 12, name  # JPEG
    assert (labels["cup"].mask_kji & ~labels["disc"].mask_kji).sum() == 0


def test_every_rater_can_be_a_case(rated):
    pairs = find_pairs(rated, every_rater=True)
    assert len(pairs) == 21 and len({pair.group for pair in pairs}) == 3
    areas = [int(read_case(pair).labels["cup"].mask_kji.sum()) for pair in pairs[7:14]]
    assert areas == sorted(areas) and areas[-1] > 2 * areas[0]


def test_npz_files_hold_both(tmp_path):
    pairs = find_pairs(write_npz(tmp_path))
    assert [(pair.image, pair.labels) for pair in pairs] == [(p, p) for p in sorted(tmp_path.glob("*.npz"))]
    assert np.array_equal(read_case(pairs[0]).labels.labels_kji(), two_organs(0)[1])


def test_dicom_segmentations_belong_to_the_series_they_refer_to(tmp_path):
    masks, images = two_masks(), source_images()
    for number, image in enumerate(images):
        (tmp_path / "scan").mkdir(exist_ok=True)
        image.save_as(tmp_path / "scan" / f"{number:03d}.dcm", enforce_file_format=True)
    write(tmp_path / "scan_SEG.dcm", [Part(masks[0], "liver")], images=images)
    (pair,) = find_pairs(tmp_path)
    assert (pair.image.name, pair.labels.name) == ("scan", "scan_SEG.dcm")
    case = read_case(pair)
    assert case.volume.voxels_kji.shape == case.labels.geometry.shape_ijk[::-1]
    assert np.array_equal(case.labels.labels_kji() > 0, masks[0])  # also where slices were left out
    found = survey([pair], READING, keeps_cases=True)
    assert [one.name for one in found.classes] == ["liver"] and len(found.cases) == 1


def spoilt(folder, organs):
    shutil.copytree(organs, folder)
    return folder / "Training" / "mask" / "img0000"


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("slice-without-mask", lambda masks: (masks / "3.npy").unlink()),
        ("array-unreadable", lambda masks: (masks / "3.npy").write_bytes(b"\x93NUMPY\x01\x00junk")),
        ("array-unreadable", lambda masks: np.save(masks / "3.npy", np.array([{}]), allow_pickle=True)),
        ("array-not-a-mask", lambda masks: np.save(masks / "3.npy", np.full((SIDE, SIDE), 0.5))),
        ("array-not-a-mask", lambda masks: np.save(masks / "3.npy", np.zeros((2, SIDE, SIDE)))),
        ("slices-of-several-sizes", lambda masks: np.save(masks / "3.npy", np.zeros((9, 9), int))),
        ("sizes-differ", lambda masks: [np.save(p, np.zeros((9, 9), int)) for p in masks.iterdir()]),
    ],
)
def test_what_is_wrong_with_a_slice_is_a_problem_of_its_case(organs, tmp_path, code, spoil):
    masks = spoilt(tmp_path / "data", organs)
    spoil(masks)
    found = survey(find_pairs(tmp_path / "data"), READING, keeps_cases=True)
    assert (code, "img0000") in [(problem.code, problem.image) for problem in found.problems]
    with raises("bad-images"):
        found.raise_for_problems()
    found.raise_for_problems(skip_bad=True)
    assert "img0000" not in [case.pair.name for case in found.cases]


def test_pictures_that_are_not_numbered_are_no_slices(organs, tmp_path):
    masks = spoilt(tmp_path / "data", organs)
    Image.new("L", (SIDE, SIDE)).save(masks.parent.parent / "image" / "img0000" / "overview.png")
    assert [pair.name for pair in find_pairs(tmp_path / "data")] == ["img0100", "img0001"]
