"""`medsam2 train auto`: train a model that needs no prompt, from about ten labelled images."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medsam2_core.cli.console import print_table, progress_bar, stop_on_request
from medsam2_core.cli.options import AsJsonLines, AxisName, DeviceName, Overwrite, Seed, Threads
from medsam2_core.errors import Cancelled, ExportError, TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.fewshot.data import Pair
    from medsam2_core.auto.fewshot.settings import FewShotSettings, StageProgress
    from medsam2_core.auto.fewshot.survey import Survey
    from medsam2_core.auto.fewshot.trainer import TrainingResult
    from medsam2_core.engine.model import SegmentationModel

_DATA, _TRAINING = "Data", "Training"


@dataclass(frozen=True)
class TrainAuto:
    """Train a model that needs no prompt, from about ten labelled images.

    Ctrl-C stops after the current step; the same command with --resume continues.
    """

    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of images and label maps (NAME_img.png + NAME_seg.png, NAME.nrrd + NAME.seg.nrrd, "
            "images/ + labels/), or a CSV with the columns image,label[,split][,group]."
        ),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", help="The .medsam2auto file to write.")]
    base: Annotated[str, typer.Option(help="The SAM 2 to train for: a name or a checkpoint.")] = "embedded"
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B | 1=A,2=B", help="Classes by name, or names for label values.", rich_help_panel=_DATA
        ),
    ] = None
    shots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of images (or volumes) to train on, drawn at random.", rich_help_panel=_DATA
        ),
    ] = None
    minutes: Annotated[float, typer.Option(help="Minutes in all.", rich_help_panel=_TRAINING)] = 10.0
    decoder: Annotated[
        Literal["frozen", "lora"],
        typer.Option(
            help="lora: also train low-rank updates of the mask decoder.", rich_help_panel=_TRAINING
        ),
    ] = "frozen"
    texture: Annotated[
        bool,
        typer.Option(
            "--texture/--no-texture", help="Also train a small convolutional network beside the encoder.",
            rich_help_panel=_TRAINING,
        ),
    ] = True  # fmt: skip
    resume: Annotated[bool, typer.Option("--resume", help="Continue a training that was stopped.")] = False
    kind: Annotated[
        Literal["hierarchical", "linear"],
        typer.Option(
            help="Predictor: hierarchical uses features at three scales, linear the coarsest only.",
            rich_help_panel=_TRAINING,
        ),
    ] = "hierarchical"
    heads: Annotated[
        str,
        typer.Option(
            metavar="box,mask,embedding", help="Kinds of prompts to predict.", rich_help_panel=_TRAINING
        ),
    ] = "box,mask,embedding"
    start: Annotated[
        Literal["auto", "none"],
        typer.Option(
            help="auto: start from the pretrained weights that ship; none: from random weights.",
            rich_help_panel=_TRAINING,
        ),
    ] = "auto"
    folds: Annotated[
        int | None,
        typer.Option(
            help="Cross-validation folds to estimate Dice with; 0 for none.", rich_help_panel=_TRAINING
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of the final training, instead of --minutes.", rich_help_panel=_TRAINING),
    ] = None
    axis: Annotated[
        AxisName, typer.Option(help="Plane of the slices of volumes, or array axis.", rich_help_panel=_DATA)
    ] = "axial"
    window: Annotated[
        str, typer.Option(metavar="W,L|PRESET", help="Intensity window.", rich_help_panel=_DATA)
    ] = "auto"
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images with problems.", rich_help_panel=_DATA)
    ] = False
    seed: Seed = 0
    device: DeviceName = "auto"
    threads: Threads = None
    image_size: Annotated[int | None, typer.Option(help="Side of the model's square input.")] = None
    overwrite: Overwrite = False
    json_progress: AsJsonLines = False

    def run(self) -> None:
        """Check the data, train, write model and report."""
        from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
        from medsam2_core.auto.fewshot.images import ReadingOptions

        wishes = parse_classes(self.classes)
        self._check_out()
        pairs = find_pairs(self.data)
        self._check_inputs(pairs)
        import torch  # only now: it takes seconds to load

        from medsam2_core.engine.model import load_model

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = load_model(self.base, self.device, "fp32", image_size=self.image_size)
        progress = _Progress(as_json=self.json_progress)
        found = self._survey(
            pairs, ReadingOptions(model.image_size, self.axis, self.window), wishes, progress
        )
        progress.show_problems(found)
        found.raise_for_problems(skip_bad=self.skip_bad)
        outcome = self._train(found, model, progress)
        outcome.auto.save(self.out, overwrite=self.overwrite)
        self._report(outcome, found)

    @property
    def _name(self) -> str:
        return self.out.name.removesuffix(self.out.suffix)

    @property
    def _run_folder(self) -> Path:
        return self.out.with_name(self.out.name + ".run")

    @property
    def _report_folder(self) -> Path:
        return self.out.with_name(self._name + "-report")

    def _check_out(self) -> None:
        from medsam2_core.atomic import check_target
        from medsam2_core.auto.model_file import SUFFIX

        if self.out.suffix != SUFFIX or not self.out.stem:
            raise ExportError(
                f"--out {self.out}: the name of an Auto model ends with {SUFFIX}",
                code="not-an-auto-model-name", path=str(self.out),
            )  # fmt: skip
        check_target(self.out, overwrite=self.overwrite)
        folder = self._run_folder
        if folder.exists() and not self.resume:
            raise TrainingError(
                f"{folder} holds an unfinished training: add --resume to continue it, or remove it",
                code="unfinished-training", folder=str(folder),
            )  # fmt: skip
        if self.resume and not folder.exists():
            raise TrainingError(
                f"there is no unfinished training in {folder}: leave --resume out",
                code="nothing-to-resume", folder=str(folder),
            )  # fmt: skip

    def _check_inputs(self, pairs: list[Pair]) -> None:
        """Raise for outputs that would replace what is trained on."""
        from medsam2_core.atomic import check_target, protect
        from medsam2_core.auto.fewshot.results import REPORT_FILES

        read = [path for pair in pairs for path in (pair.image, pair.labels)]
        with protect(*read, self.data, self.base):
            for target in (self.out, *(self._report_folder / name for name in REPORT_FILES)):
                if target.exists():
                    check_target(target, overwrite=True)
        folder = self._run_folder
        for path in (*read, self.data):
            if path.resolve().is_relative_to(folder.resolve()):
                raise TrainingError(
                    f"{path} lies in {folder}, which is removed when the training is done: move it elsewhere",
                    code="data-in-work-folder", path=str(path), folder=str(folder),
                )  # fmt: skip

    def _survey(self, pairs: list[Pair], reading: Any, wishes: Any, progress: _Progress) -> Survey:
        """Read the images and look for problems with them."""
        from medsam2_core.auto.fewshot.data import draw_shots, unpaired
        from medsam2_core.auto.fewshot.survey import Problem, survey

        lonely = unpaired(self.data, pairs)
        if self.shots is not None:
            pairs = draw_shots(pairs, self.shots, self.seed)
        found = survey(pairs, reading, wishes, lambda done, total: progress.show("reading", done, total))
        if lonely:
            names = ", ".join(path.name for path in lonely[:3]) + " …" * (len(lonely) > 3)
            text = f"{len(lonely)} files have no partner by name and are left out ({names})"
            fields = {"files": [str(path) for path in lonely]}
            found.problems.append(Problem("files-without-partner", text, is_fatal=False, fields=fields))
        return found

    def _settings(self, found: Survey) -> FewShotSettings:
        from medsam2_core.auto.fewshot.settings import FewShotSettings

        has_slices = any(image.is_slice for image in found.images)
        modalities = {image.modality for image in found.images}
        return FewShotSettings(
            name=self._name,
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

    def _train(self, found: Survey, model: SegmentationModel, progress: _Progress) -> TrainingResult:
        from medsam2_core.auto.fewshot.start import packaged_start, texture_only
        from medsam2_core.auto.fewshot.trainer import FewShotTrainer

        settings = self._settings(found)
        start = packaged_start(model) if self.start == "auto" else None
        if self.kind == "linear":
            start = texture_only(start)
        trainer = FewShotTrainer(settings, found, model, self._run_folder, start, progress.show_training)
        outcome = trainer.run(stop_on_request())
        progress.end()
        if outcome is None:
            raise Cancelled("stopped; the same command with --resume continues")
        return outcome

    def _report(self, outcome: TrainingResult, found: Survey) -> None:
        from medsam2_core.auto.fewshot.results import table, write_report

        write_report(self._report_folder, outcome, found.problems)
        shutil.rmtree(self._run_folder, ignore_errors=True)
        training = outcome.auto.card.training
        if self.json_progress:
            files = {"model": str(self.out), "report": str(self._report_folder)}
            notes = [problem.to_dict() for problem in found.problems]
            document = {"stage": "done", **files, **training, "notes": notes, "error": None}
            print(json.dumps(document), flush=True)
            return
        if outcome.dice:
            print_table(table(outcome.dice), ("CLASS", "DICE", "SPREAD", "WORST", "IMAGES"))
            if training["folds"]:
                print(f"(from {training['folds']} folds, each trained on fewer images and for less time)")
        print(f"{self.out}: {training['images']} images, {training['steps']} steps, {training['seconds']} s")
        print(f"{self._report_folder}: curves and samples")


class _Progress:
    """Shows progress as a bar on stderr, or as JSON lines on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._stage = ""
        self._bar: Any = None
        self._update: Any = None
        self._last = 0

    def show(self, stage: str, done: int, total: int, dice: float | None = None) -> None:
        """Show that `done` of `total` of a stage are done; `dice` is that of the last validation."""
        if self._as_json:
            # At most about a hundred lines a stage.
            if done == total or done - self._last >= max(1, total // 100) or stage != self._stage:
                self._stage, self._last = stage, done
                print(json.dumps({"stage": stage, "done": done, "total": total, "dice": dice}), flush=True)
            return
        if stage != self._stage:
            self.end()
            self._stage, self._bar = stage, progress_bar(stage, total)
            self._update = self._bar.__enter__()
        self._update(done, "" if dice is None else f"(Dice {dice:.2f})")

    def show_training(self, progress: StageProgress) -> None:
        """Show the progress that a trainer reports."""
        self.show(progress.stage, progress.done, progress.total, progress.dice)

    def show_problems(self, found: Survey) -> None:
        """List the problems of the data."""
        self.end()
        for problem in found.problems:
            if self._as_json:
                print(json.dumps({"stage": "problem", **problem.to_dict()}), flush=True)
            else:
                print(f"{'problem' if problem.is_fatal else 'note'}: {problem}", file=sys.stderr)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
