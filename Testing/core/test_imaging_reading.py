"""NRRD, NIfTI, MetaImage, pictures and NPZ: the same voxels at the same place, or a reason why not."""

import gzip

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from medsam2_core.errors import GeometryError, MedSAM2Error, VolumeError
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.reading import list_series, read_images, read_segmentation, read_volume
from medsam2_core.imaging.slices import SliceStack
from support.errors import raises
from support.small_files import (
    OBLIQUE_RAS,
    some_voxels,
    write_metaimage,
    write_nifti,
    write_nrrd,
    write_picture,
)

SHEARED_RAS = OBLIQUE_RAS @ np.array([[1, 0, 0.3, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
WRITERS = [(write_nifti, ".nii"), (write_nifti, ".nii.gz"), (write_nrrd, ".nrrd"), (write_nrrd, ".nhdr")]


@pytest.mark.parametrize(("write", "suffix"), WRITERS)
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("matrix", [OBLIQUE_RAS, SHEARED_RAS], ids=["oblique", "sheared"])
def test_every_type_and_matrix_is_read_as_written(tmp_path, write, suffix, dtype, matrix):
    voxels = some_voxels(dtype=dtype)
    volume = read_volume(write(tmp_path / f"scan{suffix}", voxels, matrix))
    assert volume.voxels_kji.dtype == voxels.dtype
    assert np.array_equal(volume.voxels_kji, voxels)
    assert np.allclose(volume.geometry.ijk_to_ras, matrix, atol=1e-5)
    assert volume.geometry.is_sheared == (matrix is SHEARED_RAS or not orthogonal(matrix))
    assert volume.name == "scan"


def orthogonal(matrix) -> bool:
    unit = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() < 1e-4)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f8"])
def test_metaimage_as_itk_writes_it_is_read_as_itk_reads_it(tmp_path, suffix, compressed, dtype):
    voxels = some_voxels(dtype=dtype)
    path = write_metaimage(tmp_path / f"scan{suffix}", voxels, SHEARED_RAS, compressed)
    volume = read_volume(path)
    assert np.array_equal(volume.voxels_kji, voxels)
    assert volume.voxels_kji.dtype == voxels.dtype
    image = SimpleITK.ReadImage(str(path))
    lps = image.TransformContinuousIndexToPhysicalPoint((5, 4, 3))
    assert np.allclose(volume.geometry.ijk_to([[5, 4, 3]], "lps")[0], lps, atol=1e-6)
    assert np.allclose(volume.geometry.ijk_to_ras, SHEARED_RAS)


def test_big_endian_files_are_turned_round(tmp_path):
    voxels = some_voxels()
    big = nibabel.Nifti1Header(endianness=">")
    big.set_data_dtype(np.int16)
    nifti = nibabel.Nifti1Image(voxels.transpose(2, 1, 0).astype(">i2"), OBLIQUE_RAS, big)
    nibabel.save(nifti, tmp_path / "big.nii")
    header = {"endian": "big", "encoding": "raw"}
    nrrd.write(str(tmp_path / "big.nrrd"), voxels.astype(">i2"), header, index_order="C")
    (tmp_path / "big.mha").write_bytes(
        b"NDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
        b"BinaryDataByteOrderMSB = True\nElementDataFile = LOCAL\n" + voxels.astype(">i2").tobytes()
    )
    for name in ("big.nii", "big.nrrd", "big.mha"):
        volume = read_volume(tmp_path / name)
        assert volume.voxels_kji.dtype == np.dtype("=i2")
        assert np.array_equal(volume.voxels_kji, voxels)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_every_encoding_of_nrrd_is_read(tmp_path, encoding):
    voxels = some_voxels()
    path = write_nrrd(tmp_path / "scan.nrrd", voxels, encoding=encoding)
    assert np.array_equal(read_volume(path).voxels_kji, voxels)


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "RAS", "LAS"])
def test_nrrd_in_other_patient_spaces_lands_at_the_same_place(tmp_path, space):
    signs = (1, 1, 1) if space.lower() in ("right-anterior-superior", "ras") else (-1, 1, 1)
    directions = np.diag(signs) @ OBLIQUE_RAS[:3, :3]
    origin = np.diag(signs) @ OBLIQUE_RAS[:3, 3]
    path = write_nrrd(tmp_path / "scan.nrrd", some_voxels(), **{
        "space": space, "space directions": directions.T, "space origin": origin,
    })  # fmt: skip
    assert np.allclose(read_volume(path).geometry.ijk_to_ras, OBLIQUE_RAS)


