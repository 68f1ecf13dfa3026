"""Segmentations come back from files as they were, and writing them again gives the same file."""

import nibabel
import nrrd
import numpy as np
import pytest
from medsam2_core import export
from medsam2_core.export import metadata
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segment, Segmentation, default_colour
from medsam2_core.imaging.segmentation_files import read_segmentation
from medsam2_core.imaging.terminology import Code, Terminology, parse_tags, tags_text
from medsam2_core.prompts import Box, Point, PromptSet
from support.dicom_seg import KIDNEY, Part, a_seg, two_masks, write
from support.objects import GEOMETRIES, a_geometry, a_segmentation, random_blobs, random_geometry, some_masks
from support.small_files import some_voxels, write_nifti, write_nrrd

KEEPING = [".seg.nrrd", ".nrrd", ".nii.gz", ".nii"]  # what is said of the segments
LESION = Terminology(
    Code("SCT", "49755003", "Morphologically Altered Structure"),
    Code("SCT", "52988006", "Lesion"),
    region=Code("SCT", "10200004", "Liver"),
    region_modifier=Code("SCT", "24028007", "Right"),
)


def twice(segmentation, folder, suffix):
    """The file, and the one written from what was read from it."""
    first = export.write(segmentation, folder / f"first{suffix}").path
    second = export.write(read_segmentation(first), folder / f"second{suffix}").path
    return first.read_bytes(), second.read_bytes()


def with_everything(bar: str = "|", place: str = "oblique") -> Segmentation:
    """Objects whose names, tags and provenance hold all that might be lost on the way.

    A bar divides tags: .seg.nrrd has another letter for it in what is not JSON.
    """
    masks = some_masks()
    segments = [
        Segment(
            "Läsion 病変: \\n \\ „a|b“", (0.1, 0.25, 1), masks["liver"], LESION, {"MedSAM2.confidence": "0.9"}
        ),
        Segment(
            "second line\nof a name", (0, 0, 0), masks["tumour"], None, {"note": f"at 12:30, see a:b{bar}c"}
        ),
        Segment(
            "corner",
            default_colour(7),
            masks["corner"],
            LESION,
            {
                "DICOM.SegmentAlgorithmType": "AUTOMATIC",
                "DICOM.SegmentAlgorithmName": "",
                "MedSAM2.auto": "x",
            },
        ),
        Segment("nothing", (1, 1, 1), masks["nothing"], None, {"MedSAM2.json": f'{{"a":"b{bar}c"}}'}),
    ]
    prompts = PromptSet()
    prompts.add(segments[1].name, Point((9.25, 8, 5)))
    prompts.add("corner", Box((4, 3, 3), (11, 8, 3)))
    provenance = {
        "prompts": prompts.to_json(),
        "model": "embedded",
        "weights_sha256": "0123456789abcdef" * 4,
        "window": {"width": 400.0, "level": 40, "name": "Bauch | weit"},
        "note": None,
        "slices": [1, 2.5, "drei"],
        "text": '{"not": "as we write JSON"}',
    }
    return Segmentation(a_geometry(place), tuple(segments), provenance)


@pytest.mark.parametrize("suffix", KEEPING)
def test_writing_what_was_read_gives_the_same_bytes(tmp_path, suffix):
    # NIfTI keeps matrices in 32 bits, from which a turn is not computed to the same last digit.
    options = () if "nrrd" in suffix else ("/", "straight")
    first, second = twice(with_everything(*options), tmp_path, suffix)
    assert first == second


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_same_bytes_wherever_the_voxels_lie(tmp_path, name):
    first, second = twice(a_segmentation(a_geometry(name)), tmp_path, ".seg.nrrd")
    assert first == second


def test_the_same_bytes_for_any_objects(tmp_path, campaign):
    rng = np.random.default_rng(8)
    for n in range(12 * campaign):
        masks = random_blobs(rng, int(rng.integers(1, 6)))
        folder = tmp_path / str(n)
        folder.mkdir()
        first, second = twice(a_segmentation(random_geometry(rng), masks), folder, ".seg.nrrd")
        assert first == second


def test_everything_of_a_segmentation_comes_back(tmp_path):
    written = with_everything()
    read = read_segmentation(export.write(written, tmp_path / "a.seg.nrrd").path)
    assert read.names == written.names
    assert read.geometry.same_grid(written.geometry, 1e-9)
    for before, after in zip(written, read, strict=True):
        assert np.array_equal(before.mask_kji, after.mask_kji)
        assert before.terminology == after.terminology
        assert np.allclose(before.colour_rgb, after.colour_rgb, atol=1e-6)
        assert metadata.tags_of(written, before).keys() == metadata.tags_of(read, after).keys()
    expected = {key: value for key, value in written.provenance.items() if value is not None}
    assert list(read.provenance) == list(expected)
    assert read.provenance["window"] == expected["window"]
    assert read.provenance["text"] == expected["text"]
    prompts = PromptSet.from_json(read.provenance["prompts"], read.geometry)
    assert PromptSet.from_json(expected["prompts"], read.geometry).to_json() == prompts.to_json()
    assert read["corner"].tags["DICOM.SegmentAlgorithmType"] == "AUTOMATIC"
    assert read["corner"].tags["DICOM.SegmentAlgorithmName"] == ""
    assert "MedSAM2.model" not in read["corner"].tags
    assert read[written.names[0]].tags["MedSAM2.confidence"] == "0.9"


