"""A connection alone: bytes in, callbacks out, in any pieces and whatever else comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medsam2_core.errors import PromptError, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.worker.messages import slice_mask_to_json
from medsam2_core.worker.protocol import FrameReader, encode
from medsam2_core.worker.requests import Request
from support.wire import Client, call_all


def answer(type, request, arrays=None, **fields):
    return b"".join(encode({"type": type, "re": request.id, **fields}, arrays))


def heard_request(heard, **options):
    return Request(
        "propagate",
        done=lambda result: heard.append(("done", result)),
        failed=lambda error: heard.append(("failed", error)),
        progress=lambda *told: heard.append(("progress", told)),
        slices=lambda records, *told: heard.append(("slices", [r.n for r in records], told)),
        **options,
    )


def a_slice(request, n):
    arrays = {}
    record = slice_mask_to_json(SliceMask.from_mask("a", n, np.eye(5, dtype=bool), prompted=True), arrays)
    return answer("slice", request, arrays, slices=[record], done=n, total=9)


@given(st.lists(st.integers(0, 2000), max_size=12))
def test_answers_arrive_in_order_whatever_pieces_they_come_in(cuts):
    client, heard = Client(), []
    request = client.send(heard_request(heard))
    stream = (
        b"Welcome!\n" + answer("progress", request, what="encoding", done=1, total=None)
        + a_slice(request, 1) + a_slice(request, 2) + answer("result", request, done=2, total=2)
    )  # fmt: skip
    cuts = sorted({min(cut, len(stream)) for cut in cuts})
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        client.on_bytes(stream[start:stop])
    assert not heard, "nobody is called while bytes are read"
    call_all(client)
    assert heard == [
        ("progress", ("encoding", 1, None)),
        ("slices", [1], (1, 9)),
        ("slices", [2], (2, 9)),
        ("done", {"done": 2, "total": 2}),
    ]
    assert not client.open and client.last_output() == "Welcome!"


def test_requests_go_out_with_numbers_never_used_before():
    client = Client()
    for _ in range(3):
        client.send(Request("status"))
    frames = FrameReader().feed(b"".join(client.wire.written))
    assert [frame.header["id"] for frame in frames] == [1, 2, 3]


def test_a_second_answer_and_an_answer_to_nobody_are_passed_by():
    client, heard = Client(), []
    request = client.send(heard_request(heard))
    client.on_bytes(answer("result", request) * 2 + a_slice(request, 1))
    client.on_bytes(b"".join(encode({"type": "result", "re": 999}) + encode({"type": "result", "re": "x"})))
    call_all(client)
    assert len(heard) == 1


def test_an_error_reaches_the_request_or_is_kept():
    client, heard = Client(), []
    request = client.send(heard_request(heard))
    told = {"kind": "PromptError", "code": "outside-volume", "fields": {"axis": "i"}, "message": "outside"}
    client.on_bytes(answer("error", request, **told))
    client.on_bytes(b"".join(encode({"type": "error", "re": None, "kind": "InternalError", "message": "oh"})))
    call_all(client)
    error = heard[0][1]
    assert isinstance(error, PromptError)
    assert (error.code, error.fields, str(error)) == ("outside-volume", {"axis": "i"}, "outside")
    assert str(client.stray[0]) == "oh"


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "shout"}, {"type": "progress"}, {"type": "progress", "done": 1},
        {"type": "slice", "done": 1},
        {"type": "progress", "done": -1, "what": "x"}, {"type": "slice", "done": 1, "slices": [3]},
        {"type": "progress", "done": 1, "what": "x", "total": "many"},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_ends_the_connection(fields):
    client = Client()
    client.send(heard_request([]))
    client.on_bytes(b"".join(encode({"re": 1, **fields})))
    assert client.is_lost
    assert len(client.wire.reasons) == 1


def test_what_is_too_large_to_send_fails_and_sends_nothing():
    client, heard = Client(), []
    client.send(Request("set_prompts", {"object": "x" * (5 << 20)}, failed=heard.append))
    call_all(client)
    assert isinstance(heard[0], ProtocolError) and not client.wire.written and not client.open


def test_a_silenced_request_calls_nobody_even_if_it_was_answered():
    client, heard = Client(), []
    request = client.send(heard_request(heard))
    client.on_bytes(answer("result", request))
    request.silence()
    call_all(client)
    assert not heard


@given(st.binary(max_size=300))
def test_any_bytes_do_no_more_than_end_the_connection(noise):
    client = Client()
    client.send(Request("status"))
    for data in (noise, b"".join(encode({"type": "result", "re": 1})) + noise):
        client.on_bytes(data)
    assert len(client.wire.reasons) <= 1