def test_nrrd_with_spacings_alone_is_placed_as_itk_places_it(tmp_path):
    path = tmp_path / "scan.nrrd"
    nrrd.write(str(path), some_voxels(), {"spacings": [0.5, 0.7, 3.0]}, index_order="C")
    volume = read_volume(path)
    assert volume.geometry.axis_codes == "LPS"
    assert np.allclose(volume.geometry.spacing, (0.5, 0.7, 3.0))
    assert np.allclose(
        volume.geometry.ijk_to_lps[:3, :3].ravel(),
        np.diag(SimpleITK.ReadImage(str(path)).GetSpacing()).ravel(),
    )


def test_real_files_lie_where_itk_and_nibabel_put_them(shared_data):
    for name in ("mr/brain1_image.nrrd", "orient/oblique_FLAIR.nrrd", "dicom/ct_liver_dcmqi_spine.nrrd"):
        image = SimpleITK.ReadImage(str(shared_data / name))
        volume = read_volume(shared_data / name)
        corner = np.array(volume.geometry.shape_ijk) - 1.0
        lps = image.TransformContinuousIndexToPhysicalPoint(corner.tolist())
        assert np.allclose(volume.geometry.ijk_to([corner], "lps")[0], lps, atol=1e-6)
        assert np.array_equal(volume.voxels_kji, SimpleITK.GetArrayViewFromImage(image))
    for path in sorted(shared_data.glob("**/*.nii.gz")):
        image = nibabel.load(path)
        volume = read_volume(path)
        assert np.array_equal(volume.geometry.ijk_to_ras, image.affine)
        assert np.allclose(volume.voxels_kji, image.get_fdata().transpose(2, 1, 0), rtol=1e-6)
    flair = [
        read_volume(shared_data / "orient" / f"oblique_FLAIR{suffix}") for suffix in (".nrrd", ".nii.gz")
    ]
    assert flair[0].geometry.same_grid(flair[1].geometry, 0.01)
    assert np.array_equal(flair[0].voxels_kji, flair[1].voxels_kji)


def test_scaled_nifti_becomes_int16_when_whole_and_float32_when_not(tmp_path):
    stored = some_voxels(dtype=np.int16)
    for slope, intercept, dtype in (
        (1, -1024, np.int16),
        (2, 5, np.int16),
        (100, 0, np.int32),
        (0.5, 1, np.float32),
    ):
        image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), OBLIQUE_RAS)
        image.header.set_slope_inter(slope, intercept)
        image.to_filename(tmp_path / "scaled.nii")
        raw = bytearray((tmp_path / "scaled.nii").read_bytes())
        raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
        raw[352:] = stored.tobytes()
        (tmp_path / "scaled.nii").write_bytes(raw)
        volume = read_volume(tmp_path / "scaled.nii")
        assert volume.voxels_kji.dtype == dtype
        assert np.allclose(volume.voxels_kji, stored.astype(float) * slope + intercept)


def test_micrometres_and_metres_become_millimetres(tmp_path):
    path = tmp_path / "small.nii"
    image = nibabel.Nifti1Image(some_voxels().transpose(2, 1, 0), np.diag([500.0, 500, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
    assert np.allclose(read_volume(path).geometry.spacing, (0.5, 0.5, 1))


def test_a_4d_nifti_asks_which_volume(tmp_path):
    voxels = some_voxels((3, 4, 5, 6))  # t, k, j, i
    path = tmp_path / "time.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(3, 2, 1, 0), OBLIQUE_RAS), path)
    with raises("series-needed", VolumeError, count=3):
        read_volume(path)
    with raises("no-such-series", VolumeError, series="4"):
        read_volume(path, "4")
    assert np.array_equal(read_volume(path, "2").voxels_kji, voxels[1])
    assert [s.number for s in list_series(path)] == [1, 2, 3]


def test_axes_of_length_one_beyond_space_do_not_count(tmp_path):
    voxels = some_voxels()
    path = tmp_path / "flat.nii"
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0)[..., None, None], OBLIQUE_RAS), path)
    assert np.array_equal(read_volume(path).voxels_kji, voxels)


def test_vectors_and_complex_numbers_are_refused(tmp_path):
    path = tmp_path / "vectors.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 1, 3), np.float32), np.eye(4)), path)
    with raises("unsupported-axes", VolumeError):
        read_volume(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), path)
    with raises("unsupported-voxel-type", VolumeError):
        read_volume(path)


