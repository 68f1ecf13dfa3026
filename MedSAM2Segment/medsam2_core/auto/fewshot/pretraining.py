"""A start for predictors: trained on many data sets at once, each class with queries of its own.

A new predictor knows nothing, and ten images teach it little besides what to look for. Here the shared part
(attention, heads, adapters of the encoder) learns how to look, from every labelled image there is, with
queries for each class of each data set as in Sam2Rad; few-shot training then begins from it. The encoder's
own weights stay as they are.

A run is a folder and may be stopped at any moment; ``start.safetensors`` is its result so far.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.atomic import new_file
from medsam2_core.auto.adapting import Attached, TextureAdapter, encoder_adapters
from medsam2_core.auto.augmentation import Augmentation
from medsam2_core.auto.fewshot.prompting import PromptMix
from medsam2_core.auto.framing import Frame
from medsam2_core.auto.loading import levels_of
from medsam2_core.auto.losses import Weights, auto_loss, dice_loss
from medsam2_core.auto.network import AutoNetwork
from medsam2_core.auto.predictor import Levels, PredictorSettings, PromptPredictor
from medsam2_core.engine.model import SegmentationModel
from medsam2_core.errors import TrainingError

_LEAST_PIXELS = 40


@dataclass(frozen=True)
class DataSet:
    """Images of one origin: (side, side, 3) uint8 squares, (side, side) labels, and how they are framed."""

    name: str
    squares: list[np.ndarray]
    labels: list[torch.Tensor]
    frames: list[Frame]
    classes: tuple[int, ...]
    first_query: int


@dataclass(frozen=True)
class Pretraining:
    """Settings of a run."""

    minutes: float = 60.0
    images: int = 3
    classes: int = 2
    learning_rate: float = 5e-4
    adapter_rate: float = 1e-3
    texture_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 200
    averaging: float = 0.998
    seed: int = 1
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(affine=0.8, scale=1.5, photometric=0.8)
    )
    weights: Weights = field(default_factory=lambda: Weights(focal=20.0, guess=60.0))


class AuxiliaryHead(nn.Module):
    """A plain convolutional segmenter on the encoder's features, so that adapters learn from the first step;
    thrown away afterwards."""

    def __init__(self, widths: tuple[int, int, int], classes: int, inner: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(sum(widths), inner, 1), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classes = nn.Parameter(torch.randn(classes, inner) / math.sqrt(inner))

    def forward(self, levels: Levels, wanted: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) logits of the classes `wanted` (B, K)."""
        size = levels.fine.shape[-2:]
        maps = [functional.interpolate(x, size=size, mode="bilinear") for x in (levels.coarse, levels.middle)]
        features = self.layers(torch.cat([*maps, levels.fine], dim=1))
        return torch.einsum("bchw,bkc->bkhw", features, self.classes[wanted])


