"""Fine-tuning a prompted model on a user's own cases: any SAM 2, pictures and volumes.

The cases are those of ``medsam2 train auto``, checked in the same way; the engine is that of ``train base``.
The recipe is MedSAM2's (Ma et al., arXiv 2504.03600) where nothing else is said.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medsam2_core.auto.fewshot.cases import LabelledCase
from medsam2_core.auto.fewshot.survey import Survey
from medsam2_core.errors import TrainingError
from medsam2_core.imaging.intensity import parse_window, to_display
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.imaging.volume import Volume
from medsam2_core.training.augmentation import FINE_TUNING, NONE, Augmentation
from medsam2_core.training.loader import Mixture, Views, fixed_views
from medsam2_core.training.losses import BASE_LOSS, SAM2_LOSS, LossWeights
from medsam2_core.training.objective import KINDS, Stage
from medsam2_core.training.parts import check_parts
from medsam2_core.training.processes import ALONE, Processes
from medsam2_core.training.stacks import LabelledStack
from medsam2_core.training.trainer import RunSettings, Trainer
from medsam2_core.training.views import View

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel

#: With fewer groups (patients, volumes, pictures) all are needed for training.
FEWEST_GROUPS = 5
_ONLY_CASES = Mixture(synthetic=0.0, anatomy=0.0, volumes=0.5, pictures=0.5, uses=1)
_SMALL = 256  # pixels


@dataclass(frozen=True, kw_only=True)
class FineTuning(RunSettings):
    """Settings of a fine-tuning; a run can only be resumed with the same.

    Attributes
    ----------
    frames
        Slices in a clip; 1 trains on single slices.
    prompts
        Shares of box, click, several clicks and mask as first prompts.
    loss
        Weights of the terms; None takes those the model was trained with.
    passes
        As a stage has it; 0 chooses by the size of the images: fewer are faster on small ones.
    epochs
        How often every picture, or every stretch of `frames` labelled slices, is used; 0 leaves it to
        `minutes`.
    """

    frames: int = 1
    batch: int = 8
    slices: int = 0
    passes: int = 0
    parts: str = "decoder+memory"
    learning_rate: float = 5e-5
    encoder_factor: float = 0.6
    layer_decay: float = 0.9
    prompts: tuple[float, float, float, float] = (0.5, 0.3, 0.0, 0.2)
    prompt_every: int = 0
    corrections: int = 2
    loss: LossWeights | None = None
    memory: str = "recent"
    memory_size: int = 16
    augmentation: Augmentation = FINE_TUNING
    epochs: float = 0.0
    steps: int = 0
    window: str = "auto"
    axes: tuple[str, ...] = ("axial",)
    warm_up: int = 20
    last_rate: float = 0.1
    weight_decay: float = 0.1
    clip: float = 0.1
    averaging: float = 0.99
    precision: str = "fp32"
    threads: int = 1
    workers: int = 0
    report_every: int = 5
    validate_every: int = 0
    save_every: int = 25
    patience: int = 4

    def __post_init__(self) -> None:
        check_parts(self.parts)
        for name, value, good in (
            ("minutes", self.minutes, 0 <= self.minutes < math.inf),
            ("epochs", self.epochs, 0 <= self.epochs < math.inf),
            ("learning_rate", self.learning_rate, 0 < self.learning_rate < 1),
            ("batch", self.batch, self.batch >= 1),
            ("frames", self.frames, 1 <= self.frames <= 64),
            ("prompts", list(self.prompts), min(self.prompts) >= 0 and sum(self.prompts) > 0),
        ):
            if not good:
                message = f"{name.replace('_', ' ')} {value} cannot be used"
                raise TrainingError(message, code="bad-setting", setting=name, value=value)


def suited_to(
    model: SegmentationModel,
    *,
    clip: int = 1,
    parts: str | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Return settings of :class:`FineTuning` that depend on the model and the data; what is given, stays.

    The embedded model is small enough to be trained whole at a high rate: that gained most on other images
    of the same kind. Of published models, which have seen far more, less is changed, and slowly.
    """
    is_small = model.recipe.draws_prompts
    parts = parts or ("all" if is_small else "decoder+memory")
    if learning_rate is None:
        # The weights of an update move by the product of two small ones.
        learning_rate = (2e-4 if is_small else 5e-5) * (5 if parts == "lora" else 1)
    return {
        "frames": clip,
        "slices": 4 if clip > 1 else 0,
        "batch": batch or (2 if clip > 1 else 8),
        "parts": parts,
        "learning_rate": learning_rate,
    }


