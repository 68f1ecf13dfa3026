"""Training by the worker: a process of its own that no click waits for, that can be stopped, and goes on."""

import os
import time

import numpy as np
import psutil
import pytest
from medsam2_core.auto.model_file import read_card
from medsam2_core.errors import Cancelled, ProtocolError, TrainingError
from medsam2_core.worker.job_messages import FineTuneRequest, TrainAutoRequest
from medsam2_core.worker.jobs import Job
from medsam2_core.worker.protocol import dataclass_from_json
from medsam2_core.worker.subprocesses import Trainings
from support.real_worker import RealWorker, a_ball, a_point

SOON = {"image_size": 64, "folds": 0, "threads": 1}  # what takes seconds instead of minutes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures of a bright disc, with labels."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("discs")
    chance = np.random.default_rng(0)
    for n in range(4):
        y, x = np.ogrid[:60, :72]
        disc = (x - 25 - 4 * n) ** 2 + (y - 26 - 2 * n) ** 2 < 11**2
        picture = chance.integers(0, 60, disc.shape).astype(np.uint8) + (140 * disc).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"case{n}_img.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / f"case{n}_seg.png")
    return folder


@pytest.fixture
def worker(tmp_path):
    """A worker with a folder of Auto models of its own."""
    made = RealWorker(tmp_path, MEDSAM2_AUTO_MODELS=str(tmp_path / "auto"))
    made.greet()
    yield made
    made.process.kill()
    made.process.wait()


def until(worker, number, is_so):
    """Read until a message about a request is as wanted."""
    while not any(is_so(frame.header) for frame in worker.about(number)):
        worker.receive()


def children(worker):
    return [one for one in psutil.Process(worker.process.pid).children() if one.is_running()]


def test_from_a_folder_to_a_model_on_the_list(worker, data, tmp_path):
    number = worker.send("train_auto", data=str(data), name="my discs", steps=4, **SOON)
    until(worker, number, lambda header: header.get("message", "").startswith("training"))
    worker.answer(worker.give(a_ball()))
    worker.open()
    began = time.monotonic()
    worker.records(worker.set_prompts("a", 12, a_point(50, 40, 12)))
    assert time.monotonic() - began < 10, "a click waits for the training"
    result = worker.answer(number).header
    assert result["type"] == "result", result
    path = tmp_path / "auto" / "my discs.medsam2auto"
    assert result["path"] == str(path)
    assert os.path.isdir(result["report"])
    assert result["model"]["name"] == "my discs"
    assert read_card(path).training["images"] == 4
    told = [frame.header for frame in worker.about(number, "progress")]
    assert {one["what"] for one in told} == {"training"}
    assert told[0]["message"].startswith("reading")
    assert told[-1]["done"] == told[-1]["total"] == 4
    (listed,) = worker.ask("auto_models")["models"]
    assert listed == result["model"]
    assert listed["axis"] == "picture"
    assert not children(worker)


def test_a_name_that_is_taken_is_numbered(worker, data, tmp_path):
    (tmp_path / "auto").mkdir()
    (tmp_path / "auto" / "discs.medsam2auto").write_bytes(b"another")
    result = worker.answer(worker.send("train_auto", data=str(data), name="discs", steps=1, **SOON)).header
    assert result["path"] == str(tmp_path / "auto" / "discs 2.medsam2auto")
    assert (tmp_path / "auto" / "discs.medsam2auto").read_bytes() == b"another"


def test_it_is_stopped_and_goes_on(worker, data, tmp_path):
    # Images are drawn without end, so to say: it is stopped long before.
    wish = {"data": str(data), "name": "discs", "steps": 100_000, **SOON}
    number = worker.send("train_auto", **wish)
    until(worker, number, lambda header: header.get("message", "").startswith("training"))
    again = worker.refused("train_auto", **wish)
    assert again["code"] == "already-training"
    worker.ask("cancel", request=number)
    error = worker.answer(number).header
    assert error["kind"] == "Cancelled", error
    assert not children(worker)
    assert (tmp_path / "auto" / "discs.medsam2auto.run").is_dir()
    assert worker.ask("auto_models")["models"] == []
    number = worker.send("train_auto", **wish, resume=True)
    until(worker, number, lambda header: header.get("message", "").startswith("training"))
    worker.ask("cancel", request=None)
    assert worker.answer(number).header["kind"] == "Cancelled"


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be told apart by signals there")
def test_it_ends_with_a_worker_that_is_killed(worker, data):
    number = worker.send("train_auto", data=str(data), name="discs", steps=100_000, **SOON)
    until(worker, number, lambda header: header.get("message", "").startswith("training"))
    (child,) = children(worker)
    worker.process.kill()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE], "an orphan goes on training"


