"""Label maps: which voxels belong to which named object."""

import nrrd
import numpy as np
import pytest
import slicerio
from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging.reading import read_segmentation, read_volume
from support.errors import raises
from support.small_files import OBLIQUE_RAS, some_voxels, write_nifti, write_nrrd, write_picture


def test_real_label_maps_lie_on_the_grid_of_their_images(shared_data):
    pairs = [
        ("mr/brain1_label.nrrd", "mr/brain1_image.nrrd"),
        ("ct/spleen2_seg.nii.gz", "ct/spleen2_ct.nii.gz"),
        ("mr/cord_t2_seg.nii.gz", "mr/cord_t2.nii.gz"),
        ("orient/oblique_FLAIR_lesion.nii.gz", "orient/oblique_FLAIR.nii.gz"),
        ("mr/hippocampus/003_label.nii.gz", "mr/hippocampus/003_image.nii.gz"),
        ("dicom/ct_liver_dcmqi_liver.nrrd", "dicom/ct_liver_dcmqi_spine.nrrd"),
    ]
    for label, image in pairs:
        labels = read_segmentation(shared_data / label)
        assert labels.geometry.same_grid(read_volume(shared_data / image).geometry, 0.01)
        assert labels.labels_kji().dtype.kind in "ui"
        assert labels.labels


def test_the_dicom_segmentation_equals_the_nrrd_made_from_it(shared_data):
    segmentation = read_segmentation(shared_data / "dicom" / "ct_liver_dcmqi_SEG.dcm")
    expected = read_segmentation(shared_data / "dicom" / "ct_liver_dcmqi_liver.nrrd")
    scan = read_volume(shared_data / "dicom" / "ct_liver_dcmqi")
    assert [label.name for label in segmentation.labels] == ["Liver"]
    assert segmentation.labels[0].colour == pytest.approx((221 / 255, 130 / 255, 101 / 255), abs=0.06)
    assert segmentation.geometry.same_grid(scan.geometry, 0.01)
    mask = segmentation["Liver"].mask_kji
    if not expected.geometry.same_grid(segmentation.geometry, 0.01):  # stored from the other end
        mask = mask[::-1]
    assert np.array_equal(mask, expected["1"].mask_kji)


def a_slicer_segmentation(path, overlapping: bool):
    liver, tumour = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    liver[1:3, 1:4, 1:5] = 1
    tumour[1:3, 1:3, 1:3] = 1
    if not overlapping:
        liver[tumour > 0] = 0
    lps = np.diag([-1, -1, 1, 1]) @ OBLIQUE_RAS
    segmentation = slicerio.create_segmentation((6, 5, 4), lps)
    for mask, name, colour in ((liver, "Leber", [0.8, 0.4, 0.2]), (tumour, "Tumor", [0.1, 0.9, 0.1])):
        slicerio.add_segment(segmentation, mask.transpose(2, 1, 0), {"name": name, "color": colour})
    slicerio.write_segmentation(str(path), segmentation)
    return liver > 0, tumour > 0


@pytest.mark.parametrize("overlapping", [False, True])
def test_segmentations_of_3d_slicer_come_with_names_colours_and_place(tmp_path, overlapping):
    path = tmp_path / "two.seg.nrrd"
    liver, tumour = a_slicer_segmentation(path, overlapping)
    labels = read_segmentation(path)
    assert [label.name for label in labels.labels] == ["Leber", "Tumor"]
    assert labels.labels[0].colour == pytest.approx((0.8, 0.4, 0.2))
    assert np.array_equal(labels["Leber"].mask_kji, liver)
    assert np.array_equal(labels["Tumor"].mask_kji, tumour)
    assert np.allclose(labels.geometry.ijk_to_ras, OBLIQUE_RAS)
    if not overlapping:
        assert set(labels.names) == {"Leber", "Tumor"}
        assert np.array_equal(labels.labels_kji() > 0, liver | tumour)


