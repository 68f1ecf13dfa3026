"""Settings and stages of few-shot training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.fewshot.objective import PromptMix, Weights
from medsam2_core.auto.predictor import HEADS
from medsam2_core.errors import TrainingError

_FEW = 20  # groups (images, patients or volumes): with fewer, all are needed for training


@dataclass(frozen=True)
class FitSettings:
    """Optimisation of a predictor; defaults are the paper's (arXiv:2409.06821) unless stated.

    Attributes
    ----------
    batch
        Images a step.
    learning_rate, last_rate
        First and last rate of a cosine schedule with a short warm-up. Three times the paper's, which trains
        for 200 epochs instead of minutes.
    texture_share, texture_rate
        Share of the steps, at the beginning, that train the texture adapter alone on its class logits; its
        first rate.
    texture_kept
        Share of pretrained weights that is mixed into those of the texture adapter after that, so that it
        keeps what the few images do not show (Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR
        2022).
    texture_factor
        Rate of the projections of the texture adapter relative to the predictor's, afterwards.
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
    """Settings of a training; a run can only be resumed with the same.

    Attributes
    ----------
    minutes
        Time for everything, features included.
    steps
        Steps of the final training, instead of as many as the time allows.
    folds
        Cross-validation folds; None for three if there are few images and none is held out; 0 for none.
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
            message = f"{self.minutes:g} minutes: give a finite number above 0"
            raise TrainingError(message, code="bad-minutes", minutes=self.minutes)
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"{self.steps} steps: give at least 1", code="bad-steps", steps=self.steps)
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            message = f"{self.folds} folds: give 0 for none, or at least 2"
            raise TrainingError(message, code="bad-folds", folds=self.folds)
        if self.decoder not in ("frozen", "lora"):
            message = f"unknown decoder {self.decoder!r}: use frozen or lora"
            raise TrainingError(message, code="unknown-decoder", decoder=self.decoder)


@dataclass
class StageProgress:
    """Progress of a training.

    Attributes
    ----------
    stage
        ``features``, ``fold 1``, …, ``training``.
    dice
        Dice of the last validation; None before the first.
    """

    stage: str
    done: int
    total: int
    dice: float | None = None


@dataclass(frozen=True)
class Stage:
    """One fit of a training: indices of the images for training and validation."""

    name: str
    training: list[int]
    validation: list[int]
    is_final: bool


def plan_stages(images: Sequence[LabelledImage], settings: FewShotSettings) -> list[Stage]:
    """Plan cross-validation folds by group, then the final fit on all images for training."""
    training = [n for n, image in enumerate(images) if not image.held_out]
    held_out = [n for n, image in enumerate(images) if image.held_out]
    groups = list(dict.fromkeys(images[n].group for n in training))
    order = np.random.default_rng(settings.seed).permutation(len(groups))
    folds = settings.folds
    if folds is None:
        folds = 3 if len(groups) < _FEW and not held_out else 0
        if not held_out and len(groups) >= _FEW:  # enough to hold out a fifth
            chosen = {groups[n] for n in order[: max(1, len(groups) // 5)]}
            held_out = [n for n in training if images[n].group in chosen]
            training = [n for n in training if images[n].group not in chosen]
    folds = min(folds, len(groups))
    stages = []
    for fold in range(folds if folds > 1 else 0):
        chosen = {groups[n] for n in order[fold::folds]}
        kept = [n for n in training if images[n].group not in chosen]
        measured = [n for n in training if images[n].group in chosen]
        stages.append(Stage(f"fold {fold + 1}", kept, measured, is_final=False))
    return [*stages, Stage("training", training, held_out, is_final=True)]
