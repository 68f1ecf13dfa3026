"""The simulated user of training, the losses, and that training asks the network what the engine asks it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from medsam2_core.engine.encoder import SliceEncoder, resized
from medsam2_core.engine.model import SegmentationModel, build_module
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.engine.zoom import Region
from medsam2_core.training import network
from medsam2_core.training.base import EMBEDDED_RECIPE
from medsam2_core.training.loader import Batch
from medsam2_core.training.losses import AffinityHeads, mask_loss, true_iou
from medsam2_core.training.objective import Objective, Stage, answer_losses, coverage, disturbed, moved
from medsam2_core.training.trainer import schedule
from medsam2_core.training.users import Prompts, corrected, first_prompts, jittered_boxes
from medsam2_core.training.validation import dice, spearman, tracked_figures
from support.model import prompt
from support.training_folder import tiny_config

S = 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_targets() -> torch.Tensor:
    """(4, S, S): a disc, a box at the border, two pieces, a single cell."""
    y, x = torch.meshgrid(torch.arange(S), torch.arange(S), indexing="ij")
    targets = torch.zeros(4, S, S)
    targets[0] = ((x - 12) ** 2 + (y - 20) ** 2 <= 49).float()
    targets[1, :10, :6] = 1
    targets[2, 4:9, 4:9] = targets[2, 20:30, 18:30] = 1
    targets[3, 17, 5] = 1
    return targets


# First prompts ----------------------------------------------------------------------------------------------


def test_boxes_are_off_by_five_percent_at_most():
    tight = torch.tensor([[5, 13, 20, 28], [0, 0, 6, 10], [4, 4, 30, 30], [5, 17, 6, 18]]) / S
    extent = (tight[:, 2:] - tight[:, :2]).repeat(1, 2)
    moves = []
    for seed in range(40):
        boxes = jittered_boxes(some_targets() > 0.5, 0.05, generator(seed))
        moves.append((boxes - tight) / extent)
    moves = torch.stack(moves)
    assert moves.abs().max() <= 0.05 + 1e-6
    assert moves.max() > 0.045 and moves.min() < -0.045
    assert torch.allclose(jittered_boxes(some_targets() > 0.5, 0.0, generator()), tight)


def test_clicks_lie_inside():
    targets = some_targets()
    for seed in range(200):
        prompts = first_prompts(targets, "click", generator(seed))
        assert prompts.boxes_xyxy is None and prompts.labels.tolist() == [[1.0]] * 4
        x, y = (prompts.points_xy[:, 0] * S).long().unbind(1)
        assert (targets[torch.arange(4), y, x] == 1).all()


def test_an_object_thinner_than_a_cell_is_clicked_and_boxed_where_it_covers_most():
    targets = torch.zeros(1, S, S)
    targets[0, 9, 3:20] = 0.3
    targets[0, 9, 11] = 0.4
    for seed in range(20):
        x, y = (first_prompts(targets, "click", generator(seed)).points_xy[0, 0] * S).long().tolist()
        assert (x, y) == (11, 9)
    box = first_prompts(targets, "box", generator()).boxes_xyxy[0] * S
    assert torch.allclose(box, torch.tensor([11.0, 9, 12, 10]), atol=0.06)


def test_rough_masks_are_nearly_the_object():
    targets = some_targets()[:3]
    overlaps = []
    for seed in range(20):
        rough = first_prompts(targets, "mask", generator(seed)).previous_logits
        assert rough.shape == (3, 1, S, S) and rough.abs().max() <= 10
        overlaps.append(dice(rough, targets))
    overlaps = torch.stack(overlaps)
    assert overlaps.mean() > 0.7
    assert overlaps.max() < 1


def test_tokens_are_a_box_then_clicks_in_pixels():
    prompts = Prompts(
        torch.tensor([[0.25, 0.5, 0.75, 1.0]]), torch.tensor([[[0.5, 0.5]]]), torch.ones(1, 1), None
    )
    coords, labels = prompts.tokens(64)
    assert coords.tolist() == [[[15.5, 31.5], [47.5, 63.5], [31.5, 31.5]]]
    assert labels.tolist() == [[2, 3, 1]]
    coords, labels = Prompts.only(torch.zeros(2, 1, 4, 4)).tokens(64)
    assert labels.tolist() == [[-1], [-1]]


# Corrections ------------------------------------------------------------------------------------------------


def test_a_correction_clicks_into_the_error():
    targets = some_targets()
    missed = torch.full((4, 1, S, S), -3.0)
    for seed in range(20):
        said = corrected(Prompts.only(missed), missed, targets, generator(seed))
        x, y = (said.points_xy[:, 0] * S).long().unbind(1)
        assert said.labels[:, 0].tolist() == [1] * 4
        assert (targets[torch.arange(4), y, x] == 1).all()
        everything = -missed
        said = corrected(Prompts.only(everything), everything, targets, generator(seed))
        x, y = (said.points_xy[:, 0] * S).long().unbind(1)
        assert said.labels[:, 0].tolist() == [0] * 4
        assert (targets[torch.arange(4), y, x] == 0).all()


def test_a_correction_prefers_the_larger_error():
    target = torch.zeros(1, S, S)
    target[0, 4:24, 4:24] = 1
    answer = torch.full((1, 1, S, S), -3.0)
    answer[0, 0, 4:24, 4:12] = 3  # most is missing …
    answer[0, 0, 28:30, 28:30] = 3  # … and a little too much
    labels = [
        corrected(Prompts.only(answer), answer, target, generator(seed)).labels.item() for seed in range(20)
    ]
    assert labels == [1] * 20


def test_a_perfect_mask_is_not_clicked():
    targets = some_targets()
    perfect = (targets * 20 - 10)[:, None]
    said = corrected(Prompts.only(perfect), perfect, targets, generator())
    assert said.labels.tolist() == [[-1]] * 4
    assert torch.equal(said.previous_logits, perfect)


def test_corrections_add_up():
    targets = some_targets()
    prompts = first_prompts(targets, "box", generator())
    for turn in range(3):
        logits = torch.randn(4, 1, S, S, generator=generator(turn))
        prompts = corrected(prompts, logits, targets, generator(turn))
    assert prompts.points_xy.shape == (4, 3, 2) and prompts.labels.shape == (4, 3)
    assert prompts.boxes_xyxy is not None


# Losses -----------------------------------------------------------------------------------------------------


def test_the_mask_loss_is_what_paper_and_pencil_give():
    targets = torch.zeros(1, 4, 4)
    targets[0, :2, :2] = 1  # a quarter: no extra weight
    undecided = mask_loss(torch.zeros(1, 4, 4), targets)
    assert float(undecided) == pytest.approx(2 * math.log(2) + 1 - (2 * 2 + 1) / (8 + 4 + 1))
    small = torch.zeros(1, 8, 8)
    small[0, 0, 0:4] = 1  # a sixteenth: BCE counts twice as much
    undecided = mask_loss(torch.zeros(1, 8, 8), small)
    assert float(undecided) == pytest.approx(4 * math.log(2) + 1 - (2 * 2 + 1) / (32 + 4 + 1))
    sure = (targets * 2 - 1) * 40
    assert float(mask_loss(sure, targets)) == pytest.approx(0, abs=1e-6)
    assert float(mask_loss(-sure, targets)) == pytest.approx(80 + 1 - 1 / (12 + 4 + 1), rel=1e-5)


def test_iou_and_dice_count_pixels():
    target = torch.zeros(3, 4, 4)
    target[:2, :2, :2] = 1
    logits = torch.full((3, 1, 4, 4), -1.0)
    logits[0, 0, :2, :] = 1  # 8 pixels, 4 of them right
    assert true_iou(logits, target[:, None])[:, 0].tolist() == [0.5, 0, 1]
    assert dice(logits, target).tolist() == pytest.approx([2 * 4 / 12, 0, 1])


def test_figures_of_tracked_slices_are_what_paper_and_pencil_give():
    seen = {
        "distance": torch.tensor([1, 2, 3, 4, 5, 6]),
        "present": torch.tensor([1, 1, 1, 1, 0, 0]),
        "score": torch.tensor([2.0, 2, -1, 2, -3, 1]),
        "iou": torch.tensor([0.9, 0.6, 0.5, 0.2, 0, 0]),
        "predicted_iou": torch.tensor([0.8, 0.7, 0.3, 0.4, 0.1, 0.1]),
        "dice": torch.tensor([0.95, 0.75, 0.0, 0.3, 1.0, 0.0]),
        "gain": torch.tensor([0.0, 0.1, -0.2, 0.1, 0.0, 0.0]),
        "kind": torch.zeros(6, dtype=torch.long),
    }
    assert tracked_figures(seen) == {
        "box 1": 0.95, "box 2-3": 0.375, "box 4+": 0.3,
        "absent precision": 0.5, "absent recall": 0.5,
        "iou rank": 0.8, "iou gap": 0.0, "gain": 0.0, "worse": 0.1667,
    }  # fmt: skip
    assert float(spearman(torch.tensor([1.0, 2, 3]), torch.tensor([30.0, 20, 10]))) == pytest.approx(-1)


def test_affinity_knows_regions_and_ignores_what_is_unknown():
    heads = AffinityHeads(2, levels=1, width=2)
    with torch.no_grad():
        heads.heads[0].weight.copy_(torch.eye(2)[..., None, None])
        heads.heads[0].bias.zero_()
        heads.scale.fill_(8.0)
        heads.bias.fill_(4.0)  # +4 for equal, -4 for orthogonal features
    regions = torch.zeros(1, 16, 16, dtype=torch.uint8)
    regions[:, :, 8:] = 1
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, 0, :, :2] = maps[:, 1, :, 2:] = 1

    def loss(regions):
        return float(heads([maps], regions, 64, generator()).detach())

    right = loss(regions)
    assert right == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-3)
    wrong = torch.zeros_like(regions)
    wrong[:, 8:] = 1
    assert loss(wrong) > 20 * right
    assert loss(torch.full_like(regions, 255)) == 0
    half = torch.where(regions == 1, 255, regions)  # against unknown, a region is still another one
    assert loss(half.to(torch.uint8)) == pytest.approx(right, rel=1e-3)


def test_an_absent_object_teaches_presence_alone():
    answer = network.Answer(
        torch.randn(2, 4, S, S), torch.rand(2, 4), torch.zeros(2, 4, 8), torch.zeros(2, 1)
    )
    losses, errors = answer_losses(answer, torch.zeros(2, S, S))
    assert float(losses["mask"]) == float(losses["iou"]) == 0 and errors.tolist() == [0, 0]
    assert float(losses["presence"]) == pytest.approx(math.log(2))


def test_one_click_may_be_answered_by_any_of_three():
    target = some_targets()[:1]
    logits = torch.randn(1, 4, S, S, generator=generator())
    answer = network.Answer(logits, torch.full((1, 4), 0.5), torch.zeros(1, 4, 8), torch.zeros(1, 1))
    logits[:, 3] = (target * 2 - 1) * 20
    unsure = replace(answer, ambiguous=True)
    best = answer_losses(unsure, target)[0]["mask"]
    assert best < 0.3 * answer_losses(answer, target)[0]["mask"]
    answer.iou[0] = torch.tensor([0.9, 0.1, 0.2, 0.8])
    assert torch.equal(unsure.best_logits, logits[:, 3:4])
    assert torch.equal(answer.best_logits, logits[:, :1])


@pytest.mark.parametrize("share, spoken_about", [(0.0, [True, False]), (1.0, [True, True])])
def test_a_slice_that_was_corrected_conditions_the_others(model, monkeypatch, share, spoken_about):
    heads = AffinityHeads(model.module.hidden_dim)
    said, write = [], network.ObjectMemory.write

    def note(memory, frame, here, answer, logits, prompted):
        said.append(prompted)
        write(memory, frame, here, answer, logits, prompted)

    monkeypatch.setattr(network.ObjectMemory, "write", note)
    objects = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
    objects[..., 16:48, 16:48] = True
    regions = objects.to(torch.uint8)
    batch = Batch(
        torch.rand(1, 3, 3, 64, 64), objects, regions, torch.tensor([0]), torch.ones(1, 3, 3), ["discs"]
    )
    stage = Stage("clips", steps=1, frames=3, batch=1, learning_rate=1e-3, tracked_corrections=share)
    losses = Objective(model.module, heads, EMBEDDED_RECIPE).losses(batch, stage, generator())
    assert said == spoken_about
    assert all(torch.isfinite(value) for value in losses.values())


def test_a_correction_that_makes_it_worse_costs_extra(model, monkeypatch):
    objects = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    objects[..., 16:48, 16:48] = True
    batch = Batch(
        torch.rand(1, 1, 3, 64, 64),
        objects,
        objects.to(torch.uint8),
        torch.tensor([0]),
        torch.ones(1, 1, 3),
        ["r"],
    )
    stage = Stage("slices", steps=1, frames=1, batch=1, learning_rate=1e-3, corrections=1, worse_weight=2.0)
    objective = Objective(model.module, AffinityHeads(model.module.hidden_dim), EMBEDDED_RECIPE)
    target = coverage(batch.objects, network.encode(model.module, batch.images[:, 0]))[:, 0]

    def answering(*factors):
        def prompted(*_):
            for factor in factors:
                logits = ((target * 2 - 1) * factor)[:, None].expand(-1, 4, -1, -1)
                yield network.Answer(logits, torch.ones(1, 4), torch.zeros(1, 4, 8), torch.ones(1, 1))

        monkeypatch.setattr(objective, "prompted", prompted)
        return objective.losses(batch, stage, generator())["worse"]

    errors = [float(mask_loss((target * 2 - 1) * factor, target)) for factor in (3.0, -1.0)]
    assert float(answering(3.0, -1.0)) == pytest.approx(2 * (errors[1] - errors[0]) / 2, rel=1e-4)
    assert float(answering(-1.0, 3.0)) == 0


def test_logits_follow_the_square_they_are_seen_in():
    """Cells of the new square show what the old one showed there."""
    logits = torch.full((1, 1, S, S), -10.0)
    logits[..., 8:24, 8:24] = 5
    square = torch.tensor([[0.0, 0.0, 1.0]])
    assert moved(logits, square, square) is logits
    closer = moved(logits, square, torch.tensor([[0.0, 0.0, 0.5]]))
    assert (closer[..., 1:-1, 1:-1] > 0).all()
    aside = moved(logits, square, torch.tensor([[0.25, 0.0, 1.0]]))  # a quarter of the side down
    assert torch.equal(aside[..., : S - 8, :] > 0, logits[..., 8:, :] > 0)
    assert (aside[..., S - 8 :, :] == -10).all()


def test_a_carried_mask_is_disturbed_but_stays_where_it_is():
    logits = torch.full((40, 1, S, S), -10.0)
    logits[..., 10:22, 10:22] = 10
    changed = disturbed(logits, generator())
    assert torch.equal(changed, disturbed(logits, generator()))
    left_out = (changed == 0).flatten(1).all(1)
    assert 2 <= int(left_out.sum()) <= 16
    areas = (changed > 0).flatten(1).sum(1)[~left_out].float()
    assert areas.std() > 10 and 0.5 < areas.mean() / 144 < 2
    assert (changed[~left_out][:, 0, 14:18, 14:18] > 0).float().mean() > 0.9
    nothing = torch.full((3, 1, S, S), -10.0)
    assert (disturbed(nothing, generator()) <= -9.9).all()


def test_the_learning_rate_warms_up_and_falls():
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert 0.02 <= rates[-1] < 0.025


# Training and engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny network that thinks that objects are there."""
    torch.manual_seed(3)
    module = build_module(tiny_config(tmp_path_factory.mktemp("config")))
    with torch.no_grad():
        module.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
        for mlp in module.sam_mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(20)
    # The box's prior is added to the network's answer in use, not in training.
    return SegmentationModel.of(module, "tiny", replace(EMBEDDED_RECIPE, box_prior=0.0))


