"""Memory stays bounded however deep the volume: proven by what is held, not by a clock."""

import tracemalloc

import numpy as np
import pytest
import torch
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.memory import RecentMemory, SelfSortingMemory, SortingMode
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box
from medsam2_core.session import Session
from support.model import prompt, some_slices
from support.tiny_model import storage_bytes, tensors_of, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

DEPTH, SHAPE_HW = 60, (48, 56)
POLICIES = {
    "recent": RecentMemory(),
    "self-sorting": SelfSortingMemory(least_iou=0.0, capacity=8),
    "self-sorting, reference": SelfSortingMemory(SortingMode.REFERENCE, capacity=8),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def a_tracker(model, policy=None, cache=None, count=DEPTH, **options) -> Tracker:
    images = ArrayImages(some_slices(count, SHAPE_HW))
    encoder = SliceEncoder(model, images, FeatureCache(2**20) if cache is None else cache)
    return Tracker(model, encoder, policy, TrackerOptions(**options))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("start", [0, DEPTH - 1], ids=["forward", "reverse"])
def test_an_object_keeps_no_more_tensors_after_60_slices_than_after_40(model, policy, start):
    tracker = a_tracker(model, POLICIES[policy])
    tracker.prompt("it", start, prompt(box=(18, 14, 40, 34)))
    held = []
    for _ in tracker.propagate():
        state = tracker.state("it")
        masks = sum(len(mask.bits) for mask in state.masks.values())
        assert masks <= len(state.masks) * SHAPE_HW[0] * SHAPE_HW[1] / 8 + DEPTH, "masks are kept as bits"
        held.append(state.nbytes - masks)
    assert len(held) == DEPTH
    assert max(held[40:]) <= max(held[:40])
    assert len(set(held[40:])) == 1, "it goes on without growing"


def test_the_reported_size_of_a_state_is_its_size(model):
    """A tensor cut from a larger one keeps all of the larger one in memory."""
    tracker = a_tracker(model)
    tracker.prompt("it", 30, prompt(box=(18, 14, 40, 34)))
    tracker.prompt("it", 33, prompt([(28, 24)], [1]))
    list(tracker.propagate())
    state = tracker.state("it")
    masks = sum(len(mask.bits) for mask in state.masks.values())
    small = 8 * DEPTH * 64  # scores, and pointers counted with their memories only
    assert storage_bytes(tensors_of(state)) <= state.nbytes - masks + small


def test_a_second_object_costs_as_much_as_the_first_and_the_features_nothing(model):
    tracker = a_tracker(model, zoom=False)
    for name, box in (("one", (18, 14, 40, 34)), ("two", (2, 2, 12, 12)), ("three", (30, 30, 50, 44))):
        tracker.prompt(name, 30, prompt(box=box))
    list(tracker.propagate(stop_after_absent=None))
    assert tracker.encoder.encoded == DEPTH, "slices are encoded once for all objects"
    tensors = [storage_bytes(tensors_of(tracker.state(name))) for name in tracker.object_ids]
    assert max(tensors) == min(tensors)


def one_slice(model) -> int:
    """Bytes of the features of a slice."""
    tracker = a_tracker(model)
    tracker.prompt("it", 0, prompt(box=(18, 14, 40, 34)))
    return next(iter(tracker.encoder.cache._entries.values())).nbytes


@pytest.mark.parametrize("slices", [0, 1, 4.5, 12])
def test_the_cache_stays_within_its_limit_whatever_is_pinned(model, slices):
    """Prompted slices of three objects, regions that move and grow, more slices than there is room for."""
    limit = int(slices * one_slice(model))
    cache = FeatureCache(limit)
    tracker = a_tracker(model, cache=cache, count=30)
    for n in (0, 7, 14, 21, 28):  # more pinned slices than fit
        tracker.prompt("one", n, prompt(box=(18 + n / 2, 14, 40, 34)))
        tracker.prompt("two", n, prompt([(28, 24)], [1]))
        check_limit(cache, limit)
    tracker.prompt("three", 3, prompt(box=(1, 1, 9, 9)))
    for _ in tracker.propagate():
        check_limit(cache, limit)
    regions = {region for name in tracker.object_ids for region in tracker.state(name).regions.values()}
    assert len(regions) > 5
    assert len(cache) == int(slices), "and room is used"


def check_limit(cache, limit):
    kept = [part for found in cache._entries.values() for part in (found.coarse, *found.fine)]
    assert cache.nbytes == sum(part.nbytes for part in kept)
    assert storage_bytes(kept) <= cache.nbytes <= limit


def test_masks_do_not_depend_on_what_the_cache_could_hold(model):
    masks = []
    for limit in (0, 3 * one_slice(model), 2**24):
        tracker = a_tracker(model, cache=FeatureCache(limit), count=12)
        tracker.prompt("it", 5, prompt(box=(18, 14, 40, 34)))
        list(tracker.propagate())
        tracker.prompt("it", 8, prompt([(20, 20)], [0]))
        masks.append([result.mask_hw for result in tracker.propagate()])
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers any tensor made inside had."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return out


def a_mapped_volume(path, depth, side=256) -> Volume:
    """(depth, side, side) int16 that lies in a file, written slice by slice."""
    voxels = np.memmap(path, dtype=np.int16, mode="w+", shape=(depth, side, side))
    rng = np.random.default_rng(0)
    for k in range(depth):
        voxels[k] = rng.integers(-100, 100, (side, side))
        voxels[k, 90:160, 100:170] += 300
    voxels.flush()
    mapped = np.memmap(path, dtype=np.int16, mode="r", shape=voxels.shape)
    return Volume(mapped, Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), (side, side, depth)))


def segmented(model, volume, axis, zoom) -> None:
    """From opening to the last of 7 slices."""
    middle = len(volume.voxels_kji) // 2
    session = Session.open(volume, model, axis=axis, zoom=zoom)
    if axis == "axial":
        n = session.prompt("it", Box((95, 85, middle), (175, 165, middle))).n
    else:
        n = session.prompt("it", Box((135, 85, 2), (135, 165, 12))).n
    assert len(list(session.propagate(first=n - 3, last=n + 3))) == 7


def peaks(model, volume, axis, zoom) -> tuple[int, int]:
    """Most bytes numpy held meanwhile, and the most numbers in a tensor."""
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            segmented(model, volume, axis, zoom)
        return tracemalloc.get_traced_memory()[1], largest.numbers
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zoom", ["auto", "off"])
@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_a_volume_is_never_converted_as_a_whole(model, tmp_path, axis, zoom):
    """Neither to floats nor to anything else: four times the slices need the same memory."""
    with LargestTensor():
        segmented(model, a_mapped_volume(tmp_path / "first", 24), axis, zoom)  # what is made once
    shallow, _ = peaks(model, a_mapped_volume(tmp_path / "shallow", 40), axis, zoom)
    deep_volume = a_mapped_volume(tmp_path / "deep", 160)
    deep, largest = peaks(model, deep_volume, axis, zoom)
    slice_as_float = 256 * 256 * 8
    sample = 10_000_000  # the window is chosen from a sample of at most 800,000 voxels, as float64
    assert deep < sample + 8 * slice_as_float
    assert deep < deep_volume.voxels_kji.nbytes
    assert deep < 2.5 * shallow + slice_as_float
    assert largest <= 12 * 256 * 256, "no tensor spans more than a few slices"
