"""DICOM: every slice lands where its own header says, or the series is refused with the reason."""

import numpy as np
import pydicom
import pytest
from medsam2_core.errors import GeometryError, VolumeError
from medsam2_core.imaging.reading import list_series, read_images, read_volume
from support.errors import raises
from support.small_files import a_dicom_slice, some_voxels, write_dicom, write_series

SERIES = [
    "ct_body_j2k",
    "ct_gantry_tilt_14",
    "ct_liver_dcmqi",
    "ct_oblique_synth",
    "mr_cor_philips",
    "mr_enhanced_siemens",
    "mr_jpegls",
    "mr_nonisotropic",
    "mr_oblique_hitachi",
    "mr_rle",
    "mr_sag_ge",
]


def placed_frames(folder):
    """(pixels, position, orientation, spacing) of every frame, straight from its own header."""
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        groups = dataset.get("PerFrameFunctionalGroupsSequence")
        if groups is None:
            slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
            values = dataset.pixel_array * float(slope) + float(intercept)
            yield values, dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
        else:
            for pixels, group in zip(dataset.pixel_array, groups, strict=True):
                yield (
                    pixels,
                    group.PlanePositionSequence[0].ImagePositionPatient,
                    group.PlaneOrientationSequence[0].ImageOrientationPatient,
                    group.PixelMeasuresSequence[0].PixelSpacing,
                )


@pytest.mark.parametrize("name", SERIES)
def test_every_pixel_of_a_real_series_is_where_its_own_header_puts_it(shared_data, name):
    volume = read_volume(shared_data / "dicom" / name)
    assert volume.modality == name[:2].upper()
    seen = set()
    for pixels, position, orientation, spacing in placed_frames(shared_data / "dicom" / name):
        origin, axes = np.array(position, float), np.array(orientation, float)
        row, column = pixels.shape[0] - 1, pixels.shape[1] - 1
        corners = np.array([[0, 0], [column, 0], [0, row], [column, row]])  # x, y
        lps = origin + corners[:, :1] * axes[:3] * spacing[1] + corners[:, 1:] * axes[3:] * spacing[0]
        ijk = volume.geometry.ijk_from(lps, "lps")
        expected = np.column_stack([corners, np.full(4, np.rint(ijk[0, 2]))])
        off = np.abs(ijk - expected) * volume.geometry.spacing
        assert off.max() < 0.06  # mm
        k = round(float(ijk[0, 2]))
        seen.add(k)
        assert np.allclose(volume.voxels_kji[k], pixels, rtol=1e-6, atol=1e-4)
    assert seen == set(range(volume.voxels_kji.shape[0]))


def test_a_tilted_gantry_is_kept_as_shear(shared_data):
    volume = read_volume(shared_data / "dicom" / "ct_gantry_tilt_14")
    assert volume.geometry.is_sheared
    step = volume.geometry.directions[:, 2]
    normal = np.cross(volume.geometry.directions[:, 0], volume.geometry.directions[:, 1])
    assert np.degrees(np.arccos(abs(step @ normal))) == pytest.approx(14, abs=0.1)


def test_whole_rescaling_gives_int16_and_fractions_float32(shared_data):
    assert read_volume(shared_data / "dicom" / "ct_body_j2k").voxels_kji.dtype == np.int16
    assert read_volume(shared_data / "dicom" / "mr_nonisotropic").voxels_kji.dtype == np.float32


def test_an_ultrasound_clip_is_a_stack_of_colour_frames(shared_data):
    path = shared_data / "us" / "dicom" / "us_multiframe_ybr.dcm"
    clip = read_volume(path)
    assert clip.modality == "US"
    assert clip.voxels_kji.shape == (30, 240, 320, 3)
    # The file's calibration is of 640 columns but it has 320: taking it would halve every size.
    assert clip.geometry.spacing.tolist() == [1, 1, 1]
    grey = clip.voxels_kji.astype(int)
    assert np.abs(grey[..., 0] - grey[..., 1]).mean() < 8  # YBR became RGB: B-mode is nearly grey
    assert not clip.metadata["orientation_known"]


