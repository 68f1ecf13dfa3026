"""The simulated user of training: boxes, clicks, rough masks, and clicks where the model is wrong.

Everything works on a batch at the size of the mask logits (S/4), positions in units of the image side.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from medsam2_core.engine.recipe import PromptRecipe, draw_cones


@dataclass(frozen=True)
class Prompts:
    """Prompts of B objects, all of one kind, as SAM 2's batched prompt encoder wants them.

    Attributes
    ----------
    boxes_xyxy
        (B, 4) in units of the image side, or None.
    points_xy, labels
        (B, P, 2) and (B, P): 1 positive, 0 negative, -1 none. P may be 0.
    previous_logits
        (B, 1, s, s) the mask so far, or None.
    """

    boxes_xyxy: torch.Tensor | None
    points_xy: torch.Tensor
    labels: torch.Tensor
    previous_logits: torch.Tensor | None

    @classmethod
    def only(cls, previous_logits: torch.Tensor) -> "Prompts":
        """No box and no click, just the mask so far."""
        batch = len(previous_logits)
        return cls(
            None, previous_logits.new_zeros(batch, 0, 2), previous_logits.new_zeros(batch, 0), previous_logits
        )

    @classmethod
    def none(cls, batch: int) -> "Prompts":
        """Nothing at all, as while SAM 2 tracks."""
        return cls(None, torch.zeros(batch, 0, 2), torch.zeros(batch, 0), None)

    def to(self, device: torch.device) -> "Prompts":
        """The same prompts on another device."""
        boxes = None if self.boxes_xyxy is None else self.boxes_xyxy.to(device)
        logits = None if self.previous_logits is None else self.previous_logits.to(device)
        return Prompts(boxes, self.points_xy.to(device), self.labels.to(device), logits)

    def tokens(self, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Coordinates in pixels (B, N, 2) and labels (B, N): a box as labels 2 and 3, then clicks.

        Without any, one padding point, as SAM 2 does.
        """
        coords, labels = self.points_xy, self.labels
        if self.boxes_xyxy is not None:
            corner_labels = torch.tensor([[2, 3]], device=labels.device).expand(len(labels), -1)
            coords = torch.cat([self.boxes_xyxy.view(-1, 2, 2), coords], dim=1)
            labels = torch.cat([corner_labels, labels], dim=1)
        if labels.shape[1] == 0:
            coords = torch.zeros(len(labels), 1, 2, device=labels.device)
            labels = -torch.ones(len(labels), 1, device=labels.device)
        # Half a pixel back: SAM 2 adds it again to reach pixel centres.
        return coords * image_size - 0.5, labels.int()


def first_prompts(targets: torch.Tensor, kind: str, generator: torch.Generator) -> Prompts:
    """A box, a click or a rough mask for each object.

    Parameters
    ----------
    targets
        (B, s, s) float coverage 0..1; each must hold something.
    kind
        "box", "click", "points" (two to four clicks, as along a stroke) or "mask".
    """
    hard = targets > 0.5
    # An object thinner than a cell covers none by half: take the cells it covers most.
    hard |= ~hard.flatten(1).any(1)[:, None, None] & (targets >= targets.amax((1, 2), keepdim=True))
    batch = len(targets)
    points, labels = torch.zeros(batch, 0, 2), torch.zeros(batch, 0)
    if kind == "box":
        return Prompts(jittered_boxes(hard, 0.05, generator), points, labels, None)
    if kind == "click":
        return Prompts(None, _sample_inside(hard, generator)[:, None], torch.ones(batch, 1), None)
    if kind == "points":
        count = int(torch.randint(2, 5, (1,), generator=generator))
        several = [_sample_inside(hard, generator) for _ in range(count)]
        return Prompts(None, torch.stack(several, dim=1), torch.ones(batch, count), None)
    return Prompts(None, points, labels, rough_masks(targets, generator))


def jittered_boxes(hard: torch.Tensor, jitter: float, generator: torch.Generator) -> torch.Tensor:
    """(B, 4) boxes around (B, s, s) masks, each side moved by up to ``jitter`` of the box's size."""
    size = hard.shape[-1]
    steps = torch.arange(size)
    columns, rows = hard.any(1), hard.any(2)
    first = torch.stack([torch.where(line, steps, size).amin(1) for line in (columns, rows)], dim=1)
    last = torch.stack([torch.where(line, steps, -1).amax(1) + 1 for line in (columns, rows)], dim=1)
    box = torch.cat([first, last], dim=1).float() / size
    extent = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    noise = torch.rand(box.shape, generator=generator) * 2 - 1
    return box + noise * jitter * extent


