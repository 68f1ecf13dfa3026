"""What the options panel shows and lets choose: plain values, made by the controller, drawn by the panel.

Begin with :class:`PanelState`. :class:`Parameters` are the user's choices, as the scene has them.
"""

from __future__ import annotations

import enum
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medsam2_core.errors import MedSAM2Error, PromptError, VolumeError
from medsam2_core.imaging.intensity import PRESETS, parse_window
from medsam2_core.prompts.types import Box, MaskPrompt, Point

from MedSAM2SegmentLib.i18n import _

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medsam2_core.prompts import SlicePrompts


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
    kinds
        Which prompts it has, as text (see :func:`kindsOf`).
    """

    n: int
    confidence: float | None = None
    prompted: bool = False
    final: bool = False
    kinds: str = ""


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
class OtherView:
    """The section about another scan of the scene.

    Attributes
    ----------
    scans, chosen
        Other segmentations: (value, label) pairs, and the value chosen.
    canFind, canCompare
        Whether its objects can be looked for, and be compared with those of this one.
    text
        What has changed since.
    """

    scans: tuple[tuple[str, str], ...] = ()
    chosen: str = ""
    canFind: bool = False
    canCompare: bool = False
    text: str = ""


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
    millilitres
        Volume of the segment after a propagation; None hides it.
    diameters, drawn
        In mm: the longest diameter of the segment and the one across it, empty while they are not known; the
        same of the line that was drawn as a prompt.
    choices
        By parameter name ("model", "window", "direction", "range", "stack", "keep"), what can be chosen:
        (value, label) pairs.
    values
        By parameter name, the value chosen; strings, as in the scene.
    auto, other
        See AutoView and OtherView.
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
    millilitres: float | None = None
    diameters: tuple[float, ...] = ()
    drawn: tuple[float, ...] = ()
    choices: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    auto: AutoView = AutoView()
    other: OtherView = OtherView()


class Notice:
    """What the user is told instead of the usual advice.

    Attributes
    ----------
    text, details
        Empty for nothing.
    """

    def __init__(self) -> None:
        self.text = self.details = ""

    def show(self, text: str, details: str = "") -> None:
        """Show a notice; an empty one removes it."""
        self.text, self.details = text, details

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Within, an error is shown as a notice."""
        try:
            yield
        except MedSAM2Error as error:
            self.show(str(error))


def advice(facts: PanelState) -> str:
    """Return what to do next, when nothing is in the way."""
    if facts.canJump:
        text = _("Check the slices (N: next weakest). To correct one, {how}, then propagate again.")
    elif facts.canClear and facts.slices == 1:
        text = _("To correct the mask, {how}.")
    elif facts.canClear:
        text = _("Propagate to the other slices; or, to correct this one, {how}.")
    else:
        return sentence(howToPrompt(facts))
    return text.format(how=howToPrompt(facts))


def howToPrompt(facts: PanelState) -> str:
    """Return what to do with the mouse to prompt."""
    if facts.tool is Tool.BOX:
        return _("draw a box round the structure in a slice view: drag, or click two corners")
    if facts.tool is Tool.SCRIBBLE and facts.negative:
        return _("draw a line through what does not belong to the structure in a slice view")
    if facts.tool is Tool.SCRIBBLE:
        return _("draw a line inside the structure in a slice view")
    if facts.negative:
        return _("click what does not belong to the structure in a slice view")
    return _("click the structure in a slice view")


def kindsOf(onSlice: SlicePrompts) -> str:
    """Return the kinds of the prompts of a slice as text: "box, points 2+ 1-, mask, final"."""
    prompts = onSlice.prompts
    signs = [one.positive for one in prompts if isinstance(one, Point)]
    counts = ((sum(signs), "+"), (len(signs) - sum(signs), "-"))
    points = " ".join(f"{count}{sign}" for count, sign in counts if count)
    kinds = [
        _("box") if any(isinstance(one, Box) for one in prompts) else "",
        _("points {counts}").format(counts=points) if signs else "",
        _("mask") if any(isinstance(one, MaskPrompt) for one in prompts) else "",
        _("final") if onSlice.final else "",
    ]
    return ", ".join(kind for kind in kinds if kind)


def sentence(text: str) -> str:
    """Return an error message, which begins with a small letter and has no full stop, as a sentence."""
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")


# Parameters -------------------------------------------------------------------------------------------------

#: Every parameter with its default, as stored in the Segment Editor node (under the effect's name).
DEFAULTS = {
    "model": "embedded",
    "window": "auto",
    "direction": "both",
    "range": "all",
    "stopWhenGone": "1",
    "autoPropagate": "0",
    "tool": "point",
    "negative": "0",
    "stack": "auto",
    "keep": "slice",  # of a segment that is used as prompt: this slice, or see kept_slices
    "autoModel": "",  # the first that suits the volume
    "replaceSegments": "0",
    "otherScan": "",  # the first other segmentation of the scene
    "show3D": "1",
    "stackFound": "",  # what "auto" was resolved to, so that a saved scene has the same slices
}

#: Slices without the object after which a direction is given up, when "stopWhenGone" is on.
PATIENCE = 3

