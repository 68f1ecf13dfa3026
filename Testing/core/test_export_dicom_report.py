"""The report says what was measured, of which segment, and stands before programs nobody here has written."""

import getpass
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from medsam2_core.errors import ExportError
from medsam2_core.export.dicom.options import Kind
from medsam2_core.export.dicom.report import DEVICE_UID, write_report
from medsam2_core.export.dicom.seg import SegOptions, write_seg
from medsam2_core.export.dicom.source import read_source
from medsam2_core.export.measurements import measure
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.version import __version__
from pydicom.sr.codedict import codes
from support.coded_segments import LEFT_KIDNEY, LIVER, MASS, PAINTED, PROMPTED
from support.dicom_validators import validator_errors
from support.errors import raises
from support.small_files import a_dicom_slice, some_voxels, write_dicom, write_series

SERIES = [
    *("ct_liver_dcmqi", "ct_body_j2k", "mr_oblique_hitachi", "mr_enhanced_siemens", "mr_sag_ge"),
    *("mr_cor_philips", "mr_nonisotropic", "mr_jpegls", "mr_rle", "ct_oblique_synth"),
]
OBJECTS = {"liver": (LIVER, PROMPTED), "left kidney": (LEFT_KIDNEY, PAINTED), "Läsion 肝": (MASS, PROMPTED)}


