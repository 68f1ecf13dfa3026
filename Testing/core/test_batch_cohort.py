"""Cohorts from CSV files and folders: what becomes a case, and every problem before any work."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from medsam2_core.atomic import new_file, new_folder
from medsam2_core.batch.cases import JOURNAL, Case, folder_name
from medsam2_core.batch.cohort import Defaults, as_csv, read_cohort
from medsam2_core.batch.inputs import changed, fingerprint, states
from medsam2_core.errors import BatchError
from support.cohorts import write_rows
from support.small_files import some_voxels, write_nifti, write_nrrd, write_series


@pytest.fixture
def scans(tmp_path):
    for name in ("a", "b"):
        write_nrrd(tmp_path / f"{name}.nrrd", some_voxels())
    return tmp_path


def problems(source, **more):
    with pytest.raises(BatchError) as caught:
        read_cohort(source, **more)
    assert caught.value.code == "cohort-problems", caught.value
    return [(one["line"], one["code"]) for one in caught.value.fields["problems"]]


def test_lines_of_one_image_are_objects_of_one_case(scans):
    path = write_rows(
        scans / "c.csv",
        [
            {"image": "a.nrrd", "object": "liver", "box": "0,0,3,3@1; 1,1,3,3@2"},
            {"image": "b.nrrd", "object": "spleen", "point": "1,2,1;3,3,1,-"},
            {"image": "a.nrrd", "object": "kidney", "point": "1,1,1"},
        ],
    )
    first, second = read_cohort(path).cases
    assert (first.name, first.image, first.line) == ("a", str(scans / "a.nrrd"), 2)
    assert first.given == (
        ("object", "liver"), ("box", "0,0,3,3@1"), ("box", "1,1,3,3@2"),
        ("object", "kidney"), ("point", "1,1,1"),
    )  # fmt: skip
    assert second.given == (("object", "spleen"), ("point", "1,2,1"), ("point", "3,3,1,-"))


def test_every_problem_is_listed_with_its_line(scans):
    (scans / "p.prompts.json").write_text("{not json")
    path = write_rows(
        scans / "c.csv",
        [
            {"image": "a.nrrd", "box": "0,0,3,3@1"},
            {"image": "missing.nrrd", "box": "0,0,3,3@1"},
            {"image": "", "box": "0,0,3,3@1"},
            {"image": "b.nrrd", "box": "0,0,three,3@1"},
            {"case": "x", "image": "b.nrrd", "box": "0,0,3@1"},
            {"case": "y", "image": "b.nrrd"},
            {"case": "z", "image": "b.nrrd", "prompts": "p.prompts.json"},
            {"case": "x2", "image": "b.nrrd", "object": "liver"},
            {"case": "w", "image": "b.nrrd", "like_scan": "a.nrrd"},
            {"case": "A", "image": "b.nrrd", "point": "1,1,1"},
            {"case": "v", "image": "b.nrrd", "mask": "none.nrrd:1"},
            {"case": "v", "image": "a.nrrd", "point": "1,1,1"},
        ],
    )
    assert problems(path) == [
        (3, "no-such-file"), (4, "no-image"), (5, "prompt-syntax"), (6, "prompt-syntax"), (7, "no-prompt"),
        (8, "not-json"), (9, "object-without-prompt"), (10, "like-incomplete"), (11, "same-name"),
        (12, "no-such-file"), (13, "same-name"),
    ]  # fmt: skip


def test_lines_without_object_are_not_joined(scans):
    rows = [{"image": "a.nrrd", "box": "0,0,3,3@1"}, {"image": "a.nrrd", "box": "4,0,5,3@1"}]
    assert problems(write_rows(scans / "c.csv", rows)) == [(3, "object-unnamed")]


def test_a_case_s_own_classes_stay_with_the_model_of_all(scans):
    path = write_rows(scans / "c.csv", [{"image": "a.nrrd", "classes": "spleen"}])
    (case,) = read_cohort(path, Defaults(auto="organs", classes="liver")).cases
    assert (case.auto, case.classes) == ("organs", "spleen")


def test_a_case_without_prompts_takes_those_of_all(scans):
    path = write_rows(scans / "c.csv", [{"image": "a.nrrd"}, {"image": "b.nrrd", "point": "1,1,1"}])
    first, second = read_cohort(path, Defaults(auto="organs", classes="liver")).cases
    assert (first.auto, first.classes) == ("organs", "liver")
    assert (second.auto, second.classes) == ("", "")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"case,box\na,1\n", "no-image-column"),
        (b"", "no-image-column"),
        (b"image,box,box\na.nrrd,1,2\n", "column-twice"),
        (b'image\n"never closed\n', "cohort-unreadable"),
        (b"image\n\xff\xfe.nrrd\n", "cohort-unreadable"),
        (b"image\n\n", "no-cases"),
    ],
)
def test_what_is_no_cohort(tmp_path, content, code):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(BatchError) as caught:
        read_cohort(tmp_path / "c.csv")
    assert caught.value.code == code


def test_further_columns_are_named_and_left_alone(scans):
    path = write_rows(scans / "c.csv", [{"image": "a.nrrd", "point": "1,1,1", "age": "64"}])
    (note,) = read_cohort(path).notes
    assert (note.code, note.fields["columns"]) == ("columns-not-used", ["age"])


def test_a_folder_of_files_and_dicom_series(tmp_path):
    folder = tmp_path / "cohort"
    write_series(folder / "p1" / "ct", some_voxels(), SeriesInstanceUID="1.2.3")
    two = write_series(folder / "p2", some_voxels((2, 5, 6)), SeriesInstanceUID="1.2.4")
    write_series(two / "more", some_voxels((3, 5, 6)), SeriesInstanceUID="1.2.5")
    write_nifti(folder / "p3.nii.gz", some_voxels())
    write_nrrd(folder / "p3.seg.nrrd", some_voxels())
    write_nifti(folder / "p3_seg.nii.gz", some_voxels())
    (folder / "p3.prompts.json").write_text('{"version": 1, "objects": []}')
    (folder / "notes.txt").write_text("nothing")
    (folder / "results").mkdir()
    write_nrrd(folder / "results" / "r.nrrd", some_voxels())
    found = read_cohort(folder, Defaults(auto="organs"), folder / "results").cases
    assert [(case.name, case.series) for case in found] == [
        ("p1/ct", ""), ("p2/1.2.4", "1.2.4"), ("p2/more", ""), ("p3", ""),
    ]  # fmt: skip
    assert [case.image for case in found][:2] == [str(folder / "p1" / "ct"), str(folder / "p2")]
    assert found[3].prompts == str(folder / "p3.prompts.json") and found[3].auto == ""
    listed = as_csv(found)
    (tmp_path / "listed.csv").write_text(listed)
    again = read_cohort(tmp_path / "listed.csv").cases
    assert [(one.name, one.image, one.series, one.auto) for one in again] == [
        (one.name, one.image, one.series, one.auto) for one in found
    ]


def test_what_is_no_scan_or_prompt_of_a_folder(tmp_path):
    write_series(tmp_path / "ct", some_voxels())
    for folder in (
        tmp_path / "ct" / ".cache",
        tmp_path / "ct" / "results" / "cases" / "a",
        tmp_path / "bids",
    ):
        folder.mkdir(parents=True)
    (tmp_path / "ct" / "results" / JOURNAL).touch()
    write_nrrd(tmp_path / "ct" / "results" / "cases" / "a" / "r.nrrd", some_voxels())
    write_nrrd(tmp_path / "bids" / "sub-01_T1w.nrrd", some_voxels())
    (tmp_path / "bids" / "sub-01_T1w.json").write_text('{"EchoTime": 0.003}')
    found = read_cohort(tmp_path, Defaults(auto="organs")).cases
    assert [(case.name, case.series, case.prompts) for case in found] == [
        ("bids/sub-01_T1w", "", ""), ("ct", "", ""),
    ]  # fmt: skip


def test_folders_that_cannot_be_read_are_named(scans, monkeypatch):
    (scans / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    notes = read_cohort(scans, Defaults(auto="organs")).notes
    assert [(note.code, note.fields["path"]) for note in notes] == [
        ("folder-unreadable", str(scans / "closed"))
    ]


def test_only_the_files_of_its_own_series_change_a_case(tmp_path):
    folder = write_series(tmp_path / "ct", some_voxels(), SeriesInstanceUID="1.2.3")
    case = Case("ct", str(folder), "1.2.3")
    known = json.loads(json.dumps(fingerprint(case)))
    (folder / "results").mkdir()
    (folder / "results" / JOURNAL).write_bytes(b"x")
    assert states([case.image])[case.image] == known[case.image]["state"]
    write_series(folder / "other", some_voxels((2, 5, 6)), SeriesInstanceUID="1.2.4")
    assert not changed(known, case)
    write_series(folder, some_voxels()[::-1], SeriesInstanceUID="1.2.3")
    assert changed(known, case)


def test_a_damaged_series_is_a_case_that_will_fail(tmp_path):
    write_series(tmp_path / "good", some_voxels())
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
    found = read_cohort(tmp_path, Defaults(auto="organs")).cases
    assert [case.name for case in found] == ["damaged", "good"]


def test_real_dicom_series_are_found(shared_data):
    found = read_cohort(shared_data / "dicom", Defaults(auto="organs")).cases
    names = {case.name for case in found}
    assert {"ct_body_j2k", "ct_liver_dcmqi", "mr_oblique_hitachi", "mr_enhanced_siemens"} <= names
    assert all(case.auto == "organs" for case in found)
    listed = read_cohort(shared_data / "dicom", needs_prompts=False).cases
    assert {case.name for case in listed} == names and not any(case.auto for case in listed)
    assert not any("SEG" in name for name in names)


def test_prompts_survive_the_list(scans):
    rows = [
        {"image": "a.nrrd", "object": "l,r", "box": "0,0,3,3@1;1,1,3,3@2"},
        {"image": "a.nrrd", "object": '"quoted"', "point": "1,1,1"},
        {"image": "b.nrrd", "like_scan": "a.nrrd", "like_segmentation": "b.nrrd"},
        {"image": "b.nrrd", "like_scan": "b.nrrd", "like_segmentation": "a.nrrd"},
    ]
    found = read_cohort(write_rows(scans / "c.csv", rows)).cases
    (scans / "again.csv").write_text(as_csv(found))
    again = read_cohort(scans / "again.csv").cases
    assert [(one.given, one.like) for one in again] == [(one.given, one.like) for one in found]
    assert len(list(csv.DictReader(io.StringIO(as_csv(found))))) == 4


@given(st.text(max_size=120))
def test_any_name_gives_a_harmless_folder(name):
    made = folder_name(name)
    assert made and len(f".{made}.12345678.part".encode()) <= 255 and "/" not in made and "\\" not in made
    assert made[0] not in ".-" and made[-1] not in ". " and "\0" not in made
    assert made.isprintable()
    assert folder_name(name) == made


def test_long_names_of_any_script_can_be_written(tmp_path):
    for name in ("𠀀" * 200, "ä" * 300, "a" * 300):
        with new_folder(tmp_path / folder_name(name)):
            pass
    with new_file(tmp_path / f"{folder_name('𠀀' * 200)}.seg.nrrd", overwrite=False):
        pass
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "names", [("a/b", "a_b"), ("con", "CON2"), ("../x", "x"), ("a ", "a"), ("ä" * 200, "ä" * 201)]
)
def test_other_names_give_other_folders(names):
    first, second = (folder_name(name) for name in names)
    assert first.casefold() != second.casefold()


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be")
def test_files_with_hostile_names(tmp_path):
    for name in ("CON", "new\nline", "%s{0}", "'; DROP TABLE cases; --", "=1+1"):
        write_nrrd(tmp_path / f"{name}.nrrd", some_voxels())
    found = read_cohort(tmp_path, Defaults(auto="organs")).cases
    assert len({case.folder for case in found}) == 5


def test_the_command_line_lists_cases_and_names_every_problem(scans, medsam2):
    path = write_rows(
        scans / "c.csv", [{"image": "a.nrrd", "box": "1,2"}, {"image": "b.nrrd"}, {"image": "c.nrrd"}]
    )
    answer = medsam2("batch", path, "--out", scans / "out")
    assert answer.refused("cohort-problems")
    lines = answer.err.splitlines()[:-1]
    assert [line.partition(":")[2].partition(":")[0].strip() for line in lines] == [
        "line 2", "line 3", "line 4", "line 4",
    ]  # fmt: skip
    assert not (scans / "out").exists(), "nothing was begun"
    write_rows(path, [{"image": "a.nrrd", "auto": "nosuch"}, {"image": "c.nrrd", "auto": "nosuch"}])
    answer = medsam2("batch", path, "--out", scans / "out")
    assert answer.refused("cohort-problems")
    assert [(one["line"], one["code"]) for one in answer.error.fields["problems"]] == [
        (2, "unknown-auto-model"), (3, "no-such-file"),
    ]  # fmt: skip
    write_rows(path, [{"image": "a.nrrd", "object": "liver", "box": "0,0,3,3@1"}, {"image": "b.nrrd"}])
    rows = list(csv.DictReader(io.StringIO(medsam2("batch", path, "--out", scans / "out", "--list").out)))
    assert [(row["case"], row["object"], row["box"]) for row in rows] == [
        ("a", "liver", "0,0,3,3@1"), ("b", "", ""),
    ]  # fmt: skip
    assert medsam2("batch", scans, "--out", scans).refused("output-is-input")
    assert medsam2("batch", scans / "no.csv", "--out", scans / "out").refused("cohort-not-found")
