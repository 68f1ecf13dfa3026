"""Auto from the client's side: what comes is put together, also by a second worker; nonsense is refused."""

from dataclasses import replace

import numpy as np
import pytest
from medsam2_core.errors import Cancelled, ProtocolError
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import Box, Point, SlicePrompts
from medsam2_core.worker.client import WorkerState
from medsam2_core.worker.job_messages import AutoModelInfo, AutoRequest, prediction_from_json
from medsam2_core.worker.messages import ObjectSnapshot
from medsam2_core.worker.protocol import dataclass_from_json, encode
from medsam2_core.worker.requests import Request
from support.supervised_worker import clicks, fake_worker
from support.wire import Client, call_all


def test_slices_are_passed_on_as_they_come_and_put_together_at_the_end(supervised):
    worker = supervised()
    session = worker.session()
    came = []
    wish = AutoRequest("any", first=1, last=4)
    (found,) = worker.answer(session.auto, wish, lambda records, *counts: came.append((records, *counts)))
    assert [(records[0].n, done, total) for records, done, total in came] == [
        *((1, 1, 4), (2, 2, 4), (3, 3, 4), (4, 4, 4))
    ]
    assert (found.name, found.colour_rgb, found.confidence) == ("square", (1.0, 0.0, 0.0), 0.8)
    assert found.is_found
    assert {n: record.prompted for n, record in found.masks.items()} == {
        1: True,
        2: False,
        3: False,
        4: False,
    }
    ((box,),) = found.prompts.values()
    assert isinstance(box, Box)
    assert box.predicted
    assert session.objects == (), "nothing is known until somebody says it"


def test_what_was_found_is_passed_to_the_session_and_to_the_next_worker(supervised):
    worker = supervised()
    session = worker.session()
    (found,) = worker.answer(session.auto, AutoRequest("any"))
    said = {n: SlicePrompts(prompts, known=found.masks[n]) for n, prompts in found.prompts.items()}
    worker.answer(session.restore, "a", ObjectSnapshot(said, found.masks))
    assert session.masks("a").keys() == found.masks.keys()
    refined = {0: SlicePrompts((*found.prompts[0], Point((20, 12, 0))))}
    (answer,) = worker.answer(session.set_prompts, "a", refined)
    assert answer.mask_hw[12, 20]
    worker.process.kill()
    worker.until_state(WorkerState.RESTARTING)
    worker.until(lambda: session.is_open)
    assert np.array_equal(session.masks("a")[0].mask_hw, answer.mask_hw)
    again = worker.answer(
        session.set_prompts, "a", {0: SlicePrompts((*refined[0].prompts, Point((25, 12, 0))))}
    )
    assert again[0].mask_hw[12, 20], "the mask the words corrected is gone"


@pytest.mark.parametrize("action", ["die", "hang", "garbage"])
def test_a_worker_that_is_lost_at_it_is_asked_again(supervised, tmp_path, action):
    worker = supervised(fake_worker("--at", "auto", action, "--times", 1, "--notes", tmp_path))
    session = worker.session()
    (found,) = worker.answer(session.auto, AutoRequest("any"))
    assert len(found.masks) == 6
    assert WorkerState.RESTARTING in worker.states


def test_what_ends_the_worker_twice_is_not_asked_a_third_time(supervised, tmp_path):
    worker = supervised(fake_worker("--at", "auto", "die", "--times", 9, "--notes", tmp_path))
    session = worker.session()
    error = worker.answer(session.auto, AutoRequest("any"))
    assert (error.code, error.fields) == ("worker-lost-twice", {"request": "auto"})
    assert worker.answer(session.set_prompts, "a", clicks((5, 6), n=2))[0].n == 2


def test_it_can_be_cancelled_before_it_was_sent(supervised):
    worker = supervised(start=False)
    worker.client.start()
    session = worker.session(wait=False)
    answers = []
    session.auto(AutoRequest("any"), done=answers.append, failed=answers.append).cancel()
    worker.until(lambda: answers)
    assert isinstance(answers[0], Cancelled)


def test_notes_of_a_training_reach_who_wants_them():
    client, notes, counts = Client(), [], []
    request = client.send(
        Request("train_auto", note=notes.append, progress=lambda *told: counts.append(told))
    )
    told = {"type": "progress", "re": request.id, "what": "training", "done": 3, "total": None}
    client.on_bytes(b"".join(encode({**told, "message": "training, Dice 0.5"})))
    client.on_bytes(b"".join(encode(told)))
    call_all(client)
    assert notes == ["training, Dice 0.5"]
    assert counts == [("training", 3, None)] * 2


RECORD = SliceMask.from_mask("a", 1, np.ones((4, 5), bool), prompted=True)
CLASS = {
    **{"name": "a", "colour_rgb": [0, 0.5, 1], "terminology": "", "confidence": 0.5},
    **{"slices": [1], "prompts": {"1": [{"kind": "point", "ijk": [1, 1, 1], "positive": True}]}},
}


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"slices": [2]},
            {"slices": ["1"]},
            {"slices": None},
            {"prompts": {"one": []}},
            {"confidence": "x"},
        ),
        *({"colour_rgb": [1, 2, 3]}, {"colour_rgb": [1, 0]}, {"name": 3}, {"terminology": None}, None),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_protocol_error(wrong):
    received = {("a", 1): RECORD}
    assert prediction_from_json(CLASS, {}, received).masks == {1: replace(RECORD, prompted=True)}
    with pytest.raises(ProtocolError):
        prediction_from_json(None if wrong is None else {**CLASS, **wrong}, {}, received)


def test_models_of_a_later_version_may_have_more_fields_and_damaged_ones_are_refused():
    item = {"file": "f", "path": "/p", "name": "n", "classes": [{"name": "a", "more": 1}], "base": "b"}
    item |= {"axis": "axial", "modality": "", "training": {"dice": {"a": {"mean": 0.6}, "b": 0.8}}, "more": 2}
    entry = AutoModelInfo.from_json(item)
    assert entry.dice == pytest.approx(0.7)
    assert AutoModelInfo.from_json({**item, "training": None}).dice is None
    assert AutoModelInfo.from_json({**item, "training": {"dice": {"a": {"mean": None}}}}).dice is None
    for wrong in ({"classes": "a"}, {"file": None}, {"axis": 3}):
        with pytest.raises(ProtocolError):
            AutoModelInfo.from_json({**item, **wrong})


def test_a_request_goes_there_and_back():
    for wish in (AutoRequest("m"), AutoRequest("m", ("a", "b"), 3, 9, "slices", True)):
        assert dataclass_from_json(AutoRequest, wish.to_json(), "auto") == wish
