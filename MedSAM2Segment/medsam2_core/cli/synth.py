"""`medsam2 synth`: random or given anatomy in a made-up scan, and made-up ultrasound, to train on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsam2_core.cli.progress import slices_bar

if TYPE_CHECKING:
    import numpy as np

    from medsam2_core.imaging.geometry import Geometry


class Kind(StrEnum):
    """What can be made."""

    VOLUME = "volume"
    ULTRASOUND = "ultrasound"


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is made; made if missing.")],
    kind: Annotated[
        Kind, typer.Option(help="Volumes of any anatomy, or B-mode pictures of vessels, nerves and more.")
    ] = Kind.VOLUME,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Anatomy from this label map instead of random one.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many volumes or pictures.")] = 1,
    size: Annotated[int, typer.Option(min=32, max=256, help="Voxels a side of a volume.")] = 96,
    spacing: Annotated[float, typer.Option(min=0.01, max=100.0, help="A volume's voxel size in mm.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal volumes.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Make volumes of random anatomy, NAME_img.nrrd and its label map NAME_seg.nrrd; or ultrasound, PNGs."""
    import numpy as np

    from medsam2_core.atomic import protect
    from medsam2_core.errors import ExportError, TrainingError
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.imaging.labels import read_labels
    from medsam2_core.training.synth import painted_map, random_volume

    if kind is Kind.ULTRASOUND and labels is not None:
        raise TrainingError(f"--labels {labels}: made-up ultrasound has labels of its own; use --kind volume")
    given = None if labels is None else read_labels(labels)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"--out {out}: the folder cannot be made: {error.strerror}") from error
    names = [f"synth_{seed}_{number:05d}" for number in range(count)]
    if kind is Kind.ULTRASOUND:
        _pictures(out, names, seed, overwrite)
        return
    with protect(labels):
        _check_free(out, names, "nrrd", overwrite)
    with slices_bar("volumes", count) as update:
        for number, name in enumerate(names):
            rng = np.random.default_rng([seed, number])  # each volume depends on its own number only
            if given is None:
                image, truth = random_volume(rng, size)
                geometry = Geometry.from_lps(np.diag([spacing] * 3 + [1.0]), (size, size, size))
            else:
                image, truth, geometry = painted_map(given, rng), given.voxels_kji, given.geometry
            _write(out / f"{name}_img.nrrd", image, geometry, overwrite)
            _write(out / f"{name}_seg.nrrd", truth, geometry, overwrite)
            update(number + 1, name)
    print(f"{out}: {count} volumes of {' x '.join(map(str, geometry.shape_ijk))} voxels with their labels")


def _pictures(out: Path, names: list[str], seed: int, overwrite: bool) -> None:
    """Write pictures of different heights, 256 pixels wide."""
    import numpy as np

    from medsam2_core.training.ultrasound import STRUCTURES, ultrasound_image

    _check_free(out, names, "png", overwrite)
    with slices_bar("pictures", len(names)) as update:
        for number, name in enumerate(names):
            rng = np.random.default_rng([seed, number])
            image, truth = ultrasound_image(rng, (int(rng.integers(120, 257)), 256))
            for part, pixels in (("img", image), ("seg", truth)):
                _write_picture(out / f"{name}_{part}.png", pixels, overwrite)
            update(number + 1, name)
    numbers = ", ".join(f"{n} {structure}" for n, structure in enumerate(STRUCTURES, start=1))
    print(f"{out}: {len(names)} pictures with their labels: {numbers}")


def _write_picture(path: Path, pixels: np.ndarray, overwrite: bool) -> None:
    from PIL import Image

    from medsam2_core.atomic import new_file

    with new_file(path, overwrite=overwrite) as stream:
        Image.fromarray(pixels).save(stream, format="png")


def _check_free(out: Path, names: list[str], suffix: str, overwrite: bool) -> None:
    from medsam2_core.atomic import check_target

    for name in names:
        for kind in ("img", "seg"):
            check_target(out / f"{name}_{kind}.{suffix}", overwrite=overwrite)


def _write(path: Path, voxels_kji: np.ndarray, geometry: Geometry, overwrite: bool) -> None:
    import io

    import nrrd

    from medsam2_core.atomic import new_file

    content = io.BytesIO()
    matrix = geometry.ijk_to_lps
    header = {
        "space": "left-posterior-superior",
        "space directions": matrix[:3, :3].T,
        "space origin": matrix[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    nrrd.write(content, voxels_kji.transpose(), header, index_order="F")
    # Comments hold the time of writing: without them equal volumes are equal files.
    head, blank, voxels = content.getvalue().partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"#")]
    with new_file(path, overwrite=overwrite) as stream:
        stream.write(b"\n".join(lines) + blank + voxels)
