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
</style></head><body><h1>{title}</h1><main>
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
    with atomic.new_file(Path(path), overwrite=overwrite) as stream:
        stream.write(_HEAD.format(title=html.escape(title)).encode())
        for entry in entries:
            stream.write(_figure(entry).encode())
        stream.write(b"</main></body></html>\n")


def _figure(entry: SheetEntry) -> str:
    lines = [
        f'<br><i style="color: {_css(segment.colour_rgb)}">{html.escape(segment.name)}</i> '
        f"{html.escape(entry.notes.get(segment.name, ''))}"
        for segment in entry.segmentation
    ]
    picture = base64.b64encode(_outlined(entry)).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{html.escape(entry.name)}{''.join(lines)}</figcaption></figure>\n"
    )


def _outlined(entry: SheetEntry) -> bytes:
    """Return a small JPEG of the image with outlines."""
    from PIL import Image

    height, width = entry.image_hw.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = np.array(Image.fromarray(entry.image_hw).resize(size, Image.Resampling.BILINEAR))
    for segment in entry.segmentation:
        if segment.is_empty:
            continue
        mask = Image.fromarray(segment.mask_kji[0].astype(np.uint8) * np.uint8(255))
        inside = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) >= 128
        padded = np.pad(inside, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels[inside & ~inner] = [round(part * 255) for part in segment.colour_rgb]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _css(colour_rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour_rgb)
