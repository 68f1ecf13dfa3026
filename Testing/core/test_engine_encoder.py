"""A slice is encoded when it is first needed, and not again."""

import numpy as np
import pytest
import torch
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import MEAN, STD, SliceEncoder, resized
from medsam2_core.engine.presence import Appearance
from medsam2_core.engine.sources import ArrayImages, SetImages, StackImages
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet
from medsam2_core.imaging.intensity import Window, to_display
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from PIL import Image
from support.model import embedded_model, some_slices

WHOLE = Region.whole((90, 120))


@pytest.fixture(scope="module")
def model():
    return embedded_model()


def test_nothing_is_encoded_before_it_is_asked_for_nor_twice(model):
    encoder = SliceEncoder(model, ArrayImages(some_slices(5)))
    assert encoder.encoded == 0
    first = encoder.features(2, WHOLE)
    assert encoder.features(2, WHOLE) is first and encoder.encoded == 1
    encoder.features(2, Region(10, 10, 50, 50))
    encoder.features(3, WHOLE)
    assert encoder.encoded == 3


def test_sessions_on_the_same_images_share_a_cache(model):
    cache = FeatureCache()
    for _ in range(2):
        encoder = SliceEncoder(model, ArrayImages(some_slices(2)), cache)
        encoder.features(0, WHOLE)
    assert encoder.encoded == 0 and cache.hits == 1
    other = SliceEncoder(model, ArrayImages(some_slices(2, seed=1)), cache)
    other.features(0, WHOLE)
    assert other.encoded == 1


def test_features_have_the_shapes_of_the_decoder(model):
    features = SliceEncoder(model, ArrayImages(some_slices(1))).features(0, WHOLE)
    assert [tuple(x.shape) for x in (*features.fine, features.coarse)] == [
        (1, 16, 64, 64),
        (1, 32, 32, 32),
        (1, 128, 16, 16),
    ]
    assert features.nbytes == 4 * (16 * 64**2 + 32 * 32**2 + 128 * 16**2)


def test_a_region_is_cropped_resized_and_normalised(model):
    image = some_slices(1)[0]
    region = Region(100, 70, 140, 110)  # reaches beyond the slice on two sides
    padded = np.zeros((40, 40, 3), np.uint8)
    padded[:20, :20] = image[70:, 100:]
    expected = np.asarray(Image.fromarray(padded).resize((256, 256), Image.Resampling.BICUBIC))
    assert np.array_equal(resized(image, region, 256), expected)
    given = SliceEncoder(model, ArrayImages([image])).model_input(0, region)
    wanted = (expected / 255 - MEAN) / STD
    assert given.shape == (1, 3, 256, 256)
    assert np.allclose(given[0].permute(1, 2, 0), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        resized(image.astype(np.float32), region, 256)


def test_grey_images_give_what_they_give_in_colour(model):
    colour = some_slices(1)[0]
    grey = SliceEncoder(model, ArrayImages(colour[None, ..., 0]))
    region = Region(-5, 10, 60, 70)
    assert grey.source.image(0).strides[2] == 0
    assert torch.equal(
        grey.model_input(0, region), SliceEncoder(model, ArrayImages([colour])).model_input(0, region)
    )
    whole = Region.whole(colour.shape[:2])
    logits = torch.where(torch.arange(64) > 30, 1.0, -1.0).expand(1, 1, 64, 64)
    one, other = (Appearance.of(image, whole, logits) for image in (grey.source.image(0), colour))
    assert np.array_equal(one.inside, other.inside) and np.array_equal(one.around, other.around)


def test_a_stack_is_shown_through_its_window():
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    geometry = Geometry(np.diag([0.5, 2.0, 3.0, 1.0]), (6, 5, 4))
    volume = Volume(voxels, geometry, "CT", "a scan", None, {})
    stack = SliceStack.along(volume, "axial")
    narrow, wide = Window(60, 40), Window(60, 200)
    images = StackImages(stack, narrow)
    assert len(images) == 4 and images.ordered
    assert images.pixel_mm == (2.0, 0.5) and images.shape_of(0) == (5, 6)
    assert np.array_equal(images.image(2), to_display(stack.image_hw(2), narrow))
    assert images.key != StackImages(stack, wide).key
    assert images.key == StackImages(SliceStack.along(volume, "axial"), narrow).key
    assert images.key != StackImages(SliceStack.along(volume, "sagittal"), narrow).key


def test_a_set_of_pictures_may_have_pictures_of_any_size():
    pictures = [
        Volume(np.full((1, h, w), 100, np.uint8), Geometry.for_picture(h, w), "", f"{h}x{w}", None, {})
        for h, w in ((20, 30), (40, 25))
    ]
    images = SetImages(ImageSet(tuple(pictures)), [Window(127, 255)] * 2)
    assert not images.ordered and [images.shape_of(n) for n in range(2)] == [(20, 30), (40, 25)]
    assert images.image(1).shape == (40, 25, 3)
    with pytest.raises(ValueError, match="2 images"):
        SetImages(ImageSet(tuple(pictures)), [])
