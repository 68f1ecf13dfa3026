"""The stack of slices, the slice in the views, and how to show another one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from medsam2_core.errors import MedSAM2Error, PromptError
from medsam2_core.worker.messages import SessionSettings, StackChoice

from MedSAM2SegmentLib.Effect.Parameters import PATIENCE
from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.Editors import nodesOf

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack
    from numpy.typing import NDArray

    from MedSAM2SegmentLib.Effect.EditorContext import EditorContext
    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter

_PLANES = ("axial", "sagittal", "coronal")


class SliceNavigation:
    """Chooses the stack of the session, and finds and shows its slices in the views.

    With the stack "auto", the view of the first prompt decides, and is stored in the scene; later prompts in
    other views apply to the slices they lie on. When no segment has prompts any more, the next prompt decides
    anew.

    Parameters
    ----------
    context
        Volume, prompts, the worker's session and the user's choices.

    Attributes
    ----------
    view
        The slice node of the view the user worked in last; None before that.
    """

    def __init__(self, context: EditorContext) -> None:
        self._context, self._session, self._parameters = context, context.session, context.parameters
        self.view: Any = None
        self._visited: set[tuple[str, int]] = set()
        self._displayed: tuple[str, str] | None = None  # volume, and the window it was displayed with
        self._found: tuple[str, str, StackChoice | None] = ("", "", None)  # of stackFound and volume

    def clear(self) -> None:
        """Remove what is known about another segmentation."""
        self._visited.clear()
        self._displayed = None
        if self.view is not None and self.view.GetScene() is None:
            self.view = None

    # The stack ----------------------------------------------------------------------------------------------

    def open(self, *, fromView: bool = False) -> bool:
        """Open a session that fits the user's choices; whether it is another one than before.

        ``fromView``: the user is about to prompt in :attr:`view`.

        Raises
        ------
        MedSAM2Error
            The volume cannot be cut into such slices.
        """
        adapter = self._context.adapter
        if adapter is None:
            return False
        return self._session.open(adapter, self._choice(adapter, fromView), self._settings(adapter, fromView))

    def alignTo(self, axis: str) -> None:
        """Choose slices along a plane, if the first prompt was to decide and there is none yet."""
        adapter = self._context.adapter
        if adapter is not None and not self._isPrompted() and self._parameters.text("stack") == "auto":
            self._parameters.put("stackFound", json.dumps(adapter.stackAlong(axis).to_json()))

    def checkAlong(self, axis: str) -> None:
        """Raise PromptError when the slices of the session are not along a plane."""
        adapter, stack = self._context.adapter, self._session.stack
        wanted = adapter.cut(adapter.stackAlong(axis))
        if stack is None or stack.key != wanted.key:
            plane = wanted.key.partition(":")[0]
            raise PromptError(
                _(
                    "this Auto model looks at {plane} slices: choose them under Advanced, Slice direction, "
                    "or clear the prompts made on others"
                ).format(plane=plane),
                code="auto-model-other-plane",
                plane=plane,
            )

    def release(self, *, force: bool = False) -> None:
        """Let the next prompt decide about the stack, if there is none any more."""
        if force or not self._isPrompted():
            self._parameters.put("stackFound", "")

    def follow(self, matrix: NDArray[np.float64]) -> None:
        """Move oblique slices with volume and segmentation (4, 4), unless these were deformed."""
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

    def propagationOptions(self) -> dict[str, Any]:
        """Return range and direction of a propagation. PromptError when there are no such slices."""
        first, last = self._parameters.rangeOfSlices(len(self._session.stack) if self._session.stack else 1)
        patience = PATIENCE if self._parameters.isOn("stopWhenGone") else None
        direction = self._parameters.text("direction")
        return {"first": first, "last": last, "direction": direction, "stop_after_absent": patience}

    def _isPrompted(self) -> bool:
        markups = self._context.markups
        return markups is not None and bool(markups.segmentIDs())

    def _choice(self, adapter: VolumeAdapter, fromView: bool) -> StackChoice:
        wanted = self._parameters.text("stack")
        if wanted in _PLANES:
            return StackChoice(wanted)
        found = self._storedChoice(adapter)
        if wanted == "auto" and found is not None and self._isPrompted():
            return found
        if self.view is not None and (fromView or found is None):
            if found is not None and adapter.sliceOfView(self.view, adapter.cut(found)) is not None:
                return found
            found = adapter.stackOfView(self.view)
            if fromView:
                self._parameters.put("stackFound", json.dumps(found.to_json()))
        # Named as `stackOfView` names it, so that a first click in an axial view finds the session open.
        return found or StackChoice("ijk"[adapter.geometry.closest_axis("axial")])

    def _storedChoice(self, adapter: VolumeAdapter) -> StackChoice | None:
        """What was decided before, if it still fits the volume; None when the next prompt decides."""
        text = self._parameters.text("stackFound")
        if not text:
            return None
        if (text, adapter.key) != self._found[:2]:
            try:
                found = StackChoice.from_json(json.loads(text))
                adapter.cut(found)
            except (MedSAM2Error, ValueError):
                found = None  # edited by hand, or made for another volume
            self._found = text, adapter.key, found
        return self._found[2]

    def _settings(self, adapter: VolumeAdapter, fromView: bool) -> SessionSettings:
        window = self._parameters.text("window")
        if window == "displayed":
            # Read at a prompt only: while the user is still dragging the window, no session is opened.
            if fromView or self._displayed is None or self._displayed[0] != adapter.node.GetID():
                self._displayed = adapter.node.GetID(), adapter.displayedWindow() or "auto"
            window = self._displayed[1]
        else:
            self._displayed = None
        return SessionSettings(model=self._parameters.text("model"), window=window)

    # Slices -------------------------------------------------------------------------------------------------

    def current(self) -> int | None:
        """Return the slice in the last view if that shows slices of the stack, else in any that does."""
        adapter, stack = self._context.adapter, self._session.stack
        if adapter is None or stack is None:
            return None
        views = [self.view] if self.view is not None and self.view.GetScene() is not None else []
        for view in [*views, *nodesOf(adapter.node.GetScene(), "vtkMRMLSliceNode")]:
            n = adapter.sliceOfView(view, stack)
            if n is not None:
                return n
        return None

    def checkedCurrent(self) -> int:
        """Return the slice in the views; PromptError when no view shows one."""
        n = self.current()
        if n is None:
            raise PromptError(
                _("no view shows a slice that is segmented: click one in the strip first"),
                code="no-slice-in-view",
            )
        return n

    def prefetch(self) -> None:
        """Let the worker prepare the slices near the one in the views."""
        session = self._session.session
        if session is None or not session.is_open:
            return
        n = self.current()
        if n is not None:
            session.prefetch(n)

    def jump(self, n: int) -> None:
        """Show slice ``n`` in every view that shows slices of the stack."""
        adapter, stack = self._context.adapter, self._session.stack
        if adapter is None or stack is None or not 0 <= n < len(stack):
            return
        ras = adapter.positionOfSlice(stack, n)
        for view in nodesOf(adapter.node.GetScene(), "vtkMRMLSliceNode"):
            if _isAlong(adapter, stack, view):
                view.JumpSliceByOffsetting(*(float(value) for value in ras))

    def weakest(self, segmentID: str) -> int | None:
        """Return the propagated slice with the lowest confidence that was not shown yet."""
        session = self._session.session
        if session is None or not segmentID:
            return None
        prompted = session.prompts(segmentID)
        found = {
            n: record.confidence
            for n, record in session.masks(segmentID).items()
            if n not in prompted and not record.final
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

    def clearVisited(self) -> None:
        """Let every slice be shown again: there are new results."""
        self._visited.clear()


def _isAlong(adapter: VolumeAdapter, stack: SliceStack, view: Any) -> bool:
    """Whether a view shows slices of the stack, even if it shows none now because it is beside the volume."""
    if adapter.sliceOfView(view, stack) is not None:
        return True
    probe = slicer.vtkMRMLSliceNode()
    probe.GetSliceToRAS().DeepCopy(view.GetSliceToRAS())
    probe.UpdateMatrices()
    probe.JumpSliceByOffsetting(*(float(value) for value in adapter.positionOfSlice(stack, len(stack) // 2)))
    return adapter.sliceOfView(probe, stack) is not None
