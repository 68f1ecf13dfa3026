"""Few-shot training: it learns, leaves the SAM 2 below alone, goes on after a kill, tells what it did."""

import json

import numpy as np
import pytest
import torch
from medsam2_core.auto.fewshot import fit as fitting
from medsam2_core.auto.fewshot import trainer as training_run
from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
from medsam2_core.auto.fewshot.features import FeatureBank, VariantPlan, variant_of
from medsam2_core.auto.fewshot.fit import Fit, FitSettings, mean_dice
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.objective import PromptMix
from medsam2_core.auto.fewshot.results import dice_by_class, spread, table, write_report
from medsam2_core.auto.fewshot.settings import FewShotSettings
from medsam2_core.auto.fewshot.start import PretrainedStart, choose_queries, initialise
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.auto.fewshot.trainer import FewShotTrainer
from medsam2_core.auto.model import load_auto, untrained_model
from medsam2_core.auto.model_file import AutoCard
from medsam2_core.auto.predictor import PredictorSettings
from medsam2_core.errors import TrainingError
from support.errors import raises
from support.labelled_images import write_pictures
from support.tiny_model import SIDE, tiny_model

QUICK = FitSettings(learning_rate=2e-3, warm_up=5)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), 6)
    return survey(find_pairs(folder), ReadingOptions(SIDE), parse_classes("1=disc,2=bar"))


def an_untrained(model, found, decoder="frozen"):
    settings = PredictorSettings.for_module(model.module, len(found.classes))
    torch.manual_seed(1)
    card = AutoCard(
        "test", found.classes, model.name, model.weights_key, SIDE,
        predictor=settings.to_dict(), decoder=decoder,
    )  # fmt: skip
    return untrained_model(card, model)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, found):
    """A fit that has learned, with the model below as it was before."""
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    auto = an_untrained(model, found)
    bank = a_bank(tmp_path_factory.mktemp("bank"), model, found)
    fit = Fit(auto, bank, found.images, [0, 1, 2, 3], [], QUICK, 0)
    at_first = mean_dice(fit.measure(range(4)))
    assert fit.run(120)
    return fit, bank, before, at_first


def a_bank(folder, model, found, variants=3):
    bank = FeatureBank(
        folder, found.images, an_untrained(model, found), VariantPlan(variants, Augmentation())
    )
    assert bank.fill()
    return bank


# Features


def test_features_are_those_of_the_augmented_image(tmp_path, model, found):
    bank = a_bank(tmp_path / "features", model, found)
    plan, image = VariantPlan(3, Augmentation()), found.images[1]
    picture, labels = variant_of(image, 2, 5, plan)
    wanted = an_untrained(model, found).levels(image.letterbox.normalise(picture)[None])
    levels, kept = bank.read([5])
    assert torch.equal(kept[0], labels)
    assert torch.allclose(levels.fine, wanted.fine, atol=5e-3)
    assert torch.allclose(levels.coarse, wanted.coarse, atol=5e-3)


def test_features_that_were_begun_are_finished_and_those_of_other_images_thrown_away(tmp_path, model, found):
    plan, auto = VariantPlan(4, Augmentation()), an_untrained(model, found)
    calls = []
    bank = FeatureBank(tmp_path / "f", found.images, auto, plan)
    assert not bank.fill(should_stop=lambda: len(calls) >= 1, progress=lambda *told: calls.append(told))
    whole = a_bank(tmp_path / "whole", model, found, 4)
    again = FeatureBank(tmp_path / "f", found.images, auto, plan)
    told = []
    assert again.fill(progress=lambda done, total: told.append(done))
    assert told[0] > 8, "what was there is not computed again"
    for index in (0, 7, 23):
        assert torch.equal(again.read([index])[0].fine, whole.read([index])[0].fine)
    other = FeatureBank(tmp_path / "f", found.images[::-1], auto, plan)
    other.fill(progress=lambda done, total: told.append(-done))
    assert told[-3:] == [-8, -16, -24]


def test_a_plan_fits_images_into_the_limit():
    assert VariantPlan.for_images(10, 1000, Augmentation(), 0).variants == 150
    assert VariantPlan.for_images(1000, 1000, Augmentation(), 0).variants == 8
    assert VariantPlan.for_images(10, 100 << 20, Augmentation(), 0).variants == 2


# Fitting


