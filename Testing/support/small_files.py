"""Tiny files of every format, made for the tests that need them."""

import datetime
from pathlib import Path

import numpy as np
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
OBLIQUE_RAS = np.array(
    [
        [-0.69, 0.20, 0.35, 12.5],
        [0.31, -0.64, 0.90, -40.25],
        [0.21, 0.44, 1.77, 7.0],
        [0, 0, 0, 1],
    ]
)


def some_voxels(shape_kji=(4, 5, 6), dtype=np.int16, seed=0) -> np.ndarray:
    """Random voxels that differ nearly everywhere."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 500, shape_kji).astype(dtype)
    if np.dtype(dtype).kind == "b":
        return rng.random(shape_kji) > 0.5
    information = np.iinfo(dtype)
    low, high = max(information.min, -2000), min(information.max, 2000)
    return rng.integers(low, high, shape_kji).astype(dtype)


def a_volume(shape_kji=(4, 5, 6), ijk_to_ras=None, dtype=np.int16, **more) -> Volume:
    """A volume in memory, axial, LPS axes, 1 mm, unless told otherwise."""
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) if ijk_to_ras is None else ijk_to_ras
    geometry = Geometry(matrix, tuple(shape_kji[::-1]))
    return Volume(some_voxels(shape_kji, dtype), geometry, **more)


def write_nifti(path: Path, voxels_kji: np.ndarray, ijk_to_ras=OBLIQUE_RAS, **header) -> Path:
    import nibabel

    voxels_ijk = np.moveaxis(voxels_kji, (0, 1, 2), (2, 1, 0))
    image = nibabel.Nifti1Image(voxels_ijk, np.asarray(ijk_to_ras), dtype=voxels_ijk.dtype)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def write_nrrd(path: Path, voxels_kji: np.ndarray, ijk_to_ras=OBLIQUE_RAS, **header) -> Path:
    import nrrd

    lps = np.diag([-1, -1, 1, 1]) @ np.asarray(ijk_to_ras)
    defaults = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
    }
    nrrd.write(str(path), voxels_kji, {**defaults, **header}, index_order="C")
    return path


def write_metaimage(
    path: Path, voxels_kji: np.ndarray, ijk_to_ras=OBLIQUE_RAS, compressed: bool = True
) -> Path:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(voxels_kji)
    lps = np.diag([-1, -1, 1, 1]) @ np.asarray(ijk_to_ras)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), compressed)
    return path


def a_dicom_slice(pixels: np.ndarray, position=(0.0, 0.0, 0.0), number: int = 1, **tags):
    """A classic CT slice as a pydicom dataset; ``tags`` replace or (None) remove attributes."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CT_STORAGE
    dataset.SOPClassUID = CT_STORAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
        f"1.2.826.0.1.3680043.8.498.{number}"
    )
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.100"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.200"
    dataset.Modality = "CT"
    dataset.StudyDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [float(value) for value in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.75, 0.5]
    dataset.SliceThickness = 2
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def write_dicom(path: Path, dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, voxels_kji: np.ndarray, positions=None, **tags) -> Path:
    """A folder with a slice per file, 2 mm apart along z unless told otherwise; file order is shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    if positions is None:
        positions = [(0.0, 0.0, 2.0 * k) for k in range(len(voxels_kji))]
    names = np.random.default_rng(1).permutation(len(positions))
    for k, (pixels, position) in enumerate(zip(voxels_kji, positions, strict=True)):
        dataset = a_dicom_slice(pixels, position, number=k + 1, **tags)
        write_dicom(folder / f"{names[k]:03d}.dcm", dataset)
    return folder


def write_picture(path: Path, pixels: np.ndarray, **options) -> Path:
    from PIL import Image

    Image.fromarray(pixels).save(path, **options)
    return path
