"""Damaged series and segmentations: a clear error, or a SEG that is right and valid before dciodvfy."""

import random
import shutil

import numpy as np
import pydicom
import pytest
from medsam2_core.errors import MedSAM2Error
from medsam2_core.export.dicom.options import Compression, Kind
from medsam2_core.export.dicom.seg import SegOptions, write_seg
from medsam2_core.export.dicom.source import read_source
from medsam2_core.export.writing import write
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.segmentation import Segmentation
from medsam2_core.imaging.segmentation_files import read_segmentation
from support.dicom_validators import validator_errors
from support.small_files import some_voxels, write_series

SHAPE_KJI = (6, 11, 13)
_TEXTS = ["", "x", "ä" * 70, "1\\2", "0Y", "20301332", "\x00", "-1", "nan", "1e400", "2.25.0", "1.2.3.", "M"]
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "Rows", "Columns"),
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "SeriesNumber", "Modality", "SpecificCharacterSet", "NumberOfFrames"),
    *("InstanceNumber", "StudyDescription", "PatientWeight", "ReferringPhysicianName"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A series and a segmentation of it that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("sound")
    write_series(folder / "series", some_voxels(SHAPE_KJI), PatientID="7", PatientName="A^B", PatientSex="F")
    geometry = read_source(folder / "series").geometry
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, SHAPE_KJI)
    masks = {"liver": labels == 1, "spleen": labels == 2}
    write(Segmentation.from_masks(geometry, masks), folder / "x.seg.nrrd")
    return folder


def damage_a_header(rng, files):
    path = rng.choice(files)
    dataset = pydicom.dcmread(path)
    for _ in range(rng.choice([1, 1, 2, 4])):
        keyword = rng.choice(_TAGS)
        if rng.random() < 0.4 and keyword in dataset:
            delattr(dataset, keyword)
            continue
        try:
            if keyword in dataset and rng.random() < 0.3 and dataset[keyword].VM == 3:
                setattr(dataset, keyword, [rng.uniform(-9, 9) for _ in range(3)])
            else:
                setattr(dataset, keyword, rng.choice(_TEXTS))
        except (ValueError, TypeError, OverflowError):
            continue
    try:
        dataset.save_as(path)
    except (ValueError, TypeError, AttributeError, OverflowError, KeyError, OSError):
        path.write_bytes(b"")


def damage_all_headers(rng, files):
    keyword, value = rng.choice(_TAGS), rng.choice(_TEXTS)
    for path in files:
        dataset = pydicom.dcmread(path)
        try:
            setattr(dataset, keyword, value)
            dataset.save_as(path)
        except (ValueError, TypeError, AttributeError, OverflowError, OSError):
            path.write_bytes(b"")


def damage_bytes(rng, files):
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def cut_a_file(rng, files):
    path = rng.choice(files)
    path.write_bytes(path.read_bytes()[: rng.randrange(400)])


def take_a_file_away(rng, files):
    rng.choice(files).unlink()


def double_a_file(rng, files):
    path = rng.choice(files)
    dataset = pydicom.dcmread(path)
    if rng.random() < 0.5:
        dataset.SOPInstanceUID = "1.2.3.4.5"
    if rng.random() < 0.5:
        dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(path.with_name("again.dcm"))


def put_something_else_in(rng, files):
    name = rng.choice(["readme.txt", "DICOMDIR", "x.dcm", "y"])
    files[0].with_name(name).write_bytes(rng.randbytes(rng.randrange(500)))


def leave_it(_rng, _files):
    """Only the segmentation is damaged, or nothing."""


def tilt_it(rng, files):
    shift = rng.uniform(-1, 1)
    for path in files:
        dataset = pydicom.dcmread(path)
        x, y, z = map(float, dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + shift * z, z]
        dataset.save_as(path)


SERIES = [
    *(damage_a_header, damage_a_header, damage_all_headers, damage_bytes, cut_a_file, take_a_file_away),
    *(double_a_file, put_something_else_in, leave_it, leave_it, tilt_it),
]


def a_mutated_segmentation(rng, sound, folder):
    """The file, perhaps damaged, or on another grid."""
    path = folder / "x.seg.nrrd"
    how = rng.random()
    if how < 0.5:
        return shutil.copy(sound / "x.seg.nrrd", path)
    if how < 0.7:
        data = bytearray((sound / "x.seg.nrrd").read_bytes())
        for _ in range(rng.choice([1, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        return path
    given = read_segmentation(sound / "x.seg.nrrd")
    matrix = given.geometry.ijk_to_ras.copy()
    if how < 0.8:
        matrix[:3, 3] += [rng.choice([0, 0.5, 3, 100]) for _ in range(3)]
    elif how < 0.9:
        matrix[:3, rng.randrange(3)] *= rng.choice([-1, 0.5, 2])
    moved = Geometry(matrix, given.geometry.shape_ijk)
    write(Segmentation.from_masks(moved, {one.name: one.mask_kji for one in given}), path)
    return path


def assert_right(written, given, source):
    """What is in the file is what was given, where it was given."""
    again = read_segmentation(written.path)
    for segment in written.segmentation:
        kept = again[segment.name]
        assert kept.voxel_count == segment.voxel_count
        k, j, i = np.nonzero(kept.mask_kji)
        places = source.geometry.to_ijk(again.geometry.to_ras(np.column_stack([i, j, k])))
        nearest = np.rint(places).astype(int)
        assert np.abs(places - nearest).max() < 0.05
        assert segment.mask_kji[nearest[:, 2], nearest[:, 1], nearest[:, 0]].all()
        if given.geometry.same_grid(source.geometry):
            assert np.array_equal(segment.mask_kji, given[segment.name].mask_kji)


@pytest.mark.parametrize("part", range(4))
def test_mutated_series_and_segmentations(sound, tmp_path, campaign, part, record_property):
    written_count = 0
    record_property("mutated inputs", 15 * campaign)
    for seed in range(15 * campaign):
        rng = random.Random(f"{part} {seed}")
        folder = tmp_path / str(seed)
        shutil.copytree(sound / "series", folder / "series")
        rng.choice(SERIES)(rng, sorted((folder / "series").iterdir()))
        options = SegOptions(kind=rng.choice([Kind.BINARY, Kind.LABELMAP]), most_lost=rng.choice([0.05, 0.5]))
        if options.kind is Kind.LABELMAP:
            options = SegOptions(kind=options.kind, compression=rng.choice(list(Compression)), most_lost=0.5)
        try:
            given = read_segmentation(a_mutated_segmentation(rng, sound, folder))
            source = read_source(folder / "series")
            written = write_seg(given, source, folder / "out.dcm", options)
        except MedSAM2Error as error:
            assert str(error), f"{part} {seed}: an error without words"
            assert not (folder / "out.dcm").exists()
            assert {path.name for path in folder.iterdir()} <= {"series", "x.seg.nrrd"}
        else:
            written_count += 1
            assert_right(written, given, source)
            # a patient's wrong ID
            kept = any(note.code == "invalid-identifiers-kept" for note in written.notes)
            assert kept or validator_errors(written.path) == [], f"{part} {seed}"
        shutil.rmtree(folder)
    assert written_count > 2
