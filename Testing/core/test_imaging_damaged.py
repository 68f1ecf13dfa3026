"""Truncated and mutated files of every format: a volume, or one clear line.

Never a traceback, a hang or a flood of memory.
"""

import io
import json
import logging
import os
import resource
import struct
import time
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
from medsam2_core.errors import MedSAM2Error, MissingPackageError, VolumeError
from medsam2_core.imaging import files
from medsam2_core.imaging.reading import list_series, read_segmentation, read_volume
from pydicom.encaps import encapsulate
from support.errors import raises
from support.small_files import (
    OBLIQUE_RAS,
    a_dicom_slice,
    some_voxels,
    write_dicom,
    write_metaimage,
    write_nifti,
    write_nrrd,
    write_picture,
    write_series,
)

LOGGERS = ("nibabel.global", "pydicom", "tifffile", "PIL")
CASES = 60  # of each of the 21 kinds below: 1,260 in the normal suite
SLOWEST = 5.0  # seconds for a file of a few kilobytes, on a busy machine
STRANGE_NUMBERS = [
    b"0",
    b"-1",
    b"99999999",
    b"1e308",
    b"nan",
    b"-inf",
    b"3.7",
    b"4294967296",
    b"x",
    b"",
    b"9" * 25,
]


def a_nifti(path):
    return write_nifti(path / "a.nii", some_voxels())


def a_packed_nifti(path):
    return write_nifti(path / "a.nii.gz", some_voxels(), scl_slope=2.0, scl_inter=0.5)


def a_nifti_of_four_axes(path):
    voxels = some_voxels((3, 4, 5, 6))
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(3, 2, 1, 0), OBLIQUE_RAS), path / "a.nii")
    return path / "a.nii"


def a_nrrd(path):
    return write_nrrd(path / "a.nrrd", some_voxels())


def a_raw_nrrd(path):
    return write_nrrd(path / "a.nrrd", some_voxels(), encoding="raw")


def a_text_nrrd(path):
    return write_nrrd(path / "a.nrrd", some_voxels((2, 3, 4)), encoding="ascii")


def a_segmentation(path):
    header = {
        "Segment0_ID": "S0",
        "Segment0_Name": "liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
    }
    return write_nrrd(path / "a.seg.nrrd", some_voxels(dtype=np.uint8) % 2, **header)


def a_metaimage(path):
    return write_metaimage(path / "a.mha", some_voxels())


def a_raw_metaimage(path):
    return write_metaimage(path / "a.mha", some_voxels(), compressed=False)


def a_png(path):
    return write_picture(path / "a.png", some_voxels((9, 8), np.uint16))


def a_jpeg(path):
    return write_picture(path / "a.jpg", some_voxels((16, 16, 3), np.uint8))


def a_tiff(path):
    return write_picture(path / "a.tif", some_voxels((9, 8), np.uint16), compression="tiff_lzw")


def a_tiff_of_two_pages(path):
    import tifffile

    tifffile.imwrite(
        path / "a.tif", some_voxels((2, 9, 8), np.float32), photometric="minisblack", compression="zlib"
    )
    return path / "a.tif"


def an_npz(path):
    np.savez_compressed(path / "a.npz", imgs=some_voxels(dtype=np.uint8), spacing=np.ones(3))
    return path / "a.npz"


def a_dicom(path):
    return write_dicom(path / "a.dcm", a_dicom_slice(some_voxels((5, 6))))


def a_series(path):
    return write_series(path / "series", some_voxels((3, 5, 6)))


def an_rle_dicom(path):
    dataset = a_dicom_slice(some_voxels((5, 6)))
    dataset.compress(pydicom.uid.RLELossless)
    return write_dicom(path / "a.dcm", dataset)


def a_jpegls_dicom(path):
    dataset = a_dicom_slice(some_voxels((16, 16), np.uint16))
    dataset.compress(pydicom.uid.JPEGLSLossless)
    return write_dicom(path / "a.dcm", dataset)


def a_jpeg2000_dicom(path):
    return encapsulated(path, "JPEG2000", pydicom.uid.JPEG2000Lossless)


