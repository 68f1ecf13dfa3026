"""Frames: what is written is read again in any pieces, and nothing else is."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from medsam2_core.errors import ProtocolError
from medsam2_core.worker.protocol import DTYPES, MAGIC, FrameReader, encode
from support.errors import raises


def on_the_wire(header, arrays=None, **options):
    return b"".join(encode(header, arrays, **options))


def made_by_hand(header, body=b"", magic=MAGIC, header_size=None, body_size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    sizes = len(text) if header_size is None else header_size, len(body) if body_size is None else body_size
    return magic + struct.pack("<IQ", *sizes) + text + body


def one_array(**changed):
    told = {"name": "a", "dtype": "|u1", "shape": [4], **changed}
    return {"type": "t", "arrays": [told]}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
headers = st.dictionaries(
    st.text(max_size=8).filter(lambda k: k not in ("arrays", "inflated")), values, max_size=4
).map(lambda given: {**given, "type": "anything"})
arrays_by_name = st.dictionaries(
    st.text(max_size=6),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    max_size=3,
)


@given(messages=st.lists(st.tuples(headers, arrays_by_name, st.booleans()), max_size=4), data=st.data())
def test_messages_arrive_whole_whatever_pieces_the_bytes_come_in(messages, data):
    stream = b"".join(on_the_wire(h, a, compress=c) for h, a, c in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, got = FrameReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:stop])
    assert [frame.header for frame in got] == [header for header, _, _ in messages]
    for frame, (_, sent, _) in zip(got, messages, strict=True):
        assert list(frame.arrays) == list(sent)
        for name, array in sent.items():
            assert frame.arrays[name].dtype == array.dtype and frame.arrays[name].shape == array.shape
            assert frame.arrays[name].tobytes() == array.tobytes()
    assert sum(frame.nbytes for frame in got) == len(stream)


def test_arrays_of_any_order_arrive_in_c_order_and_read_only():
    sent = np.arange(24, dtype=">i2").reshape(2, 3, 4).transpose(2, 0, 1)
    (frame,) = FrameReader().feed(on_the_wire({"type": "t"}, {"x": sent, "b": np.array([True, False])}))
    assert np.array_equal(frame.arrays["x"], sent) and frame.arrays["x"].flags.c_contiguous
    assert frame.arrays["x"].flags.aligned and not frame.arrays["x"].flags.writeable
    assert frame.arrays["b"].tolist() == [1, 0]


def test_compression_is_used_only_where_it_helps():
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    for array, is_smaller in ((np.zeros(5000, np.int16), True), (noise, False)):
        pieces = encode({"type": "t"}, {"a": array}, compress=True)
        assert ("inflated" in json.loads(bytes(pieces[0])[16:])) == is_smaller
        (frame,) = FrameReader().feed(b"".join(pieces))
        assert np.array_equal(frame.arrays["a"], array)
        assert "inflated" not in frame.header


def test_what_a_login_prints_is_skipped_and_kept():
    stream = b"Welcome to MS2 cluster!\r\nLast login: today MS2" + on_the_wire({"type": "t"})
    reader, got = FrameReader(skip_banner=True), []
    for n in range(len(stream)):
        got += reader.feed(stream[n : n + 1])
    assert len(got) == 1 and reader.banner.endswith(b"today MS2")


def test_a_stream_without_a_frame_is_given_up_with_what_was_read_instead():
    reader = FrameReader(skip_banner=True)
    with raises("no-worker") as caught:
        for _ in range(2000):
            reader.feed(b"Welcome to a shell that never ends.\n" * 2)
    assert caught.value.fields["output"].startswith("Welcome")


@pytest.mark.parametrize("pieces", [1, 100])
def test_a_worker_of_another_layout_is_named_and_not_taken_for_a_greeting(pieces):
    reader, stream = FrameReader(skip_banner=True), b"Welcome\n" + b"MS2\x03" + bytes(60)
    with raises("frame-layout", layout=3):
        for first in range(0, len(stream), pieces):
            reader.feed(stream[first : first + pieces])


def test_frames_before_damage_are_given_and_then_the_error():
    reader = FrameReader()
    assert len(reader.feed(on_the_wire({"type": "t"}) + b"Segmentation fault (core dumped)")) == 1
    for _ in range(2):
        with raises("not-a-frame", output="Segmentation fault (core dumped)"):
            reader.feed(b"")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"#!/bin/sh echo hello", "not-a-frame"),
        (b"MS2\x03" + bytes(12), "frame-layout"),
        (made_by_hand({"type": "t"}, header_size=2**32 - 1), "frame-size"),
        (made_by_hand({"type": "t"}, body_size=2**64 - 1), "frame-size"),
        (made_by_hand(b'{"type": "t"'), "frame-header"),
        (made_by_hand(b'{"type": "\xff"}'), "frame-header"),
        (made_by_hand(b'{"type": "t", "x": NaN}'), "frame-header"),
        (made_by_hand(b'{"type": "t", "x": ' + b"1" * 5000 + b"}"), "frame-header"),
        (made_by_hand(b"[" * 100_000), "frame-header"),
        (made_by_hand(b"[]"), "frame-header"),
        (made_by_hand({"no": "type"}), "frame-header"),
        (made_by_hand({"type": "t"}, b"more"), "frame-array"),
        (made_by_hand({"type": "t", "arrays": 3}), "frame-array"),
        (made_by_hand({"type": "t", "arrays": [3]}), "frame-array"),
        (made_by_hand(one_array(dtype="|O"), bytes(4)), "frame-array"),
        (made_by_hand(one_array(dtype=">u2"), bytes(4)), "frame-array"),
        (made_by_hand(one_array(dtype=None), bytes(4)), "frame-array"),
        (made_by_hand(one_array(name=["a"]), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[5]), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[-4]), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[True, 4]), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[1] * 40), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[2**62, 2**62]), bytes(4)), "frame-array"),
        (made_by_hand(one_array(shape=[0, 2**62]), bytes(4)), "frame-array"),
        (made_by_hand({**one_array(), "inflated": 4}, b"nope"), "frame-array"),
        (made_by_hand({**one_array(), "inflated": "4"}, zlib.compress(bytes(4))), "frame-size"),
        (made_by_hand({**one_array(), "inflated": -1}, zlib.compress(bytes(4))), "frame-size"),
        (made_by_hand({**one_array(), "inflated": 2**40}, zlib.compress(bytes(4))), "frame-size"),
        (made_by_hand({**one_array(), "inflated": 4}, zlib.compress(bytes(4)) + b"more"), "frame-array"),
        (made_by_hand({**one_array(), "inflated": 4}, zlib.compress(bytes(4))[:-2]), "frame-array"),
        (made_by_hand({"type": "t", "arrays": one_array()["arrays"] * 2}, bytes(8)), "frame-array"),
    ],
)
def test_damage_is_named(data, code):
    with raises(code, ProtocolError):
        FrameReader().feed(data)


@pytest.mark.parametrize("size", [3, 5])
def test_a_compressed_body_must_inflate_to_its_declared_size(size):
    for inflated in (4, size):  # not what there is, or not what the arrays need
        with raises("frame-array"):
            FrameReader().feed(
                made_by_hand({**one_array(), "inflated": inflated}, zlib.compress(bytes(size)))
            )


def test_a_bomb_is_not_inflated():
    import tracemalloc

    bomb = zlib.compress(bytes(200 << 20))
    stream = made_by_hand({**one_array(), "inflated": 4}, bomb)
    tracemalloc.start()
    with raises("frame-array"):
        FrameReader().feed(stream)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_protocol_error(noise):
    for data in (noise, made_by_hand(noise), made_by_hand({**one_array(), "inflated": 4}, noise)):
        try:
            FrameReader(skip_banner=True).feed(data)
            FrameReader().feed(data)
        except ProtocolError:
            pass


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        ({"type": "t", "x": float("nan")}, {}),
        ({"type": "t", "x": {1, 2}}, {}),
        ({"type": "t", "x": "y" * (5 << 20)}, {}),
        ({"type": "t"}, {"x": np.array(["text"])}),
        ({"type": "t"}, {"x": np.zeros(2, np.complex64)}),
    ],
)
def test_what_the_protocol_cannot_express_is_not_written(header, arrays):
    with pytest.raises(ProtocolError):
        encode(header, arrays)


def test_a_large_frame_in_small_pieces_is_read_in_time_that_grows_with_its_size():
    stream = memoryview(on_the_wire({"type": "t"}, {"x": np.zeros(8 << 20, np.uint8)}))
    reader, got = FrameReader(), []
    for start in range(0, len(stream), 1000):
        got += reader.feed(stream[start : start + 1000])
    assert got[0].arrays["x"].size == 8 << 20
