"""With zoom off, our tracker gives what sam2's own video predictor gives: logits within 1e-3 in fp32."""

import numpy as np
import pytest
import torch
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.heads import Heads
from medsam2_core.engine.memory import Query, RecentMemory, SliceMemory
from medsam2_core.engine.options import TrackerOptions
from medsam2_core.engine.tracker import Tracker
from medsam2_core.engine.zoom import Region
from support.model import StockAndOurs, a_disc, prompt

TOLERANCE = 1e-3
COUNT = 10


FLAGS = {"count": COUNT, "add_all_frames_to_correct_as_cond": True}


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> StockAndOurs:
    return StockAndOurs.build(tmp_path_factory.mktemp("frames"), **FLAGS)


@pytest.fixture(scope="module", params=[5.0, -5.0], ids=["present", "absent"])
def both_of_sam2_0(tmp_path_factory, request) -> StockAndOurs:
    """SAM 2.0: pointers without times or projection, and no embedding for "the object is not here"."""
    folder = tmp_path_factory.mktemp("frames")
    return StockAndOurs.build(folder, score_bias=request.param, config="sam2_hiera_t", **FLAGS)


@pytest.fixture(scope="module")
def both_see_nothing(tmp_path_factory) -> StockAndOurs:
    """The object score is negative on every slice."""
    return StockAndOurs.build(tmp_path_factory.mktemp("frames"), score_bias=-5.0, **FLAGS)


class Comparison:
    """The same prompts to stock and to ours, and the largest difference of all their masks."""

    def __init__(self, both: StockAndOurs, options: TrackerOptions | None = None) -> None:
        self.both, self.state = both, both.state()
        self.tracker = Tracker.stock(both.model, both.encoder)
        if options is not None:
            self.tracker = Tracker(both.model, both.encoder, options=options)
        self.worst, self.pixels, self.spread = 0.0, 0, []

    def prompt(self, name: str, n: int, points=(), labels=(), box=None, mask=None) -> None:
        stock = self.both.stock
        if mask is not None:
            answer = stock.add_new_mask(self.state, n, name, mask)
        else:
            given = (
                (np.array(points, np.float32), np.array(labels, np.int32)) if len(labels) else (None, None)
            )
            answer = stock.add_new_points_or_box(self.state, n, name, *given, box=box)
        result = self.tracker.prompt(name, n, prompt(points, labels, box, mask))
        self._compare(answer, {name: result})

    def propagate(self, direction: str = "forward", start: int | None = None, **limits) -> None:
        reverse = direction == "reverse"
        answers = self.both.stock.propagate_in_video(self.state, start, reverse=reverse)
        theirs = {n: (n, names, masks) for n, names, masks in answers}
        ours: dict[int, dict] = {}
        for result in self.tracker.propagate(direction=direction, **limits):
            ours.setdefault(result.n, {})[result.object] = result
        for n, results in ours.items():
            self._compare(theirs[n], results)
        assert self.pixels

    def _compare(self, answer, results) -> None:
        _, names, masks = answer
        for name, result in results.items():
            theirs = masks[names.index(name), 0].numpy()
            ours = self.both.logits(self.tracker, result)
            self.worst = max(self.worst, float(np.abs(theirs - ours).max()))
            self.pixels += ours.size
            self.spread.append(float(theirs.std()))
            if result.prompted and result.mask_hw.any() and np.ptp(theirs) == 20:
                continue  # a user's own mask is returned as it was drawn
            assert np.mean((theirs > 0) == result.mask_hw) > 0.999

    def agree(self, record_property) -> None:
        record_property("largest difference", self.worst)
        print(f"largest difference {self.worst:.1e}, spread of logits {np.median(self.spread):.2f}")
        assert self.worst < TOLERANCE


FIRST_PROMPTS = {
    "a point": {"points": [[60, 45]], "labels": [1]},
    "two points": {"points": [[60, 45], [20, 20]], "labels": [1, 0]},
    "a box": {"box": [40, 30, 80, 62]},
    "a box and a point": {"box": [40, 30, 80, 62], "points": [[60, 45]], "labels": [1]},
    "a mask": {"mask": a_disc((90, 120), (60, 45), 17)},
    "an empty mask": {"mask": np.zeros((90, 120), bool)},
}


@pytest.mark.parametrize("given", FIRST_PROMPTS.values(), ids=FIRST_PROMPTS)
def test_one_prompt_and_the_slices_after_it(both, given, record_property):
    pair = Comparison(both)
    pair.prompt("it", 0, **given)
    pair.propagate()
    pair.agree(record_property)


