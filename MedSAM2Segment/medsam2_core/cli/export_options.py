"""The options of `medsam2 export`: what they are called, take and tell about themselves."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class KindName(str, Enum):
    """How a SEG holds its segments; `export.dicom.options.Kind` without loading what comes with it."""

    binary = "binary"
    fractional = "fractional"
    labelmap = "labelmap"


class CompressionName(str, Enum):
    """How its pixels are packed; `export.dicom.options.Compression` likewise."""

    none = "none"
    rle = "rle"
    jpeg_ls = "jpeg-ls"


_DICOM = "DICOM (--out X.dcm)"
_RESULT = "Result"

SegmentationArgument = Annotated[
    Path | None,
    typer.Argument(help=".seg.nrrd, or any label map: NIfTI, NRRD, MetaImage, DICOM SEG, PNG."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help=".dcm for DICOM SEG; .seg.nrrd (keeps everything), .nii.gz, .nrrd, .mha.",
        rich_help_panel=_RESULT,
    ),
]
DicomOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The series it was drawn on: a folder, a file, or a .txt that lists files, one a line.",
        rich_help_panel=_DICOM,
    ),
]
SeriesOption = Annotated[
    str | None,
    typer.Option(help="Number or UID, where the folder holds several series.", rich_help_panel=_DICOM),
]
KindOption = Annotated[
    KindName,
    typer.Option(
        help="binary: read everywhere. fractional: probabilities. labelmap: smallest, for new readers.",
        rich_help_panel=_DICOM,
    ),
]
ProbabilitiesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="From `medsam2 segment --probabilities`, for fractional.", rich_help_panel=_DICOM
    ),
]
CompressionOption = Annotated[
    CompressionName,
    typer.Option(
        help="Of fractional and labelmap; nothing is lost. 3D Slicer reads rle, not jpeg-ls.",
        rich_help_panel=_DICOM,
    ),
]
SegmentsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="META.json",
        help="What each segment is: dcmqi's JSON, or {name: 'SCT^10200004^Liver'}.",
        rich_help_panel=_DICOM,
    ),
]
GenericOption = Annotated[
    bool,
    typer.Option(
        "--generic", help="Write segments that nobody has given a code as 'Tissue'.", rich_help_panel=_DICOM
    ),
]
ListTermsOption = Annotated[
    bool,
    typer.Option("--list-terms", help="List the names that have a code, and end.", rich_help_panel=_DICOM),
]
DescriptionOption = Annotated[
    str | None,
    typer.Option("--series-description", metavar="TEXT", help="Of the new series.", rich_help_panel=_DICOM),
]
NumberOption = Annotated[
    int | None,
    typer.Option(
        "--series-number",
        metavar="N",
        help="Of the new series; else 1000 more than the source's.",
        rich_help_panel=_DICOM,
    ),
]
CreatorOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Content creator, as Family^Given; else nobody is named.", rich_help_panel=_DICOM
    ),
]
MostLostOption = Annotated[
    float,
    typer.Option(
        metavar="PERCENT",
        min=0.0,
        max=100.0,
        help="Refuse when resampling to the series' grid costs an object more than this.",
        rich_help_panel=_DICOM,
    ),
]
MeasurementsOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Also write volumes and diameters (RECIST): .json or .csv.",
        rich_help_panel=_RESULT,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        metavar="X_SR.dcm",
        help="Also write them as DICOM SR (TID 1500) that refers to the SEG.",
        rich_help_panel=_RESULT,
    ),
]
DrawnOnOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json",
        help="The grid of the volume, if it was moved since it was read: {ijk_to_ras, shape_ijk}.",
        rich_help_panel=_DICOM,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=_RESULT)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=_RESULT)]