def parse_prompts(text: str) -> tuple[float, float, float, float]:
    """Parse kinds of prompts, with shares or in equal ones: ``box,click`` or ``box=0.7,click=0.3``.

    Raises
    ------
    TrainingError
        Code ``prompts-syntax``.
    """
    shares = dict.fromkeys(KINDS, 0.0)
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        try:
            value = float(share) if equals else 1.0
        except ValueError:
            value = -1.0
        if name not in shares or not 0 <= value < math.inf:
            example = f"give some of {', '.join(KINDS)}, with shares if you like, such as box=0.7,click=0.3"
            raise TrainingError(f"prompts {text!r}: {example}", code="prompts-syntax", text=text)
        shares[name] = value
    if not any(shares.values()):
        message = f"prompts {text!r}: one share at least must be above 0"
        raise TrainingError(message, code="prompts-syntax", text=text)
    box, click, points, mask = (value / sum(shares.values()) for value in shares.values())
    return box, click, points, mask


@dataclass(frozen=True, eq=False)
class Division:
    """The cases of a training: to train on, held aside to stop in time, and for the figures.

    Attributes
    ----------
    training, aside
        Never of the same group (patient).
    measured
        Those the data itself holds out, or without such those held aside.
    """

    training: list[LabelledCase]
    aside: list[LabelledCase]
    measured: list[LabelledCase]

    @classmethod
    def of(cls, survey: Survey, seed: int) -> Division:
        """Divide cases by group: a fifth is held aside where there are enough."""
        pairs = list(zip(survey.cases, survey.groups_of_cases, strict=True))
        held_out = [case for case, _ in pairs if case.pair.held_out]
        usable = [(case, group) for case, group in pairs if not case.pair.held_out]
        groups = list(dict.fromkeys(group for _, group in usable))
        chosen: set[str] = set()
        if len(groups) >= FEWEST_GROUPS:
            order = np.random.default_rng(seed).permutation(len(groups))
            chosen = {groups[n] for n in order[: len(groups) // 5]}
        aside = [case for case, group in usable if group in chosen]
        training = [case for case, group in usable if group not in chosen]
        return cls(training, aside, held_out or aside)


def stacks_of(
    case: LabelledCase, axes: Sequence[str], window: str, numbers: Mapping[tuple[int, int], int]
) -> list[LabelledStack]:
    """Return a case as labelled stacks: one a slice direction, and one a layer of overlapping objects.

    Parameters
    ----------
    numbers
        Class number by (layer, value) of the case's labels; others are background.
    """
    volume, stacks = case.volume, []
    shown = parse_window(window, volume)
    for axis in dict.fromkeys(axes) if len(volume.voxels_kji) > 1 else ("k",):
        stack = SliceStack.along(volume, axis)
        image = np.stack([to_display(stack.image_hw(n), shown) for n in range(len(stack))])
        spacing = (float(stack.slice_mm or 1.0), float(stack.pixel_mm[0]), float(stack.pixel_mm[1]))
        keys = [(label.layer, label.value) for label in case.labels.labels]
        layers = case.labels.stored_layers()
        for layer in sorted(set(layers)):
            numbers_kji = np.zeros(volume.voxels_kji.shape[:3], dtype=np.int16)
            for key, on, segment in zip(keys, layers, case.labels, strict=True):
                if on == layer and key in numbers:
                    segment.view_of(numbers_kji)[segment.part_kji] = numbers[key]
            if numbers_kji.any():
                cut = SliceStack.along(Volume(numbers_kji, volume.geometry), axis)
                labels = np.stack([cut.image_hw(n) for n in range(len(cut))])
                stacks.append(LabelledStack("cases", case.pair.name, labels, image, spacing, complete=False))
    return stacks


def stage_of(
    settings: FineTuning, draws_prompts: bool, image_size: int, stacks: Sequence[LabelledStack]
) -> Stage:
    """Return the one stage of a fine-tuning."""
    steps = settings.steps
    if not steps and settings.epochs:
        labelled = (int(stack.labels_kji.any((1, 2)).sum()) for stack in stacks)
        clips = sum(max(1, round(slices / settings.frames)) for slices in labelled)
        steps = max(1, math.ceil(settings.epochs * clips / settings.batch))
    passes = settings.passes or (min(2, settings.batch) if image_size <= _SMALL else settings.batch)
    loss = settings.loss or (BASE_LOSS if draws_prompts else SAM2_LOSS)
    return Stage(
        "fine-tuning", steps=steps, frames=settings.frames, batch=settings.batch,
        learning_rate=settings.learning_rate, trunk_factor=settings.encoder_factor,
        corrections=settings.corrections, kinds=settings.prompts, affinity_weight=0.0,
        tracked_corrections=0.2, tracked_weight=1.0, carried_noise=0.2 if draws_prompts else 0.0,
        parts=settings.parts, layer_decay=settings.layer_decay, passes=passes,
        prompt_every=settings.prompt_every, loss=loss, memory=settings.memory,
        memory_size=settings.memory_size, slices=settings.slices if settings.frames > 1 else 0,
    )  # fmt: skip


class FineTuner(Trainer):
    """Trains a copy of a model on a user's cases; see :class:`~medsam2_core.training.trainer.Trainer`.

    Parameters
    ----------
    model
        The model to start from, in fp32; it is not changed.
    survey
        The cases, without fatal problems and with what was read.
    """

    settings: FineTuning
    writes_weights = False

    def __init__(
        self,
        settings: FineTuning,
        folder: str | Path,
        model: SegmentationModel,
        survey: Survey,
        report: Callable[[dict], None] = lambda _: None,
        processes: Processes = ALONE,
        **others: Any,
    ) -> None:
        self.model, self.division = model, Division.of(survey, settings.seed)
        self._numbers = survey.table.numbers
        self._stacks = self._read(self.division.training, settings)
        if not self._stacks:
            message = "no case to train on has a labelled object"
            raise TrainingError(message, code="nothing-to-train-on", cases=len(self.division.training))
        self._aside = self._read(self.division.aside, settings)
        self._data_key = _key_of([*self._stacks, *self._aside])
        stage = stage_of(settings, model.recipe.draws_prompts, model.image_size, self._stacks)
        settings = replace(settings, stages=(stage,))
        module = copy.deepcopy(model.module)
        super().__init__(settings, folder, module, model.recipe, report, processes, **others)

    def _read(self, cases: Sequence[LabelledCase], settings: FineTuning) -> list[LabelledStack]:
        return [
            stack
            for case in cases
            for stack in stacks_of(case, settings.axes, settings.window, self._numbers(case.labels.labels))
        ]

    def identity(self) -> dict[str, Any]:
        """Return model, data and all settings that change the result."""
        pace = ("device", "threads", "workers", "report_every", "save_every", "minutes", "precision")
        settings = {
            key: value for key, value in asdict(self.settings).items() if key not in (*pace, "stages")
        }
        return {"base": self.model.weights_key, "data": self._data_key, **json.loads(json.dumps(settings))}

    def views(self, turn: Stage) -> Views:
        """Return batches of the cases to train on."""
        settings, processes = self.settings, self.processes
        return Views(
            self._stacks, _ONLY_CASES, size=self.size, frames=turn.frames, batch=turn.batch,
            seed=settings.seed, augmentation=settings.augmentation, passes=min(turn.passes, turn.batch),
            process=processes.number, processes=processes.count,
        )  # fmt: skip

    def validation_views(self, stage: Stage) -> dict[str, list[View]]:
        """Return views of the cases held aside."""
        if not self._aside:
            return {}
        plain = replace(NONE, shift=0.2)
        count = self.settings.validation_views
        return fixed_views(self._aside, self.size, min(stage.frames, 4), count, 7, plain, synthetic=False)

    def trained_model(self) -> SegmentationModel:
        """Return the model with the averaged weights, for measuring."""
        from medsam2_core.engine.segmentation_model import SegmentationModel

        module = copy.deepcopy(self.model.module)
        module.load_state_dict(self.state())
        return SegmentationModel.of(module, "fine-tuned", self.model.recipe, self.device)

    def facts(self) -> dict[str, Any]:
        """Return what the card says of the training: nothing of a patient, and no names of files."""
        training, stage = self.division.training, self.settings.stages[0]
        return {
            "cases": len(training),
            "held_aside": len(self.division.aside),
            "measured": len(self.division.measured),
            "dimension": "3d" if stage.frames > 1 else "2d",
            "clip": stage.frames,
            "trained": stage.parts,
            "steps": self.done[-1]["best"] or self.done[-1]["steps"] if self.done else self.step,
            "seconds": round(self.seconds),
            "learning_rate": stage.learning_rate,
            "loss": asdict(stage.loss),
            "batch": stage.batch,
            "seed": self.settings.seed,
        }


def _key_of(stacks: Sequence[LabelledStack]) -> str:
    digest = hashlib.sha256()
    for stack in stacks:
        for array in (stack.labels_kji, stack.image_kji):
            assert array is not None
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def changed_state(base: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the trained tensors; what did not change is exactly what it was in the base's file."""
    return {
        key: base[key] if torch.equal(base[key].to(value), value.cpu()) else value.cpu().contiguous()
        for key, value in trained.items()
    }
