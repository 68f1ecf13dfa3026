"""The section of the module's page about export: shows an ExportView."""

from __future__ import annotations

import os

import qt

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Page.ExportOptions import (
    COMPRESSIONS,
    DICOM,
    KINDS,
    MEASUREMENTS,
    SEG_NRRD,
    ExportOptions,
    withEnding,
)
from MedSAM2SegmentLib.Page.PageState import ExportView, Level
from MedSAM2SegmentLib.Panels.QtHelpers import Connections, StatusLabel, breakable, choose, fill, put

_COMBOS = ("Segmentation", "Format", "Kind", "Compression", "Measurements")
_EDITS = ("Path", "Description", "Creator")
_CHECKS = ("Generic", "Report", "Overwrite")
_LABELLED = ("Kind", "Compression", "Description", "Creator")
_DICOM_ONLY = ("Kind", "Compression", "Description", "Creator", "Generic", "Report")
_LABELMAP = "labelmap"


class ExportPanel:
    """The widgets of the section; they lie in ``widget``, and what is pressed calls ``actions``.

    ``actions`` is ExportSection.
    """

    def __init__(self, widget: qt.QWidget, actions) -> None:
        find = widget.findChild
        self._widget, self._actions, self._connections = widget, actions, Connections()
        self._combos = {name: find(qt.QComboBox, f"export{name}Box") for name in _COMBOS}
        self._edits = {name: find(qt.QLineEdit, f"export{name}Edit") for name in _EDITS}
        self._checks = {name: find(qt.QCheckBox, f"export{name}Box") for name in _CHECKS}
        self._labels = {name: find(qt.QLabel, f"export{name}Label") for name in _LABELLED}
        self._texts = {name: find(qt.QLabel, f"export{name}Text") for name in ("Problem", "Dicom")}
        self._browse = find(qt.QPushButton, "exportBrowseButton")
        self._export = find(qt.QPushButton, "exportButton")
        self._cancel = find(qt.QPushButton, "cancelExportButton")
        self._runningBar = find(qt.QWidget, "exportRunningBar")
        self._line = StatusLabel(widget, "export")
        self._view: ExportView | None = None
        self._preferred = ""  # the format the user has chosen
        self._confirmed = ""  # the file of which the user has confirmed in a dialog that it is replaced
        for name, choices in (("Kind", KINDS), ("Compression", COMPRESSIONS), ("Measurements", MEASUREMENTS)):
            fill(self._combos[name], choices)
        connect = self._connections.connect
        connect(self._combos["Segmentation"], "activated", self._onSegmentation)
        connect(self._combos["Format"], "activated", self._onFormat)
        connect(self._combos["Kind"], "activated", self._onKind)
        connect(self._combos["Measurements"], "activated", self._onEdited)
        connect(self._checks["Report"], "clicked", self._onEdited)
        connect(self._edits["Path"], "textEdited", self._onEdited)
        connect(self._browse, "clicked", self._onBrowse)
        connect(self._export, "clicked", self._onExport)
        connect(self._cancel, "clicked", lambda _=False: self._actions.cancel())

    def show(self, view: ExportView) -> None:
        """Show this. Nothing is called: only the user's own doing is."""
        before, self._view = self._view, view
        if before is None or view.segmentations != before.segmentations:
            fill(self._combos["Segmentation"], view.segmentations)
        if view.chosen:
            choose(self._combos["Segmentation"], view.chosen)
        if before is not None and view.chosen != before.chosen:
            self._onEdited()
        if before is None or view.formats != before.formats:
            shown = self._chosen("Format")
            fill(self._combos["Format"], view.formats)
            known = [value for value, _ in view.formats]
            choose(self._combos["Format"], self._preferred if self._preferred in known else known[0])
            if before is not None and self._chosen("Format") != shown:
                self._onOtherFormat()
        for name, text in (("Problem", view.problem), ("Dicom", view.dicomProblem)):
            put(self._texts[name], "text", breakable(text))
            self._texts[name].visible = bool(text)
        for widget in (*self._combos.values(), *self._edits.values(), *self._checks.values(), self._browse):
            put(widget, "enabled", view.canExport)
        put(self._export, "enabled", view.canExport)
        self._runningBar.visible = view.isRunning
        self._line.show(view.line)
        hasEnded = before is not None and before.isRunning and not view.isRunning
        if hasEnded and view.line.level in (Level.OK, Level.WARNING):
            self._onEdited()  # the next time is confirmed anew
        self._showFields()

    def cleanup(self) -> None:
        """Disconnect everything."""
        self._connections.disconnectAll()

    # Showing

    def _showFields(self) -> None:
        """Show the options of DICOM with DICOM only; compression for what can be compressed."""
        isDicom = self._chosen("Format") == DICOM
        fields = {**self._combos, **self._edits, **self._checks}
        for name in _DICOM_ONLY:
            isShown = isDicom and (name != "Compression" or self._chosen("Kind") == _LABELMAP)
            fields[name].visible = isShown
            if name in self._labels:
                self._labels[name].visible = isShown

    def _chosen(self, name: str) -> str:
        combo = self._combos[name]
        value = combo.itemData(combo.currentIndex)
        return value if isinstance(value, str) else ""

    # What the user did

    def _onSegmentation(self, _=0) -> None:
        self._onEdited()
        self._actions.choose(self._chosen("Segmentation"))

    def _onFormat(self, _=0) -> None:
        self._preferred = self._chosen("Format")
        self._onOtherFormat()
        self._showFields()

    def _onOtherFormat(self) -> None:
        path = self._edits["Path"]
        if path.text.strip():
            put(path, "text", withEnding(path.text.strip(), self._chosen("Format")))
        self._onEdited()

    def _onKind(self, _=0) -> None:
        self._showFields()

    def _onEdited(self, _=None) -> None:
        """Withdraw the consent to replace files: these are other files, or get other contents."""
        put(self._checks["Overwrite"], "checked", False)
        self._confirmed = ""

    def _onBrowse(self) -> None:
        format = self._chosen("Format") or SEG_NRRD
        name = self._combos["Segmentation"].currentText.replace("/", "_").replace("\\", "_")
        at = self._edits["Path"].text.strip() or (withEnding(name, format) if name else "")
        pattern = f"*{withEnding('x', format)[1:]}"
        label = self._combos["Format"].currentText.partition(" (")[0]
        chosen = qt.QFileDialog.getSaveFileName(self._widget, _("Export to"), at, f"{label} ({pattern})")
        path = chosen if isinstance(chosen, str) else chosen[0]  # PythonQt gives the path alone
        if not path:
            return
        whole = withEnding(path, format)
        put(self._edits["Path"], "text", whole)
        self._onEdited()
        if whole == path and os.path.lexists(path):
            self._confirmed = path  # the dialog has asked about it, but not about files beside it

    def _onExport(self) -> None:
        format = self._chosen("Format")
        options = ExportOptions(
            format=format,
            path=self._edits["Path"].text.strip(),
            kind=self._chosen("Kind"),
            compression=self._chosen("Compression"),
            generic=self._checks["Generic"].checked,
            description=self._edits["Description"].text.strip(),
            creator=self._edits["Creator"].text.strip(),
            measurements=self._chosen("Measurements"),
            report=format == DICOM and self._checks["Report"].checked,
            overwrite=self._checks["Overwrite"].checked,
            confirmed=(self._confirmed,) if self._confirmed else (),
            segmentation=self._chosen("Segmentation"),
        )
        self._actions.export(options)
