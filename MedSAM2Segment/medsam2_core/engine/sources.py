"""Image sources: a volume, an unordered set, or arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam2_core.engine.images import UnorderedSource

if TYPE_CHECKING:
    from medsam2_core.imaging.image_set import ImageSet
    from medsam2_core.imaging.intensity import Window
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.imaging.volume import Volume


class StackImages(UnorderedSource):
    """The slices of a volume through a window, converted one at a time.

    Parameters
    ----------
    ordered
        False for a volume that is a set of images of one size.
    """

    def __init__(self, stack: "SliceStack", window: "Window", ordered: bool = True) -> None:
        self._stack, self._window, self.ordered = stack, window, ordered
        self.pixel_mm = stack.pixel_mm
        self.key = f"{stack.volume.content_key}|{stack.key}|{window.to_dict()}"
        self._known: dict[int, tuple[str, NDArray[np.float32]]] = {}
        # Several objects on a slice, and several regions, are looked at one after the other.
        self._shown: tuple[int, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self._stack)

    def shape_of(self, n: int) -> tuple[int, int]:
        return self._stack.shape_hw

    def image(self, n: int) -> NDArray[np.uint8]:
        if self._shown is None or self._shown[0] != n:
            self._shown = n, _displayed(self._stack.image_hw(n), self._window)
        return self._shown[1]

    def image_key(self, n: int) -> str:
        return self._facts(n)[0]

    def thumbnail(self, n: int) -> NDArray[np.float32]:
        return self._facts(n)[1]

    def _facts(self, n: int) -> tuple[str, NDArray[np.float32]]:
        from medsam2_core.imaging.image_set import thumbnail_of

        if n not in self._known:
            image = self.image(n)
            self._known[n] = _content_key([image]), thumbnail_of(image)
        return self._known[n]


class SetImages(UnorderedSource):
    """An unordered set of pictures, each with its own window and its own size.

    Parameters
    ----------
    windows
        One an image; None chooses them.
    """

    ordered = False
    pixel_mm = (1.0, 1.0)

    def __init__(self, images: "ImageSet", windows: "Sequence[Window] | None" = None) -> None:
        import hashlib

        if windows is not None and len(windows) != len(images):
            raise ValueError(f"{len(images)} images need as many windows, not {len(windows)}")
        self._images = images
        self._windows = dict(enumerate(windows or ()))
        # Several regions of an image are looked at one after the other.
        self._shown: tuple[int, NDArray[np.uint8]] | None = None
        shown = [f"{one.content_key}:{self._named_window(n)}" for n, one in enumerate(images.facts)]
        self.key = hashlib.sha256("|".join(shown).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def shape_of(self, n: int) -> tuple[int, int]:
        return self._images.facts[n].shape_hw

    def image(self, n: int) -> NDArray[np.uint8]:
        if self._shown is None or self._shown[0] != n:
            image = self._images[n]
            self._shown = n, _displayed(image.voxels_kji[0], self._window(n, image))
        return self._shown[1]

    def image_key(self, n: int) -> str:
        return self._images.facts[n].content_key

    def thumbnail(self, n: int) -> NDArray[np.float32]:
        return self._images.facts[n].thumbnail

    def _window(self, n: int, image: "Volume") -> "Window":
        from medsam2_core.imaging.intensity import automatic_window

        if n not in self._windows:
            self._windows[n] = automatic_window(image)
        return self._windows[n]

    def _named_window(self, n: int) -> str:
        return str(self._windows[n].to_dict()) if n in self._windows else "auto"


class ArrayImages(UnorderedSource):
    """Display images that are already at hand (N, H, W, 3) or (N, H, W), uint8: for notebooks, training and
    tests."""

    def __init__(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        key: str = "",
        pixel_mm: tuple[float, float] = (1.0, 1.0),
        ordered: bool = True,
    ) -> None:
        self._images = [np.asarray(image) for image in images]
        self.pixel_mm, self.ordered = pixel_mm, ordered
        self.key = key or _content_key(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def shape_of(self, n: int) -> tuple[int, int]:
        height, width = self._images[n].shape[:2]
        return int(height), int(width)

    def image(self, n: int) -> NDArray[np.uint8]:
        image = self._images[n]
        return image if image.ndim == 3 else _as_colour(image)

    def image_key(self, n: int) -> str:
        return _content_key([self._images[n]])

    def thumbnail(self, n: int) -> NDArray[np.float32]:
        from medsam2_core.imaging.image_set import thumbnail_of

        return thumbnail_of(self._images[n])


def _displayed(values: NDArray, window: "Window") -> NDArray[np.uint8]:
    """Return the (H, W, 3) image of (H, W) values or (H, W, 3) colour; read-only for grey values."""
    from medsam2_core.imaging.intensity import to_display, to_grey

    return to_display(values, window) if values.ndim == 3 else _as_colour(to_grey(values, window))


def _as_colour(grey_hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey (H, W) as (H, W, 3) without a copy: the encoder sees by the stride that it is grey."""
    return np.broadcast_to(grey_hw[..., np.newaxis], (*grey_hw.shape, 3))


def _content_key(images: Sequence[NDArray]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
