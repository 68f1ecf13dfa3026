"""What training minimises is what the page says, and a number for every batch there can be."""

import numpy as np
import pytest
import torch
from medsam2_core.auto.fewshot.objective import (
    LEAST_PIXELS,
    Weights,
    auto_loss,
    dice_loss,
    focal_loss,
    giou_loss,
    masks_to_boxes,
    presence_loss,
)

SIDE, LOW = 32, 8


def some_masks(count=4, seed=0) -> torch.Tensor:
    """Rectangles of some size."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        top, left = rng.integers(0, 16, 2)
        height, width = rng.integers(4, 16, 2)
        mask[top : top + height, left : left + width] = True
    return masks


def some_logits(count=4, seed=1, side=SIDE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, side, side, generator=generator)


def some_boxes(count=20, seed=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, count, 2, generator=generator)
    return torch.cat([low, low + size + 0.01], dim=1)


# --- each part, by its formula


def dice_by_hand(logits, masks) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    t = masks.numpy().astype(float)
    return np.array(
        [1 - (2 * (a * b).sum() + 1e-5) / (a.sum() + b.sum() + 1e-5) for a, b in zip(p, t, strict=True)]
    )


def focal_by_hand(logits, masks, alpha, gamma) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    t = masks.numpy().astype(bool)
    true, weight = np.where(t, p, 1 - p), np.where(t, alpha, 1 - alpha)
    return (-weight * (1 - true) ** gamma * np.log(true)).mean((1, 2))


def giou_by_hand(one, other) -> float:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = one, other
    both = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    either = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both
    hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
    return 1 - (both / either - (hull - either) / hull)


def test_dice_is_the_soft_dice_of_each_pair():
    logits, masks = some_logits(), some_masks()
    masks[1] = False
    found = dice_loss(logits, masks.float())
    assert np.allclose(found, dice_by_hand(logits, masks), atol=1e-5)
    perfect = torch.where(masks[:1], 50.0, -50.0)
    assert float(dice_loss(perfect, masks[:1].float())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.7, 3.0), (0.6, 3.0), (0.25, 2.0)])
def test_focal_weighs_the_foreground_and_what_is_hard(alpha, gamma):
    logits, masks = some_logits(), some_masks()
    found = focal_loss(logits, masks.float(), alpha, gamma)
    assert np.allclose(found, focal_by_hand(logits, masks, alpha, gamma), rtol=1e-4)


def test_giou_of_boxes_apart_within_and_alike():
    boxes, targets = some_boxes(), some_boxes(seed=3)
    targets[:3] += 2  # apart
    targets[3] = boxes[3]
    boxes[4], targets[4] = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.4, 0.4, 0.6, 0.6])
    expected = [giou_by_hand(a, b) for a, b in zip(boxes.tolist(), targets.tolist(), strict=True)]
    assert np.allclose(giou_loss(boxes, targets), expected, atol=1e-4)
    assert max(expected[:3]) > 1 and abs(expected[3]) < 1e-9


def test_presence_aims_at_soft_targets_and_cuts_what_is_too_sure():
    score, present = torch.tensor([0.3, -2.0, 40.0, -40.0]), torch.tensor([True, False, True, True])
    s, t = np.clip(score.numpy().astype(float), -10, 10), np.array([0.95, 0.05, 0.95, 0.95])
    p = 1 / (1 + np.exp(-s))
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert float(presence_loss(score, present)) == pytest.approx(expected, rel=1e-4)


def test_monai_agrees():
    losses = pytest.importorskip("monai.losses")
    from monai.losses.giou_loss import BoxGIoULoss

    logits, masks = some_logits()[:, None], some_masks()[:, None].float()
    dice = losses.DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5, reduction="none")(logits, masks)
    assert torch.allclose(dice.flatten(), dice_loss(logits[:, 0], masks[:, 0]), atol=1e-5)
    focal = losses.FocalLoss(gamma=3.0, alpha=0.7, reduction="none")(logits, masks).mean((1, 2, 3))
    assert torch.allclose(focal, focal_loss(logits[:, 0], masks[:, 0], 0.7, 3.0), rtol=1e-4)
    boxes, targets = some_boxes(), some_boxes(seed=4)
    giou = BoxGIoULoss(reduction="none")(boxes, targets).flatten()
    assert torch.allclose(giou, giou_loss(boxes, targets), atol=1e-4)


def test_boxes_are_tight_and_in_units_of_the_sides():
    masks = torch.zeros(4, 10, 20, dtype=torch.bool)
    masks[0, 3, 5] = True
    masks[1, 2:5, 4:11] = True
    masks[2] = True
    expected = [[0.25, 0.3, 0.3, 0.4], [0.2, 0.2, 0.55, 0.5], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert torch.allclose(masks_to_boxes(masks), torch.tensor(expected))
    assert masks_to_boxes(masks[:0]).numel() == 0


# --- all of it


def parts_by_hand(logits, score, boxes, guess, masks) -> dict[str, float]:
    """The page's formula, pair by pair."""
    large = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    guessed = torch.nn.functional.interpolate(guess, size=(SIDE, SIDE), mode="bilinear")[:, 0]
    dice, focal = dice_by_hand(large, masks), focal_by_hand(large, masks, 0.7, 3)
    interim = focal_by_hand(guessed, masks, 0.6, 3)
    rows = [n for n in range(len(masks)) if int(masks[n].sum()) > 10]
    true = masks_to_boxes(masks).tolist()
    s = np.clip(score.numpy()[:, 0].astype(float), -10, 10)
    t = np.where(masks.flatten(1).any(1), 0.95, 0.05)
    p = 1 / (1 + np.exp(-s))
    return {
        "segmentation": float(np.mean([0.5 * (dice[n] + 10 * focal[n]) for n in rows])),
        "presence": float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()),
        "box": float(np.mean([giou_by_hand(boxes[n].tolist(), true[n]) for n in rows])),
        "guess": float(np.mean([100 * interim[n] for n in rows])),
    }


