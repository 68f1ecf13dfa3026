"""The options of the effect: shows a PanelState, and calls the controller when the user presses something."""

from __future__ import annotations

import re

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.ConfidenceStrip import ConfidenceStrip
from MedSAM2SegmentLib.Panels.PanelState import AutoView, OtherView, PanelState, Status, Tool
from MedSAM2SegmentLib.Panels.PromptsTable import PromptsTable
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, breakable, choose, fill, loadUi, put

_TOOL_BUTTONS = {Tool.POINT: "pointButton", Tool.BOX: "boxButton", Tool.SCRIBBLE: "scribbleButton"}
_ACTIONS = {
    "actionButton": "resolve",
    "propagateButton": "propagate",
    "cancelButton": "cancel",
    "keepButton": "keep",
    "discardButton": "discard",
    "weakestButton": "nextWeakest",
    "finaliseButton": "finaliseSlice",
    "segmentButton": "useSegmentAsPrompt",
    "markupsButton": "useMarkups",
    "clearButton": "clearPrompts",
    "autoSliceButton": "autoSlice",
    "autoVolumeButton": "autoVolume",
    "trainButton": "trainAuto",
    "likeButton": "findLike",
    "followButton": "followUp",
    "compareButton": "compare",
}
_CHOICES = {"direction": "directionBox", "model": "modelBox", "stack": "stackBox", "keep": "keepBox"}
_SWITCHES = {
    "stopWhenGone": "stopWhenGoneBox",
    "autoPropagate": "autoPropagateBox",
    "show3D": "show3DBox",
    "learn": "learnBox",
}
_SECTIONS = ("prompts", "other", "advanced")  # folded at first
_ALL = "all"
_FROM_TO = "from..to"
_BETWEEN = "between"
_RANGES = (
    (_ALL, _("All slices")),
    (_FROM_TO, _("From … to …")),
    (_BETWEEN, _("Between prompts")),
)
_RANGE = re.compile(r"\s*(\d+)\D+(\d+)\s*$")
_MOST_SLICES = 100_000  # while it is not known how many there are
_STEPS = 1000  # of the progress bar: Qt's integers are too short for the bytes of a volume

_BUSY = {Status.INSTALLING, Status.STARTING, Status.SENDING, Status.DOWNLOADING, Status.LOADING}
_BUSY |= {Status.ENCODING, Status.PROPAGATING, Status.FINDING}
_OK = {Status.READY, Status.PROMPTED}
_ERRORS = {Status.FAILED, Status.VOLUME_REFUSED}
_REDRAW_MS = 400
_IDLE_PAGE, _RUNNING_PAGE, _ENDED_PAGE = range(3)


