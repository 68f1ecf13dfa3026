"""Validation of a model in training: figures by row on views that never change.

By row: ``box`` is the mean Dice right after the prompt, ``box+2`` after two corrections, ``box tracked`` over
the later slices of a clip where the object is; the same for clicks and rough masks. The mean of the rows, and
figures over all rows together: Dice by distance from the key slice, how well the object's ends are found,
what a correction adds, and what the predicted IoU is worth.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from medsam2_core.training import network
from medsam2_core.training.loader import Batch
from medsam2_core.training.losses import true_iou
from medsam2_core.training.objective import Objective, Stage, coverage, moved
from medsam2_core.training.users import Prompts, corrected
from medsam2_core.training.views import View

KINDS = ("box", "click", "mask")
#: What is seen on a tracked slice: tensors (B,), one entry an object.
Seen = dict[str, torch.Tensor]


@torch.inference_mode()
def validate(
    objective: Objective, views: Mapping[str, Sequence[View]], stage: Stage
) -> dict[str, dict[str, float]]:
    """Figures by row, their ``mean``, and of clips those of all ``tracked`` slices."""
    table: dict[str, dict[str, float]] = {}
    seen: list[Seen] = []
    for row, kept in views.items():
        found: dict[str, list[torch.Tensor]] = {}
        for view in kept:
            for name, values in _scores(objective, view, stage, seen):
                found.setdefault(name, []).append(values)
        joined = {name: torch.cat(values) for name, values in found.items()}
        if joined:
            table[row] = {name: _rounded(values.mean()) for name, values in joined.items() if len(values)}
    names = dict.fromkeys(name for row in table.values() for name in row)
    table["mean"] = {
        name: _rounded(torch.tensor([row[name] for row in table.values() if name in row]).mean())
        for name in names
    }
    if seen:
        joined = {name: torch.cat([one[name] for one in seen]) for name in seen[0]}
        table["tracked"] = tracked_figures(joined)
    return table


def tracked_figures(seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Figures of tracked slices.

    Parameters
    ----------
    seen
        (N,) each, one entry an object and slice: ``distance`` in slices from the key slice; whether the
        object is ``present``; its ``score`` (a logit); ``iou`` and ``predicted_iou`` of the decoder's mask,
        whatever the score; ``dice`` of the mask shown; the ``gain`` in Dice of a click where the error is
        largest; ``kind``, the place in :data:`KINDS` of the first prompt.

    Notes
    -----
    ``box 1``, ``box 2-3``, ``box 4+``: Dice by distance where the object is. ``absent precision`` and
    ``absent recall``: of the slices without the object. ``iou rank`` (Spearman) and ``iou gap`` (predicted
    less true): of the slices with it. ``gain`` and ``worse``: mean of what a correction adds, and how often
    it takes something away.
    """
    present, distance = seen["present"].bool(), seen["distance"]
    figures = {}
    for place, kind in enumerate(KINDS):
        ours = present & (seen["kind"] == place)
        for name, near in (
            ("1", distance == 1),
            ("2-3", (distance >= 2) & (distance <= 3)),
            ("4+", distance > 3),
        ):
            if (ours & near).any():
                figures[f"{kind} {name}"] = _rounded(seen["dice"][ours & near].mean())
    absent, thought = ~present, seen["score"] <= 0
    figures["absent precision"] = _rounded((absent & thought).sum() / thought.sum().clamp(min=1))
    figures["absent recall"] = _rounded((absent & thought).sum() / absent.sum().clamp(min=1))
    if present.sum() > 2:
        figures["iou rank"] = _rounded(spearman(seen["predicted_iou"][present], seen["iou"][present]))
        figures["iou gap"] = _rounded((seen["predicted_iou"] - seen["iou"])[present].mean())
    figures["gain"] = _rounded(seen["gain"].mean())
    figures["worse"] = _rounded((seen["gain"] < -0.01).float().mean())
    return figures


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Rank correlation of two (N,) samples; equal values are ranked in the order they come."""
    ranks = torch.stack([values.argsort().argsort().float() for values in (first, second)])
    return torch.corrcoef(ranks)[0, 1]


def _scores(
    objective: Objective, view: View, stage: Stage, seen: list[Seen]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of figures and their values (B,), one an object of the view."""
    module, batch = objective.module, Batch.of([view])
    frames = batch.images.shape[1]
    encoded = network.encode(module, batch.images.flatten(0, 1).to(module.device))
    targets = coverage(batch.objects, encoded)
    slices = [encoded.of(batch.image_of * frames + frame) for frame in range(frames)]
    for place, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(11)
        answers = list(objective.prompted(slices[0], targets[:, 0], kind, stage.corrections, generator))
        values = [dice(answer.best_logits, targets[:, 0]) for answer in answers]
        yield kind, values[0]
        yield f"{kind}+{stage.corrections}", values[-1]
        if frames > 1:
            found = list(_tracked(objective, stage, batch, slices, targets, answers[0], place))
            seen += found
            yield f"{kind} tracked", torch.cat([one["dice"][one["present"]] for one in found])


def _tracked(
    objective: Objective,
    stage: Stage,
    batch: Batch,
    slices: Sequence[network.ObjectFeatures],
    targets: torch.Tensor,
    answer: network.Answer,
    place: int,
) -> Iterator[Seen]:
    """Track objects through a clip from an answer on its first slice; yield what is seen on the others."""
    memory = objective.memory(stage, len(slices))
    squares, carried = batch.squares[batch.image_of], answer.shown
    generator = torch.Generator().manual_seed(13)
    for n, here in enumerate(slices[1:], start=1):
        memory.write(n - 1, slices[n - 1], answer, carried, prompted=n == 1)
        carried = moved(carried, squares[:, n - 1], squares[:, n])
        embedding, target = memory.read(n, here), targets[:, n]
        answer = objective.follow(embedding, here, carried)
        carried = answer.shown
        clicked = corrected(Prompts.only(carried.cpu()), carried.cpu(), target, generator)
        again = objective.decode(embedding, here, clicked).shown
        here_dice = dice(carried, target)
        yield {
            "distance": torch.full((len(target),), n),
            "present": (target > 0.5).flatten(1).any(1),
            "score": answer.presence[:, 0].float().cpu(),
            "iou": true_iou(answer.best_logits[:, 0].cpu(), target),
            "predicted_iou": answer.best_iou.float().cpu(),
            "dice": here_dice,
            "gain": dice(again, target) - here_dice,
            "kind": torch.full((len(target),), place),
        }


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B,) Dice of thresholded logits (B, 1, s, s) against (B, s, s); 1 for empty against empty."""
    answer, truth = logits[:, 0].cpu() > 0, target > 0.5
    both = (answer & truth).float().sum((1, 2))
    total = answer.float().sum((1, 2)) + truth.float().sum((1, 2))
    return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(both))


def _rounded(value: torch.Tensor) -> float:
    return round(float(value), 4)
