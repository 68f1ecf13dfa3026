"""The mouse of a simulated user, in Slicer's own slice views."""

import slicer
import vtk


def press(viewName, ras, control=False, to=None):
    """Press and release the left button in a slice view at a place, or drag from there to another."""
    sliceWidget = slicer.app.layoutManager().sliceWidget(viewName)
    interactor = sliceWidget.sliceView().interactor()

    def at(place, *events):
        x, y = _inPixels(sliceWidget, place)
        for event in events:
            interactor.SetEventInformation(x, y, int(control), 0, chr(0), 0, None)
            interactor.InvokeEvent(event)
        slicer.app.processEvents()

    at(ras, "EnterEvent", "MouseMoveEvent")
    at(ras, "LeftButtonPressEvent")
    if to is not None:
        for part in (0.25, 0.5, 0.75, 1.0):
            at([a + (b - a) * part for a, b in zip(ras, to, strict=True)], "MouseMoveEvent")
    at(ras if to is None else to, "LeftButtonReleaseEvent")


def _inPixels(sliceWidget, ras):
    matrix = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(sliceWidget.sliceLogic().GetSliceNode().GetXYToRAS(), matrix)
    x, y, _z, _w = matrix.MultiplyPoint((ras[0], ras[1], ras[2], 1.0))
    return round(x), round(y)
