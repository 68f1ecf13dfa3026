"""One slice of a picture: the image, outlines, prompts, letters, numbers and scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import PixelPrompts

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
    """The border of a mask as a smooth line that stays within half a pixel of the voxels' edges."""
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
    """Such as ``k 12  S 34.5 mm``: the index a prompt would name and the place along the patient's axis."""
    volume = stack.volume
    if volume.is_picture:
        return ""
    height, width = stack.shape_hw
    centre = stack.to_ijk([[(width - 1) / 2, (height - 1) / 2, n]])
    array_axis = getattr(stack, "array_axis", None)
    number = f"slice {n}" if array_axis is None else f"{'ijk'[array_axis]} {round(centre[0, array_axis])}"
    if not _place_is_known(stack):
        return number
    directions = volume.geometry.ijk_to_ras[:3, :3] @ stack.xyn_to_ijk[:3, :3]
    # The normal of the slices, not the way from one to the next: those differ under a gantry tilt.
    axis = int(np.argmax(np.abs(np.cross(directions[:, 0], directions[:, 1]))))
    position = float(volume.geometry.to_ras(centre)[0, axis])
    return f"{number}   {('LR', 'PA', 'IS')[axis][position >= 0]} {abs(position):.1f} mm"


def _letters(stack: SliceStack) -> tuple[str, str, str, str]:
    """Patient directions at the left, right, top and bottom border; empty when the file did not tell."""
    if not _place_is_known(stack):
        return "", "", "", ""
    directions = stack.volume.geometry.ijk_to_ras[:3, :3] @ stack.xyn_to_ijk[:3, :3]
    right, bottom = _letter(directions[:, 0]), _letter(directions[:, 1])
    opposite = str.maketrans("LRPAIS", "RLAPSI")
    return right.translate(opposite), right, bottom.translate(opposite), bottom


def _letter(direction_ras: NDArray[np.float64]) -> str:
    """The side of the patient a direction points to; two letters when oblique by more than 20 degrees."""
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
    """Text at a place of the tile (0 to 1 from the lower left), aligned to the border it is close to."""
    x, y = place
    written = axes.text(x, y, text, transform=axes.transAxes, color=TEXT, fontsize=8.5, weight=weight)
    written.set_horizontalalignment("left" if x < 0.1 else "right" if x > 0.9 else "center")
    written.set_verticalalignment("bottom" if y < 0.1 else "top" if y > 0.9 else "center")
    written.set_parse_math(False)
    _on_any_background(written, 2.2)


def _on_any_background(artist: Any, width: float) -> None:
    """A dark rim, so that light text and lines show on bright tissue too."""
    from matplotlib import patheffects

    artist.set_path_effects([patheffects.withStroke(linewidth=width, foreground="#000000")])
