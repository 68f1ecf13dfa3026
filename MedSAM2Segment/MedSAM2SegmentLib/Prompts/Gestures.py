"""Points, boxes and scribbles drawn with the mouse, in world RAS; independent of any volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from medsam2_core.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class PointGesture:
    """A foreground (``positive``) or background point at ``ras`` (3,)."""

    ras: NDArray[np.float64]
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ras", _points(self.ras, "a point")[0])


@dataclass(frozen=True, eq=False)
class BoxGesture:
    """A rectangle drawn in a slice view.

    ``rasCorners`` (4, 3) in order round the rectangle, the first edge along the view's rows. ``thickness`` is
    the distance in mm between neighbouring slices of that view: how far from its plane the box is shown.
    ``drawn`` are the lengths in mm of the lines it was made of.
    """

    rasCorners: NDArray[np.float64]
    thickness: float = 1.0
    drawn: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        corners = _points(self.rasCorners, "a box")
        if len(corners) != 4:
            raise PromptError(
                f"a box has four corners, not {len(corners)}: draw it again", code="box-corners"
            )
        object.__setattr__(self, "rasCorners", corners)


@dataclass(frozen=True, eq=False)
class ScribbleGesture:
    """A stroke through ``ras`` (N, 3), N at least 2, in the order it was drawn."""

    ras: NDArray[np.float64]
    positive: bool = True

    def __post_init__(self) -> None:
        points = _points(self.ras, "a scribble")
        if len(points) < 2:
            raise PromptError("a scribble needs at least two positions: draw it again", code="scribble-short")
        object.__setattr__(self, "ras", points)


Gesture = PointGesture | BoxGesture | ScribbleGesture


def _points(values: ArrayLike, what: str) -> NDArray[np.float64]:
    points = np.array(values, dtype=np.float64, ndmin=2)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise PromptError(
            f"{what} needs finite positions (N, 3) in RAS, not {values!r}", code="position-not-finite"
        )
    points.flags.writeable = False
    return points
