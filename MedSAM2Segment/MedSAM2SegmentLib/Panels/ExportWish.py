"""What the user wishes to be exported, and how, as plain values; and which files that makes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from medsam2_core.errors import ExportError

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
_LONGEST = 255  # bytes of a file's name
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
    agreed
        Of these files alone somebody has agreed that they are replaced.
    segmentation
        The node shown; empty: the one that was chosen.
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
    agreed: tuple[str, ...] = ()
    segmentation: str = ""


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


def fieldsOf(wish: ExportWish) -> dict[str, Any]:
    """The fields of the worker's request that the wish alone decides.

    ExportError when the file cannot have that name, or would replace one that nobody has agreed to lose.
    """
    files = filesOf(_whole(wish), wish)
    for path in files.values():
        _check(path)
    agreed = {str(Path(one)) for one in wish.agreed}
    taken = [path for path in files.values() if os.path.lexists(path)]
    unasked = [] if wish.overwrite else [path for path in taken if path not in agreed]
    if unasked:
        others = [PurePath(path).name for path in unasked[1:]]
        also = f", and beside it {' and '.join(others)}" if others else ""
        raise ExportError(
            f"{unasked[0]} exists already{also}: choose another name, or tick 'Replace existing files'"
        )
    fields: dict[str, Any] = {**files, "overwrite": bool(taken)}
    if wish.format == DICOM:
        fields.update(kind=wish.kind, generic=wish.generic)
        if wish.kind == "labelmap":
            fields["compression"] = wish.compression
        texts = {"series_description": wish.description.strip(), "creator": wish.creator.strip()}
        fields.update({name: text for name, text in texts.items() if text})
    return fields


def _whole(wish: ExportWish) -> str:
    """The path of the file, whole and with its ending. ExportError when it is none."""
    typed = wish.path.strip()
    if not typed:
        raise ExportError("Choose where to put the file first")
    if any(ord(one) < ord(" ") or "\ud800" <= one <= "\udfff" for one in typed):
        shown = typed.encode("unicode_escape").decode()[:80]
        raise ExportError(f"{shown}: name a file by letters that can be written on one line")
    path = os.path.expanduser(typed)
    isFolder = path.endswith(("/", os.sep)) or PurePath(path).name in ("", ".", "..")
    if isFolder:
        raise ExportError(f"{typed} is a folder: name a file in it")
    if not Path(path).is_absolute():
        raise ExportError(f"{path} is no whole path: choose a folder with Browse")
    return str(Path(withEnding(path, wish.format)))


def _check(path: str) -> None:
    """ExportError when no file can be called that."""
    name = PurePath(path).name
    if len(os.fsencode(name)) > _LONGEST:
        raise ExportError(f"{name[:40]}… is too long for the name of a file: name a file with a shorter one")
    if os.path.isdir(path):
        raise ExportError(f"{path} is a folder: name a file in it")
