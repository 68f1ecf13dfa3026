"""`medsam2 auto`: all classes of an Auto model in an image, a folder of images, or a volume; no prompts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import peak_memory_mb, print_json, print_notes, print_table, progress_bar
from medsam2_core.cli.options import (
    AsJson,
    AxisName,
    DeviceName,
    Overwrite,
    Picture,
    PrecisionName,
    ProbabilitiesOut,
    SeriesName,
)
from medsam2_core.cli.outputs import Outputs
from medsam2_core.errors import ExportError, MedSAM2Error, Note, VolumeError

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.session import Session
    from medsam2_core.session.automatic import AutoPrediction


@dataclass(frozen=True)
class Auto:
    """Segment without prompts, with a model from `medsam2 train auto`."""

    input: Annotated[
        Path,
        typer.Argument(help="Image, volume, DICOM folder, or a folder of images (PNG, JPEG, TIFF)."),
    ]
    model: Annotated[str, typer.Option(help="A .medsam2auto file, or the name of an Auto model.")]
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=".seg.nrrd, .nii.gz, .nrrd, .mha, .png; for a folder of images, a folder."
        ),
    ]
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Only these classes, by name.")] = None
    method: Annotated[
        Literal["memory", "slices"],
        typer.Option(
            help="How to segment a volume. memory: the most confident slices condition the propagation to "
            "the others; slices: each slice on its own."
        ),
    ] = "memory"
    every: Annotated[
        int,
        typer.Option(min=1, help="Predict prompts on every n-th slice only, and propagate to the others."),
    ] = 1
    flips: Annotated[
        bool, typer.Option("--flips", help="Average with the mirror image: slower, slightly more accurate.")
    ] = False
    axis: Annotated[
        AxisName | None, typer.Option(help="Plane of the slices; by default that of the training.")
    ] = None
    window: Annotated[
        str | None,
        typer.Option(metavar="W,L|PRESET", help="Intensity window; by default that of the training."),
    ] = None
    base: Annotated[
        str | None, typer.Option(metavar="FILE", help="The SAM 2 checkpoint that the model was trained for.")
    ] = None
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    series: SeriesName = None
    picture: Picture = None
    probabilities: ProbabilitiesOut = None
    overwrite: Overwrite = False
    as_json: AsJson = False

    def run(self) -> None:
        """Segment, write the files, and report."""
        started = time.perf_counter()
        from medsam2_core import atomic
        from medsam2_core.auto.library import find

        path, card = find(self.model)
        card.chosen(self._classes)  # an unknown class is an error before anything is read
        if _is_folder_of_images(self.input):
            images = _images_of(self.input)
            with atomic.protect(*images, path, self.base):
                facts, notes = self._segment_folder(images, path)
        else:
            with atomic.protect(self.input, path, self.base):
                facts, notes = self._segment_one(path)
        facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": peak_memory_mb()}
        if self.as_json:
            print_json(facts, notes)
        else:
            _print(facts)
            print_notes(notes)

    @property
    def _classes(self) -> list[str] | None:
        return None if self.classes is None else [name.strip() for name in self.classes.split(",")]

    def _segment_one(self, path: Path) -> tuple[dict[str, Any], list[Note]]:
        from medsam2_core.auto.library import fits
        from medsam2_core.imaging.reading import read_volume

        outputs = Outputs(self.out, self.picture, self.probabilities, self.overwrite)
        volume = read_volume(self.input, self.series)
        outputs.check(volume.geometry)
        auto = self._load(path)
        session, found = self._segment(volume, auto)
        segmentation = session.segmentation()
        notes = outputs.write(session, segmentation)
        card = auto.card
        if not fits(card, is_picture=len(session.stack) == 1, modality=volume.modality):
            images = "pictures" if card.is_for_pictures else f"{card.axis} slices"
            images = f"{images} {card.modality}".rstrip()
            notes.append(
                Note.warning(
                    "trained-on-other-images",
                    f"the Auto model was trained on other images ({images}): check the result",
                    axis=card.axis, modality=card.modality,
                )
            )  # fmt: skip
        facts = {
            "input": str(self.input),
            **outputs.facts,
            "model": card.name,
            "base": card.base,
            "classes": [_class_facts(one, segmentation) for one in found],
        }
        return facts, notes

    def _segment_folder(self, images: list[Path], path: Path) -> tuple[dict[str, Any], list[Note]]:
        """Segment each image on its own; one that fails does not keep the others."""
        from medsam2_core import export
        from medsam2_core.imaging.reading import read_volume

        self._check_folder()
        auto = self._load(path)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExportError(
                f"--out {self.out} cannot be made as a folder: {error.strerror or error}",
                code="output-not-writable", path=str(self.out),
            ) from error  # fmt: skip
        rows, failed = [], []
        with progress_bar("segmenting", len(images)) as update:
            for number, image in enumerate(images, start=1):
                target = self.out / f"{image.name}.seg.nrrd"
                try:
                    volume = read_volume(image)
                    export.check(target, volume.geometry, overwrite=self.overwrite)
                    session, found = self._segment(volume, auto)
                    segmentation = session.segmentation()
                    export.write(segmentation, target, overwrite=self.overwrite)
                except MedSAM2Error as error:
                    failed.append(
                        Note.warning(
                            "image-skipped", f"{image.name}: {error}", image=str(image), error=error.to_dict()
                        )
                    )
                else:
                    classes = [_class_facts(one, segmentation) for one in found]
                    rows.append({"input": str(image), "out": str(target), "classes": classes})
                update(number, image.name)
        if not rows:
            raise VolumeError(
                f"{self.input}: none of {len(images)} images could be segmented; {failed[0]}",
                code="no-image-segmented", path=str(self.input), images=len(images),
            )  # fmt: skip
        facts = {"input": str(self.input), "out": str(self.out), "model": auto.card.name, "images": rows}
        return facts, failed

    def _check_folder(self) -> None:
        for option, path in (("--picture", self.picture), ("--probabilities", self.probabilities)):
            if path is not None:
                raise ExportError(
                    f"{option} {path}: for one image or volume only, {self.input} is a folder",
                    code="option-for-one-image", option=option, path=str(path),
                )  # fmt: skip
        if self.out.suffix:
            raise ExportError(
                f"--out {self.out}: {self.input} is a folder of images, so name a folder for the results",
                code="output-must-be-folder", path=str(self.out),
            )  # fmt: skip

    def _load(self, path: Path) -> AutoModel:
        from medsam2_core.auto.model import load_auto
        from medsam2_core.auto.model_file import read_card
        from medsam2_core.engine.model import load_model

        model = None
        if self.base is not None:
            model = load_model(self.base, self.device, self.precision, image_size=read_card(path).image_size)
        return load_auto(path, model, self.device, self.precision)

    def _segment(self, volume: Volume, auto: AutoModel) -> tuple[Session, list[AutoPrediction]]:
        from medsam2_core.auto.volumes import Method, VolumeOptions
        from medsam2_core.session import Session

        card = auto.card
        axis: str = self.axis or ("axial" if card.is_for_pictures else card.axis)
        if len(volume.voxels_kji) == 1:
            axis = "k"  # a picture has one slice, whatever the plane of the training
        session = Session.open(
            volume, auto.model, axis=axis, window=self.window or card.window,
            probabilities=self.probabilities is not None,
        )  # fmt: skip
        options = VolumeOptions(Method(self.method), self.every)
        with progress_bar("segmenting", len(session.stack)) as update:
            found = session.auto(
                auto, self._classes, options=options, flips=self.flips,
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
    from medsam2_core.auto.fewshot.data import LABEL_ENDINGS
    from medsam2_core.imaging import pictures

    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in pictures.SUFFIXES)
    # Label maps beside the images, as for training, are not segmented.
    return [one for one in found if not one.stem.lower().endswith(LABEL_ENDINGS)]


def _class_facts(one: AutoPrediction, segmentation: Segmentation) -> dict[str, Any]:
    if one.name not in segmentation.names:
        return {"name": one.name, "voxels": 0, "millilitres": 0.0, "confidence": 0.0}
    segment = segmentation[one.name]
    return {
        "name": one.name,
        "voxels": segment.voxel_count,
        "millilitres": round(segmentation.volume_ml(one.name), 3),
        "confidence": round(one.confidence, 3),
    }


def _print(facts: dict[str, Any]) -> None:
    rows = []
    for item in facts.get("images", [facts]):
        image = [Path(item["input"]).name] if "images" in facts else []
        for one in item["classes"]:
            cells = ["not found"]
            if one["voxels"]:
                cells = [f"{one['voxels']} voxels", f"confidence {one['confidence']:.2f}"]
            rows.append([*image, one["name"], *cells])
    print_table([[*row, *[""] * (4 - len(row))] for row in rows])
    print(f"{facts['out']}: written after {facts['seconds']:.1f} s")
    if "images" not in facts:
        Outputs.print_extra(facts)
