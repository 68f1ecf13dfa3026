"""What fine-tuning gives: one box and one click before and after, on cases that were not trained on.

    python Testing/bench/fine_tune.py DATA --train 25 --test 30 --minutes 10 --cpu
    python Testing/bench/fine_tune.py cases.csv --minutes 10            # split of its own
    python Testing/bench/fine_tune.py DATA --clip 1 --set parts=all --set learning_rate=1e-4

The minutes are of one core: with --cpu of processor time, so that other work on the machine does not count.
"""

import argparse
import ast
import json
import tempfile
import time
from dataclasses import replace

import numpy as np
import torch
from medsam2_core.auto.fewshot.data import Pair, find_pairs
from medsam2_core.auto.fewshot.images import ReadingOptions
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.engine.model import load_model
from medsam2_core.evaluation.labelled import mean_figures, measure_labelled
from medsam2_core.evaluation.protocol import StandardProtocol
from medsam2_core.training.augmentation import Augmentation
from medsam2_core.training.finetune import FineTuner, FineTuning, suited_to


def main() -> None:
    """Measure what the command line asks for; one JSON line."""
    options = parsed()
    torch.set_num_threads(1)
    model = load_model(options.base, "cpu", "fp32")
    pairs = divided(find_pairs(options.data), options)
    found = survey(pairs, ReadingOptions(model.image_size, window=options.window), None, keeps_cases=True)
    found.raise_for_problems(skip_bad=True)
    clock = time.process_time if options.cpu else time.monotonic
    changes = {name: value(text) for name, _, text in (one.partition("=") for one in options.set)}
    is_volume = any(len(case.volume.voxels_kji) > 1 for case in found.cases)
    suited = suited_to(model, clip=options.clip if is_volume else 1, parts=changes.get("parts"))
    settings = FineTuning(
        **{"minutes": options.minutes, "seed": options.seed, "window": options.window, **suited, **changes}
    )
    lines: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        tuner = FineTuner(settings, folder, model, found, lines.append, clock=clock)
        tuner.run()
        seconds = clock() - began
        after = tuner.trained_model()
    row = {"data": options.data, "set": options.set, "seed": options.seed, "seconds": round(seconds)}
    row |= {name: value for name, value in tuner.facts().items() if name in ("steps", "cases", "measured")}
    row["planned"] = lines[-1].get("steps") or max(line.get("steps", 0) for line in lines)
    protocol = StandardProtocol(corrections=options.corrections)
    for name, one in (("before", model), ("after", after)):
        if name == "before" and options.no_before:
            continue
        measured = measure_labelled(
            tuner.division.measured,
            found.table,
            one,
            window=options.window,
            protocol=protocol,
            most=options.most,
        )
        row[name] = mean_figures(measured)
    row["curve"] = [
        sum(line["validation"]["mean"].values()) / len(line["validation"]["mean"])
        for line in lines
        if line.get("validation", {}).get("mean")
    ]
    print(json.dumps(row), flush=True)


def value(text: str) -> object:
    """A number, a tuple or a text; augmentation as the fields that change."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return Augmentation(**found) if isinstance(found, dict) else found


def divided(pairs: list[Pair], options: argparse.Namespace) -> list[Pair]:
    """Draw pairs to train on and to test on, unless the data says."""
    if options.test is None:
        return pairs
    order = np.random.default_rng(options.split_seed).permutation(len(pairs))
    test, train = order[: options.test], order[options.test : options.test + options.train]
    return [replace(pairs[n], held_out=False) for n in train] + [
        replace(pairs[n], held_out=True) for n in test
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--train", type=int, default=25)
    parser.add_argument("--test", type=int)
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--clip", type=int, default=8, help="slices in a clip of a volume; 1: single slices")
    parser.add_argument("--window", default="auto")
    parser.add_argument("--corrections", type=int, default=0)
    parser.add_argument("--most", type=int)
    parser.add_argument("--no-before", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting")
    return parser.parse_args()


if __name__ == "__main__":
    main()
