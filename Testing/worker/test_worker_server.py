"""The worker's own process with the model that ships: it answers as a session here would, in order."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from medsam2_core.errors import ProtocolError
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.prompts import Box, Point
from medsam2_core.session import Session
from medsam2_core.version import __version__
from medsam2_core.worker.incoming import IncomingVolumes
from medsam2_core.worker.measuring import measure_to_json
from medsam2_core.worker.messages import prompt_to_json, slice_mask_to_json
from medsam2_core.worker.protocol import encode
from medsam2_core.worker.server import RequestLoop, RequestQueue, describe_error
from medsam2_core.worker.system import remove_present_folder
from support.model import set_prompts
from support.real_worker import CORE, RealWorker, WorkerEnded, a_ball, a_box, a_point

CLICK, ASIDE = a_point(50, 40, 12), a_point(44, 40, 12)
BOX = a_box((33, 23, 12), (67, 57, 12))
SOON_S = 1.0  # for what takes some hundredths of a second on an idle machine


@pytest.fixture
def worker(tmp_path):
    """A worker that is starting."""
    made = RealWorker(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A worker that has the volume."""
    made = RealWorker(tmp_path_factory.mktemp("worker"))
    made.greet()
    made.answer(made.give(a_ball()))
    yield made
    assert made.close() == 0


@pytest.fixture
def session(ready, request):
    """The name of a session of its own."""
    name = request.node.name
    ready.open(name)
    yield name
    ready.ask("close_session", session=name)


@pytest.fixture
def here():
    """The same session in this process."""
    return Session.open(a_ball(), device="cpu")


def figures(mask):
    """All a slice mask says."""
    return replace(mask, probabilities=None)


# Diameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_segment_is_measured_as_the_export_measures_it(ready, axis):
    k, j, i = np.mgrid[:12, :30, :20]
    mask_kji = ((i - 9) / 7) ** 2 + ((j - 14) / 11) ** 2 + ((k - 6) / 4) ** 2 <= 1
    geometry = Geometry(np.diag([-0.5, -0.7, 2.0, 1.0]), (20, 30, 12))
    (known,) = measure(Segmentation.from_masks(geometry, {"one": mask_kji}), axis)
    arrays = {}
    fields = measure_to_json(mask_kji, geometry.ijk_to_ras, axis, arrays)
    assert np.prod(fields["shape_kji"]) < mask_kji.size, "only the part with voxels"
    expected = [known.longest.length_mm, known.perpendicular.length_mm]
    assert ready.ask("measure", arrays, **fields)["diameters_mm"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"shape_kji": [2, 2]}, "message-field"),
        ({"shape_kji": [1 << 20, 1 << 20, 1 << 20]}, "message-field"),
        ({"shape_kji": [2, 2, 30]}, "message-field"),
        ({"mask": "none"}, "message-field"),
        ({"axis": "x"}, "message-field"),
        ({"ijk_to_ras": [[1, 2], [3]]}, "message-field"),
        ({"ijk_to_ras": np.zeros((4, 4)).tolist()}, None),
    ],
)
def test_what_cannot_be_measured_is_refused(ready, wrong, code):
    arrays = {}
    fields = measure_to_json(np.ones((2, 2, 2), bool), np.eye(4), 2, arrays)
    answer = ready.refused("measure", arrays, **{**fields, **wrong})
    assert answer["kind"] != "InternalError" and code in (None, answer["code"])
    empty = ready.refused("measure", {"a0": np.zeros(1, np.uint8)}, **fields)
    assert empty["code"] == "empty-segment"


# The beginning and the end ----------------------------------------------------------------------------------


def test_it_describes_itself(worker):
    hello = worker.greet()
    assert hello["protocol"] == 3
    assert hello["software"] == f"MedSAM2Segment {__version__}"
    assert hello["torch"] == torch.__version__
    assert hello["pid"] == worker.process.pid
    assert hello["device"]["name"] == "cpu"
    assert 0 < hello["device"]["free_bytes"] <= hello["device"]["total_bytes"]
    assert time.monotonic() - worker.started < 20
    assert worker.ask("bye")["re"] == 2
    assert worker.process.wait(5) == 0


