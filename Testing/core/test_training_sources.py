"""What is trained on: folders of labelled images, read completely or refused in one line; splits."""

import shutil

import numpy as np
import pytest
from medsam2_core.errors import TrainingError
from medsam2_core.training.sources import load_sources, split
from medsam2_core.training.stacks import LabelledStack
from PIL import Image
from support.errors import raises
from support.training_folder import shapes, write_nifti, write_training_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_training_folder(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "train")


def test_a_training_folder_is_read_completely(folder):
    stacks = load_sources(folder)
    assert [stack.row for stack in stacks] == ["discs"] * 7 + ["scans", "shapes"]
    picture, scan, shape = stacks[0], stacks[-2], stacks[-1]
    assert picture.image_kji.shape == picture.labels_kji.shape == (1, 64, 64)
    assert not picture.complete and not scan.complete and shape.complete
    assert shape.image_kji is None and shape.spacing_kji == (3.0, 1.5, 1.0)
    assert scan.image_kji.dtype == np.uint8 and scan.image_kji.max() == 255
    for stack in stacks:  # torch takes the arrays as they are
        assert stack.labels_kji.flags.writeable
        assert stack.image_kji is None or stack.image_kji.flags.writeable


def test_labels_are_numbered_anew_in_their_order(folder):
    labels = load_sources(folder)[-1].labels_kji
    theirs = shapes()
    assert {value: int(labels[theirs == value][0]) for value in np.unique(theirs)} == {
        0: 0,
        3: 1,
        7: 2,
        44: 3,
    }
    assert all(len(np.unique(labels[theirs == value])) == 1 for value in np.unique(theirs))


def test_labels_beyond_eight_bits_do_not_wrap(copied):
    labels = np.zeros((64, 64), np.uint16)
    labels[8:30, 8:30], labels[34:60, 34:60] = 256, 1000
    Image.fromarray(labels).save(copied / "discs" / "000_seg.png")
    found = load_sources(copied)[0].labels_kji[0]
    assert (np.unique(found) == [0, 1, 2]).all()
    assert (found[8:30, 8:30] == 1).all() and (found[34:60, 34:60] == 2).all()


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "1", "I;16"])
def test_images_of_every_usual_kind_are_taken(copied, kind):
    path = copied / "discs" / "000_img.png"
    grey = np.asarray(Image.open(path))
    if kind == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 200).save(path)
    else:
        Image.fromarray(grey).convert(kind).save(path)
    image = load_sources(copied)[0].image_kji
    assert image.dtype == np.uint8
    assert image.shape[1:3] == (64, 64)
    object_is_brighter = image[0][grey > 100].mean() > image[0][grey < 60].mean()
    assert object_is_brighter


def test_a_scan_of_one_brightness_or_none_is_taken(copied):
    for value, expected in ((0, 0), (7, 255)):
        write_nifti(copied / "scans" / "one_img.nii.gz", np.full((20, 32, 32), value, np.int16))
        scan = load_sources(copied)[-2]
        assert (scan.image_kji == expected).all()


def without_image(folder):
    (folder / "discs" / "003_img.png").unlink()


def with_a_text_for_an_image(folder):
    (folder / "discs" / "003_img.png").write_text("not a picture")


def with_half_a_picture(folder):
    path = folder / "discs" / "003_img.png"
    path.write_bytes(path.read_bytes()[:300])


def with_empty_labels(folder):
    (folder / "discs" / "003_seg.png").write_bytes(b"")


def with_a_smaller_image(folder):
    Image.new("L", (64, 32)).save(folder / "discs" / "003_img.png")


def with_colours_for_labels(folder):
    Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / "discs" / "003_seg.png")


def with_too_many_labels(folder):
    labels = np.arange(200 * 200, dtype=np.uint16).reshape(200, 200)
    Image.fromarray(labels).save(folder / "discs" / "003_seg.png")


def with_negative_labels(folder):
    write_nifti(folder / "shapes" / "one_seg.nii.gz", shapes().astype(np.int16) - 5)


def with_fractions_for_labels(folder):
    write_nifti(folder / "shapes" / "one_seg.nii.gz", shapes() / np.float32(2))


def with_half_a_volume(folder):
    path = folder / "shapes" / "one_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:-80])


def with_a_shorter_scan(folder):
    write_nifti(folder / "scans" / "one_img.nii.gz", shapes()[1:].astype(np.int16))


