"""The effect as Slicer loads it: the controller with its options, mouse and keys. Needs Qt."""

from __future__ import annotations

import os
from typing import Any

import qt
import vtk
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _

_TICK_MS = 100
_SLICE_WIDGET = "qMRMLSliceWidget"


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    """The effect MedSAM2 of the Segment Editor.

    Attributes
    ----------
    controller : EffectController
        The effect without widgets; None before its options are made.
    """

    #: Path of this file, in Slicer's form.
    filePath = os.path.abspath(__file__).replace("\\", "/")

    def __init__(self, scriptedEffect: Any) -> None:
        scriptedEffect.name = "MedSAM2"  # a key, not translated
        scriptedEffect.title = _("MedSAM2")
        scriptedEffect.perSegment = True
        scriptedEffect.requireSegments = False  # Auto makes them
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self.controller: Any = None
        self._panel: Any = None
        self._interaction: Any = None
        self._timer: Any = None
        self._actors: dict[str, ViewActors] = {}  # by slice node

    def clone(self) -> Any:
        """Create an effect for another Segment Editor."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        clonedEffect = effects.qSlicerSegmentEditorScriptedEffect(None)
        clonedEffect.setPythonSource(self.filePath)
        return clonedEffect

    def icon(self) -> qt.QIcon:
        """Return the icon of the effect's button."""
        return qt.QIcon(os.path.join(os.path.dirname(self.filePath), "SegmentEditorEffect.png"))

    def helpText(self) -> str:
        """Return the help that the Segment Editor shows above the options."""
        return _("""<html>Segments what you point at, with SAM 2.<br><br>
<b>Click</b> the structure in a slice view: its mask appears on that slice. Click again to correct it, or
draw a <b>box</b> or a <b>scribble</b>. Press <b>Propagate</b> to follow it through the volume; correct any
slice by clicking there, and propagate again. Prompts can be moved with the mouse, and are saved with the
scene. <b>Auto</b> needs no prompts: a model you have trained finds its structures by itself.<br><br> <table>
<tr><td>Ctrl + click&nbsp;</td><td>the opposite: what does not belong (or does)</td></tr>
<tr><td>X</td><td>change between "belongs" and "does not belong"</td></tr>
<tr><td>C</td><td>point, box, scribble</td></tr> <tr><td>Return</td><td>propagate</td></tr>
<tr><td>N</td><td>show the next weakest slice</td></tr>
<tr><td>Delete</td><td>delete the prompt under the mouse</td></tr>
<tr><td>Esc</td><td>drop what is being drawn, and leave the effect</td></tr> </table>
The volume and its masks stay on this computer, unless you have set up a remote worker.</html>""")

    def createCursor(self, viewWidget: Any) -> qt.QCursor:
        """Return a cross, for single pixels."""
        return qt.QCursor(qt.Qt.CrossCursor)

    def setMRMLDefaults(self) -> None:
        """Give every parameter a value in the Segment Editor's node."""
        from MedSAM2SegmentLib.Panels.PanelState import DEFAULTS
        from MedSAM2SegmentLib.Worker.Settings import Settings

        settings = Settings()
        chosen = {"model": settings.defaultModel, "window": settings.defaultWindow}
        chosen["show3D"] = "1" if settings.show3D else "0"
        for name, value in {**DEFAULTS, **chosen}.items():
            self.scriptedEffect.setParameterDefault(name, value)

    def setupOptionsFrame(self) -> None:
        """Create the options, and the controller behind them. Imported here: Slicer starts without."""
        from MedSAM2SegmentLib.Effect.EffectController import EffectController
        from MedSAM2SegmentLib.Panels.OptionsPanel import OptionsPanel
        from MedSAM2SegmentLib.Prompts.SliceInteraction import SliceInteraction
        from MedSAM2SegmentLib.Segments.Editors import ScriptedEffectEditor
        from MedSAM2SegmentLib.Worker.Corrections import Corrections
        from MedSAM2SegmentLib.Worker.Settings import Settings
        from MedSAM2SegmentLib.Worker.WorkerAccess import WorkerAccess

        self.controller = EffectController(
            ScriptedEffectEditor(self.scriptedEffect),
            WorkerAccess(),
            corrections=Corrections(settings=Settings()),
        )
        self._panel = OptionsPanel(None, self.controller)
        self._interaction = SliceInteraction(self.controller.onGesture, self._onKey)
        self._timer = qt.QTimer(self._panel.widget)
        self._timer.interval = _TICK_MS
        self._timer.timeout.connect(self.controller.tick)
        self.controller.panel.onStateChanged = self._onState
        self.controller.onShow3D = _rememberShow3D
        self._onState(self.controller.state)
        self.scriptedEffect.addOptionsWidget(self._panel.widget)

    def activate(self) -> None:
        """Start working: the user has chosen the effect."""
        if self.controller is not None:
            self.controller.activate()
            self._timer.start()

    def deactivate(self) -> None:
        """Stop working: another effect was chosen. The timer goes on, to release an unused worker."""
        if self.controller is not None:
            self._interaction.drop()
            self.controller.deactivate()

    def cleanup(self) -> None:
        """Release everything: the effect is being removed."""
        controller, self.controller = self.controller, None
        if controller is None:
            return
        self._timer.stop()
        self._timer.timeout.disconnect(controller.tick)
        self._interaction.drop()
        self._actors.clear()
        controller.cleanup()
        self._panel.cleanup()
        self._panel = self._interaction = self._timer = None

    def processInteractionEvents(self, callerInteractor: Any, eventId: int, viewWidget: Any) -> bool:
        """Process mouse and keys in a view; return True if the event was consumed."""
        if self.controller is None or viewWidget.className() != _SLICE_WIDGET:
            return False
        sliceNode = viewWidget.sliceLogic().GetSliceNode()
        eventName = vtk.vtkCommand.GetStringFromEventId(eventId)
        if eventName == "MouseMoveEvent":
            self.controller.viewUsed(sliceNode)
        self._interaction.markups = self.controller.markups
        self._interaction.color = self.controller.color()
        key = sliceNode.GetID()
        if key not in self._actors:
            self._actors[key] = ViewActors(self.scriptedEffect, viewWidget)
        return self._interaction.process(callerInteractor, eventName, sliceNode, self._actors[key])

    def processViewNodeEvents(self, callerViewNode: Any, eventId: int, viewWidget: Any) -> None:
        """Do nothing: the timer notices which slice a view shows."""

    def sourceVolumeNodeChanged(self) -> None:
        """Follow the choice of another volume."""
        self._update()

    def referenceGeometryChanged(self) -> None:
        """Follow a change of the segmentation's grid."""
        self._update()

    def updateGUIFromMRML(self) -> None:
        """Follow a change of a parameter, also by this effect. The timer notices another selected segment."""
        self._update()

    def updateMRMLFromGUI(self) -> None:
        """Do nothing: the user's choices are stored in the node at once."""

    def layoutChanged(self) -> None:
        """Remove the actors: the layout, and with it the views, has changed."""
        if self.controller is not None:
            self._interaction.drop()
            self._actors.clear()

    def interactionNodeModified(self, interactionNode: Any) -> None:
        """Stay active while markups are placed: prompts are markups, too."""

    def _update(self) -> None:
        if self.controller is not None:
            self.controller.update()

    def _onKey(self, name: str, *values: Any) -> None:
        getattr(self.controller, name)(*values)

    def _onState(self, state: Any) -> None:
        if self._interaction.tool is not state.tool:
            self._interaction.drop()
        self._interaction.tool, self._interaction.negative = state.tool, state.negative
        self._panel.show(state)


def _rememberShow3D(isOn: bool) -> None:
    from MedSAM2SegmentLib.Worker.Settings import Settings

    Settings().show3D = isOn


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
