"""The review queue: worst first, decisions kept, and accepted cases as training data."""

import json
import os
import shutil
import threading

import pytest
from medsam2_core import atomic
from medsam2_core.auto.fewshot.data import find_pairs
from medsam2_core.batch.cases import Case, Options
from medsam2_core.batch.inputs import fingerprint
from medsam2_core.batch.journal import Journal
from medsam2_core.batch.review import ACCEPTED_TABLE, QUEUE, ReviewQueue
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.prompts import Box, PromptSet
from support.cohorts import run_here, write_cohort
from support.errors import raises
from support.review_results import write_results


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("finished")
    cohort = write_cohort(folder / "data", 3)
    options = Options(model=str(model), image_size=64)
    assert len(run_here(cohort, folder / "out", options).done) == 3
    return folder / "out"


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def set_confidence(out, **values):
    for name, value in values.items():
        path = out / "cases" / name / "case.json"
        known = json.loads(path.read_text())
        known["facts"]["objects"][0]["confidence"] = value
        path.write_text(json.dumps(known))


def correct(out, queue, name, content=None, **how):
    """Decide for a correction: the result itself, or other bytes."""

    def write(path):
        path.write_bytes(content or (out / "cases" / name / "segmentation.seg.nrrd").read_bytes())

    queue.decide(name, "corrected", write=write, **how)


def test_the_worst_comes_first_and_decisions_are_kept(out, medsam2):
    set_confidence(out, c0=0.9, c1=None, c2=0.4)
    queue = ReviewQueue(out)
    assert [case.case for case in queue.cases] == ["c1", "c2", "c0"]
    assert queue.next().case == "c1"
    queue.decide("c1", "skipped", seconds=3.04, clicks=2)
    queue.decide("c2", "accepted", seconds=8, clicks=0)
    again = ReviewQueue(out)
    assert again.next().case == "c0"
    assert again.counts() == {"waiting": 1, "accepted": 1, "corrected": 0, "skipped": 1}
    facts = medsam2("review", out, "--skipped", "--json").facts
    assert [one["case"] for one in facts["next"]] == ["c1", "c0"]
    assert (facts["seconds"], facts["clicks"], facts["skipped"]) == (11.0, 2, 0)


def test_accepted_and_corrected_cases_can_be_trained_on(out):
    queue = ReviewQueue(out)
    with raises("no-correction", case="c0"):
        queue.decide("c0", "corrected")
    correct(out, queue, "c0", seconds=5, clicks=1)
    queue.decide("c1", "accepted")
    queue.decide("c2", "skipped")
    pairs = find_pairs(out / ACCEPTED_TABLE)
    assert sorted((pair.group, pair.labels.parent.name) for pair in pairs) == [
        ("c0", "review"),
        ("c1", "review"),
    ]
    for pair in pairs:
        labels = read_segmentation(pair.labels)
        assert labels.geometry.same_grid(read_volume(pair.image).geometry)
    case = next(one for one in queue.cases if one.case == "c0")
    assert queue.files(case).segmentation == out / "review" / "c0.seg.nrrd"


def test_what_a_viewer_opens(out):
    queue = ReviewQueue(out)
    files = queue.files(queue.cases[0])
    assert files.image.is_file() and files.segmentation.is_file()
    prompts = PromptSet.from_json(files.prompts)
    assert prompts.of("ball") == [Box((13, 19, 2), (27, 33, 2))]


def test_a_case_that_was_done_again_is_looked_at_again(out, finished, model):
    queue = ReviewQueue(out)
    correct(out, queue, "c0")
    for name in ("c1", "c2"):
        queue.decide(name, "accepted")
    cohort = finished.parent / "data" / "cohort.csv"
    run_here(cohort, out, Options(model=str(model), image_size=64, window="400,200"))
    assert ReviewQueue(out).counts() == {"waiting": 2, "accepted": 0, "corrected": 1, "skipped": 0}
    path = out / "cases" / "c0" / "case.json"
    known = json.loads(path.read_text())
    known["inputs"][known["case"]["image"]]["sha256"] = "another image"
    path.write_text(json.dumps(known))
    assert ReviewQueue(out).counts()["corrected"] == 0
    assert (out / "review" / "c0.seg.nrrd").exists(), "nobody's work is deleted"


def entry(queue, name):
    return next(one for one in queue.cases if one.case == name)


def labels(out):
    """What the table lists, by case."""
    return {pair.group: pair.labels.name for pair in find_pairs(out / ACCEPTED_TABLE)}