def test_the_segmentation_object_is_refused_as_a_volume(shared_data):
    found = ["a segmentation (SEG), to be read as labels"]
    with raises("no-dicom-images", VolumeError, found=found):
        read_volume(shared_data / "dicom" / "ct_liver_dcmqi_SEG.dcm")


def test_a_folder_of_several_series_lists_them_and_opens_the_chosen(shared_data):
    folder = shared_data / "dicom"
    series = list_series(folder)
    assert [s.number for s in series] == list(range(1, len(SERIES)))
    # mr_jpegls and mr_rle are the same instances in two encodings, so they share positions in one series.
    with raises("series-needed", VolumeError) as refused:
        read_volume(folder)
    assert refused.value.fields["known"] == [str(s) for s in series]
    assert all(s.uid in str(s) for s in series)
    assert len(str(refused.value)) < 400 + len(str(folder)), "long lists are those of medsam2 info"
    tilted = next(s for s in series if s.shape_ijk == (512, 512, 4))
    for choice in (str(tilted.number), tilted.uid):
        assert read_volume(folder, choice).geometry.is_sheared
    with raises("no-such-series", VolumeError):
        read_volume(folder, "99")


def test_slices_are_ordered_by_position_whatever_their_names(tmp_path):
    voxels = some_voxels((7, 5, 6))
    volume = read_volume(write_series(tmp_path / "s", voxels))
    assert np.array_equal(volume.voxels_kji, voxels)
    assert np.allclose(volume.geometry.spacing, (0.5, 0.75, 2))
    assert len(volume.metadata["slice_files"]) == 7


def test_a_missing_slice_is_named(tmp_path):
    positions = [(0, 0, 2.0 * k) for k in range(8) if k != 3]
    folder = write_series(tmp_path / "s", some_voxels((7, 5, 6)), positions)
    with raises("slices-missing", GeometryError, spacing_mm=2, gaps_mm=[4], after=[3]):
        read_volume(folder)


def test_doubled_slices_are_named(tmp_path):
    positions = [(0, 0, 2.0 * k) for k in (0, 1, 2, 2, 3, 4)]
    folder = write_series(tmp_path / "s", some_voxels((6, 5, 6)), positions)
    with raises("slices-doubled", GeometryError, count=1, positions_lps=[[0, 0, 4]]):
        read_volume(folder)


def test_the_same_file_twice_counts_once(tmp_path):
    voxels = some_voxels((5, 5, 6))
    folder = write_series(tmp_path / "s", voxels)
    (folder / "copy.dcm").write_bytes((folder / "002.dcm").read_bytes())
    assert np.array_equal(read_volume(folder).voxels_kji, voxels)


def test_uneven_slices_are_refused(tmp_path):
    positions = [(0, 0, z) for z in (0, 2, 4.4, 6.6, 8.8, 10)]
    folder = write_series(tmp_path / "s", some_voxels((6, 5, 6)), positions)
    with raises("slices-uneven", GeometryError):
        read_volume(folder)


def ramp(heights):
    """Slices whose voxels all hold ten times their height in mm."""
    return np.stack([np.full((5, 6), round(10 * z), np.int16) for z in heights])


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ((0, 2, 4, 8, 10, 12), (0, 2, 4, 6, 8, 10, 12)),
        ((0, 2, 4.4, 6.6, 8.8, 10), (0, 2, 4, 6, 8, 10)),
        ((0, 2, 6), (0, 2, 4, 6)),
    ],
)
def test_missing_and_uneven_slices_are_interpolated_on_request(tmp_path, heights, expected):
    folder = write_series(tmp_path / "s", ramp(heights), [(1, 2, z) for z in heights])
    read = read_volume(folder, irregular="resample")
    assert read.geometry.spacing[2] == pytest.approx(2)
    at = read.geometry.to_ras([[0, 0, k] for k in range(len(expected))])
    assert np.allclose(at, [(-1, -2, z) for z in expected], atol=1e-6)
    assert np.allclose(read.voxels_kji[:, 0, 0], [10 * z for z in expected], atol=1)
    assert read.metadata["irregular"] == "resample"
    assert "slice_files" not in read.metadata, "no slice is that of one file"