def with_nothing_labelled(folder):
    for path in folder.rglob("*_seg.*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_image, "003_img.png: no such file"),
        (with_a_text_for_an_image, "003_img.png: cannot be read"),
        (with_half_a_picture, "003_img.png: cannot be read"),
        (with_empty_labels, "003_seg.png"),
        (with_a_smaller_image, "64 x 32 x 1 voxels, its labels 64 x 64 x 1"),
        (with_colours_for_labels, "003_seg.png: a colour picture is not a label map"),
        (with_too_many_labels, "003_seg.png has 39999 labels: at most 32766"),
        (with_negative_labels, "label -5 is negative"),
        (with_fractions_for_labels, "not whole numbers"),
        (with_half_a_volume, "one_seg.nii.gz"),
        (with_a_shorter_scan, "32 x 32 x 19 voxels, its labels 32 x 32 x 20"),
        (with_nothing_labelled, "nothing to train on"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(copied, spoil, reason):
    spoil(copied)
    with pytest.raises(TrainingError) as refusal:
        load_sources(copied)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with raises("training-folder-missing", TrainingError):
        load_sources(tmp_path / "nowhere")


def test_damaged_folders_are_read_or_refused(folder, tmp_path, campaign, record_property):
    rng = np.random.default_rng(8)
    small = tmp_path / "train"
    originals = {}
    for path in (*folder.glob("discs/000_*"), *folder.glob("sc*/*"), *folder.glob("sh*/*")):
        originals[path.relative_to(folder)] = path.read_bytes()
    names = sorted(originals)
    refused = 0
    record_property("mutated inputs", 40 * campaign)
    for _ in range(40 * campaign):
        for name, content in originals.items():
            (small / name).parent.mkdir(parents=True, exist_ok=True)
            (small / name).write_bytes(content)
        victim = names[int(rng.integers(len(names)))]
        (small / victim).write_bytes(mutated(originals[victim], rng))
        try:
            for stack in load_sources(small):
                assert stack.labels_kji.ndim == 3 and stack.labels_kji.dtype == np.int16
                assert stack.image_kji is None or stack.image_kji.shape[:3] == stack.labels_kji.shape
                assert min(stack.spacing_kji) > 0
        except TrainingError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10 * campaign


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with bytes changed, or (of a compressed volume) with bytes changed inside."""
    import gzip

    kind = int(rng.integers(4))
    if kind == 0:
        return content[: int(rng.integers(len(content)))]
    inside = kind == 1 and content[:2] == b"\x1f\x8b"
    changed = bytearray(gzip.decompress(content) if inside else content)
    reach = 352 if inside else len(changed)  # the header is where damage does most
    for _ in range(int(rng.integers(1, 8))):
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    return gzip.compress(bytes(changed), 1) if inside else bytes(changed)


# Splits -----------------------------------------------------------------------------------------------------


def test_the_split_is_the_same_every_time_and_shares_no_case(folder):
    first, second = split(load_sources(folder)), split(load_sources(folder))
    names = [[[(s.row, s.case) for s in part] for part in parts] for parts in (first, second)]
    assert names[0] == names[1]
    training, validation = names[0]
    assert validation == [("discs", "005")]
    assert len(training) == 8 and not set(training) & set(validation)


def test_no_body_brain_or_patient_is_on_both_sides(training_data):
    training, validation = split(list(named_only(training_data)))
    assert len(training) + len(validation) > 400 and len(validation) > 20
    assert {(s.row, s.case) for s in training}.isdisjoint({(s.row, s.case) for s in validation})
    rows_held = {stack.row for stack in validation}
    for one_body in ("hubmap_ccf_organs", "vh_leg_msk", "bodyparts3d_bones", "brain_pd25", "synthsr_brains"):
        assert one_body not in rows_held
        assert any(stack.row == one_body for stack in training)
    # Two cases of one patient.
    assert {stack.case for stack in validation if stack.row == "tcia_hn_oar_labels"} == {"hn11", "hn12"}
    # One patient in three data sets.
    sarcoma = [
        {stack.case for stack in part if stack.row.startswith("sts3d")} for part in (training, validation)
    ]
    assert sarcoma[1] and sarcoma[0].isdisjoint(sarcoma[1])


def named_only(folder):
    """The cases of a folder in the order they are read, without reading them."""
    nothing = np.zeros((1, 1, 1), np.uint8)
    for row in sorted(path for path in folder.iterdir() if path.is_dir()):
        for end in ("png", "nii.gz"):
            for path in sorted(row.glob(f"*_seg.{end}")):
                case = path.name.removesuffix(f"_seg.{end}")
                has_image = path.with_name(f"{case}_img.{end}").exists()
                yield LabelledStack(
                    row.name, case, nothing, nothing if has_image else None, (1, 1, 1), not has_image
                )
