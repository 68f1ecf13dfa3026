"""What a model receives besides stock SAM 2 prompts.

Published SAM 2 weights take boxes and clicks as tokens and nothing else, and get exactly that (``STOCK``). A
small model trained from nothing learns to use prompts much sooner when they are also drawn: the ellipse
inscribed in a box, a disc around a click, the mask of the slice before. They enter as what SAM 2 calls a
mask prompt, logits of shape (B, 1, S/4, S/4). Training and inference share this one function, so that they
cannot drift apart.
"""

from dataclasses import dataclass

import torch

# Logits drawn for inside and outside. Mild, so that the network still decides where the image disagrees.
INSIDE, OUTSIDE = 4.0, -4.0
# A mask so far is surer than a box, and a click is surer still: logits beyond this are cut.
SURE = 10.0


@dataclass(frozen=True)
class PromptRecipe:
    """How prompts are drawn for one model.

    Attributes
    ----------
    draws_prompts
        Draw boxes as inscribed ellipses and clicks as discs.
    disc_radius
        Radius of a click's disc, as a fraction of the image side.
    negative_radius
        The same for negative clicks; None is ``disc_radius``. A large one would wipe out thin objects beside
        the click.
    cone_radius
        A first click also draws a cone, the rough guess "something about here": its logits fall with the
        distance and cross zero at this fraction of the image side.
    carries_mask
        While tracking, the mask of the slice before is drawn for the next one.
    least_iou, least_score
        While tracking, a lower predicted IoU or object score (a logit) is taken as "the object is not here".
        Calibrated on validation clips.
    presence
        While tracking, an object is absent, too, where the sum of these numbers times
        :func:`~medsam2_core.engine.presence.evidence` is below 0; empty: not looked at. Calibrated on volumes
        tracked from one box.
    box_prior
        How much the drawn box counts beside the answer: see :func:`box_prior_weight`.
    zoom
        Side of the region of interest the model sees, in units of the prompt's box.
    """

    draws_prompts: bool = False
    disc_radius: float = 0.05
    negative_radius: float | None = None
    cone_radius: float = 0.125
    carries_mask: bool = False
    least_iou: float = 0.0
    least_score: float = 0.0
    presence: tuple[float, ...] = ()
    box_prior: float = 0.0
    zoom: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "presence", tuple(self.presence))  # JSON knows lists only


STOCK = PromptRecipe()


def draw_box(boxes_xyxy: torch.Tensor, size: int) -> torch.Tensor:
    """Draw the ellipse inscribed in each box.

    Parameters
    ----------
    boxes_xyxy
        (B, 4) corners in units of the image side (0 to 1).

    Returns
    -------
    torch.Tensor
        (B, 1, size, size) logits between ``OUTSIDE`` and ``INSIDE``, zero crossing on the ellipse.
    """
    centre = (boxes_xyxy[:, None, :2] + boxes_xyxy[:, None, 2:]) / 2
    radius = (boxes_xyxy[:, None, 2:] - boxes_xyxy[:, None, :2]).clamp(min=1e-4) / 2
    grid = _pixel_centres(size, boxes_xyxy)  # (1, size*size, 2)
    distance = ((grid - centre) / radius).square().sum(-1)  # 1 on the ellipse
    logits = (INSIDE * 2 * (1 - distance)).clamp(OUTSIDE, INSIDE)
    return logits.view(-1, 1, size, size)


