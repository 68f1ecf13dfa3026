"""The section of the module's page about Auto models: shows an AutoPageView, tells what was pressed."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSAM2SegmentLib.Panels.ModulePageState import AutoModelRow, AutoPageView
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, choose, fill, put

_COLUMNS = ("Auto model", "Classes", "Images", "Dice")
_EDITS = ("trainFolderEdit", "trainNameEdit", "trainClassesEdit")
_FULL = 1000
_FOLDER = "folder"


class AutoModelsPanel:
    """The widgets of the section.

    Parameters
    ----------
    widget
        The page they lie in.
    do
        Called with the name of an action of the controller, and its values.
    """

    def __init__(self, widget: qt.QWidget, do: Callable[..., None]) -> None:
        find = widget.findChild
        self._widget, self._do, self._connections = widget, do, Connections()
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
        self._runningBar = find(qt.QWidget, "trainRunningBar")
        self._bar = find(qt.QProgressBar, "trainProgressBar")
        self._rows: tuple[AutoModelRow, ...] = ()
        self._view: AutoPageView | None = None
        self._wanted = ""  # the source the user has chosen
        self._prepareTable()
        connect = self._connections.connect
        connect(self._table, "itemSelectionChanged", self._onSelected)
        connect(self._remove, "clicked", self._onRemove)
        connect(self._source, "activated", self._onSource)
        connect(self._browse, "clicked", self._onBrowse)
        connect(self._train, "clicked", self._onTrain)
        connect(self._cancel, "clicked", lambda _=False: self._do("cancelTraining"))

    def show(self, view: AutoPageView) -> None:
        """Show this, but for the line. Nobody is told of anything."""
        before, self._view = self._view, view
        if before is None or view.rows != before.rows:
            self._showRows(view.rows)
        if before is None or view.sources != before.sources:
            fill(self._source, view.sources)
            first = view.sources[0][0]
            choose(self._source, self._wanted if self._wanted in dict(view.sources) else first)
        wished = (self._source, self._browse, self._minutes, self._skip, *self._edits.values())
        for widget in (*wished, self._train):
            put(widget, "enabled", view.canTrain)
        fraction = -1.0 if view.fraction is None else view.fraction
        self._runningBar.visible = view.fraction is not None
        put(self._bar, "maximum", _FULL if fraction >= 0 else 0)
        put(self._bar, "value", round(_FULL * fraction) if fraction >= 0 else -1)
        put(self._cancel, "enabled", view.canCancel)
        self._showFolder()
        self._onSelected()

    def cleanup(self) -> None:
        """Tell nobody any more."""
        self._connections.disconnectAll()

    # Making and showing

    def _prepareTable(self) -> None:
        self._table.columnCount = len(_COLUMNS)
        self._table.setHorizontalHeaderLabels(list(_COLUMNS))
        header = self._table.horizontalHeader()
        for column in range(len(_COLUMNS)):
            mode = qt.QHeaderView.Stretch if column < 2 else qt.QHeaderView.ResizeToContents
            header.setSectionResizeMode(column, mode)

    def _showRows(self, rows: tuple[AutoModelRow, ...]) -> None:
        table, chosen = self._table, self._chosen()
        self._rows = rows
        before = table.blockSignals(True)
        table.rowCount = len(rows)
        for place, row in enumerate(rows):
            for column, text in enumerate((row.name, row.classes, row.images, row.dice)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(f"{row.name}: {row.classes}\n{row.path}")
                table.setItem(place, column, item)
        files = [row.file for row in rows]
        if chosen in files:
            table.selectRow(files.index(chosen))
        else:
            table.clearSelection()
        table.blockSignals(before)

    # What the user did

    def _chosen(self) -> str | None:
        place = self._table.currentRow()
        isSelected = bool(self._table.selectedItems())
        return self._rows[place].file if isSelected and 0 <= place < len(self._rows) else None

    def _chosenSource(self) -> str:
        return self._source.itemData(self._source.currentIndex) or _FOLDER

    def _onSelected(self) -> None:
        can = self._view is not None and self._view.canChange
        put(self._remove, "enabled", can and self._chosen() is not None)

    def _onSource(self, _=0) -> None:
        self._wanted = self._chosenSource()
        self._showFolder()

    def _showFolder(self) -> None:
        self._folderBar.visible = self._chosenSource() == _FOLDER

    def _onRemove(self) -> None:
        chosen = self._chosen()
        if chosen is not None:
            self._do("removeAutoModel", chosen)

    def _onBrowse(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(self._widget, "Folder of images and labels")
        if path:
            put(self._edits["trainFolderEdit"], "text", path)

    def _onTrain(self) -> None:
        folder, name, classes = (self._edits[one].text.strip() for one in _EDITS)
        values = self._chosenSource(), folder, name, self._minutes.value, classes, self._skip.checked
        self._do("trainAutoModel", *values)
