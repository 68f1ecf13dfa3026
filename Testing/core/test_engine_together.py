"""Objects on one slice are decoded in one pass, and find what they would find alone."""

from collections.abc import Callable

import numpy as np
import pytest
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import Cancelled, Interrupted
from support.model import embedded_model, prompt, some_slices

BOXES = {"a": (10, 10, 50, 50), "b": (40, 30, 80, 70), "c": (70, 20, 110, 80)}
SLICES = 5


@pytest.fixture(scope="module")
def model():
    return embedded_model()


def a_tracker(model, alone: bool = False, **options) -> Tracker:
    tracker = Tracker(
        model, SliceEncoder(model, ArrayImages(some_slices(SLICES))), options=TrackerOptions(**options)
    )
    for name, box in BOXES.items():
        tracker.prompt(name, 2, prompt(box=box))
    if alone:
        tracker._look_ahead = lambda *_: None
    return tracker


def decoded(model, monkeypatch) -> list[int]:
    """How many objects each pass of the mask decoder is for, from now on."""
    counts, decode = [], model.module._forward_sam_heads

    def counted(**inputs):
        counts.append(len(inputs["backbone_features"]))
        return decode(**inputs)

    monkeypatch.setattr(model.module, "_forward_sam_heads", counted)
    return counts


def alike(one: Tracker, other: Tracker) -> bool:
    """Whether all masks are equal but for rounding."""
    for name in one.object_ids:
        assert list(one.state(name).masks) == list(other.state(name).masks)
        for n, mask in one.state(name).masks.items():
            a, b = mask.mask_hw, other.state(name).masks[n].mask_hw
            if (a & b).sum() < 0.999 * (a | b).sum():
                return False
    return True


@pytest.mark.parametrize("options", [{}, {"zoom": False}])
def test_objects_on_a_slice_are_decoded_in_one_pass(model, monkeypatch, options):
    together, alone = a_tracker(model, **options), a_tracker(model, alone=True, **options)
    list(alone.propagate())
    counts = decoded(model, monkeypatch)
    list(together.propagate())
    assert counts.count(3) == SLICES - 1 and counts.count(1) == len(counts) - counts.count(3)
    assert alike(together, alone)


def changed_meanwhile(tracker: Tracker, change: Callable[[Tracker], object]) -> Tracker:
    """Propagated, with a change after the first object of the second slice."""
    progress = tracker.propagate()
    while next(progress).n < 4:  # slice 2 is prompted, slice 3 the first
        pass
    change(tracker)
    list(progress)
    return tracker


@pytest.mark.parametrize(
    "change",
    [
        lambda tracker: tracker.prompt("b", 2, prompt(box=(20, 20, 60, 60))),
        lambda tracker: tracker.prompt("b", 3, prompt(points=[(60, 50)], labels=[1])),
        lambda tracker: tracker.remove_object("b"),
        lambda tracker: tracker.restore(tracker.snapshot()),
    ],
)
def test_what_changes_between_two_objects_counts(model, change):
    together = changed_meanwhile(a_tracker(model), change)
    assert alike(together, changed_meanwhile(a_tracker(model, alone=True), change))


def test_an_interrupted_pass_is_made_again(model):
    together, alone = a_tracker(model), a_tracker(model, alone=True)
    list(alone.propagate())
    left = [3]

    def check():
        left[0] -= 1
        if left[0] in (0, -300):
            raise Interrupted

    progress, interrupted, found = together.propagate(), 0, 0
    with model.interruptible_by(check):
        while True:
            try:
                next(progress)
                found += 1
            except Interrupted:
                interrupted += 1
            except StopIteration:
                break
    assert interrupted == 2 and found == len(BOXES) * SLICES
    assert alike(together, alone)


def test_a_propagation_ends_between_two_objects(model):
    tracker, asked = a_tracker(model), []
    progress = tracker.propagate(should_cancel=lambda: len(asked) >= 5)
    with pytest.raises(Cancelled):
        for mask in progress:
            asked.append(mask.object)
    assert len(asked) == 5 and np.sum([len(tracker.state(name).masks) for name in BOXES]) >= 5
