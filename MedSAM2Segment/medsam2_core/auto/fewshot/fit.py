"""Training of one predictor on computed features: steps, validation, early stopping, resuming."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.auto.adapters import class_logits
from medsam2_core.auto.fewshot.features import FeatureBank
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.objective import auto_loss, coverage_loss
from medsam2_core.auto.fewshot.results import ClassDice, dice_by_class
from medsam2_core.auto.fewshot.settings import FitSettings
from medsam2_core.auto.model import AutoModel, with_texture
from medsam2_core.auto.network import merged_labels
from medsam2_core.auto.predictor import FeatureLevels
from medsam2_core.errors import TrainingError

_MOST_SKIPPED = 50  # steps in a row whose loss is not finite
_VALIDATIONS = 20
_VALIDATED = 16  # images of a validation
_RECENT = 3  # steps whose time tells how long the next ones take
_PATIENCE = 0.4  # share of the predictor's steps without a better validation that ends a training


@dataclass
class Progress:
    """Progress of a fit.

    Attributes
    ----------
    alone
        Number of the first steps, in which the texture adapter is trained alone.
    history
        Dicts of ``step``, the parts of the loss, and ``dice`` (mean of the classes) if validated.
    best_step, best_dice
        Of the validation; 0 and -1 before the first.
    is_over
        Whether the last step was done, or validation stopped to improve.
    """

    step: int = 0
    total: int = 0
    alone: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_dice: float = -1.0
    skipped: int = 0
    is_over: bool = False


class _Pace:
    """How many steps there is time for, by the time they take, validations included."""

    def __init__(self, seconds_left: Callable[[], float], step: int, planned: int) -> None:
        self._seconds_left, self._first_step, self._planned = seconds_left, step, planned
        self._left = [seconds_left()]  # before each step

    def affordable(self, step: int) -> int:
        """Return how many steps in all there is time for before step number `step`, as planned at most."""
        done, left = step - self._first_step, self._seconds_left()
        if not done or not math.isfinite(left):
            return self._planned
        self._left.append(left)
        recent = self._left[-1 - _RECENT :]
        # By the last steps, too: a machine that becomes busy stays busy.
        each = max((self._left[0] - left) / done, (recent[0] - left) / (len(recent) - 1))
        return min(self._planned, step + (int(max(0.0, left) / each) if each > 0 else self._planned))


class Fit:
    """Trains the parts of an :class:`AutoModel` that its card names.

    Parameters
    ----------
    auto
        The model; its SAM 2 is not changed.
    training, validation
        Indices into `images`; without validation there is no early stopping.
    """

    def __init__(
        self,
        auto: AutoModel,
        bank: FeatureBank,
        images: Sequence[LabelledImage],
        training: Sequence[int],
        validation: Sequence[int],
        settings: FitSettings,
        seed: int,
        *,
        has_start: bool = False,
    ) -> None:
        self.auto, self.settings, self.seed = auto, settings, seed
        self._bank, self._images = bank, images
        self._training, self._validation = list(training), list(validation)
        self.progress = Progress()
        self._named = {
            name: parameter
            for name, parameter in auto.network.named_parameters()
            if name.startswith("predictor.") or (parameter.requires_grad and name.startswith("decoder."))
        }
        if auto.texture is not None:
            self._named |= {f"texture.{name}": p for name, p in auto.texture.named_parameters()}
        for parameter in self._named.values():
            parameter.requires_grad_(True)
        self._average = {name: p.detach().clone() for name, p in self._named.items()}
        self._pretrained = (
            {name: p.detach().clone() for name, p in self._named.items() if name.startswith("texture.")}
            if has_start
            else {}
        )
        self._best: dict[str, torch.Tensor] | None = None
        self._optimiser = torch.optim.AdamW(
            _groups(self._named, settings), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._in_a_row = 0

    def run(
        self,
        total: int,
        report: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        alone: int | None = None,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> bool:
        """Train up to `total` steps; return False if it was stopped, which can be resumed.

        Parameters
        ----------
        alone
            See :class:`Progress`; None for the share in the settings.
        seconds_left
            Time that is left for this fit: `total` is lowered when that many steps take longer.
        """
        progress = self.progress
        progress.total = total
        progress.alone = self.alone_of(total) if alone is None else alone
        pace = _Pace(seconds_left, progress.step, total)
        every = max(10, total // _VALIDATIONS)
        meter: dict[str, float] = {}
        network = self.auto.network
        network.predictor.train()
        while progress.step < progress.total and not progress.is_over:
            if should_stop():
                return False
            if not self._keep_pace(pace):
                progress.history.append({"step": progress.step, **meter})
                break
            for name, value in self._step().items():
                meter[name] = 0.9 * meter.get(name, value) + 0.1 * value
            progress.step += 1
            if progress.step == progress.alone:
                self._mix_with_start()
            ends = progress.step == progress.total
            if progress.step % every == 0 or ends:
                line = {"step": progress.step, **{k: round(v, 5) for k, v in meter.items()}}
                measured = self._validation and progress.step > progress.alone
                if measured:
                    line["dice"] = self._validate()
                progress.history.append(line)
                patience = _PATIENCE * (progress.total - progress.alone)
                if measured and progress.step - progress.best_step > patience:
                    break
            report(progress)
        progress.is_over = True
        self._load(self._best if self._best is not None else self._average)
        network.eval()
        return True

    def _keep_pace(self, pace: _Pace) -> bool:
        """Plan as many steps as there is time for, and the schedules with them; False if there is none."""
        progress = self.progress
        affordable = pace.affordable(progress.step)
        if affordable != progress.total:
            progress.total = affordable
            if progress.step < progress.alone:
                progress.alone = max(progress.step + 1, self.alone_of(affordable))
        return progress.step < affordable

    def _step(self) -> dict[str, float]:
        settings, progress = self.settings, self.progress
        is_alone = progress.step < progress.alone
        self._set_rates(is_alone)
        rng = np.random.default_rng((self.seed, progress.step))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.step)
        # Dropout draws from torch's global state: seeded, a fit that was killed resumes exactly.
        torch.manual_seed(self.seed * 999_983 + progress.step)
        count = min(settings.batch, len(self._training))
        picked = rng.choice(self._training, count, replace=False)
        if is_alone:
            parts = self._texture_losses(*self._bank.fresh([int(n) for n in picked], progress.step))
        else:
            indices = [int(n) * self._bank.variants + int(rng.integers(self._bank.variants)) for n in picked]
            parts = self._losses(*self._read(indices), generator)
        total: torch.Tensor = sum(parts.values())  # type: ignore[assignment]
        self._optimiser.zero_grad(set_to_none=True)
        if torch.isfinite(total):
            total.backward()
            norm = nn.utils.clip_grad_norm_(self._named.values(), settings.clip)
            if torch.isfinite(norm):
                self._optimiser.step()
                self._update_average()
                self._in_a_row = 0
                return {name: float(value.detach()) for name, value in parts.items()}
        progress.skipped += 1
        self._in_a_row += 1
        if self._in_a_row > _MOST_SKIPPED:
            raise TrainingError(
                f"{_MOST_SKIPPED} steps in a row gave a loss that is not finite: lower the learning rate "
                f"(it is {settings.learning_rate:g}), or look for damaged images",
                code="loss-not-finite", learning_rate=settings.learning_rate,
            )  # fmt: skip
        return {}

    def _mix_with_start(self) -> None:
        """Mix pretrained weights into the texture adapter; see :attr:`FitSettings.texture_kept`."""
        kept = self.settings.texture_kept
        with torch.no_grad():
            for name, value in self._pretrained.items():
                self._named[name].copy_(self._average[name].lerp(value, kept))
                self._average[name].copy_(self._named[name])

    def alone_of(self, total: int) -> int:
        """Return how many of `total` steps train the texture adapter alone; at least one is left."""
        if self.auto.texture is None:
            return 0
        return max(0, min(total - 1, round(self.settings.texture_share * total)))

    def best_share(self) -> float:
        """Return the share of the predictor's steps after which validation was best, 0 to 1."""
        progress = self.progress
        return max(0.0, (progress.best_step - progress.alone) / max(1, progress.total - progress.alone))

    def _set_rates(self, is_alone: bool) -> None:
        """Set the learning rates of this step: in each of the two phases a warm-up, then a cosine."""
        settings, progress = self.settings, self.progress
        step = progress.step - (0 if is_alone else progress.alone)
        fraction = step / max(1, progress.alone if is_alone else progress.total - progress.alone)
        first = settings.texture_rate if is_alone else settings.learning_rate
        rate = settings.last_rate + (first - settings.last_rate) * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self._optimiser.param_groups:
            factor = 1.0 if is_alone else group["factor"]
            group["lr"] = factor * rate * min(1.0, (step + 1) / settings.warm_up)

    def _texture_losses(self, images: torch.Tensor, labels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        texture = self.auto.texture
        assert texture is not None
        logits = class_logits(texture(images).pixels, texture.looks)
        return {"sketch": coverage_loss(logits.flatten(0, 1), self._masks(labels))}

    def _masks(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the (B*K, S, S) masks of the classes of (B, S, S) labels."""
        numbers = torch.arange(1, self.auto.network.classes + 1, device=labels.device)
        return (labels[:, None] == numbers[None, :, None, None]).flatten(0, 1)

    def _read(self, indices: Sequence[int]) -> tuple[FeatureLevels, torch.Tensor]:
        """Return features and labels; of the texture adapter, only the projections have gradients."""
        levels, labels = self._bank.read(indices)
        texture = self.auto.texture
        if texture is not None:
            pictures = self._bank.pictures(indices)
            with torch.no_grad():
                pyramid = texture.pyramid(pictures)
            seen = texture.project(pyramid, pictures.shape[-1])
            levels = with_texture(levels, seen, class_logits(seen.pixels, texture.looks))
        return levels, labels

    def _losses(
        self, levels: FeatureLevels, labels: torch.Tensor, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        network = self.auto.network
        masks = self._masks(labels)
        # The fused attention kernel's backward is slow for few tokens on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            prompts = network.predict(levels)
            used, user = self.settings.mix.draw(prompts, masks, generator)
            output = network.decode(levels.repeated(network.classes), used, user)
            parts = auto_loss(
                output.logits, output.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip
            if levels.texture_logits is not None:
                parts["sketch"] = coverage_loss(levels.texture_logits.flatten(0, 1), masks)
            return parts

    def measure(self, indices: Sequence[int]) -> list[ClassDice]:
        """Compute Dice of every class on some of the images with the current weights."""
        classes = self.auto.network.classes
        return [dice_by_class(self.labels_of(n), self._images[n].labels_hw, classes) for n in indices]

    def labels_of(self, n: int) -> NDArray[np.int64]:
        """Predict the labels (H, W) of an image."""
        network, image = self.auto.network, self._images[n]
        was_training = network.predictor.training
        network.predictor.eval()
        with torch.inference_mode():
            levels, _ = self._read([n * self._bank.variants])
            _, output = network(levels)
            logits = image.letterbox.to_image(output.logits[:, 0])[None]
            labels = merged_labels(logits, output.score.view(1, -1))[0].cpu().numpy()
        network.predictor.train(was_training)
        return labels

    def seconds_a_step(self, clock: Callable[[], float] = time.perf_counter, steps: int = 5) -> float:
        """Measure the mean time of a step on this machine; the weights do not change.

        The median of several steps is used, because the first steps of a process are slower.
        """
        before = self.state()
        weights = {name: value.clone() for name, value in before["weights"].items()}
        self.auto.network.predictor.train()
        progress = self.progress
        progress.total, progress.alone = 1000, self.alone_of(1000)
        taken = 0.0
        for first, count in ((0, progress.alone), (progress.alone, progress.total - progress.alone)):
            times = []
            for _ in range(steps if count else 0):
                progress.step = first
                began = clock()
                self._step()
                times.append(clock() - began)
            taken += count / progress.total * (sorted(times)[len(times) // 2] if times else 0.0)
        self.restore({**before, "weights": weights, "average": weights, "optimiser": _emptied(before)})
        return taken

    def _validate(self) -> float:
        kept = {name: p.detach().clone() for name, p in self._named.items()}
        self._load(self._average)
        # A volume has hundreds of slices: a few of them, evenly spread, suffice.
        step = max(1, len(self._validation) // _VALIDATED)
        found = self.measure(self._validation[::step])
        self._load(kept)
        dice = mean_dice(found)
        if dice > self.progress.best_dice:
            self.progress.best_dice, self.progress.best_step = dice, self.progress.step
            self._best = {name: value.clone() for name, value in self._average.items()}
        return dice

    def _update_average(self) -> None:
        keep = min(self.settings.averaging, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for name, parameter in self._named.items():
                self._average[name].lerp_(parameter, 1 - keep)

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """Return the state needed to resume, for ``torch.save``."""
        return {
            "weights": {name: p.detach().clone() for name, p in self._named.items()},
            "average": self._average,
            "best": self._best,
            "optimiser": self._optimiser.state_dict(),
            "progress": copy.deepcopy(vars(self.progress)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`; raise KeyError, RuntimeError or ValueError for that of another network."""
        self._load(state["weights"])
        self._average = {name: state["average"][name].to(p.device) for name, p in self._named.items()}
        self._best = state["best"]
        self._optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])


def _groups(named: Mapping[str, nn.Parameter], settings: FitSettings) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay (none for norms and biases)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault((name.startswith("texture."), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": settings.texture_factor if is_texture else 1.0,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (is_texture, decays), parameters in groups.items()
    ]


def _emptied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser before its first step."""
    return {**state["optimiser"], "state": {}}


def mean_dice(found: Sequence[ClassDice]) -> float:
    """Compute the mean over classes of the mean over images; 0 without any Dice."""
    table = np.array(found, dtype=float)
    if table.size == 0:
        return 0.0
    columns = [column[~np.isnan(column)] for column in table.T]
    means = [float(column.mean()) for column in columns if len(column)]
    return round(sum(means) / len(means), 4) if means else 0.0
