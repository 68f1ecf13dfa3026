"""The methods of the effect that Slicer calls, each delegated at once. Needs Qt."""

from __future__ import annotations

import os
from typing import Any

import qt
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _

_HELP = """<html>Segments what you point at, with SAM 2.<br><br>
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
The volume and its masks stay on this computer, unless you have set up a remote worker.</html>"""


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    """The effect MedSAM2 of the Segment Editor."""

    #: Path of this file, in Slicer's form.
    filePath = os.path.abspath(__file__).replace("\\", "/")

    def __init__(self, scriptedEffect: Any) -> None:
        scriptedEffect.name = "MedSAM2"  # a key, not translated
        scriptedEffect.title = _("MedSAM2")
        scriptedEffect.perSegment = True
        scriptedEffect.requireSegments = False  # Auto makes them
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self._window = None

    @property
    def controller(self) -> Any:
        """The effect without its windows (``EffectController``); None before its options are made."""
        return None if self._window is None else self._window.controller

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
        return _(_HELP)

    def createCursor(self, viewWidget: Any) -> qt.QCursor:
        """Return a cross, for single pixels."""
        return qt.QCursor(qt.Qt.CrossCursor)

    def setMRMLDefaults(self) -> None:
        """Give every parameter a value in the Segment Editor's node."""
        from MedSAM2SegmentLib.Effect.Parameters import DEFAULTS
        from MedSAM2SegmentLib.Worker.Settings import Settings

        settings = Settings()
        chosen = {"model": settings.defaultModel, "window": settings.defaultWindow}
        for name, value in {**DEFAULTS, **chosen}.items():
            self.scriptedEffect.setParameterDefault(name, value)

    def setupOptionsFrame(self) -> None:
        """Create the options, and the controller behind them."""
        from MedSAM2SegmentLib.Effect.EffectWindow import EffectWindow

        self._window = EffectWindow(self.scriptedEffect)
        self.scriptedEffect.addOptionsWidget(self._window.widget)

    def activate(self) -> None:
        """Start working: the user has chosen the effect."""
        if self._window is not None:
            self._window.activate()

    def deactivate(self) -> None:
        """Stop working: the user has chosen another effect, or none."""
        if self._window is not None:
            self._window.deactivate()

    def cleanup(self) -> None:
        """Release everything: the effect is being removed."""
        window, self._window = self._window, None
        if window is not None:
            window.cleanup()

    def processInteractionEvents(self, callerInteractor: Any, eventId: int, viewWidget: Any) -> bool:
        """Process mouse and keys in a view."""
        return self._window is not None and self._window.process(callerInteractor, eventId, viewWidget)

    def processViewNodeEvents(self, callerViewNode: Any, eventId: int, viewWidget: Any) -> None:
        """Do nothing: the timer notices which slice a view shows."""

    def sourceVolumeNodeChanged(self) -> None:
        """Follow the choice of another volume."""
        self._look()

    def referenceGeometryChanged(self) -> None:
        """Follow a change of the segmentation's grid."""
        self._look()

    def updateGUIFromMRML(self) -> None:
        """Follow a change of a parameter, also by this effect. The timer notices another selected segment."""
        self._look()

    def updateMRMLFromGUI(self) -> None:
        """Do nothing: the user's choices are stored in the node at once."""

    def layoutChanged(self) -> None:
        """Follow a change of the views."""
        if self._window is not None:
            self._window.clearViews()

    def interactionNodeModified(self, interactionNode: Any) -> None:
        """Stay active while markups are placed: prompts are markups, too."""

    def _look(self) -> None:
        if self._window is not None:
            self._window.controller.update()
