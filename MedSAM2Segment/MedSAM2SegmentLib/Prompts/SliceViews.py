"""Pixels of a slice view and millimetres: the only place where the matrices of slice nodes are used.

A position in a slice view is ``xyz``: column and row in pixels of the view from its lower left corner, and
the slice (0 in the plane that is shown; whole steps are slices of the view). The slice node's own matrix has
zoom, pan, rotation and flips in it, so nothing else needs to know about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.imaging.geometry import transform

from MedSAM2SegmentLib.Segments.Editors import matrixToArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def mousePosition(interactor: Any, sliceNode: Any) -> NDArray[np.float64]:
    """(3,) where the mouse is in a slice view."""
    xyz = [0.0, 0.0, 0.0]
    x, y = interactor.GetEventPosition()
    convert = slicer.vtkMRMLAbstractSliceViewDisplayableManager.ConvertDeviceToXYZ
    convert(interactor, sliceNode, x, y, xyz)
    return np.array(xyz)


def toRas(sliceNode: Any, xyz: ArrayLike) -> NDArray[np.float64]:
    """(N, 3) positions in the view to (N, 3) RAS."""
    return transform(matrixToArray(sliceNode.GetXYToRAS()), xyz)


def toXyz(sliceNode: Any, ras: ArrayLike) -> NDArray[np.float64]:
    """(N, 3) RAS to (N, 3) positions in the view; the third is the distance from its plane in slices."""
    return transform(np.linalg.inv(matrixToArray(sliceNode.GetXYToRAS())), ras)


def sliceThickness(sliceNode: Any) -> float:
    """Distance in mm between neighbouring slices of the view."""
    return float(np.linalg.norm(matrixToArray(sliceNode.GetXYToRAS())[:3, 2]))
