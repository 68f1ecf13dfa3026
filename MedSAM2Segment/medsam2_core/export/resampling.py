"""Resample a segmentation to another grid, that of its series.

Where both hold their voxels in the same positions nothing changes, in whatever order they are stored. A grid
that is a part of the other is filled in. Everything else is resampled, and what that costs is measured: the
object is sampled back, and its overlap with itself (Dice) is the measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam2_core.errors import ExportError, Note
from medsam2_core.imaging.geometry import Geometry, inverse, transform
from medsam2_core.imaging.segmentation import Segment, Segmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Voxel centres nearer than this are the same place.
SAME_POSITION_MM = 0.05
#: How much of an object may be lost on the way, as a part of it (1 - Dice there and back).
MOST_LOST = 0.05
_ROWS_AT_ONCE = 1 << 21  # voxels whose positions are computed together


def onto_grid(
    segmentation: Segmentation, geometry: Geometry, most_lost: float = MOST_LOST, *, resample: bool = True
) -> Segmentation:
    """Put a segmentation onto another grid; notes on what that changed are added to its notes.

    Parameters
    ----------
    resample
        Allow a grid whose voxels are in other positions: that it was drawn on the same scan is then only
        likely, not certain.
    most_lost
        Part of an object (0 to 1) that may be lost: 1 - Dice of the object and what comes back when the
        result is sampled on its own grid again. An object that would vanish is always refused.

    Raises
    ------
    ExportError
        Naming the object that would lose more, and how much; ``another-grid-than-series``.
    """
    if not 0 <= most_lost <= 1:
        message = f"most lost {most_lost!r}: give a part of the object from 0 to 1"
        raise ExportError(message, code="invalid-most-lost", most_lost=most_lost)
    own = segmentation.geometry
    if own.same_grid(geometry, SAME_POSITION_MM) or own.same_positions(geometry, SAME_POSITION_MM):
        return segmentation.on_grid(geometry, SAME_POSITION_MM)
    mapping = own.ras_to_ijk @ geometry.ijk_to_ras  # index there to index here
    steps = own.index_mapping(geometry, SAME_POSITION_MM)
    if steps is None and not resample:
        raise _another_grid(own, geometry)
    moved, notes = [], [*segmentation.notes, *_difference(own, geometry, steps is not None)]
    for segment in segmentation:
        mask_kji = _sampled(segment, mapping if steps is None else steps, geometry.shape_ijk)
        lost = _loss(segment, mask_kji, mapping)
        if lost > most_lost or lost == 1.0:
            raise ExportError(
                _loss_message(segment, lost, most_lost),
                code="resampling-loss-too-large",
                segment=segment.name,
                lost=lost,
                most_lost=most_lost,
            )
        if lost > 0.0005:
            message = f"{segment.name!r}: {lost:.1%} of it did not survive the other grid"
            notes.append(Note.warning("resampling-loss", message, segment=segment.name, lost=lost))
        described = (segment.terminology, segment.tags, segment.label)
        moved.append(Segment(segment.name, segment.colour_rgb, mask_kji, *described))
    return replace(segmentation, geometry=geometry, segments=tuple(moved), notes=tuple(notes))


def on_grid_of(prior: Segmentation, geometry: Geometry) -> Segmentation:
    """Return the segments that reach into a grid, on that grid."""
    kept: list[Segment] = []
    for segment in prior:
        if segment.is_empty:
            continue
        one = Segmentation(prior.geometry, (segment,), prior.provenance)
        try:
            kept += onto_grid(one, geometry, most_lost=1.0).segments
        except ExportError as error:
            if error.code != "resampling-loss-too-large":
                raise
    return Segmentation(geometry, tuple(kept), {})


def undo_volume_move(segmentation: Segmentation, drawn_on: Geometry, series: Geometry) -> Segmentation:
    """Undo a move of the volume after it was read from its series, together with its segments.

    Parameters
    ----------
    drawn_on
        The volume's present grid, which the objects lie on. Nothing is changed where it is the series' own.

    Raises
    ------
    ExportError
        It has other voxels than the series, or was rotated so far that nothing shows which belong together.
    """
    if series.same_positions(drawn_on, SAME_POSITION_MM):
        return segmentation
    if sorted(drawn_on.shape_ijk) != sorted(series.shape_ijk):
        sizes = [" x ".join(map(str, grid.shape_ijk)) for grid in (drawn_on, series)]
        raise ExportError(
            f"the volume ({sizes[0]} voxels) is not the series' ({sizes[1]}), and lies elsewhere: draw on "
            "the volume as it was read from DICOM, or write .seg.nrrd",
            code="volume-not-of-series",
            shape_ijk=list(drawn_on.shape_ijk),
            series_shape_ijk=list(series.shape_ijk),
        )
    turn = _axes_of(drawn_on, series)
    if turn is None:
        raise ExportError(
            "the volume was rotated after it was read from DICOM, so its voxels cannot be matched to those "
            "of the series. Undo the rotation, or write .seg.nrrd",
            code="volume-turned",
        )
    back = series.ijk_to_ras @ turn @ drawn_on.ras_to_ijk  # where a point of the volume was
    own = segmentation.geometry
    moved = Geometry(back @ own.ijk_to_ras, own.shape_ijk)
    centre = (np.array(drawn_on.shape_ijk) - 1) / 2
    way = float(np.linalg.norm(back[:3] @ [*drawn_on.to_ras(centre)[0], 1] - drawn_on.to_ras(centre)[0]))
    note = Note.warning(
        "volume-moved",
        f"the volume was moved by {way:.1f} mm after it was read from DICOM: its segments were moved with it",
        moved_mm=way,
    )
    return replace(segmentation, geometry=moved, notes=(*segmentation.notes, note))


def read_grid(path: Path) -> Geometry:
    """Read the grid that a JSON file describes: ``{ijk_to_ras, shape_ijk}``.

    Raises
    ------
    ExportError
        ``grid-unreadable``.
    """
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
        i, j, k = (int(n) for n in grid["shape_ijk"])
        return Geometry(grid["ijk_to_ras"], (i, j, k))
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"{path} cannot be read as a grid: it must hold ijk_to_ras (4 x 4) and shape_ijk (3 sizes)"
        raise ExportError(message, code="grid-unreadable", path=str(path), reason=str(error)) from error


def _axes_of(drawn_on: Geometry, series: Geometry) -> NDArray[np.float64] | None:
    """Return (4, 4) from index of the volume to index of the series, by the directions of their axes."""
    cosines = series.directions.T @ drawn_on.directions  # (series axis, volume axis)
    turn = np.where(np.abs(cosines) > 0.75, np.sign(cosines), 0.0)
    if not ((np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()):
        return None
    if (np.abs(turn) @ drawn_on.shape_ijk != np.array(series.shape_ijk)).any():
        return None
    result = np.eye(4)
    result[:3, :3] = turn
    result[:3, 3] = np.where(turn.sum(axis=1) < 0, np.array(series.shape_ijk) - 1, 0)
    return result


def _sampled(
    segment: Segment, mapping: NDArray[np.float64], shape_ijk: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Return the (K, J, I) mask on the other grid, by the nearest voxel of ours."""
    mask_kji = np.zeros(shape_ijk[::-1], dtype=bool)
    if segment.part_kji.size:
        box = _target_box(segment, mapping, shape_ijk)
        for part, positions_ijk in _positions(box):
            here = positions_ijk @ mapping[:3, :3].T + mapping[:3, 3]
            mask_kji[part] = _nearest_values(segment, here).reshape(mask_kji[part].shape)
    return mask_kji