@pytest.fixture
def asked(model):
    """What the prompt encoder was given, call by call."""
    calls = []
    encoder = model.module.sam_prompt_encoder

    def note(_module, _args, given):
        (coords, labels), canvas = given["points"], given["masks"]
        calls.append((coords.clone(), labels.clone(), canvas.clone()))

    hook = encoder.register_forward_pre_hook(note, with_kwargs=True)
    yield calls
    hook.remove()


BOX_OF_SLICE = (4.0, 3.0, 11.0, 12.0)  # slice pixels, centres at integers


def two_sides(model, frames=3):
    """The same slices for a tracker and for training. So small that zoom always shows them whole."""
    images = np.random.default_rng(2).integers(0, 255, (frames, 16, 16), dtype=np.uint8)
    images = np.repeat(images[..., None], 3, axis=-1)
    tracker = Tracker(model, SliceEncoder(model, ArrayImages(images)))
    whole = Region(0, 0, 16, 16)
    shown = np.stack([resized(image, whole, model.image_size) for image in images])
    return tracker, torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("kind", ["box", "click", "box and click"])
@torch.inference_mode()
def test_training_and_engine_ask_the_network_the_same(model, asked, kind):
    tracker, images = two_sides(model, 1)
    units = Region(0, 0, 16, 16).to_units(np.array(BOX_OF_SLICE).reshape(2, 2))
    box, points, labels = None, torch.zeros(1, 0, 2), torch.zeros(1, 0)
    words = {}
    if "box" in kind:
        words["box"] = BOX_OF_SLICE
        box = torch.from_numpy(units).reshape(1, 4)
    if "click" in kind:
        words |= {"points": [(7, 9), (3, 14)], "labels": [1, 0]}
        points = torch.from_numpy(Region(0, 0, 16, 16).to_units(np.array([(7, 9), (3, 14)])))[None]
        labels = torch.tensor([[1.0, 0.0]])
    tracker.prompt("it", 0, prompt(**words))
    theirs = asked[0]  # later looks are closer ones
    asked.clear()
    encoded = network.encode(model.module, images)
    here = encoded.of(torch.tensor([0]))
    objective = Objective(model.module, AffinityHeads(model.module.hidden_dim), EMBEDDED_RECIPE)
    objective.decode(network.without_memory(model.module, here), here, Prompts(box, points, labels, None))
    for ours, engines in zip(asked[0], theirs, strict=True):
        assert torch.allclose(ours.float(), engines.float(), atol=1e-4)


