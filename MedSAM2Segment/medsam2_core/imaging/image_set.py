"""Unordered 2-D images: a set of them, read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, MedSAM2Error, VolumeError
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Images that stay in memory once they were read.
_KEPT = 8
_THUMBNAIL = (16, 16)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image without reading it again.

    Attributes
    ----------
    name
        Its own within the set.
    thumbnail
        (256,) float32 of mean 0 and length 1: the image at 16 x 16 pixels, to compare images by.
    """

    name: str
    shape_hw: tuple[int, int]
    content_key: str
    thumbnail: NDArray[np.float32] = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """2-D images without an order or a common place: a folder of photographs or stills.

    Parameters
    ----------
    left_out
        Files that could not be used, by name, and why.

    Raises
    ------
    VolumeError
        ``not-two-dimensional``; ``no-images`` for none.
    """

    images: Sequence[Volume]
    left_out: Mapping[str, MedSAM2Error] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.images, ImageFiles):
            object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "left_out", MappingProxyType(dict(self.left_out)))
        if not len(self.images):
            raise VolumeError("an image set needs one image at least", code="no-images")
        facts = self.images.facts if isinstance(self.images, ImageFiles) else _facts(self.images)
        object.__setattr__(self, "facts", tuple(facts))

    #: What is known of every image, in order.
    facts: tuple[ImageFacts, ...] = field(init=False, repr=False)

    @classmethod
    def of_files(
        cls, paths: Iterable[Path], read: Callable[[Path], Volume], *, skip_bad: bool = False
    ) -> ImageSet:
        """Return the images of files; each is looked at now, and read again when it is needed.

        Raises
        ------
        VolumeError
            ``bad-images`` lists the files that cannot be used; with ``skip_bad`` only if none can.
        """
        facts: list[ImageFacts] = []
        good: list[Path] = []
        bad: dict[str, MedSAM2Error] = {}
        for path in paths:
            try:
                (of_image,) = _facts([read(path)])
            except (VolumeError, GeometryError) as error:
                bad[path.name] = error
                continue
            facts.append(replace(of_image, name=path.name))
            good.append(path)
        if bad and (not skip_bad or not good):
            listed = "; ".join(f"{name}: {error}" for name, error in list(bad.items())[:10])
            more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise VolumeError(
                f"{len(bad)} of {len(bad) + len(good)} images cannot be used: {listed}{more}. Leave them out",
                code="bad-images", images={name: error.code for name, error in bad.items()},
            )  # fmt: skip
        return cls(ImageFiles(good, facts, read), bad)

    def number_of(self, name: str) -> int:
        """Return the number of an image by its name, or by that of its file.

        Raises
        ------
        VolumeError
            ``unknown-image``, with the names most like it; ``ambiguous-image``.
        """
        found = [n for n, one in enumerate(self.facts) if one.name == name]
        found = found or [n for n, one in enumerate(self.facts) if Path(one.name).stem == name]
        if len(found) == 1:
            return found[0]
        names = [one.name for one in self.facts]
        if found:
            message = f"image {name!r} may be {', '.join(names[n] for n in found)}: give the whole name"
            raise VolumeError(message, code="ambiguous-image", image=name)
        from difflib import get_close_matches

        like = get_close_matches(name, names, n=3) or names[:3]
        message = f"there is no image {name!r} in the set of {len(names)}, which has {', '.join(like)} …"
        raise VolumeError(message, code="unknown-image", image=name, like=like)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Volume]:
        return iter(self.images)

    def __getitem__(self, index: int) -> Volume:
        return self.images[index]


class ImageFiles(Sequence[Volume]):
    """Images in files; the last few that were read stay in memory."""

    def __init__(
        self, paths: Sequence[Path], facts: Sequence[ImageFacts], read: Callable[[Path], Volume]
    ) -> None:
        self.paths, self.facts, self._read = tuple(paths), tuple(facts), read
        self._kept: OrderedDict[int, Volume] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        n = range(len(self))[index]
        if n in self._kept:
            self._kept.move_to_end(n)
            return self._kept[n]
        image = self._read(self.paths[n])
        if image.content_key != self.facts[n].content_key:
            message = f"{self.paths[n]} was changed while it was in use: begin again"
            raise VolumeError(message, code="image-changed", path=str(self.paths[n]))
        self._kept[n] = image
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return image


def _facts(images: Iterable[Volume]) -> list[ImageFacts]:
    facts = []
    for image in images:
        depth, height, width = image.voxels_kji.shape[:3]
        if depth != 1:
            message = f"{image.name!r} has {depth} slices: an image set holds 2-D images"
            raise VolumeError(message, code="not-two-dimensional", slices=int(depth))
        thumbnail = thumbnail_of(image.voxels_kji[0])
        facts.append(ImageFacts(image.name, (int(height), int(width)), image.content_key, thumbnail))
    return facts


def thumbnail_of(image_hw: NDArray[Any]) -> NDArray[np.float32]:
    """Return an image (H, W) or (H, W, 3) at 16 x 16 pixels, as (256,) of mean 0 and length 1; 0 if flat."""
    from PIL import Image

    values = np.nan_to_num(np.asarray(image_hw, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    grey = values if values.ndim == 2 else values.mean(axis=2)
    small = np.asarray(Image.fromarray(grey).resize(_THUMBNAIL, Image.Resampling.BOX), dtype=np.float64)
    small = (small - small.mean()).ravel()
    length = float(np.linalg.norm(small))
    return (small / length if length > 0 else small).astype(np.float32)
