"""How well a model learns from a few labelled images: the predictor's variants, and a U-Net beside them.

    python Testing/bench/few_shot.py DATA --classes 1=nerve,2=vessel --shots 10 --seeds 0,1,2 --minutes 15

For each seed, 30 images are held aside and the others drawn from; every method gets the same ones, the same
augmentation and the same minutes on the same threads. One JSON line a result on stdout; ``--out`` collects
them, and what is in there already is not measured again.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from medsam2_core.auto.fewshot.augmentation import Augmentation
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
from medsam2_core.auto.fewshot.features import VariantPlan, variant_of
from medsam2_core.auto.fewshot.images import LabelledImage, ReadingOptions
from medsam2_core.auto.fewshot.results import dice_by_class, least_piece
from medsam2_core.auto.fewshot.settings import FewShotSettings
from medsam2_core.auto.fewshot.start import packaged_start, read_start
from medsam2_core.auto.fewshot.survey import Survey, survey
from medsam2_core.auto.fewshot.trainer import FewShotTrainer
from medsam2_core.auto.model import AutoModel
from medsam2_core.auto.slices import AutoSegmenter, without_small_pieces
from medsam2_core.engine.model import load_model
from medsam2_core.engine.sources import ArrayImages

TEST_IMAGES = 30


def main() -> None:
    """Measure what the command line asks for."""
    options = parsed()
    if options.plot:
        plot(read_known(options.out), options.plot)
        return
    torch.set_num_threads(options.threads)
    model = load_model(options.base, "cpu", "fp32")
    found = survey(find_pairs(options.data), ReadingOptions(model.image_size), parse_classes(options.classes))
    known = read_known(options.out)
    for seed in map(int, options.seeds.split(",")):
        for shots in map(int, options.shots.split(",")):
            split = split_of(found, shots, seed)
            for method in options.methods.split(","):
                row = {"method": method, "shots": shots, "seed": seed, "minutes": options.minutes}
                if any(row.items() <= one.items() for one in known):
                    continue
                began, worked = time.perf_counter(), time.process_time()
                result = measure(method, split, model, options, seed)
                row |= {"seconds": round(time.perf_counter() - began), "threads": options.threads}
                row |= {"cpu_seconds": round(time.process_time() - worked), **result}
                print(json.dumps(row), flush=True)
                if options.out:
                    with Path(options.out).open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(row) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--classes")
    parser.add_argument("--shots", default="10")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--methods", default="ppn,unet", help="ppn, ppn-lora, ppn-box, ppn-mask, ppn-box+embedding …, unet"
    )
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--start", help="auto, none, or a file", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of the predictor, instead of what the minutes allow")
    parser.add_argument(
        "--cpu", action="store_true", help="count minutes of processor time, not of the clock"
    )
    parser.add_argument("--out", help="JSON lines are appended here")
    parser.add_argument("--plot", help="PNG to draw what --out has collected into; measures nothing")
    parser.add_argument("--keep", help="folder for the trained models")
    return parser.parse_args()


def read_known(path: str | None) -> list[dict]:
    """Rows measured already."""
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def plot(rows: list[dict], path: str) -> None:
    """Mean Dice over the number of labelled images, a line a method, a point a seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method in sorted({row["method"] for row in rows}):
        points = sorted((row["shots"], row["mean"]) for row in rows if row["method"] == method)
        shots = sorted({count for count, _ in points})
        means = [np.mean([mean for count, mean in points if count == one]) for one in shots]
        (line,) = axes.plot(shots, means, marker="o", label=method)
        axes.plot(*zip(*points, strict=True), ".", color=line.get_color(), alpha=0.5)
    axes.set(xlabel="labelled images", ylabel="Dice on 30 others, mean of the classes", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def split_of(found: Survey, shots: int, seed: int) -> Survey:
    """So many images to train on, and 30 others held aside; the same 30 whatever the number of shots."""
    order = np.random.default_rng(seed).permutation(len(found.images))
    aside = [replace(found.images[n], held_out=True) for n in order[-TEST_IMAGES:]]
    training = [found.images[n] for n in order[:shots]]
    return Survey(found.classes, [*training, *aside])


def measure(method: str, split: Survey, model, options: argparse.Namespace, seed: int) -> dict:
    """Train and measure on the images held aside."""
    aside = [image for image in split.images if image.held_out]
    if method == "unet":
        return unet(split, aside, options, seed)
    settings = FewShotSettings(method, options.minutes, options.steps, 0, seed=seed)
    if "texture" in method:
        settings = replace(settings, texture=True)
    if "lora" in method:
        settings = replace(settings, decoder="lora")
    heads = [
        name
        for name in method.removeprefix("ppn").strip("-").split("+")
        if name not in ("", "lora", "texture")
    ]
    if heads and heads != ["linear"]:
        settings = replace(settings, heads=tuple(heads))
    start = None
    if heads == ["linear"]:
        settings = replace(settings, kind="linear")
    elif options.start == "auto":
        start = packaged_start(model)
    elif options.start != "none":
        start = read_start(Path(options.start), model)
    # The images held aside are for the end alone: nothing is stopped or chosen by them.
    training = Survey(split.classes, [image for image in split.images if not image.held_out])
    with tempfile.TemporaryDirectory() as work:
        clock = time.process_time if options.cpu else time.monotonic
        trainer = FewShotTrainer(settings, training, model, work, start, clock=clock)
        outcome = trainer.run()
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
        name = f"{method}-{len(training.images)}-{seed}.medsam2auto"
        outcome.auto.save(Path(options.keep) / name, overwrite=True)
    began = time.perf_counter()
    found = [labels_of(outcome.auto, one) for one in aside]
    each = (time.perf_counter() - began) / len(aside)
    classes = len(split.classes)
    rows, flipped = (
        [dice_by_class(labels, one.labels_hw, classes) for (labels, _), one in zip(those, aside, strict=True)]
        for those in (found, [labels_of(outcome.auto, one, flips=True) for one in aside])
    )
    return {
        "steps": outcome.auto.card.training["steps"],
        "seconds_an_image": round(each, 3),
        **summary(rows, split),
        "with_flips": summary(flipped, split)["mean"],
        "confidence": confidence([sure for _, sure in found], rows),
    }


def confidence(sure: list[list[float]], rows: list[list[float]]) -> float:
    """Spearman's rank correlation of what the model expects of its masks with their Dice; nan of too few."""
    from scipy.stats import spearmanr

    pairs = [(a, b) for of, by in zip(sure, rows, strict=True) for a, b in zip(of, by, strict=True) if a > 0]
    pairs = [(a, b) for a, b in pairs if not np.isnan(b)]
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 3) if len(pairs) > 2 else float("nan")


