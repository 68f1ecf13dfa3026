"""The effect without its windows: the user's actions, and what follows from them.

Everything happens in the calling thread, and nothing here waits. Prompts are nodes of the scene; whenever
they differ from those of the worker's session, the difference is sent; the masks that come back are written
as steps of Slicer's undo. So a click before the worker is ready is answered when it is, a worker that was
lost is sent everything again, and a scene that is loaded goes on where it was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled, MedSAM2Error, PromptError

from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation
from MedSAM2SegmentLib.Effect.EditedSegmentation import Change, EditedSegmentation
from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
from MedSAM2SegmentLib.Effect.PromptSync import PromptSync
from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import (
    AutoView,
    PanelState,
    Parameters,
    SliceConfidence,
    Status,
    advice,
    howToPrompt,
    kindsOf,
    sentence,
)
from MedSAM2SegmentLib.Prompts import SceneMarkups
from MedSAM2SegmentLib.Segments import ClosedSurface
from MedSAM2SegmentLib.Segments.VolumeAdapter import hardenTransform, isWarped

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from medsam2_core.prompts import SlicePrompts
    from medsam2_core.worker.client import WorkerClient
    from medsam2_core.worker.job_messages import AutoModelInfo

    from MedSAM2SegmentLib.Effect.WorkerSession import Answer, WorkerSource
    from MedSAM2SegmentLib.Prompts.Gestures import Gesture
    from MedSAM2SegmentLib.Prompts.PromptMarkups import PromptMarkups
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

#: Seconds an inactive effect keeps its worker: a short visit to another effect must not cost a restart.
IDLE_RELEASE = 600.0

#: States in which nothing can be prompted.
_BLOCKED = (
    Status.NO_VOLUME,
    Status.VOLUME_REFUSED,
    Status.NO_SEGMENT,
    Status.NO_RUNTIME,
    Status.INSTALLING,
)
_PREPARING = (Status.STARTING, Status.SENDING, Status.DOWNLOADING, Status.LOADING)
#: States in which nothing can be propagated.
_WAITING = (*_PREPARING, Status.WORKER_LOST, Status.FAILED)


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
    onShow3D
        Called when the user has switched the 3-D view after a propagation, to remember it.
    """

    def __init__(
        self, editor: SegmentEditor, source: WorkerSource, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state = PanelState()
        self.onStateChanged: Callable[[PanelState], None] = lambda state: None
        self.onShow3D: Callable[[bool], None] = lambda isOn: None
        self._clock = clock
        self.parameters = parameters = Parameters(editor.parameter, editor.setParameter)
        self._session = session = WorkerSession(source, parameters, self._onSession)
        session.onAnswer, session.onRefusal = self._onAnswer, self._onRefusal
        self._edited = edited = EditedSegmentation(editor, session, clock, self._onPrompts, self.sceneClosed)
        self._sync = sync = PromptSync(edited, session)
        self._propagation = LivePropagation(edited, session, sync, clock)
        self._auto = AutoSegmentation(edited, session, sync, parameters, clock)
        self._propagation.beforeWriting = self._auto.beforeWriting = self._followUndo
        self._auto.afterWriting = self._onSession
        self._propagation.afterPropagation = self._onPropagated
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
        return self._edited.markups

    @property
    def client(self) -> WorkerClient | None:
        """The client of the worker; None while the effect has none."""
        return self._session.client

    def color(self) -> tuple[float, float, float]:
        """Return the colour of the selected segment."""
        segment = self._edited.segment()
        return tuple(segment.GetColor()) if segment is not None else (1.0, 1.0, 0.0)

    @property
    def isWaiting(self) -> bool:
        """Whether something is on its way that will change a segment."""
        isRunning = self._propagation.isRunning or self._auto.isRunning
        return self._mustSync or self._session.isWaiting() or isRunning

    def activate(self) -> None:
        """Start working: the effect was chosen. The worker is started, too."""
        self._isActive = True
        self._edited.takeCharge()
        self._session.requestModels()
        self.update()
        if self._edited.markups is not None:
            self._edited.markups.setVisible(True)

    def deactivate(self) -> None:
        """Stop a propagation, keep its masks, and hide the prompts: another effect was chosen."""
        self._propagation.finish()
        self._auto.abort()
        self._isActive = False
        self._edited.saveProvenance()
        self._inactiveSince = self._clock()
        self._notify("")
        if self._edited.markups is not None:
            self._edited.markups.setVisible(False)
        self._publish()

    def cleanup(self) -> None:
        """Leave nothing behind but the segments and their prompts."""
        self._isActive = False
        self._propagation.abort()
        self._auto.clear()
        self._edited.saveProvenance()  # while there is a session
        self._session.release()
        self._edited.release()
        self._session.forgetViews()
        self.onStateChanged = lambda state: None
        self.onShow3D = lambda isOn: None

    def update(self) -> None:
        """Follow what has changed in the Segment Editor."""
        self._refresh()
        self._publish()

    def sceneClosed(self) -> None:
        """Let go of everything: the scene is being closed."""
        self._propagation.abort()
        self._auto.clear()
        self._session.closeVolume()
        self._edited.release()
        self._session.forgetViews()
        self._isDirty = True
        self._publish()

    def viewUsed(self, sliceNode: Any) -> None:
        """Note that the mouse is in this slice view."""
        if sliceNode is not self._session.view:
            self._session.view = sliceNode
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
        self._session.prefetch()
        store = self._edited.store
        if store is not None and self._edited.isInCharge:
            store.tick(self._session.session, self._session.origin)
        self._publish()
        self._isDirty |= self._isBusy()  # so that the end of what is running is noticed, too
        self._stamp = self._currentStamp()

    def _isDue(self) -> bool:
        """Whether a tick has work to do."""
        edited = self._edited
        if self._isDirty or edited.isTouched or self._isBusy():
            return True
        if edited.markups is not None and (edited.markups.isMoved or edited.store.isPending):
            return True
        return self._currentStamp() != self._stamp

    def _isBusy(self) -> bool:
        """Whether the worker is starting or computing, or prompts are to be sent."""
        isWaiting = self._propagation.isBusy or self._auto.isRunning or self._session.isWaiting()
        mustSync = self._mustSync and self._isActive
        return isWaiting or mustSync or self._session.phase not in (None, Status.FAILED)

    def _currentStamp(self) -> tuple[Any, ...]:
        problem = self._session.source.problem()
        isInstalling = bool(problem) and self._session.source.isInstalling()
        return self._edited.stamp(), problem, isInstalling, self._session.hasOtherWorker()

    # Prompts ------------------------------------------------------------------------------------------------

    def onGesture(self, gesture: Gesture, sliceNode: Any = None) -> None:
        """Add a point, box or scribble as a prompt, and send it."""
        edited = self._edited
        if sliceNode is not None:
            self._session.view = sliceNode
        if self._canEdit():
            self._propagation.keep()
            with self._reported():
                self._open(fromView=True)
                edited.markups.check(gesture, edited.adapter, self._checkedStack())
                with edited.markups.silenced():
                    edited.markups.add(edited.segmentID, gesture)
                if self._isActive:
                    self._sync.send(edited.segmentID)
                else:
                    self._mustSync = True
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
        if self._edited.segmentID:
            self._propagation.finish()
            self._sync.clearPrompts()
            self._edited.store.save({self._edited.segmentID: {"notes": None, "found": None}})
            if not self._edited.isPrompted:
                self._session.decideAnew()
        self._publish()

    def clearSlice(self, n: int) -> None:
        """Delete the prompts of the selected segment on a slice, and the mask they gave: one step of undo."""
        edited = self._edited
        if self._canEdit():
            self._propagation.finish()
            with self._reported():
                self._open()
                if self._session.stack is not None:
                    edited.markups.clearSlice(edited.segmentID, n, edited.adapter, self._session.stack)
            self._syncPrompts((edited.segmentID,))
        self._publish()

    def finaliseSlice(self) -> None:
        """Mark the segment on the slice in the views as final, or, if it is, not any more."""
        self._withSlice(self._sync.toggleFinal)
        self._syncPrompts((self._edited.segmentID,))
        self._publish()

    def useSegmentAsPrompt(self) -> None:
        """Add the segment as mask prompts: on the slice in the views, or on those that "keep" says."""
        keep = self.parameters.text("keep")
        if keep == "slice":
            self._withSlice(self._sync.useAsPrompt)
        else:
            self._withSlice(lambda _n: self._sync.useSlicesAsPrompts(keep))
        self._syncPrompts((self._edited.segmentID,))
        self._publish()

    def useMarkups(self) -> None:
        """Add the line, ROI or closed curve drawn last as a prompt; an ROI also sets the range of slices."""
        if self._canEdit():
            self._propagation.finish()
            with self._reported():
                self._open(fromView=True)
                self._takeMarkups()
        self._publish()

    def _takeMarkups(self) -> None:
        edited, stack = self._edited, self._checkedStack()
        scene, geometry = edited.markups.scene, edited.adapter.geometry
        axis = "" if edited.isPrompted else SceneMarkups.axisOf(scene, geometry, stack)
        if axis:
            self._session.alignTo(edited.adapter, axis)
            self._open()
            stack = self._checkedStack()
        taken = SceneMarkups.take(scene, geometry, stack)
        if taken.box is not None:
            edited.markups.check(taken.box, edited.adapter, stack)
            edited.markups.add(edited.segmentID, taken.box)
        if taken.mask is not None:
            self._sync.addMasks(dict([taken.mask]))
        if taken.limits is not None:
            before = self.parameters.text("range")
            self.parameters.put("range", f"{taken.limits[0]}..{taken.limits[1]}")
            edited.ranges[edited.segmentID] = before, self.parameters.text("range")

    # Propagation --------------------------------------------------------------------------------------------

    def propagate(self) -> None:
        """Propagate all segments that have prompts through the volume."""
        self.update()
        if not self._auto.isRunning and self._canEdit():
            self._propagation.keep()
            with self._reported():
                self._open()
                problem = self._sync.sync()
                options, model = self._session.propagationOptions, self.parameters.text("model")
                self._propagation.start(options, model, problem)
                self._notify(problem)
                self._session.clearVisited()
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
        with self._reported():
            self._propagation.discard()
        self._isDirty = True
        self._publish()

    def nextWeakest(self) -> None:
        """Show the slice of the selected segment with the lowest confidence; then the next."""
        n = self._session.weakest(self._edited.segmentID)
        if n is None:
            self._notify(_("no slice has a result that was not looked at: propagate first"))
        else:
            self._session.jump(n)
        self._publish()

    def jumpTo(self, n: int) -> None:
        """Show a slice in the views along the stack."""
        self._session.jump(n)
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
        self._edited.takeCharge()
        self.update()
        if not self._isReady():
            return  # the status line says why
        self._propagation.finish()
        self._edited.agreePose()
        with self._reported():
            chosen = self._auto.chosen
            if chosen is not None and not self._edited.isPrompted:
                self._session.alignTo(self._edited.adapter, chosen.axis)
            self._open()
            if chosen is not None and self._session.session is not None:
                self._session.checkAlong(chosen.axis)
            self._auto.start(self._session.checkedCurrent() if oneSlice else None)
        self._publish()

    # The rest of the panel ----------------------------------------------------------------------------------

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter. With another model, window or stack all prompts are sent to a new session."""
        with self._reported():
            isChanged = self.parameters.put(name, value)
            if isChanged and name == "stack":
                self._session.decideAnew()
            elif isChanged and name == "show3D":
                self.onShow3D(self.parameters.isOn(name))
            self._refresh()
        self._publish()

    def resolve(self) -> None:
        """Do what the button beside the status line offers: install, harden, restart."""
        if self._session.source.problem():
            self._session.source.resolve()
        elif self._edited.volumeProblem and isWarped(self._edited.volumeNode):
            with self._reported():
                hardenTransform(self._edited.volumeNode)
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
        changed = self._edited.update(isActive=self._isActive)
        if Change.SEGMENTATION in changed:
            self._isLoaded = True
            self._propagation.abort()
            self._auto.clear()
            self._session.close()
            self._sync.clear()
            self._session.forgetViews()
        if Change.MOVED_TOGETHER in changed:  # the same prompts about the same voxels are sent again
            self._edited.saveProvenance()
            self._edited.writer.trust()
            self._session.follow(self._edited.moved)
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
        edited = self._edited
        if edited.markups is None or not edited.markups.segmentIDs():
            return
        if not self._isNew and self._session.stack is not None:
            self._propagation.finish()
            self._sync.markAllApplied()
            self._mustSync = True
        if not edited.isPoseAgreed:
            text = _(
                "{volume!r} was moved against {segmentation!r}: the prompts now mean other places of the "
                "image, the masks stay as they are. Put both under the same transform, or undo the move"
            )
            volume, segmentation = edited.volumeNode.GetName(), edited.segmentation.GetName()
            self._notify(text.format(volume=volume, segmentation=segmentation))

    def _followUndo(self) -> None:
        """If somebody else changed the segmentation, see whether it was Slicer's undo, and follow it."""
        edited = self._edited
        if edited.markups is not None:
            edited.markups.update()
        if not edited.isTouched or edited.markups is None or edited.isReplaced:
            return
        edited.isTouched = False
        for segmentID in list(self._edited.applied):
            if edited.segment(segmentID) is None:
                self._sync.removeFromSession(segmentID)
                self._propagation.discardMasks(segmentID)
        states = self._edited.detectUndo()
        if not states:
            self._sync.onEdited()
            return
        self._propagation.abort()
        self._notify("")
        for state in states:
            self._sync.restore(state)
            if state.range is not None and state.range[1] == self.parameters.text("range"):
                self.parameters.put("range", state.range[0])
        self._mustSync = True

    def _isReady(self) -> bool:
        """Whether there are a volume, a segmentation, and a worker that can be started."""
        isChosen = self._edited.adapter is not None and self._edited.segmentation is not None
        return isChosen and not self._session.source.problem()

    def _openIfReady(self) -> None:
        """Start the worker and open the session before the user's first click."""
        if self._isReady():
            with self._reported():
                self._open()

    def _open(self, *, fromView: bool = False) -> None:
        """Open a session that fits volume, slices and settings; ``fromView``: for a prompt in the view."""
        before, edited = self._session.config, self._edited
        if not self._session.open(edited.adapter, isPrompted=edited.isPrompted, fromView=fromView):
            return
        self._mustSync = True
        self._sync.retryRefused()
        if self._isNew:
            self._sync.markAllApplied(areLoaded=self._isLoaded)
            self._isLoaded = False
        elif before is not None and before.seenAs != self._session.config.seenAs:
            self._propagation.finish()
            self._edited.markAllOutdated()
        self._isNew = False

    # Inside -------------------------------------------------------------------------------------------------

    def _canEdit(self) -> bool:
        """Whether the selected segment can be edited; notifies the user why not."""
        self._notify("")
        self._auto.clearProblem()
        self._edited.takeCharge()
        self._refresh(mayOpen=False)
        canEdit = False
        with self._reported():
            if self._isReady() and self._edited.segmentID:  # else the status line says why not
                self._edited.checkEditable()
                self._edited.agreePose()
                canEdit = self._edited.editor.confirmSegmentVisible()
        if not canEdit and self._isActive:
            self._openIfReady()
        return canEdit

    def _checkedStack(self) -> SliceStack:
        """Return the slices of the session; PromptError when there are none."""
        if self._session.stack is None:
            message = self._session.problem or _("the volume cannot be cut into slices")
            raise PromptError(message, code="no-slices")
        return self._session.stack

    def _withSlice(self, action: Callable[[int], None]) -> None:
        """Do something with the slice in the views; notify the user why, when it cannot be done."""
        if not self._canEdit():
            return
        self._propagation.finish()
        with self._reported():
            self._open(fromView=True)
            action(self._session.checkedCurrent())

    def _syncPrompts(self, segmentIDs: tuple[str, ...] | None = None) -> None:
        """Send changed prompts to the session; notify the user about those that cannot be sent.

        Those of an inactive effect are sent when it is active again.
        """
        if not self._isActive:
            self._mustSync = True
        elif not self._edited.isOutOfDate:
            problem = self._sync.sync(segmentIDs)
            if problem:
                self._notify(problem)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Within, an error is shown to the user as a notice."""
        try:
            yield
        except MedSAM2Error as error:
            self._notify(str(error))

    def _notify(self, notice: str, details: str = "") -> None:
        """Show the user a notice; an empty one removes it."""
        self._notice, self._details = notice, details

    def _publish(self) -> None:
        state = self._panelState()
        if state != self.state:
            self.state = state
            self.onStateChanged(state)

    # The state of the panel ---------------------------------------------------------------------------------

    def _panelState(self) -> PanelState:
        """Return the state of the panel, with its status line."""
        propagation, auto, session = self._propagation, self._auto, self._session
        notice = sentence(self._notice or propagation.problem or auto.problem)
        details = (
            self._details or propagation.details or auto.details or (session.report if session.phase else "")
        )
        facts = self._facts(details)
        isPropagable = self._edited.isPrompted and facts.slices > 1 and not propagation.mustDecide
        state = self._missingRuntime(facts) or self._obstacle(facts, notice)
        state = state or self._preparing(facts, notice) or self._working(facts, notice)
        isRunning, isBlocked = facts.canCancel, state.status in _BLOCKED
        isFree = not isRunning and not isBlocked and state.status not in _WAITING
        return replace(
            state,
            progress=facts.progress if isRunning else self._preparation(state.status),
            canPrompt=not isBlocked,
            canPropagate=isFree and isPropagable,
            canFinalise=isFree and bool(self._edited.segmentID) and session.session is not None,
            auto=self._autoView(state.status),
        )

    def _facts(self, details: str) -> PanelState:
        """The part of the state that does not depend on the status; the status line is made from it."""
        parameters, auto, propagation = self.parameters, self._auto, self._propagation
        segmentID, stack, markups = self._edited.segmentID, self._session.stack, self._edited.markups
        confidences = self._confidences(segmentID)
        canJump = any(one.confidence is not None and not one.prompted for one in confidences)
        progress = auto.progress if auto.isRunning else propagation.progress
        isRunning = auto.isRunning or propagation.isRunning
        return PanelState(
            details=details,
            progress=(progress.done, progress.total),
            remaining=progress.remaining if isRunning else "",
            tool=parameters.tool,
            negative=parameters.isOn("negative"),
            canCancel=isRunning,
            canKeep=propagation.mustDecide and not propagation.isRunning,
            canJump=canJump,
            canClear=bool(segmentID) and markups is not None and segmentID in markups.segmentIDs(),
            confidences=confidences,
            slices=len(stack) if stack is not None else 0,
            millilitres=self._edited.millilitres() if canJump and self._isActive else None,
            current=self._session.current() if confidences else None,
            choices=parameters.choices(self._session.models),
            values=parameters.values(),
        )

    def _confidences(self, segmentID: str) -> tuple[SliceConfidence, ...]:
        session, stack = self._session.session, self._session.stack
        if session is None or stack is None or not segmentID:
            return ()
        records, prompts = session.masks(segmentID), session.prompts(segmentID)
        if not records and not prompts:
            return ()
        return tuple(
            SliceConfidence(
                n,
                round(records[n].confidence, 3) if n in records else None,
                n in prompts,
                n in prompts and prompts[n].final,
                kindsOf(prompts[n]) if n in prompts else "",
            )
            for n in range(len(stack))
        )

    def _preparation(self, status: Status) -> tuple[int, int] | None:
        if status in (Status.SENDING, Status.DOWNLOADING, Status.LOADING):
            _step, done, total = self._session.progress()
            return done, total or 0
        if status in (Status.STARTING, Status.WORKER_LOST, Status.ENCODING):
            return 0, 0
        return None

    def _autoView(self, status: Status) -> AutoView:
        """The section about Auto; it needs no segment."""
        edited, auto = self._edited, self._auto
        isBlocked = status in _BLOCKED and status is not Status.NO_SEGMENT
        if isBlocked or edited.adapter is None or edited.segmentation is None:
            return AutoView()
        entries, chosen, known = auto.entries, auto.chosen, self._session.autoModels
        isRunning = self._propagation.isRunning or auto.isRunning
        isFree = chosen is not None and status is not Status.FAILED and not isRunning
        text = auto.summary
        if known and not entries:
            text = _(
                "None of {count} Auto models suits this volume: train one from 10 labelled images."
            ).format(count=len(known))
        elif known is not None and not known:
            text = _("No Auto model yet: train one from 10 labelled images.")
        return AutoView(
            isShown=known is not None,
            models=tuple((one.file, _label(one)) for one in entries),
            chosen=chosen.file if chosen is not None else "",
            canFindSlice=isFree,
            canFindVolume=isFree and not edited.adapter.isPicture,
            replaces=self.parameters.isOn("replaceSegments"),
            text=text,
            canTrain=known is not None and not entries,
        )

    # The status line ----------------------------------------------------------------------------------------
    # What blocks everything comes first, what is merely running last.

    def _missingRuntime(self, facts: PanelState) -> PanelState | None:
        problem = self._session.source.problem()
        if problem and self._session.source.isInstalling():
            text = _("The Python environment of MedSAM2 is being installed; you can go on working meanwhile.")
            return replace(facts, status=Status.INSTALLING, text=text, action=_("Show…"), details="")
        if problem:
            text, action = sentence(problem), _("Install…")
            return replace(facts, status=Status.NO_RUNTIME, text=text, action=action, details=problem)
        return None

    def _obstacle(self, facts: PanelState, notice: str) -> PanelState | None:
        edited, session = self._edited, self._session
        if edited.volumeNode is None:
            text = _("Choose the volume to segment as source volume, above.")
            return replace(facts, status=Status.NO_VOLUME, text=text, details="")
        if edited.volumeProblem:
            text, details = sentence(edited.volumeProblem), edited.volumeProblem
            action = _("Harden transform") if isWarped(edited.volumeNode) else ""
            return replace(facts, status=Status.VOLUME_REFUSED, text=text, action=action, details=details)
        if session.phase is Status.FAILED:
            text = sentence(session.problem or _("the worker could not be started"))
            details = facts.details or session.problem
            return replace(facts, status=Status.FAILED, text=text, action=_("Restart"), details=details)
        if not edited.segmentID and not self._auto.isRunning:
            text = _("Choose a segment in the list above, or add one.")
            if self._auto.chosen is not None:
                text = _("Choose a segment in the list above, or add one, or press Auto.")
            details = facts.details if notice else ""
            return replace(facts, status=Status.NO_SEGMENT, text=notice or text, details=details)
        return None

    def _preparing(self, facts: PanelState, notice: str) -> PanelState | None:
        """While the worker is not ready. What is prompted meanwhile is answered as soon as it is."""
        phase, problem = self._session.phase, self._session.problem
        if phase is Status.WORKER_LOST:
            reason = f" ({problem.rstrip('.')})" if problem else ""
            text = _(
                "The worker was lost{reason} and is being started again; your prompts and masks are kept."
            ).format(reason=reason)
            return replace(facts, status=phase, text=text, details=facts.details or problem)
        texts = {
            Status.STARTING: _("The worker is starting"),
            Status.SENDING: _("The volume is being sent to the worker"),
            Status.DOWNLOADING: _("The model {title!r} is being downloaded, once"),
            Status.LOADING: _("The model {title!r} is being loaded"),
        }
        if phase not in texts:
            return None
        title = dict(facts.choices["model"])[facts.values["model"]]
        meanwhile = _("you can already {how}.").format(how=howToPrompt(facts))
        if facts.canClear:
            meanwhile = _("your prompts are answered when it is done.")
        text = notice or f"{texts[phase].format(title=title)}; {meanwhile}"
        return replace(facts, status=phase, text=text, details="")

    def _working(self, facts: PanelState, notice: str) -> PanelState:
        if self._propagation.mustDecide:
            kept = self._propagation.written
            slices = _("1 slice") if kept == 1 else _("{count} slices").format(count=kept)
            text = _("Propagation was stopped after {slices}: keep them, or discard them?")
            return replace(facts, status=Status.KEEP_OR_DISCARD, text=text.format(slices=slices), details="")
        status = Status.PROMPTED if facts.canClear else Status.READY
        done, total = facts.progress or (0, 0)
        counted = _("{done} of {total} slices").format(done=done, total=total) if total else _("beginning")
        if self._auto.isRunning:
            status = Status.FINDING
            text = _("Auto: {counted}. Cancel stops, and leaves everything as it is.").format(counted=counted)
        elif self._propagation.isRunning:
            status = Status.PROPAGATING
            text = _("Propagating: {counted}. You can go on clicking; Cancel stops.").format(counted=counted)
        elif self._session.isWaiting():
            status, text = Status.ENCODING, _("The model is looking at the slice …")
        else:
            text = advice(facts)
        return replace(facts, status=status, text=notice or text)

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
        if self._edited.isOutOfDate:
            return
        self._followUndo()
        segmentID, model = answer.segmentID, self.parameters.text("model")
        self._propagation.discardMasks(segmentID, set(answer.prompts))
        isWritten = False
        with self._reported():
            isWritten = self._sync.apply(answer, model)
        isChanged = self._edited.closeStep() is not None
        if not isWritten:
            return
        if not isChanged and self._edited.wasAsked:
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
            with self._reported():
                self._propagation.goOn(segmentID, self._session.propagationOptions, model)

    def _onPropagated(self) -> None:
        """Show the segmentation in 3D after its first propagation, if the user wants that."""
        if self.parameters.isOn("show3D"):
            with self._edited.writing():
                ClosedSurface.showOnce(self._edited.segmentation)

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


def _label(entry: AutoModelInfo) -> str:
    """Return name and classes of an Auto model."""
    classes = ", ".join(entry.classes[:3]) + (", …" if len(entry.classes) > 3 else "")
    return f"{entry.name} ({classes})" if classes else entry.name
