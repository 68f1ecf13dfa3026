"""On which slice of which grid the frames of a DICOM SEG lie (PS3.3 C.7.6.16.2.3 and A.51.5).

A SEG may leave slices out, so the distance of its frames is not that of its slices. Files say it
(Spacing Between Slices, along the normal of the slices: PS3.3 C.7.6.16.2.1); where they do not it has to be
guessed, and the user is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core.errors import GeometryError, Note
from medsam2_core.imaging.dicom_frames import Frame, most_off, same_orientation, same_spacing
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
    """Where frames of a segmentation lie.

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
        return _on_picture(path, header, frames)
    _check_alike(path, frames)
    first = frames[0]
    positions = np.array([frame.position_lps for frame in frames])
    declared = _told(header, "SpacingBetweenSlices")
    fit, notes = _fit(path, positions, first.normal_lps, declared, _told(header, "SliceThickness"))
    assert first.orientation_lps is not None
    matrix = np.eye(4)
    matrix[:3, 0] = first.orientation_lps[:3] * first.spacing[1]
    matrix[:3, 1] = first.orientation_lps[3:] * first.spacing[0]
    matrix[:3, 2] = _upright(fit.step_lps, first.normal_lps, int(fit.numbers.max()))
    matrix[:3, 3] = fit.origin_lps
    rows, columns, _ = first.size
    shape = (columns, rows, int(fit.numbers.max()) + 1)
    return Grid(Geometry.from_lps(matrix, shape), tuple(fit.numbers.tolist()), notes)


