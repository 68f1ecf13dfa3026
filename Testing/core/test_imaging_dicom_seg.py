"""DICOM segmentations of every kind, written by plain highdicom: voxels, place, and what is said of them."""

import itertools
import tracemalloc

import highdicom as hd
import numpy as np
import pydicom
import pytest
from medsam2_core.errors import MedSAM2Error, VolumeError
from medsam2_core.imaging.reading import read_volume
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.terminology import Code
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from support.dicom_seg import ABDOMEN, KIDNEY, LEFT, LIVER, SHAPE_KJI, TISSUE, Part, a_seg, two_masks, write
from support.dicom_validators import dcmqi_segments, on_grid
from support.errors import raises
from test_imaging_damaged import damaged

DCMQIS_LIVER = (41661, 41167, 40792)  # what it writes for 221, 130, 101
FIRST_SLICE = 2  # of the two masks
ENCODINGS = [
    *(("BINARY", syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)),
    *itertools.product(("FRACTIONAL", "LABELMAP"), (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless)),
]


def two_parts():
    first, second = two_masks()
    return [Part(first), Part(second, "Niere, größte", KIDNEY, rgb=(1, 2, 3), algorithm="MANUAL")]


def as_8_bits(colour):
    return tuple(part * 255 for part in colour)


# Voxels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "syntax"), ENCODINGS)
def test_every_kind_and_compression_gives_the_same_voxels_in_the_same_place(tmp_path, kind, syntax):
    parts = two_parts()
    labels = read_segmentation(write(tmp_path / "a.dcm", parts, kind, transfer_syntax_uid=syntax))
    assert labels.kind == kind
    assert labels.geometry.shape_ijk == (41, 37, 5)  # from the first slice with an object to the last
    assert np.allclose(labels.geometry.spacing, (0.5, 0.75, 2))
    assert np.allclose(labels.geometry.origin_ras, (20, 30, 100 + 2 * FIRST_SLICE))
    for part in parts:
        assert np.array_equal(labels[part.label].mask_kji, part.mask_kji[FIRST_SLICE : FIRST_SLICE + 5])


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_jpeg_2000_is_decoded_too(tmp_path, kind):
    import io

    from PIL import Image

    parts = two_parts()
    path = write(tmp_path / "a.dcm", parts, kind)
    dataset = pydicom.dcmread(path)
    frames = []
    for pixels in dataset.pixel_array:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True)
        frames.append(stream.getvalue())
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(path)
    labels = read_segmentation(path)
    for part in parts:
        assert np.array_equal(labels[part.label].mask_kji, part.mask_kji[FIRST_SLICE : FIRST_SLICE + 5])
    dataset.Rows += 1
    dataset.save_as(path)
    with raises("decoded-size-differs", VolumeError, rows=38, columns=41):
        read_segmentation(path)


def test_a_deflated_file_is_read(tmp_path):
    dataset = a_seg(two_parts())
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm")
    assert read_segmentation(tmp_path / "a.dcm")["Liver"].mask_kji.sum() == two_parts()[0].mask_kji.sum()


def test_overlapping_segments_are_whole_each_on_a_layer_of_its_own(tmp_path):
    first, _ = two_masks()
    middle, alone = np.zeros_like(first), np.zeros_like(first)
    middle[3:7, 5:20, 5:12] = True
    alone[0:9, 33:36, 20:30] = True
    parts = [Part(first, "a"), Part(middle, "b"), Part(alone, "c")]
    labels = read_segmentation(write(tmp_path / "a.dcm", parts))
    assert labels.layers() == (0, 1, 0)
    for part in parts:
        assert np.array_equal(labels[part.label].mask_kji, part.mask_kji)


