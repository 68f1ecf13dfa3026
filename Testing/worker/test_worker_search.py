"""Objects of other scans in the worker's own process: it finds what a search here finds, and makes way for
clicks; volumes whose slices are images of their own."""

import numpy as np
import pytest
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.volume import Volume
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session, examples
from medsam2_core.session.examples import Example, ExampleSearch, PriorSearch, SearchRun
from medsam2_core.worker.job_messages import SearchRequest
from medsam2_core.worker.messages import example_from_json, segmentation_from_json, segmentation_to_json
from support.errors import raises
from support.model import set_prompts
from support.real_worker import SHAPE_KJI, RealWorker, a_ball, a_box, a_point

BALL_KJI = np.zeros(SHAPE_KJI, bool)
BALL_KJI[8:17, 28:53, 38:63] = True
NOTHING_KJI = np.zeros(SHAPE_KJI, bool)
TERMINOLOGY = "Cat~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Reg~^^~^^"


def a_segmentation(**masks):
    tags = {"TerminologyEntry": TERMINOLOGY}
    segments = (Segment(name, (0.2, 0.4, 0.6), mask, tags=tags) for name, mask in masks.items())
    return Segmentation(a_ball().geometry, tuple(segments))


def some_slices():
    """Of a scan that shows the ball, as a client sends them."""
    volume = a_ball()
    kept = [10, 12, 14]
    thin = Volume(volume.voxels_kji[kept], Geometry(volume.geometry.ijk_to_ras, (96, 80, 3)), name="other")
    segment = Segment("ball", (0.2, 0.4, 0.6), BALL_KJI[kept], tags={"TerminologyEntry": TERMINOLOGY})
    return thin, Segmentation(thin.geometry, (segment,)), "auto"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A worker that has the volume, and a session on it."""
    made = RealWorker(tmp_path_factory.mktemp("worker"))
    made.greet()
    made.answer(made.give(a_ball()))
    made.open()
    yield made
    assert made.close() == 0


@pytest.fixture
def here():
    return Session.open(a_ball(), device="cpu")


def ask(worker, wanted, session="s"):
    arrays = {}
    return worker.send("find", arrays, session=session, **wanted.to_json(arrays))


def run_here(session, search, first, last, names):
    run = SearchRun(session.stack, session.tracker, search, dict.fromkeys(names, ((0.2, 0.4, 0.6), "")))
    for _ in run.run(first, last):
        pass
    assert run.done <= run.total
    return run.found()


def same(told, found, records):
    assert told["name"] == found.name
    assert told["slices"] == sorted(found.masks)
    assert sorted(map(int, told["prompts"])) == sorted(found.prompts)
    return all((records[found.name, n].mask_hw == mask.mask_hw).all() for n, mask in found.masks.items())


def test_lesions_are_found_at_their_old_places(ready, here):
    prior = a_segmentation(ball=BALL_KJI, gone=NOTHING_KJI)
    number = ask(ready, SearchRequest(prior=prior, first=6, last=18))
    records = {(record.object, record.n): record for record in ready.records(number)}
    ball, gone = ready.answer(number).header["classes"]
    assert (ball["colour_rgb"], ball["terminology"]) == ([0.2, 0.4, 0.6], TERMINOLOGY)
    search = PriorSearch(here.tracker, here.stack, prior, range(6, 19))
    assert same(ball, run_here(here, search, 6, 18, ["ball"])[0], records)
    assert gone["confidence"] == 0 and gone["slices"] == []
    assert here.object_names == ()
    assert ready.refused("propagate", session="s")["code"] == "nothing-to-propagate"


def test_an_example_is_some_slices_of_a_segmented_scan(ready, here):
    example = some_slices()
    number = ask(ready, SearchRequest([example], first=10, last=13))
    records = {(record.object, record.n): record for record in ready.records(number)}
    (ball,) = ready.answer(number).header["classes"]
    search = ExampleSearch(here.tracker, here.stack, [Example(*example[:2])], range(10, 14))
    assert same(ball, run_here(here, search, 10, 13, ["ball"])[0], records)
    assert ball["slices"], "nothing was found"


def test_clicks_are_answered_while_it_waits(ready):
    number = ask(ready, SearchRequest(prior=a_segmentation(ball=BALL_KJI)))
    while not ready.about(number, "slice"):
        ready.receive()
    ready.records(ready.set_prompts("clicked", 12, a_point(50, 40, 12)))
    assert not ready.about(number, "result"), "it was done before the click"
    assert ready.answer(number).type == "result"
    ready.ask("remove_object", session="s", object="clicked")


def test_it_is_cancelled(ready):
    number = ask(ready, SearchRequest(prior=a_segmentation(ball=BALL_KJI)))
    while not ready.about(number, "slice"):
        ready.receive()
    ready.ask("cancel", request=number)
    assert ready.answer(number).header["kind"] == "Cancelled"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "message-field"),
        ({"examples": []}, "empty-examples"),
        ({"examples": [3]}, "message-field"),
        ({"prior": {"segments": []}}, "message-field"),
        ({"prior": 3}, "message-field"),
        ({"examples": [], "first": "a"}, "message-field"),
    ],
)
def test_what_makes_no_sense_is_refused(ready, fields, code):
    assert ready.refused("find", session="s", **fields)["code"] == code


def test_a_segmentation_goes_there_and_back():
    arrays = {}
    given = a_segmentation(ball=BALL_KJI, gone=NOTHING_KJI)
    read = segmentation_from_json(segmentation_to_json(given, arrays), arrays)
    assert read.geometry.same_grid(given.geometry) and read.names == given.names
    assert np.array_equal(read["ball"].mask_kji, BALL_KJI) and read["gone"].is_empty
    assert read["ball"].tags == given["ball"].tags


@pytest.mark.parametrize(
    "wrong", [{"offset_ijk": [0, 0, 99]}, {"offset_ijk": [0, 0]}, {"array": "none"}, {"name": 3}]
)
def test_a_damaged_segmentation_is_refused(wrong):
    arrays = {}
    item = segmentation_to_json(a_segmentation(ball=BALL_KJI), arrays)
    item["segments"][0] |= wrong
    with raises("message-field"):
        segmentation_from_json(item, arrays)
    with raises("message-field"):
        example_from_json(segmentation_to_json(a_segmentation(ball=BALL_KJI), {}) | {"voxels": "b"}, arrays)


def test_then_and_now_are_compared(ready):
    arrays = {}
    then = segmentation_to_json(a_segmentation(ball=BALL_KJI), arrays)
    now = segmentation_to_json(a_segmentation(ball=BALL_KJI & (np.arange(96) < 50)), arrays)
    (change,) = ready.ask("compare", arrays, then=then, now=now)["changes"]
    assert change["state"] == "present"
    assert change["change_percent"]["volume_ml"] == pytest.approx(-52)


def test_slices_without_an_order_are_an_image_set(ready):
    """Every image is searched for what the prompted one shows; none depends on its neighbours."""
    ready.open("set", ordered=False)
    ready.records(ready.set_prompts("it", 12, a_box((38, 28, 12), (62, 52, 12)), session="set"))
    number = ready.propagate("set", first=10, last=13)
    found = {record.n: record for record in ready.records(number) if not record.prompted}
    session = Session(a_ball(), Session.open(a_ball(), device="cpu").model, ordered=False)
    assert session.provenance()["ordered"] == "no" and session.provenance()["memory"] == "prompted"
    set_prompts(session, "it", 12, [Box((38, 28, 12), (62, 52, 12))])
    expected = {mask.n: mask for mask in session.propagate(first=10, last=13)}
    assert sorted(found) == [10, 11, 13]
    assert all((found[n].mask_hw == expected[n].mask_hw).all() for n in found)
    ready.ask("close_session", session="set")


def test_a_few_slices_are_enough(here, monkeypatch):
    monkeypatch.setattr(examples, "_MOST_LOOKED_AT", 2)
    search = ExampleSearch(here.tracker, here.stack, [Example(*some_slices()[:2])], range(8, 16))
    assert search.count("ball") == 2 and len(search.looks("ball")) == 2
    here.prompt("other", Point((50, 40, 12)))
    assert here.find_like([Example(*some_slices()[:2])], 8, 15) == []
