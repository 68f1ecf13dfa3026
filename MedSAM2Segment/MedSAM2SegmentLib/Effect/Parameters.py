"""Parameters of the effect: names and defaults in the scene, values, and labels for the panel."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medsam2_core.errors import MedSAM2Error, PromptError, VolumeError
from medsam2_core.imaging.intensity import PRESETS, parse_window

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import Tool

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

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
    "autoModel": "",  # the first that suits the volume
    "replaceSegments": "0",
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
)
_SWITCHES = ("stopWhenGone", "autoPropagate", "negative", "replaceSegments")
_BUILT_IN = (("embedded", _("Embedded")),)
_RANGE = re.compile(r"^\s*(\d+)\s*(?:\.\.|-|to)\s*(\d+)\s*$")


class Parameters:
    """The user's choices, stored in the scene by the editor.

    Parameters
    ----------
    editor
        Reads and writes the Segment Editor node.
    """

    def __init__(self, editor: SegmentEditor) -> None:
        self._editor = editor

    def text(self, name: str) -> str:
        """Return the value of a parameter in the scene, or its default."""
        return self._editor.parameter(name) or DEFAULTS[name]

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
        self._editor.setParameter(name, value)
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
        ranges = (("all", _("All slices")),)
        return {
            "model": _including(models or _BUILT_IN, model),
            "window": _including(windows, window),
            "direction": _DIRECTIONS,
            "range": _including(ranges, span),
            "stack": _STACKS,
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
    known = {"direction": _DIRECTIONS, "stack": _STACKS}.get(name)
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
    if name == "range" and value != "all" and not _RANGE.match(value):
        raise PromptError(
            f"range {value!r}: give the first and the last slice, as in 10-40, or choose all",
            code="range-not-valid",
        )
    return value


def _including(known: tuple[tuple[str, str], ...], value: str) -> tuple[tuple[str, str], ...]:
    return known if value in dict(known) else (*known, (value, value))
