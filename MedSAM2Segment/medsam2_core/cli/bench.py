"""`medsam2 bench`: seconds and memory of a model on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import ExitCode, print_table, progress_bar, report
from medsam2_core.cli.options import AsJson
from medsam2_core.cli.outputs import check_plot, check_targets
from medsam2_core.errors import EvaluationError, MedSAM2Error, Note

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel
    from medsam2_core.evaluation.speed import ModelChoice, SpeedSettings


# What a part of the measurements may end with while the others stay: a full card or disk, a process that was
# killed for its memory, a compiler that is missing.
_FAILURES = (MedSAM2Error, ImportError, RuntimeError, OSError, MemoryError)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Bench:
    """Measure how fast a model is on this machine, and how much memory it takes.

    On a synthetic volume: clicks, propagation of one and more objects, a whole session, sam2's own video
    predictor with the same weights in turns, and, for comparison, the matrix products of a slice alone. Warns
    when runs differ so much that the machine must be busy with something else.

    What cannot be measured is left out, with a warning.

    Options
    -------
    random CONFIG: Random weights of this SAM 2 configuration instead of a model: sam2.1_hiera_t, …
    compiled: sam2's predictor through torch.compile, which takes minutes first.
    quick: Few slices and runs: about a minute with the embedded model.
    plot FILE.png|FILE.svg: Draw the times.

    Processing
    ----------
    model: A name from `medsam2 models list`, or a checkpoint file; embedded by default.
    """

    model: str | None = None
    random: str | None = None
    quick: bool = False
    compiled: bool = False
    threads: Annotated[int | None, typer.Option(min=1)] = None
    device: str = "auto"
    precision: str = "auto"
    config: str | None = None
    image_size: int | None = None
    plot: Path | None = None
    overwrite: bool = False
    as_json: AsJson = False

    def run(self) -> None:
        """Measure, and print a table or JSON, also if the plot cannot be drawn: then the exit code is 2."""
        from medsam2_core.evaluation.speed import ModelChoice, SpeedSettings, draw

        self._check()
        choice = ModelChoice(
            self.model or "embedded", self.random, self.config, self.image_size,
            self.device, self.precision, self.threads,
        )  # fmt: skip
        facts, notes = measured(
            choice, SpeedSettings.quick() if self.quick else SpeedSettings(), self.compiled
        )
        plot, drawn = self.plot, True
        if plot is not None:
            try:
                draw(plot, facts, overwrite=self.overwrite)
            except _FAILURES as error:
                message = f"{plot} could not be written: {error}"
                notes.append(Note.warning("plot-not-written", message, path=str(plot), reason=str(error)))
                drawn = False
        report(facts, notes, _print, as_json=self.as_json)
        if not drawn:
            raise typer.Exit(ExitCode.BAD_INPUT)

    def _check(self) -> None:
        """Raise now, not after minutes of measuring, for what cannot be used."""
        if self.random is not None and (self.model is not None or self.config is not None):
            message = "--random takes random weights of its configuration: leave out --model and --config"
            raise EvaluationError(message, code="random-and-model", random=self.random)
        check_plot(self.plot)
        with atomic.protect(self.model, self.config):
            check_targets(self.plot, overwrite=self.overwrite)


def measured(
    choice: ModelChoice, settings: SpeedSettings, compiled: bool = False
) -> tuple[dict[str, Any], list[Note]]:
    """Return everything that is measured, as values for JSON, and warnings."""
    from medsam2_core.evaluation.speed import machine, measure, peak_memory
    from medsam2_core.evaluation.timings import NOISY

    model = choice()
    facts: dict[str, Any] = {
        "machine": machine(model.device),
        "model": {**model.provenance(), "image_size": model.image_size},
    }
    with progress_bar("measuring", settings.repeats) as update:
        timings = measure(model, settings, update)
    facts["timings"] = [timing.to_dict() for timing in timings]
    notes = _not_kept(timings.encoded_again, settings)
    facts["matrix_products"] = _tried("matrix products", lambda: _products(model), notes)
    with progress_bar("measuring", None) as update:
        facts["beside_sam2"], differing = _tried(
            "sam2's own predictor", lambda: _beside_stock(model, settings, compiled, update), notes
        ) or (None, [])
        facts["peak_memory"] = []
        for depth in settings.depths:
            what = f"memory, {depth} slices"
            update(0, what)
            peak = _tried(what, partial(peak_memory, choice, depth, settings.side), notes)
            facts["peak_memory"].append({"slices": depth, "side": settings.side, "mb": peak})
    if noisy := timings.noisy() + differing:
        message = (
            f"the runs of {len(noisy)} operations differ by more than {NOISY:.0%}: this machine is busy with "
            "something else, or changes its clock; measure again, and trust ratios and processor seconds more"
        )
        notes.append(Note.warning("noisy-machine", message, operations=noisy))
    return facts, notes


def _tried(what: str, work: Callable[[], _Found], notes: list[Note]) -> _Found | None:
    """Return what `work` returns; None, and a warning among the notes, where it fails."""
    try:
        return work()
    except _FAILURES as error:
        message = f"{what}: could not be measured: {error or type(error).__name__}"
        notes.append(Note.warning("not-measured", message, what=what, reason=str(error)))
        return None


def _not_kept(encoded_again: dict[str, int], settings: SpeedSettings) -> list[Note]:
    """Return a warning when repeated propagations did not find all image features in the cache."""
    counts = {name: count for name, count in encoded_again.items() if count}
    if not counts:
        return []
    message = (
        f"image features of up to {max(counts.values())} regions did not fit into the cache of "
        f"{settings.cache_bytes / 2**20:.0f} MB and were computed again: {', '.join(counts)}"
    )
    return [Note.warning("features-not-kept", message, encoded_again=counts)]


def _products(model: SegmentationModel) -> dict[str, float]:
    """Return what the matrix products of a slice of a first propagation cost alone."""
    from medsam2_core.evaluation.matrix_products import gigaflops_of_slice, seconds_of

    gigaflops = gigaflops_of_slice(model)
    return {"gigaflops": gigaflops, "seconds": seconds_of(gigaflops, model.device, model.precision.dtype)}


def _beside_stock(
    model: SegmentationModel,
    settings: SpeedSettings,
    compiled: bool,
    update: Callable[[int, str], None],
) -> tuple[dict[str, Any], list[str]]:
    """Return seconds a slice of sam2's predictor and ours, and which of them are not to be trusted."""
    from medsam2_core.evaluation.stock_video import beside_stock

    timings, iou = beside_stock(
        model, settings.slices, settings.side, max(2, settings.repeats - 1), update, compiled
    )
    found: dict[str, Any] = {"compiled": compiled, "least_iou": iou}
    for phase in ("cold", "warm"):
        stock, ours = timings[f"sam2, {phase}"], timings[f"ours, {phase}"]
        found[phase] = {"sam2": stock.median, "ours": ours.median, "ratio": timings.ratio(stock, ours)}
    return found, timings.noisy()


