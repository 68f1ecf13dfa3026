"""What has once gone wrong, or nearly, with labelled images and their features."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from medsam2_core.auto.fewshot import survey as survey_module
from medsam2_core.auto.fewshot.data import ClassChoice, ClassTable, find_pairs
from medsam2_core.auto.fewshot.features import FeatureBank
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.survey import Survey, fingerprints
from medsam2_core.auto.letterbox import Letterbox
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.segmentation import Label
from PIL import Image
from support.auto_model import a_full_bank, an_auto_model, labelled_discs
from support.errors import raises
from support.tiny_model import tiny_model


def write(folder, *names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)


def test_four_digits_at_the_end_number_images_and_not_channels(tmp_path):
    names = [f"IMG_{n:04d}.png" for n in range(5)]
    write(tmp_path / "images", *names)
    write(tmp_path / "labels", *names)
    pairs = find_pairs(tmp_path)
    assert [pair.image.name for pair in pairs] == [pair.labels.name for pair in pairs] == names


def test_in_nnunets_folders_they_are_channels(tmp_path):
    write(tmp_path / "imagesTr", "hip_001_0000.png", "hip_001_0001.png", "hip_002_0000.png")
    write(tmp_path / "labelsTr", "hip_001.png", "hip_002.png", "hip_0003.png")
    pairs = [(pair.image.name, pair.labels.name) for pair in find_pairs(tmp_path)]
    assert pairs == [("hip_001_0000.png", "hip_001.png"), ("hip_002_0000.png", "hip_002.png")]


def test_segments_without_a_name_are_called_by_their_number():
    """A model with a nameless class could be saved, but not loaded."""
    table = ClassTable()
    table.add_labels([Label("", 3), Label("  ", 4), Label(" vein ", 5)])
    assert [one.name for one in table.classes] == ["3", "4", "vein"]
    assert table.numbers([Label("", 4), Label("vein", 1)]) == {(0, 4): 2, (0, 1): 3}
    chosen = ClassTable([ClassChoice("nerve", 3)])
    chosen.add_labels([Label("", 3)])
    assert [one.name for one in chosen.classes] == ["nerve"]


def a_plain_slice(group, *, held_out=False, value=0) -> LabelledImage:
    letterbox, labels = Letterbox((40, 64), 64), np.zeros((40, 64), np.int16)
    square = np.zeros((64, 64, 3), np.uint8)
    square[:40] = value
    return LabelledImage(square, labels, letterbox, f"{group}, slice 0", group, held_out, is_slice=True)


def test_empty_slices_do_not_make_one_patient_of_two():
    images = [
        a_plain_slice("one"),
        a_plain_slice("two"),
        a_plain_slice("three", value=80),
        *labelled_discs(2),
    ]
    found = Survey(images=images)
    survey_module._check_doubles(found)
    assert [image.group for image in found.images] == [image.group for image in images]
    assert not found.problems
    assert not fingerprints(images[:3]).any()


def test_empty_slices_may_be_on_both_sides_of_a_split():
    found = Survey(images=[a_plain_slice("one"), a_plain_slice("two", held_out=True)])
    survey_module._check_doubles(found)
    assert len(found.images) == 2 and not found.problems


def test_an_image_of_the_same_name_as_a_double_is_kept():
    one, other = labelled_discs(2)
    double = LabelledImage(one.square, one.labels_hw, one.letterbox, "0", "a", held_out=True)
    namesake = LabelledImage(other.square, other.labels_hw, other.letterbox, "0", "b", held_out=True)
    found = Survey(images=[one, double, namesake])
    survey_module._check_doubles(found)
    assert [image.group for image in found.images] == ["patient 0", "b"]
    assert [problem.image for problem in found.fatal] == ["0"]


@pytest.fixture(scope="module")
def auto():
    return an_auto_model(tiny_model())


def test_feature_files_that_were_cut_off_are_made_anew(auto, tmp_path):
    images = labelled_discs(2)
    bank = a_full_bank(tmp_path, auto, images)
    expected = bank.read([0, 1, 2, 3])[0].fine.clone()
    for damage in (lambda content: content[:-100], lambda content: content[:3], lambda _: b""):
        path = bank.folder / "fine.npy"
        path.write_bytes(damage(path.read_bytes()))
        again = a_full_bank(tmp_path, auto, images)
        assert (again.read([0, 1, 2, 3])[0].fine == expected).all()


def test_a_disk_too_full_for_features_is_an_error_and_not_the_end(auto, tmp_path, monkeypatch):
    """The files are sparse: the system would kill whoever writes into them where no room is left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with raises("features-not-writable", TrainingError):
        a_full_bank(tmp_path, auto, labelled_discs(2))
    assert FeatureBank.bytes_each(auto.model) > 1000
