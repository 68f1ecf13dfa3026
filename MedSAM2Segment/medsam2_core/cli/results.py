"""The files that `medsam2 segment` and `medsam2 auto` write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.errors import ExportError

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.segmentation import Segmentation
    from medsam2_core.prompts import PromptSet
    from medsam2_core.session import Session


@dataclass(frozen=True)
class Files:
    """What a command writes: the masks, and on request a montage and the probabilities."""

    out: Path
    picture: Path | None
    probabilities: Path | None
    overwrite: bool

    def check(self, geometry: Geometry) -> None:
        """Refuse what could not be written before hours of work, not after them."""
        from medsam2_core import export
        from medsam2_core.export.probabilities import check

        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise ExportError(f"--picture {self.picture}: pictures are written as .png")
        beside = {"--picture": self.picture, "--probabilities": self.probabilities}
        for option, path in beside.items():
            if path is not None and path.resolve() == self.out.resolve():
                raise ExportError(
                    f"{option} {path} is also --out: the one would replace the other",
                    code="outputs-collide", option=option, path=str(path),
                )  # fmt: skip
            if path is not None and not path.parent.is_dir():
                raise ExportError(
                    f"{option} {path}: the folder {path.parent} does not exist",
                    code="output-folder-missing", option=option, path=str(path), folder=str(path.parent),
                )  # fmt: skip
            if path is not None:
                atomic.check_target(path, overwrite=self.overwrite)
        export.check(self.out, geometry, overwrite=self.overwrite)
        if self.probabilities is not None:
            check(self.probabilities, overwrite=self.overwrite)

    def write(
        self, session: Session, segmentation: Segmentation, prompts: PromptSet | None = None
    ) -> list[str]:
        """Write all of them, or none; what the user should know about it."""
        with atomic.together():
            return self._write(session, segmentation, prompts)

    def _write(self, session: Session, segmentation: Segmentation, prompts: PromptSet | None) -> list[str]:
        from medsam2_core import export

        notes = export.write(segmentation, self.out, overwrite=self.overwrite).notes
        if self.probabilities is not None:
            from medsam2_core.export.probabilities import write_probabilities

            write_probabilities(session.probabilities(), self.probabilities, overwrite=self.overwrite)
        if self.picture is not None:
            from medsam2_core.export.picture import montage

            shown = (session.stack, session.window, segmentation, self.picture)
            montage(*shown, prompts=prompts, overwrite=self.overwrite)
        return list(map(str, notes))

    @property
    def facts(self) -> dict[str, str | None]:
        """Their names, for ``--json``."""
        return {
            "out": str(self.out),
            "picture": str(self.picture) if self.picture else None,
            "probabilities": str(self.probabilities) if self.probabilities else None,
        }

    @staticmethod
    def tell(facts: dict[str, Any]) -> None:
        """Tell people about the files beside the masks."""
        for key, what in (("picture", "montage"), ("probabilities", "probabilities")):
            if facts[key]:
                print(f"{facts[key]}: {what}")
