"""No command writes over anything it reads: not with `--overwrite`, and not through links."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from medsam2_core import atomic
from support.command_line import (
    BALL_BOX,
    CommandLine,
    ball_kji,
    write_nrrd,
    write_photo,
    write_scan,
)
from support.errors import raises
from support.labelled_images import write_pictures


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must refuse, and leave every file below the folder as it was."""
    medsam2 = CommandLine(capsys)

    def run(*words, code="output-is-input"):
        before = contents(tmp_path)
        answer = medsam2(*words)
        assert answer.code == 2, answer
        assert answer.error is not None, answer.err
        assert answer.error.code == code, answer.err
        assert contents(tmp_path) == before
        assert answer.err.count("\n") == 1
        return answer

    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The one place ----------------------------------------------------------------------------------------------


def linked(kind, tmp_path, target):
    link = tmp_path / "elsewhere" / target.name
    link.parent.mkdir()
    (os.link if kind == "hard" else os.symlink)(target, link)
    return link


LINKS = [
    "hard",
    pytest.param("symbolic", marks=pytest.mark.skipif(sys.platform == "win32", reason="needs a right there")),
]


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_the_same_through_links_in_both_directions(tmp_path, kind, overwrite):
    scan = write_scan(tmp_path / "scan.nrrd")
    link = linked(kind, tmp_path, scan)
    for read, written in ((scan, link), (link, scan), (scan, scan)):
        with atomic.protect(None, read, tmp_path / "none.nrrd"), raises("output-is-input", path=str(written)):
            atomic.check_target(written, overwrite=overwrite)
    atomic.check_target(scan, overwrite=True)  # outside of the block


def test_blocks_nest(tmp_path):
    one, two = (write_scan(tmp_path / name) for name in ("one.nrrd", "two.nrrd"))
    with atomic.protect(one):
        with atomic.protect(two):
            for path in (one, two):
                with raises("output-is-input"), atomic.new_file(path, overwrite=True):
                    pass
        with atomic.new_file(two, overwrite=True) as stream:
            stream.write(b"new")
    assert two.read_bytes() == b"new"


