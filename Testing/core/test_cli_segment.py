"""`medsam2 segment` from words to files, with random weights: what is tested is all around the model."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from medsam2_core.engine.architecture import config_path
from medsam2_core.export.probabilities import read_probabilities
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.imaging.terminology import tags_text
from support.command_line import (
    BALL_BOX,
    ball_kji,
    write_nrrd,
)


def test_a_box_becomes_a_named_segment_on_the_scans_grid(medsam2, model, scan, results):
    out, picture = results / "ball.seg.nrrd", results / "ball.png"
    answer = medsam2(
        *("segment", scan, "--out", out, "--model", model, "--object", "ball", "--box", BALL_BOX),
        *("--range", "10:14", "--picture", picture, "--json"),
    )
    assert answer.code == 0, answer.err
    assert answer.err == "", "no bar where nobody looks"
    labels = read_segmentation(out)
    assert [label.name for label in labels.labels] == ["ball"]
    assert labels.geometry.same_grid(read_volume(scan).geometry)
    (ball,) = answer.facts["objects"]
    assert ball["voxels"] == labels["ball"].mask_kji.sum()
    assert ball["millilitres"] == pytest.approx(ball["voxels"] * 2 / 1000, abs=1e-3)
    assert not ball["slices"] or (ball["slices"][0] >= 10 and ball["slices"][1] <= 14)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in results.iterdir()) == ["ball.png", "ball.seg.nrrd"]


def test_the_result_records_how_it_came_about(medsam2, model, scan, results):
    out = results / "ball.seg.nrrd"
    medsam2("segment", scan, "--out", out, "--model", model, "--box", BALL_BOX, "--window", "600,250",
            "--range", "12:12")  # fmt: skip
    tags = tags_text(read_segmentation(out).labels[0].tags)
    assert '"box"' in tags
    assert "embedded" in tags
    assert "600" in tags


def test_options_that_follow_an_object_are_its_own(medsam2, model, scan, results):
    out = results / "two.seg.nrrd"
    answer = medsam2(
        *("segment", scan, "--out", out, "--model", model, "--range", "12:12", "--json"),
        *("--object", "ball", "--box", BALL_BOX, "--object", "corner", "--point", "2,2,12"),
        *("--point", "20,26,12,-"),
    )
    assert answer.code == 0, answer.err
    assert [item["name"] for item in answer.facts["objects"]] == ["ball", "corner"]
    tags = {label.name: tags_text(label.tags) for label in read_segmentation(out).labels}
    assert '"box"' in tags["ball"]
    assert '"box"' not in tags["corner"]
    assert tags["corner"].count('"point"') == 2


def test_prompts_come_from_a_file_too(medsam2, model, scan, results, tmp_path):
    file = tmp_path / "prompts.json"
    box = {"type": "box", "first": [13, 19, 12], "last": [27, 33, 12]}
    file.write_text(
        json.dumps({"version": 1, "space": "ijk", "objects": [{"name": "ball", "prompts": [box]}]})
    )
    out = results / "ball.nii.gz"
    answer = medsam2("segment", scan, "-o", out, "--model", model, "--prompts", file, "--range", "12:12")
    assert answer.code == 0, answer.err
    assert "ball" in answer.out
    assert str(out) in answer.out


def test_a_mask_of_one_slice_is_a_prompt(medsam2, model, scan, results, tmp_path):
    key = np.where(np.arange(24)[:, None, None] == 12, ball_kji(), 0).astype(np.uint8)
    file = write_nrrd(tmp_path / "key.nrrd", key)
    out = results / "ball.nrrd"
    answer = medsam2("segment", scan, "-o", out, "--model", model, "--mask", file, "--range", "12:13")
    assert answer.code == 0, answer.err


def test_a_checkpoint_of_any_name_works_with_its_configuration(medsam2, model, scan, results, tmp_path):
    renamed = tmp_path / "mine.safetensors"
    shutil.copy(model, renamed)
    out = results / "ball.seg.nrrd"
    words = ("segment", scan, "--out", out, "--box", BALL_BOX, "--range", "12:12", "--device", "cpu")
    answer = medsam2(*words, "--model", renamed, "--config", config_path("embedded"), "--image-size", 128,
                     "--precision", "bf16")  # fmt: skip
    assert answer.code == 0, answer.err
    tags = tags_text(read_segmentation(out).labels[0].tags)
    assert "bf16" in tags
    answer = medsam2(*words, "--overwrite", "--model", renamed, "--config", "sam2.1_hiera_t")
    assert answer.refused("checkpoint-mismatch", config="sam2.1_hiera_t")
    answer = medsam2(*words, "--overwrite", "--model", "embedded", "--config", "sam2.1_hiera_t")
    assert answer.refused("configuration-given", model="embedded")


def test_a_picture_gives_a_picture(medsam2, model, photo, results):
    from PIL import Image

    out = results / "mask.png"
    answer = medsam2("segment", photo, "--out", out, "--model", model, "--box", "13,19,27,33@0")
    assert answer.code == 0, answer.err
    assert Image.open(out).size == (40, 48)


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_probabilities_are_written_beside_the_masks_on_request(medsam2, model, scan, results, axis):
    out, probabilities = results / "two.seg.nrrd", results / "two.nrrd"
    words = ("segment", scan, "--out", out, "--model", model, "--axis", axis, "--object", "Kugel ä")
    words += ("--point", "20,26,12", "--object", "corner", "--point", "5,6,12")
    plain = medsam2(*words, "--json")
    assert plain.code == 0, plain.err
    assert plain.facts["probabilities"] is None
    masks = read_segmentation(out)
    answer = medsam2(*words, "--probabilities", probabilities, "--overwrite")
    assert answer.code == 0, answer.err
    assert f"{probabilities}: probabilities" in answer.out
    read = read_probabilities(probabilities)
    assert read.names == ("Kugel ä", "corner")
    assert read.geometry.same_grid(masks.geometry)
    for name in read.names:
        values_kji = read.values_kji(name)
        assert np.array_equal(values_kji >= 128, masks[name].mask_kji), "and the masks are as without"
        assert np.array_equal(values_kji >= 128, read_segmentation(out)[name].mask_kji)
        assert len(np.unique(values_kji)) > 20
    assert read.provenance["model"].endswith("embedded")
    assert str(model.parent).encode() not in probabilities.read_bytes()
    assert sorted(path.name for path in results.iterdir()) == ["two.nrrd", "two.seg.nrrd"]


def test_probabilities_that_exist_are_replaced_only_on_demand(medsam2, model, scan, results):
    (results / "p.nrrd").write_text("precious")
    words = ("segment", scan, "--out", results / "m.nrrd", "--model", model, "--box", BALL_BOX)
    answer = medsam2(*words, "--range", "12:12", "--probabilities", results / "p.nrrd")
    assert answer.refused("output-exists", path=str(results / "p.nrrd"))
    assert "--overwrite" in answer.err
    assert [path.name for path in results.iterdir()] == ["p.nrrd"], "told before the work"


BOX = ("--box", "1,1,9,9@3")
WRONG = {
    "a volume that is not there": (("nowhere.nrrd",), "no-such-file", {"path": "nowhere.nrrd"}),
    "a volume that is none": (("{junk}",), "unreadable-file", {"path": "{junk}"}),
    "no prompt": ((), "no-prompt", {}),
    "a box outside": (("--box", "13,19,27,33@24"), "outside-volume", {"axis": "k", "value": 24, "size": 24}),
    "a box of another axis": (
        ("--axis", "coronal", "--box", "1,1,5,9,9,5"), "box-spans-slices", {"first": 1, "last": 9}
    ),
    "two boxes on a slice": ((*BOX, "--box", "2,2,9,9@3"), "two-boxes", {"n": 3}),
    "a point outside": (("--point", "40,0,0"), "outside-volume", {"axis": "i", "value": 40, "size": 40}),
    "an object without prompts": ((*BOX, "--object", "a", "--object", "b"), "object-without-prompt", {}),
    "a range outside": ((*BOX, "--range", "3:99"), "range-outside-volume", {"slice": 99, "slices": 24}),
    "a window of letters": ((*BOX, "--window", "wide"), "unknown-window", {"text": "wide"}),
    "a window of no width": ((*BOX, "--window", "0,40"), "invalid-window", {"width": 0}),
    "an unknown model": ((*BOX, "--model", "sam3"), "unknown-model", {"model": "sam3"}),
    "a model that is none": ((*BOX, "--model", "{junk}"), "not-a-checkpoint", {"path": "{junk}"}),
    "a device that is none": ((*BOX, "--device", "abacus"), "unknown-device", {"device": "abacus"}),
    "an axis that is none": ((*BOX, "--axis", "up"), "usage", {}),
    "a file of prompts that is not there": (("--prompts", "none.json"), "prompts-unreadable", {}),
    "a file of prompts that is none": (("--prompts", "{junk}"), "not-json", {}),
    "a mask that is not there": (("--mask", "none.nrrd"), "no-such-file", {"path": "none.nrrd"}),
    "an unknown file format": ((*BOX, "--out", "{folder}/mask.xyz"), "unknown-format", {}),
    "a folder that is missing": ((*BOX, "--out", "{folder}/no/m.nrrd"), "output-folder-missing", {}),
    "a png of a volume": ((*BOX, "--out", "{folder}/m.png"), "png-needs-one-slice", {"slices": 24}),
    "a montage that is no png": ((*BOX, "--picture", "{folder}/m.jpg"), "picture-not-png", {}),
    "probabilities of another kind": (
        (*BOX, "--probabilities", "{folder}/p.seg.nrrd"), "unknown-format", {"path": "{folder}/p.seg.nrrd"}
    ),
    "probabilities in no folder": (
        (*BOX, "--probabilities", "{folder}/no/p.nrrd"), "output-folder-missing", {}
    ),
    "probabilities in the place of the masks": (
        (*BOX, "--probabilities", "{folder}/m.nrrd"), "outputs-collide", {}
    ),
    "an unknown option": (("--boxes", "1"), "usage", {}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_bad_input_is_one_clear_line_and_no_file(medsam2, model, scan, results, tmp_path, mistake):
    junk = tmp_path / "junk.nrrd"
    junk.write_bytes(b"NRRD0004\nnothing of use")

    def named(value):
        return value.format(junk=junk, folder=results) if isinstance(value, str) else value

    words, code, fields = WRONG[mistake]
    volume = [] if words and not words[0].startswith("-") else [scan]
    defaults = ["--out", results / "m.nrrd", "--model", model]
    answer = medsam2("segment", *volume, *defaults, *map(named, words))
    assert answer.refused(code, **{name: named(value) for name, value in fields.items()})
    assert answer.out == ""
    assert answer.err.count("\n") == 1, "one line"
    assert not list(results.iterdir())


def test_a_file_that_exists_is_replaced_only_on_demand(medsam2, model, scan, results):
    out = results / "m.nrrd"
    out.write_text("precious")
    words = ("segment", scan, "--out", out, "--model", model, "--box", BALL_BOX, "--range", "12:12")
    answer = medsam2(*words)
    assert answer.refused("output-exists", path=str(out))
    assert "--overwrite" in answer.err
    assert out.read_text() == "precious"
    assert medsam2(*words, "--overwrite").code == 0
    assert read_segmentation(out).geometry.shape_ijk == (40, 48, 24)


def test_a_bug_is_distinguished(medsam2, scan, results, monkeypatch, tmp_path):
    def stumble(*_args, **_options):
        raise KeyError("a key nobody thought of")

    monkeypatch.setattr("medsam2_core.imaging.reading.read_volume", stumble)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ("segment", scan, "--out", results / "m.nrrd", "--box", BALL_BOX)
    answer = medsam2(*words)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "KeyError" in answer.err
    (report,) = tmp_path.glob("medsam2-error-*.txt")
    assert str(report) in answer.err
    assert "a key nobody thought of" in report.read_text()
    monkeypatch.setenv("MEDSAM2_DEBUG", "1")
    assert "Traceback" in medsam2(*words).err


STARTED = """
import sys
from medsam2_core.cli import main
from medsam2_core.session import Session
usual = Session.propagate
def propagate(*args, **options):
    print("propagating", flush=True)
    return usual(*args, **options)
Session.propagate = propagate
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_leaves_nothing_behind(model, results, tmp_path, number, code):
    big = write_nrrd(tmp_path / "big.nrrd", np.random.default_rng(1).integers(0, 99, (200, 64, 64), np.int16))
    words = ["segment", big, "--out", results / "m.seg.nrrd", "--model", model, "--box", "9,9,50,50@100"]
    words += ["--picture", results / "m.png", "--probabilities", results / "p.nrrd"]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "propagating\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert not list(results.iterdir())


def test_an_object_with_a_known_name_carries_its_code(medsam2, model, scan, results):
    from medsam2_core.imaging.segmentation_files import read_segmentation

    words = ["--model", model, "--out", results / "x.seg.nrrd", "--object", "left kidney", "--box", BALL_BOX]
    answer = medsam2("segment", scan, *words, "--range", "12:12")
    assert answer.code == 0, answer.err
    codes = read_segmentation(results / "x.seg.nrrd")["left kidney"].terminology
    assert (codes.type.value, codes.type_modifier.meaning) == ("64033007", "Left")
