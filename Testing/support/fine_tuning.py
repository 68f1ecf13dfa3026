"""Fine-tunings that take seconds: a tiny network and two organs, also as a program that may be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from medsam2_core.auto.fewshot.data import find_pairs
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.survey import Survey, survey
from medsam2_core.engine.segmentation_model import SegmentationModel
from medsam2_core.training.finetune import FineTuner, FineTuning
from medsam2_core.training.processes import started_processes


def cases_of(folder: Path, side: int = 64) -> Survey:
    """The cases of a folder, without problems."""
    found = survey(find_pairs(folder), ReadingOptions(side), keeps_cases=True)
    found.raise_for_problems()
    return found


def quick(**changes) -> FineTuning:
    """Twelve steps on single slices."""
    usual = {
        "steps": 12, "batch": 2, "passes": 2, "learning_rate": 1e-3, "warm_up": 2, "clip": 1.0,
        "report_every": 1, "save_every": 3, "validation_views": 2, "corrections": 1, "parts": "all",
        "layer_decay": 1.0,
    }  # fmt: skip
    return FineTuning(**{**usual, **changes})


def curve_of(folder: Path) -> list[dict]:
    """The lines of a log without what depends on time."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("hours", "images_per_second")}
        for line in lines
    ]


def main(data: str, folder: str, settings: str) -> None:
    """Run or resume a fine-tuning in a folder; `settings` is JSON."""
    from support.tiny_model import tiny_model

    torch.set_num_threads(1)
    with started_processes(torch.device("cpu")) as processes:
        model: SegmentationModel = tiny_model()
        tuner = FineTuner(
            quick(**json.loads(settings)), folder, model, cases_of(Path(data)), processes=processes
        )
        tuner.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
