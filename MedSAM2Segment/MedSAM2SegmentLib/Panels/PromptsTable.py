"""The prompts of the selected segment as a table: one row a slice; selecting a row shows that slice."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Panels.PanelState import PanelState
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, fillTable, put, selectOnly, setColumns


class PromptsTable:
    """Table and button of the section *Prompts*; the selected row is the slice that the views show.

    Parameters
    ----------
    panel
        The widget they lie in.
    connections
        Where their signals are connected.
    do
        Called with the name of an action and a slice number: "jumpTo" when a row is selected, "clearSlice"
        when the button is pressed.
    """

    def __init__(self, panel: qt.QWidget, connections: Connections, do: Callable[..., None]) -> None:
        self._table = panel.findChild(qt.QTableWidget, "promptsTable")
        self._button = panel.findChild(qt.QPushButton, "clearSliceButton")
        self._do = do
        self._rows: list[tuple[tuple[str, str], str]] = []
        self._numbers: list[int] = []
        setColumns(self._table, (_("Slice"), _("Prompts")), stretched=0, connections=connections)
        connections.connect(self._table, "itemSelectionChanged", self._onSelected)
        connections.connect(self._button, "clicked", self._onClear)

    def show(self, state: PanelState) -> None:
        """Show the prompts of a state."""
        prompted = [one for one in state.confidences if one.prompted]
        self._numbers = [one.n for one in prompted]
        selected = self._numbers.index(state.current) if state.current in self._numbers else -1
        tip = _("Select it to show the slice")
        rows = [((str(one.n), one.kinds), tip) for one in prompted]
        if rows != self._rows:
            self._rows = rows
            fillTable(self._table, rows, selected)
        else:
            selectOnly(self._table, selected)
        put(self._button, "enabled", state.canPrompt and selected >= 0)

    def _selected(self) -> int | None:
        """Return the slice of the selected row; None without one."""
        index = self._table.currentRow()
        isSelected = bool(self._table.selectedItems())
        return self._numbers[index] if isSelected and 0 <= index < len(self._numbers) else None

    def _onSelected(self) -> None:
        n = self._selected()
        if n is not None:
            self._do("jumpTo", n)

    def _onClear(self, _=False) -> None:
        n = self._selected()
        if n is not None:
            self._do("clearSlice", n)