@pytest.mark.parametrize(("spoken", "side"), [([0, 2], "client"), ([4, 7], "worker")])
def test_it_names_the_side_to_update(worker, spoken, side):
    error = worker.refused("hello", protocols=spoken, client="test")
    assert error["kind"] == "ProtocolError"
    assert (error["code"], error["fields"]) == ("protocol-version", {"outdated": side})
    assert worker.refused("ping")["code"] == "no-hello"
    assert worker.close() == 0


def test_the_command_line_starts_the_same(tmp_path):
    worker = RealWorker(tmp_path, ("-m", "medsam2_core.cli", "worker"))
    assert worker.greet()["protocol"] == 3
    assert worker.close() == 0


def test_it_ends_with_its_input_while_it_is_still_starting(worker):
    began = time.monotonic()
    assert worker.close() == 0
    assert time.monotonic() - began < 10


def test_it_ends_with_its_input_in_the_middle_of_computing(worker):
    worker.greet()
    worker.give(a_ball())
    worker.open()
    worker.set_prompts("a", 12, BOX)
    number = worker.propagate()
    while not worker.about(number, "slice"):
        worker.receive()
    began = time.monotonic()
    assert worker.close() == 0
    assert time.monotonic() - began < SOON_S
    log = worker.log.read_text()
    assert "the input ended" in log


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be told apart by signals there")
def test_it_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'medsam2_core.worker'], stdin=-1, stdout=-1)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CORE), "MEDSAM2_LOG": str(tmp_path / "log")}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([orphan], timeout=10)
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


# Answers ----------------------------------------------------------------------------------------------------


def test_a_click_is_answered_as_here(ready, session, here):
    for count, prompts in enumerate([[Point((50, 40, 12))], [Point((50, 40, 12)), Point((44, 40, 12))]]):
        number = ready.set_prompts("a", 12, *[CLICK, ASIDE][: count + 1], session=session)
        (record,) = ready.records(number)
        expected = set_prompts(here, "a", 12, prompts)
        assert expected.mask_hw.sum() > 100
        assert figures(record) == figures(expected)
        assert (record.mask_hw == expected.mask_hw).all()
    assert ready.records(ready.set_prompts("a", 12, session=session)) == []


def test_a_propagation_is_as_here(ready, session, here):
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    ready.answer(ready.set_prompts("b", 8, a_point(50, 40, 8), session=session))
    set_prompts(here, "a", 12, [Box((33, 23, 12), (67, 57, 12))])
    set_prompts(here, "b", 8, [Point((50, 40, 8))])
    number = ready.propagate(session)
    records = ready.records(number)
    progress = here.propagate()
    assert [figures(record) for record in records] == [figures(result) for result in progress]
    result = ready.answer(number).header
    assert (result["done"], result["total"]) == (progress.done, progress.total)
    counts = [frame.header["done"] for frame in ready.about(number, "slice")]
    assert counts == sorted(counts)

    nothing_new = ready.propagate(session)
    assert ready.records(nothing_new) == []
    again = ready.propagate(session, ["a"], 10, 14, None)
    assert {record.n for record in ready.records(again)} == set(range(10, 15))


def test_an_object_may_have_a_range_of_its_own(ready, session):
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    ready.answer(ready.set_prompts("b", 8, a_point(50, 40, 8), session=session))
    number = ready.send(
        "propagate", session=session, limits={"b": [7, 9]}, first=6, last=14, stop_after_absent=None
    )
    records = ready.records(number)
    found = {name: {one.n for one in records if one.object == name} for name in "ab"}
    assert found == {"a": set(range(6, 15)), "b": {7, 8, 9}}
    for limits in ([7, 9], {"b": [7]}, {"b": [7, "9"]}, {"b": [7, True]}):
        assert ready.refused("propagate", session=session, limits=limits)["code"] == "message-field"


