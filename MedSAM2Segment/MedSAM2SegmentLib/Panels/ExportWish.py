"""What the user wishes to be exported, and how, as plain values; and which files that makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

DICOM, SEG_NRRD, NIFTI, NRRD = "dicom", "seg.nrrd", "nii.gz", "nrrd"
#: (value, label) of the formats.
FORMATS = (
    (DICOM, "DICOM SEG"),
    (SEG_NRRD, "Slicer segmentation (.seg.nrrd)"),
    (NIFTI, "NIfTI label map (.nii.gz)"),
    (NRRD, "NRRD label map (.nrrd)"),
)
#: How a DICOM SEG keeps its voxels.
KINDS = (("binary", "Binary: read everywhere"), ("labelmap", "Label map: smaller, for new readers"))
#: Of a label map; nothing is lost.
COMPRESSIONS = (("none", "None"), ("rle", "RLE"), ("jpeg-ls", "JPEG-LS"))
#: What is measured, and as what.
MEASUREMENTS = (("", "None"), ("json", "As JSON"), ("csv", "As CSV"))
# The longer ones first: .seg.nrrd ends in .nrrd.
_ENDINGS = {SEG_NRRD: ".seg.nrrd", NIFTI: ".nii.gz", NRRD: ".nrrd", DICOM: ".dcm"}
_ALL_ENDINGS = (*_ENDINGS.values(), ".nii", ".dicom", ".seg")


@dataclass(frozen=True)
class ExportWish:
    """What was filled in when *Export* was pressed.

    Attributes
    ----------
    format
        A value of FORMATS.
    path
        Where the file goes; its ending is put right.
    kind, compression, generic, description, creator, report
        For DICOM only; `generic` allows segments without a code, `report` wishes for a DICOM SR.
    measurements
        A value of MEASUREMENTS.
    overwrite
        Whether files that exist may be replaced.
    """

    format: str = SEG_NRRD
    path: str = ""
    kind: str = "binary"
    compression: str = "none"
    generic: bool = False
    description: str = ""
    creator: str = ""
    measurements: str = ""
    report: bool = False
    overwrite: bool = False


def withEnding(path: str, format: str) -> str:
    """The path with the ending of a format, in place of that of another one."""
    if not PurePath(path).name:
        return path
    for ending in _ALL_ENDINGS:
        if path.lower().endswith(ending) and len(PurePath(path).name) > len(ending):
            path = path[: -len(ending)]
            break
    return path + _ENDINGS[format]


def filesOf(out: str, wish: ExportWish) -> dict[str, str]:
    """The paths of all that is written, by their names in the worker's request."""
    stem = out[: -len(_ENDINGS[wish.format])]
    files = {"out": out}
    if wish.measurements:
        files["measurements"] = f"{stem}_measurements.{wish.measurements}"
    if wish.report and wish.format == DICOM:
        files["report"] = f"{stem}_SR.dcm"
    return files
