"""The part of the effect's options about Auto: shows an AutoView, tells what the user pressed."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSAM2SegmentLib.Panels.PanelState import AutoView
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, breakable, choose, fill, put

_ACTIONS = {"autoSliceButton": "autoSlice", "autoVolumeButton": "autoVolume", "trainButton": "trainAuto"}


class AutoSection:
    """The widgets of the section.

    Parameters
    ----------
    widget
        The panel they lie in.
    do
        Called with the name of an action of the controller, and its values.
    """

    def __init__(self, widget: qt.QWidget, do: Callable[..., None]) -> None:
        find = widget.findChild
        self._do, self._connections = do, Connections()
        self._bar, self._modelBar = find(qt.QWidget, "autoBar"), find(qt.QWidget, "autoModelBar")
        self._models, self._replaces = find(qt.QComboBox, "autoModelBox"), find(qt.QCheckBox, "replaceBox")
        self._text = find(qt.QLabel, "autoText")
        self._buttons = {name: find(qt.QPushButton, name) for name in _ACTIONS}
        self._shown: AutoView | None = None
        connect = self._connections.connect
        for name, button in self._buttons.items():
            connect(button, "clicked", lambda _=False, name=name: self._do(_ACTIONS[name]))
        connect(self._models, "activated", self._onModel)
        connect(self._replaces, "clicked", self._onReplaces)

    def show(self, view: AutoView) -> None:
        """Show this. Nobody is told of anything."""
        before, self._shown = self._shown, view
        self._bar.visible = view.isShown
        self._modelBar.visible = bool(view.models)
        if before is None or view.models != before.models:
            fill(self._models, view.models)
        if view.models:
            choose(self._models, view.chosen)
        put(self._replaces, "checked", view.replaces)
        put(self._buttons["autoSliceButton"], "enabled", view.canFindSlice)
        put(self._buttons["autoVolumeButton"], "enabled", view.canFindVolume)
        put(self._text, "text", breakable(view.text))
        self._text.visible = bool(view.text)
        self._buttons["trainButton"].visible = view.canTrain

    def cleanup(self) -> None:
        """Tell nobody any more."""
        self._connections.disconnectAll()

    def _onModel(self, _=0) -> None:
        self._do("setValue", "autoModel", self._models.itemData(self._models.currentIndex))

    def _onReplaces(self, _=False) -> None:
        self._do("setValue", "replaceSegments", "1" if self._replaces.checked else "0")
