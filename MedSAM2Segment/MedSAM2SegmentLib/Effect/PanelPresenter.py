"""The state of the panel: made from the parts of the effect, and shown when it has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import (
    AutoView,
    Notice,
    OtherView,
    PanelState,
    Parameters,
    SliceConfidence,
    Status,
    advice,
    howToPrompt,
    kindsOf,
    sentence,
)
from MedSAM2SegmentLib.Segments.ImageStacks import hasPictures, sequenceOf
from MedSAM2SegmentLib.Segments.VolumeAdapter import isWarped

if TYPE_CHECKING:
    from medsam2_core.worker.job_messages import AutoModelInfo

    from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation
    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.Learning import Learning
    from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
    from MedSAM2SegmentLib.Effect.OtherScan import OtherScan
    from MedSAM2SegmentLib.Effect.SegmentMeasurement import SegmentMeasurement
    from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession

#: States in which nothing can be prompted.
_BLOCKED = {Status.NO_VOLUME, Status.VOLUME_REFUSED, Status.NO_SEGMENT, Status.NO_RUNTIME, Status.INSTALLING}
_OPENING = {Status.SENDING, Status.DOWNLOADING, Status.LOADING}
#: States in which nothing can be propagated.
_WAITING = {Status.STARTING, *_OPENING, Status.WORKER_LOST, Status.FAILED}


class PanelPresenter:
    """Status line, and what the buttons offer; it reads the parts of the effect and changes none."""

    def __init__(
        self,
        parameters: Parameters,
        edited: EditedSegmentation,
        session: WorkerSession,
        propagation: LivePropagation,
        auto: AutoSegmentation,
        navigation: SliceNavigation,
        notice: Notice,
        measurement: SegmentMeasurement,
        learning: Learning,
        other: OtherScan,
    ) -> None:
        self._parameters, self._edited, self._session = parameters, edited, session
        self._propagation, self._auto, self._navigation = propagation, auto, navigation
        self._notice, self._measurement = notice, measurement
        self._learning, self._other = learning, other
        self.state = PanelState()
        self.onStateChanged: Callable[[PanelState], None] = lambda state: None

    def publish(self) -> None:
        """Show the state of the panel, if it has changed."""
        state = self._panelState()
        if state != self.state:
            self.state = state
            self.onStateChanged(state)

    # The state of the panel ---------------------------------------------------------------------------------

    def _panelState(self) -> PanelState:
        """Return the state of the panel, with its status line."""
        propagation, auto, session = self._propagation, self._auto, self._session
        notice = sentence(self._notice.text or propagation.problem or auto.problem)
        details = (
            self._notice.details
            or propagation.details
            or auto.details
            or (session.report if session.phase else "")
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
            other=self._otherView(state.status),
        )

    def _facts(self, details: str) -> PanelState:
        """The part of the state that does not depend on the status; the status line is made from it."""
        parameters, auto, propagation = self._parameters, self._auto, self._propagation
        segmentID, stack, markups = self._edited.segmentID, self._session.stack, self._edited.markups
        confidences = self._confidences(segmentID)
        drawn = markups.drawnLengths(segmentID) if markups is not None and segmentID else ()
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
            millilitres=self._measurement.millilitres if canJump and self._edited.isActive else None,
            diameters=self._measurement.diameters if canJump or drawn else (),
            drawn=drawn,
            current=self._navigation.current() if confidences else None,
            choices=parameters.choices(self._session.models),
            values={**parameters.values(), "learn": "1" if self._learning.isOn else "0"},
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
        if status in _OPENING:
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
        text = "" if auto.isSearch else auto.summary
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
            replaces=self._parameters.isOn("replaceSegments"),
            text=text,
            canTrain=known is not None and not entries,
        )

    def _otherView(self, status: Status) -> OtherView:
        """The section about another scan; it needs no segment."""
        entries, chosen = self._other.entries, self._other.chosen
        if chosen is None:
            return OtherView()
        isBlocked = status in _BLOCKED and status is not Status.NO_SEGMENT
        isRunning = self._propagation.isRunning or self._auto.isRunning
        isFree = not isBlocked and status is not Status.FAILED and not isRunning
        return OtherView(
            scans=tuple((one.GetID(), one.GetName() or "") for one in entries),
            chosen=chosen.GetID(),
            canFind=isFree,
            canCompare=isFree,
            text=self._other.text or (self._auto.summary if self._auto.isSearch else ""),
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
            action = _wayOut(edited.volumeNode)
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
            if self._auto.isSearch:
                text = _("Other scan: {counted}. Cancel stops, and leaves everything as it is.")
                text = text.format(counted=counted)
        elif self._propagation.isRunning:
            status = Status.PROPAGATING
            text = _("Propagating: {counted}. You can go on clicking; Cancel stops.").format(counted=counted)
        elif self._session.isWaiting():
            status, text = Status.ENCODING, _("The model is looking at the slice …")
        else:
            text = advice(facts)
        return replace(facts, status=status, text=notice or text)


def _wayOut(volumeNode: Any) -> str:
    """Return what the button offers for a volume that cannot be segmented as it is; empty for nothing."""
    sequence = sequenceOf(volumeNode)
    if sequence is not None:
        return _("Open all frames") if hasPictures(sequence) else _("Copy this frame")
    return _("Harden transform") if isWarped(volumeNode) else ""


def _label(entry: AutoModelInfo) -> str:
    classes = ", ".join(entry.classes[:3]) + (", …" if len(entry.classes) > 3 else "")
    return f"{entry.name} ({classes})" if classes else entry.name