def labels_of(
    auto: AutoModel, image: LabelledImage, *, flips: bool = False
) -> tuple[np.ndarray, list[float]]:
    """(H, W) labels of an image, and how good the model expects each class to be, 0 for one not found."""
    height, width = image.letterbox.content_hw
    shown = ArrayImages([image.square[:height, :width]])
    found = AutoSegmenter(auto, shown, flips=flips).segment(0)
    labels = np.zeros((height, width), np.uint8)
    sure = [0.0] * auto.network.classes
    for one in found.classes:
        labels[one.mask_hw] = one.number + 1
        sure[one.number] = one.quality
    rows = (np.arange(image.labels_hw.shape[0]) + 0.5) * height / image.labels_hw.shape[0]
    columns = (np.arange(image.labels_hw.shape[1]) + 0.5) * width / image.labels_hw.shape[1]
    return labels[rows.astype(int)][:, columns.astype(int)], sure


def summary(rows: list[list[float]], split: Survey) -> dict:
    """Mean Dice by class and their mean."""
    columns = np.nanmean(np.array(rows, dtype=float), axis=0)
    by_class = {one.name: round(float(v), 4) for one, v in zip(split.classes, columns, strict=True)}
    return {"dice": by_class, "mean": round(float(columns.mean()), 4)}


def unet(split: Survey, aside: list[LabelledImage], options: argparse.Namespace, seed: int) -> dict:
    """MONAI's BasicUNet from nothing, on the same images with the same augmentation for the same time."""
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    torch.manual_seed(seed)
    training = [image for image in split.images if not image.held_out]
    net = BasicUNet(2, 3, len(split.classes) + 1, features=(32, 32, 64, 128, 256, 32))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    rng, plan = np.random.default_rng(seed), VariantPlan(1 << 30, Augmentation(), seed)
    clock = time.process_time if options.cpu else time.perf_counter
    began, budget, steps = clock(), options.minutes * 60, 0
    fraction = 0.0
    while fraction < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * fraction)) + 1e-6
        picked = rng.choice(len(training), min(4, len(training)), replace=False)
        pairs = [variant_of(training[n], 1, int(rng.integers(1 << 40)), plan) for n in picked]
        pictures = torch.stack(
            [training[n].letterbox.normalise(p) for n, (p, _) in zip(picked, pairs, strict=True)]
        )
        loss = loss_of(net(pictures), torch.stack([labels for _, labels in pairs])[:, None].long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        fraction = (clock() - began) / budget
    net.eval()
    least = [least_piece(training, k) for k in range(1, len(split.classes) + 1)]
    rows = []
    with torch.inference_mode():
        for image in aside:
            picture = torch.from_numpy(image.square.astype(np.float32) / 255).permute(2, 0, 1)
            logits = image.letterbox.to_image(net(image.letterbox.normalise(picture)[None])[0])
            labels = cleaned(logits.argmax(0).numpy(), image, least)
            rows.append(dice_by_class(labels, image.labels_hw, len(split.classes)))
    return {"steps": steps, **summary(rows, split)}


def cleaned(labels: np.ndarray, image: LabelledImage, least: list[float]) -> np.ndarray:
    """Without pieces smaller than any in training, as Auto's results are."""
    height, width = image.letterbox.content_hw
    square = image.letterbox.side**2 * labels.size / (height * width)
    out = np.zeros_like(labels)
    for number, share in enumerate(least, start=1):
        out[without_small_pieces(labels == number, share * square)] = number
    return out


if __name__ == "__main__":
    main()
