"""Images and labels to learn from: found by name, read, and looked through for problems before training."""

import numpy as np
import pytest
from medsam2_core.auto.fewshot.cases import read_case
from medsam2_core.auto.fewshot.data import ClassTable, draw_shots, find_pairs, parse_classes, stem_of
from medsam2_core.auto.fewshot.images import ReadingOptions, images_of
from medsam2_core.auto.fewshot.settings import FewShotSettings, plan_stages
from medsam2_core.auto.fewshot.survey import fingerprints, survey
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.segmentation import Label
from PIL import Image
from support.errors import raises
from support.labelled_images import BAR, a_ball, a_picture, write_pictures, write_volumes
from support.small_files import write_nifti

READING = ReadingOptions(64)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# Pairs


def test_pairs_are_found_by_the_ends_of_their_names(tmp_path):
    write_pictures(tmp_path, 3)
    assert [pair.name for pair in find_pairs(tmp_path)] == ["000_img", "001_img", "002_img"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("imgs", "gts"), ("images", "masks"), ("imagesTr", "labelsTr")],
)
def test_pairs_are_found_by_folders(tmp_path, images, labels):
    for n in range(2):
        image, marks = a_picture(n)
        suffix = "_0000" if images.endswith("Tr") else ""
        save(image, tmp_path / images / f"case{n}{suffix}.png")
        save(marks, tmp_path / labels / f"case{n}.png")
    pairs = find_pairs(tmp_path)
    assert [(pair.image.parent.name, pair.labels.parent.name) for pair in pairs] == [(images, labels)] * 2
    assert [pair.labels.stem for pair in pairs] == ["case0", "case1"]


def test_a_folder_called_test_is_held_aside(tmp_path):
    for part, first in (("Train", 0), ("Test", 5)):
        for n in range(first, first + 2):
            image, marks = a_picture(n)
            save(image, tmp_path / part / "imgs" / f"{n}.png")
            save(marks, tmp_path / part / "gts" / f"{n}.png")
    assert [pair.held_out for pair in find_pairs(tmp_path)] == [True, True, False, False]


def test_volumes_with_segmentations_beside_them_are_pairs(tmp_path):
    write_volumes(tmp_path, 2)
    assert [(pair.name, pair.labels.name) for pair in find_pairs(tmp_path)] == [
        ("case0", "case0.seg.nrrd"),
        ("case1", "case1.seg.nrrd"),
    ]


def test_a_csv_gives_pairs_splits_and_groups(tmp_path):
    write_pictures(tmp_path, 3)
    text = "image,label,split,group\n000_img.png,000_seg.png,,anna\n001_img.png,001_seg.png,test,\n"
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    first, second = find_pairs(tmp_path / "pairs.csv")
    assert (first.group, first.held_out, second.held_out) == ("anna", False, True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("picture,mask\na,b\n", "csv-without-columns"),
        ("image,label\na.png,\n", "csv-line-incomplete"),
        ("image,label,split\na.png,b.png,sometimes\n", "csv-unknown-split"),
        ("image,label\n", "csv-without-columns"),
        ("", "csv-without-columns"),
    ],
)
def test_a_csv_that_cannot_be_understood_is_refused(tmp_path, text, code):
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    with raises(code, TrainingError):
        find_pairs(tmp_path / "pairs.csv")


def test_a_folder_without_labels_is_refused_with_how_to_name_them(tmp_path):
    save(a_picture(0)[0], tmp_path / "one.png")
    with raises("no-pairs", TrainingError, images=1):
        find_pairs(tmp_path)
    with raises("data-not-found", TrainingError):
        find_pairs(tmp_path / "elsewhere")


def test_a_stem_is_the_name_without_the_suffix_of_the_format(tmp_path):
    for name in ("a.b.nii.gz", "a.b.seg.nrrd", "a.b.png"):
        assert stem_of(tmp_path / name) == "a.b"


# Classes


def test_classes_keep_their_names_colours_and_codes(tmp_path):
    write_volumes(tmp_path, 2)
    (one,) = survey(find_pairs(tmp_path), READING).classes
    assert (one.name, one.colour_rgb) == ("kidney", pytest.approx((0.2, 0.4, 0.6)))
    assert one.coded.type.meaning == "Kidney"