def _upright(step: NDArray[np.float64], normal: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """A step along the normal, where what leads aside is no more than the last digit of positions.

    Over few slices that digit would else look like the shear of a tilted gantry, which programs built on ITK
    refuse.
    """
    straight = (step @ normal) * normal
    return straight if np.linalg.norm(step - straight) * count < _ROUNDING_MM else step


def _on_picture(path: Path, header: Any, frames: Sequence[Frame]) -> Grid:
    """Frames without a place, all of one image: as a picture is read, so that both are the same grid."""
    images = {_image_of(group) for group in header.get("PerFrameFunctionalGroupsSequence") or [None]}
    if len(frames) > 1 and (len(images) > 1 or None in images):
        raise GeometryError(
            f"{path}: {len(frames)} frames without a position in the patient, and not all of one image: "
            "where they lie to each other is not known"
        )
    _check_alike(path, frames)
    rows, columns, _ = frames[0].size
    spacing = frames[0].spacing
    return Grid(Geometry.for_picture(rows, columns, (spacing[1], spacing[0])), (0,) * len(frames))


def _image_of(group: Any) -> tuple[str, str] | None:
    """Instance and frame that a frame was drawn on, where it says so."""
    for derivation in (group.get("DerivationImageSequence") if group is not None else None) or []:
        for image in derivation.get("SourceImageSequence") or []:
            if uid := str(image.get("ReferencedSOPInstanceUID") or ""):
                return uid, str(image.get("ReferencedFrameNumber") or 1)
    return None


def _check_alike(path: Path, frames: Sequence[Frame]) -> None:
    """GeometryError naming the first frame that no grid can share with the first of all."""
    first = frames[0]
    for n, frame in enumerate(frames[1:], start=2):
        if frame.is_placed != first.is_placed:
            without = n if first.is_placed else 1
            raise GeometryError(
                f"{path}: frame {without} is without a position in the patient, others have one"
            )
        if not same_spacing(first, frame):
            raise GeometryError(
                f"{path}: frames of different pixel spacing: {_mm(first.spacing)} in frame 1, "
                f"{_mm(frame.spacing)} in frame {n}. Save them as segmentations of their own"
            )
        if first.is_placed and not same_orientation(first, frame):
            raise GeometryError(
                f"{path}: frames of different orientation: {_cosines(first)} in frame 1, {_cosines(frame)} "
                f"in frame {n}. Save them as segmentations of their own"
            )


def _fit(
    path: Path,
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    declared: float | None,
    thickness: float | None,
) -> tuple[_Fit, tuple[Note, ...]]:
    """Slices the frames fit on, and notes where their distance had to be guessed."""
    heights = np.sort(positions @ normal)
    steps = np.diff(heights)
    steps = steps[steps > _SAME_HEIGHT_MM]
    if steps.size == 0:
        fit = _on_slices(positions, normal, declared or thickness or 1.0, exactly=True)
        unknown = Note.warning(
            "slice-thickness-assumed",
            "the file does not tell how thick its slice is: 1 mm is assumed, volumes depend on it",
            thickness_mm=1.0,
        )
        if fit is not None:
            return fit, () if declared or thickness else (unknown,)
    for spacing in _along(declared, positions, normal) if steps.size else ():
        fit = _on_slices(positions, normal, spacing, exactly=True)
        if fit is not None:
            return fit, ()
    for spacing, source in _guesses(steps, thickness):
        fit = _on_slices(positions, normal, spacing, exactly=source == _THICKNESS)
        if fit is not None:
            return fit, _notes(fit, normal, declared, source)
    apart = f", steps of {steps.min():.4g} to {steps.max():.4g} mm" if steps.size else ""
    raise GeometryError(
        f"{path}: frames are not evenly spaced: they lie from {heights[0]:.6g} to {heights[-1]:.6g} mm along "
        f"their normal{apart}, and no spacing between slices fits them"
    )


def _along(
    declared: float | None, positions: NDArray[np.float64], normal: NDArray[np.float64]
) -> Iterator[float]:
    """The declared distance; with a tilted gantry some measure it along the table, not along the normal."""
    if declared is None:
        return
    yield declared
    heights = positions @ normal
    across = positions[heights.argmax()] - positions[heights.argmin()]
    upright = float(across @ normal / np.linalg.norm(across))
    if upright < 0.999:
        yield declared * upright


def _guesses(steps: NDArray[np.float64], thickness: float | None) -> Iterator[tuple[float, str]]:
    """Distances of slices that frames may tell, most likely first, and where each is from."""
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
    spacing_mm = float(fit.step_lps @ normal)
    if declared is not None:
        return (
            Note.warning(
                "spacing-contradicted",
                f"the file says that slices are {declared:.4g} mm apart, but its frames fit "
                f"{spacing_mm:.4g} mm only",
                declared_mm=declared,
                spacing_mm=spacing_mm,
            ),
        )
    if not fit.left_out:
        return ()
    return (
        Note.warning(
            "slice-spacing-assumed",
            f"slices are left out, and the file does not tell how far they are apart: {spacing_mm:.4g} mm is "
            f"assumed, {source}; volumes depend on it",
            spacing_mm=spacing_mm,
            basis=source,
        ),
    )


def _on_slices(
    positions: NDArray[np.float64], normal: NDArray[np.float64], spacing: float, *, exactly: bool
) -> _Fit | None:
    """Evenly spaced slices about ``spacing`` mm apart that all frames lie on; None when they do not.

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
        return _within(positions, numbers, lowest, normal * spacing)
    refined = (highest - lowest) / last
    height = float(refined @ normal)
    if not exactly or abs(height / spacing - 1) < _SAME_DIGITS:
        fit = _within(positions, numbers, lowest, refined)
        if fit is not None or not exactly:
            return fit
    # Shifted from slice to slice as the frames are: so a tilted gantry leaves them.
    return _within(positions, numbers, lowest, refined + normal * (spacing - height))


def _within(
    positions: NDArray[np.float64],
    numbers: NDArray[np.intp],
    lowest: NDArray[np.float64],
    step: NDArray[np.float64],
) -> _Fit | None:
    """These slices, moved to the middle of the frames, when every frame is as near to its own as it must be.

    A series that is read as a volume has its slices within that distance of even ones, and so have any of
    them in their middle; the first of them alone would not do as the place of all.
    """
    off = positions - (lowest + numbers[:, np.newaxis] * step)
    middle = (off.max(axis=0) + off.min(axis=0)) / 2
    if np.abs(middle).max() < _SAME_HEIGHT_MM:
        middle = np.zeros(3)  # rounding: the file's own digits are better
    wrong = float(np.linalg.norm(off - middle, axis=1).max())
    spacing = float(np.linalg.norm(step))
    if wrong > min(most_off(spacing), _LARGEST_PART * spacing):
        return None
    return _Fit(numbers, lowest + middle, step)


def _told(header: Any, keyword: str) -> float | None:
    """A distance in mm that the file tells for all frames: once, or alike for each."""
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


def _mm(spacing: tuple[float, float]) -> str:
    return f"{spacing[0]:.4g} x {spacing[1]:.4g} mm"


def _cosines(frame: Frame) -> str:
    assert frame.orientation_lps is not None
    return "(" + ", ".join(f"{value:.3g}" for value in frame.orientation_lps) + ")"
