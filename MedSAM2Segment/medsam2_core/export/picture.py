"""A picture to judge a result by: slices with the outlines of the objects.

Each slice has its true proportions, orientation letters at its borders, its number and its place in mm.
Prompts are drawn where they were given. When the objects are small, all slices show the same part of the
field of view around them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core import atomic
from medsam2_core.errors import ExportError
from medsam2_core.imaging.intensity import Window, to_display
from medsam2_core.prompts import PromptSet
from medsam2_core.prompts.slice_prompts import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.segmentation import Segment, Segmentation
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import PixelPrompts

_TILE_INCHES = {1: 6.0, 2: 4.5, 4: 4.0}  # up to so many slices; more get less
_SMALL_TILE_INCHES = 3.2
_DPI = 120
_GAP = 0.06  # inches between tiles
_LEGEND_LINE = 0.26  # inches
_SMALL = 0.45  # objects whose surroundings take less of the width and height than this are shown enlarged
_MARGIN = 0.75  # of the objects' extent, on every side
_LEAST_MM = 40.0  # shown around the smallest of objects


def montage(
    stack: SliceStack,
    window: Window,
    segmentation: Segmentation,
    path: str | Path,
    *,
    prompts: PromptSet | None = None,
    max_slices: int = 12,
    overwrite: bool = False,
) -> Path:
    """Write a PNG of evenly spread slices with the outlines of the objects.

    Parameters
    ----------
    stack : SliceStack
        Of the volume the segmentation belongs to.
    prompts : PromptSet, optional
        Their slices are always among those shown, as far as ``max_slices`` allows.
    max_slices : int
        At least 1.

    Raises
    ------
    ExportError
        When the grids differ, the name does not end with ``.png``, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ExportError(f"{path}: pictures are written as .png", code="unknown-format", path=str(path))
    if not segmentation.geometry.same_grid(stack.volume.geometry):
        message = "the segmentation is not on the grid of the volume to be shown"
        raise ExportError(message, code="segmentation-on-another-grid")
    atomic.check_target(path, overwrite=overwrite)
    given = {name: resolve(list(own), stack) for name, own in prompts} if prompts is not None else {}
    prompted = sorted({n for by_slice in given.values() for n in by_slice})
    extents = [extent for segment in segmentation if (extent := _extent(stack, segment)) is not None]
    tiles = []
    for n in chosen_slices(len(stack), prompted, extents, max(1, max_slices)):
        masks = {s.name: stack.mask_of(s.part_kji, n, s.offset_ijk) for s in segmentation if not s.is_empty}
        marks = {name: by_slice[n] for name, by_slice in given.items() if n in by_slice}
        tiles.append(Tile(n, to_display(stack.image_hw(n), window), masks, marks))
    figure = _drawn(stack, segmentation, tiles, _view(stack, extents, given))
    with atomic.new_file(path, overwrite=overwrite) as stream, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # scripts the font lacks become boxes
        figure.savefig(stream, format="png", dpi=_DPI, facecolor=BACKGROUND, metadata={"Software": None})
    return path


