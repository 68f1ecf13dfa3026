"""DICOM SEG: on real series of every sort, judged by programs that nobody here has written."""

import numpy as np
import pydicom
import pytest
from medsam2_core.export.dicom.options import Compression, Kind
from medsam2_core.export.dicom.seg import SegOptions, write_seg
from medsam2_core.export.dicom.source import read_source
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from support.coded_segments import some_segments
from support.dicom_validators import dcmqi_segments, on_grid, validator_errors
from support.objects import probabilities_of

PLACED = [
    *("ct_liver_dcmqi", "ct_body_j2k", "mr_oblique_hitachi", "mr_enhanced_siemens", "mr_sag_ge"),
    *("mr_cor_philips", "mr_nonisotropic", "mr_jpegls", "mr_rle", "ct_oblique_synth"),
]


@pytest.mark.parametrize("name", PLACED)
def test_a_binary_seg_of_a_real_series_passes_all_validators(shared_data, tmp_path, name):
    source = read_source(shared_data / "dicom" / name)
    given = some_segments(source.geometry)
    written = write_seg(given, source, tmp_path / "x.dcm")
    assert validator_errors(written.path) == []
    judged = dcmqi_segments(written.path, tmp_path / "dcmqi")
    assert set(judged) == set(given.names)
    for segment in given:
        assert np.array_equal(on_grid(judged[segment.name], source.geometry), segment.mask_kji)
        facts = judged[segment.name].facts
        assert facts["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == segment.terminology.type.value
        assert facts["recommendedDisplayRGBValue"] == pytest.approx(
            [round(part * 255) for part in segment.colour_rgb], abs=1
        )
    again = read_segmentation(written.path).on_grid(source.geometry)
    for segment in given:
        assert np.array_equal(again[segment.name].mask_kji, segment.mask_kji)


@pytest.mark.parametrize("name", PLACED)
def test_every_frame_refers_to_the_image_it_lies_on(shared_data, tmp_path, name):
    source = read_source(shared_data / "dicom" / name)
    given = some_segments(source.geometry)
    seg = pydicom.dcmread(write_seg(given, source, tmp_path / "x.dcm").path)
    files = [
        pydicom.dcmread(path, stop_before_pixels=True)
        for path in (shared_data / "dicom" / name).glob("*.dcm")
    ]
    frames = seg.pixel_array
    seen = 0
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        uids = [one.SOPInstanceUID or one.file_meta.MediaStorageSOPInstanceUID for one in files]
        file = files[uids.index(image.ReferencedSOPInstanceUID)]
        place = file
        if "PerFrameFunctionalGroupsSequence" in file:
            place = file.PerFrameFunctionalGroupsSequence[
                image.ReferencedFrameNumber - 1
            ].PlanePositionSequence[0]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(position, place.ImagePositionPatient, atol=1e-4)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        k = round(float(source.geometry.ijk_from([position], "lps")[0, 2]))
        assert np.array_equal(pixels, given.segments[number - 1].mask_kji[k])
        seen += 1
    there = sum(int(segment.mask_kji.any(axis=(1, 2)).sum()) for segment in given)
    assert seen == there, "slices without the object are left out, all others are there"


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("name", ["ct_liver_dcmqi", "mr_nonisotropic", "mr_enhanced_siemens"])
def test_a_label_map_holds_the_same_however_it_is_packed(shared_data, tmp_path, name, compression):
    source = read_source(shared_data / "dicom" / name)
    given = some_segments(source.geometry, overlapping=False)
    options = SegOptions(kind=Kind.LABELMAP, compression=compression)
    written = write_seg(given, source, tmp_path / "x.dcm", options)
    assert validator_errors(written.path) == []
    seg = pydicom.dcmread(written.path)
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    again = read_segmentation(written.path)
    assert again.names == given.names
    for segment in given:
        assert again[segment.name].voxel_count == segment.voxel_count


def test_highdicom_reads_what_was_streamed(shared_data, tmp_path):
    import highdicom

    source = read_source(shared_data / "dicom" / "ct_liver_dcmqi")
    given = some_segments(source.geometry, overlapping=False)
    for kind in (Kind.BINARY, Kind.LABELMAP):
        path = write_seg(given, source, tmp_path / f"{kind.value}.dcm", SegOptions(kind=kind)).path
        seg = highdicom.seg.segread(path)
        uids = [source.reference(k)[1] for k in range(source.geometry.shape_ijk[2])]
        masks = seg.get_pixels_by_source_instance(
            uids, segment_numbers=[1, 2, 3], assert_missing_frames_are_empty=True
        )
        for n, segment in enumerate(given):
            assert np.array_equal(masks[..., n], segment.mask_kji)


def test_it_equals_what_highdicom_writes_of_all_pixels_at_once(shared_data, tmp_path):
    import highdicom
    from medsam2_core.export.dicom.descriptions import describe

    folder = shared_data / "dicom" / "ct_liver_dcmqi"
    source = read_source(folder)
    given = some_segments(source.geometry)
    ours = pydicom.dcmread(write_seg(given, source, tmp_path / "x.dcm").path)
    plain = highdicom.seg.Segmentation(
        source_images=list(source.datasets),
        pixel_array=np.stack([segment.mask_kji for segment in given], axis=-1),
        segmentation_type="BINARY",
        segment_descriptions=describe(given).items,
        series_instance_uid=ours.SeriesInstanceUID,
        series_number=ours.SeriesNumber,
        sop_instance_uid=ours.SOPInstanceUID,
        instance_number=1,
        manufacturer=ours.Manufacturer,
        manufacturer_model_name=ours.ManufacturerModelName,
        software_versions=ours.SoftwareVersions,
        device_serial_number=ours.DeviceSerialNumber,
        content_label=ours.ContentLabel,
        content_description=ours.ContentDescription,
        series_description=ours.SeriesDescription,
        specific_character_set="ISO_IR 192",
    )
    assert plain.PixelData == ours.PixelData
    changing = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate"}
    changing |= {
        "SeriesTime",
        "PixelData",
        "SegmentSequence",
        "DimensionIndexSequence",
        "TimezoneOffsetFromUTC",
    }
    changing |= {"DimensionOrganizationSequence", "ContributingEquipmentSequence"}
    for element in plain:
        if element.keyword not in changing:
            assert element.to_json_dict(None, 0) == ours[element.tag].to_json_dict(None, 0), element.keyword


def test_patient_study_and_frame_of_reference_are_the_sources_and_nothing_else_is_written(
    shared_data, tmp_path
):
    source = read_source(shared_data / "dicom" / "ct_liver_dcmqi")
    seg = pydicom.dcmread(write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm").path)
    image = pydicom.dcmread(
        next((shared_data / "dicom" / "ct_liver_dcmqi").glob("*.dcm")), stop_before_pixels=True
    )
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientSex",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "StudyID",
        "AccessionNumber",
    ):
        assert seg[keyword].value == image[keyword].value, keyword
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    assert seg.SeriesNumber == image.SeriesNumber + 1000
    assert seg.get("ContentCreatorName") in (None, "")
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "MedSAM2Segment 0.1.0 embedded"
    assert algorithm.AlgorithmVersion == "0.1.0"
    assert algorithm.AlgorithmParameters == f"model=embedded,weights_sha256={'ab' * 32}"
    assert [str(item.SegmentAlgorithmType) for item in seg.SegmentSequence] == [
        "SEMIAUTOMATIC",
        "MANUAL",
        "SEMIAUTOMATIC",
    ]
    assert "SegmentAlgorithmName" not in seg.SegmentSequence[1]


def test_no_uid_is_ever_used_again(shared_data, tmp_path):
    source = read_source(shared_data / "dicom" / "mr_rle")
    given = some_segments(source.geometry)
    seen = set()
    for n in range(3):
        seg = pydicom.dcmread(write_seg(given, source, tmp_path / f"{n}.dcm").path)
        seen |= {seg.SOPInstanceUID, seg.SeriesInstanceUID}
    assert len(seen) == 6


def test_a_tilted_gantry_keeps_every_frame_in_its_place(shared_data, tmp_path):
    source = read_source(shared_data / "dicom" / "ct_gantry_tilt_14")
    given = some_segments(source.geometry)
    path = write_seg(given, source, tmp_path / "x.dcm").path
    assert validator_errors(path) == []
    seg = pydicom.dcmread(path)
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        ijk = source.geometry.ijk_from([group.PlanePositionSequence[0].ImagePositionPatient], "lps")[0]
        assert np.allclose(ijk, np.rint(ijk), atol=1e-3)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(pixels, given.segments[number - 1].mask_kji[round(float(ijk[2]))])


def some_probabilities(segmentation, seed=0):
    """Probabilities that agree with the masks, and are above nothing a little way around them."""
    rng = np.random.default_rng(seed)
    values = {}
    for segment in segmentation:
        inside = segment.mask_kji
        soft = np.where(inside, rng.integers(128, 256, inside.shape), 0).astype(np.uint8)
        soft[:, 1:] = np.where(soft[:, 1:] == 0, rng.integers(0, 128, inside[:, 1:].shape), soft[:, 1:])
        values[segment.name] = soft
    return probabilities_of(segmentation.geometry, values)


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("name", ["ct_liver_dcmqi", "mr_enhanced_siemens"])
def test_a_fractional_seg_holds_the_probabilities(shared_data, tmp_path, name, compression):
    import highdicom

    source = read_source(shared_data / "dicom" / name)
    given = some_segments(source.geometry)
    likely = some_probabilities(given)
    options = SegOptions(kind=Kind.FRACTIONAL, compression=compression)
    written = write_seg(given, source, tmp_path / "x.dcm", options, probabilities=likely)
    assert validator_errors(written.path) == []
    codes = [note.code for note in written.notes if note not in source.notes]
    assert codes == ["jpeg-ls-not-widely-read"] * (compression is Compression.JPEG_LS)
    seg = pydicom.dcmread(written.path)
    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue) == ("PROBABILITY", 255)
    for group, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = group.PlanePositionSequence[0].ImagePositionPatient
        k = round(float(source.geometry.ijk_from([place], "lps")[0, 2]))
        assert np.array_equal(pixels, likely.slice_ji(given.names[number - 1], k))
    assert highdicom.seg.segread(written.path).number_of_segments == 3
    again = read_segmentation(written.path)
    for segment in given:
        assert again[segment.name].voxel_count == segment.voxel_count


