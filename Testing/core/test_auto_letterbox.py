"""An image lies in the model's square in its proportions, and what is found there comes back to its place."""

import numpy as np
import pytest
import torch
from medsam2_core.auto.letterbox import Letterbox
from medsam2_core.engine.encoder import MEAN, STD
from scipy import ndimage
from support.model import a_disc

SHAPES = [(64, 64), (40, 100), (100, 40), (33, 35), (200, 150), (7, 90), (480, 640)]


def some_frames(count: int, seed: int = 0) -> list[Letterbox]:
    """Of all shapes, with square and oblong pixels."""
    rng, letterboxes = np.random.default_rng(seed), []
    for n in range(count):
        shape = tuple(int(side) for side in rng.integers(2, 300, 2))
        pixel = (1.0, 1.0) if n % 2 else tuple(float(mm) for mm in rng.uniform(0.2, 5, 2))
        letterboxes.append(Letterbox(shape, int(rng.choice([64, 128, 256])), pixel))
    return letterboxes


def noise(shape_hw, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (*shape_hw, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [64, 128])
def test_the_longest_side_fills_the_square_and_proportions_are_kept(shape, side):
    height, width = Letterbox(shape, side).content_hw
    assert max(height, width) == side
    assert abs(height - shape[0] * side / max(shape)) <= 0.5 or height == 1
    assert abs(width - shape[1] * side / max(shape)) <= 0.5 or width == 1


def test_oblong_pixels_keep_the_anatomys_proportions():
    """A slice of 100 x 100 pixels, 3 mm high and 1 mm wide, is three times as high as wide."""
    assert Letterbox((100, 100), 96, (3.0, 1.0)).content_hw == (96, 32)
    assert Letterbox((100, 300), 96, (3.0, 1.0)).content_hw == (96, 96)
    assert Letterbox((100, 100), 96, (0.3, 0.1)).content_hw == (96, 32), "whatever the unit"


def test_no_side_ever_vanishes_or_is_too_long(campaign):
    assert Letterbox((1, 1000), 64).content_hw == (1, 64)
    assert Letterbox((1000, 1), 64, (7.0, 0.01)).content_hw == (64, 1)
    for letterbox in some_frames(300 * campaign):
        height, width = letterbox.content_hw
        assert 1 <= height <= letterbox.side and 1 <= width <= letterbox.side
        assert max(height, width) == letterbox.side


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_zero_after_normalising_and_the_image_is_normalised_as_ever(shape):
    letterbox, image = Letterbox(shape, 64), noise(shape)
    square = letterbox.resize(image)
    height, width = letterbox.content_hw
    assert square.shape == (3, 64, 64) and square.dtype is torch.float32
    assert float(square.min()) >= 0 and float(square.max()) <= 1
    normalised = letterbox.normalise(square)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:height, :width] = False
    assert not normalised[:, outside].any(), "exactly"
    inside = square[:, :height, :width]
    expected = (inside - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(normalised[:, :height, :width], expected)
    assert torch.equal(letterbox.normalise(square[None].expand(2, -1, -1, -1))[1], normalised)


def test_an_image_of_the_squares_size_is_not_touched():
    image = noise((64, 64))
    square = Letterbox((64, 64), 64).resize(image)
    assert torch.equal((square * 255).round().byte().permute(1, 2, 0), torch.from_numpy(image))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plain_image_stays_plain(shape):
    letterbox = Letterbox(shape, 64)
    square = letterbox.resize(np.full((*shape, 3), 51, np.uint8))
    height, width = letterbox.content_hw
    assert torch.allclose(square[:, :height, :width], torch.tensor(0.2))


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_taken_and_never_mixed(shape):
    rng = np.random.default_rng(1)
    values = np.array([0, 1, 2, 7, 300, 32_000])
    labels = rng.choice(values, shape).astype(np.int32)
    letterbox = Letterbox(shape, 64)
    square = letterbox.resize_labels(labels)
    height, width = letterbox.content_hw
    assert square.shape == (64, 64) and square.dtype is torch.int16
    assert set(square.unique().tolist()) <= set(values.tolist())
    assert not square[height:].any() and not square[:, width:].any()
    for row, column in rng.integers(0, (height, width), (50, 2)):
        # The pixel whose area holds the centre of this one.
        there = labels[int((row + 0.5) * shape[0] / height), int((column + 0.5) * shape[1] / width)]
        assert int(square[row, column]) == there


def test_an_image_and_its_labels_lie_on_each_other():
    for letterbox in (
        Letterbox((90, 120), 64),
        Letterbox((30, 20), 128),
        Letterbox((80, 80), 64, (2.0, 1.0)),
    ):
        labels = np.zeros(letterbox.shape_hw, np.int16)
        top, left = letterbox.shape_hw[0] // 3, letterbox.shape_hw[1] // 4
        labels[top : 2 * top, left : 3 * left] = 1
        image = np.repeat((labels * 200).astype(np.uint8)[..., None], 3, axis=-1)
        bright = letterbox.resize(image)[0] > 100 / 255
        marked = letterbox.resize_labels(labels) == 1
        border = ndimage.binary_dilation(marked.numpy(), iterations=2)
        border &= ~ndimage.binary_erosion(marked.numpy(), iterations=2)
        assert not ((bright != marked).numpy() & ~border).any()


# --- positions


def test_corners_of_what_the_image_fills_are_its_own(campaign):
    for letterbox in some_frames(200 * campaign):
        (height, width), (rows, columns) = letterbox.content_hw, letterbox.shape_hw
        units = np.array([[0, 0], [width, height]], np.float32) / letterbox.side
        expected = [[-0.5, -0.5], [columns - 0.5, rows - 0.5]]
        assert np.allclose(letterbox.points_from_units(units), expected, atol=1e-3)


def test_corners_of_the_image_are_corners_of_what_it_fills():
    letterbox = Letterbox((50, 100), 64)
    assert np.allclose(letterbox.points_from_units([[0, 0], [1, 0.5]]), [[-0.5, -0.5], [99.5, 49.5]])
    oblong = Letterbox((100, 100), 96, (3.0, 1.0))
    assert np.allclose(oblong.points_from_units([[1 / 3, 1]]), [[99.5, 99.5]])


def test_a_position_lies_on_the_pixel_that_shows_it():
    """A single bright pixel, found again in the square at its own position."""
    letterbox = Letterbox((20, 30), 120)
    image = np.zeros((20, 30, 3), np.uint8)
    image[13, 22] = 255
    square = letterbox.resize(image)[0].numpy()
    row, column = ndimage.center_of_mass(square.clip(0.2) - 0.2)
    x, y = letterbox.points_from_units((np.array([column, row]) + 0.5) / 120)
    assert (x, y) == pytest.approx((22, 13), abs=0.6 * 20 / 80)


# --- and back


def a_shape(shape_hw) -> np.ndarray:
    height, width = shape_hw
    disc = a_disc(shape_hw, (width * 0.4, height * 0.45), min(height, width) * 0.3)
    disc[: height // 4, width // 2 :] = True
    return disc


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape) > 20])
@pytest.mark.parametrize("pixel", [(1.0, 1.0), (2.0, 1.0), (1.0, 1.6)])
def test_what_is_found_comes_back_to_its_place_within_a_pixel(shape, pixel):
    letterbox, mask = Letterbox(shape, 128, pixel), a_shape(shape)
    logits = torch.where(letterbox.resize_labels(mask.astype(np.int16)) == 1, 8.0, -8.0)
    back = letterbox.to_image(logits[None])
    assert back.shape == (1, *shape) and back.dtype is torch.float32
    found = back[0].numpy() > 0
    # A pixel of whichever of the two grids is the coarser there.
    steps = [max(1.0, n / inner) for n, inner in zip(shape, letterbox.content_hw, strict=True)]
    reach = ndimage.distance_transform_edt
    outside, inside = reach(~mask, steps_of(steps)), reach(mask, steps_of(steps))
    assert not (found & (outside > 1.5)).any() and not (~found & (inside > 1.5)).any()
    assert abs(int(found.sum()) - int(mask.sum())) < 0.06 * mask.sum() + 4


def steps_of(steps) -> list[float]:
    """Distances between pixels as shares of the coarser grid's step."""
    return [1 / step for step in steps]


def test_logits_of_a_quarter_of_the_side_come_back_too():
    letterbox, mask = Letterbox((96, 128), 128), a_shape((96, 128))
    labels = (letterbox.resize_labels(mask.astype(np.int16)) == 1).float()
    coarse = torch.nn.functional.avg_pool2d(labels[None, None], 4)[0] * 16 - 8
    found = letterbox.to_image(coarse.expand(3, -1, -1)).numpy() > 0
    assert found.shape == (3, 96, 128)
    overlap = 2 * (found[0] & mask).sum() / (found[0].sum() + mask.sum())
    assert overlap > 0.94


def test_what_lies_in_the_padding_is_cut_off():
    letterbox = Letterbox((50, 100), 64)
    logits = torch.full((1, 64, 64), -5.0)
    logits[:, 34:] = 5.0  # below the image, which ends at row 32
    assert not (letterbox.to_image(logits) > 0).any()


def test_pixels_that_are_not_square_are_shown_as_they_lie():
    assert Letterbox((30, 40), 64, (2.0, 1.0)).content_hw == (64, 43)
