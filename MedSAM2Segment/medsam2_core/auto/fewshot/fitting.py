"""One training of one predictor, on features that are there: steps, validation, early stop, resume."""

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

from medsam2_core.auto.fewshot.features import FeatureBank
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.measuring import ClassDice, dice_by_class
from medsam2_core.auto.fewshot.prompting import PromptMix
from medsam2_core.auto.loading import AutoModel
from medsam2_core.auto.losses import Weights, auto_loss
from medsam2_core.auto.network import merged_labels
from medsam2_core.auto.predictor import Levels
from medsam2_core.errors import TrainingError

_MOST_SKIPPED = 50  # steps in a row whose loss is no number
_VALIDATIONS = 20
_VALIDATED = 16  # images of a validation
_PATIENCE = 0.4  # of all steps without a better validation end a training


@dataclass(frozen=True)
class FitSettings:
    """How a predictor is trained; defaults are the page's where a warm start does not ask for others.

    Attributes
    ----------
    batch
        Images a step.
    learning_rate, last_rate
        Cosine from the one to the other, after a short warm-up. Three times the page's: it has 200 epochs,
        we have minutes.
    texture_factor
        The texture adapter begins with nothing, and learns so many times as fast.
    averaging
        Of the weights that are kept (exponential).
    """

    batch: int = 4
    learning_rate: float = 3e-4
    last_rate: float = 1e-5
    texture_factor: float = 5.0
    weight_decay: float = 0.1
    warm_up: int = 20
    clip: float = 1.0
    averaging: float = 0.99
    weights: Weights = field(default_factory=Weights)
    mix: PromptMix = field(default_factory=PromptMix)


@dataclass
class Progress:
    """What a fit has come to.

    Attributes
    ----------
    step, total
        Done and to do.
    history
        One dict a report: ``step``, parts of the loss, and ``dice`` (mean of the classes) when measured.
    best_step, best_dice
        Of the validation; 0 and -1 before the first.
    skipped
        Steps that were not taken because their loss was no number.
    is_over
        Whether it is done: at the last step, or because validation did not get better any more.
    """

    step: int = 0
    total: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_dice: float = -1.0
    skipped: int = 0
    is_over: bool = False


