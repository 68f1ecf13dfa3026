"""The options of `medsam2 train auto`: what they are called, take and tell about themselves."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from medsam2_core.cli.segment_options import Axis

__all__ = ["Axis"]

_DATA = "Data"
_HOW = "How to train"


class Decoder(str, Enum):
    """What of SAM 2's mask decoder is trained."""

    frozen = "frozen"
    lora = "lora"


class Kind(str, Enum):
    """Which predictor is trained."""

    hierarchical = "hierarchical"
    linear = "linear"


class StartChoice(str, Enum):
    """What training begins with."""

    auto = "auto"
    none = "none"


DataArgument = Annotated[
    Path,
    typer.Argument(
        help="Folder of images and labels (NAME_img.png + NAME_seg.png, NAME.nrrd + NAME.seg.nrrd, "
        "images/ + labels/), or a CSV with the columns image,label[,split][,group]."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The .medsam2auto file to write.")]
BaseOption = Annotated[str, typer.Option(help="The SAM 2 to train for: a name or a checkpoint.")]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B | 1=A,2=B", help="Classes by name, or names for numbers.", rich_help_panel=_DATA
    ),
]
ShotsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Train on so many images (or volumes), drawn by --seed.", rich_help_panel=_DATA),
]
MinutesOption = Annotated[float, typer.Option(help="Time for everything.", rich_help_panel=_HOW)]
DecoderOption = Annotated[
    Decoder, typer.Option(help="Train low-rank updates of the decoder too.", rich_help_panel=_HOW)
]
TextureOption = Annotated[
    bool,
    typer.Option(
        "--texture/--no-texture", help="Train a small network beside the encoder.", rich_help_panel=_HOW
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")]
KindOption = Annotated[
    Kind, typer.Option(help="linear: one block on the coarsest features.", rich_help_panel=_HOW)
]
HeadsOption = Annotated[
    str,
    typer.Option(metavar="box,mask,embedding", help="Prompts that are predicted.", rich_help_panel=_HOW),
]
StartOption = Annotated[
    StartChoice,
    typer.Option(help="Begin with the start that ships, or with nothing.", rich_help_panel=_HOW),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(help="Folds to estimate Dice with; 0 for none.", rich_help_panel=_HOW),
]
StepsOption = Annotated[
    int | None, typer.Option(help="Steps, instead of what --minutes allows.", rich_help_panel=_HOW)
]
AxisOption = Annotated[
    Axis, typer.Option(help="The plane volumes are cut along, or an array axis.", rich_help_panel=_DATA)
]
WindowOption = Annotated[
    str, typer.Option(metavar="W,L|PRESET", help="What the model sees.", rich_help_panel=_DATA)
]
SkipBadOption = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out images with problems.", rich_help_panel=_DATA),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything that is random.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]
ImageSizeOption = Annotated[int | None, typer.Option(help="Side of what the model sees.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a model that exists.")]
JsonProgressOption = Annotated[
    bool, typer.Option("--json-progress", help="One JSON line for every bit of progress.")
]