def test_colour_volumes_are_read_as_colour(tmp_path):
    colour = some_voxels((4, 5, 6, 3), np.uint8)
    header = {"kinds": ["RGB-color", "domain", "domain", "domain"], "space": "LPS", "space origin": [0, 0, 0]}
    header["space directions"] = np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    nrrd.write(str(tmp_path / "c.nrrd"), colour, header, index_order="C")
    records = np.zeros((6, 5, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for n, name in enumerate("RGB"):
        records[name] = colour[..., n].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(records, np.eye(4)), tmp_path / "c.nii")
    image = SimpleITK.GetImageFromArray(colour, isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "c.mha"))
    for name in ("c.nrrd", "c.nii", "c.mha"):
        volume = read_volume(tmp_path / name)
        assert volume.is_colour
        assert np.array_equal(volume.voxels_kji, colour)
    assert SliceStack.along(read_volume(tmp_path / "c.nrrd")).image_hw(0).shape == (5, 6, 3)


def test_several_values_per_voxel_ask_which(tmp_path):
    values = some_voxels((4, 5, 6, 2), np.float32)
    header = {"kinds": ["vector", "domain", "domain", "domain"], "space": "LPS"}
    header["space directions"] = np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    nrrd.write(str(tmp_path / "v.nrrd"), values, header, index_order="C")
    with raises("series-needed", VolumeError, count=2):
        read_volume(tmp_path / "v.nrrd")
    assert np.array_equal(read_volume(tmp_path / "v.nrrd", "2").voxels_kji, values[..., 1])


@pytest.mark.parametrize(("write", "suffix"), [*WRITERS, (write_metaimage, ".mha")])
def test_single_slices_are_volumes(tmp_path, write, suffix):
    voxels = some_voxels((1, 5, 6))
    volume = read_volume(write(tmp_path / f"one{suffix}", voxels))
    assert np.array_equal(volume.voxels_kji, voxels)
    assert len(SliceStack.along(volume, "k")) == 1


def test_two_dimensional_files_are_volumes_of_one_slice(tmp_path):
    pixels = some_voxels((5, 6))
    nrrd.write(str(tmp_path / "flat.nrrd"), pixels, {"spacings": [0.5, 0.7]}, index_order="C")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), str(tmp_path / "flat.mha"))
    nibabel.save(nibabel.Nifti1Image(pixels.T, np.eye(4)), tmp_path / "flat.nii")
    for name in ("flat.nrrd", "flat.mha", "flat.nii"):
        assert np.array_equal(read_volume(tmp_path / name).voxels_kji, pixels[np.newaxis])


def test_a_singular_nifti_is_refused(tmp_path):
    path = write_nifti(tmp_path / "bad.nii", some_voxels(), np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[280:328] = bytes(48)  # sform
    path.write_bytes(raw)
    with raises("invalid-spacing", GeometryError, spacing_mm=[0.0, 0.0, 0.0]):
        read_volume(path)


# Pictures


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey.png", some_voxels((5, 6), np.uint8)),
        ("grey.tif", some_voxels((5, 6), np.uint8)),
        ("deep.png", some_voxels((5, 6), np.uint16)),
        ("deep.tif", some_voxels((5, 6), np.uint16)),
        ("real.tif", some_voxels((5, 6), np.float32)),
        ("colour.png", some_voxels((5, 6, 3), np.uint8)),
        ("colour.tif", some_voxels((5, 6, 3), np.uint8)),
        ("colour.bmp", some_voxels((5, 6, 3), np.uint8)),
    ],
)
def test_pictures_are_volumes_of_one_slice(tmp_path, name, pixels):
    volume = read_volume(write_picture(tmp_path / name, pixels))
    assert volume.is_picture
    assert volume.voxels_kji.dtype == pixels.dtype
    assert np.array_equal(volume.voxels_kji[0], pixels)
    assert np.array_equal(SliceStack.along(volume, "axial").image_hw(0), pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_is_read_whatever_its_compression(tmp_path, compression):
    for pixels in (some_voxels((5, 6), np.uint16), some_voxels((5, 6, 3), np.uint8)):
        path = write_picture(tmp_path / "a.tif", pixels, compression=compression)
        assert np.array_equal(read_volume(path).voxels_kji[0], pixels)


def test_alpha_is_dropped_and_grey_stored_as_colour_is_grey(tmp_path):
    colour = some_voxels((5, 6, 4), np.uint8)
    assert np.array_equal(
        read_volume(write_picture(tmp_path / "a.png", colour)).voxels_kji[0], colour[..., :3]
    )
    grey = np.repeat(colour[..., :1], 3, axis=2)
    assert np.array_equal(read_volume(write_picture(tmp_path / "b.png", grey)).voxels_kji[0], grey[..., 0])


def test_a_palette_is_colour_as_an_image_and_numbers_as_labels(tmp_path):
    from PIL import Image

    indices = (np.arange(30).reshape(5, 6) % 3).astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "labels.png")
    assert read_volume(tmp_path / "labels.png").voxels_kji[0, 0, 1].tolist() == [255, 0, 0]
    assert np.array_equal(read_segmentation(tmp_path / "labels.png").labels_kji()[0], indices)


