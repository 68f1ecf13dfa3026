"""Parameters of the effect: their names in the scene, their defaults, and what their texts mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medsam2_core.errors import MedSAM2Error, PromptError, VolumeError
from medsam2_core.imaging.intensity import PRESETS, parse_window

from MedSAM2SegmentLib.Panels.PanelState import Tool

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Segments.Editors import SegmentEditor

#: Every parameter with its default, as they stand in the Segment Editor node (under the effect's name).
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
    "stackFound": "",  # what "auto" has come to, so that a saved scene is cut as it was
}

#: Slices without the object after which a direction is given up, when "stopWhenGone" is on.
PATIENCE = 3

_WINDOWS = (("auto", "Automatic"), ("displayed", "As displayed"))
_DIRECTIONS = (("both", "Both ways"), ("forward", "Forward"), ("reverse", "Backward"))
_STACKS = (
    ("auto", "View of the first prompt"),
    ("axial", "Axial"),
    ("sagittal", "Sagittal"),
    ("coronal", "Coronal"),
    ("view", "View last clicked, also oblique"),
)
_SWITCHES = ("stopWhenGone", "autoPropagate", "negative", "replaceSegments")
_BUILT_IN = (("embedded", "Embedded"),)
_RANGE = re.compile(r"^\s*(\d+)\s*(?:\.\.|-|to)\s*(\d+)\s*$")


class Parameters:
    """What the user has chosen, kept in the scene by the editor.

    Parameters
    ----------
    editor
        Reads and writes the Segment Editor node.
    """

    def __init__(self, editor: SegmentEditor) -> None:
        self._editor = editor
        self.models: tuple[tuple[str, str], ...] = _BUILT_IN

    def text(self, name: str) -> str:
        """The value of a parameter as it stands in the scene; its default where the scene has none."""
        return self._editor.parameter(name) or DEFAULTS[name]

    def isOn(self, name: str) -> bool:
        """The value of a parameter that is 0 or 1."""
        return self.text(name) == "1"

    def put(self, name: str, value: str | bool) -> bool:
        """Set a parameter; whether that changed it.

        Raises
        ------
        MedSAM2Error
            When the value means nothing.
        """
        if name not in DEFAULTS:
            raise MedSAM2Error(f"there is no parameter {name!r}: use one of {', '.join(DEFAULTS)}")
        value = checked(name, str(int(value)) if isinstance(value, bool) else str(value).strip())
        if self.text(name) == value:
            return False
        self._editor.setParameter(name, value)
        return True

    @property
    def tool(self) -> Tool:
        """What a press in a slice view means."""
        known = {tool.value: tool for tool in Tool}
        return known.get(self.text("tool"), Tool.POINT)

    def rangeOfSlices(self, count: int) -> tuple[int | None, int | None]:
        """First and last slice to propagate through, None and None for all of ``count``.

        Raises
        ------
        PromptError
            When the range lies outside the stack.
        """
        found = _RANGE.match(self.text("range"))
        if found is None:
            return None, None
        first, last = sorted(int(number) for number in found.groups())
        if first >= count:
            raise PromptError(
                f"slices {first} to {last} do not exist: choose from 0 to {count - 1}, or all slices"
            )
        return first, min(last, count - 1)

    def choices(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """For the panel: by parameter, what can be chosen, as (value, label) pairs."""
        model, window, span = self.text("model"), self.text("window"), self.text("range")
        windows = _WINDOWS + tuple((name, name.capitalize()) for name in PRESETS)
        ranges = (("all", "All slices"),)
        return {
            "model": _including(self.models, model),
            "window": _including(windows, window),
            "direction": _DIRECTIONS,
            "range": _including(ranges, span),
            "stack": _STACKS,
        }

    def values(self) -> dict[str, str]:
        """For the panel: by parameter, the value chosen."""
        return {name: self.text(name) for name in DEFAULTS if name != "stackFound"}


def checked(name: str, value: str) -> str:
    """``value`` itself when parameter ``name`` can have it; MedSAM2Error with the choices when not."""
    if name in _SWITCHES and value not in ("0", "1"):
        raise MedSAM2Error(f"{name} is 0 or 1, not {value!r}")
    if name == "tool" and value not in {tool.value for tool in Tool}:
        raise PromptError(f"there is no tool {value!r}: use point, box or scribble")
    known = {"direction": _DIRECTIONS, "stack": _STACKS}.get(name)
    if known is not None and value not in dict(known):
        raise MedSAM2Error(f"{name} {value!r} is not known: use one of {', '.join(dict(known))}")
    if name == "window" and value not in dict(_WINDOWS):
        window = parse_window(value)  # VolumeError that names the choices
        if window.width <= 0:
            raise VolumeError(f"window width {window.width:g} must be greater than 0")
    if name == "range" and value != "all" and not _RANGE.match(value):
        raise PromptError(f"range {value!r}: give the first and the last slice, as in 10-40, or choose all")
    return value


def _including(known: tuple[tuple[str, str], ...], value: str) -> tuple[tuple[str, str], ...]:
    return known if value in dict(known) else (*known, (value, value))
