"""Formats and options of an export, and the files it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from medsam2_core.errors import ExportError

from MedSAM2SegmentLib.i18n import _

DICOM, SEG_NRRD, NIFTI, NRRD = "dicom", "seg.nrrd", "nii.gz", "nrrd"
#: (value, label) of the formats.
FORMATS = (
    (DICOM, _("DICOM SEG")),
    (SEG_NRRD, _("Slicer segmentation (.seg.nrrd)")),
    (NIFTI, _("NIfTI label map (.nii.gz)")),
    (NRRD, _("NRRD label map (.nrrd)")),
)
#: How a DICOM SEG stores its voxels.
KINDS = (("binary", _("Binary: read everywhere")), ("labelmap", _("Label map: smaller, for new readers")))
#: Of a label map; all lossless.
COMPRESSIONS = (("none", _("None")), ("rle", "RLE"), ("jpeg-ls", "JPEG-LS"))
#: File format of the measurements; empty for none.
MEASUREMENTS = (("", _("None")), ("json", _("As JSON")), ("csv", _("As CSV")))
# Longer ones first, since .seg.nrrd ends in .nrrd.
_ENDINGS = {SEG_NRRD: ".seg.nrrd", NIFTI: ".nii.gz", NRRD: ".nrrd", DICOM: ".dcm"}
_KNOWN_ENDINGS = (*_ENDINGS.values(), ".nii", ".dicom", ".seg")
_LONGEST_NAME = 255  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, as chosen on the page.

    Attributes
    ----------
    format
        A value of FORMATS.
    path
        Path of the file; its ending is corrected.
    kind, compression, generic, description, creator, report
        For DICOM only: `generic` allows segments without a code, `report` adds a DICOM SR.
    measurements
        A value of MEASUREMENTS.
    overwrite
        Whether existing files may be replaced.
    confirmed
        Files that the user has agreed to replace in a dialog.
    segmentation
        ID of the node to export; empty for the chosen one.
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
    confirmed: tuple[str, ...] = ()
    segmentation: str = ""


def withEnding(path: str, format: str) -> str:
    """Return the path with the ending of a format, replacing that of another format."""
    if not PurePath(path).name:
        return path
    for ending in _KNOWN_ENDINGS:
        if path.lower().endswith(ending) and len(PurePath(path).name) > len(ending):
            path = path[: -len(ending)]
            break
    return path + _ENDINGS[format]


def outputFiles(out: str, options: ExportOptions) -> dict[str, str]:
    """Return the paths of all files to write, by field of the worker's request."""
    stem = out[: -len(_ENDINGS[options.format])]
    files = {"out": out}
    if options.measurements:
        files["measurements"] = f"{stem}_measurements.{options.measurements}"
    if options.report and options.format == DICOM:
        files["report"] = f"{stem}_SR.dcm"
    return files


def requestFields(options: ExportOptions) -> dict[str, Any]:
    """Return the fields of the worker's request that depend only on the options.

    Raises
    ------
    ExportError
        The name is invalid, or a file would be replaced without the user's consent.
    """
    files = outputFiles(_outputPath(options), options)
    for path in files.values():
        _checkName(path)
    existing = [path for path in files.values() if os.path.lexists(path)]
    confirmed = {str(Path(one)) for one in options.confirmed}
    unconfirmed = [] if options.overwrite else [path for path in existing if path not in confirmed]
    if unconfirmed:
        others = [PurePath(path).name for path in unconfirmed[1:]]
        also = _(", and beside it {names}").format(names=_(" and ").join(others)) if others else ""
        message = _(
            "{path} exists already{also}: choose another name, or tick 'Replace existing files'"
        ).format(path=unconfirmed[0], also=also)
        raise ExportError(message, code="output-exists", paths=unconfirmed)
    fields: dict[str, Any] = {**files, "overwrite": bool(existing)}
    if options.format == DICOM:
        fields.update(kind=options.kind, generic=options.generic)
        if options.kind == "labelmap":
            fields["compression"] = options.compression
        texts = {"series_description": options.description.strip(), "creator": options.creator.strip()}
        fields.update({name: text for name, text in texts.items() if text})
    return fields


def _outputPath(options: ExportOptions) -> str:
    """Return the absolute path of the file, with its ending. ExportError if it is invalid."""
    typed = options.path.strip()
    if not typed:
        raise ExportError(_("Choose where to put the file first"), code="output-missing")
    if any(ord(one) < ord(" ") or "\ud800" <= one <= "\udfff" for one in typed):
        shown = typed.encode("unicode_escape").decode()[:80]
        message = _("{path}: name a file by letters that can be written on one line").format(path=shown)
        raise ExportError(message, code="invalid-file-name", path=shown)
    path = os.path.expanduser(typed)
    if path.endswith(("/", os.sep)) or PurePath(path).name in ("", ".", ".."):
        raise _isFolder(typed)
    if not Path(path).is_absolute():
        message = _("{path} is not an absolute path: choose a folder with Browse").format(path=path)
        raise ExportError(message, code="relative-path", path=path)
    return str(Path(withEnding(path, options.format)))


def _checkName(path: str) -> None:
    name = PurePath(path).name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        message = _("{name}… is too long for the name of a file: name a file with a shorter one")
        raise ExportError(message.format(name=name[:40]), code="file-name-too-long", name=name)
    if os.path.isdir(path):
        raise _isFolder(path)


def _isFolder(path: str) -> ExportError:
    message = _("{path} is a folder: name a file in it").format(path=path)
    return ExportError(message, code="output-is-folder", path=path)
