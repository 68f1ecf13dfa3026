"""The section of the module's page about Auto models: shows an AutoModelsView."""

from __future__ import annotations

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.AutoModelsSection import FOLDER, SCENE
from MedSAM2SegmentLib.Page.PageState import AutoModelRow, AutoModelsView
from MedSAM2SegmentLib.Panels.QtHelpers import (
    Connections,
    ProgressBar,
    StatusLabel,
    choose,
    fill,
    fillTable,
    put,
    setColumns,
)

_EDITS = ("trainFolderEdit", "trainNameEdit", "trainClassesEdit")


class AutoModelsPanel:
    """The widgets of the section; they lie in ``widget``, and what is pressed calls ``actions``.

    ``actions`` is AutoModelsSection.
    """

    def __init__(self, widget: qt.QWidget, actions) -> None:
        find = widget.findChild
        self._widget, self._actions, self._connections = widget, actions, Connections()
        self._table = find(qt.QTableWidget, "autoTable")
        self._remove = find(qt.QPushButton, "removeAutoButton")
        self._source = find(qt.QComboBox, "trainSourceBox")
        self._folderBar = find(qt.QWidget, "trainFolderBar")
        self._browse = find(qt.QPushButton, "trainBrowseButton")
        self._edits = {name: find(qt.QLineEdit, name) for name in _EDITS}
        self._minutes = find(qt.QSpinBox, "trainMinutesBox")
        self._skip = find(qt.QCheckBox, "trainSkipBox")
        self._train = find(qt.QPushButton, "trainButton")
        self._cancel = find(qt.QPushButton, "cancelTrainButton")
        bar, running = find(qt.QProgressBar, "trainProgressBar"), find(qt.QWidget, "trainRunningBar")
        self._progress, self._line = ProgressBar(bar, running), StatusLabel(widget, "auto")
        self._rows: tuple[AutoModelRow, ...] = ()
        self._view: AutoModelsView | None = None
        self._preferred = ""  # the source the user has chosen
        titles = _("Auto model"), _("Classes"), _("Images"), _("Dice")
        setColumns(self._table, titles, stretched=2, connections=self._connections)
        connect = self._connections.connect
        connect(self._table, "itemSelectionChanged", self._onSelected)
        connect(self._remove, "clicked", self._onRemove)
        connect(self._source, "activated", self._onSource)
        connect(self._browse, "clicked", self._onBrowse)
        connect(self._train, "clicked", self._onTrain)
        connect(self._cancel, "clicked", lambda _=False: self._actions.cancel())

    def show(self, view: AutoModelsView) -> None:
        """Show this. Nothing is called: only the user's own doing is."""
        before, self._view = self._view, view
        if before is None or view.rows != before.rows:
            self._showRows(view.rows)
        if before is None or view.sources != before.sources:
            fill(self._source, view.sources)
            first = view.sources[0][0]
            choose(self._source, self._preferred if self._preferred in dict(view.sources) else first)
        options = (self._source, self._browse, self._minutes, self._skip, *self._edits.values())
        for widget in (*options, self._train):
            put(widget, "enabled", view.canTrain)
        self._progress.show(view.fraction)
        put(self._cancel, "enabled", view.canCancel)
        self._line.show(view.line)
        self._showFolder()
        self._onSelected()

    def cleanup(self) -> None:
        """Disconnect everything."""
        self._connections.disconnectAll()

    def _showRows(self, rows: tuple[AutoModelRow, ...]) -> None:
        files, chosen = [row.file for row in rows], self._chosen()
        self._rows = rows
        shown = [
            ((row.name, row.classes, row.images, row.dice), f"{row.name}: {row.classes}\n{row.path}")
            for row in rows
        ]
        fillTable(self._table, shown, files.index(chosen) if chosen in files else -1)

    # What the user did

    def _chosen(self) -> str | None:
        index = self._table.currentRow()
        isSelected = bool(self._table.selectedItems())
        return self._rows[index].file if isSelected and 0 <= index < len(self._rows) else None

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
            self._actions.remove(chosen)

    def _onBrowse(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self._widget, _("Folder of images and labels"))
        if path:
            put(self._edits["trainFolderEdit"], "text", path)

    def _onTrain(self) -> None:
        folder, name, classes = (self._edits[one].text.strip() for one in _EDITS)
        values = self._chosenSource(), folder, name, self._minutes.value, classes, self._skip.checked
        self._actions.train(*values)
