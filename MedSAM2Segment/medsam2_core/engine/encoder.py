"""From a slice to SAM 2's image features, one slice at a time and never twice.

A volume is never turned into floats as a whole: a slice is cropped, resized and normalised when its features
are first needed, and they stay in a :class:`FeatureCache` as long as there is room.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.engine.cache import FeatureCache, FeatureKey, SliceFeatures
from medsam2_core.engine.images import ImageSource
from medsam2_core.engine.zoom import Region

if TYPE_CHECKING:
    from medsam2_core.engine.segmentation_model import SegmentationModel

# ImageNet, as SAM 2 was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class SliceEncoder:
    """Features of any region of any slice of one source, through one model.

    Parameters
    ----------
    model
        The loaded model.
    source
        The slices.
    cache
        Shared with other encoders if wanted; None makes one of the default size.
    storage
        Number format features are kept in. None keeps what the model computes. ``torch.float16`` halves the
        memory (measured: IoU of the masks 0.9998; bf16 0.9992, not offered). Features are rounded on first
        use, too, so that results never depend on what happened to be cached.
    """

    def __init__(
        self,
        model: "SegmentationModel",
        source: ImageSource,
        cache: FeatureCache | None = None,
        storage: torch.dtype | None = None,
    ) -> None:
        if storage not in (None, torch.float32, torch.float16):
            raise ValueError(f"features can be kept in fp32 or fp16, not in {storage}")
        self.model = model
        self.source = source
        self.cache = cache if cache is not None else FeatureCache()
        self.encoded = 0
        self._storage = storage
        self._position: torch.Tensor | None = None

    def features(self, n: int, region: Region) -> SliceFeatures:
        """Return the features of a region of slice `n`, from the cache or from the network."""
        key = self.key(n, region)
        found = self.cache.get(key)
        if found is None:
            found = self._encode(n, region)
            self.cache.put(key, found)
        return found.to(torch.float32) if self._storage == torch.float16 else found

    def key(self, n: int, region: Region) -> FeatureKey:
        """Return the key of these features in the cache."""
        precision = getattr(self.model.precision, "value", str(self.model.precision))
        if self._storage is not None:
            precision = f"{precision}, kept as {self._storage}"
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
            out = self.model.module.forward_image(image)
        levels = out["backbone_fpn"][-self.model.module.num_feature_levels :]
        features = SliceFeatures(levels[-1], tuple(levels[:-1]))
        return features if self._storage is None else features.to(self._storage)


def resized(image: NDArray[np.uint8], region: Region, image_size: int) -> NDArray[np.uint8]:
    """Return the (S, S, 3) pixels of a region: Pillow's bicubic on 8-bit values, exactly as stock SAM 2
    loads its frames."""
    from PIL import Image

    crop = np.ascontiguousarray(region.crop(image))
    if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3:
        raise ValueError(f"a display image is (H, W, 3) uint8, not {crop.shape} {crop.dtype}")
    return np.asarray(Image.fromarray(crop).resize((image_size, image_size)))


def normalised(image: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return (1, 3, S, S) normalised floats from (S, S, 3) of 0 to 255."""
    # Divided in double precision, then rounded to single, as stock does: the last bit counts in parity tests.
    values = torch.from_numpy(image / 255.0).permute(2, 0, 1).float().to(device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    return ((values - mean) / std)[None]
