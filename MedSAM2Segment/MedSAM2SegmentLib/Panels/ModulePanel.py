"""The page of the module: shows a PageState, and calls the controller when the user presses something."""

from __future__ import annotations

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.PageState import (
    ModelRow,
    ModelsView,
    PageState,
    RuntimeView,
    WorkerView,
    sizeText,
)
from MedSAM2SegmentLib.Panels.ExportPanel import ExportPanel
from MedSAM2SegmentLib.Panels.MyModelsPanel import MyModelsPanel
from MedSAM2SegmentLib.Panels.QtHelpers import (
    RESOURCES,
    Connections,
    ProgressBar,
    StatusLabel,
    breakable,
    choose,
    fill,
    fillTable,
    loadUi,
    put,
    setColumns,
)
from MedSAM2SegmentLib.Panels.ReviewPanel import ReviewPanel

# In the source tree, which users have until the repository has an address; not in an installed extension.
TUTORIAL = RESOURCES.parents[1] / "Resources" / "docs" / "tutorial.md"
# By button: the section of the controller, and its method.
_ACTIONS = {
    "installButton": ("runtime", "askInstall"),
    "repairButton": ("runtime", "askRepair"),
    "removeButton": ("runtime", "askRemove"),
    "cancelButton": ("runtime", "cancel"),
    "answerButton": ("runtime", "confirm"),
    "declineButton": ("runtime", "decline"),
    "cancelModelButton": ("models", "cancel"),
    "testButton": ("worker", "test"),
}
_EDITS = {
    "interpreterEdit": ("runtime", "useInterpreter"),
    "wheelsEdit": ("runtime", "setWheelFolder"),
    "remoteEdit": ("worker", "setRemoteCommand"),
}
# Where other parts of the extension lead to: the group, and the button it is about.
_SECTIONS = {"auto": ("myModelsGroup", "trainButton")}
_LABELS = ("questionText", "placeText", "deviceText", "memoryText")


