"""`medsam2 methods`: how a result was made, as a paragraph for a paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medsam2_core.errors import ExportError


@dataclass(frozen=True)
class Methods:
    """Print how a segmentation was made, as a paragraph for a paper, with the papers to cite.

    Options
    -------
    result: A .seg.nrrd of this program, or the folder of `medsam2 set`.
    """

    result: Path

    def run(self) -> None:
        """Read the tags, and print the text."""
        from medsam2_core.export.methods import methods_of, methods_text
        from medsam2_core.imaging.segmentation_files import is_segmentation, read_segmentation
        from medsam2_core.prompts import PromptSet

        path, settings = self.result, self.result / "settings.json"
        if settings.is_file():
            try:
                known = json.loads(settings.read_text(encoding="utf-8"))
                names = PromptSet.from_json(known["prompts"]).names
            except (ValueError, KeyError, TypeError) as error:
                message = f"{settings} is damaged, or not of `medsam2 set`: run `medsam2 set` again"
                raise ExportError(message, code="no-provenance", path=str(settings)) from error
            print(methods_of(known, names))
        elif path.is_dir() or (path.exists() and not is_segmentation(path)):
            message = f"{path} is no .seg.nrrd of this program, nor a folder of `medsam2 set`"
            raise ExportError(message, code="no-provenance", path=str(path))
        else:
            print(methods_text(read_segmentation(path)))
