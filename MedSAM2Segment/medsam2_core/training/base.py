"""Training the embedded model from nothing: single slices, clips for the memory, then both by turns.

Prompts are drawn as well as embedded, an affinity loss gives the trunk a dense signal, and corrections are as
frequent as first prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from medsam2_core.engine.checkpoint import load_strict, read_state_dict
from medsam2_core.engine.devices import choose_device
from medsam2_core.engine.model import build_module
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.training.loader import Mixture, Views, fixed_views
from medsam2_core.training.objective import Stage
from medsam2_core.training.sources import load_shapes, load_sources, split
from medsam2_core.training.trainer import RunSettings, Trainer
from medsam2_core.training.views import View

# What the embedded model receives beside tokens; equal to its recipe in the catalogue.
EMBEDDED_RECIPE = PromptRecipe(
    draws_prompts=True,
    negative_radius=0.03,
    carries_mask=True,
    least_iou=0.35,
    least_score=0.5,
    presence=(-2.61, 2.74, 0.48, 3.4, -1.77),
    box_prior=2.0,
)

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


@dataclass(frozen=True, kw_only=True)
class BaseTraining(RunSettings):
    """Settings of a run, stored in its folder.

    A resumed run must have the same network, seed and started stages; steps, data and pace may change.

    Attributes
    ----------
    start
        Weights to start from, a path; None starts from random ones. A resumed run has its own.
    """

    data: str
    config: str = "embedded"
    start: str | None = None
    stages: tuple[Stage, ...] = (SLICES, CLIPS, CORRECTIONS)
    mixture: Mixture = field(default_factory=Mixture)


class BaseTrainer(Trainer):
    """Trains the embedded model; see :class:`~medsam2_core.training.trainer.Trainer`.

    Raises
    ------
    TrainingError
        Also if the data cannot be read.
    """

    settings: BaseTraining

    def __init__(
        self, settings: BaseTraining, folder: str | Path, report: Callable[[dict], None] = lambda _: None
    ) -> None:
        choose_device(settings.device)
        self._training, self._held_back = split(load_sources(settings.data))
        self._shapes = load_shapes(settings.data)
        with torch.random.fork_rng([]):
            torch.manual_seed(settings.seed)
            module = build_module(settings.config)
        if settings.start is not None:
            load_strict(module, read_state_dict(settings.start), settings.config, settings.start)
        super().__init__(settings, folder, module, EMBEDDED_RECIPE, report)

    def identity(self) -> dict[str, Any]:
        """Return network and seed."""
        return {"config": self.settings.config, "seed": self.settings.seed}

    def views(self, turn: Stage) -> Views:
        """Return batches of random and real anatomy."""
        seed = self.settings.seed * 1_000_003 + self.stage_index * 100_003 + 7_919 * turn.frames
        return Views(
            self._training, self.settings.mixture, size=self.size, frames=turn.frames, batch=turn.batch,
            seed=seed, shapes=self._shapes, passes=turn.passes,
        )  # fmt: skip

    def validation_views(self, stage: Stage) -> dict[str, list[View]]:
        """Return views of the cases that are held back."""
        return fixed_views(self._held_back, self.size, stage.frames, self.settings.validation_views, seed=7)