def test_a_case_that_cannot_be_read_for_a_while_keeps_its_decision(out):
    queue = ReviewQueue(out)
    correct(out, queue, "c0")
    queue.decide("c1", "accepted")
    (out / "cases" / "c0").rename(out / "cases" / ".away")
    meanwhile = ReviewQueue(out)
    meanwhile.decide("c2", "skipped")
    assert [one.case for one in meanwhile.cases] == ["c1", "c2"] and labels(out) == {"c1": "c1.seg.nrrd"}
    (out / "cases" / ".away").rename(out / "cases" / "c0")
    again = ReviewQueue(out)
    again.save()
    assert again.counts() == {"waiting": 0, "accepted": 1, "corrected": 1, "skipped": 1}
    assert labels(out) == {"c0": "c0.seg.nrrd", "c1": "c1.seg.nrrd"}


def test_no_correction_is_replaced(out):
    queue = ReviewQueue(out)
    correct(out, queue, "c0", b"first")
    (out / QUEUE).unlink()
    correct(out, ReviewQueue(out), "c0", b"second")
    assert (out / "review" / "c0.seg.nrrd").read_bytes() == b"first"
    assert (out / "review" / "c0.2.seg.nrrd").read_bytes() == b"second"
    queue = ReviewQueue(out)
    assert queue.files(entry(queue, "c0")).segmentation.read_bytes() == b"second"
    queue.decide("c0", "accepted")
    assert entry(queue, "c0").labels == "review/c0.3.seg.nrrd"


def test_two_people_go_through_one_queue(out):
    one, other = ReviewQueue(out), ReviewQueue(out)
    one.decide("c0", "accepted", 2, 1)
    correct(out, one, "c1", b"of one", clicks=1)
    one.decide("c2", "skipped")
    assert other.next().case == "c0"
    other.decide("c0", "skipped", 3, 1)
    assert other.next() is None and other.counts()["corrected"] == 1
    kept = entry(other, "c0")
    assert (kept.decision, kept.seconds, kept.clicks) == ("accepted", 5, 2)
    correct(out, one, "c1", b"of one again")
    correct(out, other, "c1", b"of other")
    other.decide("c2", "accepted")
    ReviewQueue(out).save()
    assert labels(out) == {"c0": "c0.seg.nrrd", "c1": "c1.3.seg.nrrd", "c2": "c2.seg.nrrd"}
    assert (out / "review" / "c1.seg.nrrd").read_bytes() == b"of one"


def test_many_decisions_at_once_are_all_kept(out):
    queues = [ReviewQueue(out) for _ in range(3)]

    def decide(n):
        for _ in range(5):
            queues[n].decide(f"c{n}", "skipped", seconds=1, clicks=1)

    threads = [threading.Thread(target=decide, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.decision, one.seconds, one.clicks) for one in ReviewQueue(out).cases] == [
        ("skipped", 5, 5)
    ] * 3


def test_a_lock_that_somebody_keeps_is_named(out, monkeypatch):
    monkeypatch.setattr(atomic, "_LOCK_SECONDS", 0.05)
    queue = ReviewQueue(out)
    with atomic.locked(out / ".review.lock"), raises("in-use", path=str(out / ".review.lock")):
        queue.decide("c0", "accepted")
    assert entry(queue, "c0").decision == "" and not (out / "review").exists()
    queue.decide("c0", "accepted")


def change_facts(out, name, change):
    path = out / "cases" / name / "case.json"
    known = json.loads(path.read_text())
    change(known)
    path.write_text(json.dumps(known))


def test_other_files_of_a_case_count_but_not_for_a_correction(out):
    queue = ReviewQueue(out)
    correct(out, queue, "c0")
    queue.decide("c1", "accepted")
    for name in ("c0", "c1"):
        change_facts(out, name, lambda known: known["inputs"].update({"p.json": {"state": 1, "sha256": "2"}}))
    assert ReviewQueue(out).counts() == {"waiting": 2, "accepted": 0, "corrected": 1, "skipped": 0}


def test_what_is_accepted_is_what_was_looked_at(out):
    queue = ReviewQueue(out)
    seen = queue.files(entry(queue, "c0")).segmentation.read_bytes()
    queue.decide("c0", "accepted")
    for name in ("c0", "c1"):
        (out / "cases" / name / "segmentation.seg.nrrd").write_bytes(b"of a later run")
        change_facts(out, name, lambda known: known.update(signature="later"))
    assert (out / "review" / "c0.seg.nrrd").read_bytes() == seen
    with raises("case-changed", case="c1"):
        queue.decide("c1", "accepted")
    assert entry(queue, "c1").decision == "" and labels(out) == {"c0": "c0.seg.nrrd"}
    correct(out, queue, "c1")
    ReviewQueue(out).save()
    assert labels(out) == {"c1": "c1.seg.nrrd"}