def test_frames_may_stand_in_any_order(tmp_path):
    first, _ = two_masks()
    other = np.roll(first, (1, 3, 4), (0, 1, 2))
    parts = [Part(first, "a"), Part(other, "b")]
    whole = a_seg(parts, transfer_syntax_uid=ExplicitVRLittleEndian)
    bits = np.unpackbits(np.frombuffer(whole.PixelData, np.uint8), bitorder="little")
    count, size = int(whole.NumberOfFrames), 37 * 41
    order = np.random.default_rng(5).permutation(count)
    frames = bits[: count * size].reshape(count, size)[order]
    whole.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes() + b"\0" * 2
    whole.PixelData = whole.PixelData[: len(whole.PixelData) // 2 * 2]
    groups = list(whole.PerFrameFunctionalGroupsSequence)
    whole.PerFrameFunctionalGroupsSequence = [groups[n] for n in order]
    whole.save_as(tmp_path / "a.dcm")
    labels = read_segmentation(tmp_path / "a.dcm")
    covered = np.flatnonzero((first | other).any(axis=(1, 2)))
    for part in parts:
        expected = part.mask_kji[covered[0] : covered[-1] + 1]
        assert np.array_equal(labels[part.label].mask_kji, expected)


def test_segments_without_a_frame_are_listed_as_empty(tmp_path):
    first, second = two_masks()
    parts = [Part(first, "a"), Part(np.zeros(SHAPE_KJI, bool), "nothing", KIDNEY), Part(second, "c")]
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        labels = read_segmentation(write(tmp_path / f"{kind}.dcm", parts, kind))
        assert [label.name for label in labels.labels] == ["a", "nothing", "c"]
        assert not labels["nothing"].mask_kji.any()
        assert labels["nothing"].terminology.type.meaning == "Kidney"


def test_a_voxel_belongs_to_a_fractional_segment_above_half(tmp_path):
    probabilities = np.zeros(SHAPE_KJI, dtype=np.float32)
    probabilities[3, 5, 5:9] = 0.2, 0.5, 0.51, 1.0
    part = Part(probabilities > 0)
    for most in (100, 255):
        path = tmp_path / f"{most}.dcm"
        a_seg([part], "FRACTIONAL", pixel_array=probabilities, max_fractional_value=most).save_as(path)
        stored = np.rint(np.array((0.2, 0.5, 0.51, 1.0), np.float32) * most)
        labels = read_segmentation(path)
        assert labels.labels_kji()[0, 5, 5:9].tolist() == (stored > most / 2).astype(int).tolist()


def test_a_label_map_may_have_more_segments_than_8_bits_number(tmp_path):
    pixels = np.zeros(SHAPE_KJI, dtype=np.uint16)
    numbers = [1, 7, 256, 300]
    pixels[3, 4, 2:6] = numbers
    described = [a_seg([Part(pixels > 0, f"part {n}")]).SegmentSequence[0] for n in numbers]
    for number, item in zip(numbers, described, strict=True):
        item.SegmentNumber = number
    options = {"pixel_array": pixels, "segment_descriptions": described}
    seg = a_seg([Part(pixels > 0)], "LABELMAP", **options)
    assert seg.BitsAllocated == 16
    assert str(seg.SOPClassUID) == "1.2.840.10008.5.1.4.1.1.66.7"
    seg.save_as(tmp_path / "a.dcm")
    labels = read_segmentation(tmp_path / "a.dcm")
    assert [(label.name, label.value) for label in labels.labels] == [(f"part {n}", n) for n in numbers]
    assert labels.labels_kji()[0, 4, 1:7].tolist() == [0, *numbers, 0]


def test_a_label_map_with_a_palette_takes_its_colours_from_there(tmp_path):
    first, second = two_masks()
    parts = [Part(first, "a", rgb=None), Part(second, "b", rgb=None)]
    colours = np.array([[0, 0, 0], [221, 130, 101], [4, 0, 255]], dtype=np.uint8)
    palette = hd.PaletteColorLUTTransformation.from_combined_lut(colours)
    profile = {"palette_color_lut_transformation": palette}
    path = write(tmp_path / "a.dcm", parts, "LABELMAP", **profile)
    assert pydicom.dcmread(path).PhotometricInterpretation == "PALETTE COLOR"
    labels = read_segmentation(path)
    assert [as_8_bits(label.colour) for label in labels.labels] == [(221, 130, 101), (4, 0, 255)]
    assert np.array_equal(labels["b"].mask_kji, second[2:7])
    damaged_palette = pydicom.dcmread(path)
    damaged_palette.RedPaletteColorLookupTableData = b""
    damaged_palette.save_as(path)
    assert [label.colour for label in read_segmentation(path).labels] == [None, None]


def test_the_background_of_a_label_map_may_be_another_number(tmp_path):
    dataset = a_seg(two_parts(), "LABELMAP")
    values = np.frombuffer(dataset.PixelData, np.uint8).copy()
    values[values == 0] = 9
    dataset.PixelData = values.tobytes()
    dataset.PixelPaddingValue = 9
    dataset.SegmentSequence[0].SegmentNumber = 9
    dataset.save_as(tmp_path / "a.dcm")
    labels = read_segmentation(tmp_path / "a.dcm")
    assert labels["Liver"].mask_kji.sum() == two_parts()[0].mask_kji.sum()
    dataset.SegmentSequence[0].SegmentNumber = 0
    dataset.save_as(tmp_path / "a.dcm")
    with raises("ambiguous-background", VolumeError, background=9):
        read_segmentation(tmp_path / "a.dcm")


def test_thirty_segments_are_read_without_a_mask_of_each(tmp_path):
    shape = (40, 96, 96)
    masks = []
    for n in range(30):
        mask = np.zeros(shape, dtype=bool)
        mask[n // 2 : n // 2 + 20, 3 * n : 3 * n + 3, 5:90] = True
        masks.append(mask)
    path = write(tmp_path / "a.dcm", [Part(mask, f"part {n}") for n, mask in enumerate(masks)])
    read_segmentation(path)  # what is imported on the way is not counted
    tracemalloc.start()
    labels = read_segmentation(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(np.array_equal(labels[f"part {n}"].mask_kji, mask[:34]) for n, mask in enumerate(masks))
    layer = np.prod(shape)
    headers = 600 * 12_000  # bytes pydicom takes to describe 600 frames
    assert peak < 2 * layer + headers < 30 * layer


# What is said of segments -----------------------------------------------------------------------------------


def test_names_codes_colours_and_algorithms_come_back(tmp_path):
    known = {"model": "embedded", "weights_sha256": "0123abcd", "threshold": "0.5"}
    uid = hd.UID()
    first, second = two_masks()
    parts = [
        Part(first, parameters=known, tracking=("tumour 1", uid), regions=[ABDOMEN], rgb=(12, 200, 77)),
        Part(second, "Kidney", KIDNEY, rgb=(1, 2, 3), algorithm="MANUAL"),
    ]
    for kind in ("BINARY", "FRACTIONAL", "LABELMAP"):
        dataset = a_seg(parts, kind)
        kidney = dataset.SegmentSequence[-1].SegmentedPropertyTypeCodeSequence[0]
        kidney.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(LEFT)]
        region = dataset.SegmentSequence[-2].AnatomicRegionSequence[0]
        region.AnatomicRegionModifierSequence = [hd.sr.CodedConcept.from_code(LEFT)]
        dataset.save_as(tmp_path / "a.dcm")
        liver, kidney = read_segmentation(tmp_path / "a.dcm").labels
        assert as_8_bits(liver.colour) == (12, 200, 77)
        assert as_8_bits(kidney.colour) == (1, 2, 3)
        assert liver.terminology.category == Code("SCT", TISSUE.value, "Tissue")
        assert liver.terminology.type == Code("SCT", LIVER.value, "Liver")
        assert liver.terminology.region == Code("SCT", ABDOMEN.value, "Abdomen")
        assert liver.terminology.region_modifier.meaning == "Left"
        assert kidney.terminology.type_modifier == Code("SCT", LEFT.value, "Left")
        assert kidney.terminology.region == Code()
        assert liver.tags == {
            "TerminologyEntry": str(liver.terminology),
            "DICOM.SegmentAlgorithmType": "SEMIAUTOMATIC",
            "DICOM.SegmentAlgorithmName": "Some Program",
            "MedSAM2.model": "embedded",
            "MedSAM2.weights_sha256": "0123abcd",
            "MedSAM2.algorithm_version": "1.0",
            "MedSAM2.algorithm_parameters": "threshold=0.5",
            "MedSAM2.tracking_uid": str(uid),
            "MedSAM2.tracking_id": "tumour 1",
        }
        assert kidney.tags["DICOM.SegmentAlgorithmType"] == "MANUAL"
        assert kidney.tags["DICOM.SegmentAlgorithmName"] == ""  # none, which is not the same as unknown


@pytest.mark.parametrize(
    ("text", "model", "others"),
    [
        ("model=embedded", "embedded", None),
        ("weights_sha256=12,model=a b", "a b", None),
        ("threshold=1\nmodel = large, tiny;weights_sha256=12", "large, tiny", "threshold=1"),
        ("fast=yes; model=m,task = a, b", "m", "fast=yes,task = a, b"),
        ("threshold 0.5, or so", None, "threshold 0.5, or so"),
        ("model=", None, None),
    ],
)
def test_the_model_is_found_however_parameters_are_divided(tmp_path, text, model, others):
    dataset = a_seg(two_parts())
    made = dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    made.AlgorithmParameters = text
    dataset.save_as(tmp_path / "a.dcm")
    facts = read_segmentation(tmp_path / "a.dcm").labels[0].tags
    assert facts.get("MedSAM2.model") == model
    assert facts.get("MedSAM2.algorithm_parameters") == others


@pytest.mark.parametrize(
    ("name", "version", "source", "told"),
    [
        ("Some Program", "2.1", "Basel", ("2.1", "Basel")),
        ("MedSAM2Segment 0.3.1 embedded", "0.3.1", "MedSAM2Segment", (None, None)),
        ("MedSAM2Segment 0.3.1 embedded", "0.3", "MedSAM2Segment", ("0.3", "MedSAM2Segment")),
        ("Somebody's own name", "0.3.1", "MedSAM2Segment", ("0.3.1", "MedSAM2Segment")),
        ("Some Program", "unknown", None, ("unknown", None)),
    ],
)
def test_version_and_source_are_kept_where_the_name_lacks_them(tmp_path, name, version, source, told):
    dataset = a_seg(two_parts())
    item = dataset.SegmentSequence[0]
    item.SegmentAlgorithmName = name
    made = item.SegmentationAlgorithmIdentificationSequence[0]
    made.AlgorithmName, made.AlgorithmVersion, made.AlgorithmSource = name, version, source
    item.SegmentDescription = "seen by two\r\n|in the morning|"
    dataset.save_as(tmp_path / "a.dcm")
    facts = read_segmentation(tmp_path / "a.dcm").labels[0].tags
    assert (facts.get("MedSAM2.algorithm_version"), facts.get("MedSAM2.algorithm_source")) == told
    assert facts["MedSAM2.description"] == "seen by two\n/in the morning/"


def test_codes_of_the_old_scheme_are_kept_as_they_are(shared_data):
    (liver,) = read_segmentation(shared_data / "dicom" / "ct_liver_dcmqi_SEG.dcm").labels
    assert liver.terminology.type == Code("SRT", "T-62000", "Liver")
    assert as_8_bits(liver.colour) == (221, 130, 101)
    assert liver.tags["DICOM.SegmentAlgorithmName"] == "SlicerEditor"


def test_texts_that_would_break_a_terminology_entry_lose_what_breaks_it(tmp_path):
    dataset = a_seg(two_parts())
    code = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    code.CodeMeaning = "Liver | right ~ lobe^"
    del dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    dataset.SegmentSequence[1].SegmentLabel = ""
    dataset.save_as(tmp_path / "a.dcm")
    liver, other = read_segmentation(tmp_path / "a.dcm").labels
    assert liver.terminology.type.meaning == "Liver   right   lobe"
    assert other.name == "2"
    assert other.terminology is None


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_dcmqi_reads_the_same_out_of_the_file(tmp_path, kind):
    parts = two_parts()
    parts[1].label = "Kidney"  # dcmqi writes names as bytes of the file's character set
    parts[1].rgb = (90, 160, 220)
    path = write(tmp_path / "a.dcm", parts, kind)
    judged, labels = dcmqi_segments(path, tmp_path / "judged"), read_segmentation(path)
    assert set(judged) == {label.name for label in labels.labels}
    for label in labels.labels:
        other = judged[label.name]
        assert np.array_equal(on_grid(other, labels.geometry), labels[label.name].mask_kji)
        assert other.facts["recommendedDisplayRGBValue"] == pytest.approx(as_8_bits(label.colour), abs=1.01)
        kind_of = other.facts["SegmentedPropertyTypeCodeSequence"]
        assert kind_of["CodeValue"] == label.terminology.type.value


# Colours ----------------------------------------------------------------------------------------------------


def test_every_colour_of_8_bits_comes_back_from_cielab_as_it_was():
    rng = np.random.default_rng(2)
    corners = itertools.product((0, 1, 2, 10, 11, 127, 128, 254, 255), repeat=3)
    for rgb in itertools.chain(corners, rng.integers(0, 256, (20_000, 3)).tolist()):
        stored = hd.color.CIELabColor.from_rgb(*rgb).value
        assert hd.color.CIELabColor.from_dicom_value(stored).to_rgb(clip=True) == tuple(rgb)


def test_colours_are_those_other_programs_mean(tmp_path):
    for lab, rgb in ((DCMQIS_LIVER, (221, 130, 101)), ((0, 32896, 32896), (0, 0, 0))):
        assert hd.color.CIELabColor.from_rgb(*rgb).value == lab
        dataset = a_seg(two_parts())
        dataset.SegmentSequence[0].RecommendedDisplayCIELabValue = list(lab)
        dataset.save_as(tmp_path / "a.dcm")
        assert read_segmentation(tmp_path / "a.dcm").labels[0].colour == tuple(part / 255 for part in rgb)


def test_a_colour_no_screen_shows_is_clipped(tmp_path):
    for lab in itertools.product((0, 65535), repeat=3):
        dataset = a_seg(two_parts())
        dataset.SegmentSequence[0].RecommendedDisplayCIELabValue = list(lab)
        dataset.save_as(tmp_path / "a.dcm")
        assert all(0 <= part <= 1 for part in read_segmentation(tmp_path / "a.dcm").labels[0].colour)


# What is refused --------------------------------------------------------------------------------------------


def test_a_label_map_is_no_volume_either(tmp_path):
    for kind in ("BINARY", "LABELMAP"):
        with raises("no-dicom-images", VolumeError):
            read_volume(write(tmp_path / f"{kind}.dcm", two_parts(), kind))


def test_segmentations_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "a.dcm"

    def refused(change, kind="BINARY"):
        dataset = a_seg(two_parts(), kind)
        change(dataset)
        dataset.save_as(path)
        with pytest.raises(VolumeError) as error:
            read_segmentation(path)
        return str(error.value)

    assert "type 'SURFACE'" in refused(lambda d: setattr(d, "SegmentationType", "SURFACE"))
    assert "not a segmentation" in refused(lambda d: setattr(d, "Modality", "CT"))
    assert "bits of frame" in refused(lambda d: setattr(d, "PixelData", d.PixelData[:200]))
    assert "pixel data is missing" in refused(lambda d: delattr(d, "PixelData"))
    assert "but positions of" in refused(lambda d: setattr(d, "NumberOfFrames", 100))
    first = "PerFrameFunctionalGroupsSequence"
    assert "which segment" in refused(lambda d: delattr(d[first][0], "SegmentIdentificationSequence"))
    assert "1 is without a position" in refused(lambda d: delattr(d[first][0], "PlanePositionSequence"))
    assert "2 is without a position" in refused(lambda d: delattr(d[first][1], "PlanePositionSequence"))
    number = "ReferencedSegmentNumber"
    assert "segment 0" in refused(lambda d: setattr(d[first][0].SegmentIdentificationSequence[0], number, 0))


@pytest.mark.parametrize(("kind", "syntax"), [*ENCODINGS[::2], ("LABELMAP", JPEGLSLossless)])
def test_a_damaged_segmentation_is_read_or_refused_in_one_line(
    tmp_path, kind, syntax, campaign, capfd, record_property
):
    path = write(tmp_path / "a.dcm", two_parts(), kind, transfer_syntax_uid=syntax)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(len(kind)), 0
    record_property("mutated inputs", 40 * campaign)
    for _ in range(40 * campaign):
        path.write_bytes(damaged(whole, rng))
        try:
            read = read_segmentation(path)
            assert np.isfinite(read.geometry.ijk_to_ras).all()
            assert len(read) == len(read.labels)
        except MedSAM2Error as error:
            refused += 1
            assert 0 < len(str(error)) < 1500
    assert refused > 0
    capfd.readouterr()
