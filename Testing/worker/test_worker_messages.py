"""What the protocol's words say comes out at the other end as it went in."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medsam2_core import errors
from medsam2_core.errors import (
    GeometryError,
    MedSAM2Error,
    PromptError,
    ProtocolError,
    VolumeError,
    WorkerError,
)
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.slice_mask import SliceMask, pack, unpack
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, MaskPrompt, Point, SlicePrompts
from medsam2_core.worker import messages
from medsam2_core.worker.messages import (
    ObjectSnapshot,
    SessionSettings,
    StackChoice,
    slice_mask_from_json,
    slice_mask_to_json,
)
from medsam2_core.worker.protocol import (
    FrameReader,
    dataclass_from_json,
    encode,
    error_from_json,
    error_to_json,
)


def through_a_frame(item, arrays):
    """The same after it was a frame."""
    (frame,) = FrameReader().feed(b"".join(encode({"type": "t", "item": item}, arrays)))
    return frame.header["item"], frame.arrays


masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))


@given(masks)
def test_a_mask_is_the_same_after_packing(mask_hw):
    box, bits = pack(mask_hw)
    assert np.array_equal(unpack(box, bits, mask_hw.shape), mask_hw)
    assert (box == (0, 0, 0, 0) and bits == b"") == (not mask_hw.any())


def test_bits_lie_as_in_the_protocol():
    mask_hw = np.zeros((5, 20), bool)
    mask_hw[1, 2:12] = True
    mask_hw[3, 2] = True
    assert pack(mask_hw) == ((1, 2, 3, 10), bytes([0xFF, 0xC0, 0x08, 0x00]))


@pytest.mark.parametrize(
    ("box", "bits"),
    [((0, 0, 3, 3), b""), ((4, 0, 2, 2), b"\xf0"), ((0, 0, -1, 2), b""), ((0, 0, 2, 2), b"ab")],
)
def test_bits_that_do_not_fit_are_refused(box, bits):
    with pytest.raises(VolumeError):
        unpack(box, bits, (5, 5))


@given(masks, st.floats(0, 1), st.booleans())
def test_a_record_is_the_same_at_the_other_end(mask_hw, iou, final):
    record = SliceMask.from_mask("liver", 7, mask_hw, predicted_iou=iou, final=final)
    arrays = {}
    assert slice_mask_from_json(*through_a_frame(slice_mask_to_json(record, arrays), arrays)) == record
    assert np.array_equal(record.mask_hw, mask_hw) and record.is_empty == (not mask_hw.any())


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": -1}, {"n": True}, {"n": 1.5}, {"predicted_iou": "1"}, {"predicted_iou": 10**400},
        {"prompted": 1}, {"object": None},
        {"shape_hw": [5]}, {"shape_hw": [2**40, 2**40]}, {"box": [0, 0, 9, 9]}, {"box": [0, 0, 1, 20]},
        {"mask": "another"}, {"mask": None},
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(wrong):
    arrays = {}
    item = slice_mask_to_json(SliceMask.from_mask("liver", 7, np.eye(5, dtype=bool)), arrays)
    with pytest.raises(ProtocolError):
        slice_mask_from_json({**item, **wrong}, arrays)


WORDS = SlicePrompts(
    (Point((1.5, 2, 3)), Box((0, 0, 3), (4, 5, 3)), Point((0, 0, 3), False),
     MaskPrompt(np.eye(3, dtype=bool)[None], (1, 2, 3))),
    final=True,
)  # fmt: skip


def test_prompts_are_the_same_at_the_other_end():
    arrays = {}
    assert messages.slice_prompts_from_json(
        *_with(through_a_frame(messages.slice_prompts_to_json(3, WORDS, arrays), arrays))
    ) == (3, WORDS)


def test_a_known_mask_goes_with_the_prompts():
    known = SliceMask.from_mask("liver", 3, np.eye(6, dtype=bool), prompted=True)
    arrays = {}
    item = messages.slice_prompts_to_json(3, SlicePrompts(WORDS.prompts, known=known), arrays)
    n, words = messages.slice_prompts_from_json(*_with(through_a_frame(item, arrays)))
    assert n == 3 and words.prompts == WORDS.prompts and np.array_equal(words.known.mask_hw, known.mask_hw)


def _with(item_and_arrays):
    item, arrays = item_and_arrays
    return item, "liver", arrays


@pytest.mark.parametrize(
    "prompt",
    [
        None, [], {}, {"kind": "circle"}, {"kind": "point"},
        {"kind": "point", "ijk": [1, 2], "positive": True},
        {"kind": "point", "ijk": [1, 2, None], "positive": True},
        {"kind": "point", "ijk": [1, 2, 3], "positive": 1},
        {"kind": "point", "ijk": [1, 2, 10**400], "positive": True},
        {"kind": "box", "first_ijk": [1, 2, 3], "last_ijk": [1, 2, 3]},
        {"kind": "mask", "array": "none", "offset_ijk": [0, 0, 0]},
        {"kind": "mask", "array": "flat", "offset_ijk": [0, 0, 0]},
        {"kind": "mask", "array": "twos", "offset_ijk": [0, 0, 0]},
        {"kind": "mask", "array": "good", "offset_ijk": [0, 0.5, 0]},
    ],
)  # fmt: skip
def test_a_prompt_that_is_none_is_refused(prompt):
    arrays = {
        "flat": np.ones(4, np.uint8),
        "twos": np.full((1, 2, 2), 2, np.uint8),
        "good": np.ones((1, 2, 2), np.uint8),
    }
    with pytest.raises(PromptError):
        messages.prompt_from_json(prompt, arrays)


def test_slice_prompts_are_true_when_there_is_anything():
    assert not SlicePrompts() and SlicePrompts(final=True)


def test_an_object_is_restored_with_the_masks_that_prompts_alone_would_not_give():
    record = {n: SliceMask.from_mask("liver", n, np.eye(6, dtype=bool), prompted=True) for n in (1, 2, 3)}
    words = {1: SlicePrompts(WORDS.prompts), 3: SlicePrompts(WORDS.prompts), 4: SlicePrompts()}
    arrays = {}
    told = ObjectSnapshot(words, record, {3: record[3]}).to_json(arrays)
    assert [one["n"] for one in told["slices"]] == [1, 3] and [one["n"] for one in told["propagated"]] == [
        2,
        3,
    ]
    assert ["mask" in one for one in told["slices"]] == [False, True]


@pytest.mark.parametrize(
    "choice",
    [
        StackChoice("coronal"),
        StackChoice.oblique(np.zeros(3), (1, 0, 0), [0, 1, 1e-9]),
        StackChoice.oblique([1, 2, 3], (1, 0, 0), [0, 1, 0], (1, 1, 2.5)),
    ],
)
def test_a_stack_is_the_same_at_the_other_end(choice):
    item, _ = through_a_frame(choice.to_json(), {})
    volume = Volume(np.zeros((4, 5, 6), np.int16), Geometry(np.eye(4), (6, 5, 4)))
    assert StackChoice.from_json(item) == choice
    keys = [SliceStack.cut(volume, **vars(one)).key for one in (choice, StackChoice.from_json(item))]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("item", [None, {"axis": "up"}, {"axis": None}, {"axis": []}, {"origin_ras": "abc"}])
def test_a_stack_that_is_none_is_refused(item):
    with pytest.raises(GeometryError):
        volume = Volume(np.zeros((2, 2, 2)), Geometry(np.eye(4), (2, 2, 2)))
        SliceStack.cut(volume, **vars(StackChoice.from_json(item)))


def test_settings_are_the_same_at_the_other_end_and_unknown_ones_are_refused():
    def received(item):
        return dataclass_from_json(SessionSettings, item, "settings")

    settings = SessionSettings(window="400,40", zoom="off")
    assert received(asdict(settings)) == settings
    assert received({}) == SessionSettings()
    for wrong in ({"colour": "red"}, {"window": 3}, None):
        with pytest.raises(ProtocolError):
            received(wrong)


KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, MedSAM2Error)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_what_it_was(kind):
    error = kind("what was wrong", code="its-own-code", value=3, path="a.nrrd")
    (frame,) = FrameReader().feed(b"".join(encode({"type": "error", **error_to_json(error, "Traceback")})))
    told = error_from_json(frame.header)
    assert type(told) is kind
    assert (str(told), told.code, told.details) == ("what was wrong", "its-own-code", "Traceback")
    assert told.fields == {"value": 3, "path": "a.nrrd"}
    assert error_from_json(error_to_json(kind("x"))).code == kind.default_code


def test_a_field_that_is_not_json_does_not_keep_an_error_from_being_sent():
    for value in (float("nan"), Path("a"), np.float32(1.5), {1, 2}):
        told = error_from_json(error_to_json(PromptError("a point", code="c", value=value)))
        assert (told.code, str(told)) == ("c", "a point")


def test_other_errors_arrive_as_errors_of_the_worker():
    class OurOwn(PromptError):
        pass

    for error, kind, known in [
        (MemoryError("2 GB"), "OutOfMemoryError", WorkerError),
        (ZeroDivisionError("1/0"), "InternalError", WorkerError),
        (OurOwn("a point"), "PromptError", PromptError),
        (KeyError(), "InternalError", WorkerError),
    ]:
        item = error_to_json(error)
        told = error_from_json(item)
        assert item["kind"] == told.kind == kind and type(told) is known and str(told)
    for kind in ("NDArray", "__name__", "annotations", "", None, 3):
        assert isinstance(error_from_json({"kind": kind}), MedSAM2Error)
