"""The section of the module's page about the user's own models: shows a MyModelsView."""

from __future__ import annotations

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.MyModelsSection import AUTO, FINE_TUNED, FOLDER, SCENE
from MedSAM2SegmentLib.Page.PageState import MyModelRow, MyModelsView
from MedSAM2SegmentLib.Panels.QtHelpers import (
    Connections,
    ProgressBar,
    StatusLabel,
    breakable,
    choose,
    fill,
    fillTable,
    put,
    setColumns,
)

_EDITS = ("trainFolderEdit", "trainNameEdit", "trainClassesEdit")
_KINDS = ((AUTO, _("Auto, without prompts")), (FINE_TUNED, _("Fine-tuned, for prompts")))


class MyModelsPanel:
    """The widgets of the section; they lie in ``widget``, and what is pressed calls ``actions``.

    ``actions`` is MyModelsSection.
    """

    def __init__(self, widget: qt.QWidget, actions) -> None:
        find = widget.findChild
        self._widget, self._actions, self._connections = widget, actions, Connections()
        self._table = find(qt.QTableWidget, "myModelsTable")
        self._remove = find(qt.QPushButton, "removeMyModelButton")
        self._kind = find(qt.QComboBox, "trainKindBox")
        self._source = find(qt.QComboBox, "trainSourceBox")
        self._folderBar = find(qt.QWidget, "trainFolderBar")
        self._browse = find(qt.QPushButton, "trainBrowseButton")
        self._edits = {name: find(qt.QLineEdit, name) for name in _EDITS}
        self._minutes = find(qt.QSpinBox, "trainMinutesBox")
        self._skip = find(qt.QCheckBox, "trainSkipBox")
        self._train = find(qt.QPushButton, "trainButton")
        self._cancel = find(qt.QPushButton, "cancelTrainButton")
        self._corrections = find(qt.QLabel, "correctionsText")
        self._improve, self._forget = (
            find(qt.QPushButton, name) for name in ("improveButton", "forgetButton")
        )
        bar, running = find(qt.QProgressBar, "trainProgressBar"), find(qt.QWidget, "trainRunningBar")
        self._progress, self._line = ProgressBar(bar, running), StatusLabel(widget, "mine")
        self._rows: tuple[MyModelRow, ...] = ()
        self._view: MyModelsView | None = None
        self._preferred = ""  # the source the user has chosen
        titles = _("Model"), _("Classes"), _("Images"), _("Dice")
        fill(self._kind, _KINDS)
        setColumns(self._table, titles, stretched=2, connections=self._connections)
        connect = self._connections.connect
        connect(self._table, "itemSelectionChanged", self._onSelected)
        connect(self._remove, "clicked", self._onRemove)
        connect(self._source, "activated", self._onSource)
        connect(self._browse, "clicked", self._onBrowse)
        connect(self._train, "clicked", self._onTrain)
        connect(self._cancel, "clicked", lambda _=False: self._actions.cancel())
        connect(self._improve, "clicked", lambda _=False: self._actions.improve(self._minutes.value))
        connect(self._forget, "clicked", lambda _=False: self._actions.forget())

    def show(self, view: MyModelsView) -> None:
        """Show this. Nothing is called: only the user's own doing is."""
        before, self._view = self._view, view
        if before is None or view.rows != before.rows:
            self._showRows(view.rows)
        if before is None or view.sources != before.sources:
            fill(self._source, view.sources)
            first = view.sources[0][0]
            choose(self._source, self._preferred if self._preferred in dict(view.sources) else first)
        options = (self._kind, self._source, self._browse, self._minutes, self._skip, *self._edits.values())
        for widget in (*options, self._train):
            put(widget, "enabled", view.canTrain)
        self._progress.show(view.fraction)
        put(self._cancel, "enabled", view.canCancel)
        put(self._corrections, "text", breakable(view.corrections))
        self._corrections.visible = bool(view.corrections)
        put(self._improve, "enabled", view.canImprove)
        put(self._forget, "enabled", view.canForget)
        self._line.show(view.line)
        self._showFolder()
        self._onSelected()

    def cleanup(self) -> None:
        """Disconnect everything."""
        self._connections.disconnectAll()

    def _showRows(self, rows: tuple[MyModelRow, ...]) -> None:
        chosen = self._chosen()
        keys = [(row.file, row.isPrompted) for row in rows]
        key = (chosen.file, chosen.isPrompted) if chosen is not None else None
        self._rows = rows
        shown = []
        for row in rows:
            tips = f"{row.name}: {row.classes}", row.about or _("Auto model"), row.path
            shown.append(((row.name, row.classes, row.images, row.dice), "\n".join(filter(None, tips))))
        fillTable(self._table, shown, keys.index(key) if key in keys else -1)

    # What the user did

    def _chosen(self) -> MyModelRow | None:
        index = self._table.currentRow()
        isSelected = bool(self._table.selectedItems())
        return self._rows[index] if isSelected and 0 <= index < len(self._rows) else None

    def _chosenSource(self) -> str:
        return self._source.itemData(self._source.currentIndex) or FOLDER

    def _onSelected(self) -> None:
        canChange = self._view is not None and self._view.canChange
        put(self._remove, "enabled", canChange and self._chosen() is not None)

    def _onSource(self, _=0) -> None:
        self._preferred = self._chosenSource()
        self._showFolder()

    def _showFolder(self) -> None:
        isFolder = self._chosenSource() == FOLDER
        self._folderBar.visible = isFolder
        self._edits["trainNameEdit"].placeholderText = _("As the folder") if isFolder else SCENE

    def _onRemove(self) -> None:
        chosen = self._chosen()
        if chosen is not None:
            self._actions.remove(chosen.file, chosen.isPrompted)

    def _onBrowse(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self._widget, _("Folder of images and labels"))
        if path:
            put(self._edits["trainFolderEdit"], "text", path)

    def _onTrain(self) -> None:
        folder, name, classes = (self._edits[one].text.strip() for one in _EDITS)
        kind, source = self._kind.itemData(self._kind.currentIndex) or AUTO, self._chosenSource()
        self._actions.train(kind, source, folder, name, self._minutes.value, classes, self._skip.checked)