def test_clicks_after_each_other_on_one_slice(both, record_property):
    pair = Comparison(both)
    points = [[60, 45], [70, 50], [20, 20]]
    for count in (1, 2, 3):
        pair.prompt("it", 3, points[:count], [1, 1, 0][:count])
    pair.agree(record_property)


def test_two_prompted_slices_and_one_where_the_object_is_absent(both, record_property):
    pair = Comparison(both)
    pair.prompt("it", 1, box=[40, 30, 80, 62])
    pair.prompt("it", 6, [[70, 40]], [1])
    pair.prompt("it", 8, mask=np.zeros((90, 120), bool))
    pair.propagate()
    pair.agree(record_property)


def test_forward_then_reverse_in_one_state(both, record_property):
    pair = Comparison(both)
    pair.prompt("it", 5, box=[40, 30, 80, 62])
    pair.propagate("forward", 5)
    pair.propagate("reverse", 5, last=4)
    pair.agree(record_property)


def test_a_fresh_reverse_pass_is_what_stock_gives_in_a_fresh_state(both, record_property):
    pair = Comparison(both, TrackerOptions(zoom=False))
    pair.prompt("it", 5, box=[40, 30, 80, 62])
    list(pair.tracker.propagate(direction="forward"))
    pair.propagate("reverse", 5)
    pair.agree(record_property)


def test_our_defaults_track_forward_as_stock_does_with_memory_bounded(both, record_property):
    pair = Comparison(both, TrackerOptions(zoom=False))
    pair.prompt("it", 0, [[60, 45]], [1])
    pair.propagate()
    pair.agree(record_property)


def test_an_object_that_comes_late(both, record_property):
    pair = Comparison(both)
    pair.prompt("first", 0, box=[40, 30, 80, 62])
    pair.propagate()
    pair.prompt("second", 4, [[80, 40]], [1])
    # Stock fails on slices before the late object's prompt (without autocast), so both start there.
    pair.propagate("forward", 4, first=4)
    pair.agree(record_property)


def test_objects_that_are_thought_absent(both_see_nothing, record_property):
    pair = Comparison(both_see_nothing)
    pair.prompt("it", 2, [[60, 45]], [1])
    pair.prompt("it", 4, mask=a_disc((90, 120), (60, 45), 17))
    pair.prompt("it", 8, mask=np.zeros((90, 120), bool))
    pair.propagate()
    pair.prompt("it", 6, [[75, 40]], [1])
    pair.propagate()
    pair.agree(record_property)


def test_with_the_postprocessing_of_stock(tmp_path, record_property):
    """Best of three where one mask is unstable, clicked masks binarised: the model's own flags."""
    pair = Comparison(StockAndOurs.build(tmp_path, count=4, postprocessing=True))
    pair.prompt("it", 0, [[60, 45], [70, 50]], [1, 1])
    pair.propagate()
    pair.agree(record_property)


def test_the_comparison_would_notice_another_prompt(both):
    """Random weights could hide an error by not listening to memories at all: they do listen."""
    logits = []
    for given in (FIRST_PROMPTS["a point"], FIRST_PROMPTS["a box"]):
        tracker = Tracker.stock(both.model, both.encoder)
        tracker.prompt("it", 0, prompt(**given))
        logits.append([both.logits(tracker, result) for result in tracker.propagate()])
    assert all(np.abs(a - b).max() > 20 * TOLERANCE for a, b in zip(*logits, strict=True))


def test_corrections_of_tracked_slices(both, record_property):
    pair = Comparison(both)
    pair.prompt("it", 2, box=[40, 30, 80, 62])
    pair.propagate()
    pair.prompt("it", 7, [[75, 40]], [1])
    pair.prompt("it", 7, [[75, 40], [20, 70]], [1, 0])
    pair.prompt("it", 2, [[60, 45]], [1])
    pair.propagate()
    pair.agree(record_property)


def test_sam2_0_forward_then_reverse(both_of_sam2_0, record_property):
    module = both_of_sam2_0.model.module
    assert not module.use_signed_tpos_enc_to_obj_ptrs and not module.proj_tpos_enc_in_obj_ptrs
    assert module.no_obj_embed_spatial is None
    pair = Comparison(both_of_sam2_0)
    pair.prompt("it", 4, box=[40, 30, 80, 62])
    pair.propagate("forward", 4)
    pair.propagate("reverse", 4, last=3)
    pair.agree(record_property)


