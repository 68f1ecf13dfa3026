"""The page of the module: shows a PageState, tells the controller what the user pressed."""

from __future__ import annotations

import qt

from MedSAM2SegmentLib.Panels.AutoModelsPanel import AutoModelsPanel
from MedSAM2SegmentLib.Panels.ExportPanel import ExportPanel
from MedSAM2SegmentLib.Panels.ModulePageState import (
    Kind,
    Line,
    ModelRow,
    PageState,
    RuntimeView,
    WorkerView,
    sizeWords,
)
from MedSAM2SegmentLib.Panels.QtHelpers import RESOURCES, Connections, breakable, choose, fill, loadUi, put

# In the source tree, which users have until the repository has an address; not in an installed extension.
TUTORIAL = RESOURCES.parents[1] / "Resources" / "docs" / "tutorial.md"
_ACTIONS = {
    "installButton": "askInstall",
    "repairButton": "repair",
    "removeButton": "askRemove",
    "cancelButton": "cancelRuntime",
    "answerButton": "confirm",
    "declineButton": "decline",
    "cancelModelButton": "cancelModel",
    "testButton": "testConnection",
}
_LABELS = ("runtimeText", "questionText", "modelsText", "placeText", "deviceText", "memoryText", "workerText")
_LINES = ("runtime", "models", "auto", "worker", "export")
_COLUMNS = ("Model", "Size", "Licence", "Installed")
_FULL = 1000


