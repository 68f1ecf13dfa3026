"""`medsam2 methods`: how a result was made, as a paragraph for a paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Methods:
    """Print how a segmentation was made, as a paragraph for a paper, with the papers to cite.

    Options
    -------
    segmentation: A .seg.nrrd of this program.
    """

    segmentation: Path

    def run(self) -> None:
        """Read the tags, and print the text."""
        from medsam2_core.export.methods import methods_text
        from medsam2_core.imaging.segmentation_files import read_segmentation

        print(methods_text(read_segmentation(self.segmentation)))