def chosen_slices(
    count: int, prompted: list[int], extents: list[NDArray[np.float64]], most: int
) -> list[int]:
    """Choose slices to show, ascending: spread over those with a segment, prompted ones included.

    ``extents`` are (2, 3) first and last ``[x, y, n]`` of every object.
    """
    first = min((round(extent[0, 2]) for extent in extents), default=0)
    last = max((round(extent[1, 2]) for extent in extents), default=count - 1)
    first, last = max(0, min([first, *prompted])), min(count - 1, max([last, *prompted]))
    wanted = min(most, last - first + 1)
    spread = [round(n) for n in np.linspace(first, last, wanted)] if wanted > 1 else [(first + last) // 2]
    shown = dict.fromkeys(prompted[:most])  # an ordered set
    for n in prompted[:most]:
        # A prompted slice takes the place of its nearest neighbour, so that the others stay spread.
        spread.remove(min(spread, key=lambda other: abs(other - n)))
    return sorted([*shown, *spread])


def _extent(stack: SliceStack, segment: Segment) -> NDArray[np.float64] | None:
    """Return (2, 3) smallest and largest ``[x, y, n]`` of a segment's box; None for an empty one."""
    if segment.is_empty:
        return None
    first = np.array(segment.offset_ijk, dtype=np.float64)
    last = first + np.array(segment.part_kji.shape[::-1]) - 1
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    points = stack.to_slice(first + corners * (last - first))
    return np.array([points.min(axis=0), points.max(axis=0)])


def _view(
    stack: SliceStack, extents: list[NDArray[np.float64]], given: dict[str, dict[int, PixelPrompts]]
) -> View:
    """Return the whole slice, or the surroundings of the segments and boxes when those are small."""
    height, width = stack.shape_hw
    corners = [point[:2] for extent in extents for point in extent]
    for by_slice in given.values():
        for prompt in by_slice.values():
            corners.extend(prompt.points_xy)
            if prompt.box_xyxy is not None:
                corners.extend((prompt.box_xyxy[:2], prompt.box_xyxy[2:]))
    whole = View(0, 0, width, height, stack.pixel_mm)
    if not corners:
        return whole
    pixel = np.array(stack.pixel_mm[::-1])  # x, y
    low, high = np.min(corners, axis=0), np.max(corners, axis=0) + 1
    half_mm = max(float(((high - low) * pixel).max()) * (0.5 + _MARGIN), _LEAST_MM / 2)
    if 2 * half_mm > _SMALL * max(whole.width_mm, whole.height_mm):
        return whole
    half, size = half_mm / pixel, np.array([width, height])
    centre = np.clip((low + high) / 2, np.minimum(half, size / 2), np.maximum(size - half, size / 2))
    x0, y0 = np.clip(np.floor(centre - half), 0, size - 1).astype(int)
    x1, y1 = np.clip(np.ceil(centre + half), 1, size).astype(int)
    return View(int(x0), int(y0), int(x1), int(y1), stack.pixel_mm)


def _drawn(stack: SliceStack, segmentation: Segmentation, tiles: list[Tile], view: View) -> Any:
    from matplotlib.figure import Figure

    longest = next(
        (inches for most, inches in _TILE_INCHES.items() if len(tiles) <= most), _SMALL_TILE_INCHES
    )
    scale = longest / max(view.width_mm, view.height_mm)
    tile_width = max(view.width_mm * scale, 0.55 * longest)
    tile_height = max(view.height_mm * scale, 0.25 * longest)
    columns = _columns(len(tiles), tile_width, tile_height)
    rows = math.ceil(len(tiles) / columns)
    width = columns * (tile_width + _GAP) + _GAP
    legend = _legend_lines(segmentation, stack, width)
    height = rows * (tile_height + _GAP) + _GAP + len(legend) * _LEGEND_LINE + 0.08
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left = _GAP + column * (tile_width + _GAP)
        top = height - _GAP - row * (tile_height + _GAP)
        axes = figure.add_axes(
            (left / width, (top - tile_height) / height, tile_width / width, tile_height / height)
        )
        draw_tile(axes, stack, segmentation, tile, view)
        if place == 0 and not stack.volume.is_picture:
            draw_scale_bar(axes, view)
    _draw_legend(figure, legend, width, height)
    return figure


def _columns(count: int, tile_width: float, tile_height: float) -> int:
    """Choose columns so that the picture is about 4:3, without empty tiles in the last row if possible."""

    def badness(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = (columns * tile_width) / (rows * tile_height)
        return abs(math.log(shape / (4 / 3))) + 1.2 * (rows * columns - count) / count

    return min(range(1, min(count, 8) + 1), key=badness)


def _legend_lines(
    segmentation: Segmentation, stack: SliceStack, width: float
) -> list[list[tuple[str, tuple[float, float, float]]]]:
    """Return names (with volume) and colours of the segments, in lines of equally wide entries."""
    entries = []
    for segment in segmentation:
        text = segment.name if len(segment.name) <= 40 else segment.name[:39] + "…"
        if stack.volume.known_spacing == "all":
            text += f"  {_millilitres(segmentation.volume_ml(segment.name))}"
        elif segment.is_empty:
            text += "  (empty)"
        entries.append((text, segment.colour_rgb))
    widest = max((_text_inches(text) for text, _ in entries), default=1.0)
    columns = max(1, int((width - 2 * _GAP) / widest))
    return [entries[n : n + columns] for n in range(0, len(entries), columns)]


def _millilitres(volume: float) -> str:
    if volume == 0:
        return "(empty)"
    return f"{volume:.0f} ml" if volume >= 100 else f"{volume:.3g} ml"


def _text_inches(text: str) -> float:
    return 0.42 + 0.078 * sum(2 if ord(letter) > 0x2E80 else 1 for letter in text)


def _draw_legend(
    figure: Any, lines: list[list[tuple[str, tuple[float, float, float]]]], width: float, height: float
) -> None:
    from matplotlib.patches import Rectangle

    step = max((_text_inches(text) for line in lines for text, _ in line), default=1.0)
    for row, line in enumerate(reversed(lines)):
        left, middle = 2 * _GAP, 0.04 + (row + 0.5) * _LEGEND_LINE
        for text, colour in line:
            patch = Rectangle((left / width, (middle - 0.055) / height), 0.16 / width, 0.11 / height)
            patch.set(facecolor=colour, transform=figure.transFigure)
            figure.add_artist(patch)
            label = figure.text((left + 0.22) / width, middle / height, text, color=TEXT, fontsize=9)
            label.set(va="center", parse_math=False)
            left += step


BACKGROUND, TEXT = "#000000", "#e8e8e8"
_DIRECTIONS = ("LR", "PA", "IS")


@dataclass
class Tile:
    """A slice to draw: its number, picture (H, W, 3), and masks (H, W) and prompts by the object's name."""

    n: int
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    prompts: dict[str, PixelPrompts] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The part of every slice that is shown: whole pixels, x1 and y1 excluded."""

    x0: int
    y0: int
    x1: int
    y1: int
    pixel_mm: tuple[float, float]

    @property
    def width_mm(self) -> float:
        """Its width in mm."""
        return (self.x1 - self.x0) * self.pixel_mm[1]

    @property
    def height_mm(self) -> float:
        """Its height in mm."""
        return (self.y1 - self.y0) * self.pixel_mm[0]


def draw_tile(axes: Any, stack: SliceStack, segmentation: Segmentation, tile: Tile, view: View) -> None:
    """Draw one slice with everything on it."""
    axes.imshow(
        tile.image, aspect=view.pixel_mm[0] / view.pixel_mm[1], interpolation="bicubic", origin="upper"
    )
    for segment in segmentation:
        mask = tile.masks.get(segment.name)
        if mask is not None and mask.any():
            _draw_outline(axes, mask, segment.colour_rgb)
    for name, prompt in tile.prompts.items():
        colour = segmentation[name].colour_rgb if name in segmentation.names else (1.0, 1.0, 1.0)
        _draw_prompt(axes, prompt, colour)
    axes.set_xlim(view.x0 - 0.5, view.x1 - 0.5)
    axes.set_ylim(view.y1 - 0.5, view.y0 - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("C")
    axes.set_facecolor(BACKGROUND)
    for spine in axes.spines.values():
        spine.set_color("#ffffff" if tile.prompts else "#404040")
        spine.set_linewidth(1.6 if tile.prompts else 0.6)
    title = _slice_title(stack, tile.n)
    _write(axes, (0.02, 0.98), f"{title}\nprompted" if title and tile.prompts else title)
    left, right, top, bottom = _letters(stack)
    _write(axes, (0.02, 0.5), left, weight="bold")
    _write(axes, (0.98, 0.5), right, weight="bold")
    _write(axes, (0.5, 0.98), top, weight="bold")
    _write(axes, (0.5, 0.02), bottom, weight="bold")


def _draw_outline(axes: Any, mask: NDArray[np.bool_], colour: tuple[float, float, float]) -> None:
    """Draw the border of a mask as a smooth line within half a pixel of the voxels' edges."""
    from scipy import ndimage

    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    y0, x0 = rows[0] - 3, columns[0] - 3
    part = np.zeros((rows[-1] - y0 + 4, columns[-1] - x0 + 4), dtype=np.float32)
    part[3:-3, 3:-3] = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = 4 if max(part.shape) <= 512 else 2
    fine = np.kron(part, np.ones((factor, factor), dtype=np.float32))
    smooth = ndimage.gaussian_filter(fine, 0.6 * factor)
    # Gaussian smoothing would let single pixels and thin lines vanish: there the pixel's own edge counts.
    lost = (part > 0) & (smooth[factor // 2 :: factor, factor // 2 :: factor] < 0.5)
    level = np.maximum(smooth, np.kron(lost, np.ones((factor, factor), dtype=np.float32)))
    x = x0 + (np.arange(fine.shape[1]) + 0.5) / factor - 0.5
    y = y0 + (np.arange(fine.shape[0]) + 0.5) / factor - 0.5
    axes.contour(x, y, level, levels=[0.5], colors=["#000000"], linewidths=2.6, alpha=0.45)
    axes.contour(x, y, level, levels=[0.5], colors=[colour], linewidths=1.4)


def _draw_prompt(axes: Any, prompt: PixelPrompts, colour: tuple[float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    if prompt.box_xyxy is not None:
        left, top, right, bottom = (float(value) for value in prompt.box_xyxy)
        size = (right - left, bottom - top)
        for line, width, dashes in (("#000000", 2.4, "solid"), ("#ffffff", 1.0, (0, (4, 3)))):
            axes.add_patch(Rectangle((left, top), *size, fill=False, ec=line, lw=width, ls=dashes, alpha=0.9))
    for (x, y), label in zip(prompt.points_xy, prompt.labels, strict=True):
        marker, face = ("o", colour) if label else ("X", "#ff2020")
        axes.plot([x], [y], marker=marker, ms=7, mfc=face, mec="#ffffff", mew=1.2, ls="none", zorder=5)
    if prompt.mask_hw is not None and prompt.mask_hw.any():
        axes.contour(prompt.mask_hw.astype(float), levels=[0.5], colors=["#ffffff"], linestyles="dotted")


def _slice_title(stack: SliceStack, n: int) -> str:
    """Return such as ``k 12  S 34.5 mm``: the index along the axis and the position in the patient."""
    volume = stack.volume
    if volume.is_picture:
        return ""
    height, width = stack.shape_hw
    centre = stack.to_ijk([[(width - 1) / 2, (height - 1) / 2, n]])
    array_axis = stack.array_axis
    number = f"slice {n}" if array_axis is None else f"{'ijk'[array_axis]} {round(centre[0, array_axis])}"
    if not _place_is_known(stack):
        return number
    directions = volume.geometry.ijk_to_ras[:3, :3] @ stack.xyn_to_ijk[:3, :3]
    # The normal of the slices, not the way from one to the next: those differ under a gantry tilt.
    axis = int(np.argmax(np.abs(np.cross(directions[:, 0], directions[:, 1]))))
    position = float(volume.geometry.to_ras(centre)[0, axis])
    return f"{number}   {('LR', 'PA', 'IS')[axis][position >= 0]} {abs(position):.1f} mm"


def _letters(stack: SliceStack) -> tuple[str, str, str, str]:
    """Return patient directions at the left, right, top and bottom border; empty when unknown."""
    if not _place_is_known(stack):
        return "", "", "", ""
    directions = stack.volume.geometry.ijk_to_ras[:3, :3] @ stack.xyn_to_ijk[:3, :3]
    right, bottom = _letter(directions[:, 0]), _letter(directions[:, 1])
    opposite = str.maketrans("LRPAIS", "RLAPSI")
    return right.translate(opposite), right, bottom.translate(opposite), bottom


def _letter(direction_ras: NDArray[np.float64]) -> str:
    """Return the side a direction points to; two letters when oblique by more than 20 degrees."""
    unit = direction_ras / np.linalg.norm(direction_ras)
    strongest = sorted(range(3), key=lambda axis: -abs(unit[axis]))[:2]
    seen = [axis for axis in strongest if abs(unit[axis]) > math.sin(math.radians(20))]
    return "".join(_DIRECTIONS[axis][int(unit[axis] > 0)] for axis in seen)


def _place_is_known(stack: SliceStack) -> bool:
    volume = stack.volume
    return not volume.is_picture and bool(volume.metadata.get("orientation_known", True))


def draw_scale_bar(axes: Any, view: View) -> None:
    """Draw a bar of a round length in the lower right corner."""
    length = next(mm for mm in (100, 50, 20, 10, 5, 2, 1, 0) if mm <= 0.4 * view.width_mm)
    if length == 0:
        return
    x1 = view.x1 - 0.5 - 0.04 * (view.x1 - view.x0)
    y = view.y1 - 0.5 - 0.03 * (view.y1 - view.y0)
    x0 = x1 - length / view.pixel_mm[1]
    bar = axes.plot([x0, x1], [y, y], color=TEXT, lw=2.2, solid_capstyle="butt")[0]
    label = axes.annotate(f"{length} mm", ((x0 + x1) / 2, y), (0, 3), textcoords="offset points")
    label.set(ha="center", va="bottom", color=TEXT, fontsize=8)
    for artist in (bar, label):
        _on_any_background(artist, 3.4 if artist is bar else 2.2)


def _write(axes: Any, place: tuple[float, float], text: str, *, weight: str = "normal") -> None:
    """Write text at a position (0 to 1 from the lower left), aligned to the border it is close to."""
    x, y = place
    written = axes.text(x, y, text, transform=axes.transAxes, color=TEXT, fontsize=8.5, weight=weight)
    written.set_horizontalalignment("left" if x < 0.1 else "right" if x > 0.9 else "center")
    written.set_verticalalignment("bottom" if y < 0.1 else "top" if y > 0.9 else "center")
    written.set_parse_math(False)
    _on_any_background(written, 2.2)


def _on_any_background(artist: Any, width: float) -> None:
    """Add a dark rim, so that light text and lines show on bright tissue too."""
    from matplotlib import patheffects

    artist.set_path_effects([patheffects.withStroke(linewidth=width, foreground="#000000")])