def _loss(segment: Segment, mask_kji: NDArray[np.bool_], mapping: NDArray[np.float64]) -> float:
    """Return 1 - Dice of a segment and ``mask_kji`` sampled back; 0 for an empty segment."""
    if segment.is_empty:
        return 0.0
    if not mask_kji.any():
        return 1.0
    moved = Segment(segment.name, segment.colour_rgb, mask_kji)
    back = _sampled(moved, inverse(mapping), segment.shape_ijk)
    shared = int(np.count_nonzero(segment.view_of(back) & segment.part_kji))
    return 1.0 - 2.0 * shared / (segment.voxel_count + int(np.count_nonzero(back)))


def _nearest_values(segment: Segment, positions_ijk: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (N,) whether the segment has the voxels nearest to (N, 3) positions."""
    # Slightly more than half a voxel: positions midway go the same way whatever their rounding error.
    nearest = np.floor(positions_ijk + 0.5 - 1e-6).astype(np.int64) - segment.offset_ijk
    size = np.array(segment.part_kji.shape[::-1])
    inside = ((nearest >= 0) & (nearest < size)).all(axis=1)
    found = np.zeros(len(nearest), dtype=bool)
    i, j, k = nearest[inside].T
    found[inside] = segment.part_kji[k, j, i]
    return found


def _target_box(
    segment: Segment, mapping: NDArray[np.float64], shape_ijk: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and one past last index (i, j, k) of the other grid that may hold the segment."""
    first = np.array(segment.offset_ijk) - 0.5
    corners = np.array(list(np.ndindex(2, 2, 2))) * segment.part_kji.shape[::-1] + first
    there = transform(inverse(mapping), corners)
    start = np.clip(np.floor(there.min(axis=0)), 0, shape_ijk).astype(np.int64)
    stop = np.clip(np.ceil(there.max(axis=0)) + 1, start, shape_ijk).astype(np.int64)
    return start, stop


def _positions(
    box: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float64]]]:
    """Yield a box in pieces: its slices (k, j, i) and its (N, 3) indices, i fastest."""
    (i0, j0, k0), (i1, j1, k1) = box
    rows = max(1, _ROWS_AT_ONCE // max(1, int(i1 - i0)))
    for k in range(k0, k1):
        for j in range(j0, j1, rows):
            last = min(j + rows, j1)
            jj, ii = np.meshgrid(np.arange(j, last), np.arange(i0, i1), indexing="ij")
            positions = np.column_stack((ii.ravel(), jj.ravel(), np.full(ii.size, k)))
            yield (slice(k, k + 1), slice(j, last), slice(i0, i1)), positions.astype(np.float64)


def _difference(own: Geometry, other: Geometry, is_exact: bool) -> list[Note]:
    """Return notes on what was done, unless only the order of the axes changed."""
    sizes = " x ".join(map(str, own.shape_ijk)), " x ".join(map(str, other.shape_ijk))
    if is_exact and sorted(own.shape_ijk) == sorted(other.shape_ijk):
        return []
    if is_exact:
        message = (
            f"the segmentation's {sizes[0]} voxels were put into their places among the series' {sizes[1]}"
        )
        return [Note.info("placed-on-series-grid", message)]
    spacings = [" x ".join(f"{value:.4g}" for value in grid.spacing) for grid in (own, other)]
    message = (
        f"the segmentation ({sizes[0]} voxels of {spacings[0]} mm) was resampled to the series' voxels "
        f"({sizes[1]} of {spacings[1]} mm)"
    )
    return [Note.warning("resampled", message)]


def _another_grid(own: Geometry, series: Geometry) -> ExportError:
    spacings = [" x ".join(f"{value:.4g}" for value in grid.spacing) for grid in (own, series)]
    sizes = [" x ".join(map(str, grid.shape_ijk)) for grid in (own, series)]
    return ExportError(
        f"the segmentation's voxels ({sizes[0]} of {spacings[0]} mm) are not those of the series "
        f"({sizes[1]} of {spacings[1]} mm), so it may be that of another scan: choose the series it was "
        "drawn on, or allow resampling if it belongs to this one",
        code="another-grid-than-series",
        shape_ijk=list(own.shape_ijk),
        series_shape_ijk=list(series.shape_ijk),
    )


def _loss_message(segment: Segment, lost: float, most_lost: float) -> str:
    if lost == 1.0:
        what = "nothing of it would be left on the series' grid: is it another scan, or smaller than a voxel?"
        return f"{segment.name!r}: {what} .seg.nrrd keeps it as it is"
    return (
        f"{segment.name!r}: {lost:.1%} of it would be lost on the series' grid, more than the "
        f"{most_lost:.1%} allowed: choose the series it was drawn on, allow more, or "
        "write .seg.nrrd"
    )
