"""The one line that tells where the user stands and what to do next, for every situation there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from MedSAM2SegmentLib.Panels.PanelState import Status, Tool

#: What the user does with the mouse, by tool.
_HOW = {
    Tool.POINT: "click the structure in a slice view",
    Tool.BOX: "draw a box round the structure in a slice view: drag, or click two corners",
    Tool.SCRIBBLE: "draw a line inside the structure in a slice view",
}


_HOW_NOT = {
    Tool.POINT: "click what does not belong to the structure in a slice view",
    Tool.SCRIBBLE: "draw a line through what does not belong to the structure in a slice view",
}

_PREPARING = (Status.STARTING, Status.SENDING, Status.DOWNLOADING, Status.LOADING)


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
    isAwaiting, isPropagating, mustDecide
        Whether an answer is on its way, slices are being filled in, or a cancelled propagation is to be kept
        or discarded.
    isFinding, hasAuto
        Whether an Auto model is being asked, and whether there is one that suits the volume.
    done, total, kept
        Slices done of those to do; slices a cancelled propagation has filled in.
    hasPrompts, isFollowed, isSingle
        Whether the segment has prompts, whether slices other than the prompted ones have results, and whether
        there is only one slice.
    notice
        What to tell the user once, instead of the usual advice.
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
    modelTitle: str = "the model"
    isAwaiting: bool = False
    isPropagating: bool = False
    mustDecide: bool = False
    isFinding: bool = False
    hasAuto: bool = False
    done: int = 0
    total: int = 0
    kept: int = 0
    tool: Tool = Tool.POINT
    negative: bool = False
    hasPrompts: bool = False
    isFollowed: bool = False
    isSingle: bool = False
    notice: str = ""


@dataclass(frozen=True)
class StatusLine:
    """Status, the line, the label of the button beside it, and what *Details* shows."""

    status: Status
    text: str
    action: str = ""
    details: str = ""


def statusLine(now: Situation) -> StatusLine:
    """The line for a situation. What stops everything comes first, what is merely under way last."""
    line = _obstacle(now) or _preparation(now) or _work(now)
    if now.notice and line.status in _PREPARING:
        return replace(line, text=_sentence(now.notice))
    return line


def _obstacle(now: Situation) -> StatusLine | None:
    if now.runtimeProblem:
        return _missingRuntime(now)
    if not now.hasVolume:
        return StatusLine(Status.NO_VOLUME, "Choose the volume to segment as source volume, above.")
    if now.volumeProblem:
        action = "Harden transform" if now.canHarden else ""
        return StatusLine(
            Status.VOLUME_REFUSED, _sentence(now.volumeProblem), action, details=now.volumeProblem
        )
    if now.phase is Status.FAILED:
        text = _sentence(now.problem or "the worker could not be started")
        return StatusLine(Status.FAILED, text, "Restart", now.report or now.problem)
    if not now.hasSegment and not now.isFinding:
        text = "Choose a segment in the list above, or add one" + (", or press Auto." if now.hasAuto else ".")
        return StatusLine(Status.NO_SEGMENT, _sentence(now.notice) or text, details=now.report)
    return None


def _missingRuntime(now: Situation) -> StatusLine:
    if now.isInstalling:
        return StatusLine(
            Status.INSTALLING,
            "The Python environment of MedSAM2 is being installed; you can go on working meanwhile.",
            "Show…",
        )
    return StatusLine(
        Status.NO_RUNTIME, _sentence(now.runtimeProblem), "Install…", details=now.runtimeProblem
    )


def _preparation(now: Situation) -> StatusLine | None:
    """While the worker is not ready. What the user clicks meanwhile is answered as soon as it is."""
    meanwhile = f"you can already {_how(now)}."
    if now.hasPrompts:
        meanwhile = "your prompts are answered when it is done."
    if now.phase is Status.WORKER_LOST:
        reason = f" ({now.problem.rstrip('.')})" if now.problem else ""
        text = f"The worker was lost{reason} and is being started again; your prompts and masks are kept."
        return StatusLine(Status.WORKER_LOST, text, details=now.report or now.problem)
    title = f"The model {now.modelTitle!r}"
    told = {
        Status.STARTING: "The worker is starting",
        Status.SENDING: "The volume is being sent to the worker",
        Status.DOWNLOADING: f"{title} is being downloaded, once",
        Status.LOADING: f"{title} is being loaded",
    }
    return StatusLine(now.phase, f"{told[now.phase]}; {meanwhile}") if now.phase in told else None


def _work(now: Situation) -> StatusLine:
    if now.mustDecide:
        slices = "1 slice" if now.kept == 1 else f"{now.kept} slices"
        return StatusLine(
            Status.KEEP_OR_DISCARD, f"Propagation was stopped after {slices}: keep them, or discard them?"
        )
    status = Status.PROMPTED if now.hasPrompts else Status.READY
    if now.isFinding:
        counted = f"{now.done} of {now.total} slices" if now.total else "beginning"
        status, text = Status.FINDING, f"Auto: {counted}. Cancel stops, and leaves everything as it is."
    elif now.isPropagating:
        counted = f"{now.done} of {now.total} slices" if now.total else "beginning"
        status, text = Status.PROPAGATING, f"Propagating: {counted}. You can go on clicking; Cancel stops."
    elif now.isAwaiting:
        status, text = Status.ENCODING, "The model is looking at the slice …"
    elif now.isFollowed:
        text = f"Check the slices (N: next weakest). To correct one, {_how(now)}, then propagate again."
    elif now.hasPrompts and now.isSingle:
        text = f"To correct the mask, {_how(now)}."
    elif now.hasPrompts:
        text = f"Propagate to the other slices; or, to correct this one, {_how(now)}."
    else:
        text = _sentence(_how(now))
    return StatusLine(status, _sentence(now.notice) or text, details=now.report)


def _how(now: Situation) -> str:
    if now.negative and now.tool is not Tool.BOX:
        return _HOW_NOT[now.tool]
    return _HOW[now.tool]


def _sentence(text: str) -> str:
    """Error messages begin with a small letter and have no full stop: both are given to them."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")
