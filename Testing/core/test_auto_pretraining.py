"""The start of few-shot training: made from many data sets, continued when stopped; the encoder stays."""

import json

import pytest
import torch
from a_tiny_model import tiny_model
from medsam2_core.auto.fewshot.pretraining import Pretrainer, Pretraining
from medsam2_core.auto.fewshot.starting import packaged_start, read_start
from medsam2_core.engine.model import load_model
from medsam2_core.errors import TrainingError
from some_labelled_images import write_pictures


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return tiny_model()


def some_steps(trainer, count):
    trainer.run(lambda: trainer.step >= count)


def test_a_start_is_trained_and_the_model_below_stays(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    write_pictures(tmp_path / "data" / "two", 9, first=20)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    told = []
    trainer = Pretrainer(model, tmp_path / "data", tmp_path / "run", Pretraining(minutes=9), told.append)
    assert [len(one.squares) for one in trainer.training] == [8, 8]
    assert trainer.predictor.queries.shape[0] == 4, "queries for every class of every data set"
    some_steps(trainer, 4)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(told[-1]["validation"]) == {"one", "two", "mean"}
    start = read_start(tmp_path / "run" / "start.safetensors", model)
    assert start.queries.shape[0] == 4
    assert start.adapters
    assert not any(name.startswith("head") for name in start.predictor)
    assert read_start(tmp_path / "run" / "start.safetensors", tiny_model(seed=3)) is None


def test_a_run_that_was_stopped_goes_on(tmp_path, model):
    write_pictures(tmp_path / "data" / "one", 9)
    first = Pretrainer(model, tmp_path / "data", tmp_path / "run", Pretraining(minutes=9))
    some_steps(first, 3)
    second = Pretrainer(model, tmp_path / "data", tmp_path / "run", Pretraining(minutes=9))
    assert second.step == 3
    ours, theirs = (one.trained.state_dict() for one in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["step"] <= 3 for line in lines)


def test_a_folder_without_data_sets_is_refused(tmp_path, model):
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    with pytest.raises(TrainingError, match="no data sets"):
        Pretrainer(model, tmp_path / "empty", tmp_path / "run", Pretraining())


def test_the_start_that_ships_is_for_the_model_that_ships():
    model = load_model("embedded", "cpu")
    assert packaged_start(model) is not None
    assert packaged_start(load_model("embedded", "cpu", image_size=128)) is None