def test_what_is_of_one_object_stays_with_it_even_when_it_is_alone(tmp_path):
    facts = {"MedSAM2.confidence": "0.9", "MedSAM2.tracking_uid": "1.2.3"}
    segment = Segment("a", (1, 0, 0), some_masks()["liver"], None, facts)
    written = Segmentation(a_geometry(), (segment,), {"model": "m"})
    read = read_segmentation(export.write(written, tmp_path / "a.seg.nrrd").path)
    assert dict(read.provenance) == {"model": "m"}
    assert read["a"].tags["MedSAM2.tracking_uid"] == "1.2.3"


def test_a_nifti_of_this_package_has_its_names_and_others_have_numbers(tmp_path):
    written = a_segmentation()
    labels = read_segmentation(export.write(written, tmp_path / "a.nii.gz").path)
    assert [(label.name, label.value) for label in labels.labels] == [
        *(("liver", 1), ("tumour", 2), ("corner", 3), ("nothing", 4))
    ]
    assert labels.labels[1].colour == default_colour(1)
    assert labels.labels[0].tags["MedSAM2.model"] == "embedded"
    assert labels["corner"].voxel_count == 1
    plain = read_segmentation(write_nifti(tmp_path / "b.nii", some_voxels(dtype=np.uint8) % 3))
    assert [label.name for label in plain.labels] == ["1", "2"]


@pytest.mark.parametrize(
    "comment",
    [b"made by hand", b"[1, 2]", b'{"segments": 3}', b'{"segments": [{"label": "x"}, 4]}', b"\xff\xfe"],
)
def test_comments_of_others_in_a_nifti_do_no_harm(tmp_path, comment):
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", comment))
    nibabel.save(image, tmp_path / "a.nii")
    assert read_segmentation(tmp_path / "a.nii").names == ("1",)


def test_labels_the_comment_does_not_know_are_kept(tmp_path):
    path = export.write(a_segmentation(), tmp_path / "a.nii").path
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 9
    nibabel.save(nibabel.Nifti1Image(voxels, None, image.header), tmp_path / "b.nii")
    assert read_segmentation(tmp_path / "b.nii").names == ("liver", "tumour", "corner", "nothing", "9")


def test_plain_label_maps_get_names_and_colours(tmp_path):
    voxels = np.zeros((4, 5, 6), dtype=np.int16)
    voxels[1, 1, 1:3], voxels[2, 2, 2] = 4, -7
    read = read_segmentation(write_nrrd(tmp_path / "a.nrrd", voxels))
    assert read.names == ("-7", "4")
    assert [segment.colour_rgb for segment in read] == [default_colour(0), default_colour(1)]
    assert read["4"].voxel_count == 2
    assert dict(read.provenance) == {}


def slicer_file(path, names, tags="", layers=1):
    """As 3D Slicer writes it, one voxel an object."""
    voxels = np.zeros((4, 5, 6, layers) if layers > 1 else (4, 5, 6), np.uint8)
    header = {"space": "left-posterior-superior", "kinds": ["domain"] * 3}
    for n, name in enumerate(names):
        voxels[(1, 1, n + 1)] = n + 1
        header |= {f"Segment{n}_ID": f"S{n}", f"Segment{n}_Name": name, f"Segment{n}_LabelValue": str(n + 1)}
        header |= {f"Segment{n}_Color": "0.2 0.4 0.6", f"Segment{n}_Layer": "0", f"Segment{n}_Tags": tags}
    header["space directions"] = np.eye(3)
    nrrd.write(str(path), voxels, header, index_order="C")
    return path


def test_names_are_made_unique_and_never_empty(tmp_path):
    path = slicer_file(tmp_path / "a.seg.nrrd", ["cyst", "cyst", "cyst (2)", "cyst"])
    assert read_segmentation(path).names == ("cyst", "cyst (3)", "cyst (2)", "cyst (4)")
    content = path.read_bytes().replace(b"Name:=cyst\n", b"Name:=    \n")
    path.write_bytes(content)
    assert read_segmentation(path).names == ("1", "2", "cyst (2)", "4")
    again = export.write(read_segmentation(path), tmp_path / "b.seg.nrrd").path
    assert read_segmentation(again).names == ("1", "2", "cyst (2)", "4")


def test_prompts_follow_their_object_to_its_new_name(tmp_path):
    prompts = PromptSet()
    prompts.add("cyst", Point((1, 1, 1)))
    written = Segmentation.from_masks(
        a_geometry(), {"cyst": some_masks()["liver"]}, {"prompts": prompts.to_json()}
    )
    content = export.write(written, tmp_path / "a.seg.nrrd").path.read_bytes()
    head, _, data = content.partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if line.startswith(b"Segment0_")]
    doubled = [
        line.replace(b"Segment0_", b"Segment1_").replace(b"LabelValue:=1", b"LabelValue:=2") for line in lines
    ]
    (tmp_path / "b.seg.nrrd").write_bytes(b"\n".join([head, *doubled]) + b"\n\n" + data)
    read = read_segmentation(tmp_path / "b.seg.nrrd")
    assert read.names == ("cyst", "cyst (2)")
    known = PromptSet.from_json(read.provenance["prompts"], read.geometry)
    assert set(known.names) == {"cyst", "cyst (2)"}


