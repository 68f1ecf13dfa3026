"""DICOM SEG: on small series made for it, what is written, what is left out and said, what is refused."""

import numpy as np
import pydicom
import pytest
from medsam2_core.errors import ExportError, GeometryError
from medsam2_core.export.dicom.options import Compression, Kind
from medsam2_core.export.dicom.seg import SegOptions, write_seg
from medsam2_core.export.dicom.source import read_source
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.terminology import Code, Terminology
from support.coded_segments import ANATOMY, LIVER, PAINTED, some_segments
from support.dicom_validators import validator_errors
from support.errors import raises
from support.objects import probabilities_of
from support.small_files import a_dicom_slice, some_voxels, write_dicom, write_series


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (3, 3), (1, 1), (8, 16), (9, 5)])
def test_frames_that_do_not_fill_their_last_byte_run_on(tmp_path, rows, columns):
    folder = write_series(tmp_path / "series", some_voxels((5, rows, columns)))
    source = read_source(folder)
    rng = np.random.default_rng(rows * columns)
    masks = {name: rng.random((5, rows, columns)) < 0.5 for name in ("liver", "spleen")}
    for mask in masks.values():
        mask[:, 0, 0] = True
    given = Segmentation.from_masks(source.geometry, masks)
    path = write_seg(given, source, tmp_path / "x.dcm").path
    seg = pydicom.dcmread(path)
    pixels = seg.pixel_array
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        k = round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) / 2)
        assert np.array_equal(frame, given.segments[number - 1].mask_kji[k])
    assert validator_errors(path) == []


def test_slices_missing_or_doubled_are_refused_by_name(tmp_path):
    voxels = some_voxels((6, 8, 8))
    gap = write_series(tmp_path / "gap", voxels[:5], [(0.0, 0.0, z) for z in (0.0, 2.0, 4.0, 8.0, 10.0)])
    with raises("slices-missing", GeometryError):
        read_source(gap)
    double = write_series(tmp_path / "double", voxels[:4], [(0.0, 0.0, z) for z in (0.0, 2.0, 2.0, 4.0)])
    with raises("slices-doubled", GeometryError):
        read_source(double)


def test_feet_first_order_and_shuffled_files_change_nothing(tmp_path):
    voxels = some_voxels((6, 9, 8))
    up = [(0.0, 0.0, 2.0 * k) for k in range(6)]
    forth = read_source(write_series(tmp_path / "forth", voxels, up))
    back = read_source(write_series(tmp_path / "back", voxels, up[::-1]))
    assert forth.geometry.same_grid(back.geometry)
    given = some_segments(forth.geometry)
    for n, source in enumerate((forth, back)):
        again = read_segmentation(write_seg(given, source, tmp_path / f"{n}.dcm").path)
        for segment in given:
            assert again[segment.name].voxel_count == segment.voxel_count
        positions = [float(one.ImagePositionPatient[2]) for one in source.datasets]
        assert positions == sorted(positions)


@pytest.mark.parametrize("compression", [Compression.RLE, Compression.JPEG_LS])
def test_bits_are_not_compressed(compression):
    with raises("compression-of-bits", ExportError):
        SegOptions(kind=Kind.BINARY, compression=compression)


def test_overlapping_objects_do_not_go_into_a_label_map(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    pairs = [["liver", "left kidney"], ["liver", "Läsion 肝"], ["left kidney", "Läsion 肝"]]
    with raises("overlap-in-labelmap", ExportError, pairs=pairs):
        write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm", SegOptions(kind=Kind.LABELMAP))
    assert not (tmp_path / "x.dcm").exists()


def test_nothing_to_write_is_reported(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    empty = Segmentation.from_masks(source.geometry, {"liver": np.zeros((4, 16, 16), bool)})
    with raises("no-voxels", ExportError):
        write_seg(empty, source, tmp_path / "x.dcm")


def test_an_empty_segment_is_left_out_and_reported(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    masks = {"liver": np.ones((4, 16, 16), bool), "spleen": np.zeros((4, 16, 16), bool)}
    written = write_seg(Segmentation.from_masks(source.geometry, masks), source, tmp_path / "x.dcm")
    assert written.segmentation.names == ("liver",)
    assert ("empty-segment-left-out", "spleen") in [(n.code, n.fields.get("segment")) for n in written.notes]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    given = some_segments(source.geometry)
    from medsam2_core.export.dicom import frames

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frames.PixelDataWriter, "add", full)
    with raises("output-not-writable", ExportError) as error:
        write_seg(given, source, tmp_path / "x.dcm")
    assert error.value.__cause__.errno == 28
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_an_existing_file_is_kept_unless_allowed(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    given = some_segments(source.geometry)
    (tmp_path / "x.dcm").write_bytes(b"mine")
    with raises("output-exists", ExportError):
        write_seg(given, source, tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").read_bytes() == b"mine"
    write_seg(given, source, tmp_path / "x.dcm", overwrite=True)
    assert pydicom.dcmread(tmp_path / "x.dcm").Modality == "SEG"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"series_number": -1}, {"code": "invalid-series-number", "series_number": -1}),
        ({"series_description": "x" * 65}, {"code": "invalid-series-description", "text": "x" * 65}),
        ({"creator": "a\\b"}, {"code": "invalid-creator", "text": "a\\b"}),
        ({"series_description": "two\nlines"}, {"code": "invalid-series-description", "text": "two\nlines"}),
    ],
)
def test_values_dicom_cannot_hold_are_refused(given, problem):
    with raises(**problem, error_type=ExportError):
        SegOptions(**given)


