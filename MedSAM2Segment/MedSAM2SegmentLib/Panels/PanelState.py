"""What the options panel shows: plain values, made by the controller, drawn by the panel."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Status(enum.Enum):
    """The state of the effect. The controller has a line for each that tells what to do next."""

    NO_VOLUME = "no volume"
    VOLUME_REFUSED = "volume refused"
    NO_SEGMENT = "no segment"
    NO_RUNTIME = "no runtime"
    INSTALLING = "installing"
    STARTING = "starting"
    SENDING = "sending the volume"
    DOWNLOADING = "downloading the model"
    LOADING = "loading the model"
    READY = "ready"
    ENCODING = "encoding"
    PROMPTED = "prompted"
    PROPAGATING = "propagating"
    FINDING = "finding"
    KEEP_OR_DISCARD = "keep or discard"
    WORKER_LOST = "worker lost"
    FAILED = "failed"


class Tool(enum.Enum):
    """What pressing the mouse in a slice view draws."""

    POINT = "point"
    BOX = "box"
    SCRIBBLE = "scribble"


@dataclass(frozen=True)
class SliceConfidence:
    """One slice of the confidence strip.

    Attributes
    ----------
    n
        Slice number in the stack.
    confidence
        0 to 1; None when the slice was not segmented.
    prompted, final
        Whether it has prompts, and whether it is final.
    """

    n: int
    confidence: float | None = None
    prompted: bool = False
    final: bool = False


@dataclass(frozen=True)
class AutoView:
    """The section about Auto, segmentation without prompts.

    Attributes
    ----------
    isShown
        Whether there is a volume for it.
    models, chosen
        What suits the volume: (value, label) pairs, and the value chosen.
    canFindSlice, canFindVolume
        Whether a model can be run now.
    replaces
        Whether segments of the same name are replaced.
    text
        What was found, and with which confidence; or that there is no model, and what to do.
    canTrain
        Whether to offer the page on which models are trained.
    """

    isShown: bool = False
    models: tuple[tuple[str, str], ...] = ()
    chosen: str = ""
    canFindSlice: bool = False
    canFindVolume: bool = False
    replaces: bool = False
    text: str = ""
    canTrain: bool = False


@dataclass(frozen=True)
class PanelState:
    """Everything the panel needs to draw itself.

    Attributes
    ----------
    status, text
        The state of the effect and, in one line, what to do next.
    action
        Label of the one button beside the status line ("Install…", "Restart"); empty hides it.
    details
        What *Details* and *Copy report* give; empty hides both.
    progress
        (done, total) of what is running; total 0 when it is unknown; None hides the bar.
    remaining
        Remaining time as text; empty when unknown.
    confidences
        The strip, ascending; empty hides it.
    slices
        How many slices the stack has; 0 while that is not known.
    current
        The slice of the stack that is shown; None when no slice is.
    choices
        By parameter name ("model", "window", "direction", "range", "stack"), what can be chosen:
        (value, label) pairs.
    values
        By parameter name, the value chosen; strings, as in the scene.
    auto
        See AutoView.
    """

    status: Status = Status.NO_VOLUME
    text: str = ""
    action: str = ""
    details: str = ""
    progress: tuple[int, int] | None = None
    remaining: str = ""
    tool: Tool = Tool.POINT
    negative: bool = False
    canPrompt: bool = False
    canPropagate: bool = False
    canCancel: bool = False
    canKeep: bool = False
    canFinalise: bool = False
    canJump: bool = False
    canClear: bool = False
    confidences: tuple[SliceConfidence, ...] = ()
    slices: int = 0
    current: int | None = None
    choices: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    auto: AutoView = AutoView()
