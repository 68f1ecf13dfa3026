"""Training the embedded model from nothing: single slices, clips for the memory, then both by turns.

Prompts are drawn as well as embedded, an affinity loss gives the trunk a dense signal, and corrections are as
frequent as first prompts. A run is a folder:
``last.pt`` (everything needed to go on after a stop), ``log.jsonl`` (one line a report),
``weights.safetensors`` (averaged weights, for use).
"""

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.devices import choose_device
from medsam2_core.engine.model import build_module
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.errors import TrainingError
from medsam2_core.training.lesions import load_shapes
from medsam2_core.training.loader import Batch, Mixture, fixed_views, stream
from medsam2_core.training.losses import AffinityHeads
from medsam2_core.training.objective import Objective, Stage
from medsam2_core.training.sources import load_sources, split
from medsam2_core.training.validation import validate

# What the embedded model receives beside tokens; equal to its recipe in the catalogue.
EMBEDDED_RECIPE = PromptRecipe(
    draws_prompts=True,
    negative_radius=0.03,
    carries_mask=True,
    least_iou=0.35,
    least_score=0.5,
    box_prior=2.0,
)

# What torch and its unpickler raise on a file that was cut off, changed, or never was a run's state.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    EOFError, OSError, ArithmeticError, MemoryError, RecursionError, ImportError,
)  # fmt: skip

SLICES = Stage("slices", steps=3_000, frames=1, batch=8, learning_rate=8e-4)
CLIPS = Stage(
    "clips", steps=1_300, frames=5, batch=2, learning_rate=3e-4, trunk_factor=0.3, corrections=1,
    tracked_weight=0.4, affinity_weight=0.3, carried_noise=0.2,
)  # fmt: skip
CORRECTIONS = replace(
    CLIPS, name="corrections", steps=2_600, frames=7, learning_rate=4e-4, trunk_factor=0.6, corrections=2,
    tracked_corrections=0.4, tracked_weight=0.65, affinity_weight=0.5, carried_noise=0.4, worse_weight=1.0,
    slices=8,
)  # fmt: skip


def stages_from_weights(steps: int = CORRECTIONS.steps, keeps_encoder: bool = False) -> tuple[Stage, ...]:
    """The stages of a run that starts from trained weights: corrections alone.

    With ``keeps_encoder`` the image encoder stays as it is, so that what was trained on its features (a start
    of few-shot training) still fits.
    """
    if not keeps_encoder:
        return (replace(CORRECTIONS, steps=steps),)
    return (replace(CORRECTIONS, steps=steps, trunk_factor=0.0, affinity_weight=0.0),)


@dataclass(frozen=True)
class BaseTraining:
    """Settings of a run, stored in its folder.

    A resumed run must have the same network, seed and started stages; steps, data and pace may change. Views
    are drawn afresh from the step a run was stopped at: a resumed run is as good as one that never stopped,
    not equal to it.

    Attributes
    ----------
    start
        Weights to start from, a path; None starts from random ones. A resumed run has its own.
    """

    data: str
    config: str = "embedded"
    start: str | None = None
    seed: int = 1
    stages: tuple[Stage, ...] = (SLICES, CLIPS, CORRECTIONS)
    mixture: Mixture = field(default_factory=Mixture)
    warm_up: int = 150
    weight_decay: float = 0.05
    averaging: float = 0.999
    precision: str = "bf16"
    device: str = "cpu"
    threads: int = 2
    workers: int = 1
    validation_views: int = 8
    report_every: int = 100
    validate_every: int = 500
    save_every: int = 100


