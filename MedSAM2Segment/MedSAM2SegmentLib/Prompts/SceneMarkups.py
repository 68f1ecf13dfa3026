"""Prompts from Slicer's own Markups: the line, the ROI or the closed curve that was drawn last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from medsam2_core.errors import PromptError
from medsam2_core.imaging.slices import SliceStack
from medsam2_core.prompts.shapes import of_corners, of_line, of_outline

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Prompts import PromptNodes
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture
from MedSAM2SegmentLib.Segments.Editors import nodesOf

if TYPE_CHECKING:
    from medsam2_core.imaging.geometry import Geometry
    from medsam2_core.prompts import Box
    from numpy.typing import NDArray

LINE, ROI, CURVE = "vtkMRMLMarkupsLineNode", "vtkMRMLMarkupsROINode", "vtkMRMLMarkupsClosedCurveNode"
_POINTS = {LINE: 2, ROI: 1, CURVE: 3}
#: Cosine of the smallest angle at which a line counts as the diameter across another.
_ACROSS = 0.5


@dataclass(frozen=True)
class TakenMarkup:
    """What a Markups node becomes.

    Attributes
    ----------
    box
        A box to be drawn; None for a closed curve.
    mask
        Slice and mask (H, W) of a closed curve.
    limits
        First and last slice that an ROI meets.
    """

    box: BoxGesture | None = None
    mask: tuple[int, NDArray[np.bool_]] | None = None
    limits: tuple[int, int] | None = None


def take(scene: Any, geometry: Geometry, stack: SliceStack) -> TakenMarkup:
    """Return the prompt of the line, ROI or closed curve that was added to the scene last, of those shown.

    A line that crosses the one drawn before it, on the same slice, is the diameter across it.

    Parameters
    ----------
    geometry
        Of the volume, in world RAS.

    Raises
    ------
    PromptError
        There is none, or it does not fit the slices.
    """
    drawn = [node for node in nodesOf(scene, "vtkMRMLMarkupsNode") if _isDrawn(node)]
    if not drawn:
        raise PromptError(
            _("no line, ROI or closed curve is shown: draw one with Slicer's Markups, then press this again"),
            code="no-markups",
        )
    node = drawn[-1]
    if node.IsA(ROI):
        box, limits = of_corners(_extent(node, geometry, stack), stack)
        return TakenMarkup(boxGesture(box, geometry, stack), limits=limits)
    if node.IsA(CURVE):
        outline = geometry.to_ijk(_curvePoints(node))
        return TakenMarkup(mask=of_outline(outline, stack))
    lines = [geometry.to_ijk(PromptNodes.controlPoints(one)) for one in drawn if one.IsA(LINE)]
    longest, across = lines[-1], None
    if len(lines) > 1 and _cross(lines[-1], lines[-2], geometry, stack):
        across, longest = sorted(
            lines[-2:], key=lambda line: float(np.linalg.norm(_direction(line, geometry)))
        )
    lengths = tuple(
        float(np.linalg.norm(_direction(line, geometry))) for line in (longest, across) if line is not None
    )
    return TakenMarkup(boxGesture(of_line(longest, stack, across), geometry, stack, lengths))


def axisOf(scene: Any, geometry: Geometry, stack: SliceStack) -> str:
    """Return the array axis ("i", "j", "k") of the slices on which the markup that :func:`take` takes fits.

    Empty when it fits the slices of ``stack``, or none.
    """
    for axis in ("", "k", "j", "i"):
        try:
            take(scene, geometry, SliceStack.along(stack.volume, axis) if axis else stack)
        except PromptError:
            continue
        return axis
    return ""


def _direction(line: NDArray[np.float64], geometry: Geometry) -> NDArray[np.float64]:
    """Return (3,) from one end of a line in IJK to the other, in mm."""
    first, last = geometry.to_ras(line)
    return last - first


def _isDrawn(node: Any) -> bool:
    """Whether a node is a finished line, ROI or closed curve that is shown, and no prompt of ours."""
    needed = next((count for name, count in _POINTS.items() if node.IsA(name)), None)
    if needed is None or PromptNodes.isPrompt(node) or not node.GetDisplayVisibility():
        return False
    return len(PromptNodes.controlPoints(node)) >= needed


def _extent(node: Any, geometry: Geometry, stack: SliceStack) -> NDArray[np.float64]:
    """Return (2, 3) opposite corners in IJK of the box, upright on the slices, that an ROI fills of them."""
    frame, size = PromptNodes.boxFrame(node)
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    corners = stack.to_slice(geometry.to_ijk(signs * size / 2 @ frame[:3, :3].T + frame[:3, 3]))
    highest = np.array([*stack.shape_hw[::-1], len(stack)]) - 0.5
    first, last = (np.clip(ends, -0.5, highest) for ends in (corners.min(axis=0), corners.max(axis=0)))
    if (first >= last).any():
        raise PromptError(
            _("the ROI is outside the volume: move it onto the image"), code="roi-outside-volume"
        )
    return stack.to_ijk([first, last])


def _curvePoints(node: Any) -> NDArray[np.float64]:
    """Return (N, 3) world RAS along a closed curve, as it is drawn between its control points."""
    points = node.GetCurvePointsWorld()
    along = [points.GetPoint(index) for index in range(points.GetNumberOfPoints())]
    return np.array(along or PromptNodes.controlPoints(node), dtype=np.float64).reshape(-1, 3)


def _cross(
    one: NDArray[np.float64], other: NDArray[np.float64], geometry: Geometry, stack: SliceStack
) -> bool:
    """Whether two lines in IJK lie on one slice and cross at a large angle."""
    if np.ptp(stack.to_slice(np.concatenate([one, other]))[:, 2]) >= 1:
        return False
    (a, b), (c, d) = geometry.to_ras(one), geometry.to_ras(other)
    along, across = b - a, d - c
    lengths = np.linalg.norm(along) * np.linalg.norm(across)
    if lengths <= 0 or abs(along @ across) > _ACROSS * lengths:
        return False
    normal = np.cross(along, across)
    sides = [np.cross(along, c - a) @ normal, np.cross(along, d - a) @ normal]
    sides += [np.cross(across, a - c) @ normal, np.cross(across, b - c) @ normal]
    return bool(sides[0] * sides[1] <= 0 and sides[2] * sides[3] <= 0)


def boxGesture(box: Box, geometry: Geometry, stack: SliceStack, drawn: tuple[float, ...] = ()) -> BoxGesture:
    """Return a box on a slice as if it had been drawn there."""
    (x0, y0, n), (x1, y1, m) = stack.to_slice([box.first_ijk, box.last_ijk])
    n = round((n + m) / 2)
    corners = stack.to_ijk([[x0, y0, n], [x1, y0, n], [x1, y1, n], [x0, y1, n]])
    return BoxGesture(geometry.to_ras(corners), stack.slice_mm, drawn)
