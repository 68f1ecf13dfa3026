"""Keeps session and segments in step with what happens by itself.

That is: other choices in the Segment Editor, a moved volume, Slicer's undo, prompts somebody changed, and the
worker's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import Cancelled, MedSAM2Error

from MedSAM2SegmentLib.Effect.EditedSegmentation import Change, EditedSegmentation
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import Notice, Parameters, Status
from MedSAM2SegmentLib.Segments import ClosedSurface, ImageStacks

if TYPE_CHECKING:
    from medsam2_core.prompts import SlicePrompts

    from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation
    from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
    from MedSAM2SegmentLib.Effect.PromptSync import PromptSync
    from MedSAM2SegmentLib.Effect.SegmentMeasurement import SegmentMeasurement
    from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation
    from MedSAM2SegmentLib.Effect.WorkerSession import Answer, WorkerSession


class EditorSync:
    """Follows the Segment Editor, opens the session that fits, and writes what the worker answers.

    Attributes
    ----------
    mustSync
        Whether the prompts of scene and session may differ.
    isDirty
        Whether the next tick has work to do.
    """

    def __init__(
        self,
        parameters: Parameters,
        sync: PromptSync,
        edited: EditedSegmentation,
        session: WorkerSession,
        propagation: LivePropagation,
        auto: AutoSegmentation,
        navigation: SliceNavigation,
        notice: Notice,
        measurement: SegmentMeasurement,
        publish: Callable[[], None],
    ) -> None:
        self._parameters, self._edited, self._session, self._sync = parameters, edited, session, sync
        self._propagation, self._auto, self._navigation = propagation, auto, navigation
        self._notice, self._measurement, self._publish = notice, measurement, publish
        edited.onPrompts, edited.onClosing = self._onPrompts, self._onClosing
        session.onAnswer, session.onRefusal = self._onAnswer, self._onRefusal
        propagation.beforeWriting = auto.beforeWriting = self.followUndo
        propagation.afterWriting = partial(sync.updateTags, isPropagated=True)
        propagation.afterPropagation = self._onPropagated
        session.onChange = auto.afterWriting = self._onSession
        self.mustSync = False
        self.isDirty = True
        self._isNew = True  # the segments show the answers of the prompts as they are
        self._isLoaded = True  # and the prompts were in the scene before
        self._areImages = False  # the slices of the volume
        self._stamp: Any = None  # of everything a tick checks, at the end of the last one

    @property
    def isWaiting(self) -> bool:
        """Whether something is on its way that will change a segment."""
        isRunning = self._propagation.isRunning or self._auto.isRunning
        return self.mustSync or self._session.isWaiting() or isRunning

    def tick(self) -> None:
        """Do what is due; nearly nothing when nothing has changed."""
        if not self._isDue():
            return
        self.refresh()
        self.isDirty = False
        self._propagation.tick()
        if self.mustSync:
            self.mustSync = False
            self.syncPrompts()
        self._navigation.prefetch()
        self._measurement.tick(isIdle=not self._isBusy())
        store = self._edited.store
        if store is not None and self._edited.isInCharge:
            store.tick(self._session.session, self._session.origin)
        self._publish()
        self.isDirty |= self._isBusy()  # so that the end of what is running is noticed, too
        self._stamp = self._currentStamp()

    def _isDue(self) -> bool:
        edited = self._edited
        if self.isDirty or edited.isTouched or self._isBusy() or self._measurement.isPending:
            return True
        if edited.markups is not None and (edited.markups.isMoved or edited.store.isPending):
            return True
        return self._currentStamp() != self._stamp

    def _isBusy(self) -> bool:
        """Whether the worker is starting or computing, or prompts are to be sent."""
        isWaiting = self._propagation.isBusy or self._auto.isRunning or self._session.isWaiting()
        mustSync = self.mustSync and self._edited.isActive
        return isWaiting or mustSync or self._session.phase not in (None, Status.FAILED)

    def _currentStamp(self) -> tuple[Any, ...]:
        problem = self._session.source.problem()
        isInstalling = bool(problem) and self._session.source.isInstalling()
        return self._edited.stamp(), problem, isInstalling, self._session.hasOtherWorker()

    # Following ----------------------------------------------------------------------------------------------

    def refresh(self, *, mayOpen: bool = True) -> None:
        """Follow what has changed in the Segment Editor; ``mayOpen``: open a session if the effect is active.

        Cheap when nothing has.
        """
        self.isDirty = True
        changed = self._edited.update()
        if Change.SEGMENTATION in changed:
            self._isLoaded = True
            self._propagation.abort()
            self._auto.clear()
            self._session.close()
            self._sync.clear()
            self._navigation.forget()
        if Change.MOVED_TOGETHER in changed:  # the same prompts about the same voxels are sent again
            self._edited.saveProvenance()
            self._edited.writer.trust()
            self._session.follow(self._edited.moved)
            self._isLoaded = True
        if Change.VOLUME in changed:
            self._propagation.abort()
            self._auto.clear()
            self._session.closeVolume()
            self._followImages()
        self._isNew |= bool(changed & {Change.SEGMENTATION, Change.VOLUME})
        if changed - {Change.MOVED_TOGETHER}:
            self._notice.show("")
        if Change.POSE in changed:
            self._onPose()
        self.followUndo()
        if mayOpen and self._edited.isActive:
            self.openIfReady()

    def _followImages(self) -> None:
        """Take slices as images of their own where they were opened as such, and another volume's not."""
        areImages = ImageStacks.areImages(self._edited.volumeNode)
        before, now = ("auto", "images") if areImages else ("images", "auto")
        if areImages != self._areImages and self._parameters.text("stack") == before:
            self._parameters.put("stack", now)
            self._session.decideAnew()
        self._areImages = areImages

    def _onPose(self) -> None:
        """Keep masks as they are, whatever prompts mean now: the volume was moved on the segmentation."""
        edited = self._edited
        if edited.markups is None or not edited.markups.segmentIDs():
            return
        if not self._isNew and self._session.stack is not None:
            self._propagation.finish()
            self._sync.markAllApplied()
            self.mustSync = True
        if not edited.isPoseAgreed:
            text = _(
                "{volume!r} was moved against {segmentation!r}: the prompts now mean other places of the "
                "image, the masks stay as they are. Put both under the same transform, or undo the move"
            )
            volume, segmentation = edited.volumeNode.GetName(), edited.segmentation.GetName()
            self._notice.show(text.format(volume=volume, segmentation=segmentation))

    def followUndo(self) -> None:
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
        self._notice.show("")
        for state in states:
            self._sync.restore(state)
            if state.range is not None and state.range[1] == self._parameters.text("range"):
                self._parameters.put("range", state.range[0])
        self.mustSync = True

    def isReady(self) -> bool:
        """Whether there are a volume, a segmentation, and a worker that can be started."""
        isChosen = self._edited.adapter is not None and self._edited.segmentation is not None
        return isChosen and not self._session.source.problem()

    def openIfReady(self) -> None:
        """Start the worker and open the session before the user's first click."""
        if self.isReady():
            with self._notice.reported():
                self.open()

    def open(self, *, fromView: bool = False) -> None:
        """Open a session that fits volume, slices and settings; ``fromView``: for a prompt in the view."""
        before, edited = self._session.config, self._edited
        view = self._navigation.view
        if not self._session.open(edited.adapter, view, isPrompted=edited.isPrompted, fromView=fromView):
            return
        self.mustSync = True
        self._sync.retryRefused()
        if self._isNew:
            self._sync.markAllApplied(areLoaded=self._isLoaded)
            self._isLoaded = False
        elif before is not None and before.seenAs != self._session.config.seenAs:
            self._propagation.finish()
            self._edited.markAllOutdated()
        self._isNew = False

    def syncPrompts(self, segmentIDs: tuple[str, ...] | None = None) -> None:
        """Send changed prompts to the session; notify the user about those that cannot be sent.

        Those of an inactive effect are sent when it is active again.
        """
        if not self._edited.isActive:
            self.mustSync = True
        elif not self._edited.isOutOfDate:
            problem = self._sync.sync(segmentIDs)
            if problem:
                self._notice.show(problem)

    # Events -------------------------------------------------------------------------------------------------

    def _onPrompts(self, segmentIDs: tuple[str, ...]) -> None:
        self._notice.show("")
        self.isDirty = True
        self.followUndo()
        self._propagation.pause()
        self.syncPrompts(segmentIDs)
        self._publish()

    def _onSession(self) -> None:
        self.isDirty = self.mustSync = True
        self._publish()

    def _onClosing(self) -> None:
        """Let go of everything: the scene is being closed."""
        self._propagation.abort()
        self._auto.clear()
        self._session.closeVolume()
        self._edited.release()
        self._navigation.forget()
        self.isDirty = True
        self._publish()

    def _onAnswer(self, answer: Answer) -> None:
        """Write an answer of the session as a step of its own."""
        if self._edited.isOutOfDate:
            return
        self.followUndo()
        self._propagation.discardMasks(answer.segmentID, set(answer.prompts))
        isWritten = False
        with self._notice.reported():
            isWritten = self._sync.apply(answer)
        isChanged = self._edited.closeStep() is not None
        if not isWritten:
            return
        if not isChanged and self._edited.wasAsked:
            self._notice.show(
                _(
                    "the masking of the Segment Editor kept all of it out: choose another editable area or "
                    "intensity range"
                )
            )
        else:
            self._notifyEmpty(answer)
        isLast = self._session.session is not None and not self._session.isWaiting()
        if isLast and self._parameters.isOn("autoPropagate"):
            with self._notice.reported():
                self._propagation.goOn(answer.segmentID, newUndo=not isChanged)

    def _onPropagated(self) -> None:
        """Show the segmentation in 3D after its first propagation, if the user wants that."""
        if self._parameters.isOn("show3D"):
            with self._edited.writing():
                ClosedSurface.showOnce(self._edited.segmentation)

    def _notifyEmpty(self, answer: Answer) -> None:
        """Notify the user where the model has found nothing: there is nothing to be seen."""
        masks, prompts = sorted(answer.masks.items()), answer.prompts
        empty = [n for n, record in masks if record.is_empty and not prompts[n].final]
        if empty:
            one, many = _("slice {n}").format(n=empty[0]), _("{count} slices").format(count=len(empty))
            text = _("the model found nothing on {where}: click what belongs to it, or draw a box round it")
            self._notice.show(text.format(where=one if len(empty) == 1 else many))

    def _onRefusal(self, segmentID: str, prompts: Mapping[int, SlicePrompts], error: MedSAM2Error) -> None:
        """Note that the session could not answer."""
        self._sync.markRefused(segmentID, prompts)
        if not isinstance(error, Cancelled):
            self._notice.show(str(error), getattr(error, "details", ""))