class ModulePanel:
    """The page. It decides nothing: what it shows is a state, what is pressed calls ``actions``.

    Parameters
    ----------
    parent
        The widget it will lie in; None when it is put into a layout afterwards.
    actions
        PageController.

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
        self._rows: tuple[ModelRow, ...] = ()
        self._findWidgets()
        self._mine = MyModelsPanel(self.widget, actions.mine)
        self._export = ExportPanel(self.widget, actions.export)
        self._review = ReviewPanel(self.widget, actions.review)
        self._connect()
        self.show(PageState())

    def show(self, state: PageState) -> None:
        """Show this state. Nothing is called: only the user's own doing is."""
        before, self._state = self._state, state
        if state == before:
            return
        self._showRuntime(state.runtime)
        self._showModels(state.models)
        self._mine.show(state.mine)
        self._export.show(state.export)
        self._review.show(state.review)
        self._showWorker(state.worker)
        for name, combo in self._combos.items():
            offered = state.choices.get(name, ())
            if before is None or offered != before.choices.get(name, ()):
                fill(combo, offered)
            if state.values.get(name):
                choose(combo, state.values[name])

    def scrollTo(self, section: str) -> None:
        """Scroll what the page lies in to a section, and at least to the button it is about."""
        groupName, buttonName = _SECTIONS[section]
        group = self.widget.findChild(qt.QGroupBox, groupName)
        area = self.widget.parent()
        while area is not None and not area.inherits("QScrollArea"):
            area = area.parent()
        if area is not None:
            area.verticalScrollBar().value = group.mapTo(area.widget(), qt.QPoint(0, 0)).y()
            area.ensureWidgetVisible(self.widget.findChild(qt.QPushButton, buttonName))

    def cleanup(self) -> None:
        """Disconnect everything; the widget itself belongs to Qt."""
        self._connections.disconnectAll()
        self._mine.cleanup()
        self._export.cleanup()
        self._review.cleanup()
        self._actions = None

    def _findWidgets(self) -> None:
        find = self.widget.findChild
        self._buttons = {name: find(qt.QPushButton, name) for name in _ACTIONS}
        self._edits = {name: find(qt.QLineEdit, name) for name in _EDITS}
        self._labels = {name: find(qt.QLabel, name) for name in _LABELS}
        self._lines = {name: StatusLabel(self.widget, name) for name in ("runtime", "models", "worker")}
        self._progress = ProgressBar(find(qt.QProgressBar, "progressBar"), find(qt.QWidget, "runningBar"))
        self._questionBar = find(qt.QWidget, "questionBar")
        self._logButton = find(qt.QPushButton, "logButton")
        self._logText = find(qt.QPlainTextEdit, "logText")
        self._interpreterButton = find(qt.QPushButton, "interpreterButton")
        self._wheelsButton = find(qt.QPushButton, "wheelsButton")
        self._table = find(qt.QTableWidget, "modelsTable")
        self._installModel = find(qt.QPushButton, "installModelButton")
        self._removeModel = find(qt.QPushButton, "removeModelButton")
        self._report = find(qt.QPushButton, "reportButton")
        self._combos = {"model": find(qt.QComboBox, "modelBox"), "window": find(qt.QComboBox, "windowBox")}
        if TUTORIAL.exists():
            text = _("Five-minute tutorial")
            find(qt.QLabel, "tutorialLabel").text = f'<a href="{TUTORIAL.as_uri()}">{text}</a>'
        self._logText.hide()
        titles = _("Model"), _("Size"), _("Licence"), _("Installed")
        setColumns(self._table, titles, stretched=1, connections=self._connections)

    def _connect(self) -> None:
        connect = self._connections.connect
        for name, button in self._buttons.items():
            connect(button, "clicked", lambda _=False, name=name: self._call(*_ACTIONS[name]))
        for name, edit in self._edits.items():
            connect(edit, "editingFinished", lambda _=None, name=name: self._onEdited(name))
        connect(self._logButton, "clicked", self._onLog)
        connect(self._interpreterButton, "clicked", self._onBrowseInterpreter)
        connect(self._wheelsButton, "clicked", self._onBrowseWheels)
        connect(self._table, "itemSelectionChanged", self._onSelected)
        connect(self._installModel, "clicked", lambda _=False: self._onModel("install"))
        connect(self._removeModel, "clicked", lambda _=False: self._onModel("remove"))
        connect(self._report, "clicked", self._onReport)
        for name, combo in self._combos.items():
            connect(combo, "activated", lambda _=0, name=name: self._onDefault(name))

    # Showing

    def _showRuntime(self, view: RuntimeView) -> None:
        self._lines["runtime"].show(view.line)
        put(self._labels["questionText"], "text", breakable(view.question))
        self._questionBar.visible = bool(view.question)
        put(self._buttons["answerButton"], "text", view.answer)
        self._progress.show(view.fraction)
        self._logButton.visible = bool(view.log)
        self._logText.visible = bool(view.log) and self._logButton.checked
        put(self._logText, "plainText", view.log)
        put(self._buttons["installButton"], "enabled", view.canInstall)
        put(self._buttons["repairButton"], "enabled", view.canRepair)
        put(self._buttons["removeButton"], "enabled", view.canRemove)
        put(self._buttons["cancelButton"], "enabled", view.canCancel)
        self._showEdit("interpreterEdit", view.interpreter)
        self._showEdit("wheelsEdit", view.wheelFolder)
        edits = self._edits["interpreterEdit"], self._edits["wheelsEdit"]
        for widget in (*edits, self._interpreterButton, self._wheelsButton):
            put(widget, "enabled", view.canChoose)

    def _showEdit(self, name: str, text: str) -> None:
        if not self._edits[name].focus:
            put(self._edits[name], "text", text)

    def _showModels(self, view: ModelsView) -> None:
        if view.rows != self._rows:
            self._showRows(view.rows)
        self._lines["models"].show(view.line)
        self._buttons["cancelModelButton"].visible = view.canCancel
        self._onSelected()

    def _showRows(self, rows: tuple[ModelRow, ...]) -> None:
        names, chosen = [row.name for row in rows], self._chosenModel()
        self._rows = rows
        shown = []
        for row in rows:
            state = row.progress or (_("yes") if row.isInstalled else _("no"))
            tips = f"{row.title} ({row.name})", row.path or _("Not on this computer yet"), row.memory
            texts = row.title, sizeText(row.size), row.licence, state
            shown.append((texts, "\n".join(filter(None, tips))))
        isThere = chosen is not None and chosen.name in names
        fillTable(self._table, shown, names.index(chosen.name) if isThere else -1)

    def _showWorker(self, view: WorkerView) -> None:
        self._lines["worker"].show(view.line)
        put(self._labels["deviceText"], "text", view.device or _("unknown"))
        put(self._labels["memoryText"], "text", view.memory or _("unknown"))
        self._showEdit("remoteEdit", view.remoteCommand)
        put(self._buttons["testButton"], "enabled", view.canTest)
        self._report.visible = bool(view.report)
        tip = _("Copy it for a message to the developers. Log: {path}").format(path=view.log)
        self._report.toolTip = tip if view.log else ""

    # What the user did

    def _call(self, section: str, method: str, *values) -> None:
        if self._actions is not None:
            getattr(getattr(self._actions, section), method)(*values)

    def _chosenModel(self) -> ModelRow | None:
        index = self._table.currentRow()
        return self._rows[index] if 0 <= index < len(self._rows) else None

    def _onSelected(self) -> None:
        chosen = self._chosenModel()
        canChange = self._state.models.canChange and chosen is not None
        path = self._labels["placeText"]
        about = (chosen.path, chosen.memory) if chosen is not None else ()
        put(path, "text", "\n".join(breakable(text) for text in about if text))
        path.visible = bool(path.text)
        isInstalled = chosen is not None and chosen.isInstalled
        put(self._installModel, "enabled", canChange)
        put(self._installModel, "text", _("Update") if isInstalled else _("Install"))
        put(self._removeModel, "enabled", canChange and isInstalled)

    def _onModel(self, action: str) -> None:
        chosen = self._chosenModel()
        if chosen is not None:
            self._call("models", action, chosen.name)

    def _onLog(self) -> None:
        self._logText.visible = self._logButton.checked

    def _onEdited(self, name: str) -> None:
        runtime, worker = self._state.runtime, self._state.worker
        shown = {
            "interpreterEdit": runtime.interpreter,
            "wheelsEdit": runtime.wheelFolder,
            "remoteEdit": worker.remoteCommand,
        }[name]
        typed = self._edits[name].text.strip()
        if typed != shown:
            self._call(*_EDITS[name], typed)

    def _onBrowseInterpreter(self) -> None:
        chosen = qt.QFileDialog.getOpenFileName(self.widget, _("Python interpreter"))
        path = chosen if isinstance(chosen, str) else chosen[0]  # PythonQt gives the path alone
        if path:
            self._call("runtime", "useInterpreter", path)

    def _onBrowseWheels(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder of wheels"))
        if path:
            self._call("runtime", "setWheelFolder", path)

    def _onReport(self) -> None:
        qt.QApplication.clipboard().setText(self._state.worker.report)

    def _onDefault(self, name: str) -> None:
        combo = self._combos[name]
        if self._actions is not None:
            self._actions.setDefault(name, combo.itemData(combo.currentIndex))
