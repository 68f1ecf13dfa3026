"""What a run of few-shot training is made of: its settings, and its stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medsam2_core.auto.augmentation import Augmentation
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.pairs import Pair
from medsam2_core.auto.fewshot.prompting import PromptMix
from medsam2_core.auto.losses import Weights
from medsam2_core.auto.predictor import HEADS
from medsam2_core.errors import TrainingError

_FEW = 20  # images, patients or volumes: with fewer, all are needed for training


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
    texture_share, texture_rate
        So many of the steps come first and are the texture adapter's alone, which learns from its sketch of
        the classes; its rate at the beginning.
    texture_kept
        How much of what the texture adapter began with is mixed into what it has learned, where it began
        with something: a few images teach it what they show, and let it forget what others show (Wortsman et
        al., *Robust fine-tuning of zero-shot models*, CVPR 2022).
    texture_factor
        How much faster than the predictor learns, afterwards, what is added of it.
    averaging
        Of the weights that are kept (exponential).
    """

    batch: int = 4
    learning_rate: float = 3e-4
    last_rate: float = 1e-5
    texture_share: float = 0.6
    texture_rate: float = 1e-3
    texture_kept: float = 0.5
    texture_factor: float = 5.0
    weight_decay: float = 0.1
    warm_up: int = 20
    clip: float = 1.0
    averaging: float = 0.99
    weights: Weights = field(default_factory=Weights)
    mix: PromptMix = field(default_factory=PromptMix)


@dataclass(frozen=True)
class FewShotSettings:
    """What is trained, on what, for how long; kept in the work folder and compared when a run is resumed.

    Attributes
    ----------
    name
        Of the model.
    minutes
        For everything, features included.
    steps
        Of the final training, instead of as many as the minutes allow.
    folds
        None: three when there are few images and none held aside; 0: none.
    decoder
        ``frozen`` or ``lora``.
    texture
        Train a small convolutional pyramid beside the encoder, too.
    """

    name: str
    minutes: float = 10.0
    steps: int | None = None
    folds: int | None = None
    decoder: str = "frozen"
    texture: bool = False
    kind: str = "hierarchical"
    heads: tuple[str, ...] = HEADS
    window: str = "auto"
    axis: str = "picture"
    modality: str = ""
    seed: int = 0
    fit: FitSettings = field(default_factory=FitSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise TrainingError(f"{self.minutes:g} minutes: give more than 0, and an end")
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"{self.steps} steps: give 1 at least")
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise TrainingError(f"{self.folds} folds: give 0 for none, or 2 at least")
        if self.decoder not in ("frozen", "lora"):
            raise TrainingError(f"unknown decoder {self.decoder!r}: use frozen or lora")


@dataclass
class Told:
    """What is told while a run goes on.

    Attributes
    ----------
    stage
        ``features``, ``fold 1``, …, ``training``.
    done, total
        Of that stage.
    dice
        Of the last validation; None before there is one.
    """

    stage: str
    done: int
    total: int
    dice: float | None = None


@dataclass(frozen=True)
class Stage:
    """One fit of a run: indices of images it is trained and measured on."""

    name: str
    training: list[int]
    validation: list[int]
    is_final: bool


def drawn(pairs: Sequence[Pair], shots: int, seed: int) -> list[Pair]:
    """So many pairs to train on, drawn at random, in their order; those held aside stay.

    TrainingError when there are fewer.
    """
    training = [pair for pair in pairs if not pair.held_aside]
    if shots > len(training):
        raise TrainingError(f"--shots {shots}: there are only {len(training)} images to train on")
    chosen = set(np.random.default_rng(seed).permutation(len(training))[:shots].tolist())
    kept = {id(pair) for n, pair in enumerate(training) if n in chosen}
    return [pair for pair in pairs if pair.held_aside or id(pair) in kept]


def stages_of(images: Sequence[LabelledImage], settings: FewShotSettings) -> list[Stage]:
    """Folds by group, then the final fit on everything that may be trained on."""
    training = [n for n, image in enumerate(images) if not image.held_aside]
    aside = [n for n, image in enumerate(images) if image.held_aside]
    groups = list(dict.fromkeys(images[n].group for n in training))
    order = np.random.default_rng(settings.seed).permutation(len(groups))
    folds = settings.folds
    if folds is None:
        folds = 3 if len(groups) < _FEW and not aside else 0
        if not aside and len(groups) >= _FEW:  # enough to hold a fifth aside
            chosen = {groups[n] for n in order[: max(1, len(groups) // 5)]}
            aside = [n for n in training if images[n].group in chosen]
            training = [n for n in training if images[n].group not in chosen]
    folds = min(folds, len(groups))
    stages = []
    for fold in range(folds if folds > 1 else 0):
        chosen = {groups[n] for n in order[fold::folds]}
        kept = [n for n in training if images[n].group not in chosen]
        measured = [n for n in training if images[n].group in chosen]
        stages.append(Stage(f"fold {fold + 1}", kept, measured, is_final=False))
    return [*stages, Stage("training", training, aside, is_final=True)]