def test_overlapping_objects_on_layers_have_no_single_map(tmp_path):
    layers = np.zeros((4, 5, 6, 2), np.uint8)
    layers[1, 1:4, 1:5, 0] = 1
    layers[1, 2:4, 1:3, 1] = 1
    header = {
        "kinds": ["list", "domain", "domain", "domain"],
        "space": "left-posterior-superior",
        "space directions": np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    }
    for n, name in enumerate(("liver", "tumour")):
        header |= {f"Segment{n}_ID": f"S{n}", f"Segment{n}_Name": name, f"Segment{n}_Color": "1 0.5 0"}
        header |= {f"Segment{n}_Layer": str(n), f"Segment{n}_LabelValue": "1"}
    nrrd.write(str(tmp_path / "two.seg.nrrd"), layers, header, index_order="C")
    labels = read_segmentation(tmp_path / "two.seg.nrrd")
    assert np.array_equal(labels["tumour"].mask_kji, layers[..., 1] > 0)
    assert labels["liver"].mask_kji.sum() == 12
    with raises("overlapping-labels", VolumeError, segment="liver", value=1):
        labels.labels_kji()
    with raises("unknown-segment", VolumeError, segment="kidney", known=["liver", "tumour"]):
        labels["kidney"]


def test_labels_written_as_floats_are_read_when_whole_and_refused_when_not(tmp_path):
    voxels = (some_voxels(dtype=np.uint8) % 3).astype(np.float32)
    labels = read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    assert labels.labels_kji().dtype == np.uint8
    assert [(one.value, one.name) for one in labels] == [(1, "1"), (2, "2")]
    voxels[0, 0, 0] = 1.5
    with raises("not-a-label-map", VolumeError, value=1.5):
        read_segmentation(write_nifti(tmp_path / "l.nii", voxels))
    voxels[0, 0, 0] = np.nan
    with raises("not-a-label-map", VolumeError):
        read_segmentation(write_nifti(tmp_path / "l.nii", voxels))


def test_an_image_is_not_taken_for_labels(tmp_path):
    colour = write_picture(tmp_path / "c.png", some_voxels((5, 6, 3), np.uint8))
    with raises("colour-label-map", VolumeError):
        read_segmentation(colour)
    many = np.arange(70 * 70 * 20, dtype=np.int32).reshape(20, 70, 70)
    with raises("too-many-labels", VolumeError):
        read_segmentation(write_nrrd(tmp_path / "many.nrrd", many))
    with raises("no-such-file", VolumeError):
        read_segmentation(tmp_path / "none.nrrd")


@pytest.mark.parametrize("order", ["LPS", "LAS", "RAS", "SAL", "PIR"])
def test_labels_stored_in_another_axis_order_come_onto_the_images_grid(order, tmp_path):
    import nibabel

    rng = np.random.default_rng(3)
    ras = nibabel.Nifti1Image(rng.integers(0, 4, (5, 6, 7)).astype(np.uint8), np.diag([1.5, 2, 3, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(ras.affine), nibabel.orientations.axcodes2ornt(order)
    )
    nibabel.save(ras, tmp_path / "image.nii")
    nibabel.save(ras.as_reoriented(turn), tmp_path / "labels.nii")
    image = read_volume(tmp_path / "image.nii")
    labels = read_segmentation(tmp_path / "labels.nii").on_grid(image.geometry)
    assert labels.geometry is image.geometry or labels.geometry.same_grid(image.geometry)
    assert np.array_equal(labels.labels_kji(), image.voxels_kji)


def test_labels_that_lie_elsewhere_are_not_moved(tmp_path):
    import nibabel

    voxels = np.ones((5, 6, 7), dtype=np.uint8)
    affine = np.diag([1.5, 2, 3, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "image.nii")
    affine[0, 3] = 0.4
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "labels.nii")
    with raises("label-map-on-another-grid", GeometryError):
        read_segmentation(tmp_path / "labels.nii").on_grid(read_volume(tmp_path / "image.nii").geometry)


def test_the_real_ct_and_its_flipped_labels_meet(shared_data):
    image = read_volume(shared_data / "dicom" / "ct_body_j2k")
    labels = read_segmentation(shared_data / "dicom" / "ct_body_j2k_seg.nii.gz")
    assert labels.geometry.axis_codes != image.geometry.axis_codes
    in_air = image.voxels_kji[labels.on_grid(image.geometry).labels_kji() > 0] < -500
    assert in_air.mean() < 0.03


def test_a_scan_of_whole_numbers_is_no_segmentation_but_many_labels_are_one(shared_data, tmp_path):
    for scan in ("mr/brain1_image.nrrd", "mr/cord_t2.nii.gz", "us/breast_busbra/benign_0912-r_img.png"):
        with raises("not-a-segmentation", VolumeError):
            read_segmentation(shared_data / scan)
    parcels = np.arange(6 * 6 * 6, dtype=np.int16).reshape(6, 6, 6).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    assert len(read_segmentation(write_nrrd(tmp_path / "parcels.nrrd", parcels))) == 215
