"""The trainer: it can be stopped and resumed, keeps a complete log, and refuses what it cannot go on with."""

import json
import os
import stat
from dataclasses import replace

import pytest
import torch
from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.model import build_module
from medsam2_core.errors import DeviceError, TrainingError
from medsam2_core.training import loader
from medsam2_core.training.anatomy import random_anatomy
from medsam2_core.training.base import BaseTrainer
from medsam2_core.training.loader import Mixture, Views, stream
from medsam2_core.training.sources import load_sources
from support.errors import raises
from support.training_folder import tiny_config, tiny_training, write_training_folder


@pytest.fixture(scope="module", autouse=True)
def small_anatomies():
    """Random volumes of 24 instead of 96 voxels a side."""
    original = loader.random_anatomy
    loader.random_anatomy = lambda rng: random_anatomy(rng, side=24)
    yield
    loader.random_anatomy = original


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_training_folder(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def settings(data):
    return tiny_training(data, tiny_config(data.parent))


@pytest.fixture(scope="module")
def stopped(settings, tmp_path_factory):
    """A run that was stopped after three of four steps on slices."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    trainer = BaseTrainer(settings, folder)
    trainer.run(lambda: trainer.step == 3)
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it."""
    for path in stopped.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_that_was_stopped_goes_on_where_it_was(settings, run):
    told = []
    trainer = BaseTrainer(settings, run, told.append)
    assert (trainer.stage_index, trainer.step) == (0, 3)
    before = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    trainer.run()
    assert (trainer.stage_index, trainer.step) == (2, 0)
    assert any(not torch.equal(before[key], value) for key, value in trainer.module.state_dict().items())
    assert lines_of(run)[-len(told) :] == told
    steps = [(line["stage"], line["step"]) for line in lines_of(run) if "validation" not in line]
    assert steps == [("slices", 2), ("slices", 3), ("slices", 4), ("clips", 2)]
    again = BaseTrainer(settings, run)
    again.run(lambda: pytest.fail("there is nothing left to do"))


def test_what_is_resumed_is_what_was_saved(settings, run):
    trainer, state = BaseTrainer(settings, run), torch.load(run / "last.pt", weights_only=True)
    for mine, saved in (
        (dict(trainer.module.named_parameters()), state["parameters"]),
        (trainer.heads.state_dict(), state["heads"]),
        (trainer.average, state["average"]),
    ):
        assert mine.keys() == saved.keys()
        assert all(torch.equal(mine[key], saved[key]) for key in mine)
    optimiser = trainer._optimiser(settings.stages[0])
    steps = {float(entry["step"]) for entry in optimiser.state_dict()["state"].values()}
    assert steps == {3.0}


def test_log_lines_are_complete(stopped, settings, tmp_path):
    stages = (replace(settings.stages[1], steps=2),)
    BaseTrainer(replace(settings, stages=stages), tmp_path).run()
    for line in lines_of(stopped) + lines_of(tmp_path):
        assert {"hours", "stage", "step"} <= line.keys()
        if "validation" in line:
            tracked = line["validation"].pop("tracked", {})
            assert set(line["validation"]) == {"discs", "synthetic", "mean"}
            assert not tracked or {"box 1", "absent recall", "gain", "worse"} <= tracked.keys()
            for row in line["validation"].values():
                assert {"box", "click", "mask", "box+1", "box tracked"} <= row.keys()
                assert all(0 <= value <= 1 for value in row.values())
        else:
            assert {"mask", "iou", "presence", "affinity", "images_per_second"} <= line.keys()
    assert any("validation" in line for line in lines_of(tmp_path))


def test_means_are_over_the_steps_since_the_last_report(settings, tmp_path, monkeypatch):
    parts = iter([{"mask": 1.0}, {"mask": 3.0}, {"skipped": 1.0}, {"mask": 7.0}])
    trainer = BaseTrainer(replace(settings, stages=settings.stages[:1], validate_every=100), tmp_path)
    monkeypatch.setattr(trainer, "_train_step", lambda *_: next(parts))
    trainer.run()
    reports = [line for line in lines_of(tmp_path) if "validation" not in line]
    assert [line["mask"] for line in reports] == [2.0, 7.0]
    assert "skipped" not in reports[0] and reports[1]["skipped"] == 1


def test_clips_and_single_slices_take_turns(settings, tmp_path, monkeypatch):
    stage = replace(settings.stages[1], steps=4, batch=1, slices=3)
    trainer, seen = BaseTrainer(replace(settings, stages=(stage,)), tmp_path), []

    def note(passes, turn, _optimiser):
        (batch,) = passes
        seen.append((tuple(batch.images.shape[:2]), turn.frames, turn.corrections))
        return {"mask": 1.0}

    monkeypatch.setattr(trainer, "_train_step", note)
    trainer.run()
    assert seen == [((1, 2), 2, 1), ((3, 1), 1, 2)] * 2


def test_a_run_that_is_killed_loses_little(settings, tmp_path, monkeypatch):
    rare = replace(settings, stages=settings.stages[:1], validate_every=100, save_every=2)
    trainer = BaseTrainer(rare, tmp_path)
    parts = iter([{"mask": 1.0}] * 3)
    monkeypatch.setattr(trainer, "_train_step", lambda *_: next(parts))
    with pytest.raises(StopIteration):
        trainer.run()
    assert BaseTrainer(rare, tmp_path).step == 2
    assert (tmp_path / "weights.safetensors").exists()


def test_a_step_that_is_not_finite_is_skipped(settings, data, tmp_path):
    trainer, stage = BaseTrainer(settings, tmp_path), settings.stages[0]
    optimiser = trainer._optimiser(stage)
    views = Views(load_sources(data), Mixture(), size=64, frames=1, batch=2, seed=0)
    (batch,) = next(stream(views))
    before = {key: value.clone() for key, value in trainer.module.state_dict().items()}
    broken = replace(batch, images=torch.full_like(batch.images, float("nan")))
    assert trainer._train_step([broken], stage, optimiser) == {"skipped": 1.0}
    # Finite losses may still have gradients that are not.
    handle = trainer.module.sam_mask_decoder.iou_token.weight.register_hook(lambda grad: grad * float("inf"))
    assert trainer._train_step([batch], stage, optimiser) == {"skipped": 1.0}
    handle.remove()
    assert all(torch.equal(before[key], value) for key, value in trainer.module.state_dict().items())
    assert "mask" in trainer._train_step([batch], stage, optimiser)
    assert all(torch.isfinite(value).all() for value in trainer.module.state_dict().values())


def test_the_weights_fit_the_embedded_model_and_everybody_may_read_them(data, tmp_path):
    settings = tiny_training(data, "embedded", stages=())
    BaseTrainer(settings, tmp_path)._save(None)
    path = tmp_path / "weights.safetensors"
    load_strict(build_module("embedded"), read_state_dict(path), "embedded", str(path))
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(os.stat(path).st_mode) == stat.S_IMODE(os.stat(usual).st_mode)
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_can_start_from_weights_and_leave_their_encoder_alone(settings, stopped, tmp_path):
    path = stopped / "weights.safetensors"
    clips = replace(settings.stages[1], steps=1, trunk_factor=0.0, affinity_weight=0.0)
    trainer = BaseTrainer(replace(settings, start=str(path), stages=(clips,), warm_up=1), tmp_path)
    start = read_state_dict(path)
    assert all(torch.equal(start[key], value) for key, value in trainer.module.state_dict().items())
    trainer.run()
    changed = {
        key for key, value in trainer.module.state_dict().items() if not torch.equal(start[key], value)
    }
    assert changed and not any(key.startswith("image_encoder") for key in changed)
    assert any(key.startswith("memory_attention") for key in changed)


def test_training_leaves_random_numbers_and_threads_of_others_alone(settings, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_num_threads(2)
    trainer = BaseTrainer(replace(settings, stages=settings.stages[:1]), tmp_path)
    trainer.run(lambda: trainer.step == 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2


def test_one_seed_gives_one_run(settings, tmp_path):
    short = replace(settings, stages=(replace(settings.stages[1], steps=2),), validation_views=0)
    for name in ("a", "b"):
        torch.rand(1)  # whatever others draw
        BaseTrainer(short, tmp_path / name).run()
    first, second = (read_state_dict(tmp_path / name / "weights.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 2}, {"code": "run-differs", "setting": "seed", "found": 1}),
        ({"config": "embedded"}, {"code": "run-differs", "setting": "config"}),
        ({"stages": ()}, {"code": "run-differs", "setting": "stages", "found": ["slices"]}),
    ],
)
def test_another_run_is_not_overwritten(settings, run, change, problem):
    before = (run / "last.pt").read_bytes()
    with raises(**problem, error_type=TrainingError):
        BaseTrainer(replace(settings, **change), run)
    assert (run / "last.pt").read_bytes() == before


def test_more_steps_may_be_asked_of_the_same_run(settings, run):
    longer = (replace(settings.stages[0], steps=9), settings.stages[1])
    assert BaseTrainer(replace(settings, stages=longer), run).step == 3


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["cut", "empty", "text", "pickle", "other", "network"])
def test_a_damaged_run_is_refused_in_one_line(settings, run, kind):
    path = run / "last.pt"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "nothing that torch knows")
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 3'\ntR.")
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        state = torch.load(path, weights_only=True)
        state["parameters"].popitem()
        torch.save(state, path)
    with raises("run-damaged", TrainingError) as refusal:
        BaseTrainer(settings, run)
    assert "\n" not in str(refusal.value)


def test_mutated_runs_are_resumed_or_refused(
    settings, stopped, tmp_path, monkeypatch, campaign, record_property
):
    import numpy as np

    rng = np.random.default_rng(1)
    content = (stopped / "last.pt").read_bytes()
    monkeypatch.setattr("medsam2_core.training.base.load_sources", lambda _: [])
    record_property("mutated inputs", 12 * campaign)
    for _ in range(12 * campaign):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 20))):
            place = rng.choice([int(rng.integers(len(changed))), len(changed) - int(rng.integers(1, 3000))])
            changed[place] = int(rng.integers(256))
        (tmp_path / "last.pt").write_bytes(bytes(changed))
        try:
            trainer = BaseTrainer(settings, tmp_path)
            trainer._optimiser(settings.stages[0])
        except TrainingError as error:
            assert "\n" not in str(error)


def test_half_a_log_line_is_dropped(settings, run):
    whole = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(whole + '{"hours": 0.1, "sta')
    BaseTrainer(settings, run)
    assert (run / "log.jsonl").read_text() == whole


def test_a_device_that_is_not_there_is_named(settings, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA card")
    with raises("no-cuda", DeviceError, device="cuda"):
        BaseTrainer(replace(settings, device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_where_data_is_missing(settings, tmp_path):
    with raises("training-folder-missing", TrainingError):
        BaseTrainer(replace(settings, data=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with raises("run-folder-unusable", TrainingError):
        BaseTrainer(settings, tmp_path / "file")


def test_a_folder_that_cannot_be_written_ends_in_one_line(settings, run):
    trainer = BaseTrainer(settings, run)
    (run / "last.pt.partial").mkdir()
    with raises("run-not-written", TrainingError):
        trainer._save(None)


def test_the_engine_asks_the_embedded_model_as_it_was_trained():
    from medsam2_core.engine.catalogue import Catalogue
    from medsam2_core.engine.recipe import PromptRecipe
    from medsam2_core.training.base import EMBEDDED_RECIPE

    assert PromptRecipe(**Catalogue.load().find("embedded").recipe) == EMBEDDED_RECIPE
