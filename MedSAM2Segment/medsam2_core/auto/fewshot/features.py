"""Features of augmented images, computed once by the frozen encoder and stored on disk.

A hundred variants of ten images are a thousand passes through the encoder; training reads them thousands of
times.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.predictor import FeatureLevels
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.model import AutoModel
    from medsam2_core.engine.segmentation_model import SegmentationModel

_NAMES = ("coarse", "middle", "fine")
_ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class VariantPlan:
    """How many variants of each image are made.

    Attributes
    ----------
    variants
        Variants of an image; the first is the image itself.
    """

    variants: int
    augmentation: Augmentation
    seed: int = 0

    @classmethod
    def for_images(
        cls, count: int, bytes_each: int, augmentation: Augmentation, seed: int, byte_limit: int = 1500 << 20
    ) -> VariantPlan:
        """Plan about 1500 variants in all, at least 8 of each image, and if possible within the limit."""
        wanted = max(8, round(1500 / max(count, 1)))
        fitting = byte_limit // max(1, bytes_each * count)
        return cls(int(max(2, min(wanted, fitting, 200))), augmentation, seed)


class FeatureBank:
    """Features and labels of every variant of every image, as memory-mapped files.

    Parameters
    ----------
    folder
        Where the files are; files of other images, another model or plan are deleted.
    """

    def __init__(
        self, folder: Path, images: Sequence[LabelledImage], auto: AutoModel, plan: VariantPlan
    ) -> None:
        self.folder, self.variants = Path(folder), plan.variants
        self._images, self._auto, self._model, self._plan = list(images), auto, auto.model, plan
        self._side = auto.model.image_size
        self._key = _key_of(images, auto, plan)
        self._maps: dict[str, NDArray] = {}  # of features and labels, by `_map`

    def __len__(self) -> int:
        return len(self._images) * self.variants

    @staticmethod
    def bytes_each(model: SegmentationModel) -> int:
        """Return the bytes of one variant of an image."""
        shapes = feature_shapes(model)
        return 2 * sum(int(np.prod(shape)) for shape in shapes.values()) + 2 * model.image_size**2

    def fill(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Compute the features that are missing; return False if that was stopped. It can be resumed."""
        try:
            done = self._open()
            for first in range(done, len(self), _ENCODED_TOGETHER):
                if should_stop():
                    return False
                last = min(first + _ENCODED_TOGETHER, len(self))
                self._encode(first, last)
                self._note(last)
                progress(last, len(self))
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot be written ({error.strerror or error}): "
                f"{self.nbytes >> 20} MB are needed there",
                code="features-not-writable", path=str(self.folder), bytes=self.nbytes,
            ) from error  # fmt: skip
        return True

    @property
    def nbytes(self) -> int:
        """Bytes on disk when all features are computed."""
        return len(self) * self.bytes_each(self._model)

    def read(self, indices: Sequence[int] | torch.Tensor) -> tuple[FeatureLevels, torch.Tensor]:
        """Return the encoder's features of variants (fp32, on the model's device) and labels (B, S, S)."""
        picked = [int(n) for n in indices]
        maps = [torch.from_numpy(np.stack([self._maps[name][n] for n in picked])) for name in _NAMES]
        labels = torch.from_numpy(np.stack([self._maps["labels"][n] for n in picked]))
        device = self._model.device
        return FeatureLevels(*maps).to(device), labels.to(device)

    def fresh(self, images: Sequence[int], number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make new variants, which are not stored: normalised (B, 3, S, S) images and their labels (B, S, S).

        Parameters
        ----------
        images
            Numbers of the images.
        number
            From 0; equal numbers give equal variants.
        """
        first = len(self) + number * len(self._images)
        pictures, labels = self._made((n, 1, first + place) for place, n in enumerate(images))
        return pictures.to(self._model.device), labels.to(self._model.device)

    def pictures(self, indices: Iterable[int]) -> torch.Tensor:
        """Make the normalised (B, 3, S, S) images of variants again, which takes milliseconds."""
        return self._stored(indices)[0].to(self._model.device)

    def _stored(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make images and labels of variants that are stored."""
        return self._made((n // self.variants, n % self.variants, n) for n in indices)

    def _made(self, wanted: Iterable[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Make normalised (B, 3, S, S) images and (B, S, S) labels, by image, variant and index."""
        pictures, labels = [], []
        for n, variant, index in wanted:
            picture, marks = variant_of(self._images[n], variant, index, self._plan)
            pictures.append(self._images[n].letterbox.normalise(picture))
            labels.append(marks)
        return torch.stack(pictures), torch.stack(labels)

    def remove(self) -> None:
        """Delete the files."""
        self._maps = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> int:
        """Map the files; return how many variants they hold already."""
        note = self._noted()
        if note is not None:
            try:
                self._map("r+")
                return note
            except ValueError:  # truncated, or of another shape: start again
                self._maps = {}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        # The files are sparse: on a full disk, writing to them would kill the process instead of raising.
        if shutil.disk_usage(self.folder).free < self.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._map("w+")
        return 0

    def _map(self, mode: str) -> None:
        shapes = {**feature_shapes(self._model), "labels": (self._side, self._side)}
        for name, shape in shapes.items():
            dtype = np.int16 if name == "labels" else np.float16
            self._maps[name] = _mapped(self.folder / f"{name}.npy", mode, dtype, (len(self), *shape))

    def _encode(self, first: int, last: int) -> None:
        pictures, labels = self._stored(range(first, last))
        levels = self._auto.encode(pictures)
        for name in _NAMES:
            self._maps[name][first:last] = getattr(levels, name).float().cpu().numpy().astype(np.float16)
        self._maps["labels"][first:last] = labels.numpy()

    def _noted(self) -> int | None:
        """Return how many variants files of the same key hold; None without such files."""
        try:
            note = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
            whole = all((self.folder / f"{name}.npy").is_file() for name in (*_NAMES, "labels"))
            return int(note["done"]) if whole and note["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note(self, done: int) -> None:
        if done == len(self):
            for array in self._maps.values():
                if isinstance(array, np.memmap):
                    array.flush()
        partial = self.folder / "done.json.partial"
        partial.write_text(json.dumps({"key": self._key, "done": done}), encoding="utf-8")
        partial.replace(self.folder / "done.json")


def variant_of(
    image: LabelledImage, variant: int, index: int, plan: VariantPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a variant of an image: (3, S, S) of 0 to 1 and (S, S) labels; variant 0 is the image itself."""
    picture = torch.from_numpy(image.square.astype(np.float32) / 255).permute(2, 0, 1)
    labels = image.letterbox.resize_labels(image.labels_hw)
    if variant == 0:
        return picture, labels
    rng = np.random.default_rng((plan.seed, index))
    return plan.augmentation.apply(picture, labels, rng, image.letterbox.content_hw)


def feature_shapes(model: SegmentationModel) -> dict[str, tuple[int, int, int]]:
    """Return the shapes (C, h, w) of the maps of one image."""
    decoder, side = model.module.sam_mask_decoder, model.image_size
    return {
        "coarse": (model.module.hidden_dim, side // 16, side // 16),
        "middle": (decoder.conv_s1.out_channels, side // 8, side // 8),
        "fine": (decoder.conv_s0.out_channels, side // 4, side // 4),
    }


def _mapped(path: Path, mode: str, dtype: type, shape: tuple[int, ...]) -> NDArray:
    if mode == "w+":
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    array = np.lib.format.open_memmap(path, mode="r")  # to write to, numpy would fill a short file with zeros
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}")
    return np.lib.format.open_memmap(path, mode="r+")


def _key_of(images: Sequence[LabelledImage], auto: AutoModel, plan: VariantPlan) -> str:
    digest, model = hashlib.sha256(), auto.model
    for name, value in auto.adapters.state_dict().items() if auto.adapters is not None else ():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    for image in images:
        digest.update(image.key.encode())
        digest.update(np.ascontiguousarray(image.labels_hw).tobytes())
    how = [model.weights_key, model.precision.value, plan.variants, asdict(plan.augmentation), plan.seed]
    digest.update(json.dumps(how, sort_keys=True).encode())
    return digest.hexdigest()