def test_tags_of_3d_slicer_are_understood_colons_and_all(tmp_path):
    tags = f"TerminologyEntry:{LESION}|Segmentation.Status:inprogress|DICOM.Note:at 12:30|odd|"
    (segment,) = read_segmentation(slicer_file(tmp_path / "a.seg.nrrd", ["a"], tags))
    assert segment.terminology == LESION
    assert dict(segment.tags) == {"Segmentation.Status": "inprogress", "DICOM.Note": "at 12:30", "odd": ""}
    assert segment.colour_rgb == pytest.approx((0.2, 0.4, 0.6))
    (damaged,) = read_segmentation(slicer_file(tmp_path / "b.seg.nrrd", ["a"], "TerminologyEntry:a~b|"))
    assert damaged.tags["TerminologyEntry"] == "a~b"


def test_tags_become_text_and_tags_again():
    tags = {"a": "1:2", "DICOM.x": "", "j": '{"k":"\\u007c"}'}
    assert parse_tags(tags_text(tags)) == tags
    assert parse_tags(tags_text({"a:b|c": "d|e", "j": '["|"]'})) == {"a b c": "d/e", "j": '["\\u007c"]'}
    assert parse_tags("") == {}


def test_a_dicom_segmentation_comes_with_codes_colours_and_model(tmp_path):
    known = {"model": "embedded", "weights_sha256": "0123"}
    first, second = two_masks()
    parts = [Part(first, parameters=known), Part(second, "Kidney", KIDNEY, rgb=(9, 8, 7), parameters=known)]
    for kind in ("BINARY", "LABELMAP"):
        read = read_segmentation(write(tmp_path / f"{kind}.dcm", parts, kind))
        assert read.names == ("Liver", "Kidney")
        assert dict(read.provenance) == {"model": "embedded", "weights_sha256": "0123"}
        assert read["Kidney"].terminology.type == Code("SCT", "64033007", "Kidney")
        assert [part * 255 for part in read["Kidney"].colour_rgb] == [9, 8, 7]
        assert read["Kidney"].tags["DICOM.SegmentAlgorithmName"] == "Some Program"
        assert np.array_equal(read["Kidney"].mask_kji, second[2:7])


def test_descriptions_in_a_dicom_segmentation_go_through_a_file_of_3d_slicer(tmp_path):
    first, second = two_masks()
    parts = [Part(first, parameters={"model": "m", "fast": "yes"}, tracking=("Lesion 7", "1.2.3"))]
    parts.append(Part(second, "Kidney", KIDNEY, parameters={"model": "m"}))
    dataset = a_seg(parts)
    for item in dataset.SegmentSequence:
        item.SegmentDescription = "seen by two,\nat 12:30"  # of both, and yet of each
        item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmSource = "Basel"
    dataset.save_as(tmp_path / "a.dcm")
    read = read_segmentation(tmp_path / "a.dcm")
    first, second = twice(read, tmp_path, ".seg.nrrd")
    assert first == second
    for again in (read, read_segmentation(tmp_path / "first.seg.nrrd")):
        assert dict(again.provenance) == {"model": "m"}
        for segment in again:
            assert segment.tags["MedSAM2.description"] == "seen by two,\nat 12:30"
            assert segment.tags["MedSAM2.algorithm_version"] == "1.0"
            assert segment.tags["MedSAM2.algorithm_source"] == "Basel"
        assert again["Liver"].tags["MedSAM2.algorithm_parameters"] == "fast=yes"
        assert "MedSAM2.algorithm_parameters" not in again["Kidney"].tags
        assert again["Liver"].tags["MedSAM2.tracking_id"] == "Lesion 7"
        assert again["Liver"].tags["MedSAM2.tracking_uid"] == "1.2.3"


def test_segments_keep_the_label_values_of_their_file(tmp_path):
    voxels = np.zeros((4, 5, 6), dtype=np.int16)
    voxels[1, 1, 1], voxels[2, 2, 2] = 40, -7
    read = read_segmentation(write_nrrd(tmp_path / "a.nrrd", voxels))
    assert [(segment.name, segment.value) for segment in read] == [("-7", -7), ("40", 40)]
    again = read_segmentation(export.write(read, tmp_path / "b.nrrd").path)
    assert [(segment.name, segment.value) for segment in again] == [("-7", 1), ("40", 2)]
    assert [segment.value for segment in a_segmentation()] == [None] * 4


def test_a_segmentation_without_a_single_object_is_empty(tmp_path):
    read = read_segmentation(write_nrrd(tmp_path / "a.nrrd", np.zeros((3, 4, 5), np.uint8)))
    assert len(read) == 0
    assert isinstance(read.geometry, Geometry)
