"""Auto in the worker's own process: it finds what a session here finds, makes way for clicks, and stops."""

import json
import time

import numpy as np
import pytest
import torch
from medsam2_core.auto import library
from medsam2_core.auto.model import untrained_model
from medsam2_core.auto.model_file import AutoCard, AutoClass
from medsam2_core.auto.predictor import PredictorSettings
from medsam2_core.engine.model import load_model
from medsam2_core.prompts import Box
from medsam2_core.session import Session
from medsam2_core.session.automatic import AutoRun
from medsam2_core.worker.job_messages import AutoRequest, auto_models_from_json
from medsam2_core.worker.messages import slice_mask_to_json
from support.errors import raises
from support.model import set_prompts
from support.real_worker import RealWorker, a_ball, a_box, a_point

KIDNEY = "Cat~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~^^~Reg~^^~^^"
CLASSES = (AutoClass("kidney", 1, (0.2, 0.4, 0.6), KIDNEY), AutoClass("cyst", 2, (0.9, 0.5, 0.1)))


def an_untrained_model(**card):
    """Whatever it finds, it finds again."""
    model = load_model("embedded", "cpu", "fp32")
    settings = PredictorSettings.for_module(model.module, len(CLASSES)).to_dict()
    known = {"axis": "axial", "modality": "MR", "training": {"images": 10, "dice": {"kidney": {"mean": 0.8}}}}
    card = {"predictor": settings, **known, **card}
    torch.manual_seed(147)  # with these weights it finds both classes, with confidence
    return untrained_model(
        AutoCard("a test", CLASSES, model.name, model.weights_key, model.image_size, **card), model
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of Auto models: one that fits, one that was trained on another SAM 2, and one that is damaged."""
    folder = tmp_path_factory.mktemp("auto")
    an_untrained_model().save(folder / "test.medsam2auto")
    other = an_untrained_model()
    card = AutoCard("other", CLASSES, "sam2.1-tiny", "0" * 64, 512, predictor=other.card.predictor)
    type(other)(card, other.model, other.network).save(folder / "other.medsam2auto")
    (folder / "broken.medsam2auto").write_bytes(b"no model at all")
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory, folder):
    """A worker that has the volume, and a session on it."""
    made = RealWorker(tmp_path_factory.mktemp("worker"), MEDSAM2_AUTO_MODELS=str(folder))
    made.greet()
    made.answer(made.give(a_ball()))
    made.open()
    yield made
    assert made.close() == 0


@pytest.fixture
def here():
    """The same session in this process."""
    return Session.open(a_ball(), device="cpu")


def ask(worker, model="test", session="s", **wish):
    return worker.send("auto", session=session, **AutoRequest(model, **wish).to_json())


def last_of(records):
    """By class and slice, what was told last."""
    return {(record.object, record.n): record for record in records}


def found_here(session, folder, first=None, last=None, **options):
    from medsam2_core.auto.model import load_auto

    auto = load_auto(folder / "test.medsam2auto", session.model)
    run = AutoRun(session.stack, session.tracker, auto, **options)
    for _ in run.run(first, last):
        pass
    return run.found()


def test_models_are_listed_with_the_content_of_their_cards(ready, folder):
    told = ready.ask("auto_models")
    other, test = told["models"]
    assert (test["file"], test["name"], test["base"]) == ("test", "a test", "embedded")
    assert test["path"] == str(folder / "test.medsam2auto")
    assert test["classes"][0] == {"name": "kidney", "colour_rgb": [0.2, 0.4, 0.6], "terminology": KIDNEY}
    assert (test["axis"], test["modality"], test["training"]["images"]) == ("axial", "MR", 10)
    assert other["base"] == "sam2.1-tiny"
    (damaged,) = told["damaged"]
    assert damaged["path"].endswith("broken.medsam2auto")
    assert "not an Auto model" in damaged["reason"]

    entry = auto_models_from_json(told)[1]
    assert (entry.file, entry.classes, entry.images, entry.dice) == ("test", ("kidney", "cyst"), 10, 0.8)
    assert entry.fits(is_picture=False, modality="mr")
    assert not entry.fits(is_picture=False, modality="CT")
    assert not entry.fits(is_picture=True)


@pytest.mark.parametrize("method", ["", "slices"])
def test_a_volume_is_segmented_as_here(ready, here, folder, method):
    number = ask(ready, method=method, first=6, last=17)
    records = last_of(ready.records(number))
    result = ready.answer(number).header
    from medsam2_core.auto.volumes import VolumeOptions

    expected = found_here(here, folder, 6, 17, options=VolumeOptions(method) if method else None)
    assert [one["name"] for one in result["classes"]] == ["kidney", "cyst"]
    for told, one in zip(result["classes"], expected, strict=True):
        assert told["confidence"] == pytest.approx(one.confidence)
        assert told["slices"] == sorted(one.masks)
        assert sorted(map(int, told["prompts"])) == sorted(one.prompts)
        for n, found in one.masks.items():
            assert (records[one.name, n].mask_hw == found.mask_hw).all()
            assert records[one.name, n].predicted_iou == pytest.approx(found.predicted_iou)
    assert any(one.masks for one in expected), "the untrained model finds nothing: take another seed"
    counts = [frame.header for frame in ready.about(number, "slice")]
    assert [one["done"] for one in counts] == sorted(one["done"] for one in counts)
    assert counts[-1]["done"] <= counts[-1]["total"]


def test_one_slice_gives_its_predicted_boxes(ready, here, folder):
    number = ask(ready, first=12, last=12, classes=("cyst",))
    (told,) = ready.answer(number).header["classes"]
    (expected,) = found_here(here, folder, 12, 12, classes=["cyst"])
    assert told["slices"] == [12]
    ((said,),) = told["prompts"].values()
    (box,) = expected.prompts[12]
    assert isinstance(box, Box)
    assert said == {
        **{"kind": "box", "first_ijk": list(box.first_ijk), "last_ijk": list(box.last_ijk)},
        "predicted": True,
    }


def test_a_session_is_not_changed_by_what_is_found(ready):
    before = ready.ask("status")
    ready.answer(ask(ready, first=11, last=13))
    assert "nothing to propagate" in ready.refused("propagate", session="s")["message"]
    assert ready.ask("status")["sessions"] == before["sessions"]


def test_clicks_are_answered_while_auto_waits(ready, here, folder):
    number = ask(ready)
    while not ready.about(number, "slice"):
        ready.receive()
    click = ready.set_prompts("clicked", 12, a_point(50, 40, 12))
    began = time.monotonic()
    ready.records(click)
    took = time.monotonic() - began
    assert took < 2.0
    assert not ready.about(number, "result"), "it was done before the click"
    records = last_of(ready.records(number))
    for one in found_here(here, folder):
        for n, found in one.masks.items():
            assert (records[one.name, n].mask_hw == found.mask_hw).all(), "the pause changes nothing"


def test_it_is_cancelled_at_once(ready):
    number = ask(ready)
    while not ready.about(number, "slice"):
        ready.receive()
    began = time.monotonic()
    ready.ask("cancel", request=number)
    assert ready.answer(number).header["kind"] == "Cancelled"
    assert time.monotonic() - began < 1.0
    assert ready.answer(ask(ready, first=3, last=3)).type == "result", "it goes on working"


def test_a_closed_session_ends_it(ready):
    ready.open("closing")
    number = ask(ready, session="closing")
    while not ready.about(number, "slice"):
        ready.receive()
    ready.ask("close_session", session="closing")
    assert ready.answer(number).header["kind"] == "Cancelled"


@pytest.mark.parametrize(
    ("wish", "kind", "words"),
    [
        ({"model": "gone"}, "CheckpointError", "test"),
        ({"model": "broken"}, "CheckpointError", "not an Auto model"),
        ({"model": "other"}, "CheckpointError", "use it with 'sam2.1-tiny'"),
        ({"classes": ("spleen",)}, "CheckpointError", "'kidney', 'cyst'"),
        ({"first": 5, "last": 400}, "PromptError", "there are 0 to 23"),
        ({"method": "magic"}, "PromptError", "memory or slices"),
    ],
)
def test_what_cannot_be_is_reported_with_the_way_out(ready, wish, kind, words):
    error = ready.answer(ask(ready, **wish)).header
    assert (error["type"], error["kind"]) == ("error", kind), error
    assert words in error["message"]


@pytest.mark.parametrize("field", ["first", "classes", "flips", "model"])
def test_nonsense_is_a_protocol_error(ready, field):
    wish = AutoRequest("test").to_json() | {field: {"a": 1}}
    assert ready.refused("auto", session="s", **wish)["kind"] == "ProtocolError"


def test_a_found_object_is_restored_and_a_click_refines_it(ready, here, folder):
    number = ask(ready, first=12, last=12, classes=("cyst",))
    (record,) = ready.records(number)
    ((said,),) = ready.answer(number).header["classes"][0]["prompts"].values()
    arrays = {}
    known = slice_mask_to_json(record, arrays)
    slices = [{"n": 12, "prompts": [said], "final": False}]
    parts = ("mask", "box", "shape_hw", "predicted_iou", "object_score")
    slices[0] |= {part: known[part] for part in parts}
    answer = ready.send("restore", arrays, session="s", object="found", slices=slices, tracked=[])
    (restored,) = ready.records(answer)
    assert restored.bits == record.bits
    (refined,) = ready.records(ready.set_prompts("found", 12, said, a_point(50, 40, 12)))
    (found,) = found_here(here, folder, 12, 12, classes=["cyst"])
    from medsam2_core.prompts import Point

    here.restore_object("found", found.slice_prompts(), {})
    expected = set_prompts(here, "found", 12, [*found.prompts[12], Point((50, 40, 12))])
    assert (refined.mask_hw == expected.mask_hw).all()
    moved = a_box((30, 20, 12), (70, 60, 12))
    (afresh,) = ready.records(ready.set_prompts("found", 12, moved))
    fresh = set_prompts(here, "other", 12, [Box((30, 20, 12), (70, 60, 12))])
    assert (afresh.mask_hw == fresh.mask_hw).all(), "a box that was moved is the user's own"
    ready.ask("remove_object", session="s", object="found")


def test_a_model_is_removed_with_its_report(ready, folder):
    an_untrained_model().save(folder / "short lived.medsam2auto")
    (folder / "short lived-report").mkdir()
    (folder / "short lived-report" / "curves.json").write_text(json.dumps([1, 2]))
    size = (folder / "short lived.medsam2auto").stat().st_size
    assert ready.ask("remove_auto_model", model="short lived")["bytes"] == size + 6
    assert not list(folder.glob("short*"))
    assert "no Auto model 'short lived'" in ready.refused("remove_auto_model", model="short lived")["message"]


def test_only_models_of_the_folder_are_removed(folder, tmp_path):
    from medsam2_core.errors import CheckpointError

    kept = tmp_path / "mine.medsam2auto"
    kept.write_bytes((folder / "test.medsam2auto").read_bytes())
    with raises("auto-model-elsewhere", CheckpointError):
        library.remove(kept, folder)
    assert kept.exists()
    assert library.find(kept, folder)[0] == kept


def test_a_model_that_was_trained_again_is_loaded_again(ready, folder):
    path = folder / "changing.medsam2auto"
    an_untrained_model().save(path)
    before = last_of(ready.records(ask(ready, "changing", first=12, last=12)))
    torch.manual_seed(77)
    again = an_untrained_model()
    for parameter in again.network.predictor.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8)) * 0.5)
    again.save(path, overwrite=True)
    after = last_of(ready.records(ask(ready, "changing", first=12, last=12)))
    assert any(not np.array_equal(before[key].mask_hw, after[key].mask_hw) for key in before)
    path.unlink()