def test_masks_changed_after_their_probabilities_are_reported(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    mask = np.zeros((4, 16, 16), bool)
    mask[1:3, 4:9, 4:9] = True
    given = Segmentation.from_masks(source.geometry, {"liver": mask})
    likely = probabilities_of(source.geometry, {"liver": np.roll(mask, 1, axis=2) * np.uint8(255)})
    options = SegOptions(kind=Kind.FRACTIONAL)
    written = write_seg(given, source, tmp_path / "x.dcm", options, probabilities=likely)
    (changed,) = [note for note in written.notes if note.code == "probabilities-changed"]
    assert changed.fields == {"segment": "liver", "voxels": 20}
    assert np.array_equal(read_segmentation(written.path)["liver"].mask_kji[-2:], mask[1:3]), (
        "the mask counts"
    )


def test_probabilities_of_other_objects_or_another_grid_are_refused(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    given = Segmentation.from_masks(source.geometry, {"liver": np.ones((4, 16, 16), bool)})
    options = SegOptions(kind=Kind.FRACTIONAL)
    other = probabilities_of(source.geometry, {"spleen": np.ones((4, 16, 16), np.uint8)})
    small = Geometry(source.geometry.ijk_to_ras, (16, 16, 3))
    elsewhere = probabilities_of(small, {"liver": np.ones((3, 16, 16), np.uint8)})
    for likely, code in [
        (other, "no-probabilities-of-segment"),
        (elsewhere, "probabilities-on-another-grid"),
        (None, "probabilities-needed"),
    ]:
        with raises(code, ExportError):
            write_seg(given, source, tmp_path / "x.dcm", options, probabilities=likely)
    assert not (tmp_path / "x.dcm").exists()


def test_a_picture_without_a_place_gets_a_seg_of_one_frame_an_object(tmp_path):
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "US"}
    picture = a_dicom_slice(some_voxels((1, 12, 10))[0], **bare, SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1")
    picture.file_meta.MediaStorageSOPClassUID = picture.SOPClassUID
    source = read_source(write_dicom(tmp_path / "us.dcm", picture))
    rng = np.random.default_rng(0)
    masks = {"nerve": rng.random((1, 12, 10)) < 0.5, "liver": rng.random((1, 12, 10)) < 0.5}
    given = Segmentation.from_masks(source.geometry, masks)
    written = write_seg(given, source, tmp_path / "x.dcm")
    assert validator_errors(written.path) == []
    seg = pydicom.dcmread(written.path)
    assert [
        np.array_equal(one, masks[name][0]) for one, name in zip(seg.pixel_array, masks, strict=True)
    ] == [True, True]
    image = seg.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedSOPInstanceUID == picture.SOPInstanceUID


def test_a_clip_without_places_is_refused_with_a_way_out(tmp_path):
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "NumberOfFrames": 3}
    clip = a_dicom_slice(some_voxels((3, 12, 10)).reshape(36, 10), **bare)
    clip.Rows = 12
    with raises("clip-without-positions", ExportError):
        read_source(write_dicom(tmp_path / "us.dcm", clip))


def test_invalid_values_of_the_images_are_left_out_and_reported(tmp_path):
    tags = {"PatientAge": "0Y", "PatientSex": "X", "StudyInstanceUID": None, "FrameOfReferenceUID": "1.2.3.4"}
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16)), **tags))
    written = write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm")
    (dropped,) = [note for note in written.notes if note.code == "invalid-values-dropped"]
    assert dropped.fields["keywords"] == ["PatientAge", "PatientSex"]
    assert ("uid-made", "StudyInstanceUID") in [(n.code, n.fields.get("keyword")) for n in written.notes]
    again = read_source(tmp_path / "series")
    assert again.header.StudyInstanceUID == source.header.StudyInstanceUID, "made the same way every time"
    assert pydicom.dcmread(written.path).PatientSex == ""
    assert validator_errors(written.path) == []


