"""A start for predictors: trained on many data sets at once, each class with queries of its own.

A new predictor knows nothing, and ten images teach it little besides what to look for. Here the shared part
(attention, heads, adapters of the encoder) learns how to look, from every labelled image there is, with
queries for each class of each data set as in Sam2Rad; few-shot training then begins from it. The encoder's
own weights stay as they are. The texture adapter comes first and alone, which is quick; then all together.

A run is a folder and may be stopped at any moment; ``start.safetensors`` is its result so far.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsam2_core.atomic import new_file
from medsam2_core.auto.adapting import Attached, encoder_adapters
from medsam2_core.auto.augmentation import Augmentation
from medsam2_core.auto.fewshot.datasets import DataSet, read_data_sets
from medsam2_core.auto.fewshot.prompting import PromptMix
from medsam2_core.auto.fewshot.starting import read_start
from medsam2_core.auto.loading import levels_of, with_texture
from medsam2_core.auto.losses import Weights, auto_loss, dice_loss, sketch_loss
from medsam2_core.auto.network import AutoNetwork
from medsam2_core.auto.predictor import Levels, PredictorSettings, PromptPredictor
from medsam2_core.auto.texture import TextureAdapter, sketch
from medsam2_core.engine.model import SegmentationModel
from medsam2_core.errors import TrainingError

_LEAST_PIXELS = 40
_VALIDATED = 12  # images of a data set


@dataclass(frozen=True)
class Pretraining:
    """Settings of a run.

    Attributes
    ----------
    texture_share
        Of the minutes, for the texture adapter alone.
    images, classes, texture_images
        A step: images of one data set, and classes of each; images when only the texture adapter learns,
        from all classes at once.
    mixed
        Compute the texture adapter in bfloat16 then.
    calm
        How much slower the texture adapter learns once it is not alone any more.
    averaging
        Of the weights that are kept (exponential).
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
        Folders of data sets: folders of ``*_img.png`` and ``*_seg.png``.
    folder
        The run's; an earlier run in it goes on.
    report
        Called with one dict a log line.
    begin
        An earlier start, whose predictor and adapters of the encoder are taken over; the latter stay as they
        are. Its data sets must be the first ones, in the same order.

    Raises
    ------
    TrainingError
        Nothing to train on, or a run that cannot be continued.
    """

    def __init__(
        self,
        model: SegmentationModel,
        data: Sequence[str | Path],
        folder: str | Path,
        settings: Pretraining,
        report: Callable[[dict], None] = lambda _: None,
        begin: str | Path | None = None,
    ) -> None:
        self.model, self.folder, self.settings = model, Path(folder), settings
        self._report = report
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.training, self.validation = read_data_sets([Path(one) for one in data], model.image_size)
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
        self.keeps_adapters = begin is not None
        if begin is not None:
            self._begin(Path(begin))
        self.average = {k: v.detach().clone() for k, v in self.trained.state_dict().items()}
        self.optimiser = self._optimiser()
        self.step, self.together_from, self.seconds = 0, 0, 0.0
        self._resume()

    @property
    def fraction(self) -> float:
        """How much of the time is over."""
        return self.seconds / max(1e-9, self.settings.minutes * 60)

    @property
    def is_alone(self) -> bool:
        """Whether the texture adapter still learns alone."""
        return self.fraction < self.settings.texture_share

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Train until the minutes are over; a run that was stopped goes on."""
        since, before, share = time.monotonic(), self.seconds, self.settings.texture_share
        meter: dict[str, float] = {}
        while self.fraction < 1 and not should_stop():
            alone = self.is_alone
            self.together_from = self.step if alone else self.together_from
            done = self.fraction / share if alone else (self.fraction - share) / (1 - share)
            warm = min(1.0, (self.step - (0 if alone else self.together_from) + 1) / self.settings.warm_up)
            pace = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in self.optimiser.param_groups:
                # Once it knows its way, the texture adapter is to stay near what it is.
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

    def _begin(self, path: Path) -> None:
        """Take over what an earlier start holds."""
        start = read_start(path, self.model)
        if start is None or not start.predictor:
            raise TrainingError(f"{path} is a start for another model than {self.model.name!r}")
        if len(start.queries) > len(self.predictor.queries):
            raise TrainingError(f"{path} knows {len(start.queries)} classes, more than there are here")
        known, ours = start.data_sets, [one.name for one in self.training]
        if known and ours[: len(known)] != list(known):
            raise TrainingError(
                f"{path} was trained on {', '.join(known)}: give these data sets first, not {', '.join(ours)}"
            )
        own = self.predictor.queries.detach().clone()
        own[: len(start.queries)] = start.queries
        self.predictor.load_state_dict({**start.predictor, "queries": own})
        self.adapters.load_state_dict(start.adapters)
        self.adapters.requires_grad_(False)

    def _drawn(self) -> tuple[DataSet, np.random.Generator]:
        """The data set of this step, and where its chances come from."""
        rng = np.random.default_rng((self.settings.seed, self.step))
        # Every image as often as any other: a small set that came up often would be learned by heart.
        sizes = np.array([len(one.squares) for one in self.training])
        return self.training[int(rng.choice(len(sizes), p=sizes / sizes.sum()))], rng

    def _texture_step(self) -> dict[str, float]:
        data, rng = self._drawn()
        pictures, labels = zip(*self._pictures(data, rng, self.settings.texture_images), strict=True)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.settings.mixed):
            pixels = self.texture(torch.stack(pictures).to(self.model.device)).pixels
        numbers = torch.tensor(data.classes)[None, :, None, None]
        masks = (torch.stack(labels)[:, None] == numbers).flatten(0, 1).to(self.model.device)
        return self._learn({"sketch": sketch_loss(self._sketch(pixels.float(), data).flatten(0, 1), masks)})

    def _sketch(self, pixels: torch.Tensor, data: DataSet) -> torch.Tensor:
        """(B, K, h, w) logits of the classes of a data set."""
        return sketch(pixels, self.texture.looks[data.first_query : data.first_query + len(data.classes)])

    def _step(self) -> dict[str, float]:
        data, rng = self._drawn()
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        images, masks, wanted = self._batch(data, rng)
        with sdpa_kernel(SDPBackend.MATH):
            levels = self._levels(images, data, wanted)
            # Each image has queries of its own classes: the predictor is asked with as many as are wanted.
            prompts = self._prompts(levels, wanted)
            count = wanted.shape[1]
            used, said = PromptMix().draw(prompts, masks, generator)
            answer = self.network.decode(levels.repeated(count), used, said)
            parts = auto_loss(
                answer.logits, answer.score, prompts.boxes_xyxy, prompts.mask_logits, masks,
                self.settings.weights,
            )  # fmt: skip
            parts["head"] = sketch_loss(self.head(levels, wanted).flatten(0, 1), masks)
            parts["shape"] = 0.5 * sketch_loss(prompts.mask_logits[:, 0], masks)
            parts["sketch"] = sketch_loss(levels.sketch.flatten(0, 1), masks)
        return self._learn(parts)

    def _learn(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        total = sum(parts.values())
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
            self._update_average()
        return {name: float(value.detach()) for name, value in parts.items()}

    def _levels(self, images: torch.Tensor, data: DataSet, wanted: torch.Tensor) -> Levels:
        """Features as the predictor will see them: of the adapted encoder, and the texture beside it."""
        with Attached(self.model.module, self.adapters):
            levels = levels_of(self.model, images)
        seen = self.texture(images)
        drawn = self._sketch(seen.pixels, data)
        of_wanted = torch.stack([one[n - data.first_query] for one, n in zip(drawn, wanted, strict=True)])
        return with_texture(levels, seen, of_wanted)

    def _prompts(self, levels: Levels, wanted: torch.Tensor):
        """Prompts of the classes `wanted` (B, K), not of all there are."""
        return self.predictor(
            levels, self.network.prompt_encoder.no_mask_embed.weight, self.predictor.queries[wanted]
        )

    def _batch(
        self, data: DataSet, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) normalised images, (B*K, S, S) masks, (B, K) numbers of queries."""
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
        """So many normalised images of a data set with their labels, changed at random."""
        made = []
        for n in rng.choice(len(data.squares), count, replace=len(data.squares) < count):
            picture = torch.from_numpy(data.squares[n].astype(np.float32) / 255).permute(2, 0, 1)
            frame = data.frames[n]
            picture, labels = self.settings.augmentation.apply(picture, data.labels[n], rng, frame.inner_hw)
            made.append((frame.normalised(picture), labels))
        return made

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Mean Dice by data set of the averaged weights, on images that are not trained on; of the sketch
        while nothing else has been trained."""
        kept = {k: v.clone() for k, v in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average)
        self.trained.eval()
        table = {}
        for data in self.validation:
            found = []
            for n in range(0, len(data.squares), max(1, len(data.squares) // _VALIDATED)):
                square, labels, frame = data.squares[n], data.labels[n], data.frames[n]
                picture = torch.from_numpy(square.astype(np.float32) / 255).permute(2, 0, 1)
                present = [c for c in data.classes if int((labels == c).sum()) > _LEAST_PIXELS]
                if not present:
                    continue
                numbers = [data.first_query + data.classes.index(c) for c in present]
                wanted = torch.tensor([numbers], device=self.model.device)
                image = frame.normalised(picture)[None].to(self.model.device)
                levels = self._levels(image, data, wanted)
                found_logits = levels.sketch[0][:, None]
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

    def _log(self, line: dict) -> None:
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