def test_sam2_0_corrections_and_an_empty_slice(both_of_sam2_0, record_property):
    pair = Comparison(both_of_sam2_0)
    pair.prompt("it", 1, [[60, 45]], [1])
    pair.propagate()
    pair.prompt("it", 5, [[75, 40], [20, 70]], [1, 0])
    pair.prompt("it", 8, mask=np.zeros((90, 120), bool))
    pair.propagate()
    pair.agree(record_property)


def test_stock_attends_to_all_prompted_slices_and_we_to_the_nearest(both):
    assert Tracker.stock(both.model, both.encoder)._policy.bank(both.model.module)._nearest == -1
    assert Tracker(both.model, both.encoder)._policy.bank(both.model.module)._nearest == 16


def test_the_image_encoder_sees_what_stock_sees_at_512_pixels(tmp_path):
    the_encoder_agrees(StockAndOurs.build(tmp_path, count=4, image_size=512, config="sam2_hiera_t"))


def test_the_image_encoder_sees_what_stock_sees(both):
    the_encoder_agrees(both)


def the_encoder_agrees(both: StockAndOurs) -> None:
    state = both.state()
    whole = Region.whole(both.shape_hw)
    ours = both.encoder.model_input(3, whole)
    assert torch.equal(ours[0], state["images"][3])
    with torch.inference_mode():
        _, features, _, _ = both.stock._get_image_feature(state, 3, 1)[1:]
    found = both.encoder.features(3, whole)
    for theirs, mine in zip(features, (*found.fine, found.coarse), strict=True):
        difference = theirs - mine.flatten(2).permute(2, 0, 1)
        assert difference.abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("slices", "past"), [(1, True), (1, False), (3, True), (7, True), (16, True)])
def test_memory_attention(both, slices, past, reverse):
    """A prompted slice (passed, or ahead and so without a pointer) and the slices before the current one."""
    module, encoder, n, total = both.model.module, both.encoder, 20, 41
    generator = torch.Generator().manual_seed(slices)
    side = both.model.image_size // 16
    step = 1 if reverse else -1
    numbers = [n + step * slices if past else n - step] + [n + step * k for k in range(slices - 1, 0, -1)]
    memories = {}
    for number in numbers:
        features = torch.randn(1, 64, side, side, generator=generator)
        pointer = torch.randn(1, 256, generator=generator)
        memories[number] = SliceMemory(number, features, pointer, 1.0, 1.0, Region.whole(both.shape_hw))
    position = module.memory_encoder.position_encoding(features)
    as_stock = {
        number: {"maskmem_features": m.features, "maskmem_pos_enc": [position], "obj_ptr": m.pointer}
        for number, m in memories.items()
    }
    given, *others = numbers
    features = encoder.features(0, Region.whole(both.shape_hw))
    tokens = [x.flatten(2).permute(2, 0, 1) for x in (features.coarse, encoder.position())]
    with torch.no_grad():
        theirs = module._prepare_memory_conditioned_features(
            n,
            False,
            tokens[:1],
            tokens[1:],
            [(side, side)],
            {
                "cond_frame_outputs": {given: as_stock[given]},
                "non_cond_frame_outputs": {number: as_stock[number] for number in others},
            },
            total,
            reverse,
        )
    bank = RecentMemory().bank(module)
    for number in others:
        bank.add(memories[number])
    read = bank.read(Query(n, total, reverse, True, features.coarse), {given: memories[given]})
    assert len(read.spatial) == min(slices, 7) and len(read.pointers) == (slices if past else 0)
    ours = Heads(both.model).with_memory(features, encoder.position(), read, total)
    assert (theirs - ours).abs().max() < 1e-4


def test_bf16_masks_are_those_of_stock_in_bf16(tmp_path):
    both = StockAndOurs.build(tmp_path, count=3)
    half = type(both.model).of(both.model.module, "test", precision="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = both.state()
        both.stock.add_new_points_or_box(state, 0, "it", box=[40, 30, 80, 62])
        theirs = [masks[0, 0].numpy() > 0 for _, _, masks in both.stock.propagate_in_video(state)]
    tracker = Tracker.stock(half, SliceEncoder(half, both.encoder.source))
    tracker.prompt("it", 0, prompt(box=[40, 30, 80, 62]))
    ours = [result.mask_hw for result in tracker.propagate()]
    assert np.mean(np.stack(theirs) == np.stack(ours)) >= 0.999
