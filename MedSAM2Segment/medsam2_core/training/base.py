"""Training the embedded model from nothing: first single slices, then clips for the memory.

What a first experiment taught is built in: prompts are drawn as well as embedded, an affinity loss makes
the trunk look at the image, and corrections are as frequent as first prompts. A run is a folder:
``last.pt`` (everything needed to go on after a stop), ``log.jsonl`` (one line a report),
``weights.safetensors`` (averaged weights, for use).
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.engine.model import build_module
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.errors import TrainingError
from medsam2_core.training import network
from medsam2_core.training.loader import Batch, Mixture, fixed_views, stream
from medsam2_core.training.losses import AffinityHeads, mask_loss, true_iou
from medsam2_core.training.sources import load_sources, split
from medsam2_core.training.users import Prompts, corrected, first_prompts

# What the embedded model receives beside tokens; stored with the weights, used by the engine.
EMBEDDED_RECIPE = PromptRecipe(draws_prompts=True, disc_radius=0.03, carries_mask=True, zoom=2.0)


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes
    ----------
    frames
        Slices in a clip; 1 trains without memory.
    kinds
        Shares of box, click and rough mask as the first prompt.
    corrections
        Clicks after the first prompt, on the prompted slice.
    """

    name: str
    steps: int
    frames: int
    batch: int
    learning_rate: float
    trunk_factor: float = 1.0
    corrections: int = 2
    kinds: tuple[float, float, float] = (0.45, 0.3, 0.25)
    affinity_weight: float = 1.0


SLICES = Stage("slices", steps=5_500, frames=1, batch=8, learning_rate=8e-4)
CLIPS = Stage(
    "clips", steps=2_200, frames=5, batch=2, learning_rate=3e-4, trunk_factor=0.3, corrections=1,
    kinds=(0.5, 0.2, 0.3), affinity_weight=0.3,
)  # fmt: skip


