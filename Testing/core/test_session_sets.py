"""A session of unordered images: prompt one, find the object on the others, correct, undo."""

import numpy as np
import pytest
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.locating import GRID, Locator, agreement, by_similarity
from medsam2_core.engine.sources import SetImages
from medsam2_core.engine.zoom import Region
from medsam2_core.errors import Cancelled, PromptError, VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.image_set import ImageSet, thumbnail_of
from medsam2_core.imaging.reading import read_images
from medsam2_core.imaging.set_stack import SetStack
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt, Point, PromptSet
from medsam2_core.prompts.slice_prompts import by_slice, mask_on_slice, resolve
from medsam2_core.session import Session
from PIL import Image
from support.errors import raises
from support.model import a_disc
from support.tiny_model import tiny_model

SIZES = [(60, 80), (72, 64), (50, 90), (80, 80), (64, 64)]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def a_picture(number, shape_hw, colour=False):
    """Noise around a bright disc, somewhere."""
    rng = np.random.default_rng(number)
    values = rng.integers(0, 90, shape_hw, dtype=np.uint8)
    centre = (shape_hw[1] * rng.uniform(0.35, 0.65), shape_hw[0] * rng.uniform(0.35, 0.65))
    values[a_disc(shape_hw, centre, 12)] += 130
    pixels = np.stack([values, values // 2, values // 3], -1) if colour else values
    return Volume(pixels[None], Geometry.for_picture(*shape_hw), name=f"image {number}")


@pytest.fixture(scope="module")
def pictures():
    return [a_picture(n, shape, colour=n == 2) for n, shape in enumerate(SIZES)]


@pytest.fixture
def session(pictures, model):
    return Session.open(ImageSet(pictures), model)


def masks(session, name="it"):
    """By image name: the mask, and what the model thinks of it."""
    facts = session.images.facts
    return {
        facts[one.n].name: (one.mask_hw.tobytes(), one.predicted_iou, one.object_score)
        for one in session.results(name)
    }


def propagated(session, **options):
    return [one.n for one in session.propagate(**options)]


BOX = Box((25, 20, 0), (52, 44, 0))


class TestVerbs:
    def test_one_prompted_image_segments_all_others(self, session):
        first = session.prompt("it", BOX)
        assert first.n == 0 and first.prompted and first.shape_hw == SIZES[0]
        found = list(session.propagate())
        assert sorted(one.n for one in found) == list(range(5))
        assert [one.shape_hw for one in session.results("it")] == SIZES
        assert found[0].n == 0, "the prompted image is the most like itself"

    def test_masks_of_an_image_are_a_segmentation_of_its_own(self, session):
        session.prompt("it", BOX)
        session.prompt("other", Box((5, 5, 3), (30, 30, 3)))
        propagated(session)
        of_image = session.segmentation(3)
        assert of_image.geometry.shape_ijk == (80, 80, 1) and of_image.names == ("it", "other")
        for name in of_image.names:
            (expected,) = (one.mask_hw for one in session.results(name) if one.n == 3)
            assert np.array_equal(of_image[name].mask_kji[0], expected)
        own = PromptSet.from_json(of_image.provenance["prompts"])
        assert own.objects == {"it": [], "other": [Box((5, 5, 0), (30, 30, 0))]}
        assert of_image.provenance["prompted_images"] == ["image 0"]

    def test_a_correction_on_any_image_reaches_the_others_when_asked(self, session):
        session.prompt("it", BOX)
        propagated(session)
        before = masks(session)
        session.prompt("it", Point((40, 40, 3)))
        changed = masks(session)
        assert {name for name in before if before[name] != changed[name]} == {"image 3"}
        assert sorted(propagated(session)) == list(range(5)), "everything follows"
        assert propagated(session) == [], "nothing is left to do"
        after = masks(session)
        assert after["image 0"] == before["image 0"] and after["image 3"] == changed["image 3"]
        assert any(after[f"image {n}"] != before[f"image {n}"] for n in (1, 2, 4))

    def test_undo_takes_back_the_propagation_and_then_the_prompt(self, session):
        session.prompt("it", BOX)
        before = masks(session)
        propagated(session)
        assert session.undo() == "propagate" and masks(session) == before
        assert session.undo() == "prompt it" and session.object_names == ()

    def test_final_images_are_left_alone_and_serve_as_examples(self, session):
        session.prompt("it", BOX)
        propagated(session)
        drawn = a_disc(SIZES[1], (30, 30), 9)
        session.finalise("it", 1, drawn)
        propagated(session)
        (kept,) = (one for one in session.results("it") if one.n == 1)
        assert kept.final and np.array_equal(kept.mask_hw, drawn)

    def test_a_drawn_mask_is_a_prompt_of_its_image(self, session):
        drawn = a_disc(SIZES[2], (40, 25), 9)
        session.finalise("it", 2, drawn)
        (prompt,) = session.prompts.of("it")
        assert np.array_equal(session.stack.mask_of(prompt.mask_kji, 2, prompt.offset_ijk), drawn)

    def test_it_can_be_cancelled_and_keeps_what_was_found(self, session):
        session.prompt("it", BOX)
        run = session.propagate(should_cancel=lambda: len(found) == 2)
        found = []
        with pytest.raises(Cancelled):
            for one in run:
                found.append(one)
        assert len(masks(session)) == 2
        assert sorted(propagated(session)) == list(range(5))

    def test_what_only_a_volume_has_is_refused(self, session):
        with raises("no-volume", PromptError):
            session.volume  # noqa: B018
        session.prompt("it", BOX)
        with raises("no-volume", PromptError):
            session.segmentation()
        with raises("outside-volume", PromptError, axis="i", size=80):
            session.prompt("it", Point((85, 40, 0)))
        with raises("outside-volume", PromptError, axis="k", size=5):
            session.prompt("it", Point((5, 4, 5)))


def orders(count, size, rng):
    return [rng.permutation(size) for _ in range(count)]


@pytest.mark.parametrize("memory", ["prompted", "recent", "self-sorting"])
def test_the_order_of_the_files_does_not_matter(pictures, model, memory, campaign):
    rng = np.random.default_rng(5)
    pictures = [*pictures, a_picture(9, (70, 66))]
    expected = None
    for order in [np.arange(6), *orders(2 if campaign == 1 else 200, 6, rng)]:
        session = Session.open(ImageSet([pictures[n] for n in order]), model, memory=memory)
        for number, box in ((0, (25, 20, 52, 44)), (3, (20, 25, 60, 55))):
            n = list(order).index(number)
            session.prompt("it", Box((*box[:2], n), (*box[2:], n)))
        came = [session.images.facts[one.n].name for one in session.propagate()]
        found = (came, masks(session))
        expected = expected or found
        assert found == expected, f"in the order {order}"


class TestSimilarity:
    def test_the_most_similar_images_come_first(self):
        base = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
        faded = [base, *((base * (1 - share) + base.T * share).astype(np.uint8) for share in (0.5, 0.2, 0.8))]
        images = ImageSet(
            [Volume(one[None], Geometry.for_picture(40, 40), name=str(n)) for n, one in enumerate(faded)]
        )
        assert by_similarity(SetImages(images), range(4), [0]) == [0, 2, 1, 3]
        assert by_similarity(SetImages(images), range(4), [3])[0] == 3

    def test_brightness_and_contrast_do_not_count(self):
        image = np.random.default_rng(0).integers(0, 100, (64, 48)).astype(np.uint8)
        assert np.allclose(thumbnail_of(image), thumbnail_of(image * 2 + 30), atol=1e-3)
        assert np.linalg.norm(thumbnail_of(image)) == pytest.approx(1, abs=1e-5)
        assert not thumbnail_of(np.full((9, 9), 7)).any()


class TestLocator:
    def test_an_image_is_most_like_itself_where_the_object_is(self, session):
        locator = Locator(session.tracker.encoder)
        drawn = a_disc(SIZES[0], (40, 30), 14)
        mask = SliceMask.from_mask("it", 0, drawn)
        likeness = locator.likeness(0, [mask])
        assert likeness.shape == (GRID, GRID) and likeness.min() >= 0 and likeness.max() <= 1
        small = np.asarray(
            Image.fromarray(drawn.astype(np.float32)).resize((GRID, GRID), Image.Resampling.BOX)
        )
        assert likeness[small > 0.9].mean() > 0.9 and likeness[small == 0].mean() < 0.05
        guesses = locator.guesses(0, likeness, [mask], 16)
        assert guesses
        whole = Region.whole(SIZES[0])
        best = max(agreement(one.logits, whole, whole, likeness) for one in guesses)
        assert best > 0.8

    def test_no_prompted_image_shows_the_object(self, session):
        locator = Locator(session.tracker.encoder)
        empty = SliceMask.from_mask("it", 0, np.zeros(SIZES[0], bool))
        likeness = locator.likeness(1, [empty])
        assert not likeness.any() and locator.guesses(1, likeness, [empty], 16) == []


class TestStack:
    def test_positions_are_column_row_and_image(self, pictures):
        stack = SetStack(ImageSet(pictures))
        found = resolve([Point((70, 20, 0)), Point((60, 70, 1), positive=False)], stack)
        assert sorted(found) == [0, 1] and found[1].labels.tolist() == [0]
        assert found[0].points_xy.tolist() == [[70, 20]]

    def test_a_mask_of_several_images_is_cut_into_images(self, pictures):
        stack = SetStack(ImageSet(pictures))
        prompt = MaskPrompt(np.ones((2, 5, 6), bool), (10, 20, 1))
        cut = by_slice([prompt], stack)
        assert sorted(cut) == [1, 2]
        assert stack.mask_of(cut[2][0].mask_kji, 2, cut[2][0].offset_ijk).sum() == 30

    def test_a_mask_of_another_size_is_refused(self, pictures):
        with raises("mask-shape", PromptError, n=1, slice_hw=[72, 64]):
            mask_on_slice(np.ones((60, 80), bool), 1, SetStack(ImageSet(pictures)))


class TestFiles:
    def write(self, folder):
        for n in range(4):
            Image.fromarray(np.full((8 + n, 9), 40 * n, np.uint8)).save(folder / f"{n}.png")
        return folder

    def test_images_are_read_when_they_are_needed(self, tmp_path):
        images = read_images(self.write(tmp_path))
        assert [one.name for one in images.facts] == ["0.png", "1.png", "2.png", "3.png"]
        assert [one.shape_hw for one in images.facts] == [(8, 9), (9, 9), (10, 9), (11, 9)]
        assert images[2].voxels_kji.max() == 80 and images[2] is images[2]

    def test_bad_images_are_named_or_left_out_on_request(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "2.png").write_bytes(b"no picture")
        with raises("bad-images", VolumeError) as caught:
            read_images(tmp_path)
        assert list(caught.value.fields["images"]) == ["2.png"]
        images = read_images(tmp_path, skip_bad=True)
        assert len(images) == 3 and list(images.left_out) == ["2.png"]

    def test_images_are_found_by_name(self, tmp_path):
        images = read_images(self.write(tmp_path))
        assert images.number_of("2.png") == images.number_of("2") == 2
        with raises("unknown-image", VolumeError, image="7.png"):
            images.number_of("7.png")
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "2.bmp")
        with raises("ambiguous-image", VolumeError, image="2"):
            read_images(tmp_path).number_of("2")

    def test_a_file_that_changes_meanwhile_is_noticed(self, tmp_path):
        images = read_images(self.write(tmp_path))
        Image.fromarray(np.full((8, 9), 99, np.uint8)).save(tmp_path / "0.png")
        with raises("image-changed", VolumeError):
            images[0]

    def test_an_empty_set_is_refused(self):
        with raises("no-images", VolumeError):
            ImageSet(())


def test_what_is_kept_does_not_grow_with_the_number_of_images(tmp_path, model, campaign):
    count = 24 if campaign == 1 else 1000
    for n in range(count):
        Image.fromarray(a_picture(n, (40, 40)).voxels_kji[0]).save(tmp_path / f"{n:04d}.png")
    images = read_images(tmp_path)
    session = Session.open(images, model, cache=FeatureCache(2**20))
    session.prompt("it", Box((8, 8, 0), (30, 30, 0)))
    state, held = session.tracker.state("it"), []
    for _ in session.propagate():
        held.append(state.nbytes - sum(len(mask.bits) for mask in state.masks.values()))
    assert len(held) == count
    recent = session.tracker.options.recent_logits
    assert max(held) <= held[1] + recent * 4 * 16 * 16, "logits of the last images, to be corrected"
    assert len(images.images._kept) <= 8
    assert session.tracker.encoder.cache.nbytes <= 2**20