_WINDOWS = (("auto", _("Automatic")), ("displayed", _("As displayed")))
_DIRECTIONS = (("both", _("Both ways")), ("forward", _("Forward")), ("reverse", _("Backward")))
_STACKS = (
    ("auto", _("View of the first prompt")),
    ("axial", _("Axial")),
    ("sagittal", _("Sagittal")),
    ("coronal", _("Coronal")),
    ("view", _("View last clicked, also oblique")),
    ("images", _("Images of their own, in no order")),
)
_KEEPS = (
    ("slice", _("This slice")),
    ("all", _("All slices")),
    ("every:5", _("Every fifth slice")),
    ("ends", _("First and last")),
)
_RANGES = (("all", _("All slices")), ("between", _("Between prompts")))
_SWITCHES = ("stopWhenGone", "autoPropagate", "negative", "replaceSegments", "show3D")
_BUILT_IN = (("embedded", _("Embedded")),)
_RANGE = re.compile(r"^\s*(\d+)\s*(?:\.\.|-|to)\s*(\d+)\s*$")


class Parameters:
    """The user's choices, stored in the scene.

    Parameters
    ----------
    read, write
        Return a parameter of the effect in the Segment Editor node, empty when it was never set; and set it.
    """

    def __init__(self, read: Callable[[str], str], write: Callable[[str, str], None]) -> None:
        self._read, self._write = read, write

    def text(self, name: str) -> str:
        """Return the value of a parameter in the scene, or its default."""
        return self._read(name) or DEFAULTS[name]

    def isOn(self, name: str) -> bool:
        """Whether a parameter that is 0 or 1 is 1."""
        return self.text(name) == "1"

    def put(self, name: str, value: str | bool) -> bool:
        """Set a parameter; whether that changed it.

        Raises
        ------
        MedSAM2Error
            The value is not valid.
        """
        if name not in DEFAULTS:
            raise MedSAM2Error(
                f"there is no parameter {name!r}: use one of {', '.join(DEFAULTS)}", code="unknown-parameter"
            )
        value = checked(name, str(int(value)) if isinstance(value, bool) else str(value).strip())
        if self.text(name) == value:
            return False
        self._write(name, value)
        return True

    @property
    def tool(self) -> Tool:
        """What a press in a slice view draws."""
        known = {tool.value: tool for tool in Tool}
        return known.get(self.text("tool"), Tool.POINT)

    def rangeOfSlices(self, count: int) -> tuple[int | None, int | None]:
        """Return first and last slice to propagate through, None and None for all of ``count``.

        Raises
        ------
        PromptError
            The range lies outside the stack.
        """
        found = _RANGE.match(self.text("range"))
        if found is None:
            return None, None
        first, last = sorted(int(number) for number in found.groups())
        if first >= count:
            raise PromptError(
                f"slices {first} to {last} do not exist: choose from 0 to {count - 1}, or all slices",
                code="range-outside-stack",
                first=first,
                last=last,
                count=count,
            )
        return first, min(last, count - 1)

    def choices(self, models: tuple[tuple[str, str], ...] = ()) -> dict[str, tuple[tuple[str, str], ...]]:
        """Return, by parameter, the choices for the panel, as (value, label) pairs.

        ``models`` are those the worker has; empty while unknown.
        """
        model, window, span = self.text("model"), self.text("window"), self.text("range")
        windows = _WINDOWS + tuple((name, name.capitalize()) for name in PRESETS)
        return {
            "model": _including(models or _BUILT_IN, model),
            "window": _including(windows, window),
            "direction": _DIRECTIONS,
            "range": _including(_RANGES, span),
            "stack": _STACKS,
            "keep": _KEEPS,
        }

    def values(self) -> dict[str, str]:
        """Return, by parameter, the value chosen."""
        return {name: self.text(name) for name in DEFAULTS if name != "stackFound"}


def checked(name: str, value: str) -> str:
    """Return ``value`` if it is valid for parameter ``name``; MedSAM2Error with the choices if not."""
    if name in _SWITCHES and value not in ("0", "1"):
        raise MedSAM2Error(f"{name} is 0 or 1, not {value!r}", code="parameter-not-valid", name=name)
    if name == "tool" and value not in {tool.value for tool in Tool}:
        raise PromptError(f"there is no tool {value!r}: use point, box or scribble", code="unknown-tool")
    known = {"direction": _DIRECTIONS, "stack": _STACKS, "keep": _KEEPS}.get(name)
    if known is not None and value not in dict(known):
        raise MedSAM2Error(
            f"{name} {value!r} is not known: use one of {', '.join(dict(known))}",
            code="parameter-not-valid",
            name=name,
        )
    if name == "window" and value not in dict(_WINDOWS):
        window = parse_window(value)  # VolumeError that names the choices
        if window.width <= 0:
            raise VolumeError(f"window width {window.width:g} must be greater than 0", code="window-width")
    if name == "range" and value not in dict(_RANGES) and not _RANGE.match(value):
        raise PromptError(
            f"range {value!r}: give the first and the last slice, as in 10-40, or choose all",
            code="range-not-valid",
        )
    return value


def _including(known: tuple[tuple[str, str], ...], value: str) -> tuple[tuple[str, str], ...]:
    return known if value in dict(known) else (*known, (value, value))
