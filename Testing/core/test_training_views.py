"""What the model sees in training: random anatomy, appearances, views of objects, batches."""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from medsam2_core.errors import TrainingError
from medsam2_core.training import loader
from medsam2_core.training.anatomy import MAX_LABELS, random_anatomy
from medsam2_core.training.appearance import blur, colourise, degrade, paint
from medsam2_core.training.lesions import lesion_level
from medsam2_core.training.loader import Batch, Mixture, Views, fixed_views, stream
from medsam2_core.training.objective import moved
from medsam2_core.training.planes import Piece, draw_plane
from medsam2_core.training.sources import load_shapes, load_sources
from medsam2_core.training.stacks import LabelledStack
from medsam2_core.training.synth import painted_map, random_volume
from medsam2_core.training.views import MAX_OBJECTS, flipped, make_view
from support.errors import raises
from support.model import a_disc
from support.training_folder import write_nifti, write_training_folder

SIZE = 64


@pytest.fixture(autouse=True)
def small_anatomies(monkeypatch):
    monkeypatch.setattr(loader, "random_anatomy", partial(random_anatomy, side=32))


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    return load_sources(write_training_folder(tmp_path_factory.mktemp("views") / "train"))


@pytest.fixture(scope="module")
def views(stacks):
    """Views of every kind of source, single slices and clips."""
    rng = np.random.default_rng(0)
    made_up = LabelledStack("synthetic", "", random_anatomy(rng, 48), None, (1.0, 1.0, 1.0), complete=True)
    found = []
    for stack in (stacks[0], stacks[-2], stacks[-1], made_up):
        for frames in (1, 4):
            made = (make_view(stack, rng, SIZE, frames) for _ in range(20))
            found += [(stack, view) for view in islice(filter(None, made), 7)]
    return found


