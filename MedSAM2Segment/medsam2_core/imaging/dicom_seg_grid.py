"""On which slice of which grid the frames of a DICOM SEG lie (PS3.3 C.7.6.16.2.3 and A.51.5).

A SEG may leave slices out, so the distance of its frames is not that of its slices. Files give it
(Spacing Between Slices, along the normal of the slices: PS3.3 C.7.6.16.2.1); where they do not it has to be
assumed, and a note reports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, Note
from medsam2_core.imaging.dicom_frames import Frame, same_orientation, same_spacing, tolerance_mm
from medsam2_core.imaging.geometry import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING_MM = 0.01
_SAME_HEIGHT_MM = 1e-3
_SAME_DIGITS = 1e-3  # part of a spacing that is lost when it is written with few digits
_LARGEST_PART = 0.25  # of a spacing: how far a frame may lie off its slice, however small that is in mm
_THICKNESS = "its slice thickness"


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid, the slice of each frame, and what the user should know of both: one sentence each."""

    geometry: Geometry
    slice_of: tuple[int, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, eq=False)
class _Fit:
    """Frames on evenly spaced slices."""

    numbers: NDArray[np.intp]  # (N,) slice of each frame
    origin_lps: NDArray[np.float64]
    step_lps: NDArray[np.float64]

    @property
    def left_out(self) -> bool:
        """Whether slices between the first and the last have no frame."""
        return len(np.unique(self.numbers)) <= int(self.numbers.max())


def grid_of(path: Path, header: Any, frames: Sequence[Frame]) -> Grid:
    """Find the grid of the frames of a segmentation.

    Parameters
    ----------
    path : for messages
    header : pydicom Dataset of the file, without pixels
    frames : all its frames

    Raises
    ------
    GeometryError
        Frames are turned or spaced differently, lie on no even grid, or have no place in the patient and are
        not all on one image.
    """
    if not any(frame.is_placed for frame in frames):
        return _picture_grid(path, header, frames)
    _check_alike(path, frames)
    first = frames[0]
    positions = np.array([frame.position_lps for frame in frames])
    declared = _shared_distance(header, "SpacingBetweenSlices")
    fit, notes = _fit(path, positions, first.normal_lps, declared, _shared_distance(header, "SliceThickness"))
    last = int(fit.numbers.max())
    step = _without_rounding(fit.step_lps, first.normal_lps, last)
    geometry = first.geometry_with(step, fit.origin_lps, last + 1)
    return Grid(geometry, tuple(fit.numbers.tolist()), notes)