def test_uneven_slices_are_taken_as_they_are_on_request(tmp_path):
    heights = (0, 2, 4, 8, 10, 12)
    voxels = ramp(heights)
    folder = write_series(tmp_path / "s", voxels, [(0, 0, z) for z in heights])
    read = read_volume(folder, irregular="as-is")
    assert np.array_equal(read.voxels_kji, voxels)
    assert read.geometry.spacing[2] == pytest.approx(12 / 5)
    assert read.metadata["off_mm"] == pytest.approx(0.8), "slice 3 is at 4 mm, not at 4.8"
    assert len(read.metadata["slice_files"]) == 6


@pytest.mark.parametrize("how", ["resample", "as-is"])
def test_doubled_and_sideways_slices_are_refused_all_the_same(tmp_path, how):
    doubled = write_series(tmp_path / "d", some_voxels((6, 5, 6)), [(0, 0, z) for z in (0, 2, 4, 4, 6, 8)])
    with raises("slices-doubled", GeometryError):
        read_volume(doubled, irregular=how)
    sideways = [(5.0 if k == 3 else 0, 0, 2.0 * k) for k in range(6)]
    with raises("slices-uneven", GeometryError, off_mm=pytest.approx(5.0)):
        read_volume(write_series(tmp_path / "s", some_voxels((6, 5, 6)), sideways), irregular=how)


def test_an_even_series_is_read_as_ever_whatever_is_said_of_uneven_ones(tmp_path):
    voxels = some_voxels((4, 5, 6))
    read = read_volume(write_series(tmp_path / "s", voxels), irregular="resample")
    assert np.array_equal(read.voxels_kji, voxels)
    assert "irregular" not in read.metadata


def test_a_slice_moved_sideways_is_refused(tmp_path):
    positions = [(5.0 if k == 3 else 0, 0, 2.0 * k) for k in range(6)]
    folder = write_series(tmp_path / "s", some_voxels((6, 5, 6)), positions)
    with raises("slices-uneven", GeometryError, slice=4):
        read_volume(folder)


def test_echoes_at_the_same_positions_are_series_of_their_own(tmp_path):
    voxels = some_voxels((8, 5, 6))
    for echo in (0, 1):
        for k in range(4):
            dataset = a_dicom_slice(
                voxels[4 * echo + k], (0, 0, 3.0 * k), 4 * echo + k + 1, EchoTime=5.0 + echo
            )
            write_dicom(tmp_path / f"{echo}{k}.dcm", dataset)
    assert [s.shape_ijk for s in list_series(tmp_path)] == [(6, 5, 4)] * 2
    assert np.array_equal(read_volume(tmp_path, "2").voxels_kji, voxels[4:])
    uid = list_series(tmp_path)[0].uid
    with raises("no-such-series", VolumeError):
        read_volume(tmp_path, uid)


def test_a_localiser_of_three_planes_falls_into_three_stacks(tmp_path):
    planes = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])
    for n, plane in enumerate(planes):
        write_dicom(
            tmp_path / f"{n}.dcm",
            a_dicom_slice(some_voxels((5, 6)), number=n + 1, ImageOrientationPatient=plane),
        )
    assert len(list_series(tmp_path)) == 3
    assert read_volume(tmp_path, "2").geometry.plane_of_axis(2) == "coronal"


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype", "expected"),
    [
        (1, -1024, np.uint16, np.int16),
        (1, 0, np.uint16, np.int16),
        (20, 0, np.int16, np.int32),
        (0.5, 0, np.int16, np.float32),
    ],
)
def test_voxel_types_follow_slope_and_intercept(tmp_path, slope, intercept, dtype, expected):
    voxels = some_voxels((3, 5, 6), dtype)
    folder = write_series(tmp_path / "s", voxels, RescaleSlope=slope, RescaleIntercept=intercept)
    volume = read_volume(folder)
    assert volume.voxels_kji.dtype == expected
    assert np.allclose(volume.voxels_kji, voxels.astype(float) * slope + intercept)