def three_objects(geometry, *, empty=()) -> Segmentation:
    """Side by side, on the last slices only, each with another largest slice."""
    depth, height, width = geometry.shape_ijk[::-1]
    segments = []
    for n, (name, (terminology, tags)) in enumerate(OBJECTS.items()):
        mask = np.zeros((depth, height, width), bool)
        if name not in empty:
            column = slice(width // 4 * n + 2, width // 4 * (n + 1))
            mask[-(n % 2 + 1) :, height // 4 : height // 3, column] = True
            mask[-1 - (n % depth), height // 4 : height // 2, column] = True
        segments.append(Segment(name, (1, n / 2, 0), mask, terminology, tags))
    return Segmentation(geometry, tuple(segments), {"model": "embedded", "weights_sha256": "ab" * 32})


def a_report(folder, source, given=None, **options):
    """(what was measured, the SEG's header, the written report) of three objects on a series."""
    given = three_objects(source.geometry) if given is None else given
    written = write_seg(given, source, folder / "seg.dcm", SegOptions(**options))
    measured = measure(written.segmentation)
    return measured, written.header, write_report(measured, written.header, source, folder / "sr.dcm")


def a_source(folder, **tags):
    """A small CT series."""
    tags.setdefault("FrameOfReferenceUID", "1.2.826.0.1.3680043.8.498.300")
    return read_source(write_series(folder / "series", some_voxels((6, 40, 48)), **tags))


def groups_of(path):
    return hd.sr.srread(str(path)).content.get_volumetric_roi_measurement_groups()


def values_of(group) -> dict:
    return {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}


def assert_says(path, measured) -> None:
    """The numbers in the report are those measured, in mm3 and mm."""
    for one, group in zip(measured, groups_of(path), strict=True):
        assert values_of(group) == {
            "Volume": (pytest.approx(one.volume_ml * 1000), "mm3"),
            "Long axis": (pytest.approx(one.longest.length_mm), "mm"),
            "Short axis": (pytest.approx(one.perpendicular.length_mm), "mm"),
        }


# On real series ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERIES)
def test_a_report_of_a_real_series_is_valid_and_holds_what_was_measured(shared_data, tmp_path, name):
    source = read_source(shared_data / "dicom" / name)
    measured, seg, written = a_report(tmp_path, source)
    assert validator_errors(written.path) == []
    assert_says(written.path, measured)
    report = pydicom.dcmread(written.path)
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
        assert report[keyword].value == source.header[keyword].value
    assert report.Modality == "SR"
    assert report.SeriesInstanceUID not in (seg.SeriesInstanceUID, source.series_uid)
    assert report.SeriesNumber == seg.SeriesNumber + 1000


@pytest.mark.parametrize("name", ["ct_liver_dcmqi", "mr_oblique_hitachi", "mr_enhanced_siemens"])
def test_the_report_refers_to_segments_and_to_the_images_of_the_axes(shared_data, tmp_path, name):
    source = read_source(shared_data / "dicom" / name)
    measured, seg, written = a_report(tmp_path, source)
    for number, (one, group) in enumerate(zip(measured, groups_of(written.path), strict=True), start=1):
        segment = group.referenced_segment[0]
        assert segment.value == (seg.SOPClassUID, seg.SOPInstanceUID)
        assert segment.referenced_segment_numbers == [number]
        assert group.referenced_segment[1].value == source.series_uid
        for axis in (codes.SCT.LongAxis, codes.SCT.ShortAxis):
            (image,) = group.get_measurements(axis)[0].referenced_images
            frame = image.referenced_frame_numbers
            assert (*image.value, frame[0] if frame else None) == source.reference(one.k)
    evidence = {uid for _, _, uid, _ in hd.sr.srread(str(written.path)).get_evidence()}
    assert evidence == {seg.SOPInstanceUID, *(one.SOPInstanceUID for one in source.datasets)}


@pytest.mark.parametrize("name", ["ct_liver_dcmqi", "mr_oblique_hitachi", "mr_enhanced_siemens"])
def test_dcmqi_reads_the_same_numbers(shared_data, tmp_path, name):
    program = Path(sys.executable).with_name("tid1500reader")
    found = str(program) if program.exists() else shutil.which("tid1500reader")
    if found is None:
        pytest.skip("tid1500reader (the package dcmqi) is not installed")
    measured, seg, written = a_report(tmp_path, read_source(shared_data / "dicom" / name))
    words = [found, "--inputDICOM", str(written.path), "--outputMetadata", str(tmp_path / "read.json")]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    groups = json.loads((tmp_path / "read.json").read_text(encoding="utf-8"))["Measurements"]
    for one, group, item in zip(measured, groups, seg.SegmentSequence, strict=True):
        values = [float(read["value"]) for read in group["measurementItems"]]
        expected = [one.volume_ml * 1000, one.longest.length_mm, one.perpendicular.length_mm]
        assert values == pytest.approx(expected)
        assert group["TrackingIdentifier"] == one.name
        assert group["TrackingUniqueIdentifier"] == item.TrackingUID
        assert group["ReferencedSegment"] == item.SegmentNumber
        assert group["segmentationSOPInstanceUID"] == seg.SOPInstanceUID


def test_a_seg_of_another_program_is_reported_too(shared_data, tmp_path):
    source = read_source(shared_data / "dicom" / "ct_liver_dcmqi")
    path = shared_data / "dicom" / "ct_liver_dcmqi_SEG.dcm"
    labels = read_segmentation(path).on_grid(source.geometry)
    masks = {label.name: labels[label.name].mask_kji for label in labels.labels}
    measured = measure(Segmentation.from_masks(source.geometry, masks))
    written = write_report(
        measured, pydicom.dcmread(path, stop_before_pixels=True), source, tmp_path / "r.dcm"
    )
    assert validator_errors(written.path) == []
    assert_says(written.path, measured)


@pytest.mark.parametrize("kind", [Kind.BINARY, Kind.LABELMAP])
def test_the_header_may_come_from_the_file_and_the_seg_be_a_label_map(tmp_path, kind):
    source = a_source(tmp_path)
    written = write_seg(three_objects(source.geometry), source, tmp_path / "s.dcm", SegOptions(kind=kind))
    measured = measure(written.segmentation)
    header = pydicom.dcmread(written.path, stop_before_pixels=True)
    for name, seg in (("memory", written.header), ("file", header), ("read", hd.seg.segread(written.path))):
        path = write_report(measured, seg, source, tmp_path / f"{name}.dcm").path
        # releases of dciodvfy before Supplement 243 do not know that a label map is a segmentation
        unknown = "not segmentation - attribute <ReferencedSegmentNumber>"
        errors = [error for error in validator_errors(path) if kind is Kind.BINARY or unknown not in error]
        assert errors == []
        assert_says(path, measured)
        assert [group.referenced_segment[0].value[0] for group in groups_of(path)] == [seg.SOPClassUID] * 3


# What it says of segments -----------------------------------------------------------------------------------


def test_meaning_tracking_and_algorithm_are_those_of_the_segments(tmp_path):
    _, seg, written = a_report(tmp_path, a_source(tmp_path))
    liver, kidney, mass = groups_of(written.path)
    for group, item in zip((liver, kidney, mass), seg.SegmentSequence, strict=True):
        assert group.tracking_uid == item.TrackingUID
        assert group.tracking_identifier == item.SegmentLabel
        assert group.finding_type == hd.sr.CodedConcept.from_dataset(
            item.SegmentedPropertyTypeCodeSequence[0]
        )
        category = item.SegmentedPropertyCategoryCodeSequence[0]
        assert group.finding_category == hd.sr.CodedConcept.from_dataset(category)
    assert liver.finding_sites == []
    (side,) = kidney.finding_sites
    assert (side.value.value, side.laterality.value) == ("64033007", "7771000")
    (site,) = mass.finding_sites
    assert (site.value.value, site.laterality) == ("10200004", None)
    texts = [[str(item.get("TextValue")) for item in group[0].ContentSequence] for group in (liver, kidney)]
    assert "MedSAM2Segment 0.1.0 embedded" in texts[0]
    assert not any("MedSAM2Segment" in text for text in texts[1])  # painted by hand


def test_an_object_without_voxels_is_left_out_as_in_the_seg(tmp_path):
    source = a_source(tmp_path)
    given = three_objects(source.geometry, empty=["left kidney"])
    seg = write_seg(given, source, tmp_path / "seg.dcm").header
    written = write_report(measure(given), seg, source, tmp_path / "sr.dcm")
    assert [group.tracking_identifier for group in groups_of(written.path)] == ["liver", "Läsion 肝"]
    assert [group.referenced_segment[0].referenced_segment_numbers for group in groups_of(written.path)] == [
        [1],
        [2],
    ]
    (note,) = written.notes
    assert (note.code, note.fields["segment"]) == ("empty-segment-not-reported", "left kidney")


# Who, and where ---------------------------------------------------------------------------------------------


def test_the_observer_is_this_program_and_a_person_only_when_named(tmp_path):
    source = a_source(tmp_path)
    report = hd.sr.srread(str(a_report(tmp_path, source)[2].path))
    (device,) = report.content.get_observer_contexts()
    assert device.observer_type == codes.DCM.Device
    assert device.observer_identifying_attributes.uid == DEVICE_UID
    assert device.observer_identifying_attributes.name == f"MedSAM2Segment {__version__}"
    (tmp_path / "named").mkdir()
    path = a_report(tmp_path / "named", source, creator="Müller^Anna")[2].path
    assert validator_errors(path) == []
    people = hd.sr.srread(str(path)).content.get_observer_contexts(codes.DCM.Person)
    assert [str(person.observer_identifying_attributes.name) for person in people] == ["Müller^Anna"]


def test_every_report_has_its_own_uids(tmp_path):
    source = a_source(tmp_path)
    measured, seg, first = a_report(tmp_path, source)
    second = write_report(measured, seg, source, tmp_path / "second.dcm")
    first, second = (pydicom.dcmread(written.path) for written in (first, second))
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID


def test_names_in_any_letters_are_kept(tmp_path):
    source = a_source(
        tmp_path, SpecificCharacterSet="ISO_IR 100", PatientName="Müßig^Jörg", PatientID="ä1", StudyID="ö"
    )
    _, _, written = a_report(tmp_path, source)
    report = pydicom.dcmread(written.path)
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert (str(report.PatientName), report.PatientID, report.StudyID) == ("Müßig^Jörg", "ä1", "ö")


def test_names_in_a_seg_of_other_letters_are_kept(tmp_path):
    source = a_source(tmp_path)
    written = write_seg(three_objects(source.geometry), source, tmp_path / "seg.dcm")
    seg = pydicom.dcmread(written.path)
    seg.SpecificCharacterSet = "ISO_IR 100"
    seg.PatientName, seg.ContentCreatorName, seg.PatientID = "Müßig^Jörg", "Müller^Anna", "ä1"
    seg.SegmentSequence[2].SegmentLabel = seg.SegmentSequence[2].TrackingID = "Läsion"
    seg.save_as(written.path)
    seg = pydicom.dcmread(written.path, stop_before_pixels=True)
    path = write_report(measure(written.segmentation), seg, source, tmp_path / "sr.dcm").path
    report = pydicom.dcmread(path)
    assert (str(report.PatientName), report.PatientID) == ("Müßig^Jörg", "ä1")
    people = hd.sr.srread(str(path)).content.get_observer_contexts(codes.DCM.Person)
    assert str(people[0].observer_identifying_attributes.name) == "Müller^Anna"
    assert groups_of(path)[2].tracking_identifier == "Läsion"


def test_nothing_of_this_computer_gets_into_the_report(tmp_path):
    source = a_source(tmp_path)
    given = three_objects(source.geometry)
    given = Segmentation(given.geometry, given.segments, {"model": str(tmp_path / "mine.safetensors")})
    content = a_report(tmp_path, source, given)[2].path.read_bytes()
    for secret in (str(tmp_path), str(Path.home()), socket.gethostname(), f"{getpass.getuser()}@"):
        assert secret.encode() not in content


# What is refused --------------------------------------------------------------------------------------------


def test_a_report_of_something_else_is_refused_and_leaves_nothing(tmp_path):
    source = a_source(tmp_path)
    measured, seg, written = a_report(tmp_path, source)
    before = written.path.read_bytes()
    with raises("output-exists", ExportError):
        write_report(measured, seg, source, written.path)
    assert written.path.read_bytes() == before
    with raises("report-needs-seg", ExportError):
        write_report(measured, source.header, source, tmp_path / "x.dcm")
    with raises("report-of-other-segments", ExportError, segments=3, measured=2):
        write_report(measured[:2], seg, source, tmp_path / "x.dcm")
    elsewhere = [replace(one, k=6) for one in measured]
    with raises("measured-on-another-grid", ExportError, k=6, slices=6):
        write_report(elsewhere, seg, source, tmp_path / "x.dcm")
    seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence = []
    with raises("seg-lacks-code", ExportError, segment=2):
        write_report(measured, seg, source, tmp_path / "x.dcm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.dcm", "series", "sr.dcm"]
    write_report(
        measured,
        seg := write_seg(three_objects(source.geometry), source, tmp_path / "t.dcm").header,
        source,
        written.path,
        overwrite=True,
    )
    assert groups_of(written.path)[0].referenced_segment[0].value[1] == seg.SOPInstanceUID


def a_photograph(path, **tags):
    """A picture without a place in the patient."""
    lacking = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    pixels = some_voxels((40, 48), np.uint8)
    photograph = a_dicom_slice(pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT", **lacking)
    photograph.file_meta.MediaStorageSOPClassUID = photograph.SOPClassUID
    for keyword, value in tags.items():
        setattr(photograph, keyword, value)
    return read_source(write_dicom(path, photograph))


def test_no_millimetres_are_reported_of_a_picture_that_has_none(tmp_path):
    source = a_photograph(tmp_path / "p.dcm")
    with raises("no-pixel-spacing", ExportError):
        a_report(tmp_path, source)
    assert not (tmp_path / "sr.dcm").exists()


def test_a_single_picture_with_a_scale_has_diameters_but_no_volume(tmp_path):
    source = a_photograph(tmp_path / "p.dcm", ImagerPixelSpacing=[0.2, 0.2])
    measured, _, written = a_report(tmp_path, source)
    assert validator_errors(written.path) == []
    for one, group in zip(measured, groups_of(written.path), strict=True):
        values = values_of(group)
        assert set(values) == {"Long axis", "Short axis"}
        assert values["Long axis"][0] == pytest.approx(one.longest.length_mm)
    assert [note.code for note in written.notes] == ["volume-not-reported"]


def test_a_follow_up_has_the_earlier_scan_as_baseline_and_the_change(tmp_path):
    source = a_source(tmp_path)
    given = three_objects(source.geometry)
    written = write_seg(given, source, tmp_path / "seg.dcm", SegOptions())
    measured = measure(written.segmentation)
    liver, kidney, _ = given.segments
    smaller = kidney.mask_kji.copy()
    smaller[:, : np.flatnonzero(smaller.any((0, 2))).mean().round().astype(int)] = False
    then = (liver, Segment("left kidney", (1, 0, 0), smaller), Segment("gone", (0, 1, 0), kidney.mask_kji))
    prior = measure(Segmentation(source.geometry, then))
    path = write_report(measured, written.header, source, tmp_path / "sr.dcm", prior=prior).path
    assert validator_errors(path) == []
    content = hd.sr.srread(str(path)).content
    now = content.get_volumetric_roi_measurement_groups()
    earlier = content.get_image_measurement_groups()
    assert [one.tracking_identifier for one in earlier] == ["liver", "left kidney", "gone"]
    assert [one.tracking_uid for one in earlier[:2]] == [one.tracking_uid for one in now[:2]]
    for group, one in zip(earlier, prior, strict=True):
        assert values_of(group)["Volume"] == (pytest.approx(one.volume_ml * 1000), "mm3")
    changed = [
        [one.value for one in group.get_measurements() if one.name == codes.DCM.FractionalChange]
        for group in now
    ]
    assert changed[0] == pytest.approx([0, 0, 0], abs=1e-6)
    assert changed[1][0] == pytest.approx(100 * (measured[1].volume_ml / prior[1].volume_ml - 1))
    assert changed[2] == [], "new in this scan"
