"""How the volume is cut into slices, which slice the user looks at, and how to show another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.worker.messages import SessionSettings, StackChoice

from MedSAM2SegmentLib.Effect.Parameters import PATIENCE, Parameters

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.SessionLink import SessionLink
    from MedSAM2SegmentLib.Effect.Workplace import Workplace
    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

_PLANES = ("axial", "sagittal", "coronal")


class Slicing:
    """Stack and views.

    With "auto", the first prompt's view decides and is noted in the scene; what is said later in other views
    falls on the slices it lies in. When no segment has prompts any more, the next prompt decides anew.

    Attributes
    ----------
    view
        The slice node of the view the user worked in last; None before that.
    """

    def __init__(self, workplace: Workplace, link: SessionLink, parameters: Parameters) -> None:
        self._workplace, self._link, self._parameters = workplace, link, parameters
        self.view: Any = None
        self._visited: set[tuple[str, int]] = set()
        self._displayed: tuple[str, str] | None = None  # volume, and the window it was displayed with

    def forget(self) -> None:
        """Another segmentation, or none."""
        self._visited.clear()
        self._displayed = None
        if self.view is not None and self.view.GetScene() is None:
            self.view = None

    # The stack ----------------------------------------------------------------------------------------------

    def open(self, *, fromView: bool = False) -> bool:
        """Have a session open that fits; whether it is another one than before.

        ``fromView``: the user is about to say something in :attr:`view`.

        Raises
        ------
        MedSAM2Error
            When the volume cannot be cut as wished.
        """
        adapter = self._workplace.adapter
        if adapter is None:
            return False
        return self._link.open(adapter, self._choice(adapter, fromView), self._settings(adapter, fromView))

    def turnTo(self, axis: str) -> None:
        """Cut along a plane, if that is open: nothing is said yet, and the first prompt was to decide."""
        adapter, markups = self._workplace.adapter, self._workplace.markups
        isSaid = markups is not None and bool(markups.segmentIDs())
        if adapter is not None and not isSaid and self._parameters.text("stack") == "auto":
            self._parameters.put("stackFound", json.dumps(adapter.stackAlong(axis).to_json()))

    def checkAlong(self, axis: str) -> None:
        """PromptError when the open session does not cut along a plane."""
        adapter, stack = self._workplace.adapter, self._link.stack
        wanted = adapter.stackAlong(axis).stack(adapter.volume)
        if stack is None or stack.key != wanted.key:
            plane = wanted.key.partition(":")[0]
            raise PromptError(
                f"this Auto model looks at {plane} slices: choose them under Advanced, Slice direction, or "
                "clear the prompts made on others"
            )

    def relax(self, *, force: bool = False) -> None:
        """Let the next prompt decide again, if nothing is said any more."""
        markups = self._workplace.markups
        if force or markups is None or not markups.segmentIDs():
            self._parameters.put("stackFound", "")

    def move(self, matrix: NDArray[np.float64]) -> None:
        """Everything was moved (4, 4) in the world: oblique slices go along, if they were not deformed."""
        turn = matrix[:3, :3]
        try:
            found = StackChoice.from_json(json.loads(self._parameters.text("stackFound")))
        except (MedSAM2Error, ValueError):
            return
        if found.axis or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6):
            return
        origin = matrix @ [*found.origin_ras, 1.0]
        rows, columns = turn @ found.row_direction_ras, turn @ found.column_direction_ras
        choice = StackChoice.oblique(origin[:3], rows, columns, found.spacing_mm)
        self._parameters.put("stackFound", json.dumps(choice.to_json()))

    def how(self) -> dict[str, Any]:
        """Range and direction of a propagation, for a session. PromptError when there are no such slices."""
        first, last = self._parameters.rangeOfSlices(len(self._link.stack) if self._link.stack else 1)
        patience = PATIENCE if self._parameters.isOn("stopWhenGone") else None
        direction = self._parameters.text("direction")
        return {"first": first, "last": last, "direction": direction, "stop_after_absent": patience}

    def _choice(self, adapter: VolumeAdapter, fromView: bool) -> StackChoice:
        wished = self._parameters.text("stack")
        if wished in _PLANES:
            return StackChoice(wished)
        found = self._found(adapter)
        isSaid = bool(self._workplace.markups is not None and self._workplace.markups.segmentIDs())
        if wished == "auto" and isSaid and found is not None:
            return found
        if self.view is not None and (fromView or found is None):
            if found is not None and adapter.sliceOfView(self.view, found.stack(adapter.volume)) is not None:
                return found
            found = adapter.stackOfView(self.view)
            if fromView:
                self._parameters.put("stackFound", json.dumps(found.to_json()))
        # Named as `stackOfView` names it, so that a first click in an axial view finds the session open.
        return found or StackChoice("ijk"[adapter.geometry.closest_axis("axial")])

    def _found(self, adapter: VolumeAdapter) -> StackChoice | None:
        """What was decided before, if it still fits; else what is open."""
        text = self._parameters.text("stackFound")
        if not text:
            return None
        try:
            found = StackChoice.from_json(json.loads(text))
            found.stack(adapter.volume)
        except (MedSAM2Error, ValueError):
            return None  # edited by hand, or made for another volume: the next prompt decides
        return found

    def _settings(self, adapter: VolumeAdapter, fromView: bool) -> SessionSettings:
        window = self._parameters.text("window")
        if window == "displayed":
            # Looked up when something is said: while the user is still dragging the window, nothing is asked.
            if fromView or self._displayed is None or self._displayed[0] != adapter.node.GetID():
                self._displayed = adapter.node.GetID(), adapter.displayedWindow() or "auto"
            window = self._displayed[1]
        else:
            self._displayed = None
        return SessionSettings(model=self._parameters.text("model"), window=window)

    # Slices -------------------------------------------------------------------------------------------------

    def current(self) -> int | None:
        """The slice looked at: in the last view if that shows slices of the stack, else in any that does."""
        adapter, stack = self._workplace.adapter, self._link.stack
        if adapter is None or stack is None:
            return None
        views = [self.view] if self.view is not None and self.view.GetScene() is not None else []
        for view in [*views, *_sliceNodes(adapter.node.GetScene())]:
            n = adapter.sliceOfView(view, stack)
            if n is not None:
                return n
        return None

    def focus(self) -> None:
        """Let the worker make ready the slices near the one that is looked at."""
        session = self._link.session
        if session is None or not session.is_open:
            return
        n = self.current()
        if n is not None:
            session.focus(n)

    def jump(self, n: int) -> None:
        """Show slice ``n`` in every view that shows slices of the stack."""
        adapter, stack = self._workplace.adapter, self._link.stack
        if adapter is None or stack is None or not 0 <= n < len(stack):
            return
        ras = adapter.positionOfSlice(stack, n)
        for view in _sliceNodes(adapter.node.GetScene()):
            if _liesAlong(adapter, stack, view):
                view.JumpSliceByOffsetting(*(float(value) for value in ras))

    def weakest(self, segmentID: str) -> int | None:
        """The slice found by tracking that the model was least sure about and that was not shown yet."""
        session = self._link.session
        if session is None or not segmentID:
            return None
        said = session.words(segmentID)
        found = {
            n: record.confidence
            for n, record in session.records(segmentID).items()
            if n not in said and not record.final
        }
        left = {n: value for n, value in found.items() if (segmentID, n) not in self._visited}
        if found and not left:
            self._visited = {(other, n) for other, n in self._visited if other != segmentID}
            left = found
        if not left:
            return None
        n = min(left, key=lambda n: (left[n], n))
        self._visited.add((segmentID, n))
        return n

    def revisit(self) -> None:
        """There are new results: every slice may be shown again."""
        self._visited.clear()


def _liesAlong(adapter: VolumeAdapter, stack: SliceStack, view: Any) -> bool:
    """Whether a view shows slices of the stack, even if it shows none now because it is beside the volume."""
    if adapter.sliceOfView(view, stack) is not None:
        return True
    probe = slicer.vtkMRMLSliceNode()
    probe.GetSliceToRAS().DeepCopy(view.GetSliceToRAS())
    probe.UpdateMatrices()
    probe.JumpSliceByOffsetting(*(float(value) for value in adapter.positionOfSlice(stack, len(stack) // 2)))
    return adapter.sliceOfView(probe, stack) is not None


def _sliceNodes(scene: Any) -> Iterator[Any]:
    if scene is None:
        return
    nodes = scene.GetNodesByClass("vtkMRMLSliceNode")
    nodes.UnRegister(None)
    for index in range(nodes.GetNumberOfItems()):
        yield nodes.GetItemAsObject(index)
