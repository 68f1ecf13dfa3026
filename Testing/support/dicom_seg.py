"""DICOM segmentations as plain highdicom writes them, and what was put in."""

from dataclasses import dataclass, field
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from support.small_files import a_dicom_slice, some_voxels

TISSUE = Code("85756007", "SCT", "Tissue")
LIVER = Code("10200004", "SCT", "Liver")
KIDNEY = Code("64033007", "SCT", "Kidney")
LEFT = Code("7771000", "SCT", "Left")
ABDOMEN = Code("818983003", "SCT", "Abdomen")
SHAPE_KJI = (9, 37, 41)  # odd sizes: bits of neighbouring frames share bytes
_FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.300"


@dataclass
class Part:
    """A segment to be written."""

    mask_kji: np.ndarray
    label: str = "Liver"
    code: Code = LIVER
    category: Code = TISSUE
    rgb: tuple[int, int, int] | None = (221, 130, 101)
    algorithm: str = "SEMIAUTOMATIC"
    name: str = "Some Program"
    parameters: dict = field(default_factory=dict)
    tracking: tuple[str, str] | None = None
    regions: list = field(default_factory=list)


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Two that do not overlap, on slices 2 to 6 of 9; slice 4 holds neither."""
    first, second = np.zeros(SHAPE_KJI, bool), np.zeros(SHAPE_KJI, bool)
    first[2:7, 2:29, 1:16] = True
    second[3:6, 4:30, 17:40] = True
    first[4] = second[4] = False
    return first, second


def source_images(shape_kji=SHAPE_KJI, step_mm: float = 2.0) -> list:
    """Headers and pixels of the CT series the segments lie on."""
    images = []
    for k, pixels in enumerate(some_voxels(shape_kji)):
        image = a_dicom_slice(pixels, (-20, -30, 100 + step_mm * k), k + 1)
        image.FrameOfReferenceUID = _FRAME_OF_REFERENCE
        image.SliceThickness = step_mm
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
            setattr(image, keyword, "")
        for keyword in ("StudyID", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"):
            setattr(image, keyword, "")
        images.append(image)
    return images


def a_seg(
    parts: list[Part], kind: str = "BINARY", images: list | None = None, **options
) -> hd.seg.Segmentation:
    """A SEG of those segments; ``options`` go to highdicom."""
    images = source_images(parts[0].mask_kji.shape) if images is None else images
    pixels = np.stack([part.mask_kji for part in parts], axis=-1)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(parts) + 1)).max(axis=-1)
    pixels = pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    if kind == "LABELMAP" and len(parts) > 255:
        raise ValueError("more segments than 8 bits number: give pixels")
    given = {
        "source_images": images,
        "pixel_array": pixels,
        "segmentation_type": kind,
        "segment_descriptions": [_description(n, part) for n, part in enumerate(parts, start=1)],
        "series_instance_uid": hd.UID(),
        "series_number": 7,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "Somebody",
        "manufacturer_model_name": "Some Program",
        "software_versions": "1",
        "device_serial_number": "1",
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }
    return hd.seg.Segmentation(**(given | options))


def write(path: Path, parts: list[Part], kind: str = "BINARY", **options) -> Path:
    """The same as a file."""
    a_seg(parts, kind, **options).save_as(path)
    return path


def _description(number: int, part: Part) -> hd.seg.SegmentDescription:
    made = None
    if part.algorithm != "MANUAL":
        made = hd.AlgorithmIdentificationSequence(
            part.name,
            pydicom.sr.codedict.codes.DCM.ArtificialIntelligence,
            "1.0",
            parameters=part.parameters or None,
        )
    colour = None if part.rgb is None else hd.color.CIELabColor.from_rgb(*part.rgb)
    return hd.seg.SegmentDescription(
        number,
        part.label,
        part.category,
        part.code,
        part.algorithm,
        made,
        tracking_id=part.tracking[0] if part.tracking else None,
        tracking_uid=part.tracking[1] if part.tracking else None,
        anatomic_regions=part.regions or None,
        display_color=colour,
    )
