"""The review queue: worst first, decisions kept, and accepted cases as training data."""

import json
import shutil

import pytest
from medsam2_core.auto.fewshot.data import find_pairs
from medsam2_core.batch.cases import Options
from medsam2_core.batch.review import ACCEPTED_TABLE, QUEUE, ReviewQueue
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.prompts import Box, PromptSet
from support.cohorts import run_here, write_cohort
from support.errors import raises


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


def correct(out, queue, name):
    """Put a file where a correction belongs."""
    case = next(one for one in queue.cases if one.case == name)
    shutil.copy(out / "cases" / name / "segmentation.seg.nrrd", queue.corrected_path(case))


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
    correct(out, queue, "c0")
    queue.decide("c0", "corrected", 5, 1)
    queue.decide("c1", "accepted")
    queue.decide("c2", "skipped")
    pairs = find_pairs(out / ACCEPTED_TABLE)
    assert sorted((pair.group, pair.labels.parent.name) for pair in pairs) == [("c0", "review"), ("c1", "c1")]
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
    for name, decision in (("c0", "corrected"), ("c1", "accepted"), ("c2", "accepted")):
        queue.decide(name, decision)
    cohort = finished.parent / "data" / "cohort.csv"
    run_here(cohort, out, Options(model=str(model), image_size=64, window="400,200"))
    assert ReviewQueue(out).counts() == {"waiting": 2, "accepted": 0, "corrected": 1, "skipped": 0}
    path = out / "cases" / "c0" / "case.json"
    known = json.loads(path.read_text())
    known["inputs"][known["case"]["image"]]["sha256"] = "another image"
    path.write_text(json.dumps(known))
    assert ReviewQueue(out).counts()["corrected"] == 0
    assert (out / "review" / "c0.seg.nrrd").exists(), "nobody's work is deleted"


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