class ModulePanel:
    """The page. It decides nothing: what it shows is a state, what is pressed goes to ``actions``.

    Parameters
    ----------
    parent
        The widget it will lie in; None when it is put into a layout afterwards.
    actions
        ModulePageController.

    Attributes
    ----------
    widget
        What to put into the layout.
    """

    def __init__(self, parent: qt.QWidget | None, actions) -> None:
        self.widget = loadUi("ModulePanel.ui", parent)
        self._actions = actions
        self._state: PageState | None = None
        self._connections = Connections()
        self._shownRows: tuple[ModelRow, ...] = ()
        self._find()
        self._auto = AutoModelsPanel(self.widget, self._do)
        self._export = ExportPanel(self.widget, self._do)
        self._prepareTable()
        self._connect()
        self.show(PageState())

    def show(self, state: PageState) -> None:
        """Show this state. Nobody is told of anything."""
        before, self._state = self._state, state
        if state == before:
            return
        self._showRuntime(state.runtime)
        if before is None or state.models != before.models:
            self._showModels(state.models)
        self._showModelsLine(state)
        self._auto.show(state.auto)
        self._showLine("auto", state.auto.line)
        self._export.show(state.export)
        self._showLine("export", state.export.line)
        self._showWorker(state.worker)
        self._showDefaults(state, before)

    def cleanup(self) -> None:
        """Let go of the controller; the widget itself belongs to Qt."""
        self._connections.disconnectAll()
        self._auto.cleanup()
        self._export.cleanup()
        self._actions = None

    # Making it

    def _find(self) -> None:
        find = self.widget.findChild
        self._buttons = {name: find(qt.QPushButton, name) for name in _ACTIONS}
        self._labels = {name: find(qt.QLabel, name) for name in (*_LABELS, "autoText", "exportText")}
        self._icons = {f"{name}Icon": find(qt.QLabel, f"{name}Icon") for name in _LINES}
        self._questionBar = find(qt.QWidget, "questionBar")
        self._runningBar = find(qt.QWidget, "runningBar")
        self._progressBar = find(qt.QProgressBar, "progressBar")
        self._logButton = find(qt.QPushButton, "logButton")
        self._logText = find(qt.QPlainTextEdit, "logText")
        self._interpreter = find(qt.QLineEdit, "interpreterEdit")
        self._interpreterButton = find(qt.QPushButton, "interpreterButton")
        self._wheels = find(qt.QLineEdit, "wheelsEdit")
        self._wheelsButton = find(qt.QPushButton, "wheelsButton")
        self._table = find(qt.QTableWidget, "modelsTable")
        self._installModel = find(qt.QPushButton, "installModelButton")
        self._removeModel = find(qt.QPushButton, "removeModelButton")
        self._remote = find(qt.QLineEdit, "remoteEdit")
        self._report = find(qt.QPushButton, "reportButton")
        self._combos = {"model": find(qt.QComboBox, "modelBox"), "window": find(qt.QComboBox, "windowBox")}
        self._tutorial = find(qt.QLabel, "tutorialLabel")
        if TUTORIAL.exists():
            self._tutorial.text = f'<a href="{TUTORIAL.as_uri()}">Five-minute tutorial</a>'
        self._logText.hide()

    def _prepareTable(self) -> None:
        self._table.columnCount = len(_COLUMNS)
        self._table.setHorizontalHeaderLabels(list(_COLUMNS))
        header = self._table.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        for column in range(1, len(_COLUMNS)):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)

    def _connect(self) -> None:
        connect = self._connections.connect
        for name, button in self._buttons.items():
            connect(button, "clicked", lambda _=False, name=name: self._do(_ACTIONS[name]))
        connect(self._logButton, "clicked", self._onLog)
        connect(self._interpreterButton, "clicked", self._onBrowseInterpreter)
        connect(self._interpreter, "editingFinished", self._onInterpreter)
        connect(self._wheelsButton, "clicked", self._onBrowseWheels)
        connect(self._wheels, "editingFinished", self._onWheels)
        connect(self._table, "itemSelectionChanged", self._onSelected)
        connect(self._installModel, "clicked", self._onInstallModel)
        connect(self._removeModel, "clicked", self._onRemoveModel)
        connect(self._remote, "editingFinished", self._onRemote)
        connect(self._report, "clicked", self._onReport)
        for name, combo in self._combos.items():
            connect(combo, "activated", lambda _=0, name=name: self._onDefault(name))

    # Showing

    def _showLine(self, name: str, line: Line) -> None:
        label = self._labels[name + "Text"]
        put(label, "text", breakable(line.text))
        label.visible = bool(line.text)
        icon = self._icons[name + "Icon"]
        icon.pixmap = self.widget.style().standardIcon(_icon(line.kind)).pixmap(16, 16)
        icon.toolTip = line.kind.value
        icon.visible = bool(line.text)

    def _showRuntime(self, view: RuntimeView) -> None:
        self._showLine("runtime", view.line)
        put(self._labels["questionText"], "text", breakable(view.question))
        self._questionBar.visible = bool(view.question)
        put(self._buttons["answerButton"], "text", view.answer)
        self._runningBar.visible = view.fraction is not None
        fraction = -1.0 if view.fraction is None else view.fraction
        put(self._progressBar, "maximum", _FULL if fraction >= 0 else 0)
        put(self._progressBar, "value", round(_FULL * fraction) if fraction >= 0 else -1)
        self._logButton.visible = bool(view.log)
        self._logText.visible = bool(view.log) and self._logButton.checked
        put(self._logText, "plainText", view.log)
        for name, can in (
            ("installButton", view.canInstall),
            ("repairButton", view.canRepair),
            ("removeButton", view.canRemove),
            ("cancelButton", view.canCancel),
        ):
            put(self._buttons[name], "enabled", can)
        for edit, text in ((self._interpreter, view.interpreter), (self._wheels, view.wheelFolder)):
            if not edit.focus:
                put(edit, "text", text)
            put(edit, "enabled", view.canChoose)
        put(self._interpreterButton, "enabled", view.canChoose)
        put(self._wheelsButton, "enabled", view.canChoose)

    def _showModels(self, rows: tuple[ModelRow, ...]) -> None:
        table = self._table
        chosen = self._chosenModel()
        self._shownRows = rows
        before = table.blockSignals(True)
        table.rowCount = len(rows)
        for place, row in enumerate(rows):
            state = row.doing or ("yes" if row.isInstalled else "no")
            tip = row.path or "Not on this computer yet"
            for column, text in enumerate((row.title, sizeWords(row.size), row.licence, state)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(tip if column else f"{row.title} ({row.name})\n{tip}")
                table.setItem(place, column, item)
        if chosen is not None and chosen in [row.name for row in rows]:
            table.selectRow([row.name for row in rows].index(chosen))
        table.blockSignals(before)

    def _showModelsLine(self, state: PageState) -> None:
        self._showLine("models", state.modelsLine)
        self._buttons["cancelModelButton"].visible = state.canCancelModel
        self._onSelected()

    def _showWorker(self, view: WorkerView) -> None:
        self._showLine("worker", view.line)
        put(self._labels["deviceText"], "text", view.device or "unknown")
        put(self._labels["memoryText"], "text", view.memory or "unknown")
        if not self._remote.focus:
            put(self._remote, "text", view.remoteCommand)
        put(self._buttons["testButton"], "enabled", view.canTest)
        self._report.visible = bool(view.details)
        self._report.toolTip = f"Copy it for a message to the developers. Log: {view.log}" if view.log else ""

    def _showDefaults(self, state: PageState, before: PageState | None) -> None:
        for name, combo in self._combos.items():
            offered = state.choices.get(name, ())
            if before is None or offered != before.choices.get(name, ()):
                fill(combo, offered)
            if state.values.get(name):
                choose(combo, state.values[name])

    # What the user did

    def _do(self, name: str, *values) -> None:
        if self._actions is not None:
            getattr(self._actions, name)(*values)

    def _chosenModel(self) -> str | None:
        place = self._table.currentRow()
        rows = self._shownRows
        return rows[place].name if 0 <= place < len(rows) else None

    def _onSelected(self) -> None:
        chosen = next((row for row in self._state.models if row.name == self._chosenModel()), None)
        can = self._state.canChangeModels and chosen is not None
        place = self._labels["placeText"]
        put(place, "text", breakable(chosen.path) if chosen is not None else "")
        place.visible = bool(place.text)
        put(self._installModel, "enabled", can)
        put(self._installModel, "text", "Update" if chosen is not None and chosen.isInstalled else "Install")
        put(self._removeModel, "enabled", can and chosen.isInstalled)

    def _onInstallModel(self) -> None:
        chosen = self._chosenModel()
        if chosen is not None:
            self._do("installModel", chosen)

    def _onRemoveModel(self) -> None:
        chosen = self._chosenModel()
        if chosen is not None:
            self._do("removeModel", chosen)

    def _onLog(self) -> None:
        self._logText.visible = self._logButton.checked

    def _onInterpreter(self) -> None:
        if self._interpreter.text.strip() != self._state.runtime.interpreter:
            self._do("useInterpreter", self._interpreter.text.strip())

    def _onBrowseInterpreter(self) -> None:
        chosen = qt.QFileDialog.getOpenFileName(self.widget, "Python interpreter")
        path = chosen if isinstance(chosen, str) else chosen[0]  # PythonQt gives the path alone
        if path:
            self._do("useInterpreter", path)

    def _onWheels(self) -> None:
        if self._wheels.text.strip() != self._state.runtime.wheelFolder:
            self._do("setWheelFolder", self._wheels.text.strip())

    def _onBrowseWheels(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self.widget, "Folder of wheels")
        if path:
            self._do("setWheelFolder", path)

    def _onRemote(self) -> None:
        if self._remote.text.strip() != self._state.worker.remoteCommand:
            self._do("setRemoteCommand", self._remote.text.strip())

    def _onReport(self) -> None:
        qt.QApplication.clipboard().setText(self._state.worker.details)

    def _onDefault(self, name: str) -> None:
        combo = self._combos[name]
        self._do("setDefault", name, combo.itemData(combo.currentIndex))


def _icon(kind: Kind) -> int:
    return {
        Kind.PLAIN: qt.QStyle.SP_MessageBoxInformation,
        Kind.GOOD: qt.QStyle.SP_DialogApplyButton,
        Kind.BUSY: qt.QStyle.SP_BrowserReload,
        Kind.WARNING: qt.QStyle.SP_MessageBoxWarning,
        Kind.ERROR: qt.QStyle.SP_MessageBoxCritical,
    }[kind]
