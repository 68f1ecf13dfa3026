"""The few things both panels need of Qt, written so that PythonQt does them, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt

RESOURCES = Path(__file__).resolve().parents[2] / "Resources"


def loadUi(name: str, parent: qt.QWidget | None = None) -> qt.QWidget:
    """The widget a file of ``Resources/UI`` describes.

    Raises
    ------
    FileNotFoundError
        The file is not there or is not understood: the installation is damaged.
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
    """Offer (value, label) pairs, without telling anybody."""
    before = combo.blockSignals(True)
    combo.clear()
    for value, label in choices:
        combo.addItem(label, value)
    combo.blockSignals(before)


def choose(combo: qt.QComboBox, value: str) -> None:
    """Show the item of this value; a value that is not on the list is added to it as it stands."""
    index = combo.findData(value)
    if index < 0:
        before = combo.blockSignals(True)
        combo.addItem(value, value)
        combo.blockSignals(before)
        index = combo.findData(value)
    put(combo, "currentIndex", index)


def breakable(text: str, longest: int = 24) -> str:
    """The text with places to break it inside long words (paths, URLs), so that it fits a narrow column."""
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


class Connections:
    """Signals connected by one owner, to be disconnected all at once.

    A slot connected is a slot held for ever; without this, neither the panel nor what it talks to would end.
    """

    def __init__(self) -> None:
        self._made: list[tuple[qt.QObject, str, Callable]] = []

    def connect(self, sender: qt.QObject, signal: str, slot: Callable) -> None:
        """Call ``slot`` when the signal of this name is sent."""
        getattr(sender, signal).connect(slot)
        self._made.append((sender, signal, slot))

    def disconnectAll(self) -> None:
        """Call nobody any more."""
        made, self._made = self._made, []
        for sender, signal, slot in made:
            try:
                getattr(sender, signal).disconnect(slot)
            except (ValueError, RuntimeError):
                continue  # Qt has deleted the sender, and its connections with it