def _without_rounding(
    step: NDArray[np.float64], normal: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Return a step along the normal, where its tilt is no more than the last digit of positions.

    Over few slices that digit would else look like the shear of a tilted gantry, which programs built on ITK
    refuse.
    """
    straight = (step @ normal) * normal
    return straight if np.linalg.norm(step - straight) * count < _ROUNDING_MM else step


def _picture_grid(path: Path, header: Any, frames: Sequence[Frame]) -> Grid:
    """Return the grid of frames without positions, all of one image: that of a picture."""
    images = {_image_of(group) for group in header.get("PerFrameFunctionalGroupsSequence") or [None]}
    if len(frames) > 1 and (len(images) > 1 or None in images):
        message = (
            f"{path}: {len(frames)} frames without a position in the patient, and not all of one image: "
            "where they lie to each other is not known"
        )
        raise GeometryError(message, code="clip-without-positions", path=str(path), frames=len(frames))
    _check_alike(path, frames)
    rows, columns, _ = frames[0].size
    spacing = frames[0].spacing
    return Grid(Geometry.for_picture(rows, columns, (spacing[1], spacing[0])), (0,) * len(frames))


def _image_of(group: Any) -> tuple[str, str] | None:
    """Return instance and frame that a frame was drawn on, where it refers to one."""
    for derivation in (group.get("DerivationImageSequence") if group is not None else None) or []:
        for image in derivation.get("SourceImageSequence") or []:
            if uid := str(image.get("ReferencedSOPInstanceUID") or ""):
                return uid, str(image.get("ReferencedFrameNumber") or 1)
    return None


def _check_alike(path: Path, frames: Sequence[Frame]) -> None:
    """Raise GeometryError naming the first frame that can share no grid with the first of all."""
    first = frames[0]
    for n, frame in enumerate(frames[1:], start=2):
        if frame.is_placed != first.is_placed:
            without = n if first.is_placed else 1
            message = f"{path}: frame {without} is without a position in the patient, others have one"
            raise GeometryError(message, code="frame-without-position", path=str(path), frame=without)
        if not same_spacing(first, frame):
            message = (
                f"{path}: frames of different pixel spacing: {_spacing_text(first.spacing)} in frame 1, "
                f"{_spacing_text(frame.spacing)} in frame {n}. Save them as segmentations of their own"
            )
            raise GeometryError(message, code="frames-differ", path=str(path), frame=n, what="spacing")
        if first.is_placed and not same_orientation(first, frame):
            message = (
                f"{path}: frames of different orientation: {_orientation_text(first)} in frame 1, "
                f"{_orientation_text(frame)} in frame {n}. Save them as segmentations of their own"
            )
            raise GeometryError(message, code="frames-differ", path=str(path), frame=n, what="orientation")


def _fit(
    path: Path,
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    declared: float | None,
    thickness: float | None,
) -> tuple[_Fit, tuple[Note, ...]]:
    """Fit frames to evenly spaced slices, with notes where their distance had to be assumed."""
    heights = np.sort(positions @ normal)
    steps = np.diff(heights)
    steps = steps[steps > _SAME_HEIGHT_MM]
    if steps.size == 0:
        fit = _on_slices(positions, normal, declared or thickness or 1.0, exactly=True)
        unknown = Note.warning(
            "slice-thickness-assumed",
            "the file does not give the thickness of its slice: 1 mm is assumed, and volumes depend on it",
            thickness_mm=1.0,
        )
        if fit is not None:
            return fit, () if declared or thickness else (unknown,)
    for spacing in _declared_distances(declared, positions, normal) if steps.size else ():
        fit = _on_slices(positions, normal, spacing, exactly=True)
        if fit is not None:
            return fit, ()
    for spacing, source in _likely_distances(steps, thickness):
        fit = _on_slices(positions, normal, spacing, exactly=source == _THICKNESS)
        if fit is not None:
            return fit, _notes(fit, normal, declared, source)
    apart = f", steps of {steps.min():.4g} to {steps.max():.4g} mm" if steps.size else ""
    message = (
        f"{path}: frames are not evenly spaced: they lie from {heights[0]:.6g} to {heights[-1]:.6g} mm along "
        f"their normal{apart}, and no spacing between slices fits them"
    )
    fields = {"path": str(path), "heights_mm": [round(float(height), 3) for height in heights]}
    raise GeometryError(message, code="slices-uneven", **fields)


def _declared_distances(
    declared: float | None, positions: NDArray[np.float64], normal: NDArray[np.float64]
) -> Iterator[float]:
    """Yield the declared distance; with a tilted gantry also as one along the table, not the normal."""
    if declared is None:
        return
    yield declared
    heights = positions @ normal
    across = positions[heights.argmax()] - positions[heights.argmin()]
    upright = float(across @ normal / np.linalg.norm(across))
    if upright < 0.999:
        yield declared * upright


def _likely_distances(steps: NDArray[np.float64], thickness: float | None) -> Iterator[tuple[float, str]]:
    """Yield distances of slices that frames suggest, most likely first, and the basis of each."""
    if steps.size == 0:
        return
    usual = float(np.median(steps))
    if thickness is not None and thickness < 0.75 * usual:
        # Further apart than they are thick: an object is rarely in every second slice only, so these were
        # left out. Where they were not, frames still lie on their images.
        yield thickness, _THICKNESS
    yield usual, "the usual distance of its frames"
    yield float(steps.min()), "the smallest distance of its frames"


def _notes(fit: _Fit, normal: NDArray[np.float64], declared: float | None, source: str) -> tuple[Note, ...]:
    spacing = float(fit.step_lps @ normal)
    if declared is not None:
        message = f"the file gives a spacing of {declared:.4g} mm, but its frames fit {spacing:.4g} mm only"
        return (Note.warning("spacing-contradicted", message, declared_mm=declared, spacing_mm=spacing),)
    if not fit.left_out:
        return ()
    message = (
        f"slices are left out, and the file does not give their spacing: {spacing:.4g} mm is "
        f"assumed, {source}; volumes depend on it"
    )
    return (Note.warning("slice-spacing-assumed", message, spacing_mm=spacing, basis=source),)


def _on_slices(
    positions: NDArray[np.float64], normal: NDArray[np.float64], spacing: float, *, exactly: bool
) -> _Fit | None:
    """Fit frames to evenly spaced slices about ``spacing`` mm apart; None when they do not fit.

    With ``exactly`` the spacing may differ by its rounding only; a few frames of a slightly uneven series
    would give a wrong one. Else it is what the frames make it.
    """
    heights = positions @ normal
    order = np.argsort(heights)
    apart = np.diff(heights[order])
    # From frame to frame, so that a rounded spacing does not add up over many slices.
    counts = np.rint(apart / spacing).astype(np.intp)
    if ((counts == 0) & (apart > _SAME_HEIGHT_MM)).any():
        return None
    numbers = np.zeros(len(positions), dtype=np.intp)
    numbers[order[1:]] = np.cumsum(counts)
    last = int(numbers.max())
    lowest, highest = positions[order[0]], positions[order[-1]]
    if last == 0:
        return _centred(positions, numbers, lowest, normal * spacing)
    refined = (highest - lowest) / last
    height = float(refined @ normal)
    if not exactly or abs(height / spacing - 1) < _SAME_DIGITS:
        fit = _centred(positions, numbers, lowest, refined)
        if fit is not None or not exactly:
            return fit
    # Shifted from slice to slice as the frames are: so a tilted gantry leaves them.
    return _centred(positions, numbers, lowest, refined + normal * (spacing - height))


def _centred(
    positions: NDArray[np.float64],
    numbers: NDArray[np.intp],
    lowest: NDArray[np.float64],
    step: NDArray[np.float64],
) -> _Fit | None:
    """Centre slices among the frames; None when a frame is too far from its slice.

    A series that is read as a volume has its slices within that distance of even ones, and so have any of
    them in their middle; the first of them alone would not do as the place of all.
    """
    off = positions - (lowest + numbers[:, np.newaxis] * step)
    middle = (off.max(axis=0) + off.min(axis=0)) / 2
    if np.abs(middle).max() < _SAME_HEIGHT_MM:
        middle = np.zeros(3)  # rounding: the file's own digits are better
    wrong = float(np.linalg.norm(off - middle, axis=1).max())
    spacing = float(np.linalg.norm(step))
    if wrong > min(tolerance_mm(spacing), _LARGEST_PART * spacing):
        return None
    return _Fit(numbers, lowest + middle, step)


def _shared_distance(header: Any, keyword: str) -> float | None:
    """Return a distance in mm that the header has for all frames: once, or equal for each."""
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        found = [
            abs(float(measures.get(keyword) or 0))
            for group in header.get(sequence) or []
            for measures in group.get("PixelMeasuresSequence") or []
        ]
        if (
            found
            and np.isfinite(found).all()
            and min(found) > _SAME_HEIGHT_MM
            and np.ptp(found) < 1e-3 * found[0]
        ):
            return found[0]
    return None


def _spacing_text(spacing: tuple[float, float]) -> str:
    return f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"


def _orientation_text(frame: Frame) -> str:
    assert frame.orientation_lps is not None
    return "(" + ", ".join(f"{value:.3g}" for value in frame.orientation_lps) + ")"
