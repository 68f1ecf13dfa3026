"""The slices of the session in Slicer's views: the one that is shown, another one, the weakest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import slicer
from medsam2_core.errors import PromptError

from MedSAM2SegmentLib.i18n import _
from MedSAM2SegmentLib.Segments.Editors import nodesOf

if TYPE_CHECKING:
    from medsam2_core.imaging.slices import SliceStack

    from MedSAM2SegmentLib.Effect.WorkerSession import WorkerSession
    from MedSAM2SegmentLib.Segments.VolumeAdapter import VolumeAdapter


class SliceNavigation:
    """Finds and shows slices of the session's stack in the slice views.

    Attributes
    ----------
    view
        The slice node of the view the user worked in last; None before that.
    """

    def __init__(self, session: WorkerSession) -> None:
        self._session = session
        self.view: Any = None
        self._visited: set[tuple[str, int]] = set()  # segments and slices shown as weakest

    def current(self) -> int | None:
        """Return the slice in the last view if that shows slices of the stack, else in any that does."""
        adapter, stack = self._session.adapter, self._session.stack
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
        adapter, stack = self._session.adapter, self._session.stack
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

    def forget(self) -> None:
        """Remove what is known about the views of another segmentation."""
        self._visited.clear()
        self._session.forgetWindow()
        if self.view is not None and self.view.GetScene() is None:
            self.view = None


def _isAlong(adapter: VolumeAdapter, stack: SliceStack, view: Any) -> bool:
    """Whether a view shows slices of the stack, even if it shows none now because it is beside the volume."""
    if adapter.sliceOfView(view, stack) is not None:
        return True
    probe = slicer.vtkMRMLSliceNode()
    probe.GetSliceToRAS().DeepCopy(view.GetSliceToRAS())
    probe.UpdateMatrices()
    probe.JumpSliceByOffsetting(*(float(value) for value in adapter.positionOfSlice(stack, len(stack) // 2)))
    return adapter.sliceOfView(probe, stack) is not None