class BaseTrainer:
    """Runs the stages one after another; ``run`` may be stopped at any moment and called again.

    Parameters
    ----------
    settings
        What to train on and how.
    folder
        The run's folder; an existing run is resumed.
    report
        Called with one dict a log line.

    Raises
    ------
    TrainingError
        If the data cannot be read, or the folder holds a run with other settings or a damaged one.
    DeviceError
        If this machine does not have the device.
    """

    def __init__(
        self, settings: BaseTraining, folder: str | Path, report: Callable[[dict], None] = lambda _: None
    ) -> None:
        self.settings = settings
        self.folder = Path(folder)
        self._report_to = report
        self.device = choose_device(settings.device)
        self._training, self._validation = split(load_sources(settings.data))
        self._shapes = load_shapes(settings.data)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{folder} cannot be the run's folder: {error.strerror or error}",
                code="run-folder-unusable", folder=str(folder),
            ) from error  # fmt: skip
        with self._random_numbers(settings.seed):
            self.module = build_module(settings.config).to(self.device).train()
            self.heads = AffinityHeads(self.module.hidden_dim).to(self.device)
        if settings.start is not None:
            load_strict(self.module, read_state_dict(settings.start), settings.config, settings.start)
        self.size = self.module.image_size
        self.objective = Objective(self.module, self.heads, EMBEDDED_RECIPE)
        self.average = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        self.stage_index = 0
        self.step = 0
        self.seconds = 0.0
        self._since = time.monotonic()
        self._pending_optimiser: dict | None = None
        self._resume()

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end, or until ``should_stop`` returns True; either way the run can be resumed."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        try:
            self._run_stages(should_stop)
        finally:
            torch.set_num_threads(threads)

    def _run_stages(self, should_stop: Callable[[], bool]) -> None:
        self._since = time.monotonic()
        while self.stage_index < len(self.settings.stages):
            stage = self.settings.stages[self.stage_index]
            stopped = self._run_stage(stage, should_stop)
            if self.step < stage.steps:
                return
            self.stage_index += 1
            self.step = 0
            self._pending_optimiser = None
            self._save(optimiser=None)
            if stopped:
                return

    def _run_stage(self, stage: Stage, should_stop: Callable[[], bool]) -> bool:
        """Train until the stage ends or ``should_stop`` returns True; return which."""
        settings = self.settings
        optimiser = self._optimiser(stage)
        turns = stage.turns
        batches = [self._batches(turn) for turn in turns]
        validation = fixed_views(self._validation, self.size, stage.frames, settings.validation_views, seed=7)
        meter, stop = _Meter(), False
        while self.step < stage.steps and not stop:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(self.step, stage.steps, settings.warm_up)
            turn = turns[self.step % len(turns)]
            batch = next(batches[self.step % len(turns)])
            meter.add(self._train_step(batch, turn, optimiser), images=turn.batch * turn.frames)
            self.step += 1
            stop = should_stop()
            ends = self.step == stage.steps
            if self.step % settings.report_every == 0 or ends or stop:
                self._log({"stage": stage.name, "step": self.step, **meter.means()})
                meter = _Meter()
            if self.step % settings.validate_every == 0 or ends:
                meter.pause()
                scores = self._validate(validation, stage)
                self._log({"stage": stage.name, "step": self.step, "validation": scores})
                self._save(optimiser)
                meter.go_on()
            elif stop or self.step % settings.save_every == 0:
                self._save(optimiser)
        return stop

    def _batches(self, turn: Stage) -> Iterator[Batch]:
        """Batches of a stage, other ones for every step a run is resumed at."""
        seed = self.settings.seed * 1_000_003 + self.stage_index * 100_003 + self.step + 7_919 * turn.frames
        return stream(
            self._training, self.settings.mixture, size=self.size, frames=turn.frames, batch=turn.batch,
            seed=seed, workers=self.settings.workers, shapes=self._shapes,
        )  # fmt: skip

    def _train_step(self, batch: Batch, stage: Stage, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        seed = (self.settings.seed << 32) + (self.stage_index << 28) + self.step
        generator = torch.Generator().manual_seed(seed)
        # The fused attention kernel's backward is slow for the decoder's few tokens on a CPU.
        with self._random_numbers(seed), self._autocast(), sdpa_kernel(SDPBackend.MATH):
            losses = self.objective.losses(batch, stage, generator)
            total = torch.stack(list(losses.values())).sum()
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if not torch.isfinite(total):
            # One bad draw must not end a night's run, nor poison the average.
            return {"skipped": 1.0}
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 1.0)):
            return {"skipped": 1.0}
        optimiser.step()
        self._update_average()
        return {key: float(value.detach()) for key, value in losses.items()}

    def _validate(self, views: dict[str, list], stage: Stage) -> dict[str, dict[str, float]]:
        """Validate the averaged weights, then go on with the others."""
        kept = {key: value.clone() for key, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        self.module.eval()
        try:
            with self._autocast():
                return validate(self.objective, views, stage)
        finally:
            self.module.load_state_dict(kept)
            self.module.train()

    def _optimiser(self, stage: Stage) -> torch.optim.Optimizer:
        groups: dict[tuple[bool, bool], list] = {}
        named = [*self.module.named_parameters(), *self.heads.named_parameters(prefix="affinity")]
        for name, parameter in named:
            if not stage.trunk_factor and name.startswith("image_encoder"):
                continue
            if not stage.affinity_weight and name.startswith("affinity"):
                continue
            groups.setdefault((name.startswith("image_encoder"), parameter.ndim >= 2), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "weight_decay": self.settings.weight_decay if decays else 0.0,
                    "peak": stage.learning_rate * (stage.trunk_factor if trunk else 1.0),
                }
                for (trunk, decays), parameters in groups.items()
            ],
            lr=stage.learning_rate,
            betas=(0.9, 0.99),
        )
        if self._pending_optimiser is not None:
            try:
                optimiser.load_state_dict(self._pending_optimiser)
            except _DAMAGE as error:
                raise self._damaged(error) from error
            self._pending_optimiser = None
        return optimiser

    @contextmanager
    def _random_numbers(self, seed: int) -> Iterator[None]:
        """Context: initial weights and dropout are drawn from a seed; nobody else's random numbers change."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _update_average(self) -> None:
        # Early on the average follows closely, so that it is not mostly the random start.
        keep = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - keep)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _log(self, line: dict) -> None:
        self._count_time()
        line = {"hours": round(self.seconds / 3600, 3), **line}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._report_to(line)

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        self._count_time()
        state = {
            "settings": asdict(self.settings),
            "stage_index": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average,
            "optimiser": optimiser.state_dict() if optimiser else None,
        }
        self._put("last.pt", lambda partial: torch.save(state, partial))
        weights = {key: value.contiguous() for key, value in self.average.items()}
        # Not safetensors' own writer of files: it lets nobody but the owner read them.
        self._put("weights.safetensors", lambda partial: partial.write_bytes(save(weights)))

    def _put(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file in the run's folder, whole or not at all."""
        partial = self.folder / f"{name}.partial"
        try:
            write(partial)
            os.replace(partial, self.folder / name)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            raise TrainingError(
                f"{self.folder / name} cannot be written: {error}",
                code="run-not-written", path=str(self.folder / name),
            ) from error  # fmt: skip

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._check_same_run(state["settings"], state["stage_index"])
            self.stage_index, self.step = int(state["stage_index"]), int(state["step"])
            self.seconds = float(state["seconds"])
            self.module.load_state_dict(state["module"])
            self.heads.load_state_dict(state["heads"])
            if state["average"].keys() != self.average.keys():
                raise KeyError("the averaged weights belong to another network")
            self.average = {key: value.to(self.device) for key, value in state["average"].items()}
            self._pending_optimiser = state["optimiser"]
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self._remove_partial_line()

    def _damaged(self, error: Exception) -> TrainingError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return TrainingError(
            f"{self.folder / 'last.pt'} is damaged or was written by another version ({reason}): "
            "remove it to start again, or choose another --out",
            code="run-damaged", path=str(self.folder / "last.pt"), reason=reason,
        )  # fmt: skip

    def _remove_partial_line(self) -> None:
        """Remove the incomplete last line of the log of a run that was killed while writing it."""
        log = self.folder / "log.jsonl"
        text = log.read_bytes() if log.exists() else b""
        if text and not text.endswith(b"\n"):
            log.write_bytes(text[: text.rfind(b"\n") + 1])

    def _check_same_run(self, theirs: dict, stage_index: int) -> None:
        """Refuse to go on with another network, other random numbers, or in another stage."""
        for key in ("config", "seed"):
            if theirs[key] != getattr(self.settings, key):
                raise TrainingError(
                    f"{self.folder} holds a run with {key}={theirs[key]!r}, not "
                    f"{getattr(self.settings, key)!r}: choose another --out, or the same {key}",
                    code="run-differs", folder=str(self.folder), setting=key, found=theirs[key],
                )  # fmt: skip
        started = [stage["name"] for stage in theirs["stages"]][: stage_index + 1]
        ours = [stage.name for stage in self.settings.stages]
        if started != ours[: len(started)]:
            raise TrainingError(
                f"{self.folder} holds a run with the stages {', '.join(started)}, not {', '.join(ours)}: "
                "choose another --out, or the same stages",
                code="run-differs", folder=str(self.folder), setting="stages", found=started,
            )  # fmt: skip


class _Meter:
    """Means of losses and speed since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._skipped = self._images = 0
        self._seconds, self._since = 0.0, time.monotonic()

    def pause(self) -> None:
        """Stop the clock, until :meth:`go_on`."""
        self._seconds += time.monotonic() - self._since

    def go_on(self) -> None:
        """Let the clock run again."""
        self._since = time.monotonic()

    def add(self, parts: dict[str, float], images: int) -> None:
        """Count one step's losses; of a skipped step only that it was skipped."""
        self._steps += 1
        self._images += images
        self._skipped += "skipped" in parts
        for key, value in parts.items():
            self._sums[key] = self._sums.get(key, 0.0) + value

    def means(self) -> dict[str, float]:
        """Loss by term over the steps that counted, steps skipped if any, and images a second."""
        counted = max(self._steps - self._skipped, 1)
        means = {key: round(value / counted, 4) for key, value in self._sums.items() if key != "skipped"}
        if self._skipped:
            means["skipped"] = self._skipped
        seconds = max(self._seconds + time.monotonic() - self._since, 1e-9)
        return {**means, "images_per_second": round(self._images / seconds, 2)}


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
