"""Objects on one slice are decoded in one pass, and find what they would find alone."""

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.running import _Ahead
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.errors import Cancelled, DeviceError, Interrupted
from support.bright_object import bright_tracker, discs
from support.errors import raises
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


def held_ahead() -> list[_Ahead]:
    """What is kept, without garbage collection, of objects that were predicted together."""
    return [one for one in gc.get_objects() if type(one) is _Ahead]


@pytest.fixture
def nothing_held():
    """Errors of other tests keep frames, and with them what these hold."""
    gc.collect()
    assert not held_ahead()


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


@pytest.mark.parametrize(("of", "at"), [("with_memory", 3), ("decode_together", 1), ("remember", 5)])
def test_an_interruption_repeats_only_what_it_interrupted(model, monkeypatch, of, at):
    together, alone = a_tracker(model), a_tracker(model)
    attended = calls_of(monkeypatch, "with_memory")
    list(alone.propagate())
    expected = len(attended)
    attended.clear()
    calls_of(monkeypatch, of, {at: Interrupted()})
    progress = together.propagate()
    with pytest.raises(Interrupted):
        list(progress)
    list(progress)
    assert len(attended) == expected
    assert alike(together, alone)


def calls_of(monkeypatch, name: str, errors: dict[int, Exception] | None = None) -> list[int]:
    """Numbers of the calls of a method of heads from now on; those named in `errors` raise before it."""
    calls, method = [], getattr(Heads, name)

    def called(*arguments, **named):
        calls.append(len(calls) + 1)
        if errors and calls[-1] in errors:
            raise errors[calls[-1]]
        return method(*arguments, **named)

    monkeypatch.setattr(Heads, name, called)
    return calls


def test_without_memory_for_several_objects_are_decoded_one_by_one(model, monkeypatch, nothing_held):
    together, alone = a_tracker(model), a_tracker(model, alone=True)
    list(alone.propagate())
    tried, decode = [], model.module._forward_sam_heads

    def full(**inputs):
        tried.append(len(inputs["backbone_features"]))
        if tried[-1] > 1:
            raise torch.cuda.OutOfMemoryError
        return decode(**inputs)

    monkeypatch.setattr(model.module, "_forward_sam_heads", full)
    progress = together.propagate()
    next(mask for mask in progress if not mask.prompted)
    assert not held_ahead()
    list(progress)
    assert [count for count in tried if count > 1] == [3], "not tried again on every slice"
    assert alike(together, alone)


def test_without_memory_for_one_object_it_is_an_error(model, monkeypatch):
    def full(**_):
        raise torch.cuda.OutOfMemoryError

    tracker = a_tracker(model)
    monkeypatch.setattr(model.module, "_forward_sam_heads", full)
    with raises("device-memory", DeviceError):
        list(tracker.propagate())


@pytest.mark.parametrize(("image_size", "most"), [(256, 8), (512, 8), (1024, 2), (2048, 1)])
def test_fewer_objects_are_decoded_together_on_larger_images(monkeypatch, image_size, most):
    tracker, heads = bright_tracker(discs((64, 64), *[(32, 32, 10)] * 2))
    for name in "abcdefghi":
        tracker.prompt(name, 0, prompt(box=(20, 20, 44, 44)))
    counts, decode = [0], heads.decode_together
    monkeypatch.setattr(
        heads, "decode_together", lambda *parts: counts.append(len(parts[0])) or decode(*parts)
    )
    with monkeypatch.context() as larger:
        larger.setattr(tracker.model, "image_size", image_size)
        progress = tracker.propagate()
    assert len(list(progress)) == 18
    assert max(counts) == (most if most > 1 else 0)


def test_nothing_is_kept_after_a_propagation(model, nothing_held):
    tracker = a_tracker(model)
    ended = tracker.propagate()
    list(ended)
    assert not held_ahead()

    asked = []
    stopped = tracker.propagate(should_cancel=lambda: bool(asked))
    next(mask for mask in stopped if not mask.prompted)
    assert len(held_ahead()) == 2, "of the other objects"
    asked.append(True)
    with pytest.raises(Cancelled):
        next(stopped)
    assert not held_ahead()

    left = tracker.propagate()
    next(mask for mask in left if not mask.prompted)
    del left
    assert not held_ahead()


@pytest.mark.parametrize("change", [Tracker.remove_object, lambda tracker, _: tracker.restore({})])
def test_nothing_is_kept_of_an_object_that_was_removed(model, change, nothing_held):
    tracker = a_tracker(model)
    progress = tracker.propagate(last=3)
    while not held_ahead():
        next(progress)
    for name in list(BOXES)[1:]:
        change(tracker, name)
    list(progress)
    assert not held_ahead()


def test_a_propagation_ends_between_two_objects(model):
    tracker, asked = a_tracker(model), []
    progress = tracker.propagate(should_cancel=lambda: len(asked) >= 5)
    with pytest.raises(Cancelled):
        for mask in progress:
            asked.append(mask.object)
    assert len(asked) == 5 and np.sum([len(tracker.state(name).masks) for name in BOXES]) >= 5
