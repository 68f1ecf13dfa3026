"""The texture adapter: what it adds, its sketch of every class, how it is trained before the predictor."""

import pytest
import torch
from medsam2_core.auto.adapters import TextureAdapter, class_logits
from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
from medsam2_core.auto.fewshot.features import FeatureBank, VariantPlan
from medsam2_core.auto.fewshot.fit import Fit, FitSettings
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.objective import coverage_loss
from medsam2_core.auto.fewshot.settings import FewShotSettings
from medsam2_core.auto.fewshot.start import (
    PretrainedStart,
    choose_queries,
    fit_class_weights,
    initialise,
    read_start,
    texture_only,
)  # fmt: skip
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.auto.fewshot.trainer import FewShotTrainer
from medsam2_core.auto.model import load_auto
from medsam2_core.auto.model_file import read_card, read_tensors, write_file
from medsam2_core.auto.predictor import HEADS, FeatureLevels
from medsam2_core.errors import CheckpointError, TrainingError
from support.auto_model import an_auto_model
from support.command_line import CommandLine
from support.errors import raises
from support.labelled_images import write_pictures
from support.tiny_model import SIDE, tiny_model

QUICK = FitSettings(learning_rate=2e-3, texture_rate=3e-3, warm_up=5)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("pictures"), 6)
    return survey(find_pairs(folder), ReadingOptions(SIDE), parse_classes("1=disc,2=bar"))


def a_textured(model, heads=HEADS, kind="hierarchical"):
    return an_auto_model(model, ("disc", "bar"), encoder="texture", heads=heads, kind=kind)


def a_bank(folder, auto, found, variants=3):
    bank = FeatureBank(folder / "bank", found.images, auto, VariantPlan(variants, Augmentation(), 0))
    bank.fill()
    return bank


