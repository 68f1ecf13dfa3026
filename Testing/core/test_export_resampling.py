"""A segmentation onto another grid: exact where voxels share their places, else it says what that costs."""

import numpy as np
import pytest
from medsam2_core.errors import ExportError
from medsam2_core.export.resampling import onto_grid
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from support.errors import raises
from support.objects import random_blobs, random_geometry
from support.small_files import OBLIQUE_RAS

SHAPE = (31, 24, 18)


def a_ball(shape_ijk=SHAPE, centre=(15, 12, 9), radius=6.0):
    k, j, i = np.ogrid[: shape_ijk[2], : shape_ijk[1], : shape_ijk[0]]
    return (i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 <= radius**2


def on(geometry, **masks):
    return Segmentation.from_masks(geometry, masks)


def ras_of(segmentation, name):
    k, j, i = np.nonzero(segmentation[name].mask_kji)
    return segmentation.geometry.to_ras(np.column_stack([i, j, k]))


def test_the_same_grid_changes_nothing():
    own = Geometry(OBLIQUE_RAS, SHAPE)
    result = onto_grid(on(own, ball=a_ball()), Geometry(OBLIQUE_RAS, SHAPE))
    assert np.array_equal(result["ball"].mask_kji, a_ball())
    assert result.notes == ()


@pytest.mark.parametrize("seed", range(12))
def test_turned_and_flipped_storage_is_exact_and_needs_no_note(seed):
    rng = np.random.default_rng(seed)
    own = random_geometry(rng, SHAPE)
    axes, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    shape = tuple(int(SHAPE[axis]) for axis in axes)
    turn = np.eye(4)
    turn[:3, :3] = 0
    for new, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        turn[axis, new] = sign
        turn[axis, 3] += 0 if sign > 0 else SHAPE[axis] - 1
    other = Geometry(own.ijk_to_ras @ turn, shape)
    blobs = random_blobs(rng, 3, SHAPE)
    given = Segmentation.from_masks(own, blobs)
    result = onto_grid(given, other)
    assert result.notes == ()
    for name in blobs:
        ours, theirs = ras_of(given, name), ras_of(result, name)
        assert len(ours) == len(theirs)
        assert np.allclose(sorted(map(tuple, ours.round(3))), sorted(map(tuple, theirs.round(3))), atol=2e-3)


def test_a_cropped_grid_goes_back_to_its_place_with_a_note():
    whole = Geometry(OBLIQUE_RAS, SHAPE)
    shift = np.eye(4)
    shift[:3, 3] = (5, 3, 2)
    part = Geometry(OBLIQUE_RAS @ shift, (22, 20, 15))
    mask = a_ball()[2:17, 3:23, 5:27]
    result = onto_grid(on(part, ball=mask), whole)
    assert np.array_equal(result["ball"].mask_kji, a_ball())
    assert [note.code for note in result.notes] == ["placed-on-series-grid"]
    assert result.notes[0].severity == "info"


def test_what_lies_outside_the_series_is_refused_by_name_and_share():
    part = Geometry(OBLIQUE_RAS, (15, 24, 18))  # half of the ball
    with raises("resampling-loss-too-large", ExportError, segment="ball", most_lost=0.05) as refusal:
        onto_grid(on(Geometry(OBLIQUE_RAS, SHAPE), ball=a_ball()), part)
    assert 0.3 < refusal.value.fields["lost"] < 0.4
    result = onto_grid(on(Geometry(OBLIQUE_RAS, SHAPE), ball=a_ball()), part, most_lost=0.5)
    assert "resampling-loss" in [note.code for note in result.notes]
    assert np.array_equal(result["ball"].mask_kji, a_ball()[:, :, :15])


def test_another_scan_is_refused_altogether():
    far = OBLIQUE_RAS.copy()
    far[:3, 3] += 500
    with raises("resampling-loss-too-large", ExportError, lost=1.0):
        onto_grid(on(Geometry(OBLIQUE_RAS, SHAPE), ball=a_ball()), Geometry(far, SHAPE), most_lost=1.0)


def test_a_finer_grid_loses_nothing_and_the_loss_on_a_coarser_one_is_reported():
    own = Geometry(np.diag([1.0, 1.0, 1.0, 1.0]), SHAPE)
    fine = Geometry(np.diag([0.5, 0.5, 0.5, 1.0]), tuple(2 * n for n in SHAPE))
    result = onto_grid(on(own, ball=a_ball()), fine, most_lost=0.001)
    assert [note.code for note in result.notes] == ["resampled"]
    coarse = Geometry(np.diag([3.0, 3.0, 3.0, 1.0]), (11, 8, 6))
    with raises("resampling-loss-too-large", ExportError):
        onto_grid(on(own, ball=a_ball()), coarse)
    result = onto_grid(on(own, ball=a_ball()), coarse, most_lost=0.3)
    volumes = [segmentation.volume_ml("ball") for segmentation in (on(own, ball=a_ball()), result)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.15)


def test_an_object_thinner_than_the_voxels_may_not_vanish_unsaid():
    own = Geometry(np.diag([1.0, 1.0, 1.0, 1.0]), SHAPE)
    line = np.zeros(SHAPE[::-1], dtype=bool)
    line[:, 5, 5] = True
    coarse = Geometry(np.diag([4.0, 4.0, 1.0, 1.0]), (8, 6, 18))
    with raises("resampling-loss-too-large", ExportError, segment="line"):
        onto_grid(on(own, line=line), coarse, most_lost=0.5)


def test_an_oblique_grid_keeps_the_object_in_its_place():
    own = Geometry(np.diag([1.0, 1.0, 1.0, 1.0]), (40, 40, 40))
    ball = a_ball((40, 40, 40), (20, 20, 20), 9)
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (6, -9, 0)
    other = Geometry(turn, (48, 48, 40))
    result = onto_grid(on(own, ball=ball), other, most_lost=0.1)
    centre = ras_of(result, "ball").mean(axis=0)
    assert np.allclose(centre, (20, 20, 20), atol=0.1)


def test_names_colours_and_tags_come_along():
    given = on(Geometry(OBLIQUE_RAS, SHAPE), ball=a_ball(), other=a_ball(radius=3))
    flipped = OBLIQUE_RAS @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    result = onto_grid(given, Geometry(flipped, SHAPE))
    for before, after in zip(given, result, strict=True):
        assert (before.name, before.colour_rgb, before.terminology) == (
            after.name,
            after.colour_rgb,
            after.terminology,
        )


@pytest.mark.parametrize("part", [-0.1, 1.5, float("nan")])
def test_an_impossible_allowance_is_refused(part):
    with raises("invalid-most-lost", ExportError):
        onto_grid(on(Geometry(OBLIQUE_RAS, SHAPE), ball=a_ball()), Geometry(OBLIQUE_RAS, SHAPE), part)
