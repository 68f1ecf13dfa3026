"""`medsam2 segment`: prompts on one slice in, the mask of the whole volume out."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsam2_core.cli import segment_options as given
from medsam2_core.cli.ordered import in_order
from medsam2_core.cli.progress import slices_bar
from medsam2_core.cli.report import peak_memory_mb, print_table
from medsam2_core.cli.results import Files
from medsam2_core.errors import PromptError

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session import Session


@dataclass(frozen=True)
class _Job:
    """A command line that has been understood and checked; nothing slow has happened yet."""

    prompts: PromptSet
    first: int | None
    last: int | None


def segment(
    ctx: typer.Context,
    volume: given.VolumeArgument,
    out: given.OutOption,
    model: given.ModelOption = "embedded",
    box: given.BoxOption = None,
    point: given.PointOption = None,
    mask: given.MaskOption = None,
    prompts: given.PromptsOption = None,
    object: given.ObjectOption = None,
    axis: given.AxisOption = given.Axis.axial,
    space: given.SpaceOption = given.SpaceName.ijk,
    window: given.WindowOption = "auto",
    range: given.RangeOption = None,
    memory: given.MemoryOption = given.Memory.recent,
    zoom: given.ZoomOption = given.Zoom.auto,
    device: given.DeviceOption = "auto",
    precision: given.PrecisionOption = "auto",
    config: given.ConfigOption = None,
    image_size: given.ImageSizeOption = None,
    series: given.SeriesOption = None,
    picture: given.PictureOption = None,
    probabilities: given.ProbabilitiesOption = None,
    overwrite: given.OverwriteOption = False,
    as_json: given.JsonOption = False,
) -> None:
    """Segment objects of a volume from boxes, clicks or masks on one or more slices."""
    started = time.perf_counter()
    # The values of box, point, mask and object are taken from here: in the order they were typed.
    typed = in_order(ctx)
    masks = [text for option, text in typed if option == "mask"]
    from medsam2_core import atomic
    from medsam2_core.imaging.reading import read_volume
    from medsam2_core.imaging.slices import AxisStack

    settings = {"axis": axis.value, "window": window, "memory": memory.value, "zoom": zoom.value}
    settings["probabilities"] = probabilities is not None
    network = {"device": device, "precision": precision, "config": config, "image_size": image_size}
    files = Files(out, picture, probabilities, overwrite)
    with atomic.protect(volume, *masks, prompts, model, config):
        opened = read_volume(volume, series)
        files.check(opened.geometry)
        job = _understood(typed, prompts, AxisStack(opened, axis.value), space.value, range)

        from medsam2_core.export.dicom.coding import coded_by_name
        from medsam2_core.session import Session  # only now: torch takes seconds to load

        session = Session.open(opened, model, **settings, **network)
        session.apply(job.prompts)
        _propagate(session, job)
        segmentation = coded_by_name(session.segmentation())
        notes = files.write(session, segmentation, job.prompts)
    facts = {
        "volume": str(volume),
        **files.facts,
        **_facts(session, segmentation),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
        "notes": notes,
    }
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _understood(
    typed: list[tuple[str, str]], file: Path | None, stack: Any, space: str, range_text: str | None
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
    prompts = collect(typed, from_file, frame)
    validate(prompts, stack)
    first, last = slice_range(range_text, frame)
    return _Job(prompts, first, last)


def _propagate(session: Session, job: _Job) -> None:
    """Run it through the volume."""
    progress = session.propagate(first=job.first, last=job.last)
    with slices_bar("segmenting", progress.total) as update:
        for result in progress:
            update(progress.done, f"{result.object}, slice {result.n}")


def _facts(session: Session, segmentation: Segmentation) -> dict[str, Any]:
    return {
        "model": session.model.name,
        "slices": session.stack.key,
        "window": session.window.to_dict(),
        "objects": [_object_facts(segmentation, name, session) for name in segmentation.names],
    }


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
    Files.tell(facts)
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