def test_one_seed_gives_one_anatomy():
    first, same, other = (random_anatomy(np.random.default_rng(seed), 32) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8 and first.shape == (32, 32, 32)


def test_anatomies_differ_in_what_they_hold():
    counts = [len(np.unique(random_anatomy(np.random.default_rng(seed), 24))) for seed in range(8)]
    assert min(counts) >= 3 and max(counts) <= MAX_LABELS + 1
    assert len(set(counts)) > 3


def test_an_appearance_keeps_labels_apart_and_stays_in_range():
    labels = torch.zeros(3, SIZE, SIZE, dtype=torch.long)
    labels[:, 16:48, 16:48] = 1
    contrasts = []
    for seed in range(12):
        image = paint(labels, np.random.default_rng(seed))
        assert image.shape == labels.shape and image.dtype == torch.float32
        assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
        contrasts.append(abs(float(image[labels == 1].mean() - image[labels == 0].mean())))
    assert np.median(contrasts) > 0.1


def test_a_scanner_never_leaves_the_range():
    grey = torch.rand(1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for image in (grey, torch.zeros_like(grey), torch.ones_like(grey)):
        for seed in range(20):
            worse = degrade(image, np.random.default_rng(seed))
            assert worse.shape == image.shape
            assert torch.isfinite(worse).all() and worse.min() >= 0 and worse.max() <= 1


def test_blurring_moves_nothing():
    point = torch.zeros(1, 33, 33)
    point[0, 16, 16] = 1
    blurred = blur(point, 2.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(blurred, blurred.flip(-1)) and torch.allclose(blurred, blurred.transpose(-1, -2))
    spread = (blurred[0].sum(0) * (torch.arange(33) - 16.0).square()).sum()
    assert float(spread) == pytest.approx(4, rel=0.1)  # sigma squared
    assert torch.allclose(blur(torch.ones(1, 9, 9), 1.0), torch.ones(1, 9, 9), atol=1e-5)


def test_some_images_get_a_tint():
    grey = torch.rand(2, 8, 8)
    assert torch.equal(colourise(grey, np.random.default_rng(0), 0.0)[:, 1], grey)
    tinted = colourise(grey, np.random.default_rng(0), 1.0)
    assert tinted.shape == (2, 3, 8, 8)
    assert not torch.equal(tinted[:, 0], tinted[:, 1])


# Views ------------------------------------------------------------------------------------------------------


def test_a_view_holds_what_it_promises(views):
    assert len(views) > 40
    for _, view in views:
        frames = view.image.shape[0]
        assert view.image.shape == (frames, 3, SIZE, SIZE) and view.image.dtype == torch.float32
        assert view.image.min() >= 0 and view.image.max() <= 1 + 1e-5
        assert view.objects.shape[0] == frames and view.objects.shape[2:] == (SIZE, SIZE)
        assert 1 <= view.objects.shape[1] <= MAX_OBJECTS and view.objects.dtype == torch.bool
        assert view.regions.shape == (frames, SIZE, SIZE) and view.regions.dtype == torch.uint8


def test_every_object_of_a_view_is_visible_on_its_first_slice(views):
    for _, view in views:
        shares = view.objects[0].flatten(1).float().mean(1)
        assert (shares >= 40 / 256**2).all() and (shares <= 0.85).all()


def test_what_is_not_labelled_is_unknown_unless_everything_is(views):
    for stack, view in views:
        unknown = view.regions == 255
        if stack.complete:
            assert not unknown.any()
        else:
            assert not (view.regions == 0).any()
            assert not (view.objects.any(1) & unknown).any()


def test_an_object_is_a_region_or_two(views):
    for _, view in views:
        for mask in view.objects[0]:
            inside = set(view.regions[0][mask].tolist())
            assert 1 <= len(inside) <= 2


def test_the_image_shows_the_objects_where_they_are(stacks):
    """In the discs' pictures objects are brighter than all else, whatever the view does to them."""
    rng = np.random.default_rng(1)
    made = [make_view(stacks[0], rng, SIZE, 1) for _ in range(30)]
    agreements = []
    for view in (view for view in made if view is not None):
        grey, mask = view.image[0].mean(0), view.objects[0].any(0)
        near = torch.nn.functional.max_pool2d(mask[None, None].float(), 9, 1, 4)[0, 0].bool()
        if near.all():
            continue
        agreements.append(abs(float(grey[mask].mean() - grey[~near].mean())))
    assert np.mean(np.array(agreements) > 0.05) > 0.85


def test_a_flipped_view_is_still_the_same_view(views):
    rng = np.random.default_rng(3)
    for _, view in views[::5]:
        turned = flipped(view, rng)
        assert turned.objects.shape == view.objects.shape
        assert torch.equal(turned.objects.flatten(2).sum(2), view.objects.flatten(2).sum(2))
        assert torch.equal(turned.regions.flatten().sort().values, view.regions.flatten().sort().values)
        assert turned.image.min() >= 0 and turned.image.max() <= 1
    seen = {flipped(views[0][1], rng).objects.numpy().tobytes() for _ in range(60)}
    assert len(seen) == 8


def test_nothing_to_see_gives_no_view():
    nothing = LabelledStack("r", "c", np.zeros((1, 40, 40), np.uint8), None, (1, 1, 1), True)
    assert make_view(nothing, np.random.default_rng(0), SIZE, 1) is None


def test_labels_of_a_scanner_with_thick_slices_keep_their_shape_in_mm(stacks):
    """The ball of the label volume is an ellipsoid of 3 mm slices: a view's pixels are mm."""
    rng = np.random.default_rng(4)
    flat = LabelledStack("r", "c", stacks[-1].labels_kji, None, (3.0, 1.5, 1.0), True)
    for _ in range(5):
        view = make_view(flat, rng, SIZE, 3)
        assert view is None or view.objects.any()


# Clips ------------------------------------------------------------------------------------------------------


def a_tube(slices=40) -> LabelledStack:
    """A cylinder through slices 10 to 29 of a scan with slices of 3 mm, brighter than all else."""
    labels = np.zeros((slices, 64, 64), np.int16)
    labels[10:30][:, a_disc((64, 64), (32, 32), 10)] = 1
    return LabelledStack("tubes", "c", labels, (labels * 150 + 40).astype(np.uint8), (3.0, 1.0, 1.0), False)


def test_clips_run_from_a_slice_of_the_object_over_its_end():
    rng, seen = np.random.default_rng(5), []
    for _ in range(60):
        plane = draw_plane(a_tube(), rng, 6)
        along = plane.grid[:, 0, 0, 0]
        steps = along.diff()
        assert torch.allclose(steps, steps[:1].expand(5)) and float(steps[0].abs()) >= 1
        assert torch.allclose(along, along.round())  # real slices, not mixtures of two
        assert along.min() >= 0 and along.max() <= 39 and 10 <= along[0] <= 29
        assert float(steps[0].abs()) * 3 <= 9
        seen.append(int(((along >= 10) & (along <= 29)).sum()))
    assert min(seen) <= 2 and max(seen) == 6  # slices with the object


def test_the_object_is_absent_beyond_its_end():
    rng, ended = np.random.default_rng(6), 0
    for _ in range(20):
        view = make_view(a_tube(), rng, SIZE, 6)
        if view is None:
            continue
        present = view.objects[:, 0].flatten(1).any(1).tolist()
        assert present[0] and present == sorted(present, reverse=True)
        ended += not all(present)
    assert ended >= 5


def test_squares_show_how_the_view_moved():
    """The object's mask of the first slice, moved by them, lies where the second slice shows it."""
    rng, moves = np.random.default_rng(7), 0
    for _ in range(60):
        view = make_view(a_tube(), rng, SIZE, 6)
        if view is None:
            continue
        squares = view.squares
        assert torch.allclose(squares[0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-5)
        for turned in (view, flipped(view, rng)):
            for n in range(1, 6):
                before, after = turned.objects[n - 1, 0], turned.objects[n, 0]
                if torch.equal(squares[n - 1], squares[n]) or not (before.any() and after.any()):
                    continue
                moves += 1
                logits = (before.float() * 20 - 10)[None, None]
                shown = moved(logits, turned.squares[n - 1 : n], turned.squares[n : n + 1])[0, 0] > 0
                both = (shown & after).sum() / (shown | after).sum()
                assert both > 0.6
    assert moves > 4


def test_a_piece_is_one_connected_object_of_its_label():
    labels = np.zeros((20, 30, 30), np.int16)
    labels[2:8, 3:10, 3:10] = labels[12:18, 20:28, 20:28] = 1
    stack = LabelledStack("r", "c", labels, None, (1.0, 1.0, 1.0), True)
    found = [Piece.drawn(stack, np.random.default_rng(seed)) for seed in range(20)]
    assert {piece.start_kji for piece in found} == {(2, 3, 3), (12, 20, 20)} or all(
        piece.mask_kji.sum() in (6 * 7 * 7, 6 * 8 * 8) for piece in found
    )
    view = make_view(stack, np.random.default_rng(3), SIZE, 1)
    assert view is None or view.objects.shape[1] >= 1


def test_lesions_end_within_a_clip():
    rng = np.random.default_rng(1)
    square = torch.zeros(8, 16, 16, 2)
    steps = (torch.arange(16) + 0.5) / 16 - 0.5
    square[...] = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    shapes = [torch.ones(48, 48, 48).half()]
    ended = changed = 0
    for n in range(40):
        areas = (lesion_level(square, SIZE, rng, shapes if n % 2 else ()) < 1).flatten(1).sum(1).float()
        ended += bool(areas[0] > 0 and areas[-1] == 0)
        changed += bool((areas > 0).any() and areas.unique().numel() > 1)
    assert ended >= 10 and changed >= 25


def test_a_window_is_drawn_for_ct():
    stack = a_tube()
    hounsfield = LabelledStack(
        "ct", "c", stack.labels_kji, stack.image_kji.astype(np.int16), (3, 1, 1), False
    )
    rng = np.random.default_rng(2)
    made = [make_view(hounsfield, rng, SIZE, 2) for _ in range(8)]
    means = [float(view.image.mean()) for view in made if view is not None]
    assert np.std(means) > 0.02


def test_shapes_of_lesions_are_read_and_no_cases(tmp_path):
    folder = write_training_folder(tmp_path / "train")
    ball = (np.indices((20, 24, 28)) - 10).astype(float)
    write_nifti(folder / "soop_stroke_lesions" / "one_seg.nii.gz", ((ball**2).sum(0) < 60).astype(np.uint8))
    (shape,) = load_shapes(folder)
    assert shape.shape == (48, 48, 48) and float(shape[24, 24, 24]) == 1 and float(shape[0, 0, 0]) == 0
    assert {stack.row for stack in load_sources(folder)} == {"discs", "scans", "shapes"}


# Batches ----------------------------------------------------------------------------------------------------


def batches(stacks, seed, count=2, **changes):
    settings = {"size": SIZE, "frames": 2, "batch": 3, "seed": seed, **changes}
    made = Views(stacks, Mixture(), **settings)
    return [batch for step in range(count) for batch in made[step]]


def test_the_same_seed_gives_the_same_batches(stacks):
    first, same, other = (batches(stacks, seed) for seed in (1, 1, 2))
    for one, two in zip(first, same, strict=True):
        assert one.rows == two.rows
        for name in ("images", "objects", "regions", "image_of"):
            assert torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(first[0].images, other[0].images)


def test_a_batch_gathers_views_and_knows_whose_object_is_whose(stacks):
    (batch,) = batches(stacks, 5, count=1)
    assert batch.images.shape == (3, 2, 3, SIZE, SIZE) and batch.regions.shape == (3, 2, SIZE, SIZE)
    assert batch.objects.shape[1:] == (2, SIZE, SIZE) and len(batch.objects) == len(batch.image_of)
    assert batch.image_of.unique().tolist() == [0, 1, 2]
    views = [make_view(stacks[0], np.random.default_rng(n), SIZE, 1) for n in range(20)]
    views = [view for view in views if view is not None][:2]
    both = Batch.of(views)
    for n, view in enumerate(views):
        assert torch.equal(both.objects[both.image_of == n].transpose(0, 1), view.objects)


def test_making_batches_here_leaves_the_network_its_threads(stacks):
    torch.set_num_threads(2)
    next(stream(Views(stacks, Mixture(), size=SIZE, frames=1, batch=1, seed=0)))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_background_process_makes_the_same_batches(stacks):
    settings = {"size": SIZE, "frames": 1, "batch": 2, "seed": 4}
    views = Views(stacks, Mixture(), **settings)
    (here,), (there,) = (next(stream(views, workers=workers)) for workers in (0, 1))
    assert torch.equal(here.images, there.images)


def test_validation_sees_the_same_views_every_time(stacks):
    first, again = (fixed_views(stacks[:3], SIZE, 1, 2, seed=7) for _ in range(2))
    assert list(first) == ["discs", "synthetic"]
    for row, views in first.items():
        assert len(views) == 2
        for one, two in zip(views, again[row], strict=True):
            assert torch.equal(one.image, two.image) and torch.equal(one.objects, two.objects)


# Synthetic volumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 33, 50])
def test_synthetic_volumes_are_the_same_for_a_seed(side):
    (image, truth), (same, _), (other, _) = (
        random_volume(np.random.default_rng(seed), side) for seed in (3, 3, 4)
    )
    assert np.array_equal(image, same)
    assert not np.array_equal(image, other)
    assert image.shape == truth.shape == (side, side, side) and image.dtype == np.uint8
    assert (truth > 0).mean() > 0.3
    assert len(np.unique(truth)) > 3


def test_a_synthetic_volume_has_a_size():
    with raises("side-too-short", TrainingError, side=16, least=32):
        random_volume(np.random.default_rng(0), side=16)


def test_a_label_map_gets_a_made_up_scan_on_its_own_grid():
    values = np.zeros((3, 40, 60), dtype=np.int16)
    values[:, 10:30, 10:30] = 700
    values[:, 20:35, 40:50] = -3
    scans = [painted_map(values, np.random.default_rng(seed)) for seed in range(12)]
    assert all(scan.shape == values.shape for scan in scans)
    # Over several draws the objects are told apart from what is around them.
    contrasts = [abs(scan[values == 700].mean() - scan[values == 0].mean()) for scan in scans]
    assert max(contrasts) > 60
