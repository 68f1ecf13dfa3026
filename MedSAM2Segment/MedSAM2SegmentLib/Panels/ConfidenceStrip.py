"""One bar a slice: the model's confidence, prompted and final slices, and the slice that is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import SliceConfidence

# Colours that colour-blind people can tell apart (Okabe and Ito), for a light and a dark style.
_LOW = ((213, 94, 0), (240, 120, 40))
_MEDIUM = ((230, 159, 0), (240, 180, 60))
_HIGH = ((0, 114, 178), (86, 180, 233))
_LOW_BELOW = 0.5
_HIGH_FROM = 0.8
_HEIGHT = 48
_MARKS = 9  # pixels under the bars for the marks of prompted and final slices
_TOP = 3


@dataclass(frozen=True)
class Bar:
    """What is painted in one column: one slice, or the weakest of several that share its pixels.

    Attributes
    ----------
    left, right
        Pixels it fills: from left to before right.
    first, last
        Indices in the list of slices it stands for, both included.
    shown
        The slice it shows: the one of the lowest confidence.
    prompted, final
        Whether any of its slices is.
    """

    left: int
    right: int
    first: int
    last: int
    shown: SliceConfidence
    prompted: bool
    final: bool


def barsOf(slices: Sequence[SliceConfidence], width: int) -> list[Bar]:
    """Return the bars that show these slices on so many pixels; as many as fit."""
    count = min(len(slices), max(width, 1))
    bars = []
    for index in range(count):
        first = index * len(slices) // count
        last = (index + 1) * len(slices) // count - 1
        of = slices[first : last + 1]
        known = [one for one in of if one.confidence is not None]
        shown = min(known, key=lambda one: one.confidence) if known else of[0]
        left, right = index * width // count, (index + 1) * width // count
        prompted, final = any(one.prompted for one in of), any(one.final for one in of)
        bars.append(Bar(left, right, first, last, shown, prompted, final))
    return bars


def describe(one: SliceConfidence) -> str:
    """Return a slice as text, for tooltip and screen reader."""
    state = _("not segmented") if one.confidence is None else f"{one.confidence:.2f}"
    text = _("slice {n}: {state}").format(n=one.n, state=state)
    return text + (_(", prompted") if one.prompted else "") + (_(", final") if one.final else "")


class ConfidenceStrip(qt.QWidget):
    """Paints the confidences; a click calls ``onJump`` with the slice it meant.

    Parameters
    ----------
    parent
        The widget it lies in.
    onJump
        Called with a slice number. Not a signal: one of a Python subclass can crash Slicer when it ends.
    """

    def __init__(self, parent: qt.QWidget | None, onJump: Callable[[int], None]) -> None:
        super().__init__(parent)
        self._onJump: Callable[[int], None] | None = onJump
        self._slices: tuple[SliceConfidence, ...] = ()
        self._current: int | None = None
        self._hovered: Bar | None = None
        self._bars: list[Bar] = []
        self._barsWidth = -1
        self.minimumHeight = _HEIGHT
        self.maximumHeight = _HEIGHT
        self.mouseTracking = True
        self.focusPolicy = qt.Qt.StrongFocus
        self.accessibleName = _("Confidence by slice")

    def display(self, slices: tuple[SliceConfidence, ...], current: int | None) -> None:
        """Paint these slices from now on; ``current`` is the one that is shown in the slice view."""
        if slices == self._slices and current == self._current:
            return
        if slices != self._slices:
            self._barsWidth = -1
            self._hovered = None
            self.toolTip = ""
        self._slices, self._current = slices, current
        self.accessibleDescription = next((describe(one) for one in slices if one.n == current), "")
        self.update()

    def detach(self) -> None:
        """Stop calling ``onJump``."""
        self._onJump = None

    # Events

    def paintEvent(self, _event) -> None:
        """Paint it."""
        painter = qt.QPainter(self)
        try:
            self._paint(painter)
        finally:
            painter.end()

    def mousePressEvent(self, event) -> None:
        """Go to the slice under the mouse."""
        bar = self._barAt(event.pos().x())
        if bar is not None:
            self._jump(bar.shown.n)

    def mouseMoveEvent(self, event) -> None:
        """Highlight the slice under the mouse."""
        bar = self._barAt(event.pos().x())
        if bar != self._hovered:
            self._hovered = bar
            self.toolTip = describe(bar.shown) if bar is not None else ""
            self.update()

    def leaveEvent(self, _event) -> None:
        """End highlighting."""
        self._hovered = None
        self.update()

    def keyPressEvent(self, event) -> None:
        """Go to the neighbouring slice with the left and right arrow keys."""
        step = {int(qt.Qt.Key_Left): -1, int(qt.Qt.Key_Right): 1}.get(int(event.key()))
        numbers = [one.n for one in self._slices]
        if step is None or self._current not in numbers:
            event.ignore()
            return
        index = numbers.index(self._current) + step
        if 0 <= index < len(numbers):
            self._jump(numbers[index])

    def _jump(self, n: int) -> None:
        if self._onJump is not None:
            self._onJump(n)

    # Painting

    def _barsNow(self) -> list[Bar]:
        if self._barsWidth != self.width:
            self._barsWidth = self.width
            self._bars = barsOf(self._slices, self._barsWidth)
        return self._bars

    def _barAt(self, x: int) -> Bar | None:
        return next((bar for bar in self._barsNow() if bar.left <= x < bar.right), None)

    def _paint(self, painter) -> None:
        palette = self.palette
        base, ink = palette.color(qt.QPalette.Base), palette.color(qt.QPalette.Text)
        dark = 1 if base.lightness() < 128 else 0
        width, height = self.width, self.height
        painter.fillRect(0, 0, width, height, base)
        space = height - _MARKS - _TOP
        floor = _TOP + space
        for bar in self._barsNow():
            across = bar.right - bar.left - (1 if bar.right - bar.left > 3 else 0)
            if bar == self._hovered:
                painter.fillRect(bar.left, 0, across, floor, palette.color(qt.QPalette.Mid))
            if bar.shown.confidence is not None:
                tall = max(1, round(min(1.0, bar.shown.confidence) * space))
                colour = qt.QColor(*_colour(bar.shown.confidence)[dark])
                painter.fillRect(bar.left, floor - tall, across, tall, colour)
            _mark(painter, bar, floor + 2, ink)
        painter.fillRect(0, floor, width, 1, palette.color(qt.QPalette.Mid))
        for bar in self._barsNow():
            if self._covers(bar, self._current):
                painter.fillRect((bar.left + bar.right) // 2 - 1, 0, 2, floor, ink)
        if self.focus:
            painter.setPen(palette.color(qt.QPalette.Highlight))
            painter.drawRect(0, 0, width - 1, height - 1)

    def _covers(self, bar: Bar, n: int | None) -> bool:
        return n is not None and self._slices[bar.first].n <= n <= self._slices[bar.last].n


def _mark(painter, bar: Bar, top: int, ink) -> None:
    """A stroke under a slice with prompts; a square under one that is final."""
    middle = (bar.left + bar.right) // 2
    if bar.final:
        painter.fillRect(middle - 3, top, 6, 6, ink)
    elif bar.prompted:
        painter.fillRect(middle - 1, top, 2, 6, ink)


def _colour(confidence: float) -> tuple:
    if confidence < _LOW_BELOW:
        return _LOW
    return _HIGH if confidence >= _HIGH_FROM else _MEDIUM
