"""The files that `medsam2 segment` and `medsam2 auto` write."""

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
    from medsam2_core.session import Session


@dataclass(frozen=True)
class Outputs:
    """What a command writes: the masks, and on request a montage and the probabilities."""

    out: Path
    picture: Path | None
    probabilities: Path | None
    overwrite: bool

    def check(self, geometry: Geometry) -> None:
        """Raise ExportError now, not after hours of work, for what could not be written."""
        from medsam2_core import export
        from medsam2_core.export.probabilities import check

        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise ExportError(
                f"--picture {self.picture}: pictures are written as .png",
                code="picture-not-png", path=str(self.picture),
            )  # fmt: skip
        check_distinct(
            ("--out", self.out), ("--picture", self.picture), ("--probabilities", self.probabilities)
        )
        export.check(self.out, geometry, overwrite=self.overwrite)
        if self.picture is not None:
            atomic.check_target(self.picture, overwrite=self.overwrite)
        if self.probabilities is not None:
            check(self.probabilities, overwrite=self.overwrite)

    def write(
        self, session: Session, segmentation: Segmentation, prompts: PromptSet | None = None
    ) -> list[Note]:
        """Write all files, or none; return what the user should know about them."""
        from medsam2_core import export

        with atomic.together():
            notes = export.write(segmentation, self.out, overwrite=self.overwrite).notes
            if self.probabilities is not None:
                from medsam2_core.export.probabilities import write_probabilities

                write_probabilities(session.probabilities(), self.probabilities, overwrite=self.overwrite)
            if self.picture is not None:
                from medsam2_core.export.picture import montage

                montage(
                    session.stack, session.window, segmentation, self.picture,
                    prompts=prompts, overwrite=self.overwrite,
                )  # fmt: skip
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


def check_distinct(*outputs: tuple[str, Path | None]) -> None:
    """Raise ExportError ``outputs-collide`` when two of these (option, file) are one file."""
    seen: dict[Path, str] = {}
    for option, path in outputs:
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), option)
        if other != option or list(outputs).count((option, path)) > 1:
            raise ExportError(
                f"{option} {path} is also {other}: one would replace the other",
                code="outputs-collide", path=str(path), options=[other, option],
            )  # fmt: skip