def a_jpeg_dicom(path):
    return encapsulated(path, "JPEG", pydicom.uid.JPEGBaseline8Bit)


def encapsulated(path, pillow_format, syntax):
    from PIL import Image

    pixels = some_voxels((16, 16), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, pillow_format)
    dataset = a_dicom_slice(pixels)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    return write_dicom(path / "a.dcm", dataset)


def an_enhanced_dicom(path):
    voxels = some_voxels((3, 5, 6))
    dataset = a_dicom_slice(
        voxels[0], ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None
    )
    dataset.NumberOfFrames = 3
    dataset.PixelData = voxels.tobytes()
    dataset.PerFrameFunctionalGroupsSequence = [a_functional_group(k) for k in range(3)]
    return write_dicom(path / "a.dcm", dataset)


def a_functional_group(k):
    group, position, orientation, measures = (pydicom.Dataset() for _ in range(4))
    position.ImagePositionPatient = [0, 0, 2 * k]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.5, 0.5]
    group.PlanePositionSequence, group.PlaneOrientationSequence = [position], [orientation]
    group.PixelMeasuresSequence = [measures]
    return group


KINDS = [
    *(a_nifti, a_packed_nifti, a_nifti_of_four_axes, a_nrrd, a_raw_nrrd, a_text_nrrd, a_segmentation),
    *(a_metaimage, a_raw_metaimage, a_png, a_jpeg, a_tiff, a_tiff_of_two_pages, an_npz),
    *(a_dicom, a_series, an_rle_dicom, a_jpegls_dicom, a_jpeg2000_dicom, a_jpeg_dicom, an_enhanced_dicom),
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, make, campaign, capfd, record_property):
    rng = np.random.default_rng(KINDS.index(make))
    path = make(tmp_path)
    target = path if path.is_file() else sorted(path.iterdir())[1]
    whole = target.read_bytes()
    read_volume(path, "1")  # sound before it is damaged
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    record_property("mutated inputs", CASES * campaign)
    for _ in range(CASES * campaign):
        target.write_bytes(damaged(whole, rng))
        started = time.perf_counter()
        refused += opens_or_is_refused(path)
        assert time.perf_counter() - started < SLOWEST
    assert refused > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # kB
    capfd.readouterr()  # what C libraries print about damage is not ours to judge


def opens_or_is_refused(path) -> bool:
    refused = False
    for open_it in (
        lambda: read_volume(path, "1"),
        lambda: list_series(path),
        lambda: read_segmentation(path),
    ):
        try:
            opened = open_it()
            if hasattr(opened, "content_key"):
                assert np.isfinite(opened.geometry.ijk_to_ras).all()
                assert len(opened.content_key) == 64
        except MedSAM2Error as error:
            refused = True
            assert 0 < len(str(error)) < 1500
            assert "Traceback" not in str(error)
            json.dumps(str(error))
    return refused


