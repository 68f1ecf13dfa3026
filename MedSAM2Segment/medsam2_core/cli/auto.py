"""`medsam2 auto`: all classes of an Auto model in an image, a folder of images, or a volume; no prompts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import (
    UNCALIBRATED,
    millilitres,
    peak_memory_mb,
    print_table,
    progress_bar,
    report,
)
from medsam2_core.cli.inputs import check_settings
from medsam2_core.cli.options import AsJson, AxisName, Out, WhenIrregular
from medsam2_core.cli.outputs import Outputs
from medsam2_core.errors import ExportError, MedSAM2Error, Note, VolumeError

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.auto.predictions import AutoPrediction
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.volume import Volume
    from medsam2_core.session.session import Session


@dataclass(frozen=True)
class Auto:
    """Segment without prompts, with a model from `medsam2 train auto`.

    Options
    -------
    input: Image, volume, DICOM folder, or a folder of images (PNG, JPEG, TIFF).
    model: A .medsam2auto file, or the name of an Auto model.
    out: .seg.nrrd, .nii.gz, .nrrd, .mha, .png; for a folder of images, a folder.
    classes A,B: Only these classes, by name.
    method: How to segment a volume. memory: the most confident slices condition the propagation to the
        others; slices: each slice on its own.
    every: Predict prompts on every n-th slice only, and propagate to the others.
    flips: Average with the mirror image: slower, slightly more accurate.
    axis: Plane of the slices; by default that of the training.
    window W,L|PRESET: Intensity window; by default that of the training.
    base FILE: The SAM 2 checkpoint that the model was trained for.
    """

    input: Path
    model: Annotated[str, typer.Option()]
    out: Out
    classes: str | None = None
    method: Literal["memory", "slices"] = "memory"
    every: Annotated[int, typer.Option(min=1)] = 1
    flips: bool = False
    axis: AxisName | None = None
    window: str | None = None
    base: str | None = None
    device: str = "auto"
    precision: str = "auto"
    series: str | None = None
    irregular: WhenIrregular = "refuse"
    picture: Path | None = None
    probabilities: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Segment, write the files, and report."""
        started = time.perf_counter()
        from medsam2_core.auto.library import find

        path, card = find(self.model)
        card.chosen(self._classes)  # an unknown class is an error before anything is read
        check_settings(self.base, self.device, self.precision, self.window)
        if images := _images_of(self.input):
            with atomic.protect(*images, path, self.base):
                facts, notes = self._segment_folder(images, path, card.name)
        else:
            with atomic.protect(self.input, path, self.base):
                facts, notes = self._segment_one(path)
        facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": peak_memory_mb()}
        report(facts, notes, _print, as_json=self.as_json)

    @property
    def _classes(self) -> list[str] | None:
        return None if self.classes is None else [name.strip() for name in self.classes.split(",")]

    def _segment_one(self, path: Path) -> tuple[dict[str, Any], list[Note]]:
        from medsam2_core.auto.library import fits
        from medsam2_core.imaging.scans import read_scan

        outputs = Outputs(self.out, self.picture, self.probabilities, self.overwrite)
        outputs.check()
        volume, notes = read_scan(self.input, self.series, self.irregular)
        outputs.check(volume.geometry)
        auto = self._load(path)
        session, found = self._segment(volume, auto)
        segmentation = session.segmentation()
        notes += outputs.write(session, segmentation)
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
            "confidence_is_calibrated": False,
        }
        return facts, notes

    def _segment_folder(self, images: list[Path], path: Path, name: str) -> tuple[dict[str, Any], list[Note]]:
        """Segment each image on its own; those that are done are passed over, one that fails is reported."""
        self._check_folder()
        targets = {image: self.out / result for image, result in _result_names(images).items()}
        done = [image for image in images if targets[image].exists() and not self.overwrite]
        notes = [
            Note.info(
                "image-already-done",
                f"{image.name} is done already: {targets[image]} is kept (--overwrite replaces it)",
                image=str(image),
                out=str(targets[image]),
            )
            for image in done
        ]
        left = [image for image in images if image not in done]
        rows: list[dict[str, Any]] = []
        if left:
            auto = self._load(path)
            with progress_bar("segmenting", len(left)) as update:
                for number, image in enumerate(left, start=1):
                    try:
                        rows.append(self._segment_image(image, targets[image], auto))
                    except MedSAM2Error as error:
                        fields = {"image": str(image), "error": error.to_dict()}
                        notes.append(Note.warning("image-skipped", f"{image.name}: {error}", **fields))
                    update(number, image.name)
            if not rows:
                message = f"{self.input}: none of {len(left)} images could be segmented; {notes[-1]}"
                raise VolumeError(message, code="no-image-segmented", path=str(self.input), images=len(left))
        return {
            "input": str(self.input),
            "out": str(self.out),
            "model": name,
            "images": rows,
            "confidence_is_calibrated": False,
        }, notes

    def _segment_image(self, image: Path, target: Path, auto: AutoModel) -> dict[str, Any]:
        from medsam2_core import export
        from medsam2_core.imaging.nrrd import read_fields
        from medsam2_core.imaging.scans import read_scan

        if target.exists() and not any("MedSAM2." in text for text in read_fields(target).values()):
            raise ExportError(
                f"{target} is not a result of this program, but perhaps your labels: choose another --out",
                code="not-our-result", path=str(target),
            )  # fmt: skip
        volume, _ = read_scan(image)
        export.check(target, volume.geometry, overwrite=self.overwrite)
        session, found = self._segment(volume, auto)
        segmentation = session.segmentation()
        export.write(segmentation, target, overwrite=self.overwrite)
        classes = [_class_facts(one, segmentation) for one in found]
        return {"input": str(image), "out": str(target), "classes": classes}

    def _check_folder(self) -> None:
        for option, path in (("--picture", self.picture), ("--probabilities", self.probabilities)):
            if path is not None:
                message = f"{option} {path}: for one image or volume only, {self.input} is a folder"
                raise ExportError(message, code="option-for-one-image", option=option, path=str(path))
        if self.out.suffix:
            raise ExportError(
                f"--out {self.out}: {self.input} is a folder of images, so name a folder for the results",
                code="output-must-be-folder", path=str(self.out),
            )  # fmt: skip
        atomic.make_folder(self.out)
        atomic.check_writable(self.out / "results")

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
        from medsam2_core.session.session import Session

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


