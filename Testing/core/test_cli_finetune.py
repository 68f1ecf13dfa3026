"""`medsam2 train finetune`: what it refuses, what it writes, and that everything loads the result."""

import json

import numpy as np
import pytest
import torch
from medsam2_core.engine.card import ModelCard, read_card
from medsam2_core.engine.catalogue import Catalogue, ModelEntry
from medsam2_core.engine.checkpoint import read_state_dict
from medsam2_core.engine.model import load_model
from medsam2_core.training.augmentation import FINE_TUNING, read_augmentation, transformed
from medsam2_core.training.finetune import FineTuner
from PIL import Image
from safetensors.torch import save_file
from support.errors import raises
from support.labelled_images import a_picture, write_pictures

QUICK = ("--steps", 1, "--batch", 1, "--threads", 1, "--device", "cpu", "--measure", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("cases"), 6)


def test_the_result_is_a_checkpoint_with_a_card(medsam2, data, tmp_path):
    out = tmp_path / "my.safetensors"
    words = ("--train", "decoder+memory", "--classes", "1=disc", "--json-progress")
    said = medsam2("train", "finetune", data, "--out", out, *QUICK, *words)
    assert said.code == 0, said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert lines[-1]["stage"] == "done" and lines[-1]["error"] is None
    assert {"reading", "measuring before", "training", "measuring after"} <= {line["stage"] for line in lines}
    card, shipped = read_card(out), Catalogue.load().find("embedded")
    assert card.base == "embedded" and card.base_key == load_model("embedded", "cpu", "fp32").weights_key
    assert card.base_sha256 == shipped.sha256
    assert card.licence == shipped.licence and card.classes == ("disc",)
    assert card.training["cases"] == 5 and card.training["held_aside"] == 1 and card.training["steps"] == 1
    for when in ("before", "after"):
        assert card.figures[when]["mean"]["objects"] == 1 and 0 <= card.figures[when]["mean"]["one box"] <= 1
    header = out.read_bytes()[:40_000]
    for name in ("_img", "_seg", str(data)):
        assert name.encode() not in header.split(b"__metadata__")[1].split(b'"}')[0], name
    # What was not trained is, byte for byte, what it was.
    ours, theirs = read_state_dict(out), read_state_dict(shipped.bundled_path())
    frozen = [name for name in theirs if name.startswith(("image_encoder", "memory_attention"))]
    for name in [name for name in frozen if name.startswith("image_encoder")]:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
    assert not (tmp_path / "my.safetensors.run").exists()
    assert medsam2("models", "card", out).facts["base_key"] == card.base_key
    assert medsam2("models", "card", shipped.bundled_path()).error.code == "no-card"
    assert medsam2("models", "card", "embedded").error.code == "no-card"
    assert medsam2("models", "card", "sam3").error.code == "unknown-model"
    model = load_model(out, "cpu", "fp32")
    assert (model.name, model.image_size, model.recipe) == ("my", 256, load_model("embedded").recipe)
    picture = tmp_path / "mask.nrrd"
    box = ("--box", "10,10,40,40@0", "--out", picture, "--device", "cpu")
    assert medsam2("segment", data / "000_img.png", "--model", out, *box).code == 0


def test_a_published_architecture_keeps_its_image_size(medsam2, data, tmp_path):
    """A checkpoint of SAM 2.1 tiny at 64 px: neither its tensors nor its name tell the size."""
    from medsam2_core.engine.architecture import build_module

    torch.manual_seed(0)
    start, out = tmp_path / "tiny.safetensors", tmp_path / "my.safetensors"
    state = build_module("sam2.1_hiera_t", 64).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, start)
    words = ("--base", start, "--image-size", 64, "--train", "decoder", *QUICK[:-1], 0)
    said = medsam2("train", "finetune", data, "--out", out, *words)
    assert said.code == 0, said.err
    assert "not stated" in said.out
    model = load_model(out, "cpu", "fp32")
    assert model.image_size == 64 and not model.recipe.draws_prompts
    assert read_card(out).config == "sam2.1_hiera_t" and read_card(out).licence is None