def test_numbers_get_names_and_names_decide_where_there_are_some():
    table = ClassTable(parse_classes("2=bar,1=disc"))
    table.add_labels([Label("1", 1), Label("2", 2), Label("3", 3)])
    table.add_labels([Label("disc", 7)])  # a file of its own counting
    assert [one.name for one in table.classes] == ["bar", "disc"]
    assert table.numbers([Label("1", 1), Label("2", 2), Label("3", 3)]) == {(0, 2): 1, (0, 1): 2}
    assert table.numbers([Label("disc", 7)]) == {(0, 7): 2}


@pytest.mark.parametrize("text", ["a,a", "0=background", "1=", "x=y", "a,,b"])
def test_classes_that_mean_nothing_are_refused(text):
    with raises("classes-syntax", TrainingError):
        parse_classes(text)


# Images


def test_a_picture_lies_in_the_square_and_its_labels_stay_as_they_are(tmp_path):
    write_pictures(tmp_path, 1)
    (pair,) = find_pairs(tmp_path)
    table = ClassTable()
    table.add_labels([Label("1", 1), Label("2", 2)])
    (image,) = images_of(read_case(pair), table, READING)
    assert image.square.shape == (64, 64, 3)
    assert np.array_equal(image.labels_hw, a_picture(0)[1])
    assert not image.is_slice


def test_a_volume_is_cut_and_empty_slices_keep_their_share(tmp_path):
    image, ball = a_ball(0, (40, 32, 30))
    write_nifti(tmp_path / "a_img.nii.gz", image, np.diag([-1.0, -1.0, 2.0, 1.0]))
    write_nifti(tmp_path / "a_seg.nii.gz", ball, np.diag([-1.0, -1.0, 2.0, 1.0]))
    found = survey([*find_pairs(tmp_path)], ReadingOptions(64, most_slices=20))
    assert len(found.images) == 20
    whole = ball.any((1, 2)).mean()
    assert np.mean([one.labels_hw.any() for one in found.images]) == pytest.approx(whole, abs=0.06)
    assert {one.group for one in found.images} == {found.images[0].group}


