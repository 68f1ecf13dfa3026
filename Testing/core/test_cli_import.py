"""`medsam2 import` and `medsam2 info` of segmentations: what went into a SEG comes out of it."""

import nibabel
import numpy as np
import pytest
import slicerio
from medsam2_core import export
from medsam2_core.imaging.dicom import find_stack
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from support.dicom_seg import KIDNEY, Part, a_seg, two_masks, write
from support.small_files import a_dicom_slice, some_voxels, write_dicom

PICTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.4"

KINDS = [
    *(("BINARY", ExplicitVRLittleEndian), ("FRACTIONAL", RLELossless), ("FRACTIONAL", JPEGLSLossless)),
    *(("LABELMAP", ExplicitVRLittleEndian), ("LABELMAP", JPEGLSLossless)),
]


def parts():
    first, second = two_masks()
    return [Part(first), Part(second, "Kidney", KIDNEY, rgb=(9, 80, 250), algorithm="AUTOMATIC")]


@pytest.mark.parametrize(("kind", "syntax"), KINDS)
def test_a_seg_becomes_a_segmentation_with_the_same_voxels_names_codes_and_colours(
    medsam2, tmp_path, kind, syntax
):
    path = write(tmp_path / "a.dcm", parts(), kind, transfer_syntax_uid=syntax)
    facts = medsam2("import", path, "--out", tmp_path / "a.seg.nrrd", "--json").facts
    assert facts["segmentation_type"] == kind
    assert facts["kind"] == "seg.nrrd"
    assert [(one["name"], one["code"]) for one in facts["segments"]] == [
        *(("Liver", "SCT^10200004^Liver"), ("Kidney", "SCT^64033007^Kidney")),
    ]
    read, stored = read_segmentation(tmp_path / "a.seg.nrrd"), read_segmentation(path)
    assert read.geometry.same_grid(stored.geometry)
    for part, segment, said in zip(parts(), read, facts["segments"], strict=True):
        assert np.array_equal(segment.mask_kji, part.mask_kji[2:7])
        assert tuple(round(255 * one) for one in segment.colour_rgb) == part.rgb
        assert segment.terminology.type.value == part.code.value
        assert segment.terminology.category.value == part.category.value
        assert segment.tags["DICOM.SegmentAlgorithmType"] == part.algorithm
        assert segment.tags["DICOM.SegmentAlgorithmName"] == part.name
        assert said["voxels"] == part.mask_kji.sum()
        assert said["millilitres"] == pytest.approx(part.mask_kji.sum() * 0.75 / 1000, abs=1e-3)


def test_slicerio_reads_what_was_imported_with_overlap(medsam2, tmp_path):
    first, _ = two_masks()
    both = [Part(first), Part(np.roll(first, 3, axis=2), "Kidney", KIDNEY)]
    path = write(tmp_path / "a.dcm", both)
    assert medsam2("import", path, "--out", tmp_path / "a.seg.nrrd").code == 0
    theirs = slicerio.read_segmentation(str(tmp_path / "a.seg.nrrd"))
    assert [segment["name"] for segment in theirs["segments"]] == ["Liver", "Kidney"]
    for part, segment in zip(both, theirs["segments"], strict=True):
        voxels = theirs["voxels"][segment["layer"]] if theirs["voxels"].ndim == 4 else theirs["voxels"]
        assert np.array_equal(voxels == segment["labelValue"], part.mask_kji[2:7].T)
        assert segment["terminology"]["type"][1] == part.code.value


def test_the_reference_segmentation_of_dcmqi_is_imported_in_its_place(medsam2, shared_data, tmp_path):
    source = shared_data / "dicom" / "ct_liver_dcmqi_SEG.dcm"
    assert medsam2("import", source, "--out", tmp_path / "a.seg.nrrd").code == 0
    read = read_segmentation(tmp_path / "a.seg.nrrd")
    expected = read_segmentation(shared_data / "dicom" / "ct_liver_dcmqi_liver.nrrd").on_grid(read.geometry)
    assert np.array_equal(read["Liver"].mask_kji, expected.labels_kji() > 0)
    assert str(read.labels[0].terminology.type) == "SRT^T-62000^Liver"
    assert [round(255 * part) for part in read.labels[0].colour] == [221, 130, 101]


def test_it_becomes_a_nifti_too_and_overlap_is_reported(medsam2, tmp_path):
    first, _ = two_masks()
    path = write(tmp_path / "a.dcm", [Part(first), Part(np.roll(first, 3, axis=2), "Kidney", KIDNEY)])
    answer = medsam2("import", path, "--out", tmp_path / "a.nii.gz")
    assert answer.code == 0
    assert "note:" in answer.err
    assert "belong to both" in answer.err
    assert "Kidney" in answer.out
    assert "a.nii.gz: nii.gz" in answer.out
    assert set(np.unique(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj))) == {0, 1, 2}
    back = medsam2("import", tmp_path / "a.nii.gz", "--out", tmp_path / "b.seg.nrrd", "--json").facts
    assert [one["name"] for one in back["segments"]] == ["Liver", "Kidney"]
    assert back["segments"][1]["code"] == "SCT^64033007^Kidney"
    assert back["segmentation_type"] is None