def test_it_learns_and_leaves_the_model_below_as_it_was(trained, model):
    fit, _, before, at_first = trained
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "byte for byte"
    learned = mean_dice(fit.measure([0, 1, 2, 3]))
    assert learned > max(0.4, at_first + 0.2), (at_first, learned, fit.progress.history[-1])
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_with_lora_only_the_copy_of_the_decoder_learns(tmp_path, model, found):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    auto = an_untrained(model, found, "lora")
    own = {name: value.clone() for name, value in auto.network.decoder.state_dict().items()}
    Fit(auto, a_bank(tmp_path / "f", model, found), found.images, [0, 1, 2], [], QUICK, 0).run(4)
    now = auto.network.decoder.state_dict()
    changed = {name for name in own if not torch.equal(own[name], now[name])}
    assert any("w_b" in name for name in changed)
    assert not any("k_proj" in name or name.endswith("proj.proj.weight") for name in changed)
    assert all(torch.equal(before[n], value) for n, value in model.module.state_dict().items())


def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(tmp_path, model, found):
    bank = a_bank(tmp_path / "f", model, found)

    def a_fit():
        return Fit(an_untrained(model, found), bank, found.images, [0, 1, 2, 3], [4, 5], QUICK, 0)

    whole = a_fit()
    whole.run(24)
    first = a_fit()
    assert not first.run(24, should_stop=lambda: first.progress.step >= 11)
    torch.save(first.state(), tmp_path / "fit.pt")
    second = a_fit()
    second.restore(torch.load(tmp_path / "fit.pt", weights_only=True))
    assert second.run(24)
    ours, theirs = (one.auto.network.predictor.state_dict() for one in (second, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["step"] for line in second.progress.history] == [
        line["step"] for line in whole.progress.history
    ]


def test_timing_a_step_teaches_nothing(tmp_path, model, found):
    bank = a_bank(tmp_path / "f", model, found)
    fits = [Fit(an_untrained(model, found), bank, found.images, [0, 1, 2], [], QUICK, 0) for _ in range(2)]
    assert fits[0].seconds_a_step() > 0
    for fit in fits:
        fit.run(6)
    ours, theirs = (fit.auto.network.predictor.state_dict() for fit in fits)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_losses_that_are_no_numbers_are_left_out_and_then_refused(tmp_path, model, found, monkeypatch):
    fit = Fit(
        an_untrained(model, found), a_bank(tmp_path / "f", model, found), found.images, [0, 1], [], QUICK, 0
    )
    before = {name: value.clone() for name, value in fit.auto.network.predictor.state_dict().items()}
    usual = fitting.auto_loss

    def spoiled(*values, **more):
        return {name: value * float("nan") for name, value in usual(*values, **more).items()}

    monkeypatch.setattr(fitting, "auto_loss", spoiled)
    fit.run(3)
    assert fit.progress.skipped == 3
    now = fit.auto.network.predictor.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)
    fit.progress.is_over = False
    with raises("loss-not-finite", TrainingError, learning_rate=0.002):
        fit.run(200)


def test_it_stops_early_when_validation_does_not_get_better(tmp_path, model, found, monkeypatch):
    fit = Fit(
        an_untrained(model, found), a_bank(tmp_path / "f", model, found), found.images, [0, 1], [2], QUICK, 0
    )
    monkeypatch.setattr(fit, "measure", lambda indices: [[0.3, 0.3]])
    assert fit.run(100)
    assert fit.progress.step < 100
    assert fit.progress.best_step == 10


# Prompts of a user in training


def test_prompts_are_mixed_in_the_shares_of_the_page():
    from medsam2_core.auto.predictor import PredictedPrompts

    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 4:30] = True
    mine = PredictedPrompts(tokens=torch.zeros(2, 3, 4))
    kinds = {"alone": 0, "with box": 0, "box": 0, "box and mask": 0}
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        used, said = PromptMix().draw(mine, masks, generator)
        if said.boxes_xyxy is None:
            kinds["alone"] += 1
        elif used is mine:
            kinds["with box"] += 1
            assert (said.boxes_xyxy - torch.tensor([4, 8, 30, 20]) / 32).abs().max() <= 0.1 * 26 / 32 + 1e-6
        else:
            kinds["box" if said.mask_logits is None else "box and mask"] += 1
    shares = {name: count / 4000 for name, count in kinds.items()}
    assert shares["alone"] == pytest.approx(0.5, abs=0.03)
    assert shares["with box"] == pytest.approx(0.45, abs=0.03)
    assert shares["box"] == pytest.approx(0.045, abs=0.015)
    assert shares["box and mask"] == pytest.approx(0.005, abs=0.005)