def test_objects_may_be_kept_apart(ready, session, here):
    other = Box((45, 30, 12), (80, 62, 12))
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    ready.answer(ready.set_prompts("b", 12, prompt_to_json(other, {}), session=session))
    set_prompts(here, "a", 12, [Box((33, 23, 12), (67, 57, 12))])
    set_prompts(here, "b", 12, [other])
    number = ready.send("propagate", session=session, first=10, last=14, overlap=False)
    records = ready.records(number)
    expected = list(here.propagate(first=10, last=14, overlap=False))
    assert [figures(record) for record in records] == [figures(result) for result in expected]
    assert all((mine.mask_hw == theirs.mask_hw).all() for mine, theirs in zip(records, expected, strict=True))
    last = {(record.object, record.n): record.mask_hw for record in records}
    assert not any((last["a", n] & last["b", n]).any() for n in (10, 11, 13, 14))
    assert ready.refused("propagate", session=session, overlap="no")["code"] == "message-field"


def test_an_object_is_restored(ready, session, here):
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    told_about = {r.n: r for r in ready.records(ready.propagate(session))}
    (corrected,) = ready.records(ready.set_prompts("a", 14, a_point(62, 40, 14, False), session=session))
    ready.ask("remove_object", session=session, object="a")
    assert "a" in ready.refused("propagate", session=session, objects=["a"])["message"]

    arrays = {}
    known = slice_mask_to_json(corrected, arrays)
    propagated = [slice_mask_to_json(record, arrays) for n, record in told_about.items() if n not in (12, 14)]
    slices = [
        {"n": 12, "prompts": [BOX], "final": False},
        {"n": 14, "prompts": [a_point(62, 40, 14, False)], "final": True}
        | {part: known[part] for part in ("mask", "box", "shape_hw")},
    ]
    number = ready.send("restore", arrays, session=session, object="a", slices=slices, propagated=propagated)
    first, second = ready.records(number)
    assert figures(first) == figures(told_about[12])
    assert second.final
    assert second.bits == corrected.bits
    final = ready.records(ready.propagate(session))
    assert {record.n: record.bits for record in final}[14] == corrected.bits


def test_slices_may_be_final(ready, session):
    (record,) = ready.records(ready.set_prompts("a", 12, CLICK, session=session, final=True))
    assert record.final
    (record,) = ready.records(ready.set_prompts("a", 12, CLICK, session=session))
    assert not record.final


# Order ------------------------------------------------------------------------------------------------------


def test_clicks_are_answered_while_a_propagation_waits(ready, session, here):
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    expected = set_prompts(here, "late", 5, [Point((50, 40, 5))])
    number = ready.propagate(session, patience=None)
    while not ready.about(number, "slice"):
        ready.receive()
    began = time.monotonic()
    click = ready.set_prompts("late", 5, a_point(50, 40, 5), session=session)
    (record,) = ready.records(click)
    took = time.monotonic() - began
    assert figures(record) == figures(expected), "the pause changes nothing"
    assert not ready.about(number, "result")
    assert took < SOON_S
    pong = ready.ask("ping")
    assert pong["busy"]
    assert pong["step_age"] < SOON_S
    assert pong["rss_bytes"] > 50 << 20

    set_prompts(here, "a", 12, [Box((33, 23, 12), (67, 57, 12))])
    alone = [figures(result) for result in here.propagate(["a"], stop_after_absent=None)]
    assert [figures(record) for record in ready.records(number)] == alone


def test_what_is_cancelled_stops_at_once(ready, session, record_property):
    ready.answer(ready.set_prompts("a", 12, BOX, session=session))
    took = []
    for _ in range(5):
        number, waiting = (ready.propagate(session, first=0, last=23, patience=None) for _ in range(2))
        while not ready.about(number, "slice"):
            ready.receive()
        began = time.monotonic()
        cancel = ready.send("cancel", request=number)
        error = ready.answer(number).header
        took.append(time.monotonic() - began)
        assert error["type"] == "error"
        assert error["kind"] == "Cancelled"
        assert ready.about(cancel, "result")
        ready.ask("cancel", request=None)
        assert ready.answer(waiting).header["kind"] == "Cancelled"
    record_property("cancel latency in s", max(took))
    assert sorted(took)[2] < 0.2
    assert max(took) < SOON_S
    assert not ready.ask("ping")["busy"]
    assert len(ready.records(ready.propagate(session, first=11, last=13))) == 3, "it goes on working"