def test_values_beyond_16_bits_widen_the_whole_volume(tmp_path):
    voxels = some_voxels((3, 5, 6), np.uint16)
    voxels[2, 0, 0] = 65000
    volume = read_volume(write_series(tmp_path / "s", voxels))
    assert volume.voxels_kji.dtype == np.int32
    assert np.array_equal(volume.voxels_kji, voxels)


def test_a_radiograph_stored_as_a_negative_is_turned_bright_for_dense(tmp_path):
    pixels = some_voxels((5, 6), np.uint16)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR", "ImagePositionPatient": None}
    volume = read_volume(write_dicom(tmp_path / "x.dcm", a_dicom_slice(pixels, **tags)))
    assert volume.is_picture
    assert np.array_equal(volume.voxels_kji[0], 65535 - pixels.astype(int))


def test_colour_pictures_without_a_place_are_pictures(tmp_path):
    tags = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "OP"}
    pixels = some_voxels((5, 6, 3), np.uint8)
    for n in (1, 2):
        write_dicom(tmp_path / f"{n}.dcm", a_dicom_slice(pixels, number=n, **tags))
    assert np.array_equal(read_volume(tmp_path / "1.dcm").voxels_kji[0], pixels)
    assert len(list_series(tmp_path)) == 2  # two pictures, not a stack
    assert len(read_images(tmp_path)) == 2


def test_calibrated_ultrasound_keeps_its_pixel_size(tmp_path):
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 5, 4
    tags = {"ImagePositionPatient": None, "PixelSpacing": None, "Modality": "US"}
    dataset = a_dicom_slice(some_voxels((5, 6), np.uint8), SequenceOfUltrasoundRegions=[region], **tags)
    volume = read_volume(write_dicom(tmp_path / "us.dcm", dataset))
    assert np.allclose(volume.geometry.spacing[:2], (0.2, 0.3))


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"PixelData": None}, "no-pixel-data"),
        ({"Rows": 500}, "unreadable-file"),
        ({"Rows": 0}, "size-not-positive"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "invalid-orientation"),
        ({"PixelSpacing": None}, "no-pixel-spacing"),
        ({"PixelSpacing": [0, 1]}, "invalid-spacing"),
        ({"NumberOfFrames": 1000}, "unreadable-file"),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, tags, code):
    dataset = a_dicom_slice(some_voxels((5, 6)), **tags)
    with raises(code, VolumeError):
        read_volume(write_dicom(tmp_path / "bad.dcm", dataset))


def test_a_missing_decoder_is_named(tmp_path):
    dataset = a_dicom_slice(some_voxels((5, 6)))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.106"  # JPIP, which nobody decodes
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    with raises("no-decoder", VolumeError):
        read_volume(write_dicom(tmp_path / "video.dcm", dataset))


def test_other_files_in_the_folder_do_not_disturb(tmp_path):
    voxels = some_voxels((4, 5, 6))
    folder = write_series(tmp_path / "s", voxels)
    (folder / "readme.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(bytes(200))
    assert np.array_equal(read_volume(folder).voxels_kji, voxels)
    (folder / "broken.dcm").write_bytes(b"garbage")
    with raises("not-dicom", VolumeError, path=str(folder / "broken.dcm")):
        read_volume(folder)


def a_jp2(pixels) -> bytearray:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000")
    return bytearray(stream.getvalue())


def test_a_jp2_box_of_no_length_does_not_hang(tmp_path):
    pixels = some_voxels((16, 16), np.uint8)
    whole = a_jp2(pixels)
    boxless = whole.copy()
    boxless[12:16] = bytes(4)
    lying = whole.copy()
    size = lying.find(b"\xff\x51") + 6
    lying[size : size + 4] = (60_000).to_bytes(4, "big")
    for frame, told in (
        (whole, None),
        (boxless, {"code": "damaged-codestream"}),
        (lying, {"code": "decoded-size-differs", "rows": 16, "columns": 16, "found": (16, 60000)}),
    ):
        dataset = a_dicom_slice(pixels)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
        dataset["PixelData"].VR = "OB"
        path = write_dicom(tmp_path / "a.dcm", dataset)
        if told is None:
            assert np.array_equal(read_volume(path).voxels_kji[0], pixels)
        else:
            with raises(error_type=VolumeError, **told):
                read_volume(path)
