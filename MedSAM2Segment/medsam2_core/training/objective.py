"""The objective: answers to a first prompt, to corrections and along a clip, compared with the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medsam2_core.engine.memory import SelfSortingMemory
from medsam2_core.engine.options import memory_policy
from medsam2_core.engine.recipe import PromptRecipe
from medsam2_core.training import network
from medsam2_core.training.loader import Batch
from medsam2_core.training.losses import BASE_LOSS, AffinityHeads, LossWeights, mask_loss, true_iou
from medsam2_core.training.users import Prompts, corrected, first_prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


KINDS = ("box", "click", "points", "mask")


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes
    ----------
    frames
        Slices in a clip; 1 trains without memory.
    kinds
        Shares of box, click, several clicks and rough mask as the first prompt.
    corrections
        Clicks after the first prompt, on the prompted slice.
    tracked_corrections
        How often a tracked slice is corrected by a click before the next one is tracked.
    trunk_factor
        Learning rate of the image encoder relative to the rest; 0 leaves the encoder as it is.
    carried_noise
        How often the mask carried to the next slice is moved, grown, shrunk or left out, so that the next
        slice's image matters.
    worse_weight
        Weight of what a correction adds to the mask loss.
    layer_decay
        Factor of the learning rate from each block of the image encoder to the one before it.
    passes
        Parts in which the views of a step are computed one after another: more need less memory.
    prompt_every
        Every n-th slice of a clip is prompted; an object that is not there is given as an empty mask.
        0: only the first.
    memory, memory_size
        Memory policy, ``recent`` or ``self-sorting``, and the slices the latter holds.
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
    kinds: tuple[float, float, float, float] = (0.4, 0.25, 0.1, 0.25)
    affinity_weight: float = 1.0
    tracked_corrections: float = 0.3
    tracked_weight: float = 1.0
    carried_noise: float = 0.0
    worse_weight: float = 0.0
    slices: int = 0
    parts: str = "all"
    layer_decay: float = 1.0
    passes: int = 1
    prompt_every: int = 0
    loss: LossWeights = BASE_LOSS
    memory: str = "recent"
    memory_size: int = 16

    @property
    def turns(self) -> tuple[Stage, ...]:
        """What the batches are, by turns."""
        if not self.slices:
            return (self,)
        passes = min(self.passes, self.slices)
        alone = replace(
            self, frames=1, batch=self.slices, corrections=self.corrections + 1, slices=0, passes=passes
        )
        return self, alone


class Objective:
    """One pass of a batch through the model as a simulated user would use it.

    Parameters
    ----------
    heads
        Affinity heads for the network's maps; None trains without.
    """

    def __init__(self, module: SAM2Base, heads: AffinityHeads | None, recipe: PromptRecipe) -> None:
        self.module = module
        self._heads, self._recipe = heads, recipe
        # Whether tracking answers with the best of three masks.
        self._tracks_with_three = module._use_multimask(False, None)

    def decode(
        self, embedding: torch.Tensor, here: network.ObjectFeatures, prompts: Prompts
    ) -> network.Answer:
        """Decode with an embedding (B, C, h, w) and this model's recipe."""
        return network.decode(self.module, self._recipe, embedding, here.fine, prompts)

    def follow(
        self, embedding: torch.Tensor, here: network.ObjectFeatures, carried: torch.Tensor
    ) -> network.Answer:
        """Decode a slice that is not prompted: with the mask (B, 1, s, s) of the one before, or nothing."""
        prompts = Prompts.only(carried) if self._recipe.carries_mask else Prompts.none(len(carried))
        return replace(self.decode(embedding, here, prompts), ambiguous=self._tracks_with_three)

    def losses(self, batch: Batch, stage: Stage, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The loss terms of one batch, weighted; their sum is what is minimised."""
        frames, device = batch.images.shape[1], self.module.device
        encoded = network.encode(self.module, batch.images.flatten(0, 1).to(device))
        terms = {}
        if stage.affinity_weight and self._heads is not None:
            regions = batch.regions.flatten(0, 1).to(device)
            terms["affinity"] = stage.affinity_weight * self._heads(encoded.maps, regions, 160, generator)
        targets = coverage(batch.objects, encoded)
        kind = _draw(KINDS, stage.kinds, generator)
        memory = self.memory(stage, frames) if frames > 1 else None
        total = _Total(stage, device)
        carried: torch.Tensor | None = None
        for frame in range(frames):
            here, target = encoded.of(batch.image_of * frames + frame), targets[:, frame]
            absent: torch.Tensor | None = None
            prompted = frame == 0 or bool(stage.prompt_every and frame % stage.prompt_every == 0)
            if memory is not None and prompted and kind == "mask" and not self._recipe.draws_prompts:
                # As SAM 2 takes masks: they are what they are, and later slices are to follow them.
                answers = [network.given(self.module, self._recipe, here, target)]
            elif carried is None or memory is None:
                answers = list(self.prompted(here, target, kind, stage.corrections, generator))
                total.add(answers, target, 1.0)
            elif prompted:
                absent = ~(target > 0.5).flatten(1).any(1)
                answers = list(self.prompted(here, target, kind, stage.corrections, generator))
                total.add(answers, target, 1.0, absent)
            else:
                embedding = memory.read(frame, here)
                carried = moved(carried, *_squares(batch, frame))
                if float(torch.rand(1, generator=generator)) < stage.carried_noise:
                    carried = disturbed(carried, generator)
                answers = list(self.tracked(embedding, here, target, carried, stage, generator))
                total.add(answers, target, stage.tracked_weight)
                # As in use: a slice the user has prompted conditions all others.
                prompted = len(answers) > 1
            answer = answers[-1]
            if absent is not None and absent.any():
                answer = self._with_absent(here, answer, absent)
            carried = answer.shown.detach()
            if memory is not None and frame < frames - 1:
                memory.write(frame, here, answer, answer.shown, prompted=prompted)
        return {**total.means(), **terms}

    def memory(self, stage: Stage, frames: int) -> network.ClipMemory:
        """A memory for a clip, by the stage's policy."""
        if stage.memory == "recent":
            return network.ObjectMemory(self.module, frames)
        policy = memory_policy(stage.memory)
        if isinstance(policy, SelfSortingMemory):
            policy = replace(policy, capacity=stage.memory_size)
        return network.PolicyMemory(self.module, self._recipe, policy, frames)

    def _with_absent(
        self, here: network.ObjectFeatures, answer: network.Answer, absent: torch.Tensor
    ) -> network.Answer:
        """An answer of which that of absent objects is replaced by an explicit empty mask."""
        logits, tokens = answer.best_logits, answer.token(answer.ambiguous)[:, None]
        nothing = network.given(self.module, self._recipe, here, torch.zeros_like(logits[:, 0]))
        where = absent.to(logits.device)
        return network.Answer(
            torch.where(where[:, None, None, None], nothing.logits[:, :1], logits).expand(-1, 4, -1, -1),
            answer.iou,
            torch.where(where[:, None, None], nothing.tokens[:, :1], tokens).expand(-1, 4, -1),
            torch.where(where[:, None], nothing.presence, answer.presence),
        )

    def prompted(
        self,
        here: network.ObjectFeatures,
        target: torch.Tensor,
        kind: str,
        corrections: int,
        generator: torch.Generator,
    ) -> Iterator[network.Answer]:
        """Answers to a first prompt and to corrections."""
        embedding = network.without_memory(self.module, here)
        prompts = first_prompts(target, kind, generator)
        for turn in range(corrections + 1):
            answer = self.decode(embedding, here, prompts)
            answer.ambiguous = turn == 0 and kind == "click"
            yield answer
            if turn < corrections:
                last = answer.shown.detach().cpu()
                prompts = corrected(prompts, last, target, generator, self._recipe.draws_prompts)

    def tracked(
        self,
        embedding: torch.Tensor,
        here: network.ObjectFeatures,
        target: torch.Tensor,
        carried: torch.Tensor,
        stage: Stage,
        generator: torch.Generator,
    ) -> Iterator[network.Answer]:
        """The answer tracking gives, with the slice before as canvas where the model carries masks; now and
        then a click corrects it."""
        answer = self.follow(embedding, here, carried)
        yield answer
        if float(torch.rand(1, generator=generator)) < stage.tracked_corrections:
            last = answer.shown.detach().cpu()
            click = corrected(Prompts.only(last), last, target, generator, self._recipe.draws_prompts)
            yield self.decode(embedding, here, click)


class _Total:
    """Sums of loss terms over the answers of a clip."""

    def __init__(self, stage: Stage, device: torch.device) -> None:
        names = ("mask", "iou", "presence", "worse") if stage.worse_weight else ("mask", "iou", "presence")
        self._sums = dict.fromkeys(names, torch.zeros((), device=device))
        self._stage, self._weight = stage, 0.0

    def add(
        self,
        answers: Sequence[network.Answer],
        target: torch.Tensor,
        weight: float,
        absent: torch.Tensor | None = None,
    ) -> None:
        """Add the answers on one slice; what is `absent` (B,) was not asked for."""
        before: torch.Tensor | None = None
        for answer in answers:
            on_device = target.to(answer.logits.device)
            losses, errors = answer_losses(answer, on_device, self._stage.loss, absent)
            if before is not None and self._stage.worse_weight:
                # A correction that makes a slice worse is the one thing a user does not forgive.
                losses["worse"] = self._stage.worse_weight * (errors - before).clamp(min=0).mean()
            before = errors.detach()
            for key, value in losses.items():
                self._sums[key] = self._sums[key] + weight * value
            self._weight += weight

    def means(self) -> dict[str, torch.Tensor]:
        """Terms by the weight of the answers."""
        return {key: value / max(self._weight, 1e-9) for key, value in self._sums.items()}


def _squares(batch: Batch, frame: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3) where each object's view lay on the slice before, and where it lies on this one."""
    squares = batch.squares[batch.image_of]
    return squares[:, frame - 1], squares[:, frame]


def answer_losses(
    answer: network.Answer,
    target: torch.Tensor,
    weights: LossWeights = BASE_LOSS,
    unasked: torch.Tensor | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Mask, predicted IoU and presence losses of one answer; and (B,) mask losses, 0 for absent objects.

    An ambiguous prompt (one click) is answered by three masks of which the best counts; the single mask is
    trained lightly beside them. Objects that are `unasked` (B,) do not count at all.
    """
    present = (target > 0.5).flatten(1).any(1)
    used = answer.logits[:, 1:] if answer.ambiguous else answer.logits[:, :1]
    losses = torch.stack([mask_loss(used[:, m], target, weights) for m in range(used.shape[1])], dim=1)
    best = losses.min(dim=1).values
    if answer.ambiguous:
        single = mask_loss(answer.logits[:, 0], target, weights)
        best = 0.9 * best + 0.05 * losses.mean(1) + 0.05 * single
    actual = true_iou(used.detach(), target[:, None])
    predicted = answer.iou[:, 1:] if answer.ambiguous else answer.iou[:, :1]
    iou = (predicted - actual).abs().mean(1)
    # An absent object has no mask to learn from: whether it is there is the presence head's task.
    share = present.float()
    errors = best * share
    known = torch.ones_like(share) if unasked is None else (~unasked).to(share)
    presence = functional.binary_cross_entropy_with_logits(answer.presence[:, 0], share, reduction="none")
    return {
        "mask": errors.sum() / share.sum().clamp(min=1),
        "iou": weights.iou * (iou * share).sum() / share.sum().clamp(min=1),
        "presence": weights.presence * (presence * known).sum() / known.sum().clamp(min=1),
    }, errors


def moved(logits: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Logits (B, 1, s, s) over one square, resampled over another; -10 outside the first.

    Parameters
    ----------
    before, after
        (B, 3) row and column of the squares' centres and their sides, in any one unit.
    """
    if torch.equal(before, after):
        return logits
    before, after = before.to(logits.device), after.to(logits.device)
    ratio = after[:, 2] / before[:, 2]
    shift = 2 * (after[:, :2] - before[:, :2]) / before[:, 2:]
    theta = logits.new_zeros(len(logits), 2, 3, dtype=torch.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = ratio
    theta[:, :, 2] = shift.flip(-1)
    grid = functional.affine_grid(theta, list(logits.shape), align_corners=False)
    return functional.grid_sample(logits.float() + 10, grid, align_corners=False) - 10


def disturbed(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Logits (B, 1, s, s) of which each is left out, or its mask is shifted, scaled and blurred."""
    batch, size = len(logits), logits.shape[-1]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(logits.device)

    clamped = logits.float().clamp(-10, 10)
    probability = clamped.sigmoid()
    mass = probability.sum((2, 3)).clamp(min=1e-3)
    steps = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=logits.device)
    middle = torch.cat([(probability.sum(2) @ steps)[:, :1], (probability.sum(3) @ steps)[:, :1]], 1) / mass
    extent = mass.sqrt() / size
    scale = torch.exp(0.2 * normal(batch, 1))
    theta = torch.zeros(batch, 2, 3, device=logits.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale[:, 0]
    theta[:, :, 2] = middle * (1 - scale) + 0.15 * extent * normal(batch, 2)
    grid = functional.affine_grid(theta, list(logits.shape), align_corners=False)
    changed = functional.grid_sample(clamped + 10, grid, align_corners=False) - 10
    left_out = torch.rand(batch, 1, 1, 1, generator=generator).to(logits.device) < 0.2
    # Zero is neutral, as where no prompt was drawn; an absent object stays absent.
    silent = left_out & (clamped > 0).flatten(1).any(1)[:, None, None, None]
    return torch.where(silent, torch.zeros_like(changed), changed)


def coverage(objects: torch.Tensor, encoded: network.Encoded) -> torch.Tensor:
    """(B, T, s, s) share of each logit's cell that an object of (B, T, S, S) covers."""
    return functional.avg_pool2d(objects.float(), objects.shape[-1] // encoded.fine[0].shape[-1])


def _draw(names: tuple[str, ...], shares: tuple[float, ...], generator: torch.Generator) -> str:
    return names[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))]
