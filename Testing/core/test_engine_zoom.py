"""The region a model looks at: around the prompt, following the object, and off when it shall be as stock."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medsam2_core.engine.maps import BEYOND, logits_of_mask, mask_of_logits, moved_logits
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.recipe import PromptRecipe, box_prior_weight, draw_box
from medsam2_core.engine.zoom import Box, Region, Zoom
from medsam2_core.imaging.slice_mask import SliceMask
from support.bright_object import bright_tracker, discs, overlap
from support.model import a_disc, prompt

CPU = torch.device("cpu")


def test_a_region_is_a_square_in_millimetres():
    zoom = Zoom((200, 300), pixel_mm=(2.0, 0.5), factor=2.0)
    region = zoom.around(Box(100, 90, 140, 100))  # 20 mm wide, 20 mm high
    assert (region.width * 0.5, region.height * 2.0) == (40.0, 40.0)
    assert (region.x0 + region.x1) / 2 == 120 and (region.y0 + region.y1) / 2 == 95


def test_a_region_has_a_least_size_and_never_exceeds_the_slice():
    zoom = Zoom((100, 120))
    assert zoom.around(Box(50, 50, 51, 51)).width == 16
    large = zoom.around(Box(5, 5, 110, 95))
    assert (large.width, large.height) == (120, 120)
    assert (large.x0, large.y0) == (0, -10)  # centred on the slice where it is as long


def test_what_lies_beyond_the_slice_is_black():
    image = np.full((10, 10, 3), 200, np.uint8)
    crop = Region(-4, 6, 4, 14).crop(image)
    assert crop.shape == (8, 8, 3)
    assert (crop[:4, 4:] == 200).all() and crop.sum() == 4 * 4 * 3 * 200
    assert Region(30, 30, 40, 40).crop(image).sum() == 0


def test_positions_in_a_region_are_those_of_its_pixels():
    region = Region(10, 20, 42, 52)
    corners = np.array([[9.5, 19.5], [41.5, 51.5]])  # the outer borders of its first and last pixels
    assert np.allclose(region.to_units(corners), [[0, 0], [1, 1]])
    assert np.allclose(region.to_model(corners, 64), [[-0.5, -0.5], [63.5, 63.5]])
    # Stock leaves the half pixels out.
    whole = Region.whole((50, 100))
    assert np.allclose(whole.to_model(np.array([[50, 25]]), 64), [[32, 32]])


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 40), st.integers(20, 80), st.integers(20, 60))
def test_a_mask_survives_the_way_to_logits_and_back(radius, x, y):
    shape = (90, 110)
    mask = a_disc(shape, (x, y), radius)
    region = Zoom(shape).around(Box.of_mask(mask))
    back = mask_of_logits(logits_of_mask(mask, region, 64, CPU), region, shape)
    assert overlap(mask, back) > 0.93


def test_logits_move_with_the_region():
    shape, old, new = (100, 100), Region(20, 20, 84, 84), Region(30, 10, 110, 90)
    mask = a_disc(shape, (55, 50), 15)
    moved = moved_logits(logits_of_mask(mask, old, 64, CPU), old, new)
    assert overlap(mask_of_logits(moved, new, shape), mask) > 0.95
    assert moved[0, 0, 0, -1] == BEYOND
    assert moved_logits(moved, new, new) is moved


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_packed_masks_lose_nothing(mask):
    packed = SliceMask.from_mask("it", 0, mask)
    assert np.array_equal(packed.mask_hw, mask)
    assert packed.is_empty is not mask.any()


def test_a_region_waits_before_it_moves():
    zoom = Zoom((400, 400))
    region = Region(100, 100, 200, 200)
    assert zoom.follow(region, None) == region
    assert zoom.follow(region, Box(112, 130, 160, 170)) == region  # 12 % from the border
    moved = zoom.follow(region, Box(105, 130, 155, 170))  # 5 %
    assert moved == Region(80, 100, 180, 200)
    shrunk = zoom.follow(region, Box(145, 145, 160, 160))  # less than a quarter …
    assert shrunk.width == 60  # … but never suddenly


def test_a_region_at_the_slices_border_stays():
    zoom = Zoom((100, 100))
    assert not zoom.is_cut(Region(0, 0, 50, 50), Box(0, 0, 30, 30), margin=0.1)
    assert zoom.is_cut(Region(10, 0, 60, 50), Box(10, 0, 30, 30))


def test_the_region_follows_a_wandering_object():
    shape = (120, 400)
    images = discs(shape, *[(40 + 12 * n, 60, 14) for n in range(25)])
    tracker, _ = bright_tracker(images)
    tracker.prompt("it", 0, prompt(box=[26, 46, 54, 74]))
    regions = []
    for result in tracker.propagate():
        assert overlap(result.mask_hw, a_disc(shape, (40 + 12 * result.n, 60), 14)) > 0.9
        regions.append(tracker.state("it").regions[result.n])
    assert 2 < len(set(regions)) < 25
    assert max(region.width for region in regions) < 120


def test_the_region_grows_and_shrinks_with_the_object():
    shape = (300, 300)
    radii = [10, 14, 20, 28, 40, 56, 80, 60, 42, 30, 20, 14, 10, 7, 5]
    tracker, _ = bright_tracker(discs(shape, *[(150, 150, r) for r in radii]))
    tracker.prompt("it", 0, prompt(box=[140, 140, 160, 160]))
    results = list(tracker.propagate())
    for result, radius in zip(results, radii, strict=True):
        assert overlap(result.mask_hw, a_disc(shape, (150, 150), radius)) > 0.85
    widths = [tracker.state("it").regions[result.n].width for result in results]
    assert widths[0] < 50 and widths[6] > 160 and widths[-1] < 60


def test_a_box_that_is_too_small_is_looked_at_again():
    shape = (300, 300)
    tracker, heads = bright_tracker(discs(shape, (150, 150, 40)))
    result = tracker.prompt("it", 0, prompt(box=[140, 140, 160, 160]))
    assert len(heads.asked) > 1
    assert overlap(result.mask_hw, a_disc(shape, (150, 150), 40)) > 0.95


def test_another_look_counts_only_if_the_model_is_as_sure():
    tracker, heads = bright_tracker(discs((300, 300), (150, 150, 40)))
    heads.sureness = lambda region: 10 / region.width
    tracker.prompt("it", 0, prompt(box=[140, 140, 160, 160]))
    assert len(heads.asked) == 2 and tracker.state("it").regions[0] == heads.asked[0]["region"]


def test_a_click_looks_around_and_then_closer():
    shape = (400, 400)
    tracker, heads = bright_tracker(discs(shape, (120, 280, 12)))
    result = tracker.prompt("it", 0, prompt([[118, 279]], [1]))
    widths = [asked["region"].width for asked in heads.asked]
    assert widths[0] == 200 and widths[1] < 80
    assert heads.asked[1]["canvas"] is not None
    assert overlap(result.mask_hw, a_disc(shape, (120, 280), 12)) > 0.9


def test_a_first_click_is_looked_at_in_several_regions_and_the_surest_counts():
    tracker, heads = bright_tracker(
        discs((400, 400), (200, 200, 60)), recipe=PromptRecipe(draws_prompts=True)
    )
    heads.sureness = lambda region: 0.9 if region.width == 400 else 0.5
    tracker.prompt("it", 0, prompt([[200, 200]], [1]))
    widths = [asked["region"].width for asked in heads.asked]
    assert widths[:3] == [200, 100, 400]
    assert tracker.state("it").regions[0].width == 400  # a closer look was less sure
    tracker.prompt("it", 0, prompt([[200, 200], [230, 200]], [1, 1]))
    assert len(heads.asked) - len(widths) <= 3  # a correction looks where the object is


def test_a_box_decides_where_to_look():
    tracker, heads = bright_tracker(
        discs((400, 400), (200, 200, 60)), recipe=PromptRecipe(draws_prompts=True)
    )
    tracker.prompt("it", 0, prompt(box=[140, 140, 260, 260]))
    assert len(heads.asked) == 1


def test_a_correction_that_loses_everything_else_is_not_taken():
    """Two parts; the second answer, to a click beside them, shows nothing any more."""
    shape = (300, 300)
    tracker, heads = bright_tracker(discs(shape, (150, 150, 40)), recipe=PromptRecipe(draws_prompts=True))
    before = tracker.prompt("it", 0, prompt(box=[110, 110, 190, 190]))
    decode = heads.decode
    heads.decode = lambda *given, **more: decode(*given, **more).as_absent()
    after = tracker.prompt("it", 0, prompt([[192, 150]], [0], box=[110, 110, 190, 190]))
    assert overlap(after.mask_hw, before.mask_hw) > 0.98
    stock, heads = bright_tracker(discs(shape, (150, 150, 40)))
    stock.prompt("it", 0, prompt(box=[110, 110, 190, 190]))
    decode = heads.decode
    heads.decode = lambda *given, **more: decode(*given, **more).as_absent()
    assert not stock.prompt("it", 0, prompt([[192, 150]], [0], box=[110, 110, 190, 190])).mask_hw.any()


def test_the_less_sure_an_answer_the_more_the_box_counts():
    """The object fills a quarter of its box; at a predicted IoU of 0.1 most of its ellipse is shown."""
    recipe = PromptRecipe(draws_prompts=True, box_prior=2.0)
    shown = {}
    for iou in (0.95, 0.1):
        tracker, heads = bright_tracker(discs((200, 200), (80, 100, 20)), recipe=recipe)
        heads.sureness = lambda region, iou=iou: iou
        heads.canvas = lambda tokens, previous, side=heads.mask_side: draw_box(tokens.boxes_xyxy, side)
        shown[iou] = tracker.prompt("it", 0, prompt(box=[60, 60, 140, 140])).mask_hw
    assert overlap(shown[0.95], a_disc((200, 200), (80, 100), 20)) > 0.9
    assert overlap(shown[0.1], a_disc((200, 200), (100, 100), 40)) > 0.7


def test_weight_of_the_box():
    recipe = PromptRecipe(draws_prompts=True, box_prior=2.0)
    assert box_prior_weight(recipe, 0.5, 0) == pytest.approx(1.0)
    assert box_prior_weight(recipe, 0.5, 1) == pytest.approx(0.5)
    assert box_prior_weight(recipe, 1.2, 0) == box_prior_weight(PromptRecipe(), 0.1, 0) == 0.0


def test_a_low_object_score_ends_tracking_where_the_recipe_asks_for_it():
    for least, present in ((0.0, True), (11.0, False)):
        recipe = PromptRecipe(draws_prompts=True, least_score=least)
        tracker, _ = bright_tracker(discs((90, 120), *[(60, 45, 10)] * 2), recipe=recipe)
        tracker.prompt("it", 0, prompt(box=[50, 35, 70, 55]))
        list(tracker.propagate())
        assert tracker.result("it", 1).mask_hw.any() == present


def test_a_click_outside_the_region_widens_it():
    shape = (300, 300)
    images = discs(shape, (100, 100, 15))
    images[0][a_disc(shape, (160, 100), 10)] = 255
    tracker, _ = bright_tracker(images)
    small = tracker.prompt("it", 0, prompt(box=[84, 84, 116, 116]))
    wide = tracker.prompt("it", 0, prompt([[160, 100]], [1], box=[84, 84, 116, 116]))
    assert not small.mask_hw[100, 160] and wide.mask_hw[100, 160]


@pytest.mark.parametrize("options", [TrackerOptions(zoom=False), TrackerOptions.stock()])
def test_without_zoom_the_model_sees_whole_slices(options):
    tracker, heads = bright_tracker(discs((90, 120), *[(60, 45, 6)] * 3), options)
    tracker.prompt("it", 0, prompt(box=[54, 39, 66, 51]))
    list(tracker.propagate())
    assert {asked["region"] for asked in heads.asked} == {Region.whole((90, 120))}
