"""Volume and the two diameters of every object, as RECIST 1.1 asks for them.

**Outline.** In a slice the outline of an object runs half-way between the centres of its pixels and those of
their neighbours outside: marching squares at one half, as viewers draw a mask (Cornerstone, VTK, scikit-
image) and as PyRadiomics measures its 2-D diameters. One pixel is as long as its spacing, never 0 mm. Of a
mask that holds the pixels whose centres lie in an ellipse, the longest diameter comes out about half a pixel
too long and the perpendicular a quarter; from corner to corner the longest would be a whole pixel too long.

**Pieces.** In each slice the pieces of an object are measured one by one, for a diameter must not run
through the gap between two lesions. Pixels that touch at a side or a corner are one piece. Holes belong to
the piece: a necrotic centre or a vessel left out does not make a lesion smaller.

**Longest diameter.** The greatest distance in mm between two points of the outline of one piece, in the
acquired plane: slices are those of constant k, unless another axis is named. As with callipers, it may leave
the object where that is concave.

**Perpendicular diameter.** The longest straight line at right angles to it, in mm and not in pixels, that
runs within the outline of the same piece from edge to edge, wherever along the longest that is. Where several
are equal, the one nearest to the middle of the longest diameter is given.

Where the longest diameter is found more than once, the one with the longest perpendicular counts, and of
those the first.

Eisenhauer et al., New response evaluation criteria in solid tumours: revised RECIST guideline (version 1.1),
Eur J Cancer 45 (2009), 228-247: the longest diameter of a lesion, and of a lymph node the short axis, the
longest at right angles to it, both in the plane of measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segment, Segmentation

Position = tuple[float, float, float]

_SAME = 1e-9  # lengths that differ by less than this part of them are equal: it is rounding

# Marching squares. The corners of a cell are numbered in bits: 1 upper left, 2 upper right, 4 lower right, 8
# lower left. A line runs between the middles of two sides, given as (x, y) within the cell.
_UP, _RIGHT, _DOWN, _LEFT = (0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)
_LINES = {
    1: [(_LEFT, _UP)], 2: [(_UP, _RIGHT)], 4: [(_RIGHT, _DOWN)], 8: [(_DOWN, _LEFT)],
    14: [(_LEFT, _UP)], 13: [(_UP, _RIGHT)], 11: [(_RIGHT, _DOWN)], 7: [(_DOWN, _LEFT)],
    3: [(_LEFT, _RIGHT)], 12: [(_LEFT, _RIGHT)], 6: [(_UP, _DOWN)], 9: [(_UP, _DOWN)],
    # Two pixels that touch at a corner are joined there.
    5: [(_UP, _RIGHT), (_DOWN, _LEFT)], 10: [(_LEFT, _UP), (_RIGHT, _DOWN)],
}  # fmt: skip


@dataclass(frozen=True)
class Diameter:
    """A straight line across an object.

    Attributes
    ----------
    ends_ijk
        Where it begins and ends, as continuous indices on the segmentation's grid, both in the same slice.
    ends_ras
        The same in RAS millimetres.
    """

    length_mm: float
    ends_ijk: tuple[Position, Position]
    ends_ras: tuple[Position, Position]


@dataclass(frozen=True)
class Measured:
    """What was measured of one object.

    Attributes
    ----------
    voxel_count, volume_ml
        Its voxels, and their volume in millilitres; None where the spacing is not known.
    k
        The slice in which the diameters are, along the axis of slices; None for an object without voxels.
    longest, perpendicular
        The two diameters as the module describes them; None for an object without voxels.
    """

    name: str
    voxel_count: int
    volume_ml: float | None
    k: int | None = None
    longest: Diameter | None = None
    perpendicular: Diameter | None = None


def measure(segmentation: Segmentation, axis: int = 2) -> tuple[Measured, ...]:
    """Measure volume and diameters of every segment, in order.

    The grid may be oblique, sheared and of any spacing: lengths are those in the patient.

    Parameters
    ----------
    axis
        The array axis that slices are stacked along, 0 to 2 for i to k: diameters lie within slices.
    """
    return tuple(_measured(segmentation, segment, axis) for segment in segmentation)


def _measured(segmentation: Segmentation, segment: Segment, axis: int) -> Measured:
    count, volume_ml = segment.voxel_count, segmentation.volume_ml(segment.name)
    if count == 0:
        return Measured(segment.name, 0, 0.0)
    # Within this function i and j are the axes within a slice, and k is the one across.
    order = [*(one for one in range(3) if one != axis), axis]
    part_kji = segment.part_kji.transpose([2 - one for one in reversed(order)])
    mm_of_ij = _mm_of_ij(segmentation.geometry, order[:2])
    ij_of_mm = np.linalg.inv(mm_of_ij)
    best_length, best = 0.0, None
    for piece in sorted(_longest_pieces(part_kji, mm_of_ij), key=lambda piece: piece.k):
        lines = _outline(_without_holes(piece.mask_ji)) + piece.offset_ij
        lines_mm = lines @ mm_of_ij.T
        for ends_ij in piece.pairs_ij:
            across_mm = _widest_across(lines_mm, ends_ij @ mm_of_ij.T)
            length = float(np.linalg.norm(across_mm[1] - across_mm[0]))
            if length > best_length * (1 + _SAME):
                best_length, best = length, (piece.k, ends_ij, across_mm @ ij_of_mm.T)
    assert best is not None  # a piece has an outline, and every line across it a length
    part_k, longest_ij, across_ij = best
    i, j, k = (segment.offset_ijk[one] for one in order)
    diameters = (
        _diameter(segmentation.geometry, ends_ij + np.array([i, j]), part_k + k, order)
        for ends_ij in (longest_ij, across_ij)
    )
    return Measured(segment.name, count, volume_ml, part_k + k, *diameters)


def _mm_of_ij(geometry: Geometry, in_plane: list[int]) -> NDArray[np.float64]:
    """Return (2, 2) from steps along two axes to millimetres in their plane, whatever their angle."""
    axes = geometry.ijk_to_ras[:3, in_plane]
    return np.linalg.cholesky(axes.T @ axes).T


def _diameter(geometry: Geometry, ends_ij: NDArray[np.float64], k: int, order: list[int]) -> Diameter:
    ends_ij = ends_ij.round(9) + 0.0  # an end at the edge of a pixel is there, and not -0.0
    ends_ij = ends_ij[np.lexsort(ends_ij.T)]  # the upper end first, the same every time
    ends_ijk = np.column_stack([ends_ij, np.full(2, float(k))])[:, np.argsort(order)]
    ends_ras = geometry.to_ras(ends_ijk)
    length = float(np.linalg.norm(ends_ras[1] - ends_ras[0]))
    return Diameter(length, _positions(ends_ijk), _positions(ends_ras))


def _positions(points: NDArray[np.float64]) -> tuple[Position, Position]:
    (a, b, c), (d, e, f) = points.tolist()
    return (a, b, c), (d, e, f)


# The longest diameter ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of an object in a slice, and the (N, 2, 2) ends of the longest lines between its points."""

    k: int
    offset_ij: NDArray[np.int64]
    mask_ji: NDArray[np.bool_]
    pairs_ij: NDArray[np.float64]


