"""Auto models on small networks with random weights, and labelled pictures to train them on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.features import FeatureBank, VariantPlan
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.letterbox import Letterbox
from medsam2_core.auto.model import AutoModel, untrained_model
from medsam2_core.auto.model_file import AutoCard, AutoClass
from medsam2_core.auto.predictor import HEADS, FeatureLevels, PredictorSettings
from medsam2_core.auto.slices import AutoSegmenter
from medsam2_core.engine.architecture import build_module
from medsam2_core.engine.segmentation_model import SegmentationModel

from support.model import a_disc, stir

SIDE = 64


def stock_model(config: str = "sam2_hiera_t", image_size: int = SIDE) -> SegmentationModel:
    """One of sam2's own, untrained, at few pixels, with stock's postprocessing as by default."""
    torch.manual_seed(0)
    module = build_module(config, image_size)
    stir(module, 5.0)
    return SegmentationModel.of(module, "stock")


def classes_named(*names: str) -> tuple[AutoClass, ...]:
    """Classes of these names."""
    return tuple(AutoClass(name, n, (n / 10, 0.5, 1.0)) for n, name in enumerate(names, start=1))


def an_auto_model(
    model: SegmentationModel,
    names: Sequence[str] = ("left", "right"),
    decoder: str = "frozen",
    encoder: str = "frozen",
    heads: Sequence[str] = HEADS,
    kind: str = "hierarchical",
    seed: int = 1,
) -> AutoModel:
    """An untrained predictor for a model."""
    settings = PredictorSettings.for_module(model.module, len(names), heads, kind)
    card = AutoCard(
        "a test", classes_named(*names), model.name, model.weights_key, model.image_size,
        predictor=settings.to_dict(), decoder=decoder, encoder=encoder,
    )  # fmt: skip
    torch.manual_seed(seed)
    return untrained_model(card, model)


def made_up(monkeypatch, model: SegmentationModel, classes: Sequence[AutoClass], draw, scores) -> AutoModel:
    """An Auto model whose answers are made up: `draw(n, logits)` draws slice n, `scores(n)` says how sure."""
    settings = PredictorSettings.for_module(model.module, len(classes)).to_dict()
    card = AutoCard(
        "made up", tuple(classes), model.name, model.weights_key, SIDE, axis="axial", predictor=settings
    )
    usual = AutoSegmenter._prediction

    def found(self, n, frame, logits, _score, prompts):
        logits = torch.full_like(logits, -6.0)
        draw(n, logits)
        return usual(self, n, frame, logits, torch.tensor(scores(n)), prompts)

    monkeypatch.setattr(AutoSegmenter, "_prediction", found)
    return untrained_model(card, model)


def some_levels(count: int, width: int = 256, side: int = SIDE, seed: int = 2) -> FeatureLevels:
    """Features of so many images that never were."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((width, side // 16), (width // 4, side // 8), (width // 8, side // 4))
    return FeatureLevels(*(torch.randn(count, c, s, s, generator=generator) for c, s in shapes))


def one_of(levels: FeatureLevels, n: int) -> FeatureLevels:
    """The features of image `n` alone."""
    return FeatureLevels(*(x[n : n + 1] for x in (levels.coarse, levels.middle, levels.fine)))


def labelled_discs(
    count: int = 4, shape_hw: tuple[int, int] = (60, 80), side: int = SIDE
) -> list[LabelledImage]:
    """A large and a small bright disc on noise, somewhere else in each; labels 1 and 2."""
    rng, images = np.random.default_rng(3), []
    for n in range(count):
        picture = rng.integers(0, 60, shape_hw).astype(np.uint8)
        labels = np.zeros(shape_hw, np.int16)
        for value, (x, y, radius) in enumerate(((22 + 3 * n, 24, 12), (58, 40 - 3 * n, 8)), start=1):
            labels[a_disc(shape_hw, (x, y), radius)] = value
        picture[labels == 1] += 120
        picture[labels == 2] += 180
        letterbox = Letterbox(shape_hw, side)
        square = letterbox.resize(np.repeat(picture[..., None], 3, axis=-1)).permute(1, 2, 0).numpy()
        pixels = np.rint(square * 255).astype(np.uint8)
        images.append(LabelledImage(pixels, labels, letterbox, f"image {n}", f"patient {n}"))
    return images


def a_full_bank(
    folder: Path, auto: AutoModel, images: Sequence[LabelledImage], variants: int = 2
) -> FeatureBank:
    """Features of images, as training reads them."""
    bank = FeatureBank(folder / "features", images, auto, VariantPlan(variants, Augmentation()))
    assert bank.fill()
    return bank


@contextmanager
def changes(module: torch.nn.Module) -> Iterator[list[str]]:
    """Once it ends, the names of the tensors of a module that have changed inside, if only by a bit."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    changed: list[str] = []
    yield changed
    for name, value in module.state_dict().items():
        if value.numpy().tobytes() != before[name].numpy().tobytes():
            changed.append(name)
