"""`medsam2 train …`: train the embedded model and what Auto models start from, and package the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam2_core.cli.console import print_table, progress_bar, stop_on_request
from medsam2_core.cli.options import Out, register
from medsam2_core.errors import Cancelled

app = typer.Typer(help="Train models.", no_args_is_help=True)


@app.callback()
def _train() -> None:
    """Train models."""


def base(
    data: Path,
    out: Out,
    steps: str | None = None,
    start: Path | None = None,
    keep_encoder: bool = False,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: str = "auto",
    precision: str = "bf16",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    workers: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Train the embedded model: on single slices, then on clips for the memory, then on corrections.

    Ctrl-C stops after the current step; the same command resumes.

    Options
    -------
    data: Folder of data sets: *_img.png and *_seg.png, *_seg.nii.gz.
    steps A,B,C: Steps of the stages; the usual ones by default.
    start FILE: Weights to continue from: only the stage of corrections is run.
    keep_encoder: With --start: freeze the image encoder.
    precision: bf16 or fp32; on many CPUs one is far slower.
    threads: CPU threads of the network.
    workers: Processes that prepare batches.
    """
    from dataclasses import replace

    from medsam2_core.atomic import check_target, protect
    from medsam2_core.engine.devices import choose_device
    from medsam2_core.errors import TrainingError
    from medsam2_core.training.base import BaseTrainer, BaseTraining, stages_from_weights

    if precision not in ("bf16", "fp32"):
        message = f"--precision {precision}: use bf16 or fp32"
        raise TrainingError(message, code="unknown-precision", precision=precision)
    if keep_encoder and start is None:
        message = "--keep-encoder needs --start: an untrained encoder cannot be kept"
        raise TrainingError(message, code="no-start")
    settings = BaseTraining(
        data=str(data),
        start=None if start is None else str(start),
        seed=seed,
        device=str(choose_device(device)),
        precision=precision,
        threads=threads,
        workers=workers,
    )
    if start is not None:
        settings = replace(settings, stages=stages_from_weights(keeps_encoder=keep_encoder))
    if steps is not None:
        counts = _steps(steps, len(settings.stages))
        stages = [replace(stage, steps=n) for stage, n in zip(settings.stages, counts, strict=True)]
        settings = replace(settings, stages=tuple(stage for stage in stages if stage.steps))
    if start is not None and out.is_dir():
        with protect(start):
            check_target(out / "weights.safetensors", overwrite=True)
    trainer = BaseTrainer(settings, out, _report)
    _run(trainer.run, out / "weights.safetensors")


def predictor(
    data: list[Path],
    out: Out,
    begin: Annotated[Path | None, typer.Option("--from")] = None,
    minutes: float = 70.0,
    base: str = "embedded",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: str = "auto",
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Pretrain the weights that `train auto` starts from, on several data sets at once.

    Ctrl-C stops after the current step; the same command resumes.

    Options
    -------
    data: Folders of data sets: folders of *_img.png and *_seg.png.
    begin FILE: Earlier start to continue from: its predictor is trained further, its encoder adapters are
        kept, and its data sets must be the first ones. With no other data sets its texture adapter is trained
        further, too.
    minutes: Minutes of training, over all runs of the command.
    base: The SAM 2 model it is trained for.
    threads: CPU threads of the network.
    """
    import torch

    from medsam2_core.atomic import check_target, protect
    from medsam2_core.auto.fewshot.pretraining import Pretrainer, Pretraining
    from medsam2_core.engine.model import load_model

    if begin is not None and out.is_dir():
        with protect(begin):
            check_target(out / "start.safetensors", overwrite=True)
    torch.set_num_threads(threads)
    model = load_model(base, device, "fp32")
    trainer = Pretrainer(model, data, out, Pretraining(minutes=minutes, seed=seed), _report, begin)
    _run(trainer.run, out / "start.safetensors")


def package(
    run: Path,
    out: Out,
    overwrite: bool = False,
) -> None:
    """Store the averaged weights of a run in half precision, as they ship; print size and SHA-256.

    Options
    -------
    run: Folder of a run.
    out: The .safetensors file to write.
    """
    from medsam2_core.atomic import check_target, protect
    from medsam2_core.training.packaging import package as pack

    with protect(run / "weights.safetensors"):
        check_target(out, overwrite=overwrite)
    size, sha256 = pack(run, out)
    print(f"{out}: {size} bytes, sha256 {sha256}")


def presence(
    data: Path,
    out: Out,
    model: str = "embedded",
    objects: Annotated[int, typer.Option(min=2)] = 69,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: str = "auto",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Fit the rule that ends tracking to tracked objects, and measure what it is worth.

    Prints mean Dice by data set: without the rule, with the weights in the model's recipe, with weights
    fitted to the other data sets, and with the true ends; then weights fitted to all (`presence` of a
    recipe): they are printed and noted in presence.json, no model is changed. What was tracked is kept: the
    same command goes on with it.

    Options
    -------
    data: Folder of data sets: *_seg.nii.gz, with *_img.nii.gz or painted; pictures are left out.
    out: Folder for evidence.npz and presence.json.
    objects: How many to track, as many of each data set.
    threads: CPU threads of the network.
    """
    import torch

    from medsam2_core.engine.model import load_model
    from medsam2_core.training.presence import calibrate

    torch.set_num_threads(threads)
    loaded = load_model(model, device, "fp32")
    with progress_bar("tracking", objects) as update:
        found = calibrate(data, out, loaded, objects, seed, update)
    rows = []
    for name, one in found.figures.items():
        figures = (one.none, one.recipe, one.fitted, one.true, one.auc)
        texts = ("-" if figure is None else f"{figure:.3f}" for figure in figures)
        rows.append((name, str(one.objects), *texts))
    print_table(rows, ("DATA SET", "OBJECTS", "NO RULE", "RECIPE", "FITTED", "TRUE ENDS", "AUC"))
    print(f'"presence": {list(found.weights)}')


def _run(train: Callable[[Callable[[], bool]], object], weights: Path) -> None:
    """Train until it is done, and print the file of the weights; Cancelled when it was stopped."""
    should_stop = stop_on_request()
    train(should_stop)
    if should_stop():
        raise Cancelled(f"stopped; the same command resumes the run in {weights.parent}")
    print(weights)


def _steps(text: str, stages: int) -> list[int]:
    from medsam2_core.errors import TrainingError

    parts = text.split(",")
    if len(parts) != stages or not all(part.strip().isdecimal() for part in parts):
        message = f"--steps {text}: give one number per stage, {stages} in all, such as 3000,1300,2600"
        raise TrainingError(message, code="steps-wanted", steps=text, stages=stages)
    return [int(part) for part in parts]


def _report(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


register(app, "base", base)
register(app, "predictor", predictor)
register(app, "presence", presence)
register(app, "package", package)
