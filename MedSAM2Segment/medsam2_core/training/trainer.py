"""The training engine: stages one after another, with an averaged model, validation, a log, and resumption.

A run is a folder: ``last.pt`` (everything needed to go on after a stop), ``log.jsonl`` (one line a report)
and ``weights.safetensors`` (averaged weights, for use). Everything random depends on the seed and the
number of the step alone, so a run that was killed and resumed goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.engine.checkpoint import DAMAGE
from medsam2_core.engine.devices import choose_device
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.errors import TrainingError
from medsam2_core.training.loader import Batch, Views, stream
from medsam2_core.training.losses import AffinityHeads
from medsam2_core.training.objective import Objective, Stage
from medsam2_core.training.parts import parameter_groups, plain_state, prepare
from medsam2_core.training.processes import ALONE, Processes
from medsam2_core.training.validation import validate
from medsam2_core.training.views import View

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# After so many steps it is known how long one takes.
_TIMED_STEPS = 3
_FEWEST_STEPS, _MOST_STEPS = 10, 100_000


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of every training, stored in its folder.

    Attributes
    ----------
    stages
        A stage of 0 steps takes as many as `minutes` allow.
    warm_up
        Steps of a linear warm-up at the beginning of each stage, at most a fifth of it.
    last_rate
        Learning rate at the end of the cosine, as a share of the peak.
    averaging
        Decay of the exponential moving average of the weights.
    validate_every
        Steps between validations; 0 validates eight times a stage.
    patience
        Validations without a better score after which the training ends, with the best weights; 0 trains to
        the end and keeps the last.
    """

    seed: int = 1
    stages: tuple[Stage, ...] = ()
    minutes: float = 0.0
    warm_up: int = 150
    last_rate: float = 0.02
    weight_decay: float = 0.05
    clip: float = 1.0
    averaging: float = 0.999
    precision: str = "bf16"
    device: str = "cpu"
    threads: int = 2
    workers: int = 1
    validation_views: int = 8
    report_every: int = 100
    validate_every: int = 500
    save_every: int = 100
    patience: int = 0


