"""Validation of a model in training: Dice by row on views that never change."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from medsam2_core.training import network
from medsam2_core.training.loader import Batch
from medsam2_core.training.objective import Objective, Stage, best_logits, coverage
from medsam2_core.training.users import Prompts
from medsam2_core.training.views import View

KINDS = ("box", "click", "mask")


@torch.inference_mode()
def validate(
    objective: Objective, views: Mapping[str, Sequence[View]], stage: Stage
) -> dict[str, dict[str, float]]:
    """Mean Dice by row, and the mean of the rows, for each kind of first prompt.

    Returns
    -------
    dict
        By row: ``"box"`` right after the prompt, ``"box+2"`` after two corrections, ``"box tracked"`` the
        mean over the later slices of a clip; the same for clicks and rough masks.
    """
    table: dict[str, dict[str, float]] = {}
    for row, kept in views.items():
        found: dict[str, list[torch.Tensor]] = {}
        for view in kept:
            for name, values in _scores(objective, view, stage):
                found.setdefault(name, []).append(values)
        if found:
            table[row] = {name: round(float(torch.cat(values).mean()), 4) for name, values in found.items()}
    names = next(iter(table.values()), {})
    table["mean"] = {name: round(sum(row[name] for row in table.values()) / len(table), 4) for name in names}
    return table


def _scores(objective: Objective, view: View, stage: Stage) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of figures and their values (B,), one an object of the view."""
    module, batch = objective.module, Batch.of([view])
    frames = batch.images.shape[1]
    encoded = network.encode(module, batch.images.flatten(0, 1).to(module.device))
    targets = coverage(batch.objects, encoded)
    slices = [encoded.of(batch.image_of * frames + frame) for frame in range(frames)]
    for kind in KINDS:
        generator = torch.Generator().manual_seed(11)
        answers = list(objective.prompted(slices[0], targets[:, 0], kind, stage.corrections, generator))
        yield kind, dice(best_logits(*answers[0]), targets[:, 0])
        last = best_logits(*answers[-1])
        yield f"{kind}+{stage.corrections}", dice(last, targets[:, 0])
        if frames > 1:
            shown = _tracked(objective, slices, answers[-1][0], last)
            tracked = [dice(logits, targets[:, n]) for n, logits in enumerate(shown, start=1)]
            yield f"{kind} tracked", torch.stack(tracked).mean(0)


def _tracked(
    objective: Objective,
    slices: Sequence[network.ObjectFeatures],
    answer: network.Answer,
    carried: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """(B, 1, s, s) logits of the slices after the first, empty where the object is thought absent."""
    memory = network.ObjectMemory(objective.module, len(slices))
    for n, here in enumerate(slices[1:], start=1):
        memory.write(n - 1, slices[n - 1], answer, carried, prompted=n == 1)
        answer = objective.decode(memory.read(n, here), here, Prompts.only(carried))
        carried = answer.logits[:, :1]
        yield torch.where(answer.presence[:, :, None, None] > 0, carried, -1.0)


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) Dice of thresholded logits (B, 1, s, s) against (B, s, s); 1 for empty against empty."""
    answer, truth = logits[:, 0].cpu() > 0, target > 0.5
    both = (answer & truth).float().sum((1, 2))
    total = answer.float().sum((1, 2)) + truth.float().sum((1, 2))
    return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(both))
