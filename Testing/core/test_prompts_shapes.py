"""Prompts made of other shapes: whole segments."""

import numpy as np
import pytest
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slices import AxisStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import MaskPrompt
from medsam2_core.prompts.shapes import kept_slices, of_segment
from medsam2_core.prompts.slice_prompts import resolve
from support.command_line import ball_kji
from support.errors import raises


def a_stack(axis: str = "axial") -> AxisStack:
    geometry = Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), (40, 48, 24))
    return AxisStack(Volume(np.zeros((24, 48, 40), np.int16), geometry), axis)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("all", [3, 4, 5, 6, 9, 10, 11]),
        ("ends", [3, 11]),
        ("every:1", [3, 4, 5, 6, 9, 10, 11]),
        ("every:2", [3, 5, 9, 11]),
        ("every:4", [3, 9, 11]),
        ("every:100", [3, 11]),
    ],
)
def test_the_last_slice_is_kept_whatever_the_step(keep, expected):
    assert kept_slices([11, 10, 9, 6, 5, 4, 3], keep) == expected


def test_nothing_is_kept_of_nothing_and_one_of_one():
    assert kept_slices([], "ends") == []
    assert kept_slices([7], "ends") == kept_slices([7], "every:3") == [7]


@pytest.mark.parametrize(
    "keep", ["", "some", "every", "every:", "every:0", "every:-2", "every:1.5", "every:²"]
)
def test_another_choice_of_slices_is_refused(keep):
    with raises("unknown-keep", keep=keep):
        kept_slices([1, 2], keep)


@pytest.mark.parametrize("axis", ["axial", "sagittal", "coronal"])
def test_a_segment_is_its_masks_on_the_kept_slices(axis):
    stack, ball = a_stack(axis), ball_kji()
    whole = [n for n in range(len(stack)) if stack.mask_of(ball, n).any()]
    prompts = of_segment(MaskPrompt.from_volume(ball), stack, "every:3")
    masks = resolve(prompts, stack)
    assert list(masks) == kept_slices(whole, "every:3")
    assert len(prompts) == len(masks) < len(whole)
    for n, given in masks.items():
        assert np.array_equal(given.mask_hw, stack.mask_of(ball, n))