def test_what_is_wrong_with_the_data_is_reported_in_one_line(worker, tmp_path):
    (tmp_path / "empty").mkdir()
    for data, words in ((tmp_path / "nowhere", "no such folder"), (tmp_path / "empty", "no labels")):
        error = worker.refused("train_auto", data=str(data), name="discs", **SOON)
        assert error["kind"] == "TrainingError"
        assert words in error["message"], error["message"]
        assert str(data) in error["message"]
    assert "letters and digits" in worker.refused("train_auto", data="x", name="//", **SOON)["message"]
    assert worker.refused("train_auto", data="x", name="y", colour="red")["kind"] == "ProtocolError"


class Ended:
    """Notes how a job ended, and what was told before."""

    def __init__(self, *command):
        self.told, self.answers = [], []
        self.trainings = Trainings(
            lambda job, answer: self.answers.append(answer),
            lambda job, header: self.told.append(header),
            command,
        )

    def wait(self, seconds=20):
        end = time.monotonic() + seconds
        while not self.answers:
            assert time.monotonic() < end
            time.sleep(0.01)
        return self.answers[0]


def a_script(folder, text):
    import sys

    path = folder / "script.py"
    path.write_text(text)
    return sys.executable, str(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM2_AUTO_MODELS", str(tmp_path / "auto"))
    return tmp_path


def test_lines_that_are_not_of_a_training_are_passed_over(place):
    text = (
        "import json\n"
        "print('a library prints this')\nprint('[1, 2]')\n"
        "print(json.dumps({'stage': 'problem', 'message': 'case1: no labels'}))\n"
        "print(json.dumps({'stage': 'training', 'done': 3, 'total': 'many', 'dice': 0.5}))\n"
        "print(json.dumps({'stage': 'training', 'done': 4, 'total': 9, 'seconds_left': 240.3}))\n"
        "told = {'code': 'disk-full', 'fields': {}, 'message': 'the disk is full'}\n"
        "print(json.dumps({'stage': 'error', 'error': told}))\n"
        "raise SystemExit(2)\n"
    )
    ended = Ended(*a_script(place, text))
    ended.trainings.start(Job(1, "train_auto", {"data": "d", "name": "n"}))
    error = ended.wait()
    assert isinstance(error, TrainingError)
    assert (error.code, str(error)) == ("disk-full", "the disk is full")
    messages = [(one["done"], one["total"], one["message"]) for one in ended.told]
    assert messages == [
        (0, None, "case1: no labels"),
        (3, None, "training, Dice 0.50"),
        (4, 9, "training, about 4 min left"),
    ]


def test_a_process_that_dies_is_reported_with_its_last_line(place):
    ended = Ended(*a_script(place, "import os, sys\nprint('Killed', file=sys.stderr)\nos._exit(9)\n"))
    ended.trainings.start(Job(1, "train_auto", {"data": "d", "name": "n"}))
    error = ended.wait()
    assert isinstance(error, TrainingError)
    assert (error.code, error.fields) == ("command-died", {"exit_code": 9, "last_line": "Killed"})


def test_one_that_is_cancelled_before_it_began_never_begins(place):
    ended = Ended(*a_script(place, "import sys\nsys.stdin.read()\nsys.exit(130)\n"))
    job = Job(1, "train_auto", {"data": "d", "name": "n"})
    ended.trainings.start(job)
    ended.trainings.cancel(1)
    assert isinstance(ended.wait(), Cancelled)


def test_fields_become_the_arguments_of_the_command():
    fields = {
        **{"type": "train_auto", "id": 3, "data": "folder", "name": "n", "base": "embedded", "shots": 10},
        **{"minutes": 2.5, "classes": ["liver", "left kidney"], "skip_bad": True, "decoder": "lora"},
        **{"window": None},
    }
    words = dataclass_from_json(TrainAutoRequest, fields, "train_auto").arguments("n.medsam2auto")
    assert words[:4] == ["folder", "--out", "n.medsam2auto", "--json-progress"]
    assert words[4:] == [
        *("--base", "embedded", "--classes", "liver,left kidney", "--minutes", "2.5", "--skip-bad"),
        *("--shots", "10", "--decoder", "lora"),
    ]
    fields = {"data": "folder", "name": "n", "train": "lora", "learning_rate": 0.0002, "resume": True}
    words = dataclass_from_json(FineTuneRequest, fields, "train_finetune").arguments("n.safetensors")
    assert words[4:] == ["--train", "lora", "--learning-rate", "0.0002"]


@pytest.mark.parametrize("request_type", [TrainAutoRequest, FineTuneRequest])
@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"steps": "ten"}, {"minutes": True}, {"classes": "liver"}, {"classes": ["a,b"]}]
)
def test_nonsense_is_refused(wrong, request_type):
    with pytest.raises(ProtocolError):
        dataclass_from_json(request_type, {"data": "d", "name": "n", **wrong}, "train")