def damaged(whole: bytes, rng) -> bytes:
    """One to three of: cut off, cut out, flip, overwrite, double; half of them in the header."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        if len(data) < 2:
            break
        reach = min(len(data), 512) if rng.random() < 0.5 else len(data)
        place = int(rng.integers(reach))
        match rng.integers(6):
            case 0:
                del data[place:]
            case 1:
                del data[place : place + int(rng.integers(1, 30))]
            case 2:
                data[place] ^= 1 << int(rng.integers(8))
            case 3:
                data[place : place + 4] = rng.bytes(4)
            case 4:
                data[place:place] = data[place : place + 16]
            case 5:
                replace_a_number(data, rng)
    return bytes(data)


def replace_a_number(data: bytearray, rng) -> None:
    """Put a strange number in the place of one that is written as text, if there is any."""
    digits = [n for n, byte in enumerate(data[:2000]) if 48 <= byte < 58]
    if digits:
        start = digits[int(rng.integers(len(digits)))]
        data[start : start + 1] = STRANGE_NUMBERS[int(rng.integers(len(STRANGE_NUMBERS)))]


# The boundary to the libraries ------------------------------------------------------------------------------


def test_readers_that_overlap_leave_logging_and_warnings_as_they_were(tmp_path):
    levels, filters = [logging.getLogger(name).level for name in LOGGERS], list(warnings.filters)
    first, second = files.reading(tmp_path, "one"), files.reading(tmp_path, "other")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.getLogger("pydicom").level > logging.CRITICAL  # the other still reads
    second.__exit__(None, None, None)
    assert [logging.getLogger(name).level for name in LOGGERS] == levels
    assert list(warnings.filters) == filters


def test_a_bug_of_this_package_is_not_called_a_damaged_file(tmp_path):
    for damage in (ValueError("x"), KeyError("x"), MemoryError(), json.JSONDecodeError("x", "", 0)):
        with raises("unreadable-file", VolumeError, path=str(tmp_path)), files.reading(tmp_path, "NRRD"):
            raise damage
    with raises("unreadable-file", VolumeError), files.reading(tmp_path, "DICOM"):
        _ = pydicom.Dataset().Rows  # an attribute the file lacks
    bugs = {
        "files.no_such_function()": AttributeError,
        "files.chosen(None)": TypeError,
        "no_such_name": NameError,
        "assert False": AssertionError,
    }
    for code, kind in bugs.items():
        ours = compile(code, "ours.py", "exec")
        with pytest.raises(kind), files.reading(tmp_path, "NRRD"):
            exec(ours, {"__name__": "medsam2_core.imaging.ours", "files": files})


def test_a_library_that_is_not_installed_is_named(tmp_path):
    missing = raises("missing-package", MissingPackageError, package="no_such_library")
    with missing, files.reading(tmp_path, "NIfTI"):
        import no_such_library  # noqa: F401


# What readers used to take for something else ---------------------------------------------------------------


def nrrd_file(path, directions, kinds=None):
    lines = ["NRRD0005", "type: uchar", "dimension: 3", "sizes: 5 4 3", "space: left-posterior-superior"]
    lines += [f"space directions: {directions}", "encoding: raw"] + ([f"kinds: {kinds}"] if kinds else [])
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + bytes(60))
    return path


@pytest.mark.parametrize("kinds", [None, "domain domain domain"])
@pytest.mark.parametrize("direction", ["(nan,nan,nan)", "(nan,0,0)", "(inf,0,0)"])
def test_a_nrrd_axis_with_a_direction_that_is_no_number_is_not_a_list_of_volumes(tmp_path, kinds, direction):
    path = nrrd_file(tmp_path / "scan.nrrd", f"{direction} (0,1,0) (0,0,1)", kinds)
    for read in (read_volume, list_series, read_segmentation):
        with raises("invalid-numbers", field="space directions", path=str(path)):
            read(path)


def test_a_nrrd_axis_without_a_direction_still_is_one(tmp_path):
    assert len(list_series(nrrd_file(tmp_path / "scan.nrrd", "none (1,0,0) (0,1,0)"))) == 5


def nifti_file(path, spacing, shape=(5, 4, 3)):
    """A NIfTI without sform and qform, its spacing changed in the raw header."""
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[80:92] = struct.pack("<3f", *spacing)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("spacing", [[1, 0, 1], [0, 0, 0], [1, 1, float("inf")]])
def test_a_nifti_spacing_of_zero_is_refused_instead_of_taken_for_one(tmp_path, spacing):
    with raises("invalid-spacing", spacing_mm=spacing):
        read_volume(nifti_file(tmp_path / "scan.nii", spacing))


def test_one_nifti_slice_needs_no_thickness(tmp_path):
    read = read_volume(nifti_file(tmp_path / "slice.nii", (2, 3, 0), (5, 4, 1)))
    assert read.geometry.spacing.tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    "address", ["https://host/scan.nii.gz", "s3://bucket/scan.nrrd", "file:///scan.nrrd"]
)
def test_addresses_are_not_taken_for_missing_files(address):
    for read in (read_volume, read_segmentation):
        with raises("url-not-read", scheme=address.partition(":")[0]):
            read(address)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["pipe", "pipe.nii.gz", "pipe.nrrd", "pipe.dcm"])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (read_volume, read_segmentation, list_series):
        with raises("not-a-file", path=str(tmp_path / name)):
            read(tmp_path / name)
