"""`medsam2 train auto`: ten labelled images in, a model that needs no prompt out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medsam2_core.cli import train_auto_options as given

if TYPE_CHECKING:
    from medsam2_core.auto.fewshot.checking import Survey
    from medsam2_core.auto.fewshot.trainer import Outcome, Told


def auto(
    data: given.DataArgument,
    out: given.OutOption,
    base: given.BaseOption = "embedded",
    classes: given.ClassesOption = None,
    shots: given.ShotsOption = None,
    minutes: given.MinutesOption = 10.0,
    decoder: given.DecoderOption = given.Decoder.frozen,
    texture: given.TextureOption = True,
    resume: given.ResumeOption = False,
    kind: given.KindOption = given.Kind.hierarchical,
    heads: given.HeadsOption = "box,mask,embedding",
    start: given.StartOption = given.StartChoice.auto,
    folds: given.FoldsOption = None,
    steps: given.StepsOption = None,
    axis: given.AxisOption = given.Axis.axial,
    window: given.WindowOption = "auto",
    skip_bad: given.SkipBadOption = False,
    seed: given.SeedOption = 0,
    device: given.DeviceOption = "auto",
    threads: given.ThreadsOption = None,
    image_size: given.ImageSizeOption = None,
    overwrite: given.OverwriteOption = False,
    json_progress: given.JsonProgressOption = False,
) -> None:
    """Train a model that needs no prompt, from about ten labelled images.

    Ctrl-C stops after the step under way; the same command with --resume goes on from there.
    """
    from medsam2_core.auto.fewshot.classes import parse_wishes
    from medsam2_core.auto.fewshot.images import Reading
    from medsam2_core.auto.fewshot.pairs import find_pairs
    from medsam2_core.auto.fewshot.planning import FewShotSettings

    work = out.with_name(out.name + ".run")
    wishes = parse_wishes(classes)
    _check_target(out, work, overwrite=overwrite, resume=resume)
    pairs = find_pairs(data)
    _check_inputs(data, pairs, base, out, work)
    import torch  # only now: it takes seconds to load

    from medsam2_core.engine.model import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    model = load_model(base, device, "fp32", image_size=image_size)
    teller = Teller(as_json=json_progress)
    found = _surveyed(data, pairs, Reading(model.image_size, axis.value, window), wishes, teller, shots, seed)
    teller.problems(found)
    found.refuse(skip_bad=skip_bad)
    slices = any(image.is_slice for image in found.images)
    modalities = {image.modality for image in found.images}
    settings = FewShotSettings(
        out.name.removesuffix(out.suffix), minutes, steps, folds, decoder.value, texture, kind.value,
        tuple(part.strip() for part in heads.split(",") if part.strip()), window,
        axis.value if slices else "picture", modalities.pop() if len(modalities) == 1 else "", seed,
    )  # fmt: skip
    outcome = _trained(settings, found, model, work, begins=start is given.StartChoice.auto, teller=teller)
    _finish(outcome, found, out, work, overwrite=overwrite, teller=teller)


def _check_target(out: Path, work: Path, *, overwrite: bool, resume: bool) -> None:
    from medsam2_core.atomic import check_target
    from medsam2_core.auto.model_file import SUFFIX
    from medsam2_core.errors import ExportError, TrainingError

    if out.suffix != SUFFIX or not out.stem:
        raise ExportError(f"--out {out}: the name of an Auto model ends with {SUFFIX}")
    check_target(out, overwrite=overwrite)
    if work.exists() and not resume:
        raise TrainingError(
            f"{work} holds a training that was not finished: add --resume to go on with it, or remove it"
        )
    if resume and not work.exists():
        raise TrainingError(f"there is nothing to resume in {work}: leave --resume out")


def _check_inputs(data: Path, pairs: list[Any], base: str, out: Path, work: Path) -> None:
    """Refuse outputs that would replace what is trained on."""
    from medsam2_core.atomic import check_target, protect
    from medsam2_core.auto.fewshot.reporting import REPORT_FILES
    from medsam2_core.errors import TrainingError

    read = [path for pair in pairs for path in (pair.image, pair.labels)]
    report = _report_folder(out)
    with protect(*read, data, base):
        for target in (out, *(report / name for name in REPORT_FILES)):
            if target.exists():
                check_target(target, overwrite=True)
    for path in (*read, data):
        if path.resolve().is_relative_to(work.resolve()):
            raise TrainingError(
                f"{path} lies in {work}, the folder of the unfinished training, which is removed at its end: "
                "move it elsewhere",
                code="data-in-work-folder", path=str(path), folder=str(work),
            )  # fmt: skip


def _report_folder(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(out.suffix) + "-report")


def _surveyed(
    data: Path, pairs: list, reading: Any, wishes: Any, teller: Teller, shots: int | None, seed: int
) -> Survey:
    from medsam2_core.auto.fewshot.checking import Problem, survey
    from medsam2_core.auto.fewshot.pairs import unpaired
    from medsam2_core.auto.fewshot.planning import drawn

    lonely = unpaired(data, pairs)
    if shots is not None:
        pairs = drawn(pairs, shots, seed)
    found = survey(pairs, reading, wishes, lambda done, total: teller("reading", done, total))
    if lonely:
        names = ", ".join(path.name for path in lonely[:3]) + " …" * (len(lonely) > 3)
        text = f"{len(lonely)} files have no partner by name and are left out ({names})"
        found.problems.append(Problem("", text, is_fatal=False))
    return found


def _trained(
    settings: Any, found: Survey, model: Any, work: Path, *, begins: bool, teller: Teller
) -> Outcome:
    from medsam2_core.auto.fewshot.starting import for_linear, packaged_start
    from medsam2_core.auto.fewshot.trainer import FewShotTrainer
    from medsam2_core.cli.train import stop_on_request

    first = packaged_start(model) if begins else None
    if settings.kind == "linear":
        first = for_linear(first)
    trainer = FewShotTrainer(settings, found, model, work, first, teller.told)
    stopping = stop_on_request()
    outcome = trainer.run(lambda: bool(stopping))
    teller.end()
    if outcome is None:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        raise typer.Exit(130)
    return outcome


def _finish(
    outcome: Outcome, found: Survey, out: Path, work: Path, *, overwrite: bool, teller: Teller
) -> None:
    from medsam2_core.auto.fewshot.reporting import table, write_report
    from medsam2_core.cli.report import print_table

    outcome.auto.save(out, overwrite=overwrite)
    report = _report_folder(out)
    write_report(report, outcome, found.problems)
    shutil.rmtree(work, ignore_errors=True)
    training = outcome.auto.card.training
    if teller.as_json:
        print(json.dumps({"stage": "done", "model": str(out), "report": str(report), **training}), flush=True)
        return
    if outcome.dice:
        print_table(table(outcome.dice), ("CLASS", "DICE", "SPREAD", "WORST", "IMAGES"))
        if training["folds"]:
            print(f"(from {training['folds']} folds, each trained on fewer images and for less time)")
    print(f"{out}: {training['images']} images, {training['steps']} steps, {training['seconds']} s")
    print(f"{report}: curves and samples")


class Teller:
    """Says on stderr how far a training is, or for programs as JSON lines on stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._stage = ""
        self._bar: Any = None
        self._update: Callable[[int, str], None] | None = None
        self._last = 0

    def __call__(self, stage: str, done: int, total: int, dice: float | None = None) -> None:
        """`done` of `total` of a stage; `dice` of the last validation."""
        if self.as_json:
            # At most about a hundred lines a stage.
            if done == total or done - self._last >= max(1, total // 100) or stage != self._stage:
                self._stage, self._last = stage, done
                print(json.dumps({"stage": stage, "done": done, "total": total, "dice": dice}), flush=True)
            return
        from medsam2_core.cli.progress import slices_bar

        if stage != self._stage:
            self.end()
            self._stage, self._bar = stage, slices_bar(stage, total)
            self._update = self._bar.__enter__()
        self._update(done, "" if dice is None else f"(Dice {dice:.2f})")

    def told(self, told: Told) -> None:
        """What a trainer tells."""
        self(told.stage, told.done, told.total, told.dice)

    def problems(self, found: Survey) -> None:
        """List what should be known about the data."""
        self.end()
        for problem in found.problems:
            if self.as_json:
                print(json.dumps({"stage": "problem", "message": str(problem)}), flush=True)
            else:
                print(f"{'problem' if problem.is_fatal else 'note'}: {problem}", file=sys.stderr)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
