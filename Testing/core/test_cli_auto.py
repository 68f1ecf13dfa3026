"""`medsam2 train auto` and `medsam2 auto`, from files to files."""

import json
import time

import numpy as np
import pytest
import torch
from medsam2_core.auto.model_file import read_card
from medsam2_core.export.probabilities import read_probabilities
from medsam2_core.imaging.reading import read_segmentation
from PIL import Image
from support.labelled_images import a_picture, write_pictures, write_volumes


@pytest.fixture(scope="module")
def base(model):
    """Options of a base that is small and quick."""
    return ["--image-size", 64, "--base", model]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    """An Auto model of pictures, and the folder of them; made once, by the command."""
    from medsam2_core.cli import main

    folder = tmp_path_factory.mktemp("trained")
    data = write_pictures(folder / "data", 5)
    words = ["train", "auto", data, "--out", folder / "discs.medsam2auto", "--classes", "1=disc,2=bar"]
    words += ["--steps", 3, "--folds", 2, "--axis", "axial", *base]
    assert main([str(word) for word in words]) == 0
    return folder / "discs.medsam2auto", data


def test_training_writes_a_model_and_a_report(trained):
    path, _ = trained
    card = read_card(path)
    assert card.class_names == ("disc", "bar")
    assert card.is_for_pictures
    assert (card.image_size, card.training["images"], card.training["folds"]) == (64, 5, 2)
    report = path.with_name("discs-report")
    assert sorted(one.name for one in report.iterdir()) == ["curves.png", "report.json", "samples.png"]
    assert not path.with_name(path.name + ".run").exists()


def test_a_picture_is_segmented_class_by_class(medsam2, base, trained, tmp_path):
    path, data = trained
    out, picture = tmp_path / "out.seg.nrrd", tmp_path / "out.png"
    words = ["auto", data / "000_img.png", "--model", path, *base[2:], "--out", out, "--json"]
    said = medsam2(*words, "--picture", picture)
    assert said.code == 0, said.err
    assert [one["name"] for one in said.facts["classes"]] == ["disc", "bar"]
    assert [label.name for label in read_segmentation(out).labels] == ["disc", "bar"]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_probabilities_fit_the_masks_class_by_class(medsam2, base, trained, tmp_path):
    path, data = trained
    out, probabilities = tmp_path / "out.seg.nrrd", tmp_path / "out.nrrd"
    words = ["auto", data / "000_img.png", "--model", path, *base[2:], "--out", out]
    said = medsam2(*words, "--probabilities", probabilities, "--json")
    assert said.code == 0, said.err
    assert said.facts["probabilities"] == str(probabilities)
    read, masks = read_probabilities(probabilities), read_segmentation(out)
    assert read.names == ("disc", "bar")
    assert read.provenance["auto"] == "discs"
    for name in read.names:
        assert np.array_equal(read.values_kji(name) >= 128, masks[name].mask_kji)
    said = medsam2("auto", data, *words[2:-1], tmp_path / "many", "--probabilities", probabilities)
    assert said.refused("option-for-one-image", option="--probabilities")


def test_classes_are_chosen_by_name(medsam2, base, trained, tmp_path):
    path, data = trained
    out = tmp_path / "out.seg.nrrd"
    words = ["auto", data / "000_img.png", "--model", path, *base[2:], "--out", out, "--overwrite"]
    assert medsam2(*words, "--classes", "bar").code == 0
    assert [label.name for label in read_segmentation(out).labels] == ["bar"]
    said = medsam2(*words, "--classes", "moon")
    assert said.refused("unknown-class", name="moon", known=["disc", "bar"])
    error = medsam2(*words, "--classes", "moon", "--json").facts["error"]
    assert (error["code"], error["severity"]) == ("unknown-class", "error")
    assert error["fields"] == {"name": "moon", "known": ["disc", "bar"]}


def test_a_folder_is_gone_through_and_a_bad_picture_does_not_stop_it(medsam2, base, trained, tmp_path):
    path, _ = trained
    stills = tmp_path / "stills"
    stills.mkdir()
    for n, shape in enumerate([(60, 90), (72, 72)]):
        Image.fromarray(a_picture(n, shape)[0]).save(stills / f"still{n}.png")
    (stills / "broken.png").write_bytes(b"no picture")
    said = medsam2("auto", stills, "--model", path, *base[2:], "--out", tmp_path / "masks", "--json")
    assert said.code == 0, said.err
    assert [len(said.facts["images"]), len(said.facts["notes"])] == [2, 1]
    (note,) = said.facts["notes"]
    assert (note["code"], note["fields"]["image"]) == ("image-skipped", str(stills / "broken.png"))
    assert note["fields"]["error"]["severity"] == "error"
    assert read_segmentation(tmp_path / "masks" / "still0.seg.nrrd").geometry.shape_ijk == (90, 60, 1)


