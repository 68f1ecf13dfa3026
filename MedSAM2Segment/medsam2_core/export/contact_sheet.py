"""A page to look through a set of images: every image with the outlines of its objects."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.segmentation import Segmentation

_SIDE = 240  # pixels

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 1.5rem; background: #111; color: #ddd; font: 14px system-ui, sans-serif }}
main {{ display: flex; flex-wrap: wrap; gap: 14px }}
figure {{ margin: 0; width: 240px }} img {{ max-width: 240px; display: block; margin: auto }}
figcaption {{ overflow-wrap: anywhere; padding-top: 4px }} i {{ font-style: normal }}
</style></head><body><h1>{title}</h1>{above}<main>
"""


@dataclass(frozen=True)
class SheetEntry:
    """One image of a sheet.

    Attributes
    ----------
    name
        Of the image.
    image_hw
        (H, W, 3) uint8, as displayed.
    segmentation
        Its objects.
    notes
        By object, what to write beside its name, for example its confidence.
    """

    name: str
    image_hw: NDArray[np.uint8]
    segmentation: Segmentation
    notes: dict[str, str]


def write_contact_sheet(
    entries: Iterable[SheetEntry], path: str | Path, title: str, *, overwrite: bool = False
) -> None:
    """Write an HTML page with everything in it, in the order of the entries; they are asked for one by one.

    Raises
    ------
    ExportError
        The file cannot be written.
    """
    write_page(map(_figure, entries), path, title, overwrite=overwrite)


def write_page(
    figures: Iterable[str], path: str | Path, title: str, above: str = "", *, overwrite: bool = False
) -> None:
    """Write an HTML page of what :func:`figure` returned; ``above`` is HTML that stands before them.

    Raises
    ------
    ExportError
        The file cannot be written.
    """
    with atomic.new_file(Path(path), overwrite=overwrite) as stream:
        stream.write(_HEAD.format(title=html.escape(title), above=above).encode("utf-8", "replace"))
        for one in figures:
            stream.write(one.encode("utf-8", "replace"))
        stream.write(b"</main></body></html>\n")


def figure(name: str, jpeg: bytes, lines: Iterable[tuple[str, tuple[float, float, float], str]]) -> str:
    """Return the HTML of one image: its picture, its name, and of each object the name, colour and a note."""
    told = [
        f'<br><i style="color: {_css(colour_rgb)}">{html.escape(object_name)}</i> {html.escape(note)}'
        for object_name, colour_rgb, note in lines
    ]
    picture = base64.b64encode(jpeg).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{html.escape(name)}{''.join(told)}</figcaption></figure>\n"
    )


def thumbnail(
    image_hw: NDArray[np.uint8],
    outlines: Iterable[tuple[NDArray[np.bool_], tuple[float, float, float]]],
    aspect: float = 1.0,
) -> bytes:
    """Return a small JPEG of an (H, W, 3) image with the outlines of (H, W) masks in their colours.

    ``aspect`` is the height of a pixel by its width.
    """
    from PIL import Image

    height, width = image_hw.shape[0] * aspect, image_hw.shape[1]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.array(Image.fromarray(image_hw).resize(size, Image.Resampling.BILINEAR))
    for mask_hw, colour_rgb in outlines:
        mask = Image.fromarray(mask_hw.astype(np.uint8) * np.uint8(255))
        inside = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) >= 128
        padded = np.pad(inside, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels[inside & ~inner] = [round(part * 255) for part in colour_rgb]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _figure(entry: SheetEntry) -> str:
    shown = [segment for segment in entry.segmentation if not segment.is_empty]
    jpeg = thumbnail(entry.image_hw, ((one.mask_kji[0], one.colour_rgb) for one in shown))
    lines = [(one.name, one.colour_rgb, entry.notes.get(one.name, "")) for one in entry.segmentation]
    return figure(entry.name, jpeg, lines)


def _css(colour_rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour_rgb)
