"""`medsam2 segment`: prompts on one slice in, the mask of the whole volume out."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam2_core.cli.ordered import in_order
from medsam2_core.cli.progress import slices_bar
from medsam2_core.cli.report import peak_memory_mb, print_table
from medsam2_core.errors import ExportError, PromptError

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session import Session


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
        help="Start an object of this name; prompts before the first one are its own too.",
        rich_help_panel=_PROMPTS,
    ),
]


@dataclass(frozen=True)
class _Job:
    """A command line that has been understood and checked; nothing slow has happened yet."""

    prompts: PromptSet
    first: int | None
    last: int | None


def segment(
    ctx: typer.Context,
    volume: VolumeArgument,
    out: OutOption,
    model: ModelOption = "embedded",
    box: BoxOption = None,
    point: PointOption = None,
    mask: MaskOption = None,
    prompts: PromptsOption = None,
    object: ObjectOption = None,  # noqa: A002, RUF100 - the option's name
    axis: Annotated[
        Axis, typer.Option(help="The plane of the slices, or an array axis.", rich_help_panel=_WORK)
    ] = Axis.axial,
    space: Annotated[
        SpaceName,
        typer.Option(help="What --box, --point and --range are given in.", rich_help_panel=_PROMPTS),
    ] = SpaceName.ijk,
    window: Annotated[
        str,
        typer.Option(
            metavar="W,L|PRESET",
            help="Width and level, or abdomen, lung, brain, mediastinum, bone, auto.",
            rich_help_panel=_WORK,
        ),
    ] = "auto",
    range: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Only these slices, counted as K of a box is.", rich_help_panel=_WORK
        ),
    ] = None,
    memory: Annotated[
        Memory, typer.Option(help="Which slices the model remembers.", rich_help_panel=_WORK)
    ] = Memory.recent,
    zoom: Annotated[
        Zoom, typer.Option(help="Look at a region around the object.", rich_help_panel=_WORK)
    ] = Zoom.auto,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_WORK)
    ] = "auto",
    series: Annotated[
        str | None,
        typer.Option(help="Number or UID, where VOLUME holds several series.", rich_help_panel=_WORK),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also write a montage of slices.", rich_help_panel=_RESULT),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=_RESULT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON.", rich_help_panel=_RESULT)
    ] = False,
) -> None:
    """Segment objects of a volume from boxes, clicks or masks on one or more slices."""
    from medsam2_core import export
    from medsam2_core.imaging.reading import read_volume
    from medsam2_core.imaging.slices import AxisStack

    started = time.perf_counter()
    opened = read_volume(volume, series)
    _check_free(out, picture, overwrite)
    export.check(out, opened.geometry, overwrite=overwrite)
    stack = AxisStack(opened, axis.value)
    job = _understood(in_order(ctx), prompts, stack, space.value, range)
    from medsam2_core.session import Session  # only now: torch takes seconds to load

    session = Session.open(
        opened,
        model=model,
        axis=axis.value,
        window=window,
        memory=memory.value,
        zoom=zoom.value,
        device=device,
    )
    session.apply(job.prompts)
    _propagate(session, job)
    segmentation = session.segmentation()
    notes = list(export.write(segmentation, out, overwrite=overwrite).notes)
    if picture is not None:
        from medsam2_core.export.picture import montage

        montage(
            session.stack, session.window, segmentation, picture, prompts=job.prompts, overwrite=overwrite
        )
    facts = {
        "volume": str(volume),
        "out": str(out),
        "picture": str(picture) if picture else None,
        "model": model,
        "axis": axis.value,
        "window": session.window.to_dict(),
        "objects": [_object_facts(segmentation, name, session) for name in segmentation.names],
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
        "notes": notes,
    }
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _understood(
    given: list[tuple[str, str]], file: Path | None, stack: Any, space: str, range_text: str | None
) -> _Job:
    from medsam2_core.cli.prompt_options import Frame, collect, slice_range
    from medsam2_core.imaging.geometry import Space
    from medsam2_core.prompts import PromptSet, validate

    frame = Frame(stack, Space.named(space))
    from_file = None
    if file is not None:
        try:
            from_file = PromptSet.from_json(file.read_bytes(), stack.volume.geometry)
        except OSError as error:
            raise PromptError(f"the prompts file {file} cannot be read: {error.strerror}") from error
    prompts = collect(given, from_file, frame)
    validate(prompts, stack)
    first, last = slice_range(range_text, frame)
    return _Job(prompts, first, last)


def _check_free(out: Path, picture: Path | None, overwrite: bool) -> None:
    """Refuse what could not be written before hours of work, not after them."""
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise ExportError(f"--picture {picture}: pictures are written as .png")
        if not picture.parent.is_dir():
            raise ExportError(f"--picture {picture}: the folder {picture.parent} does not exist")
        if picture.resolve() == out.resolve():
            raise ExportError(f"--picture {picture} is also --out: the one would replace the other")
    for path in (out, picture):
        if path is not None and path.exists() and not overwrite:
            raise ExportError(f"{path} exists already: choose another name, or add --overwrite")


def _propagate(session: Session, job: _Job) -> None:
    """Run it through the volume."""
    progress = session.propagate(first=job.first, last=job.last)
    with slices_bar("segmenting", progress.total) as update:
        for result in progress:
            update(progress.done, f"{result.object_id}, slice {result.n}")


def _object_facts(segmentation: Segmentation, name: str, session: Session) -> dict[str, Any]:
    segment = segmentation[name]
    confidence = {result.n: result.confidence for result in session.results(name) if result.mask_hw.any()}
    least = min(confidence, key=lambda n: confidence[n], default=None)
    return {
        "name": name,
        "voxels": segment.voxel_count,
        "millilitres": round(segmentation.volume_ml(name), 3),
        "slices": [] if segment.is_empty else _slices_of(segment, session),
        "confidence": round(sum(confidence.values()) / len(confidence), 3) if confidence else None,
        "least_confident_slice": None if least is None else _index_of(least, session),
    }


def _slices_of(segment: Any, session: Session) -> list[int]:
    """First and last array index along the stack that hold the object."""
    axis = session.stack.array_axis
    start = segment.offset_ijk[axis]
    return [start, start + segment.part_kji.shape[2 - axis] - 1]


def _index_of(n: int, session: Session) -> int:
    """Array index of a slice of the stack: the K a user would type."""
    return round(float(session.stack.to_ijk([[0, 0, n]])[0, session.stack.array_axis]))


def _print_for_people(facts: dict[str, Any]) -> None:
    rows = [
        (
            item["name"],
            f"{item['millilitres']:g} ml",
            f"{item['voxels']} voxels",
            "slices {} to {}".format(*item["slices"]) if item["slices"] else "nothing found",
            "" if item["confidence"] is None else f"confidence {item['confidence']:.2f}",
        )
        for item in facts["objects"]
    ]
    print_table(rows)
    memory = f", at most {facts['peak_memory_mb']:.0f} MB of memory" if facts["peak_memory_mb"] else ""
    print(f"{facts['out']}: written after {facts['seconds']:.1f} s{memory}")
    if facts["picture"]:
        print(f"{facts['picture']}: montage")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
