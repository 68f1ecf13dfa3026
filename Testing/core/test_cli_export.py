"""`medsam2 export`: the command a user types, to the files another system takes."""

import csv
import json
import signal
import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import pydicom
import pytest
from medsam2_core.export.dicom.source import read_source
from medsam2_core.export.writing import write
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from support.dicom_validators import dcmqi_segments, on_grid, validator_errors
from support.small_files import some_voxels, write_series


@pytest.fixture
def case(tmp_path):
    """A series, and a segmentation of it beside it."""
    write_series(tmp_path / "series", some_voxels((6, 20, 24)), PatientID="7", PatientName="Doe^Jane")
    geometry = read_source(tmp_path / "series").geometry
    liver, spleen = np.zeros((2, 6, 20, 24), dtype=bool)
    liver[1:5, 4:12, 3:15], spleen[2:4, 13:18, 12:20] = True, True
    given = Segmentation.from_masks(geometry, {"liver": liver, "spleen": spleen}, {"model": "embedded"})
    write(given, tmp_path / "x.seg.nrrd")
    return tmp_path


def test_a_segmentation_becomes_a_seg_with_a_summary(medsam2, case):
    out = case / "x.dcm"
    answer = medsam2("export", case / "x.seg.nrrd", "--dicom", case / "series", "--out", out, "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["kind"] == "binary"
    assert facts["frames"] == 4 + 2
    assert [one["code"] for one in facts["segments"]] == ["SCT^10200004^Liver", "SCT^78961009^Spleen"]
    assert facts["bytes"] == out.stat().st_size
    assert validator_errors(out) == []
    seg = pydicom.dcmread(out)
    assert seg.SeriesInstanceUID == facts["series_uid"]
    assert str(seg.PatientName) == "Doe^Jane"
    assert str(case) not in out.read_bytes().decode("latin-1")


def test_every_kind_and_packing_comes_back_as_it_was(medsam2, case):
    given = read_segmentation(case / "x.seg.nrrd")
    for kind, compression in [("binary", "none"), ("labelmap", "rle"), ("labelmap", "jpeg-ls")]:
        out, back = case / f"{compression}.dcm", case / f"{compression}.seg.nrrd"
        words = ("--dicom", case / "series", "--out", out, "--kind", kind, "--compression", compression)
        assert medsam2("export", case / "x.seg.nrrd", *words).code == 0
        answer = medsam2("import", out, "--out", back)
        assert answer.code == 0, answer.err
        again = read_segmentation(back)
        assert again.names == given.names
        for segment in given:
            assert again[segment.name].voxel_count == segment.voxel_count
            assert again[segment.name].colour_rgb == pytest.approx(segment.colour_rgb, abs=0.5 / 255)
            assert again[segment.name].terminology.type.value in ("10200004", "78961009")


def test_the_other_formats_need_no_series(medsam2, case):
    for suffix in (".seg.nrrd", ".nii.gz", ".nrrd", ".mha"):
        answer = medsam2("export", case / "x.seg.nrrd", "--out", case / f"y{suffix}", "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["kind"] == suffix[1:]
        assert len(read_segmentation(case / f"y{suffix}")) == 2


def test_measurements_and_a_report_are_written_beside(medsam2, case):
    words = ["--dicom", case / "series", "--out", case / "x.dcm", "--report", case / "sr.dcm", "--json"]
    words += ["--measurements", case / "m.csv", "--measurements", case / "m.json"]
    answer = medsam2("export", case / "x.seg.nrrd", *words)
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((case / "m.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["segment"] for row in rows] == ["liver", "spleen"]
    assert [row["code_value"] for row in rows] == ["10200004", "78961009"]
    assert json.loads((case / "m.json").read_text(encoding="utf-8"))
    assert validator_errors(case / "sr.dcm") == []
    seg, report = pydicom.dcmread(case / "x.dcm"), pydicom.dcmread(case / "sr.dcm")
    assert report.Modality == "SR"
    assert report.StudyInstanceUID == seg.StudyInstanceUID
    assert seg.SOPInstanceUID in str(report)


def test_a_report_of_a_follow_up(medsam2, case):
    words = ["--dicom", case / "series", "--out", case / "x.dcm", "--report", case / "sr.dcm"]
    answer = medsam2("export", case / "x.seg.nrrd", *words, "--prior", case / "x.seg.nrrd")
    assert answer.code == 0, answer.err
    assert validator_errors(case / "sr.dcm") == []
    report = str(pydicom.dcmread(case / "sr.dcm"))
    assert report.count("'Baseline'") == 2 and report.count("'Fractional Change'") == 6


def test_dcmqi_finds_the_voxels_where_they_were(medsam2, case):
    words = ("--dicom", case / "series", "--out", case / "x.dcm")
    assert medsam2("export", case / "x.seg.nrrd", *words).code == 0
    given = read_segmentation(case / "x.seg.nrrd")
    judged = dcmqi_segments(case / "x.dcm", case / "dcmqi")
    for segment in given:
        assert np.array_equal(on_grid(judged[segment.name], given.geometry), segment.mask_kji)


def test_a_name_without_a_code_is_refused_with_the_ways_out(medsam2, case):
    given = read_segmentation(case / "x.seg.nrrd")
    strange = {"glorp": given["liver"].mask_kji}
    write(Segmentation.from_masks(given.geometry, strange), case / "strange.seg.nrrd")
    words = ["export", case / "strange.seg.nrrd", "--dicom", case / "series", "--out", case / "s.dcm"]
    answer = medsam2(*words)
    assert answer.refused("no-segment-code")
    for told in ("'glorp'", "--segments", "--generic", "--list-terms"):
        assert told in answer.err
    assert not (case / "s.dcm").exists()
    assert medsam2(*words, "--generic").code == 0
    meta = case / "meta.json"
    meta.write_text(json.dumps({"glorp": "SCT^10200004^Liver"}), encoding="utf-8")
    assert medsam2(*words, "--segments", meta, "--overwrite").code == 0
    item = pydicom.dcmread(case / "s.dcm").SegmentSequence[0]
    assert item.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"


def test_the_names_that_have_a_code_are_listed(medsam2):
    answer = medsam2("export", "--list-terms")
    assert answer.code == 0
    assert any(line.startswith("liver") and "10200004" in line for line in answer.out.splitlines())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--out", "x.dcm"], "source-missing"),
        (["--out", "x.nrrd", "--prior", "x.seg.nrrd"], "prior-needs-report"),
        (["--out", "x.xyz"], "unknown-format"),
        (["--out", "x.nrrd", "--report", "r.dcm"], "option-needs-dicom"),
        (["--out", "x.nrrd", "--measurements", "m.xlsx"], "measurements-format"),
        (["--out", "x.nrrd", "--measurements", "x.nrrd"], "measurements-format"),
        (["--out", "m.dcm", "--dicom", "series", "--report", "m.dcm"], "outputs-collide"),
        (["--out", "x.dcm", "--dicom", "series", "--kind", "fractional"], "probabilities-needed"),
        (["--out", "x.dcm", "--dicom", "series", "--compression", "rle"], "compression-of-bits"),
        (["--out", "x.dcm", "--dicom", "nowhere"], "source-not-found"),
        (["--out", "none/x.nrrd"], "output-folder-missing"),
        (["--out", "x.dcm", "--dicom", "series", "--most-lost", "120"], "usage"),
        ([], "usage"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(medsam2, case, monkeypatch, words, code):
    monkeypatch.chdir(case)
    before = sorted(case.rglob("*"))
    answer = medsam2("export", "x.seg.nrrd", *words)
    assert answer.refused(code)
    assert len(answer.err.strip().splitlines()) == 1
    assert sorted(case.rglob("*")) == before


def test_existing_files_stay_without_overwrite(medsam2, case):
    (case / "m.csv").write_text("mine", encoding="utf-8")
    words = ["export", case / "x.seg.nrrd", "--out", case / "y.nii.gz", "--measurements", case / "m.csv"]
    assert medsam2(*words).refused("output-exists", path=str(case / "m.csv"))
    assert (case / "m.csv").read_text(encoding="utf-8") == "mine"
    assert not (case / "y.nii.gz").exists()
    assert medsam2(*words, "--overwrite").code == 0


def test_source_files_can_come_as_a_list(medsam2, case):
    files = sorted((case / "series").iterdir())
    (case / "files.txt").write_text("\n".join(map(str, files)), encoding="utf-8")
    words = ("--dicom", case / "files.txt", "--out", case / "x.dcm")
    assert medsam2("export", case / "x.seg.nrrd", *words).code == 0
    (case / "files.txt").write_text(f"{files[0]}\n{case / 'gone.dcm'}\n", encoding="utf-8")
    answer = medsam2("export", case / "x.seg.nrrd", *words, "--overwrite")
    assert answer.refused("no-such-file", path=str(case / "gone.dcm"))


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not ended by signals there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_no_half_file(case, number):
    stopped = """
import os, sys, time
from medsam2_core.cli import main
from medsam2_core.export.dicom import frames
add = frames.PixelDataWriter.add
def slowly(self, frame):
    add(self, frame)
    print("at work", flush=True)
    time.sleep(60)
frames.PixelDataWriter.add = slowly
sys.exit(main(sys.argv[1:]))
"""
    words = ["export", case / "x.seg.nrrd", "--dicom", case / "series", "--out", case / "x.dcm"]
    command = [sys.executable, "-c", stopped, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        process.wait(timeout=30)
    left = {path.name for path in case.iterdir()} - {"series", "x.seg.nrrd"}
    assert "x.dcm" not in left
    if number != signal.SIGKILL:
        assert left == set()
    assert all(name.startswith(".") and name.endswith(".part") for name in left)


def test_files_that_are_read_are_never_written_over(medsam2, case):
    first = sorted((case / "series").iterdir())[0]
    (case / "meta.json").write_text('{"liver": {"label": "Liver"}}', encoding="utf-8")
    words = ["export", case / "x.seg.nrrd", "--dicom", case / "series", "--overwrite"]
    words += ["--segments", case / "meta.json"]
    before = {path: path.read_bytes() for path in case.rglob("*") if path.is_file()}
    image = case / "series" / "image.dcm"
    for more in (
        ["--out", first],
        ["--out", case / "a.dcm", "--report", first],
        ["--out", case / "a.dcm", "--measurements", case / "meta.json"],
        ["--out", image],
    ):
        if image in more:
            image.hardlink_to(first)  # the same file by another name
        assert medsam2(*words, *more).refused("output-is-input"), more
        image.unlink(missing_ok=True)
    own = case / "x.seg.nrrd"
    assert medsam2("export", own, "--out", own, "--overwrite").refused("output-is-input")
    assert {path: path.read_bytes() for path in case.rglob("*") if path.is_file()} == before


def test_all_that_is_wanted_is_written_or_nothing(medsam2, case, monkeypatch):
    from medsam2_core.errors import ExportError
    from medsam2_core.export.dicom import report

    def fails(*_, **__):
        raise ExportError("no")

    monkeypatch.setattr(report, "write_report", fails)
    (case / "x.dcm").write_bytes(b"the one before")
    words = ["--dicom", case / "series", "--out", case / "x.dcm", "--overwrite"]
    words += ["--report", case / "sr.dcm", "--measurements", case / "m.csv"]
    assert medsam2("export", case / "x.seg.nrrd", *words).code == 2
    assert {path.name for path in case.iterdir()} == {"series", "x.seg.nrrd", "x.dcm"}
    assert (case / "x.dcm").read_bytes() == b"the one before"


def test_labels_from_the_users_file_are_in_the_table(medsam2, case):
    metadata = {"liver": {"type": "SCT^10200004^Liver", "label": "Leber"}, "spleen": "SCT^78961009^Spleen"}
    (case / "meta.json").write_text(json.dumps(metadata), encoding="utf-8")
    words = ["--dicom", case / "series", "--out", case / "x.dcm", "--segments", case / "meta.json"]
    answer = medsam2("export", case / "x.seg.nrrd", *words, "--measurements", case / "m.csv", "--json")
    assert answer.code == 0, answer.err
    assert [one["name"] for one in json.loads(answer.out)["segments"]] == ["Leber", "spleen"]
    assert "\nLeber,SCT,10200004,Liver," in (case / "m.csv").read_text(encoding="utf-8-sig")


def test_a_volume_that_was_moved_takes_its_segments_back(medsam2, case):
    given = read_segmentation(case / "x.seg.nrrd")
    shift = np.eye(4)
    shift[:3, 3] = (4, -3, 12)
    moved = Geometry(shift @ given.geometry.ijk_to_ras, given.geometry.shape_ijk)
    masks = {one.name: one.mask_kji for one in given}
    write(Segmentation.from_masks(moved, masks, {"model": "embedded"}), case / "moved.seg.nrrd")
    grid = {"ijk_to_ras": moved.ijk_to_ras.tolist(), "shape_ijk": moved.shape_ijk}
    (case / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
    words = ["export", case / "moved.seg.nrrd", "--dicom", case / "series", "--out", case / "x.dcm"]
    assert medsam2(*words).code == 2, "most of it would lie outside the series"
    answer = medsam2(*words, "--drawn-on", case / "grid.json")
    assert answer.code == 0, answer.err
    assert "was moved by 13.0 mm" in answer.err
    again = read_segmentation(case / "x.dcm")
    for segment in given:
        k, j, i = np.nonzero(again[segment.name].mask_kji)
        places = given.geometry.to_ijk(again.geometry.to_ras(np.column_stack([i, j, k])))
        assert segment.mask_kji[tuple(np.rint(places).astype(int).T[::-1])].all()
        assert again[segment.name].voxel_count == segment.voxel_count
    other = {**grid, "shape_ijk": [24, 20, 5]}
    (case / "grid.json").write_text(json.dumps(other), encoding="utf-8")
    answer = medsam2(*words, "--drawn-on", case / "grid.json", "--overwrite")
    assert answer.refused("volume-not-of-series")


def test_ctrl_c_reports_that_nothing_was_left(medsam2, case, monkeypatch):
    from medsam2_core.export.dicom import frames

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(frames.PixelDataWriter, "add", interrupted)
    words = ["--dicom", case / "series", "--out", case / "x.dcm"]
    answer = medsam2("export", case / "x.seg.nrrd", *words)
    assert answer.code == 130
    assert answer.error.code == "cancelled"
    assert {path.name for path in case.iterdir()} == {"series", "x.seg.nrrd"}


def test_the_command_line_offers_every_kind_and_compression_there_is():
    from medsam2_core.cli.export import Export
    from medsam2_core.export.dicom.options import Compression, Kind

    hints = get_type_hints(Export)
    assert get_args(hints["kind"]) == tuple(one.value for one in Kind)
    assert get_args(hints["compression"]) == tuple(one.value for one in Compression)


def test_the_result_and_the_notes_are_one_json_document(medsam2, case):
    words = ("--dicom", case / "series", "--out", case / "x.dcm", "--json")
    document = medsam2("export", case / "x.seg.nrrd", *words).facts
    assert document["error"] is None
    assert document["notes"]
    for note in document["notes"]:
        assert set(note) == {"code", "message", "severity", "fields"}
        assert note["severity"] in ("info", "warning")
    answer = medsam2("export", case / "x.seg.nrrd", *words)
    assert answer.refused("output-exists")
    assert answer.facts["notes"] == []
    error = answer.facts["error"]
    assert (error["code"], error["severity"]) == ("output-exists", "error")
    assert error["fields"] == {"path": str(case / "x.dcm")}
    assert "--overwrite" in answer.err
    assert "--overwrite" not in error["message"]


def test_labels_of_a_picture_have_no_millilitres(medsam2, tmp_path):
    from PIL import Image

    Image.fromarray(np.pad(np.ones((8, 9), np.uint8), 4)).save(tmp_path / "labels.png")
    answer = medsam2("export", tmp_path / "labels.png", "--out", tmp_path / "labels.seg.nrrd", "--json")
    assert answer.code == 0, answer.err
    (segment,) = answer.facts["segments"]
    assert (segment["voxels"], segment["millilitres"]) == (72, None)