def draw_points(
    canvas: torch.Tensor,
    points_xy: torch.Tensor,
    labels: torch.Tensor,
    radius: float,
    negative_radius: float | None = None,
) -> torch.Tensor:
    """Draw a disc for each click over the logits already there.

    Parameters
    ----------
    canvas
        (B, 1, s, s) logits.
    points_xy
        (B, P, 2) positions in units of the image side.
    labels
        (B, P) 1 positive, 0 negative; anything else is padding and draws nothing.
    radius, negative_radius
        Radii of the discs of positive and negative clicks in units of the image side; None is the same.

    Returns
    -------
    torch.Tensor
        (B, 1, s, s) logits; where discs overlap the later click wins.
    """
    size = canvas.shape[-1]
    grid = _pixel_centres(size, points_xy)
    flat = canvas.flatten(1)
    negative_radius = radius if negative_radius is None else negative_radius
    # Never smaller than the pixel it lies in, whatever the size of the drawing.
    positive_reach, negative_reach = (max(r, 0.75 / size) ** 2 for r in (radius, negative_radius))
    for index in range(points_xy.shape[1]):
        squared = (grid - points_xy[:, index : index + 1]).square().sum(-1)
        label = labels[:, index : index + 1]
        inside = (squared <= positive_reach) & (label == 1)
        outside = (squared <= negative_reach) & (label == 0)
        flat = torch.where(inside, torch.full_like(flat, SURE), flat)
        flat = torch.where(outside, torch.full_like(flat, -SURE), flat)
    return flat.view_as(canvas)


def draw_cones(points_xy: torch.Tensor, labels: torch.Tensor, size: int, radius: float) -> torch.Tensor:
    """Draw a cone around every positive click.

    ``INSIDE`` at the click, 0 at ``radius``, ``OUTSIDE`` from twice that on; zeros for an object without a
    positive click.

    Parameters
    ----------
    points_xy, labels
        (B, P, 2) in units of the image side and (B, P).
    """
    grid = _pixel_centres(size, points_xy)
    distance = (grid[:, None] - points_xy[:, :, None]).square().sum(-1).sqrt()  # (B, P, size * size)
    distance = distance.masked_fill((labels != 1)[..., None], torch.inf).amin(1)
    logits = (INSIDE * (1 - distance / radius)).clamp(OUTSIDE, INSIDE)
    logits = torch.where(torch.isinf(distance), torch.zeros_like(logits), logits)
    return logits.view(-1, 1, size, size)


def drawn_prompt(
    recipe: PromptRecipe,
    size: int,
    boxes_xyxy: torch.Tensor | None = None,
    points_xy: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    previous_logits: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return the mask prompt a model gets for these prompts, or None.

    The previous mask (of the same slice while correcting, of the slice before while tracking) is the canvas
    if there is one; else the box's ellipse; else cones around positive clicks. Clicks are drawn on top.
    With a stock recipe the previous logits are returned as they are.

    Parameters
    ----------
    boxes_xyxy, points_xy
        (B, 4) and (B, P, 2), in units of the image side.
    labels
        (B, P) 1 positive, 0 negative, other values padding.
    previous_logits
        (B, 1, size, size).
    """
    if not recipe.draws_prompts:
        return previous_logits
    if previous_logits is not None:
        canvas = previous_logits.clamp(-SURE, SURE)
    elif boxes_xyxy is not None:
        canvas = draw_box(boxes_xyxy, size)
    elif points_xy is not None and labels is not None:
        canvas = draw_cones(points_xy, labels, size, recipe.cone_radius)
    else:
        return None
    if points_xy is not None and labels is not None and points_xy.shape[1] > 0:
        canvas = draw_points(canvas, points_xy, labels, recipe.disc_radius, recipe.negative_radius)
    return canvas


def box_prior_weight(recipe: PromptRecipe, predicted_iou: float, clicks: int) -> float:
    """Return the weight of the mask prompt's logits in a sum with the answer's, where a box was given.

    The less a small model trusts its answer, the more the box itself says: the ellipse in it, or after
    clicks the mask so far. ``(box_prior * (1 - predicted_iou)) ** 3``, shared between box and clicks.
    Chosen on held-back training images.
    """
    doubt = recipe.box_prior * (1 - min(max(predicted_iou, 0.0), 1.0))
    return doubt**3 / (1 + clicks)


def _pixel_centres(size: int, like: torch.Tensor) -> torch.Tensor:
    steps = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, size * size, 2)
