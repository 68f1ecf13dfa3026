"""What the user does becomes words for the session; what the session answers becomes voxels of segments.

Everything happens in the thread that calls, and nothing here waits. Prompts are nodes of the scene; the
session is told what they say whenever that differs from what it was told before; answers are written as
steps of Slicer's undo. So a click before the worker is ready is answered when it is, a worker that was lost
is told everything again, and a scene that is loaded goes on where it was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medsam2_core.errors import MedSAM2Error

from MedSAM2SegmentLib.Effect.Automatic import Automatic
from MedSAM2SegmentLib.Effect.ByHand import ByHand
from MedSAM2SegmentLib.Effect.Conversation import Conversation
from MedSAM2SegmentLib.Effect.Filling import Filling
from MedSAM2SegmentLib.Effect.FoundSegments import FoundSegments
from MedSAM2SegmentLib.Effect.Listening import Listening
from MedSAM2SegmentLib.Effect.PanelMaker import PanelMaker
from MedSAM2SegmentLib.Effect.Parameters import Parameters
from MedSAM2SegmentLib.Effect.Remembering import Remembering
from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
from MedSAM2SegmentLib.Effect.Slicing import Slicing
from MedSAM2SegmentLib.Effect.Steps import Steps
from MedSAM2SegmentLib.Effect.UserActions import UserActions
from MedSAM2SegmentLib.Effect.Workplace import ALONG, PLACE, SEGMENT, SEGMENTATION, VOLUME, Workplace
from MedSAM2SegmentLib.Panels.PanelState import PanelState

if TYPE_CHECKING:
    from medsam2_core.worker.supervision import Supervisor

    from MedSAM2SegmentLib.Effect.SessionLink import WorkerSource
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

#: Seconds an effect that is not active keeps its worker: a look into another effect must not cost a restart.
IDLE_RELEASE = 600.0


class EffectController(UserActions):
    """The effect without its windows; see the module.

    Parameters
    ----------
    editor
        Slicer's edit functions and the Segment Editor's parameters.
    source
        Where the worker comes from.
    clock
        Seconds, only ever growing.

    Attributes
    ----------
    state
        What the panel shows.
    onStateChanged
        Called with a new state.
    """

    def __init__(
        self, editor: SegmentEditor, source: WorkerSource, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.state = PanelState()
        self.onStateChanged: Callable[[PanelState], None] = lambda state: None
        self.parameters = Parameters(editor)
        self._source, self._clock = source, clock
        self._workplace = Workplace(editor, self._onPrompts, self.sceneClosed)
        self._link = SessionLink(source, self._onLink)
        self._steps = Steps(self._workplace, self._link)
        self._remembering = Remembering(self._workplace, self._link, clock)
        self._conversation = Conversation(self._workplace, self._link, self._steps, self._remembering)
        self._byHand = ByHand(self._workplace, self._link, self._steps, self._conversation)
        self._slicing = Slicing(self._workplace, self._link, self.parameters)
        self._filling = Filling(self._workplace, self._link, self._steps, self._conversation, clock)
        found = FoundSegments(self._workplace, self._link, self._steps, self._conversation)
        self._automatic = Automatic(self._workplace, self._link, self.parameters, found, clock)
        self._panel = PanelMaker(
            *(self._workplace, self._link, self._filling, self._automatic),
            *(self._slicing, self.parameters, source),
        )
        self._listening = Listening(
            *(self._workplace, self._link, self._steps, self._conversation),
            *(self._filling, self._slicing, self.parameters),
        )
        self._link.onAnswer, self._link.onRefusal = self._listening.onAnswer, self._listening.onRefusal
        self._filling.beforeWriting = self._automatic.beforeWriting = self._listening.followUndo
        self._automatic.afterWriting = self._onLink
        self._isNew = True  # what prompts say is what the segments show
        self._areOld = True  # and nobody here saw them being said
        self._isActive = False
        self._idleSince = 0.0

    # Slicer -------------------------------------------------------------------------------------------------

    @property
    def markups(self) -> Any:
        """The prompts of the segmentation being edited; None without one."""
        return self._workplace.markups

    @property
    def supervisor(self) -> Supervisor | None:
        """The worker's supervisor; None while the effect has no worker."""
        return self._link.supervisor

    def color(self) -> tuple[float, float, float]:
        """The selected segment's."""
        segment = self._workplace.segment()
        return tuple(segment.GetColor()) if segment is not None else (1.0, 1.0, 0.0)

    @property
    def isWaiting(self) -> bool:
        """Whether something is on its way that will change a segment."""
        isRunning = self._filling.isRunning or self._automatic.isRunning
        return self._listening.mustSync or self._link.isAwaiting() or isRunning

    def activate(self) -> None:
        """The effect was chosen: look around, and begin to start the worker."""
        self._isActive = True
        self._workplace.takeCharge()
        self._link.refresh()
        self.look()
        if self._workplace.markups is not None:
            self._workplace.markups.setVisible(True)

    def deactivate(self) -> None:
        """Another effect was chosen: filling in stops, what has come stays; prompts are hidden."""
        self._filling.settle()
        self._automatic.abandon()
        self._isActive = False
        self._remembering.save()
        self._idleSince = self._clock()
        self._listening.say("")
        if self._workplace.markups is not None:
            self._workplace.markups.setVisible(False)
        self._publish()

    def cleanup(self) -> None:
        """Leave nothing behind but the segments and their prompts."""
        self._isActive = False
        self._filling.abandon()
        self._automatic.forget()
        self._remembering.save()  # while there is a session
        self._link.end()
        self._workplace.release()
        self._steps.forget()
        self._slicing.forget()
        self.onStateChanged = lambda state: None

    def look(self) -> None:
        """Notice what has changed in the Segment Editor, and go on with it. Cheap when nothing has."""
        changed = self._workplace.look(isActive=self._isActive)
        if SEGMENTATION in changed:
            self._areOld = True
            self._filling.abandon()
            self._automatic.forget()
            self._link.close()
            self._steps.forget()
            self._conversation.forgetAll()
            self._slicing.forget()
        if ALONG in changed:
            self._listening.goAlong()
            self._areOld = True
        if VOLUME in changed:
            self._filling.abandon()
            self._automatic.forget()
            self._link.closeVolume()
        self._isNew |= bool(changed & {SEGMENTATION, VOLUME})
        if changed & {SEGMENTATION, VOLUME, SEGMENT, PLACE}:
            self._listening.say("")
        if PLACE in changed:
            self._listening.follow(isNew=self._isNew)
        self._listening.followUndo()
        if self._isActive:
            self._getReady()
        self._publish()

    def sceneClosed(self) -> None:
        """The scene is being closed."""
        self._filling.abandon()
        self._automatic.forget()
        self._link.closeVolume()
        self._workplace.release()
        self._steps.forget()
        self._slicing.forget()
        self._publish()

    def tick(self) -> None:
        """To be called about every 0.1 s."""
        self.look()
        self._filling.tick()
        if self._listening.mustSync and self._isActive:
            self._listening.mustSync = False
            self._listening.sync()
        self._slicing.focus()
        self._remembering.tick()
        if not self._isActive and self._clock() - self._idleSince > IDLE_RELEASE:
            self._link.end()
        self._publish()

    def viewUsed(self, sliceNode: Any) -> None:
        """The mouse is in this slice view."""
        self._slicing.view = sliceNode

    # Inside -------------------------------------------------------------------------------------------------

    def _getReady(self) -> None:
        """Start the worker and open the session while the user still looks where to click."""
        if self._workplace.adapter is None or self._workplace.segmentation is None or self._source.problem():
            return
        try:
            self._open()
        except MedSAM2Error as error:
            self._listening.say(str(error))

    def _open(self, *, fromView: bool = False) -> None:
        """Have a session that fits volume, slices and settings; ``fromView``: something will be said."""
        before = self._link.manner
        if not self._slicing.open(fromView=fromView):
            return
        self._listening.mustSync = True
        self._conversation.askAgain()
        if self._isNew:
            self._conversation.settle(areOld=self._areOld)
            self._areOld = False
        elif before is not None and before != self._link.manner:
            self._filling.settle()
            self._steps.unsettle()
        self._isNew = False

    # What comes back ----------------------------------------------------------------------------------------

    def _onPrompts(self, segmentIDs: tuple[str, ...]) -> None:
        self._listening.say("")
        self._listening.followUndo()
        if self._isActive:
            self._listening.sync(segmentIDs)
        else:
            self._listening.mustSync = True
        self._publish()

    def _onLink(self) -> None:
        self._listening.mustSync = True
        self._publish()

    def _publish(self) -> None:
        state = self._panel.state(self._listening.notice, self._listening.details)
        if state != self.state:
            self.state = state
            self.onStateChanged(state)