def test_labels_stored_in_another_axis_order_lie_on_their_voxels(tmp_path):
    image, ball = a_ball(1)
    straight = np.diag([-1.0, -1.0, 2.0, 1.0])
    write_nifti(tmp_path / "a_img.nii.gz", image, straight)
    flipped = straight @ np.array([[0, 0, -1, 29], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned = np.flip(ball, 2).transpose(2, 1, 0)  # (K, J, I) of the turned grid
    write_nifti(tmp_path / "a_seg.nii.gz", np.ascontiguousarray(turned), flipped)
    found = survey(find_pairs(tmp_path), READING)
    assert not found.fatal, found.problems
    inside = [
        one.square[one.letterbox.resize_labels(one.labels_hw).numpy() > 0].mean()
        for one in found.images
        if one.labels_hw.any()
    ]
    assert min(inside) > 150, "labels lie on the bright ball"


# Problems


def problems_of(folder, **more):
    return [str(problem) for problem in survey(find_pairs(folder), READING, **more).problems]


def test_sound_data_has_no_problems(tmp_path):
    assert problems_of(write_pictures(tmp_path)) == []


def test_every_problem_is_reported_with_its_image_and_value(tmp_path):
    write_pictures(tmp_path, 8)
    save(a_picture(0)[1][:, :50], tmp_path / "000_seg.png")  # another size
    save(np.full((72, 72), 2, np.uint8), tmp_path / "001_seg.png")  # one colour
    save(np.stack([a_picture(2)[0], a_picture(3)[0], a_picture(2)[0]], -1), tmp_path / "002_seg.png")
    (tmp_path / "003_seg.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    told = problems_of(tmp_path)
    assert any("000_img" in line and "72 x 72" in line and "50 x 72" in line for line in told)
    assert any("001_img" in line and "every pixel" in line for line in told)
    assert any("002_img" in line and "colour" in line for line in told)
    assert any("003_img" in line for line in told)
    with raises("bad-images", TrainingError) as caught:
        survey(find_pairs(tmp_path), READING).raise_for_problems()
    assert len(caught.value.fields["problems"]) == 4
    survey(find_pairs(tmp_path), READING).raise_for_problems(skip_bad=True)


def test_labels_that_are_not_whole_numbers_are_reported(tmp_path):
    image, ball = a_ball(0)
    write_nifti(tmp_path / "a_img.nii.gz", image)
    write_nifti(tmp_path / "a_seg.nii.gz", ball * np.float32(0.5))
    assert any("whole numbers" in line or "0.5" in line for line in problems_of(tmp_path))


def test_a_missing_class_is_reported_with_those_there_are(tmp_path):
    write_pictures(tmp_path)
    found = survey(find_pairs(tmp_path), READING, parse_classes("1=disc,9=moon"))
    with raises("bad-data", TrainingError) as caught:
        found.raise_for_problems(skip_bad=True)
    (problem,) = caught.value.fields["problems"]
    assert problem["code"] == "class-not-found"
    assert problem["fields"] == {"name": "moon", "known": ["disc"]}


def test_an_image_on_both_sides_of_the_split_is_reported(tmp_path):
    write_pictures(tmp_path, 4)
    rows = ["image,label,split"]
    rows += [f"{n:03d}_img.png,{n:03d}_seg.png,{'test' if n == 3 else 'train'}" for n in range(4)]
    (tmp_path / "003_img.png").write_bytes((tmp_path / "001_img.png").read_bytes())
    (tmp_path / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    found = survey(find_pairs(tmp_path / "pairs.csv"), READING)
    assert any("003_img" in str(p) and "001_img" in str(p) for p in found.fatal)


def test_images_that_look_alike_stay_on_one_side(tmp_path):
    write_pictures(tmp_path, 5)
    near = a_picture(2)[0].astype(int) + 1
    save(near.clip(0, 255).astype(np.uint8), tmp_path / "004_img.png")
    found = survey(find_pairs(tmp_path), READING)
    groups = {image.name: image.group for image in found.images}
    assert groups["004_img"] == groups["002_img"]
    assert len(set(groups.values())) == 4
    assert any("look like others" in str(p) for p in found.problems)
    assert (fingerprints(found.images)[0] != fingerprints(found.images)[1]).sum() > 12


def test_a_class_on_few_images_is_a_note_and_not_in_the_way(tmp_path):
    write_pictures(tmp_path, 5)
    for n in range(1, 5):
        marks = a_picture(n)[1]
        marks[marks == BAR] = 0
        save(marks, tmp_path / f"{n:03d}_seg.png")
    found = survey(find_pairs(tmp_path), READING)
    assert [str(p) for p in found.problems] == ["only 1 image to train on with the class '2'"]
    found.raise_for_problems()


# Splits


def test_few_images_are_measured_in_folds_that_never_divide_a_group(tmp_path):
    write_pictures(tmp_path, 7)
    found = survey(find_pairs(tmp_path), READING)
    *folds, final = plan_stages(found.images, FewShotSettings("m"))
    assert [one.name for one in folds] == ["fold 1", "fold 2", "fold 3"]
    assert sorted(n for one in folds for n in one.validation) == list(range(7))
    for one in folds:
        trained = {found.images[n].group for n in one.training}
        assert trained.isdisjoint({found.images[n].group for n in one.validation})
    assert final.training == list(range(7))
    assert final.validation == []


def test_many_images_hold_a_fifth_aside(tmp_path):
    write_pictures(tmp_path, 20)
    found = survey(find_pairs(tmp_path), READING)
    (final,) = plan_stages(found.images, FewShotSettings("m"))
    assert len(final.validation) == 4
    assert not set(final.validation) & set(final.training)


def test_shots_are_drawn_by_the_seed_and_those_held_aside_stay(tmp_path):
    write_pictures(tmp_path, 9)
    pairs = find_pairs(tmp_path)
    assert draw_shots(pairs, 4, 1) == draw_shots(pairs, 4, 1) != draw_shots(pairs, 4, 2)
    assert len(draw_shots(pairs, 4, 1)) == 4
    with raises("too-few-images", TrainingError, shots=10, images=9):
        draw_shots(pairs, 10, 0)


def test_real_ultrasound_of_two_sizes_has_no_problems(shared_data):
    found = survey(find_pairs(shared_data / "us" / "nerve"), READING, parse_classes("1=nerve,2=vessel"))
    assert len(found.images) == 108
    assert len({image.labels_hw.shape for image in found.images}) == 3
    assert not found.fatal