class Trainer:
    """Runs the stages one after another; ``run`` may be stopped at any moment and called again.

    A training of its own gives the data (`views`, `validation_views`) and, if it likes, `identity`: what must
    be equal for a run to be resumed.

    Parameters
    ----------
    folder
        The run's folder; an existing run is resumed.
    module
        The network, with the weights to start from. It is trained in place.
    report
        Called with one dict a log line.
    processes
        The processes that train together; only the first writes.

    Raises
    ------
    TrainingError
        If the folder cannot be used, or holds a run with other settings or a damaged one.
    DeviceError
        If this machine does not have the device.
    """

    #: Whether the averaged weights are written whenever the run is saved.
    writes_weights = True

    def __init__(
        self,
        settings: RunSettings,
        folder: str | Path,
        module: SAM2Base,
        recipe: PromptRecipe,
        report: Callable[[dict], None] = lambda _: None,
        processes: Processes = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.folder, self._report_to = settings, Path(folder), report
        self.processes, self._clock = processes, clock
        self.device = choose_device(settings.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{folder} cannot be the run's folder: {error.strerror or error}"
            raise TrainingError(message, code="run-folder-unusable", folder=str(folder)) from error
        with self._random_numbers(settings.seed):
            self.module = module.to(self.device)
            self.heads = AffinityHeads(module.hidden_dim).to(self.device)
            trained = [name for stage in settings.stages for name in self._prepare(module, stage)]
        self._trained = set(trained)
        self.size = module.image_size
        self.objective = Objective(module, self.heads, recipe)
        self.average = {name: value.clone() for name, value in self._parameters().items()}
        self.best: dict[str, Any] = {"score": -1.0, "step": 0, "bad": 0, "average": None}
        self.stage_index = self.step = self.steps = 0
        #: Of every stage that has ended: its steps, and after how many the weights were best (0: not known).
        self.done: list[dict[str, int]] = []
        self.seconds = 0.0
        self._since = clock()
        self._pending_optimiser: dict | None = None
        self._resume()

    @staticmethod
    def _prepare(module: SAM2Base, stage: Stage) -> list[str]:
        return prepare(module, stage.parts, encoder=stage.trunk_factor > 0)

    def views(self, turn: Stage) -> Views:
        """Return the batches of a stage, or of one of its turns."""
        raise NotImplementedError

    def validation_views(self, stage: Stage) -> dict[str, list[View]]:
        """Return the views to validate with, by row."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return what a run that is to be resumed must have in common with this one, by name."""
        return {"seed": self.settings.seed}

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights under SAM 2's names."""
        kept = {name: value.clone() for name, value in self._parameters().items()}
        self._put_in(self.average)
        try:
            return {name: value.detach().clone() for name, value in plain_state(self.module).items()}
        finally:
            self._put_in(kept)

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end, or until ``should_stop`` returns True; either way the run can be resumed.

        Returns whether it is done.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        self._since = self._clock()
        try:
            while self.stage_index < len(self.settings.stages):
                if not self._run_stage(self.settings.stages[self.stage_index], should_stop):
                    return False
            return True
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            raise self._out_of_memory() from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            raise self._out_of_memory() from error
        finally:
            torch.set_num_threads(threads)

    def _run_stage(self, stage: Stage, should_stop: Callable[[], bool]) -> bool:
        """Train until the stage ends (True) or ``should_stop`` returns True (False)."""
        with self._random_numbers(self.settings.seed):
            self._prepare(self.module, stage)
        optimiser = self._optimiser(stage)
        self.steps = stage.steps or self.steps
        turns = stage.turns
        firsts = [self.step + (n - self.step) % len(turns) for n in range(len(turns))]
        batches = [
            stream(self.views(turn), first, self.settings.workers, len(turns))
            for turn, first in zip(turns, firsts, strict=True)
        ]
        validation = self.validation_views(stage) if self.processes.is_first else {}
        meter, stop, ends = _Meter(self._clock), 0.0, deque[float](maxlen=_TIMED_STEPS)
        while not (self._is_over() or stop):
            self._set_rate(optimiser)
            turn = turns[self.step % len(turns)]
            passes = next(batches[self.step % len(turns)])
            meter.add(self._train_step(passes, turn, optimiser), images=turn.batch * turn.frames)
            self.step += 1
            ends.append(self._clock())
            self._count_time()
            stop, seconds, pace = self.processes.from_first(
                [should_stop(), self.seconds, (ends[-1] - ends[0]) / max(len(ends) - 1, 1)]
            )
            self._plan(stage, seconds, pace)
            meter = self._after_step(stage, optimiser, validation, meter, bool(stop))
        if not self._is_over():
            return False
        self._end_stage()
        return not stop or self.stage_index == len(self.settings.stages)

    def _is_over(self) -> bool:
        patience = self.settings.patience
        return 0 < self.steps <= self.step or 0 < patience <= self.best["bad"]

    def _end_stage(self) -> None:
        if self.best["average"] is not None:
            self.average = {name: value.to(self.device) for name, value in self.best["average"].items()}
        self.best = {**self.best, "score": -1.0, "bad": 0, "average": None}
        self.done.append({"stage": self.stage_index, "steps": self.steps, "best": self.best["step"]})
        self.stage_index, self.step, self.steps = self.stage_index + 1, 0, 0
        self._pending_optimiser = None
        self._save(optimiser=None)

    def _plan(self, stage: Stage, seconds: float, seconds_a_step: float) -> None:
        """Decide how many steps there is time for, as soon as it is known how long one takes.

        Where steps or validations turn out to take longer, the stage ends when its time is over.
        """
        if stage.steps or self.step < _TIMED_STEPS:
            return
        left = self.settings.minutes * 60 - seconds
        if self.steps:
            self.steps = self.steps if left > 0 else min(self.step, self.steps)
        else:
            # The first one is slow.
            steps = self.step + 0.92 * left / max(seconds_a_step, 1e-6)
            self.steps = max(int(min(max(steps, _FEWEST_STEPS), _MOST_STEPS)), self.step + 1)

    def _set_rate(self, optimiser: torch.optim.Optimizer) -> None:
        settings = self.settings
        factor = schedule(self.step, self.steps or _MOST_STEPS, settings.warm_up, settings.last_rate)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor

    def _after_step(
        self,
        stage: Stage,
        optimiser: torch.optim.Optimizer,
        validation: dict[str, list[View]],
        meter: _Meter,
        stop: bool,
    ) -> _Meter:
        """Report, validate and save when it is time to; return the meter to go on with."""
        settings, ends = self.settings, self.step == self.steps
        every = settings.validate_every or max(1, -(-self.steps // 8))
        validates = ends or (self.steps and self.step % every == 0)
        if self.step % settings.report_every == 0 or ends or stop:
            self._log({"stage": stage.name, "step": self.step, "steps": self.steps, **meter.means()})
            meter = _Meter(self._clock)
        if validates:
            meter.pause()
            self._validate(validation, stage)
            meter.go_on()
        if validates or stop or self.step % settings.save_every == 0:
            self._save(optimiser)
        return meter

    def _validate(self, views: dict[str, list[View]], stage: Stage) -> None:
        """Log figures of the averaged weights, and keep those that are best."""
        if self.processes.is_first and views:
            scores = self.scores(views, stage)
            self._log({"stage": stage.name, "step": self.step, "validation": scores})
            score = sum(scores["mean"].values()) / max(len(scores["mean"]), 1)
        else:
            score = -1.0
        (score,) = self.processes.from_first([score])
        if not self.settings.patience or score < 0:
            return
        if score > self.best["score"]:
            kept = {name: value.detach().clone() for name, value in self.average.items()}
            self.best = {"score": score, "step": self.step, "bad": 0, "average": kept}
        else:
            self.best["bad"] += 1

    def scores(self, views: dict[str, list[View]], stage: Stage) -> dict[str, dict[str, float]]:
        """Return the figures of the averaged weights on views; the others are put back."""
        kept = {name: value.clone() for name, value in self._parameters().items()}
        modes = {part: part.training for part in self.module.modules()}
        self._put_in(self.average)
        self.module.eval()
        try:
            with self._autocast():
                return validate(self.objective, views, stage)
        finally:
            self._put_in(kept)
            for part, mode in modes.items():
                part.training = mode

    def _train_step(
        self, passes: Sequence[Batch], stage: Stage, optimiser: torch.optim.Optimizer
    ) -> dict[str, float]:
        """Train on the passes of this process, which are some of the step's `stage.passes`."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        count = min(stage.passes, stage.batch)
        for number, batch in enumerate(passes):
            place = number * self.processes.count + self.processes.number
            seed = _seed_of(self.settings.seed, self.stage_index, self.step, place)
            generator = torch.Generator().manual_seed(seed)
            # The fused attention kernel's backward is slow for the decoder's few tokens on a CPU.
            with self._random_numbers(seed), self._autocast(), sdpa_kernel(SDPBackend.MATH):
                losses = self.objective.losses(batch, stage, generator)
                total = torch.stack(list(losses.values())).sum() / count
            if torch.isfinite(total):
                total.backward()
            else:  # one bad draw must not end a night's run, nor poison the average
                sums["skipped"] = 1.0
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / count
        sums = self._of_all(sums)
        self.processes.sum_gradients(parameters)
        finite = torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip))
        if "skipped" in sums or not finite:
            return {"skipped": 1.0}
        optimiser.step()
        self._update_average()
        return sums

    def _of_all(self, sums: dict[str, float]) -> dict[str, float]:
        if self.processes.count == 1:
            return sums
        names = ("mask", "iou", "presence", "worse", "affinity", "skipped")
        here = torch.tensor([sums.get(name, 0.0) for name in names], device=self.device)
        there = torch.tensor([float(name in sums) for name in names], device=self.device)
        values, known = self.processes.sum(here).tolist(), self.processes.sum(there).tolist()
        return {name: value for name, value, one in zip(names, values, known, strict=True) if one}

    def _optimiser(self, stage: Stage) -> torch.optim.Optimizer:
        groups = parameter_groups(self.module, self.heads, stage, self.settings.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.99))
        if self._pending_optimiser is not None:
            try:
                optimiser.load_state_dict(self._pending_optimiser)
            except DAMAGE as error:
                raise self._damaged(error) from error
            self._pending_optimiser = None
        return optimiser

    @contextmanager
    def _random_numbers(self, seed: int) -> Iterator[None]:
        """Draw initial weights and dropout from a seed, without changing the global random state."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def _autocast(self) -> torch.autocast:
        kind = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.settings.precision != "fp32")

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.module.named_parameters() if n in self._trained}

    def _put_in(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in self._parameters().items():
            value.copy_(values[name])

    def _update_average(self) -> None:
        # Early on the average follows closely, so that it is not mostly the random start.
        keep = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        for name, value in self._parameters().items():
            self.average[name].lerp_(value, 1 - keep)

    def _count_time(self) -> None:
        now = self._clock()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _log(self, line: dict) -> None:
        self._count_time()
        line = {"hours": round(self.seconds / 3600, 4), **line}
        if self.processes.is_first:
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            self._report_to(line)

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        self._count_time()
        if not self.processes.is_first:
            return
        log = self.folder / "log.jsonl"
        state = {
            "settings": asdict(self.settings),
            "identity": self.identity(),
            "stage_index": self.stage_index,
            "step": self.step,
            "steps": self.steps,
            "done": self.done,
            "seconds": self.seconds,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "parameters": self._parameters(),
            "heads": self.heads.state_dict(),
            "average": self.average,
            "best": self.best,
            "optimiser": optimiser.state_dict() if optimiser else None,
        }
        self._put("last.pt", lambda partial: torch.save(state, partial))
        if not self.writes_weights:
            return
        weights = {key: value.contiguous() for key, value in self.state().items()}
        # safetensors' own writer makes files that only the owner can read.
        self._put("weights.safetensors", lambda partial: partial.write_bytes(save(weights)))

    def _put(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file in the run's folder, whole or not at all."""
        partial = self.folder / f"{name}.partial"
        try:
            write(partial)
            os.replace(partial, self.folder / name)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            message = f"{self.folder / name} cannot be written: {error}"
            raise TrainingError(message, code="run-not-written", path=str(self.folder / name)) from error

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            self._cut_log(0)
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if "identity" not in state:
                raise KeyError("the run is of an earlier version")
            self._check_same_run(state["identity"], state["settings"], int(state["stage_index"]))
            for values in (state["parameters"], state["average"], state["best"]["average"] or self.average):
                if values.keys() != self.average.keys():
                    raise KeyError("the weights belong to another network")
            self._put_in(state["parameters"])
            self.average = {key: value.to(self.device) for key, value in state["average"].items()}
            self.heads.load_state_dict(state["heads"])
            self.best, self.done = dict(state["best"]), list(state["done"])
            self.stage_index, self.step = int(state["stage_index"]), int(state["step"])
            self.steps, self.seconds = int(state["steps"]), float(state["seconds"])
            self._pending_optimiser = state["optimiser"]
            self._cut_log(int(state["log_bytes"]))
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> TrainingError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return TrainingError(
            f"{self.folder / 'last.pt'} is damaged or was written by another version ({reason}): "
            "remove it to start again, or choose another --out",
            code="run-damaged", path=str(self.folder / "last.pt"), reason=reason,
        )  # fmt: skip

    def _cut_log(self, size: int) -> None:
        """Remove what a run that was killed has logged since it was saved: it comes again."""
        log = self.folder / "log.jsonl"
        if self.processes.is_first and log.exists() and log.stat().st_size > size:
            os.truncate(log, size)

    def _check_same_run(self, identity: dict, theirs: dict, stage_index: int) -> None:
        """Refuse to go on with another network, other random numbers, or in another stage."""
        for key, value in self.identity().items():
            if identity[key] != value:
                raise TrainingError(
                    f"{self.folder} holds a run with {key}={identity[key]!r}, not "
                    f"{value!r}: choose another --out, or the same {key}",
                    code="run-differs", folder=str(self.folder), setting=key, found=identity[key],
                )  # fmt: skip
        started = [stage["name"] for stage in theirs["stages"]][: stage_index + 1]
        ours = [stage.name for stage in self.settings.stages]
        if started != ours[: len(started)]:
            raise TrainingError(
                f"{self.folder} holds a run with the stages {', '.join(started)}, not {', '.join(ours)}: "
                "choose another --out, or the same stages",
                code="run-differs", folder=str(self.folder), setting="stages", found=started,
            )  # fmt: skip

    def _out_of_memory(self) -> TrainingError:
        """Return the error that names the option that helps most."""
        stage = self.settings.stages[min(self.stage_index, len(self.settings.stages) - 1)]
        if stage.frames > 2:
            option, instead = "--clip", str(max(2, stage.frames // 2))
        elif stage.passes < stage.batch:
            option, instead = "--batch", str(max(1, stage.batch // 2))
        elif stage.parts == "all" and stage.trunk_factor:
            option, instead = "--train", "decoder+memory"
        else:
            option, instead = "--image-size", str(max(64, self.size // 2))
        return TrainingError(
            f"the memory of {self.device} is full: train with {option} {instead}, or close other programs",
            code="training-memory", device=str(self.device), option=option, value=instead,
        )  # fmt: skip


class _Meter:
    """Means of losses and speed since the last report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._skipped = self._images = 0
        self._clock, self._seconds, self._since = clock, 0.0, clock()

    def pause(self) -> None:
        """Stop the clock, until :meth:`go_on`."""
        self._seconds += self._clock() - self._since

    def go_on(self) -> None:
        """Let the clock run again."""
        self._since = self._clock()

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
        means = {key: round(value / counted, 7) for key, value in self._sums.items() if key != "skipped"}
        if self._skipped:
            means["skipped"] = self._skipped
        seconds = max(self._seconds + self._clock() - self._since, 1e-9)
        return {**means, "images_per_second": round(self._images / seconds, 2)}


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def schedule(step: int, steps: int, warm_up: int, last: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to a share `last` of the peak."""
    warm_up = min(warm_up, max(1, steps // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))