def test_of_a_folder_the_dicom_files_are_protected_and_earlier_results_are_not(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.nrrd").write_bytes(b"\0" * 128 + b"DICM")
    (series / "result.nrrd").write_bytes(b"NRRD")
    with atomic.protect(series):
        atomic.check_target(series / "result.nrrd", overwrite=True)
        with raises("output-is-input"):
            atomic.check_target(series / "1.nrrd", overwrite=True)


# Every command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [["--overwrite"], []])
def test_segment_keeps_what_it_reads(refused, model, tmp_path, overwrite):
    scan = write_scan(tmp_path / "scan.nrrd")
    key = write_nrrd(tmp_path / "key.nrrd", ball_kji().astype(np.uint8))
    words = ("segment", scan, "--model", model, *overwrite)
    refused(*words, "--box", BALL_BOX, "-o", scan)
    refused(*words, "--mask", key, "-o", key)
    refused(*words, "--box", BALL_BOX, "-o", tmp_path / "m.nrrd", "--probabilities", scan)
    photo = write_photo(tmp_path / "photo.png")
    words = ("segment", photo, "--model", model, "--box", "13,19,27,33@0", *overwrite)
    refused(*words, "-o", photo)
    refused(*words, "-o", tmp_path / "m.png", "--picture", photo)


@pytest.mark.parametrize("kind", LINKS)
def test_segment_keeps_a_scan_behind_a_link(refused, model, tmp_path, kind):
    scan = write_scan(tmp_path / "scan.nrrd")
    link = linked(kind, tmp_path, scan)
    words = ("--model", model, "--box", BALL_BOX, "--overwrite")
    refused("segment", link, "-o", scan, *words)
    refused("segment", scan, "-o", link, *words)


def test_segment_keeps_the_model_and_the_prompts(refused, model, tmp_path):
    scan, weights = write_scan(tmp_path / "scan.nrrd"), tmp_path / "weights.nrrd"
    shutil.copy(model, weights)
    words = ("segment", scan, "--overwrite", "-o", weights)
    refused(*words, "--model", weights, "--box", BALL_BOX)
    box = {"type": "box", "first": [13, 19, 12], "last": [27, 33, 12]}
    prompts = tmp_path / "prompts.nrrd"
    document = {"version": 1, "space": "ijk", "objects": [{"name": "ball", "prompts": [box]}]}
    prompts.write_text(json.dumps(document))
    refused(*words[:-1], prompts, "--model", model, "--prompts", prompts)


def test_auto_keeps_what_it_reads(refused, model, auto_model, tmp_path):
    scan, photo = write_scan(tmp_path / "scan.nrrd"), write_photo(tmp_path / "photo.png")
    words = ("--model", auto_model, "--base", model, "--overwrite")
    refused("auto", scan, *words, "-o", scan)
    refused("auto", photo, *words, "-o", photo)
    refused("auto", photo, *words, "-o", tmp_path / "m.seg.nrrd", "--picture", photo)
    refused("auto", scan, *words, "-o", tmp_path / "m.seg.nrrd", "--probabilities", scan)
    own = tmp_path / "m.nrrd"
    shutil.copy(auto_model, own)
    refused("auto", scan, "--model", own, "--base", model, "--overwrite", "-o", own)


def test_auto_may_put_results_beside_the_images_again_and_again(capsys, model, auto_model, tmp_path):
    medsam2, data = CommandLine(capsys), tmp_path / "images"
    data.mkdir()
    write_photo(data / "a.png")
    before = (data / "a.png").read_bytes()
    for _ in range(2):
        words = ("--model", auto_model, "--base", model, "--overwrite", "--out", data)
        assert medsam2("auto", data, *words).code == 0
        assert sorted(path.name for path in data.iterdir()) == ["a.png", "a.seg.nrrd"]
    assert (data / "a.png").read_bytes() == before


def test_import_keeps_what_it_reads(refused, tmp_path):
    labels = write_nrrd(tmp_path / "a.nrrd", ball_kji().astype(np.uint8))
    refused("import", labels, "--out", labels, "--overwrite")
    refused("import", labels, "--out", linked("hard", tmp_path, labels), "--overwrite")


def test_export_keeps_what_it_reads(refused, tmp_path):
    labels = write_nrrd(tmp_path / "a.nrrd", ball_kji().astype(np.uint8))
    refused("export", labels, "--out", labels, "--overwrite")
    refused("export", labels, "--out", linked("hard", tmp_path, labels), "--overwrite")
    out = tmp_path / "b.nrrd"
    refused("export", labels, "--out", out, "--measurements", "m.csv", "--measurements", "m.csv",
            code="outputs-collide")  # fmt: skip


def test_synth_keeps_the_labels_it_paints(refused, tmp_path):
    labels = write_nrrd(tmp_path / "synth_1_00000_seg.nrrd", ball_kji().astype(np.uint8))
    refused("synth", "--out", tmp_path, "--labels", labels, "--overwrite")


def test_train_auto_keeps_its_images_and_its_base(refused, model, tmp_path):
    data = write_pictures(tmp_path / "m-report", 3)
    (data / "000_img.png").rename(data / "samples_img.png")
    (data / "000_seg.png").rename(data / "samples_seg.png")
    os.link(data / "samples_img.png", data / "samples.png")  # the report's own name for a picture
    words = ("train", "auto", data, "--out", tmp_path / "m.medsam2auto", "--steps", 1, "--overwrite")
    refused(*words, "--base", model)
    base = tmp_path / "base.medsam2auto"
    shutil.copy(model, base)
    refused("train", "auto", write_pictures(tmp_path / "data", 2), "--out", base, "--base", base,
            "--overwrite")  # fmt: skip


def test_train_auto_never_removes_images_with_the_folder_of_an_unfinished_training(refused, model, tmp_path):
    data = write_pictures(tmp_path / "m.medsam2auto.run" / "data", 3)
    words = ("train", "auto", data, "--out", tmp_path / "m.medsam2auto", "--resume", "--base", model)
    refused(*words, code="data-in-work-folder")


def test_train_package_keeps_the_weights_of_the_run(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "weights.safetensors").write_bytes(b"weights")
    refused("train", "package", run, "--out", run / "weights.safetensors", "--overwrite")


def test_train_predictor_keeps_the_start_it_begins_with(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "start.safetensors").write_bytes(b"start")
    refused("train", "predictor", tmp_path, "--out", run, "--from", run / "start.safetensors")


def test_models_import_keeps_the_checkpoint(refused, tmp_path):
    checkpoint = tmp_path / "m.sam2.safetensors"
    checkpoint.write_bytes(b"weights")
    refused("models", "import", checkpoint, "--out", tmp_path / "m.medsam2auto", "--overwrite")


def test_evaluate_keeps_what_it_reads(refused, model, tmp_path):
    pytest.importorskip("monai")
    scan = write_scan(tmp_path / "scan.nrrd")
    labels = write_nrrd(tmp_path / "labels.nrrd", ball_kji().astype(np.uint8))
    for option, path in (("--out", scan), ("--plot", labels), ("--out", model)):
        refused("evaluate", scan, labels, "--model", model, option, path)
