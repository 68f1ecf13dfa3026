"""What one corrective click is worth after Auto, on images an Auto model was not trained on.

    python Testing/bench/auto_click.py MODEL DATA --classes 1=nerve,2=vessel --seed 0

Three answers to the same click are compared: the session's (the found mask is corrected by the SAM 2 below),
Sam2Rad's semi-automatic mode (the click joins the predicted prompts), and that with the found mask fed back.
The click lies in the middle of the largest error, as a user's would.
"""

import argparse
import json

import numpy as np
import torch
from few_shot import TEST_IMAGES
from medsam2_core.auto.fewshot.data import ClassTable, find_pairs, parse_classes
from medsam2_core.auto.fewshot.results import dice_by_class
from medsam2_core.auto.model import AutoModel, load_auto
from medsam2_core.auto.network import UserPrompts
from medsam2_core.auto.predictor import PredictedPrompts
from medsam2_core.auto.slices import AutoSegmenter
from medsam2_core.evaluation.simulated_user import correction
from medsam2_core.imaging.reading import read_segmentation, read_volume
from medsam2_core.prompts import Point, SlicePrompts
from medsam2_core.prompts.slice_prompts import resolve
from medsam2_core.session import Session


def main() -> None:
    """Print mean Dice before and after."""
    options, auto = asked(__doc__)
    pairs = find_pairs(options.data)
    order = np.random.default_rng(options.seed).permutation(len(pairs))[-TEST_IMAGES:]
    rows: dict[str, list[float]] = {}
    for pair in (pairs[n] for n in order):
        for name, values in measured(auto, pair, options.classes).items():
            rows.setdefault(name, []).extend(values)
    means = {name: round(float(np.mean(values)), 4) for name, values in rows.items()}
    print(json.dumps({"objects": len(rows["auto"]), **means}))


def asked(description: str) -> tuple[argparse.Namespace, AutoModel]:
    """The command line of a benchmark of one trained model, and that model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options, load_auto(options.model, device="cpu", precision="fp32")


def measured(auto, pair, classes) -> dict[str, list[float]]:
    """Dice of every class that is on an image: of Auto, and after one click by each of the ways."""
    volume, labels = read_volume(pair.image), read_segmentation(pair.labels)
    table = ClassTable(parse_classes(classes))
    table.add_labels(labels.labels)
    session = Session.open(volume, auto.model, window=auto.card.window)
    found = session.auto(auto)
    segmenter = AutoSegmenter(auto, session.tracker.source)
    out: dict[str, list[float]] = {name: [] for name in ("auto", "session", "semi-automatic", "with mask")}
    for number, one in enumerate(found):
        numbers = table.numbers(labels.labels).items()
        values = [key for key, n in numbers if table.classes[n - 1].name == one.name]
        if not values:
            continue
        truth = labels.labels_kji()[0] == values[0][1]
        if not truth.any():
            continue
        mask = one.masks[0].mask_hw if 0 in one.masks else np.zeros_like(truth)
        click = correction(mask, truth)
        if click is None:
            continue
        (column, row), positive = click
        point = Point(tuple(session.stack.to_ijk([[column, row, 0]])[0]), positive)
        words = [*one.prompts.get(0, ()), point]
        answer = session.set_prompts(one.name, {0: SlicePrompts(words)})[0]
        said = resolve([point], session.stack)[0]
        semi = semi_automatic(segmenter, number, said)
        side = auto.model.image_size // 4
        letterbox = segmenter.letterbox(0)
        marks = letterbox.resize_labels(mask.astype(np.int16)).float()[None, None]
        before = torch.nn.functional.adaptive_avg_pool2d(marks, side) * 8 - 4
        fed = semi_automatic(segmenter, number, said, before)
        for name, result in zip(out, (mask, answer.mask_hw, semi, fed), strict=True):
            out[name].append(dice_by_class(result.astype(int), truth.astype(int), 1)[0])
    return out


def semi_automatic(segmenter, number, prompts, previous=None) -> np.ndarray:
    """Mask (H, W) of one class, a user's prompts beside the predicted ones: Sam2Rad's semi-automatic mode.

    ``previous``: (1, 1, S/4, S/4) logits to be corrected, instead of the predicted mask.
    """
    network, device = segmenter.auto.network, segmenter.auto.model.device
    letterbox, levels = segmenter.letterbox(0), segmenter.levels(0)
    (height, width), shape_hw = letterbox.content_hw, letterbox.shape_hw
    scale_xy = np.array([width / shape_hw[1], height / shape_hw[0]]) / letterbox.side
    points = torch.from_numpy(((prompts.points_xy + 0.5) * scale_xy).astype(np.float32))[None].to(device)
    labels = torch.from_numpy(np.asarray(prompts.labels, dtype=np.int32))[None].to(device)
    with segmenter.auto.model.computing():
        found = vars(network.predict(levels))
        one = {name: None if value is None else value[number : number + 1] for name, value in found.items()}
        predicted = PredictedPrompts(**one)
        output = network.decode(levels, predicted, UserPrompts(None, points, labels, previous))
        return (letterbox.to_image(output.logits[:, 0])[0] > 0).cpu().numpy()


if __name__ == "__main__":
    main()