def test_a_batch_without_any_object_gets_no_box():
    from medsam2_core.auto.predictor import PredictedPrompts

    empty = torch.zeros(2, 16, 16, dtype=torch.bool)
    for seed in range(50):
        _, said = PromptMix().draw(PredictedPrompts(), empty, torch.Generator().manual_seed(seed))
        assert said.boxes_xyxy is None


# Starts


def test_a_start_gives_its_shared_part_and_the_queries_that_find_a_class(trained, model, found):
    teacher, bank = trained[0].auto.network.predictor, trained[1]
    known = {name: value for name, value in teacher.state_dict().items() if name != "queries"}
    other = torch.randn(1, *teacher.queries.shape[1:], generator=torch.Generator().manual_seed(0))
    queries = torch.cat([other, teacher.queries.detach()])
    auto, start = an_untrained(model, found), PretrainedStart(known, queries, {})
    initialise(auto, start)
    ours = auto.network.predictor.state_dict()
    assert all(torch.equal(ours[name], known[name]) for name in known)
    scores = choose_queries(auto, start, bank, found.images, range(len(found.images)))
    assert torch.equal(auto.network.predictor.queries[0], queries[1]), scores


def test_a_start_of_another_predictor_is_refused(model, found):
    with raises("start-does-not-fit", TrainingError):
        initialise(
            an_untrained(model, found), PretrainedStart({"x": torch.zeros(1)}, torch.zeros(1, 10, 128), {})
        )


# The whole run


def a_trainer(model, found, work, told=None, **more):
    settings = FewShotSettings("discs", steps=12, fit=QUICK, **more)
    return FewShotTrainer(settings, found, model, work, report=[].append if told is None else told.append)


class Machine:
    """A clock that only work moves: seconds a step of training, and a variant's features, take."""

    def __init__(self, monkeypatch, step, features=0.0, later=None):
        self.now, self.steps = 1000.0, 0
        taken, encoded = Fit._step, FeatureBank._encode

        def slow_step(fit):
            self.steps += 1
            self.now += step if later is None or self.steps < 12 else later
            return taken(fit)

        def slow_encode(bank, first, last):
            self.now += features * (last - first)
            encoded(bank, first, last)

        monkeypatch.setattr(training_run, "_LEAST_STEPS", 4)
        monkeypatch.setattr(Fit, "_step", slow_step)
        monkeypatch.setattr(FeatureBank, "_encode", slow_encode)

    def __call__(self):
        return self.now


def in_minutes(minutes, model, found, work, clock, **more):
    settings = FewShotSettings("discs", minutes=minutes, fit=QUICK, **more)
    return FewShotTrainer(settings, found, model, work, clock=clock, started=clock())


@pytest.mark.parametrize("later", [1.0, 3.0])
def test_minutes_are_kept_also_on_a_machine_that_becomes_busy(tmp_path, model, found, monkeypatch, later):
    clock = Machine(monkeypatch, 1.0, later=later)
    outcome = in_minutes(0.7, model, found, tmp_path, clock).run()
    assert clock.now - 1000 <= 42
    training = outcome.auto.card.training
    assert training["folds"] == 3
    assert training["seconds"] <= 42
    assert training["steps"] >= 4
    if later == 1.0:
        assert clock.now - 1000 > 25, "and they are used"


def test_time_counts_from_the_start_of_the_command(tmp_path, model, found, monkeypatch):
    clock = Machine(monkeypatch, 1.0)
    settings = FewShotSettings("discs", minutes=0.7, fit=QUICK)
    FewShotTrainer(settings, found, model, tmp_path, clock=clock, started=975.0).run()
    assert clock.now - 975 <= 42


def test_folds_are_left_out_when_there_is_no_time_for_them(tmp_path, model, found, monkeypatch):
    clock = Machine(monkeypatch, 2.0)
    outcome = in_minutes(0.5, model, found, tmp_path, clock).run()
    assert clock.now - 1000 <= 30
    assert (outcome.auto.card.training["folds"], outcome.dice) == (0, {})
    assert outcome.auto.card.training["steps"] >= 4