def test_a_closed_session_ends_its_propagation(ready):
    ready.open("closing")
    ready.answer(ready.set_prompts("a", 12, BOX, session="closing"))
    number = ready.propagate("closing", first=0, last=23, patience=None)
    while not ready.about(number, "slice"):
        ready.receive()
    ready.ask("close_session", session="closing")
    assert ready.answer(number).header["kind"] == "Cancelled"
    assert ready.refused("propagate", session="closing")["code"] == "unknown-session"


def test_slices_looked_at_are_encoded_ahead(ready):
    ready.open("ahead", zoom="off")
    before = ready.ask("status")
    ready.ask("prefetch", session="ahead", n=12)
    _settle(ready)
    after = ready.ask("status")
    assert after["cache_bytes"] > before["cache_bytes"]
    assert after["cache_bytes"] <= after["cache_limit"]
    ready.answer(ready.set_prompts("a", 12, CLICK, session="ahead"))
    _settle(ready)
    assert ready.ask("status")["cache_bytes"] == after["cache_bytes"], "the click had nothing to encode"
    ready.ask("close_session", session="ahead")
    ready.ask("prefetch", session="gone", n=3)


def _settle(ready):
    """Wait until nothing is computed any more, which is longer than the machine is too busy to compute."""
    used = [-2.0, -1.0]
    while used[-1] - used[-2] > 0.05:
        time.sleep(1.0)
        used.append(ready.ask("ping")["cpu_s"])


# Volumes ----------------------------------------------------------------------------------------------------


def test_a_volume_comes_in_slabs_of_any_order(ready, here):
    voxels = a_ball().voxels_kji
    shown = {"shape_kji": list(voxels.shape), "dtype": "<i2", "components": 1, "modality": "MR"}
    matrix = a_ball().geometry.ijk_to_ras.tolist()
    number = ready.send("open_volume", volume="slabs", ijk_to_ras=matrix, title="", **shown)
    early = ready.refused("open_session", session="early", volume="slabs", stack={"axis": "axial"})
    assert early["code"] == "volume-incomplete"
    for first in (12, 0, 6, 18, 18):
        ready.slab("slabs", first, voxels[first : first + 6])
    assert ready.answer(number).header["bytes"] == voxels.nbytes
    told = [frame.header for frame in ready.about(number, "progress")]
    assert [one["done"] for one in told] == [voxels.nbytes * part // 4 for part in (1, 2, 3, 4)]
    assert {one["what"] for one in told} == {"receiving"}
    ready.open("slabs", "slabs")
    (record,) = ready.records(ready.set_prompts("a", 12, CLICK, session="slabs"))
    assert figures(record) == figures(set_prompts(here, "a", 12, [Point((50, 40, 12))]))
    ready.ask("close_volume", volume="slabs")
    assert ready.refused("propagate", session="slabs")["kind"] == "ProtocolError"
    assert ready.refused("open_session", session="x", volume="slabs")["kind"] == "VolumeError"


GOOD = {
    **{"shape_kji": [3, 4, 5], "dtype": "<i2", "components": 1},
    **{"ijk_to_ras": np.eye(4).tolist(), "modality": "", "title": ""},
}


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"shape_kji": [3, 4]}, "ProtocolError"),
        ({"shape_kji": [0, 4, 5]}, "ProtocolError"),
        ({"dtype": "|O"}, "ProtocolError"),
        ({"components": 2}, "ProtocolError"),
        ({"ijk_to_ras": np.zeros((4, 4)).tolist()}, "GeometryError"),
        ({"ijk_to_ras": "here"}, "GeometryError"),
        ({"volume": "ball"}, "ProtocolError"),
        ({"shape_kji": [1 << 20, 1 << 10, 1 << 10]}, "OutOfMemoryError"),
    ],
)
def test_a_volume_that_is_none_is_refused(ready, changed, kind):
    error = ready.refused("open_volume", **{"volume": f"bad {kind}", **GOOD, **changed})
    assert error["kind"] == kind
    ready.slab(f"bad {kind}", 0, np.zeros((3, 4, 5), "<i2"))  # it was on its way: nobody minds
    assert ready.ask("ping")["type"] == "result"


