"""Another scan of the scene: its objects looked for in this one, as examples or at their old places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import vtk
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.worker.job_messages import SearchRequest
from medsam2_core.worker.messages import segmentation_to_json

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.Editors import nodesOf
from MedSAM2SegmentLib.Segments.OtherScans import (
    exampleOf,
    otherSegmentations,
    segmentationOf,
    segmentationOrNone,
)

if TYPE_CHECKING:
    from MedSAM2SegmentLib.Effect.EditedSegmentation import EditedSegmentation
    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
    from MedSAM2SegmentLib.Panels.PanelState import Parameters

_TABLE = "MedSAM2.changes"  # attribute of our tables: the segmentation they are about
_QUANTITIES = (
    ("volume_ml", _("Volume (ml)")),
    ("longest_diameter_mm", _("Longest diameter (mm)")),
    ("perpendicular_diameter_mm", _("Perpendicular diameter (mm)")),
)
_STATES = {"present": _("present"), "vanished": _("vanished"), "new": _("new")}


class OtherScan:
    """The segmentation the user has chosen beside the edited one.

    Attributes
    ----------
    onCompared
        Called when :attr:`text` is new.
    """

    def __init__(
        self,
        edited: EditedSegmentation,
        session: WorkerSession,
        search: Callable[[SearchRequest, str, Callable[[], None]], None],
        parameters: Parameters,
    ) -> None:
        self._edited, self._session, self._search, self._parameters = edited, session, search, parameters
        self._compared: tuple[Any, str] = None, ""  # a segmentation, and what has changed in it
        self.onCompared: Callable[[], None] = lambda: None

    @property
    def entries(self) -> tuple[Any, ...]:
        """The other segmentations of the scene."""
        return () if self._edited.segmentation is None else otherSegmentations(self._edited.segmentation)

    @property
    def chosen(self) -> Any:
        """The one the user has chosen, else the first; None when there is none."""
        entries, wanted = self.entries, self._parameters.text("otherScan")
        return next((one for one in entries if one.GetID() == wanted), entries[0] if entries else None)

    @property
    def text(self) -> str:
        """What has changed since the other scan, a line an object; empty before it was compared."""
        segmentation, text = self._compared
        return text if segmentation is self._edited.segmentation else ""

    def findLike(self) -> None:
        """Look for the objects of the other segmentation within the range; slices of its volume are shown."""
        node, stack = self._checked(), self._session.checkedStack
        first, last = self._parameters.rangeOfSlices(len(stack))
        examples = [exampleOf(node, getattr(stack, "plane", "axial"))]
        self._search(SearchRequest(examples, first=first, last=last), "examples", lambda: None)

    def followUp(self) -> None:
        """Look for the objects of the other segmentation near where it lies, within the range of slices."""
        node = self._checked()
        prior = segmentationOf(node)
        first, last = self._parameters.rangeOfSlices(len(self._session.checkedStack))
        wanted = SearchRequest(prior=prior, first=first, last=last)
        self._search(wanted, "prior", partial(self._onFollowed, node))

    def compare(self) -> None:
        """Measure both segmentations: a table in the scene, and :attr:`text`. MedSAM2Error if impossible."""
        self._compareWith(self._checked())

    def _onFollowed(self, node: Any) -> None:
        """Compare with what was looked for, whatever is chosen now; it may be gone."""
        if node.GetScene() is None:
            return
        try:
            self._compareWith(node)
        except MedSAM2Error as error:
            self._compared = self._edited.segmentation, str(error)
            self.onCompared()

    def _compareWith(self, node: Any) -> None:
        edited, client = self._edited.segmentation, self._session.client
        if client is None:
            raise PromptError(_("the worker is not there: restart it first"), code="no-session")
        arrays: dict[str, Any] = {}
        then = segmentationOf(node)
        now = segmentationOrNone(edited, then.geometry)
        fields = {"then": segmentation_to_json(then, arrays), "now": segmentation_to_json(now, arrays)}

        def done(result: Mapping[str, Any]) -> None:
            if edited is self._edited.segmentation and node.GetScene() is not None:
                self._compared = edited, "\n".join(map(_line, result["changes"]))
                _fillTable(edited, node.GetName(), result["changes"])
                self.onCompared()

        def failed(error: MedSAM2Error) -> None:
            self._compared = edited, str(error)
            self.onCompared()

        client.request("compare", fields, done=done, failed=failed, arrays=arrays)

    def _checked(self) -> Any:
        node = self.chosen
        if node is None:
            message = _("there is no other segmentation in the scene: load one with its volume")
            raise PromptError(message, code="no-other-scan")
        return node


def _line(change: Mapping[str, Any]) -> str:
    name, state = change["object"], change["state"]
    then, now = (change[part]["longest_diameter_mm"] for part in ("then", "now"))
    percent = change["change_percent"]["longest_diameter_mm"]
    if state == "vanished":
        return _("{name}: vanished").format(name=name)
    if state == "new":
        return _("{name}: new, {now:.1f} mm").format(name=name, now=now or 0.0)
    if None in (then, now, percent):
        return _("{name}: found again").format(name=name)
    text = _("{name}: {then:.1f} mm, now {now:.1f} mm ({percent:+.0f} %)")
    return text.format(name=name, then=then, now=now, percent=percent)


def _fillTable(edited: Any, other: str, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write a table node of the scene, one for each edited segmentation."""
    scene, ours = edited.GetScene(), edited.GetID()
    known = (one for one in nodesOf(scene, "vtkMRMLTableNode") if one.GetAttribute(_TABLE) == ours)
    table = next(known, None) or scene.AddNewNodeByClass("vtkMRMLTableNode")
    table.SetAttribute(_TABLE, ours)
    table.SetName(_("Changes since {other}").format(other=other))
    table.RemoveAllColumns()
    columns: list[tuple[str, list[Any]]] = [
        (_("Object"), [one["object"] for one in changes]),
        (_("State"), [_STATES.get(one["state"], one["state"]) for one in changes]),
    ]
    for quantity, title in _QUANTITIES:
        for part, which in (("then", _("then")), ("now", _("now")), ("change_percent", _("change in %"))):
            columns.append((f"{title}, {which}", [one[part][quantity] for one in changes]))
    for title, values in columns:
        column = vtk.vtkStringArray()
        column.SetName(title)
        for value in values:
            isNumber = isinstance(value, int | float)
            column.InsertNextValue(f"{value:.4g}" if isNumber else value or "")
        table.AddColumn(column)
