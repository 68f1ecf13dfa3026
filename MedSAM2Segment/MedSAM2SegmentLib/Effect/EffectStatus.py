"""The state of the panel, with its status line: where the user stands, and what to do next."""

from __future__ import annotations

from dataclasses import replace
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
    from MedSAM2SegmentLib.Effect.SliceNavigation import SliceNavigation

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
    context, propagation, auto, navigation
        The parts of the effect.
    """

    def __init__(
        self,
        context: EditorContext,
        propagation: LivePropagation,
        auto: AutoSegmentation,
        navigation: SliceNavigation,
    ) -> None:
        self._context, self._session, self._parameters = context, context.session, context.parameters
        self._propagation, self._auto, self._navigation = propagation, auto, navigation

    def state(self, notice: str, details: str) -> PanelState:
        """Return the state of the panel; ``notice`` is shown instead of the usual advice."""
        propagation, auto, session = self._propagation, self._auto, self._session
        notice = _sentence(notice or propagation.problem or auto.problem)
        details = details or propagation.details or auto.details or (session.report if session.phase else "")
        facts = self._facts(details)
        state = self._missingRuntime(facts) or self._obstacle(facts, notice)
        state = state or self._preparing(facts, notice) or self._working(facts, notice)
        isRunning, isBlocked = facts.canCancel, state.status in _BLOCKED
        isFree = not isRunning and not isBlocked and state.status not in _WAITING
        prompted = self._context.markups.segmentIDs() if self._context.markups is not None else ()
        return replace(
            state,
            progress=facts.progress if isRunning else self._preparation(state.status),
            canPrompt=not isBlocked,
            canPropagate=isFree and bool(prompted) and facts.slices > 1 and not propagation.mustDecide,
            canFinalise=isFree and bool(self._context.segmentID) and session.session is not None,
            auto=self._autoView(state.status),
        )

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

    def _facts(self, details: str) -> PanelState:
        """The part of the state that does not depend on the status; the status line is made from it."""
        parameters, auto, propagation = self._parameters, self._auto, self._propagation
        segmentID, stack, markups = self._context.segmentID, self._session.stack, self._context.markups
        confidences = self._confidences(segmentID)
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
            canJump=any(one.confidence is not None and not one.prompted for one in confidences),
            canClear=bool(segmentID) and markups is not None and segmentID in markups.segmentIDs(),
            confidences=confidences,
            slices=len(stack) if stack is not None else 0,
            current=self._navigation.current() if confidences else None,
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

    # The status line ----------------------------------------------------------------------------------------
    # What blocks everything comes first, what is merely running last.

    def _missingRuntime(self, facts: PanelState) -> PanelState | None:
        problem = self._session.source.problem()
        if problem and self._session.source.isInstalling():
            text = _("The Python environment of MedSAM2 is being installed; you can go on working meanwhile.")
            return replace(facts, status=Status.INSTALLING, text=text, action=_("Show…"), details="")
        if problem:
            text, action = _sentence(problem), _("Install…")
            return replace(facts, status=Status.NO_RUNTIME, text=text, action=action, details=problem)
        return None

    def _obstacle(self, facts: PanelState, notice: str) -> PanelState | None:
        context, session = self._context, self._session
        if context.volumeNode is None:
            text = _("Choose the volume to segment as source volume, above.")
            return replace(facts, status=Status.NO_VOLUME, text=text, details="")
        if context.volumeProblem:
            text, action = _sentence(context.volumeProblem), _("Harden transform") if self.canHarden() else ""
            details = context.volumeProblem
            return replace(facts, status=Status.VOLUME_REFUSED, text=text, action=action, details=details)
        if session.phase is Status.FAILED:
            text = _sentence(session.problem or _("the worker could not be started"))
            details = facts.details or session.problem
            return replace(facts, status=Status.FAILED, text=text, action=_("Restart"), details=details)
        if not context.segmentID and not self._auto.isRunning:
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
        meanwhile = _("you can already {how}.").format(how=_how(facts))
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
            text = _advice(facts)
        return replace(facts, status=status, text=notice or text)


def _label(entry: AutoModelInfo) -> str:
    """Return name and classes of an Auto model."""
    classes = ", ".join(entry.classes[:3]) + (", …" if len(entry.classes) > 3 else "")
    return f"{entry.name} ({classes})" if classes else entry.name


def _advice(facts: PanelState) -> str:
    if facts.canJump:
        text = _("Check the slices (N: next weakest). To correct one, {how}, then propagate again.")
    elif facts.canClear and facts.slices == 1:
        text = _("To correct the mask, {how}.")
    elif facts.canClear:
        text = _("Propagate to the other slices; or, to correct this one, {how}.")
    else:
        return _sentence(_how(facts))
    return text.format(how=_how(facts))


def _how(facts: PanelState) -> str:
    """What to do with the mouse."""
    if facts.tool is Tool.BOX:
        return _("draw a box round the structure in a slice view: drag, or click two corners")
    if facts.tool is Tool.SCRIBBLE and facts.negative:
        return _("draw a line through what does not belong to the structure in a slice view")
    if facts.tool is Tool.SCRIBBLE:
        return _("draw a line inside the structure in a slice view")
    if facts.negative:
        return _("click what does not belong to the structure in a slice view")
    return _("click the structure in a slice view")


def _sentence(text: str) -> str:
    """Return an error message, which begins with a small letter and has no full stop, as a sentence."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")
