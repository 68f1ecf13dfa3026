"""Whatever comes, the worker answers it, or ends and says why; it never ends without a word."""

import base64
import copy
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from medsam2_core import errors
from medsam2_core.worker.protocol import FrameReader, encode
from support.real_worker import CORE, RealWorker, a_ball, a_box, a_point

KINDS = {name for name in vars(errors) if name.endswith("Error")} | {"Cancelled", "OutOfMemoryError"}
MATRIX = np.diag([1.0, 1.0, 2.0, 1.0]).tolist()


def frame(type, arrays=None, **fields) -> bytes:
    return b"".join(encode({"type": type, **fields}, arrays))


def a_conversation() -> list[bytes]:
    """Good frames, one of every kind that needs no model."""
    words = [{"n": 1, "prompts": [a_point(1, 1, 1)], "final": False}]
    shown = {"shape_kji": [2, 3, 4], "dtype": "<i2", "components": 1, "ijk_to_ras": MATRIX}
    return [
        frame("hello", id=1, protocols=[3], client="test"),
        frame("open_volume", id=2, volume="v", modality="", title="", **shown),
        frame("volume_data", {"voxels_kji": np.zeros((2, 3, 4), "<i2")}, volume="v", first=0),
        frame("set_prompts", id=3, session="s", object="a", slices=words),
        frame("ping", id=4),
        frame("status", id=5),
        frame("prefetch", id=6, session="s", n=1),
        frame("cancel", id=7, request=3),
        frame("close_volume", id=8, volume="v"),
    ]


def damaged(rng: random.Random) -> bytes:
    """The conversation with something wrong in it."""
    frames = a_conversation()
    at = rng.randrange(len(frames))
    data = bytearray(frames[at])
    way = rng.randrange(6)
    if way == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif way == 1:
        del data[rng.randrange(len(data)) :]
    elif way == 2:
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.randint(1, 30))
    elif way == 3:
        struct.pack_into("<I", data, 4, rng.choice([0, 1, 2**20, 2**32 - 1]))
    elif way == 4:
        struct.pack_into("<Q", data, 8, rng.choice([0, 1, 2**30, 2**63, 2**64 - 1]))
    else:
        data = bytearray(rng.randbytes(rng.randint(1, 200)))
    frames[at] = bytes(data)
    return b"".join(frames)


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="300 workers take minutes where processes cannot be forked"
)
def test_damaged_bytes_never_end_it_without_a_word(tmp_path, campaign, record_property):
    rng = random.Random(3)
    record_property("mutated inputs", 300 * campaign)
    streams = [b"".join(a_conversation()), *(damaged(rng) for _ in range(300 * campaign))]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "support" / "forking_worker.py")],
        input=b"".join(struct.pack("<Q", len(data)) + data for data in streams),
        env={**os.environ, "PYTHONPATH": str(CORE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=300 * campaign,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(streams)
    assert outcomes[0]["code"] == 0
    ended = 0
    for outcome in outcomes:
        said = FrameReader().feed(base64.b64decode(outcome["said"]))
        assert outcome["code"] in (0, 76), done.stderr.decode()
        if outcome["code"] == 76:
            ended += 1
            blamed = [one.header for one in said if one.type == "error" and one.header["re"] is None]
            assert blamed[-1]["kind"] == "ProtocolError"
        assert {one.header["kind"] for one in said if one.type == "error"} <= KINDS
    assert 100 < ended / campaign < 300


# Good frames with nonsense in them --------------------------------------------------------------------------

NONSENSE = [
    None,
    -1,
    0,
    3,
    10**12,
    1e300,
    True,
    "",
    "a",
    "x" * 300,
    [],
    [1],
    [[]],
    {},
    {"n": {}},
    "\ud83d\ude00",
]


def requests() -> list[dict]:
    """One request of each kind, about a session that is there."""
    words = [{"n": 12, "prompts": [a_point(50, 40, 12), a_box((33, 23, 12), (67, 57, 12))], "final": False}]
    to = {"session": "s"}
    return [
        {"type": "set_prompts", **to, "object": "a", "slices": words},
        {"type": "restore", **to, "object": "a", "slices": words, "propagated": []},
        {"type": "propagate", **to, "objects": ["a"], "first": 11, "last": 12, "direction": "both"}
        | {"stop_after_absent": 1},
        {"type": "remove_object", **to, "object": "b"},
        {"type": "open_session", "session": "t", "volume": "v", "stack": {"axis": "axial"}, "settings": {}},
        {"type": "open_volume", "volume": "w", "shape_kji": [2, 3, 4], "dtype": "<i2", "components": 1}
        | {"ijk_to_ras": MATRIX, "modality": "", "title": ""},
        {"type": "prefetch", **to, "n": 3},
        {"type": "cancel", "request": 10**6},
        {"type": "remove_model", "name": "embedded"},
        {"type": "close_session", "session": "u"},
        {"type": "close_volume", "volume": "u"},
        {"type": "ping"},
        {"type": "status"},
        {"type": "models"},
    ]


def with_nonsense(request: dict, rng: random.Random) -> dict:
    """The request with a value changed, lost or added, at any depth."""
    request = copy.deepcopy(request)
    places = [(request, key) for key in request if key != "type"]
    for holder, key in places:  # it grows while it is gone through: depth after depth
        value = holder[key]
        if isinstance(value, dict | list):
            places += [(value, inner) for inner in (value if isinstance(value, dict) else range(len(value)))]
    holder, key = rng.choice(places) if places else (request, "more")
    if rng.random() < 0.15 and isinstance(holder, dict):
        holder.pop(key, None)
    else:
        holder[key] = rng.choice(NONSENSE)
    return request


def test_nonsense_is_answered_and_the_session_goes_on(tmp_path, campaign, record_property):
    rng = random.Random(4)
    worker = RealWorker(tmp_path)
    worker.greet()
    worker.answer(worker.give(a_ball(), "v"))
    worker.open("s", "v")
    before = worker.records(worker.set_prompts("click", 12, a_point(50, 40, 12)))
    kinds = set()
    record_property("mutated inputs", 300 * campaign)
    for _ in range(300 * campaign):
        request = with_nonsense(rng.choice(requests()), rng)
        if request["type"] == "open_volume":
            request["volume"] = f"w{rng.random()}" if request.get("volume") == "w" else request.get("volume")
        number = worker.send(**request)
        worker.answer(worker.send("ping"))
        if request["type"] == "open_volume" and not worker.about(number):
            continue  # it waits for voxels
        answer = worker.answer(number).header
        kinds.add(answer.get("kind"))
        assert answer["type"] == "result" or answer["kind"] in KINDS, (request, answer)
        assert not answer.get("details"), (request, answer)
        if request["type"] == "open_session" and answer["type"] == "result":
            worker.ask("close_session", session=request["session"])
        worker.frames.clear()
    assert {"ProtocolError", "PromptError"} <= kinds
    after = worker.records(worker.set_prompts("again", 12, a_point(50, 40, 12)))
    assert [record.bits for record in after] == [record.bits for record in before]
    assert worker.close() == 0
