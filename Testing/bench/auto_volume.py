"""Auto on volumes: 3-D memory against slice by slice, each volume with a model trained on the others.

    python Testing/bench/auto_volume.py DATA --classes 1=anterior,2=posterior --minutes 10

Prints one JSON line a volume and method, and the means.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from medsam2_core.auto.fewshot.data import ClassTable, find_pairs, parse_classes
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.settings import FewShotSettings
from medsam2_core.auto.fewshot.start import packaged_start, read_start
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.auto.fewshot.trainer import FewShotTrainer
from medsam2_core.auto.volumes import VolumeOptions
from medsam2_core.engine.model import load_model
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.session import Session

METHODS = {
    "slices": VolumeOptions("slices"),
    "memory": VolumeOptions("memory"),
    "memory, every 3rd": VolumeOptions("memory", every=3),
}


def main() -> None:
    """Leave each volume out once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--classes")
    parser.add_argument("--axis", default="axial")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", default="auto")
    parser.add_argument("--texture", action="store_true")
    parser.add_argument("--only", type=int, help="leave out this volume alone, counted from 0")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("embedded", "cpu", "fp32")
    start = packaged_start(model)
    if options.start not in ("auto", "none"):
        start = read_start(Path(options.start), model)
    pairs, rows = find_pairs(options.data), {name: [] for name in METHODS}
    for aside in pairs if options.only is None else [pairs[options.only]]:
        others = [pair for pair in pairs if pair is not aside]
        found = survey(others, ReadingOptions(model.image_size, options.axis), parse_classes(options.classes))
        settings = FewShotSettings(
            "volume", options.minutes, options.steps, 0, axis=options.axis, texture=options.texture
        )
        with tempfile.TemporaryDirectory() as work:
            auto = FewShotTrainer(settings, found, model, work, start).run().auto
        volume, labels = read_volume(aside.image), read_segmentation(aside.labels)
        labels = labels.on_grid(volume.geometry)
        table = ClassTable(parse_classes(options.classes))
        table.add_labels(labels.labels)
        for name, how in METHODS.items():
            session = Session.open(volume, model, axis=options.axis, window=auto.card.window)
            began = time.perf_counter()
            session.auto(auto, options=how)
            seconds = time.perf_counter() - began
            dice = []
            numbers = table.numbers(labels.labels)
            for label, segment in zip(labels.labels, labels, strict=True):
                if (number := numbers.get((label.layer, label.value))) is None:
                    continue
                truth, mask = segment.mask_kji, session.mask_kji(found.classes[number - 1].name)
                dice.append(2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum()))
            rows[name].append(dice)
            row = {"aside": aside.name, "method": name, "dice": [round(float(d), 4) for d in dice]}
            print(json.dumps({**row, "seconds": round(seconds, 2)}), flush=True)
    for name, values in rows.items():
        print(json.dumps({"method": name, "mean": round(float(np.mean(values)), 4)}))


if __name__ == "__main__":
    main()
