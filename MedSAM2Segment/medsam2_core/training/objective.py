"""What is minimised: the answers to a first prompt, to corrections, and along a clip, against the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.training import network
from medsam2_core.training.loader import Batch
from medsam2_core.training.losses import AffinityHeads, mask_loss, true_iou
from medsam2_core.training.users import Prompts, corrected, first_prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes
    ----------
    frames
        Slices in a clip; 1 trains without memory.
    kinds
        Shares of box, click and rough mask as the first prompt.
    corrections
        Clicks after the first prompt, on the prompted slice.
    tracked_corrections
        How often a tracked slice is corrected by a click before the next one is tracked.
    slices
        Views in the batches of single slices that take turns with the clips, with one correction more:
        clips alone unlearn corrections. 0: no such batches.
    """

    name: str
    steps: int
    frames: int
    batch: int
    learning_rate: float
    trunk_factor: float = 1.0
    corrections: int = 2
    kinds: tuple[float, float, float] = (0.45, 0.3, 0.25)
    affinity_weight: float = 1.0
    tracked_corrections: float = 0.3
    slices: int = 0

    @property
    def turns(self) -> tuple[Stage, ...]:
        """What the batches are, by turns."""
        if not self.slices:
            return (self,)
        alone = replace(self, frames=1, batch=self.slices, corrections=self.corrections + 1, slices=0)
        return self, alone


class Objective:
    """One pass of a batch through the model as a simulated user would use it.

    Parameters
    ----------
    module
        The network.
    heads
        Affinity heads for the network's maps.
    recipe
        How prompts are drawn for this model.
    """

    def __init__(self, module: SAM2Base, heads: AffinityHeads, recipe: PromptRecipe) -> None:
        self.module = module
        self._heads, self._recipe = heads, recipe

    def decode(
        self, embedding: torch.Tensor, here: network.ObjectFeatures, prompts: Prompts
    ) -> network.Answer:
        """Decode with an embedding (B, C, h, w) and this model's recipe."""
        return network.decode(self.module, self._recipe, embedding, here.fine, prompts)

    def losses(self, batch: Batch, stage: Stage, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The loss terms of one batch, weighted; their sum is what is minimised."""
        frames, device = batch.images.shape[1], self.module.device
        encoded = network.encode(self.module, batch.images.flatten(0, 1).to(device))
        regions = batch.regions.flatten(0, 1).to(device)
        affinity = self._heads(encoded.maps, regions, 160, generator)
        targets = coverage(batch.objects, encoded)
        kind = _draw(("box", "click", "mask"), stage.kinds, generator)
        memory = network.ObjectMemory(self.module, frames) if frames > 1 else None
        sums = dict.fromkeys(("mask", "iou", "presence"), torch.zeros((), device=device))
        total = 0.0
        carried: torch.Tensor | None = None
        for frame in range(frames):
            here, target = encoded.of(batch.image_of * frames + frame), targets[:, frame]
            if carried is None or memory is None:
                answers = list(self.prompted(here, target, kind, stage.corrections, generator))
                weight = 1.0
            else:
                embedding = memory.read(frame, here)
                answers = list(self.tracked(embedding, here, target, carried, stage, generator))
                weight = 2.0 * stage.corrections / frames
            for answer, ambiguous in answers:
                for key, value in answer_losses(answer, target.to(device), ambiguous).items():
                    sums[key] = sums[key] + weight * value
                total += weight
            answer, ambiguous = answers[-1]
            carried = best_logits(answer, ambiguous).detach()
            if memory is not None and frame < frames - 1:
                # As in use: a slice the user has spoken about conditions all others.
                said = frame == 0 or len(answers) > 1
                memory.write(frame, here, answer, answer.logits[:, :1], prompted=said)
        scaled = {key: value / total for key, value in sums.items()}
        return {**scaled, "affinity": stage.affinity_weight * affinity}

    def prompted(
        self,
        here: network.ObjectFeatures,
        target: torch.Tensor,
        kind: str,
        corrections: int,
        generator: torch.Generator,
    ) -> Iterator[tuple[network.Answer, bool]]:
        """Answers to a first prompt and to corrections, and whether each may be one of three."""
        embedding = network.without_memory(self.module, here)
        prompts = first_prompts(target, kind, generator)
        for turn in range(corrections + 1):
            answer = self.decode(embedding, here, prompts)
            ambiguous = turn == 0 and kind == "click"
            yield answer, ambiguous
            if turn < corrections:
                shown = best_logits(answer, ambiguous).detach().cpu()
                prompts = corrected(prompts, shown, target, generator)

    def tracked(
        self,
        embedding: torch.Tensor,
        here: network.ObjectFeatures,
        target: torch.Tensor,
        carried: torch.Tensor,
        stage: Stage,
        generator: torch.Generator,
    ) -> Iterator[tuple[network.Answer, bool]]:
        """The answer tracking gives with the slice before as canvas; now and then a click corrects it."""
        prompts = Prompts.only(carried)
        answer = self.decode(embedding, here, prompts)
        yield answer, False
        if float(torch.rand(1, generator=generator)) < stage.tracked_corrections:
            said = corrected(
                Prompts.only(carried.cpu()), answer.logits[:, :1].detach().cpu(), target, generator
            )
            yield self.decode(embedding, here, said), False


def answer_losses(answer: network.Answer, target: torch.Tensor, ambiguous: bool) -> dict[str, torch.Tensor]:
    """Mask, confidence and presence losses of one answer.

    An ambiguous prompt (one click) is answered by three masks of which the best counts; the single mask is
    trained lightly beside them.
    """
    present = (target > 0.5).flatten(1).any(1)
    used = answer.logits[:, 1:] if ambiguous else answer.logits[:, :1]
    losses = torch.stack([mask_loss(used[:, m], target) for m in range(used.shape[1])], dim=1)
    best = losses.min(dim=1).values
    if ambiguous:
        best = 0.9 * best + 0.05 * losses.mean(1) + 0.05 * mask_loss(answer.logits[:, 0], target)
    actual = true_iou(used.detach(), target[:, None])
    predicted = answer.iou[:, 1:] if ambiguous else answer.iou[:, :1]
    iou = (predicted - actual).abs().mean(1)
    # An absent object has no mask to learn from: whether it is there is the presence head's task.
    share = present.float()
    return {
        "mask": (best * share).sum() / share.sum().clamp(min=1),
        "iou": (iou * share).sum() / share.sum().clamp(min=1),
        "presence": 0.5 * functional.binary_cross_entropy_with_logits(answer.presence[:, 0], share),
    }


def coverage(objects: torch.Tensor, encoded: network.Encoded) -> torch.Tensor:
    """(B, T, s, s) share of each logit's cell that an object of (B, T, S, S) covers."""
    return functional.avg_pool2d(objects.float(), objects.shape[-1] // encoded.fine[0].shape[-1])


def best_logits(answer: network.Answer, ambiguous: bool) -> torch.Tensor:
    """(B, 1, s, s) the mask SAM 2 would show: the single one, or of three the most confident."""
    if not ambiguous:
        return answer.logits[:, :1]
    index = answer.iou[:, 1:].argmax(1)
    return answer.logits[torch.arange(len(index)), 1 + index].unsqueeze(1)


def _draw(names: tuple[str, ...], shares: tuple[float, ...], generator: torch.Generator) -> str:
    return names[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))]
