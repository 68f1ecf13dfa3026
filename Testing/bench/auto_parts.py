"""Where an Auto model's masks come from: Dice of the sketch, of the mask prompt, and of each prompt alone.

    python Testing/bench/auto_parts.py MODEL DATA --classes 1=nerve,2=vessel --seed 0

One model, asked with less than it says: unlike Sam2Rad's ablation nothing is trained anew
(``few_shot.py --methods ppn-texture+box`` does that). Images are those `few_shot.py` holds aside.
"""

import json

import numpy as np
import torch
from auto_click import asked
from few_shot import split_of
from medsam2_core.auto.fewshot.data import find_pairs, parse_classes
from medsam2_core.auto.fewshot.images import LabelledImage, ReadingOptions
from medsam2_core.auto.fewshot.results import dice_by_class
from medsam2_core.auto.fewshot.survey import survey
from medsam2_core.auto.model import AutoModel
from medsam2_core.auto.network import merged_labels
from medsam2_core.auto.predictor import PredictedPrompts

_OF = {"box": "boxes_xyxy", "mask": "mask_logits", "embedding": "tokens"}


def main() -> None:
    """Print mean Dice of every part."""
    options, auto = asked(__doc__)
    reading = ReadingOptions(auto.model.image_size)
    found = survey(find_pairs(options.data), reading, parse_classes(options.classes))
    rows: dict[str, list] = {}
    for image in split_of(found, 1, options.seed).images:
        if image.held_out:
            for name, labels in labels_by_part(auto, image).items():
                rows.setdefault(name, []).append(dice_by_class(labels, image.labels_hw, len(found.classes)))
    means = {name: round(float(np.nanmean(np.array(v, float), 0).mean()), 3) for name, v in rows.items()}
    print(json.dumps(means))


@torch.inference_mode()
def labels_by_part(auto: AutoModel, image: LabelledImage) -> dict[str, np.ndarray]:
    """(H, W) labels of an image, by what they were made of."""
    picture = torch.from_numpy(image.square.astype(np.float32) / 255).permute(2, 0, 1)
    levels = auto.levels(image.letterbox.normalise(picture)[None])
    prompts, answer = auto.network(levels)
    score = answer.score.view(1, -1)
    logits = {"all": answer.logits[:, 0]}
    if levels.texture_logits is not None:
        logits["sketch"] = levels.texture_logits[0]
    if prompts.mask_logits is not None:
        logits["mask prompt, undecoded"] = prompts.mask_logits[:, 0]
    repeated = levels.repeated(auto.network.classes)
    for head in auto.network.predictor.settings.heads:
        alone = PredictedPrompts(**{_OF[head]: getattr(prompts, _OF[head])})
        logits[head] = auto.network.decode(repeated, alone).logits[:, 0]
    return {
        name: merged_labels(image.letterbox.to_image(value)[None], score)[0].cpu().numpy()
        for name, value in logits.items()
    }


if __name__ == "__main__":
    main()
