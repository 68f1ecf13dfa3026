"""Where a tracked object ends: its appearance beside that of the prompted slice."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from medsam2_core import Box, Session
from medsam2_core.engine.model import load_model
from medsam2_core.engine.presence import Appearance, evidence
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume


def disc_logits(side: int = 64, radius: float = 12.0) -> torch.Tensor:
    y, x = np.mgrid[:side, :side]
    return torch.tensor(radius - np.hypot(x - 31.5, y - 31.5), dtype=torch.float32)[None, None]


def grey_image(inside: int, around: int) -> np.ndarray:
    """A 64 x 64 image, the disc of :func:`disc_logits` in it."""
    grey = np.where(disc_logits()[0, 0].numpy() > 0, inside, around)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


WHOLE = Region.whole((64, 64))


def test_an_appearance_counts_grey_values_inside_and_around():
    found = Appearance.of(grey_image(200, 40), WHOLE, disc_logits())
    assert found.area == (disc_logits() > 0).sum()
    assert found.inside[200 // 16] == 1 and found.around[40 // 16] == 1
    half = Region(16, 16, 48, 48)  # the same logits over a quarter of the slice
    assert Appearance.of(grey_image(200, 40), half, disc_logits()).area == found.area / 4
    assert Appearance.of(grey_image(200, 40), WHOLE, disc_logits(radius=-1.0)) is None


def test_evidence_falls_where_the_mask_covers_something_else():
    seed = Appearance.of(grey_image(200, 40), WHOLE, disc_logits())
    same = evidence(seed, seed, 0.9)
    assert same.tolist() == [1, 0.9, 0, 1, 0]
    gone = evidence(seed, Appearance.of(grey_image(40, 40), WHOLE, disc_logits()), 0.9)
    assert gone.tolist() == [1, 0.9, 0, 0, 1]
    smaller = evidence(seed, Appearance.of(grey_image(200, 40), WHOLE, disc_logits(radius=6.0)), 0.9)
    assert smaller[2] == pytest.approx(np.log(0.25), abs=0.1)


def test_an_object_ends_where_its_grey_value_does():
    # The tracker alone goes on into the tissue that has taken the object's place.
    grey = np.random.default_rng(0).normal(60, 8, (14, 64, 64))
    y, x = np.mgrid[:64, :64]
    column = np.hypot(x - 32, y - 30) < 11
    grey[:, column] += 60
    grey[9:, column] -= 35
    volume = Volume(np.clip(grey, 0, 255).astype(np.int16), Geometry(np.eye(4), (64, 64, 14)))
    model, areas = load_model("embedded", "cpu"), {}
    for weights in (model.recipe.presence, ()):
        one = replace(model, recipe=replace(model.recipe, presence=weights))
        session = Session.open(volume, one)
        session.prompt("column", Box((21, 19, 4), (43, 41, 4)))
        list(session.propagate())
        areas[bool(weights)] = session.mask_kji("column").sum((1, 2))
    assert (areas[True][:9] > 0.8 * column.sum()).all()
    assert areas[False][9:].sum() > 2 * column.sum()
    assert areas[True][9:].sum() == 0
