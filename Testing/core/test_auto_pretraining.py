"""The start of few-shot training: made from many data sets, continued when stopped; the encoder stays."""

import json

import pytest
import torch
from medsam2_core.auto.fewshot import pretraining
from medsam2_core.auto.fewshot.pretraining import Pretrainer, Pretraining
from medsam2_core.auto.fewshot.start import packaged_start, read_start
from medsam2_core.engine.model import load_model
from medsam2_core.errors import TrainingError
from support.errors import raises
from support.labelled_images import write_pictures
from support.tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def some_steps(trainer, count):
    trainer.run(lambda: trainer.step >= count)


def test_a_start_is_trained_and_the_model_below_stays(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    write_pictures(tmp_path / "data" / "two", 9, first=20)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    told = []
    trainer = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", Pretraining(minutes=9), told.append)
    assert [len(one.images) for one in trainer.training] == [8, 8]
    assert trainer.predictor.queries.shape[0] == 4, "queries for every class of every data set"
    some_steps(trainer, 4)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(told[-1]["validation"]) == {"one", "two", "mean"}
    start = read_start(tmp_path / "run" / "start.safetensors", model)
    assert start.queries.shape[0] == 4
    assert start.adapters
    assert not any(name.startswith("head") for name in start.predictor)
    other = read_start(tmp_path / "run" / "start.safetensors", tiny_model(seed=3))
    assert other.predictor == other.adapters == {}, "of use for the model it was made for only"
    assert set(other.texture) == {name for name in start.texture if not name.startswith("out.")}


@pytest.mark.parametrize("fast", [False, True])
def test_the_texture_adapter_learns_first_and_alone(tmp_path, model, monkeypatch, fast):
    """In bf16, where the device is fast in it."""
    monkeypatch.setattr(pretraining, "has_fast_bf16", lambda _: fast)
    write_pictures(tmp_path / "data" / "one", 9)
    settings = Pretraining(minutes=9, texture_share=1.0, texture_images=2)
    trainer = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", settings)
    kinds = []
    trainer.texture.register_forward_hook(lambda *seen: kinds.append(seen[-1].pixels.dtype))
    before = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    some_steps(trainer, 2)
    assert kinds[:2] == [torch.bfloat16 if fast else torch.float32] * 2
    changed = {n for n, value in trainer.trained.state_dict().items() if not torch.equal(before[n], value)}
    assert {name.partition(".")[0] for name in changed} == {"texture"}
    assert "texture.looks" in changed


def test_a_start_is_gone_on_from_with_more_data_and_its_adapters_stay(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    write_pictures(tmp_path / "more" / "another", 9, first=20)
    together = Pretraining(minutes=9, texture_share=0.0)
    first = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", together)
    some_steps(first, 2)
    earlier = tmp_path / "run" / "start.safetensors"
    both = [tmp_path / "data", tmp_path / "more"]
    second = Pretrainer(model, both, tmp_path / "second", together, start=earlier)
    known = read_start(earlier, model)
    assert torch.equal(second.predictor.queries[:2], known.queries)
    adapters = {name: value.clone() for name, value in second.adapters.state_dict().items()}
    some_steps(second, 2)
    assert all(torch.equal(adapters[name], v) for name, v in second.adapters.state_dict().items())
    with raises("start-for-other-model", TrainingError):
        Pretrainer(tiny_model(seed=3), both, tmp_path / "third", together, start=earlier)
    with raises("start-of-other-data", TrainingError):
        wide = Pretrainer(model, both, tmp_path / "fourth", together)
        some_steps(wide, 1)
        Pretrainer(
            model, [tmp_path / "more"], tmp_path / "fifth", together, start=wide.folder / "start.safetensors"
        )


def test_with_the_same_data_sets_everything_is_continued_together(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    first = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", Pretraining(minutes=9))
    some_steps(first, 2)
    second = Pretrainer(
        model, [tmp_path / "data"], tmp_path / "second", Pretraining(minutes=9),
        start=tmp_path / "run" / "start.safetensors",
    )  # fmt: skip
    for name, value in second.texture.state_dict().items():
        assert torch.allclose(value, first.average[f"texture.{name}"].half().float()), name
    before = {name: value.clone() for name, value in second.trained.state_dict().items()}
    some_steps(second, 1)
    changed = {n for n, value in second.trained.state_dict().items() if not torch.equal(before[n], value)}
    assert {name.partition(".")[0] for name in changed} == {"predictor", "texture", "head"}


def test_a_run_that_was_stopped_goes_on(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    first = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", Pretraining(minutes=9))
    some_steps(first, 3)
    second = Pretrainer(model, [tmp_path / "data"], tmp_path / "run", Pretraining(minutes=9))
    assert second.step == 3
    ours, theirs = (one.trained.state_dict() for one in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["step"] <= 3 for line in lines)


def test_a_folder_without_data_sets_is_refused(tmp_path, model):
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    with raises("no-data-sets", TrainingError):
        Pretrainer(model, [tmp_path / "empty"], tmp_path / "run", Pretraining())


def test_the_start_that_ships_is_for_the_model_that_ships():
    model = load_model("embedded", "cpu")
    assert packaged_start(model) is not None
    assert packaged_start(model).predictor
    other = packaged_start(load_model("embedded", "cpu", image_size=128))
    assert other.texture and not other.predictor, "what looks at pixels fits any SAM 2"
