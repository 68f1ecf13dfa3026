"""The main job on one real volume, from one box: `make demo`, and an example of the API to start from.

The sample is the average T1 MR of 152 people (see LICENSE-MNI152.txt). One box is drawn around the brain on
one axial slice; the model answers there, then follows the brain through all slices. The result is compared
with the brain's mask, which the model has not seen.
"""

import argparse
import sys
import time
from pathlib import Path

from medsam2_core import export
from medsam2_core.cli.console import peak_memory_mb, progress_bar
from medsam2_core.errors import MedSAM2Error
from medsam2_core.evaluation.metrics import dice
from medsam2_core.export.picture import montage
from medsam2_core.imaging.reading import read_segmentation
from medsam2_core.prompts import Box
from medsam2_core.session import Session

HERE = Path(__file__).resolve().parent
# Array indices of two opposite corners, on slice k = 24, as a user would drag them: a little too wide.
BRAIN = Box((10, 11, 24), (158, 194, 24))


def main() -> int:
    """Run the demonstration; 0 when it could be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the results")
    parser.add_argument("--model", default="embedded", help="a name of the catalogue, or a checkpoint file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    session = Session.open(HERE / "mni152_t1.nrrd", options.model)
    started = time.perf_counter()
    first = session.prompt("brain", BRAIN)
    answered = time.perf_counter()
    print(f"slice {first.n}: mask {answered - started:.2f} s after the box")

    slices = 0
    progress = session.propagate()
    with progress_bar("following the brain", progress.total) as update:
        for result in progress:
            slices += 1
            update(progress.done, f"slice {result.n}")
    seconds = time.perf_counter() - answered
    each = seconds / max(slices, 1)
    print(f"{slices} slices in {seconds:.1f} s: {each:.2f} s a slice ({session.model.device})")

    segmentation = session.segmentation()
    mask = export.write(segmentation, options.out / "segmentation.seg.nrrd", overwrite=True).path
    picture = montage(
        *(session.stack, session.window, segmentation, options.out / "montage.png"),
        prompts=session.prompts,
        overwrite=True,
    )
    print(f"mask (open it in 3D Slicer): {mask}\npicture: {picture}")
    if memory := peak_memory_mb():
        print(f"peak memory: {memory:.0f} MB")
    truth_kji = read_segmentation(HERE / "mni152_brain.nrrd")["1"].mask_kji
    print(f"Dice {dice(session.mask_kji('brain'), truth_kji):.2f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MedSAM2Error as error:
        sys.exit(f"demo: {error}")