def test_a_decision_that_cannot_be_written_changes_nothing(out):
    queue = ReviewQueue(out)
    queue.decide("c1", "skipped")
    before = (out / QUEUE).read_bytes()
    (out / ACCEPTED_TABLE).unlink()
    (out / ACCEPTED_TABLE).mkdir()
    with raises("output-is-folder"):
        queue.decide("c0", "accepted")
    assert (out / QUEUE).read_bytes() == before and entry(queue, "c0").decision == ""
    assert not list((out / "review").iterdir())


def test_a_case_whose_last_attempt_failed_is_not_in_the_queue(out):
    queue = ReviewQueue(out)
    queue.decide("c0", "accepted")
    queue.decide("c1", "accepted")
    journal = Journal(out / "journal.sqlite")
    journal.end("c0", "s", {"state": "failed", "error": {"code": "x", "message": "y"}})
    journal.begin("c2", "s")
    journal.close()
    again = ReviewQueue(out)
    again.save()
    assert [one.case for one in again.cases] == ["c1"] and labels(out) == {"c1": "c1.seg.nrrd"}
    (out / "journal.sqlite").unlink()
    assert ReviewQueue(out).counts() == {"waiting": 1, "accepted": 2, "corrected": 0, "skipped": 0}


def test_a_case_that_was_taken_out_of_the_cohort_is_not_in_the_queue(out, finished, model):
    queue = ReviewQueue(out)
    for name in ("c0", "c1"):
        queue.decide(name, "accepted")
    cohort, options = finished.parent / "data" / "cohort.csv", Options(model=str(model), image_size=64)
    lines = cohort.read_text().splitlines(keepends=True)
    (cohort.parent / "without.csv").write_text("".join(lines[:1] + lines[2:]))
    assert run_here(cohort.parent / "without.csv", out, options).kept == ["c1", "c2"]
    without = ReviewQueue(out)
    without.save()
    assert [one.case for one in without.cases] == ["c1", "c2"] and labels(out) == {"c1": "c1.seg.nrrd"}
    assert run_here(cohort, out, options).kept == ["c0", "c1", "c2"]
    assert ReviewQueue(out).counts() == {"waiting": 1, "accepted": 2, "corrected": 0, "skipped": 0}


def test_a_result_is_not_shown_on_another_image(out, tmp_path):
    queue = ReviewQueue(out)
    image = shutil.copy(entry(queue, "c0").image, tmp_path / "own.nrrd")
    state = fingerprint(Case("c0", str(image)))
    change_facts(
        out, "c0", lambda known: (known["case"].update(image=str(image)), known.update(inputs=state))
    )
    queue = ReviewQueue(out)
    os.utime(image, (1, 1))
    assert queue.files(entry(queue, "c0")).image == image, "the same bytes"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    with raises("image-changed", case="c0", path=str(image)):
        queue.files(entry(queue, "c0"))
    with raises("image-changed", case="c0"):
        queue.decide("c0", "accepted")
    image.unlink()
    with raises("image-changed", case="c0"):
        queue.files(entry(queue, "c0"))
    queue.decide("c0", "skipped")


def test_slices_of_a_series_that_have_changed(tmp_path):
    queue = ReviewQueue(write_results(tmp_path, series=0.3))
    files = queue.files(queue.cases[0])
    (files.image / "beside.txt").write_text("no slice")
    os.utime(files.slice_files[0], (1, 1))
    assert queue.files(queue.cases[0]) == files and len(files.slice_files) == 6
    with open(files.slice_files[2], "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    with raises("image-changed", case="series"):
        queue.files(queue.cases[0])


def test_a_file_of_many_frames_is_opened_once(tmp_path):
    out = write_results(tmp_path, a=0.3)
    image = str(out / "data" / "a.nrrd")
    change_facts(out, "a", lambda known: known.update(slice_files=[image] * 6))
    queue = ReviewQueue(out)
    assert queue.files(queue.cases[0]).slice_files == (image,)


def test_what_is_no_queue(out, tmp_path, medsam2):
    assert medsam2("review", tmp_path / "nothing").refused("no-results")
    queue = ReviewQueue(out)
    with raises("unknown-decision", decision="maybe"):
        queue.decide("c0", "maybe")
    with raises("unknown-case", case="c9"):
        queue.decide("c9", "accepted")
    queue.save()
    content = (out / QUEUE).read_text()[:-20]
    (out / QUEUE).write_text(content)
    with raises("review-damaged", path=str(out / QUEUE)):
        ReviewQueue(out)
    assert (out / QUEUE).read_text() == content
    (out / QUEUE).unlink()
    (out / "cases" / "c0" / "case.json").unlink()
    assert [case.case for case in ReviewQueue(out).cases] == ["c1", "c2"]
