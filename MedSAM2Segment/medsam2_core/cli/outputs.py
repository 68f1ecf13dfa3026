"""The files that commands write: masks and what is beside them, tables, plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.errors import ExportError, Note

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session.session import Session

_PLOTS = (".png", ".svg")


@dataclass(frozen=True)
class Outputs:
    """What a command writes: the masks, and on request a montage and the probabilities."""

    out: Path
    picture: Path | None
    probabilities: Path | None
    overwrite: bool

    def check(self, geometry: Geometry | None = None) -> None:
        """Raise ExportError now, not after hours of work, for what could not be written.

        Parameters
        ----------
        geometry
            The grid of the masks; None when it is not known yet.
        """
        from medsam2_core import export
        from medsam2_core.export.probabilities import check

        if self.picture is not None and self.picture.suffix.lower() != ".png":
            message = f"--picture {self.picture}: pictures are written as .png"
            raise ExportError(message, code="picture-not-png", path=str(self.picture))
        check_distinct(
            ("--out", self.out), ("--picture", self.picture), ("--probabilities", self.probabilities)
        )
        if geometry is not None:
            export.check(self.out, geometry, overwrite=self.overwrite)
            return
        export.suffix_of(self.out)
        if self.probabilities is not None:
            check(self.probabilities, overwrite=self.overwrite)
        check_targets(self.out, self.picture, self.probabilities, overwrite=self.overwrite)

    def write(
        self, session: Session, segmentation: Segmentation, prompts: PromptSet | None = None
    ) -> list[Note]:
        """Write the masks, then what was asked for beside them; return what the user should know.

        Raises
        ------
        ExportError
            ``beside-not-written`` when only the probabilities or the picture could not be written: the masks
            are there.
        """
        from medsam2_core import export
        from medsam2_core.export.picture import montage
        from medsam2_core.export.probabilities import write_probabilities

        notes = export.write(segmentation, self.out, overwrite=self.overwrite).notes
        try:
            if self.probabilities is not None:
                write_probabilities(session.probabilities(), self.probabilities, overwrite=self.overwrite)
            if self.picture is not None:
                montage(
                    session.stack, session.window, segmentation, self.picture,
                    prompts=prompts, overwrite=self.overwrite,
                )  # fmt: skip
        except ExportError as error:
            raise ExportError(
                f"{error}; the masks are in {self.out}",
                code="beside-not-written", out=str(self.out), error=error.to_dict(),
            ) from error  # fmt: skip
        return list(notes)

    @property
    def facts(self) -> dict[str, str | None]:
        """Names of the files, for ``--json``."""
        return {
            "out": str(self.out),
            "picture": str(self.picture) if self.picture else None,
            "probabilities": str(self.probabilities) if self.probabilities else None,
        }

    @staticmethod
    def print_extra(facts: dict[str, Any]) -> None:
        """Print the names of the files beside the masks."""
        for key, what in (("picture", "montage"), ("probabilities", "probabilities")):
            if facts[key]:
                print(f"{facts[key]}: {what}")


def check_targets(*paths: Path | None, overwrite: bool) -> None:
    """Raise ExportError for files that could not be written, and for folders that take no file."""
    for path in paths:
        if path is not None:
            atomic.check_target(path, overwrite=overwrite)
    for path in {path.parent: path for path in paths if path is not None}.values():
        atomic.check_writable(path)


def check_plot(path: Path | None) -> None:
    """Raise ExportError ``unknown-format`` for a plot that is neither PNG nor SVG."""
    if path is not None and path.suffix.lower() not in _PLOTS:
        message = f"--plot {path}: plots are written as {' or '.join(_PLOTS)}"
        raise ExportError(message, code="unknown-format", path=str(path), suffixes=list(_PLOTS))


def check_distinct(*outputs: tuple[str, Path | None]) -> None:
    """Raise ExportError ``outputs-collide`` when two of these (option, file) are one file."""
    seen: dict[Path, str] = {}
    for option, path in outputs:
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), option)
        if other != option or list(outputs).count((option, path)) > 1:
            message = f"{option} {path} is also {other}: one would replace the other"
            raise ExportError(message, code="outputs-collide", path=str(path), options=[other, option])