# Fine-tuning ------------------------------------------------------------------------------------------------


@pytest.fixture
def tuner(tmp_path):
    """A worker with a folder of models of its own."""
    made = RealWorker(tmp_path, MEDSAM2_MODELS=str(tmp_path / "models"))
    made.greet()
    yield made
    made.process.kill()
    made.process.wait()


QUICK = {"batch": 1, "measure": 1, "threads": 1, "image_size": 64}


def test_a_fine_tuned_model_is_listed_used_and_removed(tuner, data, tmp_path):
    number = tuner.send("train_finetune", data=str(data), name="embedded", steps=2, train="lora", **QUICK)
    result = tuner.answer(number).header
    assert result["type"] == "result", result
    path = tmp_path / "models" / "own" / "embedded 2.safetensors"  # not the name of another model
    assert result["path"] == str(path) and os.path.isdir(result["report"])
    listed = tuner.ask("models")["models"]
    (own,) = [model for model in listed if model["card"]]
    assert own == result["model"]
    assert (own["name"], own["installed"], own["removable"]) == ("embedded 2", True, True)
    assert own["card"]["base"] == "embedded" and own["licence"] == "Apache-2.0"
    tuner.answer(tuner.give(a_ball()))
    tuner.open(model="embedded 2")
    assert tuner.records(tuner.set_prompts("a", 12, a_point(50, 40, 12)))
    # It can be trained further, under another name.
    again = {"data": str(data), "name": "more", "base": "embedded 2", "steps": 1}
    assert tuner.answer(tuner.send("train_finetune", **again, **QUICK)).header["model"]["name"] == "more"
    assert tuner.ask("remove_model", name="embedded 2")["bytes"] == own["bytes"]
    assert not path.exists() and not os.path.exists(result["report"])
    assert [model["name"] for model in tuner.ask("models")["models"] if model["card"]] == ["more"]


def test_a_fine_tuning_is_stopped_and_goes_on(tuner, data, tmp_path):
    wish = {"data": str(data), "name": "discs", "steps": 100_000, **QUICK}
    number = tuner.send("train_finetune", **wish)
    until(tuner, number, lambda header: header.get("message", "").startswith("training"))
    assert tuner.refused("train_auto", data=str(data), name="x", **SOON)["code"] == "already-training"
    tuner.ask("cancel", request=number)
    assert tuner.answer(number).header["kind"] == "Cancelled"
    run = tmp_path / "models" / "own" / "discs.safetensors.run"
    assert (run / "last.pt").exists() and not children(tuner)
    number = tuner.send("train_finetune", **wish, resume=True)
    until(tuner, number, lambda header: header.get("message", "").startswith("training"))
    tuner.ask("cancel", request=None)
    assert tuner.answer(number).header["kind"] == "Cancelled"
    assert not run.with_name(run.name + ".old").exists()
