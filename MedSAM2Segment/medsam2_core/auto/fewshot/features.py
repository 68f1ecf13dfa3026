"""Features of augmented images, computed once by the frozen encoder and kept on disk.

Ten images seen in a hundred ways each are a thousand passes through the encoder, and then none: training
reads them back thousands of times.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_core.auto.augmentation import Augmentation
from medsam2_core.auto.fewshot.images import LabelledImage
from medsam2_core.auto.predictor import Levels
from medsam2_core.errors import TrainingError

if TYPE_CHECKING:
    from medsam2_core.auto.loading import AutoModel
    from medsam2_core.engine.model import SegmentationModel

_NAMES = ("coarse", "middle", "fine")
_ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class Plan:
    """How many ways each image is seen.

    Attributes
    ----------
    variants
        Of an image; the first is the image as it is.
    seed
        Of the augmentation.
    """

    variants: int
    augmentation: Augmentation
    seed: int = 0

    @classmethod
    def for_images(
        cls, count: int, bytes_each: int, augmentation: Augmentation, seed: int, byte_limit: int = 1500 << 20
    ) -> Plan:
        """About 1500 pictures in all, at least 8 of each image, within the limit where that is possible."""
        wanted = max(8, round(1500 / max(count, 1)))
        fitting = byte_limit // max(1, bytes_each * count)
        return cls(int(max(2, min(wanted, fitting, 200))), augmentation, seed)


class FeatureBank:
    """Features and labels of every variant of every image, as memory-mapped files.

    Parameters
    ----------
    folder
        Where they lie; what belongs to other images, another model or plan is thrown away.
    images
        In order; variant v of image n has the index ``n * variants + v``.
    auto
        Whose encoder is used.

    Attributes
    ----------
    variants
        Of an image.
    """

    def __init__(self, folder: Path, images: Sequence[LabelledImage], auto: AutoModel, plan: Plan) -> None:
        self.folder, self.variants = Path(folder), plan.variants
        self._images, self._auto, self._model, self._plan = list(images), auto, auto.model, plan
        self._side = auto.model.image_size
        self._key = _key_of(images, auto, plan)
        self._maps: dict[str, NDArray] = {}
        self._labels: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self._images) * self.variants

    @staticmethod
    def bytes_each(model: SegmentationModel) -> int:
        """Bytes of one variant of an image."""
        shapes = feature_shapes(model)
        return 2 * sum(int(np.prod(shape)) for shape in shapes.values()) + 2 * model.image_size**2

    def fill(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Compute what is not there yet; False when it was stopped. A killed run goes on where it was.

        TrainingError when the disk is full.
        """
        try:
            done = self._open()
            for first, last in _chunks(done, len(self), _ENCODED_TOGETHER):
                if should_stop():
                    return False
                self._encode(first, last)
                self._note(last)
                progress(last, len(self))
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot be written ({error.strerror or error}): "
                f"{self.nbytes >> 20} MB are needed there"
            ) from error
        return True

    @property
    def nbytes(self) -> int:
        """Bytes on disk when it is full."""
        return len(self) * self.bytes_each(self._model)

    def read(self, indices: Sequence[int] | torch.Tensor) -> tuple[Levels, torch.Tensor]:
        """The encoder's features of these variants (fp32, on the model's device), and labels (B, S, S)."""
        picked = [int(n) for n in indices]
        maps = [torch.from_numpy(np.stack([self._maps[name][n] for n in picked])) for name in _NAMES]
        labels = torch.from_numpy(np.stack([self._labels[n] for n in picked]))
        device = self._model.device
        return Levels(*maps).to(device), labels.to(device)

    def fresh(self, images: Sequence[int], number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images (B, 3, S, S) as no variant of the bank has them, and their labels (B, S, S).

        Parameters
        ----------
        images
            By their number.
        number
            From 0: equal numbers give equal images.
        """
        made = []
        for place, n in enumerate(images):
            index = len(self) + number * len(self._images) + place
            picture, labels = variant_of(self._images[n], 1, index, self._plan)
            made.append((self._images[n].frame.normalised(picture), labels))
        pictures, labels = zip(*made, strict=True)
        device = self._model.device
        return torch.stack(pictures).to(device), torch.stack(labels).to(device)

    def pictures(self, indices: Sequence[int]) -> torch.Tensor:
        """(B, 3, S, S) normalised images of these variants, made anew: that takes milliseconds."""
        made = []
        for index in indices:
            image = self._images[index // self.variants]
            picture, _ = variant_of(image, index % self.variants, index, self._plan)
            made.append(image.frame.normalised(picture))
        return torch.stack(made).to(self._model.device)

    def remove(self) -> None:
        """Delete the files."""
        self._maps, self._labels = {}, None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> int:
        """Map the files; how many variants they hold already."""
        note = self._noted()
        if note is not None:
            try:
                self._map("r+")
                return note
            except ValueError:  # cut off, or of another shape: begin anew
                self._maps, self._labels = {}, None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        # The files are sparse: on a full disk, writing to them would kill the process instead of raising.
        if shutil.disk_usage(self.folder).free < self.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._map("w+")
        return 0

    def _map(self, mode: str) -> None:
        for name, shape in feature_shapes(self._model).items():
            path = self.folder / f"{name}.npy"
            self._maps[name] = _mapped(path, mode, np.float16, (len(self), *shape))
        side = (len(self), self._side, self._side)
        self._labels = _mapped(self.folder / "labels.npy", mode, np.int16, side)

    def _encode(self, first: int, last: int) -> None:
        pictures, labels = [], []
        for index in range(first, last):
            image, variant = self._images[index // self.variants], index % self.variants
            picture, marked = variant_of(image, variant, index, self._plan)
            pictures.append(image.frame.normalised(picture))
            labels.append(marked)
        levels = self._auto.encoded(torch.stack(pictures))
        for name in _NAMES:
            self._maps[name][first:last] = getattr(levels, name).float().cpu().numpy().astype(np.float16)
        self._labels[first:last] = torch.stack(labels).numpy()

    def _noted(self) -> int | None:
        """How far files of the same key are; None when there are none."""
        try:
            note = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
            whole = all((self.folder / f"{name}.npy").is_file() for name in (*_NAMES, "labels"))
            return int(note["done"]) if whole and note["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _note(self, done: int) -> None:
        for array in (*self._maps.values(), self._labels):
            if done == len(self):
                array.flush()
        partial = self.folder / "done.json.partial"
        partial.write_text(json.dumps({"key": self._key, "done": done}), encoding="utf-8")
        partial.replace(self.folder / "done.json")


def variant_of(
    image: LabelledImage, variant: int, index: int, plan: Plan
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (3, S, S) picture of 0 to 1 and its (S, S) labels; variant 0 is the image as it is."""
    picture = torch.from_numpy(image.square.astype(np.float32) / 255).permute(2, 0, 1)
    labels = image.frame.labels(image.labels_hw)
    if variant == 0:
        return picture, labels
    rng = np.random.default_rng((plan.seed, index))
    return plan.augmentation.apply(picture, labels, rng, image.frame.inner_hw)


def feature_shapes(model: SegmentationModel) -> dict[str, tuple[int, int, int]]:
    """(C, h, w) of the maps of one image."""
    decoder, side = model.module.sam_mask_decoder, model.image_size
    return {
        "coarse": (model.module.hidden_dim, side // 16, side // 16),
        "middle": (decoder.conv_s1.out_channels, side // 8, side // 8),
        "fine": (decoder.conv_s0.out_channels, side // 4, side // 4),
    }


def _chunks(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, step):
        yield start, min(start + step, last)


def _mapped(path: Path, mode: str, dtype: type, shape: tuple[int, ...]) -> NDArray:
    if mode == "w+":
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    array = np.lib.format.open_memmap(path, mode="r")  # to write to, numpy would fill a short file with zeros
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}, not {dtype} {shape}")
    return np.lib.format.open_memmap(path, mode="r+")


def _key_of(images: Sequence[LabelledImage], auto: AutoModel, plan: Plan) -> str:
    digest, model = hashlib.sha256(), auto.model
    for name, value in auto.adapters.state_dict().items() if auto.adapters is not None else ():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    for image in images:
        digest.update(image.key.encode())
        digest.update(np.ascontiguousarray(image.labels_hw).tobytes())
    how = [model.weights_key, model.precision.value, plan.variants, plan.augmentation.to_dict(), plan.seed]
    digest.update(json.dumps(how, sort_keys=True).encode())
    return digest.hexdigest()
