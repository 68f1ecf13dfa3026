"""Mouse and keys in a slice view: points, boxes, scribbles and key commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import slicer
import vtk

from MedSAM2SegmentLib.Panels.PanelState import Tool
from MedSAM2SegmentLib.Prompts import SliceViews
from MedSAM2SegmentLib.Prompts.Gestures import BoxGesture, Gesture, PointGesture, ScribbleGesture

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups

_WIDTH = 2.0
_HALO = 4.0  # pixels of dark line under the coloured one, so that it shows on bright tissue, too


class Actors(Protocol):
    """The actors of one slice view."""

    def add(self, actor: Any) -> None:
        """Add a vtkActor2D to the view."""

    def remove(self, actor: Any) -> None:
        """Remove it from the view."""

    def render(self) -> None:
        """Render the view soon: the actors moved."""


class DrawnLine:
    """A polyline in pixels of a slice view, shown while something is drawn: coloured, with a dark rim."""

    def __init__(self, actors: Actors, color: tuple[float, float, float]) -> None:
        self._actors = actors
        self._data = vtk.vtkPolyData()
        self._shown = [_actor(self._data, (0.0, 0.0, 0.0), _HALO), _actor(self._data, color, _WIDTH)]
        for actor in self._shown:
            actors.add(actor)

    def follow(self, xy: ArrayLike, *, closed: bool) -> None:
        """Draw it through (N, 2) positions, and back to the first when ``closed``."""
        positions = np.asarray(xy, dtype=np.float64)
        points = vtk.vtkPoints()
        for x, y in positions[:, :2]:
            points.InsertNextPoint(x, y, 0)
        numbers = [*range(len(positions)), *([0] if closed else [])]
        lines = vtk.vtkCellArray()
        lines.InsertNextCell(len(numbers))
        for number in numbers:
            lines.InsertCellPoint(number)
        self._data.SetPoints(points)
        self._data.SetLines(lines)
        self._data.Modified()
        self._actors.render()

    def remove(self) -> None:
        """Remove it from the view."""
        for actor in self._shown:
            self._actors.remove(actor)
        self._shown.clear()
        self._actors.render()


def _actor(data: Any, color: tuple[float, float, float], width: float) -> Any:
    mapper = vtk.vtkPolyDataMapper2D()
    mapper.SetInputData(data)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetColor(*color)
    actor.GetProperty().SetLineWidth(width)
    return actor


_CLICK = 4.0  # pixels the mouse may move between press and release of a click
_STEP = 3.0  # pixels between the positions of a scribble
_SPACING, _MOST = 8.0, 32  # pixels between the control points of a finished scribble, and how many at most
_SMALLEST = 3.0  # pixels: a smaller box was a slip of the hand
_FAR = 0.1  # slices: a corner further off the plane was drawn on another slice


@dataclass
class _Drawing:
    """What is being drawn, from the first press until it becomes a gesture or is cancelled."""

    sliceNode: Any
    ras: list[NDArray[np.float64]]  # (3,) each: they stay where they are when the view is zoomed or moved
    positive: bool
    line: DrawnLine | None = None
    isPressed: bool = True
    pressedAt: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    hasMoved: bool = False


class SliceInteraction:
    """Converts events of slice views to gestures.

    Parameters
    ----------
    onGesture
        Called with a gesture (:mod:`~MedSAM2SegmentLib.Prompts.Gestures`) and the slice node of the view it
        was drawn in.
    onKey
        Called with the name of a method of the controller (``"setNegative"``, ``"setTool"``,
        ``"nextWeakest"``, ``"propagate"``), and its values.
    markups
        The prompts that may be under the mouse; None for none.

    Attributes
    ----------
    tool
        What a press means.
    negative
        Whether points and scribbles mark background. Holding Ctrl inverts it for one press.
    color
        Of the line that is being drawn: the segment's.
    """

    def __init__(
        self,
        onGesture: Callable[[Gesture, Any], None],
        onKey: Callable[..., None],
        markups: PromptMarkups | None = None,
    ) -> None:
        self.markups = markups
        self.tool = Tool.POINT
        self.negative = False
        self.color: tuple[float, float, float] = (1.0, 1.0, 0.0)
        self._onGesture, self._onKey = onGesture, onKey
        self._drawing: _Drawing | None = None

    @property
    def isDrawing(self) -> bool:
        """Whether a drawing was started and is not finished."""
        return self._drawing is not None

    def drop(self) -> None:
        """Cancel what is being drawn, if anything is."""
        drawing, self._drawing = self._drawing, None
        if drawing is not None and drawing.line is not None:
            drawing.line.remove()

    def process(self, interactor: Any, eventName: str, sliceNode: Any, actors: Actors) -> bool:
        """Process a slice view event; return True if it was consumed."""
        handler = {
            "LeftButtonPressEvent": self._onPress,
            "MouseMoveEvent": self._onMove,
            "LeftButtonReleaseEvent": self._onRelease,
            "KeyPressEvent": self._onKeyPress,
        }.get(eventName)
        return False if handler is None else handler(interactor, sliceNode, actors)

    # Mouse --------------------------------------------------------------------------------------------------

    def _onPress(self, interactor: Any, sliceNode: Any, actors: Actors) -> bool:
        if interactor.GetShiftKey() or interactor.GetAltKey() or _isPlacing(sliceNode):
            return False  # Slicer pans the view, or scrolls its slices, or places markups
        xyz = SliceViews.mousePosition(interactor, sliceNode)
        ras = SliceViews.toRas(sliceNode, xyz)[0]
        if self._continues(sliceNode):
            self._drawing.isPressed, self._drawing.pressedAt = True, xyz  # the second corner of a box
            return True
        self.drop()
        isCtrl = bool(interactor.GetControlKey())
        # Markups are dragged without Ctrl; with it, a point can be placed close to another.
        if self.markups is not None and not isCtrl and self.markups.hit(sliceNode, xyz) is not None:
            # Slicer drags only what the mouse has moved over; a prompt that was just placed came under it.
            interactor.InvokeEvent("MouseMoveEvent")
            return False
        positive = self.negative == isCtrl
        self._drawing = _Drawing(sliceNode, [ras], positive, pressedAt=xyz)
        return True

    def _onMove(self, interactor: Any, sliceNode: Any, actors: Actors) -> bool:
        drawing = self._drawing
        if drawing is None or drawing.sliceNode is not sliceNode:
            return False
        if not self._continues(sliceNode):
            self.drop()
            return False
        xyz = SliceViews.mousePosition(interactor, sliceNode)
        if np.linalg.norm(xyz - drawing.pressedAt) > _CLICK:
            drawing.hasMoved = True
        if drawing.hasMoved and self.tool is not Tool.POINT:
            self._draw(xyz, actors)
        return drawing.isPressed

    def _onRelease(self, interactor: Any, sliceNode: Any, actors: Actors) -> bool:
        drawing = self._drawing
        if drawing is None or not drawing.isPressed:
            return False
        if drawing.sliceNode is not sliceNode or not self._continues(sliceNode):
            self.drop()
            return True
        xyz = SliceViews.mousePosition(interactor, sliceNode)
        gesture: Gesture | None = None
        if self.tool is Tool.BOX:
            gesture = self._box(xyz)
            if gesture is None and not drawing.hasMoved and len(drawing.ras) == 1:
                drawing.isPressed = False  # a click: the next press is the other corner
                return True
        elif self.tool is Tool.SCRIBBLE and drawing.hasMoved:
            gesture = ScribbleGesture(self._stroke(xyz), drawing.positive)
        else:
            gesture = PointGesture(drawing.ras[0], drawing.positive)
        self.drop()
        if gesture is not None:
            self._onGesture(gesture, sliceNode)
        return True

    def _continues(self, sliceNode: Any) -> bool:
        """Whether something is being drawn in this view, which still shows the same slice."""
        drawing = self._drawing
        if drawing is None or drawing.sliceNode is not sliceNode:
            return False
        return bool(abs(SliceViews.toXyz(sliceNode, drawing.ras[0])[0, 2]) < _FAR)

    # Drawing ------------------------------------------------------------------------------------------------

    def _draw(self, xyz: NDArray[np.float64], actors: Actors) -> None:
        drawing = self._drawing
        if drawing.line is None:
            drawing.line = DrawnLine(actors, self.color)
        if self.tool is Tool.BOX:
            drawing.line.follow(self._corners(xyz), closed=True)
            return
        shown = SliceViews.toXyz(drawing.sliceNode, drawing.ras)
        if np.linalg.norm(shown[-1, :2] - xyz[:2]) >= _STEP:
            drawing.ras.append(SliceViews.toRas(drawing.sliceNode, xyz)[0])
        drawing.line.follow([*shown, xyz], closed=False)

    def _corners(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, 3) corners in the view of the box from where it was begun to ``xyz``."""
        first = SliceViews.toXyz(self._drawing.sliceNode, self._drawing.ras[0])[0]
        (left, bottom), (right, top) = np.sort([first[:2], xyz[:2]], axis=0)
        z = first[2]
        return np.array([[left, bottom, z], [right, bottom, z], [right, top, z], [left, top, z]])

    def _stroke(self, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, 3) RAS of the whole stroke, thinned to even steps that can be dragged one by one."""
        sliceNode = self._drawing.sliceNode
        drawn = np.vstack([SliceViews.toXyz(sliceNode, self._drawing.ras), xyz])
        return SliceViews.toRas(sliceNode, evenly(drawn, _SPACING, _MOST))

    def _box(self, xyz: NDArray[np.float64]) -> BoxGesture | None:
        corners = self._corners(xyz)
        if np.ptp(corners[:, :2], axis=0).min() < _SMALLEST:
            return None
        sliceNode = self._drawing.sliceNode
        return BoxGesture(SliceViews.toRas(sliceNode, corners), SliceViews.sliceThickness(sliceNode))

    # Keys ---------------------------------------------------------------------------------------------------

    def _onKeyPress(self, interactor: Any, sliceNode: Any, actors: Actors) -> bool:
        if interactor.GetControlKey() or interactor.GetAltKey() or interactor.GetShiftKey():
            return False
        key = interactor.GetKeySym() or ""
        if key == "Escape":
            wasDrawing = self.isDrawing
            self.drop()
            return wasDrawing
        if key in ("Delete", "BackSpace"):
            xyz = SliceViews.mousePosition(interactor, sliceNode)
            return self.markups is not None and self.markups.removeAt(sliceNode, xyz)
        if key.lower() == "x":
            self.negative = not self.negative
            self._onKey("setNegative", self.negative)
        elif key.lower() == "c":
            self.drop()
            tools = list(Tool)
            self.tool = tools[(tools.index(self.tool) + 1) % len(tools)]
            self._onKey("setTool", self.tool.value)
        elif key.lower() == "n":
            self._onKey("nextWeakest")
        elif key in ("Return", "KP_Enter"):
            self._onKey("propagate")
        else:
            return False
        return True


def _isPlacing(sliceNode: Any) -> bool:
    """Whether Slicer's mouse mode is to place markups."""
    scene = sliceNode.GetScene()
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton") if scene is not None else None
    placing = slicer.vtkMRMLInteractionNode.Place
    return interaction is not None and interaction.GetCurrentInteractionMode() == placing


def evenly(positions: NDArray[np.float64], spacing: float, most: int) -> NDArray[np.float64]:
    """(M, 3) positions along a polyline (N, 3), ``spacing`` apart or so, with both ends; M <= ``most``."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(positions, axis=0), axis=1))])
    count = int(np.clip(round(lengths[-1] / spacing) + 1, 2, most))
    wanted = np.linspace(0, lengths[-1], count)
    return np.stack([np.interp(wanted, lengths, positions[:, axis]) for axis in range(3)], axis=1)
