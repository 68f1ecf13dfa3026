"""Files of a fine-tuning: the checkpoint with its card, the report, and events for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_core import atomic
from medsam2_core.auto.fewshot.results import curves_png, put_files
from medsam2_core.engine.architecture import guess_config
from medsam2_core.engine.card import ModelCard
from medsam2_core.engine.catalogue import Catalogue
from medsam2_core.engine.checkpoint import read_state_dict
from medsam2_core.engine.store import Store
from medsam2_core.errors import MissingPackageError
from medsam2_core.training.finetune import FineTuner, changed_state
from medsam2_core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from medsam2_core.engine.segmentation_model import SegmentationModel


def write_checkpoint(
    path: Path,
    base: str,
    model: SegmentationModel,
    tuner: FineTuner,
    classes: Sequence[str],
    figures: Mapping[str, Any],
    *,
    config: str | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Write the trained weights with their card, and return the card.

    Parameters
    ----------
    base
        Name or file of `model`, from which the training started.
    config
        Configuration of the base; None is that of the catalogue, or found by its tensors.
    """
    from safetensors.torch import save

    entry = Catalogue.load().find(base)
    weights = read_state_dict(Store.default().locate(entry))
    card = ModelCard(
        base=model.name, base_key=model.weights_key, base_sha256=model.weights_sha256 or "",
        config=config or entry.config or guess_config(weights),
        image_size=model.image_size, recipe=asdict(model.recipe), postprocessing=entry.postprocessing,
        licence=entry.licence, attribution=entry.attribution, notice=entry.notice,
        classes=tuple(classes), training=tuner.facts(), figures=figures,
        software=f"MedSAM2Segment {__version__}",
    )  # fmt: skip
    with atomic.new_file(path, overwrite=overwrite) as stream:
        stream.write(save(changed_state(weights, tuner.state()), metadata=card.metadata()))
    return card


def write_report(folder: Path, card: ModelCard, problems: Sequence[object], log: Path) -> None:
    """Write ``report.json`` (card, problems of the data) and ``curves.png`` into a folder.

    Parameters
    ----------
    log
        The lines of the run, as JSON.
    """
    history = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    curve = [
        {key: line[key] for key in ("step", "mask", "iou", "presence", "worse") if key in line}
        for line in history
        if "mask" in line
    ]
    means = [(line["step"], mean_dice(line)) for line in history]
    checked = [{"step": step, "dice": dice} for step, dice in means if dice is not None]
    facts = {**asdict(card), "problems": [str(one) for one in problems], "curves": history}
    content = json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8", "replace")
    picture = curves_png({"training": curve, "held aside": checked})
    put_files(folder, {"report.json": content, "curves.png": picture})


def mean_dice(line: Mapping[str, Any]) -> float | None:
    """Return the mean Dice of the validation in a line of the log; None where there is none."""
    means = line.get("validation", {}).get("mean") or {}
    return sum(means.values()) / len(means) if means else None


@contextmanager
def event_writer(folder: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes a line of the log as events for TensorBoard; without a folder, nothing.

    Raises
    ------
    MissingPackageError
        Code ``tensorboard-missing``.
    """
    if folder is None:
        yield lambda line: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        message = "--tensorboard needs the package tensorboardX: pip install 'medsam2-core[tensorboard]'"
        raise MissingPackageError(message, code="tensorboard-missing") from error

    def write(line: Mapping[str, Any]) -> None:
        values = {f"training/{name}": value for name, value in line.items() if name not in _NO_CURVES}
        for name, value in (line.get("validation", {}).get("mean") or {}).items():
            values[f"validation/{name}"] = value
        for name, value in values.items():
            if isinstance(value, int | float):
                events.add_scalar(name, value, line["step"])
        events.flush()

    with SummaryWriter(str(folder)) as events:
        yield write


_NO_CURVES = ("step", "steps", "hours")