@pytest.mark.parametrize("method", ["memory", "slices"])
def test_a_volume_keeps_names_colours_and_codes_from_training_to_result(medsam2, base, tmp_path, method):
    data = write_volumes(tmp_path / "data", 2)
    model, out = tmp_path / "kidney.medsam2auto", tmp_path / "out.seg.nrrd"
    words = ["--steps", 2, "--folds", 0, "--json-progress", *base]
    said = medsam2("train", "auto", data, "--out", model, *words)
    assert said.code == 0, said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["stage"] for line in lines][-1] == "done"
    assert {"reading", "features", "training"} <= {line["stage"] for line in lines}
    said = medsam2("auto", data / "case0.nrrd", "--model", model, *base[2:], "--out", out, "--method", method)
    assert said.code == 0, said.err
    (label,) = read_segmentation(out).labels
    assert (label.name, label.colour) == ("kidney", pytest.approx((0.2, 0.4, 0.6)))
    assert "64033007" in label.tags["TerminologyEntry"]
    assert label.tags["DICOM.SegmentAlgorithmType"] == "AUTOMATIC"


def test_a_volume_is_gone_through_with_memory_unless_asked_otherwise(medsam2, base, tmp_path, monkeypatch):
    from medsam2_core.auto.volumes import Method
    from medsam2_core.session import Session

    data, model = write_volumes(tmp_path / "data", 2), tmp_path / "m.medsam2auto"
    assert medsam2("train", "auto", data, "--out", model, "--steps", 2, "--folds", 0, *base).code == 0
    asked, usual = [], Session.auto

    def spying(session, *args, **more):
        asked.append(more["options"].method)
        return usual(session, *args, **more)

    monkeypatch.setattr(Session, "auto", spying)
    words = ("auto", data / "case0.nrrd", "--model", model, *base[2:], "--out", tmp_path / "a.seg.nrrd")
    assert medsam2(*words).code == 0
    assert medsam2(*words, "--overwrite", "--method", "slices").code == 0
    assert asked == [Method.MEMORY, Method.SLICES]


def test_a_training_that_was_stopped_wants_resume(medsam2, base, tmp_path):
    data = write_pictures(tmp_path / "data", 4)
    out = tmp_path / "m.medsam2auto"
    (tmp_path / "m.medsam2auto.run").mkdir()
    words = ["train", "auto", data, "--out", out, "--steps", 2, "--folds", 0, *base]
    assert medsam2(*words).refused("unfinished-training")
    assert medsam2(*words, "--resume").code == 0
    assert medsam2(*words, "--resume").code == 2, "there is a model now"
    assert medsam2(*words[:4], tmp_path / "n.medsam2auto", *words[5:], "--resume").refused(
        "nothing-to-resume"
    )


