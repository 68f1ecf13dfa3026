"""What `medsam2 segment` takes from other scans: examples, and an earlier segmentation of the patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam2_core import atomic
from medsam2_core.cli.console import progress_bar
from medsam2_core.cli.outputs import check_distinct
from medsam2_core.errors import ExportError, GeometryError, Note, PromptError, VolumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.session import Session
    from medsam2_core.session.examples import Example

# An image taken for a segmentation has one object for each grey value.
_MOST_OBJECTS = 100


@dataclass(frozen=True)
class OtherScans:
    """The scans a command line names beside the one to be segmented.

    Attributes
    ----------
    pairs
        Scans with their segmentations, as examples.
    prior, transform
        An earlier segmentation of the patient, and where it lies in the new scan.
    table
        Where to write what has changed since.
    """

    pairs: tuple[tuple[Path, Path], ...]
    prior: Path | None
    transform: Path | None
    table: Path | None
    overwrite: bool

    @property
    def paths(self) -> list[Path | None]:
        """All that is read."""
        return [path for pair in self.pairs for path in pair] + [self.prior, self.transform]

    def check(self, *outputs: tuple[str, Path | None]) -> None:
        """Refuse options that need --prior, and a table that could not be written beside the outputs."""
        for option, value in (("--transform", self.transform), ("--changes", self.table)):
            if value is not None and self.prior is None:
                raise PromptError(
                    f"{option} {value} is of use with --prior only", code="needs-prior", option=option
                )
        if self.table is not None:
            check_distinct(*outputs, ("--changes", self.table))
            atomic.check_target(self.table, overwrite=self.overwrite)

    def find_in(
        self, session: Session, window: str, slices: tuple[int | None, int | None] = (None, None)
    ) -> list[Note]:
        """Look for the objects of all scans, from the first to the last of `slices`; return a note for each
        that was found nowhere."""
        first, last = slices
        missing: list[str] = []
        if self.pairs:
            with progress_bar("looking for objects", None) as update:
                missing += session.find_like(
                    read_examples(self.pairs, window),
                    first,
                    last,
                    progress=lambda done, total: update(done, f"of {total}"),
                )
        if self.prior is not None:
            prior = read_prior(self.prior, self.transform)
            reached = on_grid_of(prior, session.volume.geometry)
            missing += session.find_prior(reached, first, last)
            missing += [one.name for one in prior if not one.is_empty and one.name not in reached.names]
        return [
            Note.warning("object-not-found", f"{name!r} was not found in this scan", object=name)
            for name in missing
        ]

    def changes(self, segmentation: Segmentation) -> list[dict[str, Any]] | None:
        """Return what became of the objects of the earlier scan, and write it where that is wanted."""
        if self.prior is None:
            return None
        from medsam2_core.export.changes import changes, write_changes
        from medsam2_core.export.measurements import measure
        from medsam2_core.imaging.segmentation_files import read_segmentation

        found = changes(measure(read_segmentation(self.prior)), measure(segmentation))
        if self.table is not None:
            write_changes(found, self.table, overwrite=self.overwrite)
        return [
            {
                "object": one.name,
                "state": one.state,
                "then": dict(one.then),
                "now": dict(one.now),
                "change_percent": {quantity: one.percent(quantity) for quantity in one.then},
            }
            for one in found
        ]


def read_examples(pairs: Sequence[tuple[Path, Path]], window: str) -> list[Example]:
    """Read scans with their segmentations."""
    from medsam2_core.imaging.intensity import parse_window
    from medsam2_core.imaging.reading import read_volume
    from medsam2_core.imaging.segmentation_files import read_segmentation
    from medsam2_core.session.examples import Example

    examples = []
    for scan, segmentation in pairs:
        volume = read_volume(scan)
        segments = _checked(segmentation, read_segmentation(segmentation))
        examples.append(Example(volume, segments, parse_window(window, volume)))
    return examples


def _checked(path: Path, segmentation: Segmentation) -> Segmentation:
    """Return a segmentation, or raise for what is rather a scan."""
    if len(segmentation) > _MOST_OBJECTS:
        raise VolumeError(
            f"{path} has {len(segmentation)} different labels: it looks like a scan, not like a segmentation",
            code="not-a-segmentation", path=str(path), labels=len(segmentation), most=_MOST_OBJECTS,
        )  # fmt: skip
    return segmentation


def read_prior(path: Path, transform: Path | None) -> Segmentation:
    """Read an earlier segmentation, moved to where it is in the new scan."""
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.imaging.segmentation_files import read_segmentation

    prior = _checked(path, read_segmentation(path))
    if transform is None:
        return prior
    moved = Geometry(read_transform(transform) @ prior.geometry.ijk_to_ras, prior.geometry.shape_ijk)
    return Segmentation(moved, prior.segments, prior.provenance)


def on_grid_of(prior: Segmentation, geometry: Geometry) -> Segmentation:
    """Return the segments that reach into a grid, on that grid."""
    from medsam2_core.export.resampling import onto_grid
    from medsam2_core.imaging.segmentation import Segmentation

    kept: list[Any] = []
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


def read_transform(path: Path) -> NDArray[np.float64]:
    """Read a linear transform: where a point of the earlier scan is in the new one, (4, 4) in RAS mm.

    Sixteen numbers as text, row by row; or an ITK text file (``.tfm``, ``.txt``) as 3D Slicer saves the
    transform under which the earlier scan was put: that one holds the inverse, in LPS.

    Raises
    ------
    GeometryError
        ``transform-unreadable``.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "Parameters:" in text:
            return _itk_matrix(text)
        matrix = np.array([float(word) for word in text.replace(",", " ").split()]).reshape(4, 4)
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise ValueError("the last row is not 0 0 0 1")
        np.linalg.inv(matrix)
        return matrix
    except (OSError, ValueError, np.linalg.LinAlgError) as error:
        raise GeometryError(
            f"{path} is no linear transform: {error}; give 4 x 4 numbers, or an affine ITK .tfm",
            code="transform-unreadable", path=str(path),
        ) from error  # fmt: skip


def _itk_matrix(text: str) -> NDArray[np.float64]:
    def numbers(name: str, count: int) -> NDArray[np.float64]:
        line = re.search(rf"^{name}:(.*)$", text, re.MULTILINE)
        values = np.array((line.group(1) if line else "").split(), dtype=float)
        if len(values) != count:
            raise ValueError(f"{name} are {len(values)} numbers, not {count}")
        return values

    parameters, centre = numbers("Parameters", 12), numbers("FixedParameters", 3)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + centre - matrix[:3, :3] @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    inverse: NDArray[np.float64] = np.asarray(np.linalg.inv(flip @ matrix @ flip), dtype=np.float64)
    return inverse