@dataclass(frozen=True)
class BaseTraining:
    """Settings of a run; stored in the run folder, and a resumed run must have the same."""

    data: str
    config: str = "embedded"
    seed: int = 1
    stages: tuple[Stage, ...] = (SLICES, CLIPS)
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
        If the data cannot be read, or the folder holds a run with other settings.
    """

    def __init__(
        self, settings: BaseTraining, folder: str | Path, report: Callable[[dict], None] = lambda _: None
    ) -> None:
        self.settings = settings
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._report_to = report
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self.device = torch.device(settings.device)
        self.module = build_module(settings.config).to(self.device).train()
        self.size = self.module.image_size
        self.heads = AffinityHeads(self.module.hidden_dim).to(self.device)
        self.average = {key: value.detach().clone() for key, value in self.module.state_dict().items()}
        self.stage_index = 0
        self.step = 0
        self.seconds = 0.0
        self._pending_optimiser: dict | None = None
        self._resume()
        self._training, self._validation = split(load_sources(settings.data))

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train to the end, or until ``should_stop`` says so; either way the run can be resumed."""
        while self.stage_index < len(self.settings.stages):
            stage = self.settings.stages[self.stage_index]
            if not self._run_stage(stage, should_stop):
                return
            self.stage_index += 1
            self.step = 0
            self._pending_optimiser = None
            self._save(optimiser=None)

    def _run_stage(self, stage: Stage, should_stop: Callable[[], bool]) -> bool:
        settings = self.settings
        optimiser = self._optimiser(stage)
        batches = stream(
            self._training, settings.mixture, size=self.size, frames=stage.frames, batch=stage.batch,
            seed=settings.seed * 1_000_003 + self.stage_index * 100_003 + self.step, workers=settings.workers,
        )  # fmt: skip
        validation = fixed_views(self._validation, self.size, stage.frames, settings.validation_views, seed=7)
        sums: dict[str, float] = {}
        since = time.monotonic()
        while self.step < stage.steps:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(self.step, stage.steps, settings.warm_up)
            parts = self._train_step(next(batches), stage, optimiser)
            self.step += 1
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value
            stop = should_stop()
            if self.step % settings.report_every == 0:
                now = time.monotonic()
                self.seconds += now - since
                rate = settings.report_every * stage.batch * stage.frames / (now - since)
                since = now
                means = {key: round(value / settings.report_every, 4) for key, value in sums.items()}
                self._log(
                    {"stage": stage.name, "step": self.step, **means, "images_per_second": round(rate, 2)}
                )
                sums = {}
            if self.step % settings.validate_every == 0 or self.step == stage.steps:
                self._log(
                    {"stage": stage.name, "step": self.step, "validation": self.validate(validation, stage)}
                )
                self._save(optimiser)
                since = time.monotonic()
            if stop:
                self._save(optimiser)
                return self.step >= stage.steps
        return True

    def _train_step(self, batch: Batch, stage: Stage, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        generator = torch.Generator().manual_seed(
            (self.settings.seed << 32) + (self.stage_index << 28) + self.step
        )
        # The fused attention kernel's backward is slow for the decoder's few tokens on a CPU.
        with self._autocast(), sdpa_kernel(SDPBackend.MATH):
            losses = self.losses(batch, stage, generator)
            total = sum(losses.values())
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        if not torch.isfinite(total):
            # One bad draw must not end a night's run, nor poison the average.
            return {"skipped": 1.0}
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        self._update_average()
        return {key: float(value.detach()) for key, value in losses.items()}

    def losses(self, batch: Batch, stage: Stage, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The loss terms of one batch, weighted; their sum is what is minimised."""
        module = self.module
        frames = batch.images.shape[1]
        encoded = network.encode(module, batch.images.flatten(0, 1).to(self.device))
        affinity = self.heads(encoded.maps, batch.regions.flatten(0, 1), 160, generator)
        targets = functional.avg_pool2d(batch.objects.float(), self.size // encoded.fine[0].shape[-1])
        kind = str(
            ("box", "click", "mask")[
                int(torch.multinomial(torch.tensor(stage.kinds), 1, generator=generator))
            ]
        )
        sums = {"mask": torch.zeros(()), "iou": torch.zeros(()), "presence": torch.zeros(())}
        memory = network.ObjectMemory(module, frames) if frames > 1 else None
        carried: torch.Tensor | None = None
        rounds = 0
        for frame in range(frames):
            here = encoded.of(batch.image_of * frames + frame)
            target = targets[:, frame]
            if frame == 0:
                answers = list(self._prompted(here, target, kind, stage.corrections, generator))
            else:
                answers = [(self._tracked(memory, frame, here, carried), False)]
            for answer, ambiguous in answers:
                weight = 1.0 if frame == 0 else 2.0 / frames * stage.corrections
                for key, value in answer_losses(answer, target, ambiguous).items():
                    sums[key] = sums[key] + weight * value
                rounds += weight
            answer = answers[-1][0]
            carried = answer.logits[:, :1].detach()
            if memory is not None and frame < frames - 1:
                memory.write(frame, here, answer, answer.logits[:, :1], prompted=frame == 0)
        scaled = {key: value / rounds for key, value in sums.items()}
        return {**scaled, "affinity": stage.affinity_weight * affinity}

    def _prompted(
        self,
        here: network.ObjectFeatures,
        target: torch.Tensor,
        kind: str,
        corrections: int,
        generator: torch.Generator,
    ) -> Iterator[tuple[network.Answer, bool]]:
        embedding = network.without_memory(self.module, here)
        prompts = first_prompts(target, kind, generator)
        for turn in range(corrections + 1):
            answer = network.decode(self.module, EMBEDDED_RECIPE, embedding, here.fine, prompts)
            ambiguous = turn == 0 and kind == "click"
            yield answer, ambiguous
            if turn < corrections:
                prompts = corrected(prompts, best_logits(answer, ambiguous).detach(), target, generator)

    def _tracked(
        self, memory: network.ObjectMemory, frame: int, here: network.ObjectFeatures, carried: torch.Tensor
    ) -> network.Answer:
        prompts = Prompts(
            None, carried.new_zeros(len(carried), 0, 2), carried.new_zeros(len(carried), 0), carried
        )
        return network.decode(self.module, EMBEDDED_RECIPE, memory.read(frame, here), here.fine, prompts)

    @torch.inference_mode()
    def validate(self, views: dict[str, list], stage: Stage) -> dict[str, dict[str, float]]:
        """Dice by row of the averaged weights: box, click, rough mask, each after its corrections too.

        For clips: the mean over the slices after the first.
        """
        kept = {key: value.clone() for key, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        self.module.eval()
        table: dict[str, dict[str, float]] = {}
        try:
            for row, kept_views in views.items():
                for kind in ("box", "click", "mask"):
                    scores = [
                        score for view in kept_views for score in self._validate_view(view, kind, stage)
                    ]
                    if scores:
                        first, last, tracked = torch.tensor(scores).mean(0).tolist()
                        entry = table.setdefault(row, {})
                        entry[kind] = round(first, 4)
                        entry[f"{kind}+{stage.corrections}"] = round(last, 4)
                        if stage.frames > 1:
                            entry[f"{kind} tracked"] = round(tracked, 4)
        finally:
            self.module.load_state_dict(kept)
            self.module.train()
        table["mean"] = {
            key: round(sum(row[key] for row in table.values() if key in row) / len(table), 4)
            for key in next(iter(table.values()), {})
        }
        return table

    def _validate_view(self, view, kind: str, stage: Stage) -> list[list[float]]:
        generator = torch.Generator().manual_seed(11)
        batch = Batch.of([view])
        frames = batch.images.shape[1]
        with self._autocast():
            encoded = network.encode(self.module, batch.images.flatten(0, 1))
            targets = functional.avg_pool2d(batch.objects.float(), self.size // encoded.fine[0].shape[-1])
            here = encoded.of(batch.image_of * frames)
            answers = list(self._prompted(here, targets[:, 0], kind, stage.corrections, generator))
            first = dice(best_logits(*answers[0])[:, 0], targets[:, 0])
            carried = best_logits(*answers[-1])
            last = dice(carried[:, 0], targets[:, 0])
            tracked = []
            memory = network.ObjectMemory(self.module, frames)
            answer, prompted = answers[-1][0], True
            for frame in range(1, frames):
                memory.write(frame - 1, here, answer, carried, prompted)
                here = encoded.of(batch.image_of * frames + frame)
                answer, prompted = self._tracked(memory, frame, here, carried), False
                carried = answer.logits[:, :1]
                shown = torch.where(answer.presence[:, :, None, None] > 0, carried, -1.0)
                tracked.append(dice(shown[:, 0], targets[:, frame]))
        after = torch.stack(tracked).mean(0) if tracked else last
        return torch.stack([first, last, after], dim=1).tolist()

    def _optimiser(self, stage: Stage) -> torch.optim.Optimizer:
        groups: dict[tuple[bool, bool], list] = {}
        named = [*self.module.named_parameters(), *self.heads.named_parameters(prefix="affinity")]
        for name, parameter in named:
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
            optimiser.load_state_dict(self._pending_optimiser)
            self._pending_optimiser = None
        return optimiser

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _update_average(self) -> None:
        # Early on the average follows closely, so that it is not mostly the random start.
        keep = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - keep)

    def _log(self, line: dict) -> None:
        line = {"hours": round(self.seconds / 3600, 3), **line}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._report_to(line)

    def _save(self, optimiser: torch.optim.Optimizer | None) -> None:
        state = {
            "settings": asdict(self.settings),
            "stage_index": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average,
            "optimiser": optimiser.state_dict() if optimiser else None,
            "random": torch.get_rng_state(),
        }
        partial = self.folder / "last.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "last.pt")
        weights = {key: value.contiguous() for key, value in self.average.items()}
        partial = self.folder / "weights.safetensors.partial"
        save_file(weights, partial)
        os.replace(partial, self.folder / "weights.safetensors")

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        fixed = ("config", "seed")
        for key in fixed:
            if state["settings"][key] != getattr(self.settings, key):
                raise TrainingError(
                    f"{self.folder} holds a run with {key}={state['settings'][key]!r}, not "
                    f"{getattr(self.settings, key)!r}: choose another --out, or the same {key}"
                )
        self.stage_index, self.step = state["stage_index"], state["step"]
        self.seconds = state["seconds"]
        self.module.load_state_dict(state["module"])
        self.heads.load_state_dict(state["heads"])
        self.average = state["average"]
        self._pending_optimiser = state["optimiser"]
        torch.set_rng_state(state["random"])


def answer_losses(answer: network.Answer, target: torch.Tensor, ambiguous: bool) -> dict[str, torch.Tensor]:
    """Mask, confidence and presence losses of one answer.

    An ambiguous prompt (one click) is answered by three masks of which the best counts; the single mask is
    trained lightly beside them.
    """
    present = (target > 0.5).flatten(1).any(1)
    used = answer.logits[:, 1:] if ambiguous else answer.logits[:, :1]
    losses = torch.stack([mask_loss(used[:, m], target) for m in range(used.shape[1])], dim=1)
    best = losses.min(dim=1).values
    if ambiguous:
        best = 0.9 * best + 0.05 * losses.mean(1) + 0.05 * mask_loss(answer.logits[:, 0], target)
    actual = true_iou(used.detach(), target[:, None])
    predicted = answer.iou[:, 1:] if ambiguous else answer.iou[:, :1]
    iou = (predicted - actual).abs().mean(1)
    # An absent object has no mask to learn from: whether it is there is the presence head's task.
    share = present.float()
    return {
        "mask": (best * share).sum() / share.sum().clamp(min=1),
        "iou": (iou * share).sum() / share.sum().clamp(min=1),
        "presence": 0.5 * functional.binary_cross_entropy_with_logits(answer.presence[:, 0], share),
    }


def best_logits(answer: network.Answer, ambiguous: bool) -> torch.Tensor:
    """(B, 1, s, s) the mask SAM 2 would show: the single one, or of three the most confident."""
    if not ambiguous:
        return answer.logits[:, :1]
    index = answer.iou[:, 1:].argmax(1)
    return answer.logits[torch.arange(len(index)), 1 + index].unsqueeze(1)


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) Dice of thresholded logits (B, s, s) at the logits' resolution; 1 for empty against empty."""
    answer, truth = logits > 0, target > 0.5
    both = (answer & truth).float().sum((1, 2))
    total = answer.float().sum((1, 2)) + truth.float().sum((1, 2))
    return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(both))


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
