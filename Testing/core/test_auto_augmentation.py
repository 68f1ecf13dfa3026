"""Images and their labels change together, labels are never mixed, and nothing leaves the image."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from medsam2_core.auto.fewshot.augmentation import Augmentation, jitter_intensity
from medsam2_core.auto.fewshot.features import VariantPlan, variant_of
from support.auto_model import labelled_discs

SIDE = 64
MOVING = Augmentation(affine=1.0, photometric=0.0)


def a_square(value=7, size=14, at=(20, 30), shape=(SIDE, SIDE)) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square on black, and its labels."""
    labels = torch.zeros(shape, dtype=torch.int16)
    labels[at[0] : at[0] + size, at[1] : at[1] + size] = value
    return (labels != 0).float().expand(3, -1, -1).clone(), labels


def changed(augmentation, image, labels, seed, content_hw=None):
    return augmentation.apply(image, labels, np.random.default_rng(seed), content_hw)


def test_labels_are_never_mixed(campaign):
    """Every value there ever is, is one there was."""
    rng = np.random.default_rng(0)
    values = np.array([0, 1, 5, 6, 250, 32_767], np.int16)
    image = torch.rand(3, SIDE, SIDE)
    for seed in range(60 * campaign):
        kind = (torch.int16, torch.int32, torch.int64)[seed % 3]
        labels = torch.from_numpy(rng.choice(values, (SIDE, SIDE))).to(kind)
        _, found = changed(Augmentation(affine=1.0), image, labels, seed)
        assert found.dtype is kind and found.shape == (SIDE, SIDE)
        assert set(found.unique().tolist()) <= set(values.tolist())


def test_a_bright_square_stays_under_its_label(campaign):
    """Where the label is, it is bright; where it is dark, there is none: but for the border's own pixels."""
    image, labels = a_square()
    moved = 0
    for seed in range(60 * campaign):
        found, marks = changed(MOVING, image, labels, seed)
        bright, marked = found[0] > 0.5, marks == 7
        wrong = (bright != marked).sum()
        assert int(wrong) <= 4, f"seed {seed}: {int(wrong)} pixels"
        moved += not torch.equal(marks, labels)
    assert moved > 50 * campaign