class Fit:
    """Trains the parts of an :class:`AutoModel` that its card says are trained.

    Parameters
    ----------
    auto
        Its network is changed; the SAM 2 below it is not.
    bank, images
        Features of the images.
    training, validation
        Indices into `images`; without validation there is no early stop.
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
        self._best: dict[str, torch.Tensor] | None = None
        self._optimiser = torch.optim.AdamW(
            _groups(self._named, settings), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._in_a_row = 0

    def run(
        self,
        total: int,
        tell: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train up to `total` steps; False when it was stopped, to be gone on with."""
        progress = self.progress
        progress.total = total
        every = max(10, total // _VALIDATIONS)
        meter: dict[str, float] = {}
        network = self.auto.network
        network.predictor.train()
        while progress.step < total and not progress.is_over:
            if should_stop():
                return False
            for name, value in self._step().items():
                meter[name] = 0.9 * meter.get(name, value) + 0.1 * value
            progress.step += 1
            ends = progress.step == total
            if progress.step % every == 0 or ends:
                line = {"step": progress.step, **{k: round(v, 5) for k, v in meter.items()}}
                if self._validation:
                    line["dice"] = self._validate()
                progress.history.append(line)
                if self._validation and progress.step - progress.best_step > _PATIENCE * total:
                    break
            tell(progress)
        progress.is_over = True
        self._take(self._best if self._best is not None else self._average)
        network.eval()
        return True

    def _step(self) -> dict[str, float]:
        settings, progress = self.settings, self.progress
        fraction = progress.step / max(1, progress.total)
        rate = settings.last_rate + (settings.learning_rate - settings.last_rate) * 0.5 * (
            1 + math.cos(math.pi * fraction)
        )
        for group in self._optimiser.param_groups:
            group["lr"] = group["factor"] * rate * min(1.0, (progress.step + 1) / settings.warm_up)
        rng = np.random.default_rng((self.seed, progress.step))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.step)
        # Dropout draws from torch's own state: so a fit that was killed goes on as if it had not been.
        torch.manual_seed(self.seed * 999_983 + progress.step)
        count = min(settings.batch, len(self._training))
        picked = rng.choice(self._training, count, replace=False)
        indices = [int(n) * self._bank.variants + int(rng.integers(self._bank.variants)) for n in picked]
        levels, labels = self._read(indices)
        parts = self._losses(levels, labels, generator)
        total = sum(parts.values())
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
                f"{_MOST_SKIPPED} steps in a row gave a loss that is no number: lower the learning rate "
                f"(it is {settings.learning_rate:g}), or look for damaged images"
            )
        return {}

    def _read(self, indices: Sequence[int]) -> tuple[Levels, torch.Tensor]:
        levels, labels = self._bank.read(indices)
        if self.auto.texture is not None:
            levels = self.auto.textured(levels, self._bank.pictures(indices))
        return levels, labels

    def _losses(
        self, levels: Levels, labels: torch.Tensor, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        network = self.auto.network
        numbers = torch.arange(1, network.classes + 1, device=labels.device)
        masks = (labels[:, None] == numbers[None, :, None, None]).flatten(0, 1)
        # The fused attention kernel's backward is slow for few tokens on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            prompts = network.predict(levels)
            used, said = self.settings.mix.draw(prompts, masks, generator)
            answer = network.decode(levels.repeated(network.classes), used, said)
            return auto_loss(
                answer.logits, answer.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip

    def measure(self, indices: Sequence[int]) -> list[ClassDice]:
        """Dice of every class on some of the images, as they are, with the weights as they are."""
        classes = self.auto.network.classes
        return [dice_by_class(self.labels_of(n), self._images[n].labels_hw, classes) for n in indices]

    def labels_of(self, n: int) -> NDArray[np.int64]:
        """(H, W) labels the network gives an image, in the image's own pixels."""
        network, image = self.auto.network, self._images[n]
        was_training = network.predictor.training
        network.predictor.eval()
        with torch.inference_mode():
            levels, _ = self._read([n * self._bank.variants])
            _, answer = network(levels)
            logits = image.frame.on_image(answer.logits[:, 0])[None]
            labels = merged_labels(logits, answer.score.view(1, -1))[0].cpu().numpy()
        network.predictor.train(was_training)
        return labels

    def seconds_a_step(self, clock: Callable[[], float] = time.perf_counter, steps: int = 4) -> float:
        """How long a step takes on this machine; nothing is learned by it."""
        before = self.state()
        weights = {name: value.clone() for name, value in before["weights"].items()}
        self.auto.network.predictor.train()
        self._step()
        began = clock()
        for _ in range(steps):
            self._step()
        taken = (clock() - began) / steps
        self.restore({**before, "weights": weights, "average": weights, "optimiser": _emptied(before)})
        return taken

    def _validate(self) -> float:
        kept = {name: p.detach().clone() for name, p in self._named.items()}
        self._take(self._average)
        # A volume has hundreds of slices: a few of them, evenly spread, tell where it goes.
        step = max(1, len(self._validation) // _VALIDATED)
        found = self.measure(self._validation[::step])
        self._take(kept)
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

    def _take(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """Everything needed to go on after a kill, for ``torch.save``."""
        return {
            "weights": {name: p.detach().clone() for name, p in self._named.items()},
            "average": self._average,
            "best": self._best,
            "optimiser": self._optimiser.state_dict(),
            "progress": copy.deepcopy(vars(self.progress)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Back from :meth:`state`. KeyError, RuntimeError, ValueError when it is of another network."""
        self._take(state["weights"])
        self._average = {name: state["average"][name].to(p.device) for name, p in self._named.items()}
        self._best = state["best"]
        self._optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])


def _groups(named: Mapping[str, nn.Parameter], settings: FitSettings) -> list[dict[str, Any]]:
    """Parameters by how fast they learn, and whether they decay (norms and biases do not)."""
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
    """An optimiser's state before its first step."""
    return {**state["optimiser"], "state": {}}


def mean_dice(found: Sequence[ClassDice]) -> float:
    """The mean over classes of the mean over images; 0 when nothing was there to be found."""
    table = np.array(found, dtype=float)
    if table.size == 0:
        return 0.0
    columns = [column[~np.isnan(column)] for column in table.T]
    means = [float(column.mean()) for column in columns if len(column)]
    return round(sum(means) / len(means), 4) if means else 0.0