def _images_of(folder: Path) -> list[Path]:
    """Return the images of a folder; none for a volume. Label maps beside them, as for training, are not."""
    from medsam2_core.auto.fewshot.data import LABEL_ENDINGS
    from medsam2_core.imaging.reading import pictures_in

    return [one for one in pictures_in(folder) if not one.stem.lower().endswith(LABEL_ENDINGS)]


def _result_names(images: list[Path]) -> dict[Path, str]:
    """Return the name of the result of each image: with its suffix only where two would be the same."""
    counts = Counter(image.stem.lower() for image in images)
    names = {image: image.stem if counts[image.stem.lower()] == 1 else image.name for image in images}
    return {image: f"{name}.seg.nrrd" for image, name in names.items()}


def _class_facts(one: AutoPrediction, segmentation: Segmentation) -> dict[str, Any]:
    if one.name not in segmentation.names:
        return {"name": one.name, "voxels": 0, "millilitres": 0.0, "confidence": 0.0}
    segment = segmentation[one.name]
    return {
        "name": one.name,
        "voxels": segment.voxel_count,
        "millilitres": millilitres(segmentation, one.name),
        "confidence": round(one.confidence, 3),
    }


def _print(facts: dict[str, Any]) -> None:
    rows = []
    for item in facts.get("images", [facts]):
        image = [Path(item["input"]).name] if "images" in facts else []
        for one in item["classes"]:
            cells = ["not found"]
            if one["voxels"]:
                cells = [f"{one['voxels']} voxels", f"confidence {one['confidence']:.2f}{UNCALIBRATED}"]
            rows.append([*image, one["name"], *cells])
    print_table([[*row, *[""] * (4 - len(row))] for row in rows])
    print(f"{facts['out']}: written after {facts['seconds']:.1f} s")
    if "images" not in facts:
        Outputs.print_extra(facts)
