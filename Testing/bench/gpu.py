"""Stock SAM 2, compiled and not, beside ours on a graphics card: one command, one JSON file.

Random weights, so nothing is downloaded; bf16 autocast where the card has it. Compiled is sam2's own
``vos_optimized``. No pair is started after ten minutes: those that are left out are named.

    python Testing/bench/gpu.py --out gpu.json
    python Testing/bench/gpu.py --out dry.json --device cpu --sizes 128 --slices 3 --plain
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from medsam2_core.atomic import new_file
from medsam2_core.errors import MedSAM2Error
from medsam2_core.evaluation.speed import ModelChoice, machine
from medsam2_core.evaluation.stock_video import beside_stock


def compared(choice: ModelChoice, slices: int, turns: int, compiled: bool) -> dict[str, Any]:
    """Return seconds a slice of one pair."""
    model = choice()
    started = time.perf_counter()
    timings, iou = beside_stock(model, slices, 512, turns, lambda done, what: None, compiled)
    return {
        "precision": model.precision.value,
        "seconds_in_all": time.perf_counter() - started,  # compiling included
        "timings": [timing.to_dict() for timing in timings],
        "noisy": timings.noisy(),
        "least_iou": iou,
    }


def measure(pair: dict[str, Any], options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Add what is found of one pair, or why there is nothing."""
    choice = ModelChoice(random=pair["config"], image_size=pair["size"], device=options.device)
    try:
        found["machine"] = found["machine"] or machine(choice().device)
        measured = compared(choice, options.slices, options.turns, pair["compiled"])
        found["pairs"].append({**pair, **measured})
    except (MedSAM2Error, RuntimeError) as error:  # the card is too small, or nothing compiles here
        found["left_out"].append({**pair, "why": str(error)})


def main() -> None:
    """Measure pair after pair, the small models first; the file is written anew after each of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--configs", nargs="+", default=["sam2.1_hiera_t", "sam2.1_hiera_b+", "sam2.1_hiera_l"]
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="after these no pair is started")
    parser.add_argument("--plain", action="store_true", help="leave out torch.compile")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"machine": None, "pairs": [], "left_out": []}
    pairs = [
        {"config": config, "size": size, "compiled": compiled}
        for compiled in ([False] if options.plain else [False, True])
        for config in options.configs
        for size in options.sizes
    ]
    for pair in pairs:
        if time.monotonic() > end:
            found["left_out"].append({**pair, "why": "no time left"})
        else:
            measure(pair, options, found)
        with new_file(options.out, overwrite=True) as stream:
            stream.write((json.dumps(found, indent=1) + "\n").encode())
        print(
            json.dumps({**pair, "done": len(found["pairs"]), "left_out": len(found["left_out"])}), flush=True
        )


if __name__ == "__main__":
    main()