@pytest.mark.parametrize("inner", [(64, 40), (33, 64), (64, 64), (64, 7)])
def test_nothing_is_moved_out_of_the_part_the_image_fills(inner, campaign):
    """What lies beyond is made zero afterwards: labels there would be of an image that is not."""
    height, width = inner
    size = min(inner) // 2
    image, labels = a_square(size=size, at=(height // 4, width // 4))
    seen = 0
    for seed in range(40 * campaign):
        found, marks = changed(Augmentation(affine=0.7), image, labels, seed, inner)
        assert not marks[height:].any() and not marks[:, width:].any()
        assert not found[:, height:].any() and not found[:, :, width:].any()
        seen += bool(marks.any())
    assert seen > 30 * campaign, "and it is hardly ever moved out of sight"


def test_mirrored_images_stay_where_they_are_seen():
    """An image half as high as wide, upside down: still in the upper half of the square."""
    image, labels = a_square(size=10, at=(2, 5))
    upside = Augmentation(affine=0.0, flip_x=0.0, flip_y=1.0, photometric=0.0)
    _, marks = changed(upside, image, labels, 0, (32, 64))
    assert marks.nonzero()[:, 0].min() == 32 - 12 and marks.nonzero()[:, 0].max() == 32 - 3
    assert torch.equal(marks[:32].flip(0), labels[:32])


def test_an_oblong_image_is_turned_and_not_sheared():
    """A square stays one: its sides are as long as before and at right angles."""
    turning = Augmentation(
        affine=1.0, degrees=30.0, translate=0.0, scale=1.0, flip_x=0, flip_y=0, photometric=0
    )
    labels = torch.zeros(128, 64, dtype=torch.int16)
    labels[44:84, 12:52] = 1
    image = labels.float().expand(3, -1, -1)
    for seed in range(10):
        _, marks = changed(turning, image, labels, seed, (128, 64))
        places = marks.nonzero().double()
        assert len(places) == pytest.approx(1600, rel=0.03)
        spread = torch.cov(places.T)
        expected = (40**2 - 1) / 12
        assert float(spread[0, 0]) == pytest.approx(expected, rel=0.05)
        assert float(spread[1, 1]) == pytest.approx(expected, rel=0.05)
        assert abs(float(spread[0, 1])) < 0.05 * expected


def test_it_stays_within_its_limits():
    """The middle of the image moves at most a fifth of each side; a corner of a square turns at most 30°."""
    still = Augmentation(affine=1.0, translate=0.2, degrees=0.0, scale=1.0, flip_x=0, flip_y=0, photometric=0)
    image, labels = a_square(size=4, at=(30, 30))
    shifts = []
    for seed in range(100):
        _, marks = changed(still, image, labels, seed)
        shifts.append((marks.nonzero().double().mean(0) - 31.5).abs().max())
    assert max(shifts) <= 0.2 * SIDE + 1
    assert max(shifts) > 0.15 * SIDE
    scaling = Augmentation(
        affine=1.0, translate=0.0, degrees=0.0, scale=1.25, flip_x=0, flip_y=0, photometric=0
    )
    image, labels = a_square(size=32, at=(16, 16))
    sizes = [float((changed(scaling, image, labels, seed)[1] > 0).sum()) ** 0.5 for seed in range(100)]
    assert 32 / 1.25 - 1 <= min(sizes) < 28 and 36 < max(sizes) <= 32 * 1.25 + 1


def test_turning_stays_below_its_limit():
    turning = Augmentation(
        affine=1.0, degrees=30.0, translate=0.0, scale=1.0, flip_x=0, flip_y=0, photometric=0
    )
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int16)
    labels[31:33, 34:58] = 1  # a bar from the middle to the right
    image, angles = labels.float().expand(3, -1, -1), []
    for seed in range(100):
        row, column = changed(turning, image, labels, seed)[1].nonzero().double().mean(0).tolist()
        angles.append(abs(math.degrees(math.atan2(row - 31.5, column - 31.5))))
    assert 25 < max(angles) < 32


def test_chances_are_as_declared():
    image, labels = a_square(at=(3, 8), size=9)
    never = Augmentation(affine=0.0, flip_x=0.0, flip_y=0.0, photometric=0.0)
    found, marks = changed(never, image, labels, 0)
    assert torch.equal(found, image) and torch.equal(marks, labels)
    mirrored = Augmentation(affine=0.0, flip_x=1.0, flip_y=0.0, photometric=0.0)
    assert torch.equal(changed(mirrored, image, labels, 0)[1], labels.flip(-1))
    half = Augmentation(affine=0.0, flip_x=0.5, flip_y=0.0, photometric=0.0)
    count = sum(not torch.equal(changed(half, image, labels, seed)[1], labels) for seed in range(200))
    assert 70 < count < 130


def test_one_seed_gives_one_result_and_the_image_given_stays_as_it_was():
    image, labels = torch.rand(3, SIDE, SIDE), a_square()[1]
    before = image.clone(), labels.clone()
    one, other = (changed(Augmentation(), image, labels, 11, (50, 64)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert torch.equal(image, before[0]) and torch.equal(labels, before[1])
    assert not torch.equal(one[0], changed(Augmentation(), image, labels, 12, (50, 64))[0])


def test_pictures_stay_between_black_and_white(campaign):
    for seed in range(100 * campaign):
        image = torch.rand(3, 16, 16) if seed % 3 else torch.full((3, 16, 16), float(seed % 2))
        found = jitter_intensity(image, np.random.default_rng(seed))
        assert found.shape == image.shape and found.dtype is torch.float32
        assert torch.isfinite(found).all() and float(found.min()) >= 0 and float(found.max()) <= 1


def test_it_can_be_written_down():
    assert Augmentation(**json.loads(json.dumps(asdict(MOVING)))) == MOVING


# --- as training uses it


def test_every_variant_of_an_oblong_image_agrees_with_its_labels():
    """Two discs, bright and brighter, on an image that fills three quarters of the square."""
    plan = VariantPlan(30, Augmentation(affine=1.0, photometric=0.0), seed=4)
    for image in labelled_discs(3):
        for variant in range(30):
            picture, labels = variant_of(image, variant, 100 + variant, plan)
            normalised = image.letterbox.normalise(picture)
            height, width = image.letterbox.content_hw
            assert not labels[height:].any() and not labels[:, width:].any()
            for value in (1, 2):
                inner = labels == value
                if int(inner.sum()) > 30:
                    assert float(picture[0][inner].median()) > 0.45
                    assert float(normalised[0][inner].median()) > 0


def test_the_first_variant_is_the_image_itself():
    image = labelled_discs(1)[0]
    picture, labels = variant_of(image, 0, 0, VariantPlan(4, Augmentation(affine=1.0)))
    assert torch.equal((picture * 255).round().byte().permute(1, 2, 0), torch.from_numpy(image.square))
    assert torch.equal(labels, image.letterbox.resize_labels(image.labels_hw))
