"""`medsam2 auto`: all classes of an Auto model in an image, a folder of images, or a volume: no prompt."""

from __future__ import annotations

import json
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam2_core.cli import segment_options as given
from medsam2_core.cli.progress import slices_bar
from medsam2_core.cli.report import peak_memory_mb, print_table
from medsam2_core.cli.results import Files
from medsam2_core.errors import ExportError, MedSAM2Error, VolumeError

if TYPE_CHECKING:
    from medsam2_core.auto.loading import AutoModel
    from medsam2_core.session import Session
    from medsam2_core.session.automatic import AutoPrediction


class Method(str, Enum):
    """How slices become a volume."""

    memory = "memory"
    slices = "slices"


def auto(
    input: Annotated[
        Path,
        typer.Argument(help="Image, volume, DICOM folder, or a folder of single pictures (PNG, JPEG, TIFF)."),
    ],
    model: Annotated[str, typer.Option(help="A .medsam2auto file, or its name in the list of Auto models.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=".seg.nrrd, .nii.gz, .nrrd, .mha, .png; for a folder of images, a folder."
        ),
    ],
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Only these classes, by name.")] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="Of a volume. memory: sure slices lead, the tracker fills in; slices: one by one."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Look at every so manieth slice; track between.")] = 1,
    flips: Annotated[
        bool, typer.Option("--flips", help="Average with the mirror image: slower, a little better.")
    ] = False,
    axis: Annotated[
        given.Axis | None, typer.Option(help="The plane of the slices; what the model was trained on.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="W,L|PRESET", help="What the model sees; as it was trained.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="FILE", help="The SAM 2 checkpoint the model was trained for.")
    ] = None,
    device: given.DeviceOption = "auto",
    precision: given.PrecisionOption = "auto",
    series: given.SeriesOption = None,
    picture: given.PictureOption = None,
    probabilities: given.ProbabilitiesOption = None,
    overwrite: given.OverwriteOption = False,
    as_json: given.JsonOption = False,
) -> None:
    """Segment without prompts, with a model from `medsam2 train auto`."""
    started = time.perf_counter()
    from medsam2_core import atomic

    wanted = None if classes is None else [name.strip() for name in classes.split(",")]
    from medsam2_core.auto.library import find

    path, card = find(model)
    card.chosen(wanted)  # an unknown class is told before anything is read
    way = method or Method.memory
    how = {
        "classes": wanted, "method": way.value, "every": every, "flips": flips,
        "axis": axis.value if axis is not None else None, "window": window,
    }  # fmt: skip
    network = {"base": base, "device": device, "precision": precision}
    if _is_folder_of_images(input):
        for option, beside in (("--picture", picture), ("--probabilities", probabilities)):
            if beside is not None:
                raise ExportError(f"{option} {beside}: for one image or volume only, {input} is a folder")
        with atomic.protect(*_images_of(input), path, base):
            facts = _folder(input, path, out, how, network, overwrite=overwrite)
    else:
        files = Files(out, picture, probabilities, overwrite)
        with atomic.protect(input, path, base):
            facts = _one(input, path, files, how, network, series)
    facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": peak_memory_mb()}
    print(json.dumps(facts, indent=2)) if as_json else _print_for_people(facts)


def _one(
    input: Path, path: Path, files: Files, how: dict[str, Any], network: dict[str, Any], series: str | None
) -> dict[str, Any]:
    from medsam2_core.auto.library import fits
    from medsam2_core.imaging.reading import read_volume

    volume = read_volume(input, series)
    files.check(volume.geometry)
    auto = _loaded(path, network)
    session, found = _segmented(volume, auto, {**how, "probabilities": files.probabilities is not None})
    segmentation = session.segmentation()
    notes = files.write(session, segmentation)
    if not fits(auto.card, is_picture=len(session.stack) == 1, modality=volume.modality):
        learned = "pictures" if auto.card.is_for_pictures else f"{auto.card.axis} slices"
        kind = f"{learned} {auto.card.modality}".rstrip()
        notes.append(f"the Auto model was trained on {kind}, and this is something else: look twice")
    return {
        "input": str(input),
        **files.facts,
        "model": auto.card.name,
        "base": auto.card.base,
        "classes": [_class_facts(one, segmentation) for one in found],
        "notes": notes,
    }


