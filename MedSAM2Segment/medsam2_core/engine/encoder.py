"""From a slice to SAM 2's image features, one slice at a time and never twice.

A volume is never turned into floats as a whole: a slice is cropped, resized and normalised when its features
are first needed, and they stay in a :class:`FeatureCache` as long as there is room.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medsam2_core.engine.cache import FeatureCache, FeatureKey, SliceFeatures
from medsam2_core.engine.images import ImageSource
from medsam2_core.engine.zoom import Region

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from medsam2_core.engine.segmentation_model import SegmentationModel

# ImageNet, as SAM 2 was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SliceEncoder:
    """Features of any region of any slice of one source, through one model.

    Parameters
    ----------
    cache
        Shared with other encoders if wanted; None makes one of the default size.
    """

    def __init__(
        self, model: "SegmentationModel", source: ImageSource, cache: FeatureCache | None = None
    ) -> None:
        self.model = model
        self.source = source
        self.cache = cache if cache is not None else FeatureCache()
        self.encoded = 0
        self._position: torch.Tensor | None = None

    def features(self, n: int, region: Region) -> SliceFeatures:
        """Return the features of a region of slice `n`, from the cache or from the network."""
        key = self.key(n, region)
        found = self.cache.get(key)
        if found is None:
            found = self._encode(n, region)
            self.cache.put(key, found)
        return found

    def key(self, n: int, region: Region) -> FeatureKey:
        """Return the key of these features in the cache."""
        precision = getattr(self.model.precision, "value", str(self.model.precision))
        model = self.model
        return FeatureKey(self.source.key, n, region, model.image_size, model.weights_key, precision)

    def position(self) -> torch.Tensor:
        """Return the (1, C, S/16, S/16) positional encoding of the coarse features; the same for every
        slice."""
        if self._position is None:
            side = self.model.image_size // self.model.module.backbone_stride
            neck = self.model.module.image_encoder.neck
            like = torch.zeros(1, self.model.module.hidden_dim, side, side, device=self.model.device)
            self._position = neck.position_encoding(like)
        return self._position

    def model_input(self, n: int, region: Region) -> torch.Tensor:
        """Return the (1, 3, S, S) normalised image of a region."""
        return normalised(resized(self.source.image(n), region, self.model.image_size), self.model.device)

    def _encode(self, n: int, region: Region) -> SliceFeatures:
        return self.encoded_image(self.model_input(n, region))

    def encoded_image(self, image: torch.Tensor) -> SliceFeatures:
        """Return the features of an image as :meth:`model_input` gives it; they are not cached."""
        self.encoded += 1
        with self.model.computing():
            maps = image_features(self.model.module, image)
        levels = maps[-self.model.module.num_feature_levels :]
        return SliceFeatures(levels[-1], tuple(levels[:-1]))


def image_features(module: "SAM2Base", images: torch.Tensor) -> list[torch.Tensor]:
    """Return what ``module.forward_image`` gives as ``backbone_fpn`` for (N, 3, S, S), finest first.

    Positional encodings, which are the same for every image, are not computed.
    """
    encoder = module.image_encoder
    maps = encoder.trunk(images)
    neck, above = encoder.neck, None
    features: list[torch.Tensor] = []
    for level in reversed(range(len(maps))):
        here = neck.convs[len(maps) - 1 - level](maps[level])
        if above is not None and level in neck.fpn_top_down_levels:
            aligned = None if neck.fpn_interp_model == "nearest" else False
            wider = functional.interpolate(
                above.float(), scale_factor=2.0, mode=neck.fpn_interp_model, align_corners=aligned
            )
            here = (here + wider) / 2 if neck.fuse_type == "avg" else here + wider
        above = here
        features.insert(0, here)
    if encoder.scalp:
        features = features[: -encoder.scalp]
    if module.use_high_res_features_in_sam:
        decoder = module.sam_mask_decoder
        features[:2] = decoder.conv_s0(features[0]), decoder.conv_s1(features[1])
    return features


def resized(image: NDArray[np.uint8], region: Region, image_size: int) -> NDArray[np.uint8]:
    """Return the (S, S, 3) pixels of a region: Pillow's bicubic on 8-bit values, exactly as stock SAM 2
    loads its frames. Grey images without a third axis in memory stay so."""
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a display image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    is_grey = image.strides[2] == 0
    crop = np.ascontiguousarray(region.crop(image[..., 0] if is_grey else image))
    pixels = np.asarray(Image.fromarray(crop).resize((image_size, image_size), Image.Resampling.BICUBIC))
    return np.broadcast_to(pixels[..., np.newaxis], (image_size, image_size, 3)) if is_grey else pixels


def normalised(image: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return (1, 3, S, S) normalised floats from (S, S, 3) of 0 to 255."""
    # Bytes are a quarter of what floats would be on the way to a graphics card.
    channels = [image[..., 0]] if image.strides[2] == 0 else list(np.moveaxis(image, 2, 0))
    pixels = torch.from_numpy(np.stack(channels))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    indices = pixels.to(device, non_blocking=True).int().flatten(1).expand(3, -1)
    values = [levels.index_select(0, one) for levels, one in zip(_levels(device), indices, strict=True)]
    return torch.stack(values).view(1, 3, *image.shape[:2])


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> torch.Tensor:
    """Return the (3, 256) normalised value of every 8-bit one."""
    # Divided in double precision, then rounded to single, as stock does: the last bit counts in parity tests.
    values = torch.from_numpy(np.arange(256) / 255.0).float()
    mean, std = (torch.tensor(v)[:, None] for v in (MEAN, STD))
    return ((values - mean) / std).to(device)
