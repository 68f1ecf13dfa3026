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
from medsam2_core.auto.fewshot.planning import FitSettings
from medsam2_core.auto.loading import AutoModel, with_texture
from medsam2_core.auto.losses import auto_loss, sketch_loss
from medsam2_core.auto.network import merged_labels
from medsam2_core.auto.predictor import Levels
from medsam2_core.auto.texture import sketch
from medsam2_core.errors import TrainingError

_MOST_SKIPPED = 50  # steps in a row whose loss is no number
_VALIDATIONS = 20
_VALIDATED = 16  # images of a validation
_PATIENCE = 0.4  # of the predictor's steps without a better validation end a training


@dataclass
class Progress:
    """What a fit has come to.

    Attributes
    ----------
    step, total
        Done and to do.
    alone
        How many of them come first and are the texture adapter's alone.
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
    alone: int = 0
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
    has_start
        Whether its texture adapter knows something.
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
        self._at_first = (
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
        tell: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        alone: int | None = None,
    ) -> bool:
        """Train up to `total` steps; False when it was stopped, to be gone on with.

        Parameters
        ----------
        alone
            See :class:`Progress`; None: their usual share.
        """
        progress = self.progress
        progress.total = total
        progress.alone = self.alone_of(total) if alone is None else alone
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
            if progress.step == progress.alone:
                self._mix_with_start()
            ends = progress.step == total
            if progress.step % every == 0 or ends:
                line = {"step": progress.step, **{k: round(v, 5) for k, v in meter.items()}}
                measured = self._validation and progress.step > progress.alone
                if measured:
                    line["dice"] = self._validate()
                progress.history.append(line)
                patience = _PATIENCE * (total - progress.alone)
                if measured and progress.step - progress.best_step > patience:
                    break
            tell(progress)
        progress.is_over = True
        self._take(self._best if self._best is not None else self._average)
        network.eval()
        return True

    def _step(self) -> dict[str, float]:
        settings, progress = self.settings, self.progress
        is_alone = progress.step < progress.alone
        self._set_rates(is_alone)
        rng = np.random.default_rng((self.seed, progress.step))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.step)
        # Dropout draws from torch's own state: so a fit that was killed goes on as if it had not been.
        torch.manual_seed(self.seed * 999_983 + progress.step)
        count = min(settings.batch, len(self._training))
        picked = rng.choice(self._training, count, replace=False)
        if is_alone:
            parts = self._sketched(*self._bank.fresh([int(n) for n in picked], progress.step))
        else:
            indices = [int(n) * self._bank.variants + int(rng.integers(self._bank.variants)) for n in picked]
            parts = self._losses(*self._read(indices), generator)
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

    def _mix_with_start(self) -> None:
        """See :attr:`FitSettings.texture_kept`."""
        kept = self.settings.texture_kept
        with torch.no_grad():
            for name, value in self._at_first.items():
                self._named[name].copy_(self._average[name].lerp(value, kept))
                self._average[name].copy_(self._named[name])

    def alone_of(self, total: int) -> int:
        """How many of so many steps are the texture adapter's alone; one is left for the predictor."""
        if self.auto.texture is None:
            return 0
        return max(0, min(total - 1, round(self.settings.texture_share * total)))

    def best_share(self) -> float:
        """How far the predictor's training had come when validation was best, 0 to 1."""
        progress = self.progress
        return max(0.0, (progress.best_step - progress.alone) / max(1, progress.total - progress.alone))

    def _set_rates(self, is_alone: bool) -> None:
        """Rates of this step: in each of the two phases a warm-up, then a cosine."""
        settings, progress = self.settings, self.progress
        step = progress.step - (0 if is_alone else progress.alone)
        fraction = step / max(1, progress.alone if is_alone else progress.total - progress.alone)
        first = settings.texture_rate if is_alone else settings.learning_rate
        rate = settings.last_rate + (first - settings.last_rate) * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self._optimiser.param_groups:
            factor = 1.0 if is_alone else group["factor"]
            group["lr"] = factor * rate * min(1.0, (step + 1) / settings.warm_up)

    def _sketched(self, images: torch.Tensor, labels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        texture = self.auto.texture
        drawn = sketch(texture(images).pixels, texture.looks)
        return {"sketch": sketch_loss(drawn.flatten(0, 1), self._masks(labels))}

    def _masks(self, labels: torch.Tensor) -> torch.Tensor:
        """(B*K, S, S) bool of (B, S, S) labels, class by class."""
        numbers = torch.arange(1, self.auto.network.classes + 1, device=labels.device)
        return (labels[:, None] == numbers[None, :, None, None]).flatten(0, 1)

    def _read(self, indices: Sequence[int]) -> tuple[Levels, torch.Tensor]:
        """Features and labels. The texture adapter sees what it sees; only what is added of it can change."""
        levels, labels = self._bank.read(indices)
        texture = self.auto.texture
        if texture is not None:
            pictures = self._bank.pictures(indices)
            with torch.no_grad():
                pyramid = texture.pyramid(pictures)
            seen = texture.added(pyramid, pictures.shape[-1])
            levels = with_texture(levels, seen, sketch(seen.pixels, texture.looks))
        return levels, labels

    def _losses(
        self, levels: Levels, labels: torch.Tensor, generator: torch.Generator
    ) -> Mapping[str, torch.Tensor]:
        network = self.auto.network
        masks = self._masks(labels)
        # The fused attention kernel's backward is slow for few tokens on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            prompts = network.predict(levels)
            used, said = self.settings.mix.draw(prompts, masks, generator)
            answer = network.decode(levels.repeated(network.classes), used, said)
            parts = auto_loss(
                answer.logits, answer.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip
            if levels.sketch is not None:
                parts["sketch"] = sketch_loss(levels.sketch.flatten(0, 1), masks)
            return parts

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

    def seconds_a_step(self, clock: Callable[[], float] = time.perf_counter, steps: int = 5) -> float:
        """How long a step takes on this machine, on average; nothing is learned by it.

        The first steps of a process are slower than all others, so the middle one of several counts.
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
