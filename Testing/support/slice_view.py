"""Real slice views that render off screen, and the hand that clicks in them."""

import itertools

import numpy as np
import vtk
from MedSAM2SegmentLib.Prompts import SliceViews
from trame_slicer.core import SlicerApp
from trame_slicer.views import SliceView
from trame_slicer.views.render_scheduler import NoScheduleRendering
from vtk.util.numpy_support import vtk_to_numpy

SIZE = (400, 300)

_app = None
_views = {}


def the_app() -> SlicerApp:
    """One application for all tests (logics register themselves with global factories); empty scene."""
    global _app  # noqa: PLW0603
    if _app is None:
        _app = SlicerApp()
    return _app


def a_slice_view(name, orientation="Axial", size=SIZE):
    """The view of that name, as new: views are kept, for they cost more than most tests."""
    if name not in _views:
        _views[name] = OffscreenSliceView(the_app(), name, size)
    view = _views[name]
    view.renew(orientation, size)
    return view


class Actors:
    """The port for actors of a view, that counts them."""

    def __init__(self, view):
        self.view = view
        self.shown = []
        self.renders = 0

    def add(self, actor):
        self.shown.append(actor)
        self.view.renderer().AddViewProp(actor)

    def remove(self, actor):
        self.shown.remove(actor)
        self.view.renderer().RemoveViewProp(actor)

    def render(self):
        self.renders += 1


class OffscreenSliceView:
    """A slice view with hands on mouse and keyboard.

    ``process`` takes each event first, as an effect of the segment editor does, and what it returns True for
    nobody else sees.
    """

    EVENTS = (
        "LeftButtonPressEvent",
        "LeftButtonReleaseEvent",
        "LeftButtonDoubleClickEvent",
        "RightButtonPressEvent",
        "RightButtonReleaseEvent",
        "MiddleButtonPressEvent",
        "MiddleButtonReleaseEvent",
        "MouseMoveEvent",
        "MouseWheelForwardEvent",
        "MouseWheelBackwardEvent",
        "KeyPressEvent",
        "KeyReleaseEvent",
        "EnterEvent",
        "LeaveEvent",
    )

    def __init__(self, app, name, size=SIZE):
        # Drawn when somebody looks, and before the hand does something, as between two events in Slicer.
        strategy = NoScheduleRendering()
        self.view = SliceView(app.scene, app.app_logic, name, scheduled_render_strategy=strategy)
        self.node = self.view.get_view_node()
        self.interactor = self.view.interactor()
        self.actors = Actors(self.view)
        self.process = None
        self.consumed = []
        self._commands = [self._observe(name) for name in self.EVENTS]

    def renew(self, orientation, size):
        """Nothing heard, upright, as large as asked for."""
        self.process = None
        self.consumed.clear()
        assert self.node is self.view.get_view_node() and not self.actors.shown
        self.view.render_window().SetSize(*size)
        self.interactor.UpdateSize(*size)
        self.view.set_orientation(orientation)

    def _observe(self, name):
        tag = None

        def on_event(_caller, _event):
            if self.process is not None and self.process(self.interactor, name, self.node, self.actors):
                self.consumed.append(name)
                self.interactor.GetCommand(tag).SetAbortFlag(1)

        tag = self.interactor.AddObserver(name, on_event, 1.0)
        return tag

    # What is seen -------------------------------------------------------------------------------------------

    def show(self, volume_node, ras=None):
        """Show a volume, as large as it fits, through ``ras``."""
        self.view.set_background_volume_id(volume_node.GetID())
        self.view.fit_view_to_content()
        if ras is not None:
            self.node.JumpSliceByCentering(*ras)
        self.view.render()
        return self

    def picture(self):
        """(H, W, 3) uint8, the first row on top."""
        self.view.render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.view.render_window())
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()

        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()

    def pixel_of(self, ras):
        """The pixel (x, y) nearest to a place in space."""
        return tuple(int(v) for v in np.rint(SliceViews.toXyz(self.node, ras)[0, :2]))

    def ras_of(self, pixel):
        """(3,) where a pixel is in space."""
        return SliceViews.toRas(self.node, [*pixel, 0])[0]

    # What the hand does -------------------------------------------------------------------------------------

    def event(self, name, pixel=None, *, ctrl=False, shift=False, alt=False, key=""):
        """Any event, at a pixel or where the mouse is."""
        x, y = self.interactor.GetEventPosition() if pixel is None else pixel
        self.interactor.SetEventInformation(int(x), int(y), int(ctrl), int(shift), key[:1] or chr(0), 0, key)
        self.interactor.SetAltKey(int(alt))
        self.interactor.InvokeEvent(name)

    def move(self, pixel, **modifiers):
        self.event("MouseMoveEvent", pixel, **modifiers)

    def press(self, pixel, **modifiers):
        self.view.render()
        self.move(pixel, **modifiers)
        self.event("LeftButtonPressEvent", pixel, **modifiers)

    def release(self, pixel, **modifiers):
        self.event("LeftButtonReleaseEvent", pixel, **modifiers)

    def click(self, pixel, **modifiers):
        self.press(pixel, **modifiers)
        self.release(pixel, **modifiers)

    def drag(self, *pixels, steps=5, **modifiers):
        """Press at the first pixel, go through the others, release at the last."""
        self.press(pixels[0], **modifiers)
        for first, last in itertools.pairwise(pixels):
            for step in range(1, steps + 1):
                self.move(tuple(np.rint(np.add(first, np.subtract(last, first) * step / steps))), **modifiers)
        self.release(pixels[-1], **modifiers)

    def type(self, key, **modifiers):
        self.event("KeyPressEvent", key=key, **modifiers)
        self.event("KeyReleaseEvent", key=key, **modifiers)
