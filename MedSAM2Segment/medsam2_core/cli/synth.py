"""`medsam2 synth`: random anatomy with its labels, as the embedded model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsam2_core.cli.progress import slices_bar

if TYPE_CHECKING:
    import numpy as np


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the volumes; made if missing.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many volumes.")] = 1,
    size: Annotated[int, typer.Option(min=32, max=256, help="Voxels along each axis; even.")] = 96,
    spacing: Annotated[float, typer.Option(min=0.01, max=100.0, help="Voxel size in mm.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal volumes.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Make volumes of random anatomy: NAME_img.nrrd and its label map NAME_seg.nrrd."""
    from medsam2_core.errors import ExportError

    if size % 2:
        raise ExportError(f"--size {size}: must be even")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"--out {out}: the folder cannot be made: {error.strerror}") from error
    names = [f"synth_{seed}_{number:05d}" for number in range(count)]
    _check_free(out, names, overwrite)
    with slices_bar("volumes", count) as update:
        for number, name in enumerate(names):
            image, labels = _one(seed, number, size)
            _write(out / f"{name}_img.nrrd", image, spacing, overwrite)
            _write(out / f"{name}_seg.nrrd", labels, spacing, overwrite)
            update(number + 1, name)
    print(f"{out}: {count} volumes of {size} x {size} x {size} voxels with their labels")


def _one(seed: int, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) uint8 image and labels; each volume depends on its own number only."""
    import numpy as np
    import torch

    from medsam2_core.training.anatomy import random_anatomy
    from medsam2_core.training.appearance import paint

    rng = np.random.default_rng([seed, number])
    labels = random_anatomy(rng, size)
    image = paint(torch.from_numpy(labels), rng)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), labels


def _check_free(out: Path, names: list[str], overwrite: bool) -> None:
    from medsam2_core.export.atomic import check_target

    for name in names:
        for kind in ("img", "seg"):
            check_target(out / f"{name}_{kind}.nrrd", overwrite=overwrite)


def _write(path: Path, voxels_kji: np.ndarray, spacing: float, overwrite: bool) -> None:
    import io

    import nrrd
    import numpy as np

    from medsam2_core.export.atomic import new_file

    content = io.BytesIO()
    header = {
        "space": "left-posterior-superior",
        "space directions": np.eye(3) * spacing,
        "space origin": np.zeros(3),
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    nrrd.write(content, voxels_kji.transpose(), header, index_order="F")
    # Comments hold the time of writing: without them equal volumes are equal files.
    head, blank, voxels = content.getvalue().partition(b"\n\n")
    lines = [line for line in head.split(b"\n") if not line.startswith(b"#")]
    with new_file(path, overwrite=overwrite) as stream:
        stream.write(b"\n".join(lines) + blank + voxels)
