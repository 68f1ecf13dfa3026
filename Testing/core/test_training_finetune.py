"""Fine-tuning: it learns what it is to learn and nothing else, from every layout, for every SAM 2."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from medsam2_core.engine.architecture import STOCK_CONFIGS, build_from, read_config
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.training import network
from medsam2_core.training.augmentation import FINE_TUNING
from medsam2_core.training.finetune import (
    Division,
    FineTuner,
    FineTuning,
    changed_state,
    parse_prompts,
    suited_to,
)
from medsam2_core.training.loader import Batch
from medsam2_core.training.losses import SAM2_LOSS, LossWeights, mask_loss
from medsam2_core.training.objective import Objective, Stage
from medsam2_core.training.parts import PARTS, LowRankUpdate, plain_state, prepare
from support.errors import raises
from support.fine_tuning import cases_of, curve_of, quick
from support.labelled_images import write_pictures
from support.model import stir
from support.reference_layouts import write_slice_by_slice
from support.tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return cases_of(write_pictures(tmp_path_factory.mktemp("pictures"), 7))


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return cases_of(write_slice_by_slice(tmp_path_factory.mktemp("organs")))


def a_stock_model(config: str, side: int = 64) -> SegmentationModel:
    """A published architecture with random weights in which no branch hides."""
    torch.manual_seed(0)
    module = build_from(read_config(config, side), config)
    stir(module, 5.0, 0)
    return SegmentationModel.of(module, config, STOCK)


# What is trained --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
def test_only_what_is_asked_for_changes(model, pictures, organs, tmp_path, parts):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    clips = parts in ("memory", "all")
    settings = quick(parts=parts, steps=2, frames=3 if clips else 1, patience=0)
    tuner = FineTuner(settings, tmp_path, model, organs if clips else pictures)
    assert tuner.run()
    after = tuner.state()
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if parts == "lora":
        assert changed and all(name.endswith(".weight") for name in changed)
        assert any(name.startswith("image_encoder.trunk") for name in changed)
        assert any(".transformer." in name for name in changed)
        assert not any(name.startswith("memory") for name in changed)
    else:
        assert changed and all(name.startswith(PARTS[parts]) for name in changed)
        assert any(name.startswith("image_encoder") for name in changed) is (parts == "all")
    # The model it started from is shared with others.
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_low_rank_updates_start_as_nothing_and_are_merged_exactly(model):
    import copy

    module = copy.deepcopy(model.module)
    plain = {name: value.clone() for name, value in module.state_dict().items()}
    names = prepare(module, "lora")
    assert names and all(name.endswith((".up", ".down")) for name in names)
    merged = plain_state(module)
    assert merged.keys() == plain.keys() and all(torch.equal(merged[name], plain[name]) for name in plain)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    ordinary = copy.deepcopy(model.module)
    ordinary.load_state_dict(plain_state(module))
    images = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        ours, theirs = (network.encode(one.eval(), images).maps for one in (module, ordinary))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    update = LowRankUpdate(torch.zeros(6, 5, 3, 3), rank=2)
    update.up.data.normal_()
    matrix = update(torch.zeros(6, 5, 3, 3)).detach().flatten(1)
    assert torch.linalg.matrix_rank(matrix) == 2


def test_what_did_not_change_is_stored_as_the_base_has_it():
    base = {"a": torch.tensor([1.5, 2.5], dtype=torch.float16), "b": torch.tensor([1.0], dtype=torch.float16)}
    trained = {"a": torch.tensor([1.5, 2.5]), "b": torch.tensor([1.00001])}
    stored = changed_state(base, trained)
    assert stored["a"] is base["a"] and stored["b"].dtype == torch.float32


def test_the_encoder_learns_more_slowly_the_deeper_it_lies():
    from medsam2_core.training.parts import parameter_groups

    module = a_stock_model("sam2.1_hiera_t").module
    prepare(module, "all")
    stage = Stage("s", 1, 1, 1, learning_rate=1e-3, trunk_factor=0.5, layer_decay=0.8)
    named = {id(p): name for name, p in module.named_parameters()}
    peaks = {named[id(p)]: g["peak"] for g in parameter_groups(module, None, stage, 0.1) for p in g["params"]}
    assert set(peaks) == set(named.values())
    assert peaks["sam_mask_decoder.iou_token.weight"] == pytest.approx(1e-3)
    blocks = [peaks[f"image_encoder.trunk.blocks.{n}.attn.qkv.weight"] for n in range(12)]
    assert blocks == pytest.approx([5e-4 * 0.8 ** (11 - n) for n in range(12)])
    assert peaks["image_encoder.trunk.patch_embed.proj.weight"] == pytest.approx(blocks[0])
    assert peaks["image_encoder.neck.convs.0.conv.weight"] == pytest.approx(5e-4)


# Published models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["decoder+memory", "all"])
def test_the_recipe_of_medical_sam2_learns_two_organs(tmp_path, parts):
    """SAM 2.1 tiny with a thin trunk, random weights, 64 px, clips of two slices, every second prompted.

    In its code decoder and memory learn: the image encoder stays as it was, byte for byte.
    """
    config = read_config("sam2.1_hiera_t", 64)
    config["image_encoder"]["trunk"]["embed_dim"] = 24
    config["image_encoder"]["neck"]["backbone_channel_list"] = [192, 96, 48, 24]
    config["memory_attention"]["num_layers"] = 1
    data = write_slice_by_slice(tmp_path / "data", training=2, test=0, slices=12)
    torch.manual_seed(0)
    model = SegmentationModel.of(build_from(config, "t"), "t", STOCK)
    settings = FineTuning(
        steps=50, frames=2, batch=1, prompt_every=2, prompts=(0.5, 0.5, 0.0, 0.0), corrections=0, parts=parts,
        learning_rate=5e-4, encoder_factor=1.0, layer_decay=1.0, clip=1.0, warm_up=5, report_every=1,
        loss=LossWeights(), save_every=1000, patience=0, axes=("axial",),
    )  # fmt: skip
    tuner = FineTuner(settings, tmp_path / "run", model, cases_of(data))
    assert tuner.run()
    losses = [line["mask"] for line in curve_of(tmp_path / "run") if "mask" in line]
    assert np.mean(losses[-8:]) < np.mean(losses[:4]) / 2, losses
    before, after = model.module.state_dict(), tuner.state()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for part in ("sam_mask_decoder", "sam_prompt_encoder", "memory_attention", "memory_encoder"):
        assert any(name.startswith(part) for name in changed), part
    assert any(name.startswith("image_encoder") for name in changed) is (parts == "all")


@pytest.mark.parametrize("config", STOCK_CONFIGS)
def test_every_published_architecture_takes_a_step(config, organs, tmp_path, campaign):
    if config[-1] in "+l" and campaign == 1:
        pytest.skip("larger ones in `make campaign`")
    model = a_stock_model(config)
    settings = quick(steps=1, frames=3, batch=1, prompt_every=2, save_every=9, patience=0)
    tuner = FineTuner(settings, tmp_path, model, organs)
    assert tuner.settings.stages[0].loss == SAM2_LOSS
    assert tuner.run()
    (line,) = [line for line in curve_of(tmp_path) if "mask" in line]
    assert "skipped" not in line and line["mask"] > 0
    before, after = model.module.state_dict(), tuner.state()
    for part in ("image_encoder", "sam_mask_decoder", "memory_attention", "memory_encoder"):
        assert any(not torch.equal(before[n], after[n]) for n in after if n.startswith(part)), part


# Prompts, memory, absence -----------------------------------------------------------------------------------


def a_clip(model, present: list[bool]) -> Batch:
    """One object of a clip, on some slices."""
    size = model.image_size
    objects = torch.zeros(1, len(present), size, size, dtype=torch.bool)
    for n, is_there in enumerate(present):
        objects[0, n, 16:40, 16:40] = is_there
    images = torch.rand(1, len(present), 3, size, size, generator=torch.Generator().manual_seed(1))
    regions = objects.to(torch.uint8)
    return Batch(images, objects, regions, torch.tensor([0]), torch.ones(1, len(present), 3), ["cases"])


def clip_stage(**changes) -> Stage:
    usual = {
        "corrections": 0,
        "kinds": (1.0, 0.0, 0.0, 0.0),
        "tracked_corrections": 0.0,
        "affinity_weight": 0.0,
    }
    return Stage("s", steps=1, frames=3, batch=1, learning_rate=1e-3, **{**usual, **changes})


@pytest.fixture
def written(monkeypatch):
    """What clips write into their memory: whether prompted, present, and the logits."""
    seen, write = [], network.ObjectMemory.write

    def note(memory, frame, here, answer, logits, prompted):
        seen.append((prompted, bool(answer.presence > 0), logits.detach().clone()))
        write(memory, frame, here, answer, logits, prompted)

    monkeypatch.setattr(network.ObjectMemory, "write", note)
    return seen


@pytest.mark.parametrize("stock", [False, True])
def test_an_object_that_is_not_there_is_given_as_an_empty_mask(model, written, stock):
    one = a_stock_model("sam2.1_hiera_t") if stock else model
    objective = Objective(one.module, None, one.recipe)
    batch = a_clip(one, [True, False, False, True])
    losses = objective.losses(batch, clip_stage(prompt_every=2), torch.Generator().manual_seed(0))
    assert [prompted for prompted, _, _ in written] == [True, False, True]
    _, is_there, logits = written[2]
    assert not is_there and (logits < 0).all() and len(torch.unique(logits)) == 1
    assert all(torch.isfinite(value) for value in losses.values())


def test_masks_are_taken_as_they_are_by_published_models(written):
    one = a_stock_model("sam2_hiera_t")
    objective = Objective(one.module, None, one.recipe)
    stage = clip_stage(kinds=(0.0, 0.0, 0.0, 1.0))
    losses = objective.losses(a_clip(one, [True, True, True]), stage, torch.Generator().manual_seed(0))
    prompted, is_there, logits = written[0]
    assert prompted and is_there and set(logits.unique().tolist()) == {-10.0, 10.0}
    assert (logits[0, 0, 4:10, 4:10] > 0).all() and (logits > 0).sum() == 36
    assert losses["mask"] > 0  # of the slices that follow


def test_tracking_gets_the_mask_before_only_where_the_model_carries_it(model, monkeypatch):
    seen, logits = [], torch.ones(2, 1, 16, 16)
    nothing = network.Answer(logits, logits, logits, logits)
    monkeypatch.setattr(
        Objective, "decode", lambda _self, _embedding, _here, said: seen.append(said) or nothing
    )
    Objective(model.module, None, model.recipe).follow(logits, None, logits)
    assert seen.pop().previous_logits is logits
    stock = a_stock_model("sam2.1_hiera_t")
    assert Objective(stock.module, None, STOCK).follow(logits, None, logits).ambiguous
    assert seen.pop().previous_logits is None


@pytest.mark.parametrize("stock", [False, True])
def test_self_sorting_memory_reads_what_the_recent_one_does_while_there_is_room(model, stock):
    """Two prompted slices: both policies attend to the same, in the same places in time."""
    one = a_stock_model("sam2.1_hiera_t") if stock else model
    objective = Objective(one.module.eval(), None, one.recipe)
    stages = [clip_stage(prompt_every=1, memory=memory) for memory in ("recent", "self-sorting")]
    found = []
    for stage in stages:
        memory = objective.memory(stage, 3)
        encoded = network.encode(one.module, a_clip(one, [True] * 3).images[0])
        target = torch.zeros(1, 16, 16)
        target[:, 4:10, 4:10] = 1
        for frame in range(2):
            here = encoded.of(torch.tensor([frame]))
            answer = network.given(one.module, one.recipe, here, target)
            memory.write(frame, here, answer, answer.logits[:, :1], prompted=True)
        found.append(memory.read(2, encoded.of(torch.tensor([2]))).detach())
    scale = float(found[0].std())
    assert (found[0] - found[1]).abs().max() < 0.03 * scale + 0.02  # one keeps memories in half the bits


def test_self_sorting_memory_trains_the_memory_encoder(model, organs, tmp_path):
    settings = quick(
        steps=1, frames=4, batch=1, parts="memory", memory="self-sorting", memory_size=2, patience=0
    )
    tuner = FineTuner(settings, tmp_path, model, organs)
    before = {name: value.clone() for name, value in tuner.module.state_dict().items()}
    tuner.run()
    after = tuner.module.state_dict()
    assert any(not torch.equal(before[n], after[n]) for n in after if n.startswith("memory_encoder"))


def test_the_focal_loss_is_what_paper_and_pencil_give():
    logits, targets = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])
    p = torch.sigmoid(torch.tensor(2.0))
    focal = (0.25 * 0.25 * np.log(2) + 0.75 * float(p**2 * -torch.log(1 - p))) / 2
    only = LossWeights(bce=0, focal=20, dice=0)
    assert float(mask_loss(logits, targets, only)) == pytest.approx(20 * focal, rel=1e-5)


# Data -------------------------------------------------------------------------------------------------------


def test_patients_held_aside_are_never_trained_on(pictures):
    for seed in range(4):
        division = Division.of(pictures, seed)
        assert len(division.training) == 6 and len(division.aside) == 1
        assert division.measured == division.aside
        assert not {id(case) for case in division.training} & {id(case) for case in division.aside}


def test_what_the_data_holds_out_is_only_measured(organs):
    division = Division.of(organs, 0)
    assert [case.pair.name for case in division.training] == ["img0000", "img0001"]  # too few to hold aside
    assert division.aside == [] and [case.pair.name for case in division.measured] == ["img0100"]


def test_volumes_are_cut_along_every_axis_asked_for(model, organs, tmp_path):
    tuner = FineTuner(quick(axes=("axial", "coronal")), tmp_path, model, organs)
    shapes = [stack.labels_kji.shape for stack in tuner._stacks]
    assert shapes == [(10, 64, 64), (64, 10, 64)] * 2
    assert all(stack.image_kji.dtype == np.uint8 for stack in tuner._stacks)


def test_clips_run_in_both_directions(model, organs, tmp_path):
    tuner = FineTuner(quick(frames=3, augmentation=replace(FINE_TUNING, thin=False)), tmp_path, model, organs)
    views = tuner.views(tuner.settings.stages[0])
    appears, ends = 0, 0
    for step in range(12):
        for batch in views[step]:
            areas = batch.objects.flatten(2).sum(2)
            appears += int((areas[:, -1] > areas[:, 0]).sum())
            ends += int((areas[:, -1] < areas[:, 0]).sum())
    assert appears and ends


@pytest.mark.parametrize(
    ("text", "shares"),
    [("box", (1, 0, 0, 0)), ("box,click", (0.5, 0.5, 0, 0)), ("mask=3,points=1", (0, 0, 0.25, 0.75))],
)
def test_prompts_have_shares(text, shares):
    assert parse_prompts(text) == pytest.approx(shares)


@pytest.mark.parametrize("text", ["", "lasso", "box=-1", "box=x", "box=0", "box=nan", "box=inf"])
def test_prompts_that_mean_nothing_are_refused(text):
    with raises("prompts-syntax"):
        parse_prompts(text)


@pytest.mark.parametrize(
    "change",
    [
        {"minutes": float("nan")},
        {"epochs": -1},
        {"learning_rate": 0},
        {"batch": 0},
        {"frames": 99},
        {"parts": "x"},
    ],
)
def test_settings_that_cannot_be_used_are_refused(change):
    with raises("unknown-parts" if "parts" in change else "bad-setting"):
        FineTuning(**change)


# Runs -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not(model, pictures, tmp_path):
    FineTuner(quick(), tmp_path / "whole", model, pictures).run()
    for steps in (1, 4, 7):
        tuner = FineTuner(quick(), tmp_path / "parts", model, pictures)
        assert not tuner.run(lambda tuner=tuner, steps=steps: tuner.step >= steps)
    last = FineTuner(quick(), tmp_path / "parts", model, pictures)
    assert last.run()
    whole, parts = (curve_of(tmp_path / name) for name in ("whole", "parts"))
    assert [line for line in parts if "validation" in line] == [
        line for line in whole if "validation" in line
    ]
    losses = [{line["step"]: line for line in one if "mask" in line} for one in (whole, parts)]
    assert losses[0] == losses[1]


def test_epochs_count_pictures(model, pictures, tmp_path):
    tuner = FineTuner(quick(steps=0, epochs=2.0, batch=4), tmp_path, model, pictures)
    assert tuner.settings.stages[0].steps == 3  # two times six pictures in fours


def test_minutes_are_kept(model, pictures, tmp_path):
    """Whether steps take as long as the first ones did, or four times as long."""
    for pace, shortest in ((1.0, 120), (4.0, 230)):
        now, calls = 0.0, 0

        def clock(pace=pace) -> float:
            nonlocal now, calls
            calls += 1
            now += 0.5 * (pace if calls > 20 else 1.0)
            return now

        settings = quick(steps=0, minutes=4.0, patience=0, batch=1, passes=1, corrections=0, save_every=50)
        tuner = FineTuner(settings, tmp_path / str(pace), model, pictures, clock=clock)
        tuner.run()
        assert shortest < tuner.seconds < 300, (pace, tuner.done)


def test_it_ends_early_when_what_is_held_aside_gets_no_better(model, pictures, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.6, 0.9])
    monkeypatch.setattr(FineTuner, "scores", lambda *_: {"mean": {"box": next(scores)}})
    tuner = FineTuner(quick(validate_every=2, patience=2), tmp_path, model, pictures)
    kept = []

    def note(line):
        if "validation" in line:
            kept.append({name: value.clone() for name, value in tuner.average.items()})

    monkeypatch.setattr(tuner, "_report_to", note)
    assert tuner.run()
    assert tuner.done == [{"stage": 0, "steps": 12, "best": 4}] and len(kept) == 4
    assert all(torch.equal(tuner.average[name], kept[1][name]) for name in tuner.average)
    assert tuner.facts()["steps"] == 4


def test_a_run_of_other_cases_or_settings_is_not_resumed(model, pictures, organs, tmp_path):
    tuner = FineTuner(quick(), tmp_path, model, pictures)
    tuner.run(lambda: True)
    with raises("run-differs", setting="data"):
        FineTuner(quick(), tmp_path, model, organs)
    with raises("run-differs", setting="learning_rate"):
        FineTuner(quick(learning_rate=2e-3), tmp_path, model, pictures)
    with raises("run-differs", setting="base"):
        FineTuner(quick(), tmp_path, tiny_model(seed=1), pictures)
    FineTuner(quick(threads=2, save_every=1), tmp_path, model, pictures)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"frames": 6}, "--clip"), ({"batch": 4, "passes": 1}, "--batch"),
        ({"passes": 2}, "--train"), ({"passes": 2, "parts": "decoder"}, "--image-size"),
    ],
)  # fmt: skip
def test_a_full_memory_names_the_option_to_lower(model, organs, tmp_path, monkeypatch, change, option):
    tuner = FineTuner(quick(**change), tmp_path, model, organs)

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(tuner.objective, "losses", full)
    with raises("training-memory", option=option):
        tuner.run()


def test_what_is_trained_by_default_depends_on_the_model():
    small, tiny = tiny_model(), tiny_model(STOCK)
    assert (suited_to(small)["parts"], suited_to(small)["learning_rate"]) == ("all", 2e-4)
    assert suited_to(tiny)["parts"] == "decoder+memory" and suited_to(tiny)["learning_rate"] == 5e-5
    assert suited_to(tiny, parts="lora")["learning_rate"] == pytest.approx(2.5e-4)
    assert suited_to(small, parts="decoder", learning_rate=1e-3)["learning_rate"] == 1e-3
    assert (suited_to(small)["frames"], suited_to(small)["batch"]) == (1, 8)
    assert (suited_to(small, clip=6)["frames"], suited_to(small, clip=6)["batch"]) == (6, 2)
    assert suited_to(small, clip=6, batch=3)["batch"] == 3
