"""What `medsam2 segment` takes from other scans: examples, and an earlier segmentation of the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.cli.console import progress_bar
from medsam2_core.cli.outputs import check_distinct
from medsam2_core.errors import Note, PromptError

if TYPE_CHECKING:
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.session.session import Session


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
                message = f"{option} {value} is of use with --prior only"
                raise PromptError(message, code="needs-prior", option=option)
        if self.table is not None:
            check_distinct(*outputs, ("--changes", self.table))
            atomic.check_target(self.table, overwrite=self.overwrite)

    def find_in(
        self, session: Session, window: str, slices: tuple[int | None, int | None] = (None, None)
    ) -> list[Note]:
        """Look for the objects of all scans, from the first to the last of `slices`; return a note for each
        that was found nowhere."""
        from medsam2_core.export.resampling import on_grid_of
        from medsam2_core.session.earlier import read_examples, read_prior

        first, last = slices
        missing: list[str] = []
        if self.pairs:
            with progress_bar("looking for objects", None) as update:
                examples = read_examples(self.pairs, window)
                show = lambda done, total: update(done, f"of {total}")  # noqa: E731
                missing += session.find_like(examples, first, last, progress=show)
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
        from medsam2_core.export.changes import changes, changes_to_json, write_changes
        from medsam2_core.export.measurements import measure
        from medsam2_core.imaging.segmentation_files import read_segmentation

        found = changes(measure(read_segmentation(self.prior)), measure(segmentation))
        if self.table is not None:
            write_changes(found, self.table, overwrite=self.overwrite)
        return changes_to_json(found)
