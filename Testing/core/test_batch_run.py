"""Cohorts through one process: what is done, kept, done again; the journal, table and report."""

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import pydicom
import pytest
from medsam2_core.atomic import clean_folders, new_folder
from medsam2_core.batch import cases
from medsam2_core.batch.cases import Case, Options, case_folder, least_confidence
from medsam2_core.batch.cohort import read_cohort
from medsam2_core.batch.journal import Journal
from medsam2_core.batch.report import results_of, write_report, write_table
from medsam2_core.batch.run import opened
from medsam2_core.errors import BatchError
from medsam2_core.imaging.reading import read_segmentation
from support.cohorts import BOX, entries, few_slices, masks, run_here, write_cohort, write_rows
from support.command_line import write_nrrd
from support.errors import raises
from support.small_files import some_voxels, write_series


@pytest.fixture(scope="module")
def options(model):
    return Options(model=str(model), image_size=64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, options):
    """A cohort that was done, with a case that failed; to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    cohort = write_cohort(folder / "data", 2)
    with cohort.open("a") as stream:
        stream.write('bad.nrrd,ball,"1,1,9,9@2"\n')
    (folder / "data" / "bad.nrrd").write_text("NRRD0004\nrubbish")
    summary = run_here(cohort, folder / "out", options)
    assert (summary.done, summary.failed, summary.stopped) == (["c0", "c1"], ["bad"], False)
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of it: data and results; the cohort's CSV."""
    shutil.copytree(finished / "out", tmp_path / "out")
    for path in (finished / "data").iterdir():
        shutil.copy2(path, tmp_path / path.name)
    # Paths are part of a case: results of a copy are not those of the original, so one run adopts it.
    return tmp_path


def test_what_a_case_gives(finished):
    folder = case_folder(finished / "out", Case("c0", ""))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [cases.SEGMENTATION, cases.MEASUREMENTS, cases.THUMBNAIL, cases.FACTS]
    )
    assert read_segmentation(folder / cases.SEGMENTATION).names == ("ball",)
    assert (folder / cases.THUMBNAIL).read_bytes()[:2] == b"\xff\xd8"
    (ball,) = json.loads((folder / cases.FACTS).read_text())["facts"]["objects"]
    (measured,) = json.loads((folder / cases.MEASUREMENTS).read_text())["segments"]
    assert ball["voxels"] == measured["voxels"] > 0 and 0 < ball["confidence"] <= 1
    assert masks(finished / "out", "c0") != masks(finished / "out", "c1"), "the cases differ"


def test_the_same_again_does_nothing(finished, options, monkeypatch):
    monkeypatch.setattr("medsam2_core.batch.work.CaseRunner.run", None)
    summary = run_here(finished / "data" / "cohort.csv", finished / "out", options)
    assert (summary.kept, summary.kept_failed, summary.done) == (["c0", "c1"], ["bad"], [])


def test_what_has_changed_is_done_again(tmp_path, options):
    cohort, out = write_cohort(tmp_path, 3), tmp_path / "out"
    run_here(cohort, out, options)
    before = masks(out, "c0")
    voxels = few_slices()
    (tmp_path / "c1.nrrd").touch()  # another time, the same content
    write_nrrd(tmp_path / "c0.nrrd", voxels[:, ::-1])
    assert run_here(cohort, out, options).done == ["c0"], "another image"
    assert masks(out, "c0") != before
    rows = [{"image": f"c{n}.nrrd", "object": "ball", "box": BOX} for n in range(3)]
    rows[2]["box"] = "14,20,27,33@2"
    assert run_here(write_rows(cohort, rows), out, options).done == ["c2"], "another prompt"
    shutil.rmtree(case_folder(out, Case("c1", "")))
    assert run_here(cohort, out, options).done == ["c1"], "a result that is gone"
    summary = run_here(cohort, out, Options(**{**vars(options), "window": "400,200"}))
    assert summary.done == ["c0", "c1", "c2"], "another option"
    slower = Options(**{**vars(options), "window": "400,200", "threads": 2})
    assert run_here(cohort, out, slower).kept == ["c0", "c1", "c2"]


def test_failed_cases_are_done_again_on_request_or_when_mended(again, options):
    cohort, out = again / "cohort.csv", again / "out"
    run_here(cohort, out, options)
    assert entries(out)["bad"].outcome["error"]["code"] == "unreadable-file"
    assert run_here(cohort, out, options).kept_failed == ["bad"]
    assert run_here(cohort, out, options, retry_failed=True).failed == ["bad"]
    write_nrrd(again / "bad.nrrd", few_slices())
    assert run_here(cohort, out, options).done == ["bad"]


