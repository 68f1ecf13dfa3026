"""Every format is judged by programs that are not ours: slicerio, pynrrd, SimpleITK, nibabel, Pillow."""

import gzip
import itertools
import json
import re

import numpy as np
import pytest
from medsam2_core import export
from medsam2_core.errors import ExportError
from medsam2_core.imaging.geometry import RAS_LPS, Geometry
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.imaging.segmentation import Segment, Segmentation
from medsam2_core.imaging.terminology import Code, Terminology
from medsam2_core.prompts import PromptSet
from support.errors import raises
from support.objects import (
    GEOMETRIES,
    a_geometry,
    a_segmentation,
    random_blobs,
    random_geometry,
    some_masks,
    some_prompts,
)

LABEL_MAPS = [".nii.gz", ".nii", ".nrrd", ".mha"]
TOLERANCE_MM = 1e-4


def corners_of(geometry) -> np.ndarray:
    return np.array(list(itertools.product(*((0, n - 1) for n in geometry.shape_ijk))), dtype=float)


def assert_same_place(geometry, ijk_to_ras, tolerance_mm=TOLERANCE_MM) -> None:
    corners = corners_of(geometry)
    theirs = corners @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    assert np.abs(theirs - geometry.to_ras(corners)).max() < tolerance_mm


def as_itk_reads_it(path):
    """Label values (K, J, I) or (K, J, I, layers) and the affine to RAS."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    points = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    origin, *ends = (np.array(image.TransformIndexToPhysicalPoint(p)) for p in points)
    lps = np.eye(4)
    lps[:3, 3], lps[:3, :3] = origin, np.array([end - origin for end in ends]).T
    return SimpleITK.GetArrayFromImage(image), RAS_LPS @ lps


def as_nibabel_reads_it(path):
    import nibabel

    image = nibabel.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def as_slicerio_reads_it(path):
    import slicerio

    return slicerio.read_segmentation(str(path))


def flat(masks) -> np.ndarray:
    labels = np.zeros(next(iter(masks.values())).shape, dtype=int)
    for number, mask in enumerate(masks.values(), start=1):
        labels[mask] = number
    return labels


# .seg.nrrd --------------------------------------------------------------------------------------------------


def test_slicerio_finds_names_colours_codes_and_voxels(tmp_path):
    import slicerio

    segmentation = a_segmentation()
    path = export.write(segmentation, tmp_path / "result.seg.nrrd").path
    found = as_slicerio_reads_it(path)
    assert slicerio.segment_names(found) == ["liver", "tumour", "corner", "nothing"]
    for segment, theirs in zip(segmentation, found["segments"], strict=True):
        assert np.array_equal(slicerio.segment_mask(found, segment.name).T, segment.mask_kji)
        assert theirs["color"] == pytest.approx(segment.colour_rgb, abs=1e-5)
        assert theirs["terminology"]["type"] == ["SCT", "85756007", "Tissue"]
        assert theirs["tags"]["DICOM.SegmentAlgorithmType"] == "SEMIAUTOMATIC"
        assert theirs["tags"]["DICOM.SegmentAlgorithmName"].startswith("MedSAM2Segment")
    assert found["voxels"].shape == (2, 20, 16, 9)  # layers first, since two overlap
    assert_same_place(segmentation.geometry, RAS_LPS @ found["ijkToLPS"], 1e-9)


def test_objects_that_do_not_overlap_share_one_layer(tmp_path):
    masks = some_masks()
    masks["tumour"] &= ~masks["liver"]
    path = export.write(a_segmentation(masks=masks), tmp_path / "result.seg.nrrd").path
    assert as_slicerio_reads_it(path)["voxels"].shape == (20, 16, 9)
    voxels, _ = as_itk_reads_it(path)
    assert np.array_equal(voxels, flat(masks))


def test_prompts_model_and_window_can_be_read_back(tmp_path):
    path = export.write(a_segmentation(), tmp_path / "result.seg.nrrd").path
    liver, tumour, corner, _ = (segment["tags"] for segment in as_slicerio_reads_it(path)["segments"])
    for name, tags in (("liver", liver), ("tumour", tumour)):
        prompts = PromptSet.from_json(tags["MedSAM2.prompts"])
        assert prompts.names == (name,)
        assert prompts.of(name) == some_prompts().of(name)
    assert "MedSAM2.prompts" not in corner
    assert liver["MedSAM2.model"] == "embedded"
    assert len(liver["MedSAM2.weights_sha256"]) == 64
    assert json.loads(liver["MedSAM2.window"]) == {"width": 400, "level": 40, "name": "abdomen"}
    assert liver["MedSAM2.software"].startswith("MedSAM2Segment 0.")


def test_the_own_tags_of_a_segment_win(tmp_path):
    liver = Terminology(Code("SCT", "85756007", "Tissue"), Code("SCT", "10200004", "Liver"))
    tags = {"DICOM.SegmentAlgorithmType": "AUTOMATIC", "note": "a|b:c"}
    segment = Segment("liver", (1, 0, 0), some_masks()["liver"], liver, tags)
    path = export.write(Segmentation(a_geometry(), (segment,)), tmp_path / "result.seg.nrrd").path
    (found,) = as_slicerio_reads_it(path)["segments"]
    assert found["terminology"]["type"] == ["SCT", "10200004", "Liver"]
    assert found["tags"]["DICOM.SegmentAlgorithmType"] == "AUTOMATIC"
    assert found["tags"]["note"] == "a/b:c"  # the divider of tags cannot be escaped


def test_our_own_reader_agrees(tmp_path):
    segmentation = a_segmentation()
    labels = read_segmentation(export.write(segmentation, tmp_path / "result.seg.nrrd").path)
    assert labels.geometry.same_grid(segmentation.geometry, 1e-9)
    for segment in segmentation:
        assert np.array_equal(labels[segment.name].mask_kji, segment.mask_kji)
        assert labels[segment.name].label.colour == pytest.approx(segment.colour_rgb, abs=1e-5)


def test_more_than_255_objects_get_16_bits(tmp_path):
    masks = {}
    for n in range(300):
        masks[f"object {n}"] = np.zeros((9, 16, 20), dtype=bool)
        masks[f"object {n}"].flat[5 * n : 5 * n + 5] = True
    for suffix in (".seg.nrrd", ".nrrd", ".mha"):
        path = export.write(a_segmentation(masks=masks), tmp_path / f"many{suffix}").path
        voxels, _ = as_itk_reads_it(path)
        assert voxels.dtype == np.uint16
        assert np.array_equal(voxels, flat(masks))
    voxels, _ = as_nibabel_reads_it(export.write(a_segmentation(masks=masks), tmp_path / "many.nii.gz").path)
    assert np.array_equal(voxels, flat(masks))


# Where the voxels are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nrrd", ".mha"])
def test_itk_finds_every_voxel_in_its_place(tmp_path, name, suffix):
    geometry = a_geometry(name)
    voxels, ijk_to_ras = as_itk_reads_it(export.write(a_segmentation(geometry), tmp_path / f"x{suffix}").path)
    assert_same_place(geometry, ijk_to_ras)
    if suffix == ".seg.nrrd":
        assert np.array_equal(voxels[..., 1] == 2, some_masks()["tumour"])
    else:
        assert np.array_equal(voxels, flat(some_masks()))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_finds_every_voxel_in_its_place(tmp_path, name, suffix):
    geometry = a_geometry(name)
    path = export.write(a_segmentation(geometry), tmp_path / f"x{suffix}").path
    voxels, affine = as_nibabel_reads_it(path)
    assert_same_place(geometry, affine)
    assert np.array_equal(voxels, flat(some_masks()))
    if not geometry.is_sheared:
        voxels, ijk_to_ras = as_itk_reads_it(path)
        assert_same_place(geometry, ijk_to_ras)
        assert np.array_equal(voxels, flat(some_masks()))


def test_a_qform_that_could_not_express_the_same_is_left_out(tmp_path):
    import nibabel

    sheared = export.write(a_segmentation(a_geometry("sheared")), tmp_path / "sheared.nii.gz")
    assert "sheared-nifti" in [note.code for note in sheared.notes]
    assert nibabel.load(sheared.path).get_qform(coded=True) == (None, 0)
    straight = export.write(a_segmentation(a_geometry("oblique")), tmp_path / "oblique.nii.gz")
    affine, code = nibabel.load(straight.path).get_qform(coded=True)
    assert code == 1
    assert_same_place(a_geometry("oblique"), affine)


def test_any_place_and_any_objects_survive_every_format(tmp_path, campaign, record_property):
    rng = np.random.default_rng(11)
    import slicerio

    record_property("random cases", 6 * campaign)
    for _ in range(6 * campaign):
        geometry, masks = random_geometry(rng), random_blobs(rng, int(rng.integers(1, 9)))
        segmentation = a_segmentation(geometry, masks)
        path = export.write(segmentation, tmp_path / "x.seg.nrrd", overwrite=True).path
        found = as_slicerio_reads_it(path)
        assert_same_place(geometry, RAS_LPS @ found["ijkToLPS"], 1e-9)
        for name, mask in masks.items():
            assert np.array_equal(slicerio.segment_mask(found, name).T, mask)
        for suffix, read in (
            (".nii.gz", as_nibabel_reads_it),
            (".mha", as_itk_reads_it),
            (".nrrd", as_itk_reads_it),
        ):
            path = export.write(segmentation, tmp_path / f"x{suffix}", overwrite=True).path
            voxels, affine = read(path)
            assert_same_place(geometry, affine, 2e-4)  # NIfTI holds 32-bit floats, positions reach 1 m here
            assert np.array_equal(voxels, flat(masks))


@pytest.mark.parametrize("case", ["ct_gantry_tilt_14", "ct_oblique_synth", "mr_sag_ge", "mr_oblique_hitachi"])
def test_the_grid_of_a_real_scan_survives(tmp_path, shared_data, case):
    from medsam2_core.imaging.reading import read_volume

    volume = read_volume(shared_data / "dicom" / case)
    mask = volume.voxels_kji > np.percentile(volume.voxels_kji, 80)
    segmentation = Segmentation.from_masks(volume.geometry, {"bright": mask})
    voxels, ijk_to_ras = as_itk_reads_it(export.write(segmentation, tmp_path / "x.seg.nrrd").path)
    assert_same_place(volume.geometry, ijk_to_ras)
    assert np.array_equal(voxels, mask)
    voxels, affine = as_nibabel_reads_it(export.write(segmentation, tmp_path / "x.nii.gz").path)
    assert_same_place(volume.geometry, affine)
    assert np.array_equal(voxels, mask)


# Label maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LABEL_MAPS)
def test_a_note_reports_what_a_label_map_could_not_hold(tmp_path, suffix):
    (note,) = export.write(a_segmentation(), tmp_path / f"x{suffix}").notes
    assert (note.code, note.severity) == ("overlap-not-stored", "warning")
    assert note.fields == {"voxels": 12, "segments": ["liver", "tumour"]}
    assert str(note).startswith("12 voxels belong to both 'liver' and 'tumour' and are stored as 'tumour'")
    assert export.write(a_segmentation(), tmp_path / "x.seg.nrrd").notes == ()


def test_a_plain_nrrd_still_knows_the_names(tmp_path):
    labels = read_segmentation(export.write(a_segmentation(), tmp_path / "labels.nrrd").path)
    assert [label.name for label in labels.labels] == ["liver", "tumour", "corner", "nothing"]
    assert np.array_equal(labels.labels_kji(), flat(some_masks()))


def test_a_nifti_still_knows_the_names(tmp_path):
    import nibabel

    header = nibabel.load(export.write(a_segmentation(), tmp_path / "labels.nii.gz").path).header
    assert header.get_intent()[0] == "label"
    assert b"1 liver; 2 tumour" in bytes(header["descrip"].tobytes())
    (comment,) = header.extensions
    known = json.loads(comment.get_content())
    assert [(s["label"], s["name"]) for s in known["segments"][:2]] == [(1, "liver"), (2, "tumour")]
    assert known["segments"][0]["tags"]["MedSAM2.model"] == "embedded"


def test_equal_results_are_equal_files(tmp_path):
    for suffix in (".seg.nrrd", *LABEL_MAPS):
        first, second = (export.write(a_segmentation(), tmp_path / f"{n}{suffix}").path for n in "ab")
        assert first.read_bytes() == second.read_bytes()


# PNG --------------------------------------------------------------------------------------------------------


def a_picture_mask(height=12, width=17) -> np.ndarray:
    mask = np.zeros((1, height, width), dtype=bool)
    mask[0, 2:6, 3:11] = True
    return mask


def test_one_object_of_a_picture_is_black_and_white(tmp_path):
    from PIL import Image

    segmentation = Segmentation.from_masks(Geometry.for_picture(12, 17), {"disc": a_picture_mask()})
    with Image.open(export.write(segmentation, tmp_path / "disc.png").path) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), a_picture_mask()[0] * 255)


def test_several_objects_of_a_picture_are_labels_in_their_colours(tmp_path):
    from PIL import Image

    first, second = a_picture_mask(), np.roll(a_picture_mask(), 4, axis=1)
    segmentation = Segmentation.from_masks(Geometry.for_picture(12, 17), {"disc": first, "cup": second})
    with Image.open(export.write(segmentation, tmp_path / "eye.PNG").path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), first[0] + 2 * second[0])
        colours = np.asarray(image.convert("RGB")) / 255
        assert colours[3, 4] == pytest.approx(segmentation["disc"].colour_rgb, abs=0.003)
        assert [segment["name"] for segment in json.loads(image.text["Labels"])["segments"]] == [
            "disc",
            "cup",
        ]
    assert np.array_equal(read_segmentation(tmp_path / "eye.PNG").labels_kji()[0], first[0] + 2 * second[0])


def test_a_volume_does_not_fit_a_png(tmp_path):
    with raises("png-needs-one-slice", ExportError, slices=9):
        export.write(a_segmentation(), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


# Names ------------------------------------------------------------------------------------------------------


def test_names_of_all_languages_and_with_any_sign_survive(tmp_path):
    names = ['Nierenlappen "oben"', "肝臓", "a|b~c^d", "back\\slash\\n", "two\nlines", "x" * 150, "\udcff"]
    masks = dict.fromkeys(names, some_masks()["liver"])
    prompts = PromptSet()
    for name in names[:-1]:
        prompts.add_object(name)
        prompts.objects[name] = some_prompts().of("liver")
    segmentation = a_segmentation(masks=masks, prompts=prompts.to_json())
    for suffix in export.SUFFIXES[:-1]:
        export.write(segmentation, tmp_path / f"x{suffix}")
    header = (tmp_path / "x.seg.nrrd").read_bytes().partition(b"\n\n")[0].decode("utf-8")
    fields = dict(line.split(":=", 1) for line in header.splitlines() if ":=" in line)
    plain = {"\\n": "\n", "\\\\": "\\"}
    for n, name in enumerate(names[:-1]):
        stored = re.sub(r"\\[n\\]", lambda m: plain[m.group()], fields[f"Segment{n}_Name"])
        assert stored == name
        tags = re.sub(r"\\[n\\]", lambda m: plain[m.group()], fields[f"Segment{n}_Tags"])
        (stored,) = (tag for tag in tags.split("|") if tag.startswith("MedSAM2.prompts:"))
        assert PromptSet.from_json(stored.partition(":")[2]).names == (name,)


def test_no_place_or_person_of_this_computer_gets_into_a_file(tmp_path, monkeypatch):
    home = tmp_path / "homes" / "mallory"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    segmentation = a_segmentation(
        model=str(home / "models" / "mine.pt"),
        source=home / "scan.nrrd",
        windows="D:" + "\\people\\mallory\\scan.nrrd",
        command=f"medsam2 segment {home}/scan.nrrd",
        nested={"files": [str(home / "a.json"), 3, None]},
    )
    folder = tmp_path / "for-mallory"
    folder.mkdir()
    for suffix in export.SUFFIXES[:-1]:
        content = export.write(segmentation, folder / f"x{suffix}").path.read_bytes()
        unpacked = gzip.decompress(content) if suffix == ".nii.gz" else content
        assert b"mallory" not in content + unpacked
        assert b"mine.pt" in unpacked or suffix == ".mha"
