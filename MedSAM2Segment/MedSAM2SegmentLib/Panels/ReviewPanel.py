"""The section of the module's page about the review queue: shows a ReviewView."""

from __future__ import annotations

import contextlib

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import ReviewView
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, StatusLabel, breakable, put

# By button: the method of the section, and a key that works in all of the window: segments are corrected in
# the Segment Editor, where this page is not shown.
_ACTIONS = {
    "acceptReviewButton": ("accept", "F6"),
    "correctReviewButton": ("correct", "F7"),
    "skipReviewButton": ("skip", "F8"),
}
_TOLD_MS = 10_000


class ReviewPanel:
    """The widgets of the section; they lie in ``widget``, and what is pressed calls ``actions``.

    ``actions`` is ReviewSection.
    """

    def __init__(self, widget: qt.QWidget, actions) -> None:
        find = widget.findChild
        self._widget, self._actions, self._connections = widget, actions, Connections()
        self._folder = find(qt.QLineEdit, "reviewFolderEdit")
        self._browse, self._open = (
            find(qt.QPushButton, name) for name in ("reviewBrowseButton", "openReviewButton")
        )
        self._buttons = {name: find(qt.QPushButton, name) for name in _ACTIONS}
        self._case, self._counts = (find(qt.QLabel, name) for name in ("reviewCaseText", "reviewCountsText"))
        self._line = StatusLabel(widget, "review")
        self._shortcuts: list[qt.QShortcut] = []
        self._window: qt.QWidget | None = None  # that has them
        self._view: ReviewView | None = None
        connect = self._connections.connect
        connect(self._browse, "clicked", self._onBrowse)
        connect(self._open, "clicked", lambda _=False: self._actions.open(self._folder.text.strip()))
        for name, button in self._buttons.items():
            connect(button, "clicked", lambda _=False, name=name: self._call(name))

    def show(self, view: ReviewView) -> None:
        """Show this. Nothing is called: only the user's own doing is."""
        before, self._view = self._view, view
        for widget in (self._folder, self._browse, self._open):
            put(widget, "enabled", view.canOpen)
        put(self._buttons["acceptReviewButton"], "enabled", view.canAccept)
        put(self._buttons["correctReviewButton"], "enabled", view.canAccept)
        put(self._buttons["skipReviewButton"], "enabled", view.canSkip)
        for label, text in ((self._case, view.case), (self._counts, view.counts)):
            put(label, "text", breakable(text))
            label.visible = bool(text)
        self._line.show(view.line)
        if view != before and not self._widget.visible:
            self._tell(view)
        self._showShortcuts(view.canSkip)

    def cleanup(self) -> None:
        """Disconnect everything."""
        self._connections.disconnectAll()
        for shortcut in self._shortcuts:
            with contextlib.suppress(ValueError, RuntimeError):  # when Slicer ends, its window is gone before
                shortcut.deleteLater()
        self._shortcuts, self._window = [], None

    def _showShortcuts(self, areWanted: bool) -> None:
        """Have the keys only while a case is open: other modules may use them at other times."""
        if areWanted and not self._shortcuts:
            self._window = _mainWindow(self._widget)
            for name, (_method, key) in _ACTIONS.items():
                shortcut = qt.QShortcut(qt.QKeySequence(key), self._window)
                shortcut.autoRepeat = False  # a key that is held would warn, and decide about the next cases
                self._connections.connect(shortcut, "activated", lambda _=None, name=name: self._call(name))
                self._shortcuts.append(shortcut)
        for shortcut in self._shortcuts:
            put(shortcut, "enabled", areWanted)

    def _tell(self, view: ReviewView) -> None:
        """Say in the status bar what a key has done while another module is shown."""
        if self._window is not None and self._window.inherits("QMainWindow"):
            text = view.line.text or "; ".join(filter(None, (view.case, view.counts)))
            self._window.statusBar().showMessage(text, _TOLD_MS)

    def _call(self, name: str) -> None:
        if self._buttons[name].enabled:
            getattr(self._actions, _ACTIONS[name][0])()

    def _onBrowse(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self._widget, _("Results of medsam2 batch"))
        if path:
            put(self._folder, "text", path)
            self._actions.open(path)


def _mainWindow(widget: qt.QWidget) -> qt.QWidget:
    """Return the window that the others belong to: a panel that floats is a window, too."""
    window = widget.window()
    while window.parentWidget() is not None:
        window = window.parentWidget().window()
    return window
