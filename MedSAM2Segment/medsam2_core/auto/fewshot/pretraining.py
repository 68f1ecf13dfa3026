"""Pretraining of predictors on several data sets, whose result few-shot training starts from.

Ten images are too few to train a predictor from random weights. Its shared part (attention, heads, adapters
of the encoder) is trained here on all labelled images there are, with queries for each class of each data set
as in Sam2Rad. The encoder is frozen. The texture adapter is trained alone first, which is fast; then all.

A run is a folder and can be stopped at any moment; ``start.safetensors`` is its result so far.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.atomic import make_folder, new_file
from medsam2_core.auto.adapters import AttachedAdapters, TextureAdapter, class_logits, encoder_adapters
from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.images import DataSet, read_data_sets
from medsam2_core.auto.fewshot.objective import PromptMix, Weights, auto_loss, coverage_loss, dice_loss
from medsam2_core.auto.fewshot.start import read_start
from medsam2_core.auto.model import encode_levels, with_texture
from medsam2_core.auto.network import AutoNetwork
from medsam2_core.auto.predictor import FeatureLevels, PredictedPrompts, PredictorSettings, PromptPredictor
from medsam2_core.engine.devices import has_fast_bf16
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.errors import TrainingError

_LEAST_PIXELS = 40
_VALIDATED = 12  # images of a data set


@dataclass(frozen=True)
class Pretraining:
    """Settings of pretraining.

    Attributes
    ----------
    minutes
        Time of training over all runs.
    texture_share
        Share of the time in which the texture adapter is trained alone.
    images, classes
        Images of one data set a step, and classes of each.
    texture_images
        Images a step while the texture adapter is trained alone, on all classes.
    mixed
        Whether the texture adapter is computed in bfloat16 then, where the device does that itself.
    calm
        Factor of the texture adapter's learning rate afterwards.
    """

    minutes: float = 60.0
    texture_share: float = 0.65
    images: int = 3
    texture_images: int = 8
    mixed: bool = True
    classes: int = 2
    learning_rate: float = 5e-4
    adapter_rate: float = 1e-3
    texture_rate: float = 3e-3
    calm: float = 0.3
    weight_decay: float = 0.05
    texture_decay: float = 1e-3
    warm_up: int = 200
    averaging: float = 0.99
    seed: int = 1
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(affine=0.8, degrees=20, scale=1.5, flip_y=0.05, photometric=0.8)
    )
    weights: Weights = field(default_factory=lambda: Weights(focal=20.0, guess=60.0))


class AuxiliaryHead(nn.Module):
    """A convolutional segmentation head on the encoder's features; not part of the result.

    It gives the encoder adapters a direct gradient from the first step.
    """

    def __init__(self, widths: tuple[int, int, int], classes: int, inner: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(sum(widths), inner, 1), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.classes = nn.Parameter(torch.randn(classes, inner) / math.sqrt(inner))

    def forward(self, levels: FeatureLevels, wanted: torch.Tensor) -> torch.Tensor:
        """Compute (B, K, h, w) logits of the classes `wanted` (B, K)."""
        size = levels.fine.shape[-2:]
        maps = [functional.interpolate(x, size=size, mode="bilinear") for x in (levels.coarse, levels.middle)]
        features = self.layers(torch.cat([*maps, levels.fine], dim=1))
        return torch.einsum("bchw,bkc->bkhw", features, self.classes[wanted])


class Pretrainer:
    """Trains the shared part of predictors for one model.

    Parameters
    ----------
    folder
        Folder of the run; a run in it is resumed.
    start
        Earlier pretrained weights to continue from; their encoder adapters are frozen. Their data sets must
        be the first ones, in the same order. With the same data sets the texture adapter is continued, too,
        and all parts are trained together from the beginning.

    Raises
    ------
    TrainingError
        ``no-data-sets``, ``data-sets-of-one-name``, ``start-unreadable``, ``start-for-other-model`` or
        ``start-of-other-data``.
    """

    def __init__(
        self,
        model: SegmentationModel,
        data: Sequence[str | Path],
        folder: str | Path,
        settings: Pretraining,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
        start: str | Path | None = None,
    ) -> None:
        self.model, self.folder, self.settings = model, Path(folder), settings
        self._report = report
        torch.manual_seed(settings.seed)
        self.training, self.validation = read_data_sets([Path(one) for one in data], model.image_size)
        make_folder(self.folder)
        queries = sum(len(one.classes) for one in self.training)
        self.predictor = PromptPredictor(PredictorSettings.for_module(model.module, queries))
        self.adapters = encoder_adapters(model.module)
        self.network = AutoNetwork(model.module, self.predictor, model.recipe)
        settings_of = self.predictor.settings
        widths = (settings_of.width, *settings_of.fine_widths)
        self.head = AuxiliaryHead(widths, queries)
        self.texture = TextureAdapter(settings_of.width, settings_of.fine_widths, queries)
        nn.init.normal_(self.texture.looks, std=0.1)
        parts = {"predictor": self.predictor, "adapters": self.adapters, "texture": self.texture}
        self.trained = nn.ModuleDict({**parts, "head": self.head}).to(model.device)
        self.keeps_adapters = start is not None
        if start is not None:
            self._load_start(Path(start))
        self.average = {k: v.detach().clone() for k, v in self.trained.state_dict().items()}
        self.optimiser = self._optimiser()
        self.step, self.together_from, self.seconds = 0, 0, 0.0
        self._resume()

    @property
    def fraction(self) -> float:
        """Share of the time that has passed."""
        return self.seconds / max(1e-9, self.settings.minutes * 60)

    @property
    def is_alone(self) -> bool:
        """Whether the texture adapter is still trained alone."""
        return self.fraction < self.settings.texture_share

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train until the time is over or `should_stop` returns True."""
        since, before, share = time.monotonic(), self.seconds, self.settings.texture_share
        meter: dict[str, float] = {}
        while self.fraction < 1 and not should_stop():
            alone = self.is_alone
            self.together_from = self.step if alone else self.together_from
            done = self.fraction / share if alone else (self.fraction - share) / (1 - share)
            warm = min(1.0, (self.step - (0 if alone else self.together_from) + 1) / self.settings.warm_up)
            pace = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in self.optimiser.param_groups:
                # Once trained, the texture adapter should change little.
                calm = 1.0 if alone or group["name"] != "texture" else self.settings.calm
                group["lr"] = group["peak"] * pace * calm
            for name, value in (self._texture_step if alone else self._step)().items():
                meter[name] = 0.98 * meter.get(name, value) + 0.02 * value
            self.step += 1
            self.seconds = before + time.monotonic() - since
            if self.step % 100 == 0:
                self._log({**meter, "minutes": round(self.seconds / 60, 1)})
            if self.step % 500 == 0:
                self._save()
                self._log({"validation": self.validate()})
        self._save()
        self._log({"validation": self.validate()})

    def _load_start(self, path: Path) -> None:
        start = read_start(path, self.model)
        if start is None or not start.predictor:
            message = f"{path} is a start for another model than {self.model.name!r}"
            raise TrainingError(message, code="start-for-other-model", path=str(path), model=self.model.name)
        if len(start.queries) > len(self.predictor.queries):
            message = f"{path} has {len(start.queries)} classes, more than there are here"
            raise TrainingError(message, code="start-of-other-data", path=str(path))
        known, ours = start.data_sets, [one.name for one in self.training]
        if known and ours[: len(known)] != list(known):
            raise TrainingError(
                f"{path} was trained on {', '.join(known)}: give these data sets first, "
                f"not {', '.join(ours)}",
                code="start-of-other-data", path=str(path), known=list(known), given=ours,
            )  # fmt: skip
        if known == tuple(ours) and start.looks is not None:
            self.texture.load_state_dict({**start.texture, "looks": start.looks})
            self.settings = replace(self.settings, texture_share=0.0)
        own = self.predictor.queries.detach().clone()
        own[: len(start.queries)] = start.queries
        self.predictor.load_state_dict({**start.predictor, "queries": own})
        self.adapters.load_state_dict(start.adapters)
        self.adapters.requires_grad_(False)

    def _drawn(self) -> tuple[DataSet, np.random.Generator]:
        """Draw the data set of this step; return it with the random generator of the step."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        # Every image has the same probability: a small data set drawn often would be overfitted.
        sizes = np.array([len(one.images) for one in self.training])
        return self.training[int(rng.choice(len(sizes), p=sizes / sizes.sum()))], rng

    def _texture_step(self) -> dict[str, float]:
        data, rng = self._drawn()
        pictures, labels = zip(*self._pictures(data, rng, self.settings.texture_images), strict=True)
        device = self.model.device
        mixed = self.settings.mixed and has_fast_bf16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            pixels = self.texture(torch.stack(pictures).to(device)).pixels
        numbers = torch.tensor(data.classes)[None, :, None, None]
        masks = (torch.stack(labels)[:, None] == numbers).flatten(0, 1).to(device)
        return self._learn(
            {"sketch": coverage_loss(self._class_logits(pixels.float(), data).flatten(0, 1), masks)}
        )

    def _class_logits(self, pixels: torch.Tensor, data: DataSet) -> torch.Tensor:
        """Compute (B, K, h, w) texture logits of the classes of a data set."""
        return class_logits(
            pixels, self.texture.looks[data.first_query : data.first_query + len(data.classes)]
        )

    def _step(self) -> dict[str, float]:
        data, rng = self._drawn()
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        images, masks, wanted = self._batch(data, rng)
        with sdpa_kernel(SDPBackend.MATH):
            levels = self._levels(images, data, wanted)
            # Each image has queries of its own classes.
            prompts = self._prompts(levels, wanted)
            count = wanted.shape[1]
            used, user = PromptMix().draw(prompts, masks, generator)
            answer = self.network.decode(levels.repeated(count), used, user)
            parts = auto_loss(
                answer.logits, answer.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip
            assert prompts.mask_logits is not None
            parts["head"] = coverage_loss(self.head(levels, wanted).flatten(0, 1), masks)
            parts["shape"] = 0.5 * coverage_loss(prompts.mask_logits[:, 0], masks)
            assert levels.texture_logits is not None
            parts["sketch"] = coverage_loss(levels.texture_logits.flatten(0, 1), masks)
        return self._learn(parts)

    def _learn(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        total: torch.Tensor = sum(parts.values())  # type: ignore[assignment]
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
            self._update_average()
        return {name: float(value.detach()) for name, value in parts.items()}

    def _levels(self, images: torch.Tensor, data: DataSet, wanted: torch.Tensor) -> FeatureLevels:
        """Compute the predictor's features: the adapted encoder's plus the texture adapter's."""
        with AttachedAdapters(self.model.module, self.adapters):
            levels = encode_levels(self.model, images)
        seen = self.texture(images)
        drawn = self._class_logits(seen.pixels, data)
        of_wanted = torch.stack([one[n - data.first_query] for one, n in zip(drawn, wanted, strict=True)])
        return with_texture(levels, seen, of_wanted)

    def _prompts(self, levels: FeatureLevels, wanted: torch.Tensor) -> PredictedPrompts:
        """Predict the prompts of the classes `wanted` (B, K)."""
        return self.predictor(
            levels, self.network.prompt_encoder.no_mask_embed.weight, self.predictor.queries[wanted]
        )

    def _batch(
        self, data: DataSet, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw (B, 3, S, S) normalised images, (B*K, S, S) masks, and (B, K) numbers of queries."""
        images, masks, wanted = [], [], []
        count = min(self.settings.classes, len(data.classes))
        for picture, labels in self._pictures(data, rng, self.settings.images):
            images.append(picture)
            present = [c for c in data.classes if int((labels == c).sum()) > _LEAST_PIXELS]
            others = [c for c in data.classes if c not in present]
            chosen = [*rng.permutation(present), *rng.permutation(others)][:count]
            masks += [labels == int(c) for c in chosen]
            wanted.append([data.first_query + data.classes.index(int(c)) for c in chosen])
        device = self.model.device
        return torch.stack(images).to(device), torch.stack(masks).to(device), torch.tensor(wanted).to(device)

    def _pictures(
        self, data: DataSet, rng: np.random.Generator, count: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Draw normalised, augmented images of a data set with their labels."""
        made = []
        for n in rng.choice(len(data.images), count, replace=len(data.images) < count):
            square, marks, letterbox = data.images[n]
            picture = torch.from_numpy(square.astype(np.float32) / 255).permute(2, 0, 1)
            picture, labels = self.settings.augmentation.apply(picture, marks, rng, letterbox.content_hw)
            made.append((letterbox.normalise(picture), labels))
        return made

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Compute the mean Dice by data set on images for validation, with the averaged weights.

        While the texture adapter is trained alone, that of its logits.
        """
        kept = {k: v.clone() for k, v in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average)
        self.trained.eval()
        table = {}
        for data in self.validation:
            found = []
            for square, labels, letterbox in data.images[:: max(1, len(data.images) // _VALIDATED)]:
                picture = torch.from_numpy(square.astype(np.float32) / 255).permute(2, 0, 1)
                present = [c for c in data.classes if int((labels == c).sum()) > _LEAST_PIXELS]
                if not present:
                    continue
                numbers = [data.first_query + data.classes.index(c) for c in present]
                wanted = torch.tensor([numbers], device=self.model.device)
                image = letterbox.normalise(picture)[None].to(self.model.device)
                levels = self._levels(image, data, wanted)
                assert levels.texture_logits is not None
                found_logits = levels.texture_logits[0][:, None]
                if not self.is_alone:
                    prompts = self._prompts(levels, wanted)
                    found_logits = self.network.decode(levels.repeated(len(present)), prompts).logits
                logits = functional.interpolate(found_logits, size=labels.shape, mode="bilinear")[:, 0]
                truth = torch.stack([labels == c for c in present]).to(logits.device)
                found.append(1 - dice_loss(torch.where(logits > 0, 100.0, -100.0), truth.float()).cpu())
            if found:
                table[data.name] = round(float(torch.cat(found).mean()), 3)
        self.trained.load_state_dict(kept)
        self.trained.train()
        table["mean"] = round(sum(table.values()) / max(1, len(table)), 3)
        return table

    def _optimiser(self) -> torch.optim.Optimizer:
        settings = self.settings
        beside = [*self.adapters.parameters(), *self.head.parameters()]
        groups = [
            {"name": name, "params": list(parameters), "peak": peak, "weight_decay": decay}
            for name, parameters, peak, decay in (
                ("predictor", self.predictor.parameters(), settings.learning_rate, settings.weight_decay),
                ("adapters", beside, settings.adapter_rate, settings.weight_decay),
                ("texture", self.texture.parameters(), settings.texture_rate, settings.texture_decay),
            )
        ]
        return torch.optim.AdamW(groups, lr=1e-3)

    def _update_average(self) -> None:
        keep = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.trained.state_dict().items():
                self.average[key].lerp_(value, 1 - keep)

    def _log(self, line: dict[str, Any]) -> None:
        line = {"step": self.step, **{k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._report(line)

    def _save(self) -> None:
        state = {
            "trained": self.trained.state_dict(), "average": self.average,
            "optimiser": self.optimiser.state_dict(), "keeps_adapters": self.keeps_adapters,
            "step": self.step, "together_from": self.together_from, "seconds": self.seconds,
        }  # fmt: skip
        partial = self.folder / "last.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "last.pt")
        shared = {
            name: value.half().contiguous()
            for name, value in self.average.items()
            if not name.startswith("head.")
        }
        notes = {
            "base_key": self.model.weights_key,
            "data_sets": json.dumps([one.name for one in self.training]),
        }
        with new_file(self.folder / "start.safetensors", overwrite=True) as stream:
            stream.write(save(shared, metadata=notes))

    def _resume(self) -> None:
        path = self.folder / "last.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        self.trained.load_state_dict(state["trained"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        self.together_from = state["together_from"]
        self.keeps_adapters = state["keeps_adapters"]
        self.adapters.requires_grad_(not self.keeps_adapters)