def test_a_stopped_training_is_resumed(medsam2, data, model, tmp_path, monkeypatch):
    out = tmp_path / "my.safetensors"
    words = ("train", "finetune", data, "--out", out, "--base", model, *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "run", lambda *_: False)
        assert medsam2(*words).code == 130
    assert (tmp_path / "my.safetensors.run" / "before.json").exists() and not out.exists()
    assert medsam2(*words).error.code == "unfinished-training"
    assert medsam2(*words, "--resume").code == 0 and out.exists()
    assert medsam2(*words, "--resume", "--overwrite").error.code == "nothing-to-resume"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--out", "my.pt"), "not-a-model-name"),
        (("--prompts", "lasso"), "prompts-syntax"),
        (("--loss", "focal"), "loss-syntax"),
        (("--loss", "iou=1"), "loss-syntax"),
        (("--axis", "axial,up"), "unknown-axis"),
        (("--classes", "kidney"), "bad-data"),
        (("--base", "sam3"), "unknown-model"),
        (("--epochs", "nan"), "bad-setting"),
        (("--augmentation", "none.json"), "augmentation-unreadable"),
    ],
)
def test_what_cannot_be_done_is_refused_with_nothing_written(
    medsam2, data, model, tmp_path, monkeypatch, words, code
):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in words else ("--out", "my.safetensors")
    where = () if "--base" in words else ("--base", model)
    said = medsam2("train", "finetune", data, *out, *where, "--device", "cpu", *words)
    assert said.refused(code)
    assert list(tmp_path.iterdir()) == []


def test_neither_base_nor_data_are_written_over(medsam2, data, model):
    before = model.read_bytes()
    said = medsam2("train", "finetune", data, "--out", model, "--base", model, "--overwrite", *QUICK)
    assert said.error.code == "output-is-input" and model.read_bytes() == before


# Cards ------------------------------------------------------------------------------------------------------


def a_card(**changes) -> ModelCard:
    return ModelCard(
        **{"base": "MedSAM2", "base_key": "0" * 64, "config": "sam2.1_hiera_t", "image_size": 512, **changes}
    )


def with_metadata(path, metadata):
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    return path


def test_the_licence_of_the_base_goes_with_the_checkpoint(tmp_path):
    card = a_card(licence="CC-BY-SA-4.0", attribution="Wang lab", notice="share alike")
    entry = ModelEntry.of_file(with_metadata(tmp_path / "m.safetensors", card.metadata()))
    assert (entry.licence, entry.attribution, entry.notice) == ("CC-BY-SA-4.0", "Wang lab", "share alike")
    assert (entry.config, entry.image_size) == ("sam2.1_hiera_t", 512)


def test_models_of_the_user_are_known_by_their_names(medsam2, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "own"
    folder.mkdir(parents=True)
    monkeypatch.setenv("MEDSAM2_MODELS", str(folder.parent))
    card = a_card(licence="CC-BY-SA-4.0", classes=("liver",))
    for name in ("liver 2", "embedded", ".hidden"):  # no name of the catalogue is taken over
        with_metadata(folder / f"{name}.safetensors", card.metadata())
    save_file({"a": torch.zeros(1)}, folder / "without a card.safetensors")
    listed = {one["name"]: one for one in medsam2("models", "list", "--json").facts}
    assert set(listed) == {*Catalogue.load().names} and "liver 2" in listed and len(listed) > 5
    assert listed["liver 2"]["licence"] == "CC-BY-SA-4.0" and listed["embedded"]["licence"] == "Apache-2.0"
    assert not {"without a card", ".hidden"} & set(listed)
    assert medsam2("models", "card", "liver 2").facts["classes"] == ["liver"]
    # Another file of that name is a file.
    other = with_metadata(tmp_path / "liver 2.safetensors", a_card(base="x", image_size=64).metadata())
    assert Catalogue.load().find(other).image_size == 64
    (folder / "liver 2.safetensors-report").mkdir()
    assert medsam2("models", "remove", "liver 2").code == 0
    assert sorted(path.stem for path in folder.iterdir()) == [".hidden", "embedded", "without a card"]
    assert medsam2("models", "remove", "liver 2").error.code == "unknown-model"
    assert other.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 100}, {"image_size": "512"}, {"image_size": 10**9}, {"recipe": [1]}, {"base": 3},
        {"postprocessing": 1}, {"training": "much"}, {"licence": 4}, {"unknown": 1},
        {"recipe": {"presence": [1.0, 2.0]}}, {"recipe": {"presence": ["1"] * 5}},
        {"recipe": {"presence": 5}},
    ],
)  # fmt: skip
def test_a_card_that_is_not_sound_is_none(tmp_path, change):
    facts = json.loads(a_card().metadata()["medsam2"])
    path = with_metadata(tmp_path / "m.safetensors", {"medsam2": json.dumps({**facts, **change})})
    assert read_card(path) is None
    assert ModelEntry.of_file(path).image_size is None