def test_a_tiff_of_several_pages_is_a_stack(tmp_path):
    import tifffile

    pages = some_voxels((4, 5, 6), np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    volume = read_volume(tmp_path / "pages.tif")
    assert np.array_equal(volume.voxels_kji, pages)
    assert not volume.is_picture


def test_a_folder_of_pictures_is_a_set_and_not_a_volume(tmp_path):
    write_picture(tmp_path / "b.png", some_voxels((5, 6), np.uint8))
    write_picture(tmp_path / "a.png", some_voxels((7, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    images = read_images(tmp_path)
    assert [image.name for image in images] == ["a", "b"]
    with raises("folder-of-pictures", VolumeError):
        read_volume(tmp_path)


# NPZ, and what cannot be read


def test_lesion_blocks_open_with_their_labels(shared_data):
    for path in sorted((shared_data / "ct" / "recist").glob("*.npz")):
        volume, labels = read_volume(path), read_segmentation(path)
        assert volume.modality == "CT"
        assert volume.geometry.same_grid(labels.geometry)
        assert labels["1"].mask_kji.any()


def test_an_npz_with_pickled_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "bad.npz", imgs=np.array([{"a": 1}], dtype=object))
    with raises("unsupported-axes", VolumeError):
        read_volume(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with raises("array-missing", VolumeError, array="imgs"):
        read_volume(tmp_path / "other.npz")


def test_everything_in_the_shared_data_opens(shared_data):
    for path in sorted(shared_data.glob("**/*")):
        if path.suffix in (".gz", ".nrrd", ".npz") or (
            path.suffix in (".png", ".jpg") and "nerve" not in str(path)
        ):
            volume = read_volume(path)
            assert volume.voxels_kji.size > 0
            assert volume.source == path


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.nii", b"", {"code": "empty-file"}),
        ("text.nrrd", b"hello", {"code": "unreadable-file", "kind": "NRRD"}),
        ("text.dcm", b"hello there", {"code": "not-dicom"}),
        ("text.png", b"hello", {"code": "unreadable-file", "kind": "a picture"}),
        ("text.mha", b"hello", {"code": "not-metaimage"}),
        ("text.docx", b"hello", {"code": "unknown-format"}),
        (
            "gone.nhdr",
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: no.raw\n\n",
            {"code": "no-such-file"},
        ),
        (
            "huge.nrrd",
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9999 9999 9999\nencoding: gzip\n\nx",
            {"code": "volume-too-large", "sizes": [9999, 9999, 9999]},
        ),
        (
            "long.nrrd",
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 999 99 99\nencoding: gzip\n\nx",
            {"code": "truncated", "sizes": [999, 99, 99]},
        ),
    ],
)
def test_files_that_are_not_volumes_are_refused_with_the_reason(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with raises(**problem, error_type=MedSAM2Error):
        read_volume(tmp_path / name)


def test_paths_that_lead_nowhere_are_reported(tmp_path):
    with raises("no-such-file", VolumeError):
        read_volume(tmp_path / "none.nii")
    with raises("no-dicom-images", VolumeError):
        read_volume(tmp_path)
    with raises("no-pictures", VolumeError):
        read_images(tmp_path)


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing(tmp_path):
    import tracemalloc

    path = write_nifti(tmp_path / "lie.nii.gz", some_voxels())
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[42:48] = np.array([2000, 2000, 1500], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    tracemalloc.start()
    with raises("truncated", VolumeError):
        read_volume(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_bomb_does_not_grow_beyond_the_size_in_the_header(tmp_path):
    path = tmp_path / "bomb.nrrd"
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: gzip\n\n"
    path.write_bytes(header + gzip.compress(bytes(50_000_000)))
    import tracemalloc

    tracemalloc.start()
    assert read_volume(path).voxels_kji.shape == (2, 2, 2)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_geometry_for_pictures_has_no_place_in_the_patient(tmp_path):
    volume = read_volume(write_picture(tmp_path / "grey.png", some_voxels((5, 6), np.uint8)))
    assert volume.metadata["orientation_known"] is False
    assert volume.geometry.same_grid(Geometry.for_picture(5, 6))