def _folder(
    input: Path, path: Path, out: Path, how: dict[str, Any], network: dict[str, Any], *, overwrite: bool
) -> dict[str, Any]:
    """Each image of a folder by itself; one that fails does not keep the others."""
    from medsam2_core import export
    from medsam2_core.imaging.reading import read_volume

    if out.suffix:
        raise ExportError(f"--out {out}: {input} is a folder of images, so name a folder for the results")
    images = _images_of(input)
    auto = _loaded(path, network)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"--out {out} cannot be a folder: {error.strerror or error}") from error
    rows, problems = [], []
    with slices_bar("segmenting", len(images)) as update:
        for number, image in enumerate(images, start=1):
            target = out / f"{image.name}.seg.nrrd"
            try:
                volume = read_volume(image)
                export.check(target, volume.geometry, overwrite=overwrite)
                session, found = _segmented(volume, auto, how)
                segmentation = session.segmentation()
                export.write(segmentation, target, overwrite=overwrite)
            except MedSAM2Error as error:
                problems.append(f"{image.name}: {error}")
            else:
                classes = [_class_facts(one, segmentation) for one in found]
                rows.append({"input": str(image), "out": str(target), "classes": classes})
            update(number, image.name)
    if not rows:
        raise VolumeError(f"{input}: none of {len(images)} images could be segmented; {problems[0]}")
    return {"input": str(input), "out": str(out), "model": auto.card.name, "images": rows, "notes": problems}


def _loaded(path: Path, network: dict[str, Any]) -> AutoModel:
    from medsam2_core.auto.loading import load_auto
    from medsam2_core.auto.model_file import read_card
    from medsam2_core.engine.model import load_model

    base, device, precision = network["base"], network["device"], network["precision"]
    model = None
    if base is not None:
        model = load_model(base, device, precision, image_size=read_card(path).image_size)
    return load_auto(path, model, device, precision)


def _segmented(volume: Any, auto: AutoModel, how: dict[str, Any]) -> tuple[Session, list[AutoPrediction]]:
    from medsam2_core.auto.volumes import VolumeOptions
    from medsam2_core.session import Session

    card = auto.card
    axis = how["axis"] or ("axial" if card.is_for_pictures else card.axis)
    if len(volume.voxels_kji) == 1:
        axis = "k"  # a picture has one slice, whatever plane was learned from
    session = Session.open(
        volume, auto.model, axis=axis, window=how["window"] or card.window,
        probabilities=how.get("probabilities", False),
    )  # fmt: skip
    options = VolumeOptions(how["method"], how["every"])
    with slices_bar("segmenting", len(session.stack)) as update:
        found = session.auto(
            auto, how["classes"], options=options, flips=how["flips"],
            progress=lambda done, total: update(min(done, len(session.stack)), ""),
        )  # fmt: skip
    return session, found


def _is_folder_of_images(path: Path) -> bool:
    from medsam2_core.imaging import dicom

    if not path.is_dir():
        return False
    files = [one for one in path.rglob("*") if one.is_file()]
    return not any(dicom.is_dicom(one) for one in files) and bool(_images_of(path))


def _images_of(folder: Path) -> list[Path]:
    from medsam2_core.auto.fewshot.pairs import LABEL_ENDINGS
    from medsam2_core.imaging import pictures

    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in pictures.SUFFIXES)
    # Labels beside the images, as for training, are no images.
    return [one for one in found if not one.stem.lower().endswith(LABEL_ENDINGS)]


def _class_facts(one: AutoPrediction, segmentation: Any) -> dict[str, Any]:
    if one.name not in segmentation.names:
        return {"name": one.name, "voxels": 0, "millilitres": 0.0, "confidence": 0.0}
    segment = segmentation[one.name]
    return {
        "name": one.name,
        "voxels": segment.voxel_count,
        "millilitres": round(segmentation.volume_ml(one.name), 3),
        "confidence": round(one.confidence, 3),
    }


def _print_for_people(facts: dict[str, Any]) -> None:
    rows = []
    for item in facts.get("images", [facts]):
        name = Path(item["input"]).name if "images" in facts else None
        for one in item["classes"]:
            found = f"{one['voxels']} voxels" if one["voxels"] else "not found"
            sure = f"confidence {one['confidence']:.2f}" if one["voxels"] else ""
            rows.append(tuple(filter(None, (name, one["name"], found, sure))))
    print_table([(*row, *[""] * (4 - len(row))) for row in rows])
    print(f"{facts['out']}: written after {facts['seconds']:.1f} s")
    if "images" not in facts:
        Files.tell(facts)
    for note in facts["notes"]:
        typer.echo(f"note: {note}", err=True)