def test_a_card_names_no_file_and_no_unknown_recipe(tmp_path):
    for card in (a_card(config="evil/own.yaml"), a_card(config="../x")):
        assert ModelEntry.of_file(with_metadata(tmp_path / "m.safetensors", card.metadata())).config is None
    card = a_card(recipe={"runs": "rm"})
    assert ModelEntry.of_file(with_metadata(tmp_path / "n.safetensors", card.metadata())).recipe == {}


def test_damaged_headers_have_no_card(tmp_path, campaign, record_property):
    content = with_metadata(tmp_path / "m.safetensors", a_card().metadata()).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "x.safetensors"
    record_property("mutated inputs", 200 * campaign)
    for _ in range(200 * campaign):
        changed = bytearray(content[: int(rng.integers(len(content)))] if rng.random() < 0.3 else content)
        for _ in range(int(rng.integers(1, 8))):
            if changed:
                changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        path.write_bytes(bytes(changed))
        read_card(path)
    assert read_card(tmp_path) is None and read_card(tmp_path / "none") is None


# Augmentation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_augmentations_are_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"augmentation{suffix}"
    path.write_text(
        json.dumps({"turn": 0.5, "flips": "none", "transforms": [{"name": "RandFlip", "prob": 1.0}]})
    )
    made = read_augmentation(path)
    assert (made.turn, made.flips, made.bend) == (0.5, "none", FINE_TUNING.bend)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "augmentation-unreadable"), ("[]", "augmentation-unreadable"),
        ('{"spin": 1}', "augmentation-unknown"),
        ('{"turn": 7}', "augmentation-value"), ('{"turn": true}', "augmentation-value"),
        ('{"flips": "up"}', "augmentation-value"),
        ('{"transforms": [{"name": "Lambda"}]}', "augmentation-value"),
        ('{"transforms": [{"name": "RandNothing"}]}', "transform-unusable"),
        ('{"transforms": [{"name": "RandFlip", "speed": 1}]}', "transform-unusable"),
    ],
)  # fmt: skip
def test_augmentations_that_mean_nothing_are_refused(tmp_path, text, code):
    path = tmp_path / "augmentation.json"
    path.write_text(text)
    with raises(code):
        read_augmentation(path)


def test_transforms_of_monai_move_image_and_labels_alike(tmp_path):
    path = tmp_path / "augmentation.json"
    steps = [{"name": "RandAffine", "prob": 1.0, "rotate_range": 0.5, "padding_mode": "zeros"}]
    path.write_text(
        json.dumps({"transforms": [*steps, {"name": "RandFlip", "prob": 1.0, "spatial_axis": 0}]})
    )
    made = read_augmentation(path)
    image, labels = (torch.from_numpy(one) for one in a_picture(1))
    views = torch.stack([image, image])[:, None].expand(-1, 3, -1, -1).float() / 255
    both = torch.stack([labels, labels]).long()
    changed, moved = transformed(views, both, made, np.random.default_rng(3))
    assert changed.shape == views.shape and moved.dtype == both.dtype
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved, both)
    assert set(moved.unique().tolist()) <= {0, 1, 2}
    assert changed[:, 0][moved == 1].mean() > 0.6  # the disc is still where the image is bright
    again, _ = transformed(views, both, made, np.random.default_rng(3))
    assert torch.equal(changed, again)


def test_events_for_tensorboard_are_written(medsam2, data, model, tmp_path):
    pytest.importorskip("tensorboardX")
    words = (
        "--out",
        tmp_path / "my.safetensors",
        "--base",
        model,
        "--tensorboard",
        tmp_path / "events",
        *QUICK,
    )
    assert medsam2("train", "finetune", data, *words).code == 0
    (events,) = (tmp_path / "events").iterdir()
    assert b"training/mask" in events.read_bytes()
    assert Image.open(tmp_path / "my.safetensors-report" / "curves.png").size[0] > 500