def test_a_cohort_of_which_every_case_failed_is_an_error(tmp_path, options, medsam2):
    (tmp_path / "bad.nrrd").write_text("NRRD0004\nrubbish")
    cohort = write_rows(tmp_path / "c.csv", [{"image": "bad.nrrd", "box": BOX}])
    assert run_here(cohort, tmp_path / "out", options).failed == ["bad"]
    answer = medsam2("batch", cohort, "--out", tmp_path / "out", "--model", options.model, "--image-size", 64)
    assert answer.refused("every-case-failed", cases=["bad"])


def test_a_prompt_that_does_not_fit_fails_that_case_only(tmp_path, options):
    write_cohort(tmp_path, 2)
    rows = [{"image": "c0.nrrd", "point": "99,99,99"}, {"image": "c1.nrrd", "box": BOX}]
    summary = run_here(write_rows(tmp_path / "c.csv", rows), tmp_path / "out", options)
    assert (summary.failed, summary.done) == (["c0"], ["c1"])


def test_a_stopped_run_goes_on(tmp_path, options):
    cohort, out = write_cohort(tmp_path, 4), tmp_path / "out"
    first = run_here(cohort, out, options, stop_after=1)
    assert first.stopped and len(first.done) == 2
    second = run_here(cohort, out, options)
    assert second.kept == first.done and len(second.done) == 2 and not second.stopped


def test_a_lost_process_is_tried_again_and_then_given_up(tmp_path, options):
    cohort = write_cohort(tmp_path, 3)
    summary = run_here(cohort, tmp_path / "out", options, losing={"c0": 1, "c2": 9})
    assert sorted(summary.done) == ["c0", "c1"] and summary.failed == ["c2"]
    known = entries(tmp_path / "out")
    assert known["c2"].outcome["error"]["code"] == "process-lost"
    assert known["c2"].attempts == 2 and known["c1"].state == "done"
    assert run_here(cohort, tmp_path / "out", options).kept_failed == ["c2"]
    write_nrrd(tmp_path / "c2.nrrd", few_slices())
    assert run_here(cohort, tmp_path / "out", options).done == ["c2"], "another image is tried"


def test_results_are_taken_over_when_the_journal_is_gone(finished, tmp_path, options):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    for path in out.glob("journal.sqlite*"):
        path.unlink()
    summary = run_here(finished / "data" / "cohort.csv", out, options)
    assert (summary.kept, summary.failed) == (["c0", "c1"], ["bad"])


