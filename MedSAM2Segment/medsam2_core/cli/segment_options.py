"""The options of `medsam2 segment`: what they are called, take and tell about themselves."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Axis(str, Enum):
    """What slices are stacked along."""

    axial = "axial"
    sagittal = "sagittal"
    coronal = "coronal"
    i = "i"
    j = "j"
    k = "k"


class SpaceName(str, Enum):
    """The space numbers are given in."""

    ijk = "ijk"
    ras = "ras"
    lps = "lps"


class Memory(str, Enum):
    """Which slices the model remembers."""

    recent = "recent"
    self_sorting = "self-sorting"


class Zoom(str, Enum):
    """Whether the model looks at a region around the object."""

    auto = "auto"
    off = "off"


_PROMPTS = "Prompts (each belongs to the --object typed before it)"
_WORK = "How to work"
_RESULT = "Result"

VolumeArgument = Annotated[
    Path, typer.Argument(help="NRRD, NIfTI, MetaImage, DICOM, PNG, JPEG or TIFF file, or a DICOM folder.")
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help=".seg.nrrd (keeps everything), .nii.gz, .nrrd, .mha; .png for a picture.",
        rich_help_panel=_RESULT,
    ),
]  # fmt: skip
ModelOption = Annotated[
    str, typer.Option(help="A name from `medsam2 models list`, or a checkpoint file.", rich_help_panel=_WORK)
]
BoxOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="I0,J0,I1,J1@K",
        help="A box around the object on slice K: the two remaining axes in their order, then the slice. "
        "For --axis sagittal of a volume stored along i: J0,K0,J1,K1@I. "
        "Or two opposite corners: X0,Y0,Z0,X1,Y1,Z1.",
        rich_help_panel=_PROMPTS,
    ),
]
PointOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y,Z[,+|-]",
        help="A click on the object, or with - beside it.",
        rich_help_panel=_PROMPTS,
    ),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="A label map on the volume's grid: the label of the object's name, or its only one.",
        rich_help_panel=_PROMPTS,
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="Prompts as JSON.", rich_help_panel=_PROMPTS),
]
ObjectOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Start an object of this name; prompts before the first --object are its own too.",
        rich_help_panel=_PROMPTS,
    ),
]
AxisOption = Annotated[
    Axis, typer.Option(help="The plane of the slices, or an array axis.", rich_help_panel=_WORK)
]
SpaceOption = Annotated[
    SpaceName, typer.Option(help="What --box, --point and --range are given in.", rich_help_panel=_PROMPTS)
]
WindowOption = Annotated[
    str,
    typer.Option(
        metavar="W,L|PRESET",
        help="Width and level, or abdomen, lung, brain, mediastinum, bone, auto.",
        rich_help_panel=_WORK,
    ),
]
RangeOption = Annotated[
    str | None,
    typer.Option(metavar="A:B", help="Only these slices, counted as K of a box is.", rich_help_panel=_WORK),
]
MemoryOption = Annotated[
    Memory, typer.Option(help="Which slices the model remembers.", rich_help_panel=_WORK)
]
ZoomOption = Annotated[Zoom, typer.Option(help="Look at a region around the object.", rich_help_panel=_WORK)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_WORK)]
PrecisionOption = Annotated[
    str, typer.Option(help="auto, fp32, bf16, fp16: what the model computes in.", rich_help_panel=_WORK)
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE.yaml",
        help="Of a checkpoint file: its SAM 2 configuration, where it is not recognised.",
        rich_help_panel=_WORK,
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Side of the square the model sees, a multiple of 32: smaller is faster and needs less memory.",
        rich_help_panel=_WORK,
    ),
]
SeriesOption = Annotated[
    str | None, typer.Option(help="Number or UID, where VOLUME holds several series.", rich_help_panel=_WORK)
]
PictureOption = Annotated[
    Path | None, typer.Option(metavar="PNG", help="Also write a montage of slices.", rich_help_panel=_RESULT)
]
ProbabilitiesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="NRRD",
        help="Also write how sure the model is of every voxel, for `medsam2 export --kind fractional`.",
        rich_help_panel=_RESULT,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=_RESULT)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=_RESULT)]