def rough_masks(targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 1, s, s) logits: each mask moved, scaled, bent, as the mask of a neighbouring slice would be."""
    batch, size = targets.shape[0], targets.shape[-1]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    extent = targets.flatten(1).mean(1).sqrt()[:, None]  # objects keep their scale of error
    scale = torch.exp(0.12 * normal(batch, 1, 1))
    theta = torch.eye(2)[None] * scale + 0.08 * normal(batch, 2, 2)
    shift = 0.15 * extent[..., None] * normal(batch, 2, 1)
    grid = functional.affine_grid(
        torch.cat([theta, shift], dim=2), [batch, 1, size, size], align_corners=False
    )
    bend = functional.interpolate(
        normal(batch, 2, 5, 5), size=(size, size), mode="bicubic", align_corners=True
    )
    amount = 0.12 * extent[:, :, None, None] * torch.rand(batch, 1, 1, 1, generator=generator)
    grid = grid + (bend * amount).permute(0, 2, 3, 1)
    moved = functional.grid_sample(targets[:, None], grid, align_corners=False, padding_mode="zeros")
    sharpness = 2 + 10 * torch.rand(batch, 1, 1, 1, generator=generator)
    return ((moved - 0.5) * 2 * sharpness).clamp(-10, 10)


def corrected(
    prompts: Prompts,
    logits: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
    draws: bool = True,
) -> Prompts:
    """Add one click where the error is largest; the previous logits become the canvas.

    Parameters
    ----------
    logits
        (B, 1, s, s) the model's last answer, detached.
    targets
        (B, s, s) coverage.
    """
    truth = targets > 0.5
    answer = logits[:, 0] > 0
    missed, extra = truth & ~answer, answer & ~truth
    # The middle of the largest error: error density in a window, most where a wide error is deepest.
    density = torch.stack([missed, extra], dim=1).float()
    density = functional.avg_pool2d(density, 7, 1, 3) + 0.5 * functional.avg_pool2d(density, 15, 1, 7)
    density = density * torch.stack([missed, extra], dim=1)
    flat = density.flatten(1)
    peaked = (flat / flat.amax(1, keepdim=True).clamp(min=1e-6)).pow(6) + 1e-9
    index = torch.multinomial(peaked, 1, generator=generator)[:, 0]
    size = targets.shape[-1]
    label = torch.where(index < size * size, 1, 0)
    nothing = flat.amax(1) < 1e-6  # perfect: no click
    label = torch.where(nothing, -1, label)
    index = index % (size * size)
    point = (torch.stack([index % size, index // size], dim=1).float() + 0.5) / size
    # As in use: a positive click where nothing was found is drawn as a first click is.
    lost = (label == 1) & ~answer.flatten(1).any(1)
    if draws and lost.any():
        cones = draw_cones(point[:, None], label[:, None], size, PromptRecipe().cone_radius)
        logits = torch.where(lost[:, None, None, None], cones, logits)
    return Prompts(
        prompts.boxes_xyxy,
        torch.cat([prompts.points_xy, point[:, None]], dim=1),
        torch.cat([prompts.labels, label[:, None]], dim=1),
        logits,
    )


def _sample_inside(hard: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 2) a position in each mask: anywhere, or nearer its middle than its border."""
    power = (0, 2, 4)[int(torch.randint(3, (1,), generator=generator))]
    size = hard.shape[-1]
    depth = functional.avg_pool2d(hard[:, None].float(), 9, 1, 4)[:, 0] * hard
    # Nothing at all outside: beside an object of a pixel or two the smallest weight would matter.
    weights = depth.flatten(1).pow(power) * hard.flatten(1) + 1e-9 * hard.flatten(1)
    index = torch.multinomial(weights, 1, generator=generator)[:, 0]
    point = torch.stack([index % size, index // size], dim=1).float()
    return (point + torch.rand(point.shape, generator=generator)) / size
