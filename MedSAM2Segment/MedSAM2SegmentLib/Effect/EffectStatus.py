"""The state of the panel, and its status line: where the user stands, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medsam2_core.errors import GeometryError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import AutoView, PanelState, SliceConfidence, Status, Tool
from MedSAM2SegmentLib.Segments.Editors import transformToWorld

if TYPE_CHECKING:
    from medsam2_core.worker.job_messages import AutoModelInfo

    from MedSAM2SegmentLib.Effect.AutoSegmentation import AutoSegmentation
    from MedSAM2SegmentLib.Effect.EditorContext import EditorContext
    from MedSAM2SegmentLib.Effect.LivePropagation import LivePropagation
    from MedSAM2SegmentLib.Effect.Parameters import Parameters
    from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession, WorkerSource

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


class EffectStatus:
    """Builds the state of the panel from the parts of the effect; changes nothing.

    Parameters
    ----------
    context, session, propagation, auto, navigation, parameters, source
        The parts of the effect, and where its worker comes from.
    """

    def __init__(
        self,
        context: EditorContext,
        session: WorkerSession,
        propagation: LivePropagation,
        auto: AutoSegmentation,
        navigation: SliceNavigation,
        parameters: Parameters,
        source: WorkerSource,
    ) -> None:
        self._context, self._session, self._propagation = context, session, propagation
        self._auto, self._navigation = auto, navigation
        self._parameters, self._source = parameters, source

    def canHarden(self) -> bool:
        """Whether the volume is refused because of a transform that could be hardened."""
        node = self._context.volumeNode
        if node is None or not self._context.volumeProblem or node.GetParentTransformNode() is None:
            return False
        try:
            transformToWorld(node)
        except GeometryError:
            return True
        return False

    def state(self, notice: str, details: str) -> PanelState:
        """Return the state of the panel; ``notice`` is shown instead of the usual advice."""
        parameters, propagation = self._parameters, self._propagation
        parameters.models = self._session.models or parameters.models
        segmentID = self._context.segmentID
        session, stack = self._session.session, self._session.stack
        promptedSegments = self._context.markups.segmentIDs() if self._context.markups is not None else ()
        isPrompted = bool(segmentID) and segmentID in promptedSegments
        confidences = self._confidences(segmentID) if session is not None and segmentID else ()
        isPropagated = any(one.confidence is not None and not one.prompted for one in confidences)
        slices = len(stack) if stack is not None else 0
        done, total, written, remaining = self._progress()
        isRunning = propagation.isRunning or self._auto.isRunning
        line = statusLine(
            self._situation(
                notice,
                details,
                hasPrompts=isPrompted,
                isPropagated=isPropagated,
                isSingle=slices == 1,
                progress=(done, total, written),
            )
        )
        isFree = not isRunning and line.status not in (*_BLOCKED, *_WAITING)
        return PanelState(
            status=line.status,
            text=line.text,
            action=line.action,
            details=line.details,
            progress=(done, total) if isRunning else self._preparation(line.status),
            remaining=remaining if isRunning else "",
            tool=parameters.tool,
            negative=parameters.isOn("negative"),
            canPrompt=line.status not in _BLOCKED,
            canPropagate=isFree and bool(promptedSegments) and slices > 1 and not propagation.mustDecide,
            canCancel=isRunning,
            canKeep=propagation.mustDecide and not propagation.isRunning,
            canFinalise=isFree and bool(segmentID) and session is not None,
            canJump=isPropagated,
            canClear=isPrompted,
            confidences=confidences,
            slices=slices,
            current=self._navigation.current() if confidences else None,
            choices=parameters.choices(),
            values=parameters.values(),
            auto=self._autoView(line.status),
        )

    def _situation(
        self,
        notice: str,
        details: str,
        *,
        hasPrompts: bool,
        isPropagated: bool,
        isSingle: bool,
        progress: tuple[int, int, int],
    ) -> Situation:
        context, session, auto = self._context, self._session, self._auto
        propagation, parameters = self._propagation, self._parameters
        problem, phase, model = self._source.problem(), session.phase, parameters.text("model")
        return Situation(
            hasVolume=context.volumeNode is not None,
            volumeProblem=context.volumeProblem,
            canHarden=bool(context.volumeProblem) and self.canHarden(),
            hasSegment=bool(context.segmentID),
            runtimeProblem=problem,
            isInstalling=bool(problem) and self._source.isInstalling(),
            phase=phase,
            problem=session.problem,
            report=details or propagation.details or auto.details or (session.report if phase else ""),
            modelTitle=dict(parameters.models).get(model, model),
            isWaiting=session.isWaiting(),
            isPropagating=propagation.isRunning,
            mustDecide=propagation.mustDecide,
            isAutoRunning=auto.isRunning,
            hasAuto=auto.chosen is not None,
            progress=progress[:2],
            kept=progress[2],
            tool=parameters.tool,
            negative=parameters.isOn("negative"),
            hasPrompts=hasPrompts,
            isSingle=isSingle,
            isPropagated=isPropagated,
            notice=notice or propagation.problem or auto.problem,
        )

    def _autoView(self, status: Status) -> AutoView:
        """The section about Auto; it needs no segment."""
        context, auto = self._context, self._auto
        isBlocked = status in _BLOCKED and status is not Status.NO_SEGMENT
        if isBlocked or context.adapter is None or context.segmentation is None:
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
            canFindVolume=isFree and not context.adapter.isPicture,
            replaces=self._parameters.isOn("replaceSegments"),
            text=text,
            canTrain=known is not None and not entries,
        )

    def _progress(self) -> tuple[int, int, int, str]:
        """Slices done, slices to do, slices written, and the remaining time, of what is running."""
        auto = self._auto
        if auto.isRunning:
            return auto.done, auto.total, 0, auto.remaining
        return self._propagation.progress

    def _preparation(self, status: Status) -> tuple[int, int] | None:
        if status in (Status.SENDING, Status.DOWNLOADING, Status.LOADING):
            _step, done, total = self._session.progress()
            return done, total or 0
        if status in (Status.STARTING, Status.WORKER_LOST, Status.ENCODING):
            return 0, 0
        return None

    def _confidences(self, segmentID: str) -> tuple[SliceConfidence, ...]:
        session = self._session.session
        records, prompts = session.masks(segmentID), session.prompts(segmentID)
        if not records and not prompts:
            return ()
        return tuple(
            SliceConfidence(
                n,
                round(records[n].confidence, 3) if n in records else None,
                n in prompts,
                n in prompts and prompts[n].final,
            )
            for n in range(len(self._session.stack))
        )


def _label(entry: AutoModelInfo) -> str:
    """Return name and classes of an Auto model."""
    classes = ", ".join(entry.classes[:3]) + (", …" if len(entry.classes) > 3 else "")
    return f"{entry.name} ({classes})" if classes else entry.name


# The status line --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """Everything the status line depends on.

    Attributes
    ----------
    hasVolume, volumeProblem, canHarden
        The source volume, why it cannot be segmented, and whether hardening its transform would help.
    hasSegment
        Whether a segment is selected.
    runtimeProblem, isInstalling
        Why no worker can be started on this computer.
    phase
        Where the worker's session stands: a :class:`Status` from STARTING to LOADING, WORKER_LOST or FAILED;
        None when it is open or was not asked for.
    problem, report
        What went wrong, and everything known about it.
    modelTitle
        The model chosen.
    isWaiting, isPropagating, mustDecide
        Whether an answer is on its way, a propagation runs, or a stopped one is to be kept or discarded.
    isAutoRunning, hasAuto
        Whether an Auto model runs, and whether there is one that suits the volume.
    progress, kept
        Slices done of those to do; slices a stopped propagation has written.
    hasPrompts, isPropagated, isSingle
        Whether the segment has prompts, whether slices other than the prompted ones have results, and whether
        there is only one slice.
    notice
        What to show once, instead of the usual advice.
    """

    hasVolume: bool = False
    volumeProblem: str = ""
    canHarden: bool = False
    hasSegment: bool = False
    runtimeProblem: str = ""
    isInstalling: bool = False
    phase: Status | None = None
    problem: str = ""
    report: str = ""
    modelTitle: str = ""
    isWaiting: bool = False
    isPropagating: bool = False
    mustDecide: bool = False
    isAutoRunning: bool = False
    hasAuto: bool = False
    progress: tuple[int, int] = (0, 0)
    kept: int = 0
    tool: Tool = Tool.POINT
    negative: bool = False
    hasPrompts: bool = False
    isPropagated: bool = False
    isSingle: bool = False
    notice: str = ""


@dataclass(frozen=True)
class StatusLine:
    """Status, text, the label of the button beside it, and what *Details* shows."""

    status: Status
    text: str
    action: str = ""
    details: str = ""


def statusLine(now: Situation) -> StatusLine:
    """Return the line for a situation. What blocks everything comes first, what is merely running last."""
    line = _obstacle(now) or _preparing(now) or _working(now)
    if now.notice and line.status in _PREPARING:
        return replace(line, text=_sentence(now.notice))
    return line


def _obstacle(now: Situation) -> StatusLine | None:
    if now.runtimeProblem:
        return _missingRuntime(now)
    if not now.hasVolume:
        return StatusLine(Status.NO_VOLUME, _("Choose the volume to segment as source volume, above."))
    if now.volumeProblem:
        action = _("Harden transform") if now.canHarden else ""
        text = _sentence(now.volumeProblem)
        return StatusLine(Status.VOLUME_REFUSED, text, action, details=now.volumeProblem)
    if now.phase is Status.FAILED:
        text = _sentence(now.problem or _("the worker could not be started"))
        return StatusLine(Status.FAILED, text, _("Restart"), now.report or now.problem)
    if not now.hasSegment and not now.isAutoRunning:
        text = _("Choose a segment in the list above, or add one.")
        if now.hasAuto:
            text = _("Choose a segment in the list above, or add one, or press Auto.")
        return StatusLine(
            Status.NO_SEGMENT, _sentence(now.notice) or text, details=now.report if now.notice else ""
        )
    return None


def _missingRuntime(now: Situation) -> StatusLine:
    if now.isInstalling:
        text = _("The Python environment of MedSAM2 is being installed; you can go on working meanwhile.")
        return StatusLine(Status.INSTALLING, text, _("Show…"))
    text = _sentence(now.runtimeProblem)
    return StatusLine(Status.NO_RUNTIME, text, _("Install…"), details=now.runtimeProblem)


def _preparing(now: Situation) -> StatusLine | None:
    """While the worker is not ready. What the user prompts meanwhile is answered as soon as it is."""
    if now.phase is Status.WORKER_LOST:
        reason = f" ({now.problem.rstrip('.')})" if now.problem else ""
        text = _("The worker was lost{reason} and is being started again; your prompts and masks are kept.")
        details = now.report or now.problem
        return StatusLine(Status.WORKER_LOST, text.format(reason=reason), details=details)
    texts = {
        Status.STARTING: _("The worker is starting"),
        Status.SENDING: _("The volume is being sent to the worker"),
        Status.DOWNLOADING: _("The model {title!r} is being downloaded, once"),
        Status.LOADING: _("The model {title!r} is being loaded"),
    }
    if now.phase not in texts:
        return None
    meanwhile = _("you can already {how}.").format(how=_how(now))
    if now.hasPrompts:
        meanwhile = _("your prompts are answered when it is done.")
    return StatusLine(now.phase, f"{texts[now.phase].format(title=now.modelTitle)}; {meanwhile}")


def _working(now: Situation) -> StatusLine:
    if now.mustDecide:
        slices = _("1 slice") if now.kept == 1 else _("{count} slices").format(count=now.kept)
        text = _("Propagation was stopped after {slices}: keep them, or discard them?")
        return StatusLine(Status.KEEP_OR_DISCARD, text.format(slices=slices))
    status = Status.PROMPTED if now.hasPrompts else Status.READY
    done, total = now.progress
    counted = _("{done} of {total} slices").format(done=done, total=total) if total else _("beginning")
    if now.isAutoRunning:
        status = Status.FINDING
        text = _("Auto: {counted}. Cancel stops, and leaves everything as it is.").format(counted=counted)
    elif now.isPropagating:
        status = Status.PROPAGATING
        text = _("Propagating: {counted}. You can go on clicking; Cancel stops.").format(counted=counted)
    elif now.isWaiting:
        status, text = Status.ENCODING, _("The model is looking at the slice …")
    else:
        text = _advice(now)
    return StatusLine(status, _sentence(now.notice) or text, details=now.report)


def _advice(now: Situation) -> str:
    if now.isPropagated:
        text = _("Check the slices (N: next weakest). To correct one, {how}, then propagate again.")
    elif now.hasPrompts and now.isSingle:
        text = _("To correct the mask, {how}.")
    elif now.hasPrompts:
        text = _("Propagate to the other slices; or, to correct this one, {how}.")
    else:
        return _sentence(_how(now))
    return text.format(how=_how(now))


def _how(now: Situation) -> str:
    """What to do with the mouse."""
    if now.tool is Tool.BOX:
        return _("draw a box round the structure in a slice view: drag, or click two corners")
    if now.tool is Tool.SCRIBBLE and now.negative:
        return _("draw a line through what does not belong to the structure in a slice view")
    if now.tool is Tool.SCRIBBLE:
        return _("draw a line inside the structure in a slice view")
    if now.negative:
        return _("click what does not belong to the structure in a slice view")
    return _("click the structure in a slice view")


def _sentence(text: str) -> str:
    """Return an error message, which begins with a small letter and has no full stop, as a sentence."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")
