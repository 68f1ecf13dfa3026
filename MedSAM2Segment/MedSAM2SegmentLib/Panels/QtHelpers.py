"""What both panels need of Qt, written so that it works in PythonQt, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import qt

from MedSAM2SegmentLib.i18n import _

RESOURCES = Path(__file__).resolve().parents[2] / "Resources"


def loadUi(name: str, parent: qt.QWidget | None = None) -> qt.QWidget:
    """Return the widget that a file of ``Resources/UI`` describes.

    Raises
    ------
    FileNotFoundError
        The file is missing or damaged, and with it the installation.
    """
    path = RESOURCES / "UI" / name
    file = qt.QFile(str(path))
    if not file.open(qt.QIODevice.ReadOnly):
        raise FileNotFoundError(f"{path} cannot be opened: install the extension again")
    widget = qt.QUiLoader().load(file, parent) if parent is not None else qt.QUiLoader().load(file)
    file.close()
    if widget is None:
        raise FileNotFoundError(f"{path} is damaged: install the extension again")
    return widget


def put(widget: qt.QWidget, name: str, value) -> None:
    """Set a property if it differs: no signal, no repaint, no moved cursor when nothing changes."""
    if getattr(widget, name) != value:
        before = widget.blockSignals(True)
        setattr(widget, name, value)
        widget.blockSignals(before)


def fill(combo: qt.QComboBox, choices: tuple[tuple[str, str], ...]) -> None:
    """Offer (value, label) pairs, without a signal."""
    before = combo.blockSignals(True)
    combo.clear()
    for value, label in choices:
        combo.addItem(label, value)
    combo.blockSignals(before)


def choose(combo: qt.QComboBox, value: str) -> None:
    """Show the item of this value; a value that is not on the list is added to it."""
    index = combo.findData(value)
    if index < 0:
        before = combo.blockSignals(True)
        combo.addItem(value, value)
        combo.blockSignals(before)
        index = combo.findData(value)
    put(combo, "currentIndex", index)


def breakable(text: str, longest: int = 24) -> str:
    """Return the text with places to break long words (paths, URLs), so that it fits a narrow column."""
    words = []
    for word in text.split(" "):
        if len(word) > longest:
            for mark in "/\\_-.,=":
                word = word.replace(mark, mark + "\u200b")  # noqa: PLW2901
            parts = (part for piece in word.split("\u200b") for part in _cut(piece, longest))
            word = "\u200b".join(parts)  # noqa: PLW2901
        words.append(word)
    return " ".join(words)


def _cut(piece: str, longest: int) -> list[str]:
    return [piece[first : first + longest] for first in range(0, len(piece), longest)] or [""]


class StatusLabel:
    """Icon and label of a status line: the widgets NAMEIcon and NAMEText of a panel."""

    def __init__(self, panel: qt.QWidget, name: str) -> None:
        self._label = panel.findChild(qt.QLabel, f"{name}Text")
        self._icon = panel.findChild(qt.QLabel, f"{name}Icon")

    def show(self, line) -> None:
        """Show a Page/PageState.StatusLine; without text it is hidden."""
        put(self._label, "text", breakable(line.text))
        icon, tip = _levelIcon(line.level.value)
        self._icon.pixmap = self._icon.style().standardIcon(icon).pixmap(16, 16)
        self._icon.toolTip = tip
        self._label.visible = self._icon.visible = bool(line.text)


def _levelIcon(level: str) -> tuple[int, str]:
    return {
        "info": (qt.QStyle.SP_MessageBoxInformation, _("note")),
        "ok": (qt.QStyle.SP_DialogApplyButton, _("all is well")),
        "busy": (qt.QStyle.SP_BrowserReload, _("in progress")),
        "warning": (qt.QStyle.SP_MessageBoxWarning, _("needs attention")),
        "error": (qt.QStyle.SP_MessageBoxCritical, _("failed")),
    }[level]


class ProgressBar:
    """A progress bar within a widget that is hidden while nothing runs."""

    _STEPS = 1000

    def __init__(self, bar: qt.QProgressBar, holder: qt.QWidget) -> None:
        self._bar, self._holder = bar, holder

    def show(self, fraction: float | None) -> None:
        """Show how far something is, 0 to 1; below 0: unknown; None: nothing runs."""
        self._holder.visible = fraction is not None
        isKnown = fraction is not None and fraction >= 0
        put(self._bar, "maximum", self._STEPS if isKnown else 0)
        put(self._bar, "value", round(self._STEPS * fraction) if isKnown else -1)


def setColumns(
    table: qt.QTableWidget, titles: tuple[str, ...], stretched: int, connections: Connections
) -> None:
    """Give a table its columns; the first ``stretched`` of them share the space that is left.

    Rows are as high as their texts need, also when the columns get another width.
    """
    table.columnCount = len(titles)
    table.setHorizontalHeaderLabels(list(titles))
    table.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header = table.horizontalHeader()
    for column in range(len(titles)):
        mode = qt.QHeaderView.Stretch if column < stretched else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)
    # Qt 5 fits the rows when their texts change, and cuts texts when a column gets narrower afterwards.
    connections.connect(header, "sectionResized", lambda _=0, _old=0, _new=0: table.resizeRowsToContents())


def fillTable(table: qt.QTableWidget, rows: Sequence[tuple[Sequence[str], str]], selected: int) -> None:
    """Show (texts, tooltip) of each row, without a signal; ``selected`` is the row to select, -1 for none."""
    before = table.blockSignals(True)
    table.rowCount = len(rows)
    for index, (texts, tip) in enumerate(rows):
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(tip)
            table.setItem(index, column, item)
    table.blockSignals(before)
    selectOnly(table, selected)


def selectOnly(table: qt.QTableWidget, row: int) -> None:
    """Select a row, -1 for none, without a signal; a row that is selected keeps its current cell."""
    selected = table.currentRow() if table.selectedItems() else -1
    if selected == row:
        return
    before = table.blockSignals(True)
    if row >= 0:
        table.selectRow(row)
    else:
        table.clearSelection()
    table.blockSignals(before)


class Connections:
    """Signals connected by one owner, to be disconnected all at once.

    PythonQt keeps a connected slot alive; without this, panel and controller would never be freed.
    """

    def __init__(self) -> None:
        self._made: list[tuple[qt.QObject, str, Callable]] = []

    def connect(self, sender: qt.QObject, signal: str, slot: Callable) -> None:
        """Call ``slot`` when the signal of this name is sent."""
        getattr(sender, signal).connect(slot)
        self._made.append((sender, signal, slot))

    def disconnectAll(self) -> None:
        """Disconnect all of them."""
        made, self._made = self._made, []
        for sender, signal, slot in made:
            try:
                getattr(sender, signal).disconnect(slot)
            except (ValueError, RuntimeError, SystemError):  # PythonQt has one of each
                continue  # Qt has deleted the sender, and its connections with it
