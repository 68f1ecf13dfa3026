"""`medsam2 train auto`: train a model that needs no prompt, from about ten labelled images."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import print_table, stop_on_request
from medsam2_core.cli.options import AsJsonLines, AxisName, Out
from medsam2_core.cli.training import TrainingFiles, TrainingProgress, survey_of
from medsam2_core.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from medsam2_core.auto.fewshot.data import Problem
    from medsam2_core.auto.fewshot.settings import FewShotSettings
    from medsam2_core.auto.fewshot.survey import Survey
    from medsam2_core.auto.fewshot.trainer import TrainingResult
    from medsam2_core.engine.segmentation_model import SegmentationModel

_FEW_STEPS = 100


@dataclass(frozen=True)
class TrainAuto:
    """Train a model that needs no prompt, from about ten labelled images.

    Ctrl-C stops after the current step; the same command with --resume continues.

    Options
    -------
    data: Folder of images and label maps (NAME_img.png + NAME_seg.png, NAME.nrrd + NAME.seg.nrrd, images/ +
        labels/), or a CSV with the columns image,label[,split][,group].
    out: The .medsam2auto file to write.

    Data
    ----
    shots: Number of images (or volumes) to train on, drawn at random.
    axis: Plane of the slices of volumes, or array axis.

    Training
    --------
    minutes: Minutes in all, from start to model.
    decoder: lora: also train low-rank updates of the mask decoder.
    texture: Also train a small convolutional network beside the encoder.
    kind: Predictor: hierarchical uses features at three scales, linear the coarsest only.
    heads box,mask,embedding: Kinds of prompts to predict.
    start: auto: start from the pretrained weights that ship; none: from random weights.
    folds: Cross-validation folds to estimate Dice with; 0 for none.
    steps: Steps of the final training, instead of --minutes.
    """

    data: Path
    out: Out
    base: str = "embedded"
    classes: str | None = None
    shots: Annotated[int | None, typer.Option(min=1)] = None
    minutes: float = 10.0
    decoder: Literal["frozen", "lora"] = "frozen"
    texture: Annotated[bool, typer.Option("--texture/--no-texture")] = True
    resume: bool = False
    kind: Literal["hierarchical", "linear"] = "hierarchical"
    heads: str = "box,mask,embedding"
    start: Literal["auto", "none"] = "auto"
    folds: int | None = None
    steps: int | None = None
    axis: AxisName = "axial"
    window: str = "auto"
    skip_bad: bool = False
    seed: Annotated[int, typer.Option(min=0)] = 0
    device: str = "auto"
    threads: Annotated[int | None, typer.Option(min=1)] = None
    image_size: int | None = None
    overwrite: bool = False
    json_progress: AsJsonLines = False

    def run(self) -> None:
        """Check the data, train, write model and report."""
        started = time.monotonic()
        from medsam2_core.auto.fewshot.data import draw_shots, find_pairs, parse_classes, unpaired
        from medsam2_core.auto.fewshot.images import ReadingOptions
        from medsam2_core.auto.model_file import SUFFIX

        choices = parse_classes(self.classes)
        self._files.check(SUFFIX, resume=self.resume, overwrite=self.overwrite)
        pairs = find_pairs(self.data)
        self._files.check_inputs(pairs, [self.data, self.base])
        import torch  # only now: it takes seconds to load

        from medsam2_core.engine.model import load_model

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = load_model(self.base, self.device, "fp32", image_size=self.image_size)
        progress = TrainingProgress(as_json=self.json_progress)
        lonely = unpaired(self.data, pairs)
        if self.shots is not None:
            pairs = draw_shots(pairs, self.shots, self.seed)
        reading = ReadingOptions(model.image_size, self.axis, self.window)
        found = survey_of(pairs, lonely, reading, choices, progress, skip_bad=self.skip_bad)
        outcome = self._train(found, model, progress, started)
        outcome.auto.save(self.out, overwrite=self.overwrite)
        self._report(outcome, found)

    @property
    def _files(self) -> TrainingFiles:
        return TrainingFiles(self.out, self.out.stem)

    def _settings(self, found: Survey) -> FewShotSettings:
        from medsam2_core.auto.fewshot.settings import FewShotSettings

        has_slices = any(image.is_slice for image in found.images)
        modalities = {image.modality for image in found.images}
        return FewShotSettings(
            name=self.out.stem,
            minutes=self.minutes,
            steps=self.steps,
            folds=self.folds,
            decoder=self.decoder,
            texture=self.texture,
            kind=self.kind,
            heads=tuple(part.strip() for part in self.heads.split(",") if part.strip()),
            window=self.window,
            axis=self.axis if has_slices else "picture",
            modality=modalities.pop() if len(modalities) == 1 else "",
            seed=self.seed,
        )

    def _train(
        self, found: Survey, model: SegmentationModel, progress: TrainingProgress, started: float
    ) -> TrainingResult:
        from medsam2_core.auto.fewshot.start import packaged_start, texture_only
        from medsam2_core.auto.fewshot.trainer import FewShotTrainer

        settings = self._settings(found)
        start = packaged_start(model) if self.start == "auto" else None
        if self.kind == "linear":
            start = texture_only(start)
        trainer = FewShotTrainer(
            settings, found, model, self._files.run_folder, start, progress.show_training, started=started
        )
        outcome = trainer.run(stop_on_request())
        progress.end()
        if outcome is None:
            raise Cancelled("stopped; the same command with --resume continues")
        return outcome

    def _report(self, outcome: TrainingResult, found: Survey) -> None:
        from medsam2_core.auto.fewshot.results import table, write_report

        training = outcome.auto.card.training
        short = [] if self.steps is not None else list(_shortcomings(training, self.minutes, self.folds))
        found.problems.extend(short)
        write_report(self._files.report_folder, outcome, found.problems)
        if self._files.finish(training, found, as_json=self.json_progress):
            return
        for problem in short:
            print(f"note: {problem}", file=sys.stderr)
        if outcome.dice:
            print_table(table(outcome.dice), ("CLASS", "DICE", "SPREAD", "WORST", "IMAGES"))
            if training["folds"]:
                print(f"(from {training['folds']} folds, each trained on fewer images and for less time)")
        print(f"{self.out}: {training['images']} images, {training['steps']} steps, {training['seconds']} s")
        print(f"{self._files.report_folder}: curves and samples")


def _shortcomings(training: Mapping[str, Any], minutes: float, folds: int | None) -> Iterator[Problem]:
    """Yield what there was too little time for."""
    from medsam2_core.auto.fewshot.data import Problem

    if training["steps"] < _FEW_STEPS:
        text = f"only {training['steps']} steps fitted into {minutes:g} minutes: more make a better model"
        yield Problem("few-steps", text, is_fatal=False, fields={"steps": training["steps"]})
    if folds is None and not training["folds"] and not training["dice"]:
        text = f"{minutes:g} minutes were too few for folds: how good the model is was not measured"
        yield Problem("no-folds", text, is_fatal=False, fields={"minutes": minutes})
