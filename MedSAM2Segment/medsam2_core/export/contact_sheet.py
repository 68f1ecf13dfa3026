"""A sheet to look through images or cases, as HTML or PNG: each with the outlines of its objects."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

Colour = tuple[float, float, float]
_SIDE = 240  # pixels
_COLUMNS, _LINE = 5, 16  # of a PNG: images in a row, pixels of a line of text
#: Images that a PNG shows at most, since it is made in memory.
MOST_IN_PICTURE = 250

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
    jpeg
        What :func:`thumbnail` made of it; empty where there is none.
    objects
        Name and colour of each object, and what to write beside it, for example its confidence.
    """

    name: str
    jpeg: bytes
    objects: Sequence[tuple[str, Colour, str]]


def write_contact_sheet(
    entries: Iterable[SheetEntry], path: str | Path, title: str, above: str = "", *, overwrite: bool = False
) -> None:
    """Write a sheet in the order of the entries, which are asked for one by one.

    A path that ends in ``.png`` gets a picture of the first 250, any other a page in HTML with everything in
    it; ``above`` is HTML that stands before them there.
    """
    with atomic.new_file(Path(path), overwrite=overwrite) as stream:
        if Path(path).suffix.lower() == ".png":
            _picture(list(islice(entries, MOST_IN_PICTURE))).save(stream, format="PNG")
            return
        stream.write(_HEAD.format(title=html.escape(title), above=above).encode("utf-8", "replace"))
        for entry in entries:
            stream.write(_figure(entry).encode("utf-8", "replace"))
        stream.write(b"</main></body></html>\n")


def thumbnail(
    image_hw: NDArray[np.uint8], outlines: Iterable[tuple[NDArray[np.bool_], Colour]], aspect: float = 1.0
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
        pixels[inside & ~inner] = _bytes(colour_rgb)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=85, subsampling=0)  # thin coloured lines
    return buffer.getvalue()


def _figure(entry: SheetEntry) -> str:
    told = [
        f'<br><i style="color: #{bytes(_bytes(colour)).hex()}">{html.escape(name)}</i> {html.escape(note)}'
        for name, colour, note in entry.objects
    ]
    picture = base64.b64encode(entry.jpeg).decode()
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{html.escape(entry.name)}{''.join(told)}</figcaption></figure>\n"
    )


def _picture(entries: list[SheetEntry]) -> Image:
    from PIL import Image, ImageDraw

    lines = max((1 + len(entry.objects) for entry in entries), default=0)
    width, height = _SIDE + 10, _SIDE + lines * _LINE + 14
    rows = max(1, -(-len(entries) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), (17, 17, 17))
    draw = ImageDraw.Draw(sheet)
    for n, entry in enumerate(entries):
        left, top = n % _COLUMNS * width + 5, n // _COLUMNS * height + 5
        outlined = Image.open(io.BytesIO(entry.jpeg))
        sheet.paste(outlined, (left + (_SIDE - outlined.width) // 2, top))
        texts = [(f"{name} {note}", _bytes(colour_rgb)) for name, colour_rgb, note in entry.objects]
        for line, (text, colour) in enumerate([(entry.name, (221, 221, 221)), *texts]):
            # Pillow's own font knows Latin-1 only.
            known = text.encode("latin-1", "replace").decode("latin-1")
            while draw.textlength(known) > _SIDE:
                known = known[:-1]
            draw.text((left, top + _SIDE + 4 + line * _LINE), known, fill=colour)
    return sheet


def _bytes(colour_rgb: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(part * 255) for part in colour_rgb)
    return red, green, blue
