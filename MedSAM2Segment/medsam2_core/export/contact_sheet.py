"""A sheet to look through a set of images, as HTML or PNG: every image with the outlines of its objects."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from medsam2_core.imaging.segmentation import Segmentation

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
    image_hw
        (H, W, 3) uint8, as displayed.
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
    """Write a sheet in the order of the entries, which are asked for one by one.

    A path that ends in ``.png`` gets a picture of the first 250, any other a page in HTML with everything in
    it.

    Raises
    ------
    ExportError
        The file cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        write_page(map(_figure, entries), path, title, overwrite=overwrite)
        return
    with atomic.new_file(Path(path), overwrite=overwrite) as stream:
        _picture([_tile(entry) for entry in islice(entries, MOST_IN_PICTURE)]).save(stream, format="PNG")


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
    buffer = io.BytesIO()
    _outlined(image_hw, outlines, aspect).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _outlined(
    image_hw: NDArray[np.uint8],
    outlines: Iterable[tuple[NDArray[np.bool_], tuple[float, float, float]]],
    aspect: float = 1.0,
) -> Image:
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
    return Image.fromarray(pixels)


def _outlines(entry: SheetEntry) -> list[tuple[NDArray[np.bool_], tuple[float, float, float]]]:
    return [(one.mask_kji[0], one.colour_rgb) for one in entry.segmentation if not one.is_empty]


def _figure(entry: SheetEntry) -> str:
    jpeg = thumbnail(entry.image_hw, _outlines(entry))
    lines = [(one.name, one.colour_rgb, entry.notes.get(one.name, "")) for one in entry.segmentation]
    return figure(entry.name, jpeg, lines)


_Tile = tuple["Image", list[tuple[str, tuple[int, int, int]]]]


def _tile(entry: SheetEntry) -> _Tile:
    """Return the small image, and lines of text with their colours."""
    texts = [(entry.name, (221, 221, 221))]
    for segment in entry.segmentation:
        note = entry.notes.get(segment.name, "")
        texts.append((f"{segment.name} {note}", _bytes(segment.colour_rgb)))
    return _outlined(entry.image_hw, _outlines(entry)), texts


def _picture(tiles: list[_Tile]) -> Image:
    from PIL import Image, ImageDraw

    lines = max((len(texts) for _, texts in tiles), default=0)
    width, height = _SIDE + 10, _SIDE + lines * _LINE + 14
    rows = max(1, -(-len(tiles) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), (17, 17, 17))
    draw = ImageDraw.Draw(sheet)
    for n, (outlined, texts) in enumerate(tiles):
        left, top = n % _COLUMNS * width + 5, n // _COLUMNS * height + 5
        sheet.paste(outlined, (left + (_SIDE - outlined.width) // 2, top))
        for line, (text, colour) in enumerate(texts):
            # Pillow's own font knows Latin-1 only.
            known = text.encode("latin-1", "replace").decode("latin-1")
            while draw.textlength(known) > _SIDE:
                known = known[:-1]
            draw.text((left, top + _SIDE + 4 + line * _LINE), known, fill=colour)
    return sheet


def _css(colour_rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{part:02x}" for part in _bytes(colour_rgb))


def _bytes(colour_rgb: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(part * 255) for part in colour_rgb)
    return red, green, blue
