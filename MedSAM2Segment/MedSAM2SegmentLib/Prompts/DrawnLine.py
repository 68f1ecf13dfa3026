"""The line that follows the mouse while something is drawn in a slice view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import vtk

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_WIDTH = 2.0
_HALO = 4.0  # pixels of dark line under the coloured one, so that it shows on bright tissue, too


class Actors(Protocol):
    """Where actors of one slice view go."""

    def add(self, actor: Any) -> None:
        """Show a vtkActor2D in the view."""

    def remove(self, actor: Any) -> None:
        """Take it away again."""

    def render(self) -> None:
        """Draw the view again soon: the actors moved."""


class DrawnLine:
    """A polyline in pixels of a slice view: coloured, on a dark rim."""

    def __init__(self, actors: Actors, color: tuple[float, float, float]) -> None:
        self._actors = actors
        self._data = vtk.vtkPolyData()
        self._shown = [_actor(self._data, (0.0, 0.0, 0.0), _HALO), _actor(self._data, color, _WIDTH)]
        for actor in self._shown:
            actors.add(actor)

    def follow(self, xy: ArrayLike, *, closed: bool) -> None:
        """Run through (N, 2) positions, and back to the first when ``closed``."""
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
        """Take it out of the view."""
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
