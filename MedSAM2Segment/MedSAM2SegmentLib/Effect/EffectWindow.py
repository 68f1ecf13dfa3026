"""The effect in Slicer's window: the controller with panel, slice views and timer. Needs Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import qt
import vtk

from MedSAM2SegmentLib.Effect.EffectController import EffectController
from MedSAM2SegmentLib.Panels.OptionsPanel import OptionsPanel
from MedSAM2SegmentLib.Prompts.SliceInteraction import SliceInteraction
from MedSAM2SegmentLib.Segments.Editors import ScriptedEffectEditor
from MedSAM2SegmentLib.Worker.WorkerAccess import WorkerAccess

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Panels.PanelState import PanelState

_TICK_MS = 100
_SLICE_WIDGET = "qMRMLSliceWidget"


class EffectWindow:
    """All of the effect that exists once its options are shown.

    Parameters
    ----------
    scriptedEffect
        ``qSlicerSegmentEditorScriptedEffect``.
    source
        Where the worker comes from; Slicer's own when absent.

    Attributes
    ----------
    widget
        The options, for the effect's frame.
    controller
        The effect without its windows.
    """

    def __init__(self, scriptedEffect: Any, source: Any = None) -> None:
        self._scriptedEffect = scriptedEffect
        self.controller = EffectController(ScriptedEffectEditor(scriptedEffect), source or WorkerAccess())
        self._panel = OptionsPanel(None, self.controller)
        self.widget = self._panel.widget
        self._interaction = SliceInteraction(self.controller.onGesture, self._onKey)
        self._actors: dict[str, ViewActors] = {}  # by slice node
        self._timer = qt.QTimer(self.widget)
        self._timer.interval = _TICK_MS
        self._timer.timeout.connect(self.controller.tick)
        self.controller.onStateChanged = self._onState
        self._onState(self.controller.state)

    def activate(self) -> None:
        """Start working: the effect was chosen."""
        self.controller.activate()
        self._timer.start()

    def deactivate(self) -> None:
        """Stop working: another effect was chosen. The timer goes on, to release an unused worker."""
        self._interaction.drop()
        self.controller.deactivate()

    def cleanup(self) -> None:
        """Remove timer, observers and actors, and give the worker back."""
        self._timer.stop()
        self._timer.timeout.disconnect(self.controller.tick)
        self._interaction.drop()
        self._actors.clear()
        self.controller.cleanup()
        self._panel.cleanup()

    def process(self, interactor: Any, eventID: int, viewWidget: Any) -> bool:
        """Process a view event; return True if it was consumed."""
        if viewWidget.className() != _SLICE_WIDGET:
            return False
        sliceNode = viewWidget.sliceLogic().GetSliceNode()
        eventName = vtk.vtkCommand.GetStringFromEventId(eventID)
        if eventName == "MouseMoveEvent":
            self.controller.viewUsed(sliceNode)
        self._interaction.markups = self.controller.markups
        self._interaction.color = self.controller.color()
        key = sliceNode.GetID()
        if key not in self._actors:
            self._actors[key] = ViewActors(self._scriptedEffect, viewWidget)
        return self._interaction.process(interactor, eventName, sliceNode, self._actors[key])

    def clearViews(self) -> None:
        """Remove the actors: the layout, and with it the views, has changed."""
        self._interaction.drop()
        self._actors.clear()

    def _onKey(self, what: str) -> None:
        if what == "negative":
            self.controller.setNegative(self._interaction.negative)
        elif what == "tool":
            self.controller.setTool(self._interaction.tool)
        else:
            self.controller.onKey(what)

    def _onState(self, state: PanelState) -> None:
        if self._interaction.tool is not state.tool:
            self._interaction.drop()
        self._interaction.tool, self._interaction.negative = state.tool, state.negative
        self._panel.show(state)


class ViewActors:
    """Actors of one slice view, added through the effect (see ``SliceInteraction.Actors``)."""

    def __init__(self, scriptedEffect: Any, viewWidget: Any) -> None:
        self._scriptedEffect, self._viewWidget = scriptedEffect, viewWidget

    def add(self, actor: Any) -> None:
        """Add an actor to the view."""
        self._scriptedEffect.addActor2D(self._viewWidget, actor)

    def remove(self, actor: Any) -> None:
        """Remove an actor."""
        self._scriptedEffect.removeActor2D(self._viewWidget, actor)

    def render(self) -> None:
        """Render the view soon."""
        self._scriptedEffect.scheduleRender(self._viewWidget)