@pytest.mark.parametrize(("step", "features", "folds"), [(8.0, 0.0, None), (0.1, 1.0, None), (2.0, 0.0, 3)])
def test_too_little_time_for_a_model_is_told_before_it_is_spent(
    tmp_path, model, found, monkeypatch, step, features, folds
):
    clock = Machine(monkeypatch, step, features)
    with raises("too-little-time", TrainingError, minutes=0.5) as refused:
        in_minutes(0.5, model, found, tmp_path / "run", clock, folds=folds).run()
    assert refused.value.fields["needed"] >= 1
    assert clock.now - 1000 <= 40
    assert not (tmp_path / "run").exists(), "there is nothing to resume"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, model, found):
    """Of a run that nobody stopped."""
    return a_trainer(model, found, tmp_path_factory.mktemp("whole") / "work").run()


def test_a_run_reports_progress(tmp_path, model, found):
    told = []
    assert a_trainer(model, found, tmp_path / "work", told, folds=0).run() is not None
    assert [one.stage for one in told if one.done == one.total] == ["features", "training"]


def test_a_run_makes_a_model_that_describes_itself(tmp_path, model, outcome):
    card = outcome.auto.card
    assert card.class_names == ("disc", "bar")
    assert (card.base, card.base_key, card.image_size) == (model.name, model.weights_key, SIDE)
    assert card.training["images"] == 6
    assert card.training["folds"] == 3
    assert card.training["images_by_class"] == {"disc": 6, "bar": 6}
    assert outcome.dice["disc"]["images"] == 6, "every image was in one fold"
    outcome.auto.save(tmp_path / "discs.medsam2auto")
    text = (tmp_path / "discs.medsam2auto").read_bytes()
    assert b"_img" not in text
    assert str(tmp_path).encode() not in text
    again = load_auto(tmp_path / "discs.medsam2auto", model)
    ours, theirs = (one.network.predictor.state_dict() for one in (again, outcome.auto))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("moment", [1, 14, 30])
def test_a_run_that_was_stopped_anywhere_ends_in_the_same_model(tmp_path, model, found, outcome, moment):
    wanted, asked = outcome.auto.network.predictor.state_dict(), []

    def stop():
        asked.append(1)
        return len(asked) > moment

    assert a_trainer(model, found, tmp_path / "work").run(stop) is None
    ours = a_trainer(model, found, tmp_path / "work").run().auto.network.predictor.state_dict()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert not (tmp_path / "work" / "features").exists(), "large files are gone"


def test_an_unfinished_run_with_other_settings_is_not_gone_on_with(tmp_path, model, found):
    a_trainer(model, found, tmp_path / "work").run(lambda: True)
    with raises("run-of-other-data", TrainingError):
        a_trainer(model, found, tmp_path / "work", seed=3)
    (tmp_path / "work" / "run.json").write_text("{", encoding="utf-8")
    with raises("run-damaged", TrainingError):
        a_trainer(model, found, tmp_path / "work")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"minutes": 0}, "bad-minutes"),
        ({"minutes": float("nan")}, "bad-minutes"),
        ({"folds": 1}, "bad-folds"),
        ({"decoder": "all"}, "unknown-decoder"),
        ({"steps": 0}, "bad-steps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(more, code):
    with raises(code, TrainingError):
        FewShotSettings("m", **more)


def test_the_report_has_curves_samples_and_spread(tmp_path, found, outcome):
    written = write_report(tmp_path / "report", outcome, found.problems)
    assert [path.name for path in written] == ["report.json", "curves.png", "samples.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written[1:])
    facts = json.loads(written[0].read_text(encoding="utf-8"))
    assert set(facts["curves"]) == {"fold 1", "fold 2", "fold 3", "training"}
    assert [row[0] for row in table(outcome.dice)] == ["disc", "bar"]


# Figures


def test_dice_by_class_counts_what_is_there_or_found():
    truth, found = np.zeros((4, 4), int), np.zeros((4, 4), int)
    truth[0], found[:2] = 1, 1
    found[3, 3] = 2
    first, second, third = dice_by_class(found, truth, 3)
    assert first == pytest.approx(2 * 4 / 12)
    assert second == 0
    assert np.isnan(third)
    assert spread([first, float("nan"), 1.0]) == {"mean": 0.8333, "sd": 0.1667, "least": 0.6667, "images": 2}
    assert spread([float("nan")])["mean"] is None
    assert mean_dice([[1.0, float("nan")], [0.5, 0.25]]) == 0.5