def _print(facts: dict[str, Any]) -> None:
    machine, model = facts["machine"], facts["model"]
    where = machine["card"] or f"{machine['processor']}, {machine['threads']} threads"
    print(f"{model['model']} at {model['image_size']} pixels, {model['precision']}, on {where}")
    rows = [
        (one["name"], f"{one['median']:.3f} {one['unit']}", f"{one['least']:.3f} to {one['most']:.3f}",
         f"{one['cpu']:.3f}")
        for one in facts["timings"]
    ]  # fmt: skip
    print_table(rows, ("OPERATION", "MEDIAN", "RANGE", "PROCESSOR s"))
    products, beside = facts["matrix_products"], facts["beside_sam2"]
    if products is not None:
        print(f"matrix products alone: {products['seconds']:.3f} s/slice, {products['gigaflops']:.1f} GFLOP")
    if beside is not None:
        found = [(phase, *(f"{value:.3f}" for value in beside[phase].values())) for phase in ("cold", "warm")]
        title = "COMPILED SAM2 s/slice" if beside["compiled"] else "SAM2 s/slice"
        print_table(found, ("PROPAGATION", title, "OURS s/slice", "SAM2/OURS"))
        if beside["least_iou"] is not None:
            print(f"smallest IoU of their masks: {beside['least_iou']:.4f}")
    for one in facts["peak_memory"]:
        peak = "not known" if one["mb"] is None else f"{one['mb']:.0f} MB"
        print(f"peak memory, {one['slices']} slices of {one['side']} x {one['side']}: {peak}")
