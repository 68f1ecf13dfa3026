"""What the user may ask of the effect: each button, key and gesture has its method here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error, PromptError

from MedSAM2SegmentLib.Segments.VolumeAdapter import hardenTransform

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.Automatic import Automatic
    from MedSAM2SegmentLib.Effect.ByHand import ByHand
    from MedSAM2SegmentLib.Effect.Conversation import Conversation
    from MedSAM2SegmentLib.Effect.Filling import Filling
    from MedSAM2SegmentLib.Effect.Listening import Listening
    from MedSAM2SegmentLib.Effect.PanelMaker import PanelMaker
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink, WorkerSource
    from MedSAM2SegmentLib.Effect.Slicing import Slicing
    from MedSAM2SegmentLib.Effect.Workplace import Workplace
    from MedSAM2SegmentLib.Prompts.Gestures import Gesture


class UserActions:
    """The part of an :class:`~MedSAM2SegmentLib.Effect.EffectController.EffectController` that users call."""

    if TYPE_CHECKING:
        parameters: Parameters
        _source: WorkerSource
        _workplace: Workplace
        _link: SessionLink
        _conversation: Conversation
        _byHand: ByHand
        _slicing: Slicing
        _filling: Filling
        _automatic: Automatic
        _panel: PanelMaker
        _listening: Listening

        def look(self) -> None: ...
        def _open(self, *, fromView: bool = False) -> None: ...
        def _publish(self) -> None: ...

    # Prompts ------------------------------------------------------------------------------------------------

    def onGesture(self, gesture: Gesture, sliceNode: Any = None) -> None:
        """The user clicked, or drew a box or a scribble."""
        if sliceNode is not None:
            self._slicing.view = sliceNode
        if not self._mayEdit():
            self._publish()
            return
        self._filling.keep()
        try:
            self._open(fromView=True)
            if self._link.stack is None:
                raise PromptError(self._link.problem or "the volume cannot be cut into slices")
            self._workplace.markups.check(gesture, self._workplace.adapter, self._link.stack)
            self._workplace.markups.add(self._workplace.segmentID, gesture)
        except MedSAM2Error as error:
            self._listening.say(str(error))
        self._publish()

    def onKey(self, what: str) -> None:
        """A key was pressed in a slice view: "negative" and "tool" were changed already by who reads keys."""
        actions = {"propagate": self.propagate, "nextWeakest": self.nextWeakest}
        if what in actions:
            actions[what]()

    def setTool(self, name: Any) -> None:
        """Choose what a press in a slice view means."""
        self.setValue("tool", getattr(name, "value", name))

    def setNegative(self, negative: bool) -> None:
        """Choose whether clicks say "does not belong"."""
        self.setValue("negative", "1" if negative else "0")

    def clearPrompts(self) -> None:
        """Delete all prompts of the selected segment. What it shows stays, as if the user had painted it."""
        self._listening.say("")
        self.look()
        if self._workplace.segmentID:
            self._filling.settle()
            self._byHand.takeOver()
            self._slicing.relax()
        self._publish()

    def finaliseSlice(self) -> None:
        """Take the segment on the slice that is looked at as final, or, if it is, no longer."""
        self._withSlice(self._byHand.finalise)
        self._listening.sync((self._workplace.segmentID,))
        self._publish()

    def useSegmentAsPrompt(self) -> None:
        """Say that the segment on the slice that is looked at is right as it stands."""
        self._withSlice(self._byHand.useAsPrompt)
        self._publish()

    # Propagation --------------------------------------------------------------------------------------------

    def propagate(self) -> None:
        """Follow all segments that have prompts through the volume."""
        self.look()
        if self._automatic.isRunning or not self._mayEdit():
            self._publish()
            return
        self._filling.keep()
        try:
            self._open()
            self._listening.propagate()
        except MedSAM2Error as error:
            self._listening.say(str(error))
        self._publish()

    def cancel(self) -> None:
        """Stop what is running. Of slices that were filled in, the user is asked whether to keep them."""
        self._automatic.cancel()
        self._filling.cancel()
        self._publish()

    def keep(self) -> None:
        """Keep what a stopped propagation has filled in."""
        self._filling.keep()
        self._publish()

    def discard(self) -> None:
        """Take back what a stopped propagation has filled in: one further step of undo."""
        self._listening.followUndo()
        try:
            self._filling.discard()
        except MedSAM2Error as error:
            self._listening.say(str(error))
        self._publish()

    def nextWeakest(self) -> None:
        """Show the slice of the selected segment the model was least sure about; then the next."""
        n = self._slicing.weakest(self._workplace.segmentID)
        if n is None:
            self._listening.say("no slice has a result that was not looked at: propagate first")
        else:
            self._slicing.jump(n)
        self._publish()

    def jumpTo(self, n: int) -> None:
        """Show a slice in the views along the stack."""
        self._slicing.jump(n)
        self._publish()

    # Auto ---------------------------------------------------------------------------------------------------

    def autoSlice(self) -> None:
        """Let the chosen Auto model segment the slice that is looked at."""
        self._find(oneSlice=True)

    def autoVolume(self) -> None:
        """Let the chosen Auto model segment the volume."""
        self._find(oneSlice=False)

    def trainAuto(self) -> None:
        """Show the page on which Auto models are trained."""
        self._source.resolve()

    def _find(self, *, oneSlice: bool) -> None:
        self._listening.say("")
        self._workplace.takeCharge()
        self.look()
        if self._workplace.adapter is None or self._workplace.segmentation is None or self._source.problem():
            self._publish()
            return  # the status line tells already
        self._filling.settle()
        self._workplace.agree()
        try:
            chosen = self._automatic.chosen
            if chosen is not None:
                self._slicing.turnTo(chosen.axis)
            self._open()
            if chosen is not None and self._link.session is not None:
                self._slicing.checkAlong(chosen.axis)
            self._automatic.begin(self._slice() if oneSlice else None)
        except MedSAM2Error as error:
            self._listening.say(str(error))
        self._publish()

    # The rest of the panel ----------------------------------------------------------------------------------

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter. With another model, window or stack all is said again, to a new session."""
        try:
            if self.parameters.put(name, value) and name == "stack":
                self._slicing.relax(force=True)
            self.look()
        except MedSAM2Error as error:
            self._listening.say(str(error))
        self._publish()

    def resolve(self) -> None:
        """The button beside the status line: install, harden, restart, whatever it says."""
        if self._source.problem():
            self._source.resolve()
        elif self._workplace.volumeProblem and self._panel.canHarden():
            try:
                hardenTransform(self._workplace.volumeNode)
            except MedSAM2Error as error:
                self._listening.say(str(error))
        else:
            self._link.retry()
            self._conversation.askAgain()
            self._listening.mustSync = True
        self.look()

    # Inside -------------------------------------------------------------------------------------------------

    def _mayEdit(self) -> bool:
        """Whether the selected segment can be worked on; says why not."""
        self._listening.say("")
        self._automatic.noted()
        self._workplace.takeCharge()
        self.look()
        if self._workplace.adapter is None or not self._workplace.segmentID or self._source.problem():
            return False  # the status line tells already
        refusal = self._workplace.refusal()
        if refusal:
            self._listening.say(refusal)
            return False
        self._workplace.agree()
        return self._workplace.editor.confirmSegmentVisible()

    def _withSlice(self, action: Callable[[int], None]) -> None:
        """Do something with the slice that is looked at; say why, when it cannot be done."""
        if not self._mayEdit():
            return
        self._filling.settle()
        try:
            self._open(fromView=True)
            action(self._slice())
        except MedSAM2Error as error:
            self._listening.say(str(error))

    def _slice(self) -> int:
        """The slice that is looked at. PromptError when no view shows one."""
        n = self._slicing.current()
        if n is None:
            raise PromptError("no view shows a slice that is segmented: click one in the strip first")
        return n
