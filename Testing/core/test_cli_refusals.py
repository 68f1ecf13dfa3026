"""What a newcomer gives that cannot work: refused before anything is computed, with what to do about it."""

import json
import os
import sys

import numpy as np
import pytest
from medsam2_core.imaging.reading import read_segmentation, read_volume
from support.command_line import (
    BALL_BOX,
    ball_kji,
    write_nrrd,
    write_photo,
)
from support.labelled_images import write_pictures
from support.small_files import write_series

READ, OPEN = "medsam2_core.imaging.reading.read_volume", "medsam2_core.session.Session.open"


# Where results go -------------------------------------------------------------------------------------------


@pytest.fixture
def disk_of():
    """Limits what a file may hold, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("option", ["--out", "--picture", "--probabilities"])
def test_a_full_disk_is_found_before_anything_is_read(
    medsam2, model, scan, results, never, disk_of, option, tmp_path
):
    never(READ)
    names = {"--out": "m.seg.nrrd", "--picture": "m.png", "--probabilities": "p.nrrd"}
    words = [word for name in ("--out", option) for word in (name, results / names[name])]
    disk_of(100_000)
    answer = medsam2("segment", scan, "--model", model, "--box", BALL_BOX, *words)
    disk_of(1 << 30)
    assert answer.refused("output-not-writable")
    assert list(results.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "evaluate", "train auto"])
def test_other_commands_find_a_full_disk_first(medsam2, scan, results, tmp_path, disk_of, command):
    data = write_pictures(tmp_path / "data", 3)
    labels = write_nrrd(tmp_path / "labels.nrrd", ball_kji().astype(np.uint8))
    words = {
        "export": ("export", labels, "--out", results / "m.seg.nrrd"),
        "evaluate": ("evaluate", scan, labels, "--out", results / "figures.json"),
        "train auto": ("train", "auto", data, "--out", results / "m.medsam2auto"),
    }[command]
    disk_of(100_000)
    answer = medsam2(*words)
    disk_of(1 << 30)
    assert answer.refused("output-not-writable")
    assert list(results.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(("option", "code"), [("--prompts", "prompts-unreadable"), ("--mask", "not-a-file")])
def test_prompts_are_not_waited_for(medsam2, model, scan, results, tmp_path, option, code):
    os.mkfifo(tmp_path / "pipe.nrrd")
    words = ("segment", scan, "--model", model, "--out", results / "m.nrrd", option, tmp_path / "pipe.nrrd")
    assert medsam2(*words).error.code == code


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files, not even from root")
def test_a_folder_that_takes_no_files_is_found_before_anything_is_read(medsam2, model, scan, never):
    never(READ)
    answer = medsam2("segment", scan, "--model", model, "--box", BALL_BOX, "--out", "/sys/m.seg.nrrd")
    assert answer.refused("output-not-writable")
    assert "/sys/m.seg.nrrd" in answer.err


def test_masks_are_kept_when_the_picture_beside_them_cannot_be_written(
    medsam2, model, scan, results, monkeypatch
):
    from medsam2_core.errors import ExportError
    from medsam2_core.export import picture

    def fails(*_, **__):
        raise ExportError("no room", code="output-not-writable")

    monkeypatch.setattr(picture, "montage", fails)
    out = results / "x.seg.nrrd"
    words = ["--model", model, "--out", out, "--box", BALL_BOX, "--range", "12:12"]
    words += ["--picture", results / "x.png", "--probabilities", results / "p.nrrd", "--json"]
    answer = medsam2("segment", scan, *words)
    assert answer.refused("beside-not-written")
    assert answer.facts["error"]["fields"]["out"] == str(out)
    assert answer.facts["error"]["fields"]["error"]["code"] == "output-not-writable"
    assert sorted(path.name for path in results.iterdir()) == ["p.nrrd", "x.seg.nrrd"]
    assert read_segmentation(out).labels[0].name == "object"


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--device", "abacus", "unknown-device"),
        ("--device", "cuda:99", None),
        ("--precision", "fp8", "unknown-precision"),
        ("--window", "wide", "unknown-window"),
        ("--window", "0,40", "invalid-window"),
        ("--model", "sam3", None),
    ],
)
@pytest.mark.parametrize("command", ["segment", "auto"])
def test_settings_are_refused_before_anything_is_read(
    medsam2, model, scan, results, never, option, value, code, command, request
):
    if command == "auto" and option == "--model":
        pytest.skip("the Auto model itself")
    words = ["--out", results / "m.seg.nrrd"]
    if command == "segment":
        words += ["--box", BALL_BOX, *(() if option == "--model" else ("--model", model))]
    else:
        words += ["--model", request.getfixturevalue("auto_model")]
    never(READ, OPEN)
    answer = medsam2(command, scan, *words, option, value)
    assert answer.code == 2, answer.err
    assert code in (None, answer.error.code)


# Volumes and prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "no-finite-voxel"), (np.inf, "no-finite-voxel"), (7, "constant-volume")]
)
def test_a_volume_that_shows_nothing_is_refused(medsam2, model, results, tmp_path, never, value, code):
    never(OPEN)
    empty = write_nrrd(tmp_path / "empty.nrrd", np.full((24, 48, 40), value, np.float32))
    answer = medsam2("segment", empty, "--out", results / "m.nrrd", "--model", model, "--box", BALL_BOX)
    assert answer.refused(code)
    assert medsam2("info", empty).code == 0, "but it can be looked at"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--point", "20,26,12,-"), "only-background-points"),
        (("--point", "20,26,12,-", "--point", "20,26,13,-"), "only-background-points"),
        (("--object", "a", "--point", "20,26,12", "--object", "b", "--point", "2,2,12,-"),
         "only-background-points"),
        (("--box", BALL_BOX, "--range", "14:10"), "range-reversed"),
        (("--box", BALL_BOX, "--range", "13:20"), "prompt-outside-range"),
        (("--box", BALL_BOX, "--range", ":11"), "prompt-outside-range"),
        (("--box", BALL_BOX, "--point", "2,2,3,-", "--range", "10:14"), "prompt-outside-range"),
        (("--axis", "coronal", "--point", "20,26,12", "--range", "20:25"), "prompt-outside-range"),
    ],
)  # fmt: skip
def test_prompts_without_content_are_refused(medsam2, model, scan, results, never, words, code):
    never(OPEN)
    answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, *words)
    assert answer.refused(code)
    assert list(results.iterdir()) == []


def test_for_a_mask_on_another_grid_the_differences_are_listed(medsam2, model, scan, results, tmp_path):
    import nrrd

    header = {"space": "left-posterior-superior", "space origin": np.array([-10.0, 5.0, 90.0])}
    header["space directions"] = np.diag([1.0, 1.0, 3.0])
    mask = tmp_path / "mask.nrrd"
    nrrd.write(str(mask), np.ascontiguousarray(ball_kji().astype(np.uint8).T), header)
    answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, "--mask", mask)
    assert answer.refused("mask-on-other-grid")
    for text in ("spacing 1 x 1 x 3 mm, the image's 1 x 1 x 2 mm", "origin", "90.00", "100.00"):
        assert text in answer.err
    assert "size" not in answer.err


def test_a_file_of_several_volumes_names_the_option(medsam2, model, results, tmp_path):
    import nibabel

    path = tmp_path / "four.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4, 3), np.int16), np.eye(4)), path)
    answer = medsam2("segment", path, "--out", results / "m.nrrd", "--model", model, "--box", "1,1,5,5@1")
    assert answer.refused("series-needed")
    assert "--series" in answer.err


@pytest.mark.parametrize("command", ["segment", "auto", "replay"])
def test_a_segmentation_is_not_taken_for_the_scan(medsam2, model, scan, results, never, request, command):
    from medsam2_core import export
    from medsam2_core.imaging.segmentation import Segmentation

    drawn = results / "drawn.seg.nrrd"
    geometry = read_volume(scan).geometry
    export.write(Segmentation.from_masks(geometry, {"ball": ball_kji()}), drawn)
    never(OPEN)
    words = {
        "segment": ("segment", drawn, "--out", results / "m.nrrd", "--model", model, "--box", BALL_BOX),
        "auto": ("auto", drawn, "--out", results / "m.nrrd", "--base", model),
        "replay": ("replay", drawn, drawn, "--model", model),
    }[command]
    more = ("--model", request.getfixturevalue("auto_model")) if command == "auto" else ()
    answer = medsam2(*words, *more)
    assert answer.refused("segmentation-as-scan", path=str(drawn))
    assert "--continue" in answer.err, "the way out"


def test_a_label_map_as_a_scan_is_pointed_out(medsam2, model, results, tmp_path):
    labels = write_nrrd(tmp_path / "labels.nrrd", ball_kji().astype(np.uint8) * 3)
    words = ("segment", labels, "--model", model, "--box", BALL_BOX, "--range", "12:12", "--json")
    (note,) = medsam2(*words, "--out", results / "m.nrrd").facts["notes"]
    assert (note["code"], note["fields"]["labels"]) == ("looks-like-a-label-map", [3])


@pytest.mark.parametrize("command", ["segment", "info"])
def test_a_file_of_one_volume_has_no_series_to_choose(medsam2, model, scan, results, command):
    words = ("--out", results / "m.nrrd", "--model", model, "--box", BALL_BOX) if command == "segment" else ()
    assert medsam2(command, scan, *words, "--series", "7").refused("no-series", path=str(scan))
    assert medsam2("info", scan, "--series", "1").code == 0, "there is a first one"


@pytest.mark.parametrize(
    "words", [("--like", "a.nrrd"), ("--like", "a.nrrd", "--box", BALL_BOX), ("--box", BALL_BOX, "--like")]
)
def test_an_example_is_a_scan_and_its_segmentation(medsam2, model, scan, results, words):
    answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, *words)
    assert answer.refused("usage")
    assert "two words" in answer.err and "medsam2 segment --help" in answer.err
    named = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, "--object", "like")
    assert named.refused("object-without-prompt", object="like")


def test_a_wrong_choice_is_told_in_plain_words(medsam2, scan, results):
    answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--axis", "foo")
    assert answer.refused("usage")
    assert "'foo' is not one of" in answer.err and "Value error" not in answer.err


def test_a_file_is_no_folder(medsam2, model, scan):
    words = ("segment", scan, "--model", model, "--box", BALL_BOX, "--out", scan / "m.nrrd")
    assert medsam2(*words).refused("output-folder-is-file", folder=str(scan))


def test_of_many_labels_some_are_named(medsam2, model, scan, results, tmp_path):
    many = np.zeros((24, 48, 40), np.uint8)
    many.flat[:230] = np.arange(1, 231)
    mask = write_nrrd(tmp_path / "many.nrrd", many)
    answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, "--mask", mask)
    assert answer.refused("mask-label-ambiguous", path=str(mask))
    assert len(answer.error.fields["labels"]) == 230
    assert len(answer.err) < 400


def test_a_bad_file_of_prompts_is_named(medsam2, model, scan, results, tmp_path):
    file = tmp_path / "bad.json"
    for text, code in (
        ("{", "not-json"),
        ('{"version": 1, "space": "ijk", "objects": 3}', "bad-prompt-file"),
    ):
        file.write_text(text)
        answer = medsam2("segment", scan, "--out", results / "m.nrrd", "--model", model, "--prompts", file)
        assert answer.refused(code, path=str(file))
        assert str(file) in answer.err


# Pictures ---------------------------------------------------------------------------------------------------


def test_a_picture_without_a_pixel_size_has_no_millilitres(medsam2, model, photo, results):
    out = results / "mask.seg.nrrd"
    words = ("segment", photo, "--out", out, "--model", model, "--box", "13,19,27,33@0", "--overwrite")
    (ball,) = medsam2(*words, "--json").facts["objects"]
    assert ball["voxels"] > 0
    assert ball["millilitres"] is None
    assert " ml" not in medsam2(*words).out
    assert medsam2("info", out, "--json").facts["segments"][0]["millilitres"] is None
    assert medsam2("info", photo, "--json").facts["known_spacing"] == "none"
    table = results / "m.json"
    answer = medsam2("export", out, "--out", results / "m.nii.gz", "--measurements", table, "--json")
    assert answer.facts["segments"][0]["millilitres"] is None
    (measured,) = json.loads(table.read_text())["segments"]
    assert (measured["volume_ml"], measured["longest_diameter"]) == (None, None)
    assert measured["voxels"] == ball["voxels"]


@pytest.mark.parametrize("space", ["ijk", "ras"])
def test_prompts_on_a_picture_need_no_slice(medsam2, model, photo, results, space):
    masks = []
    signs = (1, 1) if space == "ijk" else (-1, -1)  # a picture's axes run to L and P, 1 mm apart
    corners = ",".join(str(sign * value) for sign, value in zip(signs * 2, (13, 19, 27, 33), strict=True))
    point = ",".join(str(sign * value) for sign, value in zip(signs, (2, 3), strict=True))
    for n, end in enumerate(("", "@0")):
        out = results / f"{n}.nrrd"
        words = ("--space", space, "--box", corners + end, "--point", f"{point}{',0' if end else ''},-")
        answer = medsam2("segment", photo, "--out", out, "--model", model, *words)
        assert answer.code == 0, answer.err
        masks.append(read_segmentation(out).labels_kji())
    assert masks[0].any() and np.array_equal(*masks)


def test_info_lists_a_folder_of_pictures(medsam2, photo):
    (photo.parent / "broken.png").write_bytes(b"no picture")
    facts = medsam2("info", photo.parent, "--json").facts
    assert facts["kind"] == "folder of pictures"
    broken, good = facts["pictures"]
    assert broken["error"]["code"] == "unreadable-file"
    assert good["shape_ijk"] == [40, 48, 1]
    said = medsam2("info", photo.parent)
    assert (said.code, said.out.count("\n")) == (0, 3)
    assert "40 x 48" in said.out


def test_auto_on_a_finished_folder_has_nothing_to_do(medsam2, model, auto_model, tmp_path, never):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png", "b.jpg"):
        write_photo(folder / name)
    words = ("auto", folder, "--model", auto_model, "--base", model, "--out", out, "--json")
    first = medsam2(*words)
    assert first.code == 0, first.err
    assert sorted(path.name for path in out.iterdir()) == [
        "a.seg.nrrd", "b.jpg.seg.nrrd", "b.png.seg.nrrd"
    ]  # fmt: skip
    (out / "a.seg.nrrd").unlink()
    again = medsam2(*words)
    assert again.code == 0
    assert [one["input"] for one in again.facts["images"]] == [str(folder / "a.png")]
    assert [note["code"] for note in again.facts["notes"]] == ["image-already-done"] * 2
    never(READ)
    finished = medsam2(*words)
    assert (finished.code, finished.facts["images"]) == (0, [])


def test_auto_does_not_take_labels_beside_the_images_for_its_own_results(
    medsam2, model, auto_model, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        write_photo(folder / name)
    labels = write_nrrd(folder / "a.seg.nrrd", ball_kji().astype(np.uint8))
    before = labels.read_bytes()
    words = ("auto", folder, "--model", auto_model, "--base", model, "--out", folder, "--overwrite", "--json")
    for _ in range(2):
        answer = medsam2(*words)
        assert [one["input"] for one in answer.facts["images"]] == [str(folder / "b.png")]
        (note,) = answer.facts["notes"]
        assert note["fields"]["error"]["code"] == "not-our-result"
    assert labels.read_bytes() == before


def test_the_hash_in_a_result_is_that_of_the_file(medsam2, model, scan, results):
    import hashlib

    out = results / "m.seg.nrrd"
    words = ("segment", scan, "--out", out, "--model", model, "--box", BALL_BOX, "--range", "12:12")
    assert medsam2(*words).code == 0
    facts = read_segmentation(out).labels[0].tags
    assert facts["MedSAM2.weights_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["MedSAM2.weights_sha256"] in medsam2("models", "verify", model).out
    assert len(facts["MedSAM2.weights_key"]) == 64
    assert read_volume(scan).geometry.same_grid(read_segmentation(out).geometry)


# Series -----------------------------------------------------------------------------------------------------


def test_an_irregular_series_is_offered_two_ways_and_what_they_mean(medsam2, model, results, tmp_path):
    noise = np.random.default_rng(1).integers(0, 900, (6, 32, 40)).astype(np.int16)
    heights = (0, 2, 4, 8, 10, 12)
    series = write_series(tmp_path / "series", noise, [(0, 0, z) for z in heights])
    words = ("segment", series, "--model", model, "--box", "5,5,30,25@2")
    refused = medsam2(*words, "--out", results / "a.nrrd")
    assert refused.refused("slices-missing")
    assert "--irregular resample" in refused.err
    assert "--irregular as-is" in refused.err
    for how, slices in (("resample", 7), ("as-is", 6)):
        out = results / f"{how}.nrrd"
        answer = medsam2(*words, "--out", out, "--irregular", how, "--json")
        assert answer.code == 0, answer.err
        (note,) = answer.facts["notes"]
        assert (note["code"], note["severity"], note["fields"]["how"]) == ("irregular-series", "warning", how)
        assert read_segmentation(out).geometry.shape_ijk[2] == slices
        assert medsam2("info", series, "--irregular", how, "--json").facts["shape_ijk"][2] == slices


def test_a_segmentation_of_another_scan_becomes_no_seg_by_overlap_alone(medsam2, tmp_path):
    from medsam2_core import export
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation

    series = write_series(tmp_path / "series", np.ones((6, 20, 24), np.int16))
    own = read_volume(series).geometry
    finer = Geometry(own.ijk_to_ras @ np.diag([0.5, 0.5, 1, 1]), (48, 40, 6))
    mask = np.zeros((6, 40, 48), bool)
    mask[1:5, 8:24, 8:30] = True
    export.write(Segmentation.from_masks(finer, {"liver": mask}), tmp_path / "finer.seg.nrrd")
    words = ("export", tmp_path / "finer.seg.nrrd", "--dicom", series, "--out", tmp_path / "x.dcm")
    refused = medsam2(*words)
    assert refused.refused("another-grid-than-series")
    assert "--resample" in refused.err
    assert not (tmp_path / "x.dcm").exists()
    assert medsam2(*words, "--resample").code == 0
    # A part of the series' own grid is no other grid.
    part = Geometry(own.ijk_to_ras, (20, 20, 6))
    cropped = Segmentation.from_masks(part, {"liver": mask[:, :20, :20]})
    export.write(cropped, tmp_path / "part.seg.nrrd")
    words = ("export", tmp_path / "part.seg.nrrd", "--dicom", series, "--out", tmp_path / "y.dcm")
    assert medsam2(*words).code == 0
