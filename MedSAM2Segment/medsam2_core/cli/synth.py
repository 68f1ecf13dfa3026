"""`medsam2 synth`: synthetic volumes and ultrasound pictures to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from medsam2_core import atomic
from medsam2_core.cli.console import progress_bar
from medsam2_core.cli.options import Out
from medsam2_core.errors import TrainingError


@dataclass(frozen=True)
class Synth:
    """Make training data: volumes NAME_img.nrrd and label maps NAME_seg.nrrd, or ultrasound pictures.

    Options
    -------
    out: Folder to write to; created if missing.
    kind: Volumes of random anatomy, or B-mode pictures of vessels, nerves and more.
    labels FILE: Label map whose anatomy is used instead of random one.
    count: Number of volumes or pictures.
    size: Side of a volume in voxels.
    spacing: Spacing of a volume in mm.
    seed: Equal seeds give equal files.
    """

    out: Out
    kind: Literal["volume", "ultrasound"] = "volume"
    labels: Path | None = None
    count: Annotated[int, typer.Option(min=1, max=100_000)] = 1
    size: Annotated[int, typer.Option(min=32, max=256)] = 96
    spacing: Annotated[float, typer.Option(min=0.01, max=100.0)] = 1.0
    seed: Annotated[int, typer.Option(min=0)] = 1
    overwrite: bool = False

    def run(self) -> None:
        """Make what is wanted and write it."""
        if self.kind == "ultrasound" and self.labels is not None:
            raise TrainingError(
                f"--labels {self.labels}: ultrasound pictures have labels of their own; use --kind volume",
                code="labels-need-volume", path=str(self.labels),
            )  # fmt: skip
        atomic.make_folder(self.out)
        if self.kind == "ultrasound":
            self._make_pictures()
        else:
            self._make_volumes()

    def _check_targets(self, suffix: str) -> list[str]:
        """Return the names of what will be made; raise ExportError for files that may not be written."""
        names = [f"synth_{self.seed}_{number:05d}" for number in range(self.count)]
        with atomic.protect(self.labels):
            for name in names:
                for part in ("img", "seg"):
                    atomic.check_target(self.out / f"{name}_{part}.{suffix}", overwrite=self.overwrite)
        return names

    def _make_volumes(self) -> None:
        import numpy as np

        from medsam2_core.imaging.geometry import Geometry
        from medsam2_core.imaging.segmentation_files import read_segmentation
        from medsam2_core.training.synth import painted_map, random_volume, write_volume

        given = None if self.labels is None else read_segmentation(self.labels)
        names, size = self._check_targets("nrrd"), self.size
        with progress_bar("volumes", self.count) as update:
            for number, name in enumerate(names):
                rng = np.random.default_rng([self.seed, number])  # each volume depends on its own number only
                if given is None:
                    image, truth = random_volume(rng, size)
                    geometry = Geometry.from_lps(np.diag([self.spacing] * 3 + [1.0]), (size, size, size))
                else:
                    truth, geometry = given.labels_kji(), given.geometry
                    image = painted_map(truth, rng)
                write_volume(self.out / f"{name}_img.nrrd", image, geometry, self.overwrite)
                write_volume(self.out / f"{name}_seg.nrrd", truth, geometry, self.overwrite)
                update(number + 1, name)
        shape = " x ".join(map(str, geometry.shape_ijk))
        print(f"{self.out}: {self.count} volumes of {shape} voxels with their labels")

    def _make_pictures(self) -> None:
        import numpy as np

        from medsam2_core.training.synth import write_picture
        from medsam2_core.training.ultrasound import STRUCTURES, ultrasound_image

        names = self._check_targets("png")
        with progress_bar("pictures", self.count) as update:
            for number, name in enumerate(names):
                rng = np.random.default_rng([self.seed, number])
                image, truth = ultrasound_image(rng, (int(rng.integers(120, 257)), 256))
                for part, pixels in (("img", image), ("seg", truth)):
                    write_picture(self.out / f"{name}_{part}.png", pixels, self.overwrite)
                update(number + 1, name)
        numbers = ", ".join(f"{n} {structure}" for n, structure in enumerate(STRUCTURES, start=1))
        print(f"{self.out}: {self.count} pictures with their labels: {numbers}")
