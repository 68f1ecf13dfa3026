"""Corrections kept to learn from: whole or not at all, bounded, of nobody, and read as training data."""

import json
import os

import numpy as np
import pytest
from medsam2_core.auto.fewshot.cases import read_case
from medsam2_core.auto.fewshot.data import find_pairs
from medsam2_core.errors import ExportError
from MedSAM2SegmentLib.Worker.Corrections import Corrections, defaultFolder
from support.errors import raises

VOXELS = np.random.default_rng(0).integers(0, 4000, (6, 40, 30)).astype(np.int16)
PROMPTS = {"points": [[3.0, 4.0, 1]], "box": None}


def keep(corrections, n, value=0, voxels=VOXELS, segment="Segment_1 of Anna", colour=False):
    shape = (40, 30, 3) if colour else (40, 30)
    image = np.random.default_rng(n + value).integers(0, 255, shape).astype(np.uint8)
    mask = np.zeros((40, 30), bool)
    mask[10:20, 5 : 15 + n] = True
    corrections.keep(voxels, ("axial", n, segment), image, mask, (0.5, 0.7, 3.0), PROMPTS)
    return image, mask


@pytest.fixture
def corrections(tmp_path):
    return Corrections(tmp_path / "data" / "corrections")


def test_they_are_in_the_application_data_unless_told_otherwise(tmp_path):
    place = defaultFolder({"XDG_DATA_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)})
    assert place.parts[-2:] == ("MedSAM2Segment", "corrections")
    assert defaultFolder({"MEDSAM2_CORRECTIONS": str(tmp_path)}) == tmp_path


def test_what_is_kept_is_read_as_training_data(corrections):
    kept = [keep(corrections, n) for n in range(3)]
    keep(corrections, 0, voxels=VOXELS + 1)
    pairs = find_pairs(corrections.folder)
    assert len(pairs) == 4 and len({pair.group for pair in pairs}) == 2  # slices of a volume stay together
    found = []
    for pair in pairs:
        case = read_case(pair)
        assert case.volume.voxels_kji.shape == (1, 40, 30)
        assert np.allclose(case.volume.geometry.spacing, (0.5, 0.7, 3.0))
        (segment,) = case.labels
        mask = np.zeros((1, 40, 30), bool)
        segment.view_of(mask)[segment.part_kji] = True
        found.append((case.volume.voxels_kji[0].tobytes(), mask[0].tobytes()))
    assert {(image.tobytes(), mask.tobytes()) for image, mask in kept} <= set(found)
    with np.load(pairs[0].image) as arrays:
        assert json.loads(str(arrays["prompts"])) == PROMPTS


def test_a_slice_corrected_again_takes_the_place_of_the_earlier_one(corrections):
    keep(corrections, 1)
    image, _ = keep(corrections, 1, value=50)
    assert corrections.size()[0] == 1
    (pair,) = find_pairs(corrections.folder)
    assert np.array_equal(read_case(pair).volume.voxels_kji[0], image)
    keep(corrections, 1, segment="Segment_2")
    assert corrections.size()[0] == 2


def test_colours_become_grey(corrections):
    image, _ = keep(corrections, 1, colour=True)
    (pair,) = find_pairs(corrections.folder)
    grey = read_case(pair).volume.voxels_kji[0].astype(float)
    assert np.abs(grey - image.mean(-1)).max() <= 0.5


def test_nothing_tells_whose_image_it_is(corrections):
    keep(corrections, 1, segment="Anna^Beispiel")
    (path,) = corrections.folder.iterdir()
    assert len(path.stem) == 32 and set(path.stem) <= set("0123456789abcdef")
    assert b"Anna" not in path.read_bytes()
    with np.load(path) as arrays:
        assert set(arrays) == {"imgs", "gts", "spacing", "group", "prompts"}


def test_the_folder_is_bounded_and_the_oldest_go_first(corrections):
    keep(corrections, 0)
    size = corrections.size()[1]
    small = Corrections(corrections.folder, largest=int(3.5 * size))
    for n in range(1, 6):
        for path in small.folder.iterdir():
            os.utime(path, (1e9 + n, 1e9 + n))
        keep(small, n)
    count, total = small.size()
    assert total <= 3.5 * size and 2 <= count <= 3
    newest, _ = keep(Corrections(corrections.folder, largest=1), 9)
    assert np.array_equal(read_case(find_pairs(small.folder)[0]).volume.voxels_kji[0], newest)


def test_files_of_the_user_are_neither_counted_nor_deleted_to_make_room(corrections):
    corrections.folder.mkdir(parents=True)
    own = corrections.folder / "CT_Abd_1.npz"
    own.write_bytes(bytes(9000))
    os.utime(own, (1e9, 1e9))
    small = Corrections(corrections.folder, largest=1)
    keep(small, 1)
    keep(small, 2)
    assert own.exists() and small.size()[0] == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_no_other_user_can_read_them(corrections):
    keep(corrections, 1)
    assert corrections.folder.stat().st_mode & 0o777 == 0o700
    corrections.folder.chmod(0o750)  # the user's own choice
    keep(corrections, 2)
    assert corrections.folder.stat().st_mode & 0o777 == 0o750


def test_nothing_is_left_half_written(corrections, monkeypatch):
    keep(corrections, 1)
    before = {path.name: path.read_bytes() for path in corrections.folder.iterdir()}

    def full(stream, **arrays):
        stream.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with raises("output-not-writable", ExportError):
        keep(corrections, 1, value=9)
    assert {path.name: path.read_bytes() for path in corrections.folder.iterdir()} == before


def test_all_are_deleted_and_nothing_else(corrections):
    keep(corrections, 1)
    (path,) = corrections.folder.iterdir()
    path.with_name(f".{path.name}.0123abcd.part").write_bytes(b"half an image")
    own = {"notes.txt", "CT_Abd_1.npz"}
    for name in own:
        (corrections.folder / name).write_text("mine")
    corrections.remove()
    assert {path.name for path in corrections.folder.iterdir()} == own
    assert corrections.size() == (0, 0)
    assert Corrections(corrections.folder / "none").size() == (0, 0)