def test_what_identifies_the_patient_and_the_study_is_kept_whatever_it_is(tmp_path):
    tags = {
        "StudyInstanceUID": "1.3.12.2.1107.5.1.4.01.2",
        "PatientID": "7" * 70,
        "AccessionNumber": "A" * 20,
    }
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16)), **tags))
    written = write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm")
    seg = pydicom.dcmread(written.path)
    for keyword, value in tags.items():
        assert seg[keyword].value == value, keyword
    (kept,) = [note for note in written.notes if note.code == "invalid-identifiers-kept"]
    assert kept.fields["keywords"] == ["AccessionNumber", "PatientID", "StudyInstanceUID"]


def test_an_unknown_thickness_is_assumed_with_a_note(tmp_path):
    voxels = some_voxels((4, 16, 16))
    series = read_source(write_series(tmp_path / "series", voxels, SliceThickness=None))
    assert float(series.header.SliceThickness) == 2.0
    assert "slice-thickness-assumed" in [note.code for note in series.notes]
    single = read_source(write_series(tmp_path / "single", voxels[:1], SliceThickness=None))
    assert not single.has_depth
    assert ("slice-thickness-assumed", 1.0) in [(n.code, n.fields.get("thickness_mm")) for n in single.notes]
    spaced = {"SliceThickness": None, "SpacingBetweenSlices": 4}
    apart = read_source(write_series(tmp_path / "apart", voxels[:1], **spaced))
    assert (apart.has_depth, float(apart.header.SliceThickness)) == (True, 4.0)


def test_descriptions_by_others_stay_and_nothing_is_added(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    tags = {"DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC", "DICOM.SegmentAlgorithmName": "SlicerEditor"}
    tags |= {"MedSAM2.tracking_id": "Lesion 0", "MedSAM2.tracking_uid": "no uid"}
    segment = Segment("two\nlines\t\x1bof", (1, 0, 0), np.ones((4, 16, 16), bool), LIVER, tags)
    written = write_seg(Segmentation(source.geometry, (segment,)), source, tmp_path / "x.dcm")
    item = pydicom.dcmread(written.path).SegmentSequence[0]
    assert item.SegmentAlgorithmName == "SlicerEditor"
    assert "SegmentationAlgorithmIdentificationSequence" not in item
    assert (item.SegmentLabel, item.TrackingID) == ("two lines of", "Lesion 0")
    assert item.TrackingUID.is_valid
    assert validator_errors(written.path) == []


def test_more_pixels_than_an_element_can_hold_are_refused_before_they_are_written(tmp_path, monkeypatch):
    from medsam2_core.export.dicom import seg

    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    monkeypatch.setattr(seg, "_LARGEST_NATIVE", 100)
    with raises("seg-too-large", ExportError):
        write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()


def test_a_code_of_more_than_16_characters_is_written_as_a_long_one(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    code = Terminology(ANATOMY, Code("99MINE", "a-code-longer-than-sixteen", "Mine"))
    segment = Segment("mine", (1, 0, 0), np.ones((4, 16, 16), bool), code, PAINTED)
    written = write_seg(Segmentation(source.geometry, (segment,)), source, tmp_path / "x.dcm")
    assert validator_errors(written.path) == []
    assert str(written.segmentation["mine"].terminology.type) == "99MINE^a-code-longer-than-sixteen^Mine"


def test_segments_without_a_code_are_reported_together(tmp_path):
    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    masks = {name: np.ones((4, 16, 16), bool) for name in ("glorp", "blurb", "liver", "fnord")}
    with raises("no-segment-code", ExportError, segments=["glorp", "blurb", "fnord"]):
        write_seg(Segmentation.from_masks(source.geometry, masks), source, tmp_path / "x.dcm")


def test_segments_of_one_label_are_distinguished_in_tables(tmp_path):
    from medsam2_core.export.dicom.segment_metadata import ExportMetadata, SegmentMetadata

    source = read_source(write_series(tmp_path / "series", some_voxels((4, 16, 16))))
    masks = {name: np.ones((4, 16, 16), bool) for name in ("1", "2")}
    requested = ExportMetadata(
        tuple(SegmentMetadata(name=name, terminology=LIVER, label="liver") for name in masks)
    )
    given = Segmentation.from_masks(source.geometry, masks)
    written = write_seg(given, source, tmp_path / "x.dcm", SegOptions(metadata=requested))
    assert written.segmentation.names == ("liver", "liver (2)")
    assert [item.SegmentLabel for item in pydicom.dcmread(written.path).SegmentSequence] == ["liver", "liver"]
