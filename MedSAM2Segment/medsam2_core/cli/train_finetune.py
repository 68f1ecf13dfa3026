"""`medsam2 train finetune`: make a prompted model better at a user's own cases."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import print_table, stop_on_request
from medsam2_core.cli.options import AsJsonLines, Out
from medsam2_core.cli.training import TrainingFiles, TrainingProgress, survey_of
from medsam2_core.errors import Cancelled, TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.fewshot.survey import Survey
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.training.finetune import FineTuner, FineTuning
    from medsam2_core.training.processes import Processes

SUFFIX = ".safetensors"
_AXES = ("axial", "sagittal", "coronal", "i", "j", "k")
_SAME_IN_SETTINGS = (
    "seed", "encoder_factor", "layer_decay", "prompt_every", "corrections", "memory", "memory_size", "window",
    "warm_up", "last_rate", "weight_decay", "averaging", "patience", "workers",
)  # fmt: skip


@dataclass(frozen=True)
class TrainFinetune:
    """Fine-tune a prompted model on your own labelled cases.

    Any SAM 2, 2.1, MedSAM2, Medical SAM 2 or the embedded model, on pictures or volumes. The result is an
    ordinary checkpoint: `medsam2 segment --model my.safetensors`. Ctrl-C stops after the current step; the
    same command with --resume continues.

    Options
    -------
    data: Folder of images and label maps as for `train auto`, of DICOM series with SEG, or in the layouts of
        Medical SAM 2, MedSAM2 and REFUGE; or a CSV with the columns image,label[,split][,group].
    out: The .safetensors file to write.
    base: The model to start from: a name or a checkpoint.

    Data
    ----
    dimension: 3d: clips of slices, with memory; auto: by the data.
    clip: Slices in a clip (3d).
    axis AXIS[,AXIS] | all: Planes of the slices of volumes.
    raters: Of several raters: their majority, or all of them.
    augmentation FILE: JSON or YAML with other augmentations.

    Prompts and memory
    ------------------
    prompts KIND[=SHARE],…: First prompts: box, click, points, mask.
    prompt_every: Prompt every n-th slice of a clip; 0: the first only.
    corrections: Clicks after the first prompt.
    memory: Which slices are remembered (3d).
    memory_size: Slices that self-sorting memory holds.

    Training
    --------
    train: What is trained; the rest stays as it is. Of the embedded model all, else decoder+memory.
    minutes: Minutes of training.
    epochs: Passes over the data, instead of --minutes.
    steps: Steps, instead of --minutes.
    batch: Views a step: 8 pictures, or 2 clips.
    learning_rate: Peak of the cosine; 5e-5, for the embedded model 2e-4, for lora five times that.
    encoder_factor: Rate of the image encoder, as a share.
    layer_decay: Factor from each block of the encoder to the one before.
    loss TERM=WEIGHT,…: Weights of focal, bce, dice, iou, presence.
    warm_up: Steps in which the rate rises to its peak.
    last_rate: Rate at the end, as a share of the peak.
    weight_decay: Of AdamW.
    max_norm: Longer gradients are cut to this norm.
    averaging: Decay of the averaged weights, which are the result.
    patience: Validations without progress before it ends; 0: never.

    Run
    ---
    measure: Objects measured before and after, at most.
    tensorboard FOLDER: Write events for TensorBoard, too.
    precision: Of the computation; weights are kept in fp32.
    workers: Processes that prepare batches.
    """

    data: Path
    out: Out
    base: str = "embedded"
    config: str | None = None
    classes: str | None = None
    dimension: Literal["auto", "2d", "3d"] = "auto"
    clip: Annotated[int, typer.Option(min=2, max=64)] = 8
    axis: str = "axial"
    window: str = "auto"
    raters: Literal["majority", "all"] = "majority"
    augmentation: Path | None = None
    skip_bad: bool = False
    prompts: str = "box=0.5,click=0.3,mask=0.2"
    prompt_every: Annotated[int, typer.Option(min=0)] = 0
    corrections: Annotated[int, typer.Option(min=0)] = 2
    memory: Literal["recent", "self-sorting"] = "recent"
    memory_size: Annotated[int, typer.Option(min=1)] = 16
    train: Literal["decoder", "memory", "decoder+memory", "lora", "all"] | None = None
    minutes: Annotated[float, typer.Option(min=0.05)] = 10.0
    epochs: float | None = None
    steps: Annotated[int | None, typer.Option(min=1)] = None
    batch: Annotated[int | None, typer.Option(min=1)] = None
    learning_rate: float | None = None
    encoder_factor: Annotated[float, typer.Option(min=0, max=1)] = 0.6
    layer_decay: Annotated[float, typer.Option(min=0.1, max=1)] = 0.9
    loss: str | None = None
    warm_up: Annotated[int, typer.Option(min=0)] = 20
    last_rate: Annotated[float, typer.Option(min=0, max=1)] = 0.1
    weight_decay: Annotated[float, typer.Option(min=0, max=1)] = 0.1
    max_norm: Annotated[float, typer.Option(min=1e-6)] = 0.1
    averaging: Annotated[float, typer.Option(min=0, max=0.99999)] = 0.99
    patience: Annotated[int, typer.Option(min=0)] = 4
    measure: Annotated[int, typer.Option(min=0)] = 12
    resume: bool = False
    tensorboard: Path | None = None
    seed: Annotated[int, typer.Option(min=0)] = 1
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[int | None, typer.Option(min=1)] = None
    workers: Annotated[int, typer.Option(min=0)] = 0
    image_size: int | None = None
    overwrite: bool = False
    json_progress: AsJsonLines = False

    def run(self) -> None:
        """Check the data, measure, train, measure again, write model and report."""
        from medsam2_core.auto.fewshot.data import find_pairs, parse_classes, unpaired
        from medsam2_core.auto.fewshot.images import ReadingOptions

        choices, axes = parse_classes(self.classes), self._axes()
        if os.environ.get("RANK", "0") == "0":  # of several processes, the first writes
            self._files.check(SUFFIX, resume=self.resume, overwrite=self.overwrite)
        pairs = find_pairs(self.data, every_rater=self.raters == "all")
        self._files.check_inputs(pairs, [self.data, self.base, self.config, self.augmentation])
        lonely = unpaired(self.data, pairs)
        from medsam2_core.engine.devices import choose_device
        from medsam2_core.engine.model import load_model
        from medsam2_core.training.processes import device_of_process, started_processes

        device = device_of_process(choose_device(self.device))
        with started_processes(device) as processes:
            progress = TrainingProgress(as_json=self.json_progress, silent=not processes.is_first)
            model = load_model(self.base, device, "fp32", config=self.config, image_size=self.image_size)
            reading = ReadingOptions(min(model.image_size, 256), axes[0], self.window)
            found = survey_of(
                pairs, lonely, reading, choices, progress, skip_bad=self.skip_bad, keeps_cases=True
            )
            self._train(found, model, self._settings(found, model, axes), processes, progress)

    @property
    def _files(self) -> TrainingFiles:
        return TrainingFiles(self.out, self.out.name)

    def _axes(self) -> tuple[str, ...]:
        text = "axial,sagittal,coronal" if self.axis == "all" else self.axis
        axes = tuple(part.strip() for part in text.split(","))
        if unknown := [axis for axis in axes if axis not in _AXES]:
            message = f"--axis {unknown[0]}: use {', '.join(_AXES)}, several of them with commas, or all"
            raise TrainingError(message, code="unknown-axis", axis=unknown[0])
        return axes

    def _settings(self, found: Survey, model: SegmentationModel, axes: tuple[str, ...]) -> FineTuning:
        import torch

        from medsam2_core.engine.devices import choose_precision
        from medsam2_core.training.augmentation import FINE_TUNING, read_augmentation
        from medsam2_core.training.finetune import FineTuning, parse_prompts, suited_to
        from medsam2_core.training.losses import parse_loss

        is_volume = any(len(case.volume.voxels_kji) > 1 for case in found.cases)
        clips = self.dimension == "3d" or (self.dimension == "auto" and is_volume)
        suited = suited_to(
            model, clip=self.clip if clips else 1, parts=self.train, batch=self.batch,
            learning_rate=self.learning_rate,
        )  # fmt: skip
        return FineTuning(
            **suited,
            minutes=0.0 if self.epochs or self.steps else self.minutes,
            epochs=self.epochs or 0.0,
            steps=self.steps or 0,
            prompts=parse_prompts(self.prompts),
            loss=None if self.loss is None else parse_loss(self.loss),
            augmentation=FINE_TUNING if self.augmentation is None else read_augmentation(self.augmentation),
            axes=axes,
            clip=self.max_norm,
            # fp16 would need scaled losses.
            precision="bf16" if choose_precision(model.device, self.precision).value == "bf16" else "fp32",
            device=str(model.device),
            threads=self.threads or torch.get_num_threads(),
            **{name: getattr(self, name) for name in _SAME_IN_SETTINGS},
        )

    def _train(
        self,
        found: Survey,
        model: SegmentationModel,
        settings: FineTuning,
        processes: Processes,
        progress: TrainingProgress,
    ) -> None:
        from medsam2_core.training.fine_tuned import event_writer, mean_dice
        from medsam2_core.training.finetune import FineTuner

        with event_writer(self.tensorboard) as write_events:

            def report(line: dict[str, Any]) -> None:
                progress.show("training", line["step"], max(tuner.steps, line["step"]), mean_dice(line))
                write_events(line)

            tuner = FineTuner(settings, self._files.run_folder, model, found, report, processes)
            before = self._before(tuner, found, model, progress) if processes.is_first else {}
            if not tuner.run(stop_on_request()):
                progress.end()
                raise Cancelled("stopped; the same command with --resume continues")
            if not processes.is_first:
                return
            after = self._measured(tuner, found, tuner.trained_model(), progress, "measuring after")
            progress.end()
            self._write(tuner, found, model, {"before": before, "after": after} if before else {})

    def _before(
        self, tuner: FineTuner, found: Survey, model: SegmentationModel, progress: TrainingProgress
    ) -> dict[str, Any]:
        """Return the figures of the base, measured once a run."""
        path = self._files.run_folder / "before.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["measure"] == self.measure:
                return known["figures"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        figures = self._measured(tuner, found, model, progress, "measuring before")
        with atomic.new_file(path, overwrite=True) as stream:
            stream.write(json.dumps({"measure": self.measure, "figures": figures}).encode())
        return figures

    def _measured(
        self,
        tuner: FineTuner,
        found: Survey,
        model: SegmentationModel,
        progress: TrainingProgress,
        stage: str,
    ) -> dict[str, Any]:
        from medsam2_core.evaluation.labelled import mean_figures, measure_labelled

        cases = tuner.division.measured
        if not cases or not self.measure:
            return {}
        measured = measure_labelled(
            cases, found.table, model, axis=tuner.settings.axes[0], window=self.window, most=self.measure,
            progress=lambda done, total: progress.show(stage, done, total),
        )  # fmt: skip
        rows = {one.row: [other for other in measured if other.row == one.row] for one in measured}
        by_class = {row: mean_figures(of_row) for row, of_row in rows.items()}
        return {"mean": mean_figures(measured), "by_class": by_class} if measured else {}

    def _write(
        self, tuner: FineTuner, found: Survey, model: SegmentationModel, figures: dict[str, Any]
    ) -> None:
        """Write the checkpoint with its card, and the report beside it; say what was made."""
        from medsam2_core.training.fine_tuned import write_checkpoint, write_report

        card = write_checkpoint(
            self.out, self.base, model, tuner, [one.name for one in found.classes], figures,
            config=self.config, overwrite=self.overwrite,
        )  # fmt: skip
        write_report(self._files.report_folder, card, found.problems, self._files.run_folder / "log.jsonl")
        if self._files.finish({"card": asdict(card)}, found, as_json=self.json_progress):
            return
        if card.figures:
            before, after = (card.figures[name].get("mean", {}) for name in ("before", "after"))
            rows = [
                (name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in before if name != "objects"
            ]
            print_table(rows, (f"DICE OF {before.get('objects', 0)} OBJECTS", "BEFORE", "AFTER"))
        else:
            print("(no case was held aside to measure on: give more patients, or mark some as test)")
        training = card.training
        print(f"{self.out}: {training['cases']} cases, {training['steps']} steps, {training['seconds']} s")
        licence = card.licence or "not stated by its authors: ask them before you pass the model on"
        print(f"licence, as of {card.base}: {licence}")
        print(f"{self._files.report_folder}: figures and curves")