def weights_of(auto):
    parts = {"predictor": auto.network.predictor, "texture": auto.texture}
    return {f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# What it adds


def test_a_new_texture_adapter_changes_nothing(model):
    for side in (SIDE, 512):  # above 256 it looks at a reduced image
        seen = TextureAdapter(128, (32, 16), 2)(torch.rand(2, 3, side, side))
        assert [tuple(one.shape) for one in (seen.coarse, seen.middle, seen.fine, seen.pixels)] == [
            (2, 128, side // 16, side // 16),
            (2, 32, side // 8, side // 8),
            (2, 16, side // 4, side // 4),
            (2, 64, 64, 64) if side > SIDE else (2, 64, side // 4, side // 4),
        ]
        assert not any(bool(one.any()) for one in (seen.coarse, seen.middle, seen.fine))


def test_classes_of_a_sketch_compete_with_each_other_and_the_background():
    pixels, looks = torch.randn(2, 5, 4, 4), torch.randn(3, 6)
    logits = torch.einsum("bdhw,kd->bkhw", pixels, looks[:, :-1]) + looks[:, -1].view(1, 3, 1, 1)
    found = class_logits(pixels, looks).sigmoid()
    wanted = torch.cat([torch.zeros(2, 1, 4, 4), logits], 1).softmax(1)[:, 1:]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(class_logits(pixels, looks[:1]), logits[:, :1], atol=1e-5), (
        "against the background alone"
    )


def test_the_sketch_of_each_class_goes_to_that_class():
    sketch = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    levels = FeatureLevels(torch.zeros(2, 16, 1, 1), torch.zeros(2, 4, 2, 2), torch.zeros(2, 2, 4, 4), sketch)
    repeated = levels.repeated(3)
    assert repeated.texture_logits.shape == (6, 1, 4, 4)
    assert repeated.texture_logits[:, 0, 0, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]  # img0c0, img0c1, img0c2, img1c0 …


# Training


def test_it_learns_alone_at_first_and_then_the_predictor_while_its_body_rests(tmp_path, model, found):
    auto = a_textured(model)
    fit = Fit(auto, a_bank(tmp_path, auto, found), found.images, [0, 1, 2, 3], [], QUICK, 0)
    at_first = weights_of(auto)
    assert not fit.run(20, should_stop=lambda: fit.progress.step >= fit.progress.alone)
    assert fit.progress.alone == 12
    now = weights_of(auto)
    first = changed(at_first, now)
    assert first and all(name.startswith("texture.") and ".out." not in name for name in first)
    assert "texture.looks" in first
    # What is kept in the end is an average of the weights: here it is the steps that are looked at.
    for _ in range(3):
        fit.progress.step += 1
        fit._step()
    second = changed(now, weights_of(auto))
    assert any(name.startswith("predictor.") for name in second)
    of_texture = {name.split(".")[1] for name in second if name.startswith("texture.")}
    assert of_texture == {"out", "looks"}


def test_a_fit_that_was_stopped_in_either_phase_goes_on_to_the_same_weights(tmp_path, model, found):
    bank = a_bank(tmp_path, a_textured(model), found)

    def a_fit():
        return Fit(a_textured(model), bank, found.images, [0, 1, 2, 3], [4], QUICK, 0)

    whole, fit = a_fit(), a_fit()
    whole.run(20)
    for stopped_at in (5, 17):
        assert not fit.run(20, should_stop=lambda fit=fit, n=stopped_at: fit.progress.step >= n)
        torch.save(fit.state(), tmp_path / "fit.pt")
        fit = a_fit()
        fit.restore(torch.load(tmp_path / "fit.pt", weights_only=True))
    assert fit.run(20)
    assert not changed(weights_of(whole.auto), weights_of(fit.auto))


def test_what_it_began_with_is_mixed_into_what_it_learned(tmp_path, model, found):
    bank = a_bank(tmp_path, a_textured(model), found)
    at_first = weights_of(a_textured(model))
    fits = [
        Fit(a_textured(model), bank, found.images, [0, 1, 2], [], QUICK, 0, has_start=known)
        for known in (False, True)
    ]
    for fit in fits:
        assert not fit.run(20, should_stop=lambda fit=fit: fit.progress.step >= fit.progress.alone)
    learned = {f"texture.{k}": v for k, v in fits[0]._average.items()}
    name = "stages.2.0.weight"
    mixed = dict(fits[1].auto.texture.named_parameters())[name]
    halfway = (learned[f"texture.texture.{name}"] + at_first[f"texture.{name}"]) / 2
    assert torch.allclose(mixed, halfway, atol=1e-6)


def test_timing_its_steps_teaches_nothing(tmp_path, model, found):
    bank = a_bank(tmp_path, a_textured(model), found)
    fits = [Fit(a_textured(model), bank, found.images, [0, 1, 2], [], QUICK, 0) for _ in range(2)]
    assert fits[0].seconds_a_step() > 0
    for fit in fits:
        fit.run(6)
    assert not changed(*(weights_of(fit.auto) for fit in fits))


def test_it_stops_early_when_the_predictor_does_not_get_better(tmp_path, model, found, monkeypatch):
    auto = a_textured(model)
    fit = Fit(auto, a_bank(tmp_path, auto, found), found.images, [0, 1], [2], QUICK, 0)
    monkeypatch.setattr(fit, "measure", lambda indices: [[0.3, 0.3]])
    assert fit.run(100)
    assert (fit.progress.alone, fit.progress.best_step) == (60, 70)
    assert fit.progress.step == 90, "0.4 of the predictor's 40 steps without a better one, at the next look"
    assert fit.best_share() == pytest.approx(0.25)


def test_a_single_step_is_the_predictors(model, found, tmp_path):
    auto = a_textured(model)
    fit = Fit(auto, a_bank(tmp_path, auto, found), found.images, [0, 1], [], QUICK, 0)
    assert [fit.alone_of(total) for total in (1, 2, 5, 100)] == [0, 1, 3, 60]


def test_fresh_images_are_none_of_the_banks_and_the_same_every_time(model, found, tmp_path):
    bank = a_bank(tmp_path, a_textured(model), found)
    (pictures, labels), (again, _), (others, _) = (bank.fresh([2, 2, 4], number) for number in (0, 0, 1))
    assert pictures.shape == (3, 3, SIDE, SIDE)
    assert labels.shape == (3, SIDE, SIDE)
    assert torch.equal(pictures, again)
    (many, _), known = bank.fresh([2] * 30, 7), bank.pictures(range(6, 9))
    again = sum(any(torch.equal(one, other) for other in [*known, *many[:n]]) for n, one in enumerate(many))
    assert again <= 6, "now and then the augmentation leaves an image as it is"
    assert not torch.equal(others[2], pictures[2])


@pytest.mark.parametrize(("heads", "kind"), [(("box",), "hierarchical"), (HEADS, "linear")])
def test_predictors_without_a_mask_and_linear_ones_take_it_too(tmp_path, model, found, heads, kind):
    auto = a_textured(model, heads, kind)
    fit = Fit(auto, a_bank(tmp_path, auto, found), found.images, [0, 1, 2], [3], QUICK, 0)
    before = weights_of(auto)
    assert fit.run(5)
    assert {name.split(".")[0] for name in changed(before, weights_of(auto))} == {"predictor", "texture"}
    assert fit.labels_of(0).shape == found.images[0].labels_hw.shape


# Starts


def test_a_texture_adapter_learns_beside_the_frozen_encoder_and_is_kept(tmp_path, model, found):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    auto = (
        FewShotTrainer(
            FewShotSettings("discs", steps=12, fit=QUICK, folds=0, texture=True),
            found,
            model,
            tmp_path / "work",
        )
        .run()
        .auto
    )
    assert all(torch.equal(before[n], value) for n, value in model.module.state_dict().items())
    assert auto.card.encoder == "texture"
    assert all(bool(layer.weight.any()) for layer in auto.texture.out), "it began with zeros"
    auto.save(tmp_path / "m.medsam2auto")
    again = load_auto(tmp_path / "m.medsam2auto", model)
    images = found.images[0].letterbox.normalise(torch.rand(1, 3, SIDE, SIDE))
    assert torch.equal(again.levels(images).fine, auto.levels(images).fine)
    assert not torch.equal(auto.levels(images).fine, auto.encode(images).fine)


def test_a_start_for_another_sam_2_gives_its_texture_adapter(model, found, tmp_path):
    known = TextureAdapter(64, (16, 8), 3).state_dict()  # of a model of other widths
    texture = {n: value for n, value in known.items() if not n.startswith("out.") and n != "looks"}
    auto = a_textured(model)
    before = {name: value.clone() for name, value in auto.network.predictor.state_dict().items()}
    start = PretrainedStart({}, torch.empty(0), {}, texture)
    initialise(auto, start)
    ours = auto.texture.state_dict()
    assert all(torch.equal(ours[name], texture[name]) for name in texture)
    bank = a_bank(tmp_path, auto, found, 1)
    assert choose_queries(auto, start, bank, found.images, range(len(found.images))) == [0.0, 0.0]
    assert all(torch.equal(before[n], value) for n, value in auto.network.predictor.state_dict().items())


def test_the_first_sketch_of_a_class_is_the_best_line_through_what_is_seen(model, found, tmp_path):
    auto = a_textured(model)
    bank = a_bank(tmp_path, auto, found, 1)
    levels, labels = bank.read(range(len(found.images)))
    masks = torch.stack([labels == 1, labels == 2], 1).flatten(0, 1)

    def loss():
        with torch.no_grad():
            drawn = auto.add_texture(levels, bank.pictures(range(len(found.images)))).texture_logits
            return float(coverage_loss(drawn.flatten(0, 1), masks))

    body = auto.texture.stages[0][0].weight.clone()
    before = loss()
    fit_class_weights(auto, bank, found.images, range(len(found.images)))
    assert loss() < 0.7 * before
    assert torch.equal(body, auto.texture.stages[0][0].weight)


def test_the_linear_predictor_gets_what_looks_at_pixels():
    texture = {"stages.0.0.weight": torch.zeros(1)}
    assert (
        texture_only(PretrainedStart({"x": torch.zeros(1)}, torch.zeros(1, 10, 128), {}, texture)).predictor
        == {}
    )
    assert texture_only(PretrainedStart({}, torch.empty(0), {}, texture)).texture == texture
    assert texture_only(None) is None


def test_a_start_of_another_version_is_refused(model, found):
    texture = {"stages.0.0.weight": torch.zeros(1)}
    with raises("start-does-not-fit", TrainingError):
        initialise(a_textured(model), PretrainedStart({}, torch.empty(0), {}, texture))


def test_a_start_is_trained_from_the_command_line_on_two_folders_and_from_an_earlier_one(
    tmp_path, capsys, model, monkeypatch
):
    monkeypatch.setattr("medsam2_core.engine.model.load_model", lambda *_: model)
    write_pictures(tmp_path / "data" / "one", 9)
    write_pictures(tmp_path / "more" / "another", 9, first=20)
    medsam2 = CommandLine(capsys)
    words = ("train", "predictor", "--minutes", 0.0001, "--threads", 1)
    assert medsam2(*words, tmp_path / "data", "--out", tmp_path / "first").code == 0
    earlier = tmp_path / "first" / "start.safetensors"
    both = (tmp_path / "data", tmp_path / "more")
    assert medsam2(*words, *both, "--out", tmp_path / "second", "--from", earlier).code == 0
    start = read_start(tmp_path / "second" / "start.safetensors", model)
    assert start.data_sets == ("one", "another")
    assert len(start.queries) == 4
    answer = medsam2(*words, *both[::-1], "--out", tmp_path / "third", "--from", earlier)
    assert answer.code == 2
    assert "give these data sets first" in answer.err
    answer = medsam2(*words, both[0], both[0], "--out", tmp_path / "fourth")
    assert answer.code == 2
    assert "two data sets have this name" in answer.err


# Files


def test_a_file_with_the_texture_adapter_of_an_earlier_version_is_reported(model, found, tmp_path):
    path = tmp_path / "m.medsam2auto"
    a_textured(model).save(path)
    assert load_auto(path, model).texture is not None
    tensors = {name: value for name, value in read_tensors(path).items() if name != "texture.looks"}
    write_file(tmp_path / "old.medsam2auto", read_card(path), tensors, overwrite=False)
    with raises("auto-model-version", CheckpointError):
        load_auto(tmp_path / "old.medsam2auto", model)