def _longest_pieces(part_kji: NDArray[np.bool_], mm_of_ij: NDArray[np.float64]) -> list[_Piece]:
    """Return the pieces whose longest diameter is the longest of all; most often it is one.

    Slices and their pieces are examined from the largest bounding box down, until none left can be longer.
    """
    best, found = 0.0, list[_Piece]()
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for k, largest_mm in _largest_first(_sizes_of_slices(part_kji), mm_of_ij):
        if largest_mm < best * (1 - _SAME):
            break
        labels_ji, boxes = _pieces(part_kji[k])
        for n, limit_mm in _largest_first(_sizes_of(boxes), mm_of_ij):
            if limit_mm < best * (1 - _SAME):
                break
            mask_ji = labels_ji[boxes[n]] == n + 1
            content = (mask_ji.shape, mask_ji.tobytes())
            if content in seen:
                continue  # the slices of a box are all alike: the first is enough
            length, pairs_ij = _farthest(mask_ji, mm_of_ij)
            if length > best * (1 + _SAME):
                best, found, seen = length, [], set()
            if length >= best * (1 - _SAME):
                seen.add(content)
                rows, columns = boxes[n]
                offset_ij = np.array([columns.start, rows.start])
                found.append(_Piece(k, offset_ij, mask_ji, pairs_ij + offset_ij))
    return found


def _largest_first(sizes_ij: NDArray[np.int64], mm_of_ij: NDArray[np.float64]) -> Iterator[tuple[int, float]]:
    """Yield numbers of (N, 2) boxes and the longest line each can hold in mm, the longest first.

    Boxes without pixels are left out.
    """
    # From a side of the box to the opposite one, at most: outlines cut its corners off.
    reaches = [sizes_ij - np.array(cut, float) for cut in ((0, 1), (1, 0))]
    reaches += [reach * (1, -1) for reach in reaches]
    limits = np.max([np.linalg.norm(reach @ mm_of_ij.T, axis=1) for reach in reaches], axis=0)
    for n in np.argsort(-limits, kind="stable"):
        if sizes_ij[n].all():
            yield int(n), float(limits[n])


