"""The panel's state, made of what the controller's parts know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.Effect.StatusLines import Situation, StatusLine, statusLine
from MedSAM2SegmentLib.Panels.PanelState import AutoView, PanelState, SliceConfidence, Status
from MedSAM2SegmentLib.Segments.Editors import transformToWorld

if TYPE_CHECKING:
    from medsam2_core.worker.findings import AutoEntry

    from MedSAM2SegmentLib.Effect.Automatic import Automatic
    from MedSAM2SegmentLib.Effect.Filling import Filling
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink, WorkerSource
    from MedSAM2SegmentLib.Effect.Slicing import Slicing
    from MedSAM2SegmentLib.Effect.Workplace import Workplace

#: States in which there is nothing to prompt.
_BLOCKED = (
    Status.NO_VOLUME,
    Status.VOLUME_REFUSED,
    Status.NO_SEGMENT,
    Status.NO_RUNTIME,
    Status.INSTALLING,
)
_PREPARING = (Status.STARTING, Status.SENDING, Status.DOWNLOADING, Status.LOADING, Status.WORKER_LOST)


class PanelMaker:
    """Looks at the parts and says what the panel shows; changes nothing."""

    def __init__(
        self,
        workplace: Workplace,
        link: SessionLink,
        filling: Filling,
        automatic: Automatic,
        slicing: Slicing,
        parameters: Parameters,
        source: WorkerSource,
    ) -> None:
        self._workplace, self._link, self._filling = workplace, link, filling
        self._automatic = automatic
        self._slicing, self._parameters, self._source = slicing, parameters, source

    def canHarden(self) -> bool:
        """Whether the volume is refused because of a transform that could be hardened."""
        node = self._workplace.volumeNode
        if node is None or not self._workplace.volumeProblem or node.GetParentTransformNode() is None:
            return False
        try:
            transformToWorld(node)
        except GeometryError:
            return True
        return False

    def state(self, notice: str, details: str) -> PanelState:
        """What the panel shows now; ``notice`` instead of the usual advice."""
        self._parameters.models = self._link.models or self._parameters.models
        segmentID = self._workplace.segmentID
        session = self._link.session
        prompted = bool(segmentID) and segmentID in self._workplace.markups.segmentIDs()
        anyPrompted = self._workplace.markups is not None and bool(self._workplace.markups.segmentIDs())
        confidences = self._confidences(segmentID) if session is not None and segmentID else ()
        line = self._line(notice, details, prompted, confidences)
        isFree = line.status not in (*_BLOCKED, Status.FAILED)
        isRunning = self._filling.isRunning or self._automatic.isRunning
        isAtWork = isFree and line.status not in _PREPARING and not isRunning
        done, total, _, remaining = self._counts()
        progress = (done, total) if isRunning else self._preparing(line.status)
        return PanelState(
            status=line.status,
            text=line.text,
            action=line.action,
            details=line.details,
            progress=progress,
            remaining=remaining if isRunning else "",
            tool=self._parameters.tool,
            negative=self._parameters.isOn("negative"),
            canPrompt=line.status not in _BLOCKED,
            canPropagate=isAtWork and anyPrompted and self._slices > 1 and not self._filling.mustDecide,
            canCancel=isRunning,
            canKeep=self._filling.mustDecide and not self._filling.isRunning,
            canFinalise=isAtWork and bool(segmentID) and session is not None,
            canJump=any(one.confidence is not None and not one.prompted for one in confidences),
            canClear=prompted,
            confidences=confidences,
            slices=self._slices,
            current=self._slicing.current() if confidences else None,
            choices=self._parameters.choices(),
            values=self._parameters.values(),
            auto=self._auto(line.status),
        )

    def _auto(self, status: Status) -> AutoView:
        """The section about Auto; it needs no segment."""
        workplace, automatic = self._workplace, self._automatic
        isStopped = status in _BLOCKED and status is not Status.NO_SEGMENT
        if isStopped or workplace.adapter is None or workplace.segmentation is None:
            return AutoView()
        entries, chosen, known = automatic.entries, automatic.chosen, self._link.autoModels
        isRunning = self._filling.isRunning or automatic.isRunning
        isFree = chosen is not None and status is not Status.FAILED and not isRunning
        text = automatic.summary
        if known and not entries:
            text = f"None of {len(known)} Auto models suits this volume: train one from 10 labelled images."
        elif known is not None and not known:
            text = "No Auto model yet: train one from 10 labelled images."
        return AutoView(
            isShown=known is not None,
            models=tuple((one.file, _label(one)) for one in entries),
            chosen=chosen.file if chosen is not None else "",
            canFindSlice=isFree,
            canFindVolume=isFree and not workplace.adapter.isPicture,
            replaces=self._parameters.isOn("replaceSegments"),
            text=text,
            canTrain=known is not None and not entries,
        )

    def _counts(self) -> tuple[int, int, int, str]:
        """Slices done, slices to do, slices written, and the time left, of what is running."""
        automatic = self._automatic
        if automatic.isRunning:
            return automatic.done, automatic.total, 0, automatic.remaining
        return self._filling.progress

    @property
    def _slices(self) -> int:
        return len(self._link.stack) if self._link.stack is not None else 0

    def _line(
        self, notice: str, details: str, prompted: bool, confidences: tuple[SliceConfidence, ...]
    ) -> StatusLine:
        done, total, written, _ = self._counts()
        problem = self._source.problem()
        model = self._parameters.text("model")
        return statusLine(
            Situation(
                hasVolume=self._workplace.volumeNode is not None,
                volumeProblem=self._workplace.volumeProblem,
                canHarden=bool(self._workplace.volumeProblem) and self.canHarden(),
                hasSegment=bool(self._workplace.segmentID),
                runtimeProblem=problem,
                isInstalling=bool(problem) and self._source.isInstalling(),
                phase=self._link.phase,
                problem=self._link.problem,
                report=details
                or self._filling.details
                or self._automatic.details
                or (self._link.report if self._link.phase else ""),
                modelTitle=dict(self._parameters.models).get(model, model),
                isAwaiting=self._link.isAwaiting(),
                isPropagating=self._filling.isRunning,
                mustDecide=self._filling.mustDecide,
                isFinding=self._automatic.isRunning,
                hasAuto=self._automatic.chosen is not None,
                done=done,
                total=total,
                kept=written,
                tool=self._parameters.tool,
                negative=self._parameters.isOn("negative"),
                hasPrompts=prompted,
                isSingle=self._slices == 1,
                isFollowed=any(one.confidence is not None and not one.prompted for one in confidences),
                notice=notice or self._filling.problem or self._automatic.problem,
            )
        )

    def _preparing(self, status: Status) -> tuple[int, int] | None:
        if status in (Status.SENDING, Status.DOWNLOADING, Status.LOADING):
            _, done, total = self._link.preparing()
            return done, total or 0
        if status in (Status.STARTING, Status.WORKER_LOST, Status.ENCODING):
            return 0, 0
        return None

    def _confidences(self, segmentID: str) -> tuple[SliceConfidence, ...]:
        session, stack = self._link.session, self._link.stack
        records, words = session.records(segmentID), session.words(segmentID)
        if not records and not words:
            return ()
        return tuple(
            SliceConfidence(
                n,
                round(records[n].confidence, 3) if n in records else None,
                n in words,
                n in words and words[n].final,
            )
            for n in range(len(stack))
        )


def _label(entry: AutoEntry) -> str:
    """Name and classes of an Auto model, in few words."""
    classes = ", ".join(entry.classes[:3]) + (", …" if len(entry.classes) > 3 else "")
    return f"{entry.name} ({classes})" if classes else entry.name
