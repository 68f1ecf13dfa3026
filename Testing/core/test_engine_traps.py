"""Seven things that go wrong in stock sam2 1.1.0, and do not here."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.recipe import STOCK
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from support.model import a_disc, embedded_model, prompt, some_slices

BOX = [40, 30, 80, 62]
WAYS = {"zoom": TrackerOptions(), "off": TrackerOptions(zoom=False), "stock": TrackerOptions.stock()}
EVERY_WAY = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def model():
    return embedded_model()


def a_tracker(model, count=8, options=None, cache=None, **source):
    encoder = SliceEncoder(model, ArrayImages(some_slices(count), **source), cache)
    return Tracker(model, encoder, options=options)


@EVERY_WAY
def test_1_a_correction_of_a_tracked_slice_survives_propagation(model, options):
    """Stock drops the click without a word (facebookresearch/sam2, issue 546)."""
    tracker = a_tracker(model, options=options)
    tracker.prompt("it", 1, prompt(box=BOX))
    tracked = {r.n: r.mask_hw for r in tracker.propagate()}
    corrected = tracker.prompt("it", 5, prompt([[30, 20], [70, 45]], [1, 0]))
    assert not np.array_equal(corrected.mask_hw, tracked[5])
    for _ in range(2):
        again = {r.n: r for r in tracker.propagate()}
        assert again[5].prompted and np.array_equal(again[5].mask_hw, corrected.mask_hw)
    # ... and it is remembered: its neighbours change with it.
    assert not np.array_equal(again[6].mask_hw, tracked[6])


@EVERY_WAY
def test_2_a_correction_makes_what_was_remembered_there_void(model, options):
    """Stock's `clear_non_cond_mem_around_input` raises AttributeError (issue 625)."""
    tracker = a_tracker(model, options=options)
    tracker.prompt("it", 0, prompt(box=BOX))
    list(tracker.propagate())
    state = tracker.state("it")
    remembered = {memory.n for bank in state.banks for memory in bank.memories()}
    assert 6 in remembered
    tracker.prompt("it", 6, prompt(mask=a_disc((90, 120), (60, 45), 12)))
    remembered = {memory.n for bank in state.banks for memory in bank.memories()}
    assert 6 not in remembered and 6 not in state.recent


def test_2_a_new_propagation_reads_nothing_an_old_one_remembered(model):
    tracker = a_tracker(model, options=TrackerOptions(zoom=False))
    tracker.prompt("it", 4, prompt(box=BOX))
    first = [r.mask_hw for r in tracker.propagate()]
    again = [r.mask_hw for r in tracker.propagate()]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("ordered", [True, False])
def test_3_slices_before_the_prompt_need_no_autocast(model, ordered):
    """Stock fails with BFloat16 against Float where memories but no pointers are read (issue 577)."""
    tracker = a_tracker(model, 5, ordered=ordered)
    tracker.prompt("it", 3, prompt(box=BOX))
    assert sorted(r.n for r in tracker.propagate()) == [0, 1, 2, 3, 4]


@EVERY_WAY
def test_4_a_range_is_exact(model, options):
    """Stock gives one slice too many, and none in reverse from slice 0."""
    tracker = a_tracker(model, options=options)
    tracker.prompt("it", 0, prompt(box=BOX))
    assert [r.n for r in tracker.propagate(first=0, last=2)] == [0, 1, 2]
    assert [r.n for r in tracker.propagate(direction="reverse")] == [0]


def test_5_memory_does_not_grow_with_the_volume():
    """Stock frees nothing (issues 196 and 264)."""
    model = embedded_model(STOCK)
    limit = 3 * 2**20
    cache = FeatureCache(limit)
    tracker = a_tracker(model, 40, TrackerOptions(zoom=False, recent_logits=8), cache)
    tracker.prompt("it", 0, prompt(box=BOX))
    sizes = []
    for result in tracker.propagate():
        sizes.append(
            tracker.state("it").nbytes - sum(len(mask.bits) for mask in tracker.state("it").masks.values())
        )
        assert cache.nbytes <= limit, f"cache over its limit on slice {result.n}"
    assert len(sizes) == 40
    assert max(sizes[20:]) == min(sizes[20:]) == max(sizes)
    # Six memories and fifteen pointers, eight masks' logits, and what belongs to the prompted slice.
    memories, pointers, logits = 64 * 16 * 16 * 2, 128 * 4, 64 * 64 * 4
    assert sizes[-1] == 7 * memories + 16 * pointers + 9 * logits


def test_6_and_7_importing_costs_nothing_and_needs_no_torchvision():
    """`import torchvision` fails beside a CPU-only torch; and Hydra's state belongs to whoever embeds us."""
    script = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "import medsam2_core.engine.tracker\n"
        "early = {name.split('.')[0] for name in sys.modules} & {'sam2', 'hydra'}\n"
        "assert not early, early\n"
        "from medsam2_core.engine.model import SegmentationModel, build_module\n"
        "module = build_module('embedded')\n"
        "import sam2.sam2_video_predictor\n"
        "from medsam2_core.engine.heads import Heads\n"
        "Heads(SegmentationModel.of(module, 'test'))\n"
        "print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("fine\n"), done.stderr


def test_7_one_model_serves_many_trackers(model):
    """Building is dear, so nothing of a tracker may stay behind in the model."""
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    answers = []
    for _ in range(2):
        tracker = a_tracker(model, 3)
        tracker.prompt("it", 1, prompt(box=BOX))
        answers.append(np.stack([r.mask_hw for r in tracker.propagate()]))
    assert np.array_equal(*answers)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