class OptionsPanel:
    """The panel. It decides nothing: what it shows is a state, what is pressed calls ``actions``.

    Parameters
    ----------
    parent
        The widget it will lie in; None when it is put into a layout afterwards.
    actions
        The controller: ``setTool(name)``, ``setNegative(bool)``, ``propagate()``, ``cancel()``, ``keep()``,
        ``discard()``, ``nextWeakest()``, ``jumpTo(n)``, ``finaliseSlice()``, ``useSegmentAsPrompt()``,
        ``useMarkups()``, ``clearPrompts()``, ``clearSlice(n)``, ``autoSlice()``, ``autoVolume()``,
        ``trainAuto()``, ``findLike()``, ``followUp()``, ``compare()``, ``openImages(folder)``,
        ``setValue(name, value)``, ``resolve()``.

    Attributes
    ----------
    widget
        What to put into the layout.
    """

    def __init__(self, parent: qt.QWidget | None, actions) -> None:
        self.widget = loadUi("OptionsPanel.ui", parent)
        self._actions = actions
        self._state: PanelState | None = None
        self._connections = Connections()
        self._find()
        self._strip = ConfidenceStrip(self._stripHolder, self._onJump)
        self._prompts = PromptsTable(self.widget, self._connections, self._do)
        self._stripHolder.layout().addWidget(self._strip)
        self._connect()
        self.show(PanelState())

    def show(self, state: PanelState) -> None:
        """Show this state. Nothing is called: only the user's own doing reaches the controller."""
        before, self._state = self._state, state
        if state != before:
            self._draw(state, before)

    def _draw(self, state: PanelState, before: PanelState | None) -> None:
        self._showStatus(state)
        self._showTools(state)
        self._showWork(state)
        self._showChoices(state, before)
        self._showCorrections(state)
        self._showAuto(state.auto, before.auto if before is not None else None)
        self._showOther(state.other, before.other if before is not None else None)

    def cleanup(self) -> None:
        """Disconnect everything; the widget itself belongs to Qt."""
        self._connections.disconnectAll()
        self._strip.detach()
        self._actions = None

    # Making it

    def _find(self) -> None:
        find = self.widget.findChild
        self._statusIcon = find(qt.QLabel, "statusIcon")
        self._statusText = find(qt.QLabel, "statusText")
        self._detailsBar = find(qt.QWidget, "detailsBar")
        self._detailsButton = find(qt.QPushButton, "detailsButton")
        self._copyButton = find(qt.QPushButton, "copyButton")
        self._methodsButton = find(qt.QPushButton, "methodsButton")
        self._detailsText = find(qt.QPlainTextEdit, "detailsText")
        self._toolButtons = {tool: find(qt.QPushButton, name) for tool, name in _TOOL_BUTTONS.items()}
        self._styled = [find(qt.QWidget, name) for name in ("toolBar", "signBar")]
        self._positive = find(qt.QPushButton, "positiveButton")
        self._negative = find(qt.QPushButton, "negativeButton")
        self._buttons = {name: find(qt.QPushButton, name) for name in _ACTIONS}
        self._combos = {name: find(qt.QComboBox, box) for name, box in _CHOICES.items()}
        self._switches = {name: find(qt.QCheckBox, box) for name, box in _SWITCHES.items()}
        self._window = find(qt.QComboBox, "windowBox")
        self._range = find(qt.QComboBox, "rangeBox")
        self._first = find(qt.QSpinBox, "firstBox")
        self._last = find(qt.QSpinBox, "lastBox")
        self._toLabel = find(qt.QLabel, "toLabel")
        self._work = find(qt.QStackedWidget, "work")
        self._bar = find(qt.QProgressBar, "progressBar")
        self._progressText = find(qt.QLabel, "progressText")
        self._stripHolder = find(qt.QWidget, "stripHolder")
        self._sizesText = find(qt.QLabel, "sizesText")
        self._autoBar, self._autoModelBar = find(qt.QWidget, "autoBar"), find(qt.QWidget, "autoModelBar")
        self._autoModel, self._replaces = find(qt.QComboBox, "autoModelBox"), find(qt.QCheckBox, "replaceBox")
        self._autoText = find(qt.QLabel, "autoText")
        self._otherBox, self._otherText = find(qt.QComboBox, "otherBox"), find(qt.QLabel, "otherText")
        self._imagesButton = find(qt.QPushButton, "imagesButton")
        self._sections = [
            (find(qt.QToolButton, f"{name}Button"), find(qt.QWidget, f"{name}Bar")) for name in _SECTIONS
        ]
        for _button, bar in self._sections:
            bar.hide()
        self._detailsText.hide()

    def _connect(self) -> None:
        connect = self._connections.connect
        for name, button in self._buttons.items():
            connect(button, "clicked", lambda _=False, name=name: self._do(_ACTIONS[name]))
        for tool, button in self._toolButtons.items():
            connect(button, "clicked", lambda _=False, tool=tool: self._do("setTool", tool.value))
        connect(self._positive, "clicked", lambda _=False: self._do("setNegative", False))
        connect(self._negative, "clicked", lambda _=False: self._do("setNegative", True))
        for name, combo in self._combos.items():
            connect(combo, "activated", lambda _=0, name=name: self._onChosen(name))
        for name, box in self._switches.items():
            connect(box, "clicked", lambda _=False, name=name: self._onSwitched(name))
        connect(self._window, "activated", self._onWindow)
        connect(self._window.lineEdit(), "editingFinished", self._onWindow)
        connect(self._range, "activated", self._onRange)
        connect(self._first, "valueChanged", self._onRange)
        connect(self._last, "valueChanged", self._onRange)
        connect(self._autoModel, "activated", self._onAutoModel)
        connect(self._replaces, "clicked", self._onReplaces)
        connect(self._otherBox, "activated", self._onOther)
        connect(self._imagesButton, "clicked", self._onImages)
        connect(self._detailsButton, "clicked", self._onDetails)
        connect(self._copyButton, "clicked", self._onCopy)
        connect(self._methodsButton, "clicked", self._onMethods)
        for button, bar in self._sections:
            connect(button, "clicked", lambda _=False, button=button, bar=bar: _fold(button, bar))
        connect(qt.QCoreApplication.instance(), "paletteChanged", self._onPalette)

    # Showing

    def _showStatus(self, state: PanelState) -> None:
        put(self._statusText, "text", breakable(state.text))
        style = self.widget.style()
        self._statusIcon.pixmap = style.standardIcon(_icon(state.status)).pixmap(16, 16)
        self._statusIcon.toolTip = state.status.value
        action = self._buttons["actionButton"]
        put(action, "text", state.action)
        action.visible = bool(state.action)
        self._detailsBar.visible = bool(state.details)
        put(self._detailsText, "plainText", state.details)
        self._detailsText.visible = bool(state.details) and self._detailsButton.checked

    def _showTools(self, state: PanelState) -> None:
        for tool, button in self._toolButtons.items():
            put(button, "checked", state.tool is tool)
            put(button, "enabled", state.canPrompt)
        put(self._negative, "checked", state.negative)
        put(self._positive, "checked", not state.negative)
        put(self._negative, "enabled", state.canPrompt)
        put(self._positive, "enabled", state.canPrompt)

    def _showWork(self, state: PanelState) -> None:
        # What takes a moment after every click must not move buttons about.
        isMoment = state.status is Status.ENCODING
        running = state.canCancel or (state.progress is not None and not isMoment)
        page = _RUNNING_PAGE if running else _ENDED_PAGE if state.canKeep else _IDLE_PAGE
        put(self._work, "currentIndex", page)
        put(self._buttons["propagateButton"], "enabled", state.canPropagate)
        put(self._buttons["cancelButton"], "enabled", state.canCancel)
        done, total = state.progress or (0, 0)
        put(self._bar, "maximum", _STEPS if total > 0 else 0)
        put(self._bar, "value", min(_STEPS, _STEPS * done // total) if total > 0 else -1)
        put(self._progressText, "text", _progressText(state))

    def _showChoices(self, state: PanelState, before: PanelState | None) -> None:
        for name, combo in [*self._combos.items(), ("window", self._window)]:
            offered = state.choices.get(name, ())
            value = state.values.get(name, "")
            if before is None or offered != before.choices.get(name, ()) or combo.findData(value) < 0:
                fill(combo, offered)
            if value:
                choose(combo, value)
        line = self._window.lineEdit()
        if not line.focus:
            put(self._window, "currentText", self._window.itemText(self._window.currentIndex))
        for name, box in self._switches.items():
            put(box, "checked", state.values.get(name, "0") == "1")
        self._showRange(state, before)

    def _showRange(self, state: PanelState, before: PanelState | None) -> None:
        if before is None:
            fill(self._range, _RANGES)
        lowest, highest = 0, (state.slices or _MOST_SLICES) - 1
        first, last = parseRange(state.values.get("range", _ALL)) or (lowest, highest)
        value = state.values.get("range", _ALL)
        choose(self._range, _FROM_TO if parseRange(value) else _BETWEEN if value == _BETWEEN else _ALL)
        for box, value in ((self._first, first), (self._last, last)):
            put(box, "minimum", lowest)
            put(box, "maximum", highest)
            put(box, "value", value)
        self._showRangeBoxes()

    def _showRangeBoxes(self) -> None:
        chosen = self._range.itemData(self._range.currentIndex) == _FROM_TO
        for widget in (self._first, self._toLabel, self._last):
            widget.visible = chosen

    def _showCorrections(self, state: PanelState) -> None:
        put(self._buttons["weakestButton"], "enabled", state.canJump)
        put(self._buttons["finaliseButton"], "enabled", state.canFinalise)
        put(self._buttons["segmentButton"], "enabled", state.canPrompt)
        put(self._buttons["markupsButton"], "enabled", state.canPrompt)
        put(self._buttons["clearButton"], "enabled", state.canClear)
        self._stripHolder.visible = bool(state.confidences)
        self._strip.display(state.confidences, state.current)
        self._prompts.show(state)
        sizes = _sizesText(state)
        put(self._sizesText, "text", sizes)
        self._sizesText.visible = bool(sizes)

    def _showAuto(self, view: AutoView, before: AutoView | None) -> None:
        self._autoBar.visible = view.isShown
        self._autoModelBar.visible = bool(view.models)
        if before is None or view.models != before.models:
            fill(self._autoModel, view.models)
        if view.models:
            choose(self._autoModel, view.chosen)
        put(self._replaces, "checked", view.replaces)
        put(self._buttons["autoSliceButton"], "enabled", view.canFindSlice)
        put(self._buttons["autoVolumeButton"], "enabled", view.canFindVolume)
        put(self._autoText, "text", breakable(view.text))
        self._autoText.visible = bool(view.text)
        self._buttons["trainButton"].visible = view.canTrain

    def _showOther(self, view: OtherView, before: OtherView | None) -> None:
        if before is None or view.scans != before.scans:
            fill(self._otherBox, view.scans)
        if view.scans:
            choose(self._otherBox, view.chosen)
        put(self._otherBox, "enabled", bool(view.scans))
        put(self._buttons["likeButton"], "enabled", view.canFind)
        put(self._buttons["followButton"], "enabled", view.canFind)
        put(self._buttons["compareButton"], "enabled", view.canCompare)
        put(self._otherText, "text", breakable(view.text))
        self._otherText.visible = bool(view.text)

    # What the user did

    def _do(self, name: str, *values) -> None:
        if self._actions is None:
            return
        getattr(self._actions, name)(*values)
        # What was not accepted must not stay shown as if it were.
        qt.QTimer.singleShot(_REDRAW_MS, self._redraw)

    def _redraw(self) -> None:
        if self._actions is not None:
            self._draw(self._state, self._state)

    def _onJump(self, n: int) -> None:
        self._do("jumpTo", n)

    def _onChosen(self, name: str) -> None:
        combo = self._combos[name]
        self._do("setValue", name, combo.itemData(combo.currentIndex))

    def _onSwitched(self, name: str) -> None:
        self._do("setValue", name, "1" if self._switches[name].checked else "0")

    def _onAutoModel(self, _=0) -> None:
        self._do("setValue", "autoModel", self._autoModel.itemData(self._autoModel.currentIndex))

    def _onOther(self, _=0) -> None:
        self._do("setValue", "otherScan", self._otherBox.itemData(self._otherBox.currentIndex))

    def _onImages(self, _=False) -> None:
        title = self._imagesButton.toolTip
        folder = qt.QFileDialog.getExistingDirectory(self.widget, title)
        if folder:
            self._do("openImages", folder)

    def _onReplaces(self, _=False) -> None:
        self._do("setValue", "replaceSegments", "1" if self._replaces.checked else "0")

    def _onWindow(self, _=None) -> None:
        typed = self._window.currentText.strip()
        index = self._window.findText(typed)
        value = self._window.itemData(index) if index >= 0 else typed.replace(" ", "")
        if value and value != self._state.values.get("window", ""):
            self._do("setValue", "window", value)

    def _onRange(self, _=None) -> None:
        self._showRangeBoxes()
        chosen = self._range.itemData(self._range.currentIndex)
        ends = sorted((self._first.value, self._last.value))
        self._do("setValue", "range", f"{ends[0]}..{ends[1]}" if chosen == _FROM_TO else chosen)

    def _onDetails(self) -> None:
        self._detailsText.visible = self._detailsButton.checked

    def _onMethods(self, _checked=False) -> None:
        text = self._actions.methodsText() if self._actions is not None else ""
        if text:
            qt.QApplication.clipboard().setText(text)

    def _onCopy(self) -> None:
        qt.QApplication.clipboard().setText(f"{self._state.text}\n\n{self._state.details}")

    def _onPalette(self, _=None) -> None:
        """Renew the style sheets: Qt keeps the colours of `palette(…)` in them as they were."""
        for bar in self._styled:
            bar.styleSheet = bar.styleSheet


def _fold(button: qt.QToolButton, bar: qt.QWidget) -> None:
    """Show or hide a section as its button says."""
    bar.visible = button.checked
    button.arrowType = qt.Qt.DownArrow if button.checked else qt.Qt.RightArrow


def parseRange(text: str) -> tuple[int, int] | None:
    """Return (first, last) of "12..40"; None for "all" and for other texts."""
    found = _RANGE.match(text)
    return (int(found[1]), int(found[2])) if found else None


def _progressText(state: PanelState) -> str:
    done, total = state.progress or (0, 0)
    parts = [state.remaining] if state.remaining else []
    if total > 0:
        isSlices = state.status in (Status.PROPAGATING, Status.FINDING)
        slices = _("Slice {done} of {total}").format(done=done, total=total)
        parts.insert(0, slices if isSlices else f"{100 * done // total} %")
    return ", ".join(parts)


def _sizesText(state: PanelState) -> str:
    """Return volume, diameters and drawn diameters, as far as there are any; the volume in three digits."""
    parts, volume = [], state.millilitres
    if volume is not None:
        digits = 2 if volume < 10 else 1 if volume < 100 else 0
        parts.append(_("Volume: {number} ml").format(number=f"{volume:.{digits}f}"))
    for text, lengths in (
        (_("Diameters: {lengths} mm"), state.diameters),
        (_("Drawn: {lengths} mm"), state.drawn),
    ):
        if lengths:
            parts.append(text.format(lengths=" x ".join(f"{length:.1f}" for length in lengths)))
    return "\n".join(parts)


def _icon(status: Status) -> int:
    if status in _BUSY:
        return qt.QStyle.SP_BrowserReload
    if status in _OK:
        return qt.QStyle.SP_DialogApplyButton
    if status in _ERRORS:
        return qt.QStyle.SP_MessageBoxCritical
    if status is Status.KEEP_OR_DISCARD:
        return qt.QStyle.SP_MessageBoxQuestion
    return qt.QStyle.SP_MessageBoxWarning
