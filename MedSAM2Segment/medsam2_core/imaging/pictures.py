"""PNG, JPEG, TIFF, BMP: a 2-D image as a volume of one slice, without a place in the patient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.imaging import files
from medsam2_core.imaging.geometry import Geometry
from medsam2_core.imaging.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_LARGEST_PICTURE = 178_000_000  # pixels: 13,000 x 13,000, where Pillow draws the line as well
_CODEC_RATIO = 50_000.0
_PLAIN_TIFF_COLOURS = (1, 2)  # black is zero, RGB
_PLAIN_TIFF_COMPRESSIONS = (1, 8, 32773, 32946)  # none, deflate, PackBits, deflate


def read_volume(path: Path, series: str | None = None, *, as_labels: bool = False) -> Volume:
    """Read one picture, grey (any depth) or colour of 8 bits.

    Transparency is dropped. A palette becomes its colours, or with ``as_labels`` its indices. A TIFF of
    several pages of one size becomes a stack of slices.
    """
    with files.reading(path, "a picture"):
        if path.suffix.lower() in (".tif", ".tiff"):
            pixels = _read_tiff(path, as_labels)
        else:
            pixels = _read_with_pillow(path, as_labels)[np.newaxis]
        files.chosen(path, series, 1, "pictures")
        pixels = _plain(path, pixels)
        frames, height, width = pixels.shape[:3]
        metadata = {"format": "picture", "picture": frames == 1, "orientation_known": False}
        metadata["known_spacing"] = "none"
        geometry = Geometry.for_picture(height, width, frames=frames)
        return Volume(np.ascontiguousarray(pixels), geometry, name=path.stem, source=path, metadata=metadata)


def _read_with_pillow(path: Path, as_labels: bool, page: int = 0) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        if page:
            image.seek(page)
        _check_size(path, image.height, image.width, 4)
        if image.mode in ("P", "PA") and not as_labels:
            return np.asarray(image.convert("RGB"))
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa"):
            return np.asarray(image.convert("RGB"))
        return np.asarray(image)


def _read_tiff(path: Path, as_labels: bool) -> NDArray[Any]:
    """Read (pages, H, W) or (pages, H, W, samples)."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first
        count = len(tiff.pages)
        shapes = {(page.imagelength, page.imagewidth, page.samplesperpixel) for page in tiff.pages}
        if len(shapes) != 1:
            message = f"{count} pages of different sizes: save one page as a file of its own"
            raise files.error(path, message, "pages-differ", pages=count)
        itemsize = 1 if first.dtype is None else first.dtype.itemsize
        _check_size(path, first.imagelength, first.imagewidth, count * first.samplesperpixel * itemsize)
        # Pillow knows the colour spaces and, through libtiff, LZW and JPEG; tifffile knows the rarer types of
        # pixel.
        if (
            first.photometric not in _PLAIN_TIFF_COLOURS
            or int(first.compression) not in _PLAIN_TIFF_COMPRESSIONS
        ):
            return np.stack([_read_with_pillow(path, as_labels, page) for page in range(count)])
        return np.stack([_samples_last(page, page.asarray(maxworkers=1)) for page in tiff.pages])


def _samples_last(page: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    pixels = np.squeeze(pixels)
    if pixels.ndim < 2:
        return pixels.reshape(page.imagelength, page.imagewidth)
    return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 and page.planarconfig == 2 else pixels


def _plain(path: Path, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return (K, H, W) grey or (K, H, W, 3) colour of 8 bits; alpha dropped."""
    if pixels.dtype.kind not in "buif":
        raise files.error(path, f"pixels of type {pixels.dtype} are not read", "unsupported-pixel-type")
    if pixels.ndim == 4:
        samples = pixels.shape[3]
        if samples in (1, 2):  # grey, grey with alpha
            return pixels[..., 0]
        if samples not in (3, 4):
            message = f"{samples} values per pixel are not read: grey or RGB is"
            raise files.error(path, message, "unsupported-pixel-type")
        pixels = pixels[..., :3]
        if pixels.dtype == np.uint16:
            return (pixels >> 8).astype(np.uint8)
        if pixels.dtype == np.uint8 and _is_grey(pixels):
            return pixels[..., 0]
        if pixels.dtype != np.uint8:
            message = f"colour of type {pixels.dtype} is not read: save it with 8 bits"
            raise files.error(path, message, "unsupported-pixel-type")
    return pixels


def _is_grey(pixels: NDArray[Any]) -> bool:
    """Return whether colour channels are equal, as in screenshots of ultrasound."""
    red = pixels[..., 0]
    return bool(np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2]))


def _check_size(path: Path, height: int, width: int, bytes_per_pixel: int) -> None:
    if height * width > _LARGEST_PICTURE:
        message = f"{width} x {height} pixels is larger than the {_LARGEST_PICTURE} pixels that are read"
        raise files.error(path, message, "picture-too-large", width=width, height=height)
    stored = path.stat().st_size
    files.checked_bytes(path, (height, width), math.ceil(bytes_per_pixel), stored, _CODEC_RATIO)