@torch.inference_mode()
def test_a_clip_goes_through_training_as_through_the_tracker(model):
    """Prompt, memory, the mask carried on: what is learned in training is what the engine does."""
    tracker, images = two_sides(model)
    tracker.prompt("it", 0, prompt(box=BOX_OF_SLICE))
    list(tracker.propagate())
    theirs_of = {n: tracker.state("it").kept_logits(n)[0][0, 0] for n in range(3)}
    encoded = network.encode(model.module, images)
    box = torch.from_numpy(Region(0, 0, 16, 16).to_units(np.array(BOX_OF_SLICE).reshape(2, 2))).reshape(1, 4)
    objective = Objective(model.module, AffinityHeads(model.module.hidden_dim), EMBEDDED_RECIPE)
    memory = network.ObjectMemory(model.module, 3)
    here = encoded.of(torch.tensor([0]))
    said = Prompts(box, torch.zeros(1, 0, 2), torch.zeros(1, 0), None)
    answer = objective.decode(network.without_memory(model.module, here), here, said)
    assert torch.allclose(answer.logits[0, 0], theirs_of[0], atol=1e-4)
    for n in (1, 2):
        memory.write(n - 1, here, answer, answer.logits[:, :1], prompted=n == 1)
        here = encoded.of(torch.tensor([n]))
        answer = objective.decode(memory.read(n, here), here, Prompts.only(answer.logits[:, :1]))
        ours, theirs = answer.logits[0, 0], theirs_of[n]
        # The engine keeps memories in half the bits.
        assert (ours - theirs).abs().max() < 0.02 * float(ours.std()) + 0.02
        assert float((ours > 0).eq(theirs > 0).float().mean()) > 0.99