def _sizes_of_slices(part_kji: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return (K, 2) sizes along i and j of the bounding box of each slice's pixels."""
    sizes = []
    for axis in (1, 2):
        filled = np.asarray(part_kji.any(axis=axis))
        last = filled.shape[1] - filled[:, ::-1].argmax(axis=1)
        sizes.append(np.where(filled.any(axis=1), last - filled.argmax(axis=1), 0))
    return np.column_stack(sizes)


def _sizes_of(boxes: list[tuple[slice, slice]]) -> NDArray[np.int64]:
    return np.array([(i.stop - i.start, j.stop - j.start) for j, i in boxes])


def _pieces(mask_ji: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[tuple[slice, slice]]]:
    """Label the pieces of a slice from 1; return also the (rows, columns) each lies in."""
    from scipy import ndimage

    labels_ji, _ = ndimage.label(mask_ji, structure=np.ones((3, 3)))
    return labels_ji, ndimage.find_objects(labels_ji)


def _farthest(mask_ji: NDArray[np.bool_], mm_of_ij: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the greatest distance in mm within a piece's outline, and (N, 2, 2) all pairs that have it.

    Only corners of the convex hull can be so far from each other, and only the first and last pixel of a row
    can make such corners. The piece must touch every row of the mask.
    """
    from scipy.spatial import ConvexHull

    j = np.arange(len(mask_ji), dtype=np.float64)
    first = mask_ji.argmax(axis=1).astype(np.float64)
    last = mask_ji.shape[1] - 1.0 - mask_ji[:, ::-1].argmax(axis=1)
    ends = [(first - 0.5, j), (last + 0.5, j)]
    ends += [(i, j + half) for i in (first, last) for half in (-0.5, 0.5)]
    points_ij = np.concatenate([np.column_stack(end) for end in ends])
    corners_ij = points_ij[ConvexHull(points_ij).vertices]
    corners_mm = corners_ij @ mm_of_ij.T
    distances = np.linalg.norm(corners_mm[:, np.newaxis] - corners_mm, axis=2)
    length = float(distances.max())
    pairs = np.argwhere(np.triu(distances) >= length * (1 - _SAME))
    return length, corners_ij[pairs]


# The outline, and the line across ---------------------------------------------------------------------------


def _without_holes(mask_ji: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the piece with its holes filled."""
    from scipy import ndimage

    labels_ji, _ = ndimage.label(~np.pad(mask_ji, 1))
    return labels_ji[1:-1, 1:-1] != labels_ji[0, 0]


def _outline(mask_ji: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (N, 2, 2) lines (from and to, i and j) that make up the outline, in no order."""
    padded = np.pad(mask_ji, 1).astype(np.uint8)
    cells_ji = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, 1:] << 2 | padded[1:, :-1] << 3
    lines = []
    for kind, drawn in _LINES.items():
        corners_ij = np.argwhere(cells_ji == kind)[:, ::-1] - 1  # of the upper left pixel; 1 was padded
        lines += [corners_ij[:, np.newaxis] + np.array(line) for line in drawn]
    return np.concatenate(lines)


def _widest_across(lines_mm: NDArray[np.float64], ends_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, 2) ends in mm of the longest line within an outline perpendicular to ``ends_mm``.

    The corners of the outline cut it into strips, in each of which lines across grow or shrink evenly: the
    longest begins at the border of a strip.
    """
    along = (ends_mm[1] - ends_mm[0]) / np.linalg.norm(ends_mm[1] - ends_mm[0])
    frame = np.array([along, (-along[1], along[0])])  # its rows: along the given line, and across
    middle = float(ends_mm.mean(axis=0) @ along)
    strip, borders, inner, outer = _crossings(lines_mm @ frame.T)
    lower, upper = borders[strip], borders[strip + 1]
    # Of lines of equal length, the one nearest to the middle: it may be within a strip as well.
    at = np.stack([lower, upper, np.clip(middle, lower, upper)])
    share = (at - lower) / (upper - lower)
    starts, stops = (edge[0] + share * (edge[1] - edge[0]) for edge in (inner, outer))
    lengths = stops - starts
    equal = np.flatnonzero(lengths.ravel() >= lengths.max() * (1 - _SAME))
    chosen = equal[np.abs(at.ravel()[equal] - middle).argmin()]
    ends = [(at.flat[chosen], side.flat[chosen]) for side in (starts, stops)]
    return np.array(ends) @ frame


def _crossings(
    lines: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return where perpendicular lines enter the outline and leave it.

    Parameters
    ----------
    lines
        (N, 2, 2): from and to, (along, across).

    Returns
    -------
    strip, borders, inner, outer
        For each of M stretches within the outline: (M,) the number of its strip; (B,) where strips begin and
        end along; and (2, M) where the stretch begins and ends across, at both borders of its strip.
    """
    borders_along = np.sort(lines[..., 0], axis=None)
    is_new = np.diff(borders_along, prepend=-np.inf) > _SAME * (borders_along[-1] - borders_along[0])
    borders = borders_along[is_new]
    # Corners at the same place but for rounding share a border, so that every strip is crossed evenly.
    border_of = np.searchsorted(borders, lines[..., 0], side="right") - 1
    order = border_of.argsort(axis=1)
    border_of = np.take_along_axis(border_of, order, axis=1)
    across = np.take_along_axis(lines[..., 1], order, axis=1)
    begin, end = border_of.T
    counts = end - begin
    line = np.repeat(np.arange(len(lines)), counts)
    strip = np.arange(len(line)) - np.repeat(counts.cumsum() - counts, counts) + begin[line]
    reach = borders[end[line]] - borders[begin[line]]
    share = (borders[np.stack([strip, strip + 1])] - borders[begin[line]]) / reach
    crossed = across[line, 0] + share * (across[line, 1] - across[line, 0])
    sorted_ = np.lexsort((crossed.sum(axis=0), strip))
    strip, crossed = strip[sorted_], crossed[:, sorted_]
    return strip[::2], borders, crossed[:, ::2], crossed[:, 1::2]