def test_the_minutes_count_from_the_start_of_the_command(medsam2, base, tmp_path, monkeypatch, never):
    from medsam2_core.engine import model as engine_model

    usual = engine_model.load_model

    def slow(*args, **more):
        time.sleep(1.2)
        return usual(*args, **more)

    monkeypatch.setattr(engine_model, "load_model", slow)
    never("medsam2_core.auto.fewshot.fit.Fit.run")
    data = write_pictures(tmp_path / "data", 4)
    said = medsam2("train", "auto", data, "--out", tmp_path / "m.medsam2auto", "--minutes", 0.02, *base)
    assert said.refused("too-little-time", minutes=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_problems_with_the_data_are_listed_before_anything_is_trained(medsam2, base, tmp_path):
    data = write_pictures(tmp_path / "data", 4)
    Image.fromarray(np.full((72, 72), 1, np.uint8)).save(data / "001_seg.png")
    Image.fromarray(a_picture(0)[1][:40]).save(data / "002_seg.png")
    out = tmp_path / "m.medsam2auto"
    said = medsam2("train", "auto", data, "--out", out, "--steps", 2, "--folds", 0, *base)
    assert said.refused("bad-images")
    assert "problem: 001_img" in said.err
    assert "problem: 002_img" in said.err
    assert "--skip-bad" in said.err
    assert not list(tmp_path.glob("m.*"))
    words = ("train", "auto", data, "--out", out, "--steps", 2, "--folds", 0, "--json-progress", *base)
    lines = [json.loads(line) for line in medsam2(*words).out.splitlines()]
    problems = [line for line in lines if line["stage"] == "problem"]
    assert {problem["fields"].get("image") for problem in problems} >= {"001_img", "002_img"}
    assert lines[-1]["stage"] == "error"
    assert lines[-1]["error"]["code"] == "bad-images"
    assert "--skip-bad" not in lines[-1]["error"]["message"]
    said = medsam2(*words, "--skip-bad")
    assert said.code == 0, said.err
    assert read_card(out).training["images"] == 2
    done = json.loads(said.out.splitlines()[-1])
    assert (done["stage"], done["error"]) == ("done", None)
    assert {note["code"] for note in done["notes"]} >= {"no-background"}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--out", "m.safetensors"], "not-a-model-name", ".medsam2auto"),
        (["--out", "m.medsam2auto", "--heads", "nose"], "unknown-head", "'nose'"),
        (["--out", "m.medsam2auto", "--heads", ""], "no-head", "mask"),
        (["--out", "m.medsam2auto", "--classes", "0=a"], "classes-syntax", "background"),
        (["--out", "m.medsam2auto", "--shots", "99"], "too-few-images", "only 4"),
        (["--out", "m.medsam2auto", "--minutes", "-1"], "bad-minutes", "-1 minutes"),
        (["--out", "m.medsam2auto", "--window", "wide"], "bad-data", "'wide'"),
        (["--out", "m.medsam2auto", "--axis", "sideways"], "usage", "sideways"),
        (["--out", "nowhere/m.medsam2auto"], "output-folder-missing", "nowhere"),
    ],
)
def test_options_that_mean_nothing_end_in_one_line(medsam2, base, tmp_path, monkeypatch, words, code, told):
    monkeypatch.chdir(tmp_path)
    data = write_pictures(tmp_path / "data", 4)
    said = medsam2("train", "auto", data, *words, "--steps", 1, *base)
    assert said.refused(code)
    assert told in said.err
    assert "Traceback" not in said.err


def test_a_model_that_is_not_there_or_damaged_is_refused(medsam2, base, trained, tmp_path, monkeypatch):
    path, data = trained
    monkeypatch.setenv("MEDSAM2_AUTO_MODELS", str(tmp_path / "none"))
    words = ("auto", data / "000_img.png", "--out", tmp_path / "o.png", *base[2:], "--model")
    said = medsam2(*words, "liver")
    assert said.refused("unknown-auto-model", name="liver")
    assert "medsam2 train auto" in said.err
    cut = tmp_path / "cut.medsam2auto"
    cut.write_bytes(path.read_bytes()[:-100])
    assert medsam2(*words, cut).refused("auto-model-damaged", path=str(cut))
    assert medsam2(*words, data / "000_img.png").refused("not-an-auto-model")
    assert not (tmp_path / "o.png").exists()


def test_a_reference_checkpoint_becomes_a_model_that_can_be_used(medsam2, tmp_path):
    from medsam2_core.engine.architecture import build_module
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from support.model import stir
    from support.reference_checkpoint import a_trained_model, lightning_file, reference_state

    torch.manual_seed(0)
    module = build_module("embedded", 64)
    stir(module, 5.0)
    state = reference_state(a_trained_model(SegmentationModel.of(module, "small"), 2, "lora", "adapters"))
    checkpoint, out = lightning_file(tmp_path / "hip.ckpt", state), tmp_path / "hip.medsam2auto"
    words = ["--config", "embedded", "--image-size", 64, "--classes", "ilium,femur"]
    said = medsam2("models", "import", checkpoint, "--out", out, *words)
    assert said.code == 0, said.err
    assert "ilium, femur" in said.out
    Image.fromarray(a_picture(0)[0]).save(tmp_path / "still.png")
    said = medsam2("auto", tmp_path / "still.png", "--model", out, "--out", tmp_path / "o.seg.nrrd", "--json")
    assert said.code == 0, said.err
    assert [one["name"] for one in said.facts["classes"]] == ["ilium", "femur"]