def test_nothing_is_replaced_unasked_and_nothing_half_written(medsam2, tmp_path):
    path, out = write(tmp_path / "a.dcm", parts()), tmp_path / "b.seg.nrrd"
    assert medsam2("import", path, "--out", out).code == 0
    before = out.read_bytes()
    for words, code in (
        ((path, "--out", out), "output-exists"),
        ((path, "--out", tmp_path / "b.txt"), "unknown-format"),
        ((path, "--out", tmp_path / "none" / "b.nrrd"), "output-folder-missing"),
        ((out, "--out", out, "--overwrite"), "output-is-input"),
        ((tmp_path / "none.dcm", "--out", tmp_path / "c.seg.nrrd"), "no-such-file"),
    ):
        answer = medsam2("import", *words)
        assert answer.refused(code)
        assert answer.err.count("\n") == 1
    truncated = tmp_path / "t.dcm"
    truncated.write_bytes(path.read_bytes()[:-400])
    assert medsam2("import", truncated, "--out", tmp_path / "c.seg.nrrd").code == 2
    assert out.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.dcm", "b.seg.nrrd", "t.dcm"]
    assert medsam2("import", path, "--out", out, "--overwrite").code == 0
    assert out.read_bytes() == before


def test_a_spacing_that_had_to_be_assumed_is_reported(medsam2, tmp_path):
    mask = np.zeros((9, 37, 41), dtype=bool)
    mask[[3, 8], 3:9, 4:9] = True
    dataset = a_seg([Part(mask)])
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    dataset.save_as(tmp_path / "a.dcm")
    out = tmp_path / "a.seg.nrrd"
    for words in (("info",), ("import", "--out", out, "--overwrite")):
        answer = medsam2(words[0], tmp_path / "a.dcm", *words[1:])
        assert (answer.code, answer.err.count("note: slices are left out")) == (0, 1)
        (note,) = medsam2(words[0], tmp_path / "a.dcm", *words[1:], "--json").facts["notes"]
        assert "2 mm is assumed, its slice thickness" in note["message"]
    assert read_segmentation(out)["Liver"].mask_kji.sum() == mask.sum()
    assert medsam2("info", out, "--json").facts["notes"] == []


def test_a_seg_of_a_picture_comes_back_to_it(medsam2, tmp_path):
    bare = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "XC"}
    picture = a_dicom_slice(some_voxels((1, 12, 10))[0], **bare, SOPClassUID=PICTURE_STORAGE)
    picture.file_meta.MediaStorageSOPClassUID = PICTURE_STORAGE
    scan = write_dicom(tmp_path / "picture.dcm", picture)
    geometry = find_stack(scan)[1]
    masks = {name: np.zeros((1, 12, 10), dtype=bool) for name in ("mass", "cyst")}
    masks["mass"][0, 3:6, 2:7], masks["cyst"][0, 4:9, 5:8] = True, True
    written = export.write(Segmentation.from_masks(geometry, masks), tmp_path / "a.seg.nrrd").path
    seg, back = tmp_path / "seg.dcm", tmp_path / "b.seg.nrrd"
    assert medsam2("export", written, "--dicom", scan, "--out", seg).code == 0
    assert medsam2("import", seg, "--out", back).code == 0
    read = read_segmentation(back)
    assert read.geometry.same_grid(geometry)
    for name, mask in masks.items():
        assert np.array_equal(read[name].mask_kji, mask)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_info_shows_what_a_seg_holds(medsam2, tmp_path, kind):
    path = write(tmp_path / "a.dcm", parts(), kind)
    facts = medsam2("info", path, "--json").facts
    assert facts["kind"] == "label map"
    assert facts["segmentation_type"] == kind
    assert facts["shape_ijk"] == [41, 37, 5]
    liver, kidney = facts["segments"]
    assert liver["code"] == "SCT^10200004^Liver"
    assert liver["voxels"] == parts()[0].mask_kji.sum()
    assert liver["colour_rgb"] == [221, 130, 101]
    assert (kidney["algorithm_type"], kidney["algorithm_name"]) == ("AUTOMATIC", "Some Program")
    spoken = medsam2("info", path).out
    assert kind in spoken
    assert "segment 1: Liver" in spoken
    assert "SCT 64033007 Kidney, AUTOMATIC (Some Program), #0950fa" in spoken


def test_info_shows_the_same_of_what_was_imported(medsam2, tmp_path):
    path = write(tmp_path / "a.dcm", parts())
    medsam2("import", path, "--out", tmp_path / "a.seg.nrrd")
    before, after = (
        medsam2("info", path, "--json").facts,
        medsam2("info", tmp_path / "a.seg.nrrd", "--json").facts,
    )
    assert after["segmentation_type"] is None
    assert before["segments"] == after["segments"]
    assert before["ijk_to_ras"] == after["ijk_to_ras"]


def test_info_of_a_plain_segmentation_shows_nothing_it_does_not_hold(medsam2, tmp_path):
    segmentation = slicerio.create_segmentation((6, 5, 4), np.eye(4))
    slicerio.add_segment(segmentation, np.ones((6, 5, 4), np.uint8), {"name": "all", "color": [1, 0, 0]})
    slicerio.write_segmentation(str(tmp_path / "a.seg.nrrd"), segmentation)
    (segment,) = medsam2("info", tmp_path / "a.seg.nrrd", "--json").facts["segments"]
    assert segment["code"] is segment["algorithm_type"] is segment["model"] is None
    assert "segment 1: all, 0.12 ml, #ff0000" in medsam2("info", tmp_path / "a.seg.nrrd").out