@pytest.mark.parametrize("damage", ["cut", "overwritten", "text"])
def test_a_damaged_journal_is_named_and_left_as_it_is(finished, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    path = out / cases.JOURNAL
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "overwritten":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    else:
        content = bytearray(b"case,state\nc0,done\n" * 400)
    path.write_bytes(content)
    with raises("journal-damaged", path=str(path)), opened(out):
        pass
    assert path.read_bytes() == content


def test_a_journal_of_a_later_release(tmp_path):
    Journal(tmp_path / cases.JOURNAL).close()
    with sqlite3.connect(tmp_path / cases.JOURNAL) as database:
        database.execute("PRAGMA user_version=99")
    with raises("journal-version", version=99):
        Journal(tmp_path / cases.JOURNAL)


def test_a_locked_journal_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / cases.JOURNAL
    Journal(path).close()
    monkeypatch.setattr("medsam2_core.batch.journal._LOCK_SECONDS", 0.0)
    other = sqlite3.connect(path)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with raises("journal-unreadable", path=str(path)):
            Journal(path)
    finally:
        other.close()
    Journal(path).close()


def test_folders_that_are_no_results_or_in_use(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with raises("results-of-others"), opened(tmp_path):
        pass
    with opened(tmp_path / "out"), raises("results-in-use"), opened(tmp_path / "out"):
        pass


def test_a_folder_of_results_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "case") as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ValueError), new_folder(tmp_path / "case") as folder:
        (folder / "a").write_text("half")
        raise ValueError
    assert (tmp_path / "case" / "a").read_text() == "first"
    with new_folder(tmp_path / "case") as folder:
        (folder / "b").write_text("second")
    assert [path.name for path in (tmp_path / "case").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_an_earlier_result_comes_back_when_its_place_cannot_be_taken(tmp_path, monkeypatch):
    with new_folder(tmp_path / "case") as folder:
        (folder / "a").write_text("first")
    rename = Path.rename

    def refuse(path, target):
        if path.suffix == ".part":
            raise PermissionError(13, "open elsewhere")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with raises("output-not-writable"), new_folder(tmp_path / "case") as folder:
        (folder / "a").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
    assert (tmp_path / "case" / "a").read_text() == "first"


def test_what_a_killed_process_left_is_put_right(tmp_path):
    for name in (".a.b.0a1b2c3d.old", ".c.0a1b2c3d.old", "c", ".d.0a1b2c3d.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    clean_folders(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "a.b": ".a.b.0a1b2c3d.old", "c": "c",
    }  # fmt: skip


def test_a_store_that_does_not_answer_costs_no_result(finished, tmp_path, options, monkeypatch):
    out, cohort = tmp_path / "out", finished / "data" / "cohort.csv"
    shutil.copytree(finished / "out", out)

    def no_answer(*_):
        raise BatchError("no answer", code="url-unreachable")

    with monkeypatch.context() as patched:
        patched.setattr("medsam2_core.batch.run.changed", no_answer)
        summary = run_here(cohort, out, options)
    assert summary.kept == ["c0", "c1"] == list(summary.unchecked) and summary.failed == ["bad"]
    with opened(out) as journal:  # as an earlier attempt to do it again may have left it
        journal.end("c0", "", {"state": "failed", "error": {"code": "url-unreachable"}})
    assert run_here(cohort, out, options).kept == ["c0", "c1"]
    assert entries(out)["c0"].state == "done"


def test_table_and_report(finished, tmp_path):
    found = read_cohort(finished / "data" / "cohort.csv").cases
    journal = Journal(finished / "out" / cases.JOURNAL)
    results = results_of(journal, found)
    journal.close()
    shutil.copytree(finished / "out" / "cases", tmp_path / "cases")
    with write_table(results, tmp_path).open(encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["case"], line["state"], line["error_code"]) for line in lines] == [
        ("c0", "done", ""), ("c1", "done", ""), ("bad", "failed", "unreadable-file"),
    ]  # fmt: skip
    assert (tmp_path / lines[0]["segmentation"]).is_file() and float(lines[0]["volume_ml"]) > 0
    page = write_report(results, tmp_path, "<cohort>").read_text()
    assert "&lt;cohort&gt;" in page and "<cohort>" not in page and "http" not in page
    assert page.count("<figure>") == 2 and page.index("unreadable-file") < page.index("<figure>")
    worst, _ = min(results[:2], key=lambda one: least_confidence(one[1].objects))
    assert page.index(f"<figcaption>{worst.name}") == page.index("<figcaption>")


def test_an_auto_model_and_prompts_for_other_cases(tmp_path, auto_model, model, options):
    write_cohort(tmp_path, 2)
    rows = [{"image": "c0.nrrd", "auto": str(auto_model)}, {"image": "c1.nrrd", "box": BOX}]
    cohort = write_rows(tmp_path / "c.csv", rows)
    summary = run_here(cohort, tmp_path / "out", options)
    assert summary.failed == [] and len(summary.done) == 2, entries(tmp_path / "out")


def test_examples_are_looked_for(tmp_path, finished, options):
    write_cohort(tmp_path, 1)
    segmentation = case_folder(finished / "out", Case("c0", "")) / cases.SEGMENTATION
    row = {
        "image": "c0.nrrd", "like_scan": str(finished / "data" / "c0.nrrd"),
        "like_segmentation": str(segmentation),
    }  # fmt: skip
    assert run_here(write_rows(tmp_path / "c.csv", [row]), tmp_path / "out", options).done == ["c0"]
    assert set(masks(tmp_path / "out", "c0")) == {"ball"}


def test_a_dicom_seg_on_request(tmp_path, options):
    write_series(tmp_path / "ct", some_voxels((4, 40, 40)), SeriesInstanceUID="1.2.3")
    rows = [{"image": "ct", "object": "liver", "box": "5,5,30,30@1"}]
    wanted = Options(**{**vars(options), "dicom_seg": True})
    assert run_here(write_rows(tmp_path / "c.csv", rows), tmp_path / "out", wanted).done == ["ct"]
    facts = entries(tmp_path / "out")["ct"].outcome["facts"]
    assert facts["dicom_seg"], facts["notes"]
    written = pydicom.dcmread(case_folder(tmp_path / "out", Case("ct", "")) / cases.DICOM_SEG)
    assert (written.Modality, written.SegmentSequence[0].SegmentLabel) == ("SEG", "liver")
