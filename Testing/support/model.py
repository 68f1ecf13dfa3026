"""Small models with random weights, images to segment, stock SAM 2 beside ours: for tests of the engine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from medsam2_core.engine.architecture import build_module, read_config
from medsam2_core.engine.cache import FeatureCache
from medsam2_core.engine.encoder import SliceEncoder
from medsam2_core.engine.maps import ABSENT
from medsam2_core.engine.recipe import STOCK, PromptRecipe
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.engine.sources import ArrayImages
from medsam2_core.engine.tracker import Tracker
from medsam2_core.engine.zoom import Region
from medsam2_core.imaging.slice_mask import SliceMask
from medsam2_core.prompts import PixelPrompts, Prompt, SlicePrompts
from medsam2_core.session import Session
from omegaconf import OmegaConf
from PIL import Image
from torch.nn import functional

DRAWN = PromptRecipe(draws_prompts=True, carries_mask=True)


def set_prompts(
    session: Session,
    name: str,
    n: int,
    prompts: Sequence[Prompt],
    *,
    known: SliceMask | np.ndarray | None = None,
    final: bool = False,
) -> SliceMask | None:
    """Set the prompts of one slice; its mask."""
    if isinstance(known, np.ndarray):
        known = SliceMask.from_mask(name, n, known)
    return session.set_prompts(name, {n: SlicePrompts(tuple(prompts), final, known)})[n]


def prompt(points=(), labels=(), box=None, mask=None) -> PixelPrompts:
    """A slice's prompt from plain lists."""
    return PixelPrompts(
        np.array(points, dtype=np.float32).reshape(-1, 2),
        np.array(labels, dtype=np.int32),
        None if box is None else np.array(box, dtype=np.float32),
        mask,
    )


def a_disc(shape_hw, centre_xy, radius) -> np.ndarray:
    """A round mask."""
    y, x = np.ogrid[: shape_hw[0], : shape_hw[1]]
    return (x - centre_xy[0]) ** 2 + (y - centre_xy[1]) ** 2 <= radius**2


def some_slices(count=10, shape_hw=(90, 120), seed=0) -> np.ndarray:
    """(N, H, W, 3) noise around a bright disc that wanders from slice to slice."""
    rng = np.random.default_rng(seed)
    slices = rng.integers(0, 90, (count, *shape_hw), dtype=np.uint8)
    for n in range(count):
        slices[n][a_disc(shape_hw, (shape_hw[1] / 2 + 2 * n, shape_hw[0] / 2 - n), 15)] += 120
    return np.repeat(slices[..., None], 3, axis=-1)


def stir(module: torch.nn.Module, score_bias: float, seed: int = 0) -> None:
    """Move every parameter that starts as a constant (norms, layer scales, position tables), so that no
    branch of the network hides in a parity test; and make objects present (+) or absent (-)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel() < 2 or float(parameter.std()) < 1e-4:
                amount = 0.2 if name.endswith("gamma") or "pos_embed" in name else 0.05
                parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
        # Random mask logits are tiny; bring them to the size real ones have.
        for mlp in module.sam_mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(20)
        module.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(score_bias)


def embedded_model(recipe: PromptRecipe = DRAWN, score_bias: float = 5.0, seed: int = 0) -> SegmentationModel:
    """The embedded model's architecture, untrained."""
    torch.manual_seed(seed)
    module = build_module("embedded")
    stir(module, score_bias)
    return SegmentationModel.of(module, "test", recipe)


@dataclass
class StockAndOurs:
    """sam2's own video predictor and our model, with the same weights and the same frames."""

    stock: torch.nn.Module
    model: SegmentationModel
    encoder: SliceEncoder
    folder: Path
    shape_hw: tuple[int, int]

    @classmethod
    def build(
        cls,
        folder: Path,
        score_bias: float = 5.0,
        count: int = 10,
        image_size: int = 128,
        postprocessing: bool = False,
        config: str = "sam2.1_hiera_t",
        **flags,
    ) -> "StockAndOurs":
        """SAM 2.1 tiny, or another, at few pixels; `flags` are the predictor's."""
        from hydra.utils import instantiate

        settings = read_config(config, image_size, postprocessing)
        settings = {**settings, "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor", **flags}
        torch.manual_seed(0)
        stock = instantiate(OmegaConf.create(settings), _convert_="all").eval()
        stir(stock, score_bias)
        ours = build_module(config, image_size, postprocessing)
        ours.load_state_dict(stock.state_dict(), strict=True)
        model = SegmentationModel.of(ours, "test", STOCK)
        slices = some_slices(count, (90, 120))
        for n, image in enumerate(slices):
            Image.fromarray(image).save(folder / f"{n:05d}.jpg", quality=95)
        frames = [np.asarray(Image.open(folder / f"{n:05d}.jpg").convert("RGB")) for n in range(count)]
        encoder = SliceEncoder(model, ArrayImages(frames), FeatureCache())
        remember_images(stock)
        return cls(stock, model, encoder, folder, (90, 120))

    def state(self) -> dict:
        """A fresh state of stock."""
        return self.stock.init_state(str(self.folder))

    def logits(self, tracker: Tracker, result: SliceMask) -> np.ndarray:
        """(H, W) logits behind one of our results, as stock shows them."""
        return logits_on_slice(*tracker.state(result.object).kept_logits(result.n), self.shape_hw)


def logits_on_slice(logits: torch.Tensor, region: Region, shape_hw, outside: float = ABSENT) -> np.ndarray:
    """The (H, W) logits of a slice; `outside` where the region does not reach."""
    size = (region.height, region.width)
    scaled = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    return region.paste(scaled.cpu().numpy(), shape_hw, fill=outside)


def remember_images(stock: torch.nn.Module) -> None:
    """Stock encodes every frame again in every pass; this keeps the tests short."""
    seen: dict[str, dict] = {}
    encode = stock.forward_image

    def forward_image(images: torch.Tensor) -> dict:
        key = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        if key not in seen:
            seen[key] = encode(images)
        found = seen[key]
        return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}

    stock.forward_image = forward_image
