"""The effect without its windows: the user's actions, and what follows from them.

Everything happens in the calling thread, and nothing here waits. Prompts are nodes of the scene; whenever
they differ from those of the worker's session, the difference is sent; the masks that come back are written
as steps of Slicer's undo. So a click before the worker is ready is answered when it is, a worker that was
lost is sent everything again, and a scene that is loaded goes on where it was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation
from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
from MedSAM2SegmentLib.Effect.EditorSync import EditorSync
from MedSAM2SegmentLib.Effect.Learning import Learning
from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
from MedSAM2SegmentLib.Effect.OtherScan import OtherScan
from MedSAM2SegmentLib.Effect.PanelPresenter import PanelPresenter
from MedSAM2SegmentLib.Effect.PromptSync import PromptSync
from MedSAM2SegmentLib.Effect.SegmentMeasurement import SegmentMeasurement
from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation
from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import Notice, PanelState, Parameters
from MedSAM2SegmentLib.Prompts import SceneMarkups
from MedSAM2SegmentLib.Segments import ImageStacks
from MedSAM2SegmentLib.Segments.AlgorithmTags import methodsOf
from MedSAM2SegmentLib.Segments.VolumeAdapter import hardenTransform, isWarped

if TYPE_CHECKING:
    from medsam2_core.worker.client import WorkerClient

    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSource
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
    corrections
        Where corrected slices are kept (Corrections); None keeps none.

    Attributes
    ----------
    panel
        The state of the panel, and who is called when it changes.
    onShow3D
        Called when the user has switched the 3-D view after a propagation, to remember it.
    """

    def __init__(
        self,
        editor: SegmentEditor,
        source: WorkerSource,
        clock: Callable[[], float] = time.monotonic,
        corrections: Any = None,
    ) -> None:
        self.onShow3D: Callable[[bool], None] = lambda isOn: None
        self._clock = clock
        self.parameters = parameters = Parameters(editor.parameter, editor.setParameter)
        self._session = session = WorkerSession(source, parameters)
        self._navigation = navigation = SliceNavigation(session)
        self._edited = edited = EditedSegmentation(editor, session, clock)
        self._sync = sync = PromptSync(edited, session)
        self._propagation = propagation = LivePropagation(edited, session, clock)
        self._auto = auto = AutoSegmentation(edited, session, parameters, clock)
        self._notice = notice = Notice()
        measurement = SegmentMeasurement(edited, session, clock)
        self._other = other = OtherScan(edited, session, auto.search, parameters)
        parts = edited, session, propagation, auto, navigation, notice, measurement
        self._learning = learning = Learning(edited, session, corrections)
        self.panel = PanelPresenter(parameters, *parts, learning, other)
        other.onCompared = self.panel.publish
        self._editor = EditorSync(parameters, sync, *parts, self.panel.publish)
        self._inactiveSince = 0.0

    # Slicer -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> PanelState:
        """The state of the panel."""
        return self.panel.state

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
        return self._editor.isWaiting

    def activate(self) -> None:
        """Start working: the effect was chosen. The worker is started, too."""
        self._edited.isActive = True
        self._edited.takeCharge()
        self._session.requestModels()
        self.update()
        if self._edited.markups is not None:
            self._edited.markups.setVisible(True)

    def deactivate(self) -> None:
        """Stop a propagation, keep its masks, and hide the prompts: another effect was chosen."""
        self._propagation.finish()
        self._auto.abort()
        with self._notice.reported():
            self._learning.keep()
        self._edited.isActive = False
        self._edited.saveProvenance()
        self._inactiveSince = self._clock()
        self._notice.show("")
        if self._edited.markups is not None:
            self._edited.markups.setVisible(False)
        self.panel.publish()

    def cleanup(self) -> None:
        """Leave nothing behind but the segments and their prompts."""
        self._edited.isActive = False
        self._propagation.abort()
        self._auto.clear()
        self._edited.saveProvenance()  # while there is a session
        self._session.release()
        self._edited.release()
        self._navigation.forget()
        self.panel.onStateChanged = lambda state: None
        self.onShow3D = lambda isOn: None

    def update(self) -> None:
        """Follow what has changed in the Segment Editor."""
        self._editor.refresh()
        self.panel.publish()

    def viewUsed(self, sliceNode: Any) -> None:
        """Note that the mouse is in this slice view."""
        if sliceNode is not self._navigation.view:
            self._navigation.view = sliceNode
            self._editor.isDirty = True

    def tick(self) -> None:
        """Do what is due; to be called about every 0.1 s. Nearly nothing when nothing has changed."""
        isUnused = not self._edited.isActive and self._clock() - self._inactiveSince > IDLE_RELEASE
        if isUnused and self._session.client is not None:
            self._session.release()
            self._editor.isDirty = True
        with self._notice.reported():
            self._learning.tick()
        self._editor.tick()

    # Prompts ------------------------------------------------------------------------------------------------

    def onGesture(self, gesture: Gesture, sliceNode: Any = None) -> None:
        """Add a point, box or scribble as a prompt, and send it."""
        edited = self._edited
        if sliceNode is not None:
            self._navigation.view = sliceNode
        if self._canEdit():
            self._propagation.keep()
            with self._notice.reported():
                self._editor.open(fromView=True)
                self._session.checkView(sliceNode)
                self._propagation.pause()
                edited.markups.check(gesture, edited.adapter, self._session.checkedStack)
                with edited.markups.silenced():
                    edited.markups.add(edited.segmentID, gesture)
                if self._edited.isActive:
                    self._sync.send(edited.segmentID)
                else:
                    self._editor.mustSync = True
        self.panel.publish()

    def setTool(self, name: str) -> None:
        """Choose what a press in a slice view draws."""
        self.setValue("tool", name)

    def setNegative(self, negative: bool) -> None:
        """Choose whether clicks mark background."""
        self.setValue("negative", negative)

    def clearPrompts(self) -> None:
        """Delete all prompts of the selected segment; its voxels stay, as if the user had painted them."""
        self._notice.show("")
        self.update()
        if self._edited.segmentID:
            self._propagation.finish()
            self._sync.clearPrompts()
            self._edited.store.save({self._edited.segmentID: {"notes": None, "found": None}})
            if not self._edited.isPrompted:
                self._session.decideAnew()
        self.panel.publish()

    def clearSlice(self, n: int) -> None:
        """Delete the prompts of the selected segment on a slice, and the mask they gave: one step of undo."""
        edited, session = self._edited, self._session

        def clear() -> None:
            edited.markups.clearSlice(edited.segmentID, n, edited.adapter, session.checkedStack)

        self._edit(clear, fromView=False)

    def finaliseSlice(self) -> None:
        """Mark the segment on the slice in the views as final, or, if it is, not any more."""
        self._edit(lambda: self._sync.toggleFinal(self._navigation.checkedCurrent()))

    def useSegmentAsPrompt(self) -> None:
        """Add the segment as mask prompts: on the slice in the views, or on those that "keep" says."""
        keep = self.parameters.text("keep")
        self._edit(lambda: self._sync.useAsPrompt(self._navigation.checkedCurrent(), keep))

    def useMarkups(self) -> None:
        """Add the line, ROI or closed curve drawn last as a prompt; an ROI also sets the range of slices."""
        self._edit(self._takeMarkups)

    def _takeMarkups(self) -> None:
        edited, stack = self._edited, self._session.checkedStack
        scene, geometry = edited.markups.scene, edited.adapter.geometry
        axis = "" if edited.isPrompted else SceneMarkups.axisOf(scene, geometry, stack)
        if axis:
            self._session.alignTo(edited.adapter, axis)
            self._editor.open()
            stack = self._session.checkedStack
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
            with self._notice.reported():
                self._editor.open()
                problem = self._sync.sync()
                self._propagation.start(problem)
                self._notice.show(problem)
                self._navigation.clearVisited()
                self._learning.keep()
        self.panel.publish()

    def cancel(self) -> None:
        """Stop what is running; the user is asked whether to keep the slices of a propagation."""
        self._auto.cancel()
        self._propagation.cancel()
        self.panel.publish()

    def keep(self) -> None:
        """Keep the slices of a stopped propagation."""
        self._propagation.keep()
        self.panel.publish()

    def discard(self) -> None:
        """Discard the slices of a stopped propagation: one further step of undo."""
        self._editor.followUndo()
        with self._notice.reported():
            self._propagation.discard()
        self._editor.isDirty = True
        self.panel.publish()

    def nextWeakest(self) -> None:
        """Show the slice of the selected segment with the lowest confidence; then the next."""
        n = self._navigation.weakest(self._edited.segmentID)
        if n is None:
            self._notice.show(_("no slice has a result that was not looked at: propagate first"))
        else:
            self._navigation.jump(n)
        self.panel.publish()

    def jumpTo(self, n: int) -> None:
        """Show a slice in the views along the stack."""
        self._navigation.jump(n)
        self.panel.publish()

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
        def start() -> None:
            chosen = self._auto.chosen
            if chosen is not None and not self._edited.isPrompted:
                self._session.alignTo(self._edited.adapter, chosen.axis)
            self._editor.open()
            if chosen is not None and self._session.session is not None:
                self._session.checkAlong(chosen.axis)
            self._auto.start(self._navigation.checkedCurrent() if oneSlice else None)

        self._find(start)

    def _find(self, start: Callable[[], None]) -> None:
        """Start what makes segments by itself; notifies the user why, when it cannot be done."""
        self._notice.show("")
        self._edited.takeCharge()
        self.update()
        if not self._editor.isReady():
            return  # the status line says why
        self._propagation.finish()
        self._edited.agreePose()
        with self._notice.reported():
            start()
        self.panel.publish()

    def methodsText(self) -> str:
        """Return how the selected segment was made, for a paper; empty, with a notice, when unknown."""
        text, segment, session = "", self._edited.segment(), self._session.session
        with self._notice.reported():
            if segment is not None:
                slices = session.prompts(self._edited.segmentID) if session is not None else {}
                prompts = [prompt for on in slices.values() for prompt in on.prompts]
                adapter = self._edited.adapter
                isPicture = adapter is not None and adapter.isPicture
                text = methodsOf(segment, prompts, self._session.provenance, isPicture=isPicture)
                self._notice.show(_("the methods text is on the clipboard"))
        self.panel.publish()
        return text

    # Other scans, sequences, folders ------------------------------------------------------------------------

    def findLike(self) -> None:
        """Look for the objects of the other segmentation in this scan, by examples."""
        self._find(lambda: self._search(self._other.findLike))

    def followUp(self) -> None:
        """Look for the objects of the other segmentation near their old places, and compare."""
        self._find(lambda: self._search(self._other.followUp))

    def compare(self) -> None:
        """Measure the objects of both segmentations."""
        self._notice.show("")
        with self._notice.reported():
            self._other.compare()
        self.panel.publish()

    def _search(self, search: Callable[[], None]) -> None:
        self._editor.open()
        search()

    def openImages(self, folder: str) -> None:
        """Edit the pictures of a folder: one volume, whose slices are images of their own."""
        text = ""
        with self._notice.reported():
            volume, bad = ImageStacks.openFolder(self._edited.editor.parameterSetNode().GetScene(), folder)
            ImageStacks.choose(self._edited.editor, volume)
            self.parameters.put("stack", "images")
            if bad:
                listed = ", ".join(list(bad)[:5]) + (" …" if len(bad) > 5 else "")
                text = _("{count} files cannot be read and are left out: {names}")
                text = text.format(count=len(bad), names=listed)
        self.update()
        if text:
            self._notice.show(text)
            self.panel.publish()

    # The rest of the panel ----------------------------------------------------------------------------------

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter. With another model, window or stack all prompts are sent to a new session.

        "learn" is the user's own and not stored in the scene: another's scene must not switch it on.
        """
        if name == "learn":
            self._learning.isOn = value in ("1", True)
            self.panel.publish()
            return
        with self._notice.reported():
            isChanged = self.parameters.put(name, value)
            if isChanged and name == "stack":
                self._session.decideAnew()
            elif isChanged and name == "show3D":
                self.onShow3D(self.parameters.isOn(name))
            self._editor.refresh()
        self.panel.publish()

    def resolve(self) -> None:
        """Do what the button beside the status line offers: install, open frames, harden, restart."""
        if self._session.source.problem():
            self._session.source.resolve()
        elif self._edited.volumeProblem and ImageStacks.sequenceOf(self._edited.volumeNode) is not None:
            with self._notice.reported():
                volume = ImageStacks.openFrames(self._edited.volumeNode)
                ImageStacks.choose(self._edited.editor, volume)
        elif self._edited.volumeProblem and isWarped(self._edited.volumeNode):
            with self._notice.reported():
                hardenTransform(self._edited.volumeNode)
        else:
            self._session.retry()
            self._sync.retryRefused()
            self._editor.mustSync = True
        self.update()

    # Inside -------------------------------------------------------------------------------------------------

    def _canEdit(self) -> bool:
        """Whether the selected segment can be edited; notifies the user why not."""
        self._notice.show("")
        self._auto.clearProblem()
        self._edited.takeCharge()
        self._editor.refresh(mayOpen=False)
        canEdit = False
        with self._notice.reported():
            if self._editor.isReady() and self._edited.segmentID:  # else the status line says why not
                self._edited.checkEditable()
                self._edited.agreePose()
                canEdit = self._edited.editor.confirmSegmentVisible()
        if not canEdit and self._edited.isActive:
            self._editor.openIfReady()
        return canEdit

    def _edit(self, action: Callable[[], None], *, fromView: bool = True) -> None:
        """Change prompts of the selected segment, in a session for the view, and send them.

        Notifies the user why, when it cannot be done.
        """
        if self._canEdit():
            self._propagation.finish()
            with self._notice.reported():
                self._editor.open(fromView=fromView)
                action()
            self._editor.syncPrompts((self._edited.segmentID,))
        self.panel.publish()