@pytest.mark.parametrize(
    ("first", "slab"),
    [(0, np.zeros((1, 4, 4), "<i2")), (0, np.zeros((1, 4, 5), "<f4")), (2, np.zeros((2, 4, 5), "<i2"))],
)
def test_a_slab_that_does_not_fit_ends_its_volume(ready, first, slab):
    number = ready.send("open_volume", volume="damaged", **GOOD)
    ready.slab("damaged", first, slab)
    assert ready.answer(number).header["kind"] == "ProtocolError"


# What is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "fields", "kind", "says"),
    [
        ("dance", {}, "ProtocolError", "unknown-request"),
        ("set_prompts", {"session": "none", "object": "a", "slices": []}, "ProtocolError", "unknown-session"),
        ("open_session", {"session": "x", "volume": "none"}, "VolumeError", "unknown-volume"),
        ("open_session", {"settings": {"model": "none"}}, "CatalogueError", "none"),
        ("open_session", {"settings": {"window": "none"}}, "VolumeError", "window"),
        ("open_session", {"settings": {"device": "cuda:9"}}, "DeviceError", "cuda"),
        ("open_session", {"settings": {"colour": "red"}}, "ProtocolError", "unknown-field"),
        ("open_session", {"stack": {"axis": "up"}}, "GeometryError", "unknown-axis"),
        ("install_model", {"name": "none"}, "CatalogueError", "none"),
        ("remove_model", {"name": "embedded"}, "CatalogueError", "not downloaded"),
        ("cancel", {"request": "all"}, "ProtocolError", "message-field"),
        ("prefetch", {"session": "x"}, "ProtocolError", "message-field"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_a_reason(ready, type, fields, kind, says):
    if type == "open_session":
        fields = {"session": "x", "volume": "ball", "stack": {"axis": "axial"}, **fields}
    error = ready.refused(type, **fields)
    assert error["kind"] == kind
    assert says in (error["code"], *error["message"].split()) or says in error["message"]
    assert not error["details"]


@pytest.mark.parametrize(
    ("prompts", "kind"),
    [
        ([a_point(50, 40, 99)], "PromptError"),
        ([a_point(50, 40, 3)], "PromptError"),
        ([{"kind": "circle"}], "PromptError"),
        (["point"], "PromptError"),
    ],
)
def test_messages_that_mean_nothing_are_refused(ready, session, prompts, kind):
    assert ready.answer(ready.set_prompts("a", 12, *prompts, session=session)).header["kind"] == kind


def test_fields_it_does_not_know_do_not_matter(ready, session):
    assert ready.ask("ping", colour="red", deep={"a": [1, {}]})["type"] == "result"


def test_it_lists_the_models(ready):
    models = {model["name"]: model for model in ready.ask("models")["models"]}
    assert models["embedded"]["installed"]
    assert models["embedded"]["image_size"] == 256
    assert not models["sam2.1-large"]["installed"]


def test_bytes_that_are_no_frame_end_it_with_a_reason(worker):
    worker.greet()
    worker.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
    with pytest.raises(WorkerEnded):
        while True:
            worker.receive()
    error = worker.frames[-1].header
    assert (error["re"], error["kind"]) == (None, "ProtocolError")
    assert worker.process.wait(5) == 76


def test_messages_without_an_id_are_refused(worker):
    worker.greet()
    worker.write(b"".join(encode({"type": "ping"})))
    worker.write(b"".join(encode({"type": "ping", "id": "one"})))
    worker.slab("nobody's", 0, np.zeros((1, 2, 2), "<i2"))
    worker.ask("ping")
    errors = [frame.header for frame in worker.frames if frame.type == "error"]
    assert [(error["re"], error["kind"]) for error in errors] == [(None, "ProtocolError")] * 3


def test_a_bug_is_reported_with_where_it_happened():
    try:
        raise ZeroDivisionError("one by nothing")
    except ZeroDivisionError as error:
        answer = describe_error(error)
    assert (answer["kind"], answer["code"]) == ("InternalError", "internal")
    assert "one by nothing" in answer["message"]
    assert "test_worker_server" in answer["details"]


def test_a_model_that_cannot_be_loaded_ahead_does_not_end_the_worker(monkeypatch):
    """A card whose memory others have filled, say: whoever asks for a session is told."""
    outbox = []
    loop = RequestLoop(RequestQueue(), IncomingVolumes(), outbox, preload="embedded")

    def refuse(name):
        raise RuntimeError("CUDA error: all devices are busy or unavailable")

    monkeypatch.setattr(loop.sessions, "model", refuse)
    loop.load_first()
    assert not outbox and loop.queue.is_empty


def test_nothing_is_imported_from_the_folder_it_happens_to_be_in(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    here = os.getcwd()
    for version, path, left in (
        ((3, 10), [here, "/core"], ["/core"]),
        ((3, 10), ["/core", here], ["/core", here]),
        ((3, 12), [here, "/core"], [here, "/core"]),
    ):
        remove_present_folder(path, version)
        assert path == left
    monkeypatch.delenv("PYTHONSAFEPATH")
    remove_present_folder(path := [here], (3, 10))
    assert path == [here]


def test_a_full_memory_is_reported_with_a_way_out():
    def torch_says():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    for failing in (torch_says, lambda: (_ for _ in ()).throw(MemoryError())):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            failing() if failing is torch_says else next(failing())
        answer = describe_error(caught.value)
        assert (answer["kind"], answer["code"]) == ("OutOfMemoryError", "out-of-memory")
        assert "smaller model" in answer["message"]
    assert describe_error(ProtocolError("x"))["kind"] == "ProtocolError"


# The rest of the machine ------------------------------------------------------------------------------------


def test_what_libraries_print_does_not_get_between_frames(tmp_path):
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def shout():\n"
        "    while True:\n"
        "        print('printed')\n"
        "        os.write(1, b'written ' + bytes(50))\n"
        "        os.system('echo from a child') if shouts[0] % 50 == 0 else None\n"
        "        shouts[0] += 1\n"
        "        time.sleep(0.002)\n"
        "shouts = [0]\n"
        "class Later:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            sys.meta_path.remove(self)\n"
        "            threading.Thread(target=shout, daemon=True).start()\n"
        "sys.meta_path.insert(0, Later())\n"
    )
    worker = RealWorker(tmp_path, PYTHONPATH=os.pathsep.join([str(noise), str(CORE)]))
    worker.process.stderr.close()  # nobody reads it: a full pipe would stop the noise
    worker.greet()
    worker.give(a_ball())
    worker.open()
    assert len(worker.records(worker.set_prompts("a", 12, CLICK))) == 1
    assert worker.reader.banner == b""
    worker.process.kill()
    worker.process.wait()


def test_it_opens_no_socket(ready):
    process = psutil.Process(ready.process.pid)
    assert process.net_connections(kind="all") == []
    assert process.children() == []


def test_the_log_holds_no_names(ready, session):
    ready.answer(ready.set_prompts("Tumour of Mrs. Example", 12, CLICK, session=session))
    ready.refused("open_session", session="x", volume="Secret^Volume")
    log = ready.log.read_text()
    assert "set_prompts" in log
    for name in ("Secret", "Example", "Tumour", str(ready.log.parent), os.path.expanduser("~")):
        assert name not in log
    assert ready.ask("status")["log"] == str(ready.log)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_disk_does_not_matter(tmp_path):
    worker = RealWorker(tmp_path, MEDSAM2_LOG="/dev/full")
    worker.greet()
    worker.give(a_ball())
    worker.open()
    assert len(worker.records(worker.set_prompts("a", 12, CLICK))) == 1
    assert worker.close() == 0


def test_no_folder_for_the_log_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("")
    worker = RealWorker(tmp_path, MEDSAM2_LOG=str(tmp_path / "file" / "worker.log"))
    worker.greet()
    assert worker.ask("status")["log"] is None
    assert worker.close() == 0


def test_without_the_network_a_model_cannot_come(tmp_path):
    worker = RealWorker(tmp_path, HF_HUB_OFFLINE="1", MEDSAM2_MODELS=str(tmp_path / "models"))
    worker.greet()
    error = worker.refused("install_model", name="sam2.1-tiny")
    assert error["kind"] == "DownloadError"
    assert "HF_HUB_OFFLINE" in error["message"]
    assert json.dumps(error)
    assert worker.close() == 0