def a_batch(count=4):
    masks = some_masks(count)
    masks[1] = False  # absent
    masks[2] = False
    masks[2, 4, :LEAST_PIXELS] = True  # there, but too small to say anything about a mask
    logits, guess = some_logits(count, 5, LOW)[:, None], some_logits(count, 6, LOW)[:, None]
    score = some_logits(count, 7, 1)[:, 0]
    return logits, score, some_boxes(count), guess, masks


def test_the_parts_are_those_of_the_page():
    batch = a_batch()
    found, expected = auto_loss(*batch), parts_by_hand(*batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-3), name


def test_what_is_absent_or_tiny_teaches_only_presence():
    logits, score, boxes, guess, masks = a_batch()
    for one in (logits, boxes, guess):
        one.requires_grad_(True)
    sum(auto_loss(logits, score, boxes, guess, masks).values()).backward()
    for one in (logits, boxes, guess):
        assert not one.grad[1:3].any()
        assert one.grad[0].any() and one.grad[3].any()


@pytest.mark.parametrize(("box", "guess"), [(False, True), (True, False), (False, False)])
def test_heads_that_are_off_have_no_part(box, guess):
    logits, score, boxes, guesses, masks = a_batch()
    found = auto_loss(logits, score, boxes if box else None, guesses if guess else None, masks)
    assert {"segmentation", "presence"} <= set(found)
    assert ("box" in found) is box and ("guess" in found) is guess


@pytest.mark.parametrize("kind", ["absent", "tiny", "full"])
@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_a_batch_without_foreground_or_with_extreme_logits_has_a_finite_loss_and_gradient(kind, extreme):
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    if kind == "tiny":
        masks[:, 0, :3] = True
    elif kind == "full":
        masks[:] = True
    leaves = [torch.full((3, 1, LOW, LOW), extreme), torch.full((3, 1), extreme), torch.zeros(3, 4)]
    leaves.append(torch.full((3, 1, LOW, LOW), -extreme))
    for leaf in leaves:
        leaf.requires_grad_(True)
    logits, score, boxes, guess = leaves
    parts = auto_loss(logits, score, boxes, guess, masks)
    sum(parts.values()).backward()
    for name, value in parts.items():
        assert torch.isfinite(value), name
    for leaf in leaves:
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()
    if kind != "full":
        assert not any(bool(parts[name].detach()) for name in ("segmentation", "box", "guess"))


def test_weights_are_factors():
    batch = a_batch()
    plain, doubled = auto_loss(*batch), auto_loss(*batch, Weights(2.0, 2.0, 2.0, 200.0))
    for name in plain:
        assert float(doubled[name]) == pytest.approx(2 * float(plain[name]), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_every_part_falls_towards_the_truth(seed):
    masks = some_masks(2, seed)
    logits, score = torch.zeros(2, 1, LOW, LOW), torch.zeros(2, 1)
    boxes, guess = torch.tensor([[0.4, 0.4, 0.6, 0.6]] * 2), torch.zeros(2, 1, LOW, LOW)
    good = torch.where(masks, 6.0, -6.0)[:, None]
    good = torch.nn.functional.interpolate(good, size=(LOW, LOW), mode="area")
    worse = auto_loss(logits, score, boxes, guess, masks)
    better = auto_loss(good, score + 3, masks_to_boxes(masks), good, masks)
    assert all(float(better[name]) < float(worse[name]) for name in worse)
