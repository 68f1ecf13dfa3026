"""The region of a slice that the model sees.

SAM 2 sees a square of S pixels. A lesion of 12 pixels in a slice of 512 is three pixels wide at S = 128:
nothing can be seen. With zoom, the model sees a square (in millimetres) around the prompt, two to three
times as long as the object, and the region follows the object from slice to slice. Without zoom the region
is the whole slice, resized anisotropically as stock SAM 2 does, and everything is bit-faithful to stock.

Positions are slice pixels with pixel centres at integers; a region's borders are counted between pixels,
from the upper left corner of pixel 0, so that ``Region(0, 0, W, H)`` is the whole slice. What lies outside
the slice is black, as what lies outside a scan is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of whole slice pixels; it may reach beyond the slice.

    Attributes
    ----------
    x0, y0, x1, y1
        First column and row, and one past the last.
    stock
        Scale positions as stock SAM 2 does (x * S / W), which leaves out half a pixel. Only for whole slices.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    stock: bool = False

    def __post_init__(self) -> None:
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"{self} is empty")

    @classmethod
    def whole(cls, shape_hw: Sequence[int]) -> "Region":
        """Return all of a slice, as stock SAM 2 sees it."""
        return cls(0, 0, int(shape_hw[1]), int(shape_hw[0]), stock=True)

    @property
    def width(self) -> int:
        """Columns."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    def to_units(self, points_xy: NDArray) -> NDArray[np.float32]:
        """Return slice positions (..., 2) in units of the region's sides: 0 on the first border, 1 on the
        last."""
        points = np.asarray(points_xy, dtype=np.float64)
        return ((points + 0.5 - (self.x0, self.y0)) / (self.width, self.height)).astype(np.float32)

    def to_model(self, points_xy: NDArray, image_size: int) -> NDArray[np.float32]:
        """Return slice positions (..., 2) in pixels of the model's S x S image, pixel centres at integers."""
        if self.stock:
            # In fp32 and this order, as stock does: divided by the slice's size, then multiplied.
            sides = np.array([self.width, self.height], dtype=np.float32)
            return np.asarray(points_xy, dtype=np.float32) / sides * np.float32(image_size)
        return self.to_units(points_xy) * np.float32(image_size) - np.float32(0.5)

    def holds(self, box: "Box") -> bool:
        """Return whether a box lies wholly inside."""
        return self.x0 <= box.x0 and self.y0 <= box.y0 and box.x1 <= self.x1 and box.y1 <= self.y1

    def crop(self, image: NDArray) -> NDArray:
        """Return the (height, width, ...) pixels of an image (H, W, ...); black outside."""
        rows, columns = self._inside(image.shape)
        inner = image[rows, columns]
        if inner.shape[:2] == (self.height, self.width):
            return inner
        out = np.zeros((self.height, self.width, *image.shape[2:]), dtype=image.dtype)
        out[self._shifted(rows, columns)] = inner
        return out

    def paste(self, crop: NDArray, shape_hw: Sequence[int], fill: float = 0) -> NDArray:
        """Return the image (H, W, ...) whose crop is (height, width, ...); `fill` outside the region."""
        rows, columns = self._inside(shape_hw)
        out = np.full((*shape_hw[:2], *crop.shape[2:]), fill, dtype=crop.dtype)
        out[rows, columns] = crop[self._shifted(rows, columns)]
        return out

    def _shifted(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Return the rows and columns of the slice as those of the crop."""
        return (
            slice(rows.start - self.y0, rows.stop - self.y0),
            slice(columns.start - self.x0, columns.stop - self.x0),
        )

    def _inside(self, shape_hw: Sequence[int]) -> tuple[slice, slice]:
        def part(first: int, last: int, length: int) -> slice:
            start = min(max(first, 0), length)
            return slice(start, max(min(last, length), start))

        return part(self.y0, self.y1, shape_hw[0]), part(self.x0, self.x1, shape_hw[1])


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle between pixels (as a region's borders), not rounded."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def of_mask(cls, mask_hw: NDArray[np.bool_]) -> "Box | None":
        """Return the tight box of a mask; None when it is empty."""
        columns, rows = np.flatnonzero(mask_hw.any(0)), np.flatnonzero(mask_hw.any(1))
        if len(columns) == 0:
            return None
        return cls(float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0)

    @classmethod
    def of_points(cls, points_xy: NDArray) -> "Box | None":
        """Return the box of the pixels under positions (N, 2); None when there are none."""
        if len(points_xy) == 0:
            return None
        low, high = points_xy.min(0), points_xy.max(0)
        return cls(float(low[0]), float(low[1]), float(high[0]) + 1, float(high[1]) + 1)

    @classmethod
    def of_prompt(cls, box_xyxy: NDArray) -> "Box":
        """Return the box a user drew, given in slice positions (pixel centres at integers)."""
        x0, y0, x1, y1 = (float(v) + 0.5 for v in box_xyxy)
        return cls(x0, y0, x1, y1)

    def union(self, other: "Box | None") -> "Box":
        """Return the box around both."""
        if other is None:
            return self
        return Box(
            min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1)
        )

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y)."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@dataclass(frozen=True, slots=True)
class Zoom:
    """How regions are chosen on slices of one size.

    Attributes
    ----------
    factor
        Side of a region in units of the longer side of the object's box.
    smallest
        Shortest side of a region in pixels.
    margin
        While tracking, an object nearer to the region's border than this share of its side moves the region …
    least
        … and so does an object whose longer side is less than this share of it.
    shrink
        A following region never gets smaller than this share of the one before, so that one bad slice does
        not make the next ones see a few pixels only.
    """

    shape_hw: tuple[int, int]
    pixel_mm: tuple[float, float] = (1.0, 1.0)
    factor: float = 2.0
    smallest: int = 16
    margin: float = 0.10
    least: float = 0.25
    shrink: float = 0.6

    def around(self, box: Box, factor: float | None = None, at_least: float = 0.0) -> Region:
        """Return a square (in mm) around a box, `factor` times its longer side, at least `at_least` mm."""
        row_mm, column_mm = self.pixel_mm
        longer = max((box.x1 - box.x0) * column_mm, (box.y1 - box.y0) * row_mm)
        side = max((factor or self.factor) * longer, at_least, self.smallest * max(self.pixel_mm))
        # Looking at more than the whole slice shows nothing but black.
        side = min(side, max(self.shape_hw[0] * row_mm, self.shape_hw[1] * column_mm))
        x, y = box.centre
        x0, x1 = _interval(x, side / column_mm, self.shape_hw[1])
        y0, y1 = _interval(y, side / row_mm, self.shape_hw[0])
        return Region(x0, y0, x1, y1)

    def first(self, points_xy: NDArray, share: float = 0.5) -> Region:
        """Return the region for an object of which only clicks are known: `share` of the slice's longer
        side."""
        row_mm, column_mm = self.pixel_mm
        side = share * max(self.shape_hw[0] * row_mm, self.shape_hw[1] * column_mm)
        box = Box.of_points(points_xy)
        if box is None:
            return self.around(Box(0, 0, self.shape_hw[1], self.shape_hw[0]), factor=1.0)
        return self.around(box, at_least=side)

    def side_mm(self, region: Region) -> float:
        """Return the side of a region in millimetres."""
        return max(region.width * self.pixel_mm[1], region.height * self.pixel_mm[0])

    def is_cut(self, region: Region, box: Box | None, margin: float = 0.0) -> bool:
        """Return whether an object may go on beyond the region: its box reaches a border (or comes near)
        that lies inside the slice."""
        if box is None:
            return False
        near_x, near_y = max(margin * region.width, 0.5), max(margin * region.height, 0.5)
        height, width = self.shape_hw
        return (
            (box.x0 - region.x0 < near_x and region.x0 > 0)
            or (box.y0 - region.y0 < near_y and region.y0 > 0)
            or (region.x1 - box.x1 < near_x and region.x1 < width)
            or (region.y1 - box.y1 < near_y and region.y1 < height)
        )

    def follow(self, region: Region, box: Box | None) -> Region:
        """Return the region for the next slice, given the object's box on this one. Moves late, so that
        neighbouring slices mostly share one region and memories stay comparable."""
        if box is None:
            return region
        longer = max((box.x1 - box.x0) / region.width, (box.y1 - box.y0) / region.height)
        if longer >= self.least and not self.is_cut(region, box, self.margin):
            return region
        moved = self.around(box, at_least=self.shrink * self.side_mm(region))
        # At the slice's border a region can come out as it was.
        return region if replace(moved, stock=region.stock) == region else moved

    def grown(self, region: Region, box: Box) -> Region:
        """Return a larger region for an object that reaches the border of this one."""
        return self.around(box, at_least=1.6 * self.side_mm(region))


def _interval(centre: float, length: float, available: int) -> tuple[int, int]:
    """Return whole pixels around a centre; an interval as long as the slice itself is centred on the
    slice."""
    size = max(1, round(length))
    if size >= available:
        centre = available / 2
    start = round(centre - size / 2)
    return start, start + size