def test_one_stack_of_several_in_a_multi_frame_file_refers_to_its_own_frames(shared_data, tmp_path):
    image = pydicom.dcmread(next((shared_data / "dicom" / "mr_enhanced_siemens").glob("*.dcm")))
    groups = list(image.PerFrameFunctionalGroupsSequence)
    for n, group in enumerate(groups):  # two echoes at four positions, interleaved
        group.PlanePositionSequence = groups[n // 2 * 2].PlanePositionSequence
        echo = pydicom.Dataset()
        echo.EffectiveEchoTime = 10.0 + 20.0 * (n % 2)
        group.MREchoSequence = [echo]
    image.save_as(tmp_path / "echoes.dcm")
    source = read_source(tmp_path / "echoes.dcm", "2")
    assert [number % 2 for number in source.frame_numbers] == [0, 0, 0, 0]
    given = some_segments(source.geometry)
    written = write_seg(given, source, tmp_path / "x.dcm")
    assert validator_errors(written.path) == []
    for group in pydicom.dcmread(written.path).PerFrameFunctionalGroupsSequence:
        number = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        place = groups[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert number % 2 == 0
        assert np.allclose(place, group.PlanePositionSequence[0].ImagePositionPatient, atol=1e-4)


def test_the_spacing_of_slices_is_always_written(shared_data, tmp_path):
    for name, distance in (("ct_gantry_tilt_14", 4.851), ("mr_cor_philips", 0.6), ("mr_sag_ge", 1.0)):
        source = read_source(shared_data / "dicom" / name)
        seg = pydicom.dcmread(
            write_seg(some_segments(source.geometry), source, tmp_path / f"{name}.dcm").path
        )
        measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert float(measures.SpacingBetweenSlices) == pytest.approx(distance, abs=2e-3)


def test_what_is_left_out_of_an_upright_series_does_not_tilt_it(shared_data, tmp_path):
    source = read_source(shared_data / "dicom" / "mr_enhanced_siemens")
    for first, last in ((0, 7), (3, 5), (6, 8)):
        mask = np.zeros(source.geometry.shape_ijk[::-1], bool)
        mask[first:last, 100:120, 90:130] = True
        given = Segmentation.from_masks(source.geometry, {"liver": mask})
        path = write_seg(given, source, tmp_path / "x.dcm", overwrite=True).path
        assert not read_segmentation(path).geometry.is_sheared


def test_a_report_names_the_maker_of_the_images_not_ours(shared_data, tmp_path):
    from medsam2_core.export.dicom.report import write_report
    from medsam2_core.export.measurements import measure

    source = read_source(shared_data / "dicom" / "mr_enhanced_siemens")
    written = write_seg(some_segments(source.geometry), source, tmp_path / "x.dcm")
    write_report(measure(written.segmentation), written.header, source, tmp_path / "sr.dcm")
    makers = pydicom.dcmread(tmp_path / "sr.dcm").ContributingEquipmentSequence
    assert makers[0].Manufacturer == source.header.Manufacturer
    assert "MedSAM2Segment" not in [item.Manufacturer for item in makers]