class Pretrainer:
    """Trains the shared part of predictors of one model.

    Parameters
    ----------
    model
        The SAM 2 below.
    data
        A folder of data sets: folders of ``*_img.png`` and ``*_seg.png``.
    folder
        The run's; an earlier run in it goes on.
    report
        Called with one dict a log line.

    Raises
    ------
    TrainingError
        Nothing to train on, or a run that cannot be continued.
    """

    def __init__(
        self,
        model: SegmentationModel,
        data: str | Path,
        folder: str | Path,
        settings: Pretraining,
        report: Callable[[dict], None] = lambda _: None,
    ) -> None:
        self.model, self.folder, self.settings = model, Path(folder), settings
        self._report = report
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.training, self.validation = _read(Path(data), model.image_size)
        queries = sum(len(one.classes) for one in self.training)
        self.predictor = PromptPredictor(PredictorSettings.for_module(model.module, queries))
        self.adapters = encoder_adapters(model.module)
        self.network = AutoNetwork(model.module, self.predictor, model.recipe)
        settings_of = self.predictor.settings
        widths = (settings_of.width, *settings_of.fine_widths)
        self.head = AuxiliaryHead(widths, queries)
        self.texture = TextureAdapter(settings_of.width, settings_of.fine_widths)
        parts = {"predictor": self.predictor, "adapters": self.adapters, "texture": self.texture}
        self.trained = nn.ModuleDict({**parts, "head": self.head})
        self.average = {k: v.detach().clone() for k, v in self.trained.state_dict().items()}
        self.optimiser = self._optimiser()
        self.step, self.seconds = 0, 0.0
        self._resume()

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train until the minutes are over; a run that was stopped goes on."""
        budget, since, meter = self.settings.minutes * 60, time.monotonic(), {}
        before = self.seconds
        while self.seconds < budget and not should_stop():
            fraction = self.seconds / budget
            warm = min(1.0, (self.step + 1) / self.settings.warm_up)
            for group in self.optimiser.param_groups:
                group["lr"] = group["peak"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))
            for name, value in self._train_step().items():
                meter[name] = 0.98 * meter.get(name, value) + 0.02 * value
            self.step += 1
            self.seconds = before + time.monotonic() - since
            if self.step % 100 == 0:
                self._log({**meter, "minutes": round(self.seconds / 60, 1)})
            if self.step % 500 == 0:
                self._log({"validation": self.validate()})
                self._save()
        self._log({"validation": self.validate()})
        self._save()

    def _train_step(self) -> dict[str, float]:
        rng = np.random.default_rng((self.settings.seed, self.step))
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        sizes = np.sqrt([len(one.squares) for one in self.training])
        data = self.training[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        images, masks, wanted = self._batch(data, rng)
        with sdpa_kernel(SDPBackend.MATH):
            levels = self._levels(images)
            # Each image has queries of its own classes: the predictor is asked with as many as are wanted.
            prompts = self._prompts(levels, wanted)
            count = wanted.shape[1]
            used, said = PromptMix().draw(prompts, masks, generator)
            answer = self.network.decode(levels.repeated(count), used, said)
            parts = auto_loss(
                answer.logits, answer.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip
            parts["head"] = _overlap_loss(self.head(levels, wanted).flatten(0, 1), masks)
            parts["shape"] = 0.5 * _overlap_loss(prompts.mask_logits[:, 0], masks)
            total = sum(parts.values())
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
            self._update_average()
        return {name: float(value.detach()) for name, value in parts.items()}

    def _levels(self, images: torch.Tensor) -> Levels:
        """Features as the predictor will see them: of the adapted encoder, and the texture beside it."""
        with Attached(self.model.module, self.adapters):
            levels = levels_of(self.model, images)
        coarse, middle, fine = self.texture(images)
        return Levels(levels.coarse + coarse, levels.middle + middle, levels.fine + fine)

    def _prompts(self, levels: Levels, wanted: torch.Tensor):
        """Prompts of the classes `wanted` (B, K), not of all there are."""
        return self.predictor(
            levels, self.network.prompt_encoder.no_mask_embed.weight, self.predictor.queries[wanted]
        )

    def _batch(
        self, data: DataSet, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) normalised images, (B*K, S, S) masks, (B, K) numbers of queries."""
        settings, images, masks, wanted = self.settings, [], [], []
        count = min(settings.classes, len(data.classes))
        for n in rng.choice(len(data.squares), settings.images, replace=len(data.squares) < settings.images):
            picture = torch.from_numpy(data.squares[n].astype(np.float32) / 255).permute(2, 0, 1)
            frame = data.frames[n]
            picture, labels = settings.augmentation.apply(picture, data.labels[n], rng, frame.inner_hw)
            if rng.random() < 0.1:
                picture = 1 - picture
            images.append(frame.normalised(picture))
            present = [c for c in data.classes if int((labels == c).sum()) > _LEAST_PIXELS]
            others = [c for c in data.classes if c not in present]
            chosen = [*rng.permutation(present), *rng.permutation(others)][:count]
            masks += [labels == int(c) for c in chosen]
            wanted.append([data.first_query + data.classes.index(int(c)) for c in chosen])
        return torch.stack(images), torch.stack(masks), torch.tensor(wanted)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Mean Dice by data set of the averaged weights, on images that are not trained on."""
        kept = {k: v.clone() for k, v in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average)
        self.trained.eval()
        table = {}
        for data in self.validation:
            found = []
            for square, labels, frame in zip(data.squares, data.labels, data.frames, strict=True):
                picture = torch.from_numpy(square.astype(np.float32) / 255).permute(2, 0, 1)
                levels = self._levels(frame.normalised(picture)[None])
                present = [c for c in data.classes if int((labels == c).sum()) > _LEAST_PIXELS]
                if not present:
                    continue
                wanted = torch.tensor([[data.first_query + data.classes.index(c) for c in present]])
                answer = self.network.decode(levels.repeated(len(present)), self._prompts(levels, wanted))
                logits = functional.interpolate(answer.logits, size=labels.shape, mode="bilinear")[:, 0]
                truth = torch.stack([labels == c for c in present])
                found.append(1 - dice_loss(torch.where(logits > 0, 100.0, -100.0), truth.float()))
            if found:
                table[data.name] = round(float(torch.cat(found).mean()), 3)
        self.trained.load_state_dict(kept)
        self.trained.train()
        table["mean"] = round(sum(table.values()) / max(1, len(table)), 3)
        return table

    def _optimiser(self) -> torch.optim.Optimizer:
        groups = [
            {"params": list(self.predictor.parameters()), "peak": self.settings.learning_rate},
            {
                "params": [*self.adapters.parameters(), *self.head.parameters()],
                "peak": self.settings.adapter_rate,
            },
            {"params": list(self.texture.parameters()), "peak": self.settings.texture_rate},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=self.settings.weight_decay)

    def _update_average(self) -> None:
        keep = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.trained.state_dict().items():
                self.average[key].lerp_(value, 1 - keep)

    def _log(self, line: dict) -> None:
        line = {"step": self.step, **{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._report(line)

    def _save(self) -> None:
        state = {
            "trained": self.trained.state_dict(), "average": self.average, "step": self.step,
            "optimiser": self.optimiser.state_dict(), "seconds": self.seconds,
        }  # fmt: skip
        partial = self.folder / "last.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "last.pt")
        shared = {
            name: value.half().contiguous()
            for name, value in self.average.items()
            if not name.startswith("head.")
        }
        with new_file(self.folder / "start.safetensors", overwrite=True) as stream:
            stream.write(save(shared, metadata={"base_key": self.model.weights_key}))

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.trained.load_state_dict(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]


def _overlap_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """BCE and Dice of (N, s, s) logits against the share of each cell that (N, S, S) masks cover."""
    share = functional.avg_pool2d(masks[:, None].float(), masks.shape[-1] // logits.shape[-1])[:, 0]
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, share)
    there = masks.flatten(1).any(1)
    dice = (dice_loss(logits, share) * there).sum() / there.sum().clamp(min=1)
    return 2 * cross_entropy + dice


def _read(folder: Path, side: int) -> tuple[list[DataSet], list[DataSet]]:
    from PIL import Image

    training, validation, queries = [], [], 0
    for row in sorted(path for path in folder.iterdir() if path.is_dir()):
        squares, labels, frames = [], [], []
        for path in sorted(row.glob("*_img.png")):
            image = np.asarray(Image.open(path).convert("RGB"))
            marks = np.asarray(Image.open(path.with_name(path.name.replace("_img.", "_seg."))))
            frame = Frame(image.shape[:2], side)
            squares.append((frame.pixels(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            labels.append(frame.labels(marks))
            frames.append(frame)
        if not squares:
            continue
        classes = tuple(sorted({int(v) for marks in labels for v in torch.unique(marks)} - {0}))
        aside = [n for n in range(len(squares)) if n % 8 == 5]
        for rows, kept in (
            (training, [n for n in range(len(squares)) if n not in aside]),
            (validation, aside),
        ):
            parts = ([part[n] for n in kept] for part in (squares, labels, frames))
            rows.append(DataSet(row.name, *parts, classes, queries))
        queries += len(classes)
    if not training:
        raise TrainingError(
            f"{folder}: no data sets in it: folders of NAME_img.png and NAME_seg.png are read"
        )
    return training, validation
