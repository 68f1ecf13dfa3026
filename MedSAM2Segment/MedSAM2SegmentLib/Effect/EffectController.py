"""The effect without its windows: the user's actions, and what follows from them.

Everything happens in the calling thread, and nothing here waits. Prompts are nodes of the scene; whenever
they differ from those of the worker's session, the difference is sent; the masks that come back are written
as steps of Slicer's undo. So a click before the worker is ready is answered when it is, a worker that was
lost is sent everything again, and a scene that is loaded goes on where it was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError

from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation, PredictionWriter
from MedSAM2SegmentLib.Effect.EditorContext import Change, EditorContext
from MedSAM2SegmentLib.Effect.EffectStatus import EffectStatus
from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
from MedSAM2SegmentLib.Effect.PromptSync import PromptSync
from MedSAM2SegmentLib.Effect.ProvenanceSync import ProvenanceSync
from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation
from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import PanelState, Status
from MedSAM2SegmentLib.Segments.VolumeAdapter import hardenTransform

if TYPE_CHECKING:
    from medsam2_core.prompts import SlicePrompts
    from medsam2_core.worker.client import WorkerClient

    from MedSAM2SegmentLib.Effect.WorkerSession import Answer, WorkerSource
    from MedSAM2SegmentLib.Prompts.Gestures import Gesture
    from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

#: Seconds an inactive effect keeps its worker: a short visit to another effect must not cost a restart.
IDLE_RELEASE = 600.0


class EffectController:
    """What buttons, keys, gestures and Slicer's own events do.

    Parameters
    ----------
    editor
        Slicer's edit functions and the Segment Editor's parameters.
    source
        Where the worker comes from.
    clock
        Monotonic seconds.

    Attributes
    ----------
    parameters
        The user's choices.
    state
        The state of the panel.
    onStateChanged
        Called with a new state.
    """

    def __init__(
        self, editor: SegmentEditor, source: WorkerSource, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state = PanelState()
        self.onStateChanged: Callable[[PanelState], None] = lambda state: None
        self._clock = clock
        self._session = session = WorkerSession(source, self._onSession)
        self._context = context = EditorContext(editor, session, self._onPrompts, self.sceneClosed)
        self.parameters = context.parameters
        self._transaction = context.transaction
        self._provenance = ProvenanceSync(context, clock)
        self._sync = PromptSync(context)
        self._navigation = SliceNavigation(context)
        self._propagation = LivePropagation(context, clock)
        predictions = PredictionWriter(context, self._sync)
        self._auto = AutoSegmentation(context, predictions.write, clock)
        self._status = EffectStatus(context, self._propagation, self._auto, self._navigation)
        self._sync.onLoaded = self._provenance.restore
        session.onAnswer, session.onRefusal = self._onAnswer, self._onRefusal
        self._propagation.onWritten = partial(self._sync.updateTags, isPropagated=True)
        self._propagation.beforeWriting = self._auto.beforeWriting = self._followUndo
        self._auto.afterWriting = self._onSession
        self._notice = self._details = ""  # shown instead of the usual advice
        self._mustSync = False  # prompts of scene and session may differ
        self._isNew = True  # the segments show the answers of the prompts as they are
        self._isLoaded = True  # and the prompts were in the scene before
        self._isActive = False
        self._inactiveSince = 0.0
        self._isDirty = True  # the next tick has work to do
        self._stamp: Any = None  # of everything a tick checks, at the end of the last one

    # Slicer -------------------------------------------------------------------------------------------------

    @property
    def markups(self) -> PromptMarkups | None:
        """The prompts of the segmentation being edited; None without one."""
        return self._context.markups

    @property
    def client(self) -> WorkerClient | None:
        """The client of the worker; None while the effect has none."""
        return self._session.client

    def color(self) -> tuple[float, float, float]:
        """Return the colour of the selected segment."""
        segment = self._context.segment()
        return tuple(segment.GetColor()) if segment is not None else (1.0, 1.0, 0.0)

    @property
    def isWaiting(self) -> bool:
        """Whether something is on its way that will change a segment."""
        isRunning = self._propagation.isRunning or self._auto.isRunning
        return self._mustSync or self._session.isWaiting() or isRunning

    def activate(self) -> None:
        """Start working: the effect was chosen. The worker is started, too."""
        self._isActive = True
        self._context.takeCharge()
        self._session.requestModels()
        self.update()
        if self._context.markups is not None:
            self._context.markups.setVisible(True)

    def deactivate(self) -> None:
        """Stop a propagation, keep its masks, and hide the prompts: another effect was chosen."""
        self._propagation.finish()
        self._auto.abort()
        self._isActive = False
        self._provenance.save()
        self._inactiveSince = self._clock()
        self._notify("")
        if self._context.markups is not None:
            self._context.markups.setVisible(False)
        self._publish()

    def cleanup(self) -> None:
        """Leave nothing behind but the segments and their prompts."""
        self._isActive = False
        self._propagation.abort()
        self._auto.clear()
        self._provenance.save()  # while there is a session
        self._session.release()
        self._context.release()
        self._navigation.clear()
        self.onStateChanged = lambda state: None

    def update(self) -> None:
        """Follow what has changed in the Segment Editor."""
        self._refresh()
        self._publish()

    def sceneClosed(self) -> None:
        """Let go of everything: the scene is being closed."""
        self._propagation.abort()
        self._auto.clear()
        self._session.closeVolume()
        self._context.release()
        self._navigation.clear()
        self._isDirty = True
        self._publish()

    def viewUsed(self, sliceNode: Any) -> None:
        """Note that the mouse is in this slice view."""
        if sliceNode is not self._navigation.view:
            self._navigation.view = sliceNode
            self._isDirty = True

    def tick(self) -> None:
        """Do what is due; to be called about every 0.1 s. Nearly nothing when nothing has changed."""
        isUnused = not self._isActive and self._clock() - self._inactiveSince > IDLE_RELEASE
        if isUnused and self._session.client is not None:
            self._session.release()
            self._isDirty = True
        if not self._isDue():
            return
        self._refresh()
        self._isDirty = False
        self._propagation.tick()
        if self._mustSync:
            self._mustSync = False
            self._syncPrompts()
        self._navigation.prefetch()
        self._provenance.tick()
        self._publish()
        self._isDirty |= self._isBusy()  # so that the end of what is running is noticed, too
        self._stamp = self._currentStamp()

    def _isDue(self) -> bool:
        """Whether a tick has work to do."""
        if self._isDirty or self._context.isTouched or self._provenance.isPending or self._isBusy():
            return True
        markups = self._context.markups
        return (markups is not None and markups.isMoved) or self._currentStamp() != self._stamp

    def _isBusy(self) -> bool:
        """Whether the worker is starting or computing, or prompts are to be sent."""
        isWaiting = self._propagation.isBusy or self._auto.isRunning or self._session.isWaiting()
        mustSync = self._mustSync and self._isActive
        return isWaiting or mustSync or self._session.phase not in (None, Status.FAILED)

    def _currentStamp(self) -> tuple[Any, ...]:
        problem = self._session.source.problem()
        isInstalling = bool(problem) and self._session.source.isInstalling()
        return self._context.stamp(), problem, isInstalling, self._session.hasOtherWorker()

    # Prompts ------------------------------------------------------------------------------------------------

    def onGesture(self, gesture: Gesture, sliceNode: Any = None) -> None:
        """Add a point, box or scribble as a prompt, and send it."""
        context, session = self._context, self._session
        if sliceNode is not None:
            self._navigation.view = sliceNode
        if self._canEdit():
            self._propagation.keep()
            try:
                self._open(fromView=True)
                if session.stack is None:
                    message = session.problem or _("the volume cannot be cut into slices")
                    raise PromptError(message, code="no-slices")
                context.markups.check(gesture, context.adapter, session.stack)
                with context.markups.silenced():
                    context.markups.add(context.segmentID, gesture)
                if self._isActive:
                    self._sync.send(context.segmentID)
                else:
                    self._mustSync = True
            except MedSAM2Error as error:
                self._notify(str(error))
        self._publish()

    def onKey(self, what: str) -> None:
        """Do what a key in a slice view means: "propagate" or "nextWeakest"."""
        actions = {"propagate": self.propagate, "nextWeakest": self.nextWeakest}
        if what in actions:
            actions[what]()

    def setTool(self, name: Any) -> None:
        """Choose what a press in a slice view draws."""
        self.setValue("tool", getattr(name, "value", name))

    def setNegative(self, negative: bool) -> None:
        """Choose whether clicks mark background."""
        self.setValue("negative", "1" if negative else "0")

    def clearPrompts(self) -> None:
        """Delete all prompts of the selected segment; its voxels stay, as if the user had painted them."""
        self._notify("")
        self.update()
        if self._context.segmentID:
            self._propagation.finish()
            self._sync.clearPrompts()
            self._provenance.remove(self._context.segmentID)
            self._navigation.release()
        self._publish()

    def finaliseSlice(self) -> None:
        """Mark the segment on the slice in the views as final, or, if it is, not any more."""
        self._withSlice(self._sync.toggleFinal)
        self._syncPrompts((self._context.segmentID,))
        self._publish()

    def useSegmentAsPrompt(self) -> None:
        """Add the segment on the slice in the views as a mask prompt."""
        self._withSlice(self._sync.useAsPrompt)
        self._publish()

    # Propagation --------------------------------------------------------------------------------------------

    def propagate(self) -> None:
        """Propagate all segments that have prompts through the volume."""
        self.update()
        if not self._auto.isRunning and self._canEdit():
            self._propagation.keep()
            try:
                self._open()
                problem = self._sync.sync()
                options, model = self._navigation.propagationOptions, self.parameters.text("model")
                self._propagation.start(options, model, problem)
                self._notify(problem)
                self._navigation.clearVisited()
            except MedSAM2Error as error:
                self._notify(str(error))
        self._publish()

    def cancel(self) -> None:
        """Stop what is running; the user is asked whether to keep the slices of a propagation."""
        self._auto.cancel()
        self._propagation.cancel()
        self._publish()

    def keep(self) -> None:
        """Keep the slices of a stopped propagation."""
        self._propagation.keep()
        self._publish()

    def discard(self) -> None:
        """Discard the slices of a stopped propagation: one further step of undo."""
        self._followUndo()
        try:
            self._propagation.discard()
        except MedSAM2Error as error:
            self._notify(str(error))
        self._isDirty = True
        self._publish()

    def nextWeakest(self) -> None:
        """Show the slice of the selected segment with the lowest confidence; then the next."""
        n = self._navigation.weakest(self._context.segmentID)
        if n is None:
            self._notify(_("no slice has a result that was not looked at: propagate first"))
        else:
            self._navigation.jump(n)
        self._publish()

    def jumpTo(self, n: int) -> None:
        """Show a slice in the views along the stack."""
        self._navigation.jump(n)
        self._publish()

    # Auto ---------------------------------------------------------------------------------------------------

    def autoSlice(self) -> None:
        """Segment the slice in the views with the chosen Auto model."""
        self._startAuto(oneSlice=True)

    def autoVolume(self) -> None:
        """Segment the volume with the chosen Auto model."""
        self._startAuto(oneSlice=False)

    def trainAuto(self) -> None:
        """Show the section of the page on which Auto models are trained."""
        self._session.source.resolve("auto")

    def _startAuto(self, *, oneSlice: bool) -> None:
        self._notify("")
        self._context.takeCharge()
        self.update()
        if not self._isReady():
            return  # the status line says why
        self._propagation.finish()
        self._context.agreePose()
        try:
            chosen = self._auto.chosen
            if chosen is not None:
                self._navigation.alignTo(chosen.axis)
            self._open()
            if chosen is not None and self._session.session is not None:
                self._navigation.checkAlong(chosen.axis)
            self._auto.start(self._navigation.checkedCurrent() if oneSlice else None)
        except MedSAM2Error as error:
            self._notify(str(error))
        self._publish()

    # The rest of the panel ----------------------------------------------------------------------------------

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter. With another model, window or stack all prompts are sent to a new session."""
        try:
            if self.parameters.put(name, value) and name == "stack":
                self._navigation.release(force=True)
            self._refresh()
        except MedSAM2Error as error:
            self._notify(str(error))
        self._publish()

    def resolve(self) -> None:
        """Do what the button beside the status line offers: install, harden, restart."""
        if self._session.source.problem():
            self._session.source.resolve()
        elif self._context.volumeProblem and self._status.canHarden():
            try:
                hardenTransform(self._context.volumeNode)
            except MedSAM2Error as error:
                self._notify(str(error))
        else:
            self._session.retry()
            self._sync.retryRefused()
            self._mustSync = True
        self.update()

    # Following the Segment Editor ---------------------------------------------------------------------------

    def _refresh(self, *, mayOpen: bool = True) -> None:
        """Follow what has changed in the Segment Editor; ``mayOpen``: open a session if the effect is active.

        Cheap when nothing has.
        """
        self._isDirty = True
        changed = self._context.update(isActive=self._isActive)
        if Change.SEGMENTATION in changed:
            self._isLoaded = True
            self._propagation.abort()
            self._auto.clear()
            self._session.close()
            self._sync.clear()
            self._navigation.clear()
        if Change.MOVED_TOGETHER in changed:  # the same prompts about the same voxels are sent again
            self._provenance.save()
            self._context.writer.trust()
            self._navigation.follow(self._context.moved)
            self._isLoaded = True
        if Change.VOLUME in changed:
            self._propagation.abort()
            self._auto.clear()
            self._session.closeVolume()
        self._isNew |= bool(changed & {Change.SEGMENTATION, Change.VOLUME})
        if changed - {Change.MOVED_TOGETHER}:
            self._notify("")
        if Change.POSE in changed:
            self._onPose()
        self._followUndo()
        if mayOpen and self._isActive:
            self._openIfReady()

    def _onPose(self) -> None:
        """Keep masks as they are, whatever prompts mean now: the volume was moved on the segmentation."""
        context = self._context
        if context.markups is None or not context.markups.segmentIDs():
            return
        if not self._isNew and self._session.stack is not None:
            self._propagation.finish()
            self._sync.markAllApplied()
            self._mustSync = True
        if not context.isPoseAgreed:
            text = _(
                "{volume!r} was moved against {segmentation!r}: the prompts now mean other places of the "
                "image, the masks stay as they are. Put both under the same transform, or undo the move"
            )
            volume, segmentation = context.volumeNode.GetName(), context.segmentation.GetName()
            self._notify(text.format(volume=volume, segmentation=segmentation))

    def _followUndo(self) -> None:
        """If somebody else changed the segmentation, see whether it was Slicer's undo, and follow it."""
        context = self._context
        if context.markups is not None:
            context.markups.update()
        if not context.isTouched or context.markups is None:
            return
        context.isTouched = False
        for segmentID in list(self._transaction.applied):
            if context.segment(segmentID) is None:
                self._sync.removeFromSession(segmentID)
                self._propagation.discardMasks(segmentID)
        states = self._transaction.detectUndo()
        if not states:
            self._sync.onEdited()
            return
        self._propagation.abort()
        self._notify("")
        for state in states:
            self._sync.restore(state)
        self._mustSync = True

    def _isReady(self) -> bool:
        """Whether there are a volume, a segmentation, and a worker that can be started."""
        context = self._context
        return (
            context.adapter is not None
            and context.segmentation is not None
            and not self._session.source.problem()
        )

    def _openIfReady(self) -> None:
        """Start the worker and open the session before the user's first click."""
        if self._isReady():
            try:
                self._open()
            except MedSAM2Error as error:
                self._notify(str(error))

    def _open(self, *, fromView: bool = False) -> None:
        """Open a session that fits volume, slices and settings; ``fromView``: for a prompt in the view."""
        before = self._session.config
        if not self._navigation.open(fromView=fromView):
            return
        self._mustSync = True
        self._sync.retryRefused()
        if self._isNew:
            self._sync.markAllApplied(areLoaded=self._isLoaded)
            self._isLoaded = False
        elif before is not None and before.seenAs != self._session.config.seenAs:
            self._propagation.finish()
            self._transaction.markAllOutdated()
        self._isNew = False

    # Inside -------------------------------------------------------------------------------------------------

    def _canEdit(self) -> bool:
        """Whether the selected segment can be edited; notifies the user why not."""
        self._notify("")
        self._auto.clearProblem()
        self._context.takeCharge()
        self._refresh(mayOpen=False)
        canEdit = False
        try:
            if self._isReady() and self._context.segmentID:  # else the status line says why not
                self._context.checkEditable()
                self._context.agreePose()
                canEdit = self._context.editor.confirmSegmentVisible()
        except MedSAM2Error as error:
            self._notify(str(error))
        if not canEdit and self._isActive:
            self._openIfReady()
        return canEdit

    def _withSlice(self, action: Callable[[int], None]) -> None:
        """Do something with the slice in the views; notify the user why, when it cannot be done."""
        if not self._canEdit():
            return
        self._propagation.finish()
        try:
            self._open(fromView=True)
            action(self._navigation.checkedCurrent())
        except MedSAM2Error as error:
            self._notify(str(error))

    def _syncPrompts(self, segmentIDs: tuple[str, ...] | None = None) -> None:
        """Send changed prompts to the session; notify the user about those that cannot be sent.

        Those of an inactive effect are sent when it is active again.
        """
        if not self._isActive:
            self._mustSync = True
        elif self._context.isInCharge:
            problem = self._sync.sync(segmentIDs)
            if problem:
                self._notify(problem)

    def _notify(self, notice: str, details: str = "") -> None:
        """Show the user a notice; an empty one removes it."""
        self._notice, self._details = notice, details

    def _publish(self) -> None:
        state = self._status.state(self._notice, self._details)
        if state != self.state:
            self.state = state
            self.onStateChanged(state)

    # Events -------------------------------------------------------------------------------------------------

    def _onPrompts(self, segmentIDs: tuple[str, ...]) -> None:
        self._notify("")
        self._isDirty = True
        self._followUndo()
        self._syncPrompts(segmentIDs)
        self._publish()

    def _onSession(self) -> None:
        self._isDirty = self._mustSync = True
        self._publish()

    def _onAnswer(self, answer: Answer) -> None:
        """Write an answer of the session as a step of its own."""
        if self._context.isOutOfDate:
            return
        self._followUndo()
        segmentID, model = answer.segmentID, self.parameters.text("model")
        self._propagation.discardMasks(segmentID, set(answer.prompts))
        isWritten = False
        try:
            isWritten = self._sync.apply(answer, model)
        except MedSAM2Error as error:
            self._notify(str(error))
        isChanged = self._transaction.close() is not None
        if not isWritten:
            return
        if not isChanged and self._transaction.wasAsked:
            self._notify(
                _(
                    "the masking of the Segment Editor kept all of it out: choose another editable area or "
                    "intensity range"
                )
            )
        else:
            self._notifyEmpty(answer)
        isLast = self._session.session is not None and not self._session.isWaiting()
        if isLast and self.parameters.isOn("autoPropagate"):
            try:
                self._propagation.goOn(segmentID, self._navigation.propagationOptions, model)
            except MedSAM2Error as error:
                self._notify(str(error))

    def _notifyEmpty(self, answer: Answer) -> None:
        """Notify the user where the model has found nothing: there is nothing to be seen."""
        masks, prompts = sorted(answer.masks.items()), answer.prompts
        empty = [n for n, record in masks if record.is_empty and not prompts[n].final]
        if empty:
            one, many = _("slice {n}").format(n=empty[0]), _("{count} slices").format(count=len(empty))
            text = _("the model found nothing on {where}: click what belongs to it, or draw a box round it")
            self._notify(text.format(where=one if len(empty) == 1 else many))

    def _onRefusal(self, segmentID: str, prompts: Mapping[int, SlicePrompts], error: MedSAM2Error) -> None:
        """Note that the session could not answer."""
        self._sync.markRefused(segmentID, prompts)
        if not isinstance(error, Cancelled):
            self._notify(str(error), getattr(error, "details", ""))
