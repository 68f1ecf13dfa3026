"""Made-up ultrasound: what is labelled can be seen, and the speckle is speckle."""

import numpy as np
import pytest
from medsam2_core.training.speckle import Beam, b_mode
from medsam2_core.training.ultrasound import STRUCTURES, ultrasound_image
from scipy import ndimage


@pytest.fixture(scope="module")
def pictures():
    return [ultrasound_image(np.random.default_rng([5, n]), (160, 256)) for n in range(60)]


def test_equal_chances_give_equal_pictures(pictures):
    again = ultrasound_image(np.random.default_rng([5, 3]), (160, 256))
    assert all(np.array_equal(one, other) for one, other in zip(again, pictures[3], strict=True))
    assert not np.array_equal(pictures[3][0], pictures[4][0])


def test_pictures_and_labels_are_whole(pictures):
    for image, labels in pictures:
        assert image.shape == labels.shape == (160, 256)
        assert image.dtype == labels.dtype == np.uint8
        assert labels.max() <= len(STRUCTURES)
        assert image.max() > 100, "somebody turned the gain until something is bright"
        assert np.ptp(image) > 60
    seen = {int(value) for _, labels in pictures for value in np.unique(labels)}
    assert seen == set(range(len(STRUCTURES) + 1)), "every structure comes up"


def test_vessels_are_darker_than_what_is_around_them(pictures):
    number = STRUCTURES.index("vessel") + 1
    darker = []
    for image, labels in pictures:
        parts, count = ndimage.label(labels == number)
        for n in range(1, count + 1):
            part = parts == n
            near, far = (ndimage.binary_dilation(part, iterations=n) for n in (2, 10))
            around = far & ~near & (labels != number)
            if part.sum() > 100 and around.any():
                darker.append(float(image[part].mean()) < float(image[around].mean()))
    assert len(darker) > 30
    assert np.mean(darker) > 0.85


def test_behind_bone_there_is_shadow(pictures):
    number = STRUCTURES.index("bone") + 1
    behind = [float(image[labels == number].mean()) for image, labels in pictures if (labels == number).any()]
    beside = [float(image[labels != number].mean()) for image, labels in pictures if (labels == number).any()]
    assert len(behind) > 10
    assert np.mean(np.array(behind) < 0.7 * np.array(beside)) > 0.8


def test_speckle_has_the_statistics_of_speckle():
    # Fully developed, one look: the envelope is Rayleigh, its mean 1.91 times its standard deviation
    # (Wagner et al. 1983); the mean of four looks' power has half the spread of one.
    flat = np.full((200, 256), 0.3, np.float32)
    still = {"spread": 1.0, "range_db": 60, "floor_db": 120, "attenuation": 0, "smoothing": 0.01, "gamma": 1}
    ratios = {}
    for looks in (1, 4):
        beam = Beam(axial=0.8, lateral=1.6, compounds=looks, gain_db=0, **still)
        rng = np.random.default_rng(10)  # of a draw without columns in shadow
        image = b_mode(flat, np.zeros_like(flat), np.ones_like(flat), beam, rng)
        envelope = 10 ** (image.astype(float) / 255 * beam.range_db / 20)
        envelope /= ndimage.gaussian_filter(envelope, 20)  # a column in shadow is darker, not less speckled
        ratios[looks] = float(envelope.mean() / envelope.std())
    assert ratios[1] == pytest.approx(1.91, abs=0.15)
    assert ratios[4] == pytest.approx(2 * 1.91, rel=0.15)
